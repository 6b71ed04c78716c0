"""Which run of W&B a run directory is, what uploads it, and where W&B has its settings."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gradlab.compare.runs import SEED, Entry, at, part, settings_that_differ

MODEL = "facts.model"
"""The model's name.

``model`` itself may hold an option's name: a parameter of a W&B sweep goes over it.
"""
PROJECT = "gradlab"
"""The project of runs that do not say theirs."""
_FOLDER = re.compile(r"(?P<offline>offline-)?run-\d{8}_\d{6}-(?P<id>.+)")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Upload(NamedTuple):
    """A run as W&B knows it.

    Attributes:
      id: of W&B's run; empty if there is none.
      project: that it is in.
      command: uploads it; empty if there is nothing to upload.
      why_not: why W&B can have no such run, in words; empty if it can.
    """

    id: str
    project: str = PROJECT
    command: str = ""
    why_not: str = ""


def upload_of(run: Entry) -> Upload:
    """The run of W&B that ``run`` was recorded to.

    W&B's folder in the run directory names it; without one it is the run's own id.
    """
    if not run.info:
        return Upload("", why_not=run.reason or "there is no run to be read")
    settings = part(part(run.config, "record"), "wandb")
    project = settings.get("project")
    project = project if isinstance(project, str) and project else PROJECT
    id, folder, command = str(run.info.get("id") or ""), _last_folder(run.path), ""
    if folder is None and settings.get("mode") == "disabled":
        return Upload("", project, why_not="it was recorded with record.wandb.mode=disabled")
    if folder is not None:
        named = _FOLDER.fullmatch(folder.name)
        assert named is not None
        if named["id"] != f"{id}-offline":
            id = named["id"]
        if named["offline"] and not any(folder.glob("*.synced")):
            command = _command(folder, f" --id {id}" if named["id"] != id else "")
    if not _ID.fullmatch(id):
        return Upload("", project, why_not=f"W&B has no runs with an id such as {id!r}")
    return Upload(id, project, command)


def _last_folder(run: Path) -> Path | None:
    folders = [
        folder
        for folder in (run / "wandb").glob("*run-*")
        if (found := _FOLDER.fullmatch(folder.name)) and _ID.fullmatch(found["id"])
    ]
    return max(folders, key=lambda folder: folder.name.removeprefix("offline-"), default=None)


def _command(folder: Path, options: str) -> str:
    """From the run directory, because the paths in W&B's file begin there."""
    run = folder.parents[1].resolve()
    wandb = "wandb" if shutil.which("wandb") else f"{shlex.quote(sys.executable)} -m wandb"
    return f"cd {shlex.quote(str(run))} && {wandb} sync{options} wandb/{folder.name}"


def places(runs: Sequence[Entry]) -> tuple[list[str], list[str]]:
    """Places in W&B's configuration of the settings that differ, the seed left out.

    Returns:
      The places, and the settings that have none.
    """
    found = {key: _place(key, runs) for key in settings_that_differ(runs) if key != SEED}
    placed = dict.fromkeys(place for place in found.values() if place is not None)
    return list(placed), [key for key, place in found.items() if place is None]


def _place(key: str, runs: Sequence[Entry]) -> str | None:
    """Where the configuration of W&B's runs has ``key``, if it is one value there, not a section.

    A group such as ``optimizer`` is told by what it brings: the name of its class.
    """
    ways = (f"facts.{key}", key, f"{key}._target_", f"{key}.rule._target_", f"{key}.preset")
    for place in ways:
        values = [at({**run.config, "facts": run.facts}, place) for run in runs]
        sections = any(isinstance(value, Mapping | list) for value in values)
        if not sections and len(set(values)) > 1:
            return place
    return None
