"""Kills (SIGKILL) at seeded moments: whatever was killed, resuming it brings everything.

Of four kinds: a run by itself, a sweep trained together, the time after the last row (figures,
W&B, TensorBoard) of either, and a run whose resume is killed as well, twice.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gradlab
from tests.record.made import made_of
from tests.torture.runs import check, finish, left_behind, start

SMALL = (
    *("experiment=adding", "model=lstm", "task.length=20", "model.hidden=16"),
    *("trainer.steps=600", "trainer.log_every=20", "trainer.checkpoint_seconds=0.5"),
    *("record.tensorboard=true", "record.wandb.mode=offline", "record.wandb.code=false"),
    "record.wandb.finish_timeout=300",  # a machine that is busy with other things is no loss
)
TOGETHER = ("-m", "hydra/launcher=population", "seed=0,1")
SHARES = {"solo": 0.25, "population": 0.2, "end": 0.3, "resume": 0.25}
"""Of the kills, by kind."""
LAST = {"compare.html", "sweep.csv"}
"""What a sweep leaves when it is reported."""


class Alone(NamedTuple):
    """A run or a sweep that was left alone.

    Attributes:
      found: what each of its runs recorded and made, see :func:`everything`.
      seconds: that it took.
      end: seconds that it lived after its last run had recorded its end.
    """

    found: list[dict[str, Any]]
    seconds: float
    end: float


def kill(times: int, seed: int, overrides: Sequence[str] = ()) -> None:
    """Kill, read, resume, compare; ``times`` kills in all, of every kind."""
    with tempfile.TemporaryDirectory() as place:
        trials = Trials(Path(place), [*SMALL, *overrides], seed)
        print("| kind | killed after | rows | same |\n|---|---|---|---|", flush=True)
        made, began = 0, time.monotonic()
        for number, kind in enumerate(SHARES):
            last = number == len(SHARES) - 1
            wanted = times - made if last else round(SHARES[kind] * times)
            made += trials.kill(kind, wanted)
        seconds = time.monotonic() - began
        print(f"{made} kills in {seconds:.0f} s, {seconds / made:.1f} s each; nothing was lost")


class Trials:
    """Runs in ``place``, killed and resumed, each compared with one that was left alone.

    Args:
      place: an empty folder.
      line: what is said of each run.
      seed: decides the moments.
    """

    def __init__(self, place: Path, line: Sequence[str], seed: int):
        self.place, self.line, self.chance = place, list(line), random.Random(seed)
        self._alone: dict[bool, Alone] = {}

    def alone(self, together: bool) -> Alone:
        """What came of it when it was left alone; run for that once."""
        if together not in self._alone:
            for name in ("warm", "whole"):  # the first one compiles
                folder = self.place / f"{name}{'-sweep' if together else ''}"
                began = ended = time.monotonic()
                process = self._begin(folder, together)
                while process.poll() is None:
                    if not has_ended(folder, together):
                        ended = time.monotonic()
                    time.sleep(0.02)
                seconds = time.monotonic() - began
                finish(process)
            found = [everything(one) for one in runs(folder, together)]
            check(len(found) == (2 if together else 1), "a run that was left alone")
            self._alone[together] = Alone(found, seconds, began + seconds - ended)
            what = "a sweep of two" if together else "a run"
            rows, figures = found[0]["rows"], len(found[0]["figures"])
            print(
                f"{what} left alone: {rows} rows and {figures} figures in {seconds:.1f} s, "
                f"{began + seconds - ended:.1f} s of them after the last row",
                flush=True,
            )
        return self._alone[together]

    def kill(self, kind: str, times: int) -> int:
        """Trials of one kind until so many kills were made; gives how many."""
        made = number = 0
        while made < times:
            share = (made + self.chance.random()) / times
            made += self._trial(kind, number, min(share, 1.0))
            number += 1
        return made

    def _trial(self, kind: str, number: int, share: float) -> int:
        """Kill at a share of the time that there is, then look; gives how many kills it took."""
        together = kind == "population" or (kind == "end" and number % 2 == 1)
        alone, folder = self.alone(together), self.place / f"{kind}-{number}"
        whole = alone.seconds
        moments = [share * alone.end if kind == "end" else 1 + share * (whole - 1)]
        if kind == "resume":
            moments += [1 + self.chance.random() * (whole - 1) for _ in range(2)]
        kills, rows = 0, []
        for after in moments:
            began, process = time.monotonic(), self._begin(folder, together)
            if kind == "end":
                while process.poll() is None and not has_ended(folder, together):
                    time.sleep(0.01)
                began = time.monotonic()
            if killed(process, after):
                kills += 1
            elif kind != "resume":  # too late: the machine is faster by now
                known = "end" if kind == "end" else "seconds"
                seconds = min(getattr(alone, known), time.monotonic() - began)
                self._alone[together] = alone._replace(**{known: seconds})
            check(
                not left_behind(folder), f"a process outlives {folder.name}: {left_behind(folder)}"
            )
            rows += [readable(one) for one in runs(folder, together)]
        _, told = finish(self._begin(folder, together))
        found = [everything(one) for one in runs(folder, together)]
        odd = [
            name
            for mine, whole in zip(found, alone.found, strict=True)
            for name in odds(mine, whole)
        ]
        if together:
            odd += LAST - {path.name for path in folder.iterdir()}
        seconds = ", ".join(f"{after:.1f} s" for after in moments)
        seconds += " after its last row" if kind == "end" else ""
        print(f"| {kind} | {seconds} | {rows} | {odd or 'yes'} |", flush=True)
        check(not odd, f"{folder.name}, killed after {seconds}, ends otherwise in {odd}\n{told}")
        shutil.rmtree(folder)
        return kills

    def _begin(self, folder: Path, together: bool) -> subprocess.Popen:
        """Begin, or resume what was begun."""
        if (folder / ("multirun.yaml" if together else "run.json")).exists():
            return start(folder, f"trainer.resume={folder.name}")
        if together:
            return start(folder, *TOGETHER, *self.line, f"hydra.sweep.dir={folder.name}")
        return start(folder, *self.line, f"hydra.run.dir={folder.name}")


def killed(process: subprocess.Popen, after: float) -> bool:
    """Kill a process after some seconds; whether it was still there."""
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    return process.returncode == -9


def runs(folder: Path, together: bool) -> list[Path]:
    """The run directories that are there."""
    folders = [folder / str(number) for number in range(2)] if together else [folder]
    return [one for one in folders if (one / "run.json").exists()]


def has_ended(folder: Path, together: bool) -> bool:
    """Whether every run has recorded its end."""
    found = [json.loads((one / "run.json").read_text()) for one in runs(folder, together)]
    return len(found) == 1 + together and all(info["ended"] for info in found)


def readable(folder: Path) -> int:
    """How many rows a killed run has; all of them can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = gradlab.open_run(folder)
        check(run.status == ("finished" if run.info["ended"] else "killed"), f"status {run.status}")
        check(not run.damage, str(run.damage))
        curves, scalars = run.curves.load(), run.scalars.load()
    if scalars.sizes["step"]:
        check(bool(scalars["train/loss"].notnull().all()), "a row without its loss")
        check(bool(curves["adj_h_log10"].notnull().all()), "a row without its curve")
    return scalars.sizes["step"]


