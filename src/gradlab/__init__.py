"""gradlab: how does the gradient travel through time in a recurrent network?

The public API. Each name is imported when it is first used, so that ``import gradlab`` costs
nothing by itself and never brings in Hydra or W&B.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlab import analysis, cells, errors, experiment, model, probes, record, regularizers
    from gradlab import tasks as tasks
    from gradlab.analysis import analyze
    from gradlab.bptt import scaling, unroll
    from gradlab.convert import from_keras, from_torch
    from gradlab.errors import BadInput
    from gradlab.model import SequenceModel
    from gradlab.record.reader import Run, open_run
    from gradlab.recorder import Recorder
    from gradlab.training import loop as train
    from gradlab.training import optimizer
    from gradlab.watching.gradient import Seen, value_and_grad
    from gradlab.watching.layers import RNN, Bidirectional
    from gradlab.watching.watch import watch

    __version__: str

__all__ = [
    "RNN",
    "BadInput",
    "Bidirectional",
    "Recorder",
    "Run",
    "Seen",
    "SequenceModel",
    "__version__",
    "analysis",
    "analyze",
    "cells",
    "errors",
    "experiment",
    "from_keras",
    "from_torch",
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
    "value_and_grad",
    "watch",
]

_HOME = {
    "BadInput": "gradlab.errors",
    "Bidirectional": "gradlab.watching.layers",
    "RNN": "gradlab.watching.layers",
    "Recorder": "gradlab.recorder",
    "Run": "gradlab.record.reader",
    "Seen": "gradlab.watching.gradient",
    "SequenceModel": "gradlab.model",
    "analyze": "gradlab.analysis",
    "from_keras": "gradlab.convert",
    "from_torch": "gradlab.convert",
    "open_run": "gradlab.record.reader",
    "value_and_grad": "gradlab.watching.gradient",
    "watch": "gradlab.watching.watch",
}
_ALIASES = {
    "gradlab.optimizer": "gradlab.training.optimizer",
    "gradlab.scaling": "gradlab.bptt.scaling",
    "gradlab.train": "gradlab.training.loop",
    "gradlab.unroll": "gradlab.bptt.unroll",
}
"""Modules that are public under a shorter name than that of their file."""


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


class _Aliases(MetaPathFinder, Loader):
    """Lets ``import gradlab.unroll`` give the one module that is ``gradlab.bptt.unroll``."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _ALIASES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(_ALIASES[spec.name])
        spec.loader_state = module.__spec__  # which the import system is about to replace
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_Aliases())
