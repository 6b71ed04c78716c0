"""Run the experiments of ``experiments/`` and write what was measured into their READMEs.

    python scripts/gallery.py                      all of them, in full
    python scripts/gallery.py rnn_vs_lstm          one
    python scripts/gallery.py --quick              smaller and fewer runs; no README changes

Each experiment is one sweep, ``python -m gradlab -m experiment=NAME``, in a folder of its own
under ``multirun/gallery``; with ``--quick`` the overrides ``QUICK`` of its ``check.py`` are added.
A sweep that is whole is not run again, and one that was ended half-way goes on, unless its command
or its yaml has changed since (or with ``--fresh``): then the old one is moved aside. After that
its ``check.py`` says which statements held, and the figure is drawn.

In full, the table of statements, the figure and the table of all experiments are written to
``experiments/`` between marks; with ``--quick`` to the sweep's folder. Exit code 1 if a sweep
failed or a check could not be made; a statement that does not hold is a result, and no failure.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from gradlab.claims import page
from gradlab.claims.command import in_words
from gradlab.claims.sweep import command_of, read
from gradlab.errors import BadInput, nearest

ROOT = Path(__file__).parents[1]
EXPERIMENTS, CONF = ROOT / "experiments", ROOT / "conf" / "experiment"
STATE = "gallery.json"
RESULT = "result.json"


@dataclass
class State:
    """How far the sweep of an experiment is.

    Attributes:
      command: that makes its runs, without the folder.
      yaml: a digest of the experiment's yaml.
      whole: whether all of its runs have come to their end.
      seconds: that it took so far.
    """

    command: str
    yaml: str
    whole: bool = False
    seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    given = _parser().parse_args(arguments)
    try:
        names = chosen(given.names)
    except BadInput as error:
        print(f"gallery: {error}", file=sys.stderr)
        return 2
    ends = {}
    for name in names:
        print(f"\n== {name}", flush=True)
        try:
            ends[name] = show(name, given)
        except BadInput as error:
            print(f"gallery: {name}: {error}", file=sys.stderr)
            ends[name] = "no result, see above"
        except KeyboardInterrupt:
            print("\ngallery: interrupted; the same command goes on from here", file=sys.stderr)
            return 130
    print()
    for name, end in ends.items():
        print(f"{name:>22}: {end}")
    return int(any(end.startswith("no result") for end in ends.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(known())}")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer runs")
    parser.add_argument("--fresh", action="store_true", help="run again what has been run")
    parser.add_argument(
        "--folder", default="multirun/gallery", help="of the sweeps (default: %(default)s)"
    )
    return parser


def known() -> list[str]:
    """The experiments that have a check, in the order of the lecture."""
    names = [path.parent.name for path in EXPERIMENTS.glob("*/check.py")]
    return sorted(names, key=lambda name: check_of(name).PLACE)


def chosen(names: Sequence[str]) -> list[str]:
    """The experiments that are asked for, or all.

    Raises:
      BadInput: for a name that is none.
    """
    there = known()
    for name in names:
        if name not in there:
            raise BadInput("NAME", name, " | ".join(there), " ".join(nearest(name, there, 1)))
    return list(names) or there


def check_of(name: str) -> ModuleType:
    """The module ``experiments/NAME/check.py``."""
    path = EXPERIMENTS / name / "check.py"
    spec = importlib.util.spec_from_file_location(f"check_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass in it looks its own module up there
    spec.loader.exec_module(module)
    return module


def show(name: str, given: argparse.Namespace) -> str:
    """Run what is missing of an experiment, check it, and write the result; gives it in a line."""
    check = check_of(name)
    overrides = list(check.QUICK) if given.quick else []
    folder = Path(given.folder) / (f"{name}-quick" if given.quick else name)
    command = shlex.join([*shlex.split(command_of(name)), *overrides])
    state = run(name, folder, command, fresh=given.fresh)
    if not state.whole:
        raise BadInput("sweep", str(folder), "runs that all came to their end", "the same again")
    sweep = read(name, folder)
    findings = check.check(sweep)
    print(*in_words(findings), sep="\n")
    home = folder if given.quick else EXPERIMENTS / name
    page.save(check.draw, sweep, home / page.FIGURE)
    result = {
        "question": question(check),
        "findings": [asdict(one) for one in findings],
        "minutes": round(state.seconds / 60, 1),
        "made": page.made_by(sweep, command, state.seconds / 60),
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (home / RESULT).write_text(text, encoding="utf-8")
    if not given.quick:
        write_readme(name, check, result)
        write_table()
    print(f"figure: {home / page.FIGURE}", f"compare: {folder / 'compare.html'}", sep="\n")
    return f"{counted(result)} held, {state.seconds / 60:.1f} minutes"


def question(check: ModuleType) -> str:
    """The first line of the check's docstring."""
    return (check.__doc__ or "").strip().splitlines()[0]


