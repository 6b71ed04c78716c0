"use strict";
// How far back the gradient reaches: norms and products over lag, at the step where the slider stands.

const BOUND = "pascanu_bound_log10";
const ADJOINT = "adj_h_log10";
const TYPICAL = "forget_product_log10";

const curvesPanel = {
  id: "curves",
  title: "How far back does the gradient reach?",
  facets: new Map(),

  build(place) {
    this.place = place;
    this.tools = element("div", { className: "tools" });
    this.say = element("p", { className: "say" });
    this.charts = element("div", { className: "charts" });
    fill(place, element("div", { className: "head" }, element("h2", {}, this.title), this.tools), this.say, this.charts);
  },

  /** Names of the variables that are drawn. */
  get names() {
    return State.measures.filter((name) => Store.has(name));
  },

  update(moved) {
    if (!moved) {
      this.drawTools();
      this.lines = this.linesOf();
      this.range = this.rangeOf(this.lines);
      this.layOut();
    }
    for (const [facet, chart] of this.facets) {
      const shownLines = [];
      for (const line of this.lines) {
        if (line.facet !== facet) continue;
        const points = this.points(line, State.step);
        if (points) shownLines.push({ ...line, ...points, note: noteOf(line, points) });
      }
      chart.show(shownLines, { yRange: this.range, logX: State.logLag });
    }
    fill(this.say, this.words());
  },

  linesOf() {
    const found = [];
    const several = this.names.length > 1;
    for (const group of groupsOf(State.drawn)) {
      for (const name of this.names) {
        if (!group.runs.some((run) => this.applies(run, name))) continue;
        const word = Store.data.curves[name];
        found.push({
          ...group,
          runs: group.runs.filter((run) => this.applies(run, name)),
          id: `${group.id}\n${name}`,
          group: group.label,
          name,
          label: several ? `${group.label}: ${word}` : group.label,
          dash: name === BOUND ? [6, 3] : State.dash === "measurement" ? measureDash(this.names, name) : group.dash,
          width: name === BOUND ? 1.2 : several && State.dash !== "measurement" ? 2.4 - 0.5 * this.names.indexOf(name) : 1.8,
          facet: State.facet === "measurement" ? word : group.facet,
        });
      }
    }
    return found;
  },

  /** Whether a run has a variable, and it means something there: the bound is of transport alone. */
  applies(run, name) {
    if (!Store.of(run, name)) return false;
    return name !== BOUND || (run.readout !== "every" && State.layer === run.layers.length - 1);
  },

  points(line, step) {
    const found = overLag(line, line.name, State.layer, step, State.relative);
    if (!found || line.name !== BOUND || State.relative) return found;
    const adjoint = overLag(line, ADJOINT, State.layer, step, false);
    if (!adjoint) return found;
    const shift = adjoint.y[0];
    const shifted = (values) => values && Array.from(values, (value) => value + shift);
    return { ...found, y: shifted(found.y), low: shifted(found.low), high: shifted(found.high) };
  },

  /** One range for all training steps, so that what moves with the slider is the curve. */
  rangeOf(lines) {
    let [low, high] = [Infinity, -Infinity];
    for (const line of lines) {
      if (line.name === BOUND && this.names.length > 1) continue; // it may leave the picture
      for (const run of line.runs) {
        const { values, layers, length } = Store.of(run, line.name);
        for (let start = State.layer * length; start < values.length; start += layers * length) {
          const from = State.relative ? values[start] : 0;
          for (let k = start; k < start + length; k++) {
            const value = values[k] - from;
            if (value < low && value > -Infinity) low = value;
            if (value > high && value < Infinity) high = value;
          }
        }
      }
    }
    if (!(high >= low)) return null;
    const room = 0.04 * (high - low) || 1;
    return [low - room, high + (this.names.includes(BOUND) ? 3 : 1) * room];
  },

  layOut() {
    const wanted = [...new Set(this.lines.map((line) => line.facet))];
    for (const [facet, chart] of this.facets) {
      if (!wanted.includes(facet)) {
        chart.remove();
        this.facets.delete(facet);
      }
    }
    const key = State.facet && State.facet !== "measurement" ? `${shortOf(State.facet)} = ` : "";
    for (const facet of wanted) {
      if (this.facets.has(facet)) continue;
      const chart = new Chart({
        title: facet ? key + facet : "",
        xLabel: "lag: timesteps back from each example's own last step",
        yLabel: "log₁₀",
        over: "lag",
        height: wanted.length > 1 ? 290 : 400,
      });
      this.facets.set(facet, chart);
      this.charts.append(chart.place);
    }
  },

  drawTools() {
    const boxes = Object.entries(Store.data.curves)
      .filter(([name]) => Store.has(name))
      .map(([name, word]) =>
        tick(word, State.measures.includes(name), (on) => {
          const measures = on ? [...State.measures, name] : State.measures.filter((one) => one !== name);
          State.change({ measures });
        }),
      );
    fill(
      this.tools,
      boxes,
      tick("from 0", State.relative, (relative) => State.change({ relative }), "each curve relative to its own value at lag 0"),
      tick("log lag", State.logLag, (logLag) => State.change({ logLag })),
      downloads(this, "curves"),
    );
  },

  /** What is missing, and what comes from another step. */
  words() {
    const runs = State.drawn;
    const found = [];
    for (const name of this.names) {
      const lacking = runs.filter((run) => hasRows(run) && !(name in run.curves));
      if (lacking.length) found.push(`${Store.data.curves[name]} was not measured by ${namesOf(lacking)}.`);
    }
    if (this.names.includes(TYPICAL)) found.push("A typical unit is a mean of logarithms over units, and no norm: a norm is carried by the unit that forgets least.");
    if (this.names.includes(BOUND)) {
      const no = runs.filter((run) => BOUND in run.curves && !this.applies(run, BOUND));
      if (no.length) found.push(`The bound does not hold for ${namesOf(no)}: it is of the last layer, with the loss at the end alone.`);
    }
    const early = runs.filter((run) => {
      const steps = Store.of(run, ADJOINT)?.steps;
      return steps?.length && steps.at(-1) < State.step && Number.isFinite(State.step);
    });
    if (early.length && early.length < runs.length) found.push(`${namesOf(early)} ended before this step: the last curve is shown.`);
    const zero = this.lines.filter((line) => {
      const points = this.points(line, State.step);
      return points?.y.includes(-Infinity);
    });
    if (zero.length) found.push(`Where a line ends, the value is exactly zero (${zero.length} lines).`);
    if (!this.lines.length) found.push(nothing(runs, "a norm over lag", "probe=standard"));
    return found.join(" ");
  },

  rows() {
    const rows = [["line", "runs", "variable", "layer", "training_step", "lag", "value", "low", "high", "n"]];
    for (const line of this.lines) {
      const points = this.points(line, State.step);
      if (!points) continue;
      Array.from(points.x).forEach((lag, k) => {
        rows.push([line.group, pathsOf(line.runs), line.name, State.layer, points.step, lag, points.y[k], points.low?.[k], points.high?.[k], points.n]);
      });
    }
    return rows;
  },
};

