"""The sinks that a configuration asks for, besides the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradlab.record.base import Sink
from gradlab.record.wandb_sink import WandbSink


def sinks_of(record: Mapping[str, Any], folder: Path) -> tuple[list[Sink], WandbSink]:
    """The sinks of a run, and the one that can say how to see it on W&B.

    Args:
      record: the section ``record`` of the configuration.
      folder: the run directory.

    Raises:
      BadInput: for one whose package is not installed.
    """
    wandb = WandbSink(folder, **record["wandb"])
    sinks: list[Sink] = [wandb]
    if record["tensorboard"]:
        from gradlab.record.tensorboard_sink import TensorBoardSink

        sinks.append(TensorBoardSink(folder))
    if record["terminal"]:
        from gradlab.record.terminal import Terminal

        sinks.append(Terminal())
    return sinks, wandb
