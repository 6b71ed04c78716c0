"""What it ran on, when, and what else ran beside."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("gradlab", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "keras", "wandb")


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def facts() -> dict:
    """Machine, versions and date."""
    return {
        "date": datetime.now().isoformat(timespec="minutes"),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := version(name))},
        "commit": _commit(),
    }


def version(package: str) -> str | None:
    """Of what is installed; None: it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def load() -> float:
    """Processes that ran or wanted to, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def told(found: dict) -> str:
    """The facts in a line or two, and the load of the machine besides."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    commit = f", commit {found['commit']}" if found["commit"] else ""
    return (
        f"{found['date']}, {found['machine']} ({found['processor']}), {found['cores']} cores, "
        f"Python {found['python']}, {versions}{commit}. Load average before "
        f"{found['load_before']}, after {found['load_after']}."
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo")
    if lines.exists():
        for line in lines.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
