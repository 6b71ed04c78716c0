"use strict";
// Every run: how it ended, by what it differs, its figures, and the command that makes it again.

const FIGURES = [
  ["val/loss", (run) => run.summary["val/loss"]],
  ["test/loss", (run) => run.summary["test/loss"]],
  ["test/accuracy", (run) => run.summary["test/accuracy"]],
  ["decades lost", (run) => figureOf(run, "decades_lost")],
  ["per 100 steps", (run) => figureOf(run, "decades_per_100")],
  ["R² of that line", (run) => figureOf(run, "adjoint_line_r2")],
  ["adjoint slope", (run) => figureOf(run, "adjoint_slope")],
  ["horizon", (run) => figureOf(run, "memory_horizon")],
  ["λ₁", (run) => figureOf(run, "lyapunov_exponent")],
];

/** A figure of the first layer. */
function figureOf(run, name) {
  const key = Object.keys(run.summary).find((one) => one === name || one.startsWith(`${name}/layer_`));
  return key === undefined ? undefined : run.summary[key];
}

const MOST_ROWS = 200;

const runsPanel = {
  id: "runs",
  title: "Runs",
  open: new Set(),
  most: MOST_ROWS,

  build(place) {
    this.place = place;
    this.count = element("span", { className: "say" });
    this.body = element("div", { className: "scroll" });
    this.say = element("p", { className: "say" });
    this.commands = element("pre", { className: "commands" });
    const tools = element("div", { className: "tools" }, element("button", { type: "button", className: "csv", onclick: () => save("runs.csv", csv(this.rows())) }, "CSV"));
    fill(
      place,
      element("div", { className: "head" }, element("h2", {}, this.title), this.count, tools),
      this.body,
      this.say,
      element("details", {}, element("summary", {}, "the commands that made the runs shown"), this.commands),
    );
  },

  columns() {
    const keys = Object.entries(Store.data.keys).map(([key, { short }]) => ({ id: key, title: short, value: (run) => run.settings[key] }));
    const mixed = ["task", "T"].filter((key) => !(key in Store.data.keys) && Looks.values(key).length > 1).map((key) => ({ id: key, title: key, value: (run) => run[key] }));
    const facts = [
      { id: "parameters", title: "parameters", value: (run) => run.parameters },
      { id: "steps_per_second", title: "steps/s", value: (run) => run.steps_per_second },
    ];
    const figures = FIGURES.map(([title, value]) => ({ id: title, title, value }));
    const all = [...keys, ...mixed, ...facts, ...figures].filter(({ value }) => Store.runs.some((run) => value(run) !== undefined && value(run) !== null));
    return [{ id: "name", title: "run", value: (run) => run.name }, { id: "status", title: "status", value: (run) => run.status }, ...all];
  },

  update(moved) {
    if (moved) return;
    const wanted = new Set(State.runs);
    const keep = filterOf(State.filter);
    const listed = this.sorted(Store.runs.filter((run) => keep(run)));
    fill(this.count, `${shown(wanted.size)} of ${shown(Store.runs.length)} shown`);
    const columns = this.columns();
    const numeric = (column) => listed.every((run) => ["number", "undefined"].includes(typeof (column.value(run) ?? undefined)));
    const numbers = new Set(columns.filter((column) => column.id !== "name" && numeric(column)).map(({ id }) => id));
    const head = columns.map(({ id, title }) => {
      const arrow = State.sort === id ? " ▲" : State.sort === `-${id}` ? " ▼" : "";
      const sort = State.sort === id ? `-${id}` : id;
      return element("th", { className: numbers.has(id) ? "number" : "" }, element("button", { type: "button", onclick: () => State.change({ sort }) }, title + arrow));
    });
    const rows = listed.slice(0, this.most).flatMap((run) => this.row(run, columns, numbers, wanted.has(run)));
    const left = listed.length - this.most;
    const next = Math.min(left, 5 * MOST_ROWS);
    const more = element("button", { type: "button", className: "rest", onclick: () => ((this.most += next), this.update(false)) }, `show ${shown(next)} more of ${shown(left)}`);
    fill(this.body, element("table", {}, element("thead", {}, element("tr", {}, element("th", {}), head)), element("tbody", {}, rows)), left > 0 ? more : null);
    fill(this.say, `${Store.data.when} Decades lost: from lag 0 to the longest. Horizon: steps until the gradient has first fallen by e.`);
    fill(this.commands, [...new Set(State.runs.map((run) => run.command).filter(Boolean))].join("\n"));
  },

  row(run, columns, numbers, isShown) {
    const box = element("input", { type: "checkbox", checked: !State.hidden.has(run.path), "aria-label": `show ${run.name}` });
    box.addEventListener("change", () => {
      if (box.checked) State.hidden.delete(run.path);
      else State.hidden.add(run.path);
      State.change({ hidden: State.hidden });
    });
    const chip = element("span", { title: run.unread ? "its curves are not on this page" : "" }, run.unread ? " ○ " : " ● ");
    chip.style.color = Looks.colour(State.colour, Store.value(run, State.colour));
    const toggle = element("button", { type: "button", title: "more", "aria-expanded": String(this.open.has(run.path)), onclick: () => this.toggle(run.path) }, this.open.has(run.path) ? "▾" : "▸");
    const cells = columns.map(({ id, value }) => {
      const found = value(run);
      if (id === "status") return element("td", {}, element("span", { className: `badge ${run.status.replace(/\W+/g, "-")}`, title: run.reason }, run.status), run.reason && run.status !== "finished" ? ` ${run.reason}` : "");
      return element("td", { className: numbers.has(id) ? "number" : "", title: typeof found === "string" ? found : "" }, shown(found, 5));
    });
    const made = element(
      "tr",
      { "data-path": run.path, className: isShown ? "" : "dim", onmouseenter: () => highlight([run], null), onmouseleave: () => highlight([], null) },
      element("td", {}, box, chip, toggle),
      cells,
    );
    return this.open.has(run.path) ? [made, this.more(run, columns.length + 1)] : [made];
  },

  more(run, width) {
    const figures = Object.entries(run.summary).map(([name, value]) => `${name} = ${value}`);
    return element(
      "tr",
      { className: "more" },
      element(
        "td",
        { colSpan: width },
        element("p", { className: "say" }, run.path),
        run.reason ? element("p", {}, run.reason) : null,
        run.verdict.map((line) => element("p", {}, line)),
        run.command ? element("pre", {}, run.command) : null,
        element("pre", {}, figures.join("\n")),
      ),
    );
  },

  toggle(path) {
    if (!this.open.delete(path)) this.open.add(path);
    this.update(false);
  },

  sorted(runs) {
    if (!State.sort) return runs;
    const down = State.sort.startsWith("-");
    const column = this.columns().find(({ id }) => id === (down ? State.sort.slice(1) : State.sort));
    if (!column) return runs;
    const order = (a, b) => {
      const [x, y] = [a, b].map((run) => column.value(run) ?? null);
      if (x === null || y === null) return (x === null) - (y === null); // what is not there comes last
      const sign = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return down ? -sign : sign;
    };
    return [...runs].sort(order);
  },

  rows() {
    const figures = [...new Set(Store.runs.flatMap((run) => Object.keys(run.summary)))];
    const keys = Object.keys(Store.data.keys);
    const rows = [["run", "path", "status", "reason", ...keys, "task", "T", "parameters", "steps_per_second", "probe_overhead", ...figures, "command"]];
    for (const run of this.sorted(State.runs)) {
      const settings = keys.map((key) => run.settings[key]);
      rows.push([run.name, run.path, run.status, run.reason, ...settings, run.task, run.T, run.parameters, run.steps_per_second, run.probe_overhead, ...figures.map((name) => run.summary[name]), run.command]);
    }
    return rows;
  },
};
