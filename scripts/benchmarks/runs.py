"""Whole runs by the command line that record every step, beside a plain loop in Flax and optax.

``experiment=adding``, an LSTM, ``trainer.log_every=1``, all that ``probe=standard`` measures
recorded, no validation before the end. Each command runs twice, with few steps and with many; the
seconds of training of the one less those of the other, over the steps between, are a step in the
steady state: with its probes, the host, the record and its flushes; without start, compilation and
what comes at the end of a run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES = {"100,50,2,64": (100, 1100), "200,64,2,128": (20, 220)}
"""How many steps, few and many."""
OFF = ["record.figures=false", "record.terminal=false"]
LABELS = {
    "flax": "Flax and optax, nothing measured",
    "none": "gradlab, nothing measured",
    "standard": "gradlab, measured and recorded at every step",
    "wandb": "gradlab, likewise, and W&B offline",
}


def measure(options: Any) -> dict[str, Any]:
    """Run them in turns."""
    ways = [way for way in LABELS if way != "wandb" or options.wandb]
    rows = []
    for text in options.sizes or SIZES:
        steps = SIZES.get(text, (20, 220))
        rounds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats or 3):
            for way in ways:
                few, many = (seconds(way, text, count) for count in steps)
                rounds[way].append(1e3 * (many - few) / (steps[1] - steps[0]))
        for way, each in rounds.items():
            ms = statistics.median(each)
            rows.append({"size": text, "way": way, "steps": steps, "rounds": each, "ms": ms})
    return {"rows": rows}


def seconds(way: str, size: str, steps: int) -> float:
    """Of training, of one run in a process of its own."""
    length, batch, _, hidden = size.split(",")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    with tempfile.TemporaryDirectory() as folder:
        if way == "flax":
            command = ["benchmarks.flax_loop", str(steps), length, batch, hidden]
        else:
            command = [
                *(
                    "gradlab",
                    "experiment=adding",
                    f"task.length={length}",
                    f"hydra.run.dir={folder}",
                ),
                *(f"trainer.batch={batch}", f"model.hidden={hidden}", f"trainer.steps={steps}"),
                f"trainer.eval_every={steps}",
                f"record.wandb.mode={'offline' if way == 'wandb' else 'disabled'}",
                *(["probe=none"] if way == "none" else ["trainer.log_every=1"]),
                *OFF,
            ]
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=folder,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        if way == "flax":
            return float(done.stdout.split()[-1])
        return json.loads((Path(folder) / "run.json").read_text())["timings"]["train_seconds"]


def show(found: dict[str, Any]) -> str:
    """Milliseconds a step, and over those of the plain loop."""
    lines = ["| T, B, I, H | whole run | a step, ms | / Flax and optax |", "|---|---|---|---|"]
    plain = {row["size"]: row["ms"] for row in found["rows"] if row["way"] == "flax"}
    for row in found["rows"]:
        size, ratio = row["size"].replace(",", ", "), row["ms"] / plain[row["size"]]
        lines.append(f"| {size} | {LABELS[row['way']]} | {row['ms']:.2f} | {ratio:.2f} |")
    return "\n".join(lines)
