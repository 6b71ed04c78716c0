"""Made-up runs that look like real ones: descriptions and rows for the sinks' tests."""

from __future__ import annotations

import numpy as np

from gradlab.record.base import Description, Outcome, Row, Variable
from gradlab.variable import over_lag, over_lag_name

QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]
PARAMETERS = ["embed/kernel", "layer_0/recurrent_kernel", "readout/kernel"]


def describe(
    T: int = 64, layers: list = (0,), steps: int = 400, lstm: bool = True, *, by_lag: bool = False
) -> Description:
    """A run as older versions recorded it, or with what is recorded by lag besides."""
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
    if by_lag:
        variables |= SUMMARIES
        if lstm:
            variables |= PRODUCTS
        variables |= twins(variables, "adj_", "forget_product")
        coords["back"] = list(range(T))
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


SUMMARIES = {
    "decades_lost": Variable(("layer",), "decades", "fall over the sequence"),
    "decades_per_100": Variable(("layer",), "decades/100 steps", "fall by the line"),
    "adjoint_line_r2": Variable(("layer",), "1", "r² of the line"),
}
PRODUCTS = {
    "forget_product_rms_log10": Variable(("layer", "t"), "log10", "product, rms", {"gate": "f"}),
    "forget_product_log10_q": Variable(
        ("layer", "quantile", "t"), "log10", "product, quantiles over units", {"gate": "f"}
    ),
}


def twins(variables, *prefixes: str) -> dict[str, Variable]:
    """By lag, of those whose names begin like this; quantiles of the product have none."""
    chosen = {
        name: one
        for name, one in variables.items()
        if name.startswith(prefixes) and "t" in one.dims and name != "forget_product_log10_q"
    }
    return over_lag(chosen)


