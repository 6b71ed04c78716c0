"""The figures: drawn for every kind of run, without a warning, and not empty."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from gradlab.record.base import Row
from gradlab.record.directory import RunDirectory
from gradlab.record.figures import colour_limits, draw
from gradlab.record.reader import open_run
from tests.record.synthetic import describe, finished, make_row

ALL = ["adjoint_over_lag.png", "adjoint_heatmap.png", "forget_product.png", "loss.png"]


def drawn(path, description, rows) -> list[str]:
    directory = RunDirectory(path)
    directory.open(description)
    for row in rows:
        directory.log(row)
    directory.close(finished())
    run = open_run(path)
    before = dict(matplotlib.rcParams)
    files = draw(run.curves, run.scalars, run.info, path / "figures")
    assert dict(matplotlib.rcParams) == before
    for file in files:
        check_not_empty(file)
    return [file.name for file in files]


def check_not_empty(path, dpi=120) -> None:
    from PIL import Image

    with Image.open(path) as image:
        page = image.convert("RGB")
    assert page.height > 400 * dpi / 120
    assert page.width > 800 * dpi / 120
    assert (np.asarray(page) != 255).any(-1).mean() > 0.02  # there is ink
    assert page.getcolors(maxcolors=50) is None  # there are more colours


@pytest.mark.parametrize(
    ("T", "layers", "lstm", "zero_beyond"),
    [
        (64, [0], True, None),
        (64, ["0", "0 backward"], False, 30),
        pytest.param(5000, [0, 1, 2], True, 3000, marks=pytest.mark.slow),
    ],
)
def test_every_figure(tmp_path, T, layers, lstm, zero_beyond):
    description = describe(T, layers, 30, lstm)
    rows = [make_row(description, step, zero_beyond) for step in range(30)]
    names = drawn(tmp_path, description, rows)
    assert names == [name for name in ALL if lstm or name != "forget_product.png"]


def test_very_deep_curves(tmp_path):
    description = describe(5000, [0], 3)
    rows = [make_row(description, step) for step in range(3)]
    for row in rows:
        row.arrays["adj_h_log10"][:] = -0.301 * np.arange(5000)[::-1]
    assert drawn(tmp_path, description, rows) == ALL


def test_a_single_row(tmp_path):
    description = describe(64, [0], 1)
    assert drawn(tmp_path, description, [make_row(description, 0)]) == ALL


def test_nothing_but_zeros_and_nan(tmp_path):
    description = describe(64, [0], 3)
    rows = [make_row(description, step, zero_beyond=-1) for step in range(3)]
    for array in rows[1].arrays.values():
        array[:] = np.nan
    rows[2].scalars["train/loss"] = np.inf
    assert drawn(tmp_path, description, rows) == ALL


def test_measured_now_and_then(tmp_path):
    """Rows without the curves between rows with them."""
    description = describe(64, [0], 21)
    rows = [make_row(description, step) for step in range(21)]
    rows = [row if row.step % 7 == 0 else row._replace(arrays={}) for row in rows]
    assert drawn(tmp_path, description, rows) == ALL


def test_without_probes_there_is_the_loss(tmp_path):
    description = describe(64, [0], 3)
    rows = [Row(step, {"train/loss": 1.0 + step}, {}) for step in range(3)]
    assert drawn(tmp_path, description, rows) == ["loss.png"]


def test_no_rows_no_figures(tmp_path):
    assert drawn(tmp_path, describe(64, [0], 3), []) == []


def test_colour_limits():
    assert colour_limits(np.array([-np.inf, -3.0, np.nan, 2.0, np.inf])) == (-3.0, 2.0)
    assert colour_limits(np.array([np.nan, -np.inf])) == (0.0, 1.0)
    low, high = colour_limits(np.array([4.0]))
    assert low < 4.0 < high
