"""What a run is worth to a sweeper: one figure of its summary, or several."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gradlab.errors import BadInput, nearest

KEY = "objective"
Worth = float | tuple[float, ...]
"""What a sweeper is told of a run."""


def objective_of(objective: str | list[str], summary: Mapping[str, Any]) -> Worth:
    """The figures that ``objective`` names, as a sweeper takes them.

    Args:
      objective: a name in the summary, or a list of names; between bars, ``|NAME|``, the magnitude.
      summary: figures by name; None for one that is not finite.

    Returns:
      The figure; for a list a tuple of figures. nan, which a sweeper takes for a failed run, for
      one that is not there or not finite.
    """
    if isinstance(objective, str):
        return _figure(objective, summary)
    return tuple(_figure(one, summary) for one in objective)


def lacking(objective: str | list[str], summary: Mapping[str, Any]) -> str:
    """One message on the names that a run did not record, and which there are; else empty."""
    missing = [name for name in _names(objective) if name not in summary]
    if not missing:
        return ""
    figures = [name for name, value in summary.items() if not isinstance(value, str)]
    there = ", ".join(_nearest_first(missing[0], figures)) or "none"
    return f"{KEY}: the run recorded no {', '.join(missing)}; the figures that it has: {there}"


def check_objective(objective: str | list[str], experiment: Any) -> None:
    """Refuse a figure that no run of an experiment can have.

    Args:
      objective: as for :func:`objective_of`.
      experiment: a :class:`gradlab.experiment.Experiment`.

    Raises:
      BadInput: naming it, and the figures that there will be, the nearest first.
    """
    if not objective:
        raise BadInput(
            KEY, objective, "a figure of the summary, or a list of them", f"{KEY}=val/loss"
        )
    always = _of_every_run(experiment)
    unknown = [name for name in _names(objective) if name not in always]
    if not unknown:
        return
    known = [*always, *_of_its_probes(experiment)]  # which takes a moment
    for name in unknown:
        if name not in known:
            close = ", ".join(f"{KEY}={one}" for one in nearest(name, known))
            allowed = f"figures of the summary: {', '.join(_nearest_first(name, known))}"
            raise BadInput(KEY, name, allowed, close)


def _figure(name: str, summary: Mapping[str, Any]) -> float:
    value = summary.get(_bare(name))
    if not isinstance(value, int | float) or not math.isfinite(value):
        return math.nan
    return abs(value) if name != _bare(name) else float(value)


def _names(objective: str | list[str]) -> list[str]:
    return [_bare(name) for name in ([objective] if isinstance(objective, str) else objective)]


def _bare(name: str) -> str:
    """Without the bars of a magnitude."""
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] == "|" else name


def _nearest_first(name: str, known: Collection[str]) -> list[str]:
    return list(dict.fromkeys([*nearest(name, known, n=5), *known]))


def _of_every_run(experiment: Any) -> list[str]:
    from gradlab.record.base import AT_LENGTH
    from gradlab.recording import SCALARS

    names: Iterable[str] = [*SCALARS, "best/step", "steps"]
    for at in ("", *(f"{AT_LENGTH}{length}" for length in experiment.trainer.test_lengths)):
        names += [f"test/loss{at}", f"test/accuracy{at}"]
    if experiment.task.loss != "cross_entropy":
        names = [name for name in names if "/accuracy" not in name]
    return [*names, "steps_per_second", "probe_overhead"]


def _of_its_probes(experiment: Any) -> list[str]:
    from gradlab.experiment import build_steps

    steps = build_steps(experiment)
    layers = [f"layer_{name.replace(' ', '_')}" for name in steps.names]
    names: list[str] = []
    for name, variable in steps.variables.items():
        if not variable.dims:
            names.append(name)
        elif variable.dims == ("layer",) or name == "lyapunov_exponent":  # of that, the largest
            names += [f"{name}/{layer}" for layer in layers]
    return names
