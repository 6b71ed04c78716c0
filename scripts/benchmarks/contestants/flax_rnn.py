"""Flax by ``nnx.RNN``, its fastest cells, autodiff and optax, under ``jax.jit``.

- ``flax``: plain, on one device.
- ``flax-split``: each device takes the gradient of its own rows of the batch; one mean a step.
- ``flax-taps``: what a careful user writes to measure: zeros are added to h at each step, and the
  gradient by them is ∂ℓ/∂h; its norm for every timestep and example.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import problem
from benchmarks.contestants import arrays_of, share
from benchmarks.problem import First, Size

CELLS = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}
SPECS = (P(), P(None, "data"), P("data"))
"""Where parameters, inputs and targets are when a batch is split."""


class Net(nnx.Module):
    """One layer and a readout of its last h.

    It is taken from the carry: from the outputs, ``[-1]``, a step takes 2 to 17 % longer.
    """

    def __init__(self, cell: str, size: Size):
        self.cell = CELLS[cell](size.I, size.H, rngs=nnx.Rngs(0))
        self.readout = nnx.Linear(size.H, 1, rngs=nnx.Rngs(0))

    def __call__(self, inputs):
        """``(T, B, I)`` to ``(B, 1)``."""
        carry, _ = nnx.RNN(self.cell, time_major=True)(inputs, return_carry=True)
        return self.readout(h_of(carry))

    def tapped(self, inputs, taps):
        """The same, with ``(T, B, H)`` zeros added to h."""

        def step(carry, read):
            x, tap = read
            carry, h = self.cell(carry, x)
            h = h + tap
            return (carry[0], h) if isinstance(carry, tuple) else h, None

        start = self.cell.initialize_carry(inputs.shape[1:], nnx.Rngs(0))
        carry, _ = jax.lax.scan(step, start, (inputs, taps))
        return self.readout(h_of(carry))


def h_of(carry):
    """Of an LSTM's carry, which is a pair, or another's."""
    return carry[1] if isinstance(carry, tuple) else carry


class Flax:
    """See above."""

    def __init__(self, name: str, cell: str, size: Size):
        self.net = Net(cell, size)
        for key, variable in arrays_of(self.net.cell, self.net.readout).items():
            variable.set_value(jnp.asarray(problem.weights(cell, size)[key]))
        graph, params = nnx.split(self.net)
        rule = optax.adam(problem.LEARNING_RATE)
        self.batch = tuple(map(jnp.asarray, problem.batch(size)))

        def loss(params, inputs, targets):
            outputs = nnx.merge(graph, params, copy=True)(inputs)
            return jnp.mean(jnp.square(outputs - targets))

        def gradient(params, inputs, targets):
            return (*jax.value_and_grad(loss)(params, inputs, targets), ())

        def tapped(params, taps, inputs, targets):
            outputs = nnx.merge(graph, params, copy=True).tapped(inputs, taps)
            return jnp.mean(jnp.square(outputs - targets))

        def measured(params, inputs, targets):
            taps = jnp.zeros((size.T, size.B, size.H))
            both = jax.value_and_grad(tapped, argnums=(0, 1))
            value, (grads, adjoints) = both(params, taps, inputs, targets)
            return value, grads, jnp.log10(jnp.linalg.norm(adjoints, axis=-1))

        ways = {"flax": gradient, "flax-taps": measured, "flax-split": over_devices(gradient, size)}
        way = ways[name]

        def step(params, state, inputs, targets):
            value, grads, seen = way(params, inputs, targets)
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value, seen

        own, self.waits = (params, rule.init(params)), name == "flax-split"
        if self.waits:
            whole, *rows = (NamedSharding(mesh_of(size), spec) for spec in SPECS)
            own, self.batch = jax.device_put(own, whole), jax.device_put(self.batch, tuple(rows))
        self.step = jax.jit(step, donate_argnums=(0, 1)).lower(*own, *self.batch).compile()
        self.own = jax.tree.map(jnp.copy, own)  # a step is given it for good

    def first(self) -> First:
        """See :class:`benchmarks.contestants.Contestant`."""
        *self.own, loss, _ = self.step(*self.own, *self.batch)
        moment = optax.tree.get(self.own[1], "mu")
        nnx.update(self.net, jax.tree.map(lambda m: m / (1 - problem.FIRST_MOMENT), moment))
        found = arrays_of(self.net.cell, self.net.readout)
        return First(float(loss), {key: np.asarray(one[...]) for key, one in found.items()})

    def run(self, steps: int) -> None:
        """See there. Steps over several devices are awaited: not awaited, jax 0.10.2 can hang."""
        for _ in range(steps):
            *self.own, _, seen = self.step(*self.own, *self.batch)
            if self.waits:
                jax.block_until_ready(self.own)
        jax.block_until_ready((self.own, seen))

    def temporaries(self) -> int:
        """See there."""
        return self.step.memory_analysis().temp_size_in_bytes


def mesh_of(size: Size) -> Mesh:
    """The devices that a batch is split over."""
    return Mesh(np.array(jax.devices()[: share(size.B, jax.device_count())]), ("data",))


def over_devices(gradient, size: Size):
    """Each device at its own rows, and one mean over devices at the end."""

    def own_rows(params, inputs, targets):
        value, grads, _ = gradient(params, inputs, targets)
        flat, restore = ravel_pytree((value, grads))
        return (*restore(jax.lax.pmean(flat, "data")), ())

    return jax.shard_map(
        own_rows, mesh=mesh_of(size), in_specs=SPECS, out_specs=P(), check_vma=False
    )


make = Flax
