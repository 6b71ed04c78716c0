"""``trainer.resume``: from a run directory, or a sweep's, to the command that resumes it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from gradlab.errors import BadInput
from gradlab.launch.conf_files import CONFIG_DIR

KEY = "trainer.resume"
FREE = (
    *("trainer.steps", "trainer.eval_batch", "trainer.checkpoint_seconds", "trainer.mesh"),
    *("trainer.test_lengths", KEY, "objective", "record"),
)
"""What may be changed when a run is resumed; the curves before and after fit together still."""
_OVERRIDE = re.compile(r"[+~]*([^=@]+)(?:@[^=]*)?=(.*)", re.DOTALL)
_MULTIRUN = {"-m", "--multirun"}
SWEEP = "multirun.yaml"
"""What Hydra keeps of a sweep in its folder."""


def with_resumed(arguments: Sequence[str]) -> list[str]:
    """The command line that resumes a run, if ``arguments`` ask for that.

    ``trainer.resume=PATH`` takes the overrides of that run, then those given, and its folder. If
    PATH is the folder of a sweep, it is launched again, as it was; its jobs are resumed or begin,
    and those that have finished end at once.
    ``trainer.resume=auto`` does so with the newest run in ``outputs/`` that the same overrides
    left unfinished or without figures, unless ``hydra.run.dir`` says where to look, or it is a
    sweep; if there is none, the run begins.

    Raises:
      BadInput: if PATH is not a run, or is given for a sweep or together with a folder.
    """
    asked = value_of(arguments, KEY)
    if asked in (None, "", "null"):
        return list(arguments)
    sweep = bool(_MULTIRUN & set(arguments))
    placed = value_of(arguments, "hydra.run.dir")
    if asked == "auto":
        found = (
            None if sweep or placed is not None else _left_unfinished(Path("outputs"), arguments)
        )
        return list(arguments) if found is None else _resumed(arguments, found)
    if (Path(asked).expanduser() / SWEEP).exists():
        return _resumed_sweep(arguments, Path(asked).expanduser())
    if sweep:
        hint = f"{KEY}=auto hydra.sweep.dir=FOLDER, which goes on with each of its runs"
        allowed = f"auto, in a sweep, or the folder of a sweep, which holds {SWEEP}"
        raise BadInput(KEY, asked, allowed, hint)
    if placed is not None:
        allowed = f"nothing: the run goes on in its own folder, {asked}"
        raise BadInput("hydra.run.dir", placed, allowed)
    return _resumed(arguments, Path(asked).expanduser())


def from_agent(arguments: Sequence[str]) -> list[str]:
    """``arguments``; where W&B's agent wrote them, its ``key=None`` is ``key=null``.

    A ``null`` among the values of a sweep file comes as Python writes it, which Hydra takes for
    text. Elsewhere ``None`` remains the text that it is.
    """
    if not os.environ.get("WANDB_SWEEP_ID"):
        return list(arguments)
    none = "=None"
    return [a.removesuffix(none) + "=null" if a.endswith(none) else a for a in arguments]


def requeued() -> bool:
    """Whether Slurm runs this for a second time: it was preempted, or its node had failed."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def earlier_run(config: Mapping[str, Any], folder: Path, *, again: bool = False):
    """The run in ``folder`` that ``trainer.resume`` asks to resume; None to begin a new one.

    Args:
      config: the composed configuration, as plain dicts.
      folder: the run directory of this job.
      again: whether the job was begun before, so that it is resumed unasked.

    Raises:
      BadInput: if the run cannot be resumed, or not with this configuration.
    """
    from gradlab.record.directory import INFO
    from gradlab.record.private import scrub

    asked = config["trainer"].get("resume")
    if asked is None and again:
        asked = "auto"
    if asked is None or (asked == "auto" and not (folder / INFO).exists()):
        return None
    if not isinstance(asked, str):
        raise BadInput(KEY, asked, "the path of a run directory, auto, or null")
    run = _open(folder)
    if run.status == "running":
        raise BadInput(KEY, str(folder), "a run that has ended; this one is still going")
    if run.status == "diverged" and asked != "auto" and not run.left:
        allowed = f"a run that can go on; this one {run.info['reason']}"
        raise BadInput(KEY, str(folder), allowed, "a new run with other settings")
    _check_same(run.config, scrub(config))
    return run


def has_ended(run: Any, config: Mapping[str, Any]) -> bool:
    """Whether there is nothing left to train for a run."""
    more = config["trainer"]["steps"] > run.config["trainer"]["steps"]
    return run.status == "diverged" or (run.status == "finished" and not more)


def _resumed(arguments: Sequence[str], folder: Path) -> list[str]:
    run = _open(folder)
    said = set(map(_key, arguments))
    earlier = [
        _filled_in(one)
        for one in run.info.get("overrides", [])
        if _key(one) not in said and _key(one).partition(".")[0] != "hydra"
    ]
    kept = [argument for argument in arguments if _key(argument) != KEY]
    path = quoted(folder)
    place = [f"{KEY}={path}", f"hydra.run.dir={path}", "hydra.output_subdir=null"]
    return [*kept, *earlier, *place]


