"""Settings that a folder records are data: what could run something is refused, not resumed.

A run directory, or a sweep's, may have come from anybody. What it says of a run is taken only if
it is text that sets a key of gradlab to a plain value, or names an option that exists. Code comes
from gradlab's own yaml files, from a folder that ``--config-dir`` names on this command line, or
from what is said on this command line; never from the folder that is resumed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException

from gradlab.errors import BadInput
from gradlab.launch.build import SECTIONS
from gradlab.launch.conf_files import config_folder, config_folders

KEY = "trainer.resume"
MOST, LONGEST = 1_000, 100_000
"""More settings than that, or characters in all of them, are no command line."""
_SHOWN = 5
_SUBMITIT = ".submitit"
"""Where submitit keeps links by full paths, which lead nowhere in a sweep that was moved."""
_SUBDIR = "hydra.sweep.subdir="
_OBEYED = ("matplotlibrc", "wandb/settings")
"""What libraries read in the current folder."""
_TARGET = "_target_"
_TARGETS = re.compile(r"""_target_['"]?\s*[:=]\s*['"]?([\w.]+)""")
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_LOOKS_UP = re.compile(r"\$\{(?!\.*[A-Za-z_][\w.-]*\})")
"""Anything but a reference to another key."""
_NUMBER = r"-?[\d.]+(e-?\d+)?|null"
_WAY = "(minimize|maximize)"
_NUMBERS_OF_HYDRA = {
    "hydra.launcher": "workers max_members n_jobs cpus_per_task gpus_per_node mem_gb "
    "timeout_min max_num_timeout signal_delay_s array_parallelism",
    "hydra.sweeper": "n_trials n_jobs max_failure_rate max_batch_size",
    "hydra.sweeper.sampler": "seed n_startup_trials n_ei_candidates population_size",
}
OF_A_SWEEP = {
    "hydra/launcher": "basic|population|joblib|local|slurm|ray",
    "hydra/sweeper": "basic|search|optuna",
    "hydra/sweeper/sampler": "tpe|random|cmaes|nsgaii",
    "hydra.sweeper.study_name": r"[\w.-]+",
    "hydra.sweeper.direction": rf"{_WAY}|\[{_WAY}(,{_WAY})*\]",
    "hydra.launcher.at_once": f"measure|{_NUMBER}",
    "hydra.launcher.partition": r"[\w.-]+",
    "hydra.sweep.subdir": r"(?=\w|\$\{hydra:)([\w=,+/-]|\.(?!\.)|\$\{[A-Za-z]\w*(\.\w+)*\}"
    r"|\$\{hydra:job\.(num|id|override_dirname)\})+",
} | {
    f"{section}.{name}": _NUMBER
    for section, names in _NUMBERS_OF_HYDRA.items()
    for name in names.split()
}
"""Of what is Hydra's, the keys that a sweep may have recorded: their values can run nothing."""


def check_settings(
    settings: Mapping[str, str],
    folder: Path,
    arguments: Sequence[str],
    of_hydra: Mapping[str, str] | None = None,
) -> None:
    """Refuse overrides that ``folder`` recorded unless all of them are data.

    Args:
      settings: as they would be typed, by what was recorded.
      folder: that is resumed.
      arguments: this command line.
      of_hydra: keys of Hydra that may be among them, and the patterns of their values.

    Raises:
      BadInput: naming those that could run something.
    """
    known = _Known.of(arguments, folder)
    faults = {text: known.fault(typed, of_hydra or {}) for text, typed in settings.items()}
    others = [text for text in settings if not text.lstrip("+").startswith(_SUBDIR)]
    for text in settings.keys() - others:
        if "${" in text and any(".." in one for one in others):
            faults[text] = "may lead out of the sweep"
    wrong = [f"{shown(text)} ({fault})" for text, fault in faults.items() if fault]
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        named = "; ".join([*wrong[:_SHOWN], *more])
        allowed = f"a folder whose settings run nothing; at fault: {named}"
        hint = "say again on this command line what of it is yours, with --config-dir if need be"
        raise BadInput(KEY, str(folder), allowed, hint)


def as_texts(recorded: Any, folder: Path) -> list[str]:
    """What a folder recorded as its overrides, if that is a list of texts.

    Raises:
      BadInput: if it is anything else, or too long for a command line.
    """
    texts = [one for one in recorded if isinstance(one, str)] if isinstance(recorded, list) else []
    if texts != recorded:
        allowed = "a folder that recorded its overrides, as a list of texts"
        raise BadInput(KEY, str(folder), allowed)
    if len(texts) > MOST or sum(map(len, texts)) > LONGEST:
        allowed = f"a folder with at most {MOST:,} overrides, of {LONGEST:,} characters in all"
        raise BadInput(KEY, str(folder), allowed)
    return texts


