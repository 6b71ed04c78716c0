"use strict";
// Lines with bands on axes, drawn by uPlot. All charts over the same thing share their pointer.

const charts = new Set();

class Chart {
  /**
   * `look`: `{title, xLabel, yLabel, over: "lag" | "step", height}`.
   */
  constructor(look) {
    this.look = look;
    this.heading = element("h3", {}, look.title ?? "");
    this.holder = element("div", { className: "holder" });
    this.tip = element("div", { className: "tip", hidden: true });
    this.place = element("div", { className: "chart" }, look.title ? this.heading : null, this.holder, this.tip);
    this.holder.addEventListener("dblclick", () => (this.zoomed = false), { capture: true });
    this.plot = null;
    this.made = "";
    this.watch = new ResizeObserver(() => this.resize());
    this.watch.observe(this.holder);
    charts.add(this);
  }

  /**
   * Draws lines `{id, label, colour, dash, width, x, y, low, high}`.
   *
   * `view`: `{yRange, logX, logY, marks: [{value, label, colour}], cursor}`; `cursor` is a position along x.
   */
  show(lines, view = {}) {
    this.lines = lines;
    this.view = view;
    const data = joined(lines, view.logX);
    const kind = JSON.stringify([
      lines.map(({ id, label, colour, dash, width, low, y }) => [id, label, colour, dash, width, !!low, y.length === 1]),
      view.logX, view.logY, Looks.theme,
    ]);
    if (this.plot && kind === this.made) {
      this.plot.setData(data, !this.zoomed);
      return;
    }
    this.made = kind;
    this.zoomed = false;
    this.plot?.destroy();
    this.plot = new uPlot(this.options(lines, view), data, this.holder);
  }

  /** Draws again, for a mark that has moved. */
  move(cursor) {
    this.view.cursor = cursor;
    this.plot?.redraw(false, false);
  }

  remove() {
    this.plot?.destroy();
    this.watch.disconnect();
    this.place.remove();
    charts.delete(this);
  }

