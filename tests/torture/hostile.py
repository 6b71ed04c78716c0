"""Run folders that somebody means ill with: what each kind does to a good one, and what must hold.

A kind is a function that turns a good run into a bad one. :func:`findings` tells what went wrong
where such folders are read, compared and served: something other than one refusal, a hang, memory
that was asked for without measure, or a good run that is not on the page. ``run(seed)`` does all of
it, and with changes by chance besides.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from gradlab.errors import BadInput
from gradlab.record.reader import open_run
from tests import ROOT
from tests.compare.recordings import record_run

SECONDS = 20
"""In which one folder must be read, or refused."""
MEMORY = 2**31
"""Bytes that may be asked for besides those that there are."""
VARIABLES = {"train/loss", "val/loss", "adj_h_log10", "memory_horizon"}
HTML = "</script><img src=x onerror=alert(1)>"
Kind = Callable[[Path], None]


# --- tools ----------------------------------------------------------------------------------------


def info(**changes: Any) -> Kind:
    """``run.json`` with other values."""

    def change(run: Path) -> None:
        found = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(found | changes))

    return change


def fact(key: str, value: Any) -> Kind:
    """A fact with another value."""
    return lambda run: info(
        facts=json.loads((run / "run.json").read_text())["facts"] | {key: value}
    )(run)


def config(**changes: Any) -> Kind:
    """The configuration with other values."""
    return lambda run: info(config=json.loads((run / "run.json").read_text())["config"] | changes)(
        run
    )


def text(content: str | bytes, file: str = "run.json") -> Kind:
    """Another content of a file."""
    raw = content.encode() if isinstance(content, str) else content
    return lambda run: put(run / file, lambda path: path.write_bytes(raw))


def words(old: str, new: str, file: str = "run.json") -> Kind:
    """A file with something in it replaced."""

    def change(run: Path) -> None:
        content = (run / file).read_text()
        assert old in content, (file, old)
        (run / file).write_text(content.replace(old, new))

    return change


def put(path: Path, make: Callable[[Path], Any]) -> None:
    """Something else in the place of a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


def fifo(file: str) -> Kind:
    """A pipe that nobody writes to."""
    return lambda run: put(run / file, os.mkfifo)


def link(file: str, to: str) -> Kind:
    """A link."""
    return lambda run: put(run / file, lambda path: path.symlink_to(to))


def folder(file: str) -> Kind:
    """A folder where a file should be."""
    return lambda run: put(run / file, Path.mkdir)


def sock(file: str) -> Kind:
    """A socket."""

    def make(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
            one.bind(path.name)

    return lambda run: put(run / file, make)


def huge(file: str) -> Kind:
    """A terabyte, of which nothing is there."""

    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, 2**40)

    return lambda run: put(run / file, make)


def meta(name: str, **changes: Any) -> Kind:
    """An array with other metadata; a function as value is given the old one."""

    def change(run: Path) -> None:
        path = run / "arrays.zarr" / "zarr.json"
        group = json.loads(path.read_text())
        arrays = group["consolidated_metadata"]["metadata"]
        for key, value in changes.items():
            arrays[name][key] = value(arrays[name][key]) if callable(value) else value
        path.write_text(json.dumps(group))

    return change


def arrays(change: Callable[[dict[str, Any]], Any]) -> Kind:
    """Other arrays: ``change`` works on the metadata of all, by name."""

    def changed(run: Path) -> None:
        path = run / "arrays.zarr" / "zarr.json"
        group = json.loads(path.read_text())
        change(group["consolidated_metadata"]["metadata"])
        path.write_text(json.dumps(group))

    return changed


def rows(count: Any) -> Kind:
    """As if so many rows had been recorded."""

    def change(every: dict[str, Any]) -> None:
        for array in every.values():
            if array["dimension_names"][0] == "step":
                array["shape"][0] = count

    return arrays(change)


def inner(key: str, value: Any) -> Callable[[Any], Any]:
    """A setting of the codec that makes a file of chunks."""

    def change(codecs: Any) -> Any:
        codecs[0]["configuration"][key] = value
        return codecs

    return change


