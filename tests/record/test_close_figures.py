"""The figures of the close probes: they show what was measured, and all of their title."""

from __future__ import annotations

import importlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray

from gradlab.record import figures
from gradlab.record.base import Row
from gradlab.record.directory import RunDirectory
from gradlab.record.figures import FIGURES, draw
from gradlab.record.figures.common import STYLE
from gradlab.record.reader import open_run

from .synthetic import describe_closely, finished, make_close_row, make_row
from .test_figures import check_not_empty

STEPS, EVERY = 20, 6
SHOWN = {
    "adjoint_over_lag": ["adj_h_log10"],
    "paths": ["forget_path_log10", "residual_path_log10", "whole_path_log10"],
    "long_jacobian": [
        "long_jacobian_log10",
        "long_jacobian_log10_frobenius",
        "pascanu_bound_log10",
    ],
    "step_jacobian": ["step_jacobian_log10", "step_jacobian_block_log10"],
    "singular_spectrum": ["singular_value_log10"],
    "lyapunov": ["lyapunov_exponent", "lyapunov_running"],
    "direct_adjoint": ["adj_h_direct_log10", "adj_h_log10"],
    "temporal_contribution": ["temporal_contribution_log10"],
    "gradient_noise": ["long_range_snr_log10"],
    "truncation": ["truncation_bias", "truncation_cosine"],
    "clipping": ["clip_removed"],
}
"""Variables whose last measured values must be found in the lines of a figure."""
OVER_TRAINING = {
    "recurrent_matrix": [
        "spectral_radius",
        "spectral_norm",
        "departure_from_normality",
        "transient_growth_log10",
    ],
    "horizons": ["gradient_mass_horizon", "noise_horizon"],
    "curvature": ["gradient_curvature", "hessian_top"],
}
"""The same for variables over training step."""


def record(path, description, rows):
    directory = RunDirectory(path)
    directory.open(description)
    for row in rows:
        directory.log(row)
    directory.close(finished())
    return open_run(path)


def some_rows(description, every=EVERY):
    """Rows of which one in ``every`` has the close measurements."""
    return [
        make_close_row(description, step)
        if step % every == 0
        else make_row_without(description, step)
        for step in range(STEPS)
    ]


def make_row_without(description, step):
    return Row(step, make_row(description, step).scalars, {})


@pytest.fixture(scope="module", params=["ch", "h"])
def run(request, tmp_path_factory):
    layers = ["0", "0 backward", "1"] if request.param == "ch" else ["0"]
    description = describe_closely(40, layers, STEPS, request.param)
    return record(tmp_path_factory.mktemp("run"), description, some_rows(description))


def picture(name, run, **facts):
    module = importlib.import_module(f"gradlab.record.figures.{name}")
    info = {**run.info, "facts": {**run.info["facts"], **facts}}
    with matplotlib.rc_context(STYLE):
        return module.figure(run.curves, run.scalars, info)


def lines_of(figure):
    return [line for axes in figure.axes for line in axes.lines]


def is_among(values, lines):
    """Whether one of the lines shows these values, in this order or mirrored."""
    values = np.where(np.isfinite(values), values, np.nan)
    return any(
        len(line.get_ydata()) == len(values)
        and any(np.allclose(line.get_ydata(), v, equal_nan=True) for v in (values, values[::-1]))
        for line in lines
    )


def test_every_module_is_in_the_list():
    files = {path.stem for path in Path(figures.__file__).parent.glob("*.py")}
    assert files == {*FIGURES, "__init__", "common"}


def test_all_of_them_are_drawn_and_not_empty(run, tmp_path):
    written = draw(run.curves, run.scalars, run.info, tmp_path)
    gated = "forget_product_log10" in run.curves
    expected = [name for name in FIGURES if gated or name != "forget_product"]
    assert [path.name for path in written] == [f"{name}.png" for name in expected]
    for path in written:
        check_not_empty(path)


@pytest.mark.parametrize("name", SHOWN)
def test_it_shows_the_last_measurement(run, name):
    lines = lines_of(picture(name, run))
    last = run.curves.isel(step=range(0, STEPS, EVERY)).isel(step=-1)
    for variable in SHOWN[name]:
        values = last[variable]
        stacked = (
            values.stack(line=[dim for dim in values.dims[:-1]]) if values.ndim > 1 else values
        )
        if variable == "step_jacobian_block_log10" and last.sizes["to"] == 1:
            continue  # the block is the whole
        for values in np.atleast_2d(stacked.transpose(..., values.dims[-1]).values):
            if np.isfinite(values).any():
                assert is_among(values, lines), variable


