"""The command line: compose, check, build, train, report.

``python -m gradlab experiment=NAME [key=value ...]``. Everything heavy is imported inside
functions, so that ``--help`` and ``--cfg job`` answer at once.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradlab.errors import BadInput, nearest

PRESETS = ("none", "standard", "full")
"""Options of the group ``probe`` that choose several probes at once."""


def config_folder() -> str:
    """Where the yaml files are: beside the package in a wheel, at the top of a checkout."""
    installed = Path(__file__).parent / "conf"
    return str(installed if installed.is_dir() else Path(__file__).parents[2] / "conf")


def main() -> None:
    """Run the command line. Bad input ends with one message and exit code 2."""
    # Hydra would print its own short traceback; with this it hands the error to us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # jax says at every start on a machine without a TPU that it found none.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    entry = hydra.main(version_base="1.3", config_path=config_folder(), config_name="config")(job)
    try:
        entry()
    except BadInput as error:
        _refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(_explain(error, sys.argv[1:]))


def job(cfg: DictConfig) -> float | None:
    """One run of a composed configuration; gives its validation loss, for sweepers."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    alone = HydraConfig.get().mode == RunMode.RUN
    try:
        outcome = _run(cfg, folder)
    except BadInput as error:
        _leave_nothing(folder)
        if alone:
            _refuse(str(error))
        raise
    if outcome.status == "interrupted":
        sys.exit(130)
    return outcome.summary.get("val/loss")


def _run(cfg: DictConfig, folder: Path):
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    experiment = _build(config)
    from gradlab.experiment import run

    record = config["record"]
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
    from gradlab.check import check_arguments, check_type
    from gradlab.record.terminal import Terminal
    from gradlab.record.wandb_sink import WandbSink

    for key in ("figures", "terminal"):
        check_type(f"record.{key}", record[key], bool)
    check_arguments("record.wandb", WandbSink, record["wandb"], supplied={"directory"})
    settings = {**record["wandb"]}
    settings["name"] = settings.get("name") or f"{name} {folder.parent.name} {folder.name}"
    wandb = WandbSink(folder, **settings)
    return [wandb, *([Terminal()] if record["terminal"] else [])], wandb


def _build(config: dict[str, Any]):
    """The parts of the experiment that a configuration names."""
    from gradlab.check import check_arguments, check_type
    from gradlab.experiment import Experiment, check_experiment
    from gradlab.optimizer import build_optimizer
    from gradlab.train import Trainer

    _known_sections(config)
    check_type("seed", config["seed"], int)
    model = config["model"]
    for key, kind in (("hidden", int), ("layers", int), ("bidirectional", bool)):
        check_type(f"model.{key}", model[key], kind)
    check_arguments("trainer", Trainer, config["trainer"], supplied=set())
    trainer = Trainer(**config["trainer"])
    settings = {k: v for k, v in config["optimizer"].items() if k != "rule"}
    check_arguments("optimizer", build_optimizer, settings, supplied={"rule", "steps"})
    rule = _make("optimizer.rule", config["optimizer"]["rule"], {"learning_rate"}, partial=True)
    choices = HydraConfig.get().runtime.choices
    measure = config["probe"].get("measure") or {}
    experiment = Experiment(
        name=str(choices["experiment"]),
        model_name=str(choices["model"]),
        make_cell=_make(
            "model.cell",
            model["cell"],
            {"in_features", "hidden_features", "rngs"},
            partial=True,
        ),
        hidden=model["hidden"],
        layers=model["layers"],
        bidirectional=model["bidirectional"],
        task=_make("task", config["task"], set()),
        optimizer=build_optimizer(rule, steps=trainer.steps, **settings),
        trainer=trainer,
        probes={
            name: _make(f"probe.measure.{name}", node, set()) for name, node in measure.items()
        },
        probes_by_preset=str(choices["probe"]) in PRESETS,
        seed=config["seed"],
        config=config,
    )
    check_experiment(experiment)
    return experiment


def _known_sections(config: Mapping[str, Any]) -> None:
    sections = {"seed", "model", "task", "optimizer", "trainer", "probe", "record"}
    for key in config:
        if key not in sections:
            close = nearest(key, sections)
            allowed = f"the sections {', '.join(sorted(sections))}"
            raise BadInput(key, config[key], allowed, close[0] if close else "")


def _make(key: str, node: Any, supplied: set[str], *, partial: bool = False) -> Any:
    """What a section with ``_target_`` names, built, or a function that builds it."""
    from hydra.errors import InstantiationException
    from hydra.utils import get_object, instantiate

    from gradlab.check import check_arguments

    if not isinstance(node, dict) or "_target_" not in node:
        raise BadInput(f"{key}._target_", None, "the dotted name of a class or function")
    try:
        target: Callable[..., Any] = get_object(node["_target_"])
    except Exception as error:  # noqa: BLE001  (importing a user's module can raise anything)
        raise BadInput(
            f"{key}._target_",
            node["_target_"],
            "the dotted name of a class or function that can be imported",
            f"check the name, and that its folder is on the path ({error})",
        ) from None
    given = {name: value for name, value in node.items() if not name.startswith("_")}
    check_arguments(key, target, given, supplied=supplied)
    try:
        return instantiate(node, _partial_=partial, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, BadInput):
            raise error.__cause__ from None
        raise


# Saying no.


def _refuse(message: str) -> None:
    print(f"gradlab: {message}", file=sys.stderr)
    sys.exit(2)


def _leave_nothing(folder: Path) -> None:
    """Remove a run directory that holds nothing but Hydra's own files."""
    import shutil

    if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {".hydra", "gradlab.log"}:
        shutil.rmtree(folder)
        for parent in list(folder.parents)[:2]:
            if parent != Path.cwd() and parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _explain(error: Exception, arguments: list[str]) -> str:
    """An error of the composition, as key, value, what is allowed and what to try."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = list(error.options or [])
        if group:
            close = nearest(name, options)
            hint = ", ".join(f"{group}={option}" for option in close)
            return str(BadInput(group, name, ", ".join(options), hint))
    text = str(error)
    found = re.search(r"Could not override '([^']+)'", text)
    if found is None:
        first = "\n  ".join(line for line in text.splitlines() if line.strip())
        return f"the configuration cannot be composed\n  {first}"
    key = found[1].split("@")[0]
    given = next(
        (a.split("=", 1)[1] for a in arguments if a.lstrip("+~").startswith(f"{key}=")), ""
    )
    known = _known_keys(arguments, key)
    siblings = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]] or known
    close = nearest(key, known)
    return str(BadInput(key, given, f"a key that exists: {', '.join(siblings)}", ", ".join(close)))


def _known_keys(arguments: list[str], wrong: str) -> list[str]:
    """Every key and group that could have been meant, with the other overrides applied."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    others = [a for a in arguments if "=" in a and not a.startswith(("-", "hydra", wrong))]
    simple = [a for a in others if "," not in a and "(" not in a]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        try:
            cfg = compose("config", overrides=simple)
        except (HydraException, OmegaConfBaseException):
            cfg = compose("config")
    groups = sorted(p.name for p in Path(config_folder()).iterdir() if p.is_dir())
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
    main()
