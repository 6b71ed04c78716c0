"""What is printed at the end of a sweep, and that it harms none."""

import io
import logging
import os

import pytest

from gradlab.compare.runs import runs_in
from gradlab.errors import BadInput
from gradlab.launch.sweep.elsewhere import _losses
from gradlab.launch.sweep.report import report
from gradlab.launch.sweep.watch import Watcher
from gradlab.record.progress import STATES
from tests.compare.sweeps import make_run, make_sweep


@pytest.fixture
def told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def tell(folder, **more):
        stream = io.StringIO()
        report(folder, stream, **more)
        return stream.getvalue()

    return tell


def losses(model, seed):
    return {"val/loss": 0.5 + 0.1 * seed, "adjoint_slope/layer_0": -0.1}


def test_a_sweep_that_finished_is_a_table_and_its_file(tmp_path, told):
    folder = make_sweep(tmp_path / "s", losses, model=["rnn", "lstm"], seed=[0, 1])
    text = told(folder)
    lines = [line.rstrip() for line in text.splitlines() if line]
    assert lines[0] == "sweep of 4 runs: 4 finished"
    rows = [line.split() for line in lines if line.startswith(("rnn", "lstm"))]
    told_of = ["2", "0.55", "(range", "0.5", "to", "0.6)"]  # ± 0.64 would be a loss below 0
    assert [row[:7] for row in rows] == [["rnn", *told_of], ["lstm", *told_of]]
    assert lines[-2:] == [
        f"numbers: {os.path.join('s', 'sweep.csv')}",
        f"compare: {os.path.join('s', 'compare.html')}",
    ]
    assert (folder / "sweep.csv").exists()
    assert "<html" in (folder / "compare.html").read_text(encoding="utf-8")
    assert "not finished" not in text
    assert "trainer.resume" not in text
    assert "\x1b" not in text


def test_failures_are_named_with_their_reasons_and_the_way_on(tmp_path, told):
    folder = tmp_path / "s"
    make_run(folder / "0", ["seed=0"], {"val/loss": 0.5})
    make_run(folder / "1", ["seed=1"], status="diverged", reason="diverged at step 3: NaN")
    make_run(folder / "2", ["seed=2"], status="crashed", reason="ValueError: no\n  traceback")
    make_run(folder / "3", ["seed=3"], status="interrupted", reason="interrupted at step 2")
    make_run(folder / "4", ["seed=4"], status="killed")
    (folder / "5" / ".hydra").mkdir(parents=True)
    (folder / "5" / ".hydra" / "overrides.yaml").write_text("- seed=5\n")
    text = told(folder, refused=["job 6 (seed=-1)"])
    assert (
        "sweep of 6 runs: 1 finished, 1 diverged, 1 crashed, 1 interrupted, 1 killed, 1 never began"
        in text
    )
    failures = text.partition("not finished:\n")[2].splitlines()
    assert failures[:5] == [
        "  job 6 (seed=-1): refused, see above",
        "  job 1 (seed=1): diverged at step 3: NaN",
        "  job 2 (seed=2): crashed: ValueError: no",
        "  job 3 (seed=3): interrupted at step 2",
        "  job 4 (seed=4): killed: its process is gone and had no time to say why",
    ]
    assert failures[5].startswith("  job 5 (seed=5): never began: it has no run.json")
    assert text.count("python -m gradlab") == 1
    assert "to resume the 4 unfinished:\n  python -m gradlab -m trainer.resume=s\n" in text


def test_the_command_gives_a_config_folder_again(tmp_path, told):
    for seed in (0, 1):
        make_run(tmp_path / "s" / str(seed), [f"seed={seed}"], status="killed")
    source = '{"provider": "command-line", "path": "/my conf"}'
    recorded = (
        f'{{"overrides": {{"task": [], "hydra": []}}, "runtime": {{"config_sources": [{source}]}}}}'
    )
    (tmp_path / "s" / "multirun.yaml").write_text(f'{{"hydra": {recorded}}}')
    assert "python -m gradlab -m --config-dir '/my conf' trainer.resume=s\n" in told(tmp_path / "s")


def test_jobs_that_the_sweep_did_not_come_to_are_named(tmp_path, told):
    make_run(tmp_path / "s" / "0", ["seed=0"], {"val/loss": 0.5})
    make_run(tmp_path / "s" / "2", ["seed=2"], status="crashed", reason="ValueError: no")
    jobs = [[f"seed={seed}"] for seed in range(5)]
    text = told(tmp_path / "s", refused=["job 1 (seed=1)"], jobs=jobs)
    assert "sweep of 4 runs: 1 finished, 1 crashed, 2 never began" in text
    assert "job 3 (seed=3): never began: the sweep ended before it" in text
    assert "job 4 (seed=4): never began: the sweep ended before it" in text
    assert text.count("job 1 ") == 1
    assert "to resume the 3 unfinished:" in text


def test_what_diverged_cannot_be_gone_on_with(tmp_path, told):
    make_run(tmp_path / "s" / "0", ["seed=0"], {"val/loss": 0.5})
    make_run(tmp_path / "s" / "1", ["seed=1"], status="diverged", reason="diverged at step 3")
    assert "trainer.resume" not in told(tmp_path / "s")


def test_the_command_quotes_a_folder_that_the_shell_or_hydra_would_split(tmp_path, told):
    for seed in (0, 1):
        make_run(tmp_path / "a, b" / str(seed), [f"seed={seed}"], status="killed")
    assert """python -m gradlab -m 'trainer.resume='"'"'a, b'"'"''""" in told(tmp_path / "a, b")


