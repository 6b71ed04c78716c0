"""What Hydra keeps of a configuration in a folder; it holds nothing private from the first byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hydra.core import utils
from omegaconf import OmegaConf
from omegaconf._utils import get_omega_conf_dumper

from gradlab.record.private import scrub


def save(config: Any, f: Any, resolve: bool = False) -> None:
    """Write a configuration as ``OmegaConf.save`` does, scrubbed.

    Args:
      config: of OmegaConf.
      f: a path, or a file that is open.
      resolve: whether to write what its references stand for.
    """
    content = scrub(OmegaConf.to_container(config, resolve=resolve, enum_to_str=True))
    dumper = get_omega_conf_dumper()
    text = yaml.dump(content, Dumper=dumper, allow_unicode=True, sort_keys=False)
    if hasattr(f, "write"):
        f.write(text)
    else:
        Path(f).write_text(text, encoding="utf-8")


def keep_private() -> None:
    """Have Hydra save by :func:`save`, in this process.

    It has no setting for that, and what is scrubbed afterwards is there in clear for a while, or
    for good after a kill.
    """
    utils._save_config = _save_in  # .hydra/
    OmegaConf.save = staticmethod(save)  # multirun.yaml


def _save_in(cfg: Any, filename: str, output_dir: Path) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    save(cfg, output_dir / filename)