def odds(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What is not the same."""
    same = {
        name: np.array_equal(found[name], value, equal_nan=True)
        if isinstance(value, np.ndarray)
        else found[name] == value
        for name, value in expected.items()
        if name in found
    }
    names = found.keys() | expected.keys()
    return sorted(name for name in names if not same.get(name, False))


def everything(folder: Path) -> dict[str, Any]:
    """What a run recorded, made and ended with, but for its times."""
    import orbax.checkpoint as ocp

    run = gradlab.open_run(folder)
    found: dict[str, Any] = {"status": run.status, "verdict": run.info["verdict"], "left": run.left}
    found["rows"] = run.scalars.sizes["step"]
    for dataset in (run.scalars, run.curves):
        found |= {str(name): array.values for name, array in dataset.variables.items()}
    found |= {f"summary {k}": v for k, v in run.summary.items() if k not in TIMED}
    found |= made_of(folder)
    for kind in ("on W&B at the end", "in TensorBoard at the end"):
        found[kind] = {k: v for k, v in found[kind].items() if k.rpartition("/")[2] not in TIMED}
    check(found.pop("id on W&B") == run.info["id"], "another run on W&B")
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore())
        with warnings.catch_warnings():  # that it reads as it was written, on the same devices
            warnings.simplefilter("ignore")
            arrays = manager.restore(manager.latest_step(), args=items)["arrays"]
    return found | {f"final {name}": array for name, array in flat(arrays)}


TIMED = (
    *("steps_per_second", "probe_overhead", "compile_seconds", "train_seconds", "close_look"),
    "members",
)
"""What differs from run to run; members that are resumed later are fewer."""


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in nested dicts, by path."""
    if isinstance(tree, dict):
        for name, inner in tree.items():
            yield from flat(inner, f"{path}/{name}")
    else:
        yield path, np.asarray(tree)
