"""What the terminal sink prints."""

from __future__ import annotations

import io

import pytest

from gradlab.record import terminal as terminal_module
from gradlab.record.base import Description, Outcome, Row
from gradlab.record.terminal import Terminal
from tests.record.synthetic import describe, finished, make_row


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO, outcome: Outcome, steps: int = 100) -> str:
    description = describe(T=64, layers=[0, 1], steps=steps)
    terminal = Terminal(stream)
    terminal.open(description)
    for step in range(0, steps, 2):
        terminal.log(make_row(description, step))
    terminal.close(outcome)
    return stream.getvalue()


def test_plain_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = show(io.StringIO(), finished())
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    header = "adding-problem · lstm · 17,217 parameters · task adding · T = 64"
    assert lines[0] == header + " · baseline “always answer 1”: loss 0.1667"
    progress = [line for line in lines if line.startswith("step ")]
    assert 9 <= len(progress) <= 12
    assert progress[0].startswith("step 0/100  train/loss ")
    assert progress[-1].startswith("step 98/100  ")
    assert "(baseline 0.1667)" in progress[-1]
    assert "adjoint slope -0.0" in progress[-1]
    assert "steps/s" in progress[-1]
    assert "left" in progress[-1]


def test_ending():
    text = show(io.StringIO(), finished())
    assert "val/loss" in text
    assert "finished: all steps done" in text
    assert "1.03 × a plain step" in text
    assert text.rstrip().endswith("Layer 0: the gradient reaches 37 steps back.")


def test_every_figure_names_the_step_that_it_is_of():
    figures = ("train/loss", "adjoint_slope/layer_0", "curious", "decades_lost/layer_0", "val/loss")
    summary = {"steps": 100.0, **dict.fromkeys(figures, 0.5), "best/step": 1750.0}
    table = show(io.StringIO(), Outcome("finished", summary=summary)).split("left\n")[-1]
    assert [line.rstrip().split(maxsplit=2) for line in table.splitlines()[:7]] == [
        ["steps", "100"],
        ["train/loss", "0.5", "mean up to step 98"],
        ["decades_lost/layer_0", "0.5", "step 98"],
        ["adjoint_slope/layer_0", "0.5", "step 98"],
        ["curious", "0.5", "step 98"],
        ["val/loss", "0.5", "step 1,750, best in validation"],
        ["best/step", "1750"],
    ]


def test_reason_of_a_divergence():
    text = show(io.StringIO(), Outcome("diverged", "the loss is NaN at step 57, layer 1, t = 3"))
    assert "diverged: the loss is NaN at step 57, layer 1, t = 3" in text


def test_live_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = show(Tty(), finished())
    assert "\x1b[" in text
    assert "step 98/100" in text
    assert text.endswith("back.\n")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is shown again


def test_rows_that_come_in_one_block_are_not_taken_for_a_great_speed(monkeypatch):
    clock, stream = [100.0], io.StringIO()
    monkeypatch.setattr(terminal_module.time, "monotonic", lambda: clock[0])
    description = describe(T=64, layers=[0], steps=100)
    terminal = Terminal(stream)
    terminal.open(description)
    for block in (range(50), range(50, 100)):
        clock[0] += 10.0
        for step in block:
            clock[0] += 1e-4
            terminal.log(make_row(description, step))
    terminal.close(finished())
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("step ")]
    speeds = {int(line[5:].split("/")[0]): line.split()[-4] for line in lines if "left" in line}
    assert list(speeds) == [10, 20, 30, 40, 50, 60, 70, 80, 90, 99]
    assert float(speeds[10]) == pytest.approx(11 / 10, rel=0.01)
    assert float(speeds[99]) == pytest.approx(99 / 10, rel=0.01)


@pytest.mark.parametrize("stream", [io.StringIO(), Tty()])
def test_little_is_needed(stream, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(stream)
    terminal.open(Description("n", {}, {}, {}, {}))
    terminal.log(Row(0, {}, {}))
    terminal.log(Row(1, {"train/loss": float("nan")}, {}))
    terminal.close(Outcome("crashed"))
    assert "crashed" in stream.getvalue()


def test_a_run_that_ends_before_its_first_row():
    stream = io.StringIO()
    terminal = Terminal(stream)
    terminal.open(describe())
    terminal.close(Outcome("interrupted", "stopped by the user"))
    assert stream.getvalue().splitlines()[-1] == "interrupted: stopped by the user"