def with_twins(arrays, description: Description):
    """The arrays that are described, those by lag somewhat apart from those over t."""
    found = dict(arrays)
    for name, array in arrays.items():
        if over_lag_name(name) in description.variables:
            lag = np.arange(array.shape[-1])
            found[over_lag_name(name)] = array[..., ::-1] - 0.25 * lag / lag.size
    return {name: array for name, array in found.items() if name in description.variables}


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
    product = -1.35 * rate[:, None] * lag - 0.002 * lag
    arrays = {
        "adj_h_log10": adj_h,
        "adj_h_log10_q": adj_h[:, None, :] + spread,
        "memory_horizon": np.minimum(0.43 / rate, T),
        "adjoint_slope": -rate * 2.3,
        "grad_norm": rng.lognormal(size=len(PARAMETERS)),
        "update_ratio": 1e-3 * rng.lognormal(size=len(PARAMETERS)),
        "adj_c_log10": adj_c,
        "forget_product_log10": product,
        "forget_product_rms_log10": 0.6 * product,
        "forget_product_log10_q": product[:, None] * np.linspace(1.6, 0.4, 5)[:, None],
        "decades_lost": rate * T,
        "decades_per_100": 100 * rate,
        "adjoint_line_r2": np.full(layers, 0.98),
        "gate_saturation": rng.uniform(size=(layers, 3)),
    }
    loss = 0.17 / (1 + np.exp(14 * (progress - 0.55))) + 0.002
    scalars = {
        "train/loss": loss * rng.lognormal(0, 0.15),
        "train/grad_norm": rng.lognormal(),
    }
    if step % (steps // 8 or 1) == 0:
        scalars |= {"val/loss": loss, "val/accuracy": progress}
    return Row(step, scalars, with_twins(arrays, description))


def finished() -> Outcome:
    return Outcome(
        "finished",
        "all steps done",
        {"train/loss": 0.01, "val/loss": 0.012, "memory_horizon/layer_0": float("inf")},
        {"steps_per_second": 123.4, "probe_overhead": 1.03, "compile_seconds": 2.0},
        ["Layer 0: the gradient reaches 37 steps back."],
    )


BLOCKS = ("layer", "to", "from", "t")
CLOSE = {
    "forget_path_log10": Variable(("layer", "t"), "log10", "∂c_T/∂c_t by f", {"gate": "f"}),
    "residual_path_log10": Variable(("layer", "t"), "log10", "∂c_T/∂c_t, the rest"),
    "whole_path_log10": Variable(("layer", "t"), "log10", "∂c_T/∂c_t"),
    "long_jacobian_log10": Variable(("layer", "t"), "log10", "largest singular value"),
    "long_jacobian_log10_frobenius": Variable(("layer", "t"), "log10", "Frobenius norm"),
    "pascanu_bound_log10": Variable(("layer", "t"), "log10", "bound"),
    "step_jacobian_log10": Variable(("layer", "t"), "log10", "norm of the step Jacobian"),
    "step_jacobian_block_log10": Variable(BLOCKS, "log10", "norm of its blocks"),
    "singular_value_log10": Variable(("layer", "singular"), "log10", "singular values"),
    "condition_log10": Variable(("layer",), "log10", "condition number"),
    "lyapunov_exponent": Variable(("layer", "index"), "nats/step", "Lyapunov exponent"),
    "lyapunov_running": Variable(("layer", "t"), "nats/step", "largest exponent so far"),
    "lyapunov_dimension": Variable(("layer",), "1", "Lyapunov dimension"),
    "lyapunov_horizon": Variable(("layer",), "steps", "Lyapunov horizon"),
    "mean_field_exponent": Variable(("layer",), "nats/step", "mean-field exponent"),
    "mean_field_chi": Variable(("layer",), "1", "mean-field slope"),
    "adj_h_direct_log10": Variable(("layer", "t"), "log10", "direct adjoint"),
    "temporal_contribution_log10": Variable(("parameter", "t"), "log10", "contribution"),
    "long_short_cosine": Variable(("parameter",), "1", "cosine"),
    "gradient_mass_horizon": Variable(("layer",), "steps", "gradient mass horizon"),
    "long_range_snr_log10": Variable(("layer", "t"), "log10", "signal over noise"),
    "noise_horizon": Variable(("layer",), "steps", "noise horizon"),
    "truncation_bias": Variable(("window",), "1", "bias"),
    "truncation_cosine": Variable(("window",), "1", "cosine"),
    "clip_removed": Variable(("t",), "1", "share of what clipping removes"),
    "gradient_curvature": Variable((), "loss/parameter²", "curvature along the gradient"),
    "hessian_top": Variable((), "loss/parameter²", "largest eigenvalue of the Hessian"),
    "retention_histogram": Variable(("layer", "log10_gate"), "1", "histogram", {"gate": "f"}),
    "timescale": Variable(("layer", "unit"), "steps", "time scale"),
    "spectral_radius": Variable(("layer", "matrix"), "1", "spectral radius"),
    "spectral_norm": Variable(("layer", "matrix"), "1", "spectral norm"),
    "departure_from_normality": Variable(("layer", "matrix"), "1", "non-normality"),
    "transient_growth_log10": Variable(("layer", "matrix"), "log10", "transient growth"),
    "eigenvalue_real": Variable(("layer", "share", "eigenvalue"), "1", "real part"),
    "eigenvalue_imaginary": Variable(("layer", "share", "eigenvalue"), "1", "imaginary part"),
    "squared_singular_mean_log10": Variable(("layer", "back"), "log10", "mean of σ²"),
    "effective_rank": Variable(("layer", "back"), "1", "effective rank"),
    "state_autocorrelation": Variable(("layer", "state", "delay"), "1", "autocorrelation"),
    "participation_ratio": Variable(("layer", "state"), "1", "participation ratio"),
    **{
        f"adjoint_cosine_{name}_over_lag": Variable(("layer", "back"), "1", f"|cos| with {name}")
        for name in ("end", "next", "examples", "lyapunov")
    },
    **{
        f"fixed_point_{name}": Variable(("layer",), "1", f"fixed points: {name}")
        for name in ("count", "converged", "slow")
    },
    "fixed_point_rest_log10": Variable(("layer",), "log10", "largest speed of the others"),
    **{
        f"fixed_point_eigenvalue_{part}": Variable(("layer", "point", "eigenvalue"), "1", part)
        for part in ("real", "imaginary")
    },
    "train/clip_rate": Variable((), "1", "share of clipped steps"),
}
"""What the close probes record, by name."""


def describe_closely(
    T: int = 64, layers: list = (0,), steps: int = 400, states: str = "ch", *, by_lag: bool = False
) -> Description:
    """A run with every close probe."""
    plain = describe(T, layers, steps, lstm="c" in states, by_lag=by_lag)
    paths = ("forget_path", "residual_path", "whole_path", "long_jacobian", "adj_h_direct")
    coords = {
        "to": list(states),
        "from": list(states),
        "singular": list(range(16)),
        "share": [0.0, 0.5, 1.0],
        "eigenvalue": list(range(16)),
        "point": list(range(3)),
        "back": list(range(T)),
        "state": list(states),
        "delay": list(range(T)),
        "index": list(range(16)),
        "window": [2**k for k in range(12) if 2**k < T] + [T],
        "log10_gate": list(np.linspace(-3.95, -0.05, 40)),
        "unit": list(range(32)),
        "matrix": ["i", "f", "c_tilde", "o"] if "c" in states else ["h"],
        "parameter": [
            *(f"layers/{k}/0/dense_{x}" for k in range(len(list(layers))) for x in PARTS),
            "readout/bias",
            "readout/kernel",
        ],
    }
    return Description(
        name=plain.name,
        config=plain.config,
        variables=dict(plain.variables) | CLOSE | (twins(CLOSE, *paths) if by_lag else {}),
        coords=dict(plain.coords) | coords,
        baseline=plain.baseline,
        facts=plain.facts,
    )


PARTS = ("h/bias", "h/kernel", "i/bias", "i/kernel")


def make_close_row(description: Description, step: int) -> Row:
    """A plausible row of :func:`describe_closely`."""
    row = make_row(description, step)
    rng = np.random.default_rng(step + 1)
    coords = description.coords
    sizes = {name: len(values) for name, values in coords.items()}
    T, L, S = sizes["t"], sizes["layer"], sizes["index"]
    lag = T - 1.0 - np.arange(T)
    late = step / description.facts["steps"]
    rate = np.linspace(0.35, 0.2, L)[:, None] * (1 - 0.85 * late) * 64 / T
    wave = 0.15 * np.sin(np.arange(T) / 3 + np.arange(L)[:, None]) * np.minimum(lag, 6)
    parts = np.linspace(-0.4, 0.5, sizes["parameter"])[:, None]
    index, units = np.arange(S), np.arange(sizes["unit"])
    forget, residual = -rate * lag * 1.6 - 0.3, -rate * lag + wave - 0.6
    residual[:, -1] = -np.inf
    whole = np.logaddexp(forget * 2.3, residual * 2.3) / 2.3
    contribution = -rate.mean() * lag + parts + rng.normal(0, 0.05, (sizes["parameter"], T))
    contribution[-2:, :-1] = -np.inf
    contribution[1] = -np.inf
    exponent = 0.1 * late - 2.3 * rate - 0.12 * index[None] ** 1.2
    running = exponent[:, :1] + rng.normal(0, 1, (L, T)).cumsum(1) / np.arange(1, T + 1) ** 1.3
    direct = np.full((L, T), -np.inf)
    direct[:, -1] = row.arrays["adj_h_log10"][:, -1]
    direct[:-1] = row.arrays["adj_h_log10"][:-1] - 1 - 0.3 * rng.random((L - 1, T))
    histogram = np.exp(-((np.array(coords["log10_gate"]) + 0.2 + 0.6 * (1 - late)) ** 2) * 9)
    window = np.array(coords["window"], float)
    matrices, back = (L, sizes["matrix"]), np.arange(T)
    spectrum = rng.normal(size=(2, L, sizes["share"], S)) * (0.2 + 0.6 * late)
    points = rng.normal(size=(2, L, sizes["point"], S)) * (0.3 + 0.6 * late)
    points[:, :, 2] = np.nan  # there are two of them
    arrays = {
        "forget_path_log10": forget,
        "residual_path_log10": residual,
        "whole_path_log10": whole,
        "long_jacobian_log10": whole + 0.2,
        "long_jacobian_log10_frobenius": whole + 0.6,
        "pascanu_bound_log10": np.log10(1.05 + 0.3 * late) * lag + 0 * rate,
        "step_jacobian_log10": 0.1 * late + wave / 9 - 0.05,
        "step_jacobian_block_log10": (wave / 9)[:, None, None]
        - rng.random((1, sizes["to"], sizes["from"], 1)),
        "singular_value_log10": -12 * rate * (1 + index) ** 0.7 + late,
        "condition_log10": 12 * rate[:, 0] * S**0.7,
        "eigenvalue_real": 0.3 + spectrum[0],
        "eigenvalue_imaginary": spectrum[1],
        "squared_singular_mean_log10": -rate * back,
        "effective_rank": 1 + 31 * np.exp(-rate * back),
        "state_autocorrelation": np.exp(-rate * back)[:, None] + np.zeros((sizes["state"], 1)),
        "participation_ratio": 3 + 5 * late + rng.random((L, sizes["state"])),
        "adjoint_cosine_end_over_lag": np.exp(-rate * back),
        "adjoint_cosine_next_over_lag": np.where(back > 0, 0.9 + 0 * rate, np.nan),
        "adjoint_cosine_examples_over_lag": 1 - 0.8 * np.exp(-rate * back),
        "adjoint_cosine_lyapunov_over_lag": 1 - 0.7 * np.exp(-rate * back),
        "fixed_point_count": np.full(L, 2.0),
        "fixed_point_converged": np.full(L, np.round(10 + 20 * late)),
        "fixed_point_slow": np.full(L, 2.0),
        "fixed_point_rest_log10": np.full(L, -2.5),
        "fixed_point_eigenvalue_real": points[0],
        "fixed_point_eigenvalue_imaginary": points[1],
        "lyapunov_exponent": exponent,
        "lyapunov_running": running,
        "lyapunov_dimension": np.full(L, 2.4 + late),
        "lyapunov_horizon": np.where(exponent[:, 0] < 0, -1 / exponent[:, 0], np.inf),
        "mean_field_exponent": np.full(L, -0.05),
        "mean_field_chi": np.full(L, 0.91),
        "adj_h_direct_log10": direct,
        "temporal_contribution_log10": contribution,
        "long_short_cosine": np.where(np.arange(len(parts)) % 5 == 1, np.nan, parts[:, 0]),
        "gradient_mass_horizon": 0.6 / rate[:, 0],
        "long_range_snr_log10": 1 - rate * lag / 2 + wave / 3,
        "noise_horizon": np.minimum(2 / rate[:, 0], T),
        "truncation_bias": np.exp(-window / T * 5 / (0.2 + late)) * (window < T),
        "truncation_cosine": 1 - 0.9 * np.exp(-window / T * 8) * (window < T),
        "clip_removed": np.exp(-lag / T * 8 * (1.2 - late)) / T * 8,
        "retention_histogram": histogram / histogram.sum() + 0 * rate,
        "timescale": np.exp(5 * late * rng.random((L, len(units))) + 0.3),
        "spectral_radius": 0.9 + 0.4 * late + 0.1 * rng.random(matrices),
        "spectral_norm": 1.6 + 0.5 * late + 0.1 * rng.random(matrices),
        "departure_from_normality": 0.5 * rng.random(matrices),
        "transient_growth_log10": 0.3 * rng.random(matrices),
    }
    scalars = {"train/clip_rate": float(rng.random())}
    close = {"gradient_curvature": 3 - 5 * late, "hessian_top": 10 ** (2 * late)}
    close_arrays = _right(row.arrays, description) | with_twins(arrays, description)
    return Row(step, dict(row.scalars) | scalars | close, close_arrays)


def _right(arrays, description: Description):
    """The arrays of a plain row with as many parameters as there are."""
    many = len(description.coords["parameter"])
    return {
        name: np.resize(array, many)
        if description.variables[name].dims == ("parameter",)
        else array
        for name, array in arrays.items()
    }
