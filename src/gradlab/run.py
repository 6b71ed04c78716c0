"""An experiment from its first step to its verdict, alone or as one of a population."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

import jax

from gradlab.errors import BadInput, CannotRecord
from gradlab.experiment import Experiment, build_steps
from gradlab.record.base import Outcome, Sink, crashed
from gradlab.recording import Recording, key_of
from gradlab.training.checkpoint import Position, from_bytes
from gradlab.training.interruption import Interruption
from gradlab.training.loop import Member, train
from gradlab.training.population import AtOnce, Population, Untraceable, numbers_of, together
from gradlab.training.program import Solo
from gradlab.training.step import Steps

Company = Callable[[Position | None], AbstractContextManager[None]]

T = TypeVar("T")


def run(
    experiment: Experiment,
    folder: Path,
    sinks: Sequence[Sink],
    *,
    resume: bool = False,
    figures: bool = True,
    company: Company = nullcontext,
) -> Outcome:
    """Run an experiment in ``folder`` and show it to ``sinks``.

    The run directory is written besides, and the figures are drawn before the sinks are closed.

    Args:
      experiment: its parts.
      folder: the run directory.
      sinks: further places for the measurements; what goes wrong there is logged and ends nothing.
      resume: resume the run in ``folder`` from its last checkpoint.
      figures: whether to draw ``figures/*.png``.
      company: from the position where the run begins, what to hold while it trains: the other
        processes that it is spread over do the same within it, see :func:`take_part`.

    Raises:
      BadInput: before anything is recorded, for parts that do not fit together, or that do not fit
        the run that is to be resumed.
      CannotRecord: if the run directory can no longer be written to. What is in it stays.
    """
    recording = Recording(experiment, folder, sinks, resume=resume)
    with Interruption() as interruption:
        recording.open()
        outcome, error = Outcome("crashed", "ended before the first step"), None
        try:
            member = recording.member()
            with company(recording.position):
                _train(experiment, recording.steps, recording.key, member, interruption)
            outcome, error = member.outcome or outcome, member.error
            outcome.signal = interruption.signal
        except KeyboardInterrupt as asked:
            outcome = Outcome("interrupted", str(asked) or "interrupted before the first step")
        except BaseException as fault:
            outcome = crashed(fault)
            raise
        finally:
            _end(recording, outcome, figures=figures)
    if error is not None:
        raise error
    return outcome


def take_part(experiment: Experiment, position: bytes, interruption: Interruption) -> None:
    """Make the steps of a run that another process leads and records.

    Args:
      experiment: as there.
      position: where it begins, from :func:`gradlab.training.checkpoint.to_bytes`; empty: at the
        start.
      interruption: asks all of them to end.
    """
    steps = build_steps(experiment)
    key = key_of(experiment)
    at = from_bytes(position, steps.start(key)) if position else None
    _train(experiment, steps, key, Member([], at), interruption)


def _train(
    experiment: Experiment,
    steps: Steps,
    key: jax.Array,
    member: Member,
    interruption: Interruption,
) -> None:
    """Train a single run."""
    trainer, close = experiment.trainer, experiment.close
    program = Solo(steps, key, trainer.eval_batch)
    program.compile()
    train(trainer, program, [member], close=close, interruption=interruption)


def _end(recording: Recording, outcome: Outcome, *, figures: bool) -> None:
    """Close everything; the measurements are safe before anything is drawn from them."""
    try:
        recording.close(outcome, recording.parts(figures=figures))
    finally:
        recording.finish(outcome)


class Crew(Protocol):
    """Who is told what becomes of the members of a population."""

    def ended(self, recording: Recording, outcome: Outcome) -> None:
        """A run has ended; the others may go on. To close its recording is the crew's business."""
        ...

    def refused(self, recording: Recording, error: BadInput) -> None:
        """A run cannot begin."""
        ...


def groups(recordings: Sequence[Recording]) -> list[list[Recording]]:
    """Runs that can be trained together: they have the same loop, and programs that are alike."""
    return grouped(recordings, _fit)


def run_together(
    recordings: Sequence[Recording],
    crew: Crew,
    interruption: Interruption,
    *,
    at_once: AtOnce = None,
) -> None:
    """Train runs of one group in one compiled program.

    Where some of the numbers that they differ in turn out to decide what the program is, it is one
    program for each value.

    Args:
      recordings: of the runs, not yet opened.
      crew: is told of every run, once.
      interruption: asks all of them to end.
      at_once: as for :class:`gradlab.training.population.Population`.
    """
    trainer = recordings[0].experiment.trainer
    steps, keys = [one.steps for one in recordings], [one.key for one in recordings]
    try:
        population = Population(steps, keys, trainer.eval_batch, at_once=at_once)
        population.compile()
    except Untraceable as fixed:
        for some in grouped(recordings, _agree_on(fixed.paths)):
            run_together(some, crew, interruption, at_once=at_once)
        return
    except BadInput as error:
        for one in recordings:
            crew.refused(one, error)
        return
    close = recordings[0].experiment.close
    try:
        members = [_joined(one, crew, interruption) for one in recordings]
        train(trainer, population, members, close=close, interruption=interruption)
    except BaseException as fault:
        for one in recordings:
            if one.is_open:
                crew.ended(one, crashed(fault))
        raise


def _joined(recording: Recording, crew: Crew, interruption: Interruption) -> Member:
    """A run as a member; one that cannot begin after all has ended already."""

    def ended(outcome: Outcome) -> None:
        outcome.signal = interruption.signal if outcome.status == "interrupted" else 0
        crew.ended(recording, outcome)

    try:
        recording.open()
    except (BadInput, CannotRecord) as error:
        absent = Member([])
        absent.outcome = crashed(error)
        if isinstance(error, BadInput):
            crew.refused(recording, error)
        else:
            crew.ended(recording, absent.outcome)
        return absent
    return recording.member(ended)


def grouped(items: Sequence[T], fit: Callable[[T, T], bool]) -> list[list[T]]:
    """Items in groups of those that fit together, in order of their first ones."""
    groups: list[list[T]] = []
    for item in items:
        home = next((group for group in groups if fit(group[0], item)), None)
        if home is None:
            groups.append([item])
        else:
            home.append(item)
    return groups


def _fit(one: Recording, other: Recording) -> bool:
    ours, theirs = one.experiment, other.experiment
    same_loop = ours.trainer == theirs.trainer and ours.close == theirs.close
    return same_loop and together(one.steps, other.steps)


def _agree_on(paths: set[str]) -> Callable[[Recording, Recording], bool]:
    def agree(one: Recording, other: Recording) -> bool:
        ours, theirs = numbers_of(one.steps), numbers_of(other.steps)
        return all(ours[path] == theirs[path] for path in paths)

    return agree
