"""gradlab: how does the gradient travel through time in a recurrent network?

The public API. Each name is imported when it is first used, so that ``import gradlab`` costs
nothing by itself and never brings in Hydra or W&B.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlab import (
        analysis,
        cells,
        errors,
        experiment,
        model,
        optimizer,
        probes,
        record,
        regularizers,
        scaling,
        tasks,
        train,
        unroll,
    )
    from gradlab.analysis import analyze
    from gradlab.errors import BadInput
    from gradlab.model import SequenceModel
    from gradlab.record.reader import Run, open_run

    __version__: str

__all__ = [
    "BadInput",
    "Run",
    "SequenceModel",
    "__version__",
    "analysis",
    "analyze",
    "cells",
    "errors",
    "experiment",
    "model",
    "open_run",
    "optimizer",
    "probes",
    "record",
    "regularizers",
    "scaling",
    "tasks",
    "train",
    "unroll",
]

_HOME = {
    "BadInput": "gradlab.errors",
    "Run": "gradlab.record.reader",
    "SequenceModel": "gradlab.model",
    "analyze": "gradlab.analysis",
    "open_run": "gradlab.record.reader",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("gradlab")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in __all__:
        return importlib.import_module(f"gradlab.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
