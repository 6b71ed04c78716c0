"use strict";
// Maps of colours on a canvas, with axes: heatmaps over lag and step, phase diagrams.

const MARGIN = { left: 58, right: 12, top: 6, bottom: 40 };

/**
 * Draws a map.
 *
 * `map`: `{x, y, xLabel, yLabel, width, height, valueAt(x, y), low, high, middle, xTicks, yTicks}`;
 * `x` and `y` are `[low, high]` in data, `valueAt` gives a number, -Infinity or NaN.
 */
function drawMap(canvas, map) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(map.width * scale);
  canvas.height = Math.round(map.height * scale);
  canvas.style.height = `${map.height}px`;
  const paper = canvas.getContext("2d");
  paper.scale(scale, scale);
  const box = boxOf(map);
  paper.drawImage(pixels(map, Math.max(1, Math.round(box.width)), Math.max(1, Math.round(box.height))), box.left, box.top, box.width, box.height);
  axesOf(paper, map, box);
}

function boxOf(map) {
  return {
    left: MARGIN.left,
    top: MARGIN.top,
    width: Math.max(10, map.width - MARGIN.left - MARGIN.right),
    height: Math.max(10, map.height - MARGIN.top - MARGIN.bottom),
  };
}

function pixels(map, width, height) {
  const canvas = element("canvas", {});
  canvas.width = width;
  canvas.height = height;
  const paper = canvas.getContext("2d");
  const image = paper.createImageData(width, height);
  const colours = map.middle ? DIVERGING : VIRIDIS;
  const table = Array.from({ length: 256 }, (_, k) => between(colours, k / 255));
  const [absent, zero] = [themed("--absent"), themed("--zero")].map(rgb);
  const span = map.high - map.low || 1;
  for (let row = 0, k = 0; row < height; row++) {
    const y = map.y[1] - ((row + 0.5) / height) * (map.y[1] - map.y[0]);
    for (let column = 0; column < width; column++, k += 4) {
      const value = map.valueAt(map.x[0] + ((column + 0.5) / width) * (map.x[1] - map.x[0]), y);
      const share = Math.round((255 * (value - map.low)) / span);
      const colour = value === -Infinity ? zero : Number.isNaN(value) ? absent : table[Math.min(255, Math.max(0, share))];
      image.data.set(colour, k);
      image.data[k + 3] = 255;
    }
  }
  paper.putImageData(image, 0, 0);
  return canvas;
}

function rgb(text) {
  return [1, 3, 5].map((k) => parseInt(text.slice(k, k + 2), 16));
}

function axesOf(paper, map, box) {
  paper.strokeStyle = themed("--soft");
  paper.fillStyle = themed("--ink");
  paper.font = "11px system-ui, sans-serif";
  paper.lineWidth = 1;
  paper.strokeRect(box.left - 0.5, box.top - 0.5, box.width + 1, box.height + 1);
  const across = map.xTicks ?? ticks(map.x[0], map.x[1], box.width / 70).map((at) => ({ at, text: shown(at) }));
  const up = map.yTicks ?? ticks(map.y[0], map.y[1], box.height / 40).map((at) => ({ at, text: shown(at) }));
  paper.textAlign = "center";
  paper.textBaseline = "top";
  for (const { at, text } of across) {
    const x = box.left + ((at - map.x[0]) / (map.x[1] - map.x[0])) * box.width;
    paper.fillText(text, x, box.top + box.height + 5);
  }
  paper.fillText(map.xLabel, box.left + box.width / 2, box.top + box.height + 21);
  paper.textAlign = "right";
  paper.textBaseline = "middle";
  for (const { at, text } of up) {
    paper.fillText(text, box.left - 5, box.top + box.height - ((at - map.y[0]) / (map.y[1] - map.y[0])) * box.height);
  }
  paper.save();
  paper.translate(12, box.top + box.height / 2);
  paper.rotate(-Math.PI / 2);
  paper.textAlign = "center";
  paper.fillText(map.yLabel, 0, 0);
  paper.restore();
}

/** The data under the pointer, or null outside the box. */
function placeUnder(event, canvas, map) {
  const box = boxOf(map);
  const bounds = canvas.getBoundingClientRect();
  const across = (event.clientX - bounds.left - box.left) / box.width;
  const up = 1 - (event.clientY - bounds.top - box.top) / box.height;
  if (across < 0 || across > 1 || up < 0 || up > 1) return null;
  return { x: map.x[0] + across * (map.x[1] - map.x[0]), y: map.y[0] + up * (map.y[1] - map.y[0]) };
}

/** A bar that says which colour is which value. */
function colourBar(low, high, middle, label) {
  const canvas = element("canvas", {});
  canvas.width = 200;
  canvas.height = 12;
  const paper = canvas.getContext("2d");
  for (let k = 0; k < 200; k++) {
    paper.fillStyle = `rgb(${between(middle ? DIVERGING : VIRIDIS, k / 199).join(",")})`;
    paper.fillRect(k, 0, 1, 12);
  }
  return element("span", { className: "key bar" }, shown(low, 3), canvas, shown(high, 3), element("span", { className: "title" }, label));
}
