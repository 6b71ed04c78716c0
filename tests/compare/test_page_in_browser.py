"""The page as a reader meets it, in a real browser, opened from disk."""

from __future__ import annotations

import csv
import io
import itertools
import math

import numpy as np
import pytest
import scipy.stats

from gradlab import open_run
from gradlab.compare.page import write
from gradlab.compare.recorded import recorded
from gradlab.compare.runs import runs_in
from gradlab.compare.statistics import UNBOUNDED, estimates
from tests.compare import chromium
from tests.compare.recordings import record_run, record_sweep
from tests.compare.sweeps import make_sweep

pytestmark = chromium.needed
MODELS = ("rnn", "lstm", "gru")


@pytest.fixture(scope="module")
def browser():
    with chromium.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = record_sweep(tmp_path_factory.mktemp("compare") / "sweep", rows=8)
    write(recorded(runs_in(folder)), folder / "compare.html")
    return folder


@pytest.fixture
def page(browser, sweep):
    found, heard = chromium.opened(browser, (sweep / "compare.html").as_uri())
    yield found
    assert heard.messages == []
    found.context.close()


def page_of(browser, folder, **options):
    path = write(recorded(runs_in(folder)), folder / "compare.html")
    return chromium.opened(browser, path.as_uri(), **options)


def lines_of(page):
    """The lines that are drawn over lag: label -> colour, dash, and the numbers on the canvas."""
    return page.evaluate(
        """() => [...curvesPanel.facets.values()].flatMap((chart) => chart.lines.map((line, k) => ({
            id: line.id, label: line.label, name: line.name,
            paths: line.runs.map((run) => run.path),
            colour: line.colour, dash: line.dash, step: line.step,
            x: Array.from(chart.plot.data[0]),
            y: Array.from(chart.plot.data[chart.lineOf.indexOf(k)]),
            low: Array.from(line.low ?? []), high: Array.from(line.high ?? []),
        })))"""
    )


def choose(page, label, value):
    page.get_by_label(label, exact=True).select_option(value)


def slide_to(page, place):
    page.locator("#step").evaluate(
        "(range, place) => { range.value = place; range.dispatchEvent(new Event('input')); }",
        str(place),
    )


def downloaded(page, selector):
    with page.expect_download() as waiting:
        page.locator(selector).click()
    return waiting.value.path()


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def adjoint(path, step):
    """Lags ascending and the recorded adjoint at a training step."""
    row = open_run(path).curves["adj_h_log10"].sel(step=step).isel(layer=0)
    return row["lag"].values[::-1], row.values[::-1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_from_disk_with_no_error_and_asks_nobody(browser, sweep, width, scheme):
    address = (sweep / "compare.html").as_uri()
    page, heard = chromium.opened(browser, address, width=width, scheme=scheme)
    assert heard.messages == []
    assert heard.requests == [address]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".uplot").count() >= 6
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
    assert len(inks(page)) > 3
    page.context.close()


def inks(page):
    """Different colours on the canvas of the curves."""
    return page.evaluate(
        """() => {
          const canvas = document.querySelector('#curves canvas');
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          const found = new Set();
          for (let k = 0; k < data.length; k += 4)
            if (data[k + 3] > 250) found.add(`${data[k]},${data[k + 1]},${data[k + 2]}`);
          return [...found];
        }"""
    )


def test_the_theme_button_changes_to_the_other(page):
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_the_slider_moves_every_curve_to_the_recorded_values_of_its_step(page):
    choose(page, "lines", "")
    for place, step in [(0, 0), (3, 30), (7, 70)]:
        slide_to(page, place)
        assert page.locator(".slider output").inner_text() == str(step)
        lines = [line for line in lines_of(page) if line["name"] == "adj_h_log10"]
        assert len(lines) == 9
        for line in lines:
            lag, values = adjoint(line["paths"][0], step)
            assert line["x"] == lag.tolist()
            np.testing.assert_array_equal(np.float32(line["y"]), values)


def test_the_picture_moves_with_the_slider(page):
    slide_to(page, 0)
    before = page.locator("#curves canvas").first.evaluate("(canvas) => canvas.toDataURL()")
    slide_to(page, 7)
    assert before != page.locator("#curves canvas").first.evaluate("(canvas) => canvas.toDataURL()")


