"""Reads what an offline W&B run wrote, without a server.

The file is a log in blocks of 32 KiB: every record has a CRC, a length and a type that says
whether it is whole or the first, a middle or the last part.
"""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path):
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    at, parts = HEAD, b""
    while at + HEAD <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEAD:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        data = content[at + HEAD : at + HEAD + length]
        if len(data) < length:
            return  # still being written
        at += HEAD + length
        parts = data if kind in (WHOLE, FIRST) else parts + data
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def load(directory: Path, patience: float = 10.0) -> dict[str, Any]:
    """The one offline run in ``directory/wandb``: its run, config, history, summary, exit code.

    W&B's own process writes the last records a moment after ``finish`` returned: wait for them.
    """
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + patience
    found = _load(path)
    while "exit" not in found and time.monotonic() < end:
        time.sleep(0.05)
        found = _load(path)
    return found


def _load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "metrics": {}}
    found["files"] = path.parent / "files"
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            _update(found["config"], record.run.config.update)
        elif kind == "config":
            _update(found["config"], record.config.update)
        elif kind == "history":
            found["history"].append(_update({}, record.history.item))
        elif kind == "summary":
            _update(found["summary"], record.summary.update)
        elif kind == "metric":
            found["metrics"][record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def _update(target: dict[str, Any], items: Any) -> dict[str, Any]:
    """Set each item in ``target``; an item of a nested dict names the whole path to it."""
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        place = target
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return target
