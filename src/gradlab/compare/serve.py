"""The page live: a small server on this machine that tells what runs have written since."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import logging
import os
import re
import socket
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

from gradlab.compare import MOST_ARRAYS
from gradlab.compare.chosen import chosen
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
MOST_CONNECTIONS = 64
"""At once; each has a thread of its own. More are closed unheard."""
ASKING = 10.0
"""Seconds in which a request must have arrived."""
ANSWERING = 120.0
"""Seconds in which an answer must have been taken."""
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::\d*)?")

_log = logging.getLogger(__name__)


class Folders:
    """The runs in some folders, as they stand.

    What has not changed since the last time is not read again. Only runs that were found in the
    folders can be asked for, by name.

    Args:
      folders: runs, sweeps, or folders with any mix of them; they may still be empty.
      most: runs whose arrays are shown at once.
    """

    def __init__(self, folders: Sequence[Path], most: int = MOST_ARRAYS):
        self.folders, self.most = list(folders), most
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._looked, self._took = -float("inf"), 0.0
        self._known: dict[Path, tuple[Any, Entry]] = {}
        self._listed: tuple[Any, list[dict[str, Any]], str] = (None, [], "")
        self._recorded: dict[Path, tuple[str, Recorded]] = {}
        self._arrays: dict[Path, tuple[tuple[str, Thinning], Arrays]] = {}

    def news(self, names: Sequence[str], listing: str = "") -> dict[str, Any]:
        """What there is, and a stamp that changes with what is shown of the runs asked for.

        The list of ``runs`` has a stamp of its own, ``listing``; it is None for one who has it.

        Raises:
          KeyError: if a name is not that of a run in the folders.
        """
        with self._lock:
            entries = self._look()
            shown = self._chosen(entries, names)
            listed, stamp = self._list(entries, shown, names)
            runs = None if stamp == listing else listed
            return {"stamp": _stamps(shown), "listing": stamp, "runs": runs}

    def data(self, names: Sequence[str]) -> dict[str, Any]:
        """The contents of the page about the runs asked for; without names the newest.

        Raises:
          KeyError: as :meth:`news`.
        """
        with self._lock:
            shown = self._chosen(self._look(), names)
            read = chosen(shown, self.most)
            found = [
                self._read(run)
                if not run.info or index in read
                else Recorded(run, None, unread=True)
                for index, run in enumerate(shown)
            ]
            return contents(found, self._packed) | {"stamp": _stamps(shown)}

    def _list(
        self, entries: Sequence[Entry], shown: Sequence[Entry], names: Sequence[str]
    ) -> tuple[list[dict[str, Any]], str]:
        """All runs, newest first, and a stamp; made anew after each look at the folders."""
        if self._listed[0] != (made_of := (self._looked, *names)):
            paths = {run.path for run in shown}
            listed = [
                {
                    "id": run.name,
                    "words": _words(run),
                    "status": run.status,
                    "chosen": run.path in paths,
                }
                for run in sorted(entries, key=_began, reverse=True)
            ]
            stamp = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
            self._listed = (made_of, listed, stamp)
        return self._listed[1:]

    def _look(self) -> list[Entry]:
        """The runs there are; the folders are looked through only so often."""
        now = time.monotonic()
        if now - self._looked > max(LOOK_EVERY, self._took / SHARE):
            there = [folder for folder in self.folders if folder.is_dir()]
            self._entries = runs_in(*there, known=self._known)
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


def serve(
    folders: Sequence[Path],
    host: str,
    port: int,
    names: Sequence[str] = (),
    most: int = MOST_ARRAYS,
) -> int:
    """Serve the page until Ctrl-C; prints its address. Gives the exit code.

    Args:
      folders: whose runs are shown; nothing else can be asked for.
      host: the address to listen at. Any other than this machine's own lets everybody in the
        network look at the runs, and a warning says so.
      port: to listen at; 0 for a free one.
      names: by which it may be asked for besides its own, as behind a proxy.
      most: runs whose arrays are shown at once.

    Raises:
      BadInput: if a folder is not there, or the address cannot be listened at.
    """
    for folder in folders:
        if not folder.is_dir():
            hint = "outputs, or a folder under multirun/"
            raise BadInput("DIR", str(folder), "a folder that is there", hint)
    try:
        server = Server(Folders(folders, most), host, port, names)
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

    def __init__(self, folders: Folders, host: str, port: int, names: Sequence[str] = ()):
        self.folders = folders
        self._open: dict[Any, float] = {}  # connections, and until when each may take to ask
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
        known = [*LOCAL, *names]
        if not self.is_local:
            own = socket.gethostname()
            known += [host, own, f"{own}.local", self.server_name]
        self.names = set(filter(None, map(_name_in, known)))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there are not too many already."""
        if len(self._open) >= MOST_CONNECTIONS:
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic() + ASKING
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Close what takes too long to ask: whoever sends a letter at a time gets no thread."""
        now = time.monotonic()
        for request, until in list(self._open.items()):
            if until < now:
                with contextlib.suppress(OSError):  # it has just ended by itself
                    request.shutdown(socket.SHUT_RDWR)

    def asked(self, request: Any) -> None:
        """Note that a request has arrived; it may take as long as it needs."""
        self._open[request] = float("inf")
        request.settimeout(ANSWERING)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def is_asked_for(self, host: str) -> bool:
        """Whether ``host``, of a request, is a name of this server.

        A page of somebody else whose name leads here is kept out so. A number is no such name.
        """
        name = _name_in(host)
        return name in self.names or (not self.is_local and _is_address(name))

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
    timeout = ASKING

    def do_GET(self) -> None:
        """Answer a request; there is nothing but the three addresses, and no file is ever read."""
        self.server.asked(self.request)
        host = self.headers.get("Host", "")
        if self.server.is_asked_for(host):
            self._answer(*self._found())
        else:
            words = (
                f"asked for as {host[:100]!r}, which is no name of this server; "
                "if it is to be one: --allow-host NAME"
            )
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", words)

    def _found(self) -> tuple[HTTPStatus, str, str]:
        """Status, kind and text of the answer."""
        address = urlsplit(self.path)
        asked = parse_qs(address.query)
        names, listing = asked.get("run", []), asked.get("listing", [""])[0]
        folders = self.server.folders
        try:
            if address.path == "/":
                return HTTPStatus.OK, "text/html", page(folders.data(names), live=True)
            if address.path in ("/data", "/news"):
                found = (
                    folders.data(names) if address.path == "/data" else folders.news(names, listing)
                )
                return HTTPStatus.OK, "application/json", as_json(found)
        except KeyError as error:
            words = f"no run of this name in the folders that are served: {error.args[0]}"
            return HTTPStatus.NOT_FOUND, "text/plain", words
        except Exception as error:  # noqa: BLE001  (a run that changes while it is read)
            words = f"{type(error).__name__}: {error}"
            _log.warning("cannot answer %s: %s", address.path, first_line(words))
            return HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", words
        return HTTPStatus.NOT_FOUND, "text/plain", "nothing here"

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


def _name_in(host: str) -> str:
    """The name in a ``Host``, without its port; empty where there is none."""
    found = _HOST.fullmatch(host.strip().lower())
    return found[1].rstrip(".") if found else ""


def _is_address(name: str) -> bool:
    """Whether a host is told by its number."""
    try:
        ipaddress.ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


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
