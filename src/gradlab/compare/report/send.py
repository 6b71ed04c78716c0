"""A report and a workspace from runs to disk, and to W&B where it may be asked."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from gradlab.compare.headline import Headline
from gradlab.compare.recorded import Recorded
from gradlab.compare.report.build import report, workspace
from gradlab.compare.report.content import Content, content
from gradlab.errors import first_line
from gradlab.record.shard import replace
from gradlab.record.wandb.sender import answers
from gradlab.record.wandb.start import has_account

REPORT, WORKSPACE, SYNC = "wandb_report.json", "wandb_workspace.json", "wandb_sync.sh"
OFFLINE = ("offline", "dryrun", "disabled")
"""Values of ``WANDB_MODE`` under which nothing is sent."""
_PATIENCE = 5.0
"""Seconds in which a server must answer that it is there."""


class NotSent(Exception):
    """W&B took nothing, or not all. The message says why, where the files are and what to do.

    Attributes:
      files: what was written to disk nevertheless.
    """

    def __init__(self, reason: str, files: Sequence[Path], words: Sequence[str]):
        self.reason, self.files, self.words = reason, tuple(files), tuple(words)
        super().__init__("\n".join([f"--wandb: not sent: {reason}", *words]))

    def __reduce__(self):
        return type(self), (self.reason, self.files, self.words)


@dataclass(frozen=True)
class Published:
    """What came of :func:`publish`.

    Attributes:
      report, workspace: their addresses; None if they were not sent.
      files: written to disk: both specifications, and a script if several runs wait for upload.
      words: all of it for a terminal.
    """

    report: str | None
    workspace: str | None
    files: tuple[Path, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Specification:
    """A report and a workspace, ready to be sent.

    Attributes:
      content: what they show.
      report, workspace: objects of wandb-workspaces.
    """

    content: Content
    report: Any
    workspace: Any

    def as_json(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What W&B is sent of each: where it goes, its name, and ``spec``."""
        return _plain(self.report, "runs"), _plain(self.workspace, "project-view")


def publish(
    runs: Sequence[Recorded],
    headline: Headline,
    folder: Path,
    entity: str | None = None,
    project: str | None = None,
) -> Published:
    """A W&B Report and a W&B Workspace of ``runs``.

    Both are always written into ``folder`` as JSON. They are sent as well if W&B finds an account
    here (``WANDB_API_KEY``, or ``wandb login``), unless ``WANDB_MODE`` is ``offline`` or
    ``disabled``; ``WANDB_MODE=online`` makes a missing account an error. Each call makes a new
    report and a new workspace. Runs that were recorded offline show up in them when they are
    uploaded, before or after; ``words`` say how.

    Args:
      runs: to be compared.
      headline: what was found, in words.
      folder: for the files; it is there.
      entity: user or team; ``WANDB_ENTITY``, or W&B's default for the account, by default.
      project: that the runs are in; ``record.wandb.project`` of their configurations by default.

    Raises:
      BadInput: there is nothing to send, or wandb-workspaces is not installed.
      NotSent: W&B refused or cannot be reached; the files are there.
    """
    entity = entity or os.environ.get("WANDB_ENTITY") or None
    found = specification(runs, headline, entity, project)
    files = _write(found, folder)
    uploads = _to_upload(found.content.uploads, files)
    written = f"W&B report and workspace, as files: {files[0]}, {files[1].name}"
    retry = "the same command sends them when that is mended"
    try:
        if not _may_send():
            again = "the same command with WANDB_API_KEY set, or after `wandb login`"
            if os.environ.get("WANDB_MODE") in OFFLINE:
                again += f", and without WANDB_MODE={os.environ['WANDB_MODE']}"
            return Published(None, None, files, (written, *uploads, f"to send them: {again}"))
        addresses = _send(found, entity)
    except _Refused as error:
        raise NotSent(str(error), files, (written, *uploads, retry)) from error
    lines = (f"W&B report: {addresses[0]}", f"W&B workspace: {addresses[1]}")
    return Published(*addresses, files, (*lines, *uploads))


