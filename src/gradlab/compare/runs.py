"""Which runs there are, how each ended, and by which settings they differ."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gradlab.compare.jobs import folders, natural, number_of
from gradlab.compare.progress import Progress
from gradlab.errors import BadInput
from gradlab.record.base import OWN_LOOP
from gradlab.record.directory import INFO
from gradlab.record.earlier import completed
from gradlab.record.files import read_regular
from gradlab.record.keys import flat
from gradlab.record.reader import glance

NEVER_BEGAN, UNREADABLE = "never began", "unreadable"
"""Statuses of a job's folder, beside those of a run, where there is no run to be read."""
LASTING = ("finished", "diverged", "interrupted", "crashed")
"""Statuses that do not change unless ``run.json`` does."""
SEED = "seed"
IRRELEVANT = ("record", "hydra", "trainer.resume", "trainer.checkpoint_seconds", "trainer.mesh")
"""Keys, and all below them, that change nothing in the numbers of a run."""
MEASURING = ("probe", "trainer.log_every", "trainer.log_per_decade")
"""Keys, and all below them, that say what is measured and when: they change no run's course."""
_OVERRIDE = re.compile(r"[+~]*([^=@]+)(?:@[^=]*)?(?:=(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A run as a sweep sees it, or the job that should have become one.

    Attributes:
      path: the run directory.
      name: its path in the folder that was asked for: ``"3"``, with Hydra's own names.
      status: as ``gradlab.open_run`` gives it (but never ``truncated``, which takes a look at every
        file), ``never began`` for a job without ``run.json``, or ``unreadable``.
      reason: in words, where there is something to say.
      overrides: what was said on the command line for it.
      config: the whole configuration, with what an earlier version had no choice of; empty where
        there is no run.
      summary: final figures, flat, with ``steps_per_second`` and ``probe_overhead``; NaN for one
        that was not finite; empty where there are none.
      info: all of ``run.json``.
      number: of the job in its sweep; None if the folder does not say.
    """

    path: Path
    name: str
    status: str
    reason: str = ""
    overrides: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    number: int | None = None

    def key_of(self, name: str) -> str | None:
        """The summary's key of a figure: its name, or that of the first layer; None without."""
        if name in self.summary:
            return name
        return next((key for key in self.summary if key.startswith(f"{name}/layer_")), None)

    def figure(self, name: str) -> float:
        """A figure of the summary by name, of the first layer where there are several; or NaN."""
        key = self.key_of(name)
        return math.nan if key is None else self.summary[key]

    def baseline(self, name: str) -> float:
        """What a guess without memory scores in ``SPLIT/FIGURE``; NaN where that is not known."""
        split, _, figure = name.partition("/")
        found = part(part(self.info, "baseline"), split).get(figure)
        return float(found) if isinstance(found, int | float) else math.nan

    @property
    def seed(self) -> str:
        """The seed as text; where that is not known the folder, a sample of its own."""
        return json.dumps(self.config[SEED], default=str) if SEED in self.config else str(self.path)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the run recorded of its parts: ``model``, ``task``, ``T`` …"""
        return part(self.info, "facts")

    @property
    def is_own(self) -> bool:
        """Whether a loop of the user's own made it, and not gradlab's."""
        return self.facts.get("loop") == OWN_LOOP

    @property
    def model(self) -> str:
        """The model's name, as the command line has it; empty where that is not known."""
        return str(self.facts.get("model") or "")

    @property
    def length(self) -> float:
        """T in timesteps; NaN where that is not known."""
        found = self.facts.get("T")
        return float(found) if isinstance(found, int | float) else math.nan

    @property
    def task(self) -> str:
        """The task in words: ``Adding, T = 100``; empty where that is not known."""
        words = [str(self.facts["task"])] if self.facts.get("task") else []
        return ", ".join(words + ([f"T = {self.facts['T']}"] if self.facts.get("T") else []))

    @property
    def problem(self) -> str:
        """What two runs have in common whose losses compare: the same data of the same length."""
        told = [self.facts.get(key) for key in ("task", "T", "readout")]
        return json.dumps([*told, self.config.get("task")], sort_keys=True, default=str)

    @cached_property
    def sample(self) -> str:
        """What two runs have in common that are one sample: configuration, with the seed, and task.

        Empty where there is no seed, so that nothing is known to be the same.
        """
        if SEED not in self.config:
            return ""
        course = {
            key: value
            for key, value in flat(self.config).items()
            if not is_below(key, (*IRRELEVANT, *MEASURING))
        }
        return json.dumps([self.model, self.problem, course], sort_keys=True, default=str)

    @property
    def command(self) -> str:
        """What makes the run again; empty where the folder does not say."""
        if self.is_own or (not self.info and not self.overrides):
            return ""
        return shlex.join(["python", "-m", "gradlab", *self.overrides])

    @property
    def layers(self) -> int:
        """How many layers the model has; 0 where that is not known."""
        if self.is_own:
            return len(part(self.facts, "layers"))
        return _whole(part(self.config, "model").get("layers"))

    @property
    def first_layer(self) -> str:
        """Of which layer :meth:`figure` is where there are several; empty where there are not."""
        names = "first layer" if self.is_own else "layer 0"
        return names if self.layers > 1 else ""

    @property
    def hidden(self) -> int:
        """How many units a layer has; 0 where that is not known."""
        return _whole(part(self.config, "model").get("hidden"))

    @property
    def parameters(self) -> int:
        """How many parameters the model has; 0 where that is not known."""
        return _whole(self.facts.get("parameters"))


def runs_in(
    *paths: str | os.PathLike[str],
    progress: Progress | None = None,
    known: dict[Path, tuple[Any, Entry]] | None = None,
) -> list[Entry]:
    """The runs in folders of sweeps, and those given themselves, each folder's by job number.

    A run that is reached in two ways comes once. Names are paths in the folder that was asked for;
    with several folders, after the name of that folder. ``progress`` is told how far it is.
    A run that has ended and is in ``known`` with the same ``run.json`` is not read again; what is
    read is put there.

    Raises:
      BadInput: if one of ``paths`` is no folder. A run that cannot be read is an entry that says
        why.
    """
    entries: dict[Path, Entry] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            hint = "a folder under multirun/ or outputs/"
            raise BadInput("runs", str(path), "the folder of a sweep, or a run directory", hint)
        several = len(paths) > 1
        prefix = f"{path.resolve().name}/" if several else ""
        there = folders(path)
        watched = progress.over(there, "looking for runs") if progress else there
        found = (_known(folder, path, known) for folder in watched)
        for one in sorted(found, key=_order):
            name = one.name if one.path == path else prefix + one.name
            # Links are not followed, so one folder has no run twice.
            place = one.path.resolve() if several else one.path
            entries.setdefault(place, one if name == one.name else replace(one, name=name))
    return list(entries.values())


def settings_that_differ(runs: Sequence[Entry]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, each with its value in every run.

    A setting is a dotted key of the configuration, or a group (``model``, ``experiment``) whose
    options were taken by name; what an option brings with it is no setting of its own. Of keys
    that nobody asked for and that always vary together there is the first alone. The seed comes
    last. None is the value of a key that a run does not have.
    """
    view = _View(runs)
    found: dict[str, list[Any]] = {}
    for key in view.asked:
        if view.differs(key) and not view.belongs_to_a_group(key, found):
            found[key] = view.values(key)
    explained = [key for key in found if key != SEED]
    for key in view.others():
        values = view.known(key)
        if len(set(map(same, values))) > 1 and not view.follows(values, explained):
            found[key] = view.values(key)
            explained.append(key)
    if SEED in found:
        found[SEED] = found.pop(SEED)
    return found


def same(value: Any) -> Any:
    """What two values have in common that are the same setting; can be a key of a dict."""
    if is_number(value):
        return float(value)
    return value if isinstance(value, str | bool | None) else json.dumps(value, sort_keys=True)


def is_number(value: Any) -> bool:
    """Whether a setting is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def part(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of ``run.json``; empty where there is none that could be one."""
    found = mapping.get(name)
    return found if isinstance(found, Mapping) else {}


def at(config: Mapping[str, Any], key: str) -> Any:
    """What a configuration holds under a dotted key; None where there is no such key."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


class _View:
    """Settings of runs by key; those without a configuration are known by their overrides only."""

    def __init__(self, runs: Sequence[Entry]):
        self.runs = runs
        self.said = [dict(_parsed(run.overrides)) for run in runs]
        self.flat = [{k: v for k, v in flat(run.config).items() if v != {}} for run in runs]
        sections = {
            key for run in runs for key, node in run.config.items() if isinstance(node, Mapping)
        }
        said = dict.fromkeys(
            key for one in self.said for key in one if not is_below(key, IRRELEVANT)
        )
        self.groups = [key for key in said if key in sections or "/" in key]
        self.groups += [key for key in ("experiment", "model") if key not in self.groups]
        self.asked = [*self.groups, *(key for key in said if key not in self.groups)]

    def values(self, key: str) -> list[Any]:
        """The value of ``key`` in every run."""
        return [self._value(index, key) for index in range(len(self.runs))]

    def known(self, key: str) -> list[Any]:
        """The same for runs with a configuration, which say by what they differ."""
        return [self._value(index, key) for index, run in enumerate(self.runs) if run.config]

    def differs(self, key: str) -> bool:
        """Whether runs have different values of ``key``, or jobs that never began asked for one."""
        asked = [
            self._value(index, key)
            for index, run in enumerate(self.runs)
            if run.config or key in self.said[index]
        ]
        if any(isinstance(value, Mapping | list) for value in asked):
            asked = self.known(key)  # overrides say such values in another way
        return len(set(map(same, asked))) > 1

    def others(self) -> list[str]:
        """Keys of the configurations that nobody asked for."""
        keys = dict.fromkeys(key for flat in self.flat for key in flat)
        return [key for key in keys if key not in self.asked and not is_below(key, IRRELEVANT)]

    def belongs_to_a_group(self, key: str, found: Mapping[str, Any]) -> bool:
        """Whether ``key`` differs only since options of a group that differs have it or not.

        The name of an experiment or a model that nobody asked for follows from what was asked.
        """
        values = self.known(key)
        if key in self.groups:
            return not any(key in one for one in self.said) and self.follows(values, list(found))
        group = key.partition(".")[0]
        if group not in found or all(value is not None for value in values):
            return False
        return self.follows(values, [group])

    def follows(self, values: Sequence[Any], keys: Sequence[str]) -> bool:
        """Whether the values of ``keys`` are enough to tell each of ``values``."""
        if not keys:
            return False
        classes: dict[Any, set[Any]] = {}
        for value, *told in zip(values, *map(self.known, keys), strict=True):
            classes.setdefault(tuple(map(same, told)), set()).add(same(value))
        return all(len(found) == 1 for found in classes.values())

    def _value(self, index: int, key: str) -> Any:
        run, said = self.runs[index], self.said[index]
        if not run.config:
            return _read(said[key]) if key in said else None
        if key == "experiment":
            return run.info.get("name")
        if key == "model":
            return run.facts.get("model", said.get(key))
        if key in self.groups:
            return said.get(key, run.facts.get(key))
        if key in self.flat[index]:
            return self.flat[index][key]
        return at(run.config, key)


def _order(entry: Entry) -> tuple[float, list[tuple[int, str]]]:
    """By the job's number, then by name, with numbers in it as numbers."""
    return math.inf if entry.number is None else entry.number, natural(str(entry.path))


def _known(folder: Path, root: Path, known: dict[Path, tuple[Any, Entry]] | None) -> Entry:
    """The entry of a folder, read only if it may have changed."""
    if known is None:
        return _entry(folder, root)
    stamp = _stamp(folder / INFO), root
    if folder not in known or known[folder][0] != stamp or known[folder][1].status not in LASTING:
        known[folder] = stamp, _entry(folder, root)
    return known[folder][1]


def _stamp(file: Path) -> tuple[int, ...]:
    """Changes whenever a file does."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _entry(folder: Path, root: Path) -> Entry:
    name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
    number, run = number_of(folder), None
    status = NEVER_BEGAN
    reason = f"it has no {INFO}: not started, or ended before it could record anything"
    try:
        if (folder / INFO).exists():
            run = glance(folder)
    except (BadInput, OSError) as error:
        status = UNREADABLE
        reason = f"not {error.allowed}" if isinstance(error, BadInput) else str(error)
    if run is None:
        overrides = _composed_overrides(folder)
        return Entry(folder, name, status, reason, overrides, number=number)
    reason = str(run.info.get("reason") or "")
    if run.status == "killed":
        reason = reason or "its process is gone and had no time to say why"
    figures = {k: v for k, v in run.summary.items() if isinstance(v, int | float)}
    said = run.info.get("overrides")
    overrides = tuple(map(str, said)) if isinstance(said, list) else ()
    config = completed(run.config)
    return Entry(folder, name, run.status, reason, overrides, config, figures, run.info, number)


def _composed_overrides(folder: Path) -> tuple[str, ...]:
    """The overrides as Hydra wrote them, a yaml list of texts; none if they cannot be read."""
    try:
        text = read_regular(folder / ".hydra" / "overrides.yaml").decode()
    except (OSError, ValueError):
        return ()
    lines = [line[2:].strip() for line in text.splitlines() if line.startswith("- ")]
    return tuple(re.sub(r"""^(['"])(.*)\1$""", r"\2", line) for line in lines)


def _parsed(overrides: Iterable[str]) -> Iterator[tuple[str, str]]:
    for override in overrides:
        if found := _OVERRIDE.fullmatch(override):
            yield found[1], found[2] or ""


def _read(text: str) -> Any:
    """A value of the command line: numbers, true, false and null as such, the rest as text."""
    try:
        return float(text) if re.fullmatch(r"\.\d+", text) else json.loads(text)
    except (ValueError, RecursionError):
        known = {"true": True, "false": False, "null": None}
        return known.get(text.lower(), text.strip("'"))


def is_below(key: str, tops: Iterable[str]) -> bool:
    """Whether a key, or a group, is one of ``tops`` or lies below one."""
    return any(key == one or key.startswith((f"{one}.", f"{one}/")) for one in tops)
