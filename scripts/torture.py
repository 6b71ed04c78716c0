"""What a run survives: kills, a full disk, a lost network; and what recording costs.

    python scripts/torture.py kill [--times 100] [--seed 0] [key=value ...]
    python scripts/torture.py disk [--sizes 20] [--seed 0] [--folder A_FOLDER_ON_A_SMALL_DISK]
    python scripts/torture.py commands [--times 300] [--seed 0]
    python scripts/torture.py hostile [--times 200] [--seed 0]
    python scripts/torture.py network
    python scripts/torture.py volume
    python scripts/torture.py cost [--repeats 3] [key=value ...]

Each part prints what it saw and ends with an error if something was lost:

kill     Kills (SIGKILL) runs, sweeps trained together, both of them in the time after their last
         row, and runs that are being resumed, at moments from the first second to the last; reads
         and resumes them, and compares every recorded value, every final parameter, all figures
         and what W&B and TensorBoard keep with what was left alone. No process may stay behind.
disk     Runs on a disk with 1 to 4 MB left (a tmpfs, which only root can mount, or the folder
         given), reads what it recorded, makes room, resumes, and compares with a run left alone.
commands Types command lines that nobody should, by a seed: each trains, or is refused with one
         message and exit code 2; no traceback, no hang, no nonsense in a record.
hostile  Reads, compares, serves and resumes run folders that somebody means ill with, of more than
         a hundred kinds and with changes by chance: one message each, and the others' page. Then
         resumes folders that name code, as runs and sweeps: none of it runs.
network  Trains online against a W&B server on this machine that is slow, goes away in mid-run, or
         is not there at all; then syncs what was recorded offline.
volume   Writes 100,000 rows at T=200 and 2,000 at T=5000; reports size, files and time to open.
cost     The share of a run's training that is spent on recording it; for W&B's thread, which
         works beside it, the share of one core.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the parts share with the tests is there

import numpy as np
from tests.torture import command_lines, hostile, payloads
from tests.torture.disks import disk
from tests.torture.kills import kill
from tests.torture.runs import check, finish, start

import gradlab

ONLINE = (
    *("experiment=adding", "model=lstm", "task.length=40", "model.hidden=32"),
    *("trainer.steps=600", "record.figures=false", "record.wandb.mode=online"),
)

# The network.


def network() -> None:
    """Online, offline, and everything between."""
    from tests.record.wandb_server import KEY, WandbServer

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
    from tests.record.synthetic import describe, make_row

    from gradlab.record.base import Outcome
    from gradlab.record.directory import RunDirectory

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


def tell(findings: Sequence[str]) -> None:
    """Print what was found; end with an error if anything was."""
    print(*findings, sep="\n")
    check(not findings, f"{len(findings)} findings")
    print("nothing was found")


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("kill")
    one.add_argument("--times", type=int, default=100)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("overrides", nargs="*")
    one = parts.add_parser("disk")
    one.add_argument("--sizes", type=int, default=20)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--folder", type=Path)
    one = parts.add_parser("commands")
    one.add_argument("--times", type=int, default=300)
    one.add_argument("--seed", type=int, default=0)
    one = parts.add_parser("hostile")
    one.add_argument("--times", type=int, default=200)
    one.add_argument("--seed", type=int, default=0)
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
        case "commands":
            found = command_lines.run(given.times, given.seed, told=print)
            tell([f"{one.wrong}: {one.line}\n{one.output}" for one in found])
        case "hostile":
            tell([*hostile.run(given.seed, given.times), *payloads.run()])
        case "network":
            network()
        case "volume":
            volume()
        case "cost":
            cost(given.repeats, given.overrides)


if __name__ == "__main__":
    main()
