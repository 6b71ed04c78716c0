"""Speed of one training step and of the probes, as ratios within one run.

    python scripts/benchmark.py [--repeats 15] [--sizes 200,64,128 100,32,256 500,16,64]
    python scripts/benchmark.py --probes [--sizes 200,32,64] [--every 50] [--examples 4]
    python scripts/benchmark.py --watch [--sizes 50,32,64 100,64,128]
    python scripts/benchmark.py --population 16
    python scripts/benchmark.py --accelerator [--sizes 200,64,2,128]
    python scripts/benchmark.py --compare SWEEP…

For each cell and size (T, B, H) it times the gradient of a last-step loss: by Flax's own
``nnx.RNN`` and autodiff, by gradlab's unroll, and by gradlab's unroll with the adjoint of every
timestep and example measured. The variants take turns, and medians are compared, since machines
are noisy. Prints a table in Markdown with the machine, the versions and the date.

With ``--probes`` it times whole training steps of the adding problem instead: plain ones, one with
the step probes, and a look of each close probe alone, of those of ``probe=full`` together, and of
those of ``probe=research``. The cost of a run with either over one with ``probe=none`` follows from
how often each kind is made.

With ``--watch`` it times a whole training step of anyone's module under ``nnx.jit`` (embedding,
two stacked ``nnx.RNN(OptimizedLSTMCell)``, readout, cross-entropy, Adam): by
``nnx.value_and_grad``, and watched by ``gradlab.value_and_grad``, with the gates of 8 examples and
of all.

With ``--population`` it times whole sweeps over that many seeds (adding, T = 100, H = 32, 500
steps, with all that is recorded by default): by the population launcher, by Hydra's own launcher,
and one process for each. Wall time from start to end, and member-steps per second once steady.

With ``--accelerator`` it asks what a GPU gives. First the errors of the measurements against exact
values and against float64, with matrix products in float32, as gradlab makes them, and in TF32, as
JAX would by itself on a recent GPU. Then, for each size (T, B, I, H), the gradient of an LSTM by
Flax, by gradlab plain and measured, and by cuDNN from JAX and PyTorch where they are there, all in
float32; and by Flax in TF32.

With ``--compare`` it makes the compare page of each folder of runs, as a process, and opens it in
Chromium (playwright, in the extra ``dev``): seconds to make it, its size, seconds until everything
is drawn, and milliseconds for the slider to move every curve, as mean over seeds and with a line a
run. The median of several.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gradlab.analysis import analyze, probe_class, probe_names
from gradlab.bptt.unroll import make_taps, unroll
from gradlab.cells import GRU, LSTM, SimpleRNN
from gradlab.model import SequenceModel
from gradlab.probes.base import CloseProbe
from gradlab.probes.setting import setting_of, supported
from gradlab.tasks import Adding
from gradlab.training.optimizer import Optimizer
from gradlab.training.step import Steps
from gradlab.watching.gradient import value_and_grad
from gradlab.watching.watch import watch

CELLS = {
    "rnn": (SimpleRNN, nnx.SimpleCell),
    "lstm": (LSTM, nnx.OptimizedLSTMCell),
    "gru": (GRU, nnx.GRUCell),
}
WIDTH = 8


def variants(ours, stock, size, width=WIDTH):
    """Compiled functions of no arguments, by name, that give the gradients once."""
    steps, batch, hidden = size
    inputs = jax.random.normal(jax.random.key(0), (steps, batch, width))
    cell, rnn = ours(width, hidden, rngs=nnx.Rngs(0)), stock(width, hidden, rngs=nnx.Rngs(0))
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
    parser.add_argument("--sizes", nargs="+", help="T,B,H, or T,B,I,H with --accelerator")
    parser.add_argument("--probes", action="store_true", help="time the probes")
    parser.add_argument("--watch", action="store_true", help="time anyone's module, watched")
    parser.add_argument("--population", type=int, metavar="N", help="time sweeps of N members")
    parser.add_argument("--accelerator", action="store_true", help="errors, and times beside cuDNN")
    parser.add_argument("--compare", nargs="+", metavar="SWEEP", help="time compare pages")
    parser.add_argument("--every", type=int, default=50, help="probe.every")
    parser.add_argument("--log-every", type=int, default=10, help="trainer.log_every")
    parser.add_argument("--examples", type=int, default=4, help="probe.examples")
    options = parser.parse_args()
    device = jax.devices()[0]
    print(
        f"{date.today()}, {platform.machine()}, {device.device_kind}, Python "
        f"{platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}\n"
    )
    if options.population:
        population_table(options)
    elif options.watch:
        watch_table(options)
    elif options.compare:
        compare_table(options)
    elif options.accelerator:
        error_table()
        accelerator_table(options)
    else:
        (probe_table if options.probes else step_table)(options)


def step_table(options):
    """Time gradients."""
    print("| cell | T, B, H | Flax nnx.RNN, ms | gradlab / Flax | measured / gradlab |")
    print("|---|---|---|---|---|")
    for name, (ours, stock) in CELLS.items():
        for text in options.sizes or ["200,64,128", "100,32,256", "500,16,64"]:
            size = tuple(map(int, text.split(",")))
            took = medians(variants(ours, stock, size), options.repeats)
            print(
                f"| {name} | {', '.join(map(str, size))} | {took['flax']:.1f} "
                f"| {took['plain'] / took['flax']:.2f} "
                f"| {took['measured'] / took['plain']:.2f} |",
                flush=True,
            )


def probe_table(options):
    """Time the probes."""
    for name, (ours, _) in CELLS.items():
        for text in options.sizes or ["200,32,64"]:
            size = tuple(map(int, text.split(",")))
            took = medians(probe_variants(ours, size, options), options.repeats)
            plain, every = took.pop("plain") / options.every, options.every
            probed = took.pop("probed")
            rows = -(-every // options.log_every)
            print(f"\n{name}, T, B, H = {', '.join(map(str, size))}: plain step {plain:.2f} ms, ")
            print(f"probed step {probed:.2f} ms. {every} steps take, of the steps alone,")
            for preset in ("full", "research"):
                look = took.pop(preset)
                whole = plain * (every - rows) + rows * probed + look
                ratio = whole / plain / every
                print(f"{ratio:.2f} with probe={preset}, whose close look takes {look:.1f} ms;")
            print()
            print("| close probe, alone | ms | share of the plain steps between two looks |")
            print("|---|---|---|")
            for probe, each in sorted(took.items(), key=lambda item: -item[1]):
                share = each / plain / every
                print(f"| {probe} | {each:.1f} | {100 * share:.0f} % |", flush=True)


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


def watch_table(options):
    """Time training steps of anyone's module."""
    print("| T, B, H | unwatched, ms | watched / unwatched | with all gates / unwatched |")
    print("|---|---|---|---|")
    for text in options.sizes or ["50,32,64", "100,32,64", "100,64,128", "200,64,128"]:
        size = tuple(map(int, text.split(",")))
        took = medians(watch_variants(size), options.repeats)
        ratios = [f"{took[way] / took['unwatched']:.2f}" for way in ("watched", "all gates")]
        shown = f"{', '.join(map(str, size))} | {took['unwatched']:.1f} | {' | '.join(ratios)}"
        print(f"| {shown} |", flush=True)


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


