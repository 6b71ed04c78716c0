"""How much memory there is, and the least that a run takes of it, asked before it is laid out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradlab.errors import BadInput


class Need(NamedTuple):
    """Something that a run holds in memory.

    Attributes:
      size: in bytes.
      key: of the setting that makes it large.
      given: what that is set to.
      what: in words.
    """

    size: int
    key: str
    given: int
    what: str


def fits(needs: Sequence[Need], device: Any) -> bool:
    """Whether there is memory for all of it at one time."""
    return sum(need.size for need in needs) <= free(device)


def check_memory(needs: Sequence[Need], device: Any) -> None:
    """Refuse a run that cannot fit.

    Args:
      needs: the least that it holds at one time.
      device: where.

    Raises:
      BadInput: naming the largest part, with what all of it takes and what there is.
    """
    if fits(needs, device):
        return
    total, there, most = sum(need.size for need in needs), free(device), max(needs)
    allowed = (
        f"what fits into the {gigabytes(there)} of memory that are free; this takes at least "
        f"{gigabytes(total)}, of which {gigabytes(most.size)} are for {most.what}"
    )
    raise BadInput(most.key, most.given, allowed, f"a smaller {most.key}")


def free(device: Any) -> int:
    """Bytes of memory that are free, on an accelerator those of one device."""
    if device.platform == "cpu":
        return _free_on_host()
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", 2**63) - stats.get("bytes_in_use", 0)


def _free_on_host() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:  # not on Linux
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gigabytes(size: int) -> str:
    """A number of bytes as one reads it."""
    return f"{size / 1e9:.3g} GB" if size < 1e12 else f"{size / 1e9:,.0f} GB"
