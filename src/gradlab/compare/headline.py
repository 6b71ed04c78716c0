"""The answer in words: whose gradient loses least on its way back, by how much, and what for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradlab.compare.contenders import Cell, Contender, Field, field_of
from gradlab.compare.groups import MODEL, final, once, only, repeats, shown
from gradlab.compare.jobs import DIVERGED, FINISHED
from gradlab.compare.phase_diagram import SUCCESS
from gradlab.compare.recorded import HORIZON, LOST, PER_100, R2, SLOPE, Recorded
from gradlab.compare.runs import is_number
from gradlab.compare.statistics import Difference, difference, rank_correlation
from gradlab.compare.table import with_interval
from gradlab.record.verdict import rests_on_first_steps

RESULTS = {"test/accuracy": True, "test/loss": False, "val/loss": False}
"""Results, most wanted first, and whether higher is better."""
FEW = 5
"""Most contenders that are all named; of more, the best two."""
STRAIGHT = 0.9
"""Least R² of a line over the lag that is called straight."""
A_FACTOR_E = math.log10(math.e)
"""Decades that a gradient must grow by over the sequence to be called exploding."""
PROBE = "run them with probe=standard, or a list of probes with adjoint and adjoint_slope in it"


class Headline(NamedTuple):
    """The answer in words.

    Attributes:
      title: one sentence: the answer.
      lines: further sentences: what it bought, what it rests on, caveats.
    """

    title: str
    lines: tuple[str, ...] = ()


def headline(runs: Sequence[Recorded]) -> Headline:
    """Whose gradient loses least on its way back, by how much, and whether results were better.

    A run is told by the decades that its gradient has lost at its end, in its first layer: over the
    sequence where all are of one length, else per 100 steps. A model (or another setting) is the
    mean over seeds, and differences have Welch intervals; where one includes 0, nobody is said to
    be ahead. A gradient that explodes is behind those that do not. Names and values are as
    recorded: escape them.
    """
    # Without a folder that was given twice.
    given = list({run.entry.path.resolve(): run for run in runs}.values())
    runs = once(given)
    known = [
        run
        for run in runs
        if run.run is not None
        or any(map(run.entry.key_of, (LOST, PER_100, SLOPE)))
        or run.entry.status == DIVERGED
    ]
    if not known:
        return _nothing(runs)
    if len(known) == 1:
        return _one(known[0], len(runs) - 1)
    field = field_of(known)
    measured = [one for one in field.contenders if one.measured]
    what = _what(field, measured)
    ranked = sorted(measured, key=what.rank)
    caveats = [*_basis(field, ranked, what), *_counts(field, ranked), *_others(runs, known, field)]
    if left_out := len(given) - len(runs):
        caveats.append(f"{repeats(left_out)}.")
    if not ranked:
        return Headline(_unmeasured(field), tuple(caveats))
    if len(ranked) == 1:
        title, lines, results = what.alone(ranked[0]), [], _result_of(ranked[0])
    else:
        title, lines, results = (
            what.title(ranked),
            what.after(ranked),
            _results(field, ranked, what),
        )
    measured_runs = [run for one in ranked for run in one.measured]
    if not _trained(measured_runs):
        results = []  # those of an untrained network were bought by nothing
    return Headline(title, (*_fed(measured_runs), *lines, *results, *caveats))


# --- what is compared -----------------------------------------------------------------------------


class Decades(NamedTuple):
    """The figure by which gradients are compared, and the sentences about it.

    Attributes:
      name: ``decades_lost`` or ``decades_per_100``.
      over: over how many steps, in words.
    """

    name: str
    over: str

    def of(self, one: Contender) -> float:
        """The mean over a contender's runs; infinite where nothing arrives in one of them."""
        return math.inf if self.is_dead(one) else one.estimate(self.name).mean

    def is_dead(self, one: Contender) -> bool:
        """Whether in some run exactly nothing arrives at the far end."""
        return self.name == LOST and one.dead > 0

    def rank(self, one: Contender) -> tuple[bool, bool, float]:
        """What contenders are put in order by."""
        value = self.of(one)
        return self.is_dead(one), explodes(one), abs(value) if explodes(one) else value

    def difference(self, one: Contender, other: Contender) -> Difference:
        """The first's minus the second's."""
        return _compared(one, other, self.name)

    def is_ahead(self, first: Contender, second: Contender) -> bool:
        """Whether the first certainly loses less."""
        if self.is_dead(second):
            return not self.is_dead(first)
        return self.difference(first, second).is_certain

    def alone(self, one: Contender) -> str:
        """The sentence on a single contender."""
        seeds = f"({_seeds([one], self)})"
        if self.is_dead(one):
            return _sentence(f"{self.nothing(one)} {seeds}")
        _, low, high, _, is_range = one.estimate(self.name)
        ends = sorted(-end for end in (low, high)) if _gains(self.of(one)) else [low, high]
        told = f" [{_decades(ends[0])} to {_decades(ends[1])}]" if low < high else ""
        assert not is_range  # decades have no bounds
        return _sentence(f"{one.gradient} {self._does(one)}{told}{self.over} {seeds}")

    def title(self, ranked: Sequence[Contender]) -> str:
        """The sentence on the first two."""
        first, second = ranked[:2]
        among = f"of {_many(ranked)}, " if len(ranked) > FEW else ""
        seeds = f"({_seeds([first, second], self)})"
        if self.is_dead(second):
            mine = f"{first.gradient} {self._does(first)}{self.over}"
            return _sentence(f"{among}{mine}, and {self.nothing(second)} {seeds}")
        sign = -1 if explodes(second) else 1
        found = self.difference(*((first, second) if explodes(second) else (second, first)))
        if found.low <= 0 <= found.high:
            both = f"{first.gradient} and {second.name}"
            both += " lose least and" if len(ranked) > 2 and not _gains(self.of(first)) else ""
            if not found.has_interval:
                each = f"each {self._does(first)}{self.over}"
                return _sentence(f"{among}{both} are the same: {each} {seeds}")
            numbers = _both(self.of(first), self.of(second))
            apart = f"{numbers}{self.over}, a difference of {_interval(found)}"
            return _sentence(f"{among}{both} cannot be told apart: {apart} {seeds}")
        if not explodes(first) and _gains(min(self.of(first), self.of(second))):
            words = _does(self.of(second)).removesuffix(" decades")
            apart = f"{first.gradient} {self._does(first)}{self.over} and {second.name} {words}"
            apart += f", a difference of {_interval(found)}"
            return _sentence(f"{among}{apart} {seeds}")
        least = "gains least on its way back:" if explodes(first) else "loses least:"
        mine = f"{_decades(sign * self.of(first))} decades{self.over}"
        theirs = f"{_interval(found)} fewer than {_near(second, sign * self.of(second))}"
        return _sentence(f"{among}{first.gradient} {least} {mine}, {theirs} {seeds}")

    def after(self, ranked: Sequence[Contender]) -> Iterable[str]:
        """What the others lose, against the first."""
        first, others = ranked[0], ranked[2:]
        if not others:
            return
        if len(ranked) <= FEW:
            for one in others:
                if self.is_dead(one):
                    yield _sentence(self.nothing(one))
                elif explodes(one) or self.is_dead(first):
                    yield _sentence(f"{one.gradient} {self._does(one)}{self.over}")
                else:
                    more = f"{_interval(self.difference(one, first))} more than {first.name}"
                    yield _sentence(f"{one.gradient} {self._does(one)}{self.over}, {more}")
            return
        close = [one for one in ranked[1:] if not self.is_ahead(first, one)]
        told = sum(self.difference(first, one).has_interval for one in ranked[1:])
        words = f"{len(close)} of the other {len(ranked) - 1} cannot be told apart from it"
        alive = [one for one in ranked if not self.is_dead(one)]
        calm = [one for one in alive if not explodes(one)]
        ends = []
        if calm and not _gains(most := self.of(calm[-1])):
            ends.append(f"{_near(calm[-1], most)} loses most")
        ends += [f"{len(alive) - len(calm)} explode"] if len(calm) < len(alive) else []
        dead = len(ranked) - len(alive)
        ends += [f"of {dead} nothing at all arrives in some run"] if dead else []
        yield _sentence("; ".join(filter(None, [words if told else "", *ends])))
        yield "The first of many is picked after the fact: its lead is flattered by chance."

    def nothing(self, one: Contender) -> str:
        """That nothing arrives, and in how many runs; no whole sentence."""
        count = f"{one.dead} of {_number(len(one.measured), 'run')}"
        return f"nothing at all of {one.gradient} arrives at the far end in {count}"

    def _does(self, one: Contender) -> str:
        return _does(self.of(one))


