"""The jobs that a sweep is to have, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gradlab.errors import visible
from gradlab.launch.session import session
from gradlab.record.private import scrub_text


def planned(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job that Hydra's own sweeper is about to launch; None for any other.

    Args:
      config: of the sweep, with its section ``hydra``.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    said = swept(config)
    return None if said is None else BasicSweeper.split_arguments(said, None)[0]


def swept(config: DictConfig) -> list[Override] | None:
    """What Hydra's own sweeper goes by: its parameters, then the command line; None for others."""
    if not str(config.hydra.sweeper.get("_target_")).endswith("BasicSweeper"):
        return None
    params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
    said: Any = OmegaConf.to_container(config.hydra.overrides.task)  # as typed, ${...} and all
    assert isinstance(params, dict)
    written = [*(f"{key}={value}" for key, value in params.items()), *said]
    return OverridesParser.create().parse_overrides(written)


def name_of(
    number: int | None, jobs: Sequence[Sequence[str]] | None, folder: Path | None = None
) -> str:
    """A job by its number and by the overrides that it does not share with all others.

    Args:
      number: of the job; None where that is not known, its folder's name stands for it then.
      jobs: the overrides of every job, if they are known.
      folder: its run directory; read if they are not.
    """
    name = f"job {folder.name if number is None and folder is not None else number}"
    shared: set[str] = set()
    if jobs is not None and number is not None and number < len(jobs):
        own = list(jobs[number])
        shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    elif folder is not None and (said := folder / ".hydra" / "overrides.yaml").is_file():
        own = [str(one) for one in OmegaConf.load(said)]
    else:
        return name
    said = " ".join(one for one in own if one not in shared)
    return f"{name} ({visible(scrub_text(said))})"


def name_of_job() -> str:
    """The name of the job at hand in its sweep; empty for a single run."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.RUN:
        return ""
    return name_of(settings.job.num, session.jobs, Path(settings.runtime.output_dir))
