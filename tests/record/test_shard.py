"""The writer of arrays when writes fail: what was flushed stays, whatever comes after."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.record import arrays as arrays_module
from gradlab.record.arrays import Arrays, consolidated
from gradlab.record.base import Description, Row, Variable
from gradlab.record.reader import _damage
from gradlab.record.shard import MISSING, Shard, _aligned, _place, decoded_size, read_index

CALLS = ("pwrite", "ftruncate", "replace")


class Died(BaseException):
    """The process is killed here."""


@dataclass
class Disk:
    """A disk whose calls go wrong as planned.

    Attributes:
      left: calls that still go well.
      done: of the call that does not, how many bytes are written; more than there are: all.
      how: ``fails``, ``short`` (says how many bytes it wrote) or ``dies``.
      lasts: whether every call after it fails, too.
    """

    left: float = math.inf
    done: int = 0
    how: str = "fails"
    lasts: bool = False
    lengths: list[int] = field(default_factory=list)

    def plan(self, left: int, done: int, how: str, lasts: bool) -> None:
        self.left, self.done, self.how, self.lasts = left, done, how, lasts

    def mend(self) -> None:
        self.left = math.inf

    def called(self, name: str, real: Callable[..., Any], *args: Any) -> Any:
        self.lengths.append(len(args[1]) if name == "pwrite" else 1)
        self.left -= 1
        if self.left >= 0:
            return real(*args)
        first = self.left == -1
        if not first and not self.lasts:
            return real(*args)
        result = None
        if first and name == "pwrite" and self.done:
            descriptor, content, offset = args
            result = real(descriptor, content[: self.done], offset)
        elif first and self.done:
            real(*args)
        if first and self.how == "dies":
            raise Died
        if first and self.how == "short" and result:
            return result
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def failing(disk: Disk) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            real = getattr(os, name)
            patch.setattr(os, name, lambda *a, _n=name, _r=real: disk.called(_n, _r, *a))
        yield


# One file.


@given(st.integers(1, 2**21), st.integers(0, 2**40))
def test_the_two_places_of_a_chunk_differ_in_one_byte(room, end):
    unit, place = _place(room)
    first = _aligned(end, unit, place)
    assert place >= room + 16
    assert end <= first <= end + 256 * unit
    one, other = (np.array(n, "<u8").tobytes() for n in (first, first + place))
    assert sum(a != b for a, b in zip(one, other, strict=True)) == 1


def stored(path: Path, chunks: int) -> list[bytes | None]:
    return [Shard(path, chunks, 40).read(chunk) for chunk in range(chunks)]


STORY = (
    *((0, b"a" * n, False) for n in (5, 31, 17)),
    (0, b"A" * 40, True),
    *((1, b"b" * n, False) for n in (1, 40)),
    (1, b"B" * 22, True),
    (2, b"c" * 9, False),
)
"""Chunk, content, and whether the chunk is complete with it."""


@pytest.mark.parametrize("how", ["fails", "dies"])
def test_every_call_may_fail_at_every_byte(tmp_path, how):
    """Then the file holds what it held before the write, or after it, and can be written again."""
    disk, first = Disk(), tmp_path / "whole"
    with failing(disk):
        shard = Shard(first, 3, 40)
        for chunk, content, complete in STORY:
            shard.write(chunk, content)
            if complete:
                shard.settle()
    torn = 0
    every = [(call, done) for call, n in enumerate(disk.lengths) for done in range(n + 1)]
    for call, done in every:
        path = tmp_path / "shard"
        path.unlink(missing_ok=True)
        shard, disk = Shard(path, 3, 40), Disk()
        disk.plan(call, done, how, lasts=False)
        expected: list[bytes | None] = [None, None, None]
        with failing(disk):
            for chunk, content, complete in STORY:
                after = [*expected[:chunk], content, *expected[chunk + 1 :]]
                try:
                    shard.write(chunk, content)
                except OSError:
                    if expected[chunk] is not None:  # else no row of it can be seen yet
                        assert stored(path, 3) in (expected, after)
                    torn += 1
                    shard.write(chunk, content)
                except Died:
                    if expected[chunk] is not None:
                        assert stored(path, 3) in (expected, after)
                    torn += 1
                    shard = Shard(path, 3, 40)
                    if expected[chunk] is None:
                        shard.forget_from(chunk)
                    shard.write(chunk, content)
                assert stored(path, 3) == after
                if complete:
                    try:
                        shard.settle()
                    except Died:
                        shard = Shard(path, 3, 40)
                    assert stored(path, 3) == after
                expected = after
    assert torn > len(every) / 2


def test_a_frame_says_its_size():
    codec = arrays_module.Zstd(level=1, checksum=True)
    for size in (0, 1, 4, 255, 256, 257, 65535, 65536, 70000, 300000):
        assert decoded_size(codec.encode(np.zeros(size, np.uint8))) in (size, None if size else 0)
        assert decoded_size(bytes(codec.encode(os.urandom(size)))) == size
    assert decoded_size(b"") is None


# All arrays of a run.

DESCRIPTION = Description(
    name="model",
    config={},
    variables={
        "loss": Variable((), "nats", "loss"),
        "rare": Variable((), "1", "seldom measured"),
        "curve": Variable(("t",), "1", "curve"),
    },
    coords={"t": [0, 1]},
    baseline={},
)
RESUMED = Description(**vars(DESCRIPTION) | {"resumed": True})


def row(number: int, measured: bool) -> Row:
    """Row ``number``; without ``measured`` only its step is known."""
    if not measured:
        return Row(number, {}, {})
    value = 1.5 * number + 0.25
    scalars = {"loss": value} | ({"rare": value} if number % 4 == 3 else {})
    return Row(number, scalars, {"curve": np.array([value, -value])})


def value_of(row: Row, name: str) -> Any:
    return {"step": row.step, **row.scalars, **row.arrays}.get(name, np.nan)


class Model:
    """A recorder beside the truth: which rows were given to it, and how many were flushed."""

    def __init__(self, folder: Path, disk: Disk):
        self.folder, self.disk = folder, disk
        self.rows: list[Row] = []
        self.flushed = 0
        self.arrays: Arrays | None = Arrays(folder, DESCRIPTION)

    def append(self, measured: bool) -> None:
        # Its number is known when it is: another process may resume fewer rows first.
        self._do(
            lambda arrays: arrays.append(row(len(self.rows), measured)),
            lambda: self.rows.append(row(len(self.rows), measured)),
        )

    def flush(self) -> None:
        self._do(lambda arrays: arrays.commit(), self._all_flushed)

    def close(self) -> None:
        self._do(lambda arrays: arrays.close(), self._all_flushed)

    def kill(self) -> None:
        """The process is gone; another one resumes what can be seen."""
        self.arrays = None

    def _all_flushed(self) -> None:
        self.flushed = len(self.rows)

    def _do(self, action: Callable[[Arrays], None], then: Callable[[], None]) -> None:
        try:
            if self.arrays is None:
                del self.rows[self.seen() :]
                self.arrays = Arrays(self.folder, RESUMED, resumed=True)
            action(self.arrays)
        except OSError:
            return
        except Died:
            self.arrays = None
            return
        then()

    def seen(self) -> int:
        """How many rows can be seen; they are compared with the truth."""
        damage, _ = _damage(self.folder)
        assert not damage
        metadata = consolidated(self.folder)
        seen = metadata["step"]["shape"][0]
        assert self.flushed <= seen <= len(self.rows)
        for name in ("step", "loss", "rare", "curve"):
            found = self.stored(name, metadata[name])[:seen]
            expected = [np.broadcast_to(value_of(r, name), found.shape[1:]) for r in self.rows]
            np.testing.assert_array_equal(found, np.reshape(expected[:seen], found.shape))
        return seen

    def stored(self, name: str, metadata: dict[str, Any]) -> np.ndarray:
        """What lies in the files of a variable, by a reader of its own."""
        long = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        shape = metadata["codecs"][0]["configuration"]["chunk_shape"]
        blocks = [np.zeros((0, *shape[1:]))]
        files = (self.folder / name / "c").rglob("*")
        for path in sorted(one for one in files if one.is_file() and one.suffix != ".partial"):
            content = path.read_bytes()
            for offset, length in read_index(path, long // shape[0]).tolist():
                block = np.full(shape, np.nan)
                # What no row can be seen of may be anything.
                if offset != MISSING and offset + length <= len(content):
                    with contextlib.suppress(RuntimeError, ValueError):
                        decoded = arrays_module.Zstd().decode(content[offset : offset + length])
                        block = np.frombuffer(decoded, metadata["data_type"]).reshape(shape)
                blocks.append(block)
        return np.concatenate(blocks)


PLAN = st.tuples(
    st.just("plan"),
    st.integers(0, 30),
    st.sampled_from([0, 1, 2, 3, 7, 8, 9, 15, 16, 40, 10**6]),
    st.sampled_from(["fails", "short", "dies"]),
    st.booleans(),
)
ACTION = st.one_of(
    st.tuples(st.just("append"), st.booleans()),
    st.tuples(st.just("append"), st.just(True)),
    *(st.tuples(st.just(name)) for name in ("flush", "close", "kill", "mend")),
    PLAN,
)


ACTIONS = st.lists(ACTION, max_size=30)


@settings(max_examples=30, deadline=None)
@given(ACTIONS)
def test_what_was_flushed_stays_whatever_fails(actions):
    """Any order of rows, flushes, closes, kills, failures and resumes."""
    tell(actions)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(ACTIONS)
def test_what_was_flushed_stays_whatever_fails_at_length(actions):
    tell(actions)


def tell(actions: list[tuple]) -> None:
    """Do what is said, looking after each action whether all that was flushed can be read."""
    folder = Path(tempfile.mkdtemp())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays_module, "CHUNK_ROWS", 3)
        patch.setattr(arrays_module, "SHARD_ROWS", 6)
        disk = Disk()
        model = Model(folder / "arrays.zarr", disk)
        with failing(disk):
            for name, *arguments in actions:
                getattr(disk if name in ("plan", "mend") else model, name)(*arguments)
                model.seen()
            disk.mend()
            model.append(measured=True)
            model.close()
        assert model.seen() == model.flushed == len(model.rows)
        with xarray.open_zarr(folder / "arrays.zarr") as dataset:
            for name in ("step", "loss", "rare", "curve"):
                expected = [
                    np.broadcast_to(value_of(r, name), dataset[name].shape[1:]) for r in model.rows
                ]
                np.testing.assert_array_equal(dataset[name].values, np.array(expected))
    shutil.rmtree(folder)