def _what(field: Field, measured: Sequence[Contender]) -> Decades:
    """What is lost over the sequence where that compares, else its rate."""
    runs = [run for one in measured for run in one.measured]
    lengths = {run.entry.length for run in runs}
    known = not any(math.isnan(final(run, LOST)) for run in runs)
    alive = any(not one.dead for one in measured)
    T = only(lengths, math.nan)
    if field.one_problem and math.isfinite(T) and known and alive:
        return Decades(LOST, f" over {_back(T - 1)}{_in_layer(runs)}")
    return Decades(PER_100, f" per 100 steps{_in_layer(runs)}")


def explodes(one: Contender) -> bool:
    """Whether the gradient grows by more than e over the sequence."""
    found = one.estimate(LOST).mean
    if math.isnan(found):
        found = one.estimate(PER_100).mean * (_length(one) - 1) / 100
    return found < -A_FACTOR_E


# --- the title where there is little to compare ---------------------------------------------------


def _nothing(runs: Sequence[Recorded]) -> Headline:
    if not runs:
        return Headline("There are no runs to compare.")
    ended = _listed(f"{n} {status}" for status, n in Counter(r.entry.status for r in runs).items())
    reason = next((run.damage for run in runs if run.damage), "")
    title = f"No run has data to compare: of {_number(len(runs), 'run')}, {ended}."
    return Headline(title, (f"The first says: {reason}.",) if reason else ())


