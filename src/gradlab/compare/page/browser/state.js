"use strict";
// What was chosen on the page. It is kept in the address, so that a view can be sent to somebody.

const State = {
  step: Infinity, // the last
  colour: "",
  dash: "",
  facet: "",
  group: "", // "": every run; "settings": all but the seed; or a key
  layer: 0,
  filter: "",
  measures: [], // variables over lag
  relative: false,
  logLag: false,
  heat: "adj_h_log10",
  theme: "",
  hidden: new Set(), // paths of runs
  sort: "",
  changed: new Set(), // listeners

  /** Takes the view out of the address. */
  read() {
    const view = new URLSearchParams(location.hash.slice(1));
    for (const [name, text] of view) {
      if (name === "step") this.step = Number(text);
      else if (name === "layer") this.layer = Number(text) || 0;
      else if (name === "measures") this.measures = text.split(",").filter((one) => one in Store.data.curves);
      else if (["relative", "logLag"].includes(name)) this[name] = text === "true";
      else if (["colour", "dash", "facet", "group", "filter", "heat", "theme", "sort"].includes(name)) this[name] = text;
    }
    return view;
  },

  /** Changes choices and tells everybody: with `{step}` alone only what moves with the slider. */
  change(choices) {
    Object.assign(this, choices);
    const view = new URLSearchParams();
    for (const name of ["step", "colour", "dash", "facet", "group", "layer", "filter", "relative", "logLag", "heat", "theme", "sort"]) {
      if (this[name] !== "" && this[name] !== false && this[name] !== Infinity) view.set(name, this[name]);
    }
    view.set("measures", this.measures.join(","));
    history.replaceState(null, "", `#${view}`);
    const moved = Object.keys(choices).every((name) => name === "step");
    for (const listener of this.changed) listener(moved);
  },

  /** The runs that are shown. */
  get runs() {
    const wanted = filterOf(this.filter);
    return Store.runs.filter((run) => !this.hidden.has(run.path) && wanted(run));
  },

  /** Those of them whose arrays are on the page. */
  get drawn() {
    return this.runs.filter((run) => !run.unread);
  },
};
