"""Whose gradient reaches the beginning of a sequence: the plain RNN's or the LSTM's?

python experiments/rnn_vs_lstm/check.py DIR…
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from gradlab.claims.command import main
from gradlab.claims.finding import Finding, number, power, spread
from gradlab.claims.sweep import Sweep, baseline, curve, lost, over_seeds, value
from gradlab.compare.recorded import Recorded
from gradlab.compare.statistics import Decay, decay
from gradlab.record.figures.common import BLUE, DASHES, GREY, LAG, ORANGE, new_figure
from gradlab.record.lags import share_of_rest

PLACE = 4
QUICK = (
    "task.length=30,60",
    "trainer.steps=800",
    "seed=range(2)",
    "record.wandb.mode=disabled",
)
CAPTION = """Top left: the gradient over the lag, first seed, at the longest length, before training
(dashed) and after. Top right: the LSTM's true ∂c_T/∂c_t, and the part of it that is the product of
the forget gates, of the same runs. Bottom left: what the forget gates keep at a step, in the unit
that forgets least and in a typical unit, a line a seed. Bottom right: test loss by length, a dot a
seed; a run has learned to add below the dotted line, a tenth of the baseline's loss."""

COLOURS = {"rnn": BLUE, "lstm": ORANGE}
NAMES = {"rnn": "RNN", "lstm": "LSTM"}
FIRST, LAST = 0, -1
"""Rows: before training, and at its end."""
SOLVED = 0.1
"""A run has solved the task with a test loss below this share of the baseline's."""
TYPICAL, FORGET, REST, WHOLE = (
    "forget_product_log10",
    "forget_path_log10",
    "residual_path_log10",
    "whole_path_log10",
)
"""The product of the forget gates: of a typical unit, and its norm; what goes through h; both."""


def runs_of(sweep: Sweep, model: str, length: int) -> list[Recorded]:
    """The seeds of a model at a length."""
    needs = ("adj_h_log10", *((TYPICAL, FORGET, REST, WHOLE) if model == "lstm" else ()))
    return sweep.where({"model": model, "task.length": length}, needs=needs)


def lengths_of(sweep: Sweep) -> list[int]:
    """The lengths, ascending."""
    return sweep.values("task.length")


def fit(run: Recorded, row: int) -> Decay:
    """The exponential through the gradient's norm over the lag."""
    return decay(*curve(run, "adj_h_log10", row))


def best_gate(run: Recorded, row: int) -> float:
    """Factor a step of the unit whose forget gates have the largest product, as geometric mean.

    The norm of the path through the forget gates is that of the products of all units, and at a
    long lag the largest of them is nearly all of it.
    """
    lags, log10 = curve(run, FORGET, row)
    return float(10 ** (log10[-1] / lags[-1]))


def typical_gate(run: Recorded, row: int) -> float:
    """Factor a step of a typical unit's forget gates: the geometric mean over units too."""
    lags, log10 = curve(run, TYPICAL, row)
    return float(10 ** (log10[-1] / lags[-1]))


def solved(run: Recorded) -> bool:
    """Whether a run has learned to add."""
    return run.entry.figure("test/loss") < SOLVED * baseline(run)


def check(sweep: Sweep) -> list[Finding]:
    """What of the lecture's statements is measured."""
    longest = lengths_of(sweep)[-1]
    rnn, lstm = (runs_of(sweep, model, longest) for model in ("rnn", "lstm"))
    return [
        _exponential(sweep),
        _at_first(rnn, lstm, longest),
        _after(sweep),
        _product(lstm, longest),
        _towards_one(lstm, longest),
        _success(sweep),
    ]


