"""How many jobs a sweep has, asked before any of them is composed."""

from __future__ import annotations

import math

from hydra.core.override_parser.types import Override, RangeSweep
from omegaconf import DictConfig

from gradlab.errors import BadInput, whole_number
from gradlab.launch.sweep.jobs import swept

SECONDS_EACH, MEGABYTES_EACH = 1.5, 3.0
"""What a member takes besides its training, on two CPU cores, figures and W&B's files included."""


MOST_JOBS = 100_000
"""More than any sweep here will finish."""


def check_size(config: DictConfig) -> None:
    """Refuse a sweep without jobs, and a population of more than ``hydra.launcher.max_members``.

    Only Hydra's own sweeper says beforehand what it will launch; for any other, nothing is refused.

    Args:
      config: of the sweep, with its section ``hydra``.

    Raises:
      BadInput: with what the sweep would take, or for values that cannot be counted.
    """
    said = swept(config)
    if said is None:
        return
    if (batch := config.hydra.sweeper.get("max_batch_size")) is not None:
        whole_number("hydra.sweeper.max_batch_size", batch, 1, otherwise=", or null")
    sizes = {one.input_line or "": _size(one) for one in said if one.is_sweep_override()}
    jobs = math.prod(sizes.values())
    if jobs > MOST_JOBS:
        key, _, given = max(sizes, key=lambda line: sizes[line]).partition("=")
        raise BadInput(key, given, f"values for a sweep of {MOST_JOBS:,} jobs at most")
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


def _size(override: Override) -> int:
    """How many values a sweep has, without making them; if they are very many, just very many."""
    key, _, given = (override.input_line or "").partition("=")
    if not override.is_discrete_sweep():
        allowed = "values, such as 1,2,3; an interval is searched by hydra/sweeper=search"
        raise BadInput(key, given, allowed)
    value = override.value()
    if not isinstance(value, RangeSweep):
        return sum(1 for _ in override.sweep_string_iterator())
    ends = (value.start, value.stop, value.step)
    start, stop, step = (float(str(end or 0)) for end in ends)  # beyond all floats: inf
    if not all(map(math.isfinite, (start, stop, step))) or step == 0:
        raise BadInput(key, given, "range(START,STOP,STEP) of finite numbers, with a step")
    return max(0, math.ceil(min((stop - start) / step, 2 * MOST_JOBS)))
