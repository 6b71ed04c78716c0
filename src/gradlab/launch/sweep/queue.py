"""``hydra/launcher=slurm`` and ``local``: submitit's launchers, for jobs that may die one by one.

submitit's own end the sweep with the first job that dies and leave its siblings alone; these wait
for every job, and a dead one is a failed job like any other.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import OmegaConf

from gradlab.errors import whole_number
from gradlab.launch.session import tell
from gradlab.launch.sweep.elsewhere import Ended
from gradlab.launch.sweep.notes import Note, leave_note


class Queue(submitit_launcher.BaseSubmititLauncher):
    """Submits the jobs of a batch and waits for all of them. Options are those of submitit's."""

    system = ""  # whose word on a job that has died is passed on
    grace = 15.0  # seconds in which a slow file system may bring a result

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """See Hydra.

        Raises:
          BadInput: for options that cannot be.
        """
        assert self.config is not None
        for key in ("cpus_per_task", "timeout_min", "array_parallelism"):
            if (value := self.params.get(key)) is not None:
                whole_number(f"hydra.launcher.{key}", value, 1)
        self.sweep = Path(str(self.config.hydra.sweep.dir)).absolute()
        self.sweep.mkdir(parents=True, exist_ok=True)
        calls = [
            (list(overrides), "hydra.sweep.dir", number, f"{number}", Singleton.get_state())
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        jobs = self._submit(self._executor(), calls)
        try:
            return self._wait(jobs, calls)
        except KeyboardInterrupt:
            self._let_go(jobs)
            raise

    def _executor(self) -> Any:
        import submitit

        options = dict(self.params)
        folder, retries = options.pop("submitit_folder"), options.pop("max_num_timeout", None)
        # Results come back pickled: from a place that nobody could foresee who sent the folder.
        folder = Path(folder).parent / secrets.token_hex(8) / Path(folder).name
        first = {} if retries is None else {f"{self._EXECUTOR}_max_num_timeout": retries}
        executor = submitit.AutoExecutor(folder=folder, cluster=self._EXECUTOR, **first)
        shared = set(OmegaConf.structured(BaseQueueConf))
        executor.update_parameters(
            **{k if k in shared else f"{self._EXECUTOR}_{k}": v for k, v in options.items()}
        )
        return executor

    def _submit(self, executor: Any, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        return executor.map_array(self, *zip(*calls, strict=True))

    def _wait(self, jobs: Sequence[Any], calls: Sequence[tuple[Any, ...]]) -> list[JobReturn]:
        """What each job gives back; a failure for one that has died."""
        found: dict[int, JobReturn] = {}
        without: dict[int, float] = {}  # when a job was first seen to have ended without a result
        while True:
            for i, job in enumerate(jobs):
                if i in found:
                    continue
                if job.paths.result_pickle.exists():
                    found[i] = self._result(job, calls[i])
                elif not job.done():
                    without.pop(i, None)
                elif time.monotonic() - without.setdefault(i, time.monotonic()) > self.grace:
                    job.watcher.clear()  # it remembers for good what it once took for the end
                    if job.done(force_check=True) and not job.paths.result_pickle.exists():
                        found[i] = self._failure(job, calls[i], "no result")
            if len(found) == len(jobs):
                return [found[i] for i in range(len(jobs))]
            time.sleep(0.2)

    def _result(self, job: Any, call: tuple[Any, ...]) -> JobReturn:
        from submitit.core.utils import FailedJobError

        try:
            return job.results()[0]
        except FailedJobError as error:  # outside of the job itself, such as in an import
            lines = [line for line in str(error).splitlines() if line.strip(" -")]
            reason = next((line for line in reversed(lines) if re.match(r"[\w.]+: ", line)), "")
            return self._failure(job, call, reason or "no result")

    def _failure(self, job: Any, call: tuple[Any, ...], what: str) -> JobReturn:
        overrides, _, number, *_ = call
        log = os.path.relpath(job.paths.stderr)
        state = f" ({self.system}: {job.state})" if self.system else ""
        reason = f"ended with {what}{state}; its log: {log}"
        leave_note(self.sweep, Note(number, reason))
        failed = JobReturn(status=JobStatus.FAILED, overrides=overrides)
        failed.return_value = Ended(reason)
        return failed

    def _let_go(self, jobs: Sequence[Any]) -> None:
        """Nobody waits for the jobs any longer."""


class SlurmQueue(Queue, submitit_launcher.SlurmLauncher):
    """Jobs of Slurm, in one array."""

    system = "Slurm"

    def _let_go(self, jobs: Sequence[Any]) -> None:
        names = sorted({job.job_id.partition("_")[0] for job in jobs})
        tell(f"the jobs go on; scancel {' '.join(names)} ends them")


class LocalQueue(Queue, submitit_launcher.LocalLauncher):
    """Processes of this machine, as many at once as ``cpus_per_task`` leaves room for."""

    grace = 1.0

    def _submit(self, executor: Any, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        at_once = max(1, (os.cpu_count() or 1) // (self.params.get("cpus_per_task") or 1))
        jobs: list[Any] = []
        for call in calls:
            while sum(not job.done() for job in jobs) >= at_once:
                time.sleep(0.1)
            jobs.append(executor.submit(self, *call))
        return jobs
