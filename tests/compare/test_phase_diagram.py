"""The phase diagram: which runs make one, its numbers, and that it is drawn."""

import csv
import math

import matplotlib.image
import numpy as np
import pytest

from gradlab.compare.phase_diagram import (
    CSV,
    PNG,
    diagram,
    grid,
    is_geometric,
    name_of,
    picture,
    write,
)
from gradlab.compare.runs import runs_in
from tests.compare.sweeps import make_run, make_sweep

GAINS, LENGTHS = [0.5, 1.0, 2.0], [10, 20, 40]
AXES = {"model__cell__gain": GAINS, "task__length": LENGTHS}


def exponent(gain):
    return math.log(gain) - 0.1


def at_start(gain, length):
    """The one row of a run of one step; one run is missing, one has no horizon."""
    if (gain, length) == (2.0, 10):
        return None
    return {
        "steps": 1.0,
        "adjoint_slope/layer_0": exponent(gain) + 1 / length,
        "memory_horizon/layer_0": math.inf if (gain, length) == (1.0, 40) else length / 2,
        "lyapunov_exponent/layer_0": exponent(gain),
        "mean_field_exponent/layer_0": math.log(gain),
        "val/loss": 0.1,
    }


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = make_sweep(tmp_path_factory.mktemp("sweep"), at_start, **AXES)
    return folder, diagram(runs_in(folder))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    def summary(gain, length, seed):
        if gain == 2.0 and seed == 1:
            return {"status": "diverged", "adjoint_slope/layer_0": 1e6}
        loss = 0.01 if length == 10 else 0.1666 if seed else 0.02
        return {"val/loss": loss, "adjoint_slope/layer_0": exponent(gain)}

    axes = {"model__cell__gain": GAINS[1:], "task__length": LENGTHS[:2], "seed": [0, 1]}
    folder = make_sweep(tmp_path_factory.mktemp("sweep"), summary, **axes)
    return folder, diagram(runs_in(folder))


def test_grid_is_sorted_and_averages_the_finite_values_of_a_cell():
    x, y, values = grid(
        [3, 1, 1, 3, 1, 1], [20, 10, 10, 10, 10, 20], [4.0, 1.0, 2.0, math.nan, math.inf, 5.0]
    )
    np.testing.assert_array_equal(x, [1, 3])
    np.testing.assert_array_equal(y, [10, 20])
    np.testing.assert_array_equal(values, [[1.5, math.nan], [5.0, 4.0]])


def test_figures_lie_where_their_settings_say(started):
    _, found = started
    assert found.keys == ("model.cell.gain", "task.length")
    np.testing.assert_array_equal(found.x, GAINS)
    np.testing.assert_array_equal(found.y, LENGTHS)
    slopes = [[exponent(g) + 1 / t for g in GAINS] for t in LENGTHS]
    slopes[0][2] = math.nan  # no run there
    np.testing.assert_allclose(found.figures["adjoint_slope"], slopes, rtol=1e-12)
    assert math.isnan(found.figures["memory_horizon"][2, 1])  # not finite
    np.testing.assert_array_equal(found.runs, [[1, 1, 0], [1, 1, 1], [1, 1, 1]])


def test_runs_of_one_step_are_shown_at_initialisation_without_success(started):
    _, found = started
    assert found.when == "at initialisation"
    names = ["adjoint_slope", "memory_horizon", "lyapunov_exponent"]
    assert [panel.name for panel in found.panels()] == names


def test_success_is_a_share_of_the_seeds_and_a_diverged_one_has_none(trained):
    _, found = trained
    assert found.when == "after training, at step 3"
    assert [panel.name for panel in found.panels()] == ["adjoint_slope", "success"]
    # A loss of 0.1666 is below the baseline, 0.1667, by less than chance: no success.
    np.testing.assert_array_equal(found.figures["success"], [[1.0, 0.5], [0.5, 0.5]])
    np.testing.assert_array_equal(found.diverged, [[0, 1], [0, 1]])
    np.testing.assert_allclose(found.figures["adjoint_slope"], [[-0.1, exponent(2)]] * 2)


def test_with_one_run_a_cell_success_is_the_loss_over_the_baseline(tmp_path):
    def summary(gain, length):
        return {"val/loss": 1.0, "test/loss": 0.01667, "adjoint_slope/layer_0": gain}

    axes = {"model__cell__gain": GAINS[:2], "task__length": LENGTHS[:2]}
    runs = runs_in(make_sweep(tmp_path, summary, **axes))
    for run in runs:
        run.info["baseline"]["test"] = {"loss": 0.1667}
    found = diagram(runs)
    assert found.panels()[-1].name == "loss_over_baseline_log10"
    np.testing.assert_allclose(found.figures["loss_over_baseline_log10"], -1.0, rtol=1e-9)


