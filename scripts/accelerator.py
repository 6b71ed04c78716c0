"""Is gradlab right on the accelerator at hand, and how fast? In under five minutes.

    python scripts/accelerator.py [--out FOLDER] [--force] [--parts tests errors …]

Its parts, each a process of its own with a time limit; one that fails or takes too long is
reported, the rest still run, and the exit code is 1:

- tests: those marked ``accelerator``, which need pytest: adjoints against float64, down and up to
  10^±1505, a population by vmap, resuming, and a batch split over the devices.
- errors: of the measured adjoints against exact values and against numpy in float64, with matrix
  products in float32, as gradlab makes them, and in TF32, as JAX would by itself on a recent GPU.
- gradients: of an LSTM at several sizes (T, B, I, H), in milliseconds: Flax by scan, gradlab plain
  and measured, and where they are there cuDNN's LSTM by JAX and by PyTorch, which hand out no
  adjoints; all in float32. And Flax with products in TF32. Medians of calls in turns.
- population: member-steps per second of whole runs (adding, T = 100, H = 32, nothing measured on
  the way): one after another, which is what one run makes, and a population together by vmap.

Prints tables in Markdown with machine, versions and date; with --out they are also written there,
as accelerator.md and accelerator.json. Without an accelerator it says so, and does less on the CPU;
--force does all of it there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZES = ["100,50,2,64", "100,32,32,256", "200,64,2,128", "500,16,2,64", "784,64,1,128"]
WIDE = "512,256,64,512"
"""Beyond what a benchmark on a CPU takes; here it shows where arithmetic counts."""
PRECISIONS = ("float32", "tensorfloat32")
WORST = 1e-3
"""Largest error in decades with products in float32: at 1505 float32 has steps of 1.2e-4."""


# Each part prints lines of JSON, so that what came before a time limit counts.


def say(**found):
    """Hand a finding to the process that collects them."""
    print(json.dumps(found), flush=True)


def machine(_):
    """Which machine, which versions."""
    import jax

    say(
        date=str(date.today()),
        backend=jax.default_backend(),
        devices=[f"{one.device_kind} {one.id}" for one in jax.devices()],
        driver=asked("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        processor=f"{platform.machine()}, {os.cpu_count()} cores",
        python=platform.python_version(),
        versions={name: installed(name) for name in ("gradlab", "jax", "jaxlib", "flax", "torch")},
    )


def asked(*command):
    """What a command says, None where there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None