def test_a_group_is_mean_and_interval_over_its_seeds(page, sweep):
    lines = {line["label"]: line for line in lines_of(page) if line["name"] == "adj_h_log10"}
    assert len(lines) == 3
    for number, model in enumerate(MODELS):
        (line,) = [one for label, one in lines.items() if f"model={model} " in label]
        runs = [adjoint(sweep / str(3 * number + seed), 70)[1] for seed in range(3)]
        expected = np.mean(np.float64(runs), axis=0)
        np.testing.assert_allclose(line["y"], expected, rtol=1e-12)
    (line,) = [one for label, one in lines.items() if "model=rnn " in label]
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(
        np.float64([adjoint(sweep / str(seed), 70)[1] for seed in range(3)])
    )
    np.testing.assert_allclose(np.subtract(line["high"], line["low"]), 2 * half, rtol=1e-9)


@pytest.mark.parametrize(
    ("table", "bounds"),
    [
        ([[1.0, 2.0, math.nan], [2.0, 2.0, 1.0], [4.0, 2.0, math.nan]], UNBOUNDED),
        ([[0.31, 5.0], [0.31 + 8.6e-14, 5.1]], (0.0, math.inf)),  # equal but for rounding
        ([[0.99, 0.5, 0.7], [0.8, 0.52, 0.7], [1.0, 0.51, 0.7]], (0.0, 1.0)),  # would be above 1
        ([[90.0], [100.0]], (0.0, 100.0)),
        ([[-2.0], [-1.0]], (0.0, math.inf)),  # a bound that a value leaves
        ([[-math.inf, -math.inf, 1.0], [-math.inf, math.nan, 2.0]], UNBOUNDED),
        ([[-math.inf, math.nan], [-2.0, math.nan]], UNBOUNDED),
    ],
)
def test_the_page_has_the_same_means_and_intervals_as_files_and_tables(page, table, bounds):
    ask = """([rows, [low, high]]) => {
      const columns = rows[0].map((_, k) => rows.map((row) => Number(row[k])));
      const each = columns.map((one) => estimate(one, Store.data.student, Store.data.rounding));
      const found = bounded(each, [low, high].map((end) => (end === null ? null : Number(end))));
      const ends = ["y", "low", "high"].map((name) => Array.from(found[name], String));
      return [...ends, each.map(({ n }) => n), found.range];
    }"""
    words = {math.inf: "Infinity", -math.inf: "-Infinity"}
    rows = [["NaN" if math.isnan(v) else words.get(v, v) for v in row] for row in table]
    given = [rows, [None if math.isinf(end) else end for end in bounds]]
    *ends, n, is_range = page.evaluate(ask, given)
    expected = estimates(np.array(table), bounds)
    for mine, theirs in zip(ends, expected[:3], strict=True):
        np.testing.assert_allclose([float(v.replace("Infinity", "inf")) for v in mine], theirs)
    assert (n, is_range) == (expected.n.tolist(), expected.is_range)


def test_a_seed_that_is_there_twice_is_in_no_mean_twice(browser, tmp_path):
    sweep = record_sweep(tmp_path / "a", models=("rnn",), seeds=(0, 1), T=8, rows=2)
    again = record_run(tmp_path / "b", "rnn", 1, T=8, rows=2)
    path = write(recorded(runs_in(sweep, again)), tmp_path / "page.html")
    page, heard = chromium.opened(browser, path.as_uri())
    assert heard.messages == []
    assert page.evaluate("Store.runs.map((run) => run.repeats)") == [False, False, True]
    (line,) = [line for line in lines_of(page) if line["name"] == "adj_h_log10"]
    assert len(line["paths"]) == 2
    assert "1 run repeats the configuration and seed of another" in page.inner_text("#notices")
    page.context.close()