  resize() {
    const width = this.holder.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: this.plot.height });
  }

  options(lines, view) {
    const ink = themed("--ink");
    const axis = { stroke: ink, grid: { stroke: themed("--grid"), width: 1 }, ticks: { stroke: themed("--line"), width: 1 }, font: "11px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
    const series = [{}];
    const bands = [];
    this.lineOf = [null];
    lines.forEach((line, index) => {
      const alone = line.y.length === 1;
      series.push({ label: line.label, stroke: line.colour, width: line.width ?? 1.8, dash: line.dash, spanGaps: false, points: { show: alone, size: 7, fill: line.colour } });
      this.lineOf.push(index);
      if (!line.low) return;
      const at = series.length;
      for (const edge of ["high", "low"]) {
        series.push({ label: `${line.label} ${edge}`, stroke: "transparent", width: 0, points: { show: alone, size: 4, fill: line.colour } });
        this.lineOf.push(index);
      }
      bands.push({ series: [at, at + 1], fill: faint(line.colour, 0.16) });
    });
    return {
      width: this.holder.clientWidth || 400,
      height: this.look.height ?? 320,
      series,
      bands,
      legend: { show: false },
      padding: [8, 12, 0, 0],
      scales: {
        x: { time: false, distr: view.logX ? 3 : 1 },
        y: { distr: view.logY ? 3 : 1, range: (_, low, high) => (this.zoomed ? [low, high] : (this.view.yRange ?? [low ?? 0, high > low ? high : (low ?? 0) + 1])) },
      },
      axes: [
        { ...axis, label: this.look.xLabel, labelSize: 18, size: 34, values: (_, found) => found.map((value) => (value === null ? "" : shown(value, 3))) },
        { ...axis, label: this.look.yLabel, labelSize: 18, size: 58, values: (_, found) => found.map((value) => (value === null ? "" : shown(value, 3))) },
      ],
      cursor: {
        sync: { key: this.look.over, setSeries: false, scales: ["x", null] },
        focus: { prox: 24 },
        drag: { x: true, y: true, uni: 40 },
        points: { show: false },
      },
      focus: { alpha: 0.25 },
      hooks: {
        setCursor: [(plot) => this.point(plot)],
        setSeries: [(plot, index, options) => this.focused(index, options)],
        setSelect: [(plot) => (this.zoomed ||= plot.select.width > 0 || plot.select.height > 0)],
        draw: [(plot) => this.marks(plot)],
      },
    };
  }

  focused(index, options) {
    if (options?.focus === undefined) return;
    const line = this.lines[this.lineOf[index ?? 0]];
    this.near = line ?? null;
    if (this.plot?.cursor.event) highlight(line?.runs ?? [], this);
  }

  /** Says what is under the pointer, where the pointer is in this chart. */
  point(plot) {
    const { left, top, idx, event } = plot.cursor;
    const own = event && plot.over.matches(":hover");
    this.tip.hidden = !own || left < 0 || idx === null || idx === undefined || !this.near;
    if (this.tip.hidden) return;
    const line = this.near;
    const x = plot.data[0][idx];
    const at = Array.prototype.indexOf.call(line.x, x);
    const value = at < 0 ? NaN : line.y[at];
    const half = line.high && at >= 0 ? line.high[at] - value : NaN;
    const range = line.range ? ` (range ${shown(line.low[at], 5)} to ${shown(line.high[at], 5)})` : ` ± ${shown(half, 2)}`;
    const interval = Number.isFinite(half) ? (half === 0 && !line.range ? " (identical)" : range) : "";
    const zero = value === -Infinity ? "exactly zero" : shown(value, 5) + interval;
    fill(this.tip, element("b", {}, line.label), element("br"), `${this.look.over} ${shown(x)}: ${zero}`, line.note ? [element("br"), line.note] : []);
    const right = left > plot.over.clientWidth / 2;
    this.tip.style.left = right ? "" : `${plot.over.offsetLeft + left + 14}px`;
    this.tip.style.right = right ? `${plot.over.clientWidth - left + 26}px` : "";
    this.tip.style.top = `${this.holder.offsetTop + top + 16}px`;
  }

  /** Levels of reference, and the training step at which the slider stands. */
  marks(plot) {
    const { ctx, bbox } = plot;
    const ratio = uPlot.pxRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.lineWidth = 1.3 * ratio;
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    for (const { value, label, colour } of this.view.marks ?? []) {
      const y = plot.valToPos(value, "y", true);
      ctx.setLineDash([2 * ratio, 3 * ratio]);
      ctx.strokeStyle = ctx.fillStyle = colour ?? themed("--soft");
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      const above = y - bbox.top > 18 * ratio;
      ctx.fillText(label, bbox.left + bbox.width - 4 * ratio, above ? y - 4 * ratio : y + 13 * ratio);
    }
    if (Number.isFinite(this.view.cursor)) {
      const x = plot.valToPos(this.view.cursor, "x", true);
      ctx.setLineDash([]);
      ctx.strokeStyle = faint(themed("--accent"), 0.55);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }
}

/** Lines on the x that any of them has. What a line has no value for is no gap; what is not finite is one. */
function joined(lines, logX) {
  let x = lines.length ? sharedX(lines.map((line) => line.x)) : [];
  const whole = x;
  if (logX) x = Array.from(x).filter((value) => value > 0);
  const columns = [];
  for (const line of lines) {
    const same = line.x === whole || (line.x.length === whole.length && line.x[0] === whole[0] && line.x.at(-1) === whole.at(-1) && line.x.every((value, k) => value === whole[k]));
    const at = same ? null : new Map(Array.from(line.x, (value, k) => [value, k]));
    const skip = whole.length - x.length; // zero alone can be left out by a logarithm, and is the first
    for (const values of [line.y, line.high, line.low]) {
      if (!values) continue;
      columns.push(
        Array.from(x, (value, k) => {
          const found = at ? values[at.get(value) ?? -1] : values[k + skip];
          return found === undefined ? undefined : Number.isFinite(found) ? found : null;
        }),
      );
    }
  }
  return [Array.from(x), ...columns];
}

/** Lights up what belongs to the same runs, in all charts and in the table. */
function highlight(runs, source) {
  const paths = new Set(runs.map((run) => run.path));
  for (const row of document.querySelectorAll("tr[data-path]")) row.classList.toggle("lit", paths.has(row.dataset.path));
  for (const chart of charts) {
    if (chart === source || !chart.plot) continue;
    const index = chart.lines.findIndex((line) => line.runs?.some((run) => paths.has(run.path)));
    const wanted = paths.size && index >= 0 ? chart.lineOf.indexOf(index) : null;
    if (chart.lit === wanted) continue;
    chart.lit = wanted;
    chart.plot.setSeries(wanted, { focus: true }, false);
  }
}
