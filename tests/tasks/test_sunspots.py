"""The sunspots against the series itself: no year leaks, and there is something to learn."""

import numpy as np
import pytest
from statsmodels.datasets import sunspots

from gradlab.errors import BadInput
from gradlab.tasks.sunspots import Sunspots
from tests.tasks import draw

VARIANTS = [{"length": 100, "val_fraction": 0.25, "test_fraction": 0.25}]
RTOL = 1e-5


def guess(task, batch, split):
    return np.asarray(batch.inputs)[-1]


@pytest.fixture(scope="module")
def numbers():
    return sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(float)


def in_sunspots(task, values):
    return np.asarray(values, float)[..., 0] * task.std + task.mean


def test_windows_are_the_years_of_their_split_in_order(numbers):
    task = Sunspots(length=20)
    assert task.years.tolist() == list(range(1700, 2009))
    assert task.first_year == {"train": 0, "val": 217, "test": 263}
    for split, forecast in (("val", range(217, 263)), ("test", range(263, 309))):
        batch = task.held_out(split)
        np.testing.assert_allclose(in_sunspots(task, batch.targets), numbers[forecast], atol=1e-3)
        expected = np.stack([numbers[year - 20 : year] for year in forecast], axis=1)
        np.testing.assert_allclose(in_sunspots(task, batch.inputs), expected, atol=1e-3)


def test_training_sees_every_training_year_and_no_other(numbers):
    task = Sunspots(length=20)
    drawn = draw(task, 0, 5000)
    windows = np.concatenate([np.asarray(drawn.inputs)[..., 0], np.asarray(drawn.targets).T]).T
    series = (numbers[:217] - numbers[:217].mean()) / numbers[:217].std()
    expected = np.stack([series[begin : begin + 21] for begin in range(217 - 20)])
    found = np.unique(windows.round(4), axis=0)
    np.testing.assert_allclose(found, np.unique(expected.round(4), axis=0), atol=2e-4)


def test_standardised_by_training_alone(numbers):
    task = Sunspots(val_fraction=0.3, test_fraction=0.2)
    train = numbers[:154]  # 309 less 93 and 62
    assert task.mean == pytest.approx(train.mean())
    assert task.std == pytest.approx(train.std())
    assert task.data.shape == (154,)
    assert np.mean(task.data) == pytest.approx(0, abs=1e-5)
    assert np.std(task.data) == pytest.approx(1, abs=1e-5)
    assert abs(numbers.mean() - train.mean()) > 1  # so that the whole series would be noticed


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_baseline_repeats_the_last_year(numbers, split):
    task = Sunspots(length=20)
    begin, end = {"train": (20, 217), "val": (217, 263), "test": (263, 309)}[split]
    errors = [(numbers[year] - numbers[year - 1]) ** 2 for year in range(begin, end)]
    expected = np.mean(errors) / numbers[:217].std() ** 2
    assert task.baseline(split).loss == pytest.approx(expected, rel=1e-5)


def test_a_linear_forecast_beats_persistence():
    """Least squares on the last nine years, as Yule did on two: less than half the error."""
    task = Sunspots()
    series = np.asarray(task.data, float)
    lagged = np.stack([series[k : len(series) - 9 + k] for k in range(9)], axis=1)
    weights = np.linalg.lstsq(np.c_[lagged, np.ones(len(lagged))], series[9:], rcond=None)[0]
    test = task.held_out("test")
    answer = np.asarray(test.inputs, float)[-9:, :, 0].T @ weights[:9] + weights[9]
    loss = np.mean((answer - np.asarray(test.targets)[:, 0]) ** 2)
    assert loss < 0.5 * task.baseline("test").loss


def test_longest_window():
    longest = Sunspots(length=216)
    assert longest.held_out("val").inputs.shape == (216, 46, 1)
    drawn = np.asarray(draw(longest, 0, 3).inputs)
    np.testing.assert_array_equal(drawn[:, 0, 0], np.asarray(longest.data)[:216])
    with pytest.raises(BadInput, match=r"at most 216: the series has 309 years") as refusal:
        Sunspots(length=217)
    assert refusal.value.key == "task.length"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"length": 0}, "length"),
        ({"val_fraction": -0.1}, "val_fraction"),
        ({"test_fraction": 0.001}, "test_fraction"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "test_fraction"),
    ],
)
def test_refuses(options, key):
    with pytest.raises(BadInput) as refusal:
        Sunspots(**options)
    assert refusal.value.key == f"task.{key}"
