"""Many runs: the arrays of some, the summaries of all, and no work that grows with their square."""

from __future__ import annotations

import csv
import io
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gradlab.compare import chosen as module
from gradlab.compare import phase_diagram, progress
from gradlab.compare.__main__ import main
from gradlab.compare.chosen import chosen, recorded_of_some
from gradlab.compare.headline import headline
from gradlab.compare.matched import matched
from gradlab.compare.page import contents
from gradlab.compare.progress import Progress
from gradlab.compare.recorded import Recorded, recorded
from gradlab.compare.runs import Entry, runs_in, settings_that_differ
from gradlab.compare.table import settings_of
from tests.compare import chromium
from tests.compare.recordings import record_run, record_sweep
from tests.compare.sweeps import BASE


def entry(number, model="lstm", seed=0, rate=0.01, hidden=8, status="finished", **summary):
    """A run without a folder."""
    config = {
        **BASE,
        "seed": seed,
        "optimizer": {"learning_rate": rate},
        "model": {"hidden": hidden, "layers": 1},
    }
    facts = {"model": model, "task": "Adding", "T": 8, "parameters": 50 * hidden}
    return Entry(
        Path("nowhere") / str(number),
        str(number),
        status,
        overrides=(f"model={model}", f"optimizer.learning_rate={rate}", f"seed={seed}"),
        config=config,
        summary=summary or {"memory_horizon/layer_0": 3.0 + number % 7, "steps": 4.0},
        info={"facts": facts, "name": "adding"},
        number=number,
    )


def test_every_setting_gives_a_run_before_any_gives_a_second_and_finished_ones_come_first():
    runs = [
        entry(number, model, seed, status="killed" if seed == 0 else "finished")
        for number, (model, seed) in enumerate((m, s) for m in ("rnn", "lstm") for s in range(50))
    ]
    assert sorted(chosen(runs, 4)) == [1, 2, 51, 52]
    assert len(chosen(runs, 7)) == 7
    assert chosen(runs, 7) == chosen(runs, 7)
    assert chosen(runs, 100) == set(range(100))


def test_of_more_settings_than_can_be_shown_the_choice_is_spread_over_their_values():
    rng = random.Random(3)
    models = ("rnn", "lstm", "gru")
    runs = [entry(n, models[n % 3], n, 10 ** rng.uniform(-4, -1)) for n in range(1000)]
    taken = [runs[index] for index in chosen(runs, 200)]
    counts = [sum(run.model == model for run in taken) for model in models]
    assert sum(counts) == 200
    assert min(counts) > 45
    rates = sorted(run.config["optimizer"]["learning_rate"] for run in taken)
    assert rates[0] < 3e-4
    assert rates[-1] > 3e-2


def test_a_job_that_never_began_takes_no_place():
    runs = [Entry(Path("a"), "a", "never began", "why"), *(entry(n, seed=n) for n in range(3))]
    assert 0 not in chosen(runs, 2)
    (never, *others) = recorded_of_some(runs, 0)
    assert (never.unread, never.damage) == (False, "why")
    assert all(one.unread for one in others)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return record_sweep(tmp_path_factory.mktemp("many") / "sweep", seeds=(0, 1, 2))


def test_curves_are_of_some_and_all_else_is_of_all(sweep):
    runs = runs_in(sweep)
    some, whole = contents(recorded_of_some(runs, 4)), contents(recorded(runs))
    assert some["headline"] == whole["headline"]
    assert some["matched"] == whole["matched"]
    drawn = [run["name"] for run in some["runs"] if not run["unread"]]
    assert len(drawn) == 4
    for one, other in zip(some["runs"], whole["runs"], strict=True):
        assert one["summary"] == other["summary"]
        assert (
            (one["curves"], one["arrays"]["parts"]) == ({}, []) if one["unread"] else one == other
        )
    (said,) = (line for line in some["notices"] if "4 of the 9 runs" in line)
    assert "the summaries of all" in said
    assert not any("cannot be read" in line for line in some["notices"])


