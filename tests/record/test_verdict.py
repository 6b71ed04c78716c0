import math

import numpy as np
import pytest

from gradlab.record.verdict import kind_of, verdict


def curves(rate, length=100, product_rate=None, horizon=None):
    """One layer whose adjoint goes as exp(rate · lag)."""
    lag = np.arange(length - 1, -1, -1)
    found = {
        "adj_h_log10": (rate * lag / math.log(10))[None],
        "adjoint_slope": np.array([rate]),
        "memory_horizon": np.array([horizon or (min(length, 1 / -rate) if rate < 0 else length)]),
    }
    if product_rate is not None:
        found["adj_c_log10"] = found["adj_h_log10"].copy()
        found["adj_c_log10"][0, -1] = -np.inf
        found["forget_product_log10"] = (product_rate * lag / math.log(10))[None]
    return found


@pytest.mark.parametrize(
    ("rate", "kind"), [(-0.1, "vanishing"), (0.1, "exploding"), (0.0, "stable"), (-0.005, "stable")]
)
def test_kinds(rate, kind):
    (line,) = verdict(curves(rate), ["0"], length=100)
    assert line.startswith(f"layer 0: {kind}.")
    assert f"{rate:+.4f} nats per step" in line


def test_horizon_is_told_against_the_length():
    (line,) = verdict(curves(-0.1), ["0"], length=100)
    assert "after 10.0 of 100 steps" in line


@pytest.mark.parametrize(
    ("product_rate", "says"), [(-0.1, "explains 100 %"), (-0.05, "explains 50 %"), (-0.4, "10^-17")]
)
def test_how_much_the_forget_product_explains(product_rate, says):
    (line,) = verdict(curves(-0.1, product_rate=product_rate), ["0"], length=100, gate="f")
    assert says in line
    assert "the f gate" in line.lower()


def test_a_cell_that_does_not_look_back():
    found = curves(-0.1) | {"adjoint_slope": np.array([np.nan])}
    (line,) = verdict(found, ["0"], length=100)
    assert "no gradient passes" in line
    (line,) = verdict(found, ["0"], length=1)
    assert "one timestep only" in line


def test_a_loss_before_the_last_step_is_not_called_stable():
    (line,) = verdict(curves(0.0), ["0"], length=100, earlier_steps_have_loss=True)
    assert "fed along the way" in line
    assert not line.startswith("layer 0: stable")


def test_nothing_measured_nothing_said():
    assert verdict({}, ["0"], length=10) == []


def test_kind_needs_a_finite_slope():
    assert kind_of(math.nan, 5, 10) == "cut off"
