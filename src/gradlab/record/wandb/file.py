"""The local file of a W&B run, ``run-ID.wandb``: read, counted, changed.

A log in blocks of 32 KiB after a head of 7 bytes. Every part of a record has a checksum, a length
and a type that says whether the record is whole or this is its first, a middle or its last part.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

BLOCK, HEAD = 32768, 7
MAGIC = b":W&B"
_PART = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class Contents(NamedTuple):
    """How many history rows a file holds, and whether it is closed: it has an exit record."""

    rows: int
    closed: bool


def contents(path: Path) -> Contents:
    """What ``path`` holds, whole or torn; none of it is decoded, so that it takes no time."""
    rows, closed = 0, False
    history, exit_ = _field("history"), _field("exit")
    for record in records(path):
        kinds = set(_fields(record))
        rows, closed = rows + (history in kinds), closed or exit_ in kinds
    return Contents(rows, closed)


def records(path: Path) -> Iterator[bytes]:
    """The serialised records in order, up to the first that is torn or damaged.

    Raises:
      ValueError: if it is no such file.
    """
    with path.open("rb") as file:
        if not file.read(HEAD).startswith(MAGIC):
            raise ValueError(f"{path} is no W&B file")
        parts = b""
        while True:
            left = BLOCK - file.tell() % BLOCK
            if left < _PART.size:  # no part begins there: the rest of the block is padding
                file.read(left)
            head = file.read(_PART.size)
            if len(head) < _PART.size:
                return
            checksum, length, kind = _PART.unpack(head)
            data = file.read(length)
            if len(data) < length or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
                return
            parts = data if kind in (_WHOLE, _FIRST) else parts + data
            if kind in (_WHOLE, _LAST):
                yield parts


def rewrite(path: Path, change: Callable[[Any], bool], kinds: Iterable[str]) -> None:
    """Replace ``path`` by a copy with some records changed; either is whole at every instant.

    Args:
      path: a file that nobody writes to.
      change: changes a ``Record`` of W&B in place; whether it did.
      kinds: the kinds of records that it is given.
    """
    wanted, changed = {_field(kind) for kind in kinds}, False
    copy = path.with_suffix(".copy")
    with path.open("rb") as file:
        head = file.read(HEAD)
    with copy.open("wb") as file:
        file.write(head)
        for data in records(path):
            if not wanted.isdisjoint(_fields(data)):
                record = _record().FromString(data)
                if change(record):
                    data, changed = record.SerializeToString(), True
            _append(file, data)
    if changed:
        os.replace(copy, path)
    else:
        copy.unlink()


def _append(file: BinaryIO, record: bytes) -> None:
    """Write a record to the end of a file, in parts where a block ends."""
    first = True
    while first or record:
        room = BLOCK - file.tell() % BLOCK - _PART.size
        if room < 0:
            file.write(bytes(room + _PART.size))
            continue
        part, record = record[:room], record[room:]
        kind = (_WHOLE if first else _LAST) if not record else (_FIRST if first else _MIDDLE)
        file.write(_PART.pack(zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind))
        file.write(part)
        first = False


def _field(name: str) -> int:
    return _record().DESCRIPTOR.fields_by_name[name].number


def _record() -> Any:
    """W&B's class of a record: made at run time, so that no type checker knows it."""
    from wandb.proto import wandb_internal_pb2

    return getattr(wandb_internal_pb2, "Record")  # noqa: B009


def _fields(message: bytes) -> Iterator[int]:
    """Numbers of the outermost fields of a protobuf message, in order."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        yield tag >> 3
        if tag & 7 == 2:  # a length, and as many bytes
            size, at = _varint(message, at)
            at += size
        elif tag & 7 == 0:
            _, at = _varint(message, at)
        else:
            at += 8 if tag & 7 == 1 else 4


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
