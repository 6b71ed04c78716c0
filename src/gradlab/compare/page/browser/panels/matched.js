"use strict";
// Models against each other at one hidden width, and at one number of parameters.

const matchedPanel = {
  id: "matched",
  title: "Matched: models of one size",

  build(place) {
    this.place = place;
    this.body = element("div", {});
    const tools = element("div", { className: "tools" }, element("button", { type: "button", className: "csv", onclick: () => save("matched.csv", csv(this.rows())) }, "CSV"));
    fill(place, element("div", { className: "head" }, element("h2", {}, this.title), tools), this.body);
  },

  update(moved) {
    if (moved) return;
    const found = Store.data.matched;
    this.place.hidden = found.every(({ levels, note }) => !levels.length && !note);
    const rows = found.some(({ levels }) => levels.length);
    fill(this.body, found.map((one) => this.table(one)), rows ? element("p", { className: "say" }, Store.data.when) : null);
  },

  table({ by, levels, note, headings }) {
    const figures = [...new Set(levels.flatMap(({ rows }) => rows.flatMap((row) => Object.keys(row.figures))))];
    const title = element("h3", {}, `by ${by}`);
    const say = note ? element("p", { className: "say" }, note) : null;
    if (!levels.length) return [title, say];
    const head = ["", "model", "hidden", "parameters", "runs", ...figures.map((name) => headings[name] ?? name)];
    const rows = levels.flatMap(({ label, rows }) =>
      rows.map((row, index) =>
        element(
          "tr",
          {},
          element("td", {}, index ? "" : label),
          element("td", {}, row.model),
          [row.hidden, row.parameters, row.runs].map((value) => element("td", { className: "number" }, shown(value))),
          figures.map((name) => element("td", { className: "number" }, row.figures[name]?.words ?? "–")),
        ),
      ),
    );
    const titles = head.map((text, index) => element("th", { className: index > 1 ? "number" : "" }, text));
    return [title, say, element("div", { className: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, titles)), element("tbody", {}, rows)))];
  },

  rows() {
    const rows = [["matched by", "level", "model", "hidden", "parameters", "figure", "mean", "low", "high", "n", "low_high"]];
    for (const { by, levels } of Store.data.matched) {
      for (const level of levels) {
        for (const row of level.rows) {
          for (const [name, { mean, low, high, n, is_range }] of Object.entries(row.figures)) {
            rows.push([by, level.label, row.model, row.hidden, row.parameters, name, mean, low, high, n, is_range ? "range" : "95 % interval"]);
          }
        }
      }
    }
    return rows;
  },
};
