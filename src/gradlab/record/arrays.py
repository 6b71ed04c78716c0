"""The recorded arrays: they grow together along ``step`` in one zarr group, a file for each."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec

from gradlab.errors import BadInput
from gradlab.record.base import Description, Row, Variable
from gradlab.record.shard import Shard, replace

CHUNK_BYTES = 2**20
"""Size of one chunk of a curve before compression; a flush rewrites at most one per variable."""
CHUNK_ROWS = 8192
"""Most rows in a chunk: the scalars' chunks are this long."""
SHARD_ROWS = 2**17
"""Rows in one file, as far as ``SHARD_CHUNKS`` allows."""
SHARD_CHUNKS = 4096
"""Most chunks in one file: a reader reads their index, 16 bytes each, to find one."""
LEVEL = 1
"""Of the compression; curves hardly compress better at higher ones."""
QUICK_LEVEL = -1
"""While a chunk is being filled: a flush writes it anew, at a fifth of the time."""

_COORDS = {
    "step": ("steps", "training step"),
    "t": ("timesteps", "timestep, from the start of the sequence"),
    "lag": ("timesteps", "lag, timesteps back from the end of the sequence"),
    "back": ("timesteps", "lag, timesteps back from each example's own last real step"),
    "delay": ("timesteps", "delay between two states"),
    "layer": ("1", "layer"),
    "quantile": ("1", "quantile over examples, or units"),
}


class Arrays:
    """Arrays that grow together along ``step``, as one zarr group.

    The group's own ``zarr.json`` repeats the metadata of all its arrays, their lengths included
    (zarr calls this consolidated). A reader goes by that one file, so replacing it makes new rows
    visible in all arrays at once, after the chunks that hold them are in place. Rows that a
    kill leaves behind in the chunks, beyond that length, are never looked at.

    Args:
      folder: the group.
      description: says which arrays there are.
      resumed: add to the arrays in ``folder``; otherwise they are made anew. A variable that the
        version which began the run did not know is not measured in its rows.

    Raises:
      BadInput: if the arrays in ``folder`` are not those described.
    """

    def __init__(self, folder: Path, description: Description, *, resumed: bool = False):
        self.folder, self.rows = folder, 0
        self.last: tuple[int, int] | None = None  # step and number of the last row
        self.columns: dict[str, _Growing] = {}
        self.coordinates: dict[str, Any] = {}
        recorded: Mapping[str, Any] = {}
        if resumed:
            recorded = consolidated(folder)
            self.rows = recorded["step"]["shape"][0]
            _check_same(folder, recorded, description, with_lag(description))
        else:
            zarr.create_group(folder, overwrite=True)
        step = Variable((), *_COORDS["step"])
        self.step = _Growing(folder, "step", step, {}, "int64", self.rows, not resumed)
        self.extend(description, recorded)

    def extend(self, description: Description, recorded: Mapping[str, Any] = MappingProxyType({})):
        """Make room for what is described and not there yet; in earlier rows it was not measured.

        Args:
          description: with the variables and coordinates that there are, and others.
          recorded: metadata, by stored name, of those that are in the folder already.
        """
        coords = with_lag(description)
        self.attributes = {"coordinates": "lag"} if "lag" in coords else {}
        for name, values in coords.items():
            if name in self.coordinates:
                continue
            if name not in recorded:
                _write_coordinate(self.folder, name, values)
            self.coordinates[name] = _metadata(self.folder / name)
        sizes = {name: len(values) for name, values in coords.items()}
        for name, variable in description.variables.items():
            if name not in self.columns:
                dtype = "float32" if variable.dims else "float64"
                new = stored_name(name) not in recorded
                self.columns[name] = _Growing(
                    self.folder, name, variable, sizes, dtype, self.rows, new
                )
        self.commit()

    def append(self, row: Row) -> None:
        """Put ``row`` into memory; chunks that it fills are written.

        One of the same step as the row before adds to that one. So what was interrupted may be
        done again.

        Raises:
          ValueError: if ``row`` holds a variable that was not described, or one of another shape.
        """
        values = {**row.scalars, **row.arrays}
        if unknown := values.keys() - self.columns.keys():
            raise ValueError(f"step {row.step} holds variables not described: {sorted(unknown)}")
        with np.errstate(over="ignore"):
            if self.last == (row.step, self.rows):
                for name, value in values.items():
                    self.columns[name].put(self.rows - 1, value)
                return
            self.step.put(self.rows, row.step)
            for name, column in self.columns.items():
                column.put(self.rows, values.get(name))
        self.last = row.step, self.rows + 1
        self.rows += 1

    def commit(self, *, quick: bool = True) -> None:
        """Make every appended row visible: chunks first, lengths last.

        Args:
          quick: whether the chunks that are being filled will be written again.
        """
        growing = [self.step, *self.columns.values()]
        for column in growing:
            column.write(quick=quick)
        metadata = self.coordinates | {column.name: column.sized(self.rows) for column in growing}
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
        replace(self.folder / "zarr.json", json.dumps(group).encode())

    def close(self) -> None:
        """Commit, pack the files, and write every array's length into its own metadata, too."""
        self.commit(quick=False)
        for column in (self.step, *self.columns.values()):
            column.close(self.rows)


