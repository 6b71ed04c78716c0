"""Reading a run directory. It is data: nothing in it is executed or unpickled."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from gradlab.errors import BadInput
from gradlab.record.base import Row
from gradlab.record.directory import ARRAYS, FORMAT, INFO, left_of
from gradlab.record.files import open_regular, read_json, read_regular
from gradlab.record.info import wrong_keys
from gradlab.record.lock import is_written
from gradlab.record.metadata import checked, row_bytes
from gradlab.record.shard import MISSING, broken_chunks, decoded, decoded_size, is_whole, read_index

BLOCK = 256
"""Rows that :func:`recorded_rows` reads at once."""
COORDINATE_BYTES = 2**26
"""Most bytes of the values of a coordinate."""
_LAG = f"{ARRAYS}/lag/"
_NO_STEPS = f"{ARRAYS}/step/c/0 is damaged: rows from 0 on"
"""Damage by which no row can be placed."""


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
      whole_rows: how many rows are before the damage; None: all.
      looked_at: whether the files of the arrays were looked at when it was opened.
    """

    path: Path
    info: dict[str, Any]
    status: str
    damage: tuple[str, ...] = ()
    whole_rows: int | None = None
    looked_at: bool = False

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
    def left(self) -> tuple[str, ...]:
        """What is still to be made of a run that has ended, of ``figures``, ``wandb`` and
        ``tensorboard``; resuming it makes them."""
        return left_of(self.info)

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
        readable = f"a run with a readable {ARRAYS}"
        try:
            if not self.looked_at:
                checked(folder)
        except (OSError, ValueError) as error:
            raise BadInput("run", str(self.path), f"{readable} ({error})") from None
        if lost := [part for part in self.damage if _is_needed(part)]:
            raise BadInput("run", str(self.path), f"{readable} ({lost[0]})")
        try:
            # Without indexes at first: they would read all of ``step``, also what is cut.
            dataset = xarray.open_zarr(
                folder,
                consolidated=True,
                zarr_format=3,
                chunks=None,
                create_default_indexes=False,
                decode_times=False,
            ).isel(step=slice(self.whole_rows))
            for name in dataset.dims:
                dataset = dataset.set_xindex(str(name))
            dataset = _with_lag(dataset, any(_LAG in part for part in self.damage))
            for name in {"step", "t"} & set(dataset.dims):
                if not _is_ascending(dataset[name].values):
                    raise ValueError(f"{name}: values that are not in their order")
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
    if looked := run.info["format"] > 1 or (run.path / ARRAYS).exists():
        look = _damage if run.info["format"] > 1 else _damage_of_format_1
        try:
            damage, whole = look(run.path / ARRAYS)
        except (OSError, ValueError) as error:
            damage = [f"{ARRAYS} cannot be read ({error})"]
    status = "truncated" if damage else run.status
    return Run(run.path, run.info, status, tuple(damage), whole, looked)


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
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BadInput("run", str(path), f"a folder whose {INFO} has a format number")
    if version > FORMAT:
        allowed = f"a run of format {FORMAT} or older; this one is of format {version}"
        raise BadInput("run", str(path), allowed, "a newer gradlab")
    if wrong := wrong_keys(info):
        allowed = f"a folder whose {INFO} is complete; at fault: {', '.join(wrong)}"
        raise BadInput("run", str(path), allowed)
    status = info["status"]
    if status == "running" and is_written(path) is False:
        status = "killed"
    return Run(path, info, status)


def check_whole(run: Run, key: str = "trainer.resume") -> None:
    """Refuse to resume a run of which a part is lost.

    Args:
      run: to be resumed.
      key: what asked for it.

    Raises:
      BadInput: with what is lost, and what can still be read.
    """
    for first in run.damage[:1]:
        more = f", and {len(run.damage) - 1} more" if len(run.damage) > 1 else ""
        try:
            rows = run.scalars.sizes["step"]
        except BadInput:
            rows = 0
        left = f"rows 0 to {rows - 1} of it can be read" if rows else "none of its rows can be read"
        hint = f"a new run; {left}, and its {INFO}"
        raise BadInput(key, str(run.path), f"a run that is whole; {first}{more}", hint)


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
    metadata = checked(folder)
    rows = whole = metadata["step"]["shape"][0]
    damage = []
    for name, array in metadata.items():
        if array["codecs"][0]["name"] != "sharding_indexed":
            if array["shape"] != [0] and (lost := _lost(folder / name / "c" / "0", array)):
                damage.append(f"{folder.name}/{name}/c/0 {lost}")
            continue
        for file, row in _broken(folder / name, array, rows):
            whole = min(whole, row)
            shown = file.relative_to(folder.parent)
            damage.append(f"{shown} is damaged: rows from {row} on, of {rows}, are lost")
    return damage, None if whole == rows else whole


