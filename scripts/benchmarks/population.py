"""Whole sweeps over seeds: by the population launcher, by Hydra's own, and a process for each.

Adding, T = 100, H = 32, 500 steps, with all that is recorded by default.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("population launcher", "one after another", "a process each")


def measure(options: Any) -> dict[str, Any]:
    """Wall seconds from start to end, and member-steps per second once steady; each way once."""
    members = options.population
    commands = {
        "population launcher": [["-m", "hydra/launcher=population", f"seed=range({members})"]],
        "one after another": [["-m", f"seed=range({members})"]],
        "a process each": [[f"seed={seed}"] for seed in range(members)],
    }
    rows = []
    for way in WAYS:
        seconds, rate = sweep(commands[way])
        row = {"way": way, "members": members, "seconds": seconds, "member_steps_per_second": rate}
        rows.append(row)
    return {"rows": rows}


def sweep(commands):
    """Seconds that commands take one after another, and member-steps per second of their runs."""
    sizes = ["experiment=adding", "task.length=100", "model.hidden=32", "trainer.steps=500"]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for command in commands:
            whole = [sys.executable, "-m", "gradlab", *command, *sizes]
            subprocess.run(whole, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        infos = [json.loads(path.read_text()) for path in Path(folder).rglob("run.json")]
    rates = [one["steps_per_second"] * one["timings"].get("members", 1) for one in infos]
    return seconds, statistics.median(rates)


def show(found: dict[str, Any]) -> str:
    """The table."""
    rows = found["rows"]
    first = rows[0]["seconds"]
    lines = [
        f"{rows[0]['members']} members, by their wall time from start to end\n",
        "| sweep | wall, s | population / this | member-steps per second |",
        "|---|---|---|---|",
    ]
    for row in rows:
        took, rate = row["seconds"], row["member_steps_per_second"]
        lines.append(f"| {row['way']} | {took:.1f} | 1/{took / first:.1f} | {rate:.0f} |")
    return "\n".join(lines)
