"""What the TensorBoard sink writes, read back by the format's own framing."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradlab.errors import BadInput
from gradlab.record import tensorboard_sink
from gradlab.record.base import Outcome, Row
from gradlab.record.keys import Keys
from gradlab.record.tensorboard_sink import TensorBoardSink
from tests.record.synthetic import describe, describe_closely, finished, make_close_row, make_row

T, STEPS = 40, 60


def events(directory: Path) -> list:
    """The events of the one file: each has a length, a checksum of it, itself, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (directory / "tensorboard").iterdir()
    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        assert at + 12 + length + 4 <= len(content)
        found.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 12 + length + 4
    return found


def scalars(found: list) -> dict[int, dict[str, float]]:
    """By step and key; no key comes twice at a step."""
    rows: dict[int, dict[str, float]] = {}
    for event in found:
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                assert value.tag not in rows.setdefault(event.step, {})
                rows[event.step][value.tag] = value.simple_value
    return rows


def texts(found: list) -> dict[str, str]:
    return {
        value.tag.removesuffix("/text_summary"): value.tensor.string_val[0].decode()
        for event in found
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    }


def images(found: list) -> dict[str, np.ndarray]:
    return {
        value.tag: np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
        for event in found
        for value in event.summary.value
        if value.WhichOneof("value") == "image"
    }


def record(directory: Path, description, rows: list[Row], outcome: Outcome) -> None:
    sink = TensorBoardSink(directory)
    sink.open(description)
    for row in rows:
        sink.log(row)
    sink.close(outcome)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    description = describe(T=T, layers=[0, "0 backward"], steps=STEPS)
    rows = [make_row(description, step, zero_beyond=20) for step in range(0, STEPS, 3)]
    record(directory, description, rows, finished())
    return rows, events(directory)


def test_every_scalar_of_every_row(tmp_path):
    description = describe_closely(T=T, layers=[0, 1], steps=STEPS)
    rows = [make_close_row(description, step) for step in range(0, STEPS, 7)]
    record(tmp_path, description, rows, Outcome("interrupted"))
    found, keys = scalars(events(tmp_path)), Keys(description)
    assert list(found) == [row.step for row in rows]
    for row in rows:
        assert found[row.step] == pytest.approx(keys(row), rel=1e-6)
        assert len(found[row.step]) > 200


def test_scalars_and_curves_have_the_keys_that_wandb_shows(recorded):
    rows, found = recorded
    row, written = rows[2], scalars(found)[6]
    assert written["train/loss"] == pytest.approx(row.scalars["train/loss"])
    adjoint = row.arrays["adj_h_log10"]
    for lag in (1, 2, 4, 8, 16):
        assert written[f"adj_h/layer_0/lag_{lag:05d}"] == pytest.approx(adjoint[0, T - 1 - lag])
    assert "adj_c/layer_0_backward/lag_00001" in written
    assert "adj_h/layer_0/lag_00032" not in written  # exactly zero there


def test_what_float32_cannot_hold_is_left_out(tmp_path):
    description = describe(T=4, steps=1)
    values = {"train/loss": math.nan, "val/loss": 1e39, "val/accuracy": -math.inf, "x": 3e38}
    record(tmp_path, description, [Row(0, values, {})], Outcome("finished"))
    assert scalars(events(tmp_path)) == {0: {"x": pytest.approx(3e38)}}


def test_the_first_event_says_which_format_it_is(recorded):
    first, *others = recorded[1]
    assert first.file_version == "brain.Event:2"
    assert all(event.wall_time >= first.wall_time > 1.7e9 for event in others)


@pytest.mark.parametrize("content", [b"", b"123456789", bytes(range(256)) * 5])
def test_the_framing_is_that_of_tensorboards_own_writer(tmp_path, content):
    from tensorboardX import RecordWriter

    writer = RecordWriter(str(tmp_path / "file"))
    writer.write(content)
    writer.close()
    assert tensorboard_sink.framed(content) == (tmp_path / "file").read_bytes()


