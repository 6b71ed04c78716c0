"""The adding problem against numpy."""

import numpy as np
import pytest

from gradlab.errors import BadInput
from gradlab.tasks.adding import Adding
from tests.tasks import draw

VARIANTS = [{"min_length": 20}, {"length": 3, "min_length": 2}]
RTOL = 0.12  # 1,000 examples: one standard error of the mean squared error is 3.7 %


def guess(task, batch, split):
    return 1.0


@pytest.mark.parametrize("min_length", [None, 17, 30])
def test_target_is_the_sum_of_the_two_marked_values(min_length):
    task = Adding(length=30, min_length=min_length)
    batch = draw(task, 0, 2000)
    values, marks = np.moveaxis(np.asarray(batch.inputs), -1, 0)
    assert (batch.mask is None) == (min_length is None)
    lengths = np.full(2000, 30) if batch.mask is None else np.asarray(batch.mask).sum(0)
    assert set(np.unique(marks)) == {0, 1}
    assert (marks.sum(0) == 2).all()
    assert ((values >= 0) & (values < 1)).all()
    targets = np.asarray(batch.targets)
    for b in range(2000):
        first, second = np.flatnonzero(marks[:, b])
        assert first < lengths[b] // 2 <= second < lengths[b]
        assert targets[b, 0] == values[first, b] + values[second, b]


def test_every_position_of_each_half_is_marked():
    batch = draw(Adding(length=9), 0, 2000)
    marks = np.asarray(batch.inputs)[..., 1]
    share = marks.mean(1)
    np.testing.assert_allclose(share[:4], 1 / 4, atol=0.04)
    np.testing.assert_allclose(share[4:], 1 / 5, atol=0.04)


def test_lengths_are_uniform_and_padding_is_silent():
    batch = draw(Adding(length=12, min_length=8), 1, 5000)
    mask, inputs = np.asarray(batch.mask), np.asarray(batch.inputs)
    lengths, counts = np.unique(mask.sum(0), return_counts=True)
    assert lengths.tolist() == [8, 9, 10, 11, 12]
    np.testing.assert_allclose(counts / 5000, 0.2, atol=0.03)
    assert (inputs[~mask] == 0).all()
    assert (inputs[mask][:, 0] > 0).mean() > 0.99
    # whatever the length, both markers stand at every step of their half, and independently
    for n in lengths:
        marked = inputs[:, mask.sum(0) == n, 1].T
        first, second = np.argwhere(marked)[:, 1].reshape(-1, 2).T
        joint = np.zeros((n // 2, n - n // 2))
        np.add.at(joint, (first, second - n // 2), 1 / len(marked))
        np.testing.assert_allclose(joint, 1 / joint.size, atol=5 * (joint.size * 1000) ** -0.5)


def test_the_answer_one_scores_a_sixth():
    targets = np.asarray(draw(Adding(length=10), 2, 200_000).targets, float)
    assert targets.mean() == pytest.approx(1, abs=0.005)
    assert targets.var() == pytest.approx(1 / 6, rel=0.01)
    assert Adding().baseline("test").loss == pytest.approx(1 / 6, rel=1e-12)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("length", 1),
        ("length", 10.5),
        ("length", "10"),
        ("length", True),
        ("min_length", 1),
        ("min_length", 101),
        ("held_out_examples", 0),
    ],
)
def test_refuses(key, value):
    with pytest.raises(BadInput) as refusal:
        Adding(**{key: value})
    assert refusal.value.key == f"task.{key}"
    assert refusal.value.given == value
