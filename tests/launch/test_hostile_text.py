"""Recorded text is shown, and does nothing to the terminal that it is shown on."""

import io
import json

import pytest

from gradlab.compare.__main__ import main as compare
from gradlab.errors import BadInput, CannotRecord, visible
from gradlab.launch.resume import with_resumed
from gradlab.launch.sweep.jobs import name_of
from gradlab.launch.sweep.report import report
from gradlab.record.progress import SweepProgress
from gradlab.record.terminal import Terminal
from tests.compare.sweeps import make_run
from tests.record.synthetic import describe, finished

HOSTILE = "\x1b]0;pwned\x07\x1b[2J\x9b2J\r\nnot finished:\n\u202e"
SHOWN = "\\x1b]0;pwned\\x07"


def spoil(value):
    """The same nest with the hostile text at the end of every text in it."""
    if isinstance(value, dict):
        return {key: spoil(item) for key, item in value.items()}
    if isinstance(value, list):
        return [spoil(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


@pytest.fixture
def sweep(tmp_path):
    """Of four runs whose records are hostile in each text; the status of two is one there is."""
    for job, status in enumerate(("finished", "crashed", "finished", "diverged")):
        folder = tmp_path / "sweep" / str(job)
        make_run(folder, [f"seed={job}"], {"val/loss": 0.5}, status=status, reason="no")
        info = json.loads((folder / "run.json").read_text())
        spoilt = spoil(info) | {"id": info["id"]}
        if job < 2:
            spoilt["status"] = status
        spoilt["config"]["model"]["cell"][f"x{HOSTILE}"] = job
        (folder / "run.json").write_text(json.dumps(spoilt))
    return tmp_path / "sweep"


def harmless(text):
    return all(char.isprintable() or char == "\n" for char in text)


def test_the_report_of_a_sweep(sweep):
    stream = io.StringIO()
    report(sweep, stream, refused=[f"job 9 ({HOSTILE})"], jobs=[["seed=0"]] * 5)
    text = stream.getvalue()
    assert harmless(text)
    assert SHOWN in text
    assert text.split("\n").count("not finished:") == 1


def test_a_comparison(sweep, capsys):
    assert compare([str(sweep)]) == 0
    assert compare([str(sweep / f"x{HOSTILE}")]) == 2
    out, err = capsys.readouterr()
    assert harmless(out)
    assert harmless(err)
    assert SHOWN in err


@pytest.mark.parametrize("job", range(4))
def test_resuming(sweep, capsys, command, job):
    done = command(f"trainer.resume={sweep / str(job)}", "trainer.steps=1")
    assert done.code == 2
    assert harmless(done.out)
    assert harmless(done.err)
    assert done.err.count("gradlab:") == 1


def test_messages():
    error = BadInput(f"key{HOSTILE}", HOSTILE, f"allowed {HOSTILE}", f"hint {HOSTILE}")
    for words in (error, CannotRecord(f"folder{HOSTILE}", HOSTILE)):
        assert harmless(str(words))
        assert SHOWN in str(words)
    assert "\nnot finished:" not in str(error)
    assert (error.key, error.given) == (f"key{HOSTILE}", HOSTILE)


def test_names_and_progress():
    name = name_of(0, [[f"task.path={HOSTILE}"]])
    assert name == f"job 0 (task.path={visible(HOSTILE)})"
    stream = io.StringIO()
    with SweepProgress([f"a{HOSTILE}"], [3], stream) as progress:
        progress.show(0, "crashed", 1)
        progress.note(HOSTILE)
    terminal = Terminal(stream)
    description = describe(T=8, steps=4)
    terminal.open(description)
    terminal.close(finished())
    assert harmless(stream.getvalue())
    assert SHOWN in stream.getvalue()


def test_ordinary_text_stays_what_it_is():
    assert visible("naïve λ₁ “x” 漢字 a b") == "naïve λ₁ “x” 漢字 a b"
    assert visible("a\tb\udcff") == "a\\tb\\udcff"


def test_a_folder_with_such_a_name_is_refused_in_one_line(tmp_path):
    with pytest.raises(BadInput) as refusal:
        with_resumed([f"trainer.resume={tmp_path}/x{HOSTILE}"])
    assert harmless(str(refusal.value))
