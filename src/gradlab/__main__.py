"""The command line: compose, check, build, train, report.

``python -m gradlab experiment=NAME [key=value ...]``. Everything heavy is imported inside
functions, so that ``--help`` and ``--cfg job`` answer at once.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from gradlab.errors import BadInput, nearest

SECTIONS = ("model", "task", "optimizer", "trainer", "probe", "record")
"""What a configuration consists of, besides ``seed``."""


def config_folder() -> str:
    """Where the yaml files are: beside the package in a wheel, at the top of a checkout."""
    installed = Path(__file__).parent / "conf"
    return str(installed if installed.is_dir() else Path(__file__).parents[2] / "conf")


@dataclass
class Session:
    """What this process knows of the command it serves.

    Attributes:
      process: its id; a job that a launcher runs elsewhere finds another one.
      began: whether a job has begun, so that the configuration must have been composed.
      existed: folders that were there before the command and must outlive it.
      sweep: the folder of a sweep, or None.
      refused: names of the jobs of a sweep that were refused.
    """

    process: int = field(default_factory=os.getpid)
    began: bool = False
    existed: set[Path] = field(default_factory=set)
    sweep: Path | None = None
    refused: list[str] = field(default_factory=list)


session = Session()


def main() -> None:
    """Run the command line. Bad input ends with one message and exit code 2."""
    global session
    session = Session()
    # Hydra would print its own short traceback; with this it hands the error to us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # jax says at every start on a machine without a TPU that it found none.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    # Hydra logs what cannot be imported before it raises it.
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)
    entry = hydra.main(version_base="1.3", config_path=config_folder(), config_name="config")(job)
    try:
        _check_flags(sys.argv[1:])
        entry()
    except BadInput as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        print("gradlab: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if session.began:  # a fault of the program, not of what it was given
            raise
        _refuse(explain(error, sys.argv[1:]))
    finally:
        _leave_nothing(session.sweep, "multirun.yaml")
    if session.refused:
        print(f"gradlab: {_count(session.refused)} refused, see above", file=sys.stderr)
        sys.exit(2)


class Folders(Callback):
    """A Hydra callback that guards what is there before a run or a sweep makes its folder.

    A folder that holds a run or a sweep is refused, and a refused run leaves nothing behind.
    """

    def __init__(self) -> None:
        self.existed: set[Path] = set()

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a run directory that holds a run."""
        self._guard(config, "hydra.run.dir", "run.json")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a folder that holds a sweep."""
        session.sweep = self._guard(config, "hydra.sweep.dir", "multirun.yaml")

    def on_job_start(self, **_: Any) -> None:
        """Pass on what is known to the process that runs the job."""
        session.existed |= self.existed

    def _guard(self, config: DictConfig, key: str, sign: str) -> Path:
        HydraConfig.instance().set_config(config)
        folder = Path(str(OmegaConf.select(config, key))).absolute()
        if (folder / sign).exists():
            _refuse(str(_occupied(key, folder)))
        self.existed = {path for path in (folder, *folder.parents) if path.exists()}
        if folder.is_dir():
            self.existed |= set(folder.iterdir())
        session.existed |= self.existed
        return folder


def job(cfg: DictConfig) -> float:
    """One run of a composed configuration; gives its validation loss, for sweepers."""
    session.began = True
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        outcome = _run(cfg, folder)
    except BaseException as error:
        _leave_nothing(folder, ".hydra")
        if isinstance(error, BadInput):
            return _refuse_job(error)
        raise
    if outcome.status == "interrupted":
        sys.exit(130)
    return outcome.summary.get("val/loss", float("nan"))


def _run(cfg: DictConfig, folder: Path):
    experiment = build(plain(cfg), HydraConfig.get().runtime.choices)
    if (folder / "run.json").exists():
        raise _occupied("hydra.sweep.dir", folder)
    from gradlab.experiment import run

    record = experiment.config["record"]
    sinks, wandb = _sinks(record, folder, experiment.name)
    outcome = run(experiment, folder, sinks, figures=record["figures"])
    print(f"\nrun directory: {_shown(folder)}")
    if record["figures"]:
        for picture in sorted((folder / "figures").glob("*.png")):
            print(f"  figure: {_shown(picture)}")
    if wandb.how_to_see():
        print(f"W&B: {wandb.how_to_see()}")
    return outcome


def _sinks(record: Mapping[str, Any], folder: Path, name: str):
    from gradlab.record.terminal import Terminal
    from gradlab.record.wandb_sink import WandbSink

    settings = {**record["wandb"]}
    settings["name"] = settings.get("name") or f"{name} {folder.parent.name} {folder.name}"
    wandb = WandbSink(folder, **settings)
    return [wandb, *([Terminal()] if record["terminal"] else [])], wandb


# From a configuration to the parts of an experiment.


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as nested plain dicts.

    Raises:
      BadInput: for a value that is missing, or that refers to one that does not exist.
    """
    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raw: Any = OmegaConf.to_container(cfg)
        for part in str(error.full_key).split("."):
            raw = raw.get(part) if isinstance(raw, dict) else raw
        missing = isinstance(error, MissingMandatoryValue)
        reason = str(error).splitlines()[0]
        allowed = "a value; none is given yet" if missing else f"a value that exists; {reason}"
        raise BadInput(str(error.full_key), raw, allowed, f"{error.full_key}=VALUE") from None
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def build(config: dict[str, Any], choices: Mapping[str, Any]):
    """The :class:`gradlab.experiment.Experiment` that a configuration describes.

    Args:
      config: as from :func:`plain`.
      choices: the option taken from each group of the configuration, for names.

    Raises:
      BadInput: with the key at fault.
    """
    from flax import nnx

    from gradlab.check import check_arguments, check_keys
    from gradlab.experiment import Experiment, check_experiment
    from gradlab.optimizer import build_optimizer
    from gradlab.probes.base import Probe
    from gradlab.record.wandb_sink import WandbSink
    from gradlab.tasks.base import Task
    from gradlab.train import Trainer

    check_keys("", config, {"seed": int} | dict.fromkeys(SECTIONS, dict))
    model, record = config["model"], config["record"]
    sizes = {"hidden": int, "layers": int, "bidirectional": bool}
    check_keys("model", model, sizes | {"cell": dict})
    check_keys("record", record, {"wandb": dict, "figures": bool, "terminal": bool})
    check_arguments("record.wandb", WandbSink, record["wandb"], supplied={"directory"})
    check_arguments("trainer", Trainer, config["trainer"], supplied=set())
    trainer = Trainer(**config["trainer"])
    settings = {k: v for k, v in config["optimizer"].items() if k != "rule"}
    check_arguments("optimizer", build_optimizer, settings, supplied={"rule", "steps"})
    rule = _make("optimizer.rule", config["optimizer"].get("rule"), {"learning_rate"})
    probe = {"preset": None, **config["probe"]}
    check_keys("probe", probe, {"preset": str | None, "measure": dict})
    experiment = Experiment(
        name=str(choices.get("experiment", "")),
        model_name=str(choices.get("model", "")),
        make_cell=_make(
            "model.cell",
            model["cell"],
            {"in_features", "hidden_features", "rngs"},
            kind=nnx.RNNCellBase,
        ),
        **{key: model[key] for key in sizes},
        task=_make("task", config["task"], kind=Task),
        optimizer=build_optimizer(rule, steps=trainer.steps, **settings),
        trainer=trainer,
        probes={
            name: _make(f"probe.measure.{name}", node, kind=Probe)
            for name, node in probe["measure"].items()
        },
        probes_by_preset=probe["preset"] is not None,
        seed=config["seed"],
        config=config,
    )
    check_experiment(experiment)
    return experiment


