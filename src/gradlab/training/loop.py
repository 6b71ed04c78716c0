"""The loop: when to step plainly, when to measure, when to evaluate, when to stop."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from gradlab.bptt.passes import Route
from gradlab.bptt.precision import Products
from gradlab.errors import BadInput, CannotRecord, number, whole_number
from gradlab.record.base import AT_LENGTH, Outcome, Row, Sink, figures_of
from gradlab.training.checkpoint import NOTHING, Best, Position, Since
from gradlab.training.diagnosis import diagnose
from gradlab.training.interruption import Interruption
from gradlab.training.program import Landed, Measured, Program
from gradlab.training.schedule import Schedule
from gradlab.training.step import Report, State
from gradlab.training.stretch import STEPS, Block

SECONDS = 0.25
"""About how long a call to the devices is: how long a run makes steps without a look at whether it
should end or be saved, and how long its rows wait."""
TIMED = 5
"""At the start so many calls of each kind are of that kind alone, to compare their times."""
TIMED_AGAIN = 20
"""Later one is, after so many others."""


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
      mesh: ``"data"`` splits each batch over all devices of all processes; ``"auto"`` over those of
        a CPU where that pays, see :func:`gradlab.training.mesh.best_mesh`; None: one device.
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
    mesh: Literal["auto", "data"] | None = None
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
    """Seconds of calls to the devices, with the number of steps of each, and of close looks.

    A call is timed from when it is sent until it has landed. So what the host does meanwhile is in
    that time, not beside it. The first one of each kind is left out: it is not yet steady.

    Attributes:
      plain: of calls without a measured step, with nothing else for the host to do meanwhile.
      probed: likewise of measured steps alone.
      mixed: of all others.
      close: seconds of close looks.
      empty: seconds of a call without any step, which the comparison of kinds leaves out.
    """

    def __init__(self) -> None:
        self.empty = 0.0
        self.plain: list[tuple[float, int]] = []
        self.probed: list[tuple[float, int]] = []
        self.mixed: list[tuple[float, int]] = []
        self.close: list[float] = []

    def timings(self) -> dict[str, float | None]:
        """``steps_per_second`` over all steps, and what measuring costs; None where unmeasured.

        ``probe_overhead`` is the time of a probed step over that of a plain one, unmeasured where
        either is less than what a call costs by itself; ``close_look`` the seconds of one look of
        the close probes, which ``steps_per_second`` leaves out.
        """
        plain, probed, close = self.plain[1:], self.probed[1:], self.close[1:]
        calls = [*plain, *probed, *self.mixed[1:]]
        seconds, steps = sum(s for s, _ in calls), sum(n for _, n in calls)
        each = [self._of_step(kind) for kind in (probed, plain) if kind]
        overhead = each[0] / each[1] if len(each) == 2 and min(each) > 0 else None
        return {
            "steps_per_second": steps / seconds if steps else None,
            "probe_overhead": overhead,
            "close_look": float(np.median(close)) if close else None,
        }

    def _of_step(self, calls: Sequence[tuple[float, int]]) -> float:
        """Seconds of a step in calls of one kind."""
        return float(np.median([(seconds - self.empty) / steps for seconds, steps in calls]))


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
      interruption: asks the runs to end after the steps they are at, see :data:`SECONDS`. Over
        several processes they end after the same one, whichever of them is asked.
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
        self.since: Since
        self.best: Best | None
        self.outcome: Outcome | None = None
        self.error: CannotRecord | None = None
        self.done, self.since, self.best = 0, NOTHING, None
        self.next_validation, self.seconds = 0, 0.0
        if position is not None:
            self.done, self.since = int(position.state.step), position.since
            self.best, self.next_validation = position.best, position.next_validation
            self.seconds = position.seconds

    def position(self, state: State, seconds: float) -> Position:
        """Where it stands, after ``seconds`` more of training."""
        at = self.seconds + seconds
        return Position(state, self.since, self.best, self.next_validation, at)

    def log(self, row: Row) -> None:
        """Hand on a row, unless it was recorded before the run was resumed."""
        if row.scalars:
            self.last_row = row
        if row.step > self.recorded:
            for sink in self.sinks:
                sink.log(row)


@dataclass
class _Call:
    """A stretch of steps of some members, from its plan until its rows are handed over.

    Attributes:
      plans: the blocks of steps, by member.
      begin: how many steps each member had made before.
      closely: what the close probes measured before it, by member.
      landed: where it led to; None before it has.
      scores: of the parameters after it, of the members that were validated.
    """

    plans: dict[int, list[Block]]
    begin: dict[int, int]
    closely: Mapping[int, Measured]
    landed: Landed | None = None
    scores: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


class _Loop:
    """While the devices make one stretch of steps, the host hands over the rows of the one before.

    A stretch ends before a close look, after a step whose parameters are validated, and where the
    time is up; how many steps that is, is found while training and changes no number.
    """

    def __init__(self, trainer: Trainer, program: Program, members, close, interruption, now):
        self.trainer, self.program, self.now = trainer, program, now
        self.members: dict[int, Member] = dict(enumerate(members))
        self.interruption, self.steps = interruption, program.steps
        total = trainer.steps
        self.close_steps = close.steps(total) if self.steps.looks_closely else set()
        self.rows = sorted(trainer.log.steps(total) | self.close_steps)
        self.looks = sorted(self.close_steps)
        self.clock = Clock()
        self.limit, self.others = 1, 0
        self.made: _Call | None = None
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
        self._time_empty_calls()
        while plans := self._plans():
            self._make(plans)
            self._validate()
            self._end_diverged()
            if self._asked_to_end() and any(
                member.done < self.trainer.steps for member in self.training.values()
            ):
                return self._interrupt()
        self._hand_over()
        self._save()
        return self.end({i: Outcome("finished") for i in self.training})

    def _time_empty_calls(self) -> None:
        found = []
        for _ in range(TIMED):
            began = self.now()
            self.program.send({i: [] for i in self.training})
            self.program.land()
            found.append(self.now() - began)
        self.clock.empty = float(np.median(found))

    # What is made next.

    def _plans(self) -> dict[int, list[Block]]:
        """The blocks of steps that each member makes in the next call; empty if none is left."""
        parted = self._compares(probed=False) or self._compares(probed=True)
        plans = {i: self._plan(member, parted=parted) for i, member in self.training.items()}
        return {i: plan for i, plan in plans.items() if plan}

    def _compares(self, *, probed: bool) -> bool:
        """Whether a call of steps of this kind alone is to be timed, to be compared with others."""
        if len(self.rows) == self.trainer.steps:
            return False
        few = len(self.clock.probed if probed else self.clock.plain) <= TIMED
        return few or self.others >= TIMED_AGAIN

    def _plan(self, member: Member, *, parted: bool) -> list[Block]:
        """What one member makes; of one kind of steps alone if they are ``parted``."""
        at, blocks = member.done, []
        end = min(at + self.limit, self.trainer.steps)
        if (look := bisect_right(self.looks, at)) < len(self.looks):
            end = min(end, self.looks[look])
        first = bisect_left(self.rows, at)
        for row in self.rows[first : first + self.program.most_blocks]:
            if row >= end or (parted and row > at):
                end = min(end, row)
                break
            blocks.append(Block(row - at, measured=True))
            at = row + 1
            if self._is_validated(member, row):
                return blocks
        room = len(blocks) < self.program.most_blocks and not (parted and blocks)
        if at < end and room:
            blocks.append(Block(end - at, measured=False))
        return blocks

    def _is_validated(self, member: Member, row: int) -> bool:
        """Whether validation is due after the step of a row."""
        return row >= member.next_validation or row == self.trainer.steps - 1

    # Making it.

    def _make(self, plans: dict[int, list[Block]]) -> None:
        """Make a stretch; its rows are handed over later."""
        begin = {i: self.members[i].done for i in plans}
        call = _Call(plans, begin, self._look_closely(begin))
        steps = {i: sum(block.steps for block in blocks) for i, blocks in plans.items()}
        kept = self._kept(plans)
        if kept is not self.clock.mixed:  # nothing beside the steps while they are timed
            self._hand_over()
        began = self.now()
        self.program.send(plans)
        self._hand_over()
        call.landed, self.made = self.program.land(), call
        seconds, most = self.now() - began, max(steps.values())
        for i, count in steps.items():
            self.members[i].done += count
        kept.append((seconds, most))
        self.others = 0 if kept is self.clock.probed else self.others + 1
        limit = min(STEPS, max(1, round(SECONDS * most / max(seconds, 1e-6))))
        self.limit = self.steps.mesh.agree(limit)

    def _kept(self, plans: Mapping[int, list[Block]]) -> list[tuple[float, int]]:
        """Where the clock keeps the time of a call that makes so much."""
        blocks = [block for blocks in plans.values() for block in blocks]
        if not any(block.measured for block in blocks) and self._compares(probed=False):
            return self.clock.plain
        if all(block.measured and not block.plain for block in blocks) and self._compares(
            probed=True
        ):
            return self.clock.probed
        return self.clock.mixed

    def _look_closely(self, begin: Mapping[int, int]) -> Mapping[int, Measured]:
        """What the close probes measure of the members that are due, before their step is made."""
        due = [i for i, step in begin.items() if step in self.close_steps]
        if not due:
            return {}
        began = self.now()
        measured = self.program.measure(due)
        self.clock.close.append(self.now() - began)
        return measured

    def _validate(self) -> None:
        """Validation scores of those that are due, of the parameters after the last call."""
        assert self.made is not None
        assert self.made.landed is not None
        rows = {
            i: self.members[i].done - 1
            for i, blocks in self.made.plans.items()
            if i in self.training and blocks[-1].measured and self.made.landed.alive[i]
        }
        due = {i: row for i, row in rows.items() if self._is_validated(self.members[i], row)}
        if not due:
            return
        self.made.scores = self.program.score("val", list(due))
        for i, scores in self.made.scores.items():
            member = self.members[i]
            member.next_validation = due[i] + self.trainer.eval_every
            if member.best is None or scores["loss"] < member.best.loss:
                params, variables = self.program.state(i).values
                member.best = Best(scores["loss"], due[i], params, scores, variables)

    # Its rows.

    def _hand_over(self) -> None:
        """Hand on the rows of the last call that has landed, if that is still to do."""
        call, self.made = self.made, None
        if call is None or call.landed is None:
            return
        stretches = call.landed.stretches()
        for i, blocks in call.plans.items():
            step, last = call.begin[i], len(blocks) - 1
            for n, (reports, seen) in enumerate(stretches[i].by_block(blocks)):
                step += blocks[n].steps
                if step > call.landed.step[i] or i not in self.training:
                    break
                self.members[i].since = self.members[i].since.then(reports)
                if blocks[n].measured:
                    closely = call.closely.get(i, {}) if n == 0 else {}
                    scores = call.scores.get(i, {}) if n == last else {}
                    self._row(i, step - 1, Report(*reports[-1]), seen | closely, scores)

    def _row(
        self, index: int, step: int, report: Report, seen: Measured, scores: Mapping[str, float]
    ) -> None:
        """Hand on the row of a step."""
        member = self.members[index]
        scalars = self._of_steps(member.since)
        scalars["train/grad_norm"] = float(report.grad_norm)
        scalars |= {f"val/{name}": value for name, value in scores.items()}
        member.since = NOTHING
        self._log(index, Row(step, scalars, seen))

    def _of_steps(self, since: Since) -> dict[str, float]:
        """Means over the steps since the last row."""
        means = since.means
        found = {"train/loss": means["loss"]}
        if self.steps.optimizer.clips:
            found["train/clip_rate"] = means["clipped"]
        if self.steps.regularizer is not None:
            found["train/penalty"] = means["penalty"]
        return found

    # Ending.

    def _asked_to_end(self) -> bool:
        """Whether the runs were asked to end; keeps their positions when that is due."""
        every = self.trainer.checkpoint_seconds
        signal = self.steps.mesh.agree(self.interruption.signal)
        self.interruption.signal = signal or self.interruption.signal
        if every is not None and self.now() - self.saved >= every and not signal:
            self._hand_over()
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
        self._hand_over()
        self._save()
        self.end(
            {
                i: Outcome("interrupted", f"interrupted at step {member.done}{self.interruption}")
                for i, member in self.training.items()
            }
        )

    def _end_diverged(self) -> None:
        assert self.made is not None
        assert self.made.landed is not None
        alive = self.made.landed.alive
        dead = [i for i in self.training if not alive.get(i, True)]
        if not dead:
            return
        self._hand_over()
        # Their states wait at the step that was not finite, so that it can be looked into.
        self.program.send({i: [Block(0, measured=True)] for i in dead})
        seen = self.program.land().stretches()
        closely = self.program.measure(dead)
        for i in dead:
            measured = {name: array[0] for name, array in seen[i].rows.items()}
            self._log(i, Row(self.program.step(i), {}, measured | closely[i]))
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
