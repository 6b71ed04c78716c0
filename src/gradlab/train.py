"""The loop: when to step plainly, when to measure, when to evaluate, when to stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.diagnosis import diagnose
from gradlab.errors import at_least
from gradlab.model import per_example_accuracy, per_example_loss
from gradlab.record.base import Outcome, Row, Sink
from gradlab.step import Report, State, Steps
from gradlab.tasks.base import Batch


@dataclass(frozen=True)
class Trainer:
    """How long and how often.

    Args:
      steps: number of parameter updates.
      batch: ``B``, examples per update.
      log_every: measure and record at every so many steps, and at the last.
      eval_every: evaluate on the validation split at every so many steps, and at the end.
      eval_batch: examples evaluated at once; bounds memory only.

    Raises:
      BadInput: if one of them is below 1.
    """

    steps: int
    batch: int
    log_every: int = 10
    eval_every: int = 100
    eval_batch: int = 250

    def __post_init__(self) -> None:
        for key in ("steps", "batch", "log_every", "eval_every", "eval_batch"):
            at_least(f"trainer.{key}", getattr(self, key), 1)


def logged_steps(steps: int, *everies: int) -> list[int]:
    """The steps that are measured: 0, ``every``, 2 ``every``, ... of each, and the last."""
    return sorted({step for every in everies for step in range(0, steps, every)} | {steps - 1})


class Evaluator:
    """Mean loss and accuracy on the held-out splits, compiled once for all of them.

    Args:
      steps: the step functions of the run.
      chunk: examples evaluated at once.
    """

    def __init__(self, steps: Steps, chunk: int):
        self.steps = steps
        self.splits = {
            split: _in_chunks(steps.task.held_out(split), chunk) for split in ("val", "test")
        }
        self._scores = jax.jit(self._all_scores)

    def __call__(self, params: Any, split: Literal["val", "test"]) -> dict[str, float]:
        """``{"loss": ..., "accuracy": ...}`` of a split; accuracy for classification only."""
        chunks, real = self.splits[split]
        scores = self._scores(params, chunks, real)
        return {name: float(value) for name, value in scores.items()}

    def _all_scores(self, params: Any, chunks: Batch, real: jax.Array) -> dict[str, jax.Array]:
        model, task = self.steps.model(params), self.steps.task

        def score(chunk: Batch) -> dict[str, jax.Array]:
            outputs = model(chunk.inputs, chunk.mask).outputs
            answer = (outputs, chunk.targets, chunk.weights)
            scores = {"loss": per_example_loss(task.loss, *answer)}
            if task.loss == "cross_entropy":
                scores["accuracy"] = per_example_accuracy(*answer)
            return scores

        each = jax.lax.map(score, chunks)
        return jax.tree.map(lambda x: jnp.sum(jnp.where(real, x, 0)) / jnp.sum(real), each)


def _in_chunks(batch: Batch, chunk: int) -> tuple[Batch, jax.Array]:
    """A split as chunks with a new leading axis, the last filled up, and which rows are real."""
    count = batch.inputs.shape[1]
    chunk = min(chunk, count)
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
    close_every: int = 50,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[Outcome, State]:
    """Train, measure and evaluate; hand every row to the sinks.

    A run whose numbers stop being finite ends as ``diverged`` and an interrupt as ``interrupted``;
    both keep what was recorded. The sinks are not closed here.

    Args:
      trainer: how long and how often.
      steps: the step functions.
      key: JAX random key of the run.
      sinks: where rows go.
      close_every: the close probes measure at every so many steps, and at the last.
      now: a clock in seconds.

    Returns:
      The outcome, and the last state.
    """
    run = _Run(trainer, steps, key, sinks, close_every, now)
    try:
        with _interrupt_between_rows(run):
            outcome = run.go()
    except KeyboardInterrupt:
        outcome = Outcome("interrupted", f"interrupted at step {int(run.state.step)}")
    outcome.summary = run.summary()
    outcome.timings = run.clock.timings() | {
        "compile_seconds": run.compile_seconds,
        "train_seconds": now() - run.began,
    }
    return outcome, run.state


@contextmanager
def _interrupt_between_rows(run: _Run) -> Iterator[None]:
    """The first Ctrl-C ends the loop after its row, where none is lost; a second one at once.

    An exception raised by the signal itself could be swallowed by a callback that it happens to
    interrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def asked(*_: object) -> None:
        run.interrupted = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Run:
    interrupted = False

    def __init__(self, trainer, steps: Steps, key, sinks, close_every, now):
        self.trainer, self.steps, self.sinks, self.now = trainer, steps, sinks, now
        self.close_every = close_every if steps.looks_closely else trainer.steps
        self.clock = Clock()
        self.state = steps.start(key)
        self.next_validation = 0
        self.best: tuple[float, int, Any, dict[str, float]] | None = None
        self.last_row: Row | None = None
        self.data = steps.task.data
        self.evaluate = Evaluator(steps, trainer.eval_batch)
        began = now()
        lowered = (
            jax.jit(steps.advance).lower(self.state, self.data, jnp.int32(0)),
            jax.jit(steps.probe).lower(self.state, self.data),
            jax.jit(steps.measure).lower(self.state, self.data),
        )
        with ThreadPoolExecutor() as pool:  # the compiler lets go of Python's lock
            compiled = pool.map(lambda one: one.compile(), lowered)
            self.advance, self.probe, self.measure = compiled
        self.compile_seconds = now() - began
        self.began = now()

    def go(self) -> Outcome:
        """The loop itself."""
        done = 0
        every = (self.trainer.log_every, self.close_every)
        for step in logged_steps(self.trainer.steps, *every):
            since = []
            if step > done:
                since.append((step - done, self._advance(step - done)))
                if not bool(self.state.alive):
                    return self._diverged()
            closely = self._look_closely(step)
            report, measured = self._probe()
            if not bool(self.state.alive):
                return self._diverged()
            since.append((1, report))
            scalars = self._of_steps(since)
            scalars["train/grad_norm"] = float(report.grad_norm)
            scalars |= self._validate(step)
            self._log(Row(step, scalars, measured | closely))
            done = step + 1
            if self.interrupted and done < self.trainer.steps:
                raise KeyboardInterrupt
        return Outcome("finished")

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
        due = step % self.close_every == 0 or step == self.trainer.steps - 1
        if not (due and self.steps.looks_closely):
            return {}
        began = self.now()
        measured = jax.block_until_ready(self.measure(self.state, self.data))
        self.clock.close.append(self.now() - began)
        return jax.device_get(measured)

    def _advance(self, count: int):
        began = self.now()
        self.state, report = jax.block_until_ready(
            self.advance(self.state, self.data, jnp.int32(count))
        )
        self.clock.plain.append((self.now() - began, count))
        return report

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
        if self.best is None or scores["loss"] < self.best[0]:
            self.best = (scores["loss"], step, params, scores)
        return {f"val/{name}": value for name, value in scores.items()}

    def _log(self, row: Row) -> None:
        if row.scalars:
            self.last_row = row
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
            _, step, params, scores = self.best
            found["best/step"] = float(step)
            found |= {f"val/{name}": value for name, value in scores.items()}
            test = self.evaluate(params, "test")
            found |= {f"test/{name}": value for name, value in test.items()}
        return found
