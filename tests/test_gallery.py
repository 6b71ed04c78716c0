"""The gallery: which experiments it takes, what it runs again, and what it writes where."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradlab.claims import page
from tests import ROOT
from tests.compare.recordings import record_sweep

CHECK = '''"""Does it hold?"""
from gradlab.claims.finding import Finding
from gradlab.claims.sweep import curve
from gradlab.record.figures.common import new_figure
PLACE = {place}
QUICK = ("trainer.steps=1",)
CAPTION = """The
curve."""
def check(sweep):
    count = len(sweep.where({{"model": "rnn"}}))
    return [Finding("It holds.", count == 1, f"{{count}} run")]
def draw(sweep):
    figure = new_figure(1)
    figure.subplots().plot(*curve(sweep.runs[0], "adj_h_log10"))
    return figure
'''


def load_script():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "scripts" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gallery"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    """The script in a house of its own, whose sweeps are made up; ``gallery.asked`` has them."""
    script = load_script()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(script, "CONF", tmp_path / "conf")
    for place, name in enumerate(("second", "first")):
        home = tmp_path / "experiments" / name
        home.mkdir(parents=True)
        (home / "check.py").write_text(CHECK.format(place=-place), encoding="utf-8")
        (home / "README.md").write_text(f"# {name}\n{page.BEGIN}\n{page.END}\nend\n")
        (tmp_path / "conf").mkdir(exist_ok=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text("trainer: {steps: 5}\n")
    (tmp_path / "experiments" / "README.md").write_text(f"all\n{page.BEGIN}{page.END}\nend\n")
    script.asked = []
    script.ends = {}

    def ended(words):
        script.asked.append(words)
        said = dict(word.split("=", 1) for word in words if "=" in word)
        folder = Path(said.get("hydra.sweep.dir") or said["trainer.resume"])
        name = folder.name.removesuffix("-quick")
        code = script.ends.get(name, 0)
        (folder / "multirun.yaml").touch()
        if code < 0:
            raise KeyboardInterrupt
        if not (folder / "0").exists():
            only = {"adj_h_log10", "train/loss"}
            record_sweep(folder, ("rnn",), (0,), T=8, rows=1, close=False, only=only, name=name)
        return code

    monkeypatch.setattr(script, "ended", ended)
    return script


def test_an_unknown_name_is_refused_with_those_there_are(capsys):
    assert load_script().main(["rnn_vs_lstn"]) == 2
    error = capsys.readouterr().err
    assert "NAME: got 'rnn_vs_lstn'" in error
    for name in ("power_of_09", "rnn_vs_lstm"):
        assert name in error
    assert "try: rnn_vs_lstm" in error


def test_all_are_run_in_the_order_of_the_lecture(gallery, capsys):
    assert gallery.main([]) == 0
    assert [words[3] for words in gallery.asked] == ["experiment=first", "experiment=second"]
    assert gallery.asked[0][:3] == ["-m", "gradlab", "-m"]
    out = capsys.readouterr().out
    assert "held: It holds." in out
    assert "first: 1 of 1 held" in out


def test_measured_parts_are_written(gallery, tmp_path):
    gallery.main(["first"])
    home = tmp_path / "experiments" / "first"
    readme = (home / "README.md").read_text(encoding="utf-8")
    assert "| It holds. | held | 1 run |" in readme
    assert "![Does it hold?](result.png)\n\n*The curve.*" in readme
    assert "*Made by `python -m gradlab -m experiment=first` on " in readme
    assert readme.startswith("# first\n")
    assert readme.endswith("\nend\n")
    assert (home / "result.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "experiments" / "README.md").read_text(encoding="utf-8")
    assert "| [first](first/README.md) | Does it hold? | 1 of 1 | 0 | 1 run |" in table
    assert "| [second](second/README.md) | Does it hold? | | | |" in table


def test_quick_takes_its_overrides_and_changes_no_readme(gallery, tmp_path):
    before = (tmp_path / "experiments" / "first" / "README.md").read_text(encoding="utf-8")
    assert gallery.main(["first", "--quick", "--folder", "some where"]) == 0
    assert gallery.asked[0][4:] == ["trainer.steps=1", "hydra.sweep.dir=some where/first-quick"]
    assert (tmp_path / "experiments" / "first" / "README.md").read_text(encoding="utf-8") == before
    result = json.loads((tmp_path / "some where" / "first-quick" / "result.json").read_text())
    assert result["findings"] == [{"statement": "It holds.", "held": True, "measured": "1 run"}]
    assert (tmp_path / "some where" / "first-quick" / "result.png").exists()


def test_what_is_whole_is_not_run_again(gallery):
    for _ in range(2):
        assert gallery.main(["first"]) == 0
    assert len(gallery.asked) == 1
    assert gallery.main([]) == 0
    assert [words[3] for words in gallery.asked[1:]] == ["experiment=second"]


def test_a_gallery_ended_half_way_goes_on_where_it_was(gallery):
    gallery.ends["second"] = -1
    assert gallery.main([]) == 130
    gallery.ends.clear()
    assert gallery.main([]) == 0
    assert gallery.asked[2:] == [["-m", "gradlab", "-m", "trainer.resume=multirun/gallery/second"]]
    assert gallery.main([]) == 0
    assert len(gallery.asked) == 3


def test_a_sweep_that_fails_is_said_and_the_others_go_on(gallery, capsys):
    gallery.ends["first"] = 1
    assert gallery.main([]) == 1
    seen = capsys.readouterr()
    assert "gallery: first: sweep: got 'multirun/gallery/first'" in seen.err
    assert "second: 1 of 1 held" in seen.out
    gallery.ends.clear()
    assert gallery.main([]) == 0
    assert len(gallery.asked) == 3


@pytest.mark.parametrize("change", ["yaml", "fresh"])
def test_runs_of_another_yaml_or_time_are_moved_aside(gallery, tmp_path, change):
    gallery.main(["first"])
    if change == "yaml":
        (tmp_path / "conf" / "first.yaml").write_text("trainer: {steps: 6}\n")
    assert gallery.main(["first", *(["--fresh"] if change == "fresh" else [])]) == 0
    assert len(gallery.asked) == 2
    folders = {path.name for path in (tmp_path / "multirun" / "gallery").iterdir()}
    assert folders == {"first", "first.old1"}
    assert (tmp_path / "multirun" / "gallery" / "first.old1" / "0" / "run.json").exists()


def test_a_folder_of_something_else_is_moved_and_not_overwritten(gallery, tmp_path):
    strange = tmp_path / "multirun" / "gallery" / "first"
    strange.mkdir(parents=True)
    (strange / "notes.txt").write_text("mine")
    assert gallery.main(["first"]) == 0
    assert (strange.parent / "first.old1" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_sweep_save_before_both_end(tmp_path, number):
    """In a process group of its own, as a terminal's Ctrl-C and a scheduler's SIGTERM come."""
    sweep = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(1)\n"
        "    pathlib.Path('saved').touch()\n"
        "    sys.exit(1)\n"
        "signal.signal(signal.SIGINT, save)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path('going').touch()\n"
        "time.sleep(60)\n"
    )
    lines = [
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r})",
        "import gallery",
        f"gallery.ended(['-c', {sweep!r}])",
    ]
    words = [sys.executable, "-c", "\n".join(lines)]
    process = subprocess.Popen(
        words, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "going").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "KeyboardInterrupt" in error
    assert (tmp_path / "saved").exists()
