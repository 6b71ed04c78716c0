"""What the page holds, and that it is one file that reaches for nothing."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import zarr
from scipy import stats

from gradlab import open_run
from gradlab.compare.page import as_json, contents, page, write
from gradlab.compare.page.packed import MOST_POINTS, MOST_VALUES, Packing, Thinning, thinning
from gradlab.compare.recorded import recorded
from gradlab.compare.runs import runs_in
from tests.compare.recordings import record_run, record_sweep

TYPES = {"f4": "<f4", "f8": "<f8", "i4": "<i4"}


def unpacked(packed):
    """The arrays, the slow way round, value by value."""
    data = zlib.decompress(base64.b64decode(packed["data"]))
    found = []
    for kind, shape in packed["parts"]:
        dtype = np.dtype(TYPES[kind])
        count = math.prod(shape)
        own, data = data[: count * dtype.itemsize], data[count * dtype.itemsize :]
        whole = b"".join(own[k::count] for k in range(count))
        found.append(np.frombuffer(whole, dtype).reshape(shape))
    assert data == b""
    return found


def variable(run, name):
    """Steps, lags and values of a variable of a run."""
    arrays = unpacked(run["arrays"])
    places = run["curves"].get(name) or run["series"][name]
    return {key: arrays[place] for key, place in places.items()}


def contents_of(*paths):
    return contents(recorded(runs_in(*paths)))


class Parts(HTMLParser):
    """Every address that a page would load from, and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.scripts, self.policy = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "script":
            self.scripts.append("")
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        for name in ("src", "href", "srcset", "action"):
            if tag != "a" and given.get(name):
                self.addresses.append(given[name])

    def handle_data(self, data):
        if self.scripts and self.lasttag == "script":
            self.scripts[-1] += data


@pytest.mark.parametrize("kind", ["float32", "float64", "int32"])
def test_packing_loses_no_bit(kind):
    array = np.random.default_rng(0).normal(0, 50, (3, 2, 7)).astype(kind)
    if kind != "int32":
        array[0, 0, :3] = -np.inf, np.nan, 1e-40
    packing = Packing()
    places = [packing.add(array), packing.add(array[0]), packing.add(array.copy())]
    assert places == [0, 1, 0]
    first, second = unpacked(packing.packed())
    assert first.tobytes() == array.tobytes()
    assert second.tobytes() == array[0].tobytes()


def test_the_arrays_of_a_run_are_what_was_recorded(tmp_path):
    path = record_run(tmp_path / "run", layers=(0, 1))
    (run,) = contents_of(path)["runs"]
    recorded_run = open_run(path)
    for name in ("adj_h_log10", "long_jacobian_log10"):
        found = variable(run, name)
        array = recorded_run.curves[name].sel(step=found["steps"]).transpose("step", "layer", "t")
        np.testing.assert_array_equal(found["values"], array.values[:, :, ::-1])
        assert found["lags"].tolist() == array["lag"].values[::-1].tolist()
    for name in ("train/loss", "val/loss"):
        found = variable(run, name)
        array = recorded_run.scalars[name].dropna("step")
        assert found["steps"].tolist() == array["step"].values.tolist()
        np.testing.assert_array_equal(found["values"][:, 0], array.values)