def _one(run: Recorded, others: int) -> Headline:
    verdict = run.entry.info.get("verdict")
    lines = [str(line) for line in verdict] if isinstance(verdict, list) else []
    if run.entry.status == DIVERGED:
        lines.append(_sentence(f"the run diverged: {run.entry.reason.rstrip('.')}"))
    elif run.entry.status != FINISHED:
        lines.append(f"The run has not finished: it is {run.entry.status}.")
    if others:
        lines.append(f"{_number(others, 'more run')} recorded nothing.")
    gradient = field_of([run]).contenders[0].gradient
    lost, rate = final(run, LOST), final(run, PER_100)
    if math.isnan(lost) and math.isnan(rate):
        title = f"How many decades {gradient} loses was not measured."
        return Headline(title, (*lines, f"The run has no adjoint slope: {PROBE}."))
    series = run.series(PER_100 if math.isnan(lost) else LOST)
    when = f"at training step {series.steps[-1]:,}" if series is not None else "at its end"
    if math.isinf(lost):
        told = f"nothing at all of {gradient} arrives at the far end"
    elif math.isnan(lost):
        told = f"{gradient} {_does(rate)} per 100 steps"
    else:
        told = f"{gradient} {_does(lost)} over {_back(run.longest_lag)}"
    return Headline(_sentence(f"{told}{_in_layer([run])}, {when}"), (*_fed([run]), *lines))


def _unmeasured(field: Field) -> str:
    runs = [run for one in field.contenders for run in one.group.runs]
    if all(run.entry.status == DIVERGED for run in runs):
        return f"All {len(runs)} runs diverged: there is nothing to compare."
    return "How many decades the gradient loses was not measured."


# --- what goes with it ----------------------------------------------------------------------------


def _results(field: Field, ranked: Sequence[Contender], what: Decades) -> Iterable[str]:
    """Whether losing less went with better results."""
    if not field.one_problem:
        yield "Results of different tasks or lengths are not compared; decades per 100 steps are."
        return
    yield from _bought(ranked[0], ranked[1], what)
    name = _result(ranked)
    if name is None:
        return
    if len(ranked) > FEW:
        yield from _together(name, ranked, what)
    elif others := ranked[2:]:
        found = [(one, one.estimate(name)) for one in others]
        words = (f"{one.name} {with_interval(mean, mean.n)}" for one, mean in found)
        yield _sentence(f"{_in_words(name)} of the others: {_listed(words)}")
    yield _when_results(ranked)


