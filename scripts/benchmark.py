"""Speed of one training step, as ratios within one run.

    python scripts/benchmark.py [--repeats 15] [--sizes 200,64,128 100,32,256 500,16,64]

For each cell and size (T, B, H) it times the gradient of a last-step loss: by Flax's own
``nnx.RNN`` and autodiff, by gradlab's unroll, and by gradlab's unroll with the adjoint of every
timestep and example measured. The variants take turns, and medians are compared, since machines
are noisy. Prints a table in Markdown with the machine, the versions and the date.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from datetime import date

import flax
import jax
import jax.numpy as jnp
from flax import nnx

from gradlab.cells import GRU, LSTM, SimpleRNN
from gradlab.unroll import make_taps, unroll

CELLS = {
    "rnn": (SimpleRNN, nnx.SimpleCell),
    "lstm": (LSTM, nnx.OptimizedLSTMCell),
    "gru": (GRU, nnx.GRUCell),
}
WIDTH = 8


def variants(ours, stock, size):
    """Compiled functions of no arguments, by name, that give the gradients once."""
    steps, batch, hidden = size
    inputs = jax.random.normal(jax.random.key(0), (steps, batch, WIDTH))
    cell, rnn = ours(WIDTH, hidden, rngs=nnx.Rngs(0)), stock(WIDTH, hidden, rngs=nnx.Rngs(0))
    graph, params = nnx.split(cell)
    stock_graph, stock_params = nnx.split(rnn)

    def flax_loss(params):
        outputs = nnx.RNN(nnx.merge(stock_graph, params, copy=True), time_major=True)(inputs)
        return jnp.mean(jnp.square(outputs[-1]))

    def loss(params, taps):
        own = nnx.merge(graph, params, copy=True)
        return jnp.mean(jnp.square(unroll([[own]], inputs, taps=taps, every=False).last))

    taps = make_taps([[cell]], inputs.shape)
    by_flax = jax.jit(jax.grad(flax_loss))
    plain = jax.jit(jax.grad(lambda params: loss(params, None)))
    measured = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return {
        "flax": lambda: by_flax(stock_params),
        "plain": lambda: plain(params),
        "measured": lambda: measured(params, taps),
    }


def medians(functions, repeats):
    """Median milliseconds of each function, in turns, compilation left out."""
    times = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            if repeat:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(each) for name, each in times.items()}


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", default=["200,64,128", "100,32,256", "500,16,64"])
    options = parser.parse_args()
    device = jax.devices()[0]
    print(
        f"{date.today()}, {platform.machine()}, {device.device_kind}, Python "
        f"{platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}\n"
    )
    print("| cell | T, B, H | Flax nnx.RNN, ms | gradlab / Flax | measured / gradlab |")
    print("|---|---|---|---|---|")
    for name, (ours, stock) in CELLS.items():
        for text in options.sizes:
            size = tuple(map(int, text.split(",")))
            took = medians(variants(ours, stock, size), options.repeats)
            print(
                f"| {name} | {', '.join(map(str, size))} | {took['flax']:.1f} "
                f"| {took['plain'] / took['flax']:.2f} "
                f"| {took['measured'] / took['plain']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
