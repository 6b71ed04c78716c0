"""``hydra/launcher=population``: the jobs of a sweep trained together.

The jobs are composed one after another, as Hydra's own launcher would; then those that can share a
compiled program are trained in it, and each is recorded as if it had run alone. Figures, and what
is kept for W&B offline, are made from the run directories, in processes beside the training.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from gradlab.errors import BadInput, CannotRecord, whole_number
from gradlab.launch.cores import cores, use_cores
from gradlab.launch.job import Job, collecting, figures_of, obey, worth
from gradlab.launch.objective import Worth
from gradlab.launch.session import session

if TYPE_CHECKING:
    from gradlab.experiment import Experiment
    from gradlab.record.base import Description, Outcome, Row
    from gradlab.record.finish import Finished, Finisher
    from gradlab.record.progress import SweepProgress
    from gradlab.recording import Recording
    from gradlab.training.interruption import Interruption
    from gradlab.training.population import AtOnce


SILENT = 30
"""Jobs that are composed without a word; more take longer than one likes to wait in silence."""


class PopulationLauncher(Launcher):
    """A Hydra launcher that trains the jobs of a batch together.

    Args:
      at_once: how many members of a device go through an operation together; None: one on a CPU,
        on an accelerator as many as its memory holds; ``"measure"``: one or all, whichever turns
        out to be faster.
      workers: how many processes draw figures and write W&B's files; None: one for each core.
      max_members: a larger sweep is refused before it begins, see
        :func:`gradlab.launch.sweep.size.check_size`.
    """

    def __init__(self, at_once: AtOnce = None, workers: int | None = None, max_members: int = 1000):
        self.at_once: AtOnce = at_once
        self.workers, self.max_members = workers, max_members

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """See Hydra."""
        self.context, self.task_function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """See Hydra.

        Raises:
          BadInput: for options that cannot be.
        """
        self._check()
        from gradlab.record.finish import Finisher, parts_of

        many = cores()
        with Finisher(self.workers or many) as finisher:
            if parts_of(self.config.record):
                finisher.begin()  # while this process imports and composes
            use_cores(many)
            if len(job_overrides) > SILENT:
                print(f"composing {len(job_overrides)} jobs", flush=True)
            ends = _Ends(self.context.callbacks)
            composed = [
                self._compose(overrides, initial_job_idx + i, ends)
                for i, overrides in enumerate(job_overrides)
            ]
            crew = _Crew([job for _, job in composed if job is not None], finisher)
            crew.work(self.at_once)
        for returned, job in composed:
            returned.status = JobStatus.COMPLETED
            returned.return_value = float("nan") if job is None else crew.told(job)
            ends.pass_on(returned)
        if crew.interrupted is not None:
            obey(crew.interrupted)
        return [returned for returned, _ in composed]

    def _check(self) -> None:
        for key in ("at_once", "workers", "max_members"):
            value = getattr(self, key)
            if value is not None and (key, value) != ("at_once", "measure"):
                others = ", measure, or null" if key == "at_once" else ""
                whole_number(f"hydra.launcher.{key}", value, 1, otherwise=others)

    def _compose(
        self, overrides: Sequence[str], number: int, ends: _Ends
    ) -> tuple[JobReturn, Job | None]:
        """One job, composed and checked; None in its place if it is refused."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        callbacks: Any = ends
        with collecting() as collected:
            returned = run_job(
                hydra_context=HydraContext(self.context.config_loader, callbacks),
                task_function=self.task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        _ = returned.return_value  # raises what was raised, unless it was a refusal
        return returned, collected[0] if collected else None


class _Ends:
    """Hydra's callbacks, with the end of each job held back until it has really ended."""

    def __init__(self, callbacks: Any):
        self.callbacks = callbacks
        self.waiting: list[DictConfig] = []

    def on_job_start(self, config: DictConfig, **more: Any) -> None:
        """Passed on."""
        self.callbacks.on_job_start(config=config, **more)

    def on_job_end(self, config: DictConfig, **_: Any) -> None:
        """Held back: so far the job is only composed."""
        self.waiting.append(copy.copy(config))

    def pass_on(self, returned: JobReturn) -> None:
        """The next job, in order, has ended."""
        self.callbacks.on_job_end(config=self.waiting.pop(0), job_return=returned)


class _Crew:
    """Has jobs trained together, shows how far they are, and has them finished elsewhere.

    Attributes:
      interrupted: the outcome of a run that a signal has interrupted.
    """

    def __init__(self, jobs: Sequence[Job], finisher: Finisher):
        from gradlab.record.progress import SweepProgress

        self.jobs, self.finisher = [job for job in jobs if job.ended is None], finisher
        self._told = {job.folder: worth(job, job.ended) for job in jobs if job.ended is not None}
        self.interrupted: Outcome | None = None
        steps = [job.experiment.trainer.steps for job in self.jobs]
        self.progress = SweepProgress([job.name for job in self.jobs], steps)
        self.index = {job.folder: i for i, job in enumerate(self.jobs)}
        self.finishing: list[tuple[Job, Future[Finished]]] = []
        for job in jobs:
            if job.left:
                self._finish(job, job.experiment.config["record"], again=True)

    def told(self, job: Job) -> Worth:
        """What a sweeper is told of a job."""
        return self._told.get(job.folder, float("nan"))

    def work(self, at_once: AtOnce) -> None:
        """Train every job that is to be trained, and wait until each has been finished."""
        if not self.jobs and not self.finishing:
            return
        from gradlab.training.interruption import Interruption

        with Interruption() as interruption, self.progress if self.jobs else nullcontext():
            if self.jobs:
                self._train(interruption, at_once)
            for job, work in self.finishing:
                self._wait(job, work)

    def _train(self, interruption: Interruption, at_once: AtOnce) -> None:
        from gradlab.run import groups, run_together

        parts = groups(self._recordings())
        self._say_what_divides(parts)
        for part in parts:
            if interruption:
                break
            for recording in part:
                self.progress.show(self.index[recording.folder], "compiling", 0)
            run_together(part, self, interruption, at_once=at_once)

    def _wait(self, job: Job, work: Future[Finished]) -> None:
        try:
            work.result()
        except (BadInput, CannotRecord) as error:
            session.fail_job(job.name, error)
        except BrokenExecutor:
            reason = "a process that finishes runs was ended from outside"
            session.fail_job(job.name, CannotRecord(str(job.folder), reason))

    def _recordings(self) -> list[Recording]:
        """Of the jobs that can begin."""
        from gradlab.recording import Recording

        ready = []
        for i, job in enumerate(self.jobs):
            try:
                sinks = [_Shown(self.progress, i), *_live_sinks(job)]
                member = _whole(job.experiment)
                ready.append(Recording(member, job.folder, sinks, resume=job.resume))
            except BadInput as error:
                self._refuse(job, error)
        return ready

    # What the training tells.

    def refused(self, recording: Recording, error: BadInput) -> None:
        """See :class:`gradlab.run.Crew`."""
        self._refuse(self._job(recording), error)

    def ended(self, recording: Recording, outcome: Outcome) -> None:
        """See :class:`gradlab.run.Crew`; closes the recording and has the run finished."""
        job, record = self._job(recording), recording.experiment.config["record"]
        if outcome.status == "interrupted":
            self.interrupted = outcome
        self._told[job.folder] = worth(job, figures_of(outcome))
        self._show(job, outcome.status, recording)
        from gradlab.record.finish import parts_of

        try:
            recording.close(outcome, parts_of(record))
        except CannotRecord as error:
            self._show(job, "crashed", recording)
            session.fail_job(job.name, error)
            return
        left = recording.directory.left
        recording.release()
        live = _live(record)
        beside = {**record, "wandb": {**record["wandb"], "mode": "disabled"}} if live else record
        work: Future[Any] = Future()
        if any(part in left for part in parts_of(beside)):
            work = self._finish(job, beside)
        else:
            work.set_result(None)
        if live:
            work.add_done_callback(lambda _: self._close_live(job, recording, outcome))

    def _finish(
        self, job: Job, record: Mapping[str, Any], *, again: bool = False
    ) -> Future[Finished]:
        work = self.finisher.finish(job.folder, record, again=again)
        self.finishing.append((job, work))
        return work

    def _close_live(self, job: Job, recording: Recording, outcome: Outcome) -> None:
        try:
            recording.close_sinks(outcome)
        except (BadInput, CannotRecord) as error:
            session.fail_job(job.name, error)

    def _refuse(self, job: Job, error: BadInput) -> None:
        self.progress.show(self.index[job.folder], "refused", 0)
        session.leave_nothing(job.folder, ".hydra")
        session.refuse_job(job.name, error)

    def _job(self, recording: Recording) -> Job:
        return self.jobs[self.index[recording.folder]]

    def _show(self, job: Job, state: str, recording: Recording) -> None:
        row = recording.last.row
        self.progress.show(self.index[job.folder], state, 0 if row is None else row.step)

    def _say_what_divides(self, parts: Sequence[Sequence[Recording]]) -> None:
        """Why one program is not enough, if it is not."""
        if len(parts) < 2:
            return
        sizes = [len(part) for part in parts]
        said = [[_said(one.experiment.overrides) for one in part] for part in parts]
        deciding = [key for key in said[0][0] if _divides(key, said)]
        why = f", divided by {' and '.join(deciding)}" if deciding else ""
        many = f"{sizes[0]} members each" if len(set(sizes)) == 1 else f"{sizes} members"
        self.progress.note(f"{len(parts)} programs of {many}{why}")


def _whole(experiment: Experiment) -> Experiment:
    """The same, where ``trainer.mesh=auto`` splits no batch: the members share the devices out."""
    if experiment.trainer.mesh != "auto":
        return experiment
    trainer = dataclasses.replace(experiment.trainer, mesh=None)
    return dataclasses.replace(experiment, trainer=trainer)


def _said(overrides: Sequence[str]) -> dict[str, str]:
    """``{"model": "rnn", ...}`` of what was said of a job."""
    return {key: value for key, _, value in (one.partition("=") for one in overrides)}


def _divides(key: str, said: Sequence[Sequence[Mapping[str, str]]]) -> bool:
    """Whether all members of a part were told the same of a key, and not all parts were."""
    told = [{one.get(key) for one in part} for part in said]
    return all(len(values) == 1 for values in told) and len(set().union(*told)) > 1


class _Shown:
    """A sink that shows the progress of one member."""

    def __init__(self, progress: SweepProgress, index: int):
        self.progress, self.index = progress, index

    def open(self, description: Description) -> None:
        """The member begins."""
        self.progress.show(self.index, "running", 0)

    def log(self, row: Row) -> None:
        """It has come so far."""
        self.progress.show(self.index, "running", row.step, row.scalars)

    def close(self, outcome: Outcome) -> None:
        """It has ended; :class:`_Crew` shows how."""


def _live(record: Mapping[str, Any]) -> bool:
    """Whether a run is to be seen on W&B's pages while it goes on."""
    return record["wandb"]["mode"] == "online"


def _live_sinks(job: Job) -> list[Any]:
    from gradlab.record.sinks import sinks_of

    record = dict(job.experiment.config["record"])
    if not _live(record):
        return []
    return sinks_of(record | {"tensorboard": False, "terminal": False}, job.folder)[0]
