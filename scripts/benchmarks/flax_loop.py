"""A plain training loop in Flax and optax, as one would write it: the adding problem, an LSTM.

    python -m benchmarks.flax_loop STEPS T B H

Nothing is measured but the loss, which is looked at when the loop ends. Batches are drawn on the
device, inside the compiled step. Prints a line when the first step is done, and at the end
``train_seconds``: those of the steps, the first one and what compiling takes left out.
"""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp
import optax
from flax import nnx

RULE = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


class Net(nnx.Module):
    """An LSTM and a readout of its last h."""

    def __init__(self, hidden: int):
        rngs = nnx.Rngs(0)
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(2, hidden, rngs=rngs), time_major=True)
        self.readout = nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(self, inputs):
        """``(T, B, 2)`` to ``(B, 1)``."""
        (_, h), _ = self.rnn(inputs, return_carry=True)
        return self.readout(h)


def main(steps: int, length: int, batch: int, hidden: int) -> None:
    """Train."""
    graph, params, rest = nnx.split(Net(hidden), nnx.Param, ...)
    state, key = RULE.init(params), jax.random.key(0)

    def draw(key):
        values, first, second = jax.random.split(key, 3)
        numbers = jax.random.uniform(values, (length, batch))
        marked = jax.nn.one_hot(jax.random.randint(first, batch, 0, length // 2), length, axis=0)
        other = jax.random.randint(second, batch, length // 2, length)
        marked = marked + jax.nn.one_hot(other, length, axis=0)
        return jnp.stack([numbers, marked], axis=-1), jnp.sum(numbers * marked, axis=0)[:, None]

    def loss(params, inputs, targets):
        return jnp.mean(jnp.square(nnx.merge(graph, params, rest, copy=True)(inputs) - targets))

    @jax.jit
    def step(params, state, key):
        key, own = jax.random.split(key)
        value, grads = jax.value_and_grad(loss)(params, *draw(own))
        updates, state = RULE.update(grads, state, params)
        return optax.apply_updates(params, updates), state, key, value

    params, state, key, value = jax.block_until_ready(step(params, state, key))
    print(f"step 0/{steps} loss {value:.4f}", flush=True)
    began = time.perf_counter()
    for _ in range(1, steps):
        params, state, key, value = step(params, state, key)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - began
    print(f"step {steps - 1}/{steps} loss {value:.4f} train_seconds {seconds:.6f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
