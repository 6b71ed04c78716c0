"""``trainer.resume``: from a run directory, or a sweep's, to the command that resumes it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from gradlab.errors import BadInput, first_line
from gradlab.launch.conf_files import CONFIG_DIR
from gradlab.launch.recorded import KEY, OF_A_SWEEP, as_texts, check_settings, keep_out, shown
from gradlab.record.base import OWN_LOOP
from gradlab.record.earlier import completed

FREE = (
    *("trainer.steps", "trainer.eval_batch", "trainer.checkpoint_seconds", "trainer.mesh"),
    "trainer.segments",
    *("trainer.test_lengths", KEY, "objective", "record"),
)
"""What may be changed when a run is resumed; the curves before and after fit together still."""
_OVERRIDE = re.compile(r"[+~]*([^=@]+)(?:@[^=]*)?=(.*)", re.DOTALL)
_MULTIRUN = {"-m", "--multirun"}
SWEEP = "multirun.yaml"
"""What Hydra keeps of a sweep in its folder."""
_LARGEST = 1_000_000
_ID = re.compile(r"[0-9a-f]{8}")


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
        for folder in filter(Path.is_dir, _placed(arguments)):
            keep_out(folder)
        found = (
            None if sweep or placed is not None else _left_unfinished(Path("outputs"), arguments)
        )
        return list(arguments) if found is None else _resumed(arguments, found)
    if (Path(asked).expanduser() / SWEEP).exists():
        return _resumed_sweep(arguments, Path(asked).expanduser())
    if sweep:
        hint = f"{KEY}=auto hydra.sweep.dir=FOLDER, which resumes each of its runs"
        allowed = f"auto, in a sweep, or the folder of a sweep, which holds {SWEEP}"
        raise BadInput(KEY, asked, allowed, hint)
    if placed is not None:
        allowed = f"nothing: the run is resumed in its own folder, {asked}"
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
        allowed = f"a run that can be resumed; this one {run.info['reason']}"
        raise BadInput(KEY, str(folder), allowed, "a new run with other settings")
    _check_same(completed(scrub(run.config)), scrub(config), folder)
    return run


def has_ended(run: Any, config: Mapping[str, Any]) -> bool:
    """Whether there is nothing left to train for a run."""
    more = config["trainer"]["steps"] > run.config["trainer"]["steps"]
    return run.status == "diverged" or (run.status == "finished" and not more)


def _resumed(arguments: Sequence[str], folder: Path) -> list[str]:
    run = _open(folder)
    earlier = _settings(run.info.get("overrides", []), folder, arguments, {KEY})
    kept = [argument for argument in arguments if _key(argument) != KEY]
    path = quoted(folder)
    place = [f"{KEY}={path}", f"hydra.run.dir={path}", "hydra.output_subdir=null"]
    return [*kept, *earlier, *place]


def _resumed_sweep(arguments: Sequence[str], folder: Path) -> list[str]:
    if (placed := value_of(arguments, "hydra.sweep.dir")) is not None:
        allowed = f"nothing: the sweep is resumed in its own folder, {folder}"
        raise BadInput("hydra.sweep.dir", placed, allowed)
    keep_out(folder)
    flags = [] if _MULTIRUN & set(arguments) else ["-m"]
    recorded = _recorded_sweep(folder)
    given = any(argument.partition("=")[0] in CONFIG_DIR for argument in arguments)
    if (config_dir := config_dir_of(folder)) and not given:
        allowed = "the folder with yaml files that the sweep began with, or another in its place"
        raise BadInput("--config-dir", None, allowed, f"--config-dir {shlex.quote(config_dir)}")
    placed = {KEY, "hydra.sweep.dir", "hydra.run.dir", "hydra.mode"}
    earlier = _settings(recorded["overrides"], folder, arguments, placed, OF_A_SWEEP)
    kept = [argument for argument in arguments if _key(argument) != KEY]
    return [*flags, *kept, *earlier, f"{KEY}=auto", f"hydra.sweep.dir={quoted(folder)}"]


def _settings(
    recorded: Any,
    folder: Path,
    arguments: Sequence[str],
    placed: Set[str],
    of_hydra: Mapping[str, str] | None = None,
) -> list[str]:
    """What a folder recorded and ``arguments`` do not say again, as it was typed."""
    said = placed | set(map(_key, arguments))
    left = [one for one in as_texts(recorded, folder) if _key(one) not in said]
    check_settings({one: _filled_in(one) for one in left}, folder, arguments, of_hydra)
    return [_filled_in(one) for one in left]


def config_dir_of(sweep: Path) -> str:
    """The folder that was given by ``--config-dir`` when a sweep began; empty if none was.

    Raises:
      BadInput: if what the sweep recorded cannot be read.
    """
    return _filled_in(_recorded_sweep(sweep)["config_dir"])


def _recorded_sweep(folder: Path) -> dict[str, Any]:
    """The overrides of a sweep, and the folder that was given by ``--config-dir`` or nothing."""
    file = folder / SWEEP
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST:
            raise ValueError("no plain file of a megabyte at most")
        hydra: Any = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]
        overrides = hydra["overrides"]["task"] + hydra["overrides"]["hydra"]
        sources = [
            one["path"]
            for one in hydra["runtime"]["config_sources"]
            if one["provider"] == "command-line"
        ]
        if not all(isinstance(one, str) for one in sources):
            raise TypeError("a folder with yaml files that is no text")
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = shown(f"{type(error).__name__}: {first_line(error)}")
        raise BadInput(KEY, str(folder), f"a folder whose {SWEEP} can be read ({reason})") from None
    return {"overrides": overrides, "config_dir": "".join(sources[:1])}


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
            said = as_texts(run.info.get("overrides", []), info.parent)
        except BadInput:
            continue
        unfinished = run.status in ("killed", "interrupted", "crashed")
        unfinished |= bool(run.left) and not is_written(info.parent)
        if unfinished and asked(said) == wanted:
            return info.parent
    return None


def _placed(arguments: Sequence[str]) -> Iterator[Path]:
    """Where ``arguments`` say that a run or a sweep has its folder."""
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        if (folder := value_of(arguments, key)) is not None:
            yield Path(folder)


def _open(folder: Path):
    from gradlab.record.reader import open_run

    try:
        run = open_run(folder)
    except BadInput as error:
        raise BadInput(KEY, str(folder), error.allowed, error.hint) from None
    keep_out(folder)
    if "id" not in run.info:
        allowed = "a run of format 2 or newer; older ones cannot be resumed"
        raise BadInput(KEY, str(folder), allowed)
    if not _ID.fullmatch(str(run.info["id"])):
        raise BadInput(KEY, str(folder), "a run whose id is eight of 0-9 and a-f")
    if run.info.get("facts", {}).get("loop") == OWN_LOOP:
        allowed = "a run of the command line; this is one of somebody's own training loop"
        hint = "gradlab.Recorder(folder, module, resume=True) in that loop"
        raise BadInput(KEY, str(folder), allowed, hint)
    return run


def _check_same(recorded: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> None:
    """Refuse a configuration that is not that of the run in ``folder``, but for what is free."""
    for key, before, now in _differences(recorded, given):
        if any(key == free or key.startswith(f"{free}.") for free in FREE):
            continue
        allowed = f"{shown(before)}, as in the run that is resumed"
        raise BadInput(key, now, allowed, "a new run, or leave it out")
    before, now = _steps(recorded), given["trainer"]["steps"]
    if type(before) is not int:
        allowed = f"a run that recorded its trainer.steps; there it is {shown(before)}"
        raise BadInput(KEY, str(folder), allowed)
    if type(now) is not int:
        return  # which is refused when the run is built
    if now < before:
        raise BadInput("trainer.steps", now, f"{before}, as in the run that is resumed, or more")
    schedule = given["optimizer"].get("schedule")
    if now != before and schedule != "constant":
        allowed = f"{before}, as in the run that is resumed: its {schedule} schedule ends there"
        raise BadInput("trainer.steps", now, allowed)


def _steps(config: Mapping[str, Any]) -> Any:
    trainer = config.get("trainer")
    return trainer.get("steps") if isinstance(trainer, Mapping) else None


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


def _filled_in(text: str) -> str:
    """With the home folder's path and the environment's secrets, which no file of a run holds."""
    from gradlab.record.private import is_secret

    def secret(found: re.Match[str]) -> str:
        return os.environ.get(found[1], found[0]) if is_secret(found[1]) else found[0]

    text = re.sub(r"<(\w+)>", secret, text)
    return re.sub(
        r"(^|[=,[(])(['\"]?)~(?=/)", lambda found: f"{found[1]}{found[2]}{Path.home()}", text
    )
