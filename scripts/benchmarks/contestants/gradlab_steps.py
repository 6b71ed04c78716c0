"""gradlab's own training step, as its runs make it.

- ``gradlab``: plain steps, many to a call.
- ``gradlab-standard``: every step measured by all standard probes, many to a call; what they
  measure comes to the host.
- ``gradlab-full``: likewise with the step probes of ``probe=full``, and ``look()`` is what its
  close probes do besides at every 50th step.

``-split``: the batch over the devices of the host, as ``trainer.mesh=auto`` splits it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from benchmarks import problem
from benchmarks.contestants import arrays_of, share
from benchmarks.problem import First, Size
from gradlab.analysis import probe_class, probe_names
from gradlab.bptt.precision import in_all_digits
from gradlab.cells import GRU, LSTM, SimpleRNN
from gradlab.model import SequenceModel
from gradlab.tasks.base import Batch, Task
from gradlab.training.mesh import AXIS, ONE_DEVICE, DataMesh
from gradlab.training.optimizer import Optimizer
from gradlab.training.step import Steps

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": SimpleRNN}
ROWS = 50
"""At most so many measured steps a call."""
PRESETS = {"gradlab": (), "gradlab-standard": ("standard",), "gradlab-full": ("standard", "full")}


@dataclass(frozen=True)
class Given(Task):
    """One batch, at every step."""

    length: int
    features: int
    data: Any

    outputs = 1
    loss = "mse"
    readout = "last"

    def sample(self, data: Any, key: jax.Array, batch: int) -> Batch:
        """The batch."""
        return Batch(*data)

    def held_out(self, split: Any) -> Batch:
        """The same."""
        return Batch(*self.data)

    def baseline(self, split: Any) -> Any:
        """None."""


class Gradlab:
    """See above."""

    def __init__(self, name: str, cell: str, size: Size):
        split = name.endswith("-split")
        mesh = mesh_of(size) if split else ONE_DEVICE
        data = tuple(map(jnp.asarray, problem.batch(size)))
        task = Given(size.T, size.I, data)
        sizes = {"features": size.I, "hidden": size.H, "layers": 1, "outputs": 1}
        self.model = SequenceModel(CELLS[cell], **sizes, readout="last", rngs=nnx.Rngs(0))
        for key, variable in self._arrays().items():
            variable.set_value(jnp.asarray(problem.weights(cell, size)[key]))
        rule = Optimizer(optax.adam, steps=10**6, learning_rate=problem.LEARNING_RATE)
        presets = PRESETS[name.removesuffix("-split")]
        probes = {key: probe_class(key)() for key in probe_names()}
        probes = {key: one for key, one in probes.items() if one.preset in presets}
        steps = Steps(self.model, task, rule, probes, size.B, mesh=mesh, probes_by_preset=True)
        self.state = mesh.replicate(steps.start(jax.random.key(0)))
        self.data = mesh.replicate(data)
        whole = measured_steps(steps) if presets else steps.advance
        lowered = mesh.jit(whole).lower(self.state, self.data, jnp.int32(1))
        self.advance, self.most = lowered.compile(), ROWS if presets else 10**6
        if steps.looks_closely:
            measure = mesh.jit(steps.measure).lower(self.state, self.data).compile()
            self.look = lambda: jax.device_get(measure(self.state, self.data))

    def _arrays(self) -> dict[str, Any]:
        return arrays_of(self.model.layers[0][0], self.model.readout)

    def first(self) -> First:
        """See :class:`benchmarks.contestants.Contestant`."""
        loss = self._call(1)
        moment = optax.tree.get(self.state.opt_state, "mu")
        nnx.update(self.model, jax.tree.map(lambda m: m / (1 - problem.FIRST_MOMENT), moment))
        found = self._arrays()
        return First(loss, {key: np.asarray(one[...]) for key, one in found.items()})

    def _call(self, count: int) -> float:
        """So many steps; the loss of the first of those measured, or the mean."""
        self.state, seen = jax.block_until_ready(
            self.advance(self.state, self.data, jnp.int32(count))
        )
        report, *_ = jax.device_get(seen)
        return float(np.ravel(report)[0])

    def run(self, steps: int) -> None:
        """See there."""
        while steps > 0:
            self._call(min(steps, self.most))
            steps -= self.most

    def temporaries(self) -> int:
        """See there."""
        return self.advance.memory_analysis().temp_size_in_bytes


def measured_steps(steps: Steps):
    """``(state, data, count)`` to the state after so many measured steps, and a row of each."""

    @in_all_digits
    def advance(state, data, count):
        _, report, measured = jax.eval_shape(steps.probe, state, data)
        rows = jax.tree.map(
            lambda one: jnp.zeros((ROWS, *one.shape), one.dtype), (*report, measured)
        )

        def one(row, carry):
            state, rows = carry
            state, report, measured = steps.probe(state, data)
            rows = jax.tree.map(lambda kept, new: kept.at[row].set(new), rows, (*report, measured))
            return state, rows

        return jax.lax.fori_loop(0, count, one, (state, rows))

    return advance


def mesh_of(size: Size) -> DataMesh:
    """The devices that a batch is split over."""
    devices = jax.devices()[: share(size.B, jax.device_count())]
    return DataMesh(Mesh(np.array(devices), (AXIS,)))


make = Gradlab
