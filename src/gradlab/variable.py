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


def over_lag_name(name: str) -> str:
    """What a variable over ``t`` is called over the lag: ``adj_h_over_lag_log10_q``."""
    stem, log10, rest = name.partition("_log10")
    return f"{stem}_over_lag{log10}{rest}"


def over_lag(variables: Mapping[str, Variable]) -> dict[str, Variable]:
    """The same variables over ``back``, which counts from each example's own last real step."""
    return {
        over_lag_name(name): one._replace(
            dims=tuple("back" if dim == "t" else dim for dim in one.dims),
            long_name=f"{one.long_name}, by lag",
        )
        for name, one in variables.items()
    }
