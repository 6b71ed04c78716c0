"""How many cores a job may use, and a host device of jax for each of them."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_BY_XLA = "xla_force_host_platform_device_count"
_CGROUPS = Path("/sys/fs/cgroup")


def cores(environment: Mapping[str, str] = os.environ) -> int:
    """The cores that this process may use.

    No more than the machine has, than its affinity allows (``taskset``), than its control group
    grants, and than Slurm gives a task: one core where there are several and it does not say.
    """
    machine = os.cpu_count() or 1
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return max(1, int(min(machine, own, _quota(), _of_slurm(environment))))


def cores_of_job(*, elsewhere: bool, launcher: str) -> int:
    """The cores that one job may use.

    A job in a process of its own (joblib, Ray, ``local``, any other worker) has siblings beside it
    on the other cores, so it takes one. A job of Slurm has those that Slurm gives it.

    Args:
      elsewhere: whether a launcher runs it in another process than that of the command.
      launcher: its ``_target_``.
    """
    worker = elsewhere and not launcher.endswith(".SlurmLauncher")
    return 1 if worker or multiprocessing.parent_process() is not None else cores()


def use_cores(count: int) -> None:
    """On a CPU, a device for each of so many cores; this comes before jax is first used.

    Where the user has said how many, by ``XLA_FLAGS`` or ``JAX_NUM_CPU_DEVICES``, that holds.
    """
    import jax

    told = jax.config.values.get("jax_num_cpu_devices", -1) != -1
    if _BY_XLA not in os.environ.get("XLA_FLAGS", "") and not told:
        with suppress(RuntimeError):  # jax has been used in this process
            jax.config.update("jax_num_cpu_devices", count)


def _of_slurm(environment: Mapping[str, str]) -> float:
    if (given := environment.get("SLURM_CPUS_PER_TASK", "")).isdecimal():
        return int(given)
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    return 1 if tasks.isdecimal() and int(tasks) > 1 else math.inf


def _quota(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """Whole cores of the tightest quota of this process's control groups (version 2)."""
    found = math.inf
    with suppress(OSError, ValueError):
        lines = own.read_text().splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::")), "/")
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root) and (place / "cpu.max").is_file():
                quota, period = (place / "cpu.max").read_text().split()
                if quota != "max":
                    found = min(found, max(1, int(quota) // int(period)))
    return found
