"""One file of an array: chunks and where each lies, whole for a reader at every instant.

The file is a shard of zarr v3's ``sharding_indexed`` codec with its index at the start: offset and
length of every chunk, 16 bytes each, all ones for a chunk that is missing.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numcodecs.zstd import Zstd

from gradlab.record.files import NO_LINK

ENTRY = 16
MISSING = 2**64 - 1
LOOKS = 5
"""At a file that changes while it is looked at."""
_SKIPPED = struct.Struct("<II")
"""Begins a frame that zstd skips (RFC 8878, 3.1.2): a magic number, and how many bytes follow."""
_MAGIC = 0x184D2A50
_ENTRY = struct.Struct("<QQ")
_LENGTH = struct.Struct("<Q")
_FRAME = _SKIPPED.size + _LENGTH.size


class Shard:
    """Writes chunks into one shard file.

    The chunk that is being filled lies in one of two places of its own, and is always written to
    the other one. Both have the same length, the rest of it being a frame that zstd skips, and
    their offsets differ in one byte. So one byte is all that changes in the index once the chunk is
    there; no kill, full disk or short write can leave half of that. An entry changes otherwise only
    while no row of its chunk is visible, or together with the whole file, which is replaced.

    Args:
      path: the file; made if missing, else added to.
      chunks: how many chunks it has room for.
      room: most bytes of an encoded chunk.
    """

    def __init__(self, path: Path, chunks: int, room: int):
        self.path, self.chunks = path, chunks
        self.unit, self.place = _place(room)
        self.filling, self.first = -1, 0
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, np.full((chunks, 2), MISSING, "<u8").tobytes())

    @property
    def index(self) -> np.ndarray:
        """Offset and length of every chunk ``(chunks, 2)``, as the file has them now."""
        return read_index(self.path, self.chunks)

    @property
    def end(self) -> int:
        """The length of the file."""
        return self.path.stat().st_size

    def write(self, chunk: int, content: bytes) -> None:
        """Put the encoded ``chunk`` in place."""
        if chunk != self.filling:
            self._begin(chunk)
        with self._opened() as file:
            # What the file says counts: the last time may have failed with everything done.
            before = os.pread(file, ENTRY, chunk * ENTRY)
            taken, _ = _ENTRY.unpack(before)
            offset = self.first + self.place * (taken == self.first)
            _write_place(file, content, offset, self.place)
            after = _ENTRY.pack(offset, self.place)
            changed = [i for i in range(ENTRY) if before[i] != after[i]]
            start, stop = changed[0], changed[-1] + 1
            _write_at(file, after[start:stop], chunk * ENTRY + start)

    def read(self, chunk: int) -> bytes | None:
        """The encoded ``chunk``, or None if it is missing."""
        return self._at(*self.index[chunk].tolist())

    def forget_from(self, chunk: int) -> None:
        """Make ``chunk`` and all later ones, of which no row is visible, missing."""
        with self._opened() as file:
            missing = np.full((self.chunks - chunk, 2), MISSING, "<u8")
            _write_at(file, missing.tobytes(), chunk * ENTRY)

    def settle(self) -> None:
        """The chunk that was being filled is complete; pack if half of them are loose."""
        last, self.filling = self.filling == self.chunks - 1, -1
        lengths = self._lengths()
        if last or 2 * np.count_nonzero(lengths == self.place) >= len(lengths):
            self.pack()

    def pack(self) -> None:
        """Replace the file by one without the places that are not used, if there are any."""
        lengths = self._lengths()
        used = self.chunks * ENTRY + int(lengths.sum())
        if (lengths != self.place).all() and self.end == used:
            return
        with suppress(OSError):  # without room the file stays as it is, and is as good
            self.rewrite()

    def rewrite(self, filling: int = -1, content: bytes = b"") -> None:
        """Replace the file by a packed one.

        Args:
          filling: a chunk that gets two places, to be filled further.
          content: of that chunk, encoded.
        """
        self.filling = -1
        index, offset = np.full((self.chunks, 2), MISSING, "<u8"), self.chunks * ENTRY
        with replacing(self.path) as file:
            for chunk, entry in enumerate(self.index.tolist()):
                if chunk != filling and (packed := self._at(*entry)) is not None:
                    index[chunk] = offset, len(packed)
                    _write_at(file, packed, offset)
                    offset += len(packed)
            if filling >= 0:
                offset = _aligned(offset, self.unit, self.place)
                index[filling] = offset, self.place
                os.ftruncate(file, offset + 2 * self.place)
                _write_place(file, content, offset, self.place)
            _write_at(file, index.tobytes(), 0)

    def _at(self, offset: int, length: int) -> bytes | None:
        if offset == MISSING:
            return None
        with open(self.path, "rb") as file:
            file.seek(offset)
            return _without_rest(file.read(length))

    def _lengths(self) -> np.ndarray:
        """Of all chunks that are there."""
        index = self.index
        return index[index[:, 0] != MISSING, 1]

    def _begin(self, chunk: int) -> None:
        """Give a chunk its two places, which are the last in the file."""
        (offset, length), end = self.index[chunk].tolist(), self.end
        if offset == MISSING:
            with self._opened() as file:
                os.ftruncate(file, _aligned(end, self.unit, self.place) + 2 * self.place)
        elif length != self.place or end - offset not in (self.place, 2 * self.place):
            self.rewrite(chunk, self.read(chunk) or b"")
        self.filling, self.first = chunk, self.end - 2 * self.place

    @contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDWR | NO_LINK)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def read_index(path: Path, chunks: int) -> np.ndarray:
    """Offset and length ``(chunks, 2)`` of every chunk; ``MISSING`` where the file is too short."""
    with open(path, "rb") as file:
        content = file.read(chunks * ENTRY)
    index = np.full((chunks, 2), MISSING, "<u8")
    whole = len(content) // ENTRY
    index[:whole] = np.frombuffer(content[: whole * ENTRY], "<u8").reshape(-1, 2)
    return index


def broken_chunks(path: Path, chunks: int, needed: int, size: int) -> list[int]:
    """Which of the first ``needed`` chunks are named by the index and do not decode to ``size``.

    The writer may be at work: what it has put elsewhere meanwhile is looked at again.
    """
    broken: list[int] = []
    for _ in range(LOOKS):
        try:
            with open(path, "rb") as file:
                index = read_index(path, chunks)
                broken = _broken(file, index[:needed], size)
                if not broken or _is_same(path, file, index):
                    break
        except FileNotFoundError:
            return []
    return broken


def _is_same(path: Path, file: BinaryIO, index: np.ndarray) -> bool:
    """Whether the file is still the one that was opened, with the same index."""
    inode = os.fstat(file.fileno()).st_ino
    return path.stat().st_ino == inode and (read_index(path, len(index)) == index).all().item()


def _broken(file: BinaryIO, index: np.ndarray, size: int) -> list[int]:
    """The chunks that do not lie in the file whole."""
    end = os.fstat(file.fileno()).st_size
    most = 4 * (size + size // 128 + 2048)  # a place that is filled is at most so long
    broken = set(range(min(end // ENTRY, len(index)), len(index)))
    for chunk, (offset, length) in enumerate(index.tolist()):
        if offset == MISSING:
            continue
        if offset + length <= end and length <= most:
            file.seek(offset)
            if is_whole(file.read(length), size, size):
                continue
        broken.add(chunk)
    return sorted(broken)


def is_whole(content: bytes, least: int, most: int) -> bool:
    """Whether zstd can decode it, to a number of bytes in these limits."""
    size = decoded_size(content)
    if size is None or not least <= size <= most:
        return False
    try:
        Zstd().decode(content, np.empty(size, np.uint8))
    except (RuntimeError, ValueError):
        return False
    return True


def decoded(content: bytes) -> bytes:
    """What a chunk holds that is whole."""
    return bytes(Zstd().decode(content))


def decoded_size(content: bytes) -> int | None:
    """How many bytes a zstd frame says that it holds (RFC 8878, 3.1.1.1); None if it does not."""
    if len(content) < 9:
        return None
    single = content[4] >> 5 & 1
    width = (single, 2, 4, 8)[content[4] >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[content[4] & 3]
    number = int.from_bytes(content[start : start + width], "little")
    return number + 256 * (width == 2) if width else None


def replace(path: Path, content: bytes) -> None:
    """Write ``path`` so that a reader sees the old content or the new, never a part."""
    with replacing(path) as file:
        _write_at(file, content, 0)


@contextmanager
def replacing(path: Path) -> Iterator[int]:
    """A new file that takes the place of ``path`` once the block has ended well."""
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NO_LINK, 0o666)
    try:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _place(room: int) -> tuple[int, int]:
    """A power of 256, and the bytes of a place: a multiple of it, less than 256 times as long."""
    unit = 1
    while (length := -(-(room + _FRAME) // unit)) > 127:
        unit *= 256
    return unit, length * unit


def _aligned(offset: int, unit: int, place: int) -> int:
    """The first offset from here on that differs from the place behind it in one byte only."""
    number = -(-offset // unit)
    if number % 256 + place // unit > 255:
        number += 256 - number % 256
    return number * unit


def _write_place(descriptor: int, content: bytes, offset: int, place: int) -> None:
    """Write a chunk and the frame that fills its place; what lies in that is not written."""
    rest = place - len(content) - _SKIPPED.size
    _write_at(descriptor, content + _SKIPPED.pack(_MAGIC, rest), offset)
    _write_at(descriptor, _LENGTH.pack(len(content)), offset + place - _LENGTH.size)


def _without_rest(content: bytes) -> bytes:
    """A chunk without the frame that fills its place."""
    if len(content) < _FRAME:
        return content
    (length,) = _LENGTH.unpack(content[-_LENGTH.size :])
    if length > len(content) - _FRAME:
        return content
    rest = _SKIPPED.pack(_MAGIC, len(content) - length - _SKIPPED.size)
    return content[:length] if content[length : length + _SKIPPED.size] == rest else content


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(descriptor, left, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left, offset = left[written:], offset + written
