"""What has to be installed before a launcher or a sweeper can be chosen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from gradlab.errors import BadInput

EXTRAS = {
    "hydra/launcher/joblib": ("hydra/launcher", "joblib"),
    "hydra/launcher/slurm": ("hydra/launcher", "slurm"),
    "hydra/launcher/submitit_slurm": ("hydra/launcher", "slurm"),
    "hydra/launcher/local": ("hydra/launcher", "slurm"),
    "hydra/launcher/submitit_local": ("hydra/launcher", "slurm"),
    "hydra/launcher/ray": ("hydra/launcher", "ray"),
    "hydra/sweeper/optuna": ("hydra/sweeper", "optuna"),
    "hydra/sweeper/sampler/tpe": ("hydra/sweeper", "optuna"),  # which sweeper=search asks for
}
"""What comes with a package -> the group in which it was chosen, and the extra that has it."""


def missing_extra(path: str, given: Callable[[str], str]) -> BadInput | None:
    """The refusal of an option whose package is not installed; None if it comes with none.

    Args:
      path: of what was not found, e.g. ``"hydra/launcher/joblib"``.
      given: what the user chose in a group; empty for nothing.
    """
    if path not in EXTRAS:
        return None
    group, extra = EXTRAS[path]
    option = given(group) or path.rpartition("/")[2]
    hint = f"pip install 'gradlab[{extra}]'"
    return BadInput(group, option, "an option whose package is installed", hint)


def check_launcher(config: DictConfig) -> None:
    """Refuse Slurm where its commands are not, and submitit's own launchers for an earlier sweep.

    Args:
      config: of the sweep, with its section ``hydra``.

    Raises:
      BadInput: with what to use instead.
    """
    target = str(config.hydra.launcher.get("_target_"))
    given = config.hydra.runtime.choices["hydra/launcher"]
    if target.startswith("hydra_plugins.hydra_submitit") and _holds_results(config):
        allowed = "a launcher that unpickles nothing of what lies in the folder of a sweep"
        raise BadInput("hydra/launcher", given, allowed, "hydra/launcher=local or =slurm")
    if target.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        allowed = "a launcher other than Slurm's: this machine has no srun"
        raise BadInput("hydra/launcher", given, allowed, "hydra/launcher=local")


def _holds_results(config: DictConfig) -> bool:
    """Whether the sweep's folder has what submitit left there, or somebody who sent it."""
    return Path(str(config.hydra.sweep.dir), ".submitit").exists()