def chunk(name: str, content: bytes, length: int | None = None, offset: int | None = None) -> Kind:
    """The first chunk of an array, with what the index says of it."""

    def change(run: Path) -> None:
        (file,) = (run / "arrays.zarr" / name / "c").rglob("0")
        file = next(path for path in [file] if path.is_file())
        old = file.read_bytes()
        at = len(old) if offset is None else offset
        entry = struct.pack("<QQ", at, len(content) if length is None else length)
        file.write_bytes(entry + old[16:] + content)

    return change


def coordinate(name: str, content: bytes) -> Kind:
    """The only chunk of a coordinate."""
    return text(content, f"arrays.zarr/{name}/c/0")


def claims(size: int) -> bytes:
    """A zstd frame that says it holds so many bytes."""
    return b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + struct.pack("<Q", size) + b"\x01\x00\x00"


def encoded(array: np.ndarray) -> bytes:
    """A chunk as gradlab writes it."""
    return Zstd(level=1, checksum=True).encode(array)


def deep(levels: int) -> str:
    """JSON within JSON."""
    return '{"a":' * levels + "1" + "}" * levels


def of(*kinds: Kind) -> Kind:
    """One after another."""
    return lambda run: [kind(run) for kind in kinds] and None


def many_keys(run: Path) -> None:
    config(more={f"k{n}": n for n in range(50_000)})(run)


def many_variables(every: dict[str, Any]) -> None:
    one = every["train_loss"]
    for number in range(5000):
        every[f"v{number}"] = one | {"attributes": {"units": "1", "long_name": "x"}}


def renamed(new: str) -> Kind:
    """A variable with another stored name."""
    return arrays(lambda every: every.update({new: every.pop("train_loss")}))


def dropped(*names: str) -> Kind:
    """Without some arrays."""
    return arrays(lambda every: [every.pop(name) for name in names])


