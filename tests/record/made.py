"""All that is made of a run when it has ended: its figures, and what W&B and TensorBoard keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.record.wandb_file import load


def made_of(folder: Path) -> dict[str, Any]:
    """What can be compared with that of another process, which recorded the same run.

    Figures come as bytes, rows without the times that W&B adds to them.
    """
    (file,) = folder.glob("wandb/*/run-*.wandb")  # that of a killed process is gone
    kept = load(file)
    media = {
        key for row in kept["history"] for key, value in row.items() if isinstance(value, dict)
    }
    (events,) = (folder / "tensorboard").iterdir()
    shown = points(events)
    return {
        "figures": {path.name: path.read_bytes() for path in (folder / "figures").iterdir()},
        "id on W&B": kept["run"].run_id,
        "rows on W&B": list(map(_plain, kept["history"])),
        "on W&B at the end": _plain(kept["summary"]),
        "pictures on W&B": media,
        "exit on W&B": kept["exit"],
        "in TensorBoard": {
            key: x for key, x in shown.items() if key[0].partition("/")[0] != "outcome"
        },
        "in TensorBoard at the end": {tag: x for (tag, _), x in shown.items() if "outcome/" in tag},
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k[0] != "_" and isinstance(v, int | float | str)}


def points(events: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard shows as lines, by tag and step."""
    from tensorboardX.proto.event_pb2 import Event

    found, data = {}, events.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        for one in event.summary.value:
            if one.WhichOneof("value") == "simple_value":
                found[one.tag, event.step] = one.simple_value
    return found
