"""The loop: when to step plainly, when to measure, when to evaluate, when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.checkpoint import Best, Position
from gradlab.diagnosis import diagnose
from gradlab.errors import at_least
from gradlab.interruption import Interruption
from gradlab.model import per_example_accuracy, per_example_loss
from gradlab.record.base import Outcome, Row, Sink
from gradlab.schedule import Schedule
from gradlab.step import Report, State, Steps
from gradlab.tasks.base import Batch

STRETCH = 100
"""Most steps that are made without a look at whether the run should end or be saved."""


@dataclass(frozen=True)
class Trainer:
    """How long and how often.

    Args:
      steps: number of parameter updates.
      batch: ``B``, examples per update.
      log_every: measure and record at every so many steps, and at the last; None: only log-spaced.
      log_per_decade: besides, at so many log-spaced steps of each decade; None: at none.
      eval_every: evaluate on the validation split at every so many steps, and at the end.
      eval_batch: examples evaluated at once; bounds memory only.
      checkpoint_seconds: keep the position of the run at about every so many seconds, and at its
        end; None: never.
      mesh: ``"data"`` splits each batch over all devices of all processes; None: one device.

    Raises:
      BadInput: if one of them is too small.
    """

    steps: int
    batch: int
    log_every: int | None = 10
    eval_every: int = 100
    eval_batch: int = 250
    log_per_decade: int | None = None
    checkpoint_seconds: float | None = 30.0
    mesh: Literal["data"] | None = None

    def __post_init__(self) -> None:
        for key in ("steps", "batch", "eval_every", "eval_batch"):
            at_least(f"trainer.{key}", getattr(self, key), 1)
        if self.checkpoint_seconds is not None:
            at_least("trainer.checkpoint_seconds", self.checkpoint_seconds, 0)
        _ = self.log  # refuses what is no schedule

    @property
    def log(self) -> Schedule:
        """The steps that are measured and recorded."""
        return Schedule(self.log_every, self.log_per_decade, "trainer.log_every")


class Evaluator:
    """Mean loss and accuracy on the held-out splits, compiled once for all of them.

    Args:
      steps: the step functions of the run.
      chunk: examples evaluated at once.
    """

    def __init__(self, steps: Steps, chunk: int):
        self.steps, mesh = steps, steps.mesh
        self.splits = {
            split: mesh.replicate(_in_chunks(steps.task.held_out(split), chunk, mesh.devices))
            for split in ("val", "test")
        }
        self._scores = mesh.jit(self._all_scores)

    def __call__(self, params: Any, split: Literal["val", "test"]) -> dict[str, float]:
        """``{"loss": ..., "accuracy": ...}`` of a split; accuracy for classification only."""
        chunks, real = self.splits[split]
        scores = self._scores(params, chunks, real)
        return {name: float(value) for name, value in scores.items()}

    def _all_scores(self, params: Any, chunks: Batch, real: jax.Array) -> dict[str, jax.Array]:
        task = self.steps.task

        def score(params: Any, chunk: Batch) -> tuple[tuple[()], dict[str, jax.Array]]:
            outputs = self.steps.model(params)(chunk.inputs, chunk.mask).outputs
            answer = (outputs, chunk.targets, chunk.weights)
            scores = {"loss": per_example_loss(task.loss, *answer)}
            if task.loss == "cross_entropy":
                scores["accuracy"] = per_example_accuracy(*answer)
            return (), scores

        split = self.steps.mesh.over_batch(score, rows=0)
        each = jax.lax.map(lambda chunk: split(params, chunk)[1], chunks)
        return jax.tree.map(lambda x: jnp.sum(jnp.where(real, x, 0)) / jnp.sum(real), each)


def _in_chunks(batch: Batch, chunk: int, devices: int = 1) -> tuple[Batch, jax.Array]:
    """A split as chunks with a new leading axis, the last filled up, and which rows are real."""
    count = batch.inputs.shape[1]
    chunk = math.ceil(min(chunk, count) / devices) * devices
    chunks = math.ceil(count / chunk)
    rows = np.minimum(np.arange(chunks * chunk), count - 1)

    def cut(array: jax.Array, examples_axis: int) -> jax.Array:
        picked = jnp.take(array, rows, axis=examples_axis)
        parts = jnp.split(picked, chunks, axis=examples_axis)
        return jnp.stack(parts)

    time_major_targets = batch.weights is not None
    cut_batch = Batch(
        cut(batch.inputs, 1),
        cut(batch.targets, 1 if time_major_targets else 0),
        None if batch.weights is None else cut(batch.weights, 1),
        None if batch.mask is None else cut(batch.mask, 1),
    )
    real = jnp.arange(chunks * chunk).reshape(chunks, chunk) < count
    return cut_batch, real


class Clock:
    """Seconds of plain steps, of probed ones and of close looks, the device's work included.

    The first call of each kind is left out of the rates: it is not yet steady.
    """

    def __init__(self) -> None:
        self.plain: list[tuple[float, int]] = []
        self.probed: list[float] = []
        self.close: list[float] = []

    def timings(self) -> dict[str, float | None]:
        """``steps_per_second`` over all steps, and what measuring costs; None where unmeasured.

        ``probe_overhead`` is the time of a probed step over that of a plain one, ``close_look``
        the seconds of one look of the close probes, which ``steps_per_second`` leaves out.
        """
        plain, probed, close = self.plain[1:], self.probed[1:], self.close[1:]
        seconds = sum(s for s, _ in plain) + sum(probed)
        steps = sum(n for _, n in plain) + len(probed)
        each = [s / n for s, n in plain if n]
        overhead = float(np.median(probed) / np.median(each)) if each and probed else None
        return {
            "steps_per_second": steps / seconds if steps else None,
            "probe_overhead": overhead,
            "close_look": float(np.median(close)) if close else None,
        }


def train(
    trainer: Trainer,
    steps: Steps,
    key: jax.Array,
    sinks: Sequence[Sink],
    *,
    close: Schedule = Schedule(50),  # noqa: B008  (it is frozen)
    position: Position | None = None,
    recorded: int = -1,
    last_row: Row | None = None,
    save: Callable[[Position], None] | None = None,
    interruption: Interruption | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[Outcome, State]:
    """Train, measure and evaluate; hand every row to the sinks.

    A run whose numbers stop being finite ends as ``diverged`` and an interrupt as ``interrupted``;
    both keep what was recorded. The sinks are not closed here.

    A run that goes on makes the same steps as one that never stopped: what was recorded after its
    position is computed again and not recorded twice.

    Args:
      trainer: how long and how often.
      steps: the step functions.
      key: JAX random key of the run.
      sinks: where rows go.
      close: when the close probes measure, besides at the last step.
      position: where to go on; None: at the start.
      recorded: the last step whose row the sinks have already.
      last_row: the last row recorded of a step that was made.
      save: called with the position when it should be kept: at every
        ``trainer.checkpoint_seconds``, when the run is interrupted, and at its end.
      interruption: asks the run to end after the step it is at. Over several processes they end
        after the same one, whichever of them is asked.
      now: a clock in seconds.

    Returns:
      The outcome, and the last state.
    """
    run = _Run(trainer, steps, key, sinks, close, now)
    run.go_on(position or Position(run.state))
    run.recorded, run.last_row = recorded, last_row
    run.save = save
    run.interruption = Interruption() if interruption is None else interruption
    try:
        outcome = run.go()
    except KeyboardInterrupt:  # a second Ctrl-C: at once, so from the last position kept
        reason = f"interrupted at step {int(run.state.step)}"
        if steps.mesh.processes > 1:  # the others still train: nothing more can be computed
            raise KeyboardInterrupt(reason) from None
        outcome = Outcome("interrupted", reason)
    outcome.summary = run.summary()
    outcome.timings = run.clock.timings() | {
        "compile_seconds": run.compile_seconds,
        "train_seconds": run.position().seconds,
    }
    return outcome, run.state


class _Run:
    recorded: int
    last_row: Row | None
    save: Callable[[Position], None] | None
    interruption: Interruption

    def __init__(self, trainer: Trainer, steps: Steps, key, sinks, close: Schedule, now):
        self.trainer, self.steps, self.sinks, self.now = trainer, steps, sinks, now
        total = trainer.steps
        self.close_steps = close.steps(total) if steps.looks_closely else set()
        self.rows = sorted(trainer.log.steps(total) | self.close_steps)
        self.clock = Clock()
        self.state = steps.mesh.replicate(steps.start(key))
        self.data = steps.mesh.replicate(steps.task.data)
        self.evaluate = Evaluator(steps, trainer.eval_batch)
        began = now()
        lowered = (
            steps.mesh.jit(steps.advance).lower(self.state, self.data, np.int32(0)),
            steps.mesh.jit(steps.probe).lower(self.state, self.data),
            steps.mesh.jit(steps.measure).lower(self.state, self.data),
        )
        with ThreadPoolExecutor() as pool:  # the compiler lets go of Python's lock
            compiled = pool.map(lambda one: one.compile(), lowered)
            self.advance, self.probe, self.measure = compiled
        self.compile_seconds = now() - began
        self.began = self.saved = now()

    def go_on(self, position: Position) -> None:
        """Stand where ``position`` says."""
        replicate, best = self.steps.mesh.replicate, position.best
        self.state, self.since = replicate(position.state), list(position.since)
        self.best = None if best is None else best._replace(params=replicate(best.params))
        self.next_validation, self.seconds = position.next_validation, position.seconds
        self.done = int(self.state.step)

    def position(self) -> Position:
        """Where the run stands."""
        seconds = self.seconds + self.now() - self.began
        return Position(self.state, list(self.since), self.best, self.next_validation, seconds)

    def go(self) -> Outcome:
        """The loop itself."""
        for step in self.rows:
            while self.done < step:
                self._advance(min(STRETCH, step - self.done))
                if not bool(self.state.alive):
                    return self._diverged()
                if self._ends_here():
                    return self._interrupted()
            if self.done > step:  # made before the run was resumed
                continue
            closely = self._look_closely(step)
            report, measured = self._probe()
            if not bool(self.state.alive):
                return self._diverged()
            scalars = self._of_steps([*self.since, (1, report)])
            scalars["train/grad_norm"] = float(report.grad_norm)
            scalars |= self._validate(step)
            self._log(Row(step, scalars, measured | closely))
            self.since, self.done = [], step + 1
            if self._ends_here() and self.done < self.trainer.steps:
                return self._interrupted()
        self._save()
        return Outcome("finished")

    def _ends_here(self) -> bool:
        """Whether the run was asked to end; keeps the position when that is due."""
        every = self.trainer.checkpoint_seconds
        number = self.steps.mesh.agree(self.interruption.signal)
        self.interruption.signal = number or self.interruption.signal
        if every is not None and self.now() - self.saved >= every and not number:
            self._save()
        return number != 0

    def _save(self) -> None:
        if self.save is not None and self.trainer.checkpoint_seconds is not None:
            self.save(self.position())
            self.saved = self.now()

    def _interrupted(self) -> Outcome:
        self._save()
        return Outcome("interrupted", f"interrupted at step {self.done}{self.interruption}")

    def _of_steps(self, since: list[tuple[int, Report]]) -> dict[str, float]:
        """Means over the steps since the last row."""
        steps = sum(count for count, _ in since)

        def mean(field: str) -> float:
            return sum(count * float(getattr(report, field)) for count, report in since) / steps

        found = {"train/loss": mean("loss")}
        if self.steps.optimizer.clips:
            found["train/clip_rate"] = mean("clipped")
        if self.steps.regularizer is not None:
            found["train/penalty"] = mean("penalty")
        return found

    def _look_closely(self, step: int) -> dict[str, np.ndarray]:
        """What the close probes measure, when they are due, before ``step`` is made."""
        if step not in self.close_steps:
            return {}
        began = self.now()
        measured = jax.block_until_ready(self.measure(self.state, self.data))
        self.clock.close.append(self.now() - began)
        return jax.device_get(measured)

    def _advance(self, count: int) -> None:
        began = self.now()
        self.state, report = jax.block_until_ready(
            self.advance(self.state, self.data, np.int32(count))
        )
        self.clock.plain.append((self.now() - began, count))
        self.since.append((count, jax.device_get(report)))
        self.done += count

    def _probe(self):
        began = self.now()
        self.state, report, measured = jax.block_until_ready(self.probe(self.state, self.data))
        self.clock.probed.append(self.now() - began)
        return report, jax.device_get(measured)

    def _validate(self, step: int) -> dict[str, float]:
        """Validation scores when they are due, of the parameters after ``step``."""
        if step < self.next_validation and step != self.trainer.steps - 1:
            return {}
        self.next_validation = step + self.trainer.eval_every
        params = self.state.params
        scores = self.evaluate(params, "val")
        if self.best is None or scores["loss"] < self.best.loss:
            self.best = Best(scores["loss"], step, params, scores)
        return {f"val/{name}": value for name, value in scores.items()}

    def _log(self, row: Row) -> None:
        if row.scalars:
            self.last_row = row
        if row.step <= self.recorded:
            return
        for sink in self.sinks:
            sink.log(row)

    def _diverged(self) -> Outcome:
        # The state waits at the step that was not finite, so that it can be looked into.
        step = int(self.state.step)
        _, _, measured = self.probe(self.state, self.data)
        closely = self.measure(self.state, self.data)
        self._log(Row(step, {}, jax.device_get(measured | closely)))
        return Outcome("diverged", diagnose(self.steps, self.state, self.data))

    def summary(self) -> dict[str, float]:
        """Final figures; validation and test those of the parameters best in validation."""
        found: dict[str, float] = {"steps": float(int(self.state.step))}
        if self.last_row is not None:
            found |= {
                name: value
                for name, value in self.last_row.scalars.items()
                if name.startswith("train/")
            }
            for name, array in self.last_row.arrays.items():
                if not array.ndim:
                    found[name] = float(array)
                elif self.steps.variables[name].dims == ("layer",):
                    for layer, value in zip(self.steps.names, array, strict=True):
                        found[f"{name}/layer_{layer.replace(' ', '_')}"] = float(value)
        if self.best is not None:
            found["best/step"] = float(self.best.step)
            found |= {f"val/{name}": value for name, value in self.best.scores.items()}
            test = self.evaluate(self.best.params, "test")
            found |= {f"test/{name}": value for name, value in test.items()}
        return found
