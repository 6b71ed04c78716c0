"""Made-up runs that look like real ones: descriptions and rows for the sinks' tests."""

from __future__ import annotations

import numpy as np

from gradlab.record.base import Description, Outcome, Row, Variable

QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]
PARAMETERS = ["embed/kernel", "layer_0/recurrent_kernel", "readout/kernel"]


def describe(T: int = 64, layers: list = (0,), steps: int = 400, lstm: bool = True) -> Description:
    layers = list(layers)
    variables = {
        "train/loss": Variable((), "nats", "training loss"),
        "val/loss": Variable((), "nats", "validation loss"),
        "val/accuracy": Variable((), "1", "validation accuracy"),
        "train/grad_norm": Variable((), "1", "norm of the gradient"),
        "adj_h_log10": Variable(("layer", "t"), "log10", "norm of the adjoint of h"),
        "adj_h_log10_q": Variable(
            ("layer", "quantile", "t"), "log10", "norm of the adjoint of h, quantiles"
        ),
        "memory_horizon": Variable(("layer",), "steps", "memory horizon"),
        "adjoint_slope": Variable(("layer",), "nats/step", "slope of the adjoint"),
        "grad_norm": Variable(("parameter",), "1", "norm of the gradient"),
        "update_ratio": Variable(("parameter",), "1", "size of the update"),
    }
    coords = {
        "layer": layers,
        "t": list(range(T)),
        "quantile": QUANTILES,
        "parameter": PARAMETERS,
    }
    if lstm:
        variables |= {
            "adj_c_log10": Variable(("layer", "t"), "log10", "norm of the adjoint of c"),
            "forget_product_log10": Variable(
                ("layer", "t"), "log10", "forget product", {"gate": "f"}
            ),
            "gate_saturation": Variable(("layer", "gate"), "1", "saturated share of the gate"),
        }
        coords["gate"] = ["i", "f", "o"]
    return Description(
        name="adding-problem",
        config={"seed": 0, "model": {"name": "lstm", "hidden": 64}, "task": {"length": T}},
        variables=variables,
        coords=coords,
        baseline={
            "train": {"name": "always answer 1", "loss": 0.1667, "accuracy": None},
            "val": {"name": "always answer 1", "loss": 0.1667, "accuracy": None},
        },
        facts={
            "task": "adding",
            "model": "lstm" if lstm else "rnn",
            "parameters": 17217,
            "readout": "last",
            "T": T,
            "steps": steps,
            "devices": ["cpu:0"],
        },
    )


def make_row(description: Description, step: int, zero_beyond: int | None = None) -> Row:
    """A plausible measurement at ``step``; lags above ``zero_beyond`` are exactly zero."""
    rng = np.random.default_rng(step)
    coords, steps = description.coords, description.facts["steps"]
    T, layers = len(coords["t"]), len(coords["layer"])
    lag = T - 1 - np.arange(T)
    progress = step / steps
    rate = 0.5 * (1 - 0.93 * min(1.0, 1.6 * progress)) * 64 / T * np.arange(1, layers + 1) ** -0.5
    noise = np.cumsum(rng.normal(0, 0.05, (layers, T)), 1)[:, ::-1]
    adj_c = -rate[:, None] * lag - 1 - 0.5 * progress + noise * np.sqrt(64 / T)
    adj_h = adj_c - 0.6 - 0.2 * np.cos(np.arange(T) / 3)
    if zero_beyond is not None:
        adj_h[:, lag > zero_beyond] = -np.inf
        adj_c[:, lag > zero_beyond] = -np.inf
    spread = np.array([-1.0, -0.4, 0.05, 0.4, 0.9])[:, None] * (0.3 + lag / T * 3)
    arrays = {
        "adj_h_log10": adj_h,
        "adj_h_log10_q": adj_h[:, None, :] + spread,
        "memory_horizon": np.minimum(0.43 / rate, T),
        "adjoint_slope": -rate * 2.3,
        "grad_norm": rng.lognormal(size=len(PARAMETERS)),
        "update_ratio": 1e-3 * rng.lognormal(size=len(PARAMETERS)),
        "adj_c_log10": adj_c,
        "forget_product_log10": -1.35 * rate[:, None] * lag - 0.002 * lag,
        "gate_saturation": rng.uniform(size=(layers, 3)),
    }
    loss = 0.17 / (1 + np.exp(14 * (progress - 0.55))) + 0.002
    scalars = {
        "train/loss": loss * rng.lognormal(0, 0.15),
        "train/grad_norm": rng.lognormal(),
    }
    if step % (steps // 8 or 1) == 0:
        scalars |= {"val/loss": loss, "val/accuracy": progress}
    kept = {name: array for name, array in arrays.items() if name in description.variables}
    return Row(step, scalars, kept)


def finished() -> Outcome:
    return Outcome(
        "finished",
        "all steps done",
        {"train/loss": 0.01, "val/loss": 0.012, "memory_horizon/layer_0": float("inf")},
        {"steps_per_second": 123.4, "probe_overhead": 1.03, "compile_seconds": 2.0},
        ["Layer 0: the gradient reaches 37 steps back."],
    )
