"""The page: one HTML file with everything in it, that needs no network.

:mod:`~gradlab.compare.page.contents` turns runs into plain data; the files in ``browser/`` show it,
one panel a file. Lines are drawn by uPlot, whose files are in ``browser/vendor``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from gradlab.compare.page.contents import contents
from gradlab.compare.recorded import Recorded
from gradlab.record.shard import replace

__all__ = ["NAME", "contents", "page", "write"]

NAME = "compare.html"
SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "element.js",
    "numbers.js",
    "blocks.js",
    "store.js",
    "filter.js",
    "state.js",
    "looks.js",
    "lines.js",
    "axes.js",
    "export.js",
    "chart.js",
    "panels/curves.js",
    "panels/heatmaps.js",
    "panels/training.js",
    "panels/matched.js",
    "panels/phase.js",
    "panels/runs.js",
    "controls.js",
    "live.js",
    "main.js",
)
"""In the order in which they are run: each uses those before it."""
STYLES = ("vendor/uPlot.min.css", "style.css")


def write(runs: Sequence[Recorded], path: Path) -> Path:
    """Write the page about ``runs`` into the file ``path``; a file that was there is replaced.

    Raises:
      OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, page(contents(runs)).encode())
    return path


def page(data: Mapping[str, Any], live: bool = False) -> str:
    """The whole page.

    Args:
      data: as :func:`contents` gives it.
      live: whether the page asks its server for news; otherwise it can reach nothing.
    """
    parts = {
        "connect": "'self'" if live else "'none'",
        "live": "true" if live else "false",
        "style": "\n".join(map(_text, STYLES)),
        "scripts": "\n".join(f"<script>\n{_text(name)}\n</script>" for name in SCRIPTS),
        "data": as_json(data),
    }
    whole = _text("index.html")
    for name, text in parts.items():  # the data last, so that nothing in it is taken for a place
        before, after = whole.split(f"{{{{{name}}}}}")
        whole = before + text + after
    return whole


def as_json(data: Any) -> str:
    """JSON that may stand inside a page: no text in it can end the script that holds it."""
    return json.dumps(data, allow_nan=False, ensure_ascii=True).replace("<", "\\u003c")


def _text(name: str) -> str:
    return files(__name__).joinpath("browser", name).read_text(encoding="utf-8")