def _make(
    key: str, node: Any, supplied: Iterable[str] = (), *, kind: type[Any] | None = None
) -> Any:
    """What a section with ``_target_`` names, built.

    With ``supplied`` arguments still to come it is a function that takes them and builds it.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    target = _check_node(key, node, set(supplied))
    if kind is not None and isinstance(target, type) and not issubclass(target, kind):
        raise BadInput(f"{key}._target_", node["_target_"], f"a subclass of {kind.__qualname__}")
    try:
        return instantiate(node, _partial_=bool(supplied), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, BadInput):
            raise error.__cause__ from None
        raise


def _check_node(key: str, node: Any, supplied: set[str]) -> Callable[..., Any]:
    """The target of a section and of those in it, after a check of their arguments."""
    from gradlab.check import check_arguments

    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise BadInput(key, node, "a section with _target_: the dotted name of a class or function")
    target = _find(f"{key}._target_", node["_target_"])
    given = {name: value for name, value in node.items() if not name.startswith("_")}
    if not node.get("_args_"):
        partial = bool(node.get("_partial_"))
        check_arguments(key, target, given, supplied=supplied, partial=partial)
    for name, value in given.items():
        if isinstance(value, dict) and "_target_" in value:
            _check_node(f"{key}.{name}", value, set())
    return target


def _find(key: str, name: str) -> Callable[..., Any]:
    """What a dotted name stands for."""
    from hydra.utils import get_object

    try:
        found = get_object(name)
    except Exception as error:  # noqa: BLE001  (importing a user's module can raise anything)
        allowed = "the full dotted name of a class or function"
        module, _, last = name.rpartition(".")
        if module in sys.modules:
            public = [n for n in dir(sys.modules[module]) if not n.startswith("_")]
            close = [f"{key}={module}.{n}" for n in nearest(last, public)]
            allowed += f"; there is no {last} in {module}"
            raise BadInput(key, name, allowed, ", ".join(close)) from None
        cause = error.__cause__ or error
        allowed += f"; importing it fails with {type(cause).__name__}: {cause}"
        hint = "a file in the current folder, or an installed package" if module else ""
        raise BadInput(key, name, allowed, hint) from None
    if not callable(found):
        raise BadInput(key, name, f"a class or function, not a {type(found).__name__}")
    return found


# Saying no.


def _refuse(message: str) -> None:
    print(f"gradlab: {message}", file=sys.stderr)
    sys.exit(2)


def _refuse_job(error: BadInput) -> float:
    """End a single run; in a sweep name the job, and let its siblings go on."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.RUN:
        _refuse(str(error))
    name = f"job {settings.job.num} ({' '.join(settings.overrides.task)})"
    if os.getpid() != session.process:
        raise error  # the launcher brings it to the process that is watched
    print(f"gradlab: {name}: {error}", file=sys.stderr)
    session.refused.append(name)
    return float("nan")


