"""One training step by every contestant, in turns: the table that all else is judged by."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from benchmarks import machine, problem, reference
from benchmarks.contestants import CONTESTANTS, DEFAULT, QUICK, missing
from benchmarks.problem import SIZES, Size
from benchmarks.process import Failed, Process

TOLERANCE = {"loss": 1e-5, "gradient": 1e-4}
"""What is further off than this from numpy in float64 is not timed; see :func:`problem.errors`."""
SECONDS = 0.2
"""About as long as a turn takes, of as many steps as fit, one at least."""
SLOW = 0.3
"""A contestant whose step takes longer takes part in the first three rounds only."""
LOOK_EVERY = 50
"""Steps between two close looks of ``probe=full``."""
CELLS = ("lstm", "gru", "rnn")
SLOW_TO_BUILD = {"lstm": (), "gru": ("gradlab-full-split",), "rnn": ("gradlab-full-split",)}
"""Who takes part with a cell only when asked for by name: a close look takes long to compile."""


def chosen(options: Any) -> tuple[Sequence[str], Sequence[Size], Sequence[str]]:
    """Cells, sizes and contestants that are asked for."""
    sizes = [Size.of(text) for text in options.sizes or ()]
    cells = options.cells or (CELLS[:1] if options.quick else CELLS)
    names = options.contestants or (QUICK if options.quick else DEFAULT)
    return cells, sizes or (problem.QUICK if options.quick else SIZES), names


def measure(options: Any) -> dict[str, Any]:
    """Time them; rows of each cell, size and contestant, and why some took no part."""
    cells, sizes, names = chosen(options)
    found: dict[str, Any] = {"rows": [], "skipped": {}, "tolerance": TOLERANCE}
    with Field(names) as field:
        found["skipped"] = field.skipped
        for cell in cells:
            without = () if options.contestants else SLOW_TO_BUILD[cell]
            for size in sizes:
                found["rows"] += field.compete(cell, size, options.repeats or 5, without)
                options.keep(found)
    return found


class Field:
    """Those that take part, each in its process; ends them at the end of a ``with``."""

    def __init__(self, names: Iterable[str]):
        reasons = {name: missing(name, machine.cores()) for name in names}
        self.skipped = {name: reason for name, reason in reasons.items() if reason}
        self.names = [name for name in reasons if name not in self.skipped]
        homes = dict.fromkeys(CONTESTANTS[name].home for name in self.names)
        self.processes = {home: Process(home) for home in homes}

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.end()

    def of(self, name: str) -> Process:
        """The process of a contestant."""
        return self.processes[CONTESTANTS[name].home]

    def compete(
        self, cell: str, size: Size, rounds: int, without: Collection[str] = ()
    ) -> list[dict[str, Any]]:
        """Build, check and time all of them, but some; a row for each."""
        began = time.perf_counter()
        rows = self.build(cell, size, [name for name in self.names if name not in without])
        built = time.perf_counter() - began
        self.time({name: row for name, row in rows.items() if "refused" not in row}, rounds)
        took = time.perf_counter() - began
        print(f"{cell} {size}: {built:.0f} s to build, {took:.0f} s in all", file=sys.stderr)
        return list(rows.values())

    def build(self, cell: str, size: Size, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Have each made, the processes at once, and compare its first step with numpy's."""
        for process in self.processes.values():
            process.send("drop")
        for name in names:
            self.of(name).send("build", name, CONTESTANTS[name].module, cell, size)
        for process in self.processes.values():
            with contextlib.suppress(Failed):  # it has died; each of its contestants says so
                process.answer()
        due, rows = reference.first(cell, size), {}
        for name in names:
            row: dict[str, Any] = {"cell": cell, "size": list(size), "contestant": name}
            try:
                first = self.of(name).answer()
            except Failed as error:
                first, row["refused"] = None, last_line(error)
            if first is not None:
                row["errors"] = problem.errors(first, due)
                row |= refusal(row["errors"])
            rows[name] = row
        return rows

    def time(self, rows: dict[str, dict[str, Any]], rounds: int) -> None:
        """Take turns; each row gets the milliseconds of a step in each round, and their median."""
        one = {name: took["steps"] for name in rows if (took := self._turn(rows[name], 1, 1))}
        steps = {name: max(1, min(50, round(SECONDS / each))) for name, each in one.items()}
        order = list(one)
        for turn in range(rounds):
            first = turn % max(1, len(order))
            for name in order[first:] + order[:first]:
                if turn >= 3 and one[name] > SLOW:
                    continue
                row, warm = rows[name], 1 if one[name] < SECONDS / 2 else 0
                if took := self._turn(row, steps[name], warm):
                    each = 1e3 * took["steps"] / steps[name]
                    if "look" in took:
                        row.setdefault("look_ms", []).append(1e3 * took["look"])
                        each += 1e3 * took["look"] / LOOK_EVERY
                    row.setdefault("rounds", []).append(each)
        for row in rows.values():
            if "refused" not in row:
                row["ms"] = statistics.median(row["rounds"])

    def _turn(self, row: dict[str, Any], steps: int, warm: int) -> dict[str, float] | None:
        """Seconds of one turn; None of a contestant that failed, now or before."""
        if "refused" in row:
            return None
        try:
            return self.of(row["contestant"]).ask("time", row["contestant"], steps, warm)
        except Failed as error:
            row["refused"] = last_line(error)
            return None


