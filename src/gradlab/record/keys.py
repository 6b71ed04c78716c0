"""Names for single values: a row of arrays as ``{"adj_h/layer_0/lag_00001": -0.3, ...}``.

For the sinks that show plots of scalars. What fits no such plot stays in the run directory.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradlab.record.base import Description, Row, Variable
from gradlab.record.lags import values_by_lag

MOST_KEYS = 64
"""A variable with more values than this stays in the run directory."""
FIRST = 3
"""How many of a spectrum's values, the largest, get a key."""
_DESCENDING = {"index", "singular"}
_IN_THE_RUN_DIRECTORY = {"t", "back", "unit", "log10_gate", "eigenvalue", "delay", "point"}


class Keys:
    """Turns the rows of one run into flat dicts of finite numbers.

    Scalars keep their names, arrays without a dimension too. A variable over ``layer`` and ``t``
    gets a key for each layer and each lag that is a power of two, with its value by lag where it is
    recorded so, too; every other small one gets a key for each of its values.

    Args:
      description: of the run whose rows are to come.
    """

    def __init__(self, description: Description):
        self._curves = curves_of(description.variables)
        self._plans = {
            name: _plan(name, variable, description.coords)
            for name, variable in description.variables.items()
        }

    def __call__(self, row: Row) -> dict[str, float]:
        """The row's values by key; those that are not finite are left out."""
        values: dict[str, float] = dict(row.scalars)
        for name, array in row.arrays.items():
            keys, positions = self._plans[name]
            if not keys:
                continue
            if name in self._curves:
                array = values_by_lag(row.arrays, name)
            values.update(zip(keys, np.take(array, positions).tolist(), strict=True))
        return {key: float(value) for key, value in values.items() if math.isfinite(value)}


def flat(nest: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values in a nest of dicts by dotted key; lists and empty dicts are values."""
    found: dict[str, Any] = {}
    for key, value in nest.items():
        name = f"{above}{key}"
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{name}.") if inner else {name: value}
    return found


def stem(name: str) -> str:
    """The variable's name as the first part of its keys: ``adj_h_log10`` is ``adj_h``."""
    return name.removesuffix("_log10")


def curves_of(variables: Mapping[str, Variable]) -> dict[str, Variable]:
    """The variables of each layer over ``t``, which are shown over the lag."""
    return {name: one for name, one in variables.items() if one.dims == ("layer", "t")}


def key_for_wandb(key: str) -> str:
    """W&B nests at ``.``, keeps keys that begin with ``_`` to itself, and globs at ``*``."""
    return re.sub(r"[^\w/ -]", "_", key).lstrip("_").strip("/ ") or "unnamed"


def labels(dim: str, values: Sequence[Any]) -> list[str]:
    """The values of ``dim`` as parts of a key. W&B nests at ``.``, so there is none in them."""
    prefix = "" if dim in ("parameter", "gate") else f"{dim}_"
    return [prefix + str(value).replace(".", "_").replace(" ", "_") for value in values]


def powers(length: int) -> list[int]:
    """Lags that are powers of two, of ``length`` lags from 0 on."""
    return [2**k for k in range(20) if 2**k < length]


def spread(length: int, most: int) -> list[int]:
    """At most ``most`` positions in ``range(length)``, evenly spread, both ends included."""
    return sorted({round(x) for x in np.linspace(0, length - 1, min(length, most))})


def _plan(
    name: str, variable: Variable, coords: Mapping[str, Sequence[Any]]
) -> tuple[list[str], np.ndarray]:
    """The keys of a variable, and the position of each one's value in the flattened array."""
    dims = variable.dims
    none: tuple[list[str], np.ndarray] = [], np.arange(0)
    shape = [len(coords[dim]) for dim in dims]
    positions = np.arange(math.prod(shape)).reshape(shape)
    if dims == ("layer", "t"):
        lags = powers(len(coords["t"]))
        parts = [labels("layer", coords["layer"]), [f"lag_{lag:05d}" for lag in lags]]
        positions = positions[:, lags]
    elif _IN_THE_RUN_DIRECTORY & set(dims):
        return none
    else:
        first = [slice(FIRST if dim in _DESCENDING else None) for dim in dims]
        parts = [labels(dim, coords[dim])[one] for dim, one in zip(dims, first, strict=True)]
        positions = positions[tuple(first)]
        if positions.size > MOST_KEYS:
            return none
    keys = ["/".join([stem(name), *words]) for words in itertools.product(*parts)]
    return keys, positions.ravel()