class _Growing:
    """One array of the group; the chunk that is being filled stays in memory.

    A chunk holds its rows little-endian and compressed, with the fill value where nothing was
    recorded.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        variable: Variable,
        sizes: Mapping[str, int],
        dtype: str,
        rows: int,
        new: bool,
    ):
        self.name = stored_name(name)
        self.folder = folder / self.name
        self.shape = tuple(sizes[dim] for dim in variable.dims)
        row_bytes = math.prod(self.shape) * np.dtype(dtype).itemsize
        self.length = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, row_bytes)))
        self.chunks = min(SHARD_CHUNKS, math.ceil(SHARD_ROWS / self.length))
        self.fill = 0 if dtype == "int64" else math.nan
        stored_as = np.dtype(dtype).newbyteorder("<")
        self.block = np.full((self.length, *self.shape), self.fill, stored_as)
        self.codec = Zstd(level=LEVEL, checksum=True)
        self.quick_codec = Zstd(level=QUICK_LEVEL, checksum=True)
        self.room = self.block.nbytes + self.block.nbytes // 128 + 1024
        if new or rows == 0:
            self._create(name, variable, dtype)
        self.metadata = _metadata(self.folder)
        self.shard: Shard | None = None
        self.shard_number = -1
        self.chunk, slot = divmod(rows, self.length)
        self.first = rows - slot  # row where the chunk begins
        self.stored = self.changed = self.is_quick = False
        if rows:
            self._resume(slot)

    def _create(self, name: str, variable: Variable, dtype: str) -> None:
        wide = tuple(max(1, n) for n in self.shape)
        zarr.create_array(
            self.folder,
            shape=(0, *self.shape),
            chunks=(self.length * self.chunks, *wide),
            dtype=dtype,
            fill_value=self.fill,
            # An index without a checksum: its entries are changed one by one. Each chunk has one.
            serializer=ShardingCodec(
                chunk_shape=(self.length, *wide),
                codecs=[BytesCodec(endian="little"), ZstdCodec(level=LEVEL, checksum=True)],
                index_codecs=[BytesCodec(endian="little")],
                index_location="start",
            ),
            compressors=None,
            dimension_names=("step", *variable.dims),
            overwrite=True,
            attributes={
                "units": variable.units,
                "long_name": variable.long_name,
                **({"name": name} if name != self.name else {}),
                **variable.attrs,
            },
        )

    def put(self, row: int, value: Any) -> None:
        """Set ``row``, of the chunk or the one after it; None leaves the fill value."""
        if row >= self.first + self.length:
            self._complete()
        if value is None:
            # A chunk is stored before any of its rows can be seen, also if nothing is measured.
            self.changed |= not self.stored
            return
        shape = getattr(value, "shape", None)
        if (np.shape(value) if shape is None else shape) != self.shape:
            given = np.shape(value)
            raise ValueError(f"{self.name}: got shape {given}, described as {self.shape}")
        self.block[row - self.first] = value
        self.changed = True

    def write(self, *, quick: bool) -> None:
        """Write the chunk that is being filled, if it changed or should be packed better."""
        if not (self.changed or (self.is_quick and not quick)):
            return
        number, place = divmod(self.chunk, self.chunks)
        codec = self.quick_codec if quick else self.codec
        self._file(number).write(place, codec.encode(self.block))
        self.stored, self.changed, self.is_quick = True, False, quick

    def sized(self, rows: int) -> dict[str, Any]:
        """The array's metadata with its length along ``step``."""
        self.metadata["shape"][0] = rows
        return self.metadata

    def close(self, rows: int) -> None:
        """Pack the file, and write the length into the array's own metadata."""
        if self.shard is not None:
            self.shard.pack()
        replace(self.folder / "zarr.json", json.dumps(self.sized(rows)).encode())

    def _path(self, shard: int) -> Path:
        return self.folder.joinpath("c", str(shard), *["0"] * (self.block.ndim - 1))

    def _file(self, number: int) -> Shard:
        """The file that is written to, made if missing."""
        if self.shard is None or number != self.shard_number:
            os.stat(self.folder / "zarr.json")  # a folder that was removed is not made again
            self.shard = Shard(self._path(number), self.chunks, self.room)
            self.shard_number = number
        return self.shard

    def _complete(self) -> None:
        """Write the chunk for the last time and begin an empty one."""
        self.write(quick=False)
        if self.shard is not None:
            self.shard.settle()
        self.block.fill(self.fill)
        self.chunk, self.first = self.chunk + 1, self.first + self.length
        self.stored = self.changed = self.is_quick = False

    def _resume(self, slot: int) -> None:
        """Take up the chunk that was being filled, up to ``slot``; what lies beyond is dropped."""
        number, place = divmod(self.chunk, self.chunks)
        later = number + 1
        while self._path(later).exists():
            self._path(later).unlink()
            later += 1
        shard = self._file(number)
        content = shard.read(place) if slot else None
        shard.forget_from(place + 1 if slot else place)
        if content:
            recorded = np.frombuffer(self.codec.decode(content), self.block.dtype)
            self.block[:slot] = recorded.reshape(self.block.shape)[:slot]
        elif slot:  # nothing was measured, and its rows can be seen
            shard.rewrite(place, self.codec.encode(self.block))
        self.stored = self.changed = bool(slot)


