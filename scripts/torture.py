"""What a run survives: kills, a full disk, a lost network; and what recording costs.

    python scripts/torture.py kill [--times 30] [--seed 0] [key=value ...]
    python scripts/torture.py disk [--sizes 20] [--seed 0] [--folder A_FOLDER_ON_A_SMALL_DISK]
    python scripts/torture.py network
    python scripts/torture.py volume
    python scripts/torture.py cost [--repeats 3] [key=value ...]

Each part prints what it saw and ends with an error if something was lost:

kill     Kills a run (SIGKILL) at moments from its first second to its last, reads it, resumes it,
         and compares every recorded value and every final parameter with a run left alone.
disk     Runs on a disk with 1 to 4 MB left (a tmpfs, which only root can mount, or the folder
         given), reads what it recorded, makes room, resumes, and compares with a run left alone.
network  Trains online against a W&B server on this machine that is slow, goes away in mid-run, or
         is not there at all; then syncs what was recorded offline.
volume   Writes 100,000 rows at T=200 and 2,000 at T=5000; reports size, files and time to open.
cost     The share of a run's training that is spent on recording it; for W&B's thread, which
         works beside it, the share of one core.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

import gradlab
from gradlab.record.directory import ARRAYS

TESTS = Path(__file__).parents[1] / "tests"
SMALL = (
    *("experiment=adding", "model=lstm", "task.length=40", "model.hidden=32"),
    *("trainer.steps=1500", "trainer.log_every=10", "trainer.checkpoint_seconds=1"),
    *("record.figures=false", "record.wandb.mode=disabled"),
)
ONLINE = (
    *("experiment=adding", "model=lstm", "task.length=40", "model.hidden=32"),
    *("trainer.steps=600", "record.figures=false", "record.wandb.mode=online"),
)
FLUSH = 2.0
"""Seconds between two flushes of a run directory."""


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """A run in ``folder``; its compilations are kept beside it for the next one."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "gradlab", *arguments],
        cwd=folder.parent,
        env=os.environ | cache | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """Wait for a run that must succeed; what it printed."""
    out, err = process.communicate(timeout=1800)
    if process.returncode != 0:
        sys.exit(f"a run ended with {process.returncode}:\n{out}\n{err}")
    return out, err


def check(holds: bool, what: str) -> None:
    """End with an error unless it holds."""
    if not holds:
        sys.exit(f"LOST: {what}")


# Kills.


