"""A W&B server on the loopback interface, for tests: what arrives is kept as plain data.

It answers what W&B's client asks of a server during a run, a ``wandb sync``, a ``wandb sweep`` and
a ``wandb agent``, and when a report or a workspace is saved: GraphQL, the stream of history rows,
uploads of files and of artifacts. It checks no rights and keeps all of it in memory.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import math
import os
import random
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml


def isolate(patch: pytest.MonkeyPatch, home: Path) -> None:
    """No settings, account or server of whoever runs the tests; ``home`` as the home folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "HOME"):
        patch.setenv(name, str(home))
    patch.setenv("WANDB_ERROR_REPORTING", "false")


ENTITY = "somebody"
KEY = "0123456789abcdef0123456789abcdef01234567"
"""A key of the form that W&B's client accepts."""
FILE_STREAM = re.compile(r"/files/(?P<entity>[^/]+)/(?P<project>[^/]+)/(?P<run>[^/]+)/file_stream")
UPLOAD = re.compile(r"/upload/(?P<kind>run|artifact|manifest)/(?P<owner>[^/]+)/(?P<name>.+)")
_LABELS = {
    "displayName": "name",
    "groupName": "group",
    "jobType": "job_type",
    "tags": "tags",
    "notes": "notes",
    "commit": "commit",
    "repo": "repo",
    "host": "host",
    "program": "program",
    "sweep": "sweep",
}


@dataclass
class Run:
    """What arrived of one run.

    Attributes:
      labels: name, group, job_type, tags, notes, commit, repo, ..., as far as they were given.
      config: as sent, each value under ``value``.
      history: rows in order; one that came twice at the same place is there once.
      summary: the last one sent.
      exit_code: None until the run has ended.
      files: uploaded files by name.
      gaps: how often rows were skipped.
    """

    id: str
    entity: str = ENTITY
    project: str = ""
    labels: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    gaps: int = 0
    others: dict[str, int] = field(default_factory=dict)


@dataclass
class Artifact:
    """What arrived of one artifact: ``files`` by name, from its manifest, with their sizes."""

    id: str
    type: str
    name: str
    run: str | None
    client_id: str | None
    metadata: Any
    description: str | None
    manifest: dict[str, Any] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False

    @property
    def files(self) -> dict[str, int]:
        return {name: one["size"] for name, one in self.manifest.get("contents", {}).items()}


@dataclass
class View:
    """What arrived of a report or of a workspace's view.

    Attributes:
      id: as the server names it.
      type: ``runs`` for a report, ``project-view`` for a workspace.
      name: of its address.
      title: that is shown.
      spec: all that it shows, read.
    """

    id: str
    type: str
    entity: str
    project: str
    name: str
    title: str
    description: str
    spec: dict[str, Any]


class Sweep:
    """What ``wandb sweep`` sent, and the settings that its agents are given, by run."""

    def __init__(self, id: str, config: dict[str, Any]):
        self.id, self.config = id, config
        self.settings = _grid(config) if config["method"] == "grid" else _at_random(config)
        self.given: dict[str, dict[str, Any]] = {}

    def next(self) -> dict[str, Any]:
        """The next command for an agent that is free."""
        setting = next(self.settings, None)
        if setting is None:
            return {"type": "exit"}
        id = f"{self.id}run{len(self.given)}"
        self.given[id] = setting
        args = {name: {"value": value} for name, value in setting.items()}
        return {"type": "run", "run_id": id, "program": self.config["program"], "args": args}


