"""Nothing that a folder names is run when it is resumed; what is yours is resumed as ever."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from gradlab.errors import BadInput
from gradlab.launch.recorded import OF_A_SWEEP, check_settings, keep_out
from gradlab.launch.resume import with_resumed
from gradlab.record.reader import open_run
from tests import ROOT
from tests.small import QUIET, TINY
from tests.torture.payloads import PAYLOADS, Payload, make_run, make_sweep


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", PAYLOADS)
def test_no_payload_runs(command, tmp_path, monkeypatch, kind):
    """By the folder of a run, of a sweep, and of a sweep with -m; also from within the folder."""
    mark = tmp_path / "mark"
    ways = {"run": (make_run, []), "sweep": (make_sweep, []), "again": (make_sweep, ["-m"])}
    for name, (make, flags) in ways.items():
        sent = make(tmp_path / name / "sent", mark, PAYLOADS[kind])
        before = content(sent)
        monkeypatch.chdir(sent if PAYLOADS[kind].inside else tmp_path)
        monkeypatch.setattr(sys, "path", [str(Path.cwd()), *sys.path])  # as python -m has it
        done = command(*flags, f"trainer.resume={os.path.relpath(sent)}")
        assert (done.code, done.out) == (2, ""), done
        assert re.findall("^gradlab: |Traceback", done.err, re.MULTILINE) == ["gradlab: "]
        assert done.err.startswith("gradlab: trainer.resume: got")
        assert "allowed: a folder" in done.err
        assert not {"evil_module", "hydra_plugins.evil_plugin"} & sys.modules.keys()
        assert not mark.exists()
        assert content(sent) == before


@pytest.fixture
def sent(tmp_path):
    """The folder of a sweep that records nothing."""
    return make_sweep(tmp_path / "sent", tmp_path / "mark", Payload(lambda *_: []))


def test_python_looks_for_no_module_in_the_folder_that_it_was_started_in(sent, monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr(sys, "path", ["", str(sent), str(sent.parent), *sys.path])
    monkeypatch.chdir(sent.parent)
    with_resumed([f"trainer.resume={sent}"])
    assert sys.path[:3] == ["", str(sent), str(sent.parent)]  # nobody has started it there
    monkeypatch.chdir(sent / "conf")
    (sent / "run.json").write_text("{}")
    for line in ("trainer.resume=..", "trainer.resume=auto hydra.run.dir=.."):
        monkeypatch.setattr(sys, "path", ["", str(sent / "conf"), str(sent.parent)])
        with_resumed(line.split())
        assert sys.path == [str(sent.parent)]
        assert os.environ["PYTHONSAFEPATH"] == "1"


def test_a_folder_with_a_way_out_of_it_is_refused(sent):
    (sent / "inside").symlink_to("conf/evil.yaml")
    (sent / "circle").symlink_to("circle")
    keep_out(sent)
    for target in ("../..", "../../elsewhere", sent.parent / "not there"):
        (sent / "conf" / "sweep.csv").symlink_to(target)
        for line in (f"trainer.resume={sent}", f"-m trainer.resume=auto hydra.sweep.dir={sent}"):
            with pytest.raises(BadInput, match=r"'conf/sweep\.csv' is a link that leads out of it"):
                with_resumed(line.split())
        (sent / "conf" / "sweep.csv").unlink()
    logs = sent / "0" / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to("/var/log/somewhere")  # as W&B leaves it after a kill
    keep_out(sent)
    os.mkfifo(sent / "pipe")
    with pytest.raises(BadInput, match=r"'pipe' is neither a file nor a folder"):
        with_resumed([f"trainer.resume={sent}"])
    (sent / "pipe").unlink()
    (sent / "multirun.yaml").unlink()
    os.mkfifo(sent / "multirun.yaml")
    with pytest.raises(BadInput, match=r"'multirun\.yaml' is neither"):
        with_resumed([f"trainer.resume={sent}"])


@pytest.mark.parametrize("name", ["matplotlibrc", "wandb/settings"])
def test_what_libraries_obey_in_the_current_folder_is_refused_there(sent, monkeypatch, name):
    (sent / name).parent.mkdir(exist_ok=True)
    (sent / name).write_text("[default]\nbase_url = http://localhost:1\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with_resumed([f"trainer.resume={sent}"])
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.chdir(sent)
    for line in ("trainer.resume=.", "-m trainer.resume=auto hydra.sweep.dir=."):
        with pytest.raises(BadInput, match=rf"a folder without {name}, which is obeyed"):
            with_resumed(line.split())


def test_links_in_a_folder_that_is_no_run_yet_are_refused(tmp_path):
    for key, name in (("run", ".hydra"), ("sweep", "multirun.yaml"), ("sweep", "1")):
        folder = tmp_path / name / "given"
        folder.mkdir(parents=True)
        (folder / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BadInput, match="is a link that leads out of it"):
            with_resumed(["trainer.resume=auto", f"hydra.{key}.dir={folder}"])


def test_aliases_that_grow_without_end_are_refused(sent):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    sources = "config_sources: [{provider: command-line, path: *a11}]"
    lines += [f"hydra: {{overrides: {{task: [], hydra: []}}, runtime: {{{sources}}}}}"]
    (sent / "multirun.yaml").write_text("\n".join(lines))
    with pytest.raises(BadInput, match=r"a folder whose multirun.yaml can be read"):
        with_resumed([f"trainer.resume={sent}"])


def test_how_a_sweep_is_resumed_names_none_of_its_folders():
    from hydra import compose, initialize_config_dir

    from gradlab.launch.conf_files import config_folder

    with initialize_config_dir(config_folder(), version_base="1.3"):
        config = compose("config", return_hydra_config=True)
        assert config.hydra.job.config.override_dirname.exclude_keys == ["trainer.resume"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "[]",
        "hydra: 3",
        "hydra: {overrides: {task: {a: b}, hydra: []}}",
        "[" * 20000,
        "a: *b",
    ],
)
def test_a_multirun_yaml_that_is_none_is_refused(sent, text):
    (sent / "multirun.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"a folder whose multirun.yaml can be read"):
        with_resumed([f"trainer.resume={sent}"])


def test_a_config_folder_is_named_and_not_used(tmp_path):
    sweep = make_sweep(tmp_path / "s", tmp_path / "m", PAYLOADS["option of the folder"], "s/conf")
    with pytest.raises(BadInput, match=r"try: --config-dir s/conf"):
        with_resumed([f"trainer.resume={sweep}"])
    # One that holds the folder, as the current one does, gives it no say.
    for given in ([f"--config-dir={tmp_path}"], ["--config-dir", str(tmp_path / "nothing")]):
        with pytest.raises(BadInput, match=r"'model=evil' \(no option"):
            with_resumed([*given, f"trainer.resume={sweep}"])
    given = ["--config-dir", str(sweep / "conf")]  # that is to say it oneself
    assert "model=evil" in with_resumed([*given, f"trainer.resume={sweep}"])


def test_only_secrets_and_a_home_at_the_beginning_of_a_value_are_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "t0ken-012345")
    monkeypatch.setenv("SOME_NAME", "a name that is none of theirs")
    monkeypatch.setenv("HOME", "/home/somebody")
    said = ["record.wandb.notes='<SOME_TOKEN> ~/x'", "task.path=~/x,'~/y'"]
    sweep = make_sweep(tmp_path / "s", tmp_path / "m", Payload(lambda *_: said))
    arguments = with_resumed([f"trainer.resume={sweep}"])
    assert "record.wandb.notes='t0ken-012345 ~/x'" in arguments
    assert "task.path=/home/somebody/x,'/home/somebody/y'" in arguments
    said[0] = "record.wandb.notes=' <SOME_NAME> <HOME>'"
    sweep = make_sweep(tmp_path / "other", tmp_path / "m", Payload(lambda *_: said))
    assert said[0] in with_resumed([f"trainer.resume={sweep}"])


def documented():
    """The settings of every sweep in the documentation."""
    lines = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        lines += re.findall(r"^\s*python -m gradlab -m ([^#\n]*)", text, re.MULTILINE)
    return sorted({line.replace("…", "").strip() for line in lines if "trainer.resume" not in line})


@pytest.mark.parametrize("line", documented())
def test_every_documented_sweep_is_resumed(line, tmp_path):
    said = shlex.split(line)
    said = [one for one in said if not one.startswith("hydra.sweep.dir")]  # where it is found
    check_settings(dict(zip(said, said, strict=True)), tmp_path, [], OF_A_SWEEP)


def test_there_are_documented_sweeps():
    assert len(documented()) >= 10


CELL = """
from pathlib import Path

