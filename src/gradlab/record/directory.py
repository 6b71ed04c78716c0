"""The run directory: ``run.json`` and the recorded arrays, readable at every instant."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from zarr.codecs import ZstdCodec

from gradlab.errors import BadInput
from gradlab.record.base import Description, Outcome, Row, Variable

FORMAT = 1
"""Version of the run directory's format, kept in ``run.json`` under ``format``."""
INFO = "run.json"
ARRAYS = "arrays.zarr"

PACKAGES = (
    "gradlab",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "xarray",
    "zarr",
    "hydra-core",
    "wandb",
)
CHUNK_BYTES = 2**21
"""Size of one chunk of a curve before compression; a flush rewrites at most one per variable."""
CHUNK_ROWS = 8192
"""Most rows in a chunk: the scalars' chunks are this long."""

_COORDS = {
    "step": ("steps", "training step"),
    "t": ("timesteps", "timestep, from the start of the sequence"),
    "lag": ("timesteps", "lag, timesteps back from the end of the sequence"),
    "layer": ("1", "layer"),
    "quantile": ("1", "quantile over examples"),
}


class RunDirectory:
    """A sink that keeps a run in a folder of its own.

    ``run.json`` says what the run is and how it ended; ``arrays.zarr`` (zarr v3) holds every
    recorded variable along ``step``, NaN where it was not measured: scalars in float64, arrays in
    float32. ``gradlab.open_run`` reads both; plain ``xarray.open_zarr`` reads the arrays, where a
    variable named ``train/loss`` is called ``train_loss``.

    Rows are flushed at the first :meth:`log` that comes ``flush_seconds`` or more after the last
    flush. Killed at any instant, the folder reads as it stood after a flush: a reader may watch it
    while the run is going.

    Args:
      path: the folder; made if missing.
      flush_seconds: least time between two flushes, in seconds.
    """

    def __init__(self, path: str | os.PathLike[str], flush_seconds: float = 2.0):
        self.path = Path(path)
        self.flush_seconds = flush_seconds

    def open(self, description: Description) -> None:
        """Write ``run.json`` with status ``running`` and the arrays with no rows.

        Raises:
          BadInput: if the folder already holds a run.
        """
        if (self.path / INFO).exists():
            hint = "another folder, or move the earlier run away"
            raise BadInput("run", str(self.path), "a folder that holds no run yet", hint)
        self.path.mkdir(parents=True, exist_ok=True)
        self._arrays = _Arrays(self.path / ARRAYS, description)
        self._flushed = -math.inf
        self._info = _first_info(description)
        self._write_info()

    def log(self, row: Row) -> None:
        """Keep ``row``; write it and those before it if the last flush is old enough.

        Raises:
          ValueError: if ``row`` holds a variable that was not described, or one of another shape.
        """
        self._arrays.append(row)
        if time.monotonic() - self._flushed >= self.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write every row that was logged so far."""
        self._arrays.commit()
        self._flushed = time.monotonic()

    def close(self, outcome: Outcome) -> None:
        """Write the remaining rows, then the outcome into ``run.json``."""
        self.flush()
        timings = dict(outcome.timings)
        self._info |= {
            "status": outcome.status,
            "reason": outcome.reason,
            "ended": _now(),
            "steps_per_second": timings.pop("steps_per_second", None),
            "probe_overhead": timings.pop("probe_overhead", None),
            "timings": timings,
            "summary": outcome.summary,
            "verdict": outcome.verdict,
        }
        self._write_info()

    def _write_info(self) -> None:
        text = json.dumps(plain(self._info), indent=2, allow_nan=False, ensure_ascii=False)
        _replace(self.path / INFO, text.encode())


class _Arrays:
    """Arrays that grow together along ``step``, as one zarr group.

    The group's own ``zarr.json`` repeats the metadata of all its arrays, their lengths included
    (zarr calls this consolidated). A reader goes by that one file, so replacing it makes new rows
    visible in all arrays at once, after the chunks that hold them are in place. Rows that a
    kill leaves behind in the chunks, beyond that length, are never looked at.
    """

    def __init__(self, folder: Path, description: Description):
        self.folder, self.rows = folder, 0
        coords = _with_lag(description)
        self.attributes = {"coordinates": "lag"} if "lag" in coords else {}
        zarr.create_group(folder, overwrite=True, attributes=self.attributes)
        for name, values in coords.items():
            _write_coordinate(folder, name, values)
        sizes = {name: len(values) for name, values in coords.items()}
        self.step = _Growing(folder, "step", Variable((), *_COORDS["step"]), sizes, "int64")
        self.columns: dict[str, _Growing] = {}
        for name, variable in description.variables.items():
            dtype = "float32" if variable.dims else "float64"
            self.columns[name] = _Growing(folder, name, variable, sizes, dtype)
        self.coordinates = {name: _metadata(folder / name) for name in coords}
        self.commit()

    def append(self, row: Row) -> None:
        """Put ``row`` into memory; chunks that it fills are written."""
        values = {**row.scalars, **row.arrays}
        if unknown := values.keys() - self.columns.keys():
            raise ValueError(f"step {row.step} holds variables not described: {sorted(unknown)}")
        self.step.put(self.rows, row.step)
        for name, column in self.columns.items():
            column.put(self.rows, values.get(name))
        self.rows += 1

    def commit(self) -> None:
        """Make every appended row visible: chunks first, lengths last."""
        growing = [self.step, *self.columns.values()]
        for column in growing:
            column.write()
        metadata = dict(self.coordinates)
        for column in growing:
            metadata[column.name] = column.resize(self.rows)
        group = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": self.attributes,
            "consolidated_metadata": {
                "kind": "inline",
                "must_understand": False,
                "metadata": metadata,
            },
        }
        _replace(self.folder / "zarr.json", json.dumps(group).encode())


class _Growing:
    """One array of the group; the chunk that is being filled stays in memory.

    A chunk file holds the whole chunk, little-endian and compressed, with the fill value where
    nothing was recorded.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        variable: Variable,
        sizes: Mapping[str, int],
        dtype: str,
    ):
        self.name = stored_name(name)
        self.folder = folder / self.name
        shape = tuple(sizes[dim] for dim in variable.dims)
        row_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        self.length = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, row_bytes)))
        self.fill = 0 if dtype == "int64" else math.nan
        self.block = np.full((self.length, *shape), self.fill, np.dtype(dtype).newbyteorder("<"))
        self.chunk, self.changed = 0, False
        named = {"name": name} if name != self.name else {}
        zarr.create_array(
            self.folder,
            shape=(0, *shape),
            chunks=(self.length, *(max(1, n) for n in shape)),
            dtype=dtype,
            fill_value=self.fill,
            compressors=ZstdCodec(level=0),
            dimension_names=("step", *variable.dims),
            attributes={
                "units": variable.units,
                "long_name": variable.long_name,
                **named,
                **variable.attrs,
            },
        )
        self.metadata = _metadata(self.folder)

    def put(self, row: int, value: Any) -> None:
        """Set ``row``; None leaves the fill value."""
        chunk, slot = divmod(row, self.length)
        if chunk > self.chunk:
            self.write()
            self.block.fill(self.fill)
            self.chunk = chunk
        if value is None:
            return
        if np.shape(value) != self.block.shape[1:]:
            shape = self.block.shape[1:]
            raise ValueError(f"{self.name}: got shape {np.shape(value)}, described as {shape}")
        with np.errstate(over="ignore"):
            self.block[slot] = value
        self.changed = True

    def write(self) -> None:
        """Replace the file of the chunk that is being filled, if it changed."""
        if not self.changed:
            return
        key = "/".join(["c", str(self.chunk), *["0"] * (self.block.ndim - 1)])
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, Zstd(level=0).encode(self.block))
        self.changed = False

    def resize(self, rows: int) -> dict[str, Any]:
        """Set the length in the array's own metadata, and return that metadata."""
        self.metadata["shape"][0] = rows
        _replace(self.folder / "zarr.json", json.dumps(self.metadata).encode())
        return self.metadata


