"""The figures of the close probes: they show what was measured, and all of their title."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pytest
import xarray

from gradlab.record import figures
from gradlab.record.base import Row
from gradlab.record.directory import RunDirectory
from gradlab.record.figures import FIGURES, draw
from gradlab.record.figures.common import STYLE
from gradlab.record.lags import values_by_lag
from gradlab.record.reader import open_run
from tests.record.synthetic import describe_closely, finished, make_close_row, make_row
from tests.record.test_figures import check_not_empty

STEPS, EVERY = 20, 6
SHOWN = {
    "adjoint_over_lag": ["adj_h_log10", "adj_c_log10"],
    "forget_product": ["forget_product_log10", "forget_product_rms_log10"],
    "paths": ["forget_path_log10", "residual_path_log10", "whole_path_log10"],
    "long_jacobian": [
        "long_jacobian_log10",
        "long_jacobian_log10_frobenius",
        "pascanu_bound_log10",
    ],
    "step_jacobian": ["step_jacobian_log10", "step_jacobian_block_log10"],
    "singular_spectrum": ["singular_value_log10"],
    "jacobian_eigenvalues": ["eigenvalue_imaginary"],
    "isometry": ["squared_singular_mean_log10", "effective_rank"],
    "state_covariance": ["state_autocorrelation"],
    "fixed_points": ["fixed_point_eigenvalue_imaginary"],
    "adjoint_alignment": [
        "adjoint_cosine_end_over_lag",
        "adjoint_cosine_examples_over_lag",
        "adjoint_cosine_lyapunov_over_lag",
    ],
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
    "state_covariance": ["participation_ratio"],
    "fixed_points": ["fixed_point_count", "fixed_point_converged", "fixed_point_slow"],
}
"""The same for variables over training step."""


def record(path, description, rows):
    directory = RunDirectory(path)
    directory.open(description)
    for row in rows:
        directory.log(row)
    directory.close(finished())
    return open_run(path)


def some_rows(description):
    """Rows of which one in ``EVERY`` has the close measurements."""
    rows = []
    for step in range(STEPS):
        plain = Row(step, make_row(description, step).scalars, {})
        rows.append(plain if step % EVERY else make_close_row(description, step))
    return rows


@pytest.fixture(scope="module", params=["ch", "h"])
def run(request, tmp_path_factory):
    """An LSTM's of this version, and a plain network's as older versions recorded it."""
    gated = request.param == "ch"
    layers = ["0", "0 backward", "1"] if gated else ["0"]
    description = describe_closely(40, layers, STEPS, request.param, by_lag=gated)
    return record(tmp_path_factory.mktemp("run"), description, some_rows(description))


class Run(NamedTuple):
    """What a figure is made from."""

    path: Path
    info: dict
    curves: xarray.Dataset
    scalars: xarray.Dataset = xarray.Dataset()


def picture(name, run, **facts):
    info = {**run.info, "facts": {**run.info["facts"], **facts}}
    with matplotlib.rc_context(STYLE):
        return FIGURES[name](run.curves, run.scalars, info)


def lines_of(figure):
    return [line for axes in figure.axes for line in axes.lines]


def is_among(values, lines):
    """Whether one of the lines shows these values, and nothing where they are not finite."""
    values = np.where(np.isfinite(values), values, np.nan)
    shown = (np.asarray(line.get_ydata()) for line in lines)
    return any(y.shape == values.shape and np.allclose(y, values, equal_nan=True) for y in shown)


def test_every_module_is_in_the_list():
    files = {path.stem for path in Path(figures.__file__).parent.glob("*.py")}
    assert files == {*FIGURES, "__init__", "common"}


def test_all_of_them_are_drawn_and_not_empty(run, tmp_path, monkeypatch):
    monkeypatch.setitem(STYLE, "savefig.dpi", 40)  # coarse: pixels are what takes long
    written = draw(run.curves, run.scalars, run.info, tmp_path)
    gated = "forget_product_log10" in run.curves
    expected = [name for name in FIGURES if gated or name != "forget_product"]
    assert [path.name for path in written] == [f"{name}.png" for name in expected]
    for path in written:
        check_not_empty(path, dpi=40)


@pytest.mark.parametrize("name", SHOWN)
def test_it_shows_the_last_measurement(run, name):
    last = run.curves.isel(step=range(0, STEPS, EVERY)).isel(step=-1)
    there = [variable for variable in SHOWN[name] if variable in last]
    lines = lines_of(picture(name, run)) if there else []
    for variable in there:
        if variable == "step_jacobian_block_log10" and last.sizes["to"] == 1:
            continue  # the block is the whole
        values = last[variable].values
        if last[variable].dims[-1] == "t" and variable != "lyapunov_running":
            values = values_by_lag(last, variable)
        for curve in values.reshape(-1, values.shape[-1]):
            assert is_among(curve, lines) or not np.isfinite(curve).any(), variable


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


def test_the_bound_starts_at_the_adjoint_(run):
    figure = picture("adjoint_over_lag", run)
    bounds = [line for line in lines_of(figure) if "bound" in str(line.get_label())]
    assert len(bounds) == 1  # of the last layer alone: what others get comes from above, too
    last = run.curves.isel(step=range(0, STEPS, EVERY)).isel(step=-1, layer=-1)
    assert np.isclose(bounds[0].get_ydata()[0], values_by_lag(last, "adj_h_log10")[0])


def test_a_steep_bound_does_not_blow_the_axis(run):
    plain = run.curves.drop_vars("pascanu_bound_log10")
    steep = plain.assign(pascanu_bound_log10=50 * plain["lag"] + 0 * plain["adj_h_log10"])
    heights = {}
    for name in ("adjoint_over_lag", "long_jacobian"):
        for curves in (plain, steep):
            figure = picture(name, Run(run.path, run.info, curves))
            low, high = figure.axes[0].get_ylim()
            heights.setdefault(name, []).append(high - low)
        assert heights[name][0] < heights[name][1] < 1.31 * heights[name][0]


def test_a_deep_spectrum_keeps_room_for_what_survives(run):
    deep = run.curves["singular_value_log10"] * 50 - 20 * run.curves["singular"]
    curves = run.curves.assign(singular_value_log10=deep)
    figure = picture("singular_spectrum", Run(run.path, run.info, curves))
    for axes in figure.axes:
        assert axes.get_yscale() == "symlog"
        low, high = axes.get_ylim()
        assert all(
            low <= np.nanmin(line.get_ydata()) and np.nanmax(line.get_ydata()) <= high
            for line in axes.lines
        )


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
    assert set(FIGURES) - set(laid_out(run)) <= {"loss", "curvature", "temporal_contribution"}


def test_a_single_timestep(tmp_path):
    description = describe_closely(1, ["0"], STEPS)
    run = record(tmp_path, description, [make_close_row(description, 0)])
    assert laid_out(run) == list(FIGURES)


def laid_out(run):
    """Names of the figures that have something to show, each drawn but for its pixels."""
    names = []
    for name in FIGURES:
        figure = picture(name, run)
        if figure is not None:
            with matplotlib.rc_context(STYLE):
                figure.draw_without_rendering()
            names.append(name)
    return names


def test_the_paths_name_the_share_of_each_layer(tmp_path):
    description = describe_closely(40, ["0", "1"], STEPS, by_lag=True)
    row = make_close_row(description, 0)
    forget, residual = (
        row.arrays[f"{name}_path_over_lag_log10"] for name in ("forget", "residual")
    )
    residual[0], residual[1] = -np.inf, forget[1] + 0.5  # nothing; 10 times the square
    titles = [
        axes.get_title() for axes in picture("paths", record(tmp_path, description, [row])).axes
    ]
    assert titles == [
        "layer 0: recurrent weights: 0 %\nof the squared norm at lag 39",
        "layer 1: recurrent weights: 90.9 %\nof the squared norm at lag 39",
    ]


def test_the_product_is_set_beside_the_norm_as_a_norm(run):
    """The thick lines are the two that compare; the typical unit is thin, and units are a band."""
    figure = picture("forget_product", run)
    if figure is None:
        assert "forget_product_log10" not in run.curves
        return
    thin = {
        line.get_linewidth() < 1.5 for line in lines_of(figure) if "typical" in line.get_label()
    }
    thick = {
        line.get_linewidth() < 1.5 for line in lines_of(figure) if "mean square" in line.get_label()
    }
    assert (thin, thick) == ({True}, {False})
    assert "apart" not in figure.get_suptitle()  # it tells no cause
