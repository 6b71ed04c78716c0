"""Compare pages of folders of runs, each made as a process and opened in Chromium.

Seconds to make it, its size, seconds until everything is drawn, and milliseconds for the slider to
move every curve, as mean over seeds and with a line a run; the median of several. Needs playwright,
of the extra ``dev``.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure(options: Any) -> dict[str, Any]:
    """Time the page of each folder."""
    from playwright.sync_api import sync_playwright

    from screenshot import FLAGS

    rows = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for number, sweep in enumerate(options.compare):
            out = Path(folder) / f"{number}.html"
            began = time.perf_counter()
            command = [sys.executable, "-m", "gradlab.compare", sweep, "--out", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            made = time.perf_counter() - began
            opened, grouped, every, runs = page_times(browser, out)
            row = {"runs": runs, "made_s": made, "mb": out.stat().st_size / 1e6}
            rows.append(row | {"opened_s": opened, "slider_ms": grouped, "line_a_run_ms": every})
        browser.close()
    return {"rows": rows}


def show(found: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "| runs | made, s | MB | opened, s | slider, ms | slider, a line a run, ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['runs']} | {row['made_s']:.1f} | {row['mb']:.1f} | {row['opened_s']:.2f} "
            f"| {row['slider_ms']:.0f} | {row['line_a_run_ms']:.0f} |"
        )
    return "\n".join(lines)


SLIDE = """async (places) => {
  const took = [];
  for (const place of places) {
    const range = document.getElementById("step");
    const began = performance.now();
    range.value = String(Math.round(place * Number(range.max)));
    range.dispatchEvent(new Event("input"));
    await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn, 0)));
    took.push(performance.now() - began);
  }
  return took;
}"""


def page_times(browser, path):
    """Seconds to open, milliseconds of the slider in two ways, and how many runs are shown."""
    took = []
    for _ in range(3):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        took.append(time.perf_counter() - began)
    places = [k / 20 for k in range(20)]
    grouped = statistics.median(page.evaluate(SLIDE, places))
    page.get_by_label("lines", exact=True).select_option("")
    every = statistics.median(page.evaluate(SLIDE, places))
    return statistics.median(took), grouped, every, page.evaluate("Store.runs.length")
