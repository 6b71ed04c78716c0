"""Reads what an offline W&B run wrote, without a server.

The file is a log in blocks of 32 KiB: every record has a CRC, a length and a type that says
whether it is whole or the first, a middle or the last part.
"""

from __future__ import annotations

import json
import struct
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
        at += HEAD + length
        parts = data if kind in (WHOLE, FIRST) else parts + data
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def load(directory: Path) -> dict[str, Any]:
    """The one offline run in ``directory/wandb``: its run, config, history, summary, exit code."""
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "metrics": {}}
    found["files"] = path.parent / "files"
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= _items(record.run.config.update)
        elif kind == "config":
            found["config"] |= _items(record.config.update)
        elif kind == "history":
            found["history"].append(_items(record.history.item))
        elif kind == "summary":
            found["summary"] |= _items(record.summary.update)
        elif kind == "metric":
            found["metrics"][record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
