"""The record of anyone's own training loop: a run directory like that of gradlab's own loop."""

from __future__ import annotations

import atexit
import dataclasses
import inspect
import json
import logging
import math
import numbers
import operator
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import jax
import numpy as np
import xarray
from flax import nnx
from jax.core import Tracer

from gradlab import probes as every_probe
from gradlab.analysis import analyze
from gradlab.errors import BadInput
from gradlab.probes.base import Probe, Setting, StepProbe
from gradlab.record.arrays import stored_name
from gradlab.record.base import (
    OWN_LOOP,
    Description,
    Outcome,
    Row,
    Variable,
    crashed,
    figures_of,
)
from gradlab.record.directory import INFO, RunDirectory
from gradlab.record.finish import FIGURES, complete, replay, told, variable_of
from gradlab.record.lags import FORGET, RESIDUAL
from gradlab.record.metadata import MOST_ARRAYS, is_name
from gradlab.record.reader import Run, check_whole, open_run
from gradlab.record.sinks import Guarded, sinks_of
from gradlab.record.verdict import Network, verdict
from gradlab.record.wandb.sink import WandbSink
from gradlab.watching.measured import NORM, Measured, Watched, first_broken

LOSS, GRAD_NORM = "train/loss", "train/grad_norm"
_LOSS_EARLIER = {"last": False, "every": True, None: None}
"""Whether the loss reads earlier timesteps than the last, by ``readout``."""
_MOST_STEPS = 2**53
_KEPT_FREE = 124
"""Arrays that a run has room for besides numbers."""
_RESUMED_BY = "gradlab.Recorder(folder, module, resume=True)"
_log = logging.getLogger("gradlab")