def _count(refused: Sequence[str]) -> str:
    one = len(refused) == 1
    return f"{len(refused)} {'job' if one else 'jobs'} of this sweep {'was' if one else 'were'}"


def _occupied(key: str, folder: Path) -> BadInput:
    hint = "another folder, or move the earlier one away"
    return BadInput(key, _shown(folder), "a folder that holds no run and no sweep yet", hint)


def _leave_nothing(folder: Path | None, made: str) -> None:
    """Undo what this command did to a folder, if that is no more than Hydra's ``made``."""
    if folder is None or not folder.is_dir():
        return
    new = set(folder.iterdir()) - session.existed
    if not new <= {folder / made}:
        return
    for path in new:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (folder, *folder.parents):
        if path in session.existed:
            break
        with suppress(OSError):  # something else is in it
            path.rmdir()


# Errors of the composition in words.

FLAGS = ("cfg", "config-dir", "config-name", "config-path", "experimental-rerun", "info", "package")
"""Hydra's flags that take a value; everything else is an override."""
WRONG_KEY = re.compile(r"Could not override '([^'@]+)[^']*'")
PLUS = re.compile(r"Multiple values for (\w+)\.")
SWEEP = re.compile(r"(?:Ambiguous value for argument|Sweep parameters) '([^'=]+)=")
LOCATED = re.compile(r"In '([^']+)': ")
SHOW_ALL = "python -m gradlab --cfg job shows every key, python -m gradlab --help every option"


def _check_flags(arguments: Iterable[str]) -> None:
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if equals and name.startswith("--") and not any(f"--{f}".startswith(name) for f in FLAGS):
            allowed = "key=value, without dashes"
            raise BadInput("command line", argument, allowed, argument.lstrip("-"))


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """An error of the composition, as key, value, what is allowed and what to try.

    Args:
      error: what Hydra raised before the first job.
      arguments: the command line after the program's name.
    """
    text = str(error)
    if isinstance(error, OverrideParseException):
        return str(_bad_syntax(error.override, text))
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        path, options = str(error.missing_cfg_file), error.options
        return str(_bad_option(path, _located(text), arguments, options))
    if found := WRONG_KEY.search(text):
        return str(_bad_key(found[1], _located(text), arguments))
    if found := SWEEP.search(text):
        sweep = f"python -m gradlab -m {' '.join(arguments)}"
        return str(BadInput(found[1], _given(arguments, found[1]), "one value without -m", sweep))
    if found := PLUS.search(text):
        given = _given(arguments, found[1])
        return str(BadInput(found[1], given, "an option, without the +", f"{found[1]}={given}"))
    if "Config group override must be" in text:
        for group in _groups(arguments):
            given = _given(arguments, group)
            if given and not re.search(r"[^\W\d]", given.replace("null", "")):
                return str(_bad_option(f"{group}/{given}", "", arguments))
        given = next((a for a in arguments if a.startswith("=")), " ".join(arguments))
        return str(_bad_syntax(given, "no key before the ="))
    if isinstance(error, OSError):
        return f"the run directory cannot be made\n  {text}"
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n  ".join(["the configuration cannot be composed", *lines[:12]])


