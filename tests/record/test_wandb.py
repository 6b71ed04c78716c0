"""What the W&B sink writes, read back from its offline file."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import logging
import math
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import wandb

from gradlab.errors import BadInput
from gradlab.record.base import Description, Outcome, Row
from gradlab.record.directory import RunDirectory
from gradlab.record.wandb import sender
from gradlab.record.wandb.charts import TABLE_ROWS, VANISHING, Charts
from gradlab.record.wandb.file import BLOCK, Contents, contents, records, rewrite
from gradlab.record.wandb.sink import WandbSink
from gradlab.record.wandb.start import run_name, without_credentials
from gradlab.variable import Variable
from tests.record.synthetic import describe, finished, make_row
from tests.record.wandb_file import load
from tests.record.wandb_server import isolate

T, STEPS = 40, 60


# W&B leaves the temporary folders of artifacts to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    pytest.mark.usefixtures("tidy"),
]


@pytest.fixture(scope="module", autouse=True)
def isolated(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, tmp_path_factory.mktemp("home"))
        yield


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def file_of(directory: Path) -> Path:
    (path,) = directory.glob("wandb/*run-*/*.wandb")
    return path


def described(T: int = 8, **changes) -> Description:
    return dataclasses.replace(describe(T=T, steps=STEPS), id="abcd1234", **changes)


def record(directory: Path, description: Description, steps, **settings) -> WandbSink:
    settings = {"code": False, **settings}
    sink = WandbSink(directory, **settings)
    sink.open(description)
    for step in steps:
        sink.log(make_row(description, step))
    sink.close(finished())
    return sink


def one_run(directory: Path, outcome: Outcome) -> WandbSink:
    description = describe(T=T, layers=[0, "0 backward"], steps=STEPS)
    description = dataclasses.replace(description, id="run0run0")
    arrays = RunDirectory(directory)
    sink = WandbSink(directory, group="g", job_type="train", tags=["a", "b"], name="n", notes="x")
    sink.open(description)
    arrays.open(description)
    for step in range(0, STEPS, 3):
        row = make_row(description, step, zero_beyond=20)
        if step == 30:
            row = row._replace(scalars={**row.scalars, "train/loss": math.nan})
        arrays.log(row)
        sink.log(row)
    arrays.close(outcome)
    sink.close(outcome)
    return sink


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    from matplotlib.figure import Figure

    directory = tmp_path_factory.mktemp("run")
    (directory / "figures").mkdir()
    Figure(figsize=(1, 1)).savefig(directory / "figures" / "loss.png")
    sink = one_run(directory, finished())
    return sink, load(file_of(directory))


def test_run_and_config(recorded):
    _, found = recorded
    run = found["run"]
    assert (run.run_id, run.project, run.run_group) == ("run0run0", "gradlab", "g")
    assert (list(run.tags), run.display_name, run.notes) == (["a", "b"], "n", "x")
    assert run.job_type == "train"
    assert found["config"]["model"] == {"name": "lstm", "hidden": 64}
    assert found["config"]["task"] == {"length": T}
    assert found["config"]["facts"]["parameters"] == 17217
    assert found["config"]["baseline"]["val"]["accuracy"] is None


def test_history(recorded):
    _, found = recorded
    rows = found["history"]
    assert [row["train_step"] for row in rows] == list(range(0, STEPS, 3))
    assert [row["_step"] for row in rows] == list(range(0, STEPS, 3))
    expected = make_row(describe(T=T, layers=[0, 1], steps=STEPS), 6)
    row = rows[2]
    assert row["train/loss"] == pytest.approx(expected.scalars["train/loss"])
    assert "val/loss" not in row
    adjoint = expected.arrays["adj_h_log10"]
    for lag in (1, 2, 4, 8, 16):
        assert row[f"adj_h/layer_0/lag_{lag:05d}"] == pytest.approx(adjoint[0, T - 1 - lag])
        assert row[f"adj_c/layer_0_backward/lag_{lag:05d}"] < 0
    assert "forget_product/layer_0/lag_00032" in row
    assert "adj_h/layer_0/lag_00064" not in row
    slope = expected.arrays["adjoint_slope"]
    assert row["adjoint_slope/layer_0_backward"] == pytest.approx(slope[1])
    assert row["grad_norm/layer_0/recurrent_kernel"] > 0
    assert 0 <= row["gate_saturation/layer_0/f"] <= 1
    assert not any(key.startswith("adj_h_log10_q") for key in row)


def test_values_that_are_not_finite_are_left_out(recorded):
    _, found = recorded
    row = found["history"][10]
    assert row["train_step"] == 30
    assert "train/loss" not in row
    assert "adj_h/layer_0/lag_00032" not in row  # exactly zero there
    for row in found["history"][:-1]:
        assert all(isinstance(value, int | float) for value in row.values())


def test_step_axis(recorded):
    metrics = recorded[1]["metrics"]
    assert metrics["train_step"].options.hidden
    globs = {name: metric.step_metric for name, metric in metrics.items() if name != "train_step"}
    assert set(globs.values()) == {"train_step"}
    assert {"train/*", "val/*", "adj_h/*", "adj_c/*", "adjoint_slope/*"} <= globs.keys()


def test_heatmaps_are_colour_images(recorded):
    from PIL import Image

    _, found = recorded
    entry = found["history"][-1]["heatmap/adj_h/layer_0"]
    assert entry["_type"] == "image-file"
    assert "black exactly zero" in entry["caption"]
    with Image.open(found["files"] / entry["path"]) as image:
        pixels = np.asarray(image)
    tall, wide = pixels.shape[0] // T, pixels.shape[1] // (STEPS // 3)
    assert pixels.shape == (T * tall, STEPS // 3 * wide, 3)
    assert (pixels[-1] == 0).all()  # the first timestep, at the bottom, is exactly zero
    assert pixels[0, 0].sum() > pixels[15 * tall, 0].sum() > 0  # bright at the end of the sequence


def table_of(found, key: str):
    return json.loads((found["files"] / found["history"][-1][key]["path"]).read_text())


def test_charts_over_lag(recorded):
    _, found = recorded
    table = table_of(found, "over_lag/adj_h/layer_0_table")
    assert table["columns"] == ["lag", "training_step", "log10_adj_h"]
    assert len({step for _, step, _ in table["data"]}) == 12
    assert {lag for lag, _, _ in table["data"]} == set(range(21))  # beyond it is exactly zero
    assert all(math.isfinite(value) for *_, value in table["data"])
    chart = found["config"]["_wandb"]["visualize"]["over_lag/adj_h/layer_0"]
    assert chart["panel_config"]["panelDefId"] == "wandb/lineseries/v0"


def test_the_table_of_all_curves(recorded):
    _, found = recorded
    table = table_of(found, "vanishing")
    assert table["columns"] == ["lag", "train_step", "series", "log10"]
    description = describe(T=T, layers=[0, 1], steps=STEPS)
    expected = make_row(description, 6).arrays["adj_h_log10"][0, T - 1 - 4]
    assert [4, 6, "adj_h layer_0", pytest.approx(float(expected))] in table["data"]
    assert {series for _, _, series, _ in table["data"]} == {
        f"{name} layer_{layer}"
        for name in ("adj_h", "adj_c", "forget_product")
        for layer in ("0", "0_backward")
    }
    assert {step for _, step, _, _ in table["data"]} == set(range(0, STEPS, 3))


@pytest.mark.parametrize(("layers", "length"), [(1, 2000), (12, 500)])
def test_the_table_of_all_curves_is_small_and_holds_both_ends(layers, length):
    description = describe(T=length, layers=list(range(layers)), steps=1000)
    charts = Charts(description)
    for step in range(0, 1000, 2):
        charts.add(make_row(description, step))
    rows = charts.vanishing()
    assert TABLE_ROWS / 3 < len(rows) <= TABLE_ROWS
    assert {0, length - 1} <= {lag for lag, *_ in rows}
    assert {0, 998} <= {step for _, step, *_ in rows}


def test_a_custom_chart_is_fed_by_column(tmp_path):
    description = described()
    record(tmp_path, description, range(2), chart="somebody/vanishing_curve")
    found = load(file_of(tmp_path))
    panel = found["config"]["_wandb"]["visualize"]["vanishing"]["panel_config"]
    assert panel["panelDefId"] == "somebody/vanishing_curve"
    assert panel["fieldSettings"] == {column: column for column in VANISHING}
    assert table_of(found, "vanishing_table")["columns"] == VANISHING


def test_figures_of_the_run_directory_are_sent(recorded):
    entry = recorded[1]["history"][-1]["figures/loss"]
    assert (recorded[1]["files"] / entry["path"]).exists()


def test_arrays_and_code_are_artifacts_with_files_that_are_there(recorded):
    sink, found = recorded
    artifacts = {artifact.name: artifact for artifact in found["artifacts"]}
    arrays = artifacts["arrays-run0run0"]
    assert arrays.type == "run-arrays"
    on_disk = {
        str(path.relative_to(sink.directory / "arrays.zarr"))
        for path in (sink.directory / "arrays.zarr").rglob("*")
        if path.is_file()
    }
    assert {file.path for file in arrays.manifest.contents} == on_disk
    code = artifacts["code-run0run0"]
    assert {"record/wandb/sink.py", "__main__.py"} <= {file.path for file in code.manifest.contents}
    for artifact in artifacts.values():
        for file in artifact.manifest.contents:
            assert (sink.directory / file.local_path).stat().st_size == file.size
            assert not Path(file.local_path).is_absolute()


def test_arrays_are_not_copied(recorded):
    _, found = recorded
    (arrays,) = (one for one in found["artifacts"] if one.type == "run-arrays")
    assert all(file.local_path.startswith("arrays.zarr/") for file in arrays.manifest.contents)


def test_summary_and_exit(recorded):
    sink, found = recorded
    summary = found["summary"]
    assert summary["train/loss"] == 0.01
    assert summary["status"] == "finished"
    assert summary["steps_per_second"] == 123.4
    assert "37 steps back" in summary["verdict"]
    assert "memory_horizon/layer_0" in summary  # the last finite one; the final one is infinite
    assert found["exit"] == 0
    folder = found["files"].parent.relative_to(sink.directory)
    wandb = "wandb" if shutil.which("wandb") else f"{sys.executable} -m wandb"
    assert sink.how_to_see() == f"cd {sink.directory} && {wandb} sync {folder}"


def test_a_run_that_diverged_has_failed(tmp_path):
    one_run(tmp_path, Outcome("diverged", "loss is NaN at step 57"))
    found = load(file_of(tmp_path))
    assert found["exit"] == 1
    assert found["summary"]["reason"] == "loss is NaN at step 57"


def test_disabled_does_nothing(tmp_path):
    sink = record(tmp_path, describe(T=4, steps=1), [0], mode="disabled")
    assert sink.how_to_see() == ""
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_replaces_what_was_recorded_offline(tmp_path):
    record(tmp_path, described(), range(10))
    before = file_of(tmp_path).parent
    record(tmp_path, described(resumed=True), range(25))
    found = load(file_of(tmp_path))  # the only one
    assert not before.exists()
    assert [row["train_step"] for row in found["history"]] == list(range(25))
    assert found["run"].run_id == "abcd1234"


def test_nothing_in_the_environment_makes_two_runs_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "shared00")
    monkeypatch.setenv("WANDB_RESUME", "must")
    wandb.teardown()  # it reads the environment once
    for name in ("a", "b"):
        description = dataclasses.replace(described(), id=f"run{name * 5}")
        record(tmp_path / name, description, range(3))
        found = load(file_of(tmp_path / name))
        assert found["run"].run_id == f"run{name * 5}"
        assert len(found["history"]) == 3
    monkeypatch.undo()
    wandb.teardown()


def test_in_a_sweep_of_wandb_the_run_is_the_agents(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "swept000")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep000")
    wandb.teardown()
    record(tmp_path, described(), range(3))
    found = load(file_of(tmp_path))
    assert (found["run"].run_id, found["run"].sweep_id) == ("swept000", "sweep000")
    monkeypatch.undo()
    wandb.teardown()


def test_names_that_wandb_refuses_lose_no_row(tmp_path):
    names = ["a.b", "a_b", "_step", "_wandb/x", "train_step", "x*", "ünï/ø", "/", "."]
    variables = {name: Variable((), "1", "") for name in names}
    description = Description("n", {}, variables, {}, {}, id="abcd1234")
    sink = WandbSink(tmp_path, code=False)
    sink.open(description)
    for step in range(3):
        values = {name: 10.0 * index + step for index, name in enumerate(names)}
        sink.log(Row(step, values, {}))
    sink.close(finished())
    found = load(file_of(tmp_path))["history"]
    assert [row["train_step"] for row in found] == [0, 1, 2]
    for step, row in enumerate(found):
        own = {key: value for key, value in row.items() if not key.startswith("_")}
        del own["train_step"]
        assert sorted(own.values()) == [10.0 * index + step for index in range(len(names))]


def test_trouble_is_one_warning(tmp_path, monkeypatch, caplog):
    def fails(*_, **__):
        raise OSError("no space left on device\nand more")

    monkeypatch.setattr(wandb.Run, "log", fails)
    sink = record(tmp_path, described(), range(3))
    (warning,) = warnings_in(caplog)
    expected = "W&B could not log, recording there stops: OSError: no space left on device"
    assert warning == expected
    assert sink.how_to_see() == ""  # nothing is there that could be uploaded
    assert not sink.complete


def test_a_copy_without_a_row_is_not_to_be_uploaded(tmp_path, caplog):
    sink = record(tmp_path, described(), [])
    assert (sink.how_to_see(), warnings_in(caplog)) == ("", [])
    assert sink.complete


def test_where_its_folder_cannot_be_written_to_wandb_takes_no_other(tmp_path, monkeypatch, caplog):
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, *a: Path(path).name != "wandb" and access(path, *a)
    )
    sink = record(tmp_path, described(), range(3))
    (warning,) = warnings_in(caplog)
    assert warning.endswith(f"PermissionError: {tmp_path / 'wandb'} cannot be written to")
    assert (sink.how_to_see(), sink.complete) == ("", False)


def test_no_log_of_wandb_is_written_to_on_a_disk_that_may_be_full(tmp_path, monkeypatch):
    log, files = wandb.Run.log, []

    def look(run, *args, **kwargs):
        handlers = logging.getLogger("wandb").handlers
        files.extend(getattr(one, "baseFilename", "") for one in handlers)
        log(run, *args, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", look)
    record(tmp_path, described(), range(3))
    assert contents(file_of(tmp_path)).rows == 3
    assert not [file for file in files if file.startswith(str(tmp_path))]


def test_a_start_that_fails_is_one_warning(tmp_path, caplog):
    (tmp_path / "wandb").write_text("a file where W&B wants a folder")
    sink = record(tmp_path, described(), range(3))
    (warning,) = warnings_in(caplog)
    assert warning.startswith("W&B could not start, recording there stops: FileExistsError")
    assert (sink.how_to_see(), sink.complete) == ("", False)


def test_the_end_does_not_wait_longer_than_it_may(tmp_path, monkeypatch, caplog):
    entered, may_end = threading.Event(), threading.Event()
    finish = wandb.Run.finish

    def finish_late(run, *args, **kwargs):
        entered.set()
        assert may_end.wait(60)
        finish(run, *args, **kwargs)

    monkeypatch.setattr(wandb.Run, "finish", finish_late)
    sink = record(tmp_path, described(), range(3), finish_timeout=3.0)
    try:
        assert entered.is_set()
        (thread,) = (one for one in threading.enumerate() if one.name == "gradlab-wandb")
        (warning,) = warnings_in(caplog)
        assert warning.startswith(
            f"W&B did not end in time; what was recorded is in the run directory {tmp_path}"
        )
        assert warning.endswith(sink.how_to_see())
    finally:
        may_end.set()
    thread.join(20)
    assert contents(file_of(tmp_path)) == (3, True)
    assert len(warnings_in(caplog)) == 1


def test_a_time_too_short_for_the_end_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"record\.wandb\.finish_timeout: got 0\.5"):
        WandbSink(tmp_path, finish_timeout=0.5)


def test_a_copy_that_is_not_whole_is_told(tmp_path, monkeypatch, caplog):
    finish = wandb.Run.finish

    def finish_and_cut(run, *args, **kwargs):
        finish(run, *args, **kwargs)
        path = Path(run.settings.sync_file)
        end = time.monotonic() + 10
        while not contents(path).closed and time.monotonic() < end:
            time.sleep(0.02)
        os.truncate(path, path.stat().st_size // 2)

    monkeypatch.setattr(wandb.Run, "finish", finish_and_cut)
    record(tmp_path, described(), range(200), finish_timeout=10.0)
    path = file_of(tmp_path)
    rows = contents(path).rows
    assert 0 < rows < 200
    (warning,) = warnings_in(caplog)
    assert f"{rows} of 200 rows" in warning
    assert str(path.parent) in warning
    assert f"what was recorded is in the run directory {tmp_path}" in warning


def test_rows_that_are_missing_are_told(tmp_path, monkeypatch, caplog):
    log = wandb.Run.log

    def lose_some(run, data, step=None, **kwargs):
        if step is not None and step % 2:
            log(run, data, step=step, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", lose_some)
    record(tmp_path, described(), range(20))
    (warning,) = warnings_in(caplog)
    assert "W&B's copy holds 10 of 20 rows (" in warning


def test_a_copy_that_was_closed_without_all_rows_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sender, "contents", lambda _: Contents(2, True))
    record(tmp_path, described(), range(5))
    (warning,) = warnings_in(caplog)
    assert warning.startswith("W&B's copy holds 2 of 5 rows (")


def test_neither_secrets_nor_the_home_folder_are_left(tmp_path, monkeypatch):
    home = tmp_path / "recognisable-home"
    work = home / "work"
    work.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "feedface" * 5)
    monkeypatch.setenv("MY_SECRET_TOKEN", "verysecretverysecret")
    monkeypatch.chdir(work)
    wandb.teardown()
    config = {"data": str(home / "data"), "url": "https://x:verysecretverysecret@host/"}
    description = described(config=config)
    folder = work / "outputs" / "run"
    arrays = RunDirectory(folder)
    arrays.open(description)
    sink = WandbSink(folder, notes=f"in {home}")
    sink.open(description)
    for step in range(3):
        row = make_row(description, step)
        arrays.log(row)
        sink.log(row)
    outcome = finished()
    arrays.close(outcome)
    sink.close(dataclasses.replace(outcome, reason=f"{home}/x is missing"))
    assert len(load(file_of(folder))["history"]) == 3
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    assert len(files) > 20
    for path in files:
        assert not path.is_symlink()
        found = re.findall(rb"recognisable-home|feedface|verysecret", path.read_bytes())
        assert not found, path
    monkeypatch.undo()
    wandb.teardown()


def test_ten_runs_leave_neither_threads_nor_open_files(tmp_path):
    description = described()
    record(tmp_path / "first", description, range(2))  # W&B's own process stays till the exit
    gc.collect()
    threads, files = threading.enumerate(), len(os.listdir("/proc/self/fd"))
    for number in range(10):
        record(tmp_path / str(number), dataclasses.replace(description, id=f"run{number}"), [0])
    gc.collect()
    assert threading.enumerate() == threads
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_run_has_a_name_to_recognise_it_by():
    facts = {"model": "lstm", "task": "AddingProblem", "T": 100}
    config = {"seed": 3, "model": {"hidden": 64, "layers": 2}}
    description = Description("default", config, {}, {}, {}, facts)
    assert run_name(description) == "lstm adding_problem T=100 H=64 L=2 seed 3"
    named = dataclasses.replace(description, name="copy_lstm")
    assert run_name(named) == "copy_lstm T=100 H=64 L=2 seed 3"
    assert run_name(Description("x", {"model": "lstm"}, {}, {}, {})) == "x"


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://me:secret@host.org/a/b.git", "https://host.org/a/b.git"),
        ("https://token@host.org:8443/a.git?x=1", "https://host.org:8443/a.git"),
        ("git@host.org:a/b.git", "host.org:a/b.git"),
        ("/home/me/repository", ""),
        ("file:///home/me/repository", ""),
        ("", ""),
    ],
)
def test_a_remote_is_named_without_credentials(url, clean):
    assert without_credentials(url) == clean


def test_a_file_is_rewritten_whole(tmp_path):
    record_class = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    record(tmp_path, described(T=40), range(300))
    path = file_of(tmp_path)
    assert path.stat().st_size > 3 * 32768
    before = list(records(path))

    def rename(record) -> bool:
        record.artifact.name = "x" * 70_000  # over several blocks
        return True

    rewrite(path, rename, ["artifact"])
    after = list(records(path))
    assert len(after) == len(before)
    changed = [index for index, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert changed
    for index in changed:
        name = record_class.FromString(after[index]).artifact.name
        assert name == "x" * 70_000
    assert contents(path) == (300, True)
    assert not list(path.parent.glob("*.copy"))


def test_a_record_may_end_anywhere_in_a_block(tmp_path):
    record_class = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    record(tmp_path, described(), range(1))
    path = file_of(tmp_path)
    before = list(records(path))
    near = BLOCK - sum(len(record) for record in before[:2])
    for length in range(near - 60, near + 20):

        def rename(record, name="x" * length) -> bool:
            record.run.display_name = name
            return True

        rewrite(path, rename, ["run"])
        found = list(records(path))
        assert len(found) == len(before)
        assert record_class.FromString(found[1]).run.display_name == "x" * length


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_torn_or_damaged_file_is_read_up_to_there(recorded, tmp_path, share):
    whole = file_of(recorded[0].directory)
    at = int(whole.stat().st_size * share)
    torn, damaged = tmp_path / "torn.wandb", tmp_path / "damaged.wandb"
    data = bytearray(whole.read_bytes())
    torn.write_bytes(data[:at])
    data[at] ^= 255
    damaged.write_bytes(data)
    everything = list(records(whole))
    for path in (torn, damaged):
        found = list(records(path))
        assert found == everything[: len(found)]
        assert len(found) < len(everything)
        assert not contents(path).closed
    assert contents(whole) == (STEPS // 3, True)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "run.wandb"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="no W&B file"):
        contents(path)