def counted(result: dict) -> str:
    """``3 of 4``: how many statements held."""
    findings = result["findings"]
    return f"{sum(one['held'] for one in findings)} of {len(findings)}"


def run(name: str, folder: Path, command: str, *, fresh: bool) -> State:
    """Begin the sweep of an experiment, or go on with it, unless it is whole."""
    yaml = hashlib.sha256((CONF / f"{name}.yaml").read_bytes()).hexdigest()
    state, begun = State(command, yaml), kept(folder)
    if begun is not None and not fresh and (begun.command, begun.yaml) == (command, yaml):
        state = begun
    elif folder.exists():
        aside = next(p for n in range(1, 10**6) if not (p := Path(f"{folder}.old{n}")).exists())
        folder.rename(aside)
        print(f"the runs of another command, yaml or time are now in {aside}")
    if state.whole:
        print(f"its runs are there: {folder}")
        return state
    words = shlex.split(command)[1:]
    if (folder / "multirun.yaml").exists():
        words = ["-m", "gradlab", "-m", f"trainer.resume={folder}"]
    else:
        words.append(f"hydra.sweep.dir={folder}")
    print(shlex.join(["python", *words]), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    keep(folder, state)
    start = time.monotonic()
    try:
        state.whole = ended(words) == 0
    finally:
        state.seconds += time.monotonic() - start
        keep(folder, state)
    return state


def ended(words: Sequence[str]) -> int:
    """Run Python with these arguments until it ends; gives its exit code.

    Ctrl-C reaches it as well, and a SIGTERM is passed on: it saves where its runs stand and ends.
    """
    process = subprocess.Popen([sys.executable, *words])

    def pass_on(*_: object) -> None:
        process.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return process.wait()
    finally:
        process.wait()
        signal.signal(signal.SIGTERM, before)


def kept(folder: Path) -> State | None:
    """What an earlier gallery left of an experiment; None if nothing that can be read."""
    try:
        return State(**json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def keep(folder: Path, state: State) -> None:
    """Note how far the sweep is."""
    (folder / STATE).write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")


def write_readme(name: str, check: ModuleType, result: dict) -> None:
    """The measured part of an experiment's README."""
    findings = [page.Finding(**one) for one in result["findings"]]
    lines = [*page.table(findings), "", f"![{question(check)}]({page.FIGURE})"]
    lines += ["", f"*{' '.join(check.CAPTION.split())}*", "", result["made"]]
    page.rewrite(EXPERIMENTS / name / "README.md", lines)


def write_table() -> None:
    """The table of all experiments, from their results."""
    lines = ["| experiment | question | held | minutes | first result |", "|---|---|---|---|---|"]
    for name in known():
        if not (EXPERIMENTS / name / RESULT).exists():
            lines.append(f"| [{name}]({name}/README.md) | {question(check_of(name))} | | | |")
            continue
        result = json.loads((EXPERIMENTS / name / RESULT).read_text(encoding="utf-8"))
        cells = [
            f"[{name}]({name}/README.md)",
            page.cell(result["question"]),
            counted(result),
            f"{result['minutes']:g}",
            page.cell(result["findings"][0]["measured"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    page.rewrite(EXPERIMENTS / "README.md", lines)


if __name__ == "__main__":
    sys.exit(main())