def shown(value: object) -> str:
    """A value of a record for a message: no control characters, and not too long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def keep_out(folder: Path) -> None:
    """See that nothing is imported from ``folder``, and written to no place outside of it.

    Where Python was started in it, it is taken from the places where modules are looked for.

    Raises:
      BadInput: if it holds a link that leads out of it, or what is neither a file nor a folder.
    """
    here, home = Path.cwd().resolve(), folder.resolve()
    if here.is_relative_to(home):
        for name in _OBEYED:
            if (here / name).exists() or (here / name).is_symlink():
                allowed = f"a folder without {name}, which is obeyed where Python is started"
                raise BadInput(KEY, str(folder), allowed, "the same from another current folder")
        sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
        os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that this one starts
    for entry in _odd_entries(folder):
        if not entry.is_symlink():
            odd = "neither a file nor a folder"
        elif not (_is_log(Path(entry)) or Path(os.path.realpath(entry)).is_relative_to(home)):
            odd = "a link that leads out of it"
        else:
            continue
        name = shown(os.path.relpath(entry, folder))
        allowed = f"a folder of plain files; {name} is {odd}"
        raise BadInput(KEY, str(folder), allowed)


def _is_log(link: Path) -> bool:
    """Whether W&B put it there: its log is elsewhere while it runs, and for ever after a kill.

    Nobody writes through it; a run that is resumed has a folder of its own in ``wandb/``.
    """
    return link.parent.name == "logs" and link.parents[2].name == "wandb"


def _odd_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All below ``folder`` that is neither a plain file nor a plain folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != _SUBMITIT:
                    yield from _odd_entries(Path(entry))
            elif not entry.is_file(follow_symlinks=False):
                yield entry


@dataclass(frozen=True)
class _Known:
    """What may be named.

    Attributes:
      folders: with yaml files, gradlab's and those that the command line gives.
      foreign: the folder that is resumed; no yaml file in it counts, unless it is given.
      targets: what the yaml files and the command line name as ``_target_``.
    """

    folders: Sequence[Path]
    foreign: Path
    targets: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, arguments: Sequence[str], foreign: Path) -> _Known:
        known = cls(config_folders(arguments), foreign.resolve())
        spoken = (one for one in arguments if not one.startswith(("hydra.", KEY)))  # no paths
        known.targets.update(_TARGETS.findall("\n".join(spoken)))
        for folder in known.folders:
            for path in known._yaml_files(folder):
                known.targets.update(_TARGETS.findall(path.read_text("utf-8", "replace")))
        return known

    def fault(self, text: str, of_hydra: Mapping[str, str]) -> str:
        """Why an override is not taken; empty if it is."""
        if text.startswith("-"):
            return "a flag"
        try:
            override = OverridesParser.create().parse_override(text)
        except (HydraException, RecursionError):
            return "no setting"
        key = override.key_or_group
        parts = re.split(r"[./]", key)
        if parts[0] == "hydra":
            value = text.partition("=")[2]
            known = key in of_hydra and override.package is None and not override.is_delete()
            return "" if known and re.fullmatch(of_hydra[key], value) else "of Hydra itself"
        if override.package is not None:
            return "puts a section elsewhere"
        values = list(_values(override))
        if self._is_group(key):
            missing = any(not self._has_option(key, one) for one in _names(values))
            return "no option of gradlab, nor of a --config-dir given here" if missing else ""
        if parts[0] not in (*SECTIONS, "seed", "objective"):
            return "no key of gradlab"
        *inner, last = parts
        if any(part.startswith("_") for part in inner):
            return "says how code is called"
        faults = (self._fault_in({last: value}) for value in values or [None])
        return next(filter(None, faults), "")

    def _fault_in(self, value: Any) -> str:
        """The same for a value, which may be a nest of lists and dictionaries."""
        if isinstance(value, QuotedString):
            value = value.text
        if isinstance(value, str):
            return "looks something up" if _LOOKS_UP.search(value) else ""
        if isinstance(value, list):
            return next(filter(None, map(self._fault_in, value)), "")
        if isinstance(value, Mapping):
            return next(filter(None, (self._fault_at(*item) for item in value.items())), "")
        return "" if value is None or isinstance(value, bool | int | float) else "no plain value"

    def _fault_at(self, key: Any, value: Any) -> str:
        if not str(key).startswith("_"):
            return self._fault_in(value)
        if key != _TARGET:
            return "says how code is called"
        name = value.text if isinstance(value, QuotedString) else value
        return "" if isinstance(name, str) and name in self.targets else "names code"

    def _is_group(self, key: str) -> bool:
        return bool(_NAME.fullmatch(key)) and any(map(self._counts, self._at(key)))

    def _has_option(self, group: str, name: Any) -> bool:
        if name is None or isinstance(name, Glob):
            return True
        if not isinstance(name, str | int) or not _NAME.fullmatch(str(name)):
            return False
        return any(map(self._counts, self._at(f"{group}/{name}.yaml")))

    def _at(self, place: str) -> Iterable[Path]:
        return (folder / place for folder in self.folders if (folder / place).exists())

    def _counts(self, path: Path) -> bool:
        """Whether it is not of the folder that is resumed."""
        given = any(folder.resolve().is_relative_to(self.foreign) for folder in self.folders)
        return given or not path.resolve().is_relative_to(self.foreign)

    def _yaml_files(self, folder: Path) -> Iterator[Path]:
        launchers = Path(config_folder(), "hydra")
        for place, folders, files in os.walk(folder):
            inside = [Path(place, name) for name in folders if not name.startswith(".")]
            folders[:] = [one.name for one in inside if one != launchers and self._counts(one)]
            yield from (Path(place, name) for name in files if name.endswith(".yaml"))


def _values(override: Override) -> Iterator[Any]:
    """Every value that an override sets its key to; none that are numbers by their kind."""
    value: Any = override._value
    if isinstance(value, ChoiceSweep):
        yield from value.list
    elif not isinstance(value, RangeSweep | IntervalSweep):
        yield value


def _names(values: Iterable[Any]) -> Iterator[Any]:
    """The options among the values of a group."""
    for value in values:
        if isinstance(value, QuotedString):
            yield value.text
        elif isinstance(value, list):
            yield from _names(value)
        else:
            yield value
