"""The run directory and its reader: what goes in comes out, also after a kill."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray

from gradlab.errors import BadInput
from gradlab.record.base import Description, Outcome, Row, Variable
from gradlab.record.directory import RunDirectory
from gradlab.record.reader import open_run

from .synthetic import PARAMETERS, QUANTILES, describe, finished, make_row


def record(path: Path, description: Description, rows: list[Row]) -> RunDirectory:
    directory = RunDirectory(path)
    directory.open(description)
    for row in rows:
        directory.log(row)
    directory.close(finished())
    return directory


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    description = describe(T=50, layers=[0, 1], steps=80)
    rows = [make_row(description, step, zero_beyond=40) for step in range(0, 80, 2)]
    record(path, description, rows)
    return path, description, rows


def test_arrays_round_trip(recorded):
    path, description, rows = recorded
    curves = open_run(path).curves
    assert set(curves.data_vars) == {n for n, v in description.variables.items() if v.dims}
    for name in curves.data_vars:
        expected = np.array([row.arrays[name] for row in rows], np.float32)
        np.testing.assert_array_equal(curves[name].values, expected)
        assert curves[name].dims == ("step", *description.variables[name].dims)
    assert np.isneginf(curves["adj_h_log10"].sel(layer=0, t=0)).all()


def test_coordinates(recorded):
    curves = open_run(recorded[0]).curves
    assert curves["step"].dtype == np.int64
    np.testing.assert_array_equal(curves["step"], range(0, 80, 2))
    np.testing.assert_array_equal(curves["t"], range(50))
    np.testing.assert_array_equal(curves["lag"], range(49, -1, -1))
    assert curves["lag"].dims == ("t",)
    np.testing.assert_array_equal(curves["quantile"], QUANTILES)
    assert list(curves["parameter"].values) == PARAMETERS
    assert curves["gate_saturation"].sel(gate="f", layer=1).shape == (40,)
    assert {"units", "long_name"} <= curves["lag"].attrs.keys()


def test_attributes(recorded):
    path, description, _ = recorded
    run = open_run(path)
    for dataset in (run.scalars, run.curves):
        for name, array in dataset.items():
            variable = description.variables[name]
            expected = {"units": variable.units, "long_name": variable.long_name}
            assert array.attrs == expected | variable.attrs


def test_scalars_are_nan_where_absent(recorded):
    path, _, rows = recorded
    scalars = open_run(path).scalars
    assert set(scalars.coords) == {"step"}
    for name in ("train/loss", "val/loss"):
        expected = [row.scalars.get(name, math.nan) for row in rows]
        np.testing.assert_array_equal(scalars[name].values, expected)
    assert scalars["val/loss"].isnull().any()
    assert scalars["train/loss"].dtype == np.float64


def test_plain_xarray_reads_the_arrays(recorded):
    with xarray.open_zarr(recorded[0] / "arrays.zarr") as dataset:
        assert {"train_loss", "adj_h_log10"} <= set(dataset.data_vars)
        assert {"lag", "t", "layer", "step"} <= set(dataset.coords)
        assert dataset["train_loss"].attrs["name"] == "train/loss"
    with xarray.open_zarr(recorded[0] / "arrays.zarr", consolidated=False) as dataset:
        assert dataset.sizes["step"] == 40


def test_run_json(recorded):
    path, description, _ = recorded
    run = open_run(path)
    assert run.status == "finished"
    assert run.config == description.config
    assert run.info["steps_per_second"] == 123.4
    assert run.info["probe_overhead"] == 1.03
    assert run.info["timings"] == {"compile_seconds": 2.0}
    assert run.info["devices"] == ["cpu:0"]
    assert run.info["versions"]["numpy"] == np.__version__
    assert run.info["verdict"] == finished().verdict
    assert run.summary["train/loss"] == 0.01
    assert run.summary["steps_per_second"] == 123.4
    assert math.isnan(run.summary["memory_horizon/layer_0"])


def test_run_json_is_strict(recorded):
    def refuse(constant):
        raise AssertionError(constant)

    text = (recorded[0] / "run.json").read_text()
    info = json.loads(text, parse_constant=refuse)
    assert info["summary"]["memory_horizon/layer_0"] is None


def test_odd_values_in_the_config_become_plain(tmp_path):
    config = {"a": np.float32(0.5), "b": (1, np.int64(2)), "c": float("nan"), "d": Path("x"), 5: {}}
    description = Description("n", config, {}, {}, {})
    record(tmp_path, description, [])
    assert open_run(tmp_path).config == {"a": 0.5, "b": [1, 2], "c": None, "d": "x", "5": {}}


def test_a_running_run_can_be_read(tmp_path):
    description = describe(T=10, steps=20)
    directory = RunDirectory(tmp_path, flush_seconds=1000)
    directory.open(description)
    assert open_run(tmp_path).status == "running"
    assert open_run(tmp_path).scalars.sizes["step"] == 0
    for step in range(5):
        directory.log(make_row(description, step))
    early = open_run(tmp_path)
    assert early.scalars.sizes["step"] == 1  # the first row is written at once
    directory.flush()
    assert open_run(tmp_path).curves.sizes["step"] == 5
    assert early.curves["adj_h_log10"].shape == (1, 1, 10)
    assert early.summary == {"status": "running", "steps_per_second": None, "probe_overhead": None}
    directory.close(Outcome("interrupted", "stopped by the user"))
    assert open_run(tmp_path).status == "interrupted"


def test_many_rows_make_few_files(tmp_path):
    description = describe(T=64, steps=20_000)
    rows = [make_row(description, step) for step in range(10)]
    record(tmp_path, description, [rows[i % 10]._replace(step=i) for i in range(20_000)])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) < 100
    run = open_run(tmp_path)
    assert run.curves.sizes["step"] == 20_000
    got = run.curves["adj_h_log10"].isel(step=slice(None, None, 997)).values
    expected = [np.float32(rows[i % 10].arrays["adj_h_log10"]) for i in range(0, 20_000, 997)]
    np.testing.assert_array_equal(got, expected)


def test_large_rows_have_small_chunks(tmp_path):
    description = describe(T=5000, layers=[0, 1, 2], steps=40)
    rows = [make_row(description, step) for step in range(20)]
    record(tmp_path, description, rows)
    assert max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 4e6
    got = open_run(tmp_path).curves["adj_h_log10_q"].values
    np.testing.assert_array_equal(got, np.float32([r.arrays["adj_h_log10_q"] for r in rows]))


def test_layers_may_have_names(tmp_path):
    description = describe(T=8, layers=["0", "0 backward"], steps=4)
    record(tmp_path, description, [make_row(description, 0)])
    curves = open_run(tmp_path).curves
    assert curves["adj_h_log10"].sel(layer="0 backward").shape == (1, 8)


def test_a_second_run_in_the_same_folder_is_refused(recorded):
    with pytest.raises(BadInput, match="holds no run"):
        RunDirectory(recorded[0]).open(recorded[1])


def test_rows_must_be_as_described(tmp_path):
    variables = {"a": Variable(("layer",), "1", "a")}
    directory = RunDirectory(tmp_path)
    directory.open(Description("n", {}, variables, {"layer": [0, 1]}, {}))
    with pytest.raises(ValueError, match=r"not described.*'b'"):
        directory.log(Row(0, {"b": 1.0}, {}))
    with pytest.raises(ValueError, match=r"a: got shape \(1,\), described as \(2,\)"):
        directory.log(Row(0, {}, {"a": np.zeros(1)}))


WRITER = """
import sys, itertools
sys.path.insert(0, sys.argv[2])
from record.synthetic import describe, make_row
from gradlab.record.directory import RunDirectory
description = describe(T=300, layers=[0, 1], steps=1000)
rows = [make_row(description, step) for step in range(7)]
directory = RunDirectory(sys.argv[1], flush_seconds=0.0)
directory.open(description)
for step in itertools.count():
    directory.log(rows[step % 7]._replace(step=step))
    print(step, flush=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_after_a_kill_every_flushed_row_is_there(tmp_path, seed):
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", WRITER, str(tmp_path), tests]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        writer.stdout.readline()
        time.sleep(random.Random(seed).uniform(0.05, 1.0))
        os.kill(writer.pid, signal.SIGKILL)
        printed = [int(line) for line in re.findall(r"(\d+)\n", writer.stdout.read())]
    run = open_run(tmp_path)
    assert run.status == "running"
    length = run.curves.sizes["step"]
    assert length > max(printed, default=0)
    np.testing.assert_array_equal(run.scalars["step"], range(length))
    description = describe(T=300, layers=[0, 1], steps=1000)
    rows = [make_row(description, step) for step in range(7)]
    for name, array in run.curves.items():
        expected = np.float32([rows[step % 7].arrays[name] for step in range(length)])
        np.testing.assert_array_equal(array.values, expected)
    assert run.scalars["train/loss"].notnull().all()


class DiedError(Exception):
    pass


def test_a_torn_flush_reads_as_the_one_before(tmp_path, monkeypatch):
    """Whichever file the writer was about to replace when it died, the reader sees no change."""
    from gradlab.record import directory as module

    description = describe(T=20, steps=16)
    replace, left = module._replace, math.inf

    def dies(path, content):
        nonlocal left
        left -= 1
        if left < 0:
            raise DiedError
        replace(path, content)

    monkeypatch.setattr(module, "_replace", dies)
    files = 2 * (len(description.variables) + 1) - 2 + 1  # val/* is absent from the second row
    for survived in (0, 1, 5, 13, files - 1, files):
        path, left = tmp_path / str(survived), math.inf
        directory = RunDirectory(path, flush_seconds=1000)
        directory.open(description)
        directory.log(make_row(description, 0))
        directory.log(make_row(description, 3)._replace(step=1))
        left = survived
        if survived < files:
            with pytest.raises(DiedError):
                directory.flush()
        else:
            directory.flush()
        curves = open_run(path).curves.load()
        assert curves.sizes["step"] == (1 if survived < files else 2)
        assert curves["adj_h_log10"].notnull().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "a run directory"),
        ("{", "readable run.json"),
        ("\xff", "readable run.json"),
        ("[]", "JSON object"),
        ("{}", "format number"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1, "status": "finished", "summary": {}}', "at fault: config"),
        ('{"format": 1, "status": "x", "summary": {}, "config": {}}', "at fault: status"),
    ],
)
def test_what_is_not_a_run_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=message) as refusal:
        open_run(tmp_path)
    assert refusal.value.key == "run"


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(BadInput, match="a run directory"):
            open_run(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"zstd"', '"numcodecs.pickle"', "holds.*pickle"),
        ('"float32"', '"object"', "holds.*object"),
        ('"consolidated_metadata"', '"other"', "readable arrays.zarr"),
        ("{", "", "readable arrays.zarr"),
    ],
)
def test_foreign_arrays_are_refused(tmp_path, old, new, message):
    record(tmp_path, describe(T=4, steps=1), [])
    path = tmp_path / "arrays.zarr" / "zarr.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadInput, match=message):
        _ = open_run(tmp_path).curves


def test_arrays_of_the_older_zarr_format_are_refused(tmp_path):
    """The older format can name a codec that unpickles."""
    record(tmp_path, describe(T=4, steps=1), [])
    (tmp_path / "arrays.zarr" / "zarr.json").unlink()
    (tmp_path / "arrays.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(BadInput, match=r"readable arrays.zarr"):
        _ = open_run(tmp_path).scalars
