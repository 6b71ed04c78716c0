"""What is set against what: models at settings that all of them have, or settings of one model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradlab.compare.groups import (
    MODEL,
    Group,
    called,
    counted,
    final,
    groups_of,
)
from gradlab.compare.jobs import DIVERGED
from gradlab.compare.recorded import Recorded
from gradlab.compare.runs import same
from gradlab.compare.statistics import Estimate, mean

HORIZON, SLOPE = "memory_horizon", "adjoint_slope"


@dataclass(frozen=True)
class Contender:
    """One of those that are set against each other.

    Attributes:
      group: what it is called by; its runs are all of the contender's.
      cells: its runs at each of the settings that are the same for all contenders, by these
        settings; one cell, by ``()``, where there are none.
    """

    group: Group
    cells: Mapping[tuple[Any, ...], tuple[Recorded, ...]]

    def values(self, name: str) -> dict[tuple[Any, ...], list[float]]:
        """A figure's finite values in each cell that has any."""
        found = {
            key: [value for run in counted(runs) if math.isfinite(value := final(run, name))]
            for key, runs in self.cells.items()
        }
        return {key: values for key, values in found.items() if values}

    def reach(self) -> dict[tuple[Any, ...], list[float]]:
        """Natural logarithms of the memory horizons in each cell that has any."""
        return {
            key: logs
            for key, values in self.values(HORIZON).items()
            if (logs := [math.log(value) for value in values if value > 0])
        }

    @property
    def runs(self) -> list[Recorded]:
        """Those whose numbers count."""
        return [run for runs in self.cells.values() for run in counted(runs)]

    @property
    def measured(self) -> list[Recorded]:
        """Those of :attr:`runs` with a memory horizon."""
        return [run for run in self.runs if math.isfinite(final(run, HORIZON))]

    @property
    def whole(self) -> int:
        """In how many runs the gradient did not fall by e within the sequence."""
        return sum(final(run, HORIZON) >= run.entry.length for run in self.measured)

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return sum(run.entry.status == DIVERGED for run in self.group.runs)

    @property
    def name(self) -> str:
        """As the owner of a gradient: ``the LSTM's``, ``that with forget_bias = 1``."""
        model = self.group.model
        return self._with("that", f"the {called(model)}'s" if model else "their")

    @property
    def gradient(self) -> str:
        """``the LSTM's gradient``, ``the gradient with forget_bias = 1``."""
        model = self.group.model
        whose = f"the {called(model)}'s gradient" if model else "the gradient"
        return self._with("the gradient", whose)

    def _with(self, alone: str, whose: str) -> str:
        """With the settings; these alone say whose it is where the model does not differ."""
        settings = " and ".join(self.group.settings)
        named = whose if MODEL in self.group.values else alone
        return f"{named} with {settings}" if settings else whose


@dataclass(frozen=True)
class Field:
    """All contenders.

    Attributes:
      contenders: those with a run at least.
      shared: settings that vary within each contender alike, with their values.
      left_out: runs at settings that not every contender has.
      elsewhere: runs of other tasks or lengths, which are left out.
      one_problem: whether all contenders have the same task at the same length.
    """

    contenders: tuple[Contender, ...]
    shared: Mapping[str, tuple[Any, ...]]
    left_out: int
    elsewhere: int
    one_problem: bool


def field_of(runs: Sequence[Recorded]) -> Field:
    """Who is set against whom.

    Of several tasks or lengths the one with most runs (the longest of these) counts alone, if
    there is something to compare in it; else all do. Models are compared at the settings that all
    of them have: with learning rates 0.1 and 0.01 for each, at both. A setting that not all models
    have tells contenders apart, and so do all settings where no combination is common to all.
    """
    problems: dict[str, list[Recorded]] = {}
    for run in runs:
        problems.setdefault(run.entry.problem, []).append(run)
    most = max(problems.values(), key=lambda those: (len(those), _length(those)))
    groups = groups_of(most)
    if len(problems) == 1 or len(groups) > 1:
        return _field(groups, len(runs) - len(most), one_problem=True)
    return _field(groups_of(runs), 0, one_problem=False)


def mean_over(cells: Mapping[tuple[Any, ...], Sequence[float]]) -> Estimate:
    """Mean over cells with equal weights, and its interval over seeds."""
    return mean(list(cells.values()))


def _field(groups: Sequence[Group], elsewhere: int, *, one_problem: bool) -> Field:
    keys = list(groups[0].values)
    own = [key for key in keys if any(group.values[key] is None for group in groups)]
    shared = [key for key in keys if key not in own and key != MODEL] if MODEL in keys else []

    def told(group: Group, keys: Sequence[str]) -> tuple[Any, ...]:
        return tuple(same(group.values[key]) for key in keys)

    identity = [key for key in keys if key not in shared]
    cells: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
    for group in groups:
        cells.setdefault(told(group, identity), set()).add(told(group, shared))
    common = set.intersection(*cells.values())
    if not common:
        identity, shared, common = keys, [], {()}
    members: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        if told(group, shared) in common:
            members.setdefault(told(group, identity), []).append(group)
    contenders = tuple(_contender(those, identity, shared) for those in members.values())
    taken = [group for those in members.values() for group in those]
    values = {
        key: tuple({same(g.values[key]): g.values[key] for g in taken}.values()) for key in shared
    }
    left_out = sum(len(g.runs) for g in groups) - sum(len(g.runs) for g in taken)
    several = {key: found for key, found in values.items() if len(found) > 1}
    return Field(contenders, several, left_out, elsewhere, one_problem)


def _contender(
    groups: Sequence[Group], identity: Sequence[str], shared: Sequence[str]
) -> Contender:
    first = groups[0]
    cells = {tuple(same(g.values[key]) for key in shared): g.runs for g in groups}
    runs = tuple(run for group in groups for run in group.runs)
    whole = Group({key: first.values[key] for key in identity}, runs, first.names)
    return Contender(whole, cells)


def _length(runs: Sequence[Recorded]) -> float:
    found = runs[0].entry.length
    return found if math.isfinite(found) else 0.0
