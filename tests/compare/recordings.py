"""Made-up runs with everything that a comparison shows: arrays, settings, figures, an ending."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradlab.record.base import Outcome, Row, Variable
from gradlab.record.directory import RunDirectory
from gradlab.variable import over_lag, over_lag_name
from tests.record.synthetic import describe, make_row

CELLS = {
    "rnn": {"_target_": "gradlab.cells.SimpleRNN", "activation_fn": "tanh"},
    "lstm": {"_target_": "gradlab.cells.LSTM", "forget_bias": 1.0},
    "gru": {"_target_": "gradlab.cells.GRU"},
}
RATE = {"rnn": 0.20, "lstm": 0.03, "gru": 0.06}
"""log10 per step by which the made-up adjoints fall, seed 0, before training."""
ADJOINTS = ("adj_h_log10", "adj_c_log10")
DECADES = ("decades_lost", "decades_per_100", "adjoint_line_r2")
PARAMETERS = {"rnn": 1217, "lstm": 4577, "gru": 3457}


def record_run(folder, model="lstm", seed=0, *, keep_open=False, **options):
    """A run directory written by the sink itself; gives its path (or the open sink).

    What was recorded once with the same ``options`` of :func:`record_anew` is copied.
    """
    folder = Path(folder)
    name = f"{abs(hash((str(folder), model, seed))) % 16**8:08x}"
    if keep_open:
        return record_anew(folder, name, model, seed, keep_open=True, **options)
    once = Path(RECORDED.name) / hashlib.sha256(repr((model, seed, options)).encode()).hexdigest()
    if not once.exists():
        record_anew(once, "once", model, seed, **options)
    shutil.copytree(once, folder, copy_function=shutil.copy, dirs_exist_ok=True)
    text = (once / "run.json").read_text(encoding="utf-8")
    (folder / "run.json").write_text(text.replace('"id": "once"', f'"id": "{name}"'), "utf-8")
    return folder


RECORDED = tempfile.TemporaryDirectory(prefix="gradlab-recorded-")


def record_anew(
    folder,
    run_id,
    model="lstm",
    seed=0,
    T=32,
    rows=5,
    every=10,
    status="finished",
    reason="",
    hidden=8,
    task="adding",
    close=True,
    layers=(0,),
    said=None,
    name="",
    only=None,
    keep_open=False,
    decades=True,
    own_lags=False,
    rms=False,
):
    """One that is recorded here and now.

    The adjoint of h falls by ``rate_of(model, seed, progress)`` decades a timestep; everything else
    follows from that. Without ``decades`` it is a run from before there were any. With ``own_lags``
    its adjoints are recorded by lag too, and its longest example has three quarters of the steps;
    with ``rms`` there is the root mean square of the forget product over units.
    """
    steps = rows * every
    plain = describe(T=T, layers=list(layers), steps=steps, lstm=model == "lstm")
    variables = dict(plain.variables)
    if model == "gru":
        variables["forget_product_log10"] = Variable(
            ("layer", "t"), "log10", "forget product", {"gate": "z"}
        )
    if close:
        variables |= {
            "lyapunov_exponent": Variable(("layer", "index"), "nats/step", "Lyapunov exponents"),
            "long_jacobian_log10": Variable(("layer", "t"), "log10", "largest singular value"),
            "pascanu_bound_log10": Variable(("layer", "t"), "log10", "bound"),
        }
    if decades:
        variables |= {name: Variable(("layer",), "decades", name) for name in DECADES}
    if rms:
        root = Variable(("layer", "t"), "log10", "forget product, root mean square over units")
        variables |= {"forget_product_rms_log10": root}
    if own_lags:
        variables |= over_lag({name: variables[name] for name in ADJOINTS if name in variables})
    if only is not None:
        variables = {key: value for key, value in variables.items() if key in only}
    config = {
        "seed": seed,
        "model": {"hidden": hidden, "layers": len(layers), "cell": dict(CELLS[model])},
        "optimizer": {"learning_rate": 0.01, "clip_norm": 1.0},
        "task": {"_target_": f"gradlab.tasks.{task}.{task.title()}", "length": T},
        "trainer": {"steps": steps, "resume": None},
        "record": {"figures": True},
    }
    overrides = said if said is not None else [f"model={model}", f"seed={seed}"]
    parameters = int(PARAMETERS[model] * hidden / 8)
    facts = dict(plain.facts) | {
        "model": model,
        "task": task.title(),
        "parameters": parameters,
        "overrides": overrides,
    }
    description = replace(
        plain,
        name=name or task,
        config=config,
        variables=variables,
        coords=dict(plain.coords) | {"index": [0, 1], "back": list(range(T))},
        facts=facts,
        id=run_id,
    )
    directory = RunDirectory(Path(folder))
    directory.open(description)
    for index in range(rows):
        directory.log(make_measured_row(description, index, every, model, seed, close))
    if keep_open:
        return directory
    horizon = min(np.log10(np.e) / rate_of(model, seed, (rows - 1) / rows), T)
    summary = {
        "steps": float(steps),
        "train/loss": 0.2 * rate_of(model, seed),
        "val/loss": 0.21 * rate_of(model, seed),
        "test/loss": 0.22 * rate_of(model, seed),
        "memory_horizon/layer_0": float(horizon),
        "adjoint_slope/layer_0": -rate_of(model, seed, (rows - 1) / rows) * np.log(10),
    }
    if decades:
        rate = rate_of(model, seed, (rows - 1) / rows)
        line = zip(DECADES, ((T - 1) * rate, 100 * rate, 1.0), strict=True)
        summary |= {f"{name}/layer_0": float(value) for name, value in line}
    timings = {"steps_per_second": 100.0 + seed, "probe_overhead": 1.1}
    directory.close(Outcome(status, reason, summary, timings, ["Layer 0: a verdict."]))
    path = Path(folder)
    info = json.loads((path / "run.json").read_text(encoding="utf-8"))
    info["overrides"] = overrides
    (path / "run.json").write_text(json.dumps(info), encoding="utf-8")
    return path


def rate_of(model, seed=0, progress=0.0):
    """Decades a step by which the adjoints fall."""
    return RATE[model] * (1 + 0.05 * seed) * (1 - progress / 2)


def make_measured_row(description, index, every, model, seed, close):
    step = index * every
    row = make_row(description, step)
    steps = description.facts["steps"]
    T, layers = len(description.coords["t"]), len(description.coords["layer"])
    lag = T - 1.0 - np.arange(T)
    rate = rate_of(model, seed, step / steps) * np.arange(1, layers + 1)[:, None] ** -0.5
    arrays = dict(row.arrays)
    arrays["adj_h_log10"] = -1 - rate * lag
    if "adj_c_log10" in arrays:
        arrays["adj_c_log10"] = -0.5 - rate * lag
    arrays["forget_product_log10"] = -1.35 * rate * lag
    arrays["forget_product_rms_log10"] = -rate * lag
    arrays["memory_horizon"] = np.minimum(np.log10(np.e) / rate[:, 0], T)
    arrays["adjoint_slope"] = -rate[:, 0] * np.log(10)
    ones = np.ones(layers)
    arrays |= dict(zip(DECADES, ((T - 1) * rate[:, 0], 100 * rate[:, 0], ones), strict=True))
    if close and index % 2 == 0:
        arrays["lyapunov_exponent"] = np.stack([-rate[:, 0], -2 * rate[:, 0]], 1)
        arrays["long_jacobian_log10"] = -0.8 * rate * lag
        arrays["pascanu_bound_log10"] = 0.01 * lag + 0 * rate
    for name in ADJOINTS:
        if name in arrays:
            by_lag = arrays[name][:, ::-1].copy()
            by_lag[:, 3 * T // 4 :] = np.nan
            arrays[over_lag_name(name)] = by_lag
    scalars = dict(row.scalars)
    scalars["train/loss"] = rate_of(model, seed, step / steps)
    known = description.variables
    return Row(
        step,
        {key: value for key, value in scalars.items() if key in known},
        {key: value for key, value in arrays.items() if key in known},
    )


def record_sweep(folder, models=("rnn", "lstm", "gru"), seeds=(0, 1, 2), **options):
    """A run for each model and seed, in folders ``0``, ``1``, …; gives the sweep's path."""
    folder = Path(folder)
    number = 0
    for model in models:
        for seed in seeds:
            record_run(folder / str(number), model, seed, **options)
            number += 1
    return folder
