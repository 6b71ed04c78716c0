"""Standard output and error that go away, are closed, full, or hold few characters."""

import errno
import io
import os
import subprocess
import sys

import pytest

from gradlab.record.output import Shown, protect
from gradlab.record.progress import SweepProgress
from gradlab.record.reader import open_run
from gradlab.record.terminal import Terminal
from tests.conftest import SOURCE
from tests.record.synthetic import describe, finished, make_row
from tests.small import QUIET, TINY


class Breaking(io.StringIO):
    """Takes so many writes, then fails."""

    def __init__(self, error, writes=0, tty=False):
        super().__init__()
        self.error, self.writes, self.tty = error, writes, tty

    def isatty(self):
        return self.tty

    def write(self, text):
        self.writes -= 1
        if self.writes < 0:
            raise self.error
        return super().write(text)


BROKEN = [BrokenPipeError(), OSError(errno.EIO, "gone"), OSError(errno.ENOSPC, "full")]
BROKEN.append(ValueError("I/O operation on closed file."))


@pytest.mark.parametrize("error", BROKEN, ids=repr)
def test_a_stream_that_breaks_is_nothing_from_then_on(error):
    stream = Breaking(error, writes=1)
    shown = Shown(stream)
    for text in ("one", "two"):
        assert shown.write(text) == 3
    stream.writes = 9
    print("three", file=shown, flush=True)
    assert stream.getvalue() == "one"
    assert not shown.isatty()


def test_no_stream_at_all_and_one_that_is_closed():
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        print("words", file=Shown(stream), flush=True)
        assert not Shown(stream).isatty()


def test_a_reader_that_is_too_slow_is_written_to_again():
    stream = Breaking(BlockingIOError(), writes=0)
    shown = Shown(stream)
    shown.write("lost")
    stream.writes = 1
    shown.write("seen")
    assert stream.getvalue() == "seen"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_cannot_be_shown_are_replaced(encoding):
    raw = io.BytesIO()
    shown = Shown(io.TextIOWrapper(raw, encoding=encoding))
    print("λ₁ “x” é \udcff", file=shown, flush=True)
    assert raw.getvalue() == "λ₁ “x” é \udcff\n".encode(encoding, "replace")
    assert shown.encoding == encoding


def test_no_secret_is_shown(monkeypatch):
    monkeypatch.setenv("GH_PAT", "ghp_0123456789")
    stream = io.StringIO()
    print("Error: ghp_0123456789", file=Shown(stream))
    assert stream.getvalue() == "Error: <GH_PAT>\n"


def test_protecting_twice_is_protecting_once(capsys):
    protect()
    out, err = sys.stdout, sys.stderr
    protect()
    assert (sys.stdout, sys.stderr) == (out, err)
    assert isinstance(out, Shown)
    print("words")
    assert capsys.readouterr().out == "words\n"


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("writes", [0, 3])
def test_progress_and_verdict_outlive_their_terminal(monkeypatch, tty, writes):
    """Also where nobody has protected standard output, as in a notebook."""
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(Breaking(OSError(errno.EIO, "gone"), writes, tty))
    description = describe(T=8, steps=4)
    terminal.open(description)
    for step in range(4):
        terminal.log(make_row(description, step))
    terminal.close(finished())
    progress = SweepProgress(["a"], [4], Breaking(BrokenPipeError(), writes, tty))
    with progress:
        for step in range(4):
            progress.show(0, "running", step)


START = [sys.executable, "-m"]
ENVIRONMENT = {"PYTHONPATH": SOURCE, "WANDB_MODE": "disabled", "PYTHONIOENCODING": "ascii"}


def broken_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize(
    "arguments",
    [["gradlab", "--help"], ["gradlab", "--cfg", "job"], ["gradlab.compare", "--help"]],
    ids=" ".join,
)
def test_a_question_whose_answer_nobody_reads(tmp_path, arguments):
    with os.fdopen(broken_pipe(), "wb") as out:
        done = subprocess.run(
            [*START, *arguments],
            cwd=tmp_path,
            env=os.environ | ENVIRONMENT,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_whose_reader_has_gone_and_a_sweep_with_nothing_open(tmp_path):
    """The sweep begins with 0, 1 and 2 closed: what it opens first must not be taken for them."""
    small = [*TINY, *QUIET[:1], "probe=none", "model=feedforward"]
    with os.fdopen(broken_pipe(), "wb") as gone:
        run = subprocess.Popen(
            [*START, "gradlab", *small, "hydra.run.dir=run"],
            cwd=tmp_path,
            env=os.environ | ENVIRONMENT,
            stdout=gone,
            stderr=gone,
        )
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *START]
    sweep = subprocess.run(
        [*closed, "gradlab", "-m", *small, "seed=1,2", "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
    )
    assert (run.wait(timeout=120), sweep.returncode) == (0, 0)
    for folder in ("run", "sweep/0", "sweep/1"):
        recorded = open_run(tmp_path / folder)
        assert (recorded.status, recorded.damage) == ("finished", ())
    assert {"sweep.csv", "compare.html"} <= {p.name for p in (tmp_path / "sweep").iterdir()}
