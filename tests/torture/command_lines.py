"""Command lines that nobody should type, by a seed, and what became of each of them.

``run(300, seed=0)`` makes them and gives what is wrong with how they ended: a traceback, a refusal
that does not say what of, a hang, or a run that recorded nonsense. Each is run in a process of its
own, forked from one that has imported everything and used no device, so that a crash or a hang
costs one line only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests import ROOT
from tests.small import QUIET

SECONDS = 60
"""A line that takes longer hangs."""
MEMORY = 12 * 2**30
"""Bytes of addresses that a line may have."""
SMALL = (
    *("model.hidden=4", "trainer.steps=3", "trainer.batch=3", "trainer.log_every=2"),
    *("record.wandb.mode=disabled", *QUIET),
)
TASKS = {
    "adding": ("task.length=8", "task.held_out_examples=4"),
    "copying": ("task.length=21", "task.held_out_examples=4"),
    "dates": ("task.held_out_examples=4",),
    "digits": ("task.length=8",),
    "sunspots": ("task.length=8",),
    "temporal_order": ("task.length=10", "task.held_out_examples=4"),
    "text": ("task.length=8", "task.held_out_examples=4", "task.max_characters=20000"),
}
GROUPS = ("model", "task", "optimizer", "probe", "experiment")
VALUES = (
    *("nan", "inf", "-inf", "-1", "-0.5", "0", "-0.0", "1", "2", "0.5", "1e-300", "1e6", "1e30"),
    *("1e308", "1e999", "2147483647", "2147483648", "4294967296", str(2**63), str(2**70)),
    *(
        "1" * 400,
        "1" * 5000,
        "true",
        "false",
        "null",
        "None",
        "'1'",
        '"0.5"',
        "''",
        '""',
        "x",
        "foo bar",
    ),
    *("[]", "{}", "[1,1]", "[0.5,-1]", "{a: 1}", "{a:{b:[1]}}", "[[1]]", "[null]", "[2147483647]"),
    *("é", "数", "🙂", "a=b", "a:b", "\\", "'", '"', "[", "]", "{", "}", "(", "${", "???"),
    *("x" * 3000, "0x10", "1_000", "1e", "1,2", "range(2)", "choice(1,2)", "interval(0,1)"),
    *("${foo}", "${seed}", "${model.hidden}", "${oc.env:HOME}", "${oc.env:NOT_THERE}", "${now:%Y}"),
    *("${oc.select:foo,3}", "${hydra:job.num}", "${task}", "int(3.5)", "str(3)", "${..seed}"),
)
TARGETS = (
    *("builtins.dict", "math.sqrt", "builtins.print", "optax.sgd", "optax.adam", "optax", "os"),
    *("gradlab.cells.LSTM", "gradlab.cells.GRU", "gradlab.tasks.Adding", "gradlab.probes.Adjoint"),
    *("gradlab.regularizers.Omega", "flax.nnx.Linear", "flax.nnx.SimpleCell", "", "a..b", ".", "1"),
    *("gradlab.errors.BadInput", "jax.numpy.tanh", "optax.lion", "optax.constant_schedule", "é.x"),
    *("gradlab.cells.base.Cell", "gradlab.tasks.base.Task", "optax.chain", "optax.sgdd", "null"),
    *("collections.OrderedDict", "fractions.Fraction", "[1]", "optax.adafactor", "optax.lamb"),
)
FLAGS = (
    *("--help", "-h", "--cfg", "--cfg=job", "--cfg=foo", "--info", "--info=defaults", "--info=x"),
    *("--hydra-help", "--version", "--resolve", "--package", "--package=x", "-c", "-p", "--foo"),
    *("-m", "--multirun", "-x", "--", "-", "--config-name=x", "--config-dir=nowhere", "-cd", "-cn"),
    *("--config-path=nowhere", "--shell-completion", "--config-dir=", "--steps=3", "-1"),
)
RESUMES = (
    *("nowhere", "empty", "file", "auto", "", ".", "/", "/dev/null", "[]", "é", "x" * 3000, "3"),
    *("true", "'a b'", "broken", "empty/../broken", "{}", "~", "/proc/self"),
)
POPULATION = ("at_once", "workers", "max_members", "foo")
"""Keys of a launcher of our own."""
HYDRA = (
    *("hydra.run.dir=", "hydra.run.dir=a/b", "hydra.run.dir=file/x", "hydra.run.dir=null"),
    *("hydra.job.name=", "hydra.mode=foo", "hydra.mode=MULTIRUN", "hydra.verbose=foo"),
    *("hydra.sweep.dir=file", "hydra.job.chdir=x", "hydra.launcher=foo", "hydra/launcher=foo"),
    *(
        "hydra/launcher=population",
        "hydra.sweeper.max_batch_size=x",
        "hydra.searchpath=[file://nowhere]",
        "hydra.searchpath=3",
    ),
    *("hydra.run.dir=" + "x" * 300, "hydra.output_subdir=null", "hydra.output_subdir=3"),
    *("hydra.job.env_set=3", "hydra=null", "~hydra", "hydra.sweeper.params=3", "hydra.job.num=x"),
    *("hydra.job.config.override_dirname.kv_sep=3", "hydra/help=foo", "hydra.job_logging=null"),
    *("hydra/job_logging=default", "hydra.callbacks=null", "hydra.run=3", "hydra.sweep.subdir=é"),
)
PIECES = "=[]{}()$,.:@+~'\"\\ /*!#%&|<>?-_0123456789abcxyzé数\n\t"


class Finding(NamedTuple):
    """A line that did not end as it should: what is wrong, and what it printed."""

    line: list[str]
    wrong: str
    output: str


def lines(count: int, seed: int, kinds: Sequence[str] = ()) -> Iterator[list[str]]:
    """So many command lines, always the same for a seed; of ``kinds`` only, if some are named."""
    chance = random.Random(seed)
    makers = [MAKERS[kind] for kind in kinds] or list(MAKERS.values())
    for number in range(count):
        yield makers[number % len(makers)](chance)


def _number(chance: random.Random) -> list[str]:
    """Up to three keys of what is composed, with values that are not theirs."""
    chosen = _chosen(chance)
    keys = leaves(*chosen)
    picked = chance.sample(keys, chance.choice((1, 1, 1, 2, 3)))
    return [*chosen, *(f"{key}={chance.choice(VALUES)}" for key in picked)]


def _argument(chance: random.Random) -> list[str]:
    """An argument that the composed section does not name but its constructor may take."""
    chosen = _chosen(chance)
    keys = (
        *(
            "model.cell.dtype",
            "model.cell.param_dtype",
            "model.cell.kernel_init",
            "model.cell.rngs",
        ),
        *("model.cell.gate_fn", "model.cell.in_features", "model.cell.hidden_features"),
        *("optimizer.rule.mu_dtype", "optimizer.rule.eps_root", "optimizer.rule.nesterov"),
        *("optimizer.rule.momentum", "optimizer.rule.accumulator_dtype", "optimizer.rule.mask"),
        *(
            "optimizer.rule.learning_rate",
            "optimizer.rule.centered",
            "optimizer.rule.bias_correction",
        ),
        *("task.features", "task.data", "task.symbols", "probe.measure.adjoint.name", "record.foo"),
    )
    values = (*VALUES, "float99", "float16", "bfloat16", "float32", "int32", "float64", "complex64")
    return [*chosen, *(f"+{key}={chance.choice(values)}" for key in chance.sample(keys, 1))]


def _prefix(chance: random.Random) -> list[str]:
    """Keys and groups with ``+``, ``++`` and ``~``, right, wrong and renamed."""
    chosen = _chosen(chance)
    key = chance.choice(
        [*leaves(*chosen), *GROUPS, "foo", "model.foo", "trainer", "record", "seed"]
    )
    prefix = chance.choice(("+", "++", "~", "~", "~~", "+~", "~+"))
    if prefix == "~" and chance.random() < 0.7:
        return [*chosen, f"~{key}"]
    return [*chosen, f"{prefix}{key}={chance.choice(VALUES)}"]


def _typo(chance: random.Random) -> list[str]:
    """A line that was right, with one to three characters changed."""
    line = [*_chosen(chance), f"seed={chance.randrange(9)}"]
    spot = chance.randrange(len(line))
    text = line[spot]
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text) + 1)
        piece = chance.choice(PIECES)
        text = chance.choice(
            (
                text[:at] + text[at + 1 :],
                text[:at] + piece + text[at:],
                text[:at] + text[at : at + 2],
            )
        )
    line[spot] = text
    return line


def _group(chance: random.Random) -> list[str]:
    """Groups with options that they have not, several of them, elsewhere, or a value."""
    group = chance.choice((*GROUPS, "trainer", "record", "hydra/launcher", "foo"))
    option = chance.choice(
        (*VALUES, "lstm", "adding", "adam", "standard", "default", "none", "lstm.yaml", "../config")
    )
    form = chance.choice(("{g}={o}", "{g}=[{o},{o}]", "{g}@{o}={o}", "{g}@foo={o}", "+{g}@x.y={o}"))
    return [form.format(g=group, o=option)]


def _sweep(chance: random.Random) -> list[str]:
    """Sweeps over values that are not right, or not all of them."""
    key = chance.choice([*leaves(), *GROUPS, "foo"])
    one, other = (chance.choice(VALUES) for _ in range(2))
    values = chance.choice(
        (
            *(f"{one},{other}", "range(0)", "range(2)", f"choice({one},{other})", f"glob({one})"),
            *(f"interval({one},{other})", f"range({one},{other})", one, "*", ",", f"{one},"),
            *(f"shuffle({one},{other})", f"sort({one},{other})", f"tag(a,interval(0,{one}))"),
        )
    )
    if values.startswith("range") and max(map(len, (one, other))) > 6:
        values = "range(3,1)"  # not a sweep of billions
    return ["-m", f"{key}={values}"]


def _target(chance: random.Random) -> list[str]:
    """Another ``_target_``, or one of Hydra's other words beside it."""
    section = chance.choice(
        ("task", "model.cell", "optimizer.rule", "probe.measure.adjoint", "trainer.omega")
    )
    if chance.random() < 0.6:
        return [f"{section}._target_={chance.choice(TARGETS)}"]
    word = chance.choice(("_args_", "_partial_", "_convert_", "_recursive_", "_mode_", "_foo_"))
    return [f"+{section}.{word}={chance.choice((*VALUES, 'all', '[1]', 'true'))}"]


