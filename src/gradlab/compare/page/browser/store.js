"use strict";
// The runs of the page, and their arrays.

const Store = {
  data: null,
  runs: [],

  /** Takes what `contents` wrote, and unpacks the arrays of the runs that have changed. */
  async take(data) {
    const known = new Map(this.runs.map((run) => [run.path, run]));
    await Promise.all(data.runs.map((run) => this.unpack(run, known.get(run.path))));
    this.data = data;
    this.runs = data.runs;
  },

  async unpack(run, earlier) {
    if (earlier && earlier.arrays.data === run.arrays.data) {
      run.of = earlier.of;
      return;
    }
    const found = run.arrays.parts.length ? await unpacked(run.arrays) : [];
    const place = ([name, { steps, lags, values }]) => {
      const [, layers, length] = found[values].shape;
      return [name, { steps: found[steps].values, lags: found[lags]?.values ?? null, values: found[values].values, layers, length: length ?? 1 }];
    };
    run.of = new Map([...Object.entries(run.curves), ...Object.entries(run.series)].map(place));
  },

  /** Steps, lags and values of a variable; undefined if the run did not measure it. */
  of(run, name) {
    return run.of.get(name);
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
