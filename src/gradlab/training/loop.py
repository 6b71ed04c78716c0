"""The loop: when to step plainly, when to measure, when to evaluate, when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from gradlab.bptt.passes import Route
from gradlab.bptt.precision import Products
from gradlab.errors import BadInput, CannotRecord, number, whole_number
from gradlab.record.base import AT_LENGTH, Outcome, Row, Sink, figures_of
from gradlab.training.checkpoint import Best, Position
from gradlab.training.diagnosis import diagnose
from gradlab.training.interruption import Interruption
from gradlab.training.program import Measured, Program
from gradlab.training.schedule import Schedule
from gradlab.training.step import Report, State

STRETCH = 100
"""Most steps that are made without a look at whether the run should end or be saved."""


Segments = int | Literal["auto"] | None
"""How many segments time is cut into; ``"auto"``: as the memory asks for; None: it is not cut."""


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
      test_lengths: further lengths of the sequences to test at, each once, in timesteps.
      backward: what passes back from each timestep, in the backward pass alone, as for
        :func:`gradlab.bptt.unroll.unroll`.
      segments: of time, as there; ``"auto"``: about √T where all states would take a quarter of the
        free memory, else None.
      products: of the cells, as there.

    Raises:
      BadInput: if one of them is too small or too large.
    """

    steps: int
    batch: int
    log_every: int | None = 10
    eval_every: int = 100
    eval_batch: int = 250
    log_per_decade: int | None = None
    checkpoint_seconds: float | None = 30.0
    mesh: Literal["data"] | None = None
    test_lengths: Sequence[int] = ()
    backward: Route = "full"
    segments: Segments = "auto"
    products: Products = "float32"

    def __post_init__(self) -> None:
        for key in ("steps", "batch", "eval_every", "eval_batch"):
            whole_number(f"trainer.{key}", getattr(self, key), 1)
        if self.segments not in ("auto", None):
            whole_number("trainer.segments", self.segments, 2, otherwise=", auto, or null for none")
        if self.products not in get_args(Products):
            raise BadInput("trainer.products", self.products, " | ".join(get_args(Products)))
        if self.checkpoint_seconds is not None:
            number("trainer.checkpoint_seconds", self.checkpoint_seconds, 0, 1e9)
        _ = self.log  # refuses what is no schedule
        lengths = tuple(self.test_lengths)  # so that trainers with the same ones are equal
        for length in lengths:
            whole_number("trainer.test_lengths", length, 1)
        if len(set(lengths)) < len(lengths):
            raise BadInput("trainer.test_lengths", list(lengths), "each length once")
        object.__setattr__(self, "test_lengths", lengths)

    @property
    def log(self) -> Schedule:
        """The steps that are measured and recorded."""
        return Schedule(self.log_every, self.log_per_decade, "trainer.log_every")


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
    program: Program,
    members: Sequence[Member],
    *,
    close: Schedule = Schedule(50),  # noqa: B008  (it is frozen)
    interruption: Interruption | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> None:
    """Train, measure and evaluate some members together; hand every row to each one's sinks.

    Every member ends with an outcome: one whose numbers stop being finite as ``diverged``, one
    whose run directory can no longer be written to as ``crashed``, and the others go on; an
    interrupt ends all that are left as ``interrupted``. All keep what was recorded. The sinks are
    not closed here.

    A resumed run makes the same steps as one that never stopped: what was recorded after its
    position is computed again and not recorded twice.

    Args:
      trainer: how long and how often.
      program: what steps the members; compiled.
      members: in the program's order.
      close: when the close probes measure, besides at the last step.
      interruption: asks the runs to end after the step they are at. Over several processes they
        end after the same one, whichever of them is asked.
      now: a clock in seconds.
    """
    if interruption is None:
        interruption = Interruption()
    loop = _Loop(trainer, program, members, close, interruption, now)
    try:
        loop.go()
    except KeyboardInterrupt:  # a second Ctrl-C: at once, so from the last position kept
        for index in loop.training:
            reason = f"interrupted at step {program.step(index)}"
            if program.steps.mesh.processes > 1:  # the others still train: nothing can be computed
                raise KeyboardInterrupt(reason) from None
            loop.end({index: Outcome("interrupted", reason)})


