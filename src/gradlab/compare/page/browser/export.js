"use strict";
// What is shown, as files.

/** Saves text or a blob under a name. */
function save(name, content) {
  const blob = content instanceof Blob ? content : new Blob([content], { type: "text/csv" });
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Rows as comma-separated values; numbers in full, nothing for those that are not there. */
function csv(rows) {
  const cell = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    const text = value === -Infinity ? "-inf" : value === Infinity ? "inf" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

/** Saves everything drawn in a panel as one picture: headings, canvases, the legend. */
function savePicture(name, panel) {
  const charts = [...panel.querySelectorAll(".chart")].filter((one) => one.querySelector("canvas"));
  const origin = panel.querySelector(".charts").getBoundingClientRect();
  const scale = 2;
  const keys = [...document.querySelectorAll("#legend .key")].map((key) => ({
    text: key.textContent,
    colour: key.dataset.colour ?? "",
    dash: JSON.parse(key.dataset.dash ?? "[]"),
  }));
  const lines = legendLines(keys, origin.width);
  const head = 30;
  const whole = element("canvas", {});
  whole.width = origin.width * scale;
  whole.height = (head + origin.height + lines.length * 18 + 10) * scale;
  const paper = whole.getContext("2d");
  paper.scale(scale, scale);
  paper.fillStyle = themed("--paper");
  paper.fillRect(0, 0, origin.width, whole.height / scale);
  paper.fillStyle = themed("--ink");
  paper.textBaseline = "middle";
  paper.font = "600 15px system-ui, sans-serif";
  paper.fillText(panel.querySelector("h2").textContent, 4, head / 2);
  for (const chart of charts) {
    const title = chart.querySelector("h3");
    if (title) {
      const at = title.getBoundingClientRect();
      paper.font = "600 12px system-ui, sans-serif";
      paper.fillText(title.textContent, at.left - origin.left, head + at.top - origin.top + at.height / 2);
    }
    for (const canvas of chart.querySelectorAll("canvas")) {
      const at = canvas.getBoundingClientRect();
      paper.drawImage(canvas, at.left - origin.left, head + at.top - origin.top, at.width, at.height);
    }
  }
  drawLegend(paper, lines, head + origin.height + 10);
  return new Promise((done) => {
    whole.toBlob((blob) => {
      save(name, blob);
      done();
    });
  });
}

function legendLines(keys, width) {
  const paper = element("canvas", {}).getContext("2d");
  paper.font = "12px system-ui, sans-serif";
  const lines = [[]];
  let x = 4;
  for (const key of keys) {
    const wide = paper.measureText(key.text).width + (key.colour ? 44 : 14);
    if (x + wide > width && lines.at(-1).length) {
      lines.push([]);
      x = 4;
    }
    lines.at(-1).push({ ...key, x });
    x += wide;
  }
  return lines;
}

function drawLegend(paper, lines, top) {
  paper.font = "12px system-ui, sans-serif";
  lines.forEach((line, row) => {
    const y = top + row * 18;
    for (const { text, colour, dash, x } of line) {
      if (colour) {
        paper.strokeStyle = colour;
        paper.lineWidth = 2;
        paper.setLineDash(dash);
        paper.beginPath();
        paper.moveTo(x, y);
        paper.lineTo(x + 26, y);
        paper.stroke();
      }
      paper.setLineDash([]);
      paper.fillStyle = themed("--ink");
      paper.fillText(text, x + (colour ? 31 : 0), y);
    }
  });
}
