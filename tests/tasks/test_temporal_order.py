"""Temporal order: where A and B stand and what class they make."""

import math

import numpy as np
import pytest

from gradlab.errors import BadInput
from gradlab.tasks.temporal_order import TemporalOrder
from tests.tasks import draw

VARIANTS = [{"length": 20}]
RTOL = 1e-6


def guess(task, batch, split):
    return np.zeros(4)


@pytest.mark.parametrize("length", [10, 15, 19, 200])
def test_positions_and_classes(length):
    batch = draw(TemporalOrder(length=length), 0, 3000)
    inputs = np.asarray(batch.inputs)
    relevant = inputs < 2
    assert (relevant.sum(0) == 2).all()
    p0, p1 = np.sort(np.argwhere(relevant.T)[:, 1].reshape(-1, 2), axis=1).T
    assert set(p0) == {p for p in range(length) if length <= 10 * p < 2 * length}
    assert set(p1) == {p for p in range(length) if 5 * length <= 10 * p < 6 * length}
    columns = np.arange(3000)
    first, second = inputs[p0, columns], inputs[p1, columns]
    classes = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}
    expected = [classes[pair] for pair in zip(first, second, strict=True)]
    np.testing.assert_array_equal(batch.targets, expected)


def test_everything_is_uniform():
    batch = draw(TemporalOrder(length=100), 1, 8000)
    np.testing.assert_allclose(np.bincount(batch.targets) / 8000, 1 / 4, atol=0.02)
    distractors = np.asarray(batch.inputs)[np.asarray(batch.inputs) >= 2]
    np.testing.assert_allclose(np.bincount(distractors)[2:] / distractors.size, 1 / 4, atol=0.01)
    positions, counts = np.unique((np.asarray(batch.inputs)[:40] < 2).argmax(0), return_counts=True)
    assert positions.tolist() == list(range(10, 20))
    np.testing.assert_allclose(counts / 8000, 0.1, atol=0.02)


def test_class_and_positions_are_independent():
    batch = draw(TemporalOrder(length=30), 2, 8000)
    p0, p1 = np.argwhere((np.asarray(batch.inputs) < 2).T)[:, 1].reshape(-1, 2).T
    joint = np.zeros((4, 3, 3))
    np.add.at(joint, (np.asarray(batch.targets), p0 - 3, p1 - 15), 1)
    np.testing.assert_allclose(joint, 8000 / 36, atol=5 * (8000 / 36) ** 0.5)


def test_chance():
    baseline = TemporalOrder().baseline("test")
    assert baseline.loss == pytest.approx(math.log(4), rel=1e-12)
    assert baseline.accuracy == 0.25


@pytest.mark.parametrize(("key", "value"), [("length", 9), ("held_out_examples", 0)])
def test_refuses(key, value):
    with pytest.raises(BadInput) as refusal:
        TemporalOrder(**{key: value})
    assert refusal.value.key == f"task.{key}"