function measureDash(names, name) {
  return DASHES[names.filter((one) => one !== BOUND).indexOf(name) % DASHES.length] ?? [];
}

function noteOf(line, points) {
  return `training step ${shown(points.step)}, ${averaged(points, line.runs[0])}`;
}

/** Which runs, for a sentence: by a setting where these are all that have some values of it, else by name. */
function namesOf(runs) {
  const drawn = Store.runs.filter((run) => !run.unread);
  if (runs.length === drawn.length && runs.length > 1) return `any of the ${runs.length} runs`;
  const those = new Set(runs);
  const others = drawn.filter((run) => !those.has(run));
  for (const key of runs.length > 1 ? ["model", State.colour, State.facet] : []) {
    const values = (some) => new Set(some.map((run) => worded(Store.value(run, key))));
    const [own, foreign] = [values(runs), values(others)];
    if (key && own.size <= 8 && [...own].every((value) => !foreign.has(value))) {
      return `${shortOf(key)}=${[...own].join(", ")} (${runs.length} runs)`;
    }
  }
  const names = runs.slice(0, 4).map((run) => labelOf(run));
  return names.join("; ") + (runs.length > 4 ? ` and ${runs.length - 4} more` : "");
}

function pathsOf(runs) {
  return runs.map((run) => run.path).join(" ");
}

/** Whether a run has recorded anything; of others the notices speak. */
function hasRows(run) {
  return Object.keys(run.series).length > 0;
}

/** Why a panel is empty, and what to do. */
function nothing(runs, what, probe) {
  if (!Store.runs.length) return "There are no runs.";
  if (!runs.length && State.runs.length) return "The arrays of these runs are not on this page.";
  if (!runs.length) return "The filter leaves no run.";
  return `None of the runs shown here has recorded ${what}; ${probe} measures it.`;
}

/** The buttons that save what a panel shows. */
function downloads(panel, name) {
  return [
    element("button", { type: "button", className: "csv", onclick: () => save(`${name}.csv`, csv(panel.rows())) }, "CSV"),
    element("button", { type: "button", className: "png", onclick: () => savePicture(`${name}.png`, panel.place) }, "PNG"),
  ];
}
