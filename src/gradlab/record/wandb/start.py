"""How a W&B run begins: which run it is, what it is called, and how W&B is set up for it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from gradlab.record.base import Description
from gradlab.record.directory import checkout, git, plain
from gradlab.record.keys import flat
from gradlab.record.private import scrub

Mode = Literal["offline", "online", "disabled"]

# Quiet, cheap, and on disk soon. Those about the machine and the code would put paths, the command
# line and the names of other projects on record; run.json says what is worth knowing.
_SETTINGS = {
    "console": "off",
    "silent": True,
    "quiet": True,
    "disable_code": True,
    "disable_git": True,
    "finish_timeout_raises": True,
    "label_disable": True,
    "reinit": "create_new",
    "symlink": False,
    "use_dot_wandb": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 2.0,
}
_LONGEST_START = 30.0
"""Seconds after which a server counts as out of reach."""


@dataclass(frozen=True)
class Options:
    """The arguments of :class:`gradlab.record.wandb.sink.WandbSink`.

    Attributes:
      directory: the run directory, absolute.
      labels: ``project``, ``group``, ``job_type``, ``tags``, ``name``, ``notes``.
    """

    directory: Path
    mode: Mode
    labels: dict[str, Any]
    finish_timeout: float
    arrays: bool
    code: bool
    chart: str | None


def start(options: Options, description: Description, mode: Mode, suffix: str = "") -> Any:
    """Begin a W&B run with configuration, facts and baseline as its config; waits for the server.

    Args:
      mode: instead of the one in ``options``.
      suffix: of the run's id.

    Raises:
      Exception: whatever W&B raises where no run can begin.
    """
    # So that W&B sends no reports about itself to its makers, by threads of their own.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # Else W&B tells on the terminal where it found the key.
    wandb.setup(wandb.Settings(silent=True, quiet=True))
    if mode == "online" and sys.stdin.isatty() and not has_account():
        raise RuntimeError("there is no API key; `wandb login` asks for it")
    folder = options.directory / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # W&B would take the system's temporary folder instead
        raise PermissionError(f"{folder} cannot be written to")
    facts = {"facts": description.facts, "baseline": description.baseline}
    labels = {**options.labels, "name": options.labels["name"] or run_name(description)}
    run = wandb.init(
        dir=str(options.directory),
        mode=mode,
        config=scrub(plain(beside(_taken(), {**description.config, **facts}))),
        settings=_settings(options.finish_timeout),
        **_identity(description, mode, suffix),
        **scrub(labels),
    )
    _stop_log(options.directory)
    return run


def _stop_log(directory: Path) -> None:
    """End the log that W&B's library keeps: on a full disk each line of it would be a traceback."""
    log = logging.getLogger("wandb")
    for handler in [one for one in log.handlers if isinstance(one, logging.FileHandler)]:
        if Path(handler.baseFilename).is_relative_to(directory):
            log.removeHandler(handler)
            handler.close()


def _settings(finish_timeout: float) -> Any:
    import wandb

    times = {
        "init_timeout": min(_LONGEST_START, 0.2 * finish_timeout),
        "finish_timeout": 0.6 * finish_timeout,
    }
    wanted = {**_SETTINGS, **times, **_checkout()}
    known = wandb.Settings.model_fields  # another version of W&B may lack some
    return wandb.Settings(**{key: wanted[key] for key in wanted if key in known})


def run_name(description: Description) -> str:
    """A name to recognise a run by, e.g. ``"lstm adding T=100 H=64 seed 0"``."""
    facts, config = description.facts, description.config
    model = config.get("model")
    sizes = model if isinstance(model, Mapping) else {}
    kind, name = str(facts.get("model", "")), description.name
    if name in ("", "default"):
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(facts.get("task", ""))).lower()
    words = [] if kind in re.split(r"\W|_", name) else [kind]
    words.append(name)
    numbers = {"T": facts.get("T"), "H": sizes.get("hidden")}
    words += [f"{letter}={value}" for letter, value in numbers.items() if value is not None]
    if sizes.get("layers", 1) != 1:
        words.append(f"L={sizes['layers']}")
    if "seed" in config:
        words.append(f"seed {config['seed']}")
    return " ".join(word for word in words if word)


def _identity(description: Description, mode: Mode, suffix: str) -> dict[str, Any]:
    """Which W&B run it is: explicitly, so that nothing in the environment makes two runs one."""
    if _in_sweep():
        return {}
    resume = "allow" if description.resumed and mode == "online" else "never"
    return {"id": description.id + suffix or None, "resume": resume}


def _in_sweep() -> bool:
    """Whether W&B's own agent started this process, for a run that it has made."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def beside(taken: Collection[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` under keys that are not taken by the parameters of a W&B sweep.

    W&B puts a sweep's parameters over the run's configuration: with one named ``model``, the
    option of a group, it would hold ``"lstm"`` in place of that section, and the sweep needs it
    there. So what is in the section is recorded as ``model.hidden``, ``model.cell._target_``, ...,
    which is how W&B shows what is nested, and names parameters.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat({name: value}) if name in taken else {name: value}
    return found


def _taken() -> set[str]:
    """Names of the parameters that W&B's agent set for this run; empty outside a sweep."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH") if _in_sweep() else None
    if path is None:
        return set()
    return set(yaml.safe_load(Path(path).read_text(encoding="utf-8")))


def has_account() -> bool:
    """Whether W&B finds an API key or an identity token here; asks no server and no one."""
    import wandb

    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or wandb.api.api_key)


def _checkout() -> dict[str, str]:
    """Commit and remote of this package's checkout, as W&B's settings; empty if there is none."""
    known = checkout()
    if known is None:
        return {}
    try:
        url = without_credentials(git("remote", "get-url", "origin"))
    except (OSError, subprocess.SubprocessError):
        url = ""
    return {"git_commit": known["commit"], **({"git_remote_url": url} if url else {})}


def without_credentials(url: str) -> str:
    """A remote's address with neither name nor password; empty if it is no address of a host."""
    parts = urlsplit(url)
    if parts.scheme and parts.hostname:
        host = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=host, query="", fragment="").geturl()
    scp_like = re.fullmatch(r"(?:[^@/]+@)?([\w.-]+:[^:/].*)", url)
    return scp_like[1] if scp_like else ""