def stored_name(name: str) -> str:
    """The name under which a variable is kept: ``/`` would nest it in zarr."""
    return name.replace("/", "_")


def plain(value: Any) -> Any:
    """``value`` in strict JSON's types: NaN and infinities become None, paths and others text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _first_info(description: Description) -> dict[str, Any]:
    facts = dict(description.facts)
    return {
        "format": FORMAT,
        "name": description.name,
        "status": "running",
        "reason": "",
        "started": _now(),
        "ended": None,
        "steps_per_second": None,
        "probe_overhead": None,
        "timings": {},
        "summary": {},
        "verdict": [],
        "devices": facts.pop("devices", []),
        "facts": facts,
        "baseline": description.baseline,
        "versions": _versions(),
        "git": _git(Path(__file__).parent),
        "config": description.config,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds this file, None if git does not know this file."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _with_lag(description: Description) -> dict[str, list[Any]]:
    coords = {name: list(values) for name, values in description.coords.items()}
    if "t" in coords:
        T = description.facts.get("T") or max(coords["t"], default=-1) + 1
        coords["lag"] = [T - 1 - t for t in coords["t"]]
    return coords


def _write_coordinate(folder: Path, name: str, values: list[Any]) -> None:
    array = np.asarray(values)
    if array.dtype.kind not in "if":
        array = np.asarray([str(value) for value in values], dtype=object)
    units, long_name = _COORDS.get(name, ("1", name))
    stored = zarr.create_array(
        folder / name,
        shape=array.shape,
        chunks=(max(1, len(array)),),
        dtype=str if array.dtype == object else array.dtype,
        dimension_names=("t" if name == "lag" else name,),
        attributes={"units": units, "long_name": long_name},
    )
    stored[:] = array


def _metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "zarr.json").read_text(encoding="utf-8"))


def _replace(path: Path, content: bytes) -> None:
    """Write ``path`` so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
