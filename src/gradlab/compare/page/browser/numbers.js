"use strict";
// Numbers for people.

/** Up to `digits` significant digits; an en dash for what is not a number. */
function shown(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "-∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 1).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(digits)));
}

/** A setting's value as text; whole floats without their point. */
function worded(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value);
}

/**
 * Mean of `values`, half of its interval, their range and count; NaN is no value, and a mean with an infinity is that.
 *
 * Fewer than two have no interval (NaN), those that are equal but for `rounding` one of no width.
 */
function estimate(values, student, rounding) {
  const known = values.filter((value) => !Number.isNaN(value));
  const n = known.length;
  const [least, most] = [Math.min(...known), Math.max(...known)];
  const infinite = [Infinity, -Infinity].find((value) => known.includes(value));
  if (!n || infinite) return { mean: infinite ?? NaN, half: NaN, least, most, n };
  const mean = known.reduce((sum, value) => sum + value, 0) / n;
  if (n < 2) return { mean, half: NaN, least, most, n };
  if (most - least <= rounding * Math.max(Math.abs(least), Math.abs(most))) return { mean, half: 0, least, most, n };
  const square = known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1);
  return { mean, half: student[n] * Math.sqrt(square / n), least, most, n };
}

/**
 * Estimates along a line, with low and high: the ends of the intervals or, at all points, the range over runs where an
 * interval would leave `bounds`, `[low, high]` or null; bounds that a value leaves are none.
 */
function bounded(estimates, bounds) {
  const [low, high] = [bounds?.[0] ?? -Infinity, bounds?.[1] ?? Infinity];
  const several = estimates.filter(({ half }) => !Number.isNaN(half));
  const leaves = ({ mean, half }) => mean - half < low || mean + half > high;
  const range = several.some(leaves) && several.every(({ least, most }) => least >= low && most <= high);
  const ends = ({ mean, half, least, most }) => (range && half > 0 ? [least, most] : [mean - half, mean + half]);
  const found = estimates.map(ends);
  return { y: Float64Array.from(estimates, ({ mean }) => mean), low: Float64Array.from(found, ([end]) => end), high: Float64Array.from(found, ([, end]) => end), range };
}

/** Round numbers between `low` and `high`, about `many` of them. */
function ticks(low, high, many = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / many;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
    found.push(Number((k * step).toPrecision(12)));
  }
  return found;
}

/** Position in ascending `values` of the last that is at most `value`; 0 if there is none. */
function lastUpTo(values, value) {
  let low = 0;
  let high = values.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (values[middle] <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}
