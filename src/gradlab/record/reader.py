"""Reading a run directory. It is data: nothing in it is executed or unpickled."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xarray

from gradlab.errors import BadInput
from gradlab.record.arrays import consolidated
from gradlab.record.base import Row, Status
from gradlab.record.directory import ARRAYS, FORMAT, INFO
from gradlab.record.lock import is_written
from gradlab.record.shard import broken_chunks, is_whole

BLOCK = 256
"""Rows that :func:`recorded_rows` reads at once."""
COORDINATE = 2**26
"""Most bytes of the values of a coordinate."""
_CODECS = {"bytes", "zstd", "vlen-utf8", "sharding_indexed"}
_NO_STEPS = f"{ARRAYS}/step/c/0 is damaged: rows from 0 on"
"""Damage by which no row can be placed."""
_TYPES = {"float32", "float64", "int64", "string"}


@dataclass(frozen=True)
class Run:
    """A run as it stood when it was opened; a run still going is reread by opening it again.

    Attributes:
      path: the run directory.
      info: all of ``run.json``.
      status: ``finished``, ``diverged``, ``interrupted`` or ``crashed``, as the run recorded it;
        ``running`` while its process lives (or where that cannot be known, as on another machine
        without a shared lock); ``killed`` if the process is gone and had no time to say so;
        ``truncated`` if a part of the files is missing, as after a copy that was cut short.
      damage: which files are cut and what is lost by that; empty unless truncated. What is whole
        can be read.
    """

    path: Path
    info: dict[str, Any]
    status: str
    damage: tuple[str, ...] = ()
    whole_rows: int | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, status={self.status!r})"

    @property
    def config(self) -> dict[str, Any]:
        """The composed configuration, as nested plain dicts."""
        return self.info["config"]

    @property
    def summary(self) -> dict[str, Any]:
        """Final figures by name, flat (``val/loss``); NaN for one that was not finite.

        Also ``status``, ``steps_per_second`` and ``probe_overhead``; empty figures while running.
        """
        figures = {
            key: math.nan if value is None else value for key, value in self.info["summary"].items()
        }
        head = {key: self.info.get(key) for key in ("steps_per_second", "probe_overhead")}
        return {"status": self.status, **head, **figures}

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
        readable = f"a run with a readable {ARRAYS}"
        if lost := [part for part in self.damage if part.startswith(_NO_STEPS)]:
            raise BadInput("run", str(self.path), f"{readable} ({lost[0]})")
        try:
            # Without indexes at first: they would read all of ``step``, also what is cut.
            dataset = xarray.open_zarr(
                folder, consolidated=True, zarr_format=3, chunks=None, create_default_indexes=False
            ).isel(step=slice(self.whole_rows))
            for name in dataset.dims:
                dataset = dataset.set_xindex(str(name))
            dataset = _with_lag(dataset)
        except Exception as error:  # noqa: BLE001  (whatever a damaged file leads to)
            allowed = f"{readable} ({type(error).__name__}: {error})"
            raise BadInput("run", str(self.path), allowed) from None
        renamed = {name: v.attrs.pop("name") for name, v in dataset.items() if "name" in v.attrs}
        return dataset.rename(renamed)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open the run kept in the folder ``path``, whether it has ended, is going or was killed.

    Raises:
      BadInput: if ``path`` is missing, is not a run directory, cannot be read, or was written in
        a format newer than this version knows.
    """
    run = glance(path)
    damage, whole = [], None
    if run.info["format"] > 1:
        try:
            damage, whole = _damage(run.path / ARRAYS)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            damage = [f"{ARRAYS} cannot be read ({type(error).__name__})"]
    return Run(run.path, run.info, "truncated" if damage else run.status, tuple(damage), whole)


