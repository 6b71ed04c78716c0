"""The memory of a training step by each contestant, in a process of its own.

Of those that XLA compiles: the temporaries of the compiled step, as the compiler says. Of all: by
how much the process grew, at its largest, from before the contestant was made until it had made a
few steps; that holds what compiling takes, too.
"""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import CONTESTANTS
from benchmarks.problem import Size
from benchmarks.steps import Field, chosen, number


def measure(options: Any) -> dict[str, Any]:
    """Make each at each size, alone in a process."""
    cells, sizes, names = chosen(options)
    rows, skipped = [], {}
    for name in names:
        for cell in cells:
            for size in sizes:
                with Field([name]) as field:
                    skipped |= field.skipped
                    if name in field.names:
                        rows.append(_grown(field, name, cell, size))
    return {"rows": rows, "skipped": skipped}


def _grown(field: Field, name: str, cell: str, size: Size) -> dict[str, Any]:
    process, module = field.of(name), CONTESTANTS[name].module
    process.ask("build", name, module, cell, Size(2, size.B, size.I, 2))  # what it imports is there
    before = process.ask("resident")
    process.ask("build", name, module, cell, size)
    process.ask("time", name, 3, 0)
    grown = process.ask("resident") - before
    held = process.ask("temporaries", name)
    row = {"cell": cell, "size": list(size), "contestant": name}
    return row | {"temporaries": held, "grown": grown}


def show(found: dict[str, Any]) -> str:
    """The table, in MB."""
    lines = [
        "| cell | T, B, I, H | by | temporaries by the compiler, MB | process grew by, MB |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        label, size = CONTESTANTS[row["contestant"]].label, Size(*row["size"])
        held = None if row["temporaries"] is None else row["temporaries"] / 1e6
        cells = (row["cell"], str(size), label, number(held, ".1f"), f"{row['grown'] / 1e6:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n- {CONTESTANTS[name].label}: {why}" for name, why in found["skipped"].items()]
    return "\n".join(lines)
