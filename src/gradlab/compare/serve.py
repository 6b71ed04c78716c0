"""The page live: a small server on this machine that tells what runs have written since."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gradlab.compare.page import as_json, contents, page
from gradlab.compare.page.contents import Arrays, arrays_of
from gradlab.compare.page.packed import Thinning
from gradlab.compare.recorded import Recorded, recorded
from gradlab.compare.runs import Entry, runs_in
from gradlab.errors import BadInput, first_line
from gradlab.record.directory import ARRAYS, INFO

MOST_CHOSEN = 24
"""Most runs that are shown unasked."""
LOOK_EVERY = 0.7
"""Seconds between two looks at the folders, at least."""
SHARE = 0.25
"""Most of the time that is spent on looking at folders."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")

_log = logging.getLogger(__name__)


class Folders:
    """The runs in some folders, as they stand.

    What has not changed since the last time is not read again. Only runs that were found in the
    folders can be asked for, by name.

    Args:
      folders: runs, sweeps, or folders with any mix of them; they may still be empty.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = list(folders)
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._looked, self._took = -float("inf"), 0.0
        self._recorded: dict[Path, tuple[str, Recorded]] = {}
        self._arrays: dict[Path, tuple[tuple[str, Thinning], Arrays]] = {}

    def news(self, names: Sequence[str]) -> dict[str, Any]:
        """What there is, and a stamp that changes with what is shown of the runs asked for.

        Raises:
          KeyError: if a name is not that of a run in the folders.
        """
        with self._lock:
            entries = self._look()
            chosen = self._chosen(entries, names)
            shown = {run.path for run in chosen}
            listed = [
                {
                    "id": run.name,
                    "words": _words(run),
                    "status": run.status,
                    "chosen": run.path in shown,
                }
                for run in sorted(entries, key=_began, reverse=True)
            ]
            return {"stamp": _stamps(chosen), "runs": listed}

    def data(self, names: Sequence[str]) -> dict[str, Any]:
        """The contents of the page about the runs asked for; without names the newest.

        Raises:
          KeyError: as :meth:`news`.
        """
        with self._lock:
            chosen = self._chosen(self._look(), names)
            found = contents([self._read(run) for run in chosen], self._packed)
            return found | {"stamp": _stamps(chosen)}

    def _look(self) -> list[Entry]:
        """The runs there are; the folders are looked through only so often."""
        now = time.monotonic()
        if now - self._looked > max(LOOK_EVERY, self._took / SHARE):
            there = [folder for folder in self.folders if folder.is_dir()]
            self._entries = runs_in(*there)
            self._looked = time.monotonic()
            self._took = self._looked - now
        return self._entries

    def _chosen(self, entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
        if names:
            known = {run.name: run for run in entries}
            return [known[name] for name in names]
        if len(entries) <= MOST_CHOSEN:
            return list(entries)
        newest = max(entries, key=_began)
        family = [run for run in entries if run.path.parent == newest.path.parent]
        wanted = family if len(family) > 1 else sorted(entries, key=_began)
        kept = {run.path for run in sorted(wanted, key=_began)[-MOST_CHOSEN:]}
        return [run for run in entries if run.path in kept]

    def _read(self, entry: Entry) -> Recorded:
        path, stamp = entry.path, _stamp(entry)
        if path not in self._recorded or self._recorded[path][0] != stamp:
            self._recorded[path] = (stamp, recorded([entry])[0])
        return self._recorded[path][1]

    def _packed(self, run: Recorded, limits: Thinning) -> Arrays:
        path, key = run.entry.path, (_stamp(run.entry), limits)
        if path not in self._arrays or self._arrays[path][0] != key:
            self._arrays[path] = (key, arrays_of(run, limits))
        return self._arrays[path][1]


def serve(folders: Sequence[Path], host: str, port: int) -> int:
    """Serve the page until Ctrl-C; prints its address. Gives the exit code.

    Args:
      folders: whose runs are shown; nothing else can be asked for.
      host: the address to listen at. Any other than this machine's own lets everybody in the
        network look at the runs, and a warning says so.
      port: to listen at; 0 for a free one.

    Raises:
      BadInput: if a folder is not there, or the address cannot be listened at.
    """
    for folder in folders:
        if not folder.is_dir():
            hint = "outputs, or a folder under multirun/"
            raise BadInput("DIR", str(folder), "a folder that is there", hint)
    try:
        server = Server(Folders(folders), host, port)
    except (OSError, OverflowError) as error:
        given = f"{host}:{port}"
        allowed = f"an address and a port that are free here ({error})"
        raise BadInput("--host, --port", given, allowed, "--port 0 takes a free one") from None
    if not server.is_local:
        _log.warning(
            "%s can be reached from other machines; everybody there can read the runs", host
        )
    print(f"live: {server.url}  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


class Server(ThreadingHTTPServer):
    """Answers ``/`` with the page, ``/data`` with its contents, ``/news`` with what has changed."""

    daemon_threads = True

    def __init__(self, folders: Folders, host: str, port: int):
        self.folders = folders
        if ":" in host:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    @cached_property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        shown = f"[{host}]" if ":" in str(host) else host
        return f"http://{shown}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in mid-answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "gradlab", ""

    def do_GET(self) -> None:
        """Answer a request; there is nothing but the three addresses, and no file is ever read."""
        if self._is_asked_for_by_name():
            self._answer(*self._found())
        else:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "not asked for as localhost")

    def _found(self) -> tuple[HTTPStatus, str, str]:
        """Status, kind and text of the answer."""
        address = urlsplit(self.path)
        names = parse_qs(address.query).get("run", [])
        folders = self.server.folders
        try:
            if address.path == "/":
                return HTTPStatus.OK, "text/html", page(folders.data(names), live=True)
            if address.path in ("/data", "/news"):
                found = folders.data(names) if address.path == "/data" else folders.news(names)
                return HTTPStatus.OK, "application/json", as_json(found)
        except KeyError as error:
            words = f"no run of this name in the folders that are served: {error.args[0]}"
            return HTTPStatus.NOT_FOUND, "text/plain", words
        except Exception as error:  # noqa: BLE001  (a run that changes while it is read)
            words = f"{type(error).__name__}: {error}"
            _log.warning("cannot answer %s: %s", address.path, first_line(words))
            return HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", words
        return HTTPStatus.NOT_FOUND, "text/plain", "nothing here"

    def _is_asked_for_by_name(self) -> bool:
        """Whether a page of somebody else, whose name leads here, is kept out."""
        host = self.headers.get("Host", "")
        return not self.server.is_local or host.rpartition(":")[0] in LOCAL or host in LOCAL

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not news."""


def _words(run: Entry) -> str:
    words = [str(run.facts[key]) for key in ("model", "task") if run.facts.get(key)]
    return " ".join(words + ([f"T={run.facts['T']}"] if run.facts.get("T") else []))


def _began(entry: Entry) -> str:
    return str(entry.info.get("started") or "")


def _stamps(runs: Sequence[Entry]) -> str:
    return json.dumps([_stamp(run) for run in runs])


def _stamp(entry: Entry) -> str:
    """Changes whenever anything of a run does that the page shows."""
    times = [_changed(entry.path / INFO), _changed(entry.path / ARRAYS / "zarr.json")]
    return f"{entry.path} {entry.status} {times}"


def _changed(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