def test_one_run_has_no_table_but_its_failure_is_named(tmp_path, told):
    make_run(tmp_path / "ok" / "0", summary={"val/loss": 0.5})
    assert told(tmp_path / "ok").strip() == f"compare: {os.path.join('ok', 'compare.html')}"
    assert not (tmp_path / "ok" / "sweep.csv").exists()
    make_run(tmp_path / "bad" / "0", ["seed=7"], status="crashed", reason="ValueError: no")
    assert "job 0 (seed=7): crashed: ValueError: no" in told(tmp_path / "bad")


def test_a_grid_of_two_settings_has_its_phase_diagram_named(tmp_path, told):
    def slope(gain, length):
        return {"adjoint_slope/layer_0": gain - length / 10, "steps": 1.0}

    axes = {"model__cell__gain": [0.5, 2.0], "task__length": [5, 10]}
    folder = make_sweep(tmp_path / "s", slope, **axes)
    assert f"figure: {os.path.join('s', 'phase_diagram.png')}\n" in told(folder)
    assert (folder / "phase_diagram.png").exists()


def test_runs_in_nested_folders_are_found(tmp_path, told):
    for seed in (0, 1):
        make_run(tmp_path / "s" / "a" / f"seed={seed}", [f"seed={seed}"], {"val/loss": 0.5})
    assert "sweep of 2 runs: 2 finished" in told(tmp_path / "s")


def test_trouble_is_one_warning(tmp_path, told, caplog):
    folder = make_sweep(tmp_path / "s", losses, model=["rnn"], seed=[0, 1])
    (folder / "sweep.csv.partial").mkdir()  # so that the file cannot be written
    with caplog.at_level(logging.WARNING):
        told(folder)
    (record,) = caplog.records
    assert "the sweep cannot be reported (IsADirectoryError" in record.getMessage()


def test_no_folder_is_nothing_to_report(tmp_path, told):
    assert told(None) == ""
    assert told(tmp_path / "missing") == ""


def test_every_ending_that_is_reported_is_known_to_the_live_view():
    from gradlab.launch.sweep.report import UNFINISHED

    assert set(UNFINISHED) - {"never began"} < set(STATES)


@pytest.mark.parametrize("fails", [False, True], ids=["all end", "the launcher raises"])
def test_the_command_line_reports_however_the_sweep_ended(command, monkeypatch, fails):
    def perform(job):
        seed = job.experiment.seed
        if fails and seed == 2:
            raise RuntimeError("broken")
        make_run(job.folder, [f"seed={seed}"], {"val/loss": 0.5})
        return 0.5

    monkeypatch.setattr("gradlab.launch.job.perform", perform)
    line = ["-m", "seed=0,1,2,3", "hydra.sweep.dir=sweep"]
    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            command(*line)
    else:
        assert "sweep of 4 runs: 4 finished" in command(*line).out
    assert os.path.exists(os.path.join("sweep", "sweep.csv"))


@pytest.mark.parametrize(
    "subdir", ["${seed}", "0${seed}", "run/${seed}", "${hydra:job.num}_${seed}", "${hydra:job.num}"]
)
def test_whatever_the_folders_are_called_all_count_the_same_jobs(command, monkeypatch, subdir):
    """Of two jobs both ended; of four one ended, one was killed, two have no folder."""
    jobs = [[f"seed={seed}"] for seed in (7, 1, 8, 0)]

    def perform(job):
        seed = job.experiment.seed
        if seed == 8 and len(wanted) == 4:
            raise BadInput("seed", 8, "another")
        if seed == 0:
            raise RuntimeError("broken")  # after which nothing is left of its folder
        status = "killed" if seed == 1 else "finished"
        make_run(job.folder, [f"seed={seed}"], {"val/loss": 0.5}, status)
        return 0.5

    monkeypatch.setattr("gradlab.launch.job.perform", perform)
    wanted = [7, 8]
    line = ["-m", f"hydra.sweep.subdir={subdir}"]
    assert "sweep of 2 runs: 2 finished" in command(*line, "seed=7,8", "hydra.sweep.dir=two").out
    assert [run.number for run in runs_in("two")] == [0, 1]
    wanted = [7, 1, 8, 0]
    with pytest.raises(RuntimeError, match="broken"):
        command(*line, "seed=7,1,8,0", "hydra.sweep.dir=four")
    assert [(run.number, run.status) for run in runs_in("four")] == [(0, "finished"), (1, "killed")]
    folder, said = runs_in("four")[0].path.parents[subdir.count("/")], io.StringIO()
    report(folder, said, refused=["job 2 (seed=8)"], jobs=jobs)
    assert "sweep of 3 runs: 1 finished, 1 killed, 1 never began" in said.getvalue()
    assert "job 1 (seed=1): killed" in said.getvalue()
    assert "job 3 (seed=0): never began" in said.getvalue()
    Watcher(folder, jobs, stream=said).look()
    last = said.getvalue().splitlines()[-1]
    assert last == "sweep: 1/4 finished, 1 killed: job 1 (seed=1), 2 waiting"
    lost = {"job 1 (seed=1)": "killed"} | {f"job {n} ({jobs[n][0]})": "never began" for n in (2, 3)}
    assert _losses(folder, jobs, {}) == ({}, lost)


def test_a_job_that_never_began_does_not_take_the_place_of_another(tmp_path, told):
    """A folder's name may be the number of another job."""
    folder = make_run(tmp_path / "s" / "1", ["seed=1"], {"val/loss": 0.5})
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    num: 0\n")
    text = told(tmp_path / "s", jobs=[["seed=1"], ["seed=0"]])
    assert "sweep of 2 runs: 1 finished, 1 never began" in text
    with (tmp_path / "s" / "sweep.csv").open() as file:
        assert [line.split(",")[0] for line in file] == ["run", "1", "job 1"]
