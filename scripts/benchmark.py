"""What a training step, a run and a start cost, beside the peers: ratios within one run.

    python scripts/benchmark.py [--quick]               one training step by every contestant
    python scripts/benchmark.py --growth                the same by T, by B and by H
    python scripts/benchmark.py --memory                and the memory it takes
    python scripts/benchmark.py --runs [--wandb]        whole runs that record every step
    python scripts/benchmark.py --cold-start            from the start to the first finished step
    python scripts/benchmark.py --population 16         a sweep in one program, beside processes
    python scripts/benchmark.py --probes                each probe alone
    python scripts/benchmark.py --watch                 anyone's module, watched
    python scripts/benchmark.py --compare SWEEP…        compare pages
    python scripts/benchmark.py --show FILE.json…       the tables of what ran before
    python scripts/benchmark.py --accelerator           scripts/accelerator.py, for a GPU

Each prints the machine, the versions, the date, the load of the machine before and after, and a
table in Markdown; ``--out FILE.json`` keeps all figures, of each round. Contestants take turns, for
machines are noisy: compare ratios, of medians. A peer that is not installed is named, and left out;
``pip install -e '.[bench]'`` brings them (PyTorch's wheel for the CPU alone will do).

The first table takes less than ten minutes on two cores, with ``--quick`` about two. Each of its
contestants must compute the loss and the gradient that numpy computes in float64, or it is not
timed. ``--cells``, ``--sizes T,B,I,H`` and ``--contestants`` ask for a part of it. What is timed is
in ``scripts/benchmarks``: a contestant a file in ``contestants/``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contestants import CONTESTANTS

TABLES = ("growth", "memory", "runs", "cold_start", "population", "probes", "watch", "compare")


def main() -> None:
    """Measure what is asked for, print it, keep it."""
    options = _options()
    if options.accelerator:
        script = Path(__file__).with_name("accelerator.py")
        raise SystemExit(subprocess.call([sys.executable, script]))
    if options.show:
        for found in joined([json.loads(path.read_text()) for path in options.show]):
            print(_page(found), "\n")
        return
    table = next((name for name in TABLES if getattr(options, name)), "steps")
    begun = {"table": table, **machine.facts(), "load_before": machine.load()}

    def keep(part: dict[str, Any]) -> dict[str, Any]:
        """Write down what was measured so far."""
        found = {**begun, **part, "load_after": machine.load()}
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")
        return found

    options.keep = keep
    print(_page(keep(_room(table).measure(options))))


def joined(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tables of one kind that were measured a part at a time, as one: their rows together."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        if (whole := found.get(part["table"])) is None:
            found[part["table"]] = part
        else:
            whole["rows"] += part["rows"]
            whole["load_after"] = part["load_after"]
    return list(found.values())


def _page(found: dict[str, Any]) -> str:
    return f"{machine.told(found)}\n\n{_room(found['table']).show(found)}"


def _room(table: str) -> Any:
    name = {"compare": "compare_page"}.get(table, table)
    return importlib.import_module(f"benchmarks.{name}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="two sizes of the LSTM, in about two minutes")
    add("--repeats", type=int, help="rounds of turns")
    add("--sizes", nargs="+", help="T,B,I,H each; T,B,H with --probes and --watch")
    add("--cells", nargs="+", choices=("lstm", "gru", "rnn"))
    add(
        "--contestants",
        nargs="+",
        choices=list(CONTESTANTS),
        metavar="NAME",
        help=", ".join(CONTESTANTS),
    )
    add("--growth", action="store_true", help="by T, by B and by H")
    add("--memory", action="store_true", help="of each contestant")
    add("--runs", action="store_true", help="whole runs beside a plain loop in Flax and optax")
    add("--wandb", action="store_true", help="with --runs: also with W&B offline")
    add("--cold-start", action="store_true", help="seconds to the first finished step")
    add("--population", type=int, metavar="N", help="sweeps of N members")
    add("--probes", action="store_true", help="the probes")
    add("--watch", action="store_true", help="anyone's module, watched")
    add("--compare", nargs="+", metavar="SWEEP", help="compare pages")
    add("--accelerator", action="store_true", help="run scripts/accelerator.py")
    add("--show", nargs="+", type=Path, metavar="FILE", help="print what was kept by --out")
    add("--out", type=Path, metavar="FILE", help="keep all figures as JSON")
    add("--every", type=int, default=50, help="probe.every")
    add("--log-every", type=int, default=10, help="trainer.log_every")
    add("--examples", type=int, default=4, help="probe.examples")
    options = parser.parse_args()
    if options.out and not options.out.absolute().parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    for path in options.show or ():
        if not path.is_file():
            parser.error(f"--show {path}: there is no such file")
    return options


if __name__ == "__main__":
    main()
