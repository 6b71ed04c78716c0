"""The house itself: what an import costs, and what the wheel holds and needs."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import gradlab
from tests import ROOT
from tests.conftest import MARKED, SMOKE

PACKAGE = Path(gradlab.__file__).parent


def loaded_after(code):
    """The top-level modules in memory after ``code`` ran in a process of its own."""
    code += "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_every_smoke_test_is_there():
    for files in MARKED.values():
        for file, names in files.items():
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            for name in names:
                assert f"\ndef {name}(" in text, (file, name)
    rooms = {path.name for path in (ROOT / "tests").iterdir() if list(path.glob("test_*.py"))}
    assert rooms <= {file.partition("/")[0] for file in SMOKE}


def test_import_is_light():
    assert not loaded_after("import gradlab") & {"hydra", "omegaconf", "wandb", "jax", "numpy"}


def test_submodules_follow_a_bare_import():
    code = "import gradlab; gradlab.cells.SimpleRNN, gradlab.unroll.unroll; import gradlab.run"
    loaded = loaded_after(code)
    assert "jax" in loaded
    assert not loaded & {"xarray", "pandas", "matplotlib", "wandb"}  # no first step needs them


ALIASES = {
    "optimizer": "training.optimizer",
    "scaling": "bptt.scaling",
    "train": "training.loop",
    "unroll": "bptt.unroll",
}


IMPORTS = """
import sys
for lines in {cases!r}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "gradlab"]:
        del sys.modules[name]
    exec(lines, {{}})
"""


def test_a_short_name_is_the_module_itself_however_it_is_imported():
    cases = []
    for short, home in ALIASES.items():
        lines = [f"import gradlab.{short} as alias", f"import gradlab.{home} as home"]
        rest = [
            f"from gradlab import {short} as attribute",
            "assert alias is home is attribute",
            f"assert alias.__spec__.name == alias.__name__ == 'gradlab.{home}'",
        ]
        cases += ["\n".join([*first, *rest]) for first in (lines, lines[::-1])]
    loaded_after(IMPORTS.format(cases=cases))


def test_reading_a_run_needs_no_jax():
    loaded = loaded_after("import gradlab; gradlab.open_run")
    assert "xarray" in loaded
    assert not loaded & {"jax", "hydra", "omegaconf", "wandb"}


def test_only_the_command_line_imports_hydra_and_nothing_wandb():
    parts = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = [".".join(part.parts) for part in parts if part.parts[1] not in ("__main__", "launch")]
    assert "gradlab.cells.lstm" in names
    loaded = loaded_after("\n".join(f"import {name}" for name in sorted(names)))
    assert "jax" in loaded
    assert not loaded & {"hydra", "omegaconf", "wandb"}


def test_every_public_name_is_there():
    for name in gradlab.__all__:
        assert getattr(gradlab, name) is not None
    assert dir(gradlab) == sorted(gradlab.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = gradlab.nothing_like_it


def test_dependencies_are_what_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + extras["tensorboard"] + extras["reports"]
    declared = {re.split(r"[<>=\[ ]", line)[0].lower() for line in lines}
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    owners = packages_distributions()
    with_plugins = {"hydra_plugins", "optuna", "submitit"}  # these come with an extra's plugin
    foreign = imported - sys.stdlib_module_names - {"gradlab"} - with_plugins
    assert declared == {owners[name][0].lower() for name in foreign}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_every_module_and_config(wheel):
    modules = {f"gradlab/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.py")}
    plugins = PACKAGE.parent / "hydra_plugins"
    modules |= {f"hydra_plugins/{path.name}" for path in plugins.glob("*.py")}
    configs = {
        f"gradlab/conf/{path.relative_to(ROOT / 'conf')}" for path in ROOT.glob("conf/**/*.yaml")
    }
    assert "gradlab/conf/config.yaml" in configs
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in held if name.endswith((".py", ".yaml"))} == modules | configs
    assert {"gradlab/py.typed", "gradlab/record/charts/vanishing_curve.json"} <= held
    files = [path for path in PACKAGE.rglob("compare/page/browser/**/*") if path.is_file()]
    assert len(files) > 15
    assert {f"gradlab/{path.relative_to(PACKAGE)}" for path in files} <= held


@pytest.mark.slow
def test_installed_wheel_runs_in_an_empty_folder(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: gru\n")
    work = tmp_path / "work"
    work.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for options in (["experiment=adding"], ["--config-dir", own.parent, "experiment=mine"]):
        command = [python, "-m", "gradlab", *options, "trainer.steps=20"]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    runs = [json.loads(path.read_text()) for path in work.glob("outputs/*/*/run.json")]
    assert [run["status"] for run in runs] == ["finished", "finished"]
    command = [python, "-m", "gradlab.compare", "outputs"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.stdout == f"page: {Path('outputs', 'compare.html')}\n", done.stdout + done.stderr
    assert not [path.name for path in work.iterdir() if path.name != "outputs"]