def kill(times: int, seed: int, overrides: Sequence[str]) -> None:
    """Kill, read, resume, compare."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        arguments = [*SMALL, *overrides]
        finish(start(Path(place, "warm"), *arguments, "hydra.run.dir=warm"))
        began = time.monotonic()
        finish(start(whole, *arguments, "hydra.run.dir=whole"))
        seconds = time.monotonic() - began
        expected = everything(whole)
        print(f"a run left alone: {seconds:.1f} s, {expected['rows']} rows", flush=True)
        print("| killed after | rows | flushed before | resumed from | same |")
        print("|---|---|---|---|---|")
        for number in range(times):
            folder = Path(place, str(number))
            after = 1 + (seconds - 1) * (number + chance.random()) / times
            told = killed(folder, arguments, after)
            if not folder.joinpath("run.json").exists():
                process = start(folder, *arguments, f"hydra.run.dir={number}")
                where = "the start, nothing recorded yet"
            else:
                process = start(folder, f"trainer.resume={number}")
                saved = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()]
                where = f"step {max(saved)}" if saved else "step 0"
            finish(process)
            found = everything(folder)
            same = not differences(found, expected)
            print(f"| {after:.1f} s | {told} | {where} | {'yes' if same else 'NO'} |", flush=True)
            check(same, f"the run killed after {after:.1f} s ends otherwise")
            shutil.rmtree(folder)


def killed(folder: Path, arguments: Sequence[str], after: float) -> str:
    """Start a run, kill it and read it; how many rows it has, and how old its last flush was."""
    process = start(folder, *arguments, f"hydra.run.dir={folder.name}")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=after)
    alive = process.poll() is None
    process.kill()
    now = time.time()
    process.communicate()
    if not folder.joinpath("run.json").exists():
        return "none yet | –"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = gradlab.open_run(folder)
        # A process that has written its last word may live a little longer.
        ended = not alive or run.info["status"] == "finished"
        check(run.status == ("finished" if ended else "killed"), f"status {run.status}")
        check(not run.damage, str(run.damage))
        curves, scalars = run.curves.load(), run.scalars.load()
    rows = scalars.sizes["step"]
    if rows:
        check(bool(scalars["train/loss"].notnull().all()), "a row without its loss")
        check(bool(curves["adj_h_log10"].notnull().all()), "a row without its curve")
    age = now - (folder / ARRAYS / "zarr.json").stat().st_mtime
    if not ended and rows > 1:
        check(age < FLUSH + 1.0, f"the last flush was {age:.1f} s before the kill")
    return f"{rows} | {age:.1f} s"


def everything(folder: Path) -> dict[str, Any]:
    """What a run recorded and ended with, but for its times."""
    import orbax.checkpoint as ocp

    run = gradlab.open_run(folder)
    found: dict[str, Any] = {"status": run.status, "verdict": run.info["verdict"]}
    found["rows"] = run.scalars.sizes["step"]
    for dataset in (run.scalars, run.curves):
        found |= {str(name): array.values for name, array in dataset.variables.items()}
    timed = ("steps_per_second", "probe_overhead")
    found |= {f"summary {k}": v for k, v in run.summary.items() if k not in timed}
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore())
        with warnings.catch_warnings():  # that it reads as it was written, on the same devices
            warnings.simplefilter("ignore")
            arrays = manager.restore(manager.latest_step(), args=items)["arrays"]
    return found | {f"final {name}": array for name, array in flat(arrays)}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of what two runs do not have in common."""
    return [
        name
        for name in sorted(found.keys() | expected.keys())
        if name not in found
        or name not in expected
        or not (
            np.array_equal(found[name], expected[name], equal_nan=True)
            if isinstance(expected[name], np.ndarray)
            else found[name] == expected[name]
        )
    ]


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in nested dicts, by path."""
    if isinstance(tree, dict):
        for name, inner in tree.items():
            yield from flat(inner, f"{path}/{name}")
    else:
        yield path, np.asarray(tree)


# A full disk.

DISK = 64
"""Megabytes of the disk that is mounted; all but the room that is tried is filled beforehand."""
ROOM = (1.0, 4.0)
"""Megabytes that are left to a run, from and to."""


@contextlib.contextmanager
def small_disk(folder: Path | None) -> Iterator[Path]:
    """A folder on a disk of its own."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", place],
            capture_output=True,
            text=True,
        )
        if mounted.returncode:
            sys.exit(f"cannot mount a small disk ({mounted.stderr.strip()}); give --folder")
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def filled(place: Path, left: int) -> Iterator[None]:
    """Within it so many bytes are left on the disk."""
    ballast = place / "ballast"
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(place).free - left)
    try:
        yield
    finally:
        ballast.unlink()


