"""How a training step grows: with T, with B and with H, the other three as they are.

A ratio of two for twice as much is linear. What measuring holds besides is said by the compiler:
temporaries of a measured step less those of a plain one, in bytes, over T·B.
"""

from __future__ import annotations

from typing import Any

from benchmarks.problem import Size
from benchmarks.steps import Field, number

BASE = Size(500, 16, 2, 64)
GROWS = {"T": (250, 500, 1000, 2000), "B": (8, 16, 32, 64), "H": (32, 64, 128, 256)}
NAMES = ("flax", "gradlab", "gradlab-standard")


def measure(options: Any) -> dict[str, Any]:
    """Time a step of some contestants while one size grows."""
    rows = []
    with Field(options.contestants or NAMES) as field:
        for cell in options.cells or ("lstm",):
            for axis, values in GROWS.items():
                for value in values:
                    size = BASE._replace(**{axis: value})
                    for row in field.compete(cell, size, options.repeats or 3):
                        rows.append(row | {"axis": axis})
                        if "refused" not in row:
                            name = row["contestant"]
                            rows[-1]["temporaries"] = field.of(name).ask("temporaries", name)
    return {"rows": rows, "skipped": field.skipped}


def show(found: dict[str, Any]) -> str:
    """For each axis: milliseconds, and how many times as many as the line above."""
    rows = found["rows"]
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    parts = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        for axis in GROWS:
            own = [row for row in rows if row["cell"] == cell and row["axis"] == axis]
            heads = [axis, *(f"{name}, ms | times the line above" for name in names)]
            heads.append("bytes of measuring over T·B")
            lines = [f"| {' | '.join(heads)} |", "|" + "---|" * (2 + 2 * len(names))]
            before: dict[str, float] = {}
            for value in GROWS[axis]:
                here = {r["contestant"]: r for r in own if _value(r, axis) == value}
                took = {name: row["ms"] for name, row in here.items() if "ms" in row}
                cells = [str(value)]
                for name in names:
                    times = took[name] / before[name] if name in took and name in before else None
                    cells += [number(took.get(name), ".2f"), number(times, ".2f")]
                lines.append(f"| {' | '.join([*cells, number(_held(here), '.1f')])} |")
                before = took
            base = ", ".join(f"{k} = {v}" for k, v in BASE._asdict().items() if k != axis)
            parts.append(f"### {cell}, {axis} ({base})\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _value(row: dict[str, Any], axis: str) -> int:
    return getattr(Size(*row["size"]), axis)


def _held(rows: dict[str, dict[str, Any]]) -> float | None:
    """What measuring holds besides, for each timestep and example."""
    plain, measured = (rows.get(name, {}) for name in ("gradlab", "gradlab-standard"))
    if "temporaries" not in plain or "temporaries" not in measured:
        return None
    size = Size(*plain["size"])
    return (measured["temporaries"] - plain["temporaries"]) / (size.T * size.B)