class Member:
    """One of the runs in the loop: what the host knows of it.

    Args:
      sinks: where its rows go.
      position: where it is resumed; None: at the start.
      recorded: the last step whose row the sinks have already.
      last_row: the last row recorded of a step that was made.
      save: called with the position when it should be kept: at every
        ``trainer.checkpoint_seconds``, when the run is interrupted, and at its end.
      ended: called when there is an outcome, while other members may still train.

    Attributes:
      outcome: how it ended; None while it trains.
      error: why its run directory could not be written to, if it could not.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        position: Position | None = None,
        *,
        recorded: int = -1,
        last_row: Row | None = None,
        save: Callable[[Position], None] | None = None,
        ended: Callable[[Member], None] | None = None,
    ):
        self.sinks, self.start = sinks, position
        self.recorded, self.last_row = recorded, last_row
        self.save, self.ended = save, ended
        self.since: list[tuple[int, Report]]
        self.best: Best | None
        self.outcome: Outcome | None = None
        self.error: CannotRecord | None = None
        self.done, self.since, self.best = 0, [], None
        self.next_validation, self.seconds = 0, 0.0
        if position is not None:
            self.done, self.since = int(position.state.step), list(position.since)
            self.best, self.next_validation = position.best, position.next_validation
            self.seconds = position.seconds

    def position(self, state: State, seconds: float) -> Position:
        """Where it stands, after ``seconds`` more of training."""
        since, at = list(self.since), self.seconds + seconds
        return Position(state, since, self.best, self.next_validation, at)

    def log(self, row: Row) -> None:
        """Hand on a row, unless it was recorded before the run was resumed."""
        if row.scalars:
            self.last_row = row
        if row.step > self.recorded:
            for sink in self.sinks:
                sink.log(row)


class _Loop:
    def __init__(self, trainer: Trainer, program: Program, members, close, interruption, now):
        self.trainer, self.program, self.now = trainer, program, now
        self.members: dict[int, Member] = dict(enumerate(members))
        self.interruption, self.steps = interruption, program.steps
        total = trainer.steps
        self.close_steps = close.steps(total) if self.steps.looks_closely else set()
        self.rows = sorted(trainer.log.steps(total) | self.close_steps)
        self.clock = Clock()
        self.began = self.saved = now()
        starts = {i: m.start.state for i, m in self.members.items() if m.start is not None}
        if starts:
            program.resume(starts)

    @property
    def training(self) -> dict[int, Member]:
        """The members that have not ended."""
        return {i: member for i, member in self.members.items() if member.outcome is None}

    def go(self) -> None:
        """The loop itself."""
        for step in self.rows:
            while counts := self._until(step):
                self._advance(counts)
                self._end_diverged()
                if self._asked_to_end():
                    return self._interrupt()
            due = [i for i, member in self.training.items() if member.done == step]
            if not due:  # made before the runs were resumed
                continue
            self._measured_step(step, due)
            if self._asked_to_end() and step + 1 < self.trainer.steps:
                return self._interrupt()
        self._save()
        return self.end({i: Outcome("finished") for i in self.training})

    def _until(self, step: int) -> dict[int, int]:
        """How many plain steps, a stretch at most, each member that is short of ``step`` makes."""
        short = {i: step - member.done for i, member in self.training.items()}
        return {i: min(STRETCH, count) for i, count in short.items() if count > 0}

    def _advance(self, counts: Mapping[int, int]) -> None:
        began = self.now()
        reports = self.program.advance(counts)
        self.clock.plain.append((self.now() - began, max(counts.values())))
        for i, report in reports.items():
            self.members[i].since.append((counts[i], report))
            self.members[i].done += counts[i]

    def _measured_step(self, step: int, due: Sequence[int]) -> None:
        """One step of those that are due, with all that is measured of it."""
        closely = self._look_closely(step, due)
        began = self.now()
        probed = self.program.probe(due)
        self.clock.probed.append(self.now() - began)
        self._end_diverged()
        alive = {i: member for i, member in self.training.items() if i in due}
        scores = self._validate(step, alive)
        for i, member in alive.items():
            report, measured = probed[i]
            scalars = self._of_steps([*member.since, (1, report)])
            scalars["train/grad_norm"] = float(report.grad_norm)
            self._log(i, Row(step, scalars | scores.get(i, {}), measured | closely.get(i, {})))
            member.since, member.done = [], step + 1

    def _look_closely(self, step: int, due: Sequence[int]) -> Mapping[int, Measured]:
        """What the close probes measure, when they are due, before ``step`` is made."""
        if step not in self.close_steps:
            return {}
        began = self.now()
        measured = self.program.measure(due)
        self.clock.close.append(self.now() - began)
        return measured

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

    def _validate(self, step: int, members: Mapping[int, Member]) -> dict[int, dict[str, float]]:
        """Validation scores of those that are due, of the parameters after ``step``."""
        last = step == self.trainer.steps - 1
        due = [i for i, member in members.items() if last or step >= member.next_validation]
        if not due:
            return {}
        rows = {}
        for i, scores in self.program.score("val", due).items():
            member = members[i]
            member.next_validation = step + self.trainer.eval_every
            if member.best is None or scores["loss"] < member.best.loss:
                params, variables = self.program.state(i).values
                member.best = Best(scores["loss"], step, params, scores, variables)
            rows[i] = {f"val/{name}": value for name, value in scores.items()}
        return rows

    # Ending.

    def _asked_to_end(self) -> bool:
        """Whether the runs were asked to end; keeps their positions when that is due."""
        every = self.trainer.checkpoint_seconds
        signal = self.steps.mesh.agree(self.interruption.signal)
        self.interruption.signal = signal or self.interruption.signal
        if every is not None and self.now() - self.saved >= every and not signal:
            self._save()
        return signal != 0

    def _save(self) -> None:
        if self.trainer.checkpoint_seconds is None:
            return
        for i, member in self.training.items():
            if member.save is not None:
                position = member.position(self.program.state(i), self._seconds())
                self._recording(i, member.save, position)
        self.saved = self.now()

    def _seconds(self) -> float:
        return self.now() - self.began

    def _interrupt(self) -> None:
        self._save()
        self.end(
            {
                i: Outcome("interrupted", f"interrupted at step {member.done}{self.interruption}")
                for i, member in self.training.items()
            }
        )

    def _end_diverged(self) -> None:
        alive = self.program.alive()
        dead = [i for i in self.training if not alive[i]]
        if not dead:
            return
        # Their states wait at the step that was not finite, so that it can be looked into.
        probed, closely = self.program.probe(dead), self.program.measure(dead)
        for i in dead:
            self._log(i, Row(self.program.step(i), {}, probed[i][1] | closely[i]))
        dead = [i for i in dead if i in self.training]
        self.end({i: Outcome("diverged", diagnose(self.program, i)) for i in dead})

    def _log(self, index: int, row: Row) -> None:
        self._recording(index, self.members[index].log, row)

    def _recording(self, index: int, act: Callable[[Any], None], what: Any) -> None:
        """Let a member record; where it cannot any more, it ends, and the others go on."""
        try:
            act(what)
        except CannotRecord as error:
            self.members[index].error = error
            self.end({index: Outcome("crashed", f"cannot record: {error.reason}")})

    def end(self, outcomes: Mapping[int, Outcome]) -> None:
        """Give members their outcomes, with summary and timings."""
        seconds = self._seconds()  # without those that the tests take
        tests = self._tests(outcomes)
        for index, outcome in outcomes.items():
            member = self.members[index]
            if outcome.status != "crashed":
                outcome.summary = self._summary(index, tests.get(index, {}))
            outcome.timings = self.clock.timings() | {
                "compile_seconds": self.program.compile_seconds,
                "train_seconds": member.seconds + seconds,
            }
            if len(self.members) > 1:
                outcome.timings["members"] = float(len(self.members))
            member.outcome = outcome
            if member.ended is not None:
                member.ended(member)

    def _tests(self, outcomes: Mapping[int, Outcome]) -> dict[int, dict[str, float]]:
        """Test figures of the parameters that were best in validation, at every length."""
        best = {i: self.members[i].best for i, one in outcomes.items() if one.status != "crashed"}
        values = {i: one.values for i, one in best.items() if one is not None}
        figures: dict[int, dict[str, float]] = {i: {} for i in values}
        for length in (None, *self.trainer.test_lengths) if values else ():
            at = "" if length is None else f"{AT_LENGTH}{length}"
            for i, scores in self.program.score(
                "test", list(values), values, length=length
            ).items():
                figures[i] |= {f"test/{name}{at}": value for name, value in scores.items()}
        return figures

    def _summary(self, index: int, test: Mapping[str, float]) -> dict[str, float]:
        """Final figures; validation and test those of the parameters best in validation."""
        member = self.members[index]
        found: dict[str, float] = {"steps": float(self.program.step(index))}
        if member.last_row is not None:
            rows = member.last_row.scalars.items()
            found |= {name: value for name, value in rows if name.startswith("train/")}
            for name, array in member.last_row.arrays.items():
                found |= figures_of(name, self.steps.variables[name], array, self.steps.names)
        if member.best is not None:
            found["best/step"] = float(member.best.step)
            found |= {f"val/{name}": value for name, value in member.best.scores.items()}
            found |= test
        return found
