"use strict";
// Everything is there: take the data, choose a view, draw.

const PANELS = [phasePanel, curvesPanel, heatmapsPanel, lossPanel, dynamicsPanel, matchedPanel, runsPanel];

/** The view that answers the question at once. */
function firstView() {
  const keys = Object.keys(Store.data.keys);
  const settings = keys.filter((key) => key !== "seed");
  State.colour = settings.includes("model") ? "model" : (settings[0] ?? (Store.runs.length > 1 ? "run" : ""));
  const second = settings.find((key) => key !== State.colour && Looks.values(key).length <= 4);
  State.measures = [ADJOINT, BOUND].filter((name) => Store.has(name));
  State.dash = second ?? "measurement";
  State.group = keys.includes("seed") && Store.runs.length > Looks.values("seed").length ? "settings" : "";
  if (Store.runs.length > 1 && keys.length === 1 && keys[0] === "seed") State.group = "settings";
  if (!Store.has(State.heat)) State.heat = Object.keys(Store.data.curves).find((name) => Store.has(name)) ?? ADJOINT;
  if (!State.measures.length) State.measures = [State.heat];
}

function drawWords() {
  const { headline, notices, made } = Store.data;
  fill(document.getElementById("made"), `comparison of ${Store.runs.length} ${Store.runs.length === 1 ? "run" : "runs"}, ${made.replace("T", " ").replace("+00:00", " UTC")}`);
  fill(document.getElementById("answer"), headline.title);
  fill(document.getElementById("because"), headline.lines.map((line) => element("li", {}, line)));
  fill(document.getElementById("notices"), notices.map((line) => element("li", {}, line)));
}

function draw(moved) {
  if (!moved) applyTheme();
  Controls.update(moved);
  for (const panel of PANELS) panel.update(moved);
}

async function start() {
  await Store.take(JSON.parse(document.getElementById("data").textContent));
  firstView();
  State.read();
  applyTheme();
  drawWords();
  Controls.build();
  for (const panel of PANELS) {
    const place = element("section", { className: "panel", id: panel.id });
    document.getElementById("panels").append(place);
    panel.build(place);
  }
  State.changed.add(draw);
  draw(false);
  document.body.dataset.ready = "true";
  Live.start();
}

start();
