"""What Hydra keeps of a configuration in a folder; it holds nothing private from the first byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins import basic_sweeper
from hydra.core import utils
from omegaconf import OmegaConf
from omegaconf._utils import get_omega_conf_dumper

from gradlab.record.private import scrub


def save(config: Any, path: Path) -> None:
    """Write a configuration as ``OmegaConf.save`` does, scrubbed."""
    content = scrub(OmegaConf.to_container(config, enum_to_str=True))
    dumper = get_omega_conf_dumper()
    text = yaml.dump(content, Dumper=dumper, allow_unicode=True, sort_keys=False)
    path.write_text(text, encoding="utf-8")


def keep_private() -> None:
    """Have Hydra save by :func:`save`, in this process.

    It has no setting for that, and what is scrubbed afterwards is there in clear for a while, or
    for good after a kill.
    """
    utils._save_config = _save_in
    basic_sweeper.OmegaConf = _Saving  # pyright: ignore[reportPrivateImportUsage]


def _save_in(cfg: Any, filename: str, output_dir: Path) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    save(cfg, output_dir / filename)


class _Saving(OmegaConf):
    """For Hydra's sweeper, which saves ``multirun.yaml``."""

    @staticmethod
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        save(config, Path(f))
