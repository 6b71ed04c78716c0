"""A Slurm of one node on this machine: a preempted job goes on, a killed one is named."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

SCRIPT = ROOT / "scripts" / "slurm_demo.py"
LIMIT = 300
"""Seconds; it takes 66 on a free machine, and took 150 on a slow one."""

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start Slurm's daemons"),
    pytest.mark.skipif(
        shutil.which("apt-get") is None and shutil.which("slurmctld") is None,
        reason="no Slurm here, and no apt-get to install it with",
    ),
]


def processes_of(folder: Path) -> list[str]:
    """Those that were started with this folder in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(folder) in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended
            continue
    return found


def test_a_preempted_job_ends_with_the_same_bits_and_a_killed_one_is_named_and_goes_on(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    preempted = re.search(r"preempted job 0: scancel --signal=USR2 --full \d+_0\n", done.stdout)
    assert preempted
    assert re.search(
        r"gradlab: job 1 \(seed=1\): ended with no result \(Slurm: FAILED\)", done.stdout
    )
    for held in (
        "the preempted job is not among those that failed",
        "Slurm had queued it again",
        "it prints the command that goes on",
        "the sweep goes on and ends with exit code 0",
        "jobs 2 and 3 were left alone",
    ):
        assert f"ok: {held}\n" in done.stdout
    assert len(re.findall(r"ok: its \d+ recorded scalars are the same bits", done.stdout)) == 2
    assert len(re.findall(r"ok: its \d+ recorded curves are the same bits", done.stdout)) == 2
    assert len(re.findall(r"ok: so are its \d\d last arrays", done.stdout)) == 2
    assert re.search(r"all of it held, in \d+ s", done.stdout)
    assert list(tmp_path.iterdir()) == []  # its folder is gone
    assert processes_of(tmp_path) == []
