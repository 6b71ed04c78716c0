"""All that is in the local file of a W&B run, decoded."""

import json
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

from gradlab.record.wandb.file import records


def load(path: Path) -> dict[str, Any]:
    """All that ``path`` holds.

    Returns:
      ``run`` (W&B's record), ``config``, ``history`` (a list of rows), ``summary``, ``metrics``
      (by name or glob), ``artifacts`` (W&B's records), ``exit`` (the code, None if it is not
      closed), and ``files``, the folder of what was recorded beside it.
    """
    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "metrics": {}}
    found |= {"artifacts": [], "exit": None, "files": path.parent / "files"}
    for data in records(path):
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            _update(found["config"], record.run.config.update)
        elif kind in ("config", "summary"):
            _update(found[kind], getattr(record, kind).update)
        elif kind == "history":
            found["history"].append(_update({}, record.history.item))
        elif kind == "metric":
            found["metrics"][record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            found["artifacts"].append(record.artifact)
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
