"use strict";
// Which colour and which dashes a line has. Okabe and Ito's colours, told apart by everyone.

const COLOURS = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#000000", "#8B4513"],
  dark: ["#56B4E9", "#E69F00", "#2FCB9B", "#E59BC6", "#F0E442", "#7FA8FF", "#FFFFFF", "#D9A47A"],
};
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 2], [14, 4], [1, 5], [6, 2, 1, 2, 1, 2]];
const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137],
  [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];
const DIVERGING = [[5, 48, 97], [67, 147, 195], [209, 229, 240], [247, 247, 247], [253, 219, 199], [214, 96, 77], [103, 0, 31]];

/** Colour between 0 and 1 of a list of `[r, g, b]`. */
function between(colours, share) {
  const place = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
  const k = Math.min(Math.floor(place), colours.length - 2);
  return colours[k].map((low, c) => Math.round(low + (colours[k + 1][c] - low) * (place - k)));
}

const Looks = {
  known: new Map(), // key: { runs, values, places }

  /** The values of a key in all runs, numbers by size, others as they come. */
  values(key) {
    return key ? this.of(key).values : [];
  },

  /** Values of a key, and the place of each among them by its words. */
  of(key) {
    const known = this.known.get(key);
    if (known?.runs === Store.runs) return known;
    const found = [...new Map(Store.runs.map((run) => [worded(Store.value(run, key)), Store.value(run, key)])).values()];
    const values = found.every((value) => typeof value === "number") ? found.sort((a, b) => a - b) : found;
    const made = { runs: Store.runs, values, places: new Map(values.map((value, k) => [worded(value), k])) };
    this.known.set(key, made);
    return made;
  },

  /** The place of a value among those of a key; -1 if it is none of them. */
  place(key, value) {
    return key ? (this.of(key).places.get(worded(value)) ?? -1) : -1;
  },

  /** Whether there are too many values for colours of their own. */
  scaled(key) {
    return this.values(key).length > COLOURS.light.length;
  },

  colour(key, value) {
    const palette = COLOURS[this.theme];
    const values = this.values(key);
    const index = this.place(key, value);
    if (index < 0) return palette[0];
    if (!this.scaled(key)) return palette[index];
    const share = values.length > 1 ? index / (values.length - 1) : 0;
    const shade = this.theme === "dark" ? 0.15 + 0.85 * share : 0.9 * share;
    return `rgb(${between(VIRIDIS, shade).join(",")})`;
  },

  dash(key, value) {
    const index = this.place(key, value);
    return DASHES[Math.max(index, 0) % DASHES.length];
  },

  get theme() {
    return document.documentElement.dataset.theme === "dark" ? "dark" : "light";
  },
};

/** A colour with an alpha, for bands. */
function faint(colour, alpha) {
  if (colour.startsWith("rgb(")) return colour.replace("rgb(", "rgba(").replace(")", `,${alpha})`);
  return colour + Math.round(alpha * 255).toString(16).padStart(2, "0");
}
