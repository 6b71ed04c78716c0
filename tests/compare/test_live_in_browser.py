"""The live page in a real browser, while another process writes a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import ROOT
from tests.compare import chromium
from tests.compare.recordings import record_run
from tests.compare.test_serve import serving

pytestmark = chromium.needed
WRITER = """
import sys, time
from tests.compare.recordings import make_measured_row, record_run
from tests.compare.test_serve import directory_description
directory = record_run(sys.argv[1], keep_open=True, rows=3)
directory.flush()
for line in sys.stdin:
    directory.log(make_measured_row(directory_description(), int(line), 10, "lstm", 0, True))
    directory.flush()
    print("written", flush=True)
"""


@pytest.fixture(scope="module")
def browser():
    with chromium.chromium() as found:
        yield found


@pytest.fixture
def writer(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "runs" / "live")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    while not (tmp_path / "runs" / "live" / "run.json").exists():
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(0.3)
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def write(process, index):
    process.stdin.write(f"{index}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "written\n"


LAST = "Store.runs.find((run) => run.path.endsWith('live')).of.get('train/loss').steps.at(-1)"
STATE = "document.querySelector('#runs tr[data-path$=live] .badge').innerText"


def until(page, expression, expected, seconds):
    """Waits for a value on the page; gives the seconds that it took."""
    began = time.monotonic()
    while (found := page.evaluate(expression)) != expected:
        assert time.monotonic() - began < seconds, f"{expression} is still {found}"
        page.wait_for_timeout(50)
    return time.monotonic() - began


def test_rows_show_within_3_seconds_and_a_kill_within_10(browser, tmp_path, writer):
    record_run(tmp_path / "runs" / "done", "rnn")
    with serving(tmp_path / "runs") as server:
        page, heard = chromium.opened(browser, server.url)
        page.wait_for_selector("#live.fresh")
        until(page, STATE, "running", 3)
        for index in (3, 4):
            write(writer, index)
            print(f"row shown after {until(page, LAST, 10 * index, 3):.2f} s")
            drawn = "lossPanel.plots.get('train/loss').chart.plot.data[0].at(-1)"
            until(page, drawn, 40 if index == 3 else 10 * index, 1)
        writer.send_signal(signal.SIGKILL)
        print(f"killed shown after {until(page, STATE, 'killed', 10):.2f} s")
        assert heard.messages == []
        asked = {url.split("?")[0].rpartition("/")[2] for url in heard.requests}
        assert asked == {"", "news", "data"}
    page.wait_for_selector("#live.lost", timeout=5000)
    page.context.close()


def test_a_new_run_appears_and_the_picker_shows_a_choice(browser, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    with serving(folder) as server:
        page, heard = chromium.opened(browser, server.url)
        assert "comparison of 0 runs" in page.locator(".brand").inner_text()
        record_run(folder / "a", "rnn")
        record_run(folder / "b", "lstm")
        until(page, "Store.runs.length", 2, 5)
        page.wait_for_selector("#curves .uplot")
        page.locator("#picker summary").click()
        page.get_by_role("button", name="none", exact=True).click()
        page.locator("#picker li", has_text="lstm").locator("input").check()
        page.get_by_role("button", name="show the chosen").click()
        page.wait_for_selector("body[data-ready]")
        until(page, "Store.runs.length", 1, 5)
        assert page.evaluate("Store.runs[0].model") == "lstm"
        assert "?run=b" in page.url
        assert heard.messages == []
        page.context.close()


def test_choices_stay_when_news_come(browser, tmp_path, writer):
    record_run(tmp_path / "runs" / "done", "rnn")
    with serving(tmp_path / "runs") as server:
        page, heard = chromium.opened(browser, server.url)
        page.locator("#filter").fill("rnn")
        page.get_by_label("colour", exact=True).select_option("status")
        write(writer, 3)
        until(page, LAST, 30, 5)
        assert page.locator("#filter").input_value() == "rnn"
        assert page.evaluate("State.colour") == "status"
        assert page.evaluate("State.runs.length") == 1
        assert heard.messages == []
        page.context.close()
