"use strict";
// Elements of the page. Text always goes in as text: names and settings of runs are data.

/** An element with properties (`class`, `on…`, attributes) and children, each an element or text. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list" && typeof value !== "string") made[name] = value;
    else made.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

/** Replaces what is in `place`. */
function fill(place, ...children) {
  place.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
}

/** A choice of `options` (`[value, text]` pairs) that calls `choose` with the value. */
function choice(label, options, chosen, choose, title = "") {
  const select = element(
    "select",
    { onchange: () => choose(select.value), "aria-label": label },
    options.map(([value, text]) => element("option", { value, selected: value === chosen }, text)),
  );
  return element("label", { title }, label, select);
}

/** A box that can be ticked and calls `choose` with whether it is. */
function tick(label, checked, choose, title = "") {
  const box = element("input", { type: "checkbox", checked, onchange: () => choose(box.checked) });
  return element("label", { title }, box, label);
}

/** The value of a style property of the page, by theme. */
function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