def _damage_of_format_1(folder: Path) -> tuple[list[str], None]:
    """Files of chunks that say they hold more than a chunk."""
    damage = []
    for name, array in checked(folder).items():
        most = max(
            math.prod(array["chunk_grid"]["configuration"]["chunk_shape"]) * 8, COORDINATE_BYTES
        )
        for file in sorted(folder.joinpath(name, "c").rglob("*")):
            if file.is_file():
                with open_regular(file) as content:
                    size = decoded_size(content.read(18))
                if size is None or size > most:
                    damage.append(f"{file.relative_to(folder.parent)} is damaged")
    return damage, None


def _lost(file: Path, array: Mapping[str, Any]) -> str:
    """What has become of a coordinate's only chunk; empty if it is whole."""
    if not file.exists():
        return "is missing"
    content = read_regular(file, COORDINATE_BYTES)
    if not is_whole(content, 0, COORDINATE_BYTES):
        return "is damaged"
    values = decoded(content)
    if array["data_type"] == "string":  # their number comes first
        whole = int.from_bytes(values[:4], "little") == array["shape"][0]
    else:
        whole = len(values) == row_bytes(array) * array["shape"][0]
    return "" if whole else "is damaged"


def _broken(folder: Path, array: Mapping[str, Any], rows: int) -> Iterator[tuple[Path, int]]:
    """Files of a growing array with a chunk that does not decode, and the first row lost by that.

    A file that is missing altogether is none of them, except for ``step``: it may be of a variable
    that was never measured.
    """
    long = array["chunk_grid"]["configuration"]["chunk_shape"][0]
    short, *inner = array["codecs"][0]["configuration"]["chunk_shape"]
    size = short * row_bytes(array)
    for shard in range(math.ceil(rows / long) if size else 0):
        file = folder.joinpath("c", str(shard), *["0"] * len(inner))
        needed = math.ceil(min(rows - shard * long, long) / short)
        broken = broken_chunks(file, long // short, needed, size)
        if folder.name == "step":
            broken = sorted({*broken, *_missing(file, long // short, needed)})
        if broken:
            yield file, shard * long + broken[0] * short


def _missing(file: Path, chunks: int, needed: int) -> list[int]:
    """Which of the first ``needed`` chunks are not in a file: each row has a step."""
    if not file.exists():
        return [0]
    return np.flatnonzero(read_index(file, chunks)[:needed, 0] == MISSING).tolist()


def _read_info(path: Path) -> dict[str, Any]:
    hint = "the folder under outputs/ or multirun/ that a run printed at its end"
    try:
        info = read_json(path / INFO)
    except (FileNotFoundError, NotADirectoryError):
        allowed = f"a run directory (a folder with {INFO} in it)"
        raise BadInput("run", str(path), allowed, hint) from None
    except (OSError, ValueError) as error:
        raise BadInput("run", str(path), f"a run with a readable {INFO} ({error})") from None
    if not isinstance(info, dict):
        raise BadInput("run", str(path), f"a folder whose {INFO} holds a JSON object")
    return info


def _with_lag(dataset: xarray.Dataset, damaged: bool) -> xarray.Dataset:
    """The dataset with a readable ``lag``: where its file is damaged it is ``t`` from its end."""
    if "lag" not in dataset.coords:
        return dataset
    if not damaged:
        return dataset.assign_coords(lag=dataset["lag"].load())
    lag = dataset["lag"].copy(data=dataset["t"].values[::-1])
    return dataset.assign_coords(lag=lag)


def _is_needed(damage: str) -> bool:
    """Whether without this part no row can be placed, or no value along a dimension."""
    return damage.startswith(_NO_STEPS) or (
        " is damaged: rows from " not in damage and _LAG not in damage
    )


def _is_ascending(steps: np.ndarray) -> bool:
    return not len(steps) or bool(steps[0] >= 0 and (np.diff(steps) > 0).all())
