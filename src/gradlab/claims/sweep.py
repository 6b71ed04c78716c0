"""The runs of an experiment, picked by their settings."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlab.compare.groups import once
from gradlab.compare.jobs import ENDED as ENDED
from gradlab.compare.jobs import FINISHED
from gradlab.compare.recorded import LOST, Recorded, recorded
from gradlab.compare.runs import at, runs_in, same
from gradlab.compare.statistics import UNBOUNDED, Estimate, estimate
from gradlab.errors import BadInput


@dataclass(frozen=True)
class Sweep:
    """The runs of one experiment.

    Attributes:
      experiment: its name.
      place: the folders they were looked for in, in words.
      runs: all of them, those that have not ended included; one of each configuration and seed.
    """

    experiment: str
    place: str
    runs: tuple[Recorded, ...]

    def values(self, key: str) -> list[Any]:
        """The values that a setting has in the runs, numbers by size, words as they first come."""
        found = {
            same(value): value for run in self.runs if (value := setting(run, key)) is not None
        }
        numbers = all(isinstance(value, int | float) for value in found.values())
        return sorted(found.values()) if numbers else list(found.values())

    def where(
        self,
        settings: Mapping[str, Any],
        *,
        least: int = 1,
        ended: Sequence[str] = (FINISHED,),
        needs: Iterable[str] = (),
    ) -> list[Recorded]:
        """The runs that have these settings and have ended.

        Args:
          settings: ``{"model": "rnn", "model.hidden": 64}``: dotted keys of the configuration, or
            ``model`` and ``task`` by name.
          least: how many there must be at least.
          ended: with one of these statuses.
          needs: variables that each of them must have recorded.

        Raises:
          BadInput: if there are fewer, or one lacks a variable, saying what is needed.
        """
        fitting = [
            run
            for run in self.runs
            if all(same(setting(run, key)) == same(value) for key, value in settings.items())
        ]
        found = [run for run in fitting if run.entry.status in ended and run.run is not None]
        words = " ".join(f"{key}={value}" for key, value in settings.items()) or "any setting"
        if len(found) < least:
            others = [run.entry.status for run in fitting if run.entry.status not in ended]
            there = f"{len(found)} such"
            if others:
                counts = {status: others.count(status) for status in others}
                there += " and " + ", ".join(f"{n} {status}" for status, n in counts.items())
            self._refuse(
                f"at least {least} runs with {words} that have {' or '.join(ended)}", there
            )
        for run in found:
            if lacking := [name for name in needs if name not in run.names]:
                wanted = f"runs with {words} that recorded {', '.join(lacking)}"
                self._refuse(wanted, f"{run.entry.path} without")
        return found

    def _refuse(self, wanted: str, there: str) -> None:
        allowed = f"{wanted}, to check {self.experiment}; there: {there}"
        raise BadInput("runs", self.place, allowed, command_of(self.experiment))


def command_of(experiment: str) -> str:
    """What makes the runs of an experiment."""
    return f"python -m gradlab -m experiment={experiment}"


def read(experiment: str, *paths: str | os.PathLike[str]) -> Sweep:
    """The runs of an experiment in folders of sweeps or runs.

    Raises:
      BadInput: if a path is no folder, or holds no run, or runs of another experiment.
    """
    runs = recorded(runs_in(*paths))
    place = " ".join(map(str, paths))
    names = sorted({str(run.entry.info.get("name")) for run in runs if run.entry.info})
    if names != [experiment]:
        of = f"only runs of {', '.join(names)}" if names else "no run"
        if experiment in names:
            of = f"runs of {', '.join(names)}"
        allowed = f"runs of experiment={experiment} alone; there: {of}"
        raise BadInput("runs", place, allowed, command_of(experiment))
    return Sweep(experiment, place, tuple(once(runs)))


def setting(run: Recorded, key: str) -> Any:
    """A setting of a run: a dotted key of its configuration, or ``model`` or ``task`` by name.

    ``task`` is the name of the task's class in lower case. None where there is no such key.
    """
    if key == "model":
        return run.entry.model or None
    if key == "task":
        return str(run.entry.facts.get("task", "")).lower() or None
    return at(run.entry.config, key)


def over_seeds(
    runs: Sequence[Recorded],
    figure: Callable[[Recorded], float],
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Mean and 95 % interval over seeds of a figure of each run, which cannot leave ``bounds``.

    Runs of one seed at several settings are averaged first: they share weights and data. An
    infinite figure, as the logarithm of an exact zero, makes the mean infinite.
    """
    seeds: dict[Any, list[float]] = {}
    for run in runs:
        if not math.isnan(value := figure(run)):
            seeds.setdefault(run.entry.seed, []).append(value)
    values = [float(np.mean(each)) for each in seeds.values()]
    if infinite := [value for value in values if math.isinf(value)]:
        return Estimate(infinite[0], math.nan, math.nan, sum(not math.isnan(v) for v in values))
    return estimate(values, bounds)


def lost(run: Recorded, row: int = -1) -> float:
    """Decades that the gradient by the whole state falls from lag 0 to the longest, in layer 0.

    Above 0 it vanishes; infinite where exactly nothing arrives.

    Args:
      run: that recorded adjoints.
      row: which of the steps at which they were measured: 0 the first, -1 the last.
    """
    found = run.series(LOST)
    assert found is not None
    return float(found.values[row, 0])


def baseline(run: Recorded, name: str = "loss", split: str = "test") -> float:
    """What the task's guess without memory scores; NaN where it has no such score."""
    return run.entry.baseline(f"{split}/{name}")


def parameters(run: Recorded) -> int:
    """How many parameters the model has; 0 where that is not known."""
    return run.entry.parameters


def curve(run: Recorded, name: str, row: int = -1, layer: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A variable over lag at one training step: lags ascending ``(T,)`` and values ``(T,)``.

    Args:
      run: that recorded it; see :meth:`Sweep.where`.
      name: of a variable over ``t``.
      row: which of the steps at which it was measured: 0 the first, -1 the last.
      layer: which.
    """
    found = run.curve(name)
    assert found is not None
    return found.lags, found.values[row, layer].astype(float)


def value(run: Recorded, name: str, row: int = -1, **at: Any) -> float:
    """A number of a variable over layer and further dimensions, the first of each unless said.

    Args:
      run: that recorded it.
      name: of the variable.
      row: which of the steps at which it was measured: 0 the first, -1 the last.
      **at: labels along its dimensions, as ``gate="f"``.
    """
    assert run.run is not None
    found = run.run.curves[name].sel(at)
    found = found.isel({dim: 0 for dim in found.dims if dim != "step"})
    known = found.values[~np.isnan(found.values)]
    return float(known[row]) if len(known) else math.nan
