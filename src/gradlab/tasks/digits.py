"""Handwritten digits pixel by pixel (the small cousin of Le, Jaitly & Hinton 2015's MNIST)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.errors import BadInput
from gradlab.tasks.base import Baseline, Batch, Divided, Split, draw, settle, whole_number

PIXELS = 64
"""Pixels of one image, 8 by 8, read row by row from the top left."""
CLASSES = 10
"""Digits 0 to 9."""


@dataclass(frozen=True)
class Digits(Divided):
    """Name a handwritten digit after reading its pixels one at a time.

    scikit-learn's 1,797 images of 8 by 8 pixels (Alpaydin & Kaynak 1998), which need no
    download, read as Le, Jaitly & Hinton (2015) read MNIST: one pixel a step, row by row, scaled
    from 0 … 16 to [0, 1]; the class is read at the last step. ``permuted`` shuffles the pixels
    by one fixed permutation, the same for every image and run, which spreads what belongs
    together over all lags. The split is stratified: every digit gives the same fraction of its
    images to each part. Training draws with replacement.

    Args:
      length: ``T`` in timesteps, 1 to 64; below 64 only the first ``length`` pixels are read.
      permuted: read the pixels in a fixed random order.
      val_fraction: share of the images held out for validation, in (0, 1).
      test_fraction: share of the images held out for test, in (0, 1).
      split_seed: seed of the split, at least 0; separate from the seed of the run, so that
        runs with different seeds are scored on the same images.

    Raises:
      BadInput: if a field is out of its range, or a split would lack a digit.
    """

    length: int = PIXELS
    permuted: bool = False
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    split_seed: int = 0
    data: Batch = field(init=False, repr=False, compare=False)
    _splits: dict[str, Batch] = field(init=False, repr=False, compare=False)

    outputs = CLASSES
    loss = "cross_entropy"
    readout = "last"

    def __post_init__(self) -> None:
        whole_number("task.length", self.length, 1)
        if self.length > PIXELS:
            raise BadInput(
                "task.length",
                self.length,
                f"at most {PIXELS}: an image of this data has {PIXELS} pixels, read one a step",
                f"task.length={PIXELS}",
            )
        if not isinstance(self.permuted, bool):
            raise BadInput("task.permuted", self.permuted, "true or false")
        self.check_fractions()
        whole_number("task.split_seed", self.split_seed, 0, 2**32 - 1)

        from sklearn.datasets import load_digits

        images, labels = map(np.asarray, load_digits(return_X_y=True))
        pixels = images.T / 16  # (64, N)
        if self.permuted:
            pixels = pixels[pixel_permutation()]
        splits = {
            name: Batch(
                jnp.asarray(pixels[: self.length, members, None], jnp.result_type(float)),
                jnp.asarray(labels[members], jnp.int32),
            )
            for name, members in self._members(labels).items()
        }
        settle(self, _splits=splits, data=splits["train"])

    def sample(self, data: Batch, key: jax.Array, batch: int) -> Batch:
        """See :meth:`Divided.sample`; inputs ``(T, B, 1)``, targets ``(B,)`` int32.

        Args:
          data: the training images, inputs ``(T, N, 1)`` and targets ``(N,)``.
          key: a JAX random key.
          batch: ``B``.
        """
        chosen = draw(key, batch, data.targets.shape[0])
        return Batch(data.inputs[:, chosen], data.targets[chosen])

    def held_out(self, split: Literal["val", "test"]) -> Batch:
        """See :meth:`Divided.held_out`; every image of the split."""
        return self._splits[split]

    def baseline(self, split: Split) -> Baseline:
        """Measured on ``split``: the class frequencies of training as the answer to every image.

        The loss is the cross-entropy of those frequencies on ``split`` in nats; the accuracy is
        the share of the most frequent training class there.
        """
        labels = np.asarray(self._splits[split].targets)
        counts = np.bincount(np.asarray(self._splits["train"].targets), minlength=CLASSES)
        log_share = np.log(counts / counts.sum())
        return Baseline(
            "the class frequencies of training",
            float(-log_share[labels].mean()),
            float((labels == counts.argmax()).mean()),
        )

    def _members(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        """The images of each split, ascending; every digit is divided by the same fractions."""
        # RandomState's stream is frozen for good, so the split outlives versions of numpy.
        random = np.random.RandomState(self.split_seed)
        members: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
        for digit in range(CLASSES):
            shuffled = random.permutation(np.flatnonzero(labels == digit))
            there = f"there are {len(shuffled)} images of {digit}"
            sizes = self.checked_sizes(len(shuffled), "an image of every digit", there)
            for name in ("val", "test", "train"):
                part, shuffled = shuffled[: sizes[name]], shuffled[sizes[name] :]
                members[name].append(part)
        return {name: np.sort(np.concatenate(parts)) for name, parts in members.items()}


def pixel_permutation() -> np.ndarray:
    """The order ``(64,)`` in which ``permuted=True`` reads the pixels: the same always."""
    return np.random.RandomState(0).permutation(PIXELS)
