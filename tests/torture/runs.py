"""Real runs in processes of their own, for what they have to survive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests import ROOT

MARK = "GRADLAB_TORTURE"
"""An environment variable by which the processes that a run starts can be told."""


def check(holds: bool, what: str) -> None:
    """End with an error unless it holds."""
    if not holds:
        sys.exit(f"LOST: {what}")


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """A run in ``folder``; its compilations are kept beside it for the next one."""
    given = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT / "src"),
        "TMPDIR": str(folder.parent),  # a killed process leaves something there
        MARK: str(folder),
    }
    inherited = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    return subprocess.Popen(
        [sys.executable, "-m", "gradlab", *arguments],
        cwd=folder.parent,
        env=inherited | given | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """Wait for a run that must succeed; what it printed."""
    out, err = process.communicate(timeout=1800)
    if process.returncode != 0:
        sys.exit(f"a run ended with {process.returncode}:\n{out}\n{err}")
    return out, err


def left_behind(folder: Path, seconds: float = 10.0) -> list[str]:
    """The processes that the run in ``folder`` started and that are there after ``seconds``."""
    end = time.monotonic() + seconds
    while (found := _marked(f"{MARK}={folder}")) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def _marked(mark: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            marked = mark.encode() in (process / "environ").read_bytes().split(b"\0")
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:  # it has ended, or is somebody else's
            continue
        if marked and words:
            found.append(f"{process.name}: {words}")
    return found