@pytest.mark.parametrize("name", OVER_TRAINING)
def test_it_shows_what_became_of_a_number(run, name):
    lines = lines_of(picture(name, run))
    for variable in OVER_TRAINING[name]:
        data = run.scalars if variable in run.scalars else run.curves
        rows = data[variable].isel(step=range(0, STEPS, EVERY))
        for values in rows.values.reshape(len(rows), -1).T:
            assert is_among(values, lines), variable


@pytest.mark.parametrize("name", FIGURES)
def test_long_names_fit_the_title(run, name):
    figure = picture(name, run, model="gru_reset_before", task="TemporalOrder", T=12345)
    if figure is None:
        assert name == "forget_product"
        return
    (title,) = [text for text in figure.texts if text.get_text() == figure.get_suptitle()]
    assert title.get_window_extent().width < figure.bbox.width
    assert "?" in title.get_text()


def test_the_bound_starts_at_the_adjoint_and_stays_on_the_axis(run):
    figure = picture("adjoint_over_lag", run)
    bounds = [line for line in lines_of(figure) if "bound" in str(line.get_label())]
    assert len(bounds) == 1  # of the last layer alone: what others get comes from above, too
    last = run.curves.isel(step=range(0, STEPS, EVERY)).isel(step=-1, layer=-1)
    assert np.isclose(bounds[0].get_ydata()[0], last["adj_h_log10"].values[-1])
    low, high = figure.axes[0].get_ylim()
    drawn = np.concatenate([line.get_ydata() for line in lines_of(figure) if line not in bounds])
    assert high < np.nanmax(drawn) + 0.5 * (high - low)


def test_no_bound_where_the_loss_reads_every_step(run):
    lines = lines_of(picture("adjoint_over_lag", run, readout="every"))
    assert not [line for line in lines if "bound" in str(line.get_label())]


def test_parameters_without_a_gradient_are_left_out(run):
    legend = picture("temporal_contribution", run).legends[0]
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == min(14, run.curves.sizes["parameter"] - 1)
    assert not [label for label in labels if label.startswith("0: dense_h/kernel")]


def test_horizons_beyond_the_axis_are_marked(tmp_path):
    description = describe_closely(40, ["0"], STEPS)
    rows = some_rows(description)
    for row in rows[::EVERY]:
        row.arrays["lyapunov_horizon"][:] = np.inf
        row.arrays["noise_horizon"][:] = 0
    lines = lines_of(picture("horizons", record(tmp_path, description, rows)))
    marks = {line.get_marker(): line.get_ydata() for line in lines if line.get_gid()}
    assert marks.keys() == {"^", "v"}
    assert all(np.isfinite(values).all() and len(values) == 4 for values in marks.values())


def test_nothing_is_drawn_of_probes_that_found_nothing(tmp_path):
    description = describe_closely(40, ["0"], STEPS)
    rows = [make_close_row(description, step) for step in range(3)]
    for row in rows:
        for array in row.arrays.values():
            array[:] = np.nan
    run = record(tmp_path, description, [Row(row.step, {}, row.arrays) for row in rows])
    assert draw(run.curves, run.scalars, run.info, tmp_path / "figures") == []


@pytest.mark.parametrize("value", [-np.inf, np.inf, 0.0])
def test_every_value_can_be_drawn(tmp_path, value):
    description = describe_closely(40, ["0"], STEPS)
    rows = [make_close_row(description, step) for step in range(3)]
    for row in rows:
        for array in row.arrays.values():
            array[:] = value
    scalars = {"hessian_top": value, "gradient_curvature": value, "train/clip_rate": 0.0}
    run = record(tmp_path, description, [Row(row.step, scalars, row.arrays) for row in rows])
    names = [path.stem for path in draw(run.curves, run.scalars, run.info, tmp_path / "figures")]
    assert set(FIGURES) - set(names) <= {"loss", "curvature", "temporal_contribution"}


def test_a_single_timestep(tmp_path):
    description = describe_closely(1, ["0"], STEPS)
    run = record(tmp_path, description, [make_close_row(description, 0)])
    assert len(draw(run.curves, run.scalars, run.info, tmp_path / "figures")) == len(FIGURES)


def test_what_analyze_returns_can_be_drawn(run, tmp_path):
    """A dataset of one measurement, with a step of its own."""
    one = run.curves.isel(step=[0]).load()
    assert len(draw(one, xarray.Dataset(), {}, tmp_path)) >= len(FIGURES) - 3
