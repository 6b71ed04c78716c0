"""One file of an array: chunks and where each lies, whole for a reader at every instant.

The file is a shard of zarr v3's ``sharding_indexed`` codec with its index at the start: offset and
length of every chunk, 16 bytes each, all ones for a chunk that is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ENTRY = 16
MISSING = 2**64 - 1
WASTE = 16
"""A closed file is packed if more than one part in so many of it is not used."""


class Shard:
    """Writes chunks into one shard file.

    A chunk that is still being filled goes in turn to one of two places, and its entry in the
    index is changed only once it is there; a complete one is appended. So a kill at any instant,
    or a full disk, leaves every entry pointing at a whole chunk. (The entry itself lies within one
    page, which the system changes in one piece.)

    Args:
      path: the file; made if missing, else added to.
      chunks: how many chunks it has room for.
      room: most bytes of an encoded chunk.
    """

    def __init__(self, path: Path, chunks: int, room: int):
        self.path, self.room = path, room
        self.places: int | None = None
        self.second = False
        if path.exists():
            self.index = read_index(path, chunks)
        else:
            self.index = np.full((chunks, 2), MISSING, "<u8")
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, self.index.tobytes())
        self.end = path.stat().st_size

    def write(self, chunk: int, content: bytes, *, complete: bool) -> None:
        """Put the encoded ``chunk`` in place; ``complete`` if it will not be written again."""
        if complete:
            offset = self.end
        else:
            if self.places is None:
                self.places, self.end = self.end, self.end + 2 * self.room
            offset = self.places + self.second * self.room
            self.second = not self.second
        with open(self.path, "r+b", buffering=0) as file:
            _write_at(file.fileno(), content, offset)
            if complete:
                self.end = offset + len(content)
            self.index[chunk] = offset, len(content)
            _write_at(file.fileno(), self.index[chunk].tobytes(), chunk * ENTRY)

    def read(self, chunk: int) -> bytes | None:
        """The encoded ``chunk``, or None if it is missing."""
        offset, length = (int(n) for n in self.index[chunk])
        if offset == MISSING:
            return None
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def forget_from(self, chunk: int) -> None:
        """Make ``chunk`` and all later ones missing."""
        self.index[chunk:] = MISSING
        with open(self.path, "r+b", buffering=0) as file:
            _write_at(file.fileno(), self.index[chunk:].tobytes(), chunk * ENTRY)

    def pack(self) -> None:
        """Rewrite the file without the places that are not used, if that is worth it."""
        present = np.flatnonzero(self.index[:, 0] != MISSING)
        lengths = self.index[present, 1].astype(np.int64)
        used, size = self.index.nbytes + int(lengths.sum()), self.path.stat().st_size
        if (size - used) * WASTE <= size:
            return
        packed = self.index.copy()
        packed[present, 0] = self.index.nbytes + np.cumsum(lengths) - lengths
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            with open(partial, "wb") as file:
                file.write(packed.tobytes())
                for chunk in present:
                    file.write(self.read(int(chunk)) or b"")
            os.replace(partial, self.path)
        except OSError:  # no room: the file stays as it is, and is as good
            partial.unlink(missing_ok=True)
            return
        self.index, self.end, self.places = packed, used, None


def read_index(path: Path, chunks: int) -> np.ndarray:
    """Offset and length ``(chunks, 2)`` of every chunk; ``MISSING`` where the file is too short."""
    with open(path, "rb") as file:
        content = file.read(chunks * ENTRY)
    index = np.full((chunks, 2), MISSING, "<u8")
    whole = len(content) // ENTRY
    index[:whole] = np.frombuffer(content[: whole * ENTRY], "<u8").reshape(-1, 2)
    return index


def cut_chunks(path: Path, chunks: int) -> Iterator[int]:
    """Chunks that the index of a file names and the file does not hold to their ends."""
    try:
        size, index = path.stat().st_size, read_index(path, chunks)
    except FileNotFoundError:
        return
    if size < chunks * ENTRY:
        yield from range(size // ENTRY, chunks)
    present = index[:, 0] != MISSING
    yield from np.flatnonzero(present & (index.sum(1) > size)).tolist()


def replace(path: Path, content: bytes) -> None:
    """Write ``path`` so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
