"""What of a run arrives at a W&B server, and what remains when there is none."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest
import wandb
from wandb.cli.cli import cli

from gradlab.record.base import Description
from gradlab.record.directory import RunDirectory
from gradlab.record.wandb.file import contents
from gradlab.record.wandb.sink import WandbSink
from tests.record.synthetic import describe, finished, make_row
from tests.record.wandb_server import KEY, Run, WandbServer, isolate

STEPS = range(0, 60, 3)


# W&B leaves the temporary folders of artifacts to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    pytest.mark.usefixtures("tidy"),
]


@pytest.fixture(scope="module")
def one_server(tmp_path_factory):
    """A server that W&B finds by the environment."""
    wandb.teardown()  # it reads the environment once
    with pytest.MonkeyPatch.context() as patch, WandbServer() as server:
        isolate(patch, tmp_path_factory.mktemp("home"))
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", KEY)
        yield server
        wandb.teardown()


@pytest.fixture
def server(one_server):
    one_server.runs.clear()
    one_server.artifacts.clear()
    yield one_server
    one_server.refuse_key = False
    one_server.release()
    one_server.stop()
    one_server.start()


def described(id: str, **changes) -> Description:
    return dataclasses.replace(describe(T=16, steps=60), id=id, **changes)


def record(
    directory: Path,
    description: Description,
    steps=STEPS,
    at: Callable[[int, WandbSink], None] | None = None,
    **settings,
) -> WandbSink:
    settings = {"mode": "online", "code": False, "arrays": False, **settings}
    sink = WandbSink(directory, **settings)
    sink.open(description)
    for step in steps:
        sink.log(make_row(description, step))
        if at is not None:
            at(step, sink)
    sink.close(finished())
    return sink


def sync(sink: WandbSink) -> None:
    """Run the very command that the sink names, as in a new terminal."""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    command = sink.how_to_see()
    assert "wandb sync" in command
    subprocess.run(command, shell=True, check=True, capture_output=True, env=environment, cwd="/")


def sync_here(sink: WandbSink) -> None:
    """The same without a new process, which takes W&B seconds to start."""
    change, folder, both, *command = shlex.split(sink.how_to_see())
    assert (change, both) == ("cd", "&&")
    with contextlib.chdir(folder):
        cli.main(command[command.index("sync") :], standalone_mode=False)


def wait_until(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def steps_of(run: Run) -> list[int]:
    return [row["train_step"] for row in run.history]


def warnings_in(caplog) -> list[str]:
    own = [record for record in caplog.records if record.name.startswith("gradlab")]
    return [record.getMessage() for record in own if record.levelno >= logging.WARNING]


def values(run: Run) -> list[dict]:
    """The rows without W&B's own clock; of media their type and content."""
    rows = []
    for row in run.history:
        row = {key: value for key, value in row.items() if key not in ("_timestamp", "_runtime")}
        for key, value in row.items():
            if isinstance(value, dict):
                row[key] = (value["_type"], value["sha256"], value["size"])
        rows.append(row)
    return rows


def test_online_and_offline_then_sync_arrive_as_the_same_run(server, tmp_path, caplog):
    arrived = []
    settings = {"group": "g", "job_type": "train", "tags": ["a", "b"], "notes": "x", "code": True}
    for mode in ("online", "offline"):
        directory = tmp_path / mode
        description = described("same0000")
        arrays = RunDirectory(directory)
        arrays.open(description)
        sink = WandbSink(directory, mode=mode, **settings)
        sink.open(description)
        for step in STEPS:
            row = make_row(description, step)
            arrays.log(row)
            sink.log(row)
        arrays.close(finished())
        sink.close(finished())
        if mode == "offline":
            sync(sink)
        else:
            assert sink.how_to_see() == f"{server.url}/somebody/gradlab/runs/same0000"
        arrived.append((server.run, list(server.artifacts)))
        server.runs.clear()
        server.artifacts.clear()
    (online, online_artifacts), (offline, offline_artifacts) = arrived

    assert warnings_in(caplog) == []
    assert server.unknown == []
    assert steps_of(online) == list(STEPS)
    assert values(online) == values(offline)
    assert online.gaps == offline.gaps == 0
    assert online.exit_code == offline.exit_code == 0

    def own(config):
        return {key: value for key, value in config.items() if key != "_wandb"}

    assert own(online.config) == own(offline.config)
    assert online.config["model"]["value"] == {"name": "lstm", "hidden": 64}
    charts = [run.config["_wandb"]["value"]["visualize"] for run in (online, offline)]
    assert charts[0] == charts[1]
    assert charts[0].keys() >= {"over_lag/adj_h/layer_0"}

    def figures(summary):
        return {
            k: v for k, v in summary.items() if not k.startswith("_") and not isinstance(v, dict)
        }

    assert figures(online.summary) == figures(offline.summary)
    assert online.summary["status"] == "finished"
    assert online.summary["train/loss"] == 0.01
    media = {name: data for name, data in online.files.items() if name.startswith("media/")}
    assert len(media) >= 7
    assert media == {n: data for n, data in offline.files.items() if n.startswith("media/")}
    for run in (online, offline):
        labels = {key: run.labels[key] for key in ("name", "group", "job_type", "tags", "notes")}
        name = "lstm adding-problem T=16 H=64 seed 0"
        expected = {"name": name, "group": "g", "job_type": "train", "tags": ["a", "b"]}
        assert labels == {**expected, "notes": "x"}
    kinds = [
        sorted((a.type, a.name if a.type != "run_table" else "", tuple(a.files)) for a in artifacts)
        for artifacts in (online_artifacts, offline_artifacts)
    ]
    assert kinds[0] == kinds[1]
    for artifacts in (online_artifacts, offline_artifacts):
        by_type = {artifact.type: artifact for artifact in artifacts}
        assert by_type["run-arrays"].name == "arrays-same0000"
        assert "zarr.json" in by_type["run-arrays"].files
        assert "record/wandb/sink.py" in by_type["code"].files
        assert all(a.committed and len(a.uploaded) == len(set(a.files)) for a in artifacts)
    assert not list((tmp_path / "online").rglob("staging/*"))


