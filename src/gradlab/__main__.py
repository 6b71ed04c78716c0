"""The command line: compose, check, build, train, report.

``python -m gradlab experiment=NAME [key=value ...]``. Everything heavy is imported inside
functions, so that ``--help`` and ``--cfg job`` answer at once.
"""

from __future__ import annotations

import logging
import os

# Before numpy: the small factorisations of the close probes come one after another, and threads
# for each of them cost a fifth more on a free machine and twenty times as much on a busy one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gradlab.errors import BadInput, CannotRecord, LostPeer
from gradlab.launch.build import build, plain
from gradlab.launch.conf_files import config_folder
from gradlab.launch.explain import check_flags, explain
from gradlab.launch.multihost import Company, join
from gradlab.launch.resume import earlier_run, has_ended, with_resumed


@dataclass
class Session:
    """What this process knows of the command it serves.

    Attributes:
      process: its id; a job that a launcher runs elsewhere finds another one.
      began: whether a job has begun, so that the configuration must have been composed.
      existed: folders that were there before the command and must outlive it.
      sweep: the folder of a sweep, or None.
      refused: names of the jobs of a sweep that were refused.
      company: the other processes of the run, if it is spread over several.
    """

    process: int = field(default_factory=os.getpid)
    began: bool = False
    existed: set[Path] = field(default_factory=set)
    sweep: Path | None = None
    refused: list[str] = field(default_factory=list)
    company: Company = field(default_factory=Company)


session = Session()