def test_runs_of_one_seed_are_averaged_first_and_are_one_sample(page, sweep):
    ask = """() => {
      const found = overLag(group("", "", Store.runs, true), "adj_h_log10", 0, Infinity, false);
      const ends = ["y", "low", "high"].map((name) => Array.from(found[name]));
      return [...ends, averaged(found, Store.runs[0])];
    }"""
    *ends, words = page.evaluate(ask)
    last = open_run(sweep / "0").curves["step"].values[-1]
    runs = np.float64([adjoint(sweep / str(number), last)[1] for number in range(9)])
    expected = estimates(runs.reshape(3, 3, -1).mean(0))  # models, seeds
    for mine, theirs in zip(ends, expected[:3], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)
    assert words == "mean of 9 runs (3 seeds, each averaged first)"
    choose(page, "colour", "")
    choose(page, "lines", "seed")
    assert all(math.isnan(end) for line in lines_of(page) for end in line["low"] if end is not None)


def test_colour_dash_facet_and_group_follow_the_chosen_key(page):
    choose(page, "lines", "")
    by_model = [line["colour"] for line in lines_of(page)]
    assert len(set(by_model)) == 3
    choose(page, "colour", "seed")
    by_seed = {line["paths"][0]: line["colour"] for line in lines_of(page)}
    assert len(set(by_seed.values())) == 3
    assert [*by_seed.values()] != by_model[:9]
    drawn = inks(page)
    choose(page, "colour", "")
    assert len({line["colour"] for line in lines_of(page)}) == 1
    assert len(inks(page)) < len(drawn)
    choose(page, "dash", "model")
    assert len({tuple(line["dash"]) for line in lines_of(page)}) >= 3
    choose(page, "facet", "model")
    assert page.locator("#curves .chart h3").all_inner_texts() == [f"model = {m}" for m in MODELS]
    choose(page, "facet", "")
    choose(page, "dash", "")
    choose(page, "lines", "seed")
    assert len({line["id"].split("\n")[0] for line in lines_of(page)}) == 3


def test_the_filter_hides_rows_and_curves(page):
    choose(page, "lines", "")
    page.locator("#filter").fill("model=lstm seed<2")
    assert page.locator("#runs tr[data-path]").count() == 2
    assert {path[-1] for line in lines_of(page) for path in line["paths"]} == {"3", "4"}
    page.locator("#filter").fill("-lstm -gru")
    assert {path[-1] for line in lines_of(page) for path in line["paths"]} == {"0", "1", "2"}
    page.locator("#filter").fill("no such thing")
    assert "The filter leaves no run" in page.locator("#curves .say").inner_text()
    page.locator("#filter").fill("")
    page.locator("#runs tr[data-path] input").first.uncheck()
    assert "8 of 9 shown" in page.locator("#runs").inner_text()
    assert {path[-1] for line in lines_of(page) for path in line["paths"]} == set("12345678")


def test_the_table_sorts_and_shows_only_keys_that_differ(page):
    heads = page.locator("#runs th").all_inner_texts()
    assert "model" in heads
    assert "hidden" not in heads
    page.get_by_role("button", name="horizon", exact=True).click()
    column = heads.index("horizon")

    def shown():
        cells = page.locator(f"#runs tr[data-path] td:nth-child({column + 1})").all_inner_texts()
        return [float(cell) for cell in cells]

    assert shown() == sorted(shown())
    page.get_by_role("button", name="horizon ▲").click()
    assert shown() == sorted(shown(), reverse=True)


def test_a_row_opens_to_its_command_and_all_its_figures(page, sweep):
    page.locator("#runs tr[data-path] button").first.click()
    more = page.locator("#runs tr.more").inner_text()
    assert "python -m gradlab model=rnn seed=0" in more
    assert f"test/loss = {open_run(sweep / '0').summary['test/loss']}" in more
    assert "a verdict" in more


def test_the_csv_of_the_curves_is_what_was_recorded(page):
    choose(page, "lines", "")
    slide_to(page, 4)
    rows = rows_of(downloaded(page, "#curves .csv"))
    rows = [row for row in rows if row["variable"] == "adj_h_log10"]
    assert {row["training_step"] for row in rows} == {"40"}
    for path, own in itertools.groupby(rows, key=lambda row: row["runs"]):
        own = list(own)
        lag, values = adjoint(path, 40)
        assert [int(row["lag"]) for row in own] == lag.tolist()
        assert [np.float32(float(row["value"])) for row in own] == values.tolist()


