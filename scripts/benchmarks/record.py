"""What recording a row costs, sink by sink, in CPU seconds of the thread that hands it over.

Rows are those of a default run (an LSTM, T = 100, the standard probes), recorded one after another.
The run directory is shown by its rows and by its flush, of which there is one every two seconds.
W&B's figures are of the whole process: its calls are made in a thread; what the process that it
starts besides takes comes on top of them.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.record.base import Description, Outcome, Row, Sink, Variable
from gradlab.record.directory import RunDirectory
from gradlab.record.tensorboard_sink import TensorBoardSink
from gradlab.record.terminal import Terminal
from gradlab.record.wandb.sink import WandbSink

T, ROWS, PARTS = 100, 5000, 5
SINKS: dict[str, Callable[[Path], Sink]] = {
    "run directory": lambda folder: RunDirectory(folder, flush_seconds=float("inf")),
    "terminal": lambda folder: Terminal(io.StringIO()),
    "TensorBoard": TensorBoardSink,
    "W&B offline": lambda folder: WandbSink(folder, arrays=False, code=False),
}


def measure(options: Any) -> dict[str, Any]:
    """Microseconds a row in each fifth of the rows, milliseconds to open, to flush and to close."""
    return {"rows": [of_sink(name, ROWS // 5 if name[0] == "W" else ROWS) for name in SINKS]}


def of_sink(name: str, count: int) -> dict[str, Any]:
    """The costs of one sink."""
    description, rows = made_up(100)
    with tempfile.TemporaryDirectory() as folder:
        sink = SINKS[name](Path(folder))
        opened = _milliseconds(sink.open, description)
        if isinstance(sink, WandbSink):
            while not sink.how_to_see():
                time.sleep(0.1)
        each, clock = [], time.process_time
        for part in range(PARTS):
            began = clock()
            for step in range(part * count // PARTS, (part + 1) * count // PARTS):
                sink.log(rows[step % len(rows)]._replace(step=step))
            each.append((clock() - began) / (count // PARTS) * 1e6)
        flushed = _milliseconds(sink.flush) if isinstance(sink, RunDirectory) else None
        closed = _milliseconds(sink.close, Outcome("finished"))
    row = {"sink": name, "count": count, "each": each}
    return row | {"opened": opened, "flushed": flushed, "closed": closed}


def made_up(count: int) -> tuple[Description, list[Row]]:
    """A run of the default kind, and so many of its rows."""
    own = [f"adj_{state}{lag}" for state in "hc" for lag in ("", "_over_lag")]
    own += ["forget_product", "forget_product_rms", "forget_product_over_lag"]
    sizes = {"layer": 1, "t": T, "back": T, "quantile": 5, "parameter": 5, "gate": 3}
    dims: dict[str, tuple[str, ...]] = {}
    for name in own:
        along = "back" if name.endswith("over_lag") else "t"
        dims[f"{name}_log10"] = ("layer", along)
        if "_rms" not in name:
            dims[f"{name}_log10_q"] = ("layer", "quantile", along)
    dims |= dict.fromkeys(("grad_norm", "grad_norm_postclip", "update_ratio"), ("parameter",))
    dims |= dict.fromkeys(("adjoint_slope", "memory_horizon", "decades_lost"), ("layer",))
    dims["gate_saturation"] = ("layer", "gate")
    scalars = ("train/loss", "train/grad_norm", "train/clip_rate")
    variables = {name: Variable(own, "log10", name) for name, own in dims.items()}
    variables |= {name: Variable((), "1", name) for name in scalars}
    coords = {name: list(range(size)) for name, size in sizes.items()}
    made = np.random.default_rng(0)
    rows = []
    for step in range(count):
        arrays = {
            name: made.normal(-5, 1, [sizes[dim] for dim in own]).astype(np.float32)
            for name, own in dims.items()
        }
        rows.append(Row(step, dict.fromkeys(scalars, 0.5 + step), arrays))
    facts = {"steps": ROWS, "T": T}
    return Description("benchmark", {}, variables, coords, {}, facts, id="abcd1234"), rows


def _milliseconds(action: Callable[..., Any], *args: Any) -> float:
    began = time.process_time()
    action(*args)
    return (time.process_time() - began) * 1e3


def show(found: dict[str, Any]) -> str:
    """The table."""
    lines = [
        f"T = {T}, {len(made_up(1)[1][0].arrays)} arrays and 3 numbers a row\n",
        "| sink | CPU a row by fifths of the rows, µs | rows/s | flush, ms | open, close, ms |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        each = " ".join(f"{one:.0f}" for one in row["each"])
        rate = 1e6 / np.median(row["each"])
        flushed = "" if row["flushed"] is None else f"{row['flushed']:.1f}"
        ends = f"{row['opened']:.0f}, {row['closed']:.0f}"
        lines.append(f"| {row['sink']} | {each} | {rate:,.0f} | {flushed} | {ends} |")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("WANDB_SILENT", "true")
    print(show(measure(None)))
