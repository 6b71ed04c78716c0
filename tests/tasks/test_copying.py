"""Copying memory: what is shown, what is asked, and the published baselines."""

import numpy as np
import pytest

from gradlab.errors import BadInput
from gradlab.tasks.copying import Copying
from tests.tasks import draw

VARIANTS = [{"length": 21}]
RTOL = 1e-5


def guess(task, batch, split):
    """All on the blank until the recall; there, the eight symbols alike."""
    logits = np.full((task.length, 1, 9), -1000.0)
    logits[:-10, :, 8] = 0
    logits[-10:, :, :8] = 0
    return logits


@pytest.mark.parametrize("delay", [1, 50])
def test_layout(delay):
    batch = draw(Copying(length=delay + 20), 0, 400)
    inputs, targets = np.asarray(batch.inputs), np.asarray(batch.targets)
    assert set(np.unique(inputs[:10])) == set(range(8))
    assert (inputs[10 : 10 + delay - 1] == 8).all()
    assert (inputs[10 + delay - 1] == 9).all()
    assert (inputs[-10:] == 8).all()
    np.testing.assert_array_equal(targets[-10:], inputs[:10])
    assert (targets[:-10] == 8).all()


def test_memory_is_uniform():
    memory = np.asarray(draw(Copying(), 1, 4000).inputs)[:10]
    for step in memory:
        np.testing.assert_allclose(np.bincount(step) / 4000, 1 / 8, atol=0.025)
    assert abs(np.corrcoef(memory)[np.triu_indices(10, 1)]).max() < 0.08  # steps independent


@pytest.mark.parametrize(
    ("delay", "nats"), [(50, 0.29706), (100, 0.17329), (200, 0.09452), (500, 0.03999)]
)
def test_memoryless_baseline(delay, nats):
    assert Copying(length=delay + 20).baseline("val").loss == pytest.approx(nats, abs=5e-6)


def test_accuracy_of_the_baseline():
    """40 blanks right and, on average, an eighth of the ten recalled symbols."""
    assert Copying(length=50).baseline("test").accuracy == pytest.approx(41.25 / 50)


@pytest.mark.parametrize(("key", "value"), [("length", 20), ("held_out_examples", 0)])
def test_refuses(key, value):
    with pytest.raises(BadInput) as refusal:
        Copying(**{key: value})
    assert refusal.value.key == f"task.{key}"