STEPS = "arrays.zarr/step/c/0"
KINDS: dict[str, Kind] = {
    # run.json as a file
    "run.json is a pipe": fifo("run.json"),
    "run.json is a socket": sock("run.json"),
    "run.json is a folder": folder("run.json"),
    "run.json links to itself": link("run.json", "run.json"),
    "run.json links to a device": link("run.json", "/dev/zero"),
    "run.json links to a full device": link("run.json", "/dev/full"),
    "run.json links to a file of the system": link("run.json", "/etc/passwd"),
    "run.json is a terabyte": huge("run.json"),
    "run.json is empty": text(""),
    # run.json as JSON
    "run.json is deep": text(deep(100_000)),
    "run.json is deep, but is read by Python": words('"reason": ""', f'"reason": {deep(900)}'),
    "run.json is large": text('{"a": "' + "a" * 200_000_000 + '"}'),
    "run.json has many values": text("[" + "[]," * 1_000_000 + "[]]"),
    "run.json has a long number": words('"steps": 50.0', '"steps": 1' + "0" * 400),
    "run.json has a longer number": words('"steps": 50.0', '"steps": 1' + "0" * 5000),
    "run.json has 1e400": words('"steps": 50.0', '"steps": 1e400'),
    "run.json has NaN": words('"steps": 50.0', '"steps": NaN'),
    "run.json has -Infinity": words('"steps": 50.0', '"steps": -Infinity'),
    "run.json has half a character": words('"name": "', '"name": "\\ud800'),
    "run.json has keys twice": words('"format": 2', '"format": 2, "format": 2'),
    "run.json has a mark of its order": text(b"\xef\xbb\xbf{}"),
    "run.json is UTF-16": lambda run: text((run / "run.json").read_text().encode("utf-16"))(run),
    "run.json is a list": text("[]"),
    # what run.json says
    "format is text": info(format="2"),
    "format is true": info(format=True),
    "format is huge": info(format=10**18),
    "status is none of ours": info(status="fine"),
    "status is a list": info(status=["finished"]),
    "summary is a list": info(summary=[1, 2]),
    "summary holds texts": info(summary={"val/loss": "0.1", "steps": "x"}),
    "summary is nested": info(summary={"val/loss": {"a": 1}, "memory_horizon/layer_0": [1]}),
    "summary holds true": info(summary={"memory_horizon": True}),
    "verdict is a number": info(verdict=5),
    "verdict holds sections": info(verdict=[{"a": 1}]),
    "facts is a list": info(facts=[1]),
    "facts hold a list for a model": fact("model", ["lstm"]),
    "facts hold text for T": fact("T", "100"),
    "facts hold a negative T": fact("T", -5),
    "facts hold a half T": fact("T", 0.5),
    "facts hold a huge number of parameters": fact("parameters", 10**19),
    "baseline is text": info(baseline="none"),
    "baseline holds numbers": info(baseline={"val": 3}),
    "baseline holds texts": info(baseline={"test": {"loss": "x", "name": 3}}),
    "versions is a list": info(versions=["jax"]),
    "git is text": info(git="main"),
    "timings holds texts": info(timings={"compile_seconds": "long"}),
    "resumed is a number": info(resumed=3),
    "resumed holds texts": info(resumed=["yesterday"]),
    "started is nonsense": info(started="the day before"),
    "started is a number": info(started=10**12),
    "reason is a section": info(reason={"a": 1}),
    "reason is HTML and escapes": info(status="crashed", reason=HTML + "\x1b[2J\x07"),
    "overrides is text": info(overrides="model=lstm"),
    "overrides holds numbers": info(overrides=[1, None]),
    "overrides hold flags and HTML": info(overrides=["--config-dir=/", HTML, "a" * 100_000]),
    "speed is text": info(steps_per_second="fast"),
    "config is null": info(config=None),
    "config has another model": config(model=[1, 2], task="adding", optimizer=7),
    "config has a huge width": config(model={"hidden": 10**12, "layers": -3}),
    "config has a list for a seed": config(seed=[1, {"a": 2}]),
    "config has many keys": many_keys,
    "config has odd keys": config(**{HTML: 1, "a.b": {"c": 2}, "": {"": 3}, "\x00": "\x1b[31m"}),
    "config is deep": config(deep=json.loads(deep(60))),
    "name is HTML": info(name=HTML),
    # the lock, and what Hydra wrote
    "the lock is a pipe": of(info(status="running"), fifo("writer.lock")),
    "the lock links to a device": of(info(status="running"), link("writer.lock", "/dev/zero")),
    "the lock is a folder": of(info(status="running"), folder("writer.lock")),
    "Hydra's file is a pipe": fifo(".hydra/hydra.yaml"),
    "Hydra's file is a device": link(".hydra/hydra.yaml", "/dev/zero"),
    "Hydra's file has a long number": text(f"  job:\n    num: {'9' * 5000}\n", ".hydra/hydra.yaml"),
    "nothing but a pipe of overrides": lambda run: of(
        fifo(".hydra/overrides.yaml"), lambda run: (run / "run.json").unlink()
    )(run),
    "figures link to themselves": link("figures", "figures"),
    # zarr.json
    "zarr.json is a pipe": fifo("arrays.zarr/zarr.json"),
    "zarr.json is deep": text(deep(100_000), "arrays.zarr/zarr.json"),
    "zarr.json is a list": text("[]", "arrays.zarr/zarr.json"),
    "zarr.json is a terabyte": huge("arrays.zarr/zarr.json"),
    "arrays is a file": text("", "arrays.zarr"),
    "arrays link to themselves": link("arrays.zarr", "arrays.zarr"),
    "arrays link to the root": link("arrays.zarr", "/"),
    "no arrays": arrays(lambda every: every.clear()),
    "10^18 rows": rows(10**18),
    "10^9 rows": rows(10**9),
    "10^7 rows": rows(10**7),
    "-1 rows": rows(-1),
    "half a row": rows(1.5),
    "true rows": rows(True),
    "'5' rows": rows("5"),
    "null rows": rows(None),
    "one array is longer": meta("train_loss", shape=[10**6]),
    "a shape of 10^18": meta("adj_h_log10", shape=[5, 1, 10**18]),
    "a shape of too few": meta("adj_h_log10", shape=[5]),
    "a shape of nothing": meta("adj_h_log10", shape=[]),
    "a shape that is text": meta("adj_h_log10", shape="555"),
    "chunks of zero": meta("adj_h_log10", codecs=inner("chunk_shape", [0, 1, 32])),
    "chunks of 10^12": meta("adj_h_log10", codecs=inner("chunk_shape", [10**12, 1, 32])),
    "chunks that do not divide": meta("adj_h_log10", codecs=inner("chunk_shape", [7, 1, 32])),
    "chunks of one row": meta("train_loss", codecs=inner("chunk_shape", [1])),
    "files of zero": meta(
        "train_loss", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [0]}}
    ),
    "files of 10^15": meta(
        "train_loss", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [2**50]}}
    ),
    "another kind of chunks": meta("train_loss", chunk_grid={"name": "rectangular"}),
    "chunks under other names": meta("train_loss", chunk_key_encoding={"name": "v2"}),
    "the index at the end": meta("train_loss", codecs=inner("index_location", "end")),
    "an unknown codec": meta("train_loss", codecs=[{"name": "numcodecs.pickle"}]),
    "codecs within codecs": meta(
        "train_loss", codecs=inner("codecs", [{"name": "transpose"}] * 50)
    ),
    "codecs that are texts": meta("train_loss", codecs=["bytes", "zstd"]),
    "no codecs": meta("train_loss", codecs=[]),
    "objects for numbers": meta("train_loss", data_type="object"),
    "a type within a type": meta("train_loss", data_type={"name": "numpy.datetime64"}),
    "whole numbers for a curve": meta("adj_h_log10", data_type="int64"),
    "a fill value of text": meta("train_loss", fill_value="x" * 1000),
    "an attribute that scales": meta("train_loss", attributes={"scale_factor": 1e9}),
    "units of a time": meta("train_loss", attributes={"units": "days since 1970-01-01"}),
    "a dimension twice": meta("adj_h_log10", dimension_names=["step", "t", "t"]),
    "no dimensions": meta("adj_h_log10", dimension_names=None),
    "other dimensions": meta("adj_h_log10", dimension_names=["step", "t", "layer"]),
    "a dimension that nobody knows": meta("adj_h_log10", dimension_names=["step", "layer", "x"]),
    "thousands of variables": arrays(many_variables),
    "a name outside": renamed("../../../../etc"),
    "a name from the root": renamed("/etc/passwd"),
    "a name with a zero": renamed("a\x00b"),
    "a name of HTML": of(
        meta("train_loss", attributes={"name": HTML, "units": HTML, "long_name": HTML}),
    ),
    "a name that is a number": meta("train_loss", attributes={"name": 5}),
    "two of one name": meta("val_loss", attributes={"name": "train/loss"}),
    "no steps": dropped("step"),
    "no timesteps": dropped("t", "lag"),
    "no layers": dropped("layer"),
    # chunks
    "a chunk is a pipe": fifo(STEPS),
    "a chunk is a device": link(STEPS, "/dev/zero"),
    "a chunk is a folder": folder(STEPS),
    "a chunk is a terabyte": huge(STEPS),
    "a folder of chunks links to the root": link("arrays.zarr/train_loss/c", "/"),
    "a chunk says 100 GB": chunk("train_loss", claims(10**11)),
    "a chunk says 2^64 - 1": chunk("train_loss", claims(2**64 - 1)),
    "a chunk holds too much": chunk("train_loss", encoded(np.zeros(2**24))),
    "a chunk holds too little": chunk("train_loss", encoded(np.zeros(1))),
    "a chunk is no chunk": chunk("train_loss", b"\x00" * 100),
    "a chunk of 2^63 bytes": chunk("train_loss", b"", length=2**63 - 1),
    "a chunk beyond the end": chunk("train_loss", b"", offset=2**62, length=8),
    "a chunk in the index": chunk("train_loss", b"", offset=0, length=64),
    "steps that are missing": chunk("step", b"", offset=2**64 - 1, length=2**64 - 1),
    "steps that fall": chunk("step", encoded(np.arange(8192)[::-1].copy())),
    "steps that stay": chunk("step", encoded(np.zeros(8192, np.int64))),
    "steps below zero": chunk("step", encoded(np.arange(8192) - 2**62)),
    "a coordinate says 100 GB": coordinate("t", claims(10**11)),
    "a coordinate is short": coordinate("t", encoded(np.arange(3))),
    "a coordinate is huge": coordinate("lag", encoded(np.zeros(2**27, np.uint8))),
    "a coordinate is a terabyte": huge("arrays.zarr/t/c/0"),
    "timesteps that fall": coordinate("t", encoded(np.arange(32)[::-1].copy())),
    "timesteps that are one": coordinate("t", encoded(np.zeros(32, np.int64))),
}
"""What is done to a good run, by name."""
_BOMB = "a0: &a0 [1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
SWEEPS: dict[str, Kind] = {
    "multirun.yaml is a pipe": fifo("multirun.yaml"),
    "multirun.yaml is a device": link("multirun.yaml", "/dev/zero"),
    "multirun.yaml is a folder": folder("multirun.yaml"),
    "multirun.yaml is a terabyte": huge("multirun.yaml"),
    "multirun.yaml is deep": text("[" * 100_000, "multirun.yaml"),
    "multirun.yaml is binary": text(b"\xff\x00", "multirun.yaml"),
    "multirun.yaml grows": text(_BOMB, "multirun.yaml"),
    "multirun.yaml makes objects": text(
        "hydra: !!python/object/new:os.system [false]", "multirun.yaml"
    ),
}
"""What makes a run's folder that of a sweep, for one who resumes it."""


