"""The digits against scikit-learn's own images."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gradlab.errors import BadInput
from gradlab.tasks.digits import Digits, pixel_permutation
from tests.tasks import draw

VARIANTS = [{"permuted": True, "length": 50, "val_fraction": 0.3, "split_seed": 5}]
RTOL = 1e-5


def guess(task, batch, split):
    return np.log(np.bincount(task.data.targets) / len(task.data.targets))


def batches(task):
    return {"train": task.data, "val": task.held_out("val"), "test": task.held_out("test")}


def rows(batch):
    """One hashable row an image: its sixteenths and its digit."""
    pixels = np.rint(np.asarray(batch.inputs)[..., 0].T * 16).astype(int)
    return [
        (*row, label) for row, label in zip(pixels.tolist(), batch.targets.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_splits_hold_every_image_once_row_by_row(digits):
    found = [row for batch in batches(Digits()).values() for row in rows(batch)]
    images = digits.images.astype(int).reshape(-1, 64).tolist()
    pairs = zip(images, digits.target, strict=True)
    assert sorted(found) == sorted((*image, label) for image, label in pairs)
    assert len(set(found)) == 1797


def test_permuted_reads_the_same_pixels_in_one_other_order():
    order = pixel_permutation()
    assert sorted(order) == list(range(64))
    assert order[:8].tolist() == [45, 29, 43, 61, 34, 33, 31, 40]  # whatever numpy's version
    plain, permuted = batches(Digits()), batches(Digits(permuted=True))
    for split in plain:
        np.testing.assert_array_equal(permuted[split].inputs, plain[split].inputs[order])
        np.testing.assert_array_equal(permuted[split].targets, plain[split].targets)


def test_shorter_reads_the_first_pixels():
    short, full = batches(Digits(length=9)), batches(Digits())
    for split in full:
        np.testing.assert_array_equal(short[split].inputs, full[split].inputs[:9])


def test_split_is_stratified_and_seeded(digits):
    total = np.bincount(digits.target)
    parts = batches(Digits(val_fraction=0.2, test_fraction=0.1))
    for split, fraction in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        counts = np.bincount(parts[split].targets)
        assert abs(counts - fraction * total).max() <= 1
    again = batches(Digits(val_fraction=0.2, test_fraction=0.1))
    other = batches(Digits(val_fraction=0.2, test_fraction=0.1, split_seed=1))
    assert rows(parts["test"]) == rows(again["test"])
    assert len(set(rows(parts["test"])) & set(rows(other["test"]))) < 60  # of about 180


def test_training_draws_from_every_training_image():
    task = Digits()
    drawn = draw(task, 0, 20_000)
    assert set(rows(drawn)) == set(rows(task.data))


def test_baseline_is_the_majority_class_of_training():
    task = Digits(val_fraction=0.3)
    counts = np.bincount(task.data.targets)
    labels = np.asarray(task.held_out("val").targets)
    baseline = task.baseline("val")
    assert baseline.accuracy == pytest.approx((labels == counts.argmax()).mean())
    by_hand = -sum(np.log(counts[label] / counts.sum()) for label in labels) / len(labels)
    assert baseline.loss == pytest.approx(by_hand, rel=1e-9)


def test_more_than_the_pixels_is_refused_with_their_number():
    with pytest.raises(BadInput, match="64 pixels") as refusal:
        Digits(length=65)
    assert refusal.value.key == "task.length"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"length": 0}, "length"),
        ({"permuted": "yes"}, "permuted"),
        ({"val_fraction": 0}, "val_fraction"),
        ({"val_fraction": float("nan")}, "val_fraction"),
        ({"val_fraction": "half"}, "val_fraction"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "test_fraction"),
        ({"val_fraction": 0.001}, "val_fraction"),
        ({"test_fraction": 0.002}, "test_fraction"),
        ({"val_fraction": 0.5, "test_fraction": 0.4999}, "test_fraction"),
        ({"split_seed": -1}, "split_seed"),
    ],
)
def test_refuses(options, key):
    with pytest.raises(BadInput) as refusal:
        Digits(**options)
    assert refusal.value.key == f"task.{key}"
