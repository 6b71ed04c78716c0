"""The experiment ``applications``: the rules beside the networks, and which of two is better."""

import importlib.util
import sys

import numpy as np
import pytest

from tests import ROOT


@pytest.fixture(scope="module")
def check():
    path = ROOT / "experiments" / "applications" / "check.py"
    spec = importlib.util.spec_from_file_location("check_of_applications", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_table_of_pairs_reaches_the_entropy_of_a_markov_chain(check):
    # from each of three symbols to itself in a half of all steps, else to either other
    random = np.random.default_rng(0)
    moves = random.choice([0, 1, 2], 60_000, p=[0.5, 0.25, 0.25])
    chain = np.cumsum(moves) % 3
    train, test = chain[:50_000].astype(np.uint8), chain[50_000:].astype(np.int32)
    loss, _ = check.pairs(3, train, test[:-1, None], test[1:, None])
    assert loss == pytest.approx(1.5 * np.log(2), rel=0.01)


def test_an_autoregression_finds_the_two_years_that_rule_a_series(check):
    # x_t = 1.6 x_{t-1} - 0.9 x_{t-2} + 0.3 + noise of variance 1
    random = np.random.default_rng(1)
    series = np.zeros(6000)
    for t in range(2, len(series)):
        series[t] = 1.6 * series[t - 1] - 0.9 * series[t - 2] + 0.3 + random.normal()
    error, name = check.autoregression(series, 3, {"val": 2000, "test": 4000})
    assert error == pytest.approx(1, rel=0.08)
    one, _ = check.autoregression(series, 1, {"val": 2000, "test": 4000})
    # one year leaves more by 1 / (1 - a_2²), the partial correlation of the second being a_2
    assert one == pytest.approx(1 / (1 - 0.81), rel=0.08)
    assert "2 years" in name or "3 years" in name


def test_the_rule_of_sunspots_is_fitted_to_training_years_alone(check):
    series = np.sin(np.arange(120.0))  # which two years before foretell exactly
    series[90:] += 5.0  # and a level that neither training nor validation saw
    error, name = check.autoregression(series, 2, {"val": 60, "test": 90})
    # x_t = 2 cos 1 x_{t-1} - x_{t-2}: the level is a surprise, then foretold in part
    wrong = [5, 5 - 10 * np.cos(1), *28 * [10 - 10 * np.cos(1)]]
    assert "2 years" in name
    assert error == pytest.approx(np.mean(np.array(wrong) ** 2), rel=1e-6)


def test_lower_is_better_of_a_loss_and_higher_of_an_accuracy(check):
    low, high = [1.0, 1.1, 0.9], [2.0, 2.1, 1.9]
    loss, accuracy = check.USES["text"], check.USES["digits"]
    assert check.better(loss, low, high).low > 0
    assert check.better(accuracy, low, high).high < 0
    assert not check.better(loss, low, [0.5, 1.6, 1.0]).is_certain