def _regularizer(chance: random.Random) -> list[str]:
    """A regularizer that is chosen, with options that are not its own."""
    name = chance.choice(("omega", "flossing", *VALUES))
    keys = [key for key in leaves() if key.startswith(("trainer.omega.", "trainer.flossing."))]
    chosen = [f"{key}={chance.choice(VALUES)}" for key in chance.sample(keys, 1)]
    return [f"trainer.regularizer={name}", *chosen]


def _flag(chance: random.Random) -> list[str]:
    """Flags of Hydra and others."""
    return [*chance.sample(FLAGS, chance.choice((1, 1, 2))), *_number(chance)[-1:]]


def _resume(chance: random.Random) -> list[str]:
    """What cannot be resumed."""
    others = _number(chance) if chance.random() < 0.3 else []
    return [*chance.choice(([], [], ["-m"])), f"trainer.resume={chance.choice(RESUMES)}", *others]


def _hydra(chance: random.Random) -> list[str]:
    """Hydra's own section, and that of a launcher."""
    if chance.random() < 0.3:
        key = f"hydra.launcher.{chance.choice(POPULATION)}"
        given = f"{key}={chance.choice(VALUES)}"
        return ["-m", "seed=1,2", "hydra/launcher=population", given]
    return [*chance.sample(HYDRA, 1), *chance.choice(([], ["-m"]))]


