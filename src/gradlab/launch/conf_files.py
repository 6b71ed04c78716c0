"""Where the yaml files are, ours and the user's, and what they offer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CONFIG_DIR = ("--config-dir", "-cd")
"""Hydra's flag for a folder of the user's."""


def config_folder() -> str:
    """Where the yaml files are: beside the package in a wheel, at the top of a checkout."""
    installed = Path(__file__).parents[1] / "conf"
    return str(installed if installed.is_dir() else Path(__file__).parents[3] / "conf")


def config_folders(arguments: Sequence[str]) -> list[Path]:
    """The folders with yaml files: ours and the user's."""
    folders = [Path(config_folder())]
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, _, value = argument.partition("=")
        if flag in CONFIG_DIR:
            folders.append(Path(value or following).absolute())
    return [folder for folder in folders if folder.is_dir()]


def groups_of(arguments: Sequence[str]) -> list[str]:
    """The groups of the configuration that have options."""
    folders = config_folders(arguments)
    return sorted({p.name for f in folders for p in f.iterdir() if options_of(p.name, arguments)})


def options_of(group: str, arguments: Sequence[str]) -> list[str]:
    """The options of a group."""
    folders = config_folders(arguments)
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