def _exponential(sweep: Sweep) -> Finding:
    runs = [run for length in lengths_of(sweep) for run in runs_of(sweep, "rnn", length)]
    first, last = [fit(run, FIRST) for run in runs], [fit(run, LAST) for run in runs]
    found = over_seeds(runs, lambda run: fit(run, FIRST).rate)
    after = over_seeds(runs, lambda run: fit(run, LAST).rate)
    return Finding(
        "The plain RNN's gradient decays exponentially with the lag.",
        all(one.rate < 0 and one.r2 > 0.95 for one in [*first, *last]),
        f"before training at {spread(found, 'nats per step')} over {len(runs)} networks, R² of "
        f"the line at least {min(one.r2 for one in first):.4f}; after it at {spread(after)}, R² "
        f"at least {min(one.r2 for one in last):.3f}",
    )


def _at_first(rnn: Sequence[Recorded], lstm: Sequence[Recorded], length: int) -> Finding:
    both = [over_seeds(runs, lambda run: lost(run, FIRST)) for runs in (rnn, lstm)]
    rate = over_seeds(lstm, lambda run: value(run, "adjoint_slope", FIRST))
    return Finding(
        "The LSTM's gradient does not vanish from the start, with a forget bias of 1: less than a "
        "decade is lost.",
        all(lost(run, FIRST) < 1 for run in lstm),
        f"before training, T = {length}: it loses {spread(both[1])} decades over the sequence, at "
        f"{spread(rate, 'nats per step')}; the RNN loses {spread(both[0])}",
    )


def _after(sweep: Sweep) -> Finding:
    parts, held = [], True
    for length in lengths_of(sweep):
        rnn, lstm = (
            over_seeds(runs_of(sweep, model, length), lambda run: lost(run, LAST))
            for model in ("rnn", "lstm")
        )
        held &= lstm.mean < 2 < rnn.mean
        parts.append(f"T = {length}: {number(lstm.mean)} decades against {number(rnn.mean)}")
    return Finding(
        "Once trained, the LSTM's gradient reaches the first step, and the RNN's does not: less "
        "and more than two decades are lost.",
        held,
        "; ".join(parts),
    )


def _product(lstm: Sequence[Recorded], length: int) -> Finding:
    parts, held = [], True
    for words, row in (("before training", FIRST), ("after it", LAST)):
        typical, product, whole = (
            power(over_seeds(lstm, lambda run, n=name, r=row: curve(run, n, r)[1][-1]).mean)
            for name in (TYPICAL, FORGET, WHOLE)
        )
        worst = max(
            float(np.abs(curve(run, FORGET, row)[1] - curve(run, WHOLE, row)[1]).max())
            for run in lstm
        )
        held &= worst < math.log10(2)
        shares = [through_h(run, row) for run in lstm]
        parts.append(
            f"{words}, lag {length - 1}: norm of the product {product} (a typical unit's "
            f"{typical}), true norm {whole}, apart by a factor of up to {number(10**worst)}; "
            f"through h goes {number(100 * min(shares))} to {number(100 * max(shares))} % of the "
            "squared norm"
        )
    return Finding(
        "∂c_T/∂c_t is the product of the forget gates, ∏σ(v_{t+k}), to within a factor of 2.",
        held,
        "; ".join(parts),
    )


def through_h(run: Recorded, row: int) -> float:
    """The measured share of the rest, R²/(F² + R²) of the norms of both paths, at the last lag."""
    found = share_of_rest(curve(run, FORGET, row)[1], curve(run, REST, row)[1])
    return found.rest if found else math.nan


def _towards_one(lstm: Sequence[Recorded], length: int) -> Finding:
    words = []
    for gate in (best_gate, typical_gate):
        first, last = (
            over_seeds(lstm, lambda run, g=gate, r=row: g(run, r)) for row in (FIRST, LAST)
        )
        words.append(f"{first.mean:.3f} → {last.mean:.3f} (± {number(last.half)})")
    return Finding(
        "Training moves f towards 1, where it is needed: in the unit that forgets least.",
        all(best_gate(run, LAST) > max(0.95, best_gate(run, FIRST)) for run in lstm),
        f"T = {length}, factor a step of that unit: {words[0]}; of a typical unit: {words[1]}",
    )