def test_the_csv_of_losses_maps_and_runs_is_what_was_recorded(page, sweep):
    choose(page, "lines", "")
    rows = rows_of(downloaded(page, "#loss .csv"))
    for number in range(9):
        own = [row for row in rows if row["runs"] == str(sweep / str(number))]
        losses = [float(row["value"]) for row in own if row["variable"] == "train/loss"]
        assert losses == open_run(sweep / str(number)).scalars["train/loss"].values.tolist()
    rows = rows_of(downloaded(page, "#heatmaps .csv"))
    own = [row for row in rows if row["runs"] == str(sweep / "5") and row["training_step"] == "20"]
    values = [np.float32(float(row["value"])) for row in own]
    assert values == adjoint(sweep / "5", 20)[1].tolist()
    rows = rows_of(downloaded(page, "#runs .csv"))
    assert [float(row["test/loss"]) for row in rows] == [
        open_run(sweep / str(number)).summary["test/loss"] for number in range(9)
    ]


@pytest.mark.parametrize("panel", ["curves", "heatmaps", "loss", "dynamics"])
def test_a_panel_is_saved_as_a_picture(page, panel):
    from matplotlib.image import imread

    picture = imread(downloaded(page, f"#{panel} .png"), format="png")
    assert picture.shape[0] > 300
    assert picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 20


def test_heatmaps_share_their_colours_and_a_click_sets_the_step(page):
    scales = page.evaluate("heatmapsPanel.maps.map(({ look }) => [look.low, look.high])")
    assert len(scales) == 3
    assert len({tuple(scale) for scale in scales}) == 1
    values = page.evaluate(
        "heatmapsPanel.maps.flatMap(({ grid }) => grid.values.flatMap((row) => [...row]))"
    )
    assert scales[0] == [min(values), max(values)]
    page.locator("#heatmaps canvas.map").first.click(position={"x": 60, "y": 50})
    assert page.locator(".slider output").inner_text() == "0"


def test_what_is_near_the_pointer_is_lit_everywhere(page):
    page.locator("#curves .u-over").scroll_into_view_if_needed()
    box = page.locator("#curves .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + 42)
    assert page.locator("#curves .tip").is_visible()
    assert "lag" in page.locator("#curves .tip").inner_text()
    assert page.locator("#runs tr.lit").count() == 3
    lit = page.evaluate("[...charts].filter((chart) => chart.lit).length")
    assert lit >= 4


def test_a_drag_zooms_in_and_a_double_click_out_and_lag_can_be_logarithmic(page):
    scale = "[...curvesPanel.facets.values()][0].plot.scales"
    whole = page.evaluate(f"[{scale}.x.min, {scale}.x.max, {scale}.y.min, {scale}.y.max]")
    page.locator("#curves .u-over").scroll_into_view_if_needed()
    box = page.locator("#curves .u-over").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 250, steps=5)
    page.mouse.up()
    near = page.evaluate(f"[{scale}.x.min, {scale}.x.max, {scale}.y.min, {scale}.y.max]")
    assert near[0] > whole[0]
    assert near[1] < whole[1]
    assert near[3] - near[2] < whole[3] - whole[2]
    slide_to(page, 2)
    assert page.evaluate(f"{scale}.x.max") == near[1]
    page.mouse.dblclick(box["x"] + 300, box["y"] + 100)
    assert page.evaluate(f"[{scale}.x.min, {scale}.x.max, {scale}.y.min, {scale}.y.max]") == whole
    page.get_by_label("log lag").check()
    assert page.evaluate(f"{scale}.x.distr") == 3
    assert page.evaluate(f"{scale}.x.min") == 1


def test_a_view_is_kept_in_the_address(browser, page):
    choose(page, "colour", "seed")
    slide_to(page, 2)
    page.locator("#filter").fill("gru")
    again, heard = chromium.opened(browser, page.url)
    assert heard.messages == []
    assert again.locator("#filter").input_value() == "gru"
    assert again.locator(".slider output").inner_text() == "20"
    assert again.get_by_label("colour", exact=True).input_value() == "seed"
    again.context.close()