def _grid(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    parameters = config["parameters"]
    for values in itertools.product(*(one["values"] for one in parameters.values())):
        yield dict(zip(parameters, values, strict=True))


def _at_random(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    draw = random.Random(0)
    while True:
        yield {name: _value(one, draw) for name, one in config["parameters"].items()}


def _value(one: Mapping[str, Any], draw: random.Random) -> Any:
    if "values" in one:
        return draw.choice(one["values"])
    low, high = one["min"], one["max"]
    match one["distribution"]:
        case "int_uniform":
            return draw.randint(low, high)
        case "uniform":
            return draw.uniform(low, high)
        case "log_uniform_values":
            return math.exp(draw.uniform(math.log(low), math.log(high)))
    raise ValueError(one)


class WandbServer:
    """Start, stop, and what arrived.

    Attributes:
      runs: by the run's id.
      sweeps: by the sweep's id.
      artifacts: in the order in which they were made.
      views: reports and workspaces, likewise.
      projects: that there are, by entity.
      asked: how often each kind of request came.
      unknown: operations and paths that it could not answer; a test can check that there is none.
      delay: seconds by which every answer is late.
      refuse_key: whether every request is refused with 401.
      forbidden: kinds of requests that are refused by name, as for want of rights.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts: list[Artifact] = []
        self.views: list[View] = []
        self.projects: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.unknown: list[str] = []
        self.delay, self.refuse_key = 0.0, False
        self.forbidden: set[str] = set()
        self.lock = threading.RLock()
        self.open_gate = threading.Event()
        self.open_gate.set()
        self._stopping = threading.Event()
        self._http: _Http | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> WandbServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        self._stopping.clear()
        self._http = _Http(("127.0.0.1", self._port), _Handler)
        self._http.wandb = self
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    revive = start

    def stop(self) -> None:
        """Refuse connections from now on and cut those there are; no thread, no socket is left."""
        if self._http is None:
            return
        self._stopping.set()
        was_open = self.open_gate.is_set()
        self.open_gate.set()
        self._http.shutdown()
        self._http.cut()
        self._http.server_close()  # waits for the threads of the connections
        self._thread.join()
        self._http = None
        if not was_open:
            self.open_gate.clear()

    die = stop

    def hold(self) -> None:
        """Answer nothing until :meth:`release`."""
        self.open_gate.clear()

    def release(self) -> None:
        self.open_gate.set()

    def wait(self) -> None:
        """Until an answer may be given."""
        self._stopping.wait(self.delay)
        self.open_gate.wait()
        if self._stopping.is_set():
            raise ConnectionAbortedError

    @property
    def run(self) -> Run:
        """The only run."""
        (run,) = self.runs.values()
        return run

    # What is asked by GraphQL; the names are those of the operations.

    def answer(self, operation: str, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        name = re.sub("([a-z])([A-Z])", r"\1_\2", operation).lower()
        method = getattr(self, f"_on_{name}", None)
        return None if method is None else method(asked)

    def _on_upsert_bucket(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        name = asked.get("name") or f"unnamed{len(self.runs)}"
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(name))
        run.entity = asked.get("entity") or run.entity
        run.project = asked.get("project") or run.project or "uncategorized"
        for theirs, ours in _LABELS.items():
            if asked.get(theirs) is not None:
                run.labels[ours] = asked[theirs]
        if asked.get("config"):
            run.config = json.loads(asked["config"])
        if asked.get("summaryMetrics"):
            run.summary = json.loads(asked["summaryMetrics"])
        return {"upsertBucket": {"bucket": _bucket(run), "inserted": new}}

    def _on_run_resume_status(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        project = _project(ENTITY, asked.get("project") or "uncategorized")
        return {"model": {**project, "bucket": None if run is None else _resumed(run)}}

    def _on_viewer(self, _: Mapping[str, Any]) -> dict[str, Any]:
        viewer = {"id": "viewer", "entity": ENTITY, "username": ENTITY, "name": ENTITY}
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {**viewer, "email": "", "flags": "{}", "teams": teams, "admin": False}}

    def _on_get_default_entity(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "viewer", "entity": ENTITY}}

    def _on_get_projects(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        nodes = [_listed(asked["entity"], name) for name in self.projects.get(asked["entity"], [])]
        end = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": end, "edges": [{"node": node} for node in nodes]}}

    def _on_create_project(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        given = asked["input"]
        entity = given.get("entityName") or given["entity_name"]
        self.projects.setdefault(entity, []).append(given["name"])
        made = {"id": given["name"], "name": given["name"], "entityName": entity}
        return {"result": {"project": made, "model": made, "inserted": True}}

    def _on_upsert_view(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        view = View(
            base64.b64encode(f"View:{len(self.views)}".encode()).decode(),
            asked["type"],
            asked["entityName"],
            asked["projectName"],
            asked["name"],
            asked["displayName"],
            asked["description"],
            json.loads(asked["spec"]),
        )
        self.views.append(view)
        return {"upsertView": {"view": _shown(view), "inserted": True}}

    _on_upsert_view2 = _on_upsert_view

    def _on_specific_report(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        found = [view for view in self.views if view.id == asked["reportId"]]
        return {"view": _shown(found[0]) if found else None}

    def _on_view(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        found = [view for view in self.views if view.name == asked["viewName"]]
        return {"project": {"allViews": {"edges": [{"node": _shown(view)} for view in found]}}}

    def view(self, type: str) -> View:
        """The only one of this type."""
        (found,) = (view for view in self.views if view.type == type)
        return found

    def _on_server_features_query(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "99.0.0"}}}

    def _on_run_stopped_status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"stopped": False}}}

    def _on_org_feature_flags(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"organization": {"featureFlags": []}}

    def _on_create_run_files(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/run/{asked['run']}/{name}"}
            for name in asked["files"]
        ]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def _on_artifact_type(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}  # none of this name so far

    def _on_create_artifact(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        given = asked["input"]
        collection = given.get("artifactCollectionName")
        if collection is None:
            collection = (given.get("artifactCollectionNames") or ["unnamed"])[0]
        artifact = Artifact(
            f"artifact-{len(self.artifacts)}",
            given["artifactTypeName"],
            collection,
            given.get("runName"),
            given.get("clientID"),
            given.get("metadata"),
            given.get("description"),
        )
        self.artifacts.append(artifact)
        node = {"id": artifact.id, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": node}}

    def _on_create_artifact_manifest(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": self._manifest(asked["artifactID"])}

    def _on_update_artifact_manifest(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": self._manifest(asked["artifactManifestID"])}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        url = f"{self.url}/upload/manifest/{artifact}/manifest.json"
        file = {"id": artifact, "uploadUrl": url, "uploadHeaders": []}
        return {"artifactManifest": {"id": artifact, "file": file}}

    def _on_create_artifact_files(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        nodes = []
        for one in asked["input"]["artifactFiles"]:
            url = f"{self.url}/upload/artifact/{one['artifactID']}/{one['name']}"
            node = {"storagePath": one["name"], "uploadUrl": url, "uploadHeaders": []}
            node |= {"uploadMultipartUrls": None, "artifact": {"id": one["artifactID"]}}
            nodes.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _on_commit_artifact(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        artifact = self.artifact(asked["artifactID"])
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": "digest"}}}

    def _on_client_idmapping(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        of = {artifact.client_id: artifact.id for artifact in self.artifacts}
        return {"clientIDMapping": {"serverID": of.get(asked["clientID"])}}

    def _on_upsert_sweep(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        sweep = Sweep(f"sweep{len(self.sweeps)}", yaml.safe_load(asked["config"]))
        self.sweeps[sweep.id] = sweep
        project = _project(ENTITY, asked.get("projectName") or "uncategorized")
        found = {"sweep": {"name": sweep.id, "project": project}, "configValidationWarnings": []}
        return {"upsertSweep": found}

    def _on_sweep_with_runs(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[asked["sweep"]]
        config = yaml.safe_dump(sweep.config)
        return {"project": {"sweep": {"id": sweep.id, "config": config, "runs": {"edges": []}}}}

    def _on_create_agent(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": f"agent of {asked['sweep']}"}}}

    def _on_heartbeat(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[asked["id"].removeprefix("agent of ")]
        busy = json.loads(asked["runState"])
        commands = json.dumps([] if busy else [sweep.next()])
        return {"agentHeartbeat": {"agent": {"id": asked["id"]}, "commands": commands}}

    def artifact(self, name: str) -> Artifact:
        """The artifact of this id, name or type."""
        (found,) = (a for a in self.artifacts if name in (a.id, a.name, a.type))
        return found

    # The stream of rows, and uploads.

    def stream(self, run: Run, body: Mapping[str, Any]) -> dict[str, Any]:
        for name, part in (body.get("files") or {}).items():
            lines = part["content"]
            if name == "wandb-summary.json":
                run.summary = json.loads(lines[-1])
            elif name == "wandb-history.jsonl":
                start = part["offset"]
                run.gaps += start > len(run.history)
                run.history[start : start + len(lines)] = map(json.loads, lines)
            else:
                run.others[name] = run.others.get(name, 0) + len(lines)
        if body.get("complete"):
            run.exit_code = body.get("exitcode")
        return {"exitcode": None, "limits": {}, "stopped": False}

    def upload(self, kind: str, owner: str, name: str, body: bytes) -> None:
        if kind == "run":
            self.runs[owner].files[name] = body
        elif kind == "artifact":
            self.artifact(owner).uploaded[name] = body
        else:
            self.artifact(owner).manifest = json.loads(body)


class _Http(ThreadingHTTPServer):
    """Knows its connections, so that they can be cut; closing it joins their threads."""

    daemon_threads = False
    block_on_close = True
    wandb: WandbServer

    def __init__(self, *args: Any):
        self.connections: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was cut is no error; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def cut(self) -> None:
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other side was first


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests look at what arrived."""

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def do_PUT(self) -> None:
        self._respond()

    def _respond(self) -> None:
        wandb, body = self.server.wandb, self._body()
        with wandb.lock:
            wandb.asked["any"] += 1
        wandb.wait()
        if wandb.refuse_key:
            return self._send({"errors": [{"message": "invalid API key"}]}, 401)
        with wandb.lock:
            answer = self._dispatch(wandb, body)
        return self._send(answer)

    def _dispatch(self, wandb: WandbServer, body: bytes) -> Any:
        path = unquote(self.path)
        if path == "/graphql":
            return self._graphql(wandb, json.loads(body))
        if found := FILE_STREAM.fullmatch(path):
            wandb.asked["stream"] += 1
            return wandb.stream(wandb.runs[found["run"]], json.loads(body))
        if found := UPLOAD.fullmatch(path):
            wandb.upload(found["kind"], found["owner"], found["name"], body)
            return {}
        if path not in ("/", "/sdk/otel/v1/metrics"):  # is it there; W&B about itself
            wandb.unknown.append(path)
        return {}

    def _graphql(self, wandb: WandbServer, asked: Mapping[str, Any]) -> Any:
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", asked["query"])
        operation = asked.get("operationName") or (found[1] if found else asked["query"])
        wandb.asked[operation] += 1
        if operation in wandb.forbidden:
            return {"data": None, "errors": [{"message": "permission denied"}]}
        data = wandb.answer(operation, asked.get("variables") or {})
        if data is None:
            wandb.unknown.append(operation)
            return {"data": None, "errors": [{"message": f"not known here: {operation}"}]}
        return {"data": data}

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        chunk = self.rfile.read(size)
        self.rfile.readline()
        return chunk

    def _send(self, answer: Any, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _project(entity: str, project: str) -> dict[str, Any]:
    return {"id": project, "name": project, "entity": {"id": entity, "name": entity}}


def _shown(view: View) -> dict[str, Any]:
    node = {"id": view.id, "type": view.type, "name": view.name, "displayName": view.title}
    node |= {"description": view.description, "spec": json.dumps(view.spec), "updatedAt": None}
    project = {"id": view.project, "name": view.project, "entityName": view.entity}
    return {**node, "createdAt": None, "project": project}


def _listed(entity: str, project: str) -> dict[str, Any]:
    node = {"__typename": "Project", "id": project, "name": project, "entityName": entity}
    return {**node, "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}


def _bucket(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.id,
        "displayName": run.labels.get("name") or run.id,
        "description": None,
        "config": json.dumps(run.config),
        "sweepName": run.labels.get("sweep"),
        "historyLineCount": len(run.history),
        "project": _project(run.entity, run.project),
    }


def _resumed(run: Run) -> dict[str, Any]:
    return {
        **_bucket(run),
        "summaryMetrics": json.dumps(run.summary),
        "logLineCount": run.others.get("output.log", 0),
        "eventsLineCount": run.others.get("wandb-events.jsonl", 0),
        "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
        "eventsTail": "[]",
        "tags": run.labels.get("tags", []),
        "notes": run.labels.get("notes", ""),
        "wandbConfig": json.dumps({"t": 1}),
    }
