"""The experiments of the lecture: each is whole, says what was measured, and can fail."""

import json
import os
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from gradlab.claims import page
from gradlab.claims.sweep import command_of
from tests import ROOT
from tests.test_gallery import load_script

gallery = load_script()
NAMES = gallery.known()


class Break(NamedTuple):
    """What destroys that which an experiment shows.

    Attributes:
      overrides: of its sweep.
      statement: the beginning of one that held, and must then not hold.
      besides: overrides of a sound sweep whose runs the check needs too, where ``overrides`` cannot
        be said of all.
    """

    overrides: list[str]
    statement: str
    besides: list[str] | None = None


BREAKS = {
    "forward_vs_recurrent": Break(["optimizer.learning_rate=1e-6"], "A recurrent network can"),
    "power_of_09": Break(["model.cell.activation_fn=tanh"], "A weight of 1.1 leaves"),
    "activations": Break(
        ["model.cell.recurrent_gain=1.5", "trainer.steps=2"],
        "The sigmoid's gradient vanishes by at least a factor 4",
    ),
    "exploding": Break(
        ["optimizer.learning_rate=1e-25", "trainer.steps=2", "probe.every=1", "probe.examples=4"],
        "Without clipping, a network of ReLU diverges",
    ),
    "rnn_vs_lstm": Break(
        ["model=lstm", "model.cell.forget_bias=-3"],
        "The LSTM learns to add over the longest gap",
        ["model=rnn"],
    ),
    "applications": Break(["optimizer.learning_rate=1e-6"], "Text, the next character: an RNN"),
    "gru_vs_lstm": Break(["optimizer.learning_rate=1e-6"], "On adding their results are similar"),
}

every_experiment = pytest.mark.parametrize("name", NAMES)


def test_each_has_its_place_in_the_lecture():
    assert len(NAMES) >= 4
    places = [gallery.check_of(name).PLACE for name in NAMES]
    assert places == sorted(set(places))


def test_each_can_be_broken():
    assert set(BREAKS) == set(NAMES)
    for name, broken in BREAKS.items():
        text = (ROOT / "experiments" / name / gallery.RESULT).read_text(encoding="utf-8")
        findings = json.loads(text)["findings"]
        [statement] = [one for one in findings if one["statement"].startswith(broken.statement)]
        assert statement["held"], name


@every_experiment
def test_it_is_whole(name):
    home, check = ROOT / "experiments" / name, gallery.check_of(name)
    assert gallery.question(check).endswith("?")
    assert check.QUICK
    assert check.CAPTION.strip()
    yaml = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"# Command: {command_of(name)}\n" in yaml
    readme = (home / "README.md").read_text(encoding="utf-8")
    assert f"**Question.** {gallery.question(check)}" in " ".join(readme.split())
    for part in ("**As the lecture makes it.**", "**Command.**", "**How.**", "## What differs"):
        assert part in readme
    assert command_of(name) in readme
    assert re.search(r"minutes? on two", readme)


@every_experiment
def test_its_readme_has_the_committed_result(name, tmp_path, monkeypatch):
    home = ROOT / "experiments" / name
    result = json.loads((home / gallery.RESULT).read_text(encoding="utf-8"))
    assert "3 seeds" in result["made"]
    assert (home / page.FIGURE).read_bytes().startswith(b"\x89PNG")
    assert (home / page.FIGURE).stat().st_size < 300_000
    text = (home / "README.md").read_text(encoding="utf-8")
    (tmp_path / name).mkdir()
    (tmp_path / name / "README.md").write_text(text, encoding="utf-8")
    check = gallery.check_of(name)
    monkeypatch.setattr(gallery, "EXPERIMENTS", tmp_path)
    gallery.write_readme(name, check, result)
    written = (tmp_path / name / "README.md").read_text(encoding="utf-8")
    assert written == text, f"stale: python scripts/gallery.py {name}"


def test_the_table_of_all_has_the_committed_results(tmp_path, monkeypatch):
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    checks = {name: gallery.check_of(name) for name in NAMES}
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    for name in NAMES:
        (tmp_path / name).mkdir()
        result = (ROOT / "experiments" / name / gallery.RESULT).read_text(encoding="utf-8")
        (tmp_path / name / gallery.RESULT).write_text(result, encoding="utf-8")
    monkeypatch.setattr(gallery, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(gallery, "known", lambda: NAMES)
    monkeypatch.setattr(gallery, "check_of", checks.__getitem__)
    gallery.write_table()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text


@pytest.mark.slow
@every_experiment
def test_breaking_what_it_shows_fails_its_check(name, tmp_path):
    broken = BREAKS[name]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    folders = []
    for overrides in filter(None, (broken.overrides, broken.besides)):
        folders.append(str(tmp_path / str(len(folders))))
        quick = gallery.check_of(name).QUICK
        words = [*command_of(name).split()[1:], *quick, *overrides]
        command = [sys.executable, *words, f"hydra.sweep.dir={folders[-1]}"]
        subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    check = [sys.executable, str(ROOT / "experiments" / name / "check.py"), *folders]
    done = subprocess.run(check, check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"did not hold: {broken.statement}" in done.stdout
