"""Options of Hydra's own groups that need a package which gradlab does not bring along."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec

from gradlab.errors import BadInput

EXTRAS = {
    "hydra/sweeper=optuna": ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
    "hydra/sweeper=search": ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
}
"""What is said on the command line -> the extra that brings it, and the package it needs."""


def missing_extra(arguments: Collection[str]) -> BadInput | None:
    """The refusal of an option whose package is not installed; None if that is not the trouble."""
    for said, (extra, package) in EXTRAS.items():
        if said in arguments and not _is_installed(package):
            group, _, option = said.partition("=")
            allowed = f"an option whose package is installed; this one needs the extra {extra}"
            return BadInput(group, option, allowed, f"pip install 'gradlab[{extra}]'")
    return None


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False
