"""What is set against what: models at settings that all of them have, or settings of one model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradlab.compare.groups import MODEL, Group, by_settings, called, counted, final, groups_of
from gradlab.compare.jobs import DIVERGED
from gradlab.compare.recorded import LOST, PER_100, Recorded
from gradlab.compare.runs import same
from gradlab.compare.statistics import Estimate, bounds_of, estimate

Cell = tuple[Any, ...]
"""Values of the settings that are the same for all contenders."""


@dataclass(frozen=True)
class Contender:
    """One of those that are set against each other.

    Attributes:
      group: what it is called by; its runs are all of the contender's.
      cells: its runs at each of the settings that are the same for all contenders, by these
        settings; one cell, by ``()``, where there are none.
    """

    group: Group
    cells: Mapping[Cell, tuple[Recorded, ...]]

    def values(self, name: str) -> dict[Cell, dict[Any, float]]:
        """A figure's finite values in each cell that has any, by seed."""
        if name not in self._values:
            found: dict[Cell, dict[Any, float]] = {}
            for key, runs in self.cells.items():
                for run in counted(runs):
                    if math.isfinite(value := final(run, name)):
                        found.setdefault(key, {})[run.entry.seed] = value
            self._values[name] = found
        return self._values[name]

    @cached_property
    def _values(self) -> dict[str, dict[Cell, dict[Any, float]]]:
        return {}

    def by_seed(self, name: str, cells: Collection[Cell] | None = None) -> list[float]:
        """A figure's mean over the cells (or some of them) in each seed that has it in all of them.

        Runs of one seed at several settings share weights and data: they are one sample.
        """
        there = self._there(name, cells)
        seeds = [seed for seed in next(iter(there), ()) if all(seed in cell for cell in there)]
        return [float(np.mean([cell[seed] for cell in there])) for seed in seeds]

    def samples(self, name: str, cells: Collection[Cell] | None = None) -> list[float]:
        """:meth:`by_seed`; where no seed has every cell the one mean over what there is."""
        there = self._there(name, cells)
        whole = [float(np.mean([np.mean(list(cell.values())) for cell in there]))] if there else []
        return self.by_seed(name, cells) or whole

    def estimate(self, name: str, cells: Collection[Cell] | None = None) -> Estimate:
        """The mean of :meth:`samples`, with its interval over seeds."""
        longest = max((run.entry.length for run in self.runs), default=math.nan)
        return estimate(self.samples(name, cells), bounds_of(name, longest))

    def _there(self, name: str, cells: Collection[Cell] | None) -> list[dict[Any, float]]:
        return [each for key, each in self.values(name).items() if cells is None or key in cells]

    @property
    def runs(self) -> list[Recorded]:
        """Those whose numbers count."""
        return [run for runs in self.cells.values() for run in counted(runs)]

    @property
    def measured(self) -> list[Recorded]:
        """Those of :attr:`runs` of which it is known how many decades their gradient loses."""
        return [run for run in self.runs if not math.isnan(final(run, PER_100))]

    @property
    def dead(self) -> int:
        """In how many runs nothing at all, exactly zero, arrives at the far end."""
        return sum(math.isinf(final(run, LOST)) for run in self.runs)

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
    problems = [those for _, those in by_settings({}, runs, lambda run: run.entry.problem)]
    most = max(problems, key=lambda those: (len(those), np.nan_to_num(those[0].entry.length)))
    groups = groups_of(most)
    if len(problems) == 1 or len(groups) > 1:
        return _field(groups, len(runs) - len(most), one_problem=True)
    return _field(groups_of(runs), 0, one_problem=False)


def _field(groups: Sequence[Group], elsewhere: int, *, one_problem: bool) -> Field:
    keys = list(groups[0].values)
    own = [key for key in keys if any(group.values[key] is None for group in groups)]
    shared = [key for key in keys if key not in own and key != MODEL] if MODEL in keys else []

    def told(group: Group) -> tuple[Any, ...]:
        return tuple(same(group.values[key]) for key in shared)

    def members(of: Sequence[Group]) -> list[tuple[dict[str, Any], list[Group]]]:
        identity = {key: [group.values[key] for group in of] for key in keys if key not in shared}
        return by_settings(identity, of)

    common = set.intersection(*(set(map(told, those)) for _, those in members(groups)))
    if not common:
        shared, common = [], {()}
    taken = members([group for group in groups if told(group) in common])
    contenders = tuple(
        Contender(
            Group(values, tuple(run for group in those for run in group.runs), groups[0].names),
            {told(group): group.runs for group in those},
        )
        for values, those in taken
    )
    values = {
        key: tuple({same(g.values[key]): g.values[key] for _, of in taken for g in of}.values())
        for key in shared
    }
    several = {key: found for key, found in values.items() if len(found) > 1}
    left_out = sum(len(group.runs) for group in groups if told(group) not in common)
    return Field(contenders, several, left_out, elsewhere, one_problem)