def disk(sizes: int, seed: int, folder: Path | None) -> None:
    """Fill, read, make room, resume, compare; with W&B's files and without."""
    chance = random.Random(seed)
    arguments = [*SMALL, "trainer.log_every=1", "trainer.steps=1000"]
    with tempfile.TemporaryDirectory() as elsewhere, small_disk(folder) as place:
        for name in ("warm", "whole"):
            finish(start(Path(elsewhere, name), *arguments, f"hydra.run.dir={name}"))
        expected = everything(Path(elsewhere, "whole"))
        print("| room | W&B | status | why | rows | whole | resumed, same |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for number in range(sizes):
            megabytes = ROOM[0] + (ROOM[1] - ROOM[0]) * (number + chance.random()) / sizes
            mode = ("disabled", "offline")[number % 2]
            line = [*arguments, f"record.wandb.mode={mode}"]
            told = fill(Path(elsewhere, "run"), place, int(megabytes * 2**20), line, expected)
            print(f"| {megabytes:.2f} MB | {mode} | {told} |", flush=True)


def fill(
    beside: Path, place: Path, room: int, arguments: Sequence[str], expected: dict[str, Any]
) -> str:
    """Run until the disk is full, make room and resume; what came of it, as cells of a table."""
    folder = place / "run"
    said = f"hydra.run.dir={folder}"
    with filled(place, room):
        process = start(beside, *arguments, said)
        _, err = process.communicate(timeout=1800)
        check("Traceback" not in err, f"a traceback: {err}")
        if process.returncode:
            check("No space left" in err and "run" in err, f"the reason and the folder: {err}")
        told = read_back(folder, expected)
    begun = (folder / "run.json").exists()
    finish(start(beside, *([f"trainer.resume={folder}"] if begun else [*arguments, said])))
    found = everything(folder)
    check(not differences(found, expected), f"after room was made: {differences(found, expected)}")
    shutil.rmtree(folder)
    return f"{told} | yes"


def read_back(folder: Path, expected: dict[str, Any]) -> str:
    """Status, reason, rows and wholeness of what a full disk holds, as cells of a table."""
    if not (folder / "run.json").exists():
        return "none yet | – | 0 | –"
    run = gradlab.open_run(folder)
    check(run.status in ("crashed", "finished"), f"status {run.status}")
    check(not run.damage, str(run.damage))
    rows = run.scalars.sizes["step"]
    for dataset in (run.scalars, run.curves):
        for name, array in dataset.variables.items():
            whole = expected[str(name)]
            whole = whole[:rows] if "step" in array.dims else whole
            check(np.array_equal(array.values, whole, equal_nan=True), f"{name} is another")
    return f"{run.status} | {str(run.info['reason'])[:60]} | {rows} | yes"


# The network.


def network() -> None:
    """Online, offline, and everything between."""
    sys.path.insert(0, str(TESTS))
    from record.wandb_server import KEY, WandbServer

    with tempfile.TemporaryDirectory() as place, WandbServer() as server:
        home = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": place}
        home |= dict.fromkeys(("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"), place)

        def train(name: str, *more: str, meanwhile: Any = None) -> Seen:
            server.runs.clear()
            folder = Path(place, name)
            line = [*ONLINE, f"hydra.run.dir={name}", *more]
            process = start(folder, *line, **home)
            if meanwhile is not None:
                meanwhile(folder)
            out, err = finish(process)
            run = gradlab.open_run(folder)
            check(run.status == "finished", f"{name}: {run.status}")
            return Seen(run, out, err, list(server.runs.values()))

        def sync(seen: Seen) -> list[dict[str, Any]]:
            command = seen.out.rpartition("W&B: ")[2].strip()
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=place,
                env=os.environ | home,
                capture_output=True,
                text=True,
            )
            check(done.returncode == 0, f"{command}: {done.stdout} {done.stderr}")
            print(f"  {command}")
            *_, last = server.runs.values()
            return metrics(last.history)

        def report(name: str, seen: Seen, rows: list[dict[str, Any]]) -> None:
            warned = [line for line in seen.err.splitlines() if line.strip()]
            seconds = seen.run.info["timings"]["train_seconds"]
            recorded = seen.run.scalars.sizes["step"]
            print(f"{name}: {len(rows)} rows on the server, {recorded} in the run directory;")
            print(f"  {seconds:.1f} s of training, {len(warned)} warnings")
            print("".join(f"  | {line}\n" for line in warned), end="", flush=True)
            check(len(warned) <= 1, f"{name}: more than one warning")
            check(len(rows) == recorded, f"{name}: rows are missing")

        online = train("online")
        expected = metrics(online.arrived[0].history)
        report("online", online, expected)
        offline = train("offline", "record.wandb.mode=offline")
        check(not offline.arrived, "offline means that nothing is sent")
        rows = sync(offline)
        report("offline, then synced", offline, rows)
        check(rows == expected, "offline and online give the same rows")

        def when_recorded(action: Any) -> Any:
            def wait(folder: Path) -> None:
                while not (folder / "run.json").exists() or (
                    gradlab.open_run(folder).scalars.sizes["step"] < 20
                ):
                    time.sleep(0.05)
                action()

            return wait

        lost = train("lost", "record.wandb.finish_timeout=15", meanwhile=when_recorded(server.die))
        server.revive()
        report("server gone in mid-run, then synced", lost, sync(lost))
        server.die()
        absent = train("absent", "record.wandb.finish_timeout=15")
        server.revive()
        server.runs.clear()
        report("no server at the start, then synced", absent, sync(absent))
        server.refuse_key = True
        refused = train("refused")
        server.refuse_key = False
        server.runs.clear()
        report("key refused, then synced", refused, sync(refused))
        server.delay = 30.0
        slow = train("slow", "record.wandb.finish_timeout=15")
        server.delay = 0.0
        server.runs.clear()
        report("30 s of delay, then synced", slow, sync(slow))


class Seen(NamedTuple):
    """A run, what it printed, and what arrived on the server meanwhile."""

    run: gradlab.Run
    out: str
    err: str
    arrived: list[Any]