def mutations(seed: int, count: int) -> dict[str, Kind]:
    """Changes by chance: of values of JSON, of single bits, of lengths of files."""
    return {f"by chance {seed}-{k}": _mutation(random.Random(f"{seed} {k}")) for k in range(count)}


_VALUES = (None, True, -1, 0, 10**18, 1e308, "", HTML, [], {}, [[1]], {"a": {"b": 1}}, "NaN")


def _mutation(rng: random.Random) -> Kind:
    def change(run: Path) -> None:
        files = sorted(path for path in run.rglob("*") if path.is_file())
        for _ in range(rng.randint(1, 3)):
            file = rng.choice(files)
            content = file.read_bytes()
            if file.suffix == ".json" and rng.random() < 0.7:
                file.write_text(json.dumps(_edited(json.loads(content), rng)))
            elif content and rng.random() < 0.6:
                at = rng.randrange(len(content))
                changed = bytes([content[at] ^ 1 << rng.randrange(8)])
                file.write_bytes(content[:at] + changed + content[at + 1 :])
            else:
                file.write_bytes(content[: rng.randint(0, len(content))])
            files = [file for file in files if file.suffix != ".json"] or files

    return change


def _edited(nest: Any, rng: random.Random) -> Any:
    """With one value in it, somewhere, that is another or gone."""
    places = list(_places(nest))
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(_VALUES)
    return nest


