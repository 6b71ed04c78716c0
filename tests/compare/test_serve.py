"""The server of the live page: what it tells, and what it refuses."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlencode

import pytest

from gradlab.compare import serve as module
from gradlab.compare.page import contents
from gradlab.compare.recorded import recorded
from gradlab.compare.runs import runs_in
from gradlab.compare.serve import Folders, Server, serve
from gradlab.errors import BadInput
from tests.compare.recordings import make_measured_row, record_run, record_sweep


@contextlib.contextmanager
def serving(*folders, host="127.0.0.1", names=()):
    server = Server(Folders(folders), host, 0, names)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


@pytest.fixture
def sweep(tmp_path):
    return record_sweep(tmp_path / "sweep", models=("rnn", "lstm"), seeds=(0, 1))


def test_the_data_are_those_of_the_page_and_of_the_runs_that_were_asked_for(sweep):
    with serving(sweep) as server:
        status, text = ask(server, "/data")
        assert status == 200
        expected = contents(recorded(runs_in(sweep)))
        assert json.loads(text)["runs"] == json.loads(json.dumps(expected["runs"]))
        status, text = ask(server, "/data?" + urlencode([("run", "3"), ("run", "0")]))
        assert [run["name"] for run in json.loads(text)["runs"]] == ["3", "0"]
        status, text = ask(server, "/?run=1")
        assert status == 200
        assert text.startswith("<!doctype html>")


def test_news_change_when_rows_are_written_and_when_a_run_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(module, "SHARE", float("inf"))
    directory = record_run(tmp_path / "runs" / "a", keep_open=True, rows=3)
    directory.flush()
    folders = Folders([tmp_path / "runs"])
    first = folders.news([])
    assert folders.news([]) == first
    assert first["runs"][0]["status"] == "running"
    assert rows_of(folders) == [0, 10, 20]
    directory.log(make_measured_row(directory_description(), 3, 10, "lstm", 0, True))
    directory.flush()
    second = folders.news([])
    assert second["stamp"] != first["stamp"]
    assert rows_of(folders) == [0, 10, 20, 30]
    directory.close(outcome())
    third = folders.news([])
    assert third["stamp"] != second["stamp"]
    assert third["runs"][0]["status"] == "finished"
    record_run(tmp_path / "runs" / "b")
    assert {run["id"] for run in folders.news([])["runs"]} == {"a", "b"}


def rows_of(folders):
    from tests.compare.test_page import variable

    (run,) = folders.data([])["runs"]
    return variable(run, "train/loss")["steps"].tolist()


def directory_description():
    """Of the run that :func:`record_run` describes, for one more row."""
    from dataclasses import replace

    from tests.record.synthetic import describe

    plain = describe(T=32, steps=30)
    names = {
        *plain.variables,
        "lyapunov_exponent",
        "long_jacobian_log10",
        "pascanu_bound_log10",
    }
    return replace(plain, variables=dict.fromkeys(names))


def outcome():
    from gradlab.record.base import Outcome

    return Outcome("finished", "", {"train/loss": 0.1}, {"steps_per_second": 1.0})


def test_what_has_not_changed_is_not_read_again(sweep, monkeypatch):
    folders = Folders([sweep])
    before = folders.data([])
    monkeypatch.setattr(module, "arrays_of", None)
    monkeypatch.setattr(module, "recorded", None)
    assert folders.data([])["runs"] == before["runs"]


def test_a_folder_of_many_runs_shows_the_newest_sweep_first(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_CHOSEN", 3)
    record_sweep(tmp_path / "old", models=("rnn",), seeds=(0, 1))
    record_sweep(tmp_path / "new", models=("lstm",), seeds=(0, 1))
    for number, folder in enumerate(sorted(tmp_path.glob("*/*/run.json"))):
        info = json.loads(folder.read_text())
        info["started"] = f"2026-01-0{1 if folder.parts[-3] == 'old' else 2}T00:00:0{number}"
        folder.write_text(json.dumps(info))
    folders = Folders([tmp_path])
    listed = folders.news([])["runs"]
    assert [run["id"] for run in listed if run["chosen"]] == ["new/1", "new/0"]
    assert [run["id"] for run in listed] == ["new/1", "new/0", "old/1", "old/0"]
    assert len(folders.data(["old/0", "new/1"])["runs"]) == 2


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../../etc/passwd", 404),
        ("/sweep/../../secret", 404),
        ("/%2e%2e/secret", 404),
        ("/secret", 404),
        ("/0/run.json", 404),
        ("/data?run=../secret", 404),
        ("/data?run=%2e%2e%2fsecret", 404),
        ("/data?run=/etc", 404),
        ("/?run=nothing", 404),
        ("/news?run=0%00", 404),
    ],
)
def test_nothing_but_the_runs_of_the_folders_can_be_had(tmp_path, sweep, path, status):
    secret = record_run(tmp_path / "secret")
    (secret / "passwd").write_text("root")
    with serving(sweep) as server:
        found, text = ask(server, path)
    assert found == status
    assert "root" not in text
    assert "finished" not in text


def test_only_reading_and_only_by_the_name_of_this_machine(sweep):
    with serving(sweep) as server:
        assert ask(server, "/news", Host="evil.example")[0] == 403
        assert ask(server, "/news", Host="localhost:1")[0] == 200
        assert ask(server, "/news", method="POST")[0] == 501
        assert server.is_local
        assert server.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_names_that_lead_here_by_a_trick_are_refused_wherever_it_listens(sweep, host):
    own = socket.gethostname()
    local = {"localhost": 200, "LOCALHOST.:8": 200, "127.0.0.1:80": 200, "[::1]:80": 200}
    elsewhere = {own: 200, f"{own}.local:8080": 200, "192.0.2.1": 200, "[2001:db8::1]:5": 200}
    refused = dict.fromkeys(["evil.example", "localhost.evil.example:80", "a b", "", "1.2.3"], 403)
    asked = local | refused | {"lab.example:443": 200}
    asked |= elsewhere if host == "0.0.0.0" else dict.fromkeys(elsewhere, 403)
    with serving(sweep, host=host, names=["lab.example"]) as server:
        assert {name: ask(server, "/news", Host=name)[0] for name in asked} == asked
        assert "--allow-host NAME" in ask(server, "/", Host="evil.example")[1]


def test_whoever_connects_and_asks_nothing_is_let_go_and_bars_nobody(sweep, monkeypatch):
    monkeypatch.setattr(module, "ASKING", 0.3)
    monkeypatch.setattr(module, "MOST_CONNECTIONS", 4)
    with serving(sweep) as server:
        address = server.server_address[:2]
        before = threading.active_count()
        idle = [socket.create_connection(address, timeout=10) for _ in range(12)]
        time.sleep(0.1)
        assert threading.active_count() <= before + 4
        idle[0].sendall(b"GET / HT")  # a letter at a time
        assert all(one.recv(1) == b"" for one in idle[4:])
        assert all(one.recv(1) == b"" for one in idle[:4])
        assert ask(server, "/news")[0] == 200
        for one in idle:
            one.close()
        until = time.monotonic() + 10
        while server._open and time.monotonic() < until:  # the last thread is about to end
            time.sleep(0.01)
        assert not server._open


def test_what_takes_long_to_make_is_no_idle_connection(sweep, monkeypatch):
    monkeypatch.setattr(module, "ASKING", 0.1)
    news = Folders.news
    monkeypatch.setattr(Folders, "news", lambda *given: (time.sleep(0.5), news(*given))[1])
    with serving(sweep) as server:
        assert ask(server, "/news")[0] == 200


def test_of_many_runs_only_what_changed_is_read_and_the_list_is_sent_once(sweep, monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(module, "SHARE", float("inf"))
    folders = Folders([sweep])
    first = folders.news([])
    read = []
    monkeypatch.setattr("gradlab.compare.runs.glance", lambda path: read.append(path.name))
    again = folders.news([], first["listing"])
    assert (read, again["runs"], again["stamp"]) == ([], None, first["stamp"])
    monkeypatch.undo()
    info = json.loads((sweep / "1" / "run.json").read_text())
    (sweep / "1" / "run.json").write_text(json.dumps(info | {"status": "crashed"}))
    folders._looked = -1e9
    changed = folders.news([], first["listing"])
    assert {run["id"]: run["status"] for run in changed["runs"]}["1"] == "crashed"
    assert changed["stamp"] != first["stamp"]


def test_of_many_that_are_asked_for_the_curves_of_some_are_shown(sweep):
    data = Folders([sweep], most=2).data(["0", "1", "2", "3"])
    assert [run["unread"] for run in data["runs"]].count(True) == 2


def test_folders_outside_and_links_are_not_followed(tmp_path, sweep):
    secret = record_run(tmp_path / "secret")
    (sweep / "link").symlink_to(secret, target_is_directory=True)
    assert {run["id"] for run in Folders([sweep]).news([])["runs"]} == {"0", "1", "2", "3"}


def test_an_empty_folder_waits_for_its_first_run(tmp_path):
    folders = Folders([tmp_path])
    assert folders.news([])["runs"] == []
    assert folders.data([])["runs"] == []


def test_a_folder_that_is_not_there_and_a_port_that_is_taken_are_refused(tmp_path):
    with pytest.raises(BadInput, match="a folder that is there"):
        serve([tmp_path / "no"], "127.0.0.1", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BadInput, match="--port 0"):
            serve([tmp_path], "127.0.0.1", taken.getsockname()[1])
    for host, port in [("no.such.host.invalid", 0), ("127.0.0.1", 70000)]:
        with pytest.raises(BadInput, match="--host"):
            serve([tmp_path], host, port)


def test_to_be_reached_from_elsewhere_it_must_be_told_and_it_warns(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(Server, "serve_forever", lambda *_, **__: None)
    with caplog.at_level(logging.WARNING):
        serve([tmp_path], "127.0.0.1", 0)
        assert not caplog.records
        serve([tmp_path], "0.0.0.0", 0)
    assert "from other machines" in caplog.text


def test_ctrl_c_ends_it_quietly(sweep):
    process = subprocess.Popen(
        [sys.executable, "-m", "gradlab.compare", str(sweep), "--serve"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    line = process.stdout.readline()
    assert line.startswith("live: http://127.0.0.1:")
    time.sleep(0.2)
    process.send_signal(2)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert said == ""
