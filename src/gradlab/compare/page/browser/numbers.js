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

/** Mean, half of the interval and count of the finite `values`; of exact zeros alone, as log10, a zero. */
function estimate(values, student) {
  const known = values.filter(Number.isFinite);
  const n = known.length;
  if (!n) return { mean: values.length && values.every((value) => value === -Infinity) ? -Infinity : NaN, half: NaN, n };
  const mean = known.reduce((sum, value) => sum + value, 0) / n;
  if (n < 2) return { mean, half: NaN, n };
  const square = known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1);
  return { mean, half: student[n] * Math.sqrt(square / n), n };
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