def main() -> None:
    """Run the command line. Bad input ends with one message and exit code 2."""
    global session
    session, code = Session(), 1
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
        sys.argv[1:] = with_resumed(sys.argv[1:])
        session.company = join(sys.argv[1:])
        if session.company.follows:
            sys.exit(session.company.follow())
        entry()
    except BadInput as error:
        _refuse(str(error))
    except LostPeer as error:
        print(f"gradlab: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("gradlab: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (
            session.began or session.company.follows
        ):  # a fault of the program, not of what it was given
            raise
        _refuse(explain(error, sys.argv[1:]))
    finally:
        _leave_nothing(session.sweep, "multirun.yaml")
        _scrub(session.sweep)
    if session.refused:
        print(f"gradlab: {_count(session.refused)} refused, see above", file=sys.stderr)
        sys.exit(2)


class Folders(Callback):
    """A Hydra callback that guards what is there before a run or a sweep makes its folder.

    A folder that holds a run or a sweep is refused, and a refused run leaves nothing behind.
    """

    def __init__(self) -> None:
        self.existed: set[Path] = set()

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a run directory that holds a run."""
        self._guard(config, "hydra.run.dir", "run.json")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a folder that holds a sweep."""
        session.sweep = self._guard(config, "hydra.sweep.dir", "multirun.yaml")

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Pass on what is known to the process that runs the job; keep what is private out."""
        session.existed |= self.existed
        _scrub(Path(config.hydra.runtime.output_dir) / ".hydra")

    def _guard(self, config: DictConfig, key: str, sign: str) -> Path:
        HydraConfig.instance().set_config(config)
        folder = Path(str(OmegaConf.select(config, key))).absolute()
        resumed = OmegaConf.select(config, "trainer.resume") is not None
        if (folder / sign).exists() and not resumed:
            _refuse(str(_occupied(key, folder)))
        self.existed = {path for path in (folder, *folder.parents) if path.exists()}
        if folder.is_dir():
            self.existed |= set(folder.iterdir())
        session.existed |= self.existed
        return folder


def job(cfg: DictConfig) -> float:
    """One run of a composed configuration; gives its validation loss, for sweepers."""
    session.began = True
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        outcome = _run(cfg, folder)
    except (CannotRecord, LostPeer) as error:
        print(f"gradlab: {error}", file=sys.stderr)
        sys.exit(1)
    except BaseException as error:
        _leave_nothing(folder, ".hydra")
        if isinstance(error, BadInput):
            return _refuse_job(error)
        raise
    if isinstance(outcome, Mapping):
        return outcome.get("val/loss", float("nan"))
    if outcome.status == "interrupted":
        _obey(outcome.signal)
    return outcome.summary.get("val/loss", float("nan"))


def _run(cfg: DictConfig, folder: Path):
    """The outcome of a run; of one that had ended before, the summary that it recorded."""
    config, hydra_config = plain(cfg), HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    session.company.check(config)
    choices = {str(group): option for group, option in hydra_config.runtime.choices.items()}
    experiment = build(config, choices, overrides)
    earlier = earlier_run(config, folder)
    if earlier is None and (folder / "run.json").exists():
        raise _occupied("hydra.sweep.dir", folder)
    if earlier is not None and has_ended(earlier, config):
        print(f"{earlier.info['reason'] or earlier.status}: nothing left to do")
        print(f"run directory: {_shown(folder)}")
        return earlier.summary
    from gradlab.experiment import run

    record = experiment.config["record"]
    sinks, wandb = _sinks(record, folder)
    resume = earlier is not None
    company = session.company.lead(config=config, choices=choices, overrides=overrides)
    outcome = run(
        experiment, folder, sinks, resume=resume, figures=record["figures"], company=company
    )
    print(f"\nrun directory: {_shown(folder)}")
    if record["figures"]:
        for picture in sorted((folder / "figures").glob("*.png")):
            print(f"  figure: {_shown(picture)}")
    if wandb.how_to_see():
        print(f"W&B: {wandb.how_to_see()}")
    return outcome


def _sinks(record: Mapping[str, Any], folder: Path):
    from gradlab.record.base import Sink
    from gradlab.record.terminal import Terminal
    from gradlab.record.wandb_sink import WandbSink

    wandb = WandbSink(folder, **record["wandb"])
    sinks: list[Sink] = [wandb]
    if record["tensorboard"]:
        from gradlab.record.tensorboard_sink import TensorBoardSink

        sinks.append(TensorBoardSink(folder))
    if record["terminal"]:
        sinks.append(Terminal())
    return sinks, wandb


def _obey(number: int) -> None:
    """End as the signal asks, now that everything is saved.

    A launcher's own handler has its turn: submitit's asks for the job to be queued again.
    """
    handler = signal.getsignal(number) if number else None
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)
    sys.exit(128 + (number or signal.SIGINT))


# Saying no.


def _refuse(message: str) -> None:
    print(f"gradlab: {message}", file=sys.stderr)
    sys.exit(2)


def _refuse_job(error: BadInput) -> float:
    """End a single run; in a sweep name the job, and let its siblings go on."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.RUN:
        _refuse(str(error))
    name = f"job {settings.job.num} ({' '.join(settings.overrides.task)})"
    if os.getpid() != session.process:
        raise error  # the launcher brings it to the process that is watched
    print(f"gradlab: {name}: {error}", file=sys.stderr)
    session.refused.append(name)
    return float("nan")


def _count(refused: Sequence[str]) -> str:
    one = len(refused) == 1
    return f"{len(refused)} {'job' if one else 'jobs'} of this sweep {'was' if one else 'were'}"


def _occupied(key: str, folder: Path) -> BadInput:
    hint = "another folder, or move the earlier one away"
    return BadInput(key, _shown(folder), "a folder that holds no run and no sweep yet", hint)


def _leave_nothing(folder: Path | None, made: str) -> None:
    """Undo what this command did to a folder, if that is no more than Hydra's ``made``."""
    if folder is None or not folder.is_dir():
        return
    new = set(folder.iterdir()) - session.existed
    if not new <= {folder / made}:
        return
    for path in new:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (folder, *folder.parents):
        if path in session.existed:
            break
        with suppress(OSError):  # something else is in it
            path.rmdir()


def _scrub(folder: Path | None) -> None:
    """Take the home folder's path and secrets out of what Hydra wrote."""
    from gradlab.record.private import scrub_file

    for path in folder.glob("*.yaml") if folder is not None else ():
        scrub_file(path)


def _shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    # By its own name, so that launchers in other processes and the callback find the same module.
    from gradlab.__main__ import main

    main()
