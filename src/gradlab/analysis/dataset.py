"""What was measured, as one dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray

from gradlab.probes.base import Probe, Setting
from gradlab.probes.setting import coords_of


class Part(NamedTuple):
    """What is measured together.

    Attributes:
      layers: positions of the layers; None: all of them, and what is not of a layer.
      alike: positions of the layers that the setting is of.
      setting: what is known of these.
      probes: by name.
    """

    layers: tuple[int, ...] | None
    alike: tuple[int, ...]
    setting: Setting
    probes: Mapping[str, Probe]


def dataset_of(
    layers: Sequence[str],
    params: Sequence[str],
    parts: Sequence[Part],
    measured: Sequence[Mapping[str, np.ndarray]],
    attrs: Mapping[str, Any],
) -> xarray.Dataset:
    """The dataset of all parts; what one has not is nan.

    Args:
      layers: their names.
      params: the names of the parameters.
      parts: what was measured together.
      measured: of each part, by the name of the variable.
      attrs: of the dataset.
    """
    if len(parts) == 1:
        return _one(layers, params, parts[0], measured[0]).assign_attrs(attrs)
    found = [
        _one([layers[n] for n in part.layers] if part.layers else layers, params, part, values)
        for part, values in zip(parts, measured, strict=True)
    ]
    of_layers = [one for one in found if "layer" in one.dims]
    joined = xarray.concat(
        [one.drop_vars("lag", errors="ignore") for one in of_layers],
        "layer",
        data_vars="all",
        coords="minimal",
        compat="override",
        join="outer",
        combine_attrs="drop_conflicts",
    )
    rest = [one.drop_vars("lag", errors="ignore") for one in found if "layer" not in one.dims]
    order = [name for name in layers if name in joined["layer"]]
    whole = xarray.merge(
        [joined.sel(layer=order), *rest], join="outer", combine_attrs="drop_conflicts"
    )
    lags = _lags(parts, layers, whole.sizes.get("t", 0))
    return whole.assign_coords(lags if "t" in whole.dims else {}).assign_attrs(attrs)


def _lags(parts: Sequence[Part], layers: Sequence[str], steps: int) -> dict[str, Any]:
    """The lag of each t; by layer where layers read sequences of different lengths."""
    lengths = {n: part.setting.length for part in parts for n in part.layers or ()}
    t = np.arange(steps)
    if set(lengths.values()) <= {steps}:
        return {"lag": ("t", t[::-1], LAG)}
    lags = np.array([lengths[n] - 1.0 - t for n in range(len(layers))])
    return {"lag": (("layer", "t"), np.where(lags < 0, np.nan, lags), LAG)}


def _one(
    layers: Sequence[str], params: Sequence[str], part: Part, measured: Mapping[str, np.ndarray]
) -> xarray.Dataset:
    setting, probes = part.setting, part.probes
    t = np.arange(setting.length)
    coords: dict[str, Any] = {
        **coords_of(probes, setting),
        "layer": list(layers),
        "t": ("t", t, {"units": "timesteps", "long_name": "timestep"}),
        "lag": ("t", t[::-1], LAG),
        "back": (
            "back",
            t,
            {"units": "timesteps", "long_name": "timesteps back from each example's own end"},
        ),
        "parameter": list(params),
    }
    variables = {}
    for probe in probes.values():
        for name, variable in probe.variables(setting).items():
            about = {"units": variable.units, "long_name": variable.long_name, **variable.attrs}
            variables[name] = (variable.dims, np.asarray(measured[name]), about)
    used = {dim for dims, _, _ in variables.values() for dim in dims}
    used |= {"lag"} if "t" in used else set()
    kept = {name: values for name, values in coords.items() if name in used}
    return xarray.Dataset(variables, kept)


LAG = {"units": "timesteps", "long_name": "timesteps back from the end of the sequence"}
