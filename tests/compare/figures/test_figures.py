"""Figures for a paper: what is in their files is what was recorded, and they keep the style."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
import scipy.stats
import zarr
from PIL import Image

from gradlab import open_run
from gradlab.compare.figures import FIGURES, draw
from gradlab.compare.figures.bands import Shown, band
from gradlab.compare.figures.style import DOUBLE, FORMATS, SINGLE, STYLE, looks_of, safe, save
from gradlab.compare.groups import Group, counted, groups_of, once
from gradlab.compare.matched import matched
from gradlab.compare.recorded import Recorded, recorded
from gradlab.compare.runs import Entry, runs_in
from tests.compare.recordings import record_run, record_sweep
from tests.compare.sweeps import make_sweep


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A sweep of three models and seeds, its folder of figures, and what ``draw`` gave."""
    folder = tmp_path_factory.mktemp("figures")
    record_sweep(folder / "sweep", T=16)
    written = draw(recorded(runs_in(folder / "sweep")), folder / "out")
    return folder / "sweep", folder / "out", written


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shown(*folders, step=None):
    runs = recorded(runs_in(*folders))
    groups = [group for group in groups_of(runs) if counted(group.runs)]
    return Shown(runs, groups, looks_of(groups), step)


def page(name, *folders, step=None):
    with matplotlib.rc_context(STYLE):
        return FIGURES[name](shown(*folders, step=step))


def numbers(found):
    """The rows of a page as dicts."""
    header, *rows = found.rows
    return [dict(zip(header, row, strict=True)) for row in rows]


def labels(found):
    """What the legend says."""
    return [text.get_text() for legend in found.figure.legends for text in legend.get_texts()]


# --- the numbers ----------------------------------------------------------------------------------


def test_the_adjoint_over_lag_is_the_mean_of_what_was_recorded(drawn):
    sweep, out, _ = drawn
    runs = [open_run(sweep / str(number)) for number in range(3, 6)]  # the LSTM's
    last = [
        run.curves["adj_h_log10"].isel(step=-1, layer=0).swap_dims(t="lag").sortby("lag").values
        for run in runs
    ]
    rows = [r for r in table(out / "adjoint_over_lag.csv") if r["variable"] == "adj_h_log10"]
    rows = [row for row in rows if row["model"] == "lstm"]
    assert [int(row["lag"]) for row in rows] == list(range(16))
    assert {row["step"] for row in rows} == {"40"}
    assert {row["runs"] for row in rows} == {"3"}
    means = [float(row["mean_log10"]) for row in rows]
    np.testing.assert_allclose(means, np.mean(last, 0), rtol=1e-6)
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(np.float64(last), 0)
    lows, highs = ([float(row[f"{end}_log10"]) for row in rows] for end in ("low", "high"))
    np.testing.assert_allclose(np.subtract(highs, lows), 2 * half, rtol=1e-5, atol=1e-9)


def test_a_single_run_is_written_as_it_is(tmp_path):
    path = record_run(tmp_path / "run", "gru", T=16)
    curves, scalars = open_run(path).curves, open_run(path).scalars
    rows = [r for r in numbers(page("adjoint_over_lag", path)) if r["variable"] == "adj_h_log10"]
    recorded_values = curves["adj_h_log10"].isel(step=-1, layer=0).values[::-1].astype(float)
    assert [row["mean_log10"] for row in rows] == recorded_values.tolist()
    assert all(np.isnan(row["low_log10"]) for row in rows)
    slopes = [row["mean"] for row in numbers(page("slope", path))]
    np.testing.assert_allclose(slopes, curves["adjoint_slope"].values[:, 0], rtol=1e-12)
    exponents = numbers(page("lyapunov", path))
    assert [row["step"] for row in exponents] == [0, 20, 40]
    expected = curves["lyapunov_exponent"].isel(index=0, layer=0).values[[0, 2, 4]]
    np.testing.assert_allclose([row["mean"] for row in exponents], expected, rtol=1e-12)
    accuracy = [row["mean"] for row in numbers(page("metric", path))]
    np.testing.assert_allclose(accuracy, scalars["val/accuracy"].dropna("step").values)


def test_horizons_and_wide_losses_are_geometric_means(drawn):
    sweep, out, _ = drawn
    runs = [open_run(sweep / str(number)) for number in range(3)]  # the RNN's
    for file, key, values in (
        ("horizon", "layer", [run.curves["memory_horizon"].values[:, 0] for run in runs]),
        ("loss", "variable", [run.scalars["train/loss"].values for run in runs]),
    ):
        rows = [
            row
            for row in table(out / f"{file}.csv")
            if row["model"] == "rnn" and row[key] in ("0", "train/loss")
        ]
        means = [float(row["geometric_mean"]) for row in rows]
        np.testing.assert_allclose(means, scipy.stats.gmean(np.array(values, float)), rtol=1e-6)