def _success(sweep: Sweep) -> Finding:
    parts, ends = [], {}
    for model in ("rnn", "lstm"):
        shares = []
        for length in lengths_of(sweep):
            runs = runs_of(sweep, model, length)
            ends[model] = sum(map(solved, runs)) / len(runs)
            loss = over_seeds(runs, lambda run: run.entry.figure("test/loss"))
            won = sum(map(solved, runs))
            shares.append(f"T = {length}: {won} of {len(runs)} (MSE {number(loss.mean)})")
        parts.append(f"{NAMES[model]} {', '.join(shares)}")
    base = baseline(runs[0])
    return Finding(
        "The LSTM learns to add over the longest gap, and the RNN does not.",
        ends["lstm"] == 1 and ends["rnn"] == 0,
        f"{'; '.join(parts)}; baseline {number(base)}",
    )


def draw(sweep: Sweep) -> Figure:
    """The gradient over the lag, the two paths, the forget gates, and what they bought."""
    figure = new_figure(4)
    (gradient, paths), (gates, success) = figure.subplots(2, 2)
    longest = lengths_of(sweep)[-1]
    lstm = runs_of(sweep, "lstm", longest)
    for model, colour in COLOURS.items():
        run = runs_of(sweep, model, longest)[0]
        for row, words in ((FIRST, "before training"), (LAST, "after")):
            lags, log10 = curve(run, "adj_h_log10", row)
            dashes = DASHES[1] if row == FIRST else "-"
            gradient.plot(lags, log10, color=colour, ls=dashes, label=f"{NAMES[model]} {words}")
    for name, colour, words in zip(
        (FORGET, WHOLE), (GREY, ORANGE), ("norm of ∏f", "true |∂c_T/∂c_t|"), strict=True
    ):
        for row, when in ((FIRST, "before training"), (LAST, "after")):
            lags, log10 = curve(lstm[0], name, row)
            dashes = DASHES[1] if row == FIRST else "-"
            paths.plot(lags, log10, color=colour, ls=dashes, label=f"{words}, {when}")
    for index, run in enumerate(lstm):
        for name, colour, words in (
            (FORGET, ORANGE, "least forgetful unit"),
            (TYPICAL, GREY, "typical unit"),
        ):
            found = run.curve(name)
            assert found is not None
            factor = 10 ** (found.values[:, 0, -1].astype(float) / found.lags[-1])
            gates.plot(found.steps, factor, color=colour, label="" if index else words)
    for model, colour in COLOURS.items():
        points = [
            (length, run.entry.figure("test/loss"))
            for length in lengths_of(sweep)
            for run in runs_of(sweep, model, length)
        ]
        success.plot(*zip(*points, strict=True), "o", color=colour, label=NAMES[model], ms=8)
    base = baseline(lstm[0])
    success.axhline(base, color="black", lw=1.2, label="baseline: always 1")
    success.axhline(SOLVED * base, color="black", lw=1.2, ls=":")
    success.set(yscale="log", xscale="log", xlabel="T (timesteps)", ylabel="test loss (MSE)")
    success.set_xticks(lengths_of(sweep), labels=map(str, lengths_of(sweep)))
    success.minorticks_off()
    success.set_title("who learns to add")
    gradient.set(xlabel=LAG, ylabel="log10 |∂ℓ/∂h_t|", title=f"the gradient, T = {longest}")
    paths.set(xlabel=LAG, ylabel="log10 of the norm", title="through the LSTM's cell state")
    gates.set(xlabel="training step", ylabel="f, geometric mean over the sequence", ylim=(0, 1.03))
    gates.set_title("what the forget gates keep a step")
    for axes in (gradient, paths, gates, success):
        axes.legend(fontsize=10, loc="center right" if axes is success else "best")
    return figure


if __name__ == "__main__":
    sys.exit(main("rnn_vs_lstm", check))
