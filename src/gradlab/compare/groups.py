"""Runs by setting, for words and pictures: what a group is called, and what one run came to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gradlab.compare.jobs import DIVERGED, FINISHED
from gradlab.compare.recorded import PER_100, SLOPE, Recorded
from gradlab.compare.runs import MEASURING, SEED, Entry, is_below, same, settings_that_differ

MODEL = "model"
ACRONYMS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
"""Models that have a name of their own in prose."""

R = TypeVar("R", bound=Recorded | Entry)
V = TypeVar("V")


@dataclass(frozen=True)
class Group:
    """The runs that differ by their seed alone.

    Attributes:
      values: of the settings that differ between groups, the seed left out; ``model`` is one.
      runs: all of them, in the order given.
      names: a short name of each setting.
    """

    values: Mapping[str, Any]
    runs: tuple[Recorded, ...]
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model, as the command line has it; empty where that is not known."""
        return str(self.values.get(MODEL) or self.runs[0].entry.model)

    @property
    def label(self) -> str:
        """What tells it from the others, as ``LSTM, forget_bias = 1``; or the model."""
        words = [called(self.model)] if MODEL in self.values else []
        return ", ".join([*words, *self.settings]) or called(self.model) or "runs"

    @property
    def settings(self) -> list[str]:
        """Its settings but the model, as ``forget_bias = 1``; not those it does not have."""
        return [
            f"{self.names.get(key, key)} = {shown(value)}"
            for key, value in self.values.items()
            if key != MODEL and value is not None
        ]


def groups_of(runs: Sequence[Recorded]) -> list[Group]:
    """The runs by the settings that differ besides the seed, as they first come."""
    differ = settings_of_course([run.entry for run in runs])
    differ.pop(SEED, None)
    names = short(differ)
    return [Group(values, tuple(those), names) for values, those in by_settings(differ, runs)]


def by_settings(
    differ: Mapping[str, Sequence[Any]],
    runs: Sequence[V],
    also: Callable[[V], Any] = lambda _: None,
) -> list[tuple[dict[str, Any], list[V]]]:
    """Runs by the values of settings, as these first come: the values, and the runs that have them.

    Args:
      differ: the settings, each with its value in every run.
      runs: in the same order.
      also: what else tells runs apart.
    """
    found: dict[Any, tuple[dict[str, Any], list[V]]] = {}
    for index, run in enumerate(runs):
        values = {key: each[index] for key, each in differ.items()}
        told = also(run), *map(same, values.values())
        found.setdefault(told, (values, []))[1].append(run)
    return list(found.values())


def settings_of_course(runs: Sequence[Entry]) -> dict[str, list[Any]]:
    """The settings that differ, without those that only say what is measured; the seed last."""
    return {
        key: values
        for key, values in settings_that_differ(runs).items()
        if not is_below(key, MEASURING)
    }


def counted(runs: Sequence[Recorded]) -> list[Recorded]:
    """The runs of a group whose numbers count: those that finished, or without any the others.

    Diverged runs are not among them, nor jobs that never became a run.
    """
    finished = [run for run in runs if run.entry.status == FINISHED]
    others = [run for run in runs if run.run is not None and run.entry.status != DIVERGED]
    return finished or others


def once(runs: Sequence[R]) -> list[R]:
    """The runs without repeats: of one configuration and seed that is there twice, one run.

    Of these a finished one is taken if there is one, then one whose arrays were read, then the one
    that recorded most. Two runs that differ in what they measure alone are one sample too.
    """
    best: dict[Any, R] = {}
    for index, run in enumerate(runs):
        sample = entry_of(run).sample or index
        if sample not in best or _worth(run) > _worth(best[sample]):
            best[sample] = run
    kept = set(map(id, best.values()))
    return [run for run in runs if id(run) in kept]


def entry_of(run: Recorded | Entry) -> Entry:
    """The entry of a run, which may be one itself."""
    return run.entry if isinstance(run, Recorded) else run


def repeats(count: int) -> str:
    """That so many runs were left out by :func:`once`."""
    if count == 1:
        return "1 run repeats the configuration and seed of another and is left out"
    return f"{count:,} runs repeat the configuration and seed of others and are left out"


def _worth(run: Recorded | Entry) -> tuple[bool, bool, int]:
    entry = entry_of(run)
    arrays = run.run is not None if isinstance(run, Recorded) else False
    return entry.status == FINISHED, arrays, len(entry.summary)


def final(run: Recorded, name: str) -> float:
    """A figure at the end of a run, of its first layer: from its summary, else as last recorded.

    The rate of a run that was recorded before there were decades is its slope in another unit.
    """
    found = run.entry.figure(name)
    if math.isnan(found):  # as an infinity is in a summary
        found = run.last(name)
    if math.isnan(found) and name == PER_100:
        found = -100 / math.log(10) * run.entry.figure(SLOPE)
    return found


def only(values: Iterable[V], other: V) -> V:
    """The value that all of them are, or ``other``."""
    found = set(values)
    return found.pop() if len(found) == 1 else other


def called(model: str) -> str:
    """A model as prose calls it."""
    return ACRONYMS.get(model, model)


def short(keys: Iterable[str]) -> dict[str, str]:
    """Dotted keys by what is enough of their ends to tell them apart."""
    ends = {key: _ends(key) for key in keys}
    counts = Counter(end for each in ends.values() for end in each)
    return {key: next((end for end in each if counts[end] == 1), key) for key, each in ends.items()}


def _ends(key: str) -> list[str]:
    """The ends of a dotted key, from short to long: ``c``, ``b.c``, ``a.b.c``."""
    parts = key.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def shown(value: Any) -> str:
    """A setting's value in a table."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
