"""From a composed configuration to the parts of an experiment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from gradlab.errors import BadInput, cannot_be, first_line, nearest

SECTIONS = ("model", "task", "optimizer", "trainer", "probe", "record")
"""What a configuration consists of, besides ``seed`` and ``objective``."""


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as nested plain dicts, with all of its sections.

    Raises:
      BadInput: for a value that is missing, or that refers to one that does not exist; for a
        section that is missing, or that there is none of.
    """
    from gradlab.launch.check import check_keys

    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raw: Any = OmegaConf.to_container(cfg)
        for part in str(error.full_key).split("."):
            raw = raw.get(part) if isinstance(raw, dict) else raw
        missing = isinstance(error, MissingMandatoryValue)
        exists = f"a value that exists; {first_line(error)}"
        allowed = "a value; none is given yet" if missing else exists
        raise BadInput(str(error.full_key), raw, allowed, f"{error.full_key}=VALUE") from None
    assert isinstance(config, dict)
    config = {str(key): value for key, value in config.items()}
    own = {"seed": int, "objective": str | list[str]}
    check_keys("", config, own | dict.fromkeys(SECTIONS, dict))
    return config


def build(config: dict[str, Any], choices: Mapping[str, Any], overrides: Sequence[str] = ()):
    """The :class:`gradlab.experiment.Experiment` that a configuration describes.

    Args:
      config: as from :func:`plain`.
      choices: the option taken from each group of the configuration, for names.
      overrides: what was said on the command line.

    Raises:
      BadInput: with the key at fault.
    """
    from flax import nnx

    from gradlab.experiment import Experiment, check_experiment
    from gradlab.launch.check import check_arguments, check_keys
    from gradlab.launch.objective import check_objective
    from gradlab.model import InitialState
    from gradlab.probes.base import CloseProbe, StepProbe
    from gradlab.record.wandb.sink import WandbSink
    from gradlab.tasks.base import Task
    from gradlab.training.compile_cache import keep_compiled
    from gradlab.training.loop import Trainer
    from gradlab.training.optimizer import Optimizer
    from gradlab.training.schedule import Schedule

    keep_compiled()  # wherever a job runs: every process that runs one builds it
    model, record = config["model"], config["record"]
    own = {"hidden": int, "layers": int, "bidirectional": bool, "initial_state": InitialState}
    check_keys("model", model, own | {"cell": dict})
    switches = dict.fromkeys(("tensorboard", "figures", "terminal"), bool)
    check_keys("record", record, {"wandb": dict, **switches})
    check_arguments("record.wandb", WandbSink, record["wandb"], supplied={"directory"})
    WandbSink(".", **record["wandb"])  # which refuses what it cannot have
    settings, regularizer = _regularizer(config["trainer"])
    settings.pop("resume", None)  # a matter of the command line
    check_arguments("trainer", Trainer, settings)
    trainer = Trainer(**settings)
    settings = {k: v for k, v in config["optimizer"].items() if k != "rule"}
    check_arguments("optimizer", Optimizer, settings, supplied={"rule", "steps"})
    rule = _make("optimizer.rule", config["optimizer"].get("rule"), {"learning_rate"})
    probe = {"preset": None, **config["probe"]}
    kinds = {"preset": str | None, "measure": dict, "examples": int}
    check_keys("probe", probe, kinds | dict.fromkeys(("every", "per_decade"), int | None))
    experiment = Experiment(
        name=str(choices.get("experiment", "")),
        model_name=str(choices.get("model", "")),
        make_cell=_make(
            "model.cell",
            model["cell"],
            {"in_features", "hidden_features", "rngs"},
            kinds=(nnx.RNNCellBase,),
        ),
        **{key: model[key] for key in own},
        task=_make("task", config["task"], kinds=(Task,)),
        optimizer=Optimizer(rule, steps=trainer.steps, **settings),
        trainer=trainer,
        probes={
            name: _make(f"probe.measure.{name}", node, kinds=(StepProbe, CloseProbe))
            for name, node in probe["measure"].items()
        },
        probes_by_preset=probe["preset"] is not None,
        close=Schedule(probe["every"], probe["per_decade"], "probe.every"),
        close_examples=probe["examples"],
        regularizer=regularizer,
        seed=config["seed"],
        config=config,
        overrides=overrides,
    )
    check_experiment(experiment)
    check_objective(config["objective"], experiment)
    return experiment


def _regularizer(trainer: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The trainer's own settings, and the regularizer that it names or holds, or None.

    A section of the trainer with ``_target_`` is a regularizer that ``trainer.regularizer`` can
    name.
    """
    from gradlab.regularizers.base import Regularizer

    known = {
        name: node
        for name, node in trainer.items()
        if name != "regularizer" and isinstance(node, dict) and "_target_" in node
    }
    for name, node in known.items():  # a slip in one that is not chosen is a slip, too
        _make(f"trainer.{name}", node, kinds=(Regularizer,))
    settings = {name: node for name, node in trainer.items() if name not in known}
    chosen = settings.pop("regularizer", None)
    if chosen is None:
        return settings, None
    if isinstance(chosen, dict):
        return settings, _make("trainer.regularizer", chosen, kinds=(Regularizer,))
    if not isinstance(chosen, str) or chosen not in known:
        close = [f"trainer.regularizer={name}" for name in nearest(str(chosen), known)]
        allowed = f"null, or one of {', '.join(sorted(known))}"
        raise BadInput("trainer.regularizer", chosen, allowed, ", ".join(close))
    return settings, _make(f"trainer.{chosen}", known[chosen], kinds=(Regularizer,))


def _make(
    key: str, node: Any, supplied: Set[str] = frozenset(), kinds: tuple[type[Any], ...] = ()
) -> Any:
    """What a section with ``_target_`` names, built.

    With ``supplied`` arguments still to come it is a function that takes them and builds it.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    _check_node(key, node, supplied, kinds)
    if words := [word for word in node if word.startswith("_") and word != "_target_"]:
        allowed = "arguments by their names, and none of Hydra's own words but _target_"
        raise BadInput(f"{key}.{words[0]}", node[words[0]], allowed)
    try:
        made = instantiate(node, _partial_=bool(supplied), _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, BadInput):
            raise cause from None
        raise BadInput(key, node["_target_"], cannot_be(cause)) from error
    if kinds and not supplied and not isinstance(made, kinds):
        raise BadInput(f"{key}._target_", node["_target_"], f"something that makes {_names(kinds)}")
    return made


def _check_node(
    key: str, node: Any, supplied: Set[str] = frozenset(), kinds: tuple[type[Any], ...] = ()
) -> None:
    """Refuse a section whose target, or one in it, is of no such kind or has other arguments."""
    from gradlab.launch.check import check_arguments

    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise BadInput(key, node, "a section with _target_: the dotted name of a class or function")
    target = _find(f"{key}._target_", node["_target_"])
    if kinds and not (isinstance(target, type) and issubclass(target, kinds)):
        raise BadInput(f"{key}._target_", node["_target_"], f"a subclass of {_names(kinds)}")
    given = {name: value for name, value in node.items() if not name.startswith("_")}
    if not node.get("_args_"):
        partial = bool(node.get("_partial_"))
        check_arguments(key, target, given, supplied=supplied, partial=partial)
    for name, value in given.items():
        if isinstance(value, dict) and "_target_" in value:
            _check_node(f"{key}.{name}", value)


def _names(kinds: tuple[type[Any], ...]) -> str:
    return " or ".join(one.__qualname__ for one in kinds)


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
