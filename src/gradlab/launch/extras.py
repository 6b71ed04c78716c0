"""What has to be installed before a launcher or a sweeper can be chosen."""

from __future__ import annotations

import shutil

from omegaconf import DictConfig

from gradlab.errors import BadInput

EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/slurm": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/local": "slurm",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/ray": "ray",
    "hydra/sweeper/optuna": "optuna",
    "hydra/sweeper/sampler/tpe": "optuna",  # of hydra/sweeper=search
}
"""Options of Hydra's groups that come with a package, and the extra of gradlab that has it."""


def missing_extra(path: str, given: str = "") -> BadInput | None:
    """The refusal of an option whose package is not installed; None if it comes with none.

    Args:
      path: of the option that was not found, e.g. ``"hydra/launcher/joblib"``.
      given: what the user asked for, if that is another option that builds on it.
    """
    extra = EXTRAS.get(path)
    if extra is None:
        return None
    group, _, name = path.partition("/sampler/")[0].rpartition("/")
    if name == "sweeper":  # of which the sampler is a part
        group, name = f"{group}/{name}", "search"
    hint = f"pip install 'gradlab[{extra}]'"
    return BadInput(group, given or name, "an option whose package is installed", hint)


def check_launcher(config: DictConfig) -> None:
    """Refuse Slurm where its commands are not.

    Args:
      config: of the sweep, with its section ``hydra``.

    Raises:
      BadInput: with what to use instead.
    """
    target = str(config.hydra.launcher.get("_target_"))
    if target.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        given = config.hydra.runtime.choices["hydra/launcher"]
        allowed = "a launcher other than Slurm's: this machine has no srun"
        raise BadInput("hydra/launcher", given, allowed, "hydra/launcher=local")
