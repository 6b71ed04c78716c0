"""Arrays as text that a browser unpacks, and how many values a page can hold."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

MOST_VALUES = 5_000_000
"""Most values of curves on a page; about 22 MB of text."""
MOST_POINTS = 800_000
"""Most values of series over training steps on a page; about 8 MB of text."""
FEWEST_ROWS = 50
"""Rows of a series that are always left."""
_TYPES = {"float32": "f4", "float64": "f8", "int32": "i4"}
_CHOICES = [
    (0, 0),
    (400, 0),
    (200, 0),
    (200, 512),
    (200, 256),
    (100, 256),
    (50, 256),
    (100, 128),
    (50, 128),
    (33, 128),
    (25, 128),
    (25, 64),
    (12, 64),
    (12, 32),
    (6, 32),
    (3, 16),
]


class Thinning(NamedTuple):
    """The most of each curve and series that is put on a page; 0: everything.

    Attributes:
      steps: training steps of a curve.
      lags: lags of a curve.
      rows: training steps of a series.
    """

    steps: int = 0
    lags: int = 0
    rows: int = 0


class Packing:
    """Arrays that travel together, losslessly; one that is there already is not kept twice."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def add(self, array: np.ndarray) -> int:
        """Keep an array of one of the types float32, float64 or int32; gives its place."""
        kind = _TYPES[array.dtype.name]
        little = np.ascontiguousarray(array, dtype=f"<{kind}")
        planes = little.reshape(-1).view(np.uint8).reshape(-1, little.itemsize).T
        return self._kept.setdefault((kind, array.shape, planes.tobytes()), len(self._kept))

    def packed(self) -> dict[str, Any]:
        """All of them: ``{"parts": [[type, shape], ...], "data": text}``.

        ``data`` is base64 of a zlib stream of the arrays one after another; of each all first bytes
        of the (little-endian) values, then all second bytes and so on: neighbours differ least in
        their upper bytes.
        """
        data = zlib.compress(b"".join(planes for _, _, planes in self._kept), 6)
        parts = [[kind, list(shape)] for kind, shape, _ in self._kept]
        return {"parts": parts, "data": base64.b64encode(data).decode("ascii")}


def thinning(curves: Iterable[tuple[int, int, int]], series: Iterable[int]) -> Thinning:
    """The mildest thinning with which a page stays within its limits.

    Args:
      curves: training steps, layers and lags of every curve of every run.
      series: values of every series of every run.
    """
    curves, series = list(curves), list(series)
    enough = (
        choice
        for choice in _CHOICES
        if sum(_left(sizes, *choice) for sizes in curves) <= MOST_VALUES
    )
    many = sum(series) > MOST_POINTS
    rows = max(FEWEST_ROWS, MOST_POINTS // len(series)) if many else 0
    return Thinning(*next(enough, _CHOICES[-1]), rows)


def _left(sizes: tuple[int, int, int], steps: int, lags: int) -> int:
    many, layers, length = sizes
    return min(many, steps or many) * layers * min(length, lags or length)
