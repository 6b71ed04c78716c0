"""A job: from a composed configuration to a run, and from its outcome to what Hydra is told."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradlab.errors import visible
from gradlab.launch.build import build, plain
from gradlab.launch.objective import Worth, lacking, objective_of
from gradlab.launch.resume import earlier_run, has_ended, requeued
from gradlab.launch.session import occupied, session, shown, tell

if TYPE_CHECKING:
    from gradlab.experiment import Experiment
    from gradlab.record.base import Outcome


@dataclass(frozen=True)
class Job:
    """A run that could begin.

    Attributes:
      name: of a job of a sweep, e.g. ``"job 3 (seed=3)"``; empty for a single run.
      folder: the run directory.
      experiment: the parts.
      parts: what it was built from, see :func:`gradlab.launch.build.build`.
      resume: whether the run in ``folder`` is resumed.
      ended: of a run that is not to be trained any more, the summary that it recorded.
      left: what of such a run is still to be made, and will be.
    """

    name: str
    folder: Path
    experiment: Experiment
    parts: Mapping[str, Any]
    resume: bool
    ended: Mapping[str, Any] | None
    left: Sequence[str] = ()


def prepare(cfg: DictConfig, folder: Path, name: str = "") -> Job:
    """What a composed configuration asks for.

    Args:
      cfg: as composed.
      folder: the run directory.
      name: of a job of a sweep.

    Raises:
      BadInput: if it cannot be.
    """
    config, hydra_config = plain(cfg), HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and config["record"]["wandb"]["group"] is None:
        config["record"]["wandb"]["group"] = Path(hydra_config.sweep.dir).name
    overrides = _said(hydra_config.overrides.task)
    session.company.check(config)
    choices = {str(group): option for group, option in hydra_config.runtime.choices.items()}
    again = requeued() or session.has_begun(folder)
    # Before anything is built, which imports what the configuration names.
    earlier = earlier_run(config, folder, again=again)
    if earlier is None and (folder / "run.json").exists():
        raise occupied("hydra.sweep.dir", folder)
    experiment = build(config, choices, overrides)
    ended, left = None, []
    if earlier is not None and has_ended(earlier, config):
        from gradlab.record.finish import in_words, parts_of

        left = [part for part in earlier.left if part in parts_of(config["record"])]
        what = f"{in_words(left)} left to do" if left else "nothing left to do"
        print(f"{visible(earlier.info['reason'] or earlier.status)}: {what}")
        print(f"run directory: {shown(folder)}")
        ended = earlier.summary
    parts = {"config": config, "choices": choices, "overrides": overrides}
    return Job(name, folder, experiment, parts, earlier is not None, ended, left)


def _said(overrides: ListConfig) -> list[str]:
    """What was said on the command line, with what ``${...}`` stands for if that can be told."""
    said: list[str] = []
    for number in range(len(overrides)):
        try:
            said.append(overrides[number])
        except OmegaConfBaseException:  # relative to a place where it does not stand here
            said.append(OmegaConf.to_container(overrides)[number])
    return said


def perform(job: Job) -> Worth:
    """Run a job by itself, and show what came of it; gives what a sweeper is told."""
    record = job.experiment.config["record"]
    if job.ended is not None:
        if job.left:
            _finish(job)
        return worth(job, job.ended)
    from gradlab.record.sinks import sinks_of
    from gradlab.run import run

    sinks, wandb = sinks_of(record, job.folder)
    figures, company = record["figures"], session.company.lead(**job.parts)
    outcome = run(
        job.experiment, job.folder, sinks, resume=job.resume, figures=figures, company=company
    )
    print(f"\nrun directory: {shown(job.folder)}")
    _show_made(job, wandb.how_to_see(), figures=figures)
    obey(outcome)
    return worth(job, figures_of(outcome))


def _finish(job: Job) -> None:
    """Do what is left of a run that is not to be trained any more."""
    from gradlab.record.finish import FIGURES, finish, in_words

    done, left, on_wandb = finish(job.folder, job.experiment.config["record"], again=True)
    _show_made(job, on_wandb, figures=FIGURES in done)
    if done:
        print(f"{in_words(done)} done")
    if still := [part for part in job.left if part in left]:
        print(f"{in_words(still)} still left to do", file=sys.stderr)


def _show_made(job: Job, on_wandb: str, *, figures: bool) -> None:
    if figures:
        for picture in sorted((job.folder / "figures").glob("*.png")):
            print(f"  figure: {shown(picture)}")
    if on_wandb:
        print(f"W&B: {on_wandb}")


def figures_of(outcome: Outcome) -> dict[str, Any]:
    """All that a run can be judged by."""
    return {"status": outcome.status, **outcome.timings, **outcome.summary}


def worth(job: Job, figures: Mapping[str, Any]) -> Worth:
    """The objective of a run that has ended; says so if it has none of that name."""
    wanted = job.experiment.config["objective"]
    message = lacking(wanted, figures)
    if message and figures["status"] == "finished":
        tell(message)
    return objective_of(wanted, figures)


def obey(outcome: Outcome) -> None:
    """End as the signal that interrupted a run asks, now that everything is saved.

    A launcher's own handler has its turn: submitit's asks for the job to be queued again.
    """
    if outcome.status != "interrupted":
        return
    number = outcome.signal
    handler = signal.getsignal(number) if number else None
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)
    sys.exit(128 + (number or signal.SIGINT))


_collected: list[Job] | None = None


@contextmanager
def collecting() -> Iterator[list[Job]]:
    """Within it jobs are put into a list instead of being run, one after another."""
    global _collected
    _collected = []
    try:
        yield _collected
    finally:
        _collected = None


def run_or_collect(job: Job) -> Worth:
    """Run a job, unless a launcher is :func:`collecting` them."""
    if _collected is None:
        return perform(job)
    _collected.append(job)
    return float("nan")
