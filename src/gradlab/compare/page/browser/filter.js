"use strict";
// The filter: words that all must hold. `lstm`, `model=lstm`, `seed<2`, `-status=killed`.

const COMPARISONS = {
  "=": (a, b) => a === b || (Number.isFinite(+a) && b !== "" && +a === +b),
  "!=": (a, b) => !COMPARISONS["="](a, b),
  "<": (a, b) => a !== "" && +a < +b,
  ">": (a, b) => a !== "" && +a > +b,
  "<=": (a, b) => a !== "" && +a <= +b,
  ">=": (a, b) => a !== "" && +a >= +b,
};

/** A function that tells whether a run is wanted. */
function filterOf(text) {
  const words = text.trim().split(/\s+/).filter(Boolean).map(wordOf);
  return (run) => words.every((holds) => holds(run));
}

function wordOf(word) {
  const negated = word.startsWith("-") && word.length > 1 && !/^-[\d.]/.test(word);
  const holds = holdsOf(negated ? word.slice(1) : word);
  return negated ? (run) => !holds(run) : holds;
}

function holdsOf(word) {
  const found = /^([^=<>!]+)(!=|<=|>=|=|<|>)(.*)$/.exec(word);
  const key = found && keyOf(found[1]);
  if (key) {
    const compare = COMPARISONS[found[2]];
    return (run) => {
      const value = Store.value(run, key);
      return compare(value === null ? "" : String(value), found[3]);
    };
  }
  const wanted = word.toLowerCase();
  return (run) => textsOf(run).some((text) => text.toLowerCase().includes(wanted));
}

/** The key that somebody means by its end: `hidden` for `model.hidden`. */
function keyOf(name) {
  const keys = [...Object.keys(Store.data.keys), "status", "run", "task", "model", "T", "parameters"];
  return keys.find((key) => key === name) ?? keys.find((key) => key.endsWith(`.${name}`)) ?? null;
}

function textsOf(run) {
  const settings = Object.entries(run.settings).map(([key, value]) => `${key}=${worded(value)}`);
  return [run.name, run.status, run.model ?? "", run.task ?? "", run.command, ...settings];
}
