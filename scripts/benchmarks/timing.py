"""Functions of one process, timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import jax


def medians(functions: Mapping[str, Callable], repeats: int) -> dict[str, float]:
    """Median milliseconds of each function, in turns, compilation left out."""
    times = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            if repeat:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(each) for name, each in times.items()}
