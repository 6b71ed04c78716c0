"""The command line of comparisons."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gradlab.compare.__main__ import main
from gradlab.compare.runs import runs_in
from tests.compare.recordings import record_run, record_sweep


def test_the_page_of_a_sweep_lies_in_its_folder(tmp_path, capsys):
    folder = record_sweep(tmp_path / "sweep", models=("rnn",), seeds=(0, 1))
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == f"page: {folder / 'compare.html'}\n"
    assert "<html" in (folder / "compare.html").read_text(encoding="utf-8")


def test_several_folders_and_a_run_make_one_page_here_or_where_it_is_wanted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = record_sweep(tmp_path / "sweep", models=("rnn",), seeds=(0, 1))
    run = record_run(tmp_path / "run")
    assert main([str(sweep), str(run)]) == 0
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert text.count('"status": "finished"') == 3
    assert main([str(run), "--out", "a/b.html"]) == 0
    assert (tmp_path / "a" / "b.html").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (None, ["the folder of a sweep, or a run directory"]),
        ("empty", ["with at least one run in them", "outputs/ or multirun/"]),
    ],
)
def test_nothing_to_compare_is_one_message_and_code_2(tmp_path, capsys, make, words):
    folder = tmp_path / "folder"
    if make:
        folder.mkdir()
    assert main([str(folder)]) == 2
    said = capsys.readouterr().err
    assert str(folder) in said
    assert all(word in said for word in words)
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.html"))


def test_a_place_that_cannot_be_written_to_is_one_message(tmp_path, capsys):
    run = record_run(tmp_path / "run")
    assert main([str(run), "--out", str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(run), "--out", str(tmp_path / "file" / "p.html")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("gradlab.compare: ")
    assert said.count("\n") == 1


def test_a_run_that_is_reached_twice_comes_once(tmp_path, monkeypatch, capsys):
    sweep = record_sweep(tmp_path / "sweep", models=("rnn",), seeds=(0, 1))
    runs = runs_in(sweep, sweep / "1", sweep)
    assert [run.name for run in runs] == ["sweep/0", "sweep/1"]


def test_figures_are_drawn_beside_the_page(tmp_path, capsys):
    run = record_run(tmp_path / "run", only={"adj_h_log10", "train/loss"}, close=False)
    assert main([str(run), "--figures", str(tmp_path / "f")]) == 0
    assert f"figures: {tmp_path / 'f'} (adjoint_over_lag, " in capsys.readouterr().out
    assert {path.suffix for path in (tmp_path / "f").iterdir()} == {".csv", ".pdf", ".png", ".svg"}


def test_a_report_of_runs_that_never_went_to_wandb_is_one_message(tmp_path, capsys):
    run = record_run(tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    info["config"]["record"]["wandb"] = {"mode": "disabled"}
    (run / "run.json").write_text(json.dumps(info))
    assert main([str(run), "--wandb"]) == 2
    said = capsys.readouterr()
    assert "page: " in said.out
    assert said.err.startswith("gradlab.compare: --wandb: ")


def test_a_report_that_cannot_be_sent_is_on_the_disk(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("gradlab.compare.report.send.has_account", lambda: False)
    assert main([str(record_run(tmp_path / "run")), "--wandb"]) == 1
    assert "gradlab.compare: --wandb: not sent: " in capsys.readouterr().err
    assert (tmp_path / "run" / "wandb_report.json").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([str(tmp_path / "run"), "--wandb"]) == 0
    assert "to send them: " in capsys.readouterr().out


def test_as_a_module_it_imports_neither_jax_nor_hydra_nor_wandb(tmp_path):
    run = record_run(tmp_path / "run")
    code = (
        "import sys; from gradlab.compare.__main__ import main; main([sys.argv[1]]); "
        "print(sorted({'jax', 'flax', 'hydra', 'wandb', 'matplotlib.pyplot'} & set(sys.modules))); "
        "sys.exit(main(['nowhere']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
