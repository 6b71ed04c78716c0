"use strict";
// Lag against training step, side by side on one scale of colours.

const MOST_MAPS = 12;

const heatmapsPanel = {
  id: "heatmaps",
  title: "How does that change in training?",
  maps: [],
  all: false,

  build(place) {
    this.place = place;
    this.tools = element("div", { className: "tools" });
    this.say = element("p", { className: "say" });
    this.charts = element("div", { className: "charts" });
    this.charts.style.setProperty("--least", "300px");
    fill(place, element("div", { className: "head" }, element("h2", {}, this.title), this.tools), this.say, this.charts);
    new ResizeObserver(() => this.resized()).observe(this.charts);
  },

  resized() {
    const width = this.charts.clientWidth;
    if (this.width !== width && this.maps.length) this.draw();
    this.width = width;
  },

  update(moved) {
    if (moved) return this.mark();
    this.drawTools();
    this.groups = groupsOf(State.drawn).filter((group) => group.runs.some((run) => Store.of(run, State.heat)));
    this.draw();
  },

  draw() {
    const groups = this.all ? this.groups : this.groups.slice(0, MOST_MAPS);
    this.maps = groups.map((group) => ({ group, grid: gridOf(group, State.heat) })).filter(({ grid }) => grid);
    const [low, high] = limitsOf(this.maps.map(({ grid }) => grid));
    const more = this.groups.length - groups.length;
    fill(this.charts);
    for (const map of this.maps) {
      map.canvas = element("canvas", { className: "map" });
      map.cursor = element("div", { className: "tip", hidden: true });
      map.place = element("div", { className: "chart" }, element("h3", {}, map.group.label), map.canvas, map.cursor);
      this.charts.append(map.place);
    }
    for (const map of this.maps) {
      const { grid } = map;
      map.look = {
        x: [grid.steps[0], grid.steps.at(-1) + (grid.steps.length === 1 ? 1 : 0)],
        y: [-0.5, grid.lags.at(-1) + 0.5],
        xLabel: "training step",
        yLabel: "lag",
        width: map.place.clientWidth,
        height: 210,
        low,
        high,
        valueAt: (step, lag) => grid.at(step, lag),
      };
      drawMap(map.canvas, map.look);
      map.kept = copyOf(map.canvas);
      map.canvas.onmousemove = (event) => this.point(event, map);
      map.canvas.onmouseleave = () => (map.cursor.hidden = true);
      map.canvas.onclick = (event) => {
        const found = placeUnder(event, map.canvas, map.look);
        if (found) State.change({ step: map.grid.steps[lastUpTo(map.grid.steps, found.x)] });
      };
    }
    const words = [];
    if (this.maps.length) words.push("Black: exactly zero. Grey: not measured. A click sets the training step.");
    else words.push(nothing(State.drawn, "this over lag", "probe=standard"));
    fill(
      this.say,
      this.maps.length ? colourBar(low, high, false, `log₁₀, ${Store.data.curves[State.heat]}`) : null,
      " " + words.join(" "),
      more > 0 ? element("button", { type: "button", onclick: () => ((this.all = true), this.draw()) }, `show ${more} more`) : null,
    );
    this.mark();
  },

  /** A line where the slider stands. */
  mark() {
    for (const { canvas, kept, look } of this.maps) {
      const paper = canvas.getContext("2d");
      paper.setTransform(1, 0, 0, 1, 0, 0);
      paper.clearRect(0, 0, canvas.width, canvas.height);
      paper.drawImage(kept, 0, 0);
      if (!(State.step >= look.x[0] && State.step <= look.x[1])) continue;
      const box = boxOf(look);
      const scale = canvas.width / look.width;
      const x = box.left + ((State.step - look.x[0]) / (look.x[1] - look.x[0])) * box.width;
      paper.fillStyle = "#ffffff";
      paper.fillRect((x - 1.5) * scale, box.top * scale, 3 * scale, box.height * scale);
      paper.fillStyle = "#d55e00";
      paper.fillRect((x - 0.75) * scale, box.top * scale, 1.5 * scale, box.height * scale);
    }
  },

  point(event, map) {
    const found = placeUnder(event, map.canvas, map.look);
    map.cursor.hidden = !found;
    if (!found) return;
    const { grid } = map;
    const value = grid.at(found.x, found.y);
    const step = grid.steps[lastUpTo(grid.steps, found.x)];
    fill(map.cursor, `step ${shown(step)}, lag ${Math.round(found.y)}: ${value === -Infinity ? "exactly zero" : shown(value, 5)}`);
    const right = event.offsetX > map.canvas.clientWidth / 2;
    map.cursor.style.left = right ? "" : `${event.offsetX + 14}px`;
    map.cursor.style.right = right ? `${map.canvas.clientWidth - event.offsetX + 8}px` : "";
    map.cursor.style.top = `${map.canvas.offsetTop + event.offsetY + 12}px`;
  },

  drawTools() {
    const known = Object.entries(Store.data.curves).filter(([name]) => Store.has(name));
    fill(
      this.tools,
      known.length > 1 ? choice("of", known, State.heat, (heat) => State.change({ heat })) : null,
      downloads(this, "heatmaps"),
    );
  },

  rows() {
    const rows = [["map", "runs", "variable", "layer", "training_step", "lag", "value"]];
    for (const { group, grid } of this.maps) {
      grid.steps.forEach((step, s) => {
        grid.lags.forEach((lag, k) => rows.push([group.label, pathsOf(group.runs), State.heat, State.layer, step, lag, grid.values[s][k]]));
      });
    }
    return rows;
  },
};

/** A variable of a group over training steps and lags, the mean where there are several runs. */
function gridOf(group, name) {
  const runs = group.runs.filter((run) => Store.of(run, name) && State.layer < Store.of(run, name).layers);
  if (!runs.length) return null;
  const steps = Array.from(sharedX(runs.map((run) => Store.of(run, name).steps)));
  const rows = steps.map((step) => overLag({ ...group, runs }, name, State.layer, step, false));
  const lags = Array.from(rows[0].x);
  const values = rows.map((row) => row.y);
  return { steps, lags, values, at: (step, lag) => values[lastUpTo(steps, step)][lastUpTo(lags, Math.round(lag))] };
}

/** Lowest and highest finite value of all maps. */
function limitsOf(grids) {
  let [low, high] = [Infinity, -Infinity];
  for (const { values } of grids) {
    for (const row of values) {
      for (const value of row) {
        if (!Number.isFinite(value)) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
  }
  return high > low ? [low, high] : Number.isFinite(low) ? [low - 0.5, low + 0.5] : [0, 1];
}

function copyOf(canvas) {
  const kept = element("canvas", {});
  kept.width = canvas.width;
  kept.height = canvas.height;
  kept.getContext("2d").drawImage(canvas, 0, 0);
  return kept;
}
