"use strict";
// From runs to lines: one a run, or one a group with mean and interval.

/** Keys by which runs can be told apart, as `[key, text]`. */
function choosable() {
  const keys = Object.entries(Store.data.keys).map(([key, { short }]) => [key, short]);
  const more = ["task", "T", "parameters", "status", "run"];
  const differing = more.filter((key) => !(key in Store.data.keys) && Looks.values(key).length > 1);
  return [...keys, ...differing.map((key) => [key, key])];
}

/** Groups of the runs that are shown: `{id, label, runs, colour, dash, facet, mean}`. */
function groupsOf(runs) {
  const keys = groupKeys();
  if (!State.group) return runs.map((run) => group(run.path, labelOf(run), [run], false));
  const found = new Map();
  for (const run of runs) {
    if (run.repeats) continue; // a configuration and seed that is there twice is one sample
    const values = keys.map((key) => worded(Store.value(run, key)));
    const id = JSON.stringify(values);
    if (!found.has(id)) found.set(id, []);
    found.get(id).push(run);
  }
  return [...found].map(([id, members]) => {
    const words = keys.map((key) => `${shortOf(key)}=${worded(Store.value(members[0], key))}`);
    const count = members.length > 1 ? ` (${members.length} runs)` : "";
    return group(id, (words.join(" ") || "all runs") + count, members, true);
  });
}

/** The keys whose values make a group; what has a colour, dashes or a panel of its own is kept apart. */
function groupKeys() {
  const apart = [State.colour, State.dash, State.facet].filter((key) => key && key !== "measurement" && key !== "run");
  const keys =
    State.group === "settings" ? Object.keys(Store.data.keys).filter((key) => key !== "seed") : [State.group];
  return [...new Set([...keys, ...apart.filter((key) => key !== "seed")])];
}

function group(id, label, runs, mean) {
  const first = runs[0];
  return {
    id,
    label,
    runs,
    mean,
    colour: Looks.colour(State.colour, Store.value(first, State.colour)),
    dash: State.dash && State.dash !== "measurement" ? Looks.dash(State.dash, Store.value(first, State.dash)) : [],
    facet: State.facet && State.facet !== "measurement" ? worded(Store.value(first, State.facet)) : "",
  };
}

function shortOf(key) {
  return Store.data.keys[key]?.short ?? key;
}

/** What sets a run apart, in words. */
function labelOf(run) {
  const words = Object.entries(run.settings)
    .filter(([, value]) => value !== null)
    .map(([key, value]) => `${shortOf(key)}=${worded(value)}`);
  const state = run.status === "finished" ? "" : ` (${run.status})`;
  return (words.join(" ") || run.name) + state;
}

/** Lags and values of a variable of one run at a training step: its last row up to then. */
function rowOf(run, name, layer, step) {
  const found = Store.of(run, name);
  if (!found || layer >= found.layers) return null;
  const row = lastUpTo(found.steps, step);
  const start = (row * found.layers + layer) * found.length;
  return { seed: run.seed, step: found.steps[row], x: found.lags, y: found.values.subarray(start, start + found.length) };
}

/** The points of a group's line over lag: x, y and, over seeds, low and high; null if nobody has any. */
function overLag(group, name, layer, step, relative) {
  const rows = group.runs.map((run) => rowOf(run, name, layer, step)).filter(Boolean);
  const shifted = rows.map((row) => (relative ? { ...row, y: row.y.map((value) => value - row.y[0]) } : row));
  return pooled(shifted, group.mean);
}

/** The points of a group's line over training steps. */
function overSteps(group, name, layer) {
  const rows = [];
  for (const run of group.runs) {
    const found = Store.of(run, name);
    if (!found) continue;
    const own = found.layers > 1 ? layer : 0;
    if (own >= found.layers) continue;
    const y = Float64Array.from(found.steps, (_, k) => found.values[k * found.layers + own]);
    rows.push({ seed: run.seed, x: found.steps, y });
  }
  return pooled(rows, group.mean, boundsOf(group, name));
}

/** What a variable cannot be below or above, null for none; as `[low, high]` of a group of runs. */
function boundsOf(group, name) {
  const found = Store.data.bounds[name];
  if (!found) return null;
  const longest = Math.max(...group.runs.map(({ T }) => T ?? Infinity));
  return found.map((end) => (end === "T" ? longest : end));
}

/**
 * One row as it is, several as mean, low and high at each x that any of them has; see `bounded`.
 *
 * Rows of one seed, at several settings, share weights and data: they are averaged first, and are one sample.
 */
function pooled(rows, mean, bounds = null) {
  if (!rows.length) return null;
  if (!mean || rows.length === 1) return { x: rows[0].x, y: rows[0].y, n: 1, of: 1, step: rows[0].step };
  const x = sharedX(rows.map((row) => row.x));
  const at = rows.map((row) => (row.x === x ? null : new Map(Array.from(row.x, (value, k) => [value, k]))));
  const { student, rounding } = Store.data;
  const estimates = Array.from(x, (_, k) => {
    const values = rows.map((row, r) => row.y[at[r] ? (at[r].get(x[k]) ?? -1) : k] ?? NaN);
    return estimate(bySeed(values, rows), student, rounding);
  });
  const seeds = new Set(rows.map(({ seed }) => seed)).size;
  return { x, ...bounded(estimates, bounds), n: seeds, of: rows.length, step: rows[0].step };
}

/** What the points of a line are the mean of, in words; of one run its status. */
function averaged({ n, of }, run) {
  if (of === 1) return run.status;
  return `mean of ${of} runs` + (n < of ? ` (${n} ${n === 1 ? "seed" : "seeds"}, each averaged first)` : "");
}

/** The mean of the values of each seed, NaN left out. */
function bySeed(values, rows) {
  const seeds = new Map();
  values.forEach((value, r) => {
    if (!Number.isNaN(value)) seeds.set(rows[r].seed, [...(seeds.get(rows[r].seed) ?? []), value]);
  });
  return [...seeds.values()].map((each) => each.reduce((sum, value) => sum + value, 0) / each.length);
}

/** The union of ascending positions; the first array itself if all are the same. */
function sharedX(arrays) {
  const [first] = arrays;
  if (arrays.every((one) => one.length === first.length && one.every((value, k) => value === first[k]))) return first;
  const all = new Set();
  for (const one of arrays) for (const value of one) all.add(value);
  return [...all].sort((a, b) => a - b);
}