def glance(path: str | os.PathLike[str]) -> Run:
    """The run in the folder ``path`` by its ``run.json`` and its lock alone.

    For many runs at once: like :func:`open_run`, but the files of the arrays are not looked at, so
    that a run that was cut short reads as what it says it is.

    Raises:
      BadInput: as :func:`open_run`.
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
    status = info["status"]
    if status == "running" and is_written(path) is False:
        status = "killed"
    return Run(path, info, status)


def recorded_rows(run: Run) -> Iterator[Row]:
    """The rows of a run as they were logged, without what was not finite because not measured."""
    scalars, curves = run.scalars, run.curves
    for start in range(0, scalars.sizes["step"], BLOCK):
        block = slice(start, start + BLOCK)
        few = {str(name): array.values for name, array in scalars.isel(step=block).items()}
        shown = curves.isel(step=block, missing_dims="ignore")  # without probes there are none
        many = {str(name): array.values for name, array in shown.items()}
        for index, step in enumerate(scalars["step"].values[block]):
            yield Row(
                int(step),
                {name: float(v[index]) for name, v in few.items() if not np.isnan(v[index])},
                {name: v[index] for name, v in many.items() if not np.isnan(v[index]).all()},
            )


def _damage(folder: Path) -> tuple[list[str], int | None]:
    """Which files of the arrays are damaged, and how many rows are whole (None: all)."""
    metadata = consolidated(folder)
    rows = whole = metadata["step"]["shape"][0]
    damage = []
    for name, array in metadata.items():
        if array["codecs"][0]["name"] != "sharding_indexed":
            if array["shape"] != [0] and (lost := _lost(folder / name / "c" / "0")):
                damage.append(f"{folder.name}/{name}/c/0 {lost}")
            continue
        for file, row in _broken(folder / name, array, rows):
            whole = min(whole, row)
            shown = file.relative_to(folder.parent)
            damage.append(f"{shown} is damaged: rows from {row} on, of {rows}, are lost")
    return damage, None if whole == rows else whole


def _lost(file: Path) -> str:
    """What has become of a coordinate's only chunk; empty if it is whole."""
    if not file.exists():
        return "is missing"
    return "" if is_whole(file.read_bytes(), 0, COORDINATE) else "is damaged"


def _broken(folder: Path, array: Mapping[str, Any], rows: int) -> Iterator[tuple[Path, int]]:
    """Files of a growing array with a chunk that does not decode, and the first row lost by that.

    A file that is missing altogether is none of them, except for ``step``: it may be of a variable
    that was never measured.
    """
    long = array["chunk_grid"]["configuration"]["chunk_shape"][0]
    short, *inner = array["codecs"][0]["configuration"]["chunk_shape"]
    size = short * math.prod(array["shape"][1:]) * np.dtype(array["data_type"]).itemsize
    for shard in range(math.ceil(rows / long) if size else 0):
        file = folder.joinpath("c", str(shard), *["0"] * len(inner))
        needed = math.ceil(min(rows - shard * long, long) / short)
        broken = broken_chunks(file, long // short, needed, size)
        if folder.name == "step" and not file.exists():
            broken = [0]
        if broken:
            yield file, shard * long + broken[0] * short


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


def _with_lag(dataset: xarray.Dataset) -> xarray.Dataset:
    """The dataset with a readable ``lag``: where its file is damaged it is ``t`` from its end."""
    if "lag" not in dataset.coords:
        return dataset
    try:
        return dataset.assign_coords(lag=dataset["lag"].load())
    except Exception:  # noqa: BLE001  (whatever a damaged file leads to)
        lag = dataset["lag"].copy(data=dataset["t"].values[::-1])
        return dataset.assign_coords(lag=lag)


def _check_arrays(run: Path, folder: Path) -> None:
    """Refuse arrays that a run directory never holds, such as zarr's pickled objects."""
    try:
        group = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        arrays = group["consolidated_metadata"]["metadata"].values()
        codecs = {name for array in arrays for name in _codecs(array["codecs"])}
        types = {str(array["data_type"]) for array in arrays}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        allowed = f"a run with a readable {ARRAYS} ({type(error).__name__}: {error})"
        raise BadInput("run", str(run), allowed) from None
    if foreign := sorted((codecs - _CODECS) | (types - _TYPES)):
        raise BadInput("run", str(run), f"{ARRAYS} as gradlab writes it; it holds {foreign}")


def _codecs(codecs: list[Mapping[str, Any]]) -> Iterator[str]:
    """Names of codecs, and of those inside a shard."""
    for codec in codecs:
        yield codec["name"]
        settings = codec.get("configuration", {})
        yield from _codecs([*settings.get("codecs", []), *settings.get("index_codecs", [])])
