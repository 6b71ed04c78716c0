"""An experiment from its first step to its verdict, alone or as one of a population."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from gradlab.errors import BadInput
from gradlab.experiment import Experiment
from gradlab.interruption import Interruption
from gradlab.population import Population, Untraceable, numbers_of, together
from gradlab.program import Solo
from gradlab.record.base import Outcome, Sink
from gradlab.recording import Recording, crashed
from gradlab.train import train

Ended = Callable[[Recording, Outcome], None]
T = TypeVar("T")


def run(
    experiment: Experiment,
    folder: Path,
    sinks: Sequence[Sink],
    *,
    resume: bool = False,
    figures: bool = True,
) -> Outcome:
    """Run an experiment in ``folder`` and show it to ``sinks``.

    The run directory is written besides, and the figures are drawn before the sinks are closed.

    Args:
      experiment: its parts.
      folder: the run directory.
      sinks: further places for the measurements; what goes wrong there is logged and ends nothing.
      resume: go on with the run in ``folder``, from its last checkpoint.
      figures: whether to draw ``figures/*.png``.

    Raises:
      BadInput: before anything is recorded, for parts that do not fit together, or that do not fit
        the run that is to be gone on with.
      CannotRecord: if the run directory can no longer be written to. What is in it stays.
    """
    recording = Recording(experiment, folder, sinks, resume=resume)
    with Interruption() as interruption:
        recording.open()
        outcome, error = Outcome("crashed", "ended before the first step"), None
        try:
            member = recording.member()
            program = Solo(recording.steps, recording.key, experiment.trainer.eval_batch)
            train(
                experiment.trainer,
                program,
                [member],
                close=experiment.close,
                interruption=interruption,
            )
            outcome, error = member.outcome or outcome, member.error
            outcome.signal = interruption.signal
        except KeyboardInterrupt:
            outcome = Outcome("interrupted", "interrupted before the first step")
        except BaseException as fault:
            outcome = crashed(fault)
            raise
        finally:
            _end(recording, outcome, figures=figures)
    if error is not None:
        raise error
    return outcome


def _end(recording: Recording, outcome: Outcome, *, figures: bool) -> None:
    """Close everything; the measurements are safe before anything is drawn from them."""
    safe = False
    try:
        recording.close(outcome)
        safe = True
    finally:
        recording.finish(outcome, figures=figures and safe)


class Party(NamedTuple):
    """Runs that share a compiled program, and that program.

    Attributes:
      recordings: of each run.
      population: the program.
    """

    recordings: list[Recording]
    population: Population


def parties(
    recordings: Sequence[Recording], at_once: int | None = None
) -> Iterator[Party | tuple[list[Recording], BadInput]]:
    """Runs in as few parties as they can be trained in, each made when it is asked for.

    Runs go together whose trainers and looks are the same, and whose programs differ in numbers
    only.

    Args:
      recordings: of the runs.
      at_once: as for :class:`gradlab.population.Population`.

    Yields:
      Parties; instead of one whose members do not fit into memory, they and why.
    """
    for group in grouped(recordings, _fit):
        pending = [group]
        while pending:
            some = pending.pop(0)
            try:
                population = Population(
                    [one.steps for one in some],
                    [one.key for one in some],
                    some[0].experiment.trainer.eval_batch,
                    at_once=at_once,
                )
            except Untraceable as fixed:
                pending = [*grouped(some, _agree_on(fixed.paths)), *pending]
            except BadInput as refusal:
                yield some, refusal
            else:
                yield Party(some, population)


def train_party(party: Party, interruption: Interruption, ended: Ended) -> None:
    """Train the members of a party; all of them have been opened.

    Args:
      party: from :func:`parties`.
      interruption: asks all to end.
      ended: called with a member and its outcome as soon as there is one.
    """

    def close(recording: Recording, outcome: Outcome) -> None:
        outcome.signal = interruption.signal if outcome.status == "interrupted" else 0
        ended(recording, outcome)

    members = [one.member(functools.partial(close, one)) for one in party.recordings]
    experiment = party.recordings[0].experiment
    try:
        train(
            experiment.trainer,
            party.population,
            members,
            close=experiment.close,
            interruption=interruption,
        )
    except BaseException as fault:
        for one, member in zip(party.recordings, members, strict=True):
            if member.outcome is None:
                ended(one, crashed(fault))
        raise


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