def test_heatmaps_are_colour_images(recorded):
    _, found = recorded
    shown = images(found)
    assert shown.keys() == {
        f"heatmap/{stem}/{layer}"
        for stem in ("adj_h", "adj_c", "forget_product")
        for layer in ("layer_0", "layer_0_backward")
    }
    pixels = shown["heatmap/adj_h/layer_0"]
    tall, wide = pixels.shape[0] // T, pixels.shape[1] // (STEPS // 3)
    assert pixels.shape == (T * tall, STEPS // 3 * wide, 3)
    assert (pixels[-1] == 0).all()  # the first timestep, at the bottom, is exactly zero
    assert pixels[0, 0].sum() > pixels[15 * tall, 0].sum() > 0  # bright at the end of the sequence
    line = texts(found)["run/heatmaps"].splitlines()[0]
    assert line.startswith("- adj_h/layer_0: norm of the adjoint of h, log10: dark -")


def test_configuration_outcome_and_verdict_are_texts(recorded):
    _, found = recorded
    shown = texts(found)
    assert f"| task.length | {T} |" in shown["run/config"]
    assert "| parameters | 17217 |" in shown["run/facts"]
    assert "| val.name | always answer 1 |" in shown["run/baseline"]
    assert "| status | finished |" in shown["run/outcome"]
    assert "| memory_horizon/layer_0 | inf |" in shown["run/outcome"]
    assert shown["run/verdict"] == "- Layer 0: the gradient reaches 37 steps back."
    last = scalars(found)[STEPS - 3]
    assert last["outcome/train/loss"] == pytest.approx(0.01)
    assert last["outcome/steps_per_second"] == pytest.approx(123.4)
    assert "outcome/memory_horizon/layer_0" not in last


def test_no_secret_and_no_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/somebody/at/home")
    monkeypatch.setenv("SOME_TOKEN", "do-not-tell")
    config = {"data": "/somebody/at/home/data", "url": "https://do-not-tell@x"}
    description = dataclasses.replace(describe(T=4, steps=1), config=config)
    outcome = Outcome("crashed", "no file /somebody/at/home/x")
    record(tmp_path, description, [], outcome)
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert b"somebody" not in path.read_bytes()
    assert b"do-not-tell" not in path.read_bytes()
    assert "| data | ~/data |" in texts(events(tmp_path))["run/config"]


def test_a_resumed_run_has_every_row_once(tmp_path):
    description = describe(T=T, steps=STEPS)
    rows = [make_row(description, step) for step in range(0, STEPS, 3)]
    record(tmp_path, description, rows[:12], Outcome("interrupted", "by the user"))
    (earlier,) = (tmp_path / "tensorboard").iterdir()
    record(tmp_path, dataclasses.replace(description, resumed=True), rows, finished())
    assert not earlier.exists()
    found = events(tmp_path)
    assert list(scalars(found)) == [row.step for row in rows]
    assert "by the user" not in texts(found)["run/outcome"]
    # A TensorBoard that has read the earlier file forgets it.
    start = found[1]
    assert (start.session_log.status, start.step) == (start.session_log.START, 0)


def test_rows_are_on_disk_at_most_two_seconds_later(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(tensorboard_sink.time, "monotonic", lambda: clock[0])
    flushes = []
    synced = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (flushes.append(clock[0]), synced(file)))
    sink = TensorBoardSink(tmp_path)
    sink.open(describe(T=4, steps=30))
    for step in range(30):
        clock[0] += 0.5
        sink.log(Row(step, {"train/loss": 1.0}, {}))
        assert clock[0] - flushes[-1] < 2
    assert np.diff(flushes).min() >= 2
    assert 24 <= len(scalars(events(tmp_path))) < 30
    sink.close(finished())
    assert len(scalars(events(tmp_path))) == 30


def opened() -> tuple[int, set]:
    return len(os.listdir("/dev/fd")), set(threading.enumerate())


def test_nothing_stays_open(tmp_path, monkeypatch):
    description = describe(T=4, steps=1)
    record(tmp_path / "first", description, [], finished())  # what is imported once
    before = opened()
    record(tmp_path / "second", description, [make_row(description, 0)], finished())
    assert opened() == before

    def fails(curves):
        raise ValueError(curves.key)

    monkeypatch.setattr(tensorboard_sink, "heatmap", fails)
    with pytest.raises(ValueError, match="adj_h/layer_0"):
        record(tmp_path / "third", description, [make_row(description, 0)], finished())
    assert opened() == before


def test_a_full_disk_is_told_and_nothing_stays_open(tmp_path, monkeypatch):
    description = describe(T=4, steps=1)
    record(tmp_path / "first", description, [], finished())
    before = opened()

    def full(file):
        raise OSError(28, "No space left on device")

    sink = TensorBoardSink(tmp_path / "second")
    sink.open(description)
    monkeypatch.setattr(tensorboard_sink, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        sink.log(make_row(description, 0))
    assert opened() == before
    sink.close(finished())  # does nothing any more


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(BadInput, match=r"record.tensorboard.*\n.*\n.*gradlab\[tensorboard\]"):
        TensorBoardSink(tmp_path)
    assert not list(tmp_path.iterdir())