def test_the_command_line_reads_as_many_as_it_is_told_and_says_so(sweep, tmp_path, capsys):
    out = tmp_path / "p.html"
    assert main([str(sweep), "--out", str(out), "--arrays", "3"]) == 0
    said = capsys.readouterr()
    assert said.out == f"page: {out}  (curves of 3 of 9 runs; --arrays 9 for all)\n"
    assert said.err == f"first page, of the summaries alone: {out}\n"
    with pytest.raises(SystemExit):
        main([str(sweep), "--arrays", "-1"])
    assert "--arrays" in capsys.readouterr().err


def test_a_run_that_has_not_finished_is_told_when_its_arrays_are_not_read(tmp_path):
    for seed in range(3):
        record_run(tmp_path / str(seed), "lstm", seed)
    runs = [
        replace(run, status="killed", summary={}) if run.number == 1 else run
        for run in runs_in(tmp_path)
    ]
    lines = headline(recorded_of_some(runs, 2)).lines
    assert "1 of 3 runs has no adjoint slope in the summary, and the arrays were not read." in lines


@pytest.mark.parametrize("hidden", [1, 301])
def test_hundreds_of_settings_take_a_moment(hidden):
    rng = random.Random(0)
    models = ("rnn", "lstm", "gru")
    runs = [
        entry(
            n, models[n % 3], n, 10 ** rng.uniform(-4, -1) if hidden == 1 else 0.1, 8 + n % hidden
        )
        for n in range(900)
    ]
    began = time.monotonic()
    assert len(settings_of(runs)) == (900)
    matched(runs)
    headline([*recorded_of_some(runs, 0)])
    assert time.monotonic() - began < 30


def test_a_random_search_over_two_numbers_makes_no_grid(monkeypatch):
    rng = random.Random(0)
    runs = [entry(n, "lstm", 0, rng.random(), 8 + n // 2) for n in range(400)]
    runs = [replace(run, overrides=(*run.overrides, "model.hidden=1")) for run in runs]
    settings = settings_that_differ(runs)
    assert list(settings) == ["optimizer.learning_rate", "model.hidden"]
    monkeypatch.setattr(phase_diagram, "_sums", None)
    assert phase_diagram.diagram(runs) is None


def test_progress_is_a_line_now_and_then_and_a_bar_on_a_terminal(monkeypatch):
    told = io.StringIO()
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    assert list(Progress(told).over("abcdefg", "reading", 7)) == list("abcdefg")
    assert told.getvalue() == "reading: 2 of 7\nreading: 5 of 7\n"


def test_a_short_reading_is_not_told(sweep):
    told = io.StringIO()
    recorded(runs_in(sweep, progress=Progress(told)), progress=Progress(told))
    assert told.getvalue() == ""


@pytest.mark.usefixtures("sweep")
@pytest.mark.browser
@pytest.mark.skipif(chromium.PATH is None, reason="no chromium here")
def test_the_page_lists_some_rows_first_and_all_when_asked(sweep, tmp_path):
    from gradlab.compare.page import write

    whole = recorded(runs_in(sweep))
    found = [
        Recorded(
            replace(one.entry, path=one.entry.path / str(n), name=f"{one.entry.name}-{n}"),
            None if n else one.run,
            unread=n > 0,
        )
        for n in range(60)
        for one in whole
    ]
    path = write(found, tmp_path / "p.html")
    with chromium.chromium() as browser:
        page, heard = chromium.opened(browser, path.as_uri())
        assert page.locator("#runs tr[data-path]").count() == 200
        assert "540 of 540 shown" in page.locator("#runs").inner_text()
        assert page.evaluate("curvesPanel.lines.reduce((n, line) => n + line.runs.length, 0)") > 0
        page.locator("#runs .rest").click()
        assert page.locator("#runs tr[data-path]").count() == 540
        assert page.locator("#runs .rest").count() == 0
        with page.expect_download() as waiting:
            page.locator("#runs .csv").click()
        text = waiting.value.path().read_text(encoding="utf-8")
        assert len(list(csv.DictReader(io.StringIO(text)))) == 540
        page.locator("#filter").fill("run=1-30")
        assert (
            "The arrays of these runs are not on this page" in page.locator("#curves").inner_text()
        )
        assert heard.messages == []
    assert module.MOST_ARRAYS == 200
