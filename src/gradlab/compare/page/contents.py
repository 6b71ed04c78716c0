"""What the page holds: every run as plain data that JSON can carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from gradlab.compare import phase_diagram
from gradlab.compare.groups import once, repeats, short
from gradlab.compare.headline import headline
from gradlab.compare.matched import Matched, matched
from gradlab.compare.page.packed import Packing, Thinning, thinning
from gradlab.compare.phase_diagram import Diagram, name_of
from gradlab.compare.recorded import ADJOINT, CURVES, SERIES, Recorded
from gradlab.compare.runs import part, settings_that_differ
from gradlab.compare.statistics import LEVEL, ROUNDING, UNBOUNDED, Estimate, bounds_of, students_t
from gradlab.compare.table import HEADINGS, WHEN, heading, with_interval
from gradlab.record.directory import plain
from gradlab.record.figures.common import spread
from gradlab.record.private import scrub_text
from gradlab.variable import over_lag_name

LONGEST_REASON = 300
"""Characters of the reason for which a run ended."""


Arrays = Mapping[str, Mapping[str, Any]]
"""Of a run: ``arrays``, packed, and where in them ``curves`` and ``series`` are, by name."""


def arrays_of(run: Recorded, limits: Thinning) -> Arrays:
    """The arrays of a run, packed."""
    packing = Packing()
    curves = dict(_curves(run, limits, packing))
    series = dict(_series(run, limits, packing))
    return {"curves": curves, "series": series, "arrays": packing.packed()}


def contents(
    found: Sequence[Recorded], arrays: Callable[[Recorded, Thinning], Arrays] = arrays_of
) -> dict[str, Any]:
    """Everything that the page shows of some runs, as JSON can carry it.

    Numbers are the recorded ones, in full; what there is no room for is left out row by row, never
    averaged, and ``notices`` says so.

    Args:
      found: the runs.
      arrays: gives the packed arrays of one; :func:`arrays_of`, or one that remembers.
    """
    runs = [run.entry for run in found]
    limits = _limits(found)
    packed = [arrays(run, limits) for run in found]
    kept = set(map(id, once(found)))
    answer = headline(found)
    differ = settings_that_differ(runs)
    settings = [
        {key: _value(values[index]) for key, values in differ.items()} for index in range(len(runs))
    ]
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "headline": {"title": answer.title, "lines": list(answer.lines)},
        "notices": notices(found, limits),
        "keys": {
            key: {"short": name, "label": name_of(key)} for key, name in short(differ).items()
        },
        "curves": CURVES,
        "series": SERIES,
        "bounds": _bounds(found),
        "runs": [
            {**one_run(run, own), "repeats": id(run) not in kept, **its}
            for run, own, its in zip(found, settings, packed, strict=True)
        ],
        "when": f"{WHEN[0].upper()}{WHEN[1:]}.",
        "matched": [_matched(one) for one in matched(runs)],
        "phase": _phase(phase_diagram.diagram(runs)),
        "level": LEVEL,
        "rounding": ROUNDING,
        "student": student(len(runs)),
    }


def one_run(run: Recorded, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One run without its arrays: what it is, how it ended, its figures."""
    entry, facts = run.entry, run.entry.facts
    baseline = part(entry.info, "baseline")
    return {
        "name": entry.name,
        "path": scrub_text(str(entry.path)),
        "status": "truncated" if run.trouble and run.run is not None else entry.status,
        "reason": "; ".join(filter(None, [entry.reason, run.trouble]))[:LONGEST_REASON],
        "settings": settings,
        "seed": scrub_text(str(entry.seed)),
        **{k: _value(facts.get(k)) for k in ("model", "task", "T", "readout", "parameters")},
        **{k: _value(entry.info.get(k)) for k in ("steps_per_second", "probe_overhead")},
        "summary": {key: _figure(run, key) for key in entry.summary},
        "baseline": {split: plain(part(baseline, split)) for split in baseline},
        "command": entry.command,
        "verdict": [str(line) for line in entry.info.get("verdict") or ()],
        "layers": list(run.layers),
        "unread": run.unread,
    }


def notices(runs: Sequence[Recorded], limits: Thinning) -> list[str]:
    """What a reader must know before comparing: mixed tasks or lengths, what is not all there."""
    facts = [run.entry.facts for run in runs if run.entry.info]
    words = []
    if len(tasks := sorted({str(one["task"]) for one in facts if one.get("task")})) > 1:
        words.append(
            f"The runs are of different tasks ({', '.join(tasks)}): their losses do not compare; "
            "facet by task to keep them apart."
        )
    if len(lengths := sorted({one["T"] for one in facts if isinstance(one.get("T"), int)})) > 1:
        some = ", ".join(map(str, lengths[:6])) + (", …" if len(lengths) > 6 else "")
        words.append(
            f"The runs are of different lengths (T = {some}): curves are aligned by lag, the "
            "distance from each example's own last step."
        )
    if padded := [run.entry.name for run in runs if _counts_from_the_padding(run)]:
        words.append(
            f"{_of(padded)} recorded no lags of each example's own: theirs count from the end of "
            "the padded sequence."
        )
    if unread := sum(run.unread for run in runs):
        words.append(
            f"Curves, maps and what changes in training are shown of {len(runs) - unread:,} of the "
            f"{len(runs):,} runs, spread over their settings. Everything else (the words above, "
            "phase diagram, models matched by size, the table) is of the summaries of all."
        )
    if left_out := len(runs) - len(once(runs)):
        words.append(f"{repeats(left_out)} of every mean; the table lists every run.")
    if unreadable := [run.entry.name for run in runs if run.run is None and not run.unread]:
        words.append(
            f"{_of(unreadable)} cannot be read or never began, see the table for the reason; "
            "the others are shown."
        )
    if damaged := [run.entry.name for run in runs if run.run is not None and run.trouble]:
        words.append(f"{_of(damaged)} lost a part of the arrays; what is whole is shown.")
    if cut := _thinned(limits):
        words.append(
            f"Thinned to keep this page small: at most {cut} are on it, evenly spread, both ends "
            "included. Values are the recorded ones, none is averaged; the run directories hold "
            "all."
        )
    return words