def test_transport_is_relative_to_lag_0(drawn):
    sweep, out, _ = drawn
    rows = [
        row
        for row in table(out / "transport_over_lag.csv")
        if row["model"] == "gru" and row["variable"] == "long_jacobian_log10"
    ]
    last = [
        open_run(sweep / str(number)).curves["long_jacobian_log10"].isel(step=4, layer=0).values
        for number in range(6, 9)
    ]
    expected = np.mean([values[::-1] - values[-1] for values in last], 0)
    found = [float(row["mean_log10"]) for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert {r["variable"] for r in rows if r["model"] == "rnn"} == set()


def test_the_heatmap_is_the_mean_over_seeds(drawn):
    sweep, out, _ = drawn
    rows = [row for row in table(out / "adjoint_heatmap.csv") if row["model"] == "lstm"]
    runs = [open_run(sweep / str(number)).curves["adj_h_log10"] for number in range(3, 6)]
    assert len(rows) == 5 * 16
    for row in rows[::7]:
        where = {"step": int(row["step"]), "t": 15 - int(row["lag"]), "layer": 0}
        mean = np.mean([float(run.sel(**where)) for run in runs])
        assert float(row["mean_log10"]) == pytest.approx(mean, rel=1e-6)


def test_the_step_asked_for_is_the_nearest_measured_one(tmp_path):
    path = record_run(tmp_path / "run", T=16)
    rows = numbers(page("adjoint_over_lag", path, step=12))
    adjoint = [row for row in rows if row["variable"] == "adj_h_log10"]
    assert {row["step"] for row in adjoint} == {10}
    expected = open_run(path).curves["adj_h_log10"].sel(step=10).isel(layer=0).values[::-1]
    assert [row["mean_log10"] for row in adjoint] == expected.astype(float).tolist()


def test_the_bound_begins_at_the_adjoint_and_is_drawn_where_it_holds(tmp_path):
    path = record_run(tmp_path / "run", "rnn", T=16, layers=(0, 1))
    rows = numbers(page("adjoint_over_lag", path))
    bound = [row for row in rows if row["variable"] == "pascanu_bound_log10"]
    assert {row["layer"] for row in bound} == {"1"}  # of the last layer alone
    curves = open_run(path).curves.isel(step=-1, layer=1)
    expected = curves["pascanu_bound_log10"] + curves["adj_h_log10"].isel(t=-1)
    np.testing.assert_allclose([r["mean_log10"] for r in bound], expected.values[::-1], rtol=1e-6)
    info = json.loads((path / "run.json").read_text())
    info["facts"]["readout"] = "every"
    (path / "run.json").write_text(json.dumps(info))
    found = page("adjoint_over_lag", path)
    assert {row["variable"] for row in numbers(found)} == {"adj_h_log10"}
    assert not any("bound" in label for label in labels(found))


def test_matched_writes_the_estimates_of_the_comparison(drawn):
    sweep, out, _ = drawn
    by_hidden, _ = matched(runs_in(sweep))
    rows = table(out / "matched.csv")
    for expected in by_hidden.levels[0].rows:
        (row,) = [r for r in rows if r["model"] == expected.model and r["figure"] == "decades_lost"]
        estimate = expected.figures["decades_lost"]
        assert float(row["mean"]) == estimate.mean
        assert (float(row["low"]), float(row["high"])) == (estimate.low, estimate.high)
        assert row["low_high"] == "95 % interval"


def test_a_grid_of_two_numbers_gives_a_phase_diagram(tmp_path):
    def summary(bias, rate):
        return {"adjoint_slope/layer_0": bias * 0.1 - rate, "val/loss": 0.1}

    axes = {"model__cell__forget_bias": [0, 1, 2], "optimizer__learning_rate": [0.1, 0.01]}
    found = page("phase_diagram", make_sweep(tmp_path, summary, **axes))
    values = {
        (float(row["model.cell.forget_bias"]), float(row["optimizer.learning_rate"])): float(
            row["adjoint_slope"]
        )
        for row in numbers(found)
    }
    assert values == {(b, r): b * 0.1 - r for b in (0, 1, 2) for r in (0.1, 0.01)}
    assert page("adjoint_over_lag", tmp_path) is None


# --- bands ----------------------------------------------------------------------------------------


def test_lines_of_other_lengths_align_and_ragged_ends_are_left_out():
    x = np.arange(4)
    short = (x[:2], np.array([1.0, 2.0]))
    longer = (x, np.array([3.0, 4.0, 5.0, np.nan]))
    found = band([short, longer])
    assert found.x.tolist() == [0, 1, 2]
    assert found.mean.tolist() == [2, 3, 5]
    assert found.n.tolist() == [2, 2, 1]
    assert np.isnan(found.low[2])
    assert band([short, short, longer]).x.tolist() == [0, 1]
    assert band([(x, np.full(4, np.nan))]) is None


def test_a_shade_does_not_leave_what_the_figure_can_be(tmp_path):
    """0.99, 0.8 and 1.0 have an interval up to 1.2: of an accuracy, the range stands instead."""
    record_sweep(tmp_path, models=("rnn",), T=16, rows=2)
    for number, accuracy in enumerate((0.99, 0.8, 1.0)):
        path = str(tmp_path / str(number) / "arrays.zarr" / "val_accuracy")
        zarr.open_array(path, mode="r+")[:] = accuracy
    rows = numbers(page("metric", tmp_path))
    assert [(r["low"], r["high"], r["low_high"]) for r in rows] == [(0.8, 1.0, "range")] * len(rows)
    rows = numbers(page("slope", tmp_path))
    assert {row["low_high"] for row in rows} == {"95 % interval"}


def test_one_seed_given_twice_is_drawn_once(tmp_path):
    sweep = record_sweep(tmp_path / "a", models=("rnn",), seeds=(0, 1), T=16, rows=2)
    record_run(tmp_path / "b", "rnn", 1, T=16, rows=2)
    runs = recorded(runs_in(sweep, tmp_path / "b"))
    assert len(runs) == 3
    assert len(once(runs)) == 2
    draw(runs, tmp_path / "out")
    assert {row["runs"] for row in table(tmp_path / "out" / "decades.csv")} == {"2"}


def test_a_typical_unit_is_drawn_only_where_there_is_no_root_mean_square(drawn, tmp_path):
    _, out, _ = drawn
    there = {row["variable"] for row in table(out / "transport_over_lag.csv")}
    assert "forget_product_log10" in there
    path = record_run(tmp_path / "run", T=16, rows=1, rms=True)
    found = page("transport_over_lag", path)
    assert {row["variable"] for row in numbers(found)} == {
        *("forget_product_rms_log10", "long_jacobian_log10")
    }
    assert "forget product\n(root mean square)" in [axes.get_title() for axes in found.figure.axes]


def test_an_exact_zero_in_one_run_is_one_in_the_mean():
    found = band([(np.arange(2), np.array([1.0, -np.inf])), (np.arange(2), np.array([2.0, 3.0]))])
    assert found.mean.tolist() == [1.5, -np.inf]
    assert np.isnan(found.high[1])


# --- the files ------------------------------------------------------------------------------------


def test_every_figure_has_three_formats_and_a_table(drawn):
    _, out, written = drawn
    names = sorted({path.stem for path in written})
    assert names == sorted(set(FIGURES) - {"phase_diagram"})
    assert sorted(written) == sorted(out.iterdir())
    for name in names:
        with Image.open(out / f"{name}.png") as image:
            assert image.size[0] >= SINGLE * 300 - 1
            image.load()
        pdf = (out / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"%%EOF" in pdf[-10:]
        assert b"/Type3" not in pdf.replace(b" ", b"")  # fonts are embedded as TrueType
        assert b"CreationDate" not in pdf
        assert len(table(out / f"{name}.csv")) > 0


def test_text_in_an_svg_is_text_and_is_large_enough(drawn):
    _, out, _ = drawn
    for path in out.glob("*.svg"):
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        texts = root.findall(".//{http://www.w3.org/2000/svg}text")
        words = " ".join("".join(text.itertext()) for text in texts)
        assert any(one in words for one in ("RNN", "equal hidden size")), path.name
        width = float(root.attrib["width"].removesuffix("pt"))
        assert any(width == pytest.approx(72 * w, abs=0.6) for w in (SINGLE, DOUBLE, DOUBLE * 0.78))
        sizes = re.findall(r"font-size: ([\d.]+)px", path.read_text(encoding="utf-8"))
        assert min(map(float, sizes)) >= 6, path.name


def test_the_same_runs_give_the_same_bytes(drawn, tmp_path):
    sweep, out, _ = drawn
    for name in ("adjoint_over_lag", "adjoint_heatmap", "matched"):
        found = page(name, sweep)
        with matplotlib.rc_context(STYLE):
            written = save(found, tmp_path, name)
        assert [path.suffix for path in written] == [*(f".{kind}" for kind in FORMATS), ".csv"]
        for path in written:
            assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_what_nobody_recorded_is_not_drawn(tmp_path):
    path = record_run(tmp_path / "run", only=["train/loss"], T=16)
    written = draw(recorded(runs_in(path)), tmp_path / "out")
    assert sorted({path.stem for path in written}) == ["loss"]
    assert draw([], tmp_path / "none") == []
    assert list((tmp_path / "none").iterdir()) == []


def test_only_runs_that_finished_are_in_the_means_where_there_are_any(tmp_path):
    record_run(tmp_path / "0", seed=0, T=16)
    record_run(tmp_path / "1", seed=1, T=16, status="diverged")
    record_run(tmp_path / "2", seed=2, T=16, status="interrupted")
    rows = numbers(page("slope", tmp_path))
    assert {row["runs"] for row in rows} == {1}
    (tmp_path / "0" / "run.json").rename(tmp_path / "0" / "old.json")
    assert {row["runs"] for row in numbers(page("slope", tmp_path / "1", tmp_path / "2"))} == {1}


def test_layers_have_a_panel_each(tmp_path):
    path = record_run(tmp_path / "run", layers=(0, 1), T=16)
    found = page("horizon", path)
    assert [axes.get_title() for axes in found.figure.axes] == ["layer 0", "layer 1"]
    assert {row["layer"] for row in numbers(found)} == {"0", "1"}


# --- looks and names ------------------------------------------------------------------------------


def group(**values):
    run = Recorded(Entry(path=None, name="", status="finished"), None)
    return Group(values, (run,))


def test_models_differ_by_colour_and_dashes():
    looks = looks_of([group(model=name) for name in ("rnn", "lstm", "gru")])
    assert [words for words, _ in looks.names] == ["RNN", "LSTM", "GRU"]
    assert len({look.colour for look in looks.of}) == 3
    assert len({str(look.dashes) for look in looks.of}) == 3
    assert looks.few


def test_settings_of_one_model_share_its_colour():
    looks = looks_of([group(model=m, rate=rate) for m in ("rnn", "gru") for rate in (0.1, 0.2)])
    assert looks.of[0].colour == looks.of[1].colour != looks.of[2].colour
    assert looks.of[0].dashes != looks.of[1].dashes


def test_many_groups_are_coloured_by_their_number():
    groups = [group(model=m, rate=0.1 * 10**-k) for m in ("rnn", "gru") for k in range(6)]
    looks = looks_of(groups)
    assert [words for words, _ in looks.names] == ["RNN", "GRU"]
    norm, name, values = looks.bar
    assert name == "rate"
    assert norm.__class__.__name__ == "LogNorm"
    assert len(values) == 6
    assert len({look.colour for look in looks.of}) == 6
    assert not looks.few


def test_many_words_are_named_in_part():
    looks = looks_of([group(model=f"cell_{k}") for k in range(20)])
    assert len(looks.names) == 8
    assert looks.names[-1][0] == "13 others"


def test_names_from_runs_are_no_formulas_and_stay_visible():
    assert safe("$x$\n_y") == r"\$x\$ _y"
    assert safe("_hidden") == " _hidden"
    assert len(safe("x" * 99)) == 44


def test_a_hostile_name_is_drawn_as_text(tmp_path):
    for number, name in enumerate((r"$\frac{", "_x", "<b>&")):
        path = record_run(tmp_path / str(number), seed=0, T=16)
        info = json.loads((path / "run.json").read_text())
        info["facts"]["model"] = name
        (path / "run.json").write_text(json.dumps(info))
    found = page("slope", tmp_path)
    assert labels(found) == [r"\$\frac{", " _x", "<b>&"]
    with matplotlib.rc_context(STYLE):
        svg = save(found, tmp_path, "slope")[1].read_text(encoding="utf-8")
    words = ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter()]
    assert any("<b>&" in text for text in words)


def test_jobs_that_never_became_runs_draw_nothing(tmp_path):
    for name in ("0", "1"):
        (tmp_path / "sweep" / name / ".hydra").mkdir(parents=True)
    assert draw(recorded(runs_in(tmp_path / "sweep")), tmp_path / "out") == []


def test_of_many_levels_some_are_drawn_and_that_is_said(tmp_path):
    for number in range(20):
        model, hidden = ("rnn", "lstm")[number % 2], 8 + number // 2
        said = [f"model={model}", f"model.hidden={hidden}"]
        options = {"hidden": hidden, "said": said, "close": False}
        record_run(tmp_path / str(number), model, T=8, rows=1, **options)
    found = page("matched", tmp_path)
    titles = {axes.get_title() for axes in found.figure.axes}
    assert "equal hidden size (8 of 10)" in titles
    assert len({row["level"] for row in numbers(found) if row["matched_by"] == "hidden size"}) == 8
