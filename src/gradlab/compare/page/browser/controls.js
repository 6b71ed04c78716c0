"use strict";
// The bar of choices, the legend, and the theme.

const Controls = {
  build() {
    this.range = element("input", { type: "range", min: "0", step: "1", id: "step", "aria-label": "training step" });
    this.range.addEventListener("input", () => State.change({ step: this.stepAt(Number(this.range.value)) }));
    this.said = element("output", {});
    this.play = element("button", { type: "button", title: "play", onclick: () => this.run() }, "▶");
    this.search = element("input", { type: "search", id: "filter", placeholder: "filter: lstm seed<2 -killed", value: State.filter });
    this.search.addEventListener("input", () => State.change({ filter: this.search.value }));
    this.choices = element("span", { style: "display: contents" });
    fill(
      document.getElementById("controls"),
      element("label", { className: "slider" }, "training step", this.play, this.range, this.said),
      this.choices,
      element("label", {}, "filter", this.search),
    );
    document.getElementById("theme").addEventListener("click", () => {
      State.change({ theme: Looks.theme === "dark" ? "light" : "dark" });
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => State.change({}));
  },

  update(moved) {
    if (!moved) {
      this.steps = Store.steps([...State.measures, State.heat]);
      if (!this.steps.length) this.steps = [0];
      this.range.max = String(this.steps.length - 1);
      this.drawChoices();
      this.drawLegend();
    }
    const at = lastUpTo(this.steps, State.step);
    this.range.value = String(at);
    fill(this.said, shown(this.steps[at]));
  },

  /** The training step at a place of the slider; at its end the last, also when there will be more. */
  stepAt(place) {
    return place >= this.steps.length - 1 ? Infinity : this.steps[place];
  },

  drawChoices() {
    const keys = choosable();
    const change = (name) => (value) => State.change({ [name]: value });
    const layers = Store.layers;
    fill(
      this.choices,
      choice("colour", [["", "one"], ...keys], State.colour, change("colour")),
      choice("dash", [["", "none"], ["measurement", "measurement"], ...keys], State.dash, change("dash")),
      choice("facet", [["", "none"], ["measurement", "measurement"], ...keys], State.facet, change("facet")),
      choice(
        "lines",
        [["", "every run"], ["settings", "mean ± 95 % over seeds"], ...keys.map(([key, text]) => [key, `mean ± 95 % by ${text}`])],
        State.group,
        change("group"),
        "one line a run, or the mean of the runs of a group with Student's interval",
      ),
      layers.length > 1 ? choice("layer", layers.map((name, k) => [String(k), name]), String(State.layer), (value) => State.change({ layer: Number(value) })) : null,
    );
  },

  drawLegend() {
    const keys = [];
    const runs = State.drawn;
    const used = (key) => {
      const there = new Set(runs.map((run) => worded(Store.value(run, key))));
      return Looks.values(key).filter((value) => there.has(worded(value)));
    };
    const some = (values) => (values.length <= 16 ? values : [...new Set([0, 0.25, 0.5, 0.75, 1].map((share) => values[Math.round(share * (values.length - 1))]))]);
    if (State.colour) {
      keys.push(element("span", { className: "title" }, `${shortOf(State.colour)}:`));
      for (const value of some(used(State.colour))) keys.push(keyOfLegend(Looks.colour(State.colour, value), [], worded(value)));
    }
    const ink = themed("--ink");
    if (State.dash === "measurement" && State.measures.length) {
      const names = State.measures.filter((name) => Store.has(name));
      for (const name of names) keys.push(keyOfLegend(ink, name === BOUND ? [6, 3] : measureDash(names, name), Store.data.curves[name]));
    } else if (State.dash) {
      keys.push(element("span", { className: "title" }, `${shortOf(State.dash)}:`));
      for (const value of some(used(State.dash))) keys.push(keyOfLegend(ink, Looks.dash(State.dash, value), worded(value)));
    }
    if (State.group) keys.push(element("span", { className: "title" }, `band: ${Math.round(100 * Store.data.level)} % interval of the mean (Student's t); the range over runs where that would leave what the figure can be`));
    fill(document.getElementById("legend"), keys);
  },

  /** Moves the slider from here to the end, or stops. */
  run() {
    if (this.timer) {
      clearInterval(this.timer);
      this.timer = null;
      fill(this.play, "▶");
      return;
    }
    let at = lastUpTo(this.steps, State.step);
    if (at === this.steps.length - 1) at = -1;
    const stride = Math.max(1, Math.round(this.steps.length / 150));
    fill(this.play, "⏸");
    this.timer = setInterval(() => {
      at = Math.min(at + stride, this.steps.length - 1);
      State.change({ step: this.stepAt(at) });
      if (at === this.steps.length - 1) this.run();
    }, 60);
  },
};

function keyOfLegend(colour, dash, text) {
  const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  line.setAttribute("width", "28");
  line.setAttribute("height", "10");
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ x1: 0, x2: 28, y1: 5, y2: 5, stroke: colour, "stroke-width": 2.4, "stroke-dasharray": dash.join(" ") })) drawn.setAttribute(name, value);
  line.append(drawn);
  return element("span", { className: "key", "data-colour": colour, "data-dash": JSON.stringify(dash) }, line, text);
}

/** The theme: what was chosen, else what the system prefers. */
function applyTheme() {
  const dark = State.theme ? State.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}
