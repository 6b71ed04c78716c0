"use strict";
// The runs of the page, and their arrays once somebody has asked for them.

const Store = {
  data: null,
  runs: [],

  /** Takes what `contents` wrote; arrays that were unpacked and have not changed are kept. */
  take(data) {
    const known = new Map(this.runs.map((run) => [run.path, run]));
    this.data = data;
    this.runs = data.runs;
    for (const run of this.runs) {
      run.arrays = new Map();
      const earlier = known.get(run.path);
      if (!earlier) continue;
      for (const [name, found] of earlier.arrays) {
        const [was, is] = [earlier, run].map((one) => one.curves[name] ?? one.series[name]);
        if (is && was.values.data === is.values.data) run.arrays.set(name, found);
      }
    }
  },

  /** Unpacks variables of all runs; to be awaited before they are used. */
  async need(names) {
    const work = [];
    for (const run of this.runs) {
      for (const name of names) {
        const kept = run.curves[name] ?? run.series[name];
        if (kept && !run.arrays.has(name)) work.push(this.unpack(run, name, kept));
      }
    }
    await Promise.all(work);
  },

  async unpack(run, name, kept) {
    const [steps, lags, values] = await Promise.all(
      [kept.steps, kept.lags, kept.values].map((block) => block && unpacked(block)),
    );
    const [, layers, length] = kept.values.shape;
    run.arrays.set(name, { steps, lags: lags ?? null, values, layers, length: length ?? 1 });
  },

  /** Steps, lags and values of a variable, unpacked; undefined if the run did not measure it. */
  of(run, name) {
    return run.arrays.get(name);
  },

  /** Whether any run measured a variable. */
  has(name) {
    return this.runs.some((run) => name in run.curves || name in run.series);
  },

  /** Names of the layers, those of the deepest run. */
  get layers() {
    return this.runs.reduce((most, run) => (run.layers.length > most.length ? run.layers : most), []);
  },

  /** All training steps at which any of the variables was measured, ascending. */
  steps(names) {
    const found = new Set();
    for (const run of this.runs) {
      for (const name of names) for (const step of this.of(run, name)?.steps ?? []) found.add(step);
    }
    return [...found].sort((a, b) => a - b);
  },

  /** What a run says of a key that lines can be told apart by. */
  value(run, key) {
    if (key === "run") return run.name;
    if (key in run.settings) return run.settings[key];
    return run[key] ?? null; // status, task, T, parameters
  },
};
