"""The command line: ``python -m gradlab.compare DIR… [--out FILE.html] [--serve] …``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradlab.compare import MOST_ARRAYS
from gradlab.errors import BadInput, visible, visible_lines
from gradlab.record.output import protect

if TYPE_CHECKING:
    from gradlab.compare.recorded import Recorded

WHAT = """\
Many runs, one page that answers: whose gradient loses least on its way back, and for what?

DIR is a run directory, the folder of a sweep, or a folder with any mix of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code. Bad input is one message and code 2."""
    protect()
    try:
        return _command(_parser().parse_args(arguments))
    except BadInput as error:
        _tell(error)
        return 2
    except OSError as error:
        _tell(error)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m gradlab.compare",
        description=WHAT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="runs and sweeps to compare")
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        help="where to write the page (default: compare.html in DIR, or here if there are several)",
    )
    parser.add_argument(
        "--figures", metavar="FOLDER", help="write figures for a paper, and their numbers, there"
    )
    parser.add_argument(
        "--arrays",
        type=_count,
        default=MOST_ARRAYS,
        metavar="N",
        help="of more than N runs, show the curves of N that are spread over the settings; "
        "all else is of all runs (default: %(default)s)",
    )
    parser.add_argument("--wandb", action="store_true", help="make a W&B report and a workspace")
    parser.add_argument("--serve", action="store_true", help="show the page live while runs go")
    parser.add_argument(
        "--host", default="127.0.0.1", help="with --serve: the address (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="with --serve: the port (default: a free one)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="with --serve: a further name by which it may be asked for, as behind a proxy",
    )
    return parser


def _command(given: argparse.Namespace) -> int:
    folders = [Path(path) for path in given.dirs]
    code = 0
    if not given.serve or given.out or given.figures or given.wandb:
        code = _once(given, folders)
    if given.serve:
        from gradlab.compare.serve import serve

        names = given.allow_host or ()
        return serve(folders, given.host, given.port, names, given.arrays) or code
    return code


def _once(given: argparse.Namespace, folders: Sequence[Path]) -> int:
    """Everything that is made of the runs as they stand; gives the exit code."""
    from gradlab.compare.progress import Progress
    from gradlab.compare.runs import runs_in

    progress = Progress()
    runs = runs_in(*folders, progress=progress)
    if not runs:
        allowed = "folders with at least one run in them (a folder with run.json)"
        raise BadInput("DIR", " ".join(given.dirs), allowed, "a folder under outputs/ or multirun/")
    from gradlab.compare.chosen import recorded_of_some
    from gradlab.compare.page import NAME, write

    alone = len(folders) == 1
    out = Path(given.out) if given.out else (folders[0] if alone else Path()) / NAME
    if out.is_dir():
        raise BadInput("--out", str(out), "a file", str(out / NAME))
    if len(runs) > given.arrays:
        write(recorded_of_some(runs, 0), out)
        progress.say(f"first page, of the summaries alone: {visible(out)}")
    found = recorded_of_some(runs, given.arrays, progress)
    print(f"page: {visible(write(found, out))}{_of_some(found)}")
    if given.figures:
        _figures(found, Path(given.figures))
    return _report(found, out.parent) if given.wandb else 0


def _of_some(runs: Sequence[Recorded]) -> str:
    """Of how many runs the arrays were read, if not of all."""
    unread = sum(run.unread for run in runs)
    more = f"curves of {len(runs) - unread:,} of {len(runs):,} runs; --arrays {len(runs)} for all"
    return f"  ({more})" if unread else ""


def _count(text: str) -> int:
    if (count := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{count} is no number of runs")
    return count


def _figures(runs: Sequence[Recorded], folder: Path) -> None:
    from gradlab.compare.figures import draw

    written = draw(runs, folder)
    figures = ", ".join(path.stem for path in written if path.suffix == ".csv")
    print(f"figures: {visible(folder)} ({figures or 'none: nothing was recorded that they show'})")


def _report(runs: Sequence[Recorded], folder: Path) -> int:
    """Make the W&B report; gives the exit code."""
    from gradlab.compare.headline import headline
    from gradlab.compare.report import NotSent, publish

    try:
        published = publish(runs, headline(runs), folder)
    except NotSent as error:
        _tell(error)
        return 1
    print(*map(visible, published.words), sep="\n")
    return 0


def _tell(error: Exception) -> None:
    print(f"gradlab.compare: {visible_lines(error, indent='')}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
