"""The jobs of a sweep: which there are to be, and how each stands, by its run directory alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gradlab.launch.session import session
from gradlab.record.lock import is_written

ENDED = {"finished", "diverged"}
"""Of these nothing is left to do."""
_NUMBER = re.compile(r"^  job:\n(?:    .*\n)*?    num: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Member:
    """A job of a sweep that has begun.

    Attributes:
      number: of the job in its sweep, -1 if its folder does not say.
      folder: the run directory.
      status: as in :attr:`gradlab.record.reader.Run.status`; ``starting`` before there is a record.
      reason: in words, as the run recorded it.
    """

    number: int
    folder: Path
    status: str
    reason: str


def planned(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job that Hydra's own sweeper is about to launch; None for any other.

    Args:
      config: of the sweep, with its section ``hydra``.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    said = swept(config)
    return None if said is None else BasicSweeper.split_arguments(said, None)[0]


def swept(config: DictConfig) -> list[Override] | None:
    """What Hydra's own sweeper goes by: its parameters, then the command line; None for others."""
    if not str(config.hydra.sweeper.get("_target_")).endswith("BasicSweeper"):
        return None
    params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
    assert isinstance(params, dict)
    written = [f"{key}={value}" for key, value in params.items()]
    written += list(config.hydra.overrides.task)
    return OverridesParser.create().parse_overrides(written)


def name_of(number: int, jobs: Sequence[Sequence[str]] | None, folder: Path | None = None) -> str:
    """A job by its number and by the overrides that it does not share with all others.

    Args:
      number: of the job.
      jobs: the overrides of every job, if they are known.
      folder: its run directory; read if they are not.
    """
    shared: set[str] = set()
    if jobs is not None and number < len(jobs):
        own = list(jobs[number])
        shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    elif folder is not None and (said := folder / ".hydra" / "overrides.yaml").is_file():
        own = [str(one) for one in OmegaConf.load(said)]
    else:
        return f"job {number}"
    return f"job {number} ({' '.join(one for one in own if one not in shared)})"


def name_of_job() -> str:
    """The name of the job at hand in its sweep; empty for a single run."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.RUN:
        return ""
    return name_of(settings.job.num, session.jobs, Path(settings.runtime.output_dir))


def folders(sweep: Path) -> Iterator[Path]:
    """The folders of the jobs that have begun, in the order of their names."""
    try:
        entries = sorted((e for e in os.scandir(sweep) if e.is_dir()), key=_natural)
    except FileNotFoundError:
        return
    for entry in entries:
        folder = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if (folder / "run.json").exists() or (folder / ".hydra").is_dir():
            yield folder
        else:  # hydra.sweep.subdir may have more than one level
            yield from folders(folder)


def member(folder: Path) -> Member:
    """How the job in ``folder`` stands."""
    info = _info(folder)
    status = info.get("status", "starting")
    if status == "running" and is_written(folder) is False:
        # It may have ended between the two looks.
        info = _info(folder)
        status = info.get("status", "starting").replace("running", "killed")
    return Member(_number(folder), folder, status, info.get("reason", ""))


def _info(folder: Path) -> dict[str, Any]:
    try:
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or for a moment not to be read
        return {}
    return info if isinstance(info, dict) else {}


def _number(folder: Path) -> int:
    try:
        found = _NUMBER.search((folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))
    except OSError:
        found = None
    if found:
        return int(found[1])
    return int(folder.name) if folder.name.isdigit() else -1


def _natural(entry: os.DirEntry[str]) -> tuple[int, str]:
    return (int(entry.name), "") if entry.name.isdigit() else (2**62, entry.name)
