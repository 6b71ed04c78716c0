"""Training steps of the adding problem, one with the step probes, and a look of each close probe.

What a run with ``probe=full`` or ``probe=research`` costs over one with ``probe=none`` follows from
how often each kind is made.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.timing import medians
from gradlab.analysis import probe_class, probe_names
from gradlab.cells import GRU, LSTM, SimpleRNN
from gradlab.model import SequenceModel
from gradlab.probes.base import CloseProbe
from gradlab.probes.setting import setting_of, supported
from gradlab.tasks import Adding
from gradlab.training.optimizer import Optimizer
from gradlab.training.step import Steps

CELLS = {"rnn": SimpleRNN, "lstm": LSTM, "gru": GRU}


def measure(options: Any) -> dict[str, Any]:
    """Time them for each cell and size (T, B, H)."""
    rows = []
    for name in options.cells or CELLS:
        for text in options.sizes or ["200,32,64"]:
            size = tuple(map(int, text.split(",")))
            took = medians(probe_variants(CELLS[name], size, options), options.repeats or 15)
            rows.append({"cell": name, "size": size, "ms": took})
    return {"rows": rows, "every": options.every, "log_every": options.log_every}


def show(found: dict[str, Any]) -> str:
    """A table for each of them."""
    lines, every = [], found["every"]
    for row in found["rows"]:
        took = dict(row["ms"])
        plain, probed = took.pop("plain") / every, took.pop("probed")
        measured = -(-every // found["log_every"])
        size = ", ".join(map(str, row["size"]))
        lines.append(f"{row['cell']}, T, B, H = {size}: plain step {plain:.2f} ms,")
        lines.append(f"probed step {probed:.2f} ms. {every} steps take, of the steps alone,")
        for preset in ("full", "research"):
            look = took.pop(preset)
            whole = plain * (every - measured) + measured * probed + look
            ratio = whole / plain / every
            lines.append(f"{ratio:.2f} with probe={preset}, whose close look takes {look:.1f} ms;")
        lines += ["", "| close probe, alone | ms | share of the plain steps between two looks |"]
        lines.append("|---|---|---|")
        for probe, each in sorted(took.items(), key=lambda item: -item[1]):
            lines.append(f"| {probe} | {each:.1f} | {100 * each / plain / every:.0f} % |")
        lines.append("")
    return "\n".join(lines)


def probe_variants(ours, size, options):
    """Compiled functions of no arguments, by name: steps, and looks of the close probes."""
    length, batch, hidden = size
    task = Adding(length=length, held_out_examples=2)
    sizes = {"features": 2, "hidden": hidden, "layers": 1, "outputs": 1, "readout": "last"}
    model = SequenceModel(ours, **sizes, rngs=nnx.Rngs(0))
    optimizer = Optimizer(optax.adam, steps=10, learning_rate=1e-3, clip_norm=1.0)
    setting = setting_of(model.layers, model.width, length=length, clips=True)
    probes = {name: probe_class(name)() for name in probe_names()}
    probes, _ = supported(probes, setting, by_preset=True)

    def steps(chosen):
        return Steps(model, task, optimizer, chosen, batch, examples=options.examples)

    full = steps(probes)
    state = full.start(jax.random.key(0))
    advance, probe = jax.jit(full.advance), jax.jit(full.probe)
    count = jnp.int32(options.every)
    found = {"plain": lambda: advance(state, (), count), "probed": lambda: probe(state, ())}

    def look(chosen):
        measure = jax.jit(steps(chosen).measure)
        return lambda: measure(state, ())

    found["full"] = look({k: one for k, one in probes.items() if one.preset != "research"})
    found["research"] = look(probes)
    for name, one in probes.items():
        if isinstance(one, CloseProbe):
            found[name] = look({name: one})
    return found
