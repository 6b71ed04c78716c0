"""How many jobs a sweep has, asked before any of them is composed."""

from __future__ import annotations

import math

from omegaconf import DictConfig

from gradlab.errors import BadInput
from gradlab.launch.sweep.jobs import swept

SECONDS_EACH, MEGABYTES_EACH = 1.5, 3.0
"""What a member takes besides its training, on two CPU cores, figures and W&B's files included."""


def check_size(config: DictConfig) -> None:
    """Refuse a sweep without jobs, and a population of more than ``hydra.launcher.max_members``.

    Only Hydra's own sweeper says beforehand what it will launch; for any other, nothing is refused.

    Args:
      config: of the sweep, with its section ``hydra``.

    Raises:
      BadInput: with what the sweep would take.
    """
    said = swept(config)
    if said is None:
        return
    sizes = {
        override.input_line or "": sum(1 for _ in override.sweep_string_iterator())
        for override in said
        if override.is_discrete_sweep()
    }
    jobs = math.prod(sizes.values())
    if jobs == 0:
        empty = next(override for override, size in sizes.items() if size == 0)
        key, _, given = empty.partition("=")
        raise BadInput(key, given, "at least one value, else the sweep has no jobs", f"{key}=1,2,3")
    most = config.hydra.launcher.get("max_members")
    if isinstance(most, int) and jobs > most:
        minutes, gigabytes = jobs * SECONDS_EACH / 60, jobs * MEGABYTES_EACH / 1000
        allowed = (
            f"at least the {jobs:,} jobs of this sweep; to begin and end them takes some "
            f"{minutes:.0f} minutes and {gigabytes:.0f} GB of disk, besides their training"
        )
        hint = f"fewer values, or hydra.launcher.max_members={jobs}"
        raise BadInput("hydra.launcher.max_members", most, allowed, hint)