def test_a_resumed_run_goes_on_without_gap_or_duplicate(server, tmp_path, caplog):
    record(tmp_path, described("again000"), STEPS[:7])
    first = server.run.history[0]
    record(tmp_path, described("again000", resumed=True), STEPS)
    assert steps_of(server.run) == list(STEPS)
    assert server.run.history[0] is first
    last = server.run.history[-1]
    table = server.run.files[last["vanishing"]["path"]].decode()
    assert '[1,0,"adj_h layer_0",' in table  # from the first step on
    record(tmp_path, described("again000", resumed=True), STEPS)  # nothing to add
    assert steps_of(server.run) == list(STEPS)
    assert warnings_in(caplog) == []


def test_logging_waits_for_no_answer(server, tmp_path):
    server.hold()
    before = server.asked["answered"]
    description = described("quick000")
    sink = WandbSink(tmp_path, mode="online", code=False, arrays=False)
    sink.open(description)
    wait_until(lambda: server.asked["any"] > before)
    for step in range(50):
        sink.log(make_row(description, step))
    assert not server.runs  # nothing was answered so far
    server.release()
    sink.close(finished())
    assert steps_of(server.run) == list(range(50))


@pytest.mark.parametrize("trouble", ["refused", "down", "silent"])
def test_without_a_server_the_run_is_recorded_offline(server, tmp_path, caplog, trouble):
    server.refuse_key = trouble == "refused"
    if trouble == "down":
        server.die()
    elif trouble == "silent":
        server.hold()
    sink = record(tmp_path, described("alone000"), finish_timeout=10.0)
    (warning,) = warnings_in(caplog)
    assert warning.startswith("W&B is not reachable, recording offline")
    assert warning.endswith(sink.how_to_see())
    (path,) = tmp_path.glob("wandb/*run-*/*.wandb")
    assert contents(path) == (len(STEPS), True)
    server.release()
    server.refuse_key = False
    if trouble == "down":
        server.revive()
    server.runs.clear()
    sync_here(sink)
    assert list(server.runs) == ["alone000"]
    assert steps_of(server.run) == list(STEPS)


def test_further_trouble_is_no_further_warning(server, tmp_path, caplog, monkeypatch):
    def fails(*_, **__):
        raise OSError("no space left on device")

    server.refuse_key = True
    monkeypatch.setattr(wandb.Run, "log", fails)
    record(tmp_path, described("twice000"), finish_timeout=20.0)
    (warning,) = warnings_in(caplog)
    assert warning.startswith("W&B is not reachable, recording offline")


@pytest.fixture
def environment(one_server, monkeypatch):
    """Change W&B's environment variables by ``environment(name=value)``."""

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()

    yield change
    monkeypatch.undo()
    wandb.teardown()


def test_nothing_in_the_environment_makes_two_runs_one(server, tmp_path, caplog, environment):
    environment(WANDB_RUN_ID="shared00", WANDB_RESUME="must")
    with ThreadPoolExecutor() as both:  # most of it is waiting for W&B
        ids = ("first000", "second00")
        done = [both.submit(record, tmp_path / id, described(id), STEPS[:3]) for id in ids]
    assert [one.exception() for one in done] == [None, None]
    assert {id: steps_of(run) for id, run in server.runs.items()} == {
        "first000": list(STEPS[:3]),
        "second00": list(STEPS[:3]),
    }
    assert warnings_in(caplog) == []


def test_in_a_sweep_of_wandb_the_rows_go_to_the_agents_run(server, tmp_path, caplog, environment):
    environment(WANDB_RUN_ID="swept000", WANDB_SWEEP_ID="sweep000")
    server.runs["swept000"] = Run("swept000", project="gradlab")  # the agent has made it
    record(tmp_path, described("own00000"), STEPS[:3])
    assert list(server.runs) == ["swept000"]
    assert steps_of(server.run) == list(STEPS[:3])
    assert server.run.labels["sweep"] == "sweep000"
    assert warnings_in(caplog) == []


# W&B sends rows every 15 seconds.
@pytest.mark.parametrize("arrived", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_server_lost_in_mid_run_costs_no_row(server, tmp_path, caplog, arrived):
    def lose(step: int, _: WandbSink) -> None:
        if step == STEPS[6]:
            wait_until(lambda: "lost0000" in server.runs, 20.0)
            wait_until(lambda: len(server.run.history) >= arrived, 40.0)
            server.die()

    sink = record(tmp_path, described("lost0000"), at=lose, finish_timeout=6.0)
    (warning,) = warnings_in(caplog)
    assert "the local copy has all rows" in warning
    assert warning.endswith(sink.how_to_see())
    (path,) = tmp_path.glob("wandb/run-*/*.wandb")
    assert contents(path) == (len(STEPS), True)
    server.revive()
    sync_here(sink)
    whole = server.runs["lost0000-whole"]
    assert steps_of(whole) == list(STEPS)
    assert whole.exit_code == 0
    assert len(server.runs["lost0000"].history) >= arrived


def test_the_server_of_the_tests_leaves_nothing_behind():
    gc.collect()
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    server = WandbServer()
    for _ in range(3):
        server.start()
        urlopen(server.url).close()
        idle = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        server.stop()
        idle.close()
    with pytest.raises(OSError, match="refused"):
        urlopen(server.url)
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert len(os.listdir("/proc/self/fd")) == files