import gradlab.cells


class Own(gradlab.cells.SimpleRNN):
    pass
"""


def test_a_cell_of_ones_own_is_resumed_where_it_is_given_again(command, tmp_path):
    (tmp_path / "own_cell.py").write_text(CELL)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "own.yaml").write_text("cell: {_target_: own_cell.Own}\n")
    own = ["--config-dir", "conf"]
    line = [*own, "model=own", "probe=none", *TINY, *QUIET]
    done = command(*line, "hydra.run.dir=first")
    assert done.code == 0, done.err
    info = json.loads((tmp_path / "first" / "run.json").read_text())
    spoken = ["model=flax_rnn", "model.cell._target_=own_cell.Own"]
    for name, overrides in {"by option": ["model=own"], "by name": spoken}.items():
        folder = shutil.copytree(tmp_path / "first", tmp_path / name)
        changed = {"status": "interrupted", "overrides": overrides + info["overrides"][1:]}
        (folder / "run.json").write_text(json.dumps(info | changed))
        done = command(f"trainer.resume='{name}'")
        assert done.code == 2
        assert f"'{overrides[-1]}' (" in done.err
    for arguments in (
        ["trainer.resume='by option'", *own],
        ["trainer.resume='by name'", spoken[1]],
    ):
        done = command(*arguments, "trainer.steps=4")
        assert done.code == 0, done.err
    for name in ("by option", "by name"):
        assert open_run(name).scalars["step"].values.tolist() == [0, 2, 3]
        assert len(open_run(name).info["resumed"]) == 1


def test_what_does_not_fit_is_refused_before_it_is_built(command, tmp_path):
    """The settings are data, but those of another run than the folder says that it is."""
    (tmp_path / "mine.py").write_text("open('mark', 'w').close()\n")
    run = make_run(tmp_path / "sent", tmp_path / "mark", Payload(lambda *_: ["seed=3"]))
    done = command(f"trainer.resume={run}", "model.cell._target_=mine.Cell")
    assert done.code == 2
    assert "got 3\n  allowed: None, as in the run that is resumed" in done.err
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        (
            {"trainer": {"steps": "many"}},
            "a run that recorded its trainer.steps; there it is 'many'",
        ),
        ({"trainer": 3}, "3, as in the run that is resumed"),
    ],
)
def test_a_recorded_configuration_that_is_none_is_refused(command, tmp_path, given, allowed):
    from hydra import compose, initialize_config_dir

    from gradlab.launch.build import plain

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = plain(compose("config"))
    config["trainer"] = (
        given["trainer"] if given["trainer"] == 3 else config["trainer"] | given["trainer"]
    )
    run = make_run(tmp_path / "sent", tmp_path / "mark", Payload(lambda *_: []), config)
    done = command(f"trainer.resume={run}", "record.wandb.mode=offline")
    assert done.code == 2
    assert allowed in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "where",
    ["model.cell", "task", "probe.measure.adjoint", "trainer.omega"],
)
def test_a_function_does_not_pass_for_a_class(command, where):
    done = command(f"++{where}._target_=optax.adam")
    assert done.code == 2
    assert f"{where}._target_: got 'optax.adam'\n  allowed: a subclass of " in done.err


def test_what_makes_an_optimizer_is_asked_what_it_made(command):
    done = command("optimizer=sgd", "optimizer.rule._target_=builtins.dict")
    assert done.code == 2
    assert "got 'dict'\n  allowed: a function that takes learning_rate and gives" in done.err


def test_the_folder_of_a_job_stays_in_its_sweep(tmp_path):
    def recorded(*said):
        check_settings(dict(zip(said, said, strict=True)), tmp_path, [], OF_A_SWEEP)

    for subdir in ("run${seed}", "${hydra:job.num}", "${hydra:job.override_dirname}", "a/b${seed}"):
        recorded(f"hydra.sweep.subdir={subdir}", "seed=1,2")
    recorded("hydra.sweep.subdir=run", "task.path=../x")
    for subdir in ("/tmp", "../x", "a/../..", "${task.path}", "~/x", "${oc.env:HOME}", "..."):
        with pytest.raises(BadInput, match=r"of Hydra itself|no setting"):
            recorded(f"hydra.sweep.subdir={subdir}")
    with pytest.raises(BadInput, match=r"may lead out of the sweep"):
        recorded("hydra.sweep.subdir=x${task.path}", "task.path=/../../x")


def test_a_path_confirms_no_code(tmp_path):
    """Whoever sends a folder has named it, too."""
    payload = Payload(lambda *_: ["model.cell._target_=os.system"])
    sweep = make_sweep(tmp_path / "_target_=os.system", tmp_path / "mark", payload)
    with pytest.raises(BadInput, match=r"names code"):
        with_resumed([f"trainer.resume='{sweep}'"])


def test_yaml_of_a_sweep_is_data(sent, tmp_path):
    """Tags that make objects are none to the reader."""
    text = yaml.safe_dump({"hydra": {}}) + "x: !!python/object/apply:os.system ['touch mark']\n"
    (sent / "multirun.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"ConstructorError"):
        with_resumed([f"trainer.resume={sent}"])