def _bought(first: Contender, second: Contender, what: Decades) -> Iterable[str]:
    """Whether the one of the two that loses less has better results."""
    name = _result([first, second])
    if name is None:
        yield "No results were recorded for both, so what that bought is not known."
        return
    found = _compared(first, second, name)
    if math.isnan(found.value):
        return
    shared = _shared(first, second, name)
    means = [one.estimate(name, shared) for one in (first, second)]
    texts = [with_interval(one, one.n) for one in means]
    numbers = f"{_in_words(name)} {texts[0]} against {texts[1]}"
    numbers += _against_baseline(first, name, [one.mean for one in means])
    better = (found.value > 0) == RESULTS[name]
    if math.isnan(found.low):
        word = "went with better results" if better else "did not go with better results"
        word = word if found.value else "made no difference to the results"
        yield f"That {word}, as far as single seeds tell: {numbers}."
    elif not found.is_certain:
        yield f"Whether that went with better results cannot be told: {numbers}."
    elif what.is_ahead(first, second):
        word = "That went with better results" if better else "It did not go with better results"
        yield f"{word}: {numbers}."
    else:
        whose = (first if better else second).name.removesuffix("'s")
        yield _sentence(f"in their results {whose} is ahead: {numbers}")


def _together(name: str, ranked: Sequence[Contender], what: Decades) -> Iterable[str]:
    """Over many contenders, whether decades and a result go together."""
    results = [one.estimate(name).mean for one in ranked]
    rho, low, high = rank_correlation(list(map(what.of, ranked)), results)
    numbers = f"rank correlation {rho:.2f} [{low:.2f} to {high:.2f}] over {_many(ranked)}"
    if low <= 0 <= high:
        yield (
            f"Over all of them decades lost and {_in_words(name)} show no clear relation: "
            f"{numbers}."
        )
    elif math.isfinite(rho):
        more = "lower" if rho > 0 else "higher"
        yield (
            f"Over all of them fewer decades lost went with a {more} {_in_words(name)}: {numbers}."
        )


def _result_of(one: Contender) -> Iterable[str]:
    """What a single contender came to."""
    if name := _result([one]):
        found = one.estimate(name)
        guess = _against_baseline(one, name, [found.mean])
        yield _sentence(f"{_in_words(name)} {with_interval(found, found.n)}{guess}")
        yield _when_results([one])


def _when_results(ranked: Sequence[Contender]) -> str:
    """Of which parameters results are, and of which the gradient's figures."""
    steps = {run.entry.summary.get("best/step", math.nan) for one in ranked for run in one.runs}
    known = [step for step in steps if math.isfinite(step)]
    if not known and all(run.entry.is_own for one in ranked for run in one.runs):
        return "Results and decades are those recorded last."
    at = ""
    if known:
        ends = dict.fromkeys(f"{end:,.0f}" for end in (min(known), max(known)))
        at = f" (training step {' to '.join(ends)})"
    return (
        f"Results are of the parameters best in validation{at}, decades of the last recorded row."
    )


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


def _basis(field: Field, ranked: Sequence[Contender], what: Decades) -> Iterable[str]:
    runs = [run for one in ranked for run in one.measured]
    if runs:
        layer = " of the first layer" if _are_deep(runs) else ""
        how = {
            LOST: "from lag 0 to the longest",
            PER_100: "by the straight line through its logarithm over the lag",
        }
        yield (
            "Decades are powers of ten of |∂ℓ/∂s_t|, the gradient by the whole state, "
            f"{how[what.name]}{layer}, {_when(runs)}."
        )
        if any(not _has(run, PER_100) for run in runs):
            yield "Of runs that recorded no decades they are computed from slopes and curves."
        if len(ranked) <= FEW:
            yield from _lines(ranked, what)
            yield from _horizons(ranked)
    if field.shared:
        names = ranked[0].group.names if ranked else {}
        told = [
            f"{names.get(key, key)} = {_all_of(values)}" for key, values in field.shared.items()
        ]
        yield (
            f"Averaged over {' and '.join(told)}, the same for each, within a seed first: runs of "
            "one seed are one sample."
        )
        yield from _incomplete(ranked, what)
        yield from _at_each(ranked, what)


def _has(run: Recorded, name: str) -> bool:
    return run.entry.key_of(name) is not None or name in run.names