def last_line(error: Exception) -> str:
    """What a contestant failed with."""
    return f"it failed: {str(error).strip().splitlines()[-1]}"


def refusal(errors: dict[str, float]) -> dict[str, str]:
    """``refused`` with the reason, if one of them is beyond the tolerance."""
    far = [
        f"{name} off by {error:.1e}, allowed {TOLERANCE[name]:g}"
        for name, error in errors.items()
        if not error <= TOLERANCE[name]
    ]
    return {"refused": ", ".join(far)} if far else {}


def show(found: dict[str, Any]) -> str:
    """The tables in Markdown, for each cell: against Flax, and then the headline ratios."""
    rows = found["rows"]
    parts = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        own = [row for row in rows if row["cell"] == cell]
        parts += [f"### {cell}", _all_of(own), _headlines(own)]
    far = [row["errors"] for row in rows if "errors" in row]
    if far:
        worst = {name: max(each[name] for each in far) for name in TOLERANCE}
        parts.append(
            "First all computed loss and gradient from the same weights. Compared with numpy in "
            f"float64 they are off by at most {worst['loss']:.1e} and {worst['gradient']:.1e} (a "
            f"gradient over its largest entry); allowed: {found['tolerance']['loss']:g} and "
            f"{found['tolerance']['gradient']:g}."
        )
    told = [f"- {CONTESTANTS[name].label}: {why}" for name, why in found["skipped"].items()]
    told += [
        f"- {CONTESTANTS[row['contestant']].label}, {row['cell']}, {Size(*row['size'])}: "
        f"not timed: {row['refused']}"
        for row in rows
        if "refused" in row
    ]
    if told:
        parts.append("Not in the tables:\n\n" + "\n".join(told))
    return "\n\n".join(parts)


def _by_size(rows: list[dict[str, Any]]) -> dict[Size, dict[str, float]]:
    found: dict[Size, dict[str, float]] = {}
    for row in rows:
        found.setdefault(Size(*row["size"]), {})
        if "ms" in row:
            found[Size(*row["size"])][row["contestant"]] = row["ms"]
    return found


def _all_of(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of Flax, and everyone else's over it."""
    names = [name for name in CONTESTANTS if any(row["contestant"] == name for row in rows)]
    others = [name for name in names if name != "flax"]
    heads = ["T, B, I, H", "Flax, ms", *(CONTESTANTS[name].label for name in others)]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for size, took in _by_size(rows).items():
        ratios = [ratio(took, name, "flax") for name in others]
        lines.append(_line([str(size), number(took.get("flax"), ".2f"), *ratios]))
    return "\n".join(lines)


PLAIN = {"gradlab-standard-split": "gradlab-split", "gradlab-standard": "gradlab"}
"""Whose measured step it is, and its own plain one."""


def _headlines(rows: list[dict[str, Any]]) -> str:
    """A measured step over those of all peers; "faster than Flax" where both ratios say so."""
    heads = [
        "T, B, I, H",
        "measured step of",
        "/ Flax",
        "/ Flax, split",
        "/ PyTorch",
        "/ own plain",
    ]
    lines = [_line([*heads, ""]), _line(["---"] * (len(heads) + 1))]
    for size, took in _by_size(rows).items():
        for name, plain in PLAIN.items():
            if name in took:
                peers, label = ("flax", "flax-split", "torch", plain), CONTESTANTS[name].label
                ratios = [ratio(took, name, peer) for peer in peers]
                lines.append(_line([str(size), label, *ratios, verdict(took, name)]))
    return "\n".join(lines)


def verdict(took: dict[str, float], name: str) -> str:
    """What may be said: "faster than Flax" only of what is faster than both of its ways."""
    both = [took.get(peer) for peer in ("flax", "flax-split")]
    faster = all(peer is not None and took[name] < peer for peer in both)
    return "faster than Flax" if faster else ""


def ratio(took: dict[str, float], name: str, peer: str) -> str:
    """Of two contestants; nothing where one is not there."""
    if name not in took or peer not in took:
        return ""
    return f"{took[name] / took[peer]:.2f}"


def number(value: float | None, form: str) -> str:
    """In this form; nothing for None."""
    return "" if value is None else format(value, form)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