class Recorder:
    """Records a training loop of your own, in the run directory that gradlab's own loop writes.

    ``gradlab.open_run``, the figures, the verdict, ``python -m gradlab.compare``, W&B and
    TensorBoard read it like any other. With a ``with`` statement an error or Ctrl-C in the loop is
    recorded as the end of the run, and raised on unchanged::

        with gradlab.Recorder("runs/mine", model, config={"seed": 0}) as recorder:
            for step, (x, y) in enumerate(batches):
                loss, seen = train_step(model, optimizer, x, y)
                recorder.log(step, seen, loss=loss)

    Without one, call :meth:`close` at the end. A program that ends without it is recorded as
    ``crashed`` if an error ended it, else as ``interrupted``; one that is killed reads ``killed``,
    and has lost at most the rows of the last 2 seconds.

    How it ends: ``finished``; ``diverged``, with the step, if loss or adjoints were not finite from
    some step to the last one logged (the loop goes on as it likes); ``interrupted``; ``crashed``.

    Args:
      folder: the run directory; made if missing. One that holds a run is refused.
      module: what is trained, watched by :func:`gradlab.watch`.
      config: what tells this run from others, recorded as it is (but for secrets, see
        docs/run_directory.md): settings in nested dicts. Pages of several runs tell them apart by
        what differs; runs that differ in ``seed`` alone are repetitions. ``model`` and ``task``, a
        word, or a section with a ``name``, are shown as the run's model and task.
      wandb: ``"offline"`` or ``"online"``: to Weights & Biases too; or options, such as
        ``{"mode": "online", "project": "mine"}``, see :class:`gradlab.record.wandb.sink.WandbSink`.
      tensorboard: to TensorBoard too.
      resume: resume the run in the folder, if there is one; with the module that it recorded, and
        any step up to its last one. Rows that are there stay: a step that was recorded before is
        not recorded again. So restore your checkpoint of step 500 and log from step 500 on, also
        where the folder has rows up to step 540.
      name: of the experiment that the run belongs to; the module's class if not given.
      readout: at which timesteps the loss reads the recurrent layers, ``"last"`` or ``"every"``,
        for the words of the verdict; None: not said.
      figures: whether to draw ``figures/*.png`` at the end.

    Attributes:
      folder: the run directory.

    Raises:
      BadInput: if the folder holds a run, or one that cannot be resumed so; for a module without
        a watched layer, or a package that is not installed.
      CannotRecord: if nothing can be written there.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        module: nnx.Module,
        *,
        config: Mapping[str, Any] | None = None,
        wandb: Literal["offline", "online"] | Mapping[str, Any] | None = None,
        tensorboard: bool = False,
        resume: bool = False,
        name: str | None = None,
        readout: Literal["last", "every"] | None = None,
        figures: bool = True,
    ):
        self.folder = Path(folder)
        if readout not in _LOSS_EARLIER:
            raise BadInput("readout", readout, '"last", "every" or None')
        self._watched, self._draws = Watched(module), figures
        there = (self.folder / INFO).exists()
        if there and not resume:
            hint = "resume=True, to resume it, or another folder"
            raise BadInput("folder", str(folder), "a folder that holds no run yet", hint)
        earlier = open_run(self.folder) if there else None
        if earlier is not None:
            self._check_resumable(earlier)
        self._description = self._describe(module, _config(config, earlier), name, readout, earlier)
        record = {"wandb": _options(wandb), "tensorboard": tensorboard, "terminal": False}
        sinks, self._wandb = sinks_of(record, self.folder)
        self._sinks, self._latest = [Guarded(sink) for sink in sinks], _Latest()
        self._row: _OpenRow | None = None
        self._taken: set[str] = set()  # names of scalars that need no further check
        self._last, self._trouble = -1, ""
        self._shown = self._ended = False
        self._directory = RunDirectory(self.folder, resumed_by=_RESUMED_BY)
        self._directory.open(self._description)
        self._clock, self._process = _Clock(), os.getpid()
        atexit.register(self._at_exit)
        if earlier is not None:
            self._open_sinks()
            replay(earlier, [self._latest, *self._sinks])

    def log(self, step: int, seen: Any = None, **scalars: Any) -> None:
        """Record what was seen at a training step, and numbers beside it.

        Nothing here waits for the device but the rows that are due to be written. A step may be
        logged in several calls, one after another, that say different things of it.

        Args:
          step: counted from 0; not before the last one logged.
          seen: what :func:`gradlab.value_and_grad` gave beside value and gradient at this step, of
            any number of examples; None: nothing. The number of timesteps has to stay the same.
          **scalars: numbers, or arrays of one, of any names (``**{"val/loss": 0.1}``) but those of
            gradlab's own curves and dimensions, at every step or at some. ``loss`` is recorded as
            ``train/loss``.

        Raises:
          BadInput: for a step before the last one, something that was said before at this step, or
            what is no such number.
          CannotRecord: if the folder can no longer be written to.
        """
        step = self._checked(step)
        named = {LOSS if name == "loss" else name: value for name, value in scalars.items()}
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((seen, named))):
            hint = "return seen and the loss from the compiled step, and log them outside of it"
            raise BadInput("log", "values that are being traced", "arrays and numbers", hint)
        self._check_scalars(named)
        row = self._row
        if row is not None and row.step == step:
            row.check_new(named, seen is not None)
        measured = None
        if seen is not None:
            measured = self._watched.begin(seen, self._description.coords)
        row = self._row_of(step)
        if row is not None:
            row.take(named, measured, getattr(seen, "gradient_norms", {}))
            self._taken |= named.keys()
            if self._directory.is_due:
                self._settle(row)
        self._clock.logged(step)

    def look(
        self,
        step: int,
        module: nnx.Module,
        inputs: Any,
        loss: Any,
        *,
        probes: str | Sequence[Any] = "full",
        **options: Any,
    ) -> None:
        """Look closely at a batch, and record it at a training step.

        The close probes measure what the step itself did not see: Jacobians, Lyapunov exponents,
        which way the gradient goes, … Their variables are recorded from the first look on.

        Args:
          step: as of :meth:`log`; both may be called at one step, in either order.
          module: with the parameters of that step.
          inputs: of some few examples; what is looked at is as long as what is logged.
          loss: of each example, as for :func:`gradlab.analyze`.
          probes: ``"full"``: all that fit, or a list of names, as for ``analyze``.
          **options: further ones of ``analyze``.

        Raises:
          BadInput: as :func:`gradlab.analyze`, and for a look that does not fit what is recorded.
          CannotRecord: if the folder can no longer be written to.
        """
        step = self._checked(step)
        if step <= self._description.recorded:
            self._last = step
            return
        began = time.monotonic()
        found = analyze(module, inputs, loss, probes=probes, **options)
        found = found.drop_vars({"lag", *_of_steps(found.data_vars)} & {*found.variables})
        self._check_look(found)
        row = self._row_of(step)
        assert row is not None
        row.looks.append(found)
        self._settle(row)
        self._clock.looked(time.monotonic() - began)

    def close(self) -> None:
        """End the run as finished: write all of it, draw the figures, close W&B and TensorBoard.

        Raises:
          CannotRecord: if it cannot be written.
        """
        self._end(Outcome("finished"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        self._end_anyway(self._outcome_of(error))

    @property
    def on_wandb(self) -> str:
        """How to see the run on W&B: its page, or the command that uploads it; final at the end."""
        return self._wandb.how_to_see()

    # Before the first step.

    def _check_resumable(self, earlier: Run) -> None:
        check_whole(earlier, "resume")
        allowed, facts = "a run that a Recorder recorded of this module", earlier.info["facts"]
        hint = "the module of that run, or another folder"
        try:
            self._watched.remember(facts["layers"])
            if facts["parameters"] != self._watched.parameters:
                own = f"{self._watched.parameters:,} of the one given"
                raise ValueError(f"it has {facts['parameters']:,} parameters; {own}")
        except (KeyError, TypeError, AttributeError):
            raise BadInput("resume", str(self.folder), allowed, hint) from None
        except ValueError as error:
            raise BadInput("resume", str(self.folder), f"{allowed}; {error}", hint) from None

    def _describe(
        self,
        module: nnx.Module,
        config: Mapping[str, Any],
        name: str | None,
        readout: str | None,
        earlier: Run | None,
    ) -> Description:
        kind, cells = type(module).__name__, self._watched.facts().values()
        facts: dict[str, Any] = {
            "loop": OWN_LOOP,
            "task": _word(config, "task"),
            "model": _word(config, "model") or kind,
            "cell": ", ".join(dict.fromkeys(one["cell"] for one in cells)),
            "parameters": self._watched.parameters,
            "readout": readout,
            "devices": [str(device) for device in jax.devices()],
        }
        facts = {key: value for key, value in facts.items() if value is not None}
        facts["layers"] = self._watched.facts()
        first = Description("", {}, {LOSS: _scalar(LOSS)}, {}, {})
        before = first if earlier is None else told(earlier)[0]
        return dataclasses.replace(
            before,
            name=name or before.name or kind,
            config=config,
            facts={**before.facts, **facts},
            id=before.id or secrets.token_hex(4),
            resumed=earlier is not None,
            recorded=_last_step(earlier),
        )

    # The row of the step that is being logged.

    def _checked(self, step: Any) -> int:
        if self._ended:
            raise BadInput("log", f"step {step}", "a Recorder that is not closed")
        try:
            found = operator.index(step)
        except TypeError:
            found = -1
        if isinstance(step, bool) or not 0 <= found < _MOST_STEPS:
            raise BadInput("step", step, "a whole number, counted from 0")
        if found < self._last:
            raise BadInput("step", found, f"{self._last}, the last one logged, or a later one")
        return found

    def _check_scalars(self, named: Mapping[str, Any]) -> None:
        for name, value in named.items():
            if not _is_number(value):
                shape = getattr(value, "shape", None)
                given = f"an array of shape {shape}" if shape else type(value).__name__
                raise BadInput(name, given, "a number, or an array of shape ()")
        if named.keys() <= self._taken:
            return
        known, waiting = self._description.variables, self._row.names if self._row else ()
        taken = {stored_name(one): one for one in [*known, *waiting]}
        for name in named:
            stored = stored_name(name)
            other = taken.setdefault(stored, name) != name or (name in known and known[name].dims)
            if (
                not is_name(stored)
                or other
                or stored in self._description.coords
                or _is_own(stored)
            ):
                allowed = "a name that nothing else has, not even with _ for /"
                allowed += ", without a dot in front or control characters"
                hint = (
                    "another; curves, their dimensions, and all that starts with adj_ are gradlab's"
                )
                raise BadInput("log", name, allowed, hint)
        if len(taken) > MOST_ARRAYS - _KEPT_FREE:
            allowed = f"at most {MOST_ARRAYS - _KEPT_FREE} names in a run"
            raise BadInput("log", f"{len(taken)} names", allowed)

    def _check_look(self, found: xarray.Dataset) -> None:
        """Refuse what has no place in the recorded arrays."""
        known, waiting = self._description, self._row.names if self._row else ()
        allowed = "variables and dimensions that nothing else is recorded as"
        hint = "log yours under another name"
        for dim in map(str, found.dims):
            if dim in known.variables or dim in waiting:
                raise BadInput("look", dim, allowed, hint)
            own, there = found[dim].values.tolist(), known.coords.get(dim)
            if dim == "layer":
                there = there or self._watched.layers
                fits = set(own) <= set(there)
            else:
                fits = there is None or own == list(there)
            if not fits:
                of = "T" if dim in ("t", "back") else dim
                given, fit = (own, there) if of == dim else (len(own), len(there or ()))
                raise BadInput(f"look ({of})", given, f"{fit}, as in what is recorded")
        for name, one in found.data_vars.items():
            there = known.variables.get(str(name))
            if name in waiting or (there is not None and there.dims != one.dims):
                raise BadInput("look", str(name), allowed, hint)

    def _row_of(self, step: int) -> _OpenRow | None:
        """The open row of a step; None if an earlier process recorded it."""
        self._last = step
        if step <= self._description.recorded:
            return None
        if self._row is None or self._row.step != step:
            self._complete()
            self._row = _OpenRow(step)
        return self._row

    def _settle(self, row: _OpenRow) -> None:
        """Hand what is known of the open row to the run directory; waits for the device."""
        waiting, measured = jax.device_get((row.scalars, row.measured))
        scalars = {name: float(value) for name, value in waiting.items()}
        arrays: dict[str, np.ndarray] = {}
        if measured is not None:
            row.broken, arrays = first_broken(measured), {**measured.arrays}
            if arrays.keys() - self._description.variables.keys() or self._has_new_layers():
                self._extend(self._watched.variables(), self._watched.coords(row.norms))
            if NORM in arrays and GRAD_NORM not in row.names:
                scalars[GRAD_NORM] = math.hypot(*map(float, arrays[NORM]))
        for look in row.looks:
            arrays |= self._of_look(look)
        if scalars.keys() - self._description.variables.keys():
            self._extend({name: _scalar(name) for name in scalars}, {})
        new = Row(row.step, scalars, arrays)
        self._directory.log(new)
        row.write(new)  # last of all: what Ctrl-C interrupts before is done again

    def _has_new_layers(self) -> bool:
        """Whether layers were seen of which the run directory does not say so."""
        told = self._description.facts["layers"].values()
        return len(self._watched.settings) > sum("T" in one for one in told)

    def _of_look(self, found: xarray.Dataset) -> dict[str, np.ndarray]:
        coords = {str(dim): found[dim].values.tolist() for dim in found.dims}
        coords |= {"layer": self._watched.layers}
        variables = {str(name): _variable(str(name), one) for name, one in found.data_vars.items()}
        left_out = json.loads(found.attrs.get("probes_left_out", "{}"))
        self._extend(variables, coords, probes_left_out=left_out)
        if "layer" in found.dims:
            found = found.reindex(layer=self._description.coords["layer"])
        return {name: np.asarray(found[name].values, np.float32) for name in variables}

    def _extend(
        self, variables: Mapping[str, Variable], coords: Mapping[str, list[Any]], **facts: Any
    ) -> None:
        """Record further variables, and what is known of the run by now."""
        known = self._description
        new = {name: one for name, one in variables.items() if name not in known.variables}
        needed = {dim: coords[dim] for one in new.values() for dim in one.dims}
        every = {**needed, **known.coords}
        facts = {**known.facts, **facts, "layers": self._watched.facts()}
        if "t" in every:
            facts["T"] = len(every["t"])
        if not new and facts == known.facts:
            return
        self._description = dataclasses.replace(
            known, variables={**known.variables, **new}, coords=every, facts=facts
        )
        self._directory.extend(self._description)
        if self._shown:
            for sink in self._sinks:
                sink.extend(self._description)

    def _complete(self) -> None:
        """Write the open row, and show it to the other sinks: no more will be said of its step."""
        if (row := self._row) is None:
            return
        self._settle(row)
        self._row = None
        assert row.written is not None
        loss = row.written.scalars.get(LOSS, 0.0)
        trouble = row.broken or ("" if math.isfinite(loss) else f"the loss is {loss}")
        if not trouble:
            self._latest.log(row.written)
        if not trouble and (row.has_seen or LOSS in row.names):
            self._trouble = ""
        elif trouble:
            self._trouble = self._trouble or f"diverged at step {row.step}: {trouble}"
        self._open_sinks()
        for sink in self._sinks:
            sink.log(row.written)

    def _open_sinks(self) -> None:
        if not self._shown:
            self._shown = True
            for sink in self._sinks:
                sink.open(self._description)

    # Ending.

    def _at_exit(self) -> None:
        if os.getpid() != self._process:  # a child of the process that records
            return
        error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
        reason = f"the program ended {self._at()} without a call of close()"
        outcome = self._outcome_of(error) if error else Outcome("interrupted", reason)
        self._end_anyway(outcome)

    def _end_anyway(self, outcome: Outcome) -> None:
        try:
            self._end(outcome)
        except Exception as error:  # noqa: BLE001  (the program's own end is what counts)
            _log.warning("the run in %s was not closed: %s", self.folder, error)

    def _outcome_of(self, error: BaseException) -> Outcome:
        if isinstance(error, KeyboardInterrupt):
            return Outcome("interrupted", f"interrupted {self._at()}")
        if isinstance(error, SystemExit):
            return Outcome("interrupted", f"the program ended itself {self._at()}")
        return crashed(error)

    def _at(self) -> str:
        return "before the first step" if self._last < 0 else f"at step {self._last}"

    def _end(self, outcome: Outcome) -> None:
        if self._ended:
            return
        self._ended, failure = True, None
        atexit.unregister(self._at_exit)
        try:
            self._complete()
            self._open_sinks()
        except BaseException as error:  # noqa: BLE001  (raised below, when all the rest is safe)
            outcome, failure = self._outcome_of(error), error
        self._tell(outcome)
        parts = [sink.part for sink in self._sinks if sink.part]
        if self._draws and outcome.status != "crashed":
            parts.insert(0, FIGURES)
        try:
            self._directory.close(outcome, parts)
        finally:
            complete(self._directory, self._sinks, outcome)
        if failure is not None:
            raise failure

    def _tell(self, outcome: Outcome) -> None:
        """Complete an outcome with all that is known of the run."""
        if self._trouble and outcome.status == "finished":
            outcome.status, outcome.reason = "diverged", self._trouble
        elif self._trouble:
            outcome.reason += f"; {self._trouble}"
        outcome.timings = self._clock.timings()
        if outcome.status != "crashed":
            outcome.summary, outcome.verdict = self._summary(), self._verdict()

    def _summary(self) -> dict[str, float]:
        found = {"steps": float(max(self._last, self._description.recorded) + 1)}
        found |= self._latest.scalars
        layers = self._description.coords.get("layer", ())
        for name, array in self._latest.arrays.items():
            found |= figures_of(name, self._description.variables[name], array, layers)
        return found

    def _verdict(self) -> list[str]:
        if self._latest.row is None:
            return []
        lines = []
        for name, setting in self._watched.settings.items():
            row, paths = (self._only(one, name) for one in (self._latest.row, self._latest.paths))
            if row is None:
                continue
            network = Network(
                layers=[name],
                length=setting.length,
                gate=setting.retention,
                memory="c" if "c" in setting.states else "h",
                earlier_steps_have_loss=_LOSS_EARLIER.get(self._description.facts.get("readout")),
                others_read_it=len(self._watched.layers) > 1,
                measured_by='Recorder.look(…, probes=["forget_path"])',
            )
            lines += verdict(row, network, paths)
        return lines

    def _only(self, row: Row | None, name: str) -> Row | None:
        """What a row says of one layer, as long as that is; None if it says nothing of it."""
        if row is None:
            return None
        index = list(self._description.coords["layer"]).index(name)
        length, found = self._watched.settings[name].length, {}
        for variable, array in row.arrays.items():
            dims = self._description.variables[variable].dims
            if dims[0] == "layer":
                own = array[index : index + 1]
                found[variable] = own[..., :length] if dims[-1] in ("t", "back") else own
        measured = found.get("adj_h_log10", next(iter(found.values()), np.nan))
        return None if np.isnan(measured).all() else Row(row.step, row.scalars, found)


class _OpenRow:
    """What was said of a step so far, of which more may come.

    Attributes:
      scalars, measured, looks: what the run directory does not have yet.
      written: what it has; None: nothing.
      names, has_seen: all that was said.
      broken: where the adjoints are not finite, in words.
    """

    def __init__(self, step: int):
        self.step = step
        self.scalars: dict[str, Any] = {}
        self.measured: Measured | None = None
        self.norms: list[str] = []
        self.looks: list[xarray.Dataset] = []
        self.written: Row | None = None
        self.names: set[str] = set()
        self.has_seen, self.broken = False, ""

    def check_new(self, named: Mapping[str, Any], seen: bool) -> None:
        """Refuse what was said before."""
        again = sorted(self.names & named.keys()) + ["seen"] * (seen and self.has_seen)
        if again:
            allowed = "a later step, or what was not said of this one yet"
            raise BadInput("step", self.step, f"{allowed}; {', '.join(again)} was")

    def take(
        self, named: Mapping[str, Any], measured: Measured | None, norms: Iterable[str]
    ) -> None:
        """Take more of it; ``norms`` are the names of the parameters that were measured."""
        self.scalars |= named
        self.names |= named.keys()
        if measured is not None:
            self.measured, self.norms, self.has_seen = measured, [*norms], True

    def write(self, new: Row) -> None:
        """Note what the run directory was handed."""
        before = self.written or Row(self.step, {}, {})
        scalars, arrays = {**before.scalars, **new.scalars}, {**before.arrays, **new.arrays}
        self.written = Row(self.step, scalars, arrays)
        self.scalars, self.measured, self.looks = {}, None, []


class _Latest:
    """A sink that keeps what was measured last: of each name, and for the verdict whole rows.

    Attributes:
      scalars, arrays: by name; scalars that are finite.
      row: the last with adjoints.
      paths: the last with forget and residual path.
    """

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.row: Row | None = None
        self.paths: Row | None = None

    def log(self, row: Row) -> None:
        """Take what there is in it."""
        self.scalars |= {name: one for name, one in row.scalars.items() if math.isfinite(one)}
        self.arrays |= row.arrays
        if "adjoint_slope" in row.arrays:
            self.row = row
        if {FORGET, RESIDUAL} <= row.arrays.keys():
            self.paths = row

    def open(self, description: Description) -> None:
        """Nothing to prepare."""

    def close(self, outcome: Outcome) -> None:
        """Nothing to end."""


class _Clock:
    """How fast the loop is, all that is in it but close looks included.

    It begins after the first call of ``log``, when everything is compiled.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.first: tuple[int, float] | None = None
        self.last: tuple[int, float] | None = None
        self.looks: list[float] = []
        self.away = 0.0

    def logged(self, step: int) -> None:
        """``log`` of a step is done."""
        self.last = step, time.monotonic()
        if self.first is None:
            self.first, self.away = self.last, 0.0

    def looked(self, seconds: float) -> None:
        """A close look is done."""
        self.looks.append(seconds)
        self.away += seconds

    def timings(self) -> dict[str, float | None]:
        """``steps_per_second``, ``close_look`` without the first, ``train_seconds``."""
        speed = None
        if self.first is not None and self.last is not None and self.last[0] > self.first[0]:
            seconds = self.last[1] - self.first[1] - self.away
            speed = (self.last[0] - self.first[0]) / seconds if seconds > 0 else None
        return {
            "steps_per_second": speed,
            "close_look": float(np.median(self.looks[1:])) if self.looks[1:] else None,
            "train_seconds": time.monotonic() - self.began,
        }