def _noise(chance: random.Random) -> list[str]:
    """Whatever."""
    return [
        "".join(chance.choices(PIECES, k=chance.choice((0, 1, 3, 10, 40))))
        for _ in range(chance.randint(1, 3))
    ]


MAKERS: Mapping[str, Callable[[random.Random], list[str]]] = {
    "number": _number,
    "argument": _argument,
    "prefix": _prefix,
    "typo": _typo,
    "another number": _number,
    "group": _group,
    "sweep": _sweep,
    "target": _target,
    "regularizer": _regularizer,
    "flag": _flag,
    "resume": _resume,
    "hydra": _hydra,
    "noise": _noise,
}


def _chosen(chance: random.Random) -> list[str]:
    """A few groups with options that exist."""
    picked = chance.sample(GROUPS[:4], chance.choice((0, 1, 1, 2)))
    return [f"{group}={chance.choice(options()[group])}" for group in picked]


@functools.cache
def options() -> dict[str, list[str]]:
    """The options of each group in ``conf/``."""
    return {
        group: sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
        for group in GROUPS
    }


@functools.cache
def leaves(*chosen: str) -> list[str]:
    """Every key of the configuration with these options, but Hydra's own."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from gradlab.record.keys import flat

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found: Any = OmegaConf.to_container(compose("config", overrides=list(chosen)))
    return sorted(flat(found))


def whole(line: Sequence[str]) -> list[str]:
    """The line, made a small run: what it says itself comes last."""
    if line[:1] and line[0].startswith("-") and line[0] not in ("-m", "--multirun"):
        return list(line)
    said = [part.partition("=") for part in line]
    tasks = [value for key, _, value in said if key == "task"]
    small = [*SMALL, *TASKS.get(tasks[-1] if tasks else "adding", TASKS["adding"])]
    if any(key in ("experiment", "+experiment") for key, _, _ in said):
        small = [*SMALL]
    spoken = {key.lstrip("+~") for key, _, _ in said}
    flags = [part for part in line if part.startswith("-")]
    rest = [part for part in line if not part.startswith("-")]
    return [*flags, *(one for one in small if one.partition("=")[0] not in spoken), *rest]


# What became of a line.


def wrong_with(code: int, out: str, err: str, folder: Path, seconds: float = 0) -> str:
    """What is wrong with how a line ended; empty if nothing is.

    Args:
      code: its exit code, negative for a signal.
      out, err: what it printed.
      folder: where it ran.
      seconds: how long it took.
    """
    if seconds >= SECONDS:
        return f"hangs: ended after {seconds:.0f} s"
    if "Traceback (most recent call last)" in err + out:
        return "a traceback"
    if code == 0:
        return _nonsense(folder)
    if code != 2:
        return f"exit code {code}"
    if _records(folder) and "of this sweep" not in err:
        return "refused, and a run recorded"
    messages = re.findall("^gradlab: (.*)$", err, re.MULTILINE)
    if not messages and re.match("usage: ", err):
        return "" if "error: " in err else "usage without a reason"
    if not messages:
        return "no message"
    if "composed" in messages[0]:
        return "a dump, and no message"
    if len(messages) > 1 and "of this sweep" not in messages[-1]:
        return "several messages"
    if not re.search(r"\S.*: (got|no|not|\w)", messages[0]):
        return "a message that names no key"
    if max(map(len, err.splitlines())) > 1500:
        return "a message too long to read"
    return ""


WITHIN: Mapping[str, tuple[float, float]] = {
    **{f"optimizer.rule.{key}": (0, 1) for key in ("b1", "b2", "decay", "momentum", "eps")},
    "optimizer.learning_rate": (0, 1e6),
    "optimizer.final_fraction": (0, 1),
    "seed": (0, 2**32 - 1),
    "trainer.steps": (1, 2**31 - 1),
    "trainer.batch": (1, 1e6),
    "model.hidden": (1, 1e5),
    "model.layers": (1, 100),
    "task.length": (1, 1e6),
    **{f"probe.measure.gate_saturation.{key}": (0, 1) for key in ("low", "high")},
    "probe.measure.gradient_mass.share": (0, 1),
}
"""Outside of these a recorded setting is nonsense, whatever came of it."""


def _records(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("run.json") if file.parent.name != "broken"]


def _nonsense(folder: Path) -> str:
    """What is wrong with the records of the runs below a folder; empty if nothing is."""
    from gradlab.record.keys import flat

    for file in _records(folder):
        info = json.loads(file.read_text())
        if info["status"] not in ("finished", "diverged"):
            return f"recorded as {info['status']}"
        for key, value in flat(info["config"]).items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, float) and not math.isfinite(one):
                    return f"recorded {key}={one}"
                if isinstance(one, int | float) and abs(one) > 1e30:
                    return f"recorded {key}={one}"
            if key in WITHIN and isinstance(value, bool | str | list | dict):
                return f"recorded {key}={value!r}"
            if key in WITHIN and value is not None:
                low, high = WITHIN[key]
                if not low <= value <= high:
                    return f"recorded {key}={value}"
        loss = info["summary"].get("train/loss")
        if info["status"] == "finished" and not (loss is not None and math.isfinite(loss)):
            return f"finished with a loss of {loss}"
    return ""


# Running them.


def run(
    count: int, seed: int, kinds: Sequence[str] = (), told: Callable[[str], None] | None = None
) -> list[Finding]:
    """What is wrong with so many lines; ``told`` hears of every line how it ended."""
    command = [sys.executable, "-m", "tests.torture.command_lines", str(count), str(seed), *kinds]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        findings = []
        for text in process.stdout:
            one = json.loads(text)
            if told is not None:
                told(f"{one['code']:4d} {one['seconds']:5.1f} s  {shlex.join(one['line'])[:160]}")
            if one["wrong"]:
                findings.append(Finding(one["line"], one["wrong"], one["output"]))
    if process.returncode != 0:
        raise RuntimeError(f"the lines ended with {process.returncode}")
    return findings


def one_line(line: Sequence[str], place: Path) -> dict[str, Any]:
    """Run a line in a process of its own; needs all imported beforehand and no device used."""
    folder = Path(tempfile.mkdtemp(dir=place))
    work = folder / "work"
    furnish(work)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be(whole(line), folder, work)
    finished, status = 0, 0
    while not finished and time.monotonic() - began < SECONDS:
        finished, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    seconds = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # with what it has started
    if not finished:
        status = os.waitpid(child, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    out, err = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    try:
        wrong = wrong_with(code, out, err, work, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    output = err[-3000:] or out[-500:]
    ended = {"code": code, "seconds": seconds, "wrong": wrong}
    return {"line": whole(line), **ended, "output": output}


def furnish(folder: Path) -> None:
    """Make what the lines speak of: folders that cannot be resumed, and a file."""
    for name in ("empty", "broken/checkpoints"):
        (folder / name).mkdir(parents=True)
    (folder / "file").write_text("some text")
    (folder / "broken" / "run.json").write_text("{")


def _be(arguments: Sequence[str], folder: Path, work: Path) -> None:
    """Become the command line; does not return."""
    code = 1
    try:
        os.setsid()
        os.chdir(work)
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.argv = ["gradlab", *arguments]
        from gradlab.__main__ import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  (as Python would end)
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _import_all() -> None:
    """All that a line may need, so that it is there when a line is forked off."""
    import gradlab.__main__
    import gradlab.launch.build
    import gradlab.launch.explain
    import gradlab.record.sinks
    import gradlab.run  # noqa: F401


def _main(count: int, seed: int, kinds: Sequence[str]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ["WANDB_MODE"] = "disabled"
    with tempfile.TemporaryDirectory(prefix="gradlab-lines-") as place:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(place, "compiled")))
        _import_all()
        for line in lines(count, seed, kinds):
            print(json.dumps(one_line(line, Path(place))), flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
