"""Speed of one training step and of the probes, as ratios within one run.

    python scripts/benchmark.py [--repeats 15] [--sizes 200,64,128 100,32,256 500,16,64]
    python scripts/benchmark.py --probes [--sizes 200,32,64] [--every 50] [--examples 4]
    python scripts/benchmark.py --population 16
    python scripts/benchmark.py --compare SWEEP…

For each cell and size (T, B, H) it times the gradient of a last-step loss: by Flax's own
``nnx.RNN`` and autodiff, by gradlab's unroll, and by gradlab's unroll with the adjoint of every
timestep and example measured. The variants take turns, and medians are compared, since machines
are noisy. Prints a table in Markdown with the machine, the versions and the date.

With ``--probes`` it times whole training steps of the adding problem instead: plain ones, one with
the step probes, and a look of each close probe alone, of those of ``probe=full`` together, and of
those of ``probe=research``. The cost of a run with either over one with ``probe=none`` follows from
how often each kind is made.

With ``--population`` it times whole sweeps over that many seeds (adding, T = 100, H = 32, 500
steps, with all that is recorded by default): by the population launcher, by Hydra's own launcher,
and one process for each. Wall time from start to end, and member-steps per second once steady.

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
import optax
from flax import nnx

from gradlab.analysis import probe_class, probe_names
from gradlab.bptt.unroll import make_taps, unroll
from gradlab.cells import GRU, LSTM, SimpleRNN
from gradlab.model import SequenceModel
from gradlab.probes.base import CloseProbe
from gradlab.probes.setting import setting_of, supported
from gradlab.tasks import Adding
from gradlab.training.optimizer import Optimizer
from gradlab.training.step import Steps

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
    parser.add_argument("--sizes", nargs="+", help="T,B,H; by default three, with --probes one")
    parser.add_argument("--probes", action="store_true", help="time the probes")
    parser.add_argument("--population", type=int, metavar="N", help="time sweeps of N members")
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
    elif options.compare:
        compare_table(options)
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