def test_names_and_settings_are_shown_as_text(browser, tmp_path):
    evil = "<script>alert(1)</script>"
    folder = tmp_path / "runs"
    record_run(folder / "a" / evil.replace("/", "_"), "lstm", name=evil, said=[f"note={evil}"])
    record_run(folder / "b", "rnn", reason="</script><script>alert(2)</script>", status="diverged")
    page, heard = page_of(browser, folder)
    for option in ("run", ""):
        choose(page, "lines", "")
        choose(page, "colour", option)
    assert heard.messages == []
    assert heard.dialogs == []
    text = page.locator("#runs").inner_text()
    assert evil.replace("/", "_") in text
    assert "</script><script>alert(2)</script>" in text
    assert page.locator("script").count() == page.evaluate("document.scripts.length")
    assert page.evaluate(
        "[...document.scripts].every((one) => !one.textContent.startsWith('alert'))"
    )
    page.context.close()


def test_a_corrupt_run_is_listed_with_its_reason_and_the_rest_is_shown(browser, tmp_path):
    folder = record_sweep(tmp_path / "sweep", models=("rnn", "lstm"), seeds=(0, 1))
    (folder / "1" / "run.json").write_text("{")
    (folder / "2" / "arrays.zarr" / "zarr.json").write_text("{")
    page, heard = page_of(browser, folder)
    assert heard.messages == []
    assert "Runs 1, 2 cannot be read" in page.locator("#notices").inner_text()
    row = page.locator("#runs tr[data-path]").nth(1).inner_text()
    assert "unreadable" in row
    assert "readable run.json" in row
    choose(page, "lines", "")
    assert {path[-1] for line in lines_of(page) for path in line["paths"]} == {"0", "3"}
    page.context.close()


def test_one_run_alone_has_a_useful_page(browser, tmp_path):
    page, heard = page_of(browser, record_run(tmp_path / "run"))
    assert heard.messages == []
    assert "comparison of 1 run" in page.locator(".brand").inner_text()
    assert len(lines_of(page)) == 2  # the adjoint and the bound
    assert page.locator("#runs tr[data-path]").count() == 1
    assert page.locator("#answer").inner_text() != ""
    page.context.close()


def test_mixed_lengths_are_aligned_by_lag_and_lacking_measures_are_told(browser, tmp_path):
    folder = tmp_path / "runs"
    record_run(folder / "short", "lstm", T=16, said=["task.length=16"], close=False)
    record_run(folder / "long", "lstm", T=32, said=["task.length=32"], task="copying")
    page, heard = page_of(browser, folder)
    assert heard.messages == []
    notices = page.locator("#notices").inner_text()
    assert "T = 16, 32" in notices
    assert "Adding, Copying" in notices
    choose(page, "lines", "")
    for line in lines_of(page):
        lag, values = adjoint(line["paths"][0], line["step"])
        if line["name"] == "adj_h_log10":
            found = dict(zip(line["x"], line["y"], strict=True))
            shown = [np.float32(found[int(one)]) for one in lag]
            assert shown == values.tolist()
    said = page.locator("#curves .say").inner_text()
    assert "Pascanu's bound was not measured by experiment=adding length=16" in said
    page.context.close()


def test_a_grid_has_a_phase_diagram(browser, tmp_path):
    def summary(rate, bias):
        return {"adjoint_slope/layer_0": -rate * bias, "memory_horizon/layer_0": rate + bias}

    axes = {"optimizer__learning_rate": [0.01, 0.1, 1], "model__cell__forget_bias": [1, 2, 3]}
    folder = make_sweep(tmp_path / "grid", summary, **axes)
    page, heard = page_of(browser, folder)
    assert heard.messages == []
    assert page.locator("#phase canvas.map").count() == 2
    drawn = page.evaluate(
        "[...document.querySelectorAll('#phase canvas.map')]"
        ".map((map) => [map.width, map.clientWidth])"
    )
    assert all(width == shown for width, shown in drawn)  # nothing is drawn out of proportion
    rows = rows_of(downloaded(page, "#phase .csv"))
    assert len(rows) == 9
    for row in rows:
        x, y = float(row["optimizer.learning_rate"]), float(row["model.cell.forget_bias"])
        assert float(row["adjoint_slope"]) == pytest.approx(-x * y)
    page.context.close()
