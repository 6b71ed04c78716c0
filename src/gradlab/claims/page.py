"""The measured parts of a README: what stands between two marks is written from runs."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradlab.claims.finding import Finding
from gradlab.claims.sweep import Sweep
from gradlab.compare.runs import SEED
from gradlab.errors import BadInput
from gradlab.record.shard import replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
FIGURE = "result.png"
DPI = 100
"""Of the figures: those of one panel are some 950 pixels wide, enough for a slide."""


def table(findings: Sequence[Finding]) -> list[str]:
    """The findings as a table in Markdown."""
    rows = [f"| {cell(f.statement)} | {f.verdict} | {cell(f.measured)} |" for f in findings]
    return ["| statement | | measured |", "|---|---|---|", *rows]


def cell(text: str) -> str:
    """A text as a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", r"\|")


def made_by(sweep: Sweep, command: str, minutes: float) -> str:
    """Which command made the runs, when, on what, in which versions, and how long it took."""
    infos = [run.entry.info for run in sweep.runs if run.entry.info]
    last = max(infos, key=lambda info: str(info.get("started")))
    versions = last["versions"]
    kinds = {device.partition(":")[0] for info in infos for device in info.get("devices", [])}
    system = versions["platform"].partition("-")[0]
    kind = next((one for one in ("x86_64", "aarch64", "arm64") if one in versions["platform"]), "")
    machine = f"{', '.join(sorted(kinds))}, {os.cpu_count()} cores, {system} {kind}".strip()
    seeds = len(sweep.values(SEED))
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("jax", "flax", "optax") if name in versions
    )
    return (
        f"*Made by `{command}` on {str(last['started'])[:10]}: {len(sweep.runs)} runs, {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}, {minutes:.1f} minutes. Machine: {machine}. "
        f"Python {versions['python']}, {named}.*"
    )


def rewrite(readme: Path, lines: Sequence[str]) -> None:
    """Put ``lines`` between the marks of a file.

    Raises:
      BadInput: if it does not have both marks, once each.
    """
    text = readme.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1 or text.count(BEGIN) != 1:
        raise BadInput(str(readme), "no place", f"a line {BEGIN} and after it a line {END}, once")
    body = "\n".join([BEGIN, "", *lines, "", END])
    replace(readme, pattern.sub(lambda _: body, text).encode())


def save(draw: Callable[[Sweep], Figure], sweep: Sweep, path: Path) -> None:
    """Draw a figure of runs in the style of a slide and write it as a small PNG."""
    import matplotlib

    from gradlab.record.figures.common import STYLE

    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        draw(sweep).savefig(content, format="png", dpi=DPI, metadata={"Software": "gradlab"})
    replace(path, content.getvalue())
