"""What Hydra keeps of a configuration, looked at as soon as it is there."""

import json
import os

import pytest
import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from gradlab.launch.saved import save
from gradlab.launch.sweep.jobs import name_of
from tests.small import QUIET, TINY

TOKEN = "ghp_0123456789 " * 12  # long enough for YAML to fold it
SMALL = [*TINY, *QUIET, "probe=none", "model=feedforward"]


def test_what_is_saved_is_what_omegaconf_saves(tmp_path):
    config = OmegaConf.create(
        {"a": {"b": "${c}", "d": "1e3", "e": [1, None, True, 0.1]}, "c": "???", 3: "é" * 100}
    )
    save(config, tmp_path / "a.yaml")
    assert (tmp_path / "a.yaml").read_text(encoding="utf-8") == OmegaConf.to_yaml(config)
    with open(tmp_path / "b.yaml", "w", encoding="utf-8") as file:
        save(config.a.e, file, resolve=True)
    assert OmegaConf.load(tmp_path / "b.yaml") == [1, None, True, 0.1]


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A home folder with a folder to work in, a secret, and what is in each file when it is new."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GH_PAT", TOKEN)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    seen = {}

    def look(owner, name):
        action = getattr(owner, name)

        def first(*args, **kwargs):
            for path in (tmp_path / "work").rglob("*.yaml"):
                seen.setdefault(str(path.relative_to(tmp_path / "work")), path.read_bytes())
            return action(*args, **kwargs)

        monkeypatch.setattr(owner, name, first)

    look(ConfigLoaderImpl, "load_sweep_config")  # Hydra's next act after multirun.yaml
    look(Callbacks, "on_job_start")  # and after .hydra
    return seen


def private_in(folder, home):
    """Files that hold what is private, but for Python's and jax's own."""
    parts = (b"ghp_0123456789", os.fsencode(home))
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(part in path.read_bytes() for part in parts)]


def test_no_file_of_a_sweep_ever_holds_a_secret(command, tmp_path, at_home):
    said = [f"record.wandb.notes='{TOKEN}'", f"+hydra.job.env_set.DATA='{tmp_path}/data'"]
    said += ["+hydra.job.env_set.BASE='db://me:hunter2hunter2@host'", "task.length=8,0"]
    done = command("-m", *SMALL, *said, "hydra.sweep.dir=sweep")
    assert done.code == 2
    assert "task.length: got 0" in done.err
    names = ["sweep/multirun.yaml"]
    names += [f"sweep/{job}/.hydra/{n}.yaml" for job in (0, 1) for n in ("config", "hydra")]
    assert set(names) <= set(at_home)
    for name, content in at_home.items():
        assert b"ghp_" not in content, name
        assert b"hunter2" not in content, name
        assert os.fsencode(tmp_path) not in content, name
    assert yaml.safe_load(at_home["sweep/0/.hydra/config.yaml"])["record"]["wandb"]["notes"] == (
        "<GH_PAT>"
    )
    assert private_in(tmp_path / "work", tmp_path) == []
    assert "ghp_" not in done.out + done.err
    assert name_of(0, [[f"a={TOKEN}"], ["a=b"]]) == "job 0 (a=<GH_PAT>)"
    run = json.loads((tmp_path / "work" / "sweep" / "0" / "run.json").read_text())
    assert run["config"]["record"]["wandb"]["notes"] == "<GH_PAT>"


def test_a_refusal_does_not_tell_the_secret_that_was_given(command, at_home):
    for key in ("task.length", "nothing", "record.wandb.mode"):
        done = command(f"{key}='{TOKEN}'")
        assert done.code == 2
        assert "ghp_" not in done.err
        assert "<GH_PAT>" in done.err


def test_a_job_that_crashes_does_not_tell_it_either(command, at_home, monkeypatch):
    def fails(*_):
        raise RuntimeError(f"no entry for {TOKEN}")

    monkeypatch.setattr("gradlab.training.loop._Loop.go", fails)
    with pytest.raises(RuntimeError):
        command(*SMALL, f"record.wandb.notes='{TOKEN}'", "hydra.run.dir=run")
