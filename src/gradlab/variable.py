"""What a recorded variable is: shared by the probes that make one and the sinks that keep it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Variable(NamedTuple):
    """What a recorded variable is. ``dims`` leaves out the leading ``step``.

    Attributes:
      dims: names of its dimensions, e.g. ``("layer", "t")``; ``()`` for a scalar.
      units: e.g. ``"log10"``, ``"nats/step"``, ``"steps"``, ``"1"``.
      long_name: what it is, in words that fit an axis.
      attrs: further attributes, e.g. ``{"gate": "f"}``.
    """

    dims: tuple[str, ...]
    units: str
    long_name: str
    attrs: Mapping[str, str] = {}