def _config(config: Mapping[str, Any] | None, earlier: Run | None) -> Mapping[str, Any]:
    if config is None:
        return {} if earlier is None else earlier.config
    if not isinstance(config, Mapping):
        hint = "vars(args), or dataclasses.asdict(config)"
        raise BadInput("config", type(config).__name__, "a dict", hint)
    return config


def _word(config: Mapping[str, Any], key: str) -> str | None:
    """What a configuration calls its model, or its task."""
    found = config.get(key)
    if isinstance(found, Mapping):
        found = found.get("name")
    return found if isinstance(found, str) else None


def _options(wandb: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of the W&B sink."""
    given = {"mode": wandb or "disabled"} if wandb is None or isinstance(wandb, str) else wandb
    if not isinstance(given, Mapping):
        raise BadInput("wandb", wandb, '"offline", "online", a dict of options, or None')
    options = {"mode": "offline", **given}
    known = [*inspect.signature(WandbSink).parameters][1:]
    unknown = sorted(map(str, options.keys() - {*known}))
    if unknown:
        raise BadInput("wandb", unknown[0], f"one of {', '.join(known)}")
    if options["mode"] not in (modes := ("offline", "online", "disabled")):
        raise BadInput("wandb", options["mode"], f"one of {', '.join(modes)}")
    return options


def _last_step(earlier: Run | None) -> int:
    return -1 if earlier is None else int(max(earlier.scalars["step"].values, default=-1))


def _is_number(value: Any) -> bool:
    if isinstance(value, numbers.Real):
        return True
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape != () or dtype is None:
        return False
    return any(jax.numpy.issubdtype(dtype, kind) for kind in (np.integer, np.floating, np.bool_))


def _scalar(name: str) -> Variable:
    if name == GRAD_NORM:
        return Variable((), "loss/parameter", "global gradient norm, as the loss gave it")
    return Variable((), "1", "training loss" if name == LOSS else name)


def _variable(name: str, found: xarray.DataArray) -> Variable:
    """What a variable of a look is; layers of several kinds may have no words in common."""
    return variable_of(found.assign_attrs({"units": "1", "long_name": name, **found.attrs}))


def _of_steps(names: Iterable[Any]) -> set[str]:
    """Those that :meth:`Recorder.log` records, of the whole batch."""
    states = [
        name.removeprefix("adj_").removesuffix("_zero")
        for name in map(str, names)
        if name.startswith("adj_") and name.endswith("_zero")
    ]
    every = Setting("", tuple(states), ("gate",), "gate")
    steps = (probe for probe in _probes() if isinstance(probe, StepProbe))
    return {name for probe in steps for name in probe.variables(every)}


def _is_own(stored: str) -> bool:
    """Whether gradlab may record something of this name, now or later, or a dimension of it."""
    return stored.startswith("adj_") or stored in _own_names()


@cache
def _own_names() -> frozenset[str]:
    """What all probes measure, but adjoints by the names of states, and over which dimensions."""
    every = Setting("", (), ("gate",), "gate", ("matrix",), "tanh", 1, 1, clips=True)
    found = {"step", "lag"}
    for probe in _probes():
        for name, one in probe.variables(every).items():
            found |= {name, *one.dims}
    return frozenset(found)


def _probes() -> Iterator[Probe]:
    for kind in vars(every_probe).values():
        if isinstance(kind, type) and issubclass(kind, Probe):
            yield kind()
