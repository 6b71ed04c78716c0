"""Disks that are nearly full: what was flushed can be read, and resumed once there is room."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import gradlab
from tests.torture.kills import SMALL, everything, odds
from tests.torture.runs import check, finish, start

DISK = 64
"""Megabytes of the disk that is mounted; all but the room that is tried is filled beforehand."""
ROOM = (1.0, 4.0)
"""Megabytes that are left to a run, from and to."""
LINE = (*SMALL, "trainer.steps=1000", "trainer.log_every=1")


def disk(sizes: int, seed: int, folder: Path | None = None) -> None:
    """Fill, read, make room, resume, compare.

    Args:
      sizes: how many.
      seed: decides them.
      folder: on a disk of its own; else one is mounted, which only root can.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as elsewhere, small_disk(folder) as place:
        whole = Path(elsewhere, "whole")
        finish(start(whole, *LINE, "hydra.run.dir=whole"))
        expected = everything(whole)
        print("| room | status | why | rows | resumed, same |\n|---|---|---|---|---|")
        for number in range(sizes):
            megabytes = ROOM[0] + (ROOM[1] - ROOM[0]) * (number + chance.random()) / sizes
            told = fill(Path(elsewhere, "run"), place, int(megabytes * 2**20), expected)
            print(f"| {megabytes:.2f} MB | {told} |", flush=True)


@contextlib.contextmanager
def small_disk(folder: Path | None) -> Iterator[Path]:
    """A folder on a disk of its own."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", place]
        mounted = subprocess.run(command, capture_output=True, text=True)
        if mounted.returncode:
            sys.exit(f"cannot mount a small disk ({mounted.stderr.strip()}); give --folder")
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def filled(place: Path, left: int) -> Iterator[None]:
    """Within it so many bytes are left on the disk."""
    ballast = place / "ballast"
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(place).free - left)
    try:
        yield
    finally:
        ballast.unlink()


def fill(beside: Path, place: Path, room: int, expected: dict[str, Any]) -> str:
    """Run until the disk is full, make room and resume; what came of it, as cells of a table."""
    folder = place / "run"
    said = f"hydra.run.dir={folder}"
    with filled(place, room):
        process = start(beside, *LINE, said)
        _, err = process.communicate(timeout=1800)
        check("Traceback" not in err, f"a traceback: {err}")
        if process.returncode:
            check("No space left" in err and "run" in err, f"the reason and the folder: {err}")
        told = read_back(folder, expected)
    begun = (folder / "run.json").exists()
    finish(start(beside, *([f"trainer.resume={folder}"] if begun else [*LINE, said])))
    odd = odds(everything(folder), expected)
    check(not odd, f"after {room} bytes, resumed with room, it ends otherwise in {odd}")
    shutil.rmtree(folder)
    return f"{told} | yes"


def read_back(folder: Path, expected: dict[str, Any]) -> str:
    """Status, reason and rows of what a full disk holds, compared, as cells of a table."""
    if not (folder / "run.json").exists():
        return "none yet | – | 0"
    run = gradlab.open_run(folder)
    check(run.status in ("crashed", "finished"), f"status {run.status}")
    check(not run.damage, str(run.damage))
    rows = run.scalars.sizes["step"]
    for dataset in (run.scalars, run.curves):
        for name, array in dataset.variables.items():
            whole = expected[str(name)]
            whole = whole[:rows] if "step" in array.dims else whole
            check(np.array_equal(array.values, whole, equal_nan=True), f"{name} is another")
    reason = str(run.info["reason"])[:60]
    left = f", left: {', '.join(run.left)}" if run.left else ""
    return f"{run.status} | {reason}{left} | {rows}"
