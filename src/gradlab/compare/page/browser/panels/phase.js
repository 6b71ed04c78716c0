"use strict";
// Runs over a grid of two settings.

const phasePanel = {
  id: "phase",
  title: "Phase diagram",

  build(place) {
    this.place = place;
    this.say = element("p", { className: "say" });
    this.charts = element("div", { className: "charts" });
    this.charts.style.setProperty("--least", "360px");
    fill(
      place,
      element("div", { className: "head" }, element("h2", {}, this.title), element("div", { className: "tools" }, downloads(this, "phase"))),
      this.say,
      this.charts,
    );
    new ResizeObserver(() => this.resized()).observe(this.charts);
  },

  resized() {
    const width = this.charts.clientWidth;
    if (this.width !== width && Store.data.phase) this.draw();
    this.width = width;
  },

  update(moved) {
    if (moved) return;
    this.place.hidden = !Store.data.phase;
    if (Store.data.phase) this.draw();
  },

  draw() {
    const phase = Store.data.phase;
    fill(this.say, `${phase.subject}, ${phase.when}. Grey: no run, or none that finished; ×: a run diverged. All runs of the sweep, whatever the filter.`);
    fill(this.charts);
    const drawn = [];
    for (const panel of phase.panels) {
      const canvas = element("canvas", { className: "map" });
      const tip = element("div", { className: "tip", hidden: true });
      const [low, high] = phaseLimits(panel);
      const place = element("div", { className: "chart" }, element("h3", {}, panel.title), canvas, tip, colourBar(low, high, panel.middle, panel.label));
      this.charts.append(place);
      drawn.push({ panel, canvas, tip, place, low, high });
    }
    for (const { panel, canvas, tip, place, low, high } of drawn) { // now that they have their widths
      const map = mapOf(phase, panel, low, high, place.clientWidth);
      drawMap(canvas, map);
      crosses(canvas, map, phase);
      canvas.onmousemove = (event) => {
        const found = placeUnder(event, canvas, map);
        tip.hidden = !found;
        if (!found) return;
        const [column, row] = [nearest(map.columns, found.x), nearest(map.rows, found.y)];
        const at = `${phase.labels[0]} ${shown(phase.x[column])}, ${phase.labels[1]} ${shown(phase.y[row])}`;
        fill(tip, element("b", {}, shown(panel.values[row][column])), ` at ${at}; ${phase.finished[row][column]} finished`);
        tip.style.left = `${Math.min(event.offsetX + 12, canvas.clientWidth - 200)}px`;
        tip.style.top = `${canvas.offsetTop + event.offsetY + 14}px`;
      };
      canvas.onmouseleave = () => (tip.hidden = true);
    }
  },

  rows() {
    const phase = Store.data.phase;
    const rows = [[...phase.keys, "finished", "diverged", ...phase.panels.map(({ name }) => name)]];
    phase.y.forEach((y, row) => {
      phase.x.forEach((x, column) => {
        rows.push([x, y, phase.finished[row][column], phase.diverged[row][column], ...phase.panels.map(({ values }) => values[row][column])]);
      });
    });
    return rows;
  },
};

function phaseLimits({ values, middle }) {
  const known = values.flat().filter((value) => value !== null).sort((a, b) => a - b);
  if (!known.length) return [0, 1];
  const end = (sorted) => sorted[Math.floor(0.97 * (sorted.length - 1))];
  if (!middle) return known[0] < known.at(-1) ? [known[0], Math.max(end(known), known[0] + 1e-9)] : [known[0] - 0.5, known[0] + 0.5];
  const most = end(known.map(Math.abs).sort((a, b) => a - b)) || 1;
  return [-most, most];
}

/** Cells around their values; along the logarithm where values are spaced by a ratio. */
function mapOf(phase, panel, low, high, width) {
  const [columns, rows] = [phase.x, phase.y].map((values, k) => values.map((value) => (phase.geometric[k] ? Math.log10(value) : value)));
  const ends = (at) => {
    const step = at.length > 1 ? [at[1] - at[0], at.at(-1) - at.at(-2)] : [1, 1];
    return [at[0] - step[0] / 2, at.at(-1) + step[1] / 2];
  };
  const marks = (at, values, most) => {
    const every = Math.max(1, Math.ceil(at.length / most));
    return at.map((place, k) => ({ at: place, text: shown(values[k], 3) })).filter((_, k) => k % every === 0);
  };
  return {
    x: ends(columns),
    y: ends(rows),
    columns,
    rows,
    xLabel: phase.labels[0],
    yLabel: phase.labels[1],
    xTicks: marks(columns, phase.x, Math.max(2, width / 60)),
    yTicks: marks(rows, phase.y, 9),
    width,
    height: 300,
    low,
    high,
    middle: panel.middle,
    valueAt: (x, y) => panel.values[nearest(rows, y)][nearest(columns, x)] ?? NaN,
  };
}

function nearest(values, value) {
  let best = 0;
  for (let k = 1; k < values.length; k++) if (Math.abs(values[k] - value) < Math.abs(values[best] - value)) best = k;
  return best;
}

function crosses(canvas, map, phase) {
  const box = boxOf(map);
  const paper = canvas.getContext("2d");
  paper.textAlign = "center";
  paper.textBaseline = "middle";
  paper.font = "bold 13px system-ui, sans-serif";
  phase.diverged.forEach((counts, row) => {
    counts.forEach((count, column) => {
      if (!count) return;
      const x = box.left + ((map.columns[column] - map.x[0]) / (map.x[1] - map.x[0])) * box.width;
      const y = box.top + box.height * (1 - (map.rows[row] - map.y[0]) / (map.y[1] - map.y[0]));
      paper.strokeStyle = "#ffffff";
      paper.lineWidth = 3;
      paper.strokeText("×", x, y);
      paper.fillStyle = "#000000";
      paper.fillText("×", x, y);
    });
  });
}
