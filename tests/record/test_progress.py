"""Progress of many runs, in plain lines and on a terminal."""

import io
import threading
from types import SimpleNamespace

import pytest

from gradlab.record.progress import ROWS, STATES, SweepProgress
from tests.record.test_terminal import Tty


def names(count):
    return [f"seed={k}" for k in range(count)]


def run_all(progress, count, steps=100, every=2):
    """Every member trains to its end, side by side; the last one diverges half-way."""
    for index in range(count):
        progress.show(index, "compiling", 0)
    for step in range(0, steps, every):
        for index in range(count):
            if index == count - 1 and step >= steps // 2:
                if step == steps // 2:
                    progress.show(index, "diverged", step)
                continue
            progress.show(index, "running", step, {"train/loss": 1 / (1 + step)})
    for index in range(count - 1):
        progress.show(index, "finished", steps)


def test_about_ten_plain_lines_and_one_for_each_failure():
    stream = io.StringIO()
    with SweepProgress(names(4), [100] * 4, stream) as progress:
        run_all(progress, 4)
        progress.note("a group of 4")
    progress.stop()  # a second time
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "sweep of 4 members, 400 steps"
    assert [line for line in lines if "diverged at" in line] == [
        "seed=3: diverged at step 50 of 100"
    ]
    assert "a group of 4" in lines
    along = [line for line in lines if " steps  " in line]
    assert 8 <= len(along) <= 11
    assert along[0].startswith("40/400 steps  4 running")
    assert sum(line.startswith("400/400") for line in along) == 1
    assert along[-1].startswith("400/400 steps  1 diverged, 3 finished")
    assert " in 0:0" in along[-1]


def test_a_member_that_ended_early_is_no_work_left():
    progress = SweepProgress(names(2), [100, 100], io.StringIO())
    progress.show(0, "running", 10)
    progress.show(0, "diverged", 10)
    assert progress._seen().left == 100
    progress.show(1, "running", 40)
    assert progress._seen().left == 60
    assert progress._seen().counts == {"running": 1, "diverged": 1}


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(
        "gradlab.record.progress.time", SimpleNamespace(monotonic=lambda: now.seconds)
    )
    return now


def test_speed_leaves_out_what_an_earlier_process_made(clock):
    progress = SweepProgress(names(2), [1000] * 2, io.StringIO())
    for step in (500, 600, 700):
        progress.show(0, "running", step)
        clock.seconds += 10
    progress.show(1, "running", 800)  # goes on, too, but later
    seen = progress._seen()
    assert seen.speed == pytest.approx(200 / 30)
    assert seen.left == 300 + 200


def test_speed_is_that_of_the_last_half_minute(clock):
    progress = SweepProgress(names(1), [10_000], io.StringIO())
    step = 0
    for second in range(200):
        clock.seconds = float(second)
        step += 1 if second < 150 else 10
        progress.show(0, "running", step)
    assert progress._seen().speed == pytest.approx(10)


def test_figures_of_a_member_stay_until_there_are_newer_ones():
    progress = SweepProgress(names(1), [10], io.StringIO())
    progress.show(0, "running", 1, {"train/loss": 1.0, "val/loss": 2.0})
    progress.show(0, "running", 2, {"train/loss": 0.5})
    progress.show(0, "running", 3)
    assert progress._seen().scalars == [{"train/loss": 0.5, "val/loss": 2.0}]


def test_a_state_that_there_is_not_is_refused():
    progress = SweepProgress(names(1), [10], io.StringIO())
    with pytest.raises(ValueError, match="'done' is none of running, "):
        progress.show(0, "done", 1)
    with pytest.raises(ValueError, match="1 names, but 2"):
        SweepProgress(names(1), [10, 10])


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Tty()


def drawn(progress):
    """What the terminal shows now, as lines without colours."""
    with progress.console.capture() as capture:
        progress.console.print(progress._drawn(), no_wrap=True)
    text = capture.get()
    for part in text.split("\x1b[")[1:]:
        text = text.replace("\x1b[" + part[: part.index("m") + 1], "")
    return text.splitlines()


def test_a_terminal_shows_the_running_then_the_failed_and_counts_the_rest(terminal):
    progress = SweepProgress(names(40), [100] * 40, terminal)
    for index in range(30):
        progress.show(index, "running", 10, {"train/loss": 0.25})
    for index in (3, 5):
        progress.show(index, "crashed", 20)
    progress.show(6, "finished", 100)
    lines = drawn(progress)
    assert "27 running · 2 crashed · 1 finished · 10 waiting" in lines[1]
    assert lines[2].split() == ["member", "state", "step", "train/loss"]
    members = [line.split() for line in lines[3 : 3 + ROWS]]
    assert members[0] == ["seed=0", "running", "10/100", "0.25"]
    assert [row[1] for row in members] == ["running"] * 14 + ["crashed"] * 2
    assert lines[3 + ROWS].strip() == "and 13 running, 1 finished, 10 waiting"
    assert max(map(len, lines)) <= 80


def test_a_long_name_is_cut_and_nothing_else(terminal):
    progress = SweepProgress(["x" * 200], [1000], terminal)
    progress.show(0, "interrupted", 999, {"train/loss": 0.012345, "val/loss": 1.2345})
    row = drawn(progress)[3].split()
    assert row[0].startswith("xxx")
    assert row[0].endswith("…")
    assert row[1:] == ["interrupted", "999/1,000", "0.01235", "1.234"]


def test_the_cursor_comes_back_and_a_second_stop_does_nothing(terminal):
    progress = SweepProgress(names(3), [100] * 3, terminal)
    progress.start()
    run_all(progress, 3)
    progress.note("a note")
    progress.stop()
    progress.stop()
    text = terminal.getvalue()
    assert "a note" in text
    assert "300/300 steps" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_members_may_be_shown_from_several_threads():
    progress = SweepProgress(names(8), [200] * 8, io.StringIO())
    progress.start()

    def work(index):
        for step in range(200):
            progress.show(index, "running", step, {"train/loss": 1.0})
        progress.show(index, "finished", 200)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = progress._seen()
    assert (seen.left, seen.counts) == (0, {"finished": 8})
    assert progress._made == 8 * 200
    assert set(seen.states) <= set(STATES)
