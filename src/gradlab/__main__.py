"""The command line: compose, check, build, train, report.

``python -m gradlab experiment=NAME [key=value ...]``. Everything heavy is imported inside
functions, so that ``--help`` and ``--cfg job`` answer at once.
"""

from __future__ import annotations

import logging
import os
import sys

# Before numpy: the small factorisations of the close probes come one after another, and threads
# for each of them cost a fifth more on a free machine and twenty times as much on a busy one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Before jax, which takes the size of XLA's pool from it. A factorisation of many matrices waits, on
# a thread of the pool, for parts of itself that want one too: with a thread a core, those of two
# devices waited for each other for ever. With more there are always some that work. A single run,
# which factorises on one device, goes back to a thread a core: that is twice as fast (`_job`).
_own_pool = getattr(sys.modules["__main__"], "_own_pool", "NPROC" not in os.environ)
os.environ.setdefault("NPROC", str(8 * (os.cpu_count() or 1)))
# Before jax, which takes three quarters of a GPU for itself unless told: then of two runs on it one
# ended without memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradlab.errors import BadInput, CannotRecord, LostPeer
from gradlab.launch.conf_files import config_folder
from gradlab.launch.cores import cores_of_job, use_cores
from gradlab.launch.explain import check_flags, explain, why
from gradlab.launch.extras import check_launcher
from gradlab.launch.job import prepare, run_or_collect
from gradlab.launch.multihost import join
from gradlab.launch.objective import Worth
from gradlab.launch.resume import from_agent, requeued, with_resumed
from gradlab.launch.saved import keep_private
from gradlab.launch.session import occupied, refuse, session, shown, tell
from gradlab.launch.sweep import report as sweep_end
from gradlab.launch.sweep.elsewhere import bring_home, tell_losses, watch
from gradlab.launch.sweep.jobs import name_of_job
from gradlab.launch.sweep.size import check_size
from gradlab.record.output import protect

keep_private()  # wherever a job runs: every process that runs one imports this module


def main() -> None:
    """Run the command line. Bad input ends with one message and exit code 2."""
    protect()
    session.renew()
    code = 1
    try:
        _command()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
        raise
    finally:
        session.company.part(code)


def _command() -> None:
    logging.basicConfig(format="gradlab: %(message)s")  # warnings, on standard error
    # Hydra would print its own short traceback; with this it hands the error to us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # jax says at every start on a machine without a TPU that it found none.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    # Hydra logs what cannot be imported before it raises it.
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)
    entry = hydra.main(version_base="1.3", config_path=config_folder(), config_name="config")(job)
    try:
        check_flags(sys.argv[1:])
        sys.argv[1:] = with_resumed(from_agent(sys.argv[1:]))
        session.company = join(sys.argv[1:])
        if session.company.follows:
            sys.exit(session.company.follow())
        entry()
    except BadInput as error:
        refuse(str(error))
    except LostPeer as error:
        tell(error)
        sys.exit(1)
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(130)
    except Exception as error:
        if session.began and (failure := _no_room(error)):
            tell(failure)
            sys.exit(1)
        # Once a job has begun it is a fault of the program, not of what it was given.
        if session.began or session.company.follows:
            raise
        if session.watcher is None or isinstance(error, HydraException | OmegaConfBaseException):
            refuse(explain(error, sys.argv[1:]))
        tell_losses(error)
    else:
        tell_losses()
    finally:
        if session.watcher is not None:
            session.watcher.stop()
        session.leave_nothing(session.sweep, "multirun.yaml")
        sweep_end.report(session.sweep, refused=session.refused, jobs=session.jobs)
    if session.refused:
        count = len(session.refused)
        jobs = "1 job of this sweep was" if count == 1 else f"{count} jobs of this sweep were"
        tell(f"{jobs} refused, see above")
    if session.refused or session.failed:
        sys.exit(1 if session.failed else 2)


def _no_room(error: Exception) -> CannotRecord | None:
    """Of an error that says that a sweep's folder cannot be written to; None of any other."""
    sweep = session.sweep
    if sweep is None or not isinstance(error, OSError) or not isinstance(error.filename, str):
        return None
    inside = Path(error.filename).absolute().is_relative_to(sweep)
    return CannotRecord(shown(sweep), why(error)) if inside else None


class Folders(Callback):
    """A Hydra callback that guards what is there before a run or a sweep makes its folder.

    A folder that holds a run or a sweep is refused, and a refused run leaves nothing behind.
    """

    def __init__(self) -> None:
        self.existed: set[Path] = set()
        self.sweep: Path | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a run directory that holds a run."""
        self._guard(config, "hydra.run.dir", "run.json")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a sweep of no jobs or of far too many, and a folder that holds a sweep."""
        try:
            check_size(config)
            check_launcher(config)
        except BadInput as error:
            refuse(str(error))
        session.sweep = self.sweep = self._guard(config, "hydra.sweep.dir", "multirun.yaml")
        watch(config, session.sweep)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Pass on what is known to the process that runs the job."""
        session.existed |= self.existed
        session.sweep = self.sweep

    def _guard(self, config: DictConfig, key: str, sign: str) -> Path:
        HydraConfig.instance().set_config(config)
        folder = Path(str(OmegaConf.select(config, key))).absolute()
        resumed = OmegaConf.select(config, "trainer.resume") is not None or requeued()
        # A search goes on by itself; it looks whether it is the same.
        resumed |= OmegaConf.select(config, "hydra.sweeper.study_name") is not None
        if (folder / sign).exists() and not resumed:
            refuse(str(occupied(key, folder)))
        self.existed = {path for path in (folder, *folder.parents) if path.exists()}
        if folder.is_dir():
            self.existed |= set(folder.iterdir())
        session.existed |= self.existed
        return folder


def job(cfg: DictConfig) -> Worth:
    """One job of a composed configuration; gives what a sweeper is told of it."""
    session.began = True
    folder = Path(HydraConfig.get().runtime.output_dir)
    return bring_home(lambda: _job(cfg, folder), folder)


def _job(cfg: DictConfig, folder: Path) -> Worth:
    if OmegaConf.select(cfg, "trainer.mesh") == "auto":
        launcher = str(HydraConfig.get().launcher.get("_target_"))
        use_cores(cores_of_job(elsewhere=os.getpid() != session.process, launcher=launcher))
        if _own_pool and HydraConfig.get().mode == RunMode.RUN:
            os.environ["NPROC"] = str(os.cpu_count() or 1)
    try:
        return run_or_collect(prepare(cfg, folder, name_of_job()))
    except (CannotRecord, LostPeer) as error:
        tell(error)
        sys.exit(1)
    except BaseException as error:
        session.leave_nothing(folder, ".hydra")
        if isinstance(error, BadInput):
            return session.refuse_job(name_of_job(), error)
        raise


if __name__ == "__main__":
    # By its own name, so that launchers in other processes and the callback find the same module.
    from gradlab.__main__ import main

    main()
