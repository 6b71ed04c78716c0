"""The answer in words: whose gradient reaches furthest, by how much, and what that bought."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradlab.compare.contenders import HORIZON, SLOPE, Contender, Field, field_of, mean_over
from gradlab.compare.groups import MODEL, final, only, shown
from gradlab.compare.jobs import DIVERGED, FINISHED
from gradlab.compare.phase_diagram import SUCCESS
from gradlab.compare.recorded import Recorded
from gradlab.compare.runs import is_number
from gradlab.compare.statistics import Difference, difference, paired, rank_correlation
from gradlab.compare.table import with_interval

RESULTS = {"test/accuracy": True, "test/loss": False, "val/loss": False}
"""Results, most wanted first, and whether higher is better."""
FEW = 5
"""Most contenders that are all named; of more, the best two."""
PROBE = "run them with probe=standard, or a list of probes with adjoint and memory_horizon in it"


class Headline(NamedTuple):
    """The answer in words.

    Attributes:
      title: one sentence: the answer.
      lines: further sentences: what it bought, what it rests on, caveats.
    """

    title: str
    lines: tuple[str, ...] = ()


def headline(runs: Sequence[Recorded]) -> Headline:
    """Whose gradient reaches furthest, by how much, and whether that went with better results.

    The reach of a run is its memory horizon at its end, in its first layer; that of a model (or
    another setting) the geometric mean over seeds. Ratios have Welch intervals of the logarithms;
    where one includes 1, nobody is said to be ahead. Names and values are as recorded: escape
    them.
    """
    # Without a folder that was given twice.
    runs = list({run.entry.path.resolve(): run for run in runs}.values())
    known = [
        run
        for run in runs
        if run.run is not None or run.entry.key_of(HORIZON) or run.entry.status == DIVERGED
    ]
    if not known:
        return _nothing(runs)
    if len(known) == 1:
        return _one(known[0], len(runs) - 1)
    field = field_of(known)
    measured = [one for one in field.contenders if one.reach()]
    caveats = [*_basis(field, measured), *_counts(field, measured), *_others(runs, known, field)]
    if not measured:
        return Headline(_unmeasured(field), tuple(caveats))
    if len(measured) == 1:
        title, lines, results = _alone(measured[0]), [], _result_of(measured[0])
    else:
        ranked, title = _answer(sorted(measured, key=_mean_reach, reverse=True))
        lines, results = _after(ranked), _results(field, ranked)
    if not _trained([run for one in measured for run in one.measured]):
        results = []  # those of an untrained network were bought by nothing
    return Headline(title, (*lines, *results, *caveats))


# --- the title ------------------------------------------------------------------------------------


def _nothing(runs: Sequence[Recorded]) -> Headline:
    if not runs:
        return Headline("There are no runs to compare.")
    ended = _listed(f"{n} {status}" for status, n in Counter(r.entry.status for r in runs).items())
    reason = next((run.damage for run in runs if run.damage), "")
    title = f"No run has data to compare: of {_number(len(runs), 'run')}, {ended}."
    return Headline(title, (f"The first says: {reason}.",) if reason else ())


def _one(run: Recorded, others: int) -> Headline:
    horizon, T = final(run, HORIZON), run.entry.length
    verdict = run.entry.info.get("verdict")
    lines = [str(line) for line in verdict] if isinstance(verdict, list) else []
    model = field_of([run]).contenders[0].gradient
    if run.entry.status == DIVERGED:
        lines.append(_sentence(f"the run diverged: {run.entry.reason.rstrip('.')}"))
    elif run.entry.status != FINISHED:
        lines.append(f"The run has not finished: it is {run.entry.status}.")
    if others:
        lines.append(f"{_number(others, 'more run')} recorded nothing.")
    if not math.isfinite(horizon):
        title = f"How far {model} reaches was not measured."
        return Headline(title, (*lines, f"The run has no memory horizon: {PROBE}."))
    series = run.series(HORIZON)
    when = f" at training step {series.steps[-1]:,}" if series is not None else ""
    whole = horizon >= T
    reach = f"all of the {T:g} steps of the sequence" if whole else f"{_steps(horizon)} steps"
    lines += _every([run])
    return Headline(_sentence(f"{model} reaches {reach} back{when}"), tuple(lines))


def _unmeasured(field: Field) -> str:
    runs = [run for one in field.contenders for run in one.group.runs]
    if all(run.entry.status == DIVERGED for run in runs):
        return f"All {len(runs)} runs diverged: there is no reach to compare."
    return "How far the gradient reaches was not measured."


def _alone(one: Contender) -> str:
    found = mean_over(one.reach())
    low, high = (math.exp(found.mean + sign * found.half) for sign in (-1, 1))
    known = not one.whole and math.isfinite(found.half)
    interval = f" [{_steps(low)} to {_steps(high)}]" if known else ""
    return _sentence(f"{one.gradient} reaches {_far(one)}{interval} back ({_seeds([one])})")


def _answer(ranked: Sequence[Contender]) -> tuple[Sequence[Contender], str]:
    """The contenders, best first, and the sentence on the first two."""
    if not ranked[1].whole:
        return ranked, _by_horizon(ranked)
    tied = [one for one in ranked if one.whole or one is ranked[0]]
    if any(not one.values(SLOPE) for one in tied):
        named = _listed(one.name for one in tied[:FEW])
        return ranked, f"Several gradients do not fall by e within the sequence: {named}."
    tied.sort(key=_mean_slope, reverse=True)
    order = [*tied, *(one for one in ranked if not (one.whole or one is ranked[0]))]
    return order, _by_slope(order, len(tied))


def _by_horizon(ranked: Sequence[Contender]) -> str:
    first, second = ranked[:2]
    found = _ratio(first, second)
    among = f"of {_many(ranked)}, " if len(ranked) > FEW else ""
    seeds = f"({_seeds([first, second])})"
    if found.has_interval and not found.is_certain:
        which = f"{first.gradient} and {second.name}"
        which += " reach furthest and" if len(ranked) > 2 else ""
        reaches = f"{_far(first)} and {_far(second)}, a ratio of {_as_ratio(first, found, '')}"
        return _sentence(f"{among}{which} cannot be told apart: {reaches} {seeds}")
    ratio = _as_ratio(first, found, " times")
    title = f"{first.gradient} reaches furthest: {_far(first)}, {ratio} as far as {_near(second)}"
    return _sentence(f"{among}{title} {seeds}")


def _by_slope(ranked: Sequence[Contender], tied: int) -> str:
    first, second = ranked[:2]
    found = _compared(first.values(SLOPE), second.values(SLOPE))
    slopes = [_mean_slope(first), _mean_slope(second)]
    numbers = f"slopes {_slope(slopes[0])} and {_slope(slopes[1])} nats per step"
    if found.has_interval:
        ends = f"[{_slope(found.low)} to {_slope(found.high)}]"
        numbers += f", a difference of {_slope(found.value)} {ends}"
    if found.has_interval and not found.is_certain:
        verdict = f"cannot be told apart by their {numbers}"
    elif slopes[0] * (_length(first) - 1) > 1:
        verdict = f"{first.name} grows on its way back: {numbers}"
    else:
        verdict = f"{first.name} keeps more on its way back: {numbers}"
    return _sentence(f"{_wholes(ranked, tied)}, and {verdict} ({_seeds([first, second])})")


def _wholes(ranked: Sequence[Contender], tied: int) -> str:
    """That the first two reach the whole sequence, or in how many runs they do."""
    first, second = ranked[:2]
    T = _length(first)
    whole = f"the whole sequence of {T:g} steps" if math.isfinite(T) else "the whole sequence"
    if not all(one.whole == len(one.measured) for one in (first, second)):
        counts = [f"{one.whole} of {_number(len(one.measured), 'run')}" for one in ranked[:2]]
        return f"{first.gradient} reaches {whole} in {counts[0]}, {second.name} in {counts[1]}"
    if len(ranked) > FEW:
        among = f"{first.name} and {second.name} among them, reach {whole}"
        return f"of {_many(ranked)} {tied}, {among}"
    return f"{first.gradient} and {second.name} reach {whole}"


# --- what goes with it ----------------------------------------------------------------------------


def _after(ranked: Sequence[Contender]) -> Iterable[str]:
    """How far the others reach, against the first."""
    first, others = ranked[0], ranked[2:]
    if not others:
        return
    if len(ranked) <= FEW:
        for one in others:
            found = _ratio(one, first)
            ratio = _as_ratio(one, found, " times")
            against = f", {ratio} as far as {first.name}" if not first.whole else ""
            yield _sentence(f"{one.gradient} reaches {_far(one)}{against}")
        return
    close = [one for one in ranked[1:] if not _ratio(first, one).is_certain]
    least = min(others, key=_mean_reach)
    rest = f"the shortest reach is {_near(least)}" + ("" if least.group.settings else " steps")
    told = sum(_ratio(first, one).has_interval for one in ranked[1:])
    words = f"{len(close)} of the other {len(ranked) - 1} cannot be told apart from it; "
    yield _sentence(f"{words if told else ''}{rest}")
    yield "The first of many is picked after the fact: its lead is flattered by chance."


def _results(field: Field, ranked: Sequence[Contender]) -> Iterable[str]:
    """Whether a longer reach went with better results."""
    if not field.one_problem:
        yield "Results of different tasks or lengths are not compared; reaches are, by lag alone."
        return
    yield from _bought(*ranked[:2])
    name = _result(ranked)
    if name is None:
        return
    if len(ranked) > FEW:
        yield from _together(name, ranked)
    elif others := ranked[2:]:
        found = [(one, mean_over(one.values(name))) for one in others]
        words = (f"{one.name} {with_interval(mean, mean.n)}" for one, mean in found)
        yield _sentence(f"{_in_words(name)} of the others: {_listed(words)}")


def _bought(first: Contender, second: Contender) -> Iterable[str]:
    """Whether the longer reach of the two went with better results."""
    name = _result([first, second])
    if name is None:
        yield "No results were recorded for both, so what the reach bought is not known."
        return
    mine, theirs = first.values(name), second.values(name)
    found = _compared(mine, theirs)
    if math.isnan(found.value):
        return
    shared = [key for key in mine if key in theirs]
    means = [mean_over({key: cells[key] for key in shared}) for cells in (mine, theirs)]
    texts = [with_interval(one, one.n) for one in means]
    numbers = f"{_in_words(name)} {texts[0]} against {texts[1]}"
    numbers += _against_baseline(first, name, [one.mean for one in means])
    better = (found.value > 0) == RESULTS[name]
    if not found.has_interval:
        word = "went with better results" if better else "did not go with better results"
        word = word if found.value else "made no difference to the results"
        yield f"That {word}, as far as single seeds tell: {numbers}."
    elif not found.is_certain:
        yield f"Whether that went with better results cannot be told: {numbers}."
    elif _is_ahead(first, second):
        word = "That went with better results" if better else "It did not go with better results"
        yield f"{word}: {numbers}."
    else:
        whose = (first if better else second).name.removesuffix("'s")
        yield _sentence(f"in their results {whose} is ahead: {numbers}")


def _together(name: str, ranked: Sequence[Contender]) -> Iterable[str]:
    """Over many contenders, whether reach and a result go together."""
    results = [mean_over(one.values(name)).mean for one in ranked]
    rho, low, high = rank_correlation(list(map(_mean_reach, ranked)), results)
    numbers = f"rank correlation {rho:.2f} [{low:.2f} to {high:.2f}] over {_many(ranked)}"
    if low <= 0 <= high:
        yield f"Over all of them reach and {_in_words(name)} show no clear relation: {numbers}."
    elif math.isfinite(rho):
        more = "higher" if rho > 0 else "lower"
        yield f"Over all of them a longer reach went with a {more} {_in_words(name)}: {numbers}."


def _result_of(one: Contender) -> Iterable[str]:
    """What a single contender came to."""
    if name := _result([one]):
        found = mean_over(one.values(name))
        guess = _against_baseline(one, name, [found.mean])
        yield _sentence(f"{_in_words(name)} {with_interval(found, found.n)}{guess}")


def _against_baseline(one: Contender, name: str, means: Sequence[float]) -> str:
    """The baseline, and whether nobody beats it."""
    guess = one.runs[0].entry.baseline(name)
    if math.isnan(guess):
        return ""
    beaten = [mean > guess if RESULTS[name] else mean < SUCCESS * guess for mean in means]
    which = "neither is" if len(means) > 1 else "it is not"
    words = f"; {which} clearly better" if not any(beaten) else ""
    return f" (baseline {guess:.4g}{words})"


def _result(contenders: Sequence[Contender]) -> str | None:
    """The result that is recorded for all of them."""
    return next((name for name in RESULTS if all(one.values(name) for one in contenders)), None)


# --- what it rests on -----------------------------------------------------------------------------


def _basis(field: Field, measured: Sequence[Contender]) -> Iterable[str]:
    runs = [run for one in measured for run in one.measured]
    if runs:
        layer = " of the first layer" if any(run.entry.layers > 1 for run in runs) else ""
        several = len(runs) > len(measured)
        means = "; means over runs are geometric" if several else ""
        yield (
            "The reach is the memory horizon, the lag at which the gradient has first fallen by e"
            f"{layer}, {_when(runs)}{means}."
        )
        yield from _every(runs)
    if field.shared:
        names = measured[0].group.names if measured else {}
        told = [
            f"{names.get(key, key)} = {_all_of(values)}" for key, values in field.shared.items()
        ]
        yield f"Averaged over {' and '.join(told)}, the same for each."
        yield from _at_each(measured)
    for one in measured:
        slope = _mean_slope(one)
        if len(measured) <= FEW and slope * (_length(one) - 1) > 1:
            yield _sentence(
                f"{one.gradient} explodes on its way back (slope {_slope(slope)} nats per step), "
                "so that a long reach is no merit of it"
            )


def _every(runs: Sequence[Recorded]) -> Iterable[str]:
    if any(run.entry.facts.get("readout") == "every" for run in runs):
        yield (
            "The task has a loss at every step, so each state receives gradient of its own, and "
            "horizons say little about transport through time."
        )


def _trained(runs: Sequence[Recorded]) -> bool:
    """Whether any run made more than the one step whose row is of the first parameters."""
    return {run.entry.summary.get("steps", math.nan) for run in runs} != {1.0}


def _when(runs: Sequence[Recorded]) -> str:
    made = {run.entry.summary.get("steps", math.nan) for run in runs}
    if not _trained(runs):
        return "at initialisation"
    if len(made) == 1 and math.isfinite(steps := next(iter(made))):
        return f"at the last recorded row of {steps:,.0f} training steps"
    return "at the last recorded row of each run"


def _at_each(measured: Sequence[Contender]) -> Iterable[str]:
    """Whether who reaches furthest on average does so at each shared setting."""
    if len(measured) < 2:
        return
    first = max(measured, key=_mean_reach)
    mine, every = first.reach(), [one.reach() for one in measured]
    keys = [key for key in mine if all(key in cells for cells in every)]
    ahead = sum(np.mean(mine[key]) >= max(np.mean(cells[key]) for cells in every) for key in keys)
    yield _sentence(f"{first.gradient} reaches furthest in {ahead} of these {len(keys)} settings")


def _counts(field: Field, measured: Sequence[Contender]) -> Iterable[str]:
    """Runs that diverged, have not finished, or measured nothing."""
    runs = [run for one in field.contenders for run in one.group.runs]
    if lost := [one for one in field.contenders if one.diverged]:
        few = lost[:FEW]
        told = [f"{one.diverged} of {len(one.group.runs)} of {one.name}" for one in few]
        more = f" and {sum(one.diverged for one in lost[FEW:])} of others" if lost[FEW:] else ""
        yield f"Diverged runs have no reach: {_listed(told)}{more} diverged."
    if going := [run for run in runs if run.entry.status not in (FINISHED, DIVERGED)]:
        taken = {id(run) for one in measured for run in one.runs}
        used = sum(id(run) in taken for run in going)
        it, are, its = ("it", "is", "its") if len(going) == 1 else ("they", "are", "their")
        what = {0: f"{it} {are} left out", len(going): f"{its} last recorded rows are used"}
        words = what.get(used, f"the last recorded rows of {used} of them are used")
        yield f"{_have(len(going), len(runs))} not finished; {words}."
    seen = {id(one) for one in measured}
    if blind := [one for one in field.contenders if id(one) not in seen and one.runs]:
        names = _listed((one.group.label for one in blind), most=FEW)
        yield f"No memory horizon was recorded for {names}: {PROBE}."


def _others(runs: Sequence[Recorded], known: Sequence[Recorded], field: Field) -> Iterable[str]:
    """Runs that play no part."""
    if field.elsewhere:
        task = field.contenders[0].group.runs[0].entry.task
        yield (
            f"Compared within {task}; the {_number(field.elsewhere, 'run')} of other tasks or "
            "lengths do not compare."
        )
    if field.left_out:
        yield f"{_number(field.left_out, 'run')} at settings that not every model has are left out."
    used = {id(run) for run in known}
    rest = [run for run in runs if id(run) not in used]
    if unread := sum(run.unread for run in rest):
        yield (
            f"{_have(unread, len(runs))} no memory horizon in the summary, and the arrays were not "
            "read."
        )
    if gone := len(rest) - unread:
        yield f"{_have(gone, len(runs))} no data that can be read."


# --- numbers and words ----------------------------------------------------------------------------


Cells = Mapping[tuple[Any, ...], Sequence[float]]


def _mean_reach(one: Contender) -> float:
    return mean_over(one.reach()).mean


def _mean_slope(one: Contender) -> float:
    """NaN where none was measured."""
    return mean_over(one.values(SLOPE)).mean


def _ratio(one: Contender, other: Contender) -> Difference:
    """Of the reaches, as a difference of logarithms; NaN if they share no setting."""
    return _compared(one.reach(), other.reach())


def _compared(mine: Cells, theirs: Cells) -> Difference:
    """At the settings that both have: over seeds, or over settings where these have one seed."""
    pairs = [(values, theirs[key]) for key, values in mine.items() if key in theirs]
    if not pairs:
        return Difference(math.nan, math.nan, math.nan)
    found = difference(pairs)
    return found if found.has_interval or len(pairs) < 2 else paired(pairs)


def _is_ahead(first: Contender, second: Contender) -> bool:
    """Whether the title says so."""
    if second.whole and first.values(SLOPE) and second.values(SLOPE):
        return _compared(first.values(SLOPE), second.values(SLOPE)).is_certain
    return not second.whole and _ratio(first, second).is_certain


def _far(one: Contender, *, unit: bool = True) -> str:
    """``87 steps``, ``at least 100 steps, the whole sequence``."""
    reach = math.exp(_mean_reach(one))
    text = f"{_steps(reach)} steps" if unit else _steps(reach)
    if not one.whole:
        return text
    if one.whole == len(one.measured):
        return f"at least {text}, the whole sequence"
    return f"at least {text}, in {one.whole} of {len(one.measured)} runs the whole sequence"


def _near(one: Contender) -> str:
    """``the GRU's 21``, ``that with forget_bias = 2 (21 steps)``."""
    if one.group.settings:
        return f"{one.name} ({_far(one)})"
    return f"{one.name} {_far(one, unit=False)}"