@pytest.mark.parametrize(
    "runs",
    [
        ["task.length=1", "task.length=2"],
        ["task.length=1 model=rnn", "task.length=1 model=lstm", "task.length=2 model=rnn"],
        [f"task.length={k} model.hidden={k}" for k in (1, 2, 3)],
        [f"task.length={k % 2} model.hidden={k // 2} seed={k} trainer.batch={k}" for k in range(4)],
    ],
    ids=["one setting", "a setting that is no number", "no grid", "three settings"],
)
def test_other_runs_make_no_diagram(tmp_path, runs):
    for number, overrides in enumerate(runs):
        make_run(tmp_path / str(number), overrides.split(), {"adjoint_slope/layer_0": 1.0})
    assert diagram(runs_in(tmp_path)) is None


def test_picture_and_file_are_written(started):
    folder, found = started
    assert write(found, folder) == [folder / PNG, folder / CSV]
    height, width, _ = matplotlib.image.imread(folder / PNG).shape
    assert width > 1000
    assert height > 700
    rows = list(csv.DictReader((folder / CSV).read_text().splitlines()))
    assert len(rows) == 8
    first = rows[0]
    assert (first["model.cell.gain"], first["task.length"], first["runs"]) == ("0.5", "10", "1")
    assert float(first["lyapunov_exponent"]) == exponent(0.5)
    (at_end,) = [r for r in rows if (r["model.cell.gain"], r["task.length"]) == ("1", "40")]
    assert at_end["memory_horizon"] == ""


def test_picture_says_what_when_and_where_the_edge_is(started):
    _, found = started
    page = picture(found)
    title = page.get_suptitle()
    assert "lstm, adding" in title
    assert "at initialisation" in title
    assert "T = " not in title  # it is an axis
    labels = {text.get_text() for legend in page.legends for text in legend.get_texts()}
    assert {"λ₁ = 0, measured", "λ₁ = 0, mean-field theory"} <= labels
    assert {"no run, or none that finished", "no finite number"} <= labels
    panels = [axes for axes in page.axes if axes.get_title()]
    assert len(panels) == 3
    assert panels[0].get_xlabel() == "gain\nmodel.cell.gain"
    assert panels[0].get_ylabel() == "sequence length T (steps)\ntask.length"
    ticks = [text.get_text() for text in panels[0].get_xticklabels()]
    assert ticks == ["0.5", "1", "2"]
    np.testing.assert_allclose(panels[0].get_xticks(), np.log10(GAINS), atol=1e-12)


def test_colours_have_zero_in_their_middle(trained):
    _, found = trained
    meshes = [mesh for axes in picture(found).axes for mesh in axes.collections]
    low, high = next(mesh.get_clim() for mesh in meshes if mesh.get_array() is not None)
    assert low == -high != 0


def test_one_extreme_cell_does_not_take_the_colours_of_the_others(tmp_path):
    def slope(gain, length):
        return {"adjoint_slope/layer_0": 1000.0 if gain == length == 0 else gain / 10}

    axes = {"model__cell__gain": range(8), "task__length": range(8)}
    page = picture(diagram(runs_in(make_sweep(tmp_path, slope, **axes))))
    mesh = next(m for axes in page.axes for m in axes.collections if m.get_array() is not None)
    assert mesh.get_clim() == (-0.7, 0.7)


def test_nothing_measured_is_no_picture(tmp_path):
    axes = {"model__hidden": [1, 2], "task__length": [1, 2]}
    folder = make_sweep(tmp_path, lambda *_: {}, **axes)
    found = diagram(runs_in(folder))
    assert write(found, folder) == [folder / CSV]
    assert not (folder / PNG).exists()


def test_values_spaced_by_a_ratio_lie_along_a_logarithm():
    assert is_geometric(np.array([10.0, 18, 32, 56, 100]))
    assert not is_geometric(np.array([0.5, 1.0, 1.5, 2.0]))
    assert not is_geometric(np.array([0.0, 1.0, 10.0]))
    assert is_geometric(np.array([1e-4, 1e-2]))
    assert not is_geometric(np.array([1.0, 2.0]))


def test_keys_in_words():
    assert name_of("task.length") == "sequence length T (steps)"
    assert name_of("model.cell.forget_bias") == "forget bias"
    assert name_of("model.cell.recurrent_kernel_init.scale") == "recurrent kernel init scale"
    assert name_of("seed") == "seed"