def test_a_run_says_what_it_is(tmp_path):
    path = record_run(tmp_path / "run", "gru", seed=2)
    (run,) = contents_of(path)["runs"]
    info = json.loads((path / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["command"] == "python -m gradlab model=gru seed=2"
    assert run["parameters"] == info["facts"]["parameters"]
    assert run["steps_per_second"] == info["steps_per_second"]
    assert run["summary"]["test/loss"] == info["summary"]["test/loss"]
    assert run["baseline"]["val"]["loss"] == info["baseline"]["val"]["loss"]


@pytest.mark.parametrize(
    ("name", "words"), [("decades_lost", "∞, exactly zero"), ("memory_horizon", "never")]
)
def test_an_infinity_that_no_json_holds_is_said_in_words(tmp_path, name, words):
    path = record_run(tmp_path / "run", T=8, rows=2)
    for value, expected in ((np.inf, words), (np.nan, None)):
        zarr.open_array(str(path / "arrays.zarr" / name), mode="r+")[:] = value
        info = json.loads((path / "run.json").read_text())
        info["summary"][f"{name}/layer_0"] = None
        (path / "run.json").write_text(json.dumps(info))
        (run,) = contents_of(path)["runs"]
        assert run["summary"][f"{name}/layer_0"] == expected


def test_bounds_are_of_what_has_some(tmp_path):
    bounds = contents_of(record_run(tmp_path / "run", T=8, rows=2))["bounds"]
    assert bounds["val/accuracy"] == [0, 1]
    assert bounds["train/loss"] == [0, None]
    assert bounds["memory_horizon"] == [0, "T"]
    assert bounds["adjoint_line_r2"] == [0, 1]
    assert "decades_lost" not in bounds


def test_lags_that_count_from_the_padding_are_told(tmp_path):
    for name, options in (("own", {"own_lags": True}), ("padded", {})):
        path = record_run(tmp_path / name, T=8, rows=2, **options)
        info = json.loads((path / "run.json").read_text())
        info["config"]["task"]["min_length"] = 4
        (path / "run.json").write_text(json.dumps(info))
    notices = "\n".join(contents_of(tmp_path)["notices"])
    assert "Run padded recorded no lags of each example's own" in notices


def test_only_settings_that_differ_are_keys(tmp_path):
    data = contents_of(record_sweep(tmp_path / "s", models=("rnn", "gru"), seeds=(0, 1)))
    assert list(data["keys"]) == ["model", "seed"]
    assert [run["settings"] for run in data["runs"]] == [
        {"model": model, "seed": seed} for model in ("rnn", "gru") for seed in (0, 1)
    ]


def test_the_quantiles_are_students():
    found = contents([])["student"]
    assert found == [0.0, 0.0, pytest.approx(stats.t.ppf(0.975, 1))]


def test_quantiles_for_as_many_runs_as_there_are(tmp_path):
    found = contents_of(record_sweep(tmp_path / "s", models=("rnn",), seeds=range(5)))["student"]
    expected = [0, 0, *stats.t.ppf(0.975, np.arange(1, 5))]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_small_comparisons_are_not_thinned():
    curves = [(200, 1, 200)] * 9 * 8
    assert thinning(curves, [200 * 6] * 9) == Thinning()


@pytest.mark.parametrize(
    ("runs", "steps", "length"), [(200, 200, 1000), (30, 2000, 200), (1000, 400, 5000)]
)
def test_large_ones_are_thinned_until_they_fit(runs, steps, length):
    curves = [(steps, 1, length)] * runs * 2
    found = thinning(curves, [steps] * runs * 6)
    left = sum(min(s, found.steps) * layers * min(t, found.lags or t) for s, layers, t in curves)
    assert left <= MOST_VALUES
    rows = min(found.rows or steps, steps)
    assert rows * runs * 6 <= max(MOST_POINTS, 50 * runs * 6)
    # As many as will go: half as many steps again or lags would not.
    assert left > MOST_VALUES / 8


def test_thinning_is_told_and_keeps_recorded_values(tmp_path, monkeypatch):
    from gradlab.compare.page import packed as module

    folder = record_sweep(tmp_path / "s", models=("rnn", "lstm"), seeds=(0, 1), rows=30, T=64)
    monkeypatch.setattr(module, "MOST_VALUES", 8000)
    monkeypatch.setattr(module, "MOST_POINTS", 1000)
    monkeypatch.setattr(module, "FEWEST_ROWS", 5)
    data = contents_of(folder)
    (said,) = [line for line in data["notices"] if line.startswith("Thinned")]
    run = data["runs"][2]
    found = variable(run, "adj_h_log10")
    steps, _, lags = found["values"].shape
    assert f"{steps} training steps and {lags} lags" in said
    array = open_run(folder / "2").curves["adj_h_log10"].isel(layer=0)
    by_lag = array.swap_dims({"t": "lag"}).sel(step=found["steps"], lag=found["lags"])
    np.testing.assert_array_equal(found["values"][:, 0], by_lag.values)
    assert found["lags"][[0, -1]].tolist() == [0, 63]
    assert found["steps"][[0, -1]].tolist() == [0, 290]


def test_the_page_is_one_file_that_may_reach_nothing(tmp_path):
    folder = record_sweep(tmp_path / "s", models=("rnn",), seeds=(0, 1))
    text = write(recorded(runs_in(folder)), folder / "p.html").read_text(encoding="utf-8")
    found = Parts(text)
    assert found.addresses == ["data:,"]
    assert "default-src 'none'" in found.policy
    assert "connect-src 'none'" in found.policy
    assert "{{" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "connect-src 'self'" in Parts(page(contents_of(folder), live=True)).policy


def test_no_text_can_end_the_script_that_holds_it(tmp_path):
    evil = "</script><script>alert(1)</script><!--"
    path = record_run(tmp_path / "run", name=evil, said=[f"note={evil}"], reason=evil)
    data = contents_of(path)
    text = page(data)
    scripts = Parts(text).scripts
    assert not any(script.startswith("alert") for script in scripts)
    (held,) = [script for script in scripts if script.startswith('{"made"')]
    assert json.loads(held) == data
    assert "<" not in as_json(data)


def test_a_page_replaces_the_one_before_and_a_failed_one_leaves_it(tmp_path):
    path = tmp_path / "new" / "page.html"
    runs = recorded(runs_in(record_run(tmp_path / "run")))
    write(runs, path)
    first = path.read_text(encoding="utf-8")
    write(runs, path)
    assert len(path.read_text(encoding="utf-8")) == len(first)
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]


def test_values_that_are_not_finite_are_null_in_json(tmp_path):
    path = record_run(tmp_path / "run")
    info = json.loads((path / "run.json").read_text())
    info["summary"]["test/loss"] = None
    (path / "run.json").write_text(json.dumps(info))
    (run,) = contents_of(path)["runs"]
    assert run["summary"]["test/loss"] is None