def _as_ratio(one: Contender, found: Difference, unit: str) -> str:
    """``4.1 times [2.9 to 5.6]``; a lower bound where the first reaches the whole sequence."""
    ratio = _two(math.exp(found.value))
    if not found.has_interval:
        return f"at least {ratio}{unit}" if one.whole else f"{ratio}{unit}"
    low, high = (_two(math.exp(min(end, 700.0))) for end in (found.low, found.high))
    if one.whole:
        return f"at least {ratio}{unit} [{low} or more]"
    return f"{ratio}{unit} [{low} to {high}]"


def _seeds(contenders: Sequence[Contender]) -> str:
    """``3 seeds each, 95 % interval``."""
    counts = [len(one.measured) for one in contenders]
    settings = max(len(one.cells) for one in contenders)
    what = "run" if settings > 1 else "seed"
    each = " each" if len(counts) > 1 else ""
    if max(counts) == 1:
        return f"one {what}{each}, so no interval"
    told = f"{_number(counts[0], what)}{each}"
    if len(set(counts)) > 1:
        told = f"{' and '.join(map(str, counts))} {what}s"
    if all(len(v) > 1 for one in contenders for v in one.reach().values()):
        return f"{told}, 95 % interval"
    if len(contenders) == 2 and _ratio(*contenders).has_interval:
        return f"{told}, 95 % interval over settings"
    return f"{told}, too few for an interval"