def _resumed_sweep(arguments: Sequence[str], folder: Path) -> list[str]:
    said = set(map(_key, arguments))
    if "hydra.sweep.dir" in said:
        allowed = f"nothing: the sweep goes on in its own folder, {folder}"
        raise BadInput("hydra.sweep.dir", value_of(arguments, "hydra.sweep.dir"), allowed)
    flags = [] if _MULTIRUN & set(arguments) else ["-m"]
    overrides, config_dir = _recorded_sweep(folder)
    if config_dir and not any(a.partition("=")[0] in CONFIG_DIR for a in arguments):
        flags += ["--config-dir", config_dir]
    placed = {KEY, "hydra.sweep.dir", "hydra.run.dir", "hydra.mode"}
    earlier = [one for one in overrides if _key(one) not in said | placed]
    kept = [argument for argument in arguments if _key(argument) != KEY]
    return [*flags, *kept, *earlier, f"{KEY}=auto", f"hydra.sweep.dir={quoted(folder)}"]


def _recorded_sweep(folder: Path) -> tuple[list[str], str]:
    """The overrides of a sweep, and the folder that was given by ``--config-dir`` or nothing."""
    try:
        recorded = OmegaConf.to_container(OmegaConf.load(folder / SWEEP))
        assert isinstance(recorded, dict)
        hydra: Any = recorded["hydra"]
        overrides = [*hydra["overrides"]["task"], *hydra["overrides"]["hydra"]]
        sources = [
            one["path"]
            for one in hydra["runtime"]["config_sources"]
            if one["provider"] == "command-line"
        ]
    except (OSError, YAMLError, AssertionError, KeyError, TypeError) as error:
        allowed = f"a folder whose {SWEEP} can be read ({type(error).__name__}: {error})"
        raise BadInput(KEY, str(folder), allowed) from None
    return [_filled_in(str(one)) for one in overrides], _filled_in("".join(sources[:1]))


def _left_unfinished(root: Path, arguments: Sequence[str]) -> Path | None:
    from gradlab.record.lock import is_written
    from gradlab.record.private import scrub
    from gradlab.record.reader import open_run

    def asked(overrides: Sequence[str]) -> list[str]:
        return sorted(one for one in overrides if _key(one) != KEY and one[:1] != "-")

    wanted = asked(scrub(list(arguments)))
    for info in sorted(root.glob("*/*/run.json"), reverse=True):
        try:
            run = open_run(info.parent)
        except BadInput:
            continue
        unfinished = run.status in ("killed", "interrupted", "crashed")
        unfinished |= bool(run.left) and not is_written(info.parent)
        if unfinished and asked(run.info.get("overrides", [])) == wanted:
            return info.parent
    return None


def _open(folder: Path):
    from gradlab.record.reader import open_run

    try:
        run = open_run(folder)
    except BadInput as error:
        raise BadInput(KEY, str(folder), error.allowed, error.hint) from None
    if "id" not in run.info:
        raise BadInput(KEY, str(folder), "a run of format 2 or newer; older ones cannot go on")
    return run


def _check_same(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a configuration that is not that of the run, but for what is free."""
    for key, before, now in _differences(recorded, given):
        if any(key == free or key.startswith(f"{free}.") for free in FREE):
            continue
        allowed = f"{before!r}, as in the run that goes on"
        raise BadInput(key, now, allowed, "a new run, or leave it out")
    before, now = recorded["trainer"]["steps"], given["trainer"]["steps"]
    if now < before:
        raise BadInput("trainer.steps", now, f"{before}, as in the run that goes on, or more")
    schedule = given["optimizer"]["schedule"]
    if now != before and schedule != "constant":
        allowed = f"{before}, as in the run that goes on: its {schedule} schedule ends there"
        raise BadInput("trainer.steps", now, allowed)


def _differences(recorded: Any, given: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(recorded, Mapping) and isinstance(given, Mapping):
        for name in [*recorded, *(name for name in given if name not in recorded)]:
            inner = f"{path}.{name}" if path else str(name)
            yield from _differences(recorded.get(name), given.get(name), inner)
    elif recorded != given:
        yield path, recorded, given


def _key(argument: str) -> str:
    found = _OVERRIDE.fullmatch(argument)
    return found[1] if found else argument


def value_of(arguments: Sequence[str], key: str) -> str | None:
    """What the overrides among ``arguments`` say of a key last; None if nothing."""
    values = [m[2] for one in arguments if (m := _OVERRIDE.fullmatch(one)) and m[1] == key]
    if not values:
        return None
    text = values[-1]
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        return text
    return text[1:-1].replace(f"\\{text[0]}", text[0]).replace("\\\\", "\\")


def quoted(folder: Path | str) -> str:
    """A path as Hydra reads it, whatever is in it."""
    return "'" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _filled_in(override: str) -> str:
    """With the home folder's path and the environment's secrets, which run.json does not hold."""
    override = re.sub(r"<(\w+)>", lambda name: os.environ.get(name[1], name[0]), override)
    return re.sub(r"(?<![\w/.])~(?=/)", lambda _: str(Path.home()), override)