def _bad_syntax(override: str, text: str) -> BadInput:
    allowed = "key=value without spaces; for a list quotes too: 'key=[1,2]'"
    if "=" not in override:
        hint = f"{override}=VALUE"
    elif " " in override:
        hint = override.replace(" ", "")
    else:
        reason = next(line for line in text.splitlines() if "override" not in line)
        allowed, hint = f"{allowed} ({reason})", SHOW_ALL
    return BadInput("command line", override, allowed, hint)


def _bad_option(
    path: str, where: str, arguments: Sequence[str], options: Sequence[str] | None = None
) -> BadInput:
    """For a group that has no such option."""
    group, _, name = path.rpartition("/")
    options = options or _options(group, arguments)
    if not options:
        groups = _groups(arguments)
        hint = ", ".join(nearest(group, groups))
        return BadInput(group + where, name, f"a group that exists: {', '.join(groups)}", hint)
    hint = ", ".join(f"{group}={option}" for option in nearest(name, options))
    return BadInput(group + where, name, ", ".join(options), hint)


def _bad_key(key: str, where: str, arguments: Sequence[str]) -> BadInput:
    """For a key that is not in the configuration."""
    given = _given(arguments, key)
    if key.partition(".")[0] == "hydra":
        return BadInput(key, given, "a key of Hydra", "python -m gradlab --cfg hydra shows them")
    known = _known_keys(arguments, key)
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    shown = siblings or [k for k in known if "." not in k]
    close = nearest(key, siblings) or nearest(key, known)
    value = "" if not given or where else f"={given}"
    hint = ", ".join(f"{k}{value}" for k in close) or SHOW_ALL
    return BadInput(key + where, given, f"a key that exists: {', '.join(shown)}", hint)


def _located(text: str) -> str:
    """In which file the fault is, unless it is on the command line."""
    found = LOCATED.search(text)
    if found is None or found[1] == "config" or found[1].startswith("hydra/"):
        return ""
    return f" (in {found[1]}.yaml)"


def _given(arguments: Iterable[str], key: str) -> str:
    """What the command line says of ``key``."""
    start = re.compile(rf"[+~]*{re.escape(key)}(@[^=]*)?=")
    return next((a[m.end() :] for a in arguments if (m := start.match(a))), "")


def _config_folders(arguments: Sequence[str]) -> list[Path]:
    """The folders with yaml files: ours and the user's."""
    folders = [Path(config_folder())]
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, _, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value or following).absolute())
    return [folder for folder in folders if folder.is_dir()]


def _groups(arguments: Sequence[str]) -> list[str]:
    folders = _config_folders(arguments)
    return sorted({p.name for f in folders for p in f.iterdir() if _options(p.name, arguments)})


def _options(group: str, arguments: Sequence[str]) -> list[str]:
    folders = _config_folders(arguments)
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _known_keys(arguments: Sequence[str], wrong: str) -> list[str]:
    """Every key and group that could have been meant, with the chosen options applied."""
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser

    groups = _groups(arguments)
    overrides: list[Override] = []
    for argument in arguments:
        with suppress(HydraException):
            overrides += OverridesParser.create().parse_overrides([argument])
    chosen = [
        str(override.input_line)
        for override in overrides
        if override.key_or_group in groups and not override.is_sweep_override()
    ]
    extra = [f"file://{folder}" for folder in _config_folders(arguments)[1:]]
    with initialize_config_dir(config_folder(), version_base="1.3"):
        try:
            cfg = compose("config", overrides=[f"hydra.searchpath=[{','.join(extra)}]", *chosen])
        except (HydraException, OmegaConfBaseException, ValueError):
            cfg = compose("config")
    return sorted({*_flat(OmegaConf.to_container(cfg)), *groups} - {"hydra"})


def _flat(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    names = []
    for key, value in node.items():
        if str(key).startswith("_"):
            continue
        names += [f"{prefix}{key}", *_flat(value, f"{prefix}{key}.")]
    return names


def _shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    # By its own name, so that launchers in other processes and the callback find the same module.
    from gradlab.__main__ import main

    main()