def _steps(value: float) -> str:
    """Timesteps: one decimal below 10."""
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _two(value: float) -> str:
    """A ratio with two digits, three near 1."""
    if value < 0.01:
        return "under 0.01"
    if value > 1000:
        return "over 1,000"
    if value < 0.8:
        return f"{value:#.2g}"
    return f"{value:.{2 if value < 1.25 else 1 if value < 9.95 else 0}f}"


def _slope(value: float) -> str:
    return f"{value:+.2g}"


def _length(one: Contender) -> float:
    return only((run.entry.length for run in one.runs), math.nan)


def _in_words(name: str) -> str:
    return name.replace("/", " ").replace("val ", "validation ")


def _all_of(values: Sequence[Any]) -> str:
    """``0.1 and 0.01``; of many numbers the range."""
    if len(values) > FEW and all(map(is_number, values)):
        return f"{shown(min(values))} to {shown(max(values))} ({len(values)} values)"
    return _listed(map(shown, values), most=FEW)


def _many(ranked: Sequence[Contender]) -> str:
    models = all(set(one.group.values) <= {MODEL} for one in ranked)
    return _number(len(ranked), "model" if models else "setting")


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _have(count: int, of: int) -> str:
    return f"{count} of {_number(of, 'run')} {'has' if count == 1 else 'have'}"


def _listed(words: Iterable[str], most: int = 0) -> str:
    """``a, b and c``; of more than ``most`` the first, and how many others."""
    every = list(words)
    if most and len(every) > most:
        every = [*every[: most - 1], f"{len(every) - most + 1} others"]
    return " and ".join(filter(None, [", ".join(every[:-1]), every[-1]])) if every else ""


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."
