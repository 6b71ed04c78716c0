"""Of which runs the arrays are read where there are many: a spread over their settings."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gradlab.compare import MOST_ARRAYS
from gradlab.compare.groups import by_settings
from gradlab.compare.jobs import FINISHED
from gradlab.compare.progress import Progress
from gradlab.compare.recorded import Recorded, recorded
from gradlab.compare.runs import SEED, Entry, settings_that_differ


def recorded_of_some(
    runs: Sequence[Entry], most: int = MOST_ARRAYS, progress: Progress | None = None
) -> list[Recorded]:
    """All runs, with the arrays of at most ``most`` of them; the others are ``unread``."""
    return recorded(runs, chosen(runs, most), progress)


def chosen(runs: Sequence[Entry], most: int) -> set[int]:
    """Positions of the runs whose arrays are read: all, or ``most`` that are spread over settings.

    The same for the same runs. Every setting gives one run before any gives a second, and finished
    runs come first; where not every setting can give one more, a fixed random choice says which.
    """
    there = [index for index, run in enumerate(runs) if run.info]
    if len(there) <= most:
        return set(there)
    differ = settings_that_differ(runs)
    differ.pop(SEED, None)
    values = {key: [each[index] for index in there] for key, each in differ.items()}
    groups = [
        sorted(those, key=lambda index: runs[index].status != FINISHED)
        for _, those in by_settings(values, there)
    ]
    found: set[int] = set()
    for turn in range(max(map(len, groups))):
        of_turn = [those[turn] for those in groups if len(those) > turn]
        left = most - len(found)
        found.update(of_turn if len(of_turn) <= left else random.Random(0).sample(of_turn, left))
    return found
