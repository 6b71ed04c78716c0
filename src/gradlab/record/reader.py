"""Reading a run directory. It is data: nothing in it is executed or unpickled."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import xarray

from gradlab.errors import BadInput
from gradlab.record.base import Status
from gradlab.record.directory import ARRAYS, FORMAT, INFO

_CODECS = {"bytes", "zstd", "vlen-utf8"}
_TYPES = {"float32", "float64", "int64", "string"}


@dataclass(frozen=True)
class Run:
    """A run as it stood when it was opened; a run still going is reread by opening it again.

    Attributes:
      path: the run directory.
      info: all of ``run.json``.
    """

    path: Path
    info: dict[str, Any]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, status={self.status!r})"

    @property
    def config(self) -> dict[str, Any]:
        """The composed configuration, as nested plain dicts."""
        return self.info["config"]

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``diverged``, ``interrupted`` or ``crashed``.

        A run that was killed outright had no time to say so and reads ``running``.
        """
        return self.info["status"]

    @property
    def summary(self) -> dict[str, Any]:
        """Final figures by name, flat (``val/loss``); NaN for one that was not finite.

        Also ``status``, ``steps_per_second`` and ``probe_overhead``; empty figures while running.
        """
        figures = {
            key: math.nan if value is None else value for key, value in self.info["summary"].items()
        }
        head = ("status", "steps_per_second", "probe_overhead")
        return {**{key: self.info.get(key) for key in head}, **figures}

    @property
    def scalars(self) -> xarray.Dataset:
        """Variables over ``step`` alone; NaN where one was not measured. Read from disk on use."""
        return self._select(lambda dims: dims == ("step",))

    @property
    def curves(self) -> xarray.Dataset:
        """Variables over ``step`` and further dimensions (``layer``, ``t``, ...).

        Coordinates: ``step``, ``t`` and ``lag`` = T-1-t (both timesteps), ``layer``, ``quantile``,
        ``parameter``, ... Every variable has the attributes ``units`` and ``long_name``. Values
        are read from disk on use. ``-inf`` in a ``_log10`` variable is an exact zero; NaN is
        "not measured at this step".
        """
        return self._select(lambda dims: dims != ("step",))

    def _select(self, wanted: Any) -> xarray.Dataset:
        names = [name for name in self._arrays.data_vars if wanted(self._arrays[name].dims)]
        dataset = self._arrays[names]
        dims = {"step", *dataset.dims}
        unused = [name for name, coord in dataset.coords.items() if not set(coord.dims) <= dims]
        return dataset.drop_vars(unused)

    @cached_property
    def _arrays(self) -> xarray.Dataset:
        folder = self.path / ARRAYS
        _check_arrays(self.path, folder)
        dataset = xarray.open_zarr(folder, consolidated=True, zarr_format=3, chunks=None)
        renamed = {name: v.attrs.pop("name") for name, v in dataset.items() if "name" in v.attrs}
        return dataset.rename(renamed)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open the run kept in the folder ``path``, whether it has ended or is still going.

    Raises:
      BadInput: if ``path`` is missing, is not a run directory, cannot be read, or was written in
        a format newer than this version knows.
    """
    path = Path(path)
    info = _read_info(path)
    version = info.get("format")
    if not isinstance(version, int) or version < 1:
        raise BadInput("run", str(path), f"a folder whose {INFO} has a format number")
    if version > FORMAT:
        allowed = f"a run of format {FORMAT} or older; this one is of format {version}"
        raise BadInput("run", str(path), allowed, "a newer gradlab")
    shape = {"config": dict, "summary": dict, "status": str}
    wrong = [key for key, kind in shape.items() if not isinstance(info.get(key), kind)]
    if wrong or info["status"] not in get_args(Status):
        allowed = f"a folder whose {INFO} is complete; at fault: {', '.join(wrong or ['status'])}"
        raise BadInput("run", str(path), allowed)
    return Run(path, info)


def _read_info(path: Path) -> dict[str, Any]:
    hint = "the folder under outputs/ or multirun/ that a run printed at its end"
    try:
        info = json.loads((path / INFO).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        allowed = f"a run directory (a folder with {INFO} in it)"
        raise BadInput("run", str(path), allowed, hint) from None
    except (OSError, ValueError) as error:
        raise BadInput("run", str(path), f"a run with a readable {INFO} ({error})") from None
    if not isinstance(info, dict):
        raise BadInput("run", str(path), f"a folder whose {INFO} holds a JSON object")
    return info


def _check_arrays(run: Path, folder: Path) -> None:
    """Refuse arrays that a run directory never holds, such as zarr's pickled objects."""
    try:
        group = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        arrays = group["consolidated_metadata"]["metadata"].values()
        codecs = {codec["name"] for array in arrays for codec in array["codecs"]}
        types = {str(array["data_type"]) for array in arrays}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        allowed = f"a run with a readable {ARRAYS} ({type(error).__name__}: {error})"
        raise BadInput("run", str(run), allowed) from None
    if foreign := sorted((codecs - _CODECS) | (types - _TYPES)):
        raise BadInput("run", str(run), f"{ARRAYS} as gradlab writes it; it holds {foreign}")
