"""What the configuration of a run that an earlier version recorded does not say."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

ADDED: dict[str, Any] = {
    "model.initial_state": "zero",
    "probe.measure.forget_product.quantiles": [0.05, 0.25, 0.5, 0.75, 0.95],
    "trainer.backward": "full",
    "trainer.products": "float32",
    "trainer.segments": "auto",
}
"""Settings that runs of an earlier version had no choice of, and what they were then."""


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration with what it lacks of :data:`ADDED`, where that has a place."""
    found = copy.deepcopy(dict(config))
    for key, value in ADDED.items():
        *path, name = key.split(".")
        section: Any = found
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.setdefault(name, value)
    return found
