"""The run directory: ``run.json`` and the recorded arrays, readable at every instant.

docs/run_directory.md describes the format.
"""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.errors import BadInput, CannotRecord
from gradlab.record.arrays import Arrays
from gradlab.record.base import Description, Outcome, Row
from gradlab.record.files import check_nest
from gradlab.record.info import MOST_SETTINGS, count
from gradlab.record.lock import Lock
from gradlab.record.private import scrub
from gradlab.record.shard import replace

FORMAT = 2
"""Version of the run directory's format, kept in ``run.json`` under ``format``."""
INFO = "run.json"
ARRAYS = "arrays.zarr"

PACKAGES = (
    "gradlab",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "xarray",
    "zarr",
    "hydra-core",
    "wandb",
)


class RunDirectory:
    """A sink that keeps a run in a folder of its own.

    ``run.json`` says what the run is and how it ended; ``arrays.zarr`` (zarr v3) holds every
    recorded variable along ``step``, NaN where it was not measured: scalars in float64, arrays in
    float32. ``gradlab.open_run`` reads both; plain ``xarray.open_zarr`` reads the arrays, where a
    variable named ``train/loss`` is called ``train_loss``.

    Rows are flushed at the first :meth:`log` that comes ``flush_seconds`` or more after the last
    flush. Killed at any instant, the folder reads as it stood after a flush: a reader may watch it
    while the run is going. Only one process writes to it, by a lock that ends with the process.

    Args:
      path: the folder; made if missing.
      flush_seconds: least time between two flushes, in seconds.
      resumed_by: how to resume a run that cannot be recorded on, for messages.
    """

    def __init__(
        self, path: str | os.PathLike[str], flush_seconds: float = 2.0, *, resumed_by: str = ""
    ):
        self.path, self.flush_seconds = Path(path), flush_seconds
        self._resumed_by = resumed_by
        self._lock = Lock(self.path)

    def open(self, description: Description) -> None:
        """Write ``run.json`` with status ``running`` and the arrays with no rows.

        With ``description.resumed`` the run in the folder is resumed: its rows are kept.

        Raises:
          BadInput: if the folder already holds a run, or, to be resumed, another run; or if
            somebody is writing to it.
          CannotRecord: if nothing can be written there.
        """
        if not description.resumed and (self.path / INFO).exists():
            hint = "another folder, or move the earlier run away"
            raise BadInput("run", str(self.path), "a folder that holds no run yet", hint)
        try:
            check_nest(config := plain(description.config))
            if count(config) > MOST_SETTINGS:
                raise ValueError(f"it holds more than {MOST_SETTINGS:,} values")
        except ValueError as error:
            allowed = f"a configuration that can be recorded and read again ({error})"
            raise BadInput("configuration", description.name, allowed) from None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._arrays = Arrays(self.path / ARRAYS, description, resumed=description.resumed)
            self._flushed = -math.inf
            self._info = _first_info(description)
            if description.resumed:
                self._info |= self._earlier()
            self._write_info()
        except OSError as error:
            self._lock.release()
            raise self._cannot(error) from error
        except BaseException:
            self._lock.release()
            raise

    def log(self, row: Row) -> None:
        """Keep ``row``; write it and those before it if the last flush is old enough.

        A second one of the same step adds to it.

        Raises:
          ValueError: if ``row`` holds a variable that was not described, or one of another shape.
          CannotRecord: if it cannot be written; what was flushed before can be read.
        """
        try:
            self._arrays.append(row)
        except OSError as error:
            raise self._cannot(error) from error
        if self.is_due:
            self.flush()

    def extend(self, description: Description) -> None:
        """Record further variables from here on.

        Args:
          description: with all that was described before, and more; its facts replace those that
            were.

        Raises:
          CannotRecord: as for :meth:`log`.
        """
        try:
            self._check_there()
            self._arrays.extend(description)
            self._info["facts"] = _first_info(description)["facts"]
            self._write_info()
        except OSError as error:
            raise self._cannot(error) from error

    @property
    def is_due(self) -> bool:
        """Whether the next row is flushed at once."""
        return time.monotonic() - self._flushed >= self.flush_seconds

    def flush(self) -> None:
        """Write every row that was logged so far.

        Raises:
          CannotRecord: as for :meth:`log`.
        """
        try:
            self._check_there()
            self._arrays.commit()
        except OSError as error:
            raise self._cannot(error) from error
        self._flushed = time.monotonic()

    def close(self, outcome: Outcome, left: Sequence[str] = ()) -> None:
        """Write the remaining rows, then the outcome into ``run.json``.

        Args:
          outcome: of the run.
          left: what is still to be made of the run, see docs/run_directory.md. If there is any the
            folder stays this process's own, for :meth:`done`, until :meth:`release`.

        Raises:
          CannotRecord: if rows could not be written; ``run.json`` then says so, if it still can.
        """
        failure = None
        try:
            self._check_there()
            self._arrays.close()
        except OSError as error:
            failure, left = self._cannot(error), ()
            reason = f"cannot record: {failure.reason}"
            outcome = Outcome("crashed", reason, outcome.summary, outcome.timings)
        timings = dict(outcome.timings)
        self._info |= {
            "status": outcome.status,
            "reason": outcome.reason,
            "ended": _now(),
            "steps_per_second": timings.pop("steps_per_second", None),
            "probe_overhead": timings.pop("probe_overhead", None),
            "timings": timings,
            "summary": outcome.summary,
            "verdict": outcome.verdict,
            "left": list(left),
        }
        safe = False
        try:
            self._write_last_words(failure)
            if failure is not None:
                raise failure
            safe = True
        finally:
            if not (safe and left):
                self.release()

    def reopen(self) -> None:
        """Take the folder of a run that has ended, to do what is left of it.

        Raises:
          BadInput: if somebody else is doing that.
          CannotRecord: if it cannot be read, or written to.
        """
        try:
            self._lock.acquire()
            self._info = json.loads((self.path / INFO).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.release()
            raise self._cannot(error) from error

    @property
    def left(self) -> tuple[str, ...]:
        """What is left to do of a run that has ended; nothing that this process may not do."""
        return left_of(self._info) if self._lock.file is not None else ()

    def done(self, part: str) -> None:
        """Take ``part`` out of what is left.

        Raises:
          CannotRecord: if ``run.json`` cannot be written.
        """
        if part in self.left:
            self._info["left"] = [other for other in self.left if other != part]
            self._write_last_words()

    def release(self) -> None:
        """Let others write to the folder."""
        self._lock.release()

    def _write_last_words(self, failure: CannotRecord | None = None) -> None:
        """Write ``run.json``, on a full disk into the lock's reserve, which is there for that."""
        try:
            if failure is None or not failure.lost:
                self._write_info()
        except OSError:
            self._lock.free_reserve()
            try:
                self._write_info()
            except OSError as error:
                raise (failure or self._cannot(error)) from error

    def _check_there(self) -> None:
        """Refuse to write into a folder that is another one by now, or none."""
        if self._lock.is_lost():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _earlier(self) -> dict[str, Any]:
        """What ``run.json`` keeps of the processes before this one."""
        before = json.loads((self.path / INFO).read_text(encoding="utf-8"))
        status = before["status"].replace("running", "killed")  # the lock was free
        now = {"at": _now(), "from": status, "rows": self._arrays.rows}
        kept = {key: before[key] for key in ("started", "git") if key in before}
        return kept | {"resumed": [*before.get("resumed", []), now]}

    def _write_info(self) -> None:
        info = scrub(plain(self._info))
        text = json.dumps(info, indent=2, allow_nan=False, ensure_ascii=False)
        replace(self.path / INFO, text.encode())

    def _cannot(self, error: OSError | ValueError) -> CannotRecord:
        if self._lock.is_lost():
            reason = "the folder was removed, moved or replaced while the run was going"
            return CannotRecord(str(self.path), reason, lost=True)
        reason = getattr(error, "strerror", None) or str(error)
        return CannotRecord(str(self.path), reason, resumed_by=self._resumed_by)


def left_of(info: Mapping[str, Any]) -> tuple[str, ...]:
    """What is left to do of a run, by its ``run.json``; older ones do not say."""
    left = info.get("left")
    return tuple(one for one in left if isinstance(one, str)) if isinstance(left, list) else ()


def plain(value: Any) -> Any:
    """``value`` in strict JSON's types: NaN and infinities become None, paths and others text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _first_info(description: Description) -> dict[str, Any]:
    facts = dict(description.facts)
    return {
        "format": FORMAT,
        "id": description.id,
        "name": description.name,
        "status": "running",
        "reason": "",
        "started": _now(),
        "ended": None,
        "resumed": [],
        "steps_per_second": None,
        "probe_overhead": None,
        "timings": {},
        "summary": {},
        "verdict": [],
        "left": [],
        "devices": facts.pop("devices", []),
        "overrides": facts.pop("overrides", []),
        "facts": facts,
        "baseline": description.baseline,
        "versions": _versions(),
        "git": checkout(),
        "config": description.config,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def checkout() -> dict[str, Any] | None:
    """Commit of the checkout that holds this file, None if git does not know this file."""
    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def git(*words: str) -> str:
    """What git says, asked in the folder of this file.

    Raises:
      OSError: if there is no git.
      SubprocessError: if it fails or does not answer.
    """
    command = ["git", "-C", str(Path(__file__).parent), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
