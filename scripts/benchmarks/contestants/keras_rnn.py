"""Keras 3 on JAX: its layers and its Adam, by their stateless calls under ``jax.jit``.

That is the fastest way Keras has; ``fit`` does the same and more.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import keras
import numpy as np

from benchmarks import problem
from benchmarks.problem import First, Size

LAYERS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}


class Keras:
    """See above."""

    def __init__(self, name: str, cell: str, size: Size):
        self.cell = cell
        layers = [keras.Input((size.T, size.I)), LAYERS[cell](size.H), keras.layers.Dense(1)]
        model = keras.Sequential(layers)
        own = problem.weights(cell, size)
        kernel, recurrent, bias = (self._in_keras(own[key]) for key in problem.NAMES[:3])
        if cell == "gru":  # its second bias, inside of the reset, stays where it begins
            bias = np.stack([bias, np.zeros_like(bias)])
        model.layers[0].set_weights([kernel, recurrent, bias])
        model.layers[1].set_weights([own["readout"], own["offset"]])
        rule = keras.optimizers.Adam(problem.LEARNING_RATE, beta_1=problem.FIRST_MOMENT)
        rule.build(model.trainable_variables)
        inputs, targets = problem.batch(size)
        self.batch = jnp.asarray(inputs.swapaxes(0, 1)), jnp.asarray(targets)
        fixed = [variable.value for variable in model.non_trainable_variables]

        def loss(weights, inputs, targets):
            outputs, _ = model.stateless_call(weights, fixed, inputs, training=True)
            return jnp.mean(jnp.square(outputs - targets))

        def step(weights, state, inputs, targets):
            value, grads = jax.value_and_grad(loss)(weights, inputs, targets)
            weights, state = rule.stateless_apply(state, grads, weights)
            return weights, state, value

        self.moments = [
            place for place, one in enumerate(rule.variables) if one.path.endswith("momentum")
        ]
        weights, state = (
            [jnp.array(variable.value) for variable in variables]
            for variables in (model.trainable_variables, rule.variables)
        )
        self.own = [weights, state]
        self.step = jax.jit(step, donate_argnums=(0, 1)).lower(*self.own, *self.batch).compile()

    def _in_keras(self, array: np.ndarray) -> np.ndarray:
        """Blocks of the GRU in Keras' order z, r, n, or back: the first two change places."""
        if self.cell != "gru":
            return array
        r, z, n = np.split(array, 3, axis=-1)
        return np.concatenate([z, r, n], axis=-1)

    def first(self) -> First:
        """See :class:`benchmarks.contestants.Contestant`."""
        *self.own, loss = self.step(*self.own, *self.batch)
        moments = [np.asarray(self.own[1][place]) for place in self.moments]
        found = dict(
            zip(problem.NAMES, [m / (1 - problem.FIRST_MOMENT) for m in moments], strict=True)
        )
        if self.cell == "gru":
            found["bias"] = found["bias"][0]
        for key in problem.NAMES[:3]:
            found[key] = self._in_keras(found[key])
        return First(float(loss), found)

    def run(self, steps: int) -> None:
        """See there."""
        for _ in range(steps):
            *self.own, _ = self.step(*self.own, *self.batch)
        jax.block_until_ready(self.own)

    def temporaries(self) -> int:
        """See there."""
        return self.step.memory_analysis().temp_size_in_bytes


make = Keras
