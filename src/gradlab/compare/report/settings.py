"""Where W&B has the settings by which runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradlab.compare.runs import SEED, Entry, at, settings_that_differ

MODEL = "facts.model"
"""The model's name.

``model`` itself may hold an option's name: a parameter of a W&B sweep goes over it.
"""


def places(runs: Sequence[Entry]) -> tuple[list[str], list[str]]:
    """Places in W&B's configuration of the settings that differ, the seed left out.

    Returns:
      The places, and the settings that have none.
    """
    found, unplaced = {}, []
    for key in settings_that_differ(runs):
        if key == SEED:
            continue
        place = _place(key, runs)
        if place is None:
            unplaced.append(key)
        else:
            found[place] = key
    return list(found), unplaced


def _place(key: str, runs: Sequence[Entry]) -> str | None:
    """Where the configuration of W&B's runs has ``key``, if it is one value there, not a section.

    A group such as ``optimizer`` is told by what it brings: the name of its class.
    """
    ways = (f"facts.{key}", key, f"{key}._target_", f"{key}.rule._target_", f"{key}.preset")
    for place in ways:
        values = [at({**run.config, "facts": run.facts}, place) for run in runs]
        if any(isinstance(value, Mapping | list) for value in values):
            continue
        if len(set(values)) > 1:
            return place
    return None