def _lines(ranked: Sequence[Contender], what: Decades) -> Iterable[str]:
    """The rates, and how straight the lines are; and where there is nothing at the far end."""
    words = []
    for one in ranked:
        rate, r2 = (one.estimate(name).mean for name in (PER_100, R2))
        bent = ", no straight line" if r2 < STRAIGHT else ""
        straight = f"R² {r2:.2f}{bent}" if math.isfinite(r2) else ""
        if what.name == LOST:
            lost = f"gain of {_decades(-rate)}" if _gains(rate) else _decades(rate)
            words.append(_own(one, lost + (f" ({straight})" if straight else "")))
        elif straight:
            words.append(_own(one, straight))
    if words:
        which = (
            "By straight lines over the lag, per 100 steps" if what.name == LOST else "The lines"
        )
        yield f"{which}: {_listed(words)}."
    if what.name == PER_100:
        for one in ranked:
            if one.dead:
                yield _sentence(f"{what.nothing(one)}; its line is through what does")


def _horizons(ranked: Sequence[Contender]) -> Iterable[str]:
    words, early = [], []
    for one in ranked:
        reach = [value for cell in one.values(HORIZON).values() for value in cell.values()]
        if reach:
            middle = float(np.median(reach))
            never = middle >= _length(one)
            words.append(_own(one, "beyond the sequence" if never else f"{_steps(middle)} steps"))
            early += [one.name] if _is_early(middle, one.estimate(PER_100).mean) else []
    if words:
        medians = " (medians)" if any(len(one.measured) > 1 for one in ranked) else ""
        rests = "rests" if len(early) == 1 else "rest"
        caveat = f"; {_listed(early)} {rests} on the first steps back alone" if early else ""
        yield (
            "The memory horizon, the lag at which the gradient has first fallen by e: "
            f"{_listed(words)}{medians}{caveat}."
        )


def _is_early(horizon: float, per_100: float) -> bool:
    """Whether the first steps bring the gradient to 1/e, and the line would take far longer."""
    by_line = 100 * A_FACTOR_E / per_100 if per_100 > 0 else math.inf
    return rests_on_first_steps(horizon, by_line)


def _incomplete(ranked: Sequence[Contender], what: Decades) -> Iterable[str]:
    """Seeds that are in no mean, since they lack a setting over which others are averaged."""
    verbs = "lacks some of these settings and does not count", "lack some of them and do not count"
    for one in ranked:
        there = {seed for cell in one.values(what.name).values() for seed in cell}
        if 0 < (whole := len(one.by_seed(what.name))) < len(there):
            yield _sentence(
                f"{len(there) - whole} of {_number(len(there), 'seed')} of {one.name} "
                f"{verbs[len(there) - whole > 1]}"
            )


def _fed(runs: Sequence[Recorded]) -> Iterable[str]:
    """That states receive gradient of their own, where they do."""
    if any(run.entry.facts.get("readout") == "every" for run in runs):
        yield (
            "The task has a loss at every step, so each state receives gradient of its own, and "
            "decades and horizons say little about transport through time."
        )
    if any(run.entry.layers > 1 and not run.entry.is_own for run in runs):
        yield (
            "Where there are several layers, layer 0 is fed by the one above at every step, so its "
            "decades and horizons say little about transport through time; those of the last layer "
            "are in each run's verdict."
        )
    own = [run.entry for run in runs if run.entry.is_own]
    if any(entry.layers > 1 or not entry.facts.get("readout") for entry in own):
        yield (
            "What the loss or another layer reads of a layer at earlier timesteps feeds it there. "
            "Where they do, which runs of loops of one's own do not say, decades and horizons say "
            "little about transport through time."
        )


def _are_deep(runs: Sequence[Recorded]) -> bool:
    return any(run.entry.layers > 1 for run in runs)


def _in_layer(runs: Sequence[Recorded]) -> str:
    """Which layer the figures are of, where there are several."""
    first = next((run.entry.first_layer for run in runs if run.entry.first_layer), "")
    return f" in {first.replace('first', 'the first')}" if first else ""


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


def _at_each(ranked: Sequence[Contender], what: Decades) -> Iterable[str]:
    """Whether who loses least on average does so at each shared setting."""
    if len(ranked) < 2 or _gains(what.of(ranked[0])):
        return
    every = [one.values(what.name) for one in ranked]
    keys = [key for key in every[0] if all(key in cells for cells in every)]
    means = [[np.mean(list(cells[key].values())) for cells in every] for key in keys]
    ahead = sum(mean[0] <= min(mean) for mean in means)
    yield _sentence(f"{ranked[0].gradient} loses least in {ahead} of these {len(keys)} settings")


