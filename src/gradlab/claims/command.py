"""The command line of a check: ``python experiments/NAME/check.py DIR…``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from gradlab.claims.finding import Finding
from gradlab.claims.sweep import Sweep, read
from gradlab.errors import BadInput, visible
from gradlab.record.output import protect


def main(
    experiment: str,
    check: Callable[[Sweep], Sequence[Finding]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Check the runs in the folders given and print what was found.

    Args:
      experiment: its name.
      check: of ``experiments/NAME/check.py``.
      arguments: of the command line; those of this process if None.

    Returns:
      The exit code: 0 if every statement held, 1 if one did not, 2 if the runs cannot tell, with
      one message that says what is needed.
    """
    parser = argparse.ArgumentParser(
        description=f"Does what experiment={experiment} states hold in these runs?"
    )
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="the sweep's folder, or runs")
    protect()
    given = parser.parse_args(arguments)
    try:
        findings = check(read(experiment, *given.dirs))
    except BadInput as error:
        print(f"{experiment}: {error}", file=sys.stderr)
        return 2
    print(*map(visible, in_words(findings)), sep="\n")
    return 0 if all(one.held for one in findings) else 1


def in_words(findings: Sequence[Finding]) -> list[str]:
    """Each finding in two lines, for a terminal."""
    return [
        line
        for one in findings
        for line in (f"{one.verdict:>12}: {one.statement}", f"{'':14}{one.measured}")
    ]
