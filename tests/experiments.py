"""A small experiment that the tests of the loop change one part of."""

from __future__ import annotations

from typing import Any

import optax

from gradlab.cells import LSTM
from gradlab.experiment import Experiment
from gradlab.probes import Adjoint, AdjointSlope, MemoryHorizon
from gradlab.tasks.adding import Adding
from gradlab.training.loop import Trainer
from gradlab.training.optimizer import Optimizer
from gradlab.training.stretch import Block

PROBES = {"adjoint": Adjoint(), "adjoint_slope": AdjointSlope(), "memory_horizon": MemoryHorizon()}


def experiment(**changes: Any) -> Experiment:
    """``changes`` are fields of the experiment, or ``learning_rate``, ``rule``, ``clip_norm``."""
    trainer = changes.pop("trainer", Trainer(steps=12, batch=4, log_every=5, eval_every=5))
    rate = changes.pop("learning_rate", 1e-2)
    rule = changes.pop("rule", optax.adam)
    clip = changes.pop("clip_norm", 1.0)
    parts = {
        "name": "test",
        "model_name": "lstm",
        "make_cell": LSTM,
        "hidden": 5,
        "layers": 1,
        "bidirectional": False,
        "task": Adding(length=8, held_out_examples=30),
        "optimizer": Optimizer(rule, steps=trainer.steps, learning_rate=rate, clip_norm=clip),
        "trainer": trainer,
        "probes": PROBES,
        "probes_by_preset": True,
        "seed": 0,
        "config": {"seed": 0},
    }
    return Experiment(**(parts | changes))


def make(program: Any, plain: int, *, measured: bool = False, members: Any = (0,)) -> Any:
    """Make so many plain steps of each member, and one that is measured; what has landed."""
    program.send({member: [Block(plain, measured)] for member in members})
    return program.land()
