"""Made-up sweeps: run directories as gradlab writes them, without a training."""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from pathlib import Path

from gradlab.record.base import Outcome
from gradlab.record.directory import RunDirectory, plain
from tests.record.synthetic import describe

CELLS = {
    "lstm": {"_target_": "gradlab.cells.LSTM", "forget_bias": 1.0},
    "rnn": {"_target_": "gradlab.cells.SimpleRNN", "activation_fn": "tanh"},
}
BASE = {
    "seed": 0,
    "model": {"hidden": 8, "layers": 1, "cell": CELLS["lstm"]},
    "optimizer": {"learning_rate": 0.01, "clip_norm": 1.0},
    "task": {"_target_": "gradlab.tasks.adding.Adding", "length": 8},
    "trainer": {"steps": 4, "resume": None},
    "record": {"figures": True},
}


def make_run(
    folder, overrides=(), summary=None, status="finished", reason="", steps=4, settings=None
):
    """A run in ``folder`` whose configuration is what ``overrides`` make of :data:`BASE`.

    ``settings`` are keys that nobody asked for. Without arrays, which nobody here reads.
    """
    said = dict(one.split("=", 1) for one in overrides)
    config = json.loads(json.dumps(BASE))
    model = said.get("model", "lstm")
    config["model"]["cell"] = dict(CELLS[model])
    for key, text in {**said, **(settings or {})}.items():
        if key not in ("model", "experiment"):
            *path, last = key.split(".")
            node = config
            for name in path:
                node = node[name]
            node[last] = read(text)
    info = json.loads(recorded())
    info["facts"]["model"] = model
    info |= {
        "name": said.get("experiment", "adding"),
        "status": "running" if status == "killed" else status,
        "reason": reason,
        "config": config,
        "overrides": list(overrides),
    }
    if status != "killed":
        info["summary"] = plain({"steps": float(steps), **(summary or {})})
        info |= {"steps_per_second": 100.0, "probe_overhead": 1.5}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(info, allow_nan=False))
    return folder


@functools.cache
def recorded():
    """``run.json`` of a run that has begun, as gradlab writes it."""
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder) / "run")
        directory.open(describe(T=8, steps=4))
        text = (directory.path / "run.json").read_text(encoding="utf-8")
        directory.close(Outcome("finished"))
    return text


def read(value):
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def make_sweep(folder, summary, **axes):
    """A run for each combination; ``summary(*values)`` gives figures, None for no run there."""
    keys = [key.replace("__", ".") for key in axes]
    numbers = itertools.count()
    for values in itertools.product(*axes.values()):
        figures = summary(*values)
        number = next(numbers)
        if figures is not None:
            said = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
            status = figures.pop("status", "finished")
            make_run(Path(folder) / str(number), said, figures, status)
    return Path(folder)