def _figure(run: Recorded, key: str) -> Any:
    """A figure of the summary; in words where it is an infinity, which the arrays alone hold."""
    value = run.entry.summary[key]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    name, _, label = key.partition("/layer_")
    series = run.series(name) if label and name in run.names else None
    if series is None or label not in run.layers:
        return None
    known = series.values[:, run.layers.index(label)]
    known = known[~np.isnan(known)]
    if not len(known) or not np.isposinf(known[-1]):
        return None
    return "never" if name.endswith("_horizon") else "∞, exactly zero"


def _bounds(runs: Sequence[Recorded]) -> dict[str, Any]:
    """Of each variable over training that has bounds: them; None for none, ``T`` for the length."""
    names = dict.fromkeys(name for run in runs for name in [*run.scalars, *SERIES])
    found = {name: bounds_of(name) for name in names}
    found |= {name: (0.0, "T") for name in names if bounds_of(name, 1.0)[1] != found[name][1]}
    free: dict[Any, None] = {-math.inf: None, math.inf: None}
    return {
        name: [free.get(end, end) for end in ends]
        for name, ends in found.items()
        if ends != UNBOUNDED
    }


def _counts_from_the_padding(run: Recorded) -> bool:
    shortest = part(run.entry.config, "task").get("min_length")
    own = over_lag_name(ADJOINT) in run.names
    return ADJOINT in run.names and not own and shortest not in (None, run.entry.length)


def _value(value: Any) -> Any:
    """A single value as JSON can carry it; a list or a section as text."""
    return plain(str(value) if isinstance(value, Mapping | list) else value)


def student(most: int) -> list[float]:
    """Student's t for the interval over 0, 1, 2, … ``most`` values; 0 where there is none."""
    return [0.0, 0.0, *students_t(np.arange(1, max(most, 2))).tolist()]


def _limits(runs: Sequence[Recorded]) -> Thinning:
    curves = [run.measured(name) for run in runs for name in CURVES]
    series = [run.rows for run in runs for _ in _series_of(run)]
    return thinning([sizes for sizes in curves if sizes[0]], series)


def _series_of(run: Recorded) -> list[str]:
    return [*run.scalars, *(name for name in SERIES if run.has(name))]


def _curves(run: Recorded, limits: Thinning, to: Packing) -> Iterator[tuple[str, Any]]:
    for name in CURVES:
        found = run.curve(name, limits.steps, limits.lags)
        if found is not None:
            steps, lags = (to.add(each.astype(np.int32)) for each in (found.steps, found.lags))
            yield name, {"steps": steps, "lags": lags, "values": to.add(found.values)}


def _series(run: Recorded, limits: Thinning, to: Packing) -> Iterator[tuple[str, Any]]:
    for name in _series_of(run):
        found = run.series(name)
        if found is not None:
            rows = spread(len(found.steps), limits.rows or len(found.steps))
            steps = to.add(found.steps[rows].astype(np.int32))
            yield name, {"steps": steps, "values": to.add(found.values[rows])}


def _thinned(limits: Thinning) -> str:
    counts = {"training steps": limits.steps, "lags": limits.lags}
    parts = [f"{most} {what}" for what, most in counts.items() if most]
    words = [f"{' and '.join(parts)} of each curve"] if parts else []
    words += [f"{limits.rows} training steps of each loss and figure"] if limits.rows else []
    return " and ".join(words)


def _of(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"Run {shown}" if len(names) == 1 else f"Runs {shown}"


def _matched(found: Matched) -> dict[str, Any]:
    return {
        "by": found.by,
        "note": found.note,
        "levels": [
            {
                "label": level.label,
                "rows": [
                    row._asdict() | {"figures": {k: _estimate(e) for k, e in row.figures.items()}}
                    for row in level.rows
                ],
            }
            for level in found.levels
        ],
        "headings": {name: heading(name) for name in HEADINGS},
    }


def _estimate(found: Estimate) -> dict[str, Any]:
    return plain(found._asdict()) | {"words": with_interval(found, found.n)}


def _phase(found: Diagram | None) -> dict[str, Any] | None:
    if found is None or not found.panels():
        return None
    return {
        "keys": list(found.keys),
        "labels": [name_of(key) for key in found.keys],
        "x": found.x.tolist(),
        "y": found.y.tolist(),
        "geometric": [phase_diagram.is_geometric(values) for values in (found.x, found.y)],
        "when": found.when,
        "subject": found.subject,
        "finished": found.finished.tolist(),
        "diverged": found.diverged.tolist(),
        "panels": [
            {
                "name": panel.name,
                "title": panel.title,
                "label": panel.label.replace("\n", "; "),
                "middle": panel.middle,
                "values": plain(found.figures[panel.name]),
            }
            for panel in found.panels()
        ],
    }
