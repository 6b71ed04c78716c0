"""The sweep files in scripts/, run by ``wandb sweep`` and ``wandb agent`` as they are."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gradlab.launch.resume import from_agent
from gradlab.record.wandb.start import beside
from tests import ROOT
from tests.conftest import SOURCE
from tests.record.wandb_server import ENTITY, KEY, WandbServer, isolate
from tests.small import QUIET, TINY

FOLDER = ROOT / "scripts" / "wandb_sweeps"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.fixture
def server(tmp_path, monkeypatch):
    with WandbServer() as server:
        isolate(monkeypatch, tmp_path)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("PYTHONPATH", SOURCE)
        # As in an environment that is active: the agent starts `python`.
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.chdir(tmp_path)
        yield server


def said_by(*command):
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def smaller(file, target):
    """The sweep file with runs that take no time; all else is as it stands."""
    lines = file.read_text().splitlines()
    at = lines.index("  - ${args_no_hyphens}")
    small = [f"  - {one}" for one in (*TINY, *QUIET, "probe=adjoint")]
    target.write_text("\n".join([*lines[:at], *small, *lines[at:]]))
    return target


def composed(run):
    """The configuration that a run recorded in its own directory."""
    overrides = run.config["facts"]["value"]["overrides"]
    infos = [json.loads(path.read_text()) for path in Path("outputs").glob("*/*/run.json")]
    (found,) = (info["config"] for info in infos if info["overrides"] == overrides)
    return found


def at(config, key):
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_sweep_file_is_run_by_an_agent(server, tmp_path, file):
    said = said_by("sweep", smaller(file, tmp_path / file.name))
    name = re.search(rf"wandb agent ({ENTITY}/gradlab/\w+)", said)[1]
    (sweep,) = server.sweeps.values()
    assert sweep.config["metric"] == {"name": "val/loss", "goal": "minimize"}
    said_by("agent", "--count", "2", name)
    assert server.unknown == []
    assert len(server.runs) == len(sweep.given) == 2
    first, second = sweep.given.values()
    assert first != second
    for id, setting in sweep.given.items():
        run = server.runs[id]
        assert run.labels["sweep"] == sweep.id
        assert (run.exit_code, run.summary["status"]) == (0, "finished")
        losses = [row["val/loss"] for row in run.history if "val/loss" in row]
        assert run.summary["val/loss"] == min(losses)
        config = {key: one["value"] for key, one in run.config.items()}
        for key, value in setting.items():
            assert config[key] == value
        own = composed(run)
        for name in own.keys() - setting.keys():
            assert config[name] == own[name]
        for name, value in setting.items():
            if isinstance(own.get(name), dict):  # the option of a group: beside it what it holds
                inner = [key for key in config if key.startswith(f"{name}.")]
                assert {key.split(".")[1] for key in inner} == own[name].keys()
                assert all(config[key] == at(own, key) for key in inner)
            else:
                assert at(own, name) == value


def test_every_sweep_file_is_about_what_gradlab_has(command):
    for file in FILES:
        sweep = yaml.safe_load(file.read_text())
        given = [one for one in sweep["command"] if "=" in one and "mode=" not in one]
        for name, one in sweep["parameters"].items():
            given.append(f"{name}={one['values'][0] if 'values' in one else one['max']}")
        assert command(*given, "--cfg", "job").code == 0
        assert sweep["command"][-1] == "${args_no_hyphens}"
        assert "record.wandb.mode=online" in sweep["command"]
    assert {file.stem for file in FILES} == {"grid", "random", "bayes"}


def test_a_section_that_a_parameter_takes_the_name_of_is_recorded_beside_it():
    config = {"model": {"hidden": 3, "cell": {"a": 1, "b": {}}}, "seed": 0, "task": {"length": 8}}
    found = beside({"model", "seed", "optimizer.learning_rate"}, config)
    assert found == {
        "model.hidden": 3,
        "model.cell.a": 1,
        "model.cell.b": {},
        "seed": 0,
        "task": {"length": 8},
    }
    assert beside(set(), config) == config


def test_none_is_null_from_an_agent_and_nowhere_else(command, monkeypatch):
    given = ["optimizer.clip_norm=None", "record.wandb.notes=None of these", "-m"]
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    assert from_agent(given) == given
    refused = command("optimizer.clip_norm=None")
    assert refused.code == 2
    assert "try: optimizer.clip_norm=null" in refused.err
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert from_agent(given) == ["optimizer.clip_norm=null", *given[1:]]
    assert "clip_norm: null" in command("optimizer.clip_norm=None", "--cfg", "job").out
