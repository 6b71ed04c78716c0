"""Seconds from the start of a process to its first finished step, as one sees it on the terminal.

``python -m gradlab`` (the default experiment) and the same by a plain script in Flax and optax, in
turns; first with an empty compile cache, then with the one that the first start has left. gradlab
keeps its compile cache by itself, in the user's cache folder, which is an empty one here; the
script has none, as JAX has none by itself.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMANDS = {
    "gradlab": ["gradlab", "record.wandb.mode=disabled"],
    "flax": ["benchmarks.flax_loop", "500", "100", "50", "64"],
}
LABELS = {"gradlab": "`python -m gradlab`", "flax": "the same in Flax and optax"}


def measure(options: Any) -> dict[str, Any]:
    """Start each: cold once a round, then warm."""
    rows: list[dict[str, Any]] = []
    for _ in range(options.repeats or 3):
        with tempfile.TemporaryDirectory() as folder:
            for cache in ("cold", "warm"):
                for name in COMMANDS:
                    took = first_step(name, Path(folder))
                    rows.append({"name": name, "cache": cache, "seconds": took})
    return {"rows": rows}


def first_step(name: str, folder: Path) -> float:
    """Seconds until it says that step 0 is done; it is ended then."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    environment |= {"XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", *COMMANDS[name]]
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 0/"):
                took = time.perf_counter() - began
                process.kill()
                return took
    raise SystemExit(f"{name} ended before its first step: {' '.join(command)}")


def show(found: dict[str, Any]) -> str:
    """Medians."""
    lines = ["| | empty cache, s | warm cache, s | warm / empty |", "|---|---|---|---|"]
    for name, label in LABELS.items():
        cold, warm = (
            statistics.median(
                row["seconds"]
                for row in found["rows"]
                if row["name"] == name and row["cache"] == cache
            )
            for cache in ("cold", "warm")
        )
        lines.append(f"| {label} | {cold:.1f} | {warm:.1f} | {warm / cold:.2f} |")
    return "\n".join(lines)
