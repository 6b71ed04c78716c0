"""The thread that makes every call to W&B, from the start of a run to its end."""

from __future__ import annotations

import logging
import math
import os
import queue
import shlex
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradlab.errors import first_line
from gradlab.record.base import Description, Outcome
from gradlab.record.directory import ARRAYS
from gradlab.record.keys import key_for_wandb, stem
from gradlab.record.private import scrub
from gradlab.record.wandb.charts import Charts, pictures
from gradlab.record.wandb.file import Contents, contents, rewrite
from gradlab.record.wandb.start import Options, start

_EXIT_PATIENCE = 5.0
"""Seconds in which W&B's own process writes its last records after it said that it had finished."""
_staging_lock = threading.Lock()
_log = logging.getLogger(__name__)


class Sender:
    """Makes every call to W&B, in a thread of its own: none of them may hold up training.

    Attributes:
      rows: ``(step, values by key)`` in order, then the outcome; a description where further
        variables begin.
      failed: whether there is no use in further rows.
      where: the run's page, or the command that uploads it; empty until it has started.
      complete: whether the end is over and W&B has everything, in its file or on its server.
    """

    def __init__(self, options: Options, description: Description, charts: Charts):
        self.options, self.description, self.charts = options, description, charts
        self.rows: queue.SimpleQueue[tuple[int, dict[str, float]] | Description | Outcome]
        self.rows = queue.SimpleQueue()
        self.failed, self.complete, self.where = False, False, ""
        self.run: Any = None
        self.last, self.logged, self.offset = -1, 0, 0
        self._names, self._warned = _Names(), False
        self._thread = threading.Thread(target=self._work, name="gradlab-wandb", daemon=True)

    def begin(self) -> None:
        """Start W&B, without waiting for it."""
        self._thread.start()

    def end(self, outcome: Outcome) -> None:
        """Wait until everything is sent, or for ``finish_timeout`` seconds."""
        self.rows.put(outcome)
        self._thread.join(self.options.finish_timeout)
        if self._thread.is_alive():
            self.failed, run = True, self.run
            self.where = self._command(run) if run is not None and _holds_rows(run) else ""
            hint = f"; to upload what W&B has of them: {self.where}" if self.where else ""
            self._warn(f"W&B did not end in time; {self._kept()}{hint}")

    # All that follows runs in the thread.

    def _work(self) -> None:
        try:
            self._step("start", self._start)
            while not isinstance(item := self.rows.get(), Outcome):
                if self.failed:
                    continue
                if isinstance(item, Description):
                    self._step("log", self._define_metrics, self.run, item)
                else:
                    self._step("log", self._log, *item)
            if not self.failed:
                self._step("send the charts", self._send_media)
            if not self.failed:
                self._step("send the summary", self._send_summary, item)
            self._finish(0 if item.status == "finished" and not self.failed else 1)
        finally:
            self.run = None

    def _step(self, what: str, action: Any, *args: Any) -> None:
        """Call ``action``; if it fails say so once, and leave W&B alone from then on."""
        try:
            action(*args)
        except Exception as error:  # noqa: BLE001  (W&B must never end a run)
            self.failed = True
            self._warn(f"W&B could not {what}, recording there stops: {_in_a_line(error)}")

    def _warn(self, text: str, again: bool = False) -> None:
        if again or not self._warned:
            _log.warning(text)
        self._warned = True

    def _kept(self) -> str:
        return f"what was recorded is in the run directory {self.options.directory}"

    def _start(self) -> None:
        self.earlier, online = list(self._folders("offline-run-*")), set(self._folders("run-*"))
        try:
            run = start(self.options, self.description, self.options.mode)
        except Exception as error:
            if self.options.mode != "online":
                raise
            # W&B's own process holds the id of a run that did not start until it ends itself.
            run = start(self.options, self.description, "offline", suffix="-offline")
            for folder in set(self._folders("run-*")) - online:
                shutil.rmtree(folder, ignore_errors=True)  # of the run that did not start
            self._warn(
                f"W&B is not reachable, recording offline ({_in_a_line(error)}); "
                f"to upload the run later: {self._command(run)}"
            )
        self.run = run
        self.path = Path(run.settings.sync_file)
        self.offline = run.settings.mode == "offline"
        self.where = self._command(run) if self.offline else run.url
        if self.offline:
            self._forget()
        elif self.description.resumed:
            self.offset = run.starting_step
        self._define_metrics(run, self.description)
        if self.options.code:
            with self._staging():
                run.log_code(
                    str(Path(__file__).parents[2]),
                    name=f"code-{self._id()}",
                    include_fn=lambda path: path.endswith((".py", ".yaml", ".json")),
                )

    def _define_metrics(self, run: Any, description: Description) -> None:
        run.define_metric("train_step", hidden=True)
        names = [key_for_wandb(stem(name)) for name in description.variables]
        globs = {f"{name.split('/')[0]}/*" for name in names}
        for name in sorted(globs | {name for name in names if "/" not in name}):
            run.define_metric(name, step_metric="train_step")

    def _log(self, step: int, values: dict[str, float]) -> None:
        """Hand on a row, unless the server has it. W&B keeps it back until the next step."""
        self.last = step
        if step >= self.offset:
            named = {self._names[key]: value for key, value in values.items()}
            self.run.log({"train_step": step, **named}, step=step)
            self.logged += 1

    def _send_media(self) -> None:
        if not self.logged and self.offset and self.run.summary.get("verdict") is not None:
            return  # the server has all of it, from the process before this one
        # Tables and arrays are artifacts. Online, W&B waits for the server at each, without end.
        patience = min(5.0, 0.1 * self.options.finish_timeout)
        reached = self.offline or answers(self.run.settings.base_url, patience)
        with self._staging():
            media = self.charts.media(self.options.chart, tables=reached)
            media |= pictures(self.options.directory / "figures")
            # Into the last row; a row of its own if the server has that one. It is committed, so
            # that the summary sent next is not changed by it.
            if self.last >= 0:
                self.logged += self.logged == 0
                row = {"train_step": self.last, **media}
                self.run.log(row, step=max(self.last, self.offset), commit=True)
            if reached and self.options.arrays:
                self._send_arrays()

    def _send_arrays(self) -> None:
        import wandb

        arrays = self.options.directory / ARRAYS
        if arrays.is_dir():
            artifact = wandb.Artifact(f"arrays-{self._id()}", "run-arrays")
            for file in sorted(path for path in arrays.rglob("*") if path.is_file()):
                name = str(file.relative_to(arrays))
                # In place: nothing is copied. (``add_dir`` prints.)
                artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)
            self.run.log_artifact(artifact)

    def _send_summary(self, outcome: Outcome) -> None:
        figures = {**outcome.timings, **outcome.summary}
        finite = {
            key_for_wandb(key): float(value)
            for key, value in figures.items()
            if value is not None and math.isfinite(value)
        }
        words = {"status": outcome.status, "reason": outcome.reason}
        words["verdict"] = "\n".join(outcome.verdict)
        self.run.summary.update({**finite, **scrub(words)})

    def _finish(self, exit_code: int) -> None:
        """End the run, and make sure that W&B has what it was given, or say what it has."""
        if self.run is None:
            return
        arrived = self._end_run(exit_code)
        found = self._read_back()
        if not found.rows and (self.offline or not arrived):
            self.where = ""  # there is nothing to upload
        whole = found.closed and found.rows >= self.logged
        if not whole:
            self._warn(
                f"W&B's copy holds {found.rows} of {self.logged} rows"
                f"{'' if found.closed else ' and was not closed'} ({self.path.parent}); "
                + self._kept(),
                again=True,
            )
        elif not arrived:
            self._warn(
                "W&B's server did not take everything in time; the local copy has all rows, to "
                f"upload it beside the part that arrived, as a run of its own: {self.where}"
            )
        elif not self.offline and not self.failed:
            self._forget()
            shutil.rmtree(self.path.parent / "data", ignore_errors=True)  # it is uploaded
        self._make_private(found.closed)
        self.complete = whole and arrived and not self.failed

    def _end_run(self, exit_code: int) -> bool:
        """Whether W&B says that everything is where it belongs."""
        try:
            self.run.finish(exit_code=exit_code)
        except Exception as error:  # noqa: BLE001  (W&B must never end a run)
            self.where = self._command(self.run)
            if not isinstance(error, TimeoutError):
                self._warn(f"W&B could not finish: {_in_a_line(error)}")
            return False
        return True

    def _read_back(self) -> Contents:
        """What the local file holds: W&B does not say when the disk was full."""
        end = time.monotonic() + min(_EXIT_PATIENCE, 0.1 * self.options.finish_timeout)
        try:
            while not (found := contents(self.path)).closed and time.monotonic() < end:
                time.sleep(0.05)
        except (OSError, ValueError):
            return Contents(0, False)
        return found

    def _make_private(self, closed: bool) -> None:
        """Drop W&B's own logs; in a file that is closed make paths relative to the directory."""
        shutil.rmtree(self.path.parent / "logs", ignore_errors=True)
        shutil.rmtree(self.path.parent / "tmp", ignore_errors=True)
        root = f"{self.options.directory}/"

        def relative(record: Any) -> bool:
            files = record.artifact.manifest.contents
            for file in files:
                file.local_path = file.local_path.removeprefix(root)
            return bool(files)

        if closed:
            self._step("tidy up", rewrite, self.path, relative, ["artifact"])

    def _forget(self) -> None:
        """Remove what earlier processes recorded offline: this run holds all of it."""
        for folder in self.earlier:
            shutil.rmtree(folder, ignore_errors=True)

    def _folders(self, pattern: str) -> Iterator[Path]:
        return (self.options.directory / "wandb").glob(pattern)

    def _id(self) -> str:
        return self.run.id.removesuffix("-offline")

    def _command(self, run: Any) -> str:
        """What uploads the run; from the run directory, because the paths in it begin there."""
        directory, name = self.options.directory, self.description.id
        wandb = "wandb" if shutil.which("wandb") else f"{shlex.quote(sys.executable)} -m wandb"
        command = f"cd {shlex.quote(str(directory))} && {wandb} sync"
        if run.settings.mode != "offline":
            command += " --no-skip-online"
            if not self.offset:  # W&B would append the rows to those that the server has
                command += f" --id {run.id}-whole"
        if name and run.id == f"{name}-offline":
            command += f" --id {name}"
        return f"{command} {Path(run.settings.sync_dir).relative_to(directory)}"

    @contextmanager
    def _staging(self) -> Iterator[None]:
        """W&B copies what it will upload into the run directory, not into the home folder."""
        with _staging_lock:
            before = os.environ.get("WANDB_DATA_DIR")
            os.environ["WANDB_DATA_DIR"] = str(self.path.parent / "data")
            try:
                yield
            finally:
                del os.environ["WANDB_DATA_DIR"]
                if before is not None:
                    os.environ["WANDB_DATA_DIR"] = before


class _Names(dict[str, str]):
    """Key -> a key that W&B takes, and no two the same."""

    def __init__(self) -> None:
        self._taken = {"train_step"}

    def __missing__(self, key: str) -> str:
        name = safe = key_for_wandb(key)
        number = 2
        while name in self._taken:
            name, number = f"{safe}_{number}", number + 1
        self._taken.add(name)
        self[key] = name
        return name


def _holds_rows(run: Any) -> bool:
    """Whether there are rows in the local file of a run, which may be written to just now."""
    try:
        return contents(Path(run.settings.sync_file)).rows > 0
    except (OSError, ValueError):  # there is no such file
        return False


def answers(url: str, seconds: float) -> bool:
    """Whether a server answers anything at all."""
    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _in_a_line(error: Exception) -> str:
    return ": ".join(filter(None, [type(error).__name__, first_line(error)]))