PRECISIONS = ("float32", "tensorfloat32")


def error_table():
    """Measure errors of recorded log10, the largest over all timesteps."""
    print("| error, in decades | " + " | ".join(PRECISIONS) + " |")
    print("|---|---|---|")
    for name, error in ERRORS.items():
        cells = []
        for precision in PRECISIONS:
            with jax.default_matmul_precision(precision):
                cells.append(f"{error():.1e}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()


def last(outputs):
    """The loss of each example."""
    return outputs[:, -1].sum(-1)


def linear_error(w):
    """Of a linear unit h' = w h, whose adjoint is w to the lag, over 5000 steps."""
    cell = SimpleRNN(1, 1, activation_fn="identity", rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.full((1, 1), w)
    found = analyze(cell, jnp.zeros((2, 5000, 1)), last, probes=["adjoint"])
    lag = np.arange(5000)[::-1]
    return np.abs(found["adj_h_log10"].values[0] - lag * np.log10(w)).max()


def halving_error():
    """Of an LSTM without weights, whose forget gate is 1/2, over 5000 steps."""
    zeros = nnx.initializers.zeros_init()
    free = dict.fromkeys(("kernel_init", "recurrent_kernel_init", "bias_init"), zeros)
    cell = LSTM(1, 4, forget_bias=0.0, **free, rngs=nnx.Rngs(0))
    found = analyze(cell, jnp.ones((2, 5000, 1)), last, probes=["adjoint"])
    lag = np.arange(5000)[:0:-1]  # at the last step all of it is in h; o of 4 units has the norm 1
    return np.abs(found["adj_c_log10"].values[0, :-1] - lag * np.log10(0.5)).max()


def lstm_error(name, batch=3, steps=200, width=2, hidden=64):
    """Of the norms of an LSTM's adjoints against numpy in float64."""
    cell = LSTM(width, hidden, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(batch, steps, width)).astype(np.float32)
    found = analyze(cell, x, last, probes=["adjoint"])
    exact = lstm_adjoints(cell, x.astype(np.float64))
    return np.abs(found[f"adj_{name}_log10"].values[0, :-1] - exact[name][:-1]).max()


def lstm_adjoints(cell, x):
    """The mean over examples of log10 of the norms, ``(T,)`` each, by the equations by hand."""
    w, u, b = (
        np.asarray(one[...], np.float64)
        for one in (cell.dense_i.kernel, cell.dense_h.kernel, cell.dense_h.bias)
    )
    batch, steps, _ = x.shape
    h = c = np.zeros((batch, len(u)))
    went = []
    for t in range(steps):
        i, f, g, o = np.split(x[:, t] @ w + h @ u + b, 4, axis=-1)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        g, before = np.tanh(g), c
        c = f * c + i * g
        h = o * np.tanh(c)
        went.append((i, f, g, o, before, np.tanh(c)))
    by_h, by_c = np.ones_like(h), np.zeros_like(c)
    norms = {"h": [], "c": []}
    for i, f, g, o, before, squashed in reversed(went):
        with np.errstate(divide="ignore"):  # at the last step all of it is in h
            for name, own in (("h", by_h), ("c", by_c)):
                norms[name].append(np.log10(np.linalg.norm(own, axis=-1)).mean())
        by_c = by_c + by_h * o * (1 - squashed**2)
        by_gates = [
            by_c * g * i * (1 - i),
            by_c * before * f * (1 - f),
            by_c * i * (1 - g**2),
            by_h * squashed * o * (1 - o),
        ]
        by_h, by_c = np.concatenate(by_gates, axis=-1) @ u.T, by_c * f
    return {name: np.array(values[::-1]) for name, values in norms.items()}


ERRORS = {
    "linear unit, w = 0.5, T = 5000 (to 10^-1505)": lambda: linear_error(0.5),
    "linear unit, w = 2, T = 5000 (to 10^1505)": lambda: linear_error(2.0),
    "LSTM, forget gate 1/2, T = 5000 (to 10^-1505)": halving_error,
    "LSTM, H = 64, T = 200, ∂ℓ/∂h against numpy float64": lambda: lstm_error("h"),
    "LSTM, H = 64, T = 200, ∂ℓ/∂c against numpy float64": lambda: lstm_error("c"),
}

ACCELERATOR_SIZES = [
    "100,50,2,64",
    "200,64,2,128",
    "100,32,32,256",
    "500,16,2,64",
    "784,64,1,128",
    "512,256,64,512",
]

WAYS = {
    "plain": "gradlab",
    "measured": "gradlab, measured",
    "cudnn": "cuDNN by JAX",
    "torch": "cuDNN by PyTorch",
    "tf32": "Flax in TF32",
}


def accelerator_table(options):
    """Time the gradient of an LSTM in several ways."""
    print("Milliseconds of Flax, and the others' over it\n")
    print(f"| T, B, I, H | Flax, ms | {' | '.join(WAYS.values())} |")
    print("|---|---|" + "---|" * len(WAYS))
    for text in options.sizes or ACCELERATOR_SIZES:
        size = tuple(map(int, text.split(",")))
        took = medians(lstm_variants(*size), options.repeats)
        ratios = [f"{took[way] / took['flax']:.2f}" if way in took else "" for way in WAYS]
        shown = f"{', '.join(map(str, size))} | {took['flax']:.2f} | {' | '.join(ratios)}"
        print(f"| {shown} |", flush=True)


def lstm_variants(steps, batch, width, hidden):
    """Functions of no arguments, by name, that give the gradients of an LSTM once."""
    found = variants(*CELLS["lstm"], (steps, batch, hidden), width)
    in_tf32 = variants(*CELLS["lstm"], (steps, batch, hidden), width)["flax"]
    for name, make in (("cudnn", by_cudnn), ("torch", by_torch)):
        if (call := make(steps, batch, width, hidden)) is not None:
            found[name] = call
    found = {name: with_products_in("float32", call) for name, call in found.items()}
    return found | {"tf32": with_products_in("tensorfloat32", in_tf32)}


def with_products_in(precision, function):
    """The same function under this setting of JAX."""

    def call():
        with jax.default_matmul_precision(precision):
            return function()

    return call


def by_cudnn(steps, batch, width, hidden):
    """The same gradient by cuDNN's LSTM, as JAX offers it; None where there is none."""
    if jax.default_backend() != "gpu":
        return None
    from jax.experimental import rnn

    weights = rnn.init_lstm_weight(jax.random.key(0), width, hidden, 1, False)
    inputs = jax.random.normal(jax.random.key(0), (batch, steps, width))
    start, lengths = jnp.zeros((1, batch, hidden)), jnp.full((batch,), steps, jnp.int32)

    def loss(weights):
        sizes = (width, hidden, 1, 0.0, False)
        outputs, *_ = rnn.lstm(inputs, start, start, weights, lengths, *sizes)
        return jnp.mean(jnp.square(outputs[:, -1]))

    gradient = jax.jit(jax.grad(loss))
    return lambda: gradient(weights)


def by_torch(steps, batch, width, hidden):
    """The same by PyTorch; None where it or its GPU is not there."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    lstm = torch.nn.LSTM(width, hidden).cuda()
    inputs = torch.randn(steps, batch, width, device="cuda")

    def gradient():
        lstm.zero_grad(set_to_none=True)
        lstm(inputs)[0][-1].square().mean().backward()
        torch.cuda.synchronize()

    return gradient


def population_table(options):
    """Time sweeps, each way in turn."""
    members = options.population
    seeds = [f"seed={seed}" for seed in range(members)]
    ways = {
        "population launcher": [["-m", "hydra/launcher=population", f"seed=range({members})"]],
        "one after another": [["-m", f"seed=range({members})"]],
        "a process each": [[seed] for seed in seeds],
    }
    took = {way: sweep(commands) for way, commands in ways.items()}
    first, _ = took["population launcher"]
    print(f"{members} members, by their wall time from start to end\n")
    print("| sweep | wall, s | population / this | member-steps per second |")
    print("|---|---|---|---|")
    for way, (seconds, rate) in took.items():
        print(f"| {way} | {seconds:.1f} | 1/{seconds / first:.1f} | {rate:.0f} |")


def sweep(commands):
    """Seconds that commands take one after another, and member-steps per second of their runs."""
    sizes = ["experiment=adding", "task.length=100", "model.hidden=32", "trainer.steps=500"]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for command in commands:
            whole = [sys.executable, "-m", "gradlab", *command, *sizes]
            subprocess.run(whole, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        infos = [json.loads(path.read_text()) for path in Path(folder).rglob("run.json")]
    rates = [one["steps_per_second"] * one["timings"].get("members", 1) for one in infos]
    return seconds, statistics.median(rates)


def compare_table(options):
    """Time the pages of folders of runs."""
    from playwright.sync_api import sync_playwright

    from screenshot import FLAGS

    print("| runs | made, s | MB | opened, s | slider, ms | slider, a line a run, ms |")
    print("|---|---|---|---|---|---|")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for number, sweep in enumerate(options.compare):
            out = Path(folder) / f"{number}.html"
            began = time.perf_counter()
            command = [sys.executable, "-m", "gradlab.compare", sweep, "--out", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            made = time.perf_counter() - began
            opened, grouped, every, runs = page_times(browser, out)
            size = out.stat().st_size / 1e6
            print(
                f"| {runs} | {made:.1f} | {size:.1f} | {opened:.2f} | {grouped:.0f} | {every:.0f} |"
            )
        browser.close()


SLIDE = """async (places) => {
  const took = [];
  for (const place of places) {
    const range = document.getElementById("step");
    const began = performance.now();
    range.value = String(Math.round(place * Number(range.max)));
    range.dispatchEvent(new Event("input"));
    await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn, 0)));
    took.push(performance.now() - began);
  }
  return took;
}"""


def page_times(browser, path):
    """Seconds to open, milliseconds of the slider in two ways, and how many runs are shown."""
    took = []
    for _ in range(3):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        took.append(time.perf_counter() - began)
    places = [k / 20 for k in range(20)]
    grouped = statistics.median(page.evaluate(SLIDE, places))
    page.get_by_label("lines", exact=True).select_option("")
    every = statistics.median(page.evaluate(SLIDE, places))
    return statistics.median(took), grouped, every, page.evaluate("Store.runs.length")


if __name__ == "__main__":
    main()
