"""Folders that somebody sends, whose records name code: none of it may run when they are resumed.

Each payload would make a file, its mark. ``make_run`` and ``make_sweep`` lay it out as a run or a
sweep that was killed.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import ROOT


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@dataclass(frozen=True)
class Payload:
    """Settings that a folder records.

    Attributes:
      say: from the folder and the mark to what is recorded as said of a run.
      of_hydra: whether a sweep records them as said of Hydra.
      inside: whether it would work only where the folder is the current one.
    """

    say: Callable[[Path, Path], list[Any]]
    of_hydra: bool = False
    inside: bool = False


def _target(name: str, **arguments: object) -> str:
    """A section that calls ``name``."""
    return (
        "{" + ",".join(f"{k}:{_word(v)}" for k, v in {"_target_": name, **arguments}.items()) + "}"
    )


def _word(value: object) -> str:
    return (
        str(value)
        if isinstance(value, str) and value.replace(".", "_").isidentifier()
        else _quoted(value)
    )


def _quoted(value: object) -> str:
    return (
        '"' + str(value).replace('"', '\\"') + '"'
        if not isinstance(value, bool | list)
        else str(value)
    )


def _one(text: Callable[[Path, Path], str], **options: bool) -> Payload:
    return Payload(lambda folder, mark: [text(folder, mark)], **options)


def _regularizer(name: str, arguments: Callable[[Path, Path], Mapping[str, object]]) -> Payload:
    return _one(
        lambda folder, mark: f"trainer.regularizer={_target(name, **arguments(folder, mark))}"
    )


def _python(mark: Path) -> str:
    return f"open('{mark}', 'w')"


def _shell(mark: Path) -> str:
    return f"touch {mark}"


def _pickle(folder: Path, _: Path) -> str:
    return str(folder / "evil.pkl")


def _system(mark: Path) -> str:
    return _target("os.system", command=_shell(mark))


PAYLOADS: dict[str, Payload] = {
    # A file of the folder is unpickled.
    "pandas": _regularizer(
        "pandas.read_pickle", lambda f, m: {"filepath_or_buffer": _pickle(f, m)}
    ),
    "joblib": _regularizer("joblib.load", lambda f, m: {"filename": _pickle(f, m)}),
    "numpy": _regularizer("numpy.load", lambda f, m: {"file": _pickle(f, m), "allow_pickle": True}),
    # Something of the standard library runs what it is given.
    "system": _regularizer("os.system", lambda f, m: {"command": _shell(m)}),
    "subprocess": _one(
        lambda f, m: (
            "trainer.regularizer={_target_:subprocess.run,_args_:[[touch,'" + str(m) + "']]}"
        )
    ),
    "exec": _one(
        lambda f, m: 'trainer.regularizer={_target_:builtins.exec,_args_:["' + _python(m) + '"]}'
    ),
    "eval": _one(
        lambda f, m: 'trainer.regularizer={_target_:builtins.eval,_args_:["' + _python(m) + '"]}'
    ),
    "partial": _one(
        lambda f, m: (
            f'trainer.regularizer={{_target_:os.system,_partial_:true,command:"{_shell(m)}"}}'
        )
    ),
    # A module that lies in the folder.
    "module as cell": _one(lambda f, m: "model.cell._target_=evil_module.Cell", inside=True),
    "module as task": _one(lambda f, m: "task={_target_:evil_module.Task}", inside=True),
    "module added": _one(lambda f, m: "++task._target_=evil_module.Task", inside=True),
    "module as rule": _one(lambda f, m: "optimizer.rule._target_=evil_module.rule", inside=True),
    "module swept": _one(
        lambda f, m: "model.cell._target_=evil_module.Cell,evil_module.Other", inside=True
    ),
    # A place where something of a kind is due.
    "probe": _one(lambda f, m: f"+probe.measure.x={_system(m)}"),
    "all probes": _one(lambda f, m: f"probe.measure={{x:{_system(m)}}}"),
    "section of the trainer": Payload(
        lambda f, m: [f"+trainer.evil={_system(m)}", "trainer.regularizer=evil"]
    ),
    "chosen section": Payload(
        lambda f, m: [f"trainer.omega={_system(m)}", "trainer.regularizer=omega"]
    ),
    "key by key": Payload(
        lambda f, m: [
            "+trainer.evil._target_=os.system",
            f"+trainer.evil.command='{_shell(m)}'",
            "trainer.regularizer=evil",
        ]
    ),
    "argument of a task": _one(lambda f, m: f"task.min_length={_system(m)}"),
    "initializer": _one(lambda f, m: f"model.cell.recurrent_kernel_init={_system(m)}"),
    "argument of a rule": _one(lambda f, m: f"optimizer.rule.b1={_system(m)}"),
    "in a list": _one(lambda f, m: f"probe.measure.adjoint.quantiles=[0.5,{_system(m)}]"),
    "in a dictionary of a list": _one(
        lambda f, m: f"probe.measure.adjoint.quantiles=[{{a:[{_system(m)}]}}]"
    ),
    "quoted key": _one(lambda f, m: "trainer.regularizer._target_='os.system'"),
    "swept": _one(lambda f, m: f"trainer.regularizer=omega,{_system(m)}"),
    "chosen among": _one(lambda f, m: f"trainer.regularizer=choice({_system(m)},null)"),
    # Flags, anywhere in the list.
    "rerun": Payload(lambda f, m: [f"--experimental-rerun={f}/config.pickle", "seed=0"]),
    "config folder": _one(lambda f, m: f"--config-dir={f}/conf"),
    "config folder, apart": Payload(lambda f, m: ["-cd", f"{f}/conf", "model=evil"]),
    "config path": _one(lambda f, m: f"-cp={f}/conf"),
    "config name": Payload(lambda f, m: ["seed=0", "--config-name", "evil"]),
    # Of Hydra itself.
    "callback": _one(
        lambda f, m: f"+hydra.callbacks.x={_system(m)}",
        of_hydra=True,
    ),
    "callback of the folder": _one(
        lambda f, m: "+hydra.callbacks.x={_target_:evil_module.Callback}",
        of_hydra=True,
        inside=True,
    ),
    "logging": _one(
        lambda f, m: (
            'hydra.job_logging={version:1,handlers:{x:{"()":os.system,command:"'
            + _shell(m)
            + '"}},root:{handlers:[x]},disable_existing_loggers:false}'
        ),
        of_hydra=True,
    ),
    "logging of Hydra": _one(
        lambda f, m: (
            "hydra.hydra_logging={version:1,handlers:{x:{class:evil_module.Handler}},"
            "root:{handlers:[x]},disable_existing_loggers:false}"
        ),
        of_hydra=True,
        inside=True,
    ),
    "logging group": _one(lambda f, m: "hydra/job_logging=default", of_hydra=True),
    "search path": Payload(
        lambda f, m: [f"hydra.searchpath=[file://{f}/conf]", "model=evil"], of_hydra=True
    ),
    "launcher": _one(lambda f, m: f"hydra.launcher={_system(m)}", of_hydra=True),
    "launcher's target": _one(
        lambda f, m: "hydra.launcher._target_=evil_module.Launcher", of_hydra=True, inside=True
    ),
    "launcher's set-up": Payload(
        lambda f, m: ["hydra/launcher=local", f"+hydra.launcher.setup=['{_shell(m)}']"],
        of_hydra=True,
    ),
    "launcher's Python": Payload(
        lambda f, m: ["hydra/launcher=slurm", f"+hydra.launcher.python={f}/evil.sh"], of_hydra=True
    ),
    "launcher of a path": _one(lambda f, m: f"hydra/launcher=../../{f}/conf/evil", of_hydra=True),
    "sweeper's parameters": _one(
        lambda f, m: f"+hydra.sweeper.params.trainer.regularizer='{_target('os.system')}'",
        of_hydra=True,
    ),
    "search space": Payload(
        lambda f, m: [
            "hydra/sweeper=optuna",
            "hydra.sweeper.custom_search_space=evil_module.space",
        ],
        of_hydra=True,
        inside=True,
    ),
    "environment": _one(lambda f, m: "+hydra.job.env_set.LD_PRELOAD=evil.so", of_hydra=True),
    "working folder": _one(lambda f, m: "hydra.job.chdir=true", of_hydra=True),
    "folder of a job": _one(lambda f, m: "hydra.sweep.subdir=../${hydra:job.num}", of_hydra=True),
    "folder of a job by a resolver": _one(
        lambda f, m: "hydra.sweep.subdir=${oc.env:HOME}", of_hydra=True
    ),
    "sections as Hydra's": _one(lambda f, m: "hydra={callbacks:{}}"),
    # An option that is a file.
    "option by a path": _one(lambda f, m: f"model=../../../../../../../../..{f}/conf/model/evil"),
    "option by a full path": _one(lambda f, m: f"model={f}/conf/model/evil"),
    "option of a package": _one(lambda f, m: "model=pkg://evil_module/evil", inside=True),
    "option of a file": _one(lambda f, m: f"model=file://{f}/conf/model/evil"),
    "option among others": _one(
        lambda f, m: f"probe=[adjoint,../../../../../..{f}/conf/model/evil]"
    ),
    "option of the folder": _one(lambda f, m: "model=evil"),
    "group of the folder": _one(lambda f, m: "+evil=evil"),
    # Sections put elsewhere.
    "into Hydra's callbacks": _one(lambda f, m: "+probe@hydra.callbacks.x=adjoint"),
    "a rule as a cell": _one(lambda f, m: "+optimizer@model.cell=adam"),
    "a task as everything": _one(lambda f, m: "task@_global_=adding"),
    # What is looked up while it is composed.
    "environment variable": _one(lambda f, m: "record.wandb.notes=${oc.env:HOME}"),
    "decoded": _one(lambda f, m: "trainer.regularizer=${oc.decode:'{_target_:os.system}'}"),
    "made": _one(lambda f, m: "trainer.regularizer=${oc.create:${oc.env:EVIL}}"),
    "within text": _one(lambda f, m: "record.wandb.notes='a ${oc.env:HOME} b'"),
    "nested": _one(lambda f, m: "record.wandb.notes='${oc.env:${oc.env:HOME}}'"),
    "a target that is looked up": _one(lambda f, m: "model.cell._target_=${record.wandb.notes}"),
    # No settings.
    "no text": Payload(lambda f, m: [{"_target_": "os.system"}, 3, None]),
    "no list": Payload(lambda f, m: {"model": "evil"}),  # type: ignore[arg-type, return-value]
    "thousands": Payload(lambda f, m: [f"+task.x{n}=0" for n in range(5000)]),
    "megabytes": _one(lambda f, m: "record.wandb.notes=" + "a" * 200_000),
    "deep": _one(lambda f, m: "task.length=" + "[" * 3000 + "]" * 3000),
    "no setting": _one(lambda f, m: "just some words"),
    "unknown section": _one(lambda f, m: "+evil.key=3"),
    "keyword of Hydra's": _one(lambda f, m: "+model.cell._recursive_=false"),
    "arguments by position": _one(lambda f, m: "+model.cell._args_=[1]"),
    "lines": _one(lambda f, m: "seed=0\n--config-dir=conf"),
}
"""By kind, what a folder may record to have something run."""

_MODULE = """
open({mark!r}, "w").close()
"""


def lay_out(folder: Path, mark: Path) -> None:
    """What payloads refer to, in ``folder``: a pickle, a module, a package, options."""
    folder.mkdir(parents=True)
    data = pickle.dumps(Touch(mark))
    for name in ("evil.pkl", "config.pickle"):
        (folder / name).write_bytes(data)
    (folder / "evil_module.py").write_text(_MODULE.format(mark=str(mark)), encoding="utf-8")
    cell = f"cell:\n  _target_: os.system\n  command: touch {mark}\n"
    for place in ("conf/model/evil.yaml", "conf/evil/evil.yaml", "conf/evil.yaml"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(cell, encoding="utf-8")
    plugins = folder / "hydra_plugins"
    plugins.mkdir()
    (plugins / "evil_plugin.py").write_text(_MODULE.format(mark=str(mark)), encoding="utf-8")


def make_run(folder: Path, mark: Path, payload: Payload, config: Mapping[str, Any] | None = None):
    """A run that was killed, as ``payload`` has it recorded."""
    lay_out(folder, mark)
    info = {"format": 2, "id": "0123abcd", "name": "default", "status": "interrupted"}
    info |= {"reason": "", "summary": {}, "config": dict(config or {}), "resumed": []}
    info["overrides"] = payload.say(folder, mark)
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def make_sweep(folder: Path, mark: Path, payload: Payload, config_dir: str = ""):
    """A sweep that was killed before its first job, as ``payload`` has it recorded."""
    lay_out(folder, mark)
    said = payload.say(folder, mark)
    task, of_hydra = ([], said) if payload.of_hydra else (said, [])
    sources = [{"path": config_dir, "provider": "command-line"}] if config_dir else []
    recorded = {"overrides": {"task": task, "hydra": of_hydra}}
    recorded |= {"runtime": {"config_sources": sources}}
    text = yaml.safe_dump({"hydra": recorded})
    (folder / "multirun.yaml").write_text(text, encoding="utf-8")
    return folder


def run() -> list[str]:
    """Resume each as a run and as a sweep, in processes of their own: what went wrong."""
    ways = {"a run": (make_run, []), "a sweep": (make_sweep, []), "with -m": (make_sweep, ["-m"])}
    wrong = []
    for kind, payload in PAYLOADS.items():
        for way, (make, flags) in ways.items():
            with tempfile.TemporaryDirectory() as place:
                mark = Path(place, "mark")
                sent = make(Path(place, "sent"), mark, payload)
                done = subprocess.run(
                    [sys.executable, "-m", "gradlab", *flags, f"trainer.resume={sent}"],
                    cwd=sent if payload.inside else place,
                    env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                if mark.exists():
                    wrong.append(f"{kind}, {way}: it ran")
                if done.returncode != 2 or done.stderr.count("gradlab: ") != 1:
                    wrong.append(f"{kind}, {way}: code {done.returncode}: {done.stderr[-500:]}")
    print(f"{len(PAYLOADS)} kinds of folders that name code, each in {len(ways)} ways")
    return wrong
