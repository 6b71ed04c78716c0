"""Where a run stands, kept so that it can be resumed as if it had not stopped."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gradlab.bptt.parts import by_name
from gradlab.errors import BadInput, CannotRecord, first_line
from gradlab.training.step import Report, State, Steps, Values

FOLDER = "checkpoints"
KEPT = 2
"""Checkpoints that are kept: the newest, and one in case it cannot be read."""
ROOM, MARGIN = 2, 2**18
"""A checkpoint is begun where there is room for it: so many times its arrays, and so many bytes."""
_log = logging.getLogger(__name__)


class Best(NamedTuple):
    """The parameters that did best in validation.

    Attributes:
      loss: their validation loss.
      step: the step whose update made them.
      params: themselves.
      scores: all their validation scores.
      variables: the model's other arrays with them, as in :class:`gradlab.training.step.Values`.
    """

    loss: float
    step: int
    params: Any
    scores: dict[str, float]
    variables: Any = None

    @property
    def values(self) -> Values:
        """The arrays of the model."""
        return Values(self.params, self.variables)


class Since(NamedTuple):
    """The steps since the last recorded row.

    Attributes:
      steps: how many.
      sums: of each field of their :class:`~gradlab.training.step.Report`, in float64; one after
        another, so that they do not depend on how the steps were divided.
    """

    steps: int
    sums: tuple[float, ...]

    def then(self, reports: np.ndarray) -> Since:
        """With further steps, of which ``reports``, (steps, 4), holds the fields of each."""
        sums = np.add.accumulate([self.sums, *reports.astype(np.float64)])[-1]
        return Since(self.steps + len(reports), tuple(sums.tolist()))

    @property
    def means(self) -> dict[str, float]:
        """The mean of each field."""
        means = (total / self.steps for total in self.sums)
        return dict(zip(Report._fields, means, strict=True))


NOTHING = Since(0, (0.0,) * len(Report._fields))


@dataclass
class Position:
    """Where a run stands.

    Attributes:
      state: the model's arrays, optimizer, step and random key. The key and the step give the
        position in the data: a step's batch is drawn from them alone.
      since: the steps since the last recorded row.
      best: best so far in validation, or None.
      next_validation: first step at which validation is due.
      seconds: of training so far.
    """

    state: State
    since: Since = NOTHING
    best: Best | None = None
    next_validation: int = 0
    seconds: float = 0.0


class Checkpoints:
    """Positions of a run in a folder, saved by orbax while training goes on.

    Args:
      folder: where they are kept; made by the first one.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._manager: Any = None

    @staticmethod
    def prepare() -> None:
        """Import orbax now, beside a compilation, instead of at the first save."""
        threading.Thread(target=importlib.import_module, args=("orbax.checkpoint",)).start()

    def save(self, position: Position) -> None:
        """Take a copy of ``position`` and write it in the background; whole or not at all.

        Raises:
          CannotRecord: if it, or the one before, cannot be written.
        """
        import orbax.checkpoint as ocp

        arrays, rest = _packed(position)
        if jax.process_count() > 1:  # then orbax would wait for what the other processes write
            arrays = jax.device_get(arrays)
        step = int(position.state.step)
        manager = self._open()
        if step in manager.all_steps():
            return
        self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
        self._without_paths()
        items = {"arrays": ocp.args.StandardSave(arrays), "rest": ocp.args.JsonSave(rest)}
        try:
            manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:  # also what went wrong with the one before
            raise self._cannot(error) from error

    def restore(self, steps: Steps, key: jax.Array) -> Position | None:
        """The newest position that can be read, None if there is none yet.

        A warning is logged for each newer one that cannot be read.

        Args:
          steps: the step functions of the run; give the shapes that are expected.
          key: the random key of the run.

        Raises:
          BadInput: if none can be read, or they are of another model.
        """
        if not self.folder.is_dir():
            return None
        start = steps.start(key)
        wrong = []
        for step in self._steps():
            try:
                with _in_silence():
                    position = _unpacked(*self._read(step, start), start)
                if int(position.state.step) != step:
                    raise ValueError(f"it is of step {int(position.state.step)}")
            except BadInput:
                raise
            except Exception as error:  # noqa: BLE001  (whatever a damaged file leads to)
                wrong.append(f"checkpoint {step}: {_in_words(error)}")
                continue
            for problem in wrong:
                _log.warning("resumed from step %d, for %s", step, problem)
            return position
        if wrong:
            raise self._unreadable(wrong[0])
        return None

    def _steps(self) -> list[int]:
        """Of the checkpoints that there are, the newest first."""
        try:
            return sorted(self._open().all_steps(), reverse=True)
        except Exception as error:  # noqa: BLE001  (orbax looks into some of them already)
            raise self._unreadable(_in_words(error)) from None

    def _unreadable(self, reason: str) -> BadInput:
        allowed = f"a run with a checkpoint that can be read ({reason})"
        hint = "a new run; the curves of this one can be read all the same"
        return BadInput("trainer.resume", str(self.folder.parent), allowed, hint)

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
          CannotRecord: if it cannot.
        """
        manager, self._manager = self._manager, None
        if manager is None:
            return
        try:
            manager.wait_until_finished()
        except Exception as error:
            raise self._cannot(error) from error
        finally:
            manager.close()
            self._without_paths()

    def _without_paths(self) -> None:
        """Orbax notes the full path, which holds the user's name, in a file that it never reads."""
        for depth in ("*", "*/*"):
            # A full disk, one that cannot be written to, or one that orbax is just removing.
            with contextlib.suppress(OSError):
                for note in self.folder.glob(f"{depth}/commit_success.txt"):
                    note.write_text("committed\n", encoding="utf-8")

    def _check_room(self, size: int) -> None:
        """Refuse before orbax begins: of a write that fails half-way it tells at great length."""
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if shutil.disk_usage(place).free < ROOM * size + MARGIN:
            raise CannotRecord(str(self.folder.parent), os.strerror(errno.ENOSPC))

    def _cannot(self, error: Exception) -> CannotRecord:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # orbax's tasks, of the same error
        full = "os_error_code='28'" in str(error) or "No space left" in str(error)
        words = first_line(error)[:200] or type(error).__name__
        reason = os.strerror(errno.ENOSPC) if full else f"checkpoint: {words}"
        return CannotRecord(str(self.folder.parent), reason)

    def _open(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp

            alone: dict[str, Any] = {}
            if jax.process_count() > 1:  # one process writes, whatever the others do
                here = jax.process_index()
                alone["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
                    primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"p{here}"
                )
                alone["create"] = False
                self.folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=KEPT, enable_async_checkpointing=True, **alone
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def _read(self, step: int, start: State) -> tuple[dict[str, Any], dict[str, Any]]:
        import orbax.checkpoint as ocp

        def read(**items: Any) -> Any:
            return self._manager.restore(step, args=ocp.args.Composite(**items))

        rest = read(rest=ocp.args.JsonRestore())["rest"]
        best = _best_like(start) if rest["best"] is not None else None
        like = _packed(Position(start, best=best))[0]
        if rest["shapes"] != _shapes(like):
            expected = sorted(_shapes(like).items())
            odd = [name for name, shape in expected if rest["shapes"].get(name) != shape]
            odd = odd or ["arrays that this one has not"]
            allowed = f"a checkpoint of this model and optimizer; it differs in {', '.join(odd)}"
            raise BadInput("trainer.resume", str(self.folder.parent), allowed)
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return read(arrays=ocp.args.StandardRestore(like))["arrays"], rest


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Without what orbax prints when it cannot read an array, at once or a little later.

    It reads all arrays together. When one fails, those under way find their event loop closed.
    """
    hook = sys.unraisablehook

    def unraisable(found: Any) -> None:
        code = getattr(found.object, "cr_code", None)
        of_orbax = code is not None and "orbax" in code.co_filename
        if not of_orbax and str(found.exc_value) != "Event loop is closed":
            hook(found)

    sys.unraisablehook = unraisable
    level = (log := logging.getLogger("asyncio")).level
    log.setLevel(logging.CRITICAL)
    yield
    sys.unraisablehook = hook  # where nothing has failed, and nothing comes later
    log.setLevel(level)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def to_bytes(position: Position) -> bytes:
    """A position for another process, see :func:`from_bytes`."""
    arrays, rest = _packed(position)
    words = np.frombuffer(json.dumps(rest).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, words, *map(np.asarray, jax.tree.leaves(arrays)))
    return file.getvalue()


def from_bytes(data: bytes, start: State) -> Position:
    """The position that :func:`to_bytes` wrote; ``start`` is the state before the first step."""
    with np.load(io.BytesIO(data)) as file:
        words, *leaves = (file[name] for name in file.files)
    rest = json.loads(words.tobytes())
    best = _best_like(start) if rest["best"] is not None else None
    like, tree = jax.tree.flatten(_packed(Position(start, best=best))[0])
    typed = [leaf.view(one.dtype) for leaf, one in zip(leaves, like, strict=True)]
    return _unpacked(jax.tree.unflatten(tree, typed), rest, start)


def _named(tree: Any) -> dict[str, Any]:
    """The arrays of an ``nnx.State``, or of none, by name."""
    return {} if tree is None else by_name(tree)


def _best_like(start: State) -> Best:
    """One with arrays like the best ones of a run that starts so."""
    return Best(0.0, 0, start.params, {}, start.variables)


def _packed(position: Position) -> tuple[dict[str, Any], dict[str, Any]]:
    """A position as named arrays, and as what JSON can hold."""
    state, best = position.state, position.best
    arrays: dict[str, Any] = {
        "params": _named(state.params),
        "optimizer": {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))},
        "variables": _named(state.variables),
        "best": {} if best is None else _named(best.params),
        "best_variables": {} if best is None else _named(best.variables),
        "step": state.step,
        "alive": state.alive,
        "key": jax.random.key_data(state.key),
    }
    arrays = {name: value for name, value in arrays.items() if not isinstance(value, dict) or value}
    rest = {
        "since": _stretches(position.since),
        "best": None if best is None else [best.loss, best.step, best.scores],
        "next_validation": position.next_validation,
        "seconds": position.seconds,
        "shapes": _shapes(arrays),
    }
    return arrays, rest


def _unpacked(arrays: dict[str, Any], rest: dict[str, Any], start: State) -> Position:
    def like(tree: Any, named: dict[str, Any]) -> Any:
        return jax.tree.unflatten(jax.tree.structure(tree), named.values())

    def named(group: str, tree: Any) -> Any:
        own = arrays.get(group, {})
        return like(tree, {name: own[name] for name in _named(tree)})

    optimizer = dict(sorted(arrays.get("optimizer", {}).items()))
    state = State(
        named("params", start.params),
        like(start.opt_state, optimizer),
        arrays["step"],
        jax.random.wrap_key_data(arrays["key"], impl=jax.random.key_impl(start.key)),
        arrays["alive"],
        named("variables", start.variables),
    )
    best = None
    if rest["best"] is not None:
        loss, step, scores = rest["best"]
        scores = {str(name): float(score) for name, score in scores.items()}
        params, variables = named("best", start.params), named("best_variables", start.variables)
        best = Best(float(loss), int(step), params, scores, variables)
    since = _since(rest["since"])
    return Position(state, since, best, int(rest["next_validation"]), float(rest["seconds"]))


def _stretches(since: Since) -> list[list[float]]:
    """As stretches, each with its number of steps and their mean, that give the very same sums."""
    return [[1, *since.sums], [since.steps - 1, *NOTHING.sums]] if since.steps else []


def _since(stretches: list[list[float]]) -> Since:
    since = NOTHING
    for count, *mean in stretches:
        sums = (own + count * float(one) for own, one in zip(since.sums, mean, strict=True))
        since = Since(since.steps + int(count), tuple(sums))
    return since


def _shapes(arrays: dict[str, Any]) -> dict[str, str]:
    """``{"params/readout/kernel": "(64, 1) float32", ...}``."""
    shapes = {}
    for path, leaf in jax.tree.leaves_with_path(arrays):
        name = "/".join(str(part.key) for part in path)
        shapes[name] = f"{tuple(leaf.shape)} {leaf.dtype}"
    return shapes
