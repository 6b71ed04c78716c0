"""The training step that all contestants make: sizes, first weights and the batch, in numpy.

One recurrent layer, a linear readout of its last state to one number, the mean square error over
the batch, its gradient, and Adam without clipping. All contestants begin with the same arrays,
under the names and in the layout of Flax:

- ``kernel`` ``(I, kH)``, ``recurrent`` ``(H, kH)``, ``bias`` ``(kH,)`` with the k blocks of a
  cell side by side: i, f, c̃, o of the LSTM; r, z, n of the GRU, whose reset acts after the product;
- ``readout`` ``(H, 1)``, ``offset`` ``(1,)``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCKS = {"lstm": 4, "gru": 3, "rnn": 1}
LEARNING_RATE = 1e-3
FIRST_MOMENT = 0.9
"""Adam's b1: after one step its first moment is 1 - b1 of the gradient, in every framework."""
NAMES = ("kernel", "recurrent", "bias", "readout", "offset")
Arrays = dict[str, np.ndarray]


class Size(NamedTuple):
    """Timesteps, examples, inputs and hidden width."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int

    @classmethod
    def of(cls, text: str) -> Size:
        """From ``"T,B,I,H"``."""
        parts = text.split(",")
        numbers = [int(part) for part in parts if part.isdecimal()]
        if len(parts) != 4 or len(numbers) != 4 or min(numbers) < 1:
            raise SystemExit(f"--sizes {text}: four whole numbers T,B,I,H above 0, as 100,50,2,64")
        return cls(*numbers)

    def __str__(self) -> str:
        return ", ".join(map(str, self))


SIZES = [
    Size(100, 50, 2, 64),
    Size(100, 32, 32, 256),
    Size(200, 64, 2, 128),
    Size(500, 16, 2, 64),
    Size(784, 64, 1, 128),
]
QUICK = [Size(100, 50, 2, 64), Size(200, 64, 2, 128)]


def weights(cell: str, size: Size) -> Arrays:
    """The first weights, float32; the LSTM's forget gate begins open, as with gradlab's default."""
    draw, wide = np.random.default_rng(0), BLOCKS[cell] * size.H

    def normal(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape) / np.sqrt(shape[0])

    found = {
        "kernel": normal(size.I, wide),
        "recurrent": normal(size.H, wide),
        "bias": 0.1 * draw.standard_normal(wide),
        "readout": normal(size.H, 1),
        "offset": 0.1 * draw.standard_normal(1),
    }
    if cell == "lstm":
        found["bias"][size.H : 2 * size.H] += 1
    return {name: array.astype(np.float32) for name, array in found.items()}


def batch(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``(T, B, I)`` and targets ``(B, 1)``, float32."""
    draw = np.random.default_rng(1)
    inputs, targets = (size.T, size.B, size.I), (size.B, 1)
    return tuple(draw.standard_normal(shape).astype(np.float32) for shape in (inputs, targets))


class First(NamedTuple):
    """What a contestant's first step gives: the loss, and the gradient under the names above."""

    loss: float
    gradient: Arrays


def errors(found: First, due: First) -> dict[str, float]:
    """How far it is off: of the loss relatively, of each gradient over its largest entry.

    The offset's is one number, a sum in which much may cancel: it counts with the readout's.
    """
    apart = []
    for name, array in due.gradient.items():
        scale = due.gradient["readout" if name == "offset" else name]
        apart.append(np.abs(found.gradient[name] - array).max() / np.abs(scale).max())
    loss = abs(found.loss - due.loss) / abs(due.loss)
    return {"loss": float(loss), "gradient": float(max(apart))}