def _places(nest: Any) -> Iterator[tuple[Any, Any]]:
    items = nest.items() if isinstance(nest, dict) else enumerate(nest)
    for key, value in items:
        yield nest, key
        if isinstance(value, dict | list):
            yield from _places(value)


# --- what must hold -------------------------------------------------------------------------------


def make(place: Path, kinds: Mapping[str, Kind], good: int = 2) -> dict[str, Path]:
    """A folder of good runs, and a bad one of each kind beside them; where each is."""
    paths, small = {}, {"only": VARIABLES, "close": False}
    for number in range(good):
        record_run(place / f"good{number}", ("lstm", "rnn")[number % 2], number, **small)
    with tempfile.TemporaryDirectory() as beside:
        whole = record_run(Path(beside, "whole"), "lstm", 7, **small)
        (whole / ".hydra").mkdir()
        (whole / ".hydra" / "overrides.yaml").write_text("- model=lstm\n")
        for number, (name, kind) in enumerate(kinds.items()):
            paths[name] = shutil.copytree(whole, place / f"bad{number}")
            kind(paths[name])
    return paths


def read(run: Path) -> None:
    """All of a folder."""
    found = open_run(run)
    _ = found.summary, found.config, repr(found)
    found.scalars.load()
    found.curves.load()


def resumed(run: Path) -> None:
    """What is made of a command that resumes it, before anything is composed or built."""
    from gradlab.launch.resume import with_resumed

    with_resumed([f"trainer.resume={run}"])


def refused(action: Callable[[Path], None], run: Path) -> str | None:
    """What is wrong with how a folder is taken: as it is, or with one refusal."""
    try:
        action(run)
    except BadInput as error:
        if len(str(error)) > 2000:
            return f"a refusal of {len(str(error))} characters"
    except Exception as error:  # noqa: BLE001  (that is what is looked for)
        return "".join(traceback.format_exception(error)[-3:])
    return None


