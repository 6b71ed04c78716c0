"""What the W&B sink writes, read back from its offline file."""

from __future__ import annotations

import gc
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from gradlab.record.base import Outcome, Row
from gradlab.record.wandb_sink import WandbSink, _History
from gradlab.variable import Variable

from .synthetic import describe, finished, make_row
from .wandb_file import load

T, STEPS = 40, 60


@pytest.fixture(scope="module", autouse=True)
def isolated(tmp_path_factory):
    """No settings, account or server of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "HOME"):
            patch.setenv(name, str(home))
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        yield
        with warnings.catch_warnings():  # W&B leaves the temporary folders of tables to the exit
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def one_run(directory: Path, outcome: Outcome) -> WandbSink:
    description = describe(T=T, layers=[0, "0 backward"], steps=STEPS)
    sink = WandbSink(directory, group="g", job_type="train", tags=["a", "b"], name="n", notes="x")
    sink.open(description)
    for step in range(0, STEPS, 3):
        row = make_row(description, step, zero_beyond=20)
        row.scalars["train/loss"] = math.nan if step == 30 else row.scalars["train/loss"]
        sink.log(row)
    sink.close(outcome)
    return sink


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    from matplotlib.figure import Figure

    directory = tmp_path_factory.mktemp("run")
    (directory / "figures").mkdir()
    Figure(figsize=(1, 1)).savefig(directory / "figures" / "loss.png")
    sink = one_run(directory, finished())
    return sink, load(directory)


def test_run_and_config(recorded):
    _, found = recorded
    run = found["run"]
    assert (run.project, run.run_group, run.job_type) == ("gradlab", "g", "train")
    assert (list(run.tags), run.display_name, run.notes) == (["a", "b"], "n", "x")
    assert found["config"]["model"] == {"name": "lstm", "hidden": 64}
    assert found["config"]["task"] == {"length": T}
    assert found["config"]["facts"]["parameters"] == 17217
    assert found["config"]["baseline"]["val"]["accuracy"] is None


def test_history(recorded):
    _, found = recorded
    rows = found["history"][:-1]
    assert [row["train_step"] for row in rows] == list(range(0, STEPS, 3))
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


def test_charts_over_lag(recorded):
    _, found = recorded
    entry = found["history"][-1]["over_lag/adj_h/layer_0_table"]
    table = json.loads((found["files"] / entry["path"]).read_text())
    assert table["columns"] == ["lag", "training_step", "log10_adj_h"]
    assert len({step for _, step, _ in table["data"]}) == 12
    assert {lag for lag, _, _ in table["data"]} == set(range(21))  # beyond it is exactly zero
    assert all(math.isfinite(value) for *_, value in table["data"])
    chart = found["config"]["_wandb"]["visualize"]["over_lag/adj_h/layer_0"]
    assert chart["panel_config"]["panelDefId"] == "wandb/lineseries/v0"


def test_figures_of_the_run_directory_are_sent(recorded):
    entry = recorded[1]["history"][-1]["figures/loss"]
    assert (recorded[1]["files"] / entry["path"]).exists()


def test_summary_and_exit(recorded):
    sink, found = recorded
    summary = found["summary"]
    assert summary["train/loss"] == 0.01
    assert summary["status"] == "finished"
    assert summary["steps_per_second"] == 123.4
    assert "37 steps back" in summary["verdict"]
    assert "memory_horizon/layer_0" in summary  # the last finite one; the final one is infinite
    assert found["exit"] == 0
    assert sink.how_to_see() == f"wandb sync {found['files'].parent}"


def test_a_run_that_diverged_has_failed(tmp_path):
    one_run(tmp_path, Outcome("diverged", "loss is NaN at step 57"))
    found = load(tmp_path)
    assert found["exit"] == 1
    assert found["summary"]["reason"] == "loss is NaN at step 57"


def test_disabled_does_nothing(tmp_path):
    sink = WandbSink(tmp_path, mode="disabled")
    description = describe(T=4, steps=1)
    sink.open(description)
    sink.log(make_row(description, 0))
    sink.close(finished())
    assert sink.how_to_see() == ""
    assert not list(tmp_path.iterdir())


def test_trouble_is_one_warning(tmp_path, monkeypatch, caplog):
    description = describe(T=4, steps=3)
    sink = WandbSink(tmp_path)
    sink.open(description)

    def fails(*_, **__):
        raise OSError("no space left on device\nand more")

    monkeypatch.setattr(sink.run, "log", fails)
    for step in range(3):
        sink.log(make_row(description, step))
    sink.close(finished())
    (warning,) = warnings_in(caplog)
    expected = "W&B could not log, recording there stops: OSError: no space left on device"
    assert warning == expected


def test_online_without_a_server_records_offline(tmp_path, monkeypatch, caplog):
    import wandb

    init = wandb.init

    def unreachable(*args, mode, **kwargs):
        if mode == "online":
            raise wandb.errors.CommError("no route to host")
        return init(*args, mode=mode, **kwargs)

    monkeypatch.setattr(wandb, "init", unreachable)
    sink = WandbSink(tmp_path, mode="online")
    sink.open(describe(T=4, steps=3))
    sink.log(Row(0, {"train/loss": 1.0}, {}))
    sink.close(finished())
    assert sink.how_to_see().startswith("wandb sync ")
    assert len(warnings_in(caplog)) == 1
    assert load(tmp_path)["history"][0]["train/loss"] == 1.0


@pytest.mark.parametrize("length", [1, 10, 11, 500])
def test_history_is_thinned_evenly(length):
    history = _History(10)
    for step in range(length):
        history.add(step, np.full(2, step))
    steps, arrays = history.all()
    assert steps[0] == 0
    assert steps[-1] == length - 1
    assert min(length, 5) <= len(steps) <= 11
    assert len(set(np.diff(steps)[:-1])) <= 1
    np.testing.assert_array_equal(arrays[:, 0], steps)


def test_of_a_spectrum_the_largest_get_a_key_and_of_units_none(tmp_path):
    sink = WandbSink(tmp_path)
    sink.coords = {
        "layer": ["0"],
        "index": list(range(40)),
        "unit": list(range(5)),
        "window": [1, 2],
    }
    sink.variables = {
        "lyapunov_exponent": Variable(("layer", "index"), "nats/step", ""),
        "timescale": Variable(("layer", "unit"), "steps", ""),
        "truncation_bias": Variable(("window",), "1", ""),
        "hessian_top": Variable((), "loss/parameter²", ""),
    }
    sink.lags = []
    spectrum = -np.arange(40.0)[None]
    assert dict(sink._flat("lyapunov_exponent", spectrum)) == {
        f"lyapunov_exponent/layer_0/index_{k}": -k for k in range(3)
    }
    assert dict(sink._flat("timescale", np.ones((1, 5)))) == {}
    assert dict(sink._flat("truncation_bias", np.array([0.5, 0.25]))) == {
        "truncation_bias/window_1": 0.5,
        "truncation_bias/window_2": 0.25,
    }
    assert dict(sink._flat("hessian_top", np.array(3.0))) == {"hessian_top": 3.0}