def installed(name):
    """The version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def tests(_):
    """The tests marked ``accelerator``, one after another."""
    sys.path.insert(0, str(ROOT))
    from tests.conftest import ACCELERATOR

    # pytest as it is: one process has the accelerator, and no plugin of the machine's.
    options = ["-m", "accelerator", "-o", "addopts=", "-v", "--color=no", "--tb=short"]
    for plugin in ("xdist", "benchmark", "cacheprovider"):
        options += ["-p", f"no:{plugin}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *(f"tests/{file}" for file in ACCELERATOR)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    outcomes, last = [], ""
    for last in process.stdout:
        print(last, end="", file=sys.stderr, flush=True)
        if found := OUTCOME.match(last):
            say(test=found[1], outcome=found[2].lower())
            outcomes.append(found[2])
    if process.wait() or "PASSED" not in outcomes:
        raise RuntimeError(f"pytest ended with {process.returncode}: {last.strip(' =')}")


OUTCOME = re.compile(r"(tests/\S+::.+) (PASSED|FAILED|SKIPPED|ERROR)\b")


def errors(_):
    """Errors of recorded log10, the largest over all timesteps."""
    import jax

    too_large = []
    for name, error in ERRORS.items():
        found = {}
        for precision in PRECISIONS:
            with jax.default_matmul_precision(precision):
                found[precision] = float(error())
        say(error=name, **found)
        if not found["float32"] < WORST:
            too_large.append(name)
    if too_large:
        raise RuntimeError(f"above {WORST:g} in float32: {'; '.join(too_large)}")


def last(outputs):
    """The loss of each example."""
    return outputs[:, -1].sum(-1)


def linear_error(w):
    """Of a linear unit h' = w h, whose adjoint is w to the lag, over 5000 steps."""
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from gradlab.analysis import analyze
    from gradlab.cells import SimpleRNN

    cell = SimpleRNN(1, 1, activation_fn="identity", rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.full((1, 1), w)
    found = analyze(cell, jnp.zeros((2, 5000, 1)), last, probes=["adjoint"])
    lag = np.arange(5000)[::-1]
    return np.abs(found["adj_h_log10"].values[0] - lag * np.log10(w)).max()


def halving_error():
    """Of an LSTM without weights, whose forget gate is 1/2, over 5000 steps."""
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from gradlab.analysis import analyze
    from gradlab.cells import LSTM

    zeros = nnx.initializers.zeros_init()
    free = dict.fromkeys(("kernel_init", "recurrent_kernel_init", "bias_init"), zeros)
    cell = LSTM(1, 4, forget_bias=0.0, **free, rngs=nnx.Rngs(0))
    found = analyze(cell, jnp.ones((2, 5000, 1)), last, probes=["adjoint"])
    lag = np.arange(5000)[:0:-1]  # at the last step all of it is in h; o of 4 units has the norm 1
    return np.abs(found["adj_c_log10"].values[0, :-1] - lag * np.log10(0.5)).max()


def lstm_error(name, batch=3, steps=200, width=2, hidden=64):
    """Of the norms of an LSTM's adjoints against numpy in float64."""
    import numpy as np
    from flax import nnx

    from gradlab.analysis import analyze
    from gradlab.cells import LSTM

    cell = LSTM(width, hidden, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(batch, steps, width)).astype(np.float32)
    found = analyze(cell, x, last, probes=["adjoint"])
    exact = lstm_adjoints(cell, x.astype(np.float64))
    return np.abs(found[f"adj_{name}_log10"].values[0, :-1] - exact[name][:-1]).max()


def lstm_adjoints(cell, x):
    """The mean over examples of log10 of the norms, ``(T,)`` each, by the equations by hand."""
    import numpy as np

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

WAYS = {
    "flax": "Flax",
    "plain": "gradlab",
    "measured": "gradlab, measured",
    "cudnn": "cuDNN by JAX",
    "torch": "cuDNN by PyTorch",
    "tf32": "Flax in TF32",
}
PEERS = ("cudnn", "torch")
"""Those that need not be there."""


def gradients(options):
    """The gradient of the mean square of an LSTM's last output, in several ways."""
    began, longest = time.perf_counter(), 0.0
    for text in options.sizes:
        started = time.perf_counter()
        if started - began + longest > PARTS["gradients"][1] - 10:
            say(size=text, ms={}, absent={"flax": "no time was left for " + text})
            continue
        steps, batch, width, hidden = map(int, text.split(","))
        calls, absent = lstm_ways(steps, batch, width, hidden)
        say(size=text, ms=medians(calls, options.repeats), absent=absent)
        longest = max(longest, time.perf_counter() - started)


def lstm_ways(steps, batch, width, hidden):
    """Functions that give the gradient once, by name; and why a peer's is not there."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from gradlab.bptt.unroll import make_taps, unroll
    from gradlab.cells import LSTM

    inputs = jax.random.normal(jax.random.key(0), (steps, batch, width))
    cell, stock = (one(width, hidden, rngs=nnx.Rngs(0)) for one in (LSTM, nnx.OptimizedLSTMCell))
    graph, params = nnx.split(cell)
    stock_graph, stock_params = nnx.split(stock)
    taps = make_taps([[cell]], inputs.shape)

    def flax_loss(params):
        outputs = nnx.RNN(nnx.merge(stock_graph, params, copy=True), time_major=True)(inputs)
        return jnp.mean(jnp.square(outputs[-1]))

    def loss(params, taps):
        own = nnx.merge(graph, params, copy=True)
        return jnp.mean(jnp.square(unroll([[own]], inputs, taps=taps, every=False).last))

    def by_flax(precision):
        with jax.default_matmul_precision(precision):
            gradient = jax.jit(jax.grad(flax_loss)).lower(stock_params).compile()
        return lambda: gradient(stock_params)

    plain = jax.jit(jax.grad(lambda params: loss(params, None)))
    measured = jax.jit(jax.grad(loss, argnums=(0, 1)))
    ways = {
        "flax": lambda: by_flax("float32"),
        "plain": lambda: lambda: plain(params),
        "measured": lambda: lambda: measured(params, taps),
        "cudnn": lambda: by_cudnn(steps, batch, width, hidden),
        "torch": lambda: by_torch(steps, batch, width, hidden),
        "tf32": lambda: by_flax("tensorfloat32"),
    }
    calls, absent = {}, {}
    for name, make in ways.items():
        try:
            calls[name] = make()
            jax.block_until_ready(calls[name]())  # compiles it
        except Exception as error:
            if name not in PEERS:
                raise
            calls.pop(name, None)
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return calls, absent


def by_cudnn(steps, batch, width, hidden):
    """The same gradient by cuDNN's LSTM, as JAX offers it."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "gpu":
        raise RuntimeError("there is no cuDNN without a GPU")
    from jax.experimental import rnn

    weights = rnn.init_lstm_weight(jax.random.key(0), width, hidden, 1, False)
    inputs = jax.random.normal(jax.random.key(0), (batch, steps, width))
    start, lengths = jnp.zeros((1, batch, hidden)), jnp.full((batch,), steps, jnp.int32)

    def loss(weights):
        sizes = (width, hidden, 1, 0.0, False)
        outputs, *_ = rnn.lstm(inputs, start, start, weights, lengths, *sizes)
        return jnp.mean(jnp.square(outputs[:, -1]))

    gradient = jax.jit(jax.grad(loss))

    def call():
        with jax.default_matmul_precision("float32"):
            return gradient(weights)

    return call


def by_torch(steps, batch, width, hidden):
    """The same by PyTorch."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    lstm = torch.nn.LSTM(width, hidden).cuda()
    inputs = torch.randn(steps, batch, width, device="cuda")

    def gradient():
        lstm.zero_grad(set_to_none=True)
        lstm(inputs)[0][-1].square().mean().backward()
        torch.cuda.synchronize()

    return gradient


def medians(functions, repeats):
    """Median milliseconds of each function, which has been called before, in turns."""
    import jax

    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(each) for name, each in times.items()}


def population(options):
    """Member-steps per second of whole runs."""
    together = ["-m", "hydra/launcher=population", f"seed=range({options.members})"]
    together.append(f"hydra.launcher.at_once={options.members}")
    ways = {"one run after another": (1, []), "together": (options.members, together)}
    for name, (members, words) in ways.items():
        say(way=name, members=members, rate=members * rate(words))


def rate(words):
    """Steps per second of each run that a command line makes, the median."""
    sizes = ["experiment=adding", "model.hidden=32", "trainer.steps=400", "trainer.log_every=400"]
    sizes += ["trainer.eval_every=400", "trainer.checkpoint_seconds=null", "probe=none"]
    sizes += ["record.wandb.mode=disabled", "record.figures=false", "record.terminal=false"]
    with tempfile.TemporaryDirectory() as folder:
        where = [f"hydra.run.dir={folder}/run", f"hydra.sweep.dir={folder}/runs"]
        command = [sys.executable, "-m", "gradlab", *words, *sizes, *where]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(" ".join((done.stderr or done.stdout).split())[-300:])
        infos = [json.loads(path.read_text()) for path in Path(folder).rglob("run.json")]
    return statistics.median(one["steps_per_second"] for one in infos)


PARTS = {
    "tests": (tests, 105),
    "errors": (errors, 45),
    "gradients": (gradients, 80),
    "population": (population, 50),
}
"""What is done, and for how many seconds at most; with the machine less than five minutes."""
LOOK = 20
"""Seconds in which a machine says what it is."""


def main() -> int:
    """Do all parts; gives the exit code."""
    options = arguments()
    if options.part:
        one = machine if options.part == "machine" else PARTS[options.part][0]
        one(options)
        return 0
    found = {"machine": collected("machine", [], LOOK)}
    on_cpu = (found["machine"]["found"] or [{}])[0].get("backend") == "cpu"
    if on_cpu:
        less = "all of it is done on the CPU" if options.force else "less is done on the CPU"
        print(f"There is no accelerator here: {less}.\n")
    small = on_cpu and not options.force
    words = ["--sizes", *(options.sizes or (SIZES[:1] if small else [*SIZES, WIDE]))]
    words += ["--repeats", str(options.repeats), "--members", str(4 if small else options.members)]
    for name in options.parts:
        found[name] = collected(name, words, PARTS[name][1])
    text = shown(found)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "accelerator.md").write_text(text, encoding="utf-8")
        (options.out / "accelerator.json").write_text(json.dumps(found, indent=1) + "\n")
    return 1 if any(part["failed"] for part in found.values()) else 0


def arguments():
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write the results, too"
    )
    parser.add_argument("--force", action="store_true", help="all of it on a CPU, too")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", help="T,B,I,H of the gradients")
    parser.add_argument("--repeats", type=int, default=15, help="calls of each gradient")
    parser.add_argument("--members", type=int, default=64, help="of the population")
    parser.add_argument("--part", choices=["machine", *PARTS], help=argparse.SUPPRESS)
    return parser.parse_args()


def collected(part, words, seconds):
    """What a part found, in a process of its own, and why it failed if it did."""
    print(f"{part}, at most {seconds} s", file=sys.stderr, flush=True)
    environment = {
        "JAX_PLATFORMS": "",  # the best there is, unless somebody has said which
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # a part has processes of its own
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",  # what the tests save by is not what is used
        "XLA_FLAGS": "",
    }
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [sys.executable, __file__, "--part", part, *words],
            env=environment | os.environ | {"PYTHONPATH": path},
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # to be ended with all that it started
        )
        try:
            _, said = process.communicate(timeout=seconds)
            reason = said.strip().splitlines()[-1:] if process.returncode else []
        except subprocess.TimeoutExpired:
            reason = [f"took more than {seconds} s"]
            os.killpg(process.pid, 9)
            process.communicate()
        out.seek(0)
        found = [json.loads(line) for line in out if line.startswith("{") and line.endswith("\n")]
    taken = round(time.perf_counter() - began, 1)
    return {"found": found, "failed": reason[0] if reason else None, "seconds": taken}


def shown(found):
    """Everything as Markdown."""
    lines = []
    for name, part in found.items():
        lines += [f"## {name}, {part['seconds']:.0f} s", "", *TABLES[name](part["found"])]
        if part["failed"]:
            lines += ["", f"**failed**: {part['failed']}"]
        lines.append("")
    return "\n".join(lines)


def machine_lines(found):
    """As a list."""
    facts = found[0] if found else {}
    versions = facts.pop("versions", {}) if (facts := dict(facts)) else {}
    facts |= {name: one for name, one in versions.items() if one}
    return [f"- {name}: {value}" for name, value in facts.items() if value]


def test_lines(found):
    """How many passed, and those that did not."""
    passed = sum(one["outcome"] == "passed" for one in found)
    others = [f"- {one['outcome']}: {one['test']}" for one in found if one["outcome"] != "passed"]
    return [f"{passed} of {len(found)} passed", *others]


def error_lines(found):
    """A row for each error."""
    lines = [f"| error, in decades | {' | '.join(PRECISIONS)} |", "|---|---|---|"]
    for one in found:
        lines.append(f"| {one['error']} | {' | '.join(f'{one[p]:.1e}' for p in PRECISIONS)} |")
    return lines


def gradient_lines(found):
    """Milliseconds of Flax, and the others' over it."""
    ways = list(WAYS)[1:]
    lines = [f"| T, B, I, H | Flax, ms | {' | '.join(f'{WAYS[w]} / Flax' for w in ways)} |"]
    lines.append("|---|---|" + "---|" * len(ways))
    absent = {}
    for one in found:
        took, absent = one["ms"], absent | one["absent"]
        flax = took.get("flax")
        ratios = [f"{took[w] / flax:.2f}" if flax and w in took else "" for w in ways]
        first = f"{flax:.2f}" if flax else ""
        lines.append(f"| {one['size']} | {first} | {' | '.join(ratios)} |")
    return lines + [f"\nnot measured: {WAYS[name]}: {why}" for name, why in absent.items()]


def population_lines(found):
    """A row for each way."""
    lines = ["| | members | member-steps per second |", "|---|---|---|"]
    return lines + [f"| {one['way']} | {one['members']} | {one['rate']:.0f} |" for one in found]


TABLES = {
    "machine": machine_lines,
    "tests": test_lines,
    "errors": error_lines,
    "gradients": gradient_lines,
    "population": population_lines,
}


if __name__ == "__main__":
    sys.exit(main())
