"""The run directory and its reader: what goes in comes out, also after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray
from numcodecs.zstd import Zstd

from gradlab.errors import BadInput, CannotRecord
from gradlab.record import shard as shard_module
from gradlab.record.arrays import CHUNK_BYTES
from gradlab.record.base import Description, Outcome, Row, Variable
from gradlab.record.directory import RunDirectory
from gradlab.record.lock import is_written
from gradlab.record.reader import open_run, recorded_rows
from tests import ROOT
from tests.record.synthetic import PARAMETERS, QUANTILES, describe, finished, make_row


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


@pytest.mark.parametrize("value", [2**80, "\ud800", [[]] * 100_001, [0] * 5000])
def test_what_no_reader_takes_is_not_recorded(tmp_path, value):
    description = Description("n", {"a": {"b": value}}, {}, {}, {})
    with pytest.raises(BadInput, match="can be recorded and read again"):
        RunDirectory(tmp_path / "run").open(description)
    assert not (tmp_path / "run").exists()


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
    """So that a flush rewrites little, and a reader of one row reads little."""
    description = describe(T=5000, layers=[0, 1, 2], steps=40)
    rows = [make_row(description, step) for step in range(20)]
    record(tmp_path, description, rows)
    run = open_run(tmp_path)
    chunks = run.curves["adj_h_log10_q"].encoding["chunks"]
    assert 4 * math.prod(chunks) <= CHUNK_BYTES
    got = run.curves["adj_h_log10_q"].values
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
    directory.close(finished())


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
    tests = str(ROOT / "tests")
    command = [sys.executable, "-c", WRITER, str(tmp_path), tests]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        writer.stdout.readline()
        time.sleep(random.Random(seed).uniform(0.05, 1.0))
        os.kill(writer.pid, signal.SIGKILL)
        printed = [int(line) for line in re.findall(r"(\d+)\n", writer.stdout.read())]
    run = open_run(tmp_path)
    assert run.status == "killed"
    assert run.info["status"] == "running"
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


@pytest.fixture
def mortal(monkeypatch):
    """``mortal(n)``: after ``n`` more writes, in place or by replacement, the writer dies.

    The write at which it dies happens by half.
    """
    from gradlab.record import arrays, directory

    left = math.inf
    write, replace = shard_module._write_at, shard_module.replace

    def counted() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    def write_or_die(descriptor, content, offset):
        if counted():
            write(descriptor, content[: len(content) // 2], offset)
            raise DiedError
        write(descriptor, content, offset)

    def replace_or_die(path, content):
        if counted():
            raise DiedError
        replace(path, content)

    def set_left(n):
        nonlocal left
        left = n

    monkeypatch.setattr(shard_module, "_write_at", write_or_die)
    for module in (shard_module, arrays, directory):
        monkeypatch.setattr(module, "replace", replace_or_die)
    return set_left


def test_a_torn_flush_reads_as_the_one_before(tmp_path, mortal):
    """Whichever write the writer was at when it died, the reader sees no change or the whole."""
    description = describe(T=20, steps=16)
    path, survived, seen = tmp_path / "run", 0, []
    while not seen or seen[-1] == 1:
        path = tmp_path / str(survived)
        mortal(math.inf)
        directory = RunDirectory(path, flush_seconds=1000)
        directory.open(description)
        rows = [make_row(description, step)._replace(step=step) for step in (0, 3)]
        directory.log(rows[0])
        directory.log(rows[1])
        mortal(survived)
        with contextlib.suppress(DiedError):
            directory.flush()
        run = open_run(path)
        assert not run.damage
        curves = run.curves.load()
        seen.append(curves.sizes["step"])
        for name, array in curves.items():
            expected = np.float32([row.arrays[name] for row in rows[: seen[-1]]])
            np.testing.assert_array_equal(array.values, expected)
        directory._lock.release()
        survived += 1
    assert seen[-1] == 2
    # three writes a variable and one for all; val/* is absent from the second row
    assert survived > 3 * (len(description.variables) + 1 - 2)


def test_what_is_written_again_stays_in_two_places(tmp_path):
    shard = shard_module.Shard(tmp_path / "0", 4, 1000)
    for n in range(1, 100):
        shard.write(1, bytes([n]) * n * 10)
        assert shard.read(1) == bytes([n]) * n * 10
    assert (tmp_path / "0").stat().st_size <= 256 + 2 * 1024
    shard.write(1, b"done")
    shard.settle()
    shard.write(2, b"next")
    shard.pack()
    assert (tmp_path / "0").stat().st_size == 4 * 16 + 8
    again = shard_module.Shard(tmp_path / "0", 4, 1000)
    assert [again.read(n) for n in range(4)] == [None, b"done", b"next", None]


def test_however_rows_are_flushed_a_closed_run_has_the_same_bytes(tmp_path, monkeypatch):
    """Each alone, or in blocks of up to all of them: also the chunk that was written in a hurry."""
    from gradlab.record import arrays

    monkeypatch.setattr(arrays, "CHUNK_ROWS", 8)
    description = describe(T=12, steps=60, lstm=False)
    rows = [make_row(description, step)._replace(step=step) for step in range(13)]
    files = {}
    for name, flush_seconds in (("one by one", 0), ("at once", 1000)):
        directory = RunDirectory(tmp_path / name, flush_seconds)
        directory.open(description)
        for row in rows:
            directory.log(row)
        directory.close(finished())
        found = (tmp_path / name / "arrays.zarr").rglob("*")
        files[name] = {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in found
            if path.is_file()
        }
    assert files["one by one"] == files["at once"]
    level_1 = Zstd(level=arrays.LEVEL, checksum=True)
    block = np.full((8, 1, 12), np.nan, "<f4")
    block[:5] = [row.arrays["adj_h_log10"] for row in rows[8:]]
    assert files["at once"]["arrays.zarr/adj_h_log10/c/0/0/0"].endswith(level_1.encode(block))


def test_a_row_costs_as_much_after_many_as_at_the_beginning(tmp_path, monkeypatch):
    """Counted in bytes: a flush writes one chunk a variable, files are packed ever more rarely."""
    from gradlab.record import arrays

    monkeypatch.setattr(arrays, "CHUNK_ROWS", 4)
    write_at, written = shard_module._write_at, []

    def counted(descriptor, content, offset):
        written.append(len(content))
        write_at(descriptor, content, offset)

    monkeypatch.setattr(shard_module, "_write_at", counted)
    description = describe(T=12, steps=60, lstm=False)
    row = make_row(description, 0)
    directory = RunDirectory(tmp_path, flush_seconds=1000)
    directory.open(description)
    directory._flushed = time.monotonic()
    columns, flushes, quarters = len(description.variables) + 1, [], []
    for quarter in range(4):
        before = sum(written)
        for step in range(32 * quarter, 32 * (quarter + 1)):
            calls = len(written)
            directory.log(row._replace(step=step))
            assert step % 4 == 0 or len(written) == calls  # in memory until a chunk is full
        quarters.append(sum(written) - before)
        calls = len(written)
        directory.flush()
        flushes.append(len(written) - calls)
    directory.close(finished())
    assert set(flushes) == {3 * columns + 1}  # two a place, one an entry; one for all
    assert max(quarters) == quarters[0]
    assert open_run(tmp_path).curves.sizes["step"] == 128


# Going on with a run.


def go_on(path: Path, description: Description, rows: list[Row], **kwargs) -> None:
    directory = RunDirectory(path, **kwargs)
    directory.open(dataclasses.replace(description, resumed=True))
    for row in rows:
        directory.log(row)
    directory.close(finished())


@pytest.mark.parametrize("chunk_rows", [1, 4, 5, 8192])
def test_a_run_goes_on_where_it_stood(tmp_path, monkeypatch, chunk_rows):
    """Also across chunks and files, and with rows behind the last flush that were lost."""
    from gradlab.record import arrays

    monkeypatch.setattr(arrays, "CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr(arrays, "SHARD_ROWS", 2 * chunk_rows)
    description = describe(T=12, steps=60)
    rows = [make_row(description, step)._replace(step=step) for step in range(26)]
    record(tmp_path, description, rows[:5])
    for start, kept, lost in ((5, 10, 17), (10, 10, 13), (10, 16, 16), (16, 23, 26)):
        directory = RunDirectory(tmp_path, flush_seconds=1000)
        directory.open(dataclasses.replace(description, resumed=True))
        directory._flushed = time.monotonic()
        for row in rows[start:kept]:
            directory.log(row)
        directory.flush()
        for row in rows[kept:lost]:  # a kill: never flushed, but chunks that they filled are there
            row = row._replace(scalars=dict.fromkeys(row.scalars, 9.0))
            directory.log(row)
        directory._lock.release()
    go_on(tmp_path, description, rows[23:])
    run = open_run(tmp_path)
    assert (run.status, run.damage) == ("finished", ())
    np.testing.assert_array_equal(run.scalars["step"], range(26))
    for name, array in (*run.curves.items(), *run.scalars.items()):
        expected = [{**r.scalars, **r.arrays}.get(name, np.nan) for r in rows]
        np.testing.assert_array_equal(array.values, np.asarray(expected, array.dtype))
    assert [one["rows"] for one in run.info["resumed"]] == [5, 10, 10, 16, 23]
    assert [one["from"] for one in run.info["resumed"]] == ["finished", *["killed"] * 4]


@pytest.mark.parametrize("chunk_rows", [1, 4, 8192])
def test_variables_and_the_last_row_grow_while_a_run_goes_on(tmp_path, monkeypatch, chunk_rows):
    """Whatever chunk they begin in; a kill while they are being added loses nothing."""
    from gradlab.record import arrays

    monkeypatch.setattr(arrays, "CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr(arrays, "SHARD_ROWS", 2 * chunk_rows)
    description = describe(T=12, steps=60)
    first = {"train/loss": description.variables["train/loss"]}
    narrow = dataclasses.replace(description, variables=first, coords={}, facts={})
    rows = [make_row(description, step)._replace(step=step) for step in range(12)]
    directory = RunDirectory(tmp_path, flush_seconds=0)
    directory.open(narrow)
    for row in rows[:6]:
        directory.log(Row(row.step, {"train/loss": 1.0}, {}))
    with monkeypatch.context() as patch:
        patch.setattr(arrays.Arrays, "commit", lambda self: 1 / 0)  # coordinates lie there unseen
        with pytest.raises(ZeroDivisionError):
            directory.extend(description)
    directory._lock.release()
    assert open_run(tmp_path).scalars["train/loss"].values.tolist() == [1.0] * 6
    directory = RunDirectory(tmp_path, flush_seconds=0)
    directory.open(dataclasses.replace(narrow, resumed=True))
    directory.extend(description)
    for row in rows[6:]:
        directory.log(Row(row.step, row.scalars, {}))
        directory.log(Row(row.step, {}, row.arrays))
        last = open_run(tmp_path).curves["adj_h_log10"].isel(step=-1)
        np.testing.assert_array_equal(last, np.float32(row.arrays["adj_h_log10"]))
    directory.close(finished())
    run = open_run(tmp_path)
    assert (run.status, run.damage) == ("finished", ())
    assert run.info["facts"]["T"] == 12
    assert run.curves["lag"].values.tolist() == list(range(12))[::-1]
    np.testing.assert_array_equal(run.scalars["step"], range(12))
    for name, array in (*run.curves.items(), *run.scalars.items()):
        expected = [{**r.scalars, **r.arrays}.get(name, np.nan) for r in rows[6:]]
        assert np.isnan(array.values[:6]).all() or name == "train/loss"
        np.testing.assert_array_equal(array.values[6:], np.asarray(expected, array.dtype))


def test_the_rows_come_back_as_they_were_logged(recorded):
    path, _, rows = recorded
    for got, row in zip(recorded_rows(open_run(path)), rows, strict=True):
        assert (got.step, got.scalars) == (row.step, row.scalars)
        assert got.arrays.keys() == row.arrays.keys()
        for name, array in got.arrays.items():
            np.testing.assert_array_equal(array, np.float32(row.arrays[name]))


@pytest.mark.parametrize(
    "other",
    [
        describe(T=13, steps=60),
        describe(T=12, steps=60, layers=[0, 1]),
        describe(T=12, steps=60, layers=["0 forward"]),
        describe(T=12, steps=60, lstm=False),
    ],
)
def test_going_on_with_another_run_is_refused(tmp_path, other):
    description = describe(T=12, steps=60)
    record(tmp_path, description, [make_row(description, 0)])
    before = {
        p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "lock" not in p.name
    }
    with pytest.raises(BadInput, match="differs in") as refusal:
        go_on(tmp_path, other, [])
    assert refusal.value.key == "trainer.resume"
    assert all(path.read_bytes() == content for path, content in before.items())
    go_on(tmp_path, description, [make_row(description, 1)])  # nobody holds the lock


def test_only_one_writes(tmp_path):
    description = describe(T=4, steps=1)
    directory = RunDirectory(tmp_path)
    assert is_written(tmp_path) is False
    directory.open(description)
    assert is_written(tmp_path)
    with pytest.raises(BadInput, match=rf"process {os.getpid()} on"):
        go_on(tmp_path, description, [])
    directory.close(finished())
    assert not is_written(tmp_path)
    go_on(tmp_path, description, [])


# What is cut, and what does not fit.


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("name", ["adj_h_log10_q", "step", "train_loss"])
def test_a_run_that_was_cut_reads_as_far_as_it_is_whole(tmp_path, monkeypatch, name, keep):
    from gradlab.record import arrays

    monkeypatch.setattr(arrays, "CHUNK_ROWS", 4)
    description = describe(T=12, steps=60)
    rows = [make_row(description, step) for step in range(20)]
    record(tmp_path, description, rows)
    (file,) = (f for f in (tmp_path / "arrays.zarr" / name / "c").rglob("*") if f.is_file())
    os.truncate(file, int(keep * file.stat().st_size))
    run = open_run(tmp_path)
    assert (run.status, run.info["status"]) == ("truncated", "finished")
    assert len(run.damage) == 1
    assert f"{name}/c/0" in run.damage[0]
    if name == "step" and keep < 0.5:  # without the index of this one nothing can be placed
        with pytest.raises(BadInput, match=r"readable arrays\.zarr"):
            _ = run.curves
        return
    left = run.curves.sizes["step"]
    assert left == run.scalars.sizes["step"]
    assert left % 4 == 0
    assert (left > 0) == (keep > 0.5)
    assert f"rows from {left} on, of 20" in run.damage[0]
    expected = np.float32([row.arrays["adj_h_log10_q"] for row in rows[:left]])
    np.testing.assert_array_equal(run.curves["adj_h_log10_q"].values.reshape(-1), expected.ravel())


@pytest.mark.parametrize("length", [4, 8192])
def test_a_run_cut_anywhere_reads_what_is_whole_or_is_refused(tmp_path, monkeypatch, length):
    """Whatever the version of zarr makes of a file that ends too early."""
    from gradlab.record import arrays

    monkeypatch.setattr(arrays, "CHUNK_ROWS", length)
    description = describe(T=4, steps=60)
    record(tmp_path, description, [make_row(description, step) for step in range(20)])
    whole = open_run(tmp_path)
    expected = xarray.merge([whole.scalars, whole.curves]).load()
    shown = []
    for name in ("step", "t", "lag", "quantile", "train_loss", "adj_h_log10_q"):
        (file,) = (f for f in (tmp_path / "arrays.zarr" / name / "c").rglob("*") if f.is_file())
        content = file.read_bytes()
        for keep in (int(part * len(content)) for part in (0, 0.3, 0.99, 0.999)):
            file.write_bytes(content[:keep])
            run = open_run(tmp_path)
            try:
                left = xarray.merge([run.scalars, run.curves]).load()
            except BadInput:
                assert name in expected.coords
                continue
            rows = left.sizes["step"]
            if name == "lag":  # it follows from t
                xarray.testing.assert_identical(left, expected)
                continue
            shown.append(rows)
            assert f"{name}/c/0" in run.damage[0]
            assert f"rows from {rows} on, of 20" in run.damage[0]
            xarray.testing.assert_identical(left, expected.isel(step=slice(rows)))
        file.write_bytes(content)
    assert (max(shown) > 0) == (length == 4)


@pytest.mark.parametrize("name", ["quantile", "step"])
def test_a_file_that_is_missing_is_named(tmp_path, name):
    description = describe(T=4, steps=1)
    record(tmp_path, description, [make_row(description, 0)])
    (tmp_path / "arrays.zarr" / name / "c" / "0").unlink()
    run = open_run(tmp_path)
    assert run.status == "truncated"
    assert f"arrays.zarr/{name}/c/0" in run.damage[0]


def test_a_coordinate_that_is_cut_is_refused(tmp_path):
    description = describe(T=4, steps=1)
    record(tmp_path, description, [make_row(description, 0)])
    os.truncate(tmp_path / "arrays.zarr" / "t" / "c" / "0", 5)
    with pytest.raises(BadInput, match=r"readable arrays\.zarr"):
        _ = open_run(tmp_path).curves


def test_arrays_that_cannot_be_read_at_all_are_said(tmp_path):
    record(tmp_path, describe(T=4, steps=1), [])
    os.truncate(tmp_path / "arrays.zarr" / "zarr.json", 100)
    run = open_run(tmp_path)
    assert run.status == "truncated"
    assert "arrays.zarr cannot be read" in run.damage[0]


def test_a_full_disk_ends_the_run_and_keeps_what_was_recorded(tmp_path, monkeypatch):
    """The system refuses every write but into the room that was kept for the last words."""
    description = describe(T=12, steps=60)
    rows = [make_row(description, step) for step in range(4)]
    directory = RunDirectory(tmp_path, flush_seconds=0)
    directory.open(description)
    directory.log(rows[0])
    lock = tmp_path / "writer.lock"
    write_at = shard_module._write_at

    def full(descriptor, content, offset):
        if b'"format": 2' in content and lock.stat().st_size == 0:
            return write_at(descriptor, content, offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert lock.stat().st_size > 2**15
    monkeypatch.setattr(shard_module, "_write_at", full)
    with pytest.raises(CannotRecord, match="No space left") as failure:
        directory.log(rows[1])
    assert str(tmp_path) in str(failure.value)
    with pytest.raises(CannotRecord, match="No space left"):
        directory.close(Outcome("crashed", str(failure.value)))
    run = open_run(tmp_path)
    assert (run.status, run.damage) == ("crashed", ())
    assert run.info["reason"] == "cannot record: No space left on device"
    assert run.curves.sizes["step"] == 1
    monkeypatch.setattr(shard_module, "_write_at", write_at)
    go_on(tmp_path, description, rows[1:])
    assert open_run(tmp_path).curves.sizes["step"] == 4


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_folder_that_goes_away_is_not_made_again(tmp_path, how, rows):
    description = describe(T=4, steps=60)
    folder, other = tmp_path / "run", tmp_path / "other"
    directory = RunDirectory(folder, flush_seconds=0)
    directory.open(description)
    for step in range(rows):
        directory.log(make_row(description, step))
    if how == "removed":
        shutil.rmtree(folder)
    else:
        folder.rename(tmp_path / "moved")
    if how == "replaced":
        record(other, description, [make_row(description, 0)])
        other.rename(folder)
    with pytest.raises(CannotRecord, match="removed, moved or replaced") as failure:
        directory.log(make_row(description, rows))
    assert "resume" not in str(failure.value)
    with pytest.raises(CannotRecord, match="removed, moved or replaced"):
        directory.close(finished())
    assert folder.exists() == (how == "replaced")
    if how == "moved":
        assert open_run(tmp_path / "moved").scalars.sizes["step"] == rows
    if how == "replaced":
        run = open_run(folder)
        assert (run.status, run.damage, run.scalars.sizes["step"]) == ("finished", (), 1)


@pytest.mark.parametrize("name", ["arrays.zarr", "arrays.zarr/adj_h_log10"])
def test_arrays_that_go_away_are_not_made_again(tmp_path, name):
    description = describe(T=4, steps=60)
    directory = RunDirectory(tmp_path, flush_seconds=0)
    directory.open(description)
    shutil.rmtree(tmp_path / name)
    with pytest.raises(CannotRecord, match="No such file"):
        directory.log(make_row(description, 0))
    with pytest.raises(CannotRecord, match="No such file"):
        directory.close(finished())
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "crashed"


@pytest.mark.parametrize("name", ["adj_h_log10_q", "step", "train_loss"])
def test_a_chunk_that_does_not_decode_is_damage(tmp_path, monkeypatch, name):
    """One wrong bit anywhere in it, as on a disk that fails."""
    from gradlab.record import arrays

    monkeypatch.setattr(arrays, "CHUNK_ROWS", 4)
    description = describe(T=12, steps=60)
    rows = [make_row(description, step) for step in range(20)]
    record(tmp_path, description, rows)
    (file,) = (f for f in (tmp_path / "arrays.zarr" / name / "c").rglob("*") if f.is_file())
    content = file.read_bytes()
    offset, length = shard_module.read_index(file, 4096)[2].tolist()
    for place in range(offset + 4, offset + length, max(1, length // 9)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        run = open_run(tmp_path)
        assert run.status == "truncated"
        (damage,) = run.damage
        assert f"{name}/c/0" in damage
        assert "is damaged: rows from 8 on, of 20, are lost" in damage
        expected = np.float32([row.arrays["adj_h_log10_q"] for row in rows[:8]])
        np.testing.assert_array_equal(run.curves["adj_h_log10_q"].values, expected)


def test_no_secret_and_no_home_path_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/somebody/at/home")
    monkeypatch.setenv("THEIR_API_KEY", "0123456789abcdef")
    description = dataclasses.replace(
        describe(T=4, steps=1),
        config={"task": {"path": "/somebody/at/home/book.txt", "k": "x0123456789abcdefx"}},
    )
    directory = RunDirectory(tmp_path)
    directory.open(description)
    directory.close(Outcome("crashed", "no file /somebody/at/home/book.txt, /somebody/at/homely"))
    info = (tmp_path / "run.json").read_text()
    assert "0123456789abcdef" not in info
    assert open_run(tmp_path).config["task"] == {"path": "~/book.txt", "k": "x<THEIR_API_KEY>x"}
    assert open_run(tmp_path).info["reason"] == "no file ~/book.txt, /somebody/at/homely"


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