def consolidated(folder: Path) -> dict[str, Any]:
    """Metadata of every array in the group by stored name, as its ``zarr.json`` repeats it."""
    return _metadata(folder)["consolidated_metadata"]["metadata"]


def stored_name(name: str) -> str:
    """The name under which a variable is kept: ``/`` would nest it in zarr."""
    return name.replace("/", "_")


def with_lag(description: Description) -> dict[str, list[Any]]:
    """The coordinates, with ``lag`` = T-1-t beside ``t``."""
    coords = {name: list(values) for name, values in description.coords.items()}
    if "t" in coords:
        T = description.facts.get("T") or max(coords["t"], default=-1) + 1
        coords["lag"] = [T - 1 - t for t in coords["t"]]
    return coords


def _write_coordinate(folder: Path, name: str, values: list[Any]) -> None:
    array = _as_stored(values)
    units, long_name = _COORDS.get(name, ("1", name))
    stored = zarr.create_array(
        folder / name,
        shape=array.shape,
        chunks=(max(1, len(array)),),
        dtype=str if array.dtype == object else array.dtype,
        dimension_names=("t" if name == "lag" else name,),
        attributes={"units": units, "long_name": long_name},
        config={"write_empty_chunks": True},  # so that a file that is missing was lost
        overwrite=True,  # what a kill left behind before anybody could see it
    )
    stored[:] = array


def _as_stored(values: list[Any]) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "if":
        array = np.asarray([str(value) for value in values], dtype=object)
    return array


def _check_same(
    folder: Path,
    recorded: Mapping[str, Any],
    description: Description,
    coords: Mapping[str, list[Any]],
) -> None:
    """Refuse to resume arrays that are not those of the description."""
    expected: dict[str, Any] = {name: ([name], [len(v)]) for name, v in coords.items()}
    if "lag" in expected:
        expected["lag"] = (["t"], expected["t"][1])
    expected["step"] = (["step"], [])
    for name, variable in description.variables.items():
        sizes = [len(coords[dim]) for dim in variable.dims]
        expected[stored_name(name)] = (["step", *variable.dims], sizes)
    found = {}
    for name, metadata in recorded.items():
        dims = metadata["dimension_names"]
        found[name] = (dims, metadata["shape"][dims[0] == "step" :])
    wrong = sorted(name for name, form in found.items() if expected.get(name) != form)
    for name, values in coords.items():
        if name in found and name not in wrong:
            stored = np.asarray(zarr.open_array(folder / name, mode="r")[:])
            same = stored.tolist() == _as_stored(values).tolist()
            wrong += [] if same else [name]
    if wrong:
        allowed = f"a run that records what this one does; it differs in {', '.join(wrong)}"
        hint = "the model, task and probes of that run, or a new run"
        raise BadInput("trainer.resume", str(folder.parent), allowed, hint)


def _metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
