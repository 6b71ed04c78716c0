"""Yearly sunspot numbers, 1700 to 2008, as a forecasting task (Yule 1927 began it)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.errors import BadInput
from gradlab.tasks.base import Baseline, Batch, Divided, Split, draw, settle, whole_number


@dataclass(frozen=True)
class Sunspots(Divided):
    """Forecast next year's sunspot number from a window of past years.

    The series of statsmodels (309 years, no download; the series that Yule 1927 modelled). The
    years are split in order of time: the first to training, then validation, then test. A
    window belongs to the split of the year it forecasts; the years it reads may reach back over
    the border, as in real forecasting, but no training window reads or forecasts a year of
    validation or test. Values are standardised by the mean and standard deviation of the
    training years alone, and the loss is the squared error in those units. Training draws its
    windows with replacement.

    Args:
      length: ``T`` in years read, at least 1; the default is three solar cycles. At most one
        less than the training years.
      val_fraction: share of the years held out for validation, in (0, 1).
      test_fraction: share of the years held out for test, in (0, 1).

    Attributes:
      years: ``(N,)`` the calendar years of the series.
      series: ``(N,)`` the standardised sunspot numbers of those years.
      mean: mean of the training years, in sunspots.
      std: standard deviation of the training years, in sunspots.
      first_year: the index in ``years`` of the first year of each split.

    Raises:
      BadInput: if a field is out of its range, or the window does not fit the training years.
    """

    length: int = 33
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    data: jax.Array = field(init=False, repr=False, compare=False)
    years: np.ndarray = field(init=False, repr=False, compare=False)
    series: np.ndarray = field(init=False, repr=False, compare=False)
    mean: float = field(init=False, repr=False, compare=False)
    std: float = field(init=False, repr=False, compare=False)
    first_year: dict[str, int] = field(init=False, repr=False, compare=False)

    outputs = 1
    loss = "mse"
    readout = "last"

    def __post_init__(self) -> None:
        whole_number("task.length", self.length, 1)
        self.check_fractions()

        from statsmodels.datasets import sunspots

        table: Any = sunspots.load_pandas().data
        years, numbers = table["YEAR"].to_numpy(int), table["SUNACTIVITY"].to_numpy(float)
        sizes = self.sizes(len(years))
        train = sizes["train"]
        for name in ("val", "test"):
            if sizes[name] < 1 or train < 2:
                raise BadInput(
                    f"task.{name}_fraction",
                    getattr(self, f"{name}_fraction"),
                    f"fractions that leave one of the {len(years)} years to each of validation "
                    f"and test and two to training; these give {sizes}",
                )
        if self.length > train - 1:
            raise BadInput(
                "task.length",
                self.length,
                f"at most {train - 1}: the series has {len(years)} years, {train} of them for "
                "training, and a window needs one more year to forecast",
                "a shorter task.length, or smaller task.val_fraction and task.test_fraction",
            )
        mean, std = numbers[:train].mean(), numbers[:train].std()
        series = (numbers - mean) / std
        data = jnp.asarray(series[:train], jnp.result_type(float))
        settle(self, years=years, series=series, mean=float(mean), std=float(std), data=data)
        settle(self, first_year={"train": 0, "val": train, "test": train + sizes["val"]})

    def sample(self, data: jax.Array, key: jax.Array, batch: int) -> Batch:
        """See :meth:`Divided.sample`; inputs ``(T, B, 1)``, targets ``(B, 1)``, both standardised.

        Args:
          data: the standardised training years ``(N,)``.
          key: a JAX random key.
          batch: ``B``.
        """
        start = draw(key, batch, data.shape[0] - self.length)
        return _windows(data, start, self.length)

    def held_out(self, split: Split) -> Batch:
        """See :meth:`Divided.held_out`; one window for each year of the split, in order of time."""
        splits, borders = list(self.first_year), [*self.first_year.values(), len(self.years)]
        begin, end = borders[splits.index(split) :][:2]
        forecast = np.arange(max(begin, self.length), end)
        windows = _windows(self.series, forecast - self.length, self.length)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), windows)

    def baseline(self, split: Split) -> Baseline:
        """Measured on ``split``: next year will be as the last one read."""
        windows = self.held_out(split)
        error = np.asarray(windows.inputs[-1] - windows.targets, float)
        return Baseline("repeat the last value read", float(np.mean(error**2)))


def _windows(series: Any, start: Any, length: int) -> Batch:
    """The ``length`` values of ``series`` from each of ``start (B,)`` on, and the one after."""
    inputs = series[start[None] + np.arange(length)[:, None]]
    return Batch(inputs[..., None], series[start + length][:, None])