def metrics(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without W&B's own entries and pictures."""
    return [
        {
            key: value
            for key, value in row.items()
            if not key.startswith("_") and not isinstance(value, dict)
        }
        for row in history
    ]


# How much is written, and what it costs.


def volume() -> None:
    """Rows of random walks, which hardly compress."""
    sys.path.insert(0, str(TESTS))
    from gradlab.record.base import Outcome
    from gradlab.record.directory import RunDirectory
    from record.synthetic import describe, make_row

    print("| rows | T | on disk | files | ms a row | open | read one curve | read three rows |")
    print("|---|---|---|---|---|---|---|---|")
    for rows, length in ((100_000, 200), (2_000, 5_000)):
        with tempfile.TemporaryDirectory() as place:
            description = describe(T=length, steps=rows)
            row, rng = make_row(description, 1), np.random.default_rng(0)
            directory, seconds = RunDirectory(place), 0.0
            directory.open(description)
            for step in range(rows):
                arrays = {
                    name: array + np.float32(rng.normal(size=array.shape))
                    for name, array in row.arrays.items()
                }
                began = time.perf_counter()
                directory.log(row._replace(step=step, arrays=arrays))
                seconds += time.perf_counter() - began
            began = time.perf_counter()
            directory.close(Outcome("finished"))
            seconds += time.perf_counter() - began
            files = [path for path in Path(place).rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            opened, run = timed(lambda place=place: opened_run(place))
            curve = run.curves["adj_h_log10"]
            read, _ = timed(lambda curve=curve: curve.values)
            few, _ = timed(lambda curve=curve, n=rows: curve.isel(step=[0, n // 2, n - 1]).values)
            print(
                f"| {rows:,} | {length} | {size / 1e6:.0f} MB | {len(files)} "
                f"| {1e3 * seconds / rows:.3f} | {opened:.2f} s | {read:.2f} s | {few:.3f} s |",
                flush=True,
            )


def opened_run(place: str) -> gradlab.Run:
    """A run with both of its datasets opened."""
    run = gradlab.open_run(place)
    _ = run.curves, run.scalars
    return run


def timed(action: Any) -> tuple[float, Any]:
    """Seconds that it took, and what it gave."""
    began = time.perf_counter()
    value = action()
    return time.perf_counter() - began, value


QUIET = ("hydra.run.dir=run", "record.figures=false")
COST = """
import atexit, time
import wandb
import gradlab.training.checkpoint, gradlab.run
import gradlab.record.directory, gradlab.record.terminal, gradlab.record.wandb.sink
spent = {}
ended = []
def measured(kind, name, label, clock=time.perf_counter):
    inner = getattr(kind, name)
    def outer(*a, **k):
        began = clock()
        try:
            return inner(*a, **k)
        finally:
            when = label if not ended else label + " at the end"
            spent[when] = spent.get(when, 0.0) + clock() - began
    setattr(kind, name, outer)
measured(gradlab.record.directory.RunDirectory, "log", "run directory")
measured(gradlab.record.terminal.Terminal, "log", "terminal")
measured(gradlab.record.wandb.sink.WandbSink, "log", "W&B")
measured(gradlab.record.wandb.sink.WandbSink, "close", "W&B")
measured(wandb.Run, "log", "W&B's thread", time.thread_time)
measured(gradlab.training.checkpoint.Checkpoints, "save", "checkpoints")
inner = gradlab.run.train
def train(*a, **k):
    try:
        return inner(*a, **k)
    finally:
        ended.append(True)
gradlab.run.train = train
atexit.register(lambda: print("SPENT", spent))
import gradlab.__main__
gradlab.__main__.main()
"""


def cost(repeats: int, overrides: Sequence[str]) -> None:
    """The default experiment, with everything that it records."""
    kinds = ("run directory", "W&B", "terminal", "checkpoints", "W&B's thread")
    print(f"| seconds of training | {' | '.join(kinds)} | together | W&B at the end |")
    print("|---|" + "---|" * (len(kinds) + 2))
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as place:
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    COST,
                    "hydra.run.dir=run",
                    "record.figures=false",
                    *overrides,
                ],
                cwd=place,
                capture_output=True,
                text=True,
                check=True,
            )
            spent = ast.literal_eval(done.stdout.rpartition("SPENT ")[2].strip())
            total = gradlab.open_run(Path(place, "run")).info["timings"]["train_seconds"]
            parts = [spent.get(kind, 0.0) for kind in kinds]
            shares = " | ".join(f"{part / total:.2%}" for part in parts)
            last = spent.get("W&B at the end", 0.0)
            print(
                f"| {total:.2f} | {shares} | {sum(parts) / total:.2%} | {last:.2f} s |", flush=True
            )


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("kill")
    one.add_argument("--times", type=int, default=30)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("overrides", nargs="*")
    one = parts.add_parser("disk")
    one.add_argument("--sizes", type=int, default=20)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--folder", type=Path)
    parts.add_parser("network")
    parts.add_parser("volume")
    one = parts.add_parser("cost")
    one.add_argument("--repeats", type=int, default=3)
    one.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} CPU cores, "
        f"Python {platform.python_version()}\n"
    )
    match given.part:
        case "kill":
            kill(given.times, given.seed, given.overrides)
        case "disk":
            disk(given.sizes, given.seed, given.folder)
        case "network":
            network()
        case "volume":
            volume()
        case "cost":
            cost(given.repeats, given.overrides)


if __name__ == "__main__":
    main()
