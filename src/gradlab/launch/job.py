"""A job: from a composed configuration to a run, and from its outcome to what Hydra is told."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradlab.launch.build import build, plain
from gradlab.launch.objective import Worth, lacking, objective_of
from gradlab.launch.resume import earlier_run, has_ended, requeued
from gradlab.launch.session import occupied, session, shown

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
      ended: of a run with nothing left to do, the summary that it recorded.
    """

    name: str
    folder: Path
    experiment: Experiment
    parts: Mapping[str, Any]
    resume: bool
    ended: Mapping[str, Any] | None


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
    experiment = build(config, choices, overrides)
    again = requeued() or session.has_begun(folder)
    earlier = earlier_run(config, folder, again=again)
    if earlier is None and (folder / "run.json").exists():
        raise occupied("hydra.sweep.dir", folder)
    ended = None
    if earlier is not None and has_ended(earlier, config):
        print(f"{earlier.info['reason'] or earlier.status}: nothing left to do")
        print(f"run directory: {shown(folder)}")
        ended = earlier.summary
    parts = {"config": config, "choices": choices, "overrides": overrides}
    return Job(name, folder, experiment, parts, earlier is not None, ended)


def _said(overrides: Any) -> list[str]:
    """What was said on the command line, with what ``${...}`` stands for if that can be told."""
    said: Any = OmegaConf.to_container(overrides)
    for number in range(len(said)):
        with suppress(OmegaConfBaseException):  # relative to a place where it does not stand here
            said[number] = overrides[number]
    return said


def perform(job: Job) -> Worth:
    """Run a job by itself, and show what came of it; gives what a sweeper is told."""
    if job.ended is not None:
        return worth(job, job.ended)
    from gradlab.record.sinks import sinks_of
    from gradlab.run import run

    record = job.experiment.config["record"]
    sinks, wandb = sinks_of(record, job.folder)
    figures, company = record["figures"], session.company.lead(**job.parts)
    outcome = run(
        job.experiment, job.folder, sinks, resume=job.resume, figures=figures, company=company
    )
    print(f"\nrun directory: {shown(job.folder)}")
    if figures:
        for picture in sorted((job.folder / "figures").glob("*.png")):
            print(f"  figure: {shown(picture)}")
    if wandb.how_to_see():
        print(f"W&B: {wandb.how_to_see()}")
    obey(outcome)
    return worth(job, figures_of(outcome))


def figures_of(outcome: Outcome) -> dict[str, Any]:
    """All that a run can be judged by."""
    return {"status": outcome.status, **outcome.timings, **outcome.summary}


def worth(job: Job, figures: Mapping[str, Any]) -> Worth:
    """The objective of a run that has ended; says so if it has none of that name."""
    wanted = job.experiment.config["objective"]
    message = lacking(wanted, figures)
    if message and figures["status"] == "finished":
        print(f"gradlab: {message}", file=sys.stderr)
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