def _counts(field: Field, measured: Sequence[Contender]) -> Iterable[str]:
    """Runs that diverged, have not finished, or measured nothing."""
    runs = [run for one in field.contenders for run in one.group.runs]
    if lost := [one for one in field.contenders if one.diverged]:
        few = lost[:FEW]
        told = [f"{one.diverged} of {len(one.group.runs)} of {one.name}" for one in few]
        more = f" and {sum(one.diverged for one in lost[FEW:])} of others" if lost[FEW:] else ""
        yield f"Diverged runs do not count: {_listed(told)}{more} diverged."
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
        yield f"No adjoint slope was recorded for {names}: {PROBE}."


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
            f"{_have(unread, len(runs))} no adjoint slope in the summary, and the arrays were not "
            "read."
        )
    if gone := len(rest) - unread:
        yield f"{_have(gone, len(runs))} no data that can be read."


# --- numbers and words ----------------------------------------------------------------------------


def _compared(one: Contender, other: Contender, name: str) -> Difference:
    """The first's figure minus the second's, over seeds, at the settings that both have."""
    shared = _shared(one, other, name)
    if not shared:
        return Difference(math.nan, math.nan, math.nan)
    return difference(one.samples(name, shared), other.samples(name, shared))


def _shared(one: Contender, other: Contender, name: str) -> set[Cell]:
    return set(one.values(name)) & set(other.values(name))


def _near(one: Contender, value: float) -> str:
    """``the GRU's 21``, ``that with forget_bias = 2 (21 decades)``."""
    if one.group.settings:
        return f"{one.name} ({_decades(value)} decades)"
    return f"{one.name} {_decades(value)}"


def _own(one: Contender, words: str) -> str:
    """``the GRU's 21``, ``that with forget_bias = 2: 21``."""
    return f"{one.name}{':' if one.group.settings else ''} {words}"


def _interval(found: Difference) -> str:
    """``42 [40 to 44]``."""
    if not found.has_interval:
        return _decades(found.value)
    return f"{_decades(found.value)} [{_decades(found.low)} to {_decades(found.high)}]"


def _seeds(contenders: Sequence[Contender], what: Decades) -> str:
    """``3 seeds each, 95 % interval``."""
    dead = any(map(what.is_dead, contenders))
    counts = [_seed_count(one, what.name, dead) for one in contenders]
    settings = max(len(one.cells) for one in contenders)
    each = " each" if len(counts) > 1 else ""
    over = f", averaged over {settings} settings" if settings > 1 else ""
    if not all(counts):
        return "no seed at every setting, so no interval"
    if max(counts) == 1:
        return f"one seed{each}{over}, so no interval"
    told = f"{_number(counts[0], 'seed')}{each}{over}"
    if len(set(counts)) > 1:
        told = f"{' and '.join(map(str, counts))} seeds{over}"
    if dead:
        return told
    if len(contenders) == 1:
        found = contenders[0].estimate(what.name)
        low, high = found.low, found.high
    else:
        _, low, high = what.difference(*contenders)
    if math.isnan(low):
        return f"{told}, too few for an interval"
    if low == high:
        return f"{told}, all alike"
    return f"{told}, 95 % interval"


def _seed_count(one: Contender, name: str, dead: bool) -> int:
    """How many seeds count; those too, where gradients are dead, that have no finite figure."""
    return len({run.entry.seed for run in one.measured} if dead else one.by_seed(name))


def _gains(lost: float) -> bool:
    """Whether a gradient gains decades, by as many as are shown at least."""
    return round(lost, 4) < 0


def _does(lost: float) -> str:
    """``loses 2.8 decades``, or gains."""
    does = "gains" if _gains(lost) else "loses"
    return f"{does} {_decades(abs(lost))} decades"


def _both(first: float, second: float) -> str:
    """``2.8 and 3.1 decades lost``, or gained."""
    words = ["gained" if _gains(lost) else "lost" for lost in (first, second)]
    numbers = [_decades(abs(lost)) for lost in (first, second)]
    if len(set(words)) == 1:
        return f"{' and '.join(numbers)} decades {words[0]}"
    return f"{numbers[0]} decades {words[0]} and {numbers[1]} {words[1]}"


def _decades(value: float) -> str:
    """Two digits; all before the point."""
    value = round(value, 4) + 0.0
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:#.2g}".rstrip(".")


def _steps(value: float) -> str:
    """Timesteps: one decimal below 10."""
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _back(lag: float) -> str:
    return f"{_number(int(lag), 'step')} back"


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