def compared(place: Path, bad: Mapping[str, Path], good: int = 2) -> list[str]:
    """What is wrong with the page of good runs among bad ones, and with the live one."""
    from gradlab.compare.__main__ import main
    from gradlab.compare.serve import Folders

    said, out = io.StringIO(), place / "page.html"
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main([str(place), "--out", str(out)])
    if code or "Traceback" in said.getvalue():
        return [f"the page: exit code {code}, {said.getvalue()[-500:]}"]
    page = out.read_text(encoding="utf-8")
    data = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    wrong = _listed(json.loads(data)["runs"], bad, good)
    wrong += [f"HTML is not escaped: {HTML}"] if HTML in page else []
    folders = Folders([place])
    names = {run["id"] for run in folders.news([])["runs"]}
    wrong += [f"{name}: is not in the list" for name, run in bad.items() if run.name not in names]
    shown = folders.data([])["runs"]  # the newest: some of them
    return wrong if shown else [*wrong, "the live page shows nothing"]


def _listed(runs: list[dict[str, Any]], bad: Mapping[str, Path], good: int) -> list[str]:
    there = {run["name"]: run for run in runs}
    wrong = [
        f"good{n} is not on the page whole"
        for n in range(good)
        if not there.get(f"good{n}", {}).get("curves") or there[f"good{n}"]["reason"]
    ]
    for name, path in bad.items():
        run = there.get(path.name)
        if run is None:
            wrong.append(f"{name}: is not listed")
        elif not run["curves"] and not run["reason"]:
            wrong.append(f"{name}: has no curves and no reason")
    return wrong


class Hung(BaseException):
    """Something took too long."""


def forked(action: Callable[[], Any], seconds: float) -> Any:
    """What ``action`` gives in a process of its own, which may hang or ask for all memory.

    Raises:
      AssertionError: if it did not come back in time.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        result: Any = "ended without a word"
        try:
            signal.signal(signal.SIGALRM, _hung)
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
            result = action()
        except BaseException as error:  # noqa: BLE001  (handed on)
            result = "".join(traceback.format_exception(error)[-4:])
        finally:
            with open(writer, "wb") as file:
                file.write(json.dumps(result).encode())
            os._exit(0)
    os.close(writer)
    signal.signal(signal.SIGALRM, _hung)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with open(reader, "rb") as file:
            return json.loads(file.read())
    except (Hung, ValueError) as error:
        raise AssertionError(f"no answer within {seconds} s ({type(error).__name__})") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _hung(*_: Any) -> None:
    raise Hung


def read_all(paths: Mapping[str, Path]) -> list[str]:
    """What is wrong with how each is read and resumed; to be called in a process of its own."""
    wrong = []
    for action in (read, resumed):
        for name, path in paths.items():
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                if found := refused(action, path):
                    wrong.append(f"{name}: {action.__name__}: {found}")
            except Hung:
                wrong.append(f"{name}: {action.__name__}: no answer within {SECONDS} s")
            signal.setitimer(signal.ITIMER_REAL, 0)
    return wrong


def findings(place: Path, kinds: Mapping[str, Kind]) -> list[str]:
    """What is wrong with how folders of these kinds are read, compared and served."""
    paths = make(place, kinds)
    wrong = forked(lambda: read_all(paths), SECONDS * (2 + len(paths)))
    page = forked(lambda: compared(place, paths), 60 + 2 * len(paths))
    return [*wrong, *([page] if isinstance(page, str) else page)]


def apart(place: Path, seed: int, count: int) -> list[str]:
    """The same of every kind and ``count`` changes by chance, in a process without a device."""
    command = [sys.executable, "-m", "tests.torture.hostile", str(place), str(seed), str(count)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    return json.loads(done.stdout) if done.returncode == 0 else [done.stderr]


def run(seed: int, count: int = 200) -> list[str]:
    """Every kind by itself, and ``count`` changes by chance: what went wrong, one line each."""
    wrong = []
    kinds = KINDS | SWEEPS | mutations(seed, count)
    for name, kind in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                wrong += [f"{name}: {one}" for one in findings(Path(folder), {name: kind})]
            except AssertionError as error:
                wrong.append(f"{name}: {error}")
    return wrong


if __name__ == "__main__":
    place, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(findings(place, KINDS | SWEEPS | mutations(seed, count))))
