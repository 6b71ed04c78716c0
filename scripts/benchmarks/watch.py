"""A whole training step of anyone's module under ``nnx.jit``, watched and not.

Embedding, two stacked ``nnx.RNN(OptimizedLSTMCell)``, readout, cross-entropy, Adam: by
``nnx.value_and_grad``, and watched by ``gradlab.value_and_grad``, with the gates of 8 examples and
of all.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from flax import nnx

from benchmarks.timing import medians
from gradlab.watching.gradient import value_and_grad
from gradlab.watching.watch import watch


def measure(options: Any) -> dict[str, Any]:
    """Time them at each size (T, B, H)."""
    rows = []
    for text in options.sizes or ["50,32,64", "100,32,64", "100,64,128", "200,64,128"]:
        size = tuple(map(int, text.split(",")))
        took = medians(watch_variants(size), options.repeats or 15)
        rows.append({"size": size, "ms": took})
    return {"rows": rows}


def show(found: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "| T, B, H | unwatched, ms | watched / unwatched | with all gates / unwatched |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        took = row["ms"]
        ratios = [f"{took[way] / took['unwatched']:.2f}" for way in ("watched", "all gates")]
        size = ", ".join(map(str, row["size"]))
        lines.append(f"| {size} | {took['unwatched']:.1f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


class Reader(nnx.Module):
    """Symbols in, a class out."""

    def __init__(self, hidden, rngs, symbols=16):
        self.embed = nnx.Embed(symbols, hidden, rngs=rngs)
        self.lower, self.upper = (
            nnx.RNN(nnx.OptimizedLSTMCell(hidden, hidden, rngs=rngs)) for _ in range(2)
        )
        self.readout = nnx.Linear(hidden, symbols, rngs=rngs)

    def __call__(self, x):
        """The logits of the last step."""
        return self.readout(self.upper(self.lower(self.embed(x)))[:, -1])


def watch_variants(size):
    """Functions of no arguments, by name, that make one training step each."""
    steps, batch, hidden = size
    x = jax.random.randint(jax.random.key(0), (batch, steps), 0, 16)

    def loss(model, x):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), x[:, 0]).mean()

    def stepping(differentiate, prepare=lambda model: model):
        model = prepare(Reader(hidden, nnx.Rngs(0)))
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer, x):
            value, grads, *seen = differentiate(model, x)
            optimizer.update(model, grads)
            return value, seen

        return lambda: step(model, optimizer, x)

    return {
        "unwatched": stepping(nnx.value_and_grad(loss)),
        "watched": stepping(value_and_grad(loss), watch),
        "all gates": stepping(value_and_grad(loss, examples=None), watch),
    }
