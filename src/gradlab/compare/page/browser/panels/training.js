"use strict";
// What happened over training steps: loss and metric with their baseline; decades, slope, horizon, exponent.

/** A panel of charts over training steps. `plots`: `{name, title, yLabel, level, logY}` each. */
function trainingPanel(id, title, choose) {
  return {
    id,
    title,
    plots: new Map(),
    logarithmic: id === "loss",

    build(place) {
      this.place = place;
      this.tools = element("div", { className: "tools" });
      this.say = element("p", { className: "say" });
      this.charts = element("div", { className: "charts" });
      this.charts.style.setProperty("--least", "340px");
      fill(place, element("div", { className: "head" }, element("h2", {}, title), this.tools), this.say, this.charts);
    },

    update(moved) {
      if (moved) {
        for (const { chart } of this.plots.values()) chart.move(State.step);
        return;
      }
      this.groups = groupsOf(State.drawn);
      const wanted = choose(State.drawn);
      for (const [name, { chart }] of this.plots) {
        if (!wanted.some((one) => one.name === name)) {
          chart.remove();
          this.plots.delete(name);
        }
      }
      for (const plot of wanted) this.draw(plot);
      this.drawTools(wanted);
      fill(this.say, this.words(wanted));
    },

    draw(plot) {
      if (!this.plots.has(plot.name)) {
        const chart = new Chart({ title: plot.title, xLabel: "training step", yLabel: plot.yLabel, over: "step", height: 250 });
        this.plots.set(plot.name, { chart });
        this.charts.append(chart.place);
      }
      const lines = [];
      for (const group of this.groups) {
        const points = overSteps(group, plot.name, State.layer);
        if (points) lines.push({ ...group, ...points, note: averaged(points, group.runs[0]) });
      }
      const positive = plot.mayLog && this.logarithmic && lines.every((line) => line.y.every((value) => !(value <= 0)));
      this.plots.get(plot.name).lines = lines;
      this.plots.get(plot.name).chart.show(positive ? lines.map(clipped) : lines, {
        logY: positive,
        marks: plot.marks.filter(({ value }) => !positive || value > 0),
        yRange: rangeWith(lines, plot.marks, positive),
        cursor: State.step,
      });
    },

    drawTools(wanted) {
      fill(
        this.tools,
        wanted.some((plot) => plot.mayLog)
          ? tick("log loss", this.logarithmic, (on) => {
              this.logarithmic = on;
              this.update(false);
            })
          : null,
        downloads(this, id),
      );
    },

    words(wanted) {
      if (!wanted.length) return nothing(State.drawn, "any of these", id === "loss" ? "every run" : "probe=dynamics");
      const found = [];
      for (const { name, title } of wanted) {
        const lacking = State.drawn.filter((run) => hasRows(run) && !(name in run.series));
        if (lacking.length) found.push(`${title} was not measured by ${namesOf(lacking)}.`);
      }
      return found.join(" ");
    },

    rows() {
      const rows = [["line", "runs", "variable", "layer", "training_step", "value", "low", "high", "n", "low_high"]];
      for (const [name, { lines }] of this.plots) {
        for (const line of lines) {
          Array.from(line.x).forEach((step, k) => {
            rows.push([line.label, pathsOf(line.runs), name, State.layer, step, line.y[k], line.low?.[k], line.high?.[k], line.n, line.range ? "range" : "95 % interval"]);
          });
        }
      }
      return rows;
    },
  };
}

/** On a logarithmic axis an interval that reaches below zero ends far below the line. */
function clipped(line) {
  if (!line.low) return line;
  return { ...line, low: Array.from(line.low, (value, k) => (value > 0 ? value : line.y[k] / 10)) };
}

/** From the lowest to the highest of lines, bands and levels; bands and levels stretch it by no more than once. */
function rangeWith(lines, marks, log) {
  const to = log ? Math.log10 : (value) => value;
  const back = log ? (value) => 10 ** value : (value) => value;
  let [low, high] = [Infinity, -Infinity];
  const include = (value) => {
    if (!Number.isFinite(value)) return;
    low = Math.min(low, value);
    high = Math.max(high, value);
  };
  for (const line of lines) for (const value of line.y) include(to(value));
  if (!(high >= low)) return null;
  const reach = high - low || 1;
  const [least, most] = [low - reach, high + reach];
  for (const { value } of marks) if (to(value) > least && to(value) < most) include(to(value));
  for (const line of lines) {
    for (const value of [...(line.low ?? []), ...(line.high ?? [])]) {
      const at = log && !(value > 0) ? low : to(value);
      include(Math.min(Math.max(at, low - reach / 4), high + reach / 4));
    }
  }
  const room = 0.05 * (high - low) || 0.5;
  return [back(low - room), back(high + room)];
}

/** The levels that a guess without memory reaches, of all runs that have the same. */
function baselinesOf(runs, split, figure) {
  const found = new Map();
  for (const run of runs) {
    const baseline = run.baseline[split];
    const value = baseline?.[figure];
    if (typeof value === "number" && found.size < 4) found.set(value, { value, label: `baseline: ${baseline.name}` });
  }
  return [...found.values()];
}

const lossPanel = trainingPanel("loss", "What did it buy? Loss and metric", (runs) => {
  const has = (name) => runs.some((run) => name in run.series);
  const wanted = [];
  for (const split of ["train", "val"]) {
    if (has(`${split}/loss`)) {
      wanted.push({ name: `${split}/loss`, title: `${split}/loss`, yLabel: "loss", mayLog: true, marks: baselinesOf(runs, split, "loss") });
    }
  }
  if (has("val/accuracy")) {
    wanted.push({ name: "val/accuracy", title: "val/accuracy", yLabel: "share of right answers", marks: baselinesOf(runs, "val", "accuracy") });
  }
  return wanted;
});

const dynamicsPanel = trainingPanel("dynamics", "Decades, slope, horizon and λ₁ over training", (runs) => {
  const zero = [{ value: 0, label: "0: neither vanishes nor explodes" }];
  const grow = [{ value: 0, label: "0: above it small changes of the state grow" }];
  const marks = { decades_lost: zero, decades_per_100: zero, adjoint_slope: zero, lyapunov_exponent: grow };
  return Object.entries(Store.data.series)
    .filter(([name]) => runs.some((run) => name in run.series))
    .map(([name, word]) => ({ name, title: word.replace(/ \(.*\)/, ""), yLabel: word, marks: marks[name] ?? [] }));
});