def specification(
    runs: Sequence[Recorded],
    headline: Headline,
    entity: str | None = None,
    project: str | None = None,
) -> Specification:
    """The report and the workspace; nothing is sent. For arguments and errors see publish."""
    shown = content(runs, headline, project)
    return Specification(shown, report(shown, entity or ""), workspace(shown, entity or ""))


# --- to disk --------------------------------------------------------------------------------------


def _plain(made: Any, kind: str) -> dict[str, Any]:
    view = made._to_model()
    return {
        "entity": made.entity or None,
        "project": made.project,
        "type": kind,
        "displayName": view.display_name,
        "description": getattr(view, "description", ""),
        "spec": json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def _write(found: Specification, folder: Path) -> tuple[Path, ...]:
    files = [folder / REPORT, folder / WORKSPACE]
    for path, view in zip(files, found.as_json(), strict=True):
        replace(path, json.dumps(view, indent=1).encode())
    script, uploads = folder / SYNC, found.content.uploads
    if len(uploads) > 1:
        replace(script, "\n".join(["#!/bin/sh", *(f"({one})" for one in uploads), ""]).encode())
        files.append(script)
    else:
        script.unlink(missing_ok=True)  # of an earlier call
    return tuple(files)


def _to_upload(commands: Sequence[str], files: Sequence[Path]) -> list[str]:
    if not commands:
        return []
    if len(commands) == 1:
        return [f"one run is not uploaded yet: {commands[0]}"]
    return [f"{len(commands)} runs are not uploaded yet: sh {shlex.quote(str(files[-1]))}"]


# --- to W&B ---------------------------------------------------------------------------------------


class _Refused(Exception):
    """Why W&B did not take something, in one line."""


def _may_send() -> bool:
    mode = os.environ.get("WANDB_MODE", "")
    if mode in OFFLINE:
        return False
    return mode == "online" or _try("find out who is asking", _known)


def _known() -> bool:
    _begin()
    return has_account()


def _begin() -> Any:
    """W&B's settings; quiet, and without reports about itself to its makers."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb.setup(wandb.Settings(silent=True, quiet=True)).settings


def _send(found: Specification, entity: str | None) -> tuple[str, str]:
    """Send both; gives their addresses."""
    import wandb

    server = _try("start", lambda: str(_begin().base_url))
    if not has_account():
        raise _Refused("W&B knows no account here; `wandb login`, or WANDB_API_KEY=...")
    if not answers(server, _PATIENCE):
        raise _Refused(f"nothing answers at {server}")
    owner = entity or _try("let us in", lambda: wandb.Api().default_entity)
    if not owner:
        raise _Refused("W&B names no default entity; set WANDB_ENTITY")
    found.report.entity = found.workspace.entity = owner
    _try("take the report", found.report.save)
    address = _address(found)
    try:
        _try("take the workspace", found.workspace.save)
    except _Refused as error:
        raise _Refused(f"{error}; the report alone was sent: {address}") from error
    return address, found.workspace.url


def _try(what: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:  # W&B's private kinds, pydantic's, the network's
        said = ": ".join(filter(None, [type(error).__name__, first_line(error)[:300]]))
        raise _Refused(f"W&B did not {what}: {said}") from error


def _address(found: Specification) -> str:
    """The report's page. W&B goes by what is behind the dashes; the words before them are for us.

    The library puts the title there as it is, with whatever a run may be called.
    """
    made, page = found.report, urlsplit(found.report.url)
    slug = "-".join(re.findall(r"\w+", made.title, re.ASCII))[:60]
    path = "/".join(map(quote, (made.entity, made.project, "reports")))
    return f"{page.scheme}://{page.netloc}/{path}/{slug}--{made.id.rstrip('=')}"
