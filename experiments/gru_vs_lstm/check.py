"""Is a GRU as good as an LSTM, with fewer parameters and less work?

python experiments/gru_vs_lstm/check.py DIR…
"""

from __future__ import annotations

import math
import sys

from matplotlib.figure import Figure

from gradlab.claims.command import main
from gradlab.claims.finding import Finding, number, spread
from gradlab.claims.sweep import Sweep, baseline, curve, lost, over_seeds, parameters
from gradlab.compare.groups import final
from gradlab.compare.recorded import PER_100, Recorded
from gradlab.compare.statistics import difference
from gradlab.record.figures.common import DASHES, GREEN, LAG, ORANGE, new_figure

PLACE = 5
QUICK = (
    "task.length=32",
    "trainer.steps=500",
    "seed=range(2)",
    "record.wandb.mode=disabled",
)
CAPTION = """By task: training steps per second and test score of both models, a dot a seed, at two
hidden sizes; LSTM 55 and GRU 64 have as many parameters, LSTM 64 and GRU 64 as many units. Bottom
right: the gradient over the lag before training and after, first seed, 64 units, adding."""

COLOURS = {"lstm": ORANGE, "gru": GREEN}
NAMES = {"lstm": "LSTM", "gru": "GRU"}
TASKS = ("adding", "digits")
SIZES = (("lstm", 55), ("lstm", 64), ("gru", 64), ("gru", 55))
EQUAL = {"equal hidden size (64)": (("gru", 64), ("lstm", 64)), "equal parameters": SIZES[2::-2]}
"""GRU and LSTM to be compared, by what they have in common."""
SOLVED = 0.1
"""Adding is solved with a test loss below this share of the baseline's."""
POINTS = 2.0
"""Accuracies of digits are similar if they differ by fewer percentage points."""
NEAR = 1.0
"""Gradients fall equally far if the decades that they lose differ by less."""


def runs_of(sweep: Sweep, task: str, size: tuple[str, int]) -> list[Recorded]:
    """The seeds of a model of a size on a task."""
    settings = {"task": task, "model": size[0], "model.hidden": size[1]}
    return sweep.where(settings, needs=("adj_h_log10",))


def score(run: Recorded) -> float:
    """Test accuracy in percent, or test loss where there is none."""
    key = "test/accuracy"
    return (
        100 * run.entry.figure(key) if key in run.entry.summary else run.entry.figure("test/loss")
    )


def speed(run: Recorded) -> float:
    """Training steps per second, steady state."""
    return run.entry.figure("steps_per_second")


def horizon(run: Recorded) -> float:
    """The memory horizon after training: steps until the gradient has first fallen by e."""
    return run.entry.figure("memory_horizon")


def rate(run: Recorded) -> float:
    """Decades that the gradient loses per 100 steps after training, by the line over the lag."""
    return final(run, PER_100)


def check(sweep: Sweep) -> list[Finding]:
    """What of the lecture's statements is measured."""
    return [_parameters(sweep), _easier(sweep), *(_similar(sweep, t) for t in TASKS), _reach(sweep)]


def _parameters(sweep: Sweep) -> Finding:
    parts, shares = [], {}
    for words, (gru, lstm) in EQUAL.items():
        ours, theirs = (parameters(runs_of(sweep, TASKS[0], size)[0]) for size in (gru, lstm))
        shares[words] = ours / theirs
        parts.append(f"{words}: {ours:,} against {theirs:,} (× {ours / theirs:.3f})")
    return Finding(
        "A GRU has three quarters of the parameters of an LSTM of its size.",
        abs(shares["equal hidden size (64)"] - 0.75) < 0.02,
        "; ".join(parts),
    )


def _easier(sweep: Sweep) -> Finding:
    parts, held = [], True
    for words, pair in EQUAL.items():
        for task in TASKS:
            ours, theirs = (over_seeds(runs_of(sweep, task, size), speed).mean for size in pair)
            held &= ours > 1.05 * theirs
            parts.append(
                f"{task}, {words}: {number(ours)} steps/s against {number(theirs)} "
                f"(× {ours / theirs:.2f})"
            )
    return Finding(
        "A GRU is computationally easier: it makes more training steps per second.",
        held,
        "; ".join(parts),
    )


def _similar(sweep: Sweep, task: str) -> Finding:
    parts, held = [], True
    for words, pair in EQUAL.items():
        gru, lstm = (runs_of(sweep, task, size) for size in pair)
        apart = difference([score(run) for run in gru], [score(run) for run in lstm])
        if "test/accuracy" in gru[0].entry.summary:
            unit, base, bounds = "% right", 100 * baseline(gru[0], "accuracy"), (0.0, 100.0)
            held &= abs(apart.value) < POINTS
            held &= all(score(run) > 2 * base for run in [*gru, *lstm])
        else:
            unit, base, bounds = "MSE", baseline(gru[0]), (0.0, math.inf)
            held &= all(score(run) < SOLVED * base for run in [*gru, *lstm])
        ends = f", difference {apart.low:.2g} … {apart.high:.2g}" if apart.has_interval else ""
        parts.append(
            f"{words}: GRU {spread(over_seeds(gru, score, bounds), unit)}, LSTM "
            f"{spread(over_seeds(lstm, score, bounds))}{ends}"
        )
    criterion = (
        "both below a tenth of the baseline's loss"
        if unit == "MSE"
        else f"both learn, means less than {POINTS:g} points apart"
    )
    return Finding(
        f"On {task} their results are similar: {criterion}.",
        held,
        f"{'; '.join(parts)}; baseline {number(base)}",
    )


def _reach(sweep: Sweep) -> Finding:
    parts, held = [], True
    for task in TASKS:
        for words, pair in EQUAL.items():
            both = [runs_of(sweep, task, size) for size in pair]
            gru, lstm = (over_seeds(runs, lost) for runs in both)
            held &= abs(gru.mean - lstm.mean) < NEAR
            rates, reach = (
                [over_seeds(runs, one).mean for runs in both] for one in (rate, horizon)
            )
            parts.append(
                f"{task}, {words}: GRU {spread(gru, 'decades')}, LSTM {spread(lstm)} (per 100 "
                f"steps {number(rates[0])} and {number(rates[1])}; first fall by e after "
                f"{number(reach[0])} and {number(reach[1])} steps)"
            )
    return Finding(
        "After training their gradients fall equally far over the sequence: by decades that differ "
        "by less than 1.",
        held,
        "; ".join(parts),
    )


def draw(sweep: Sweep) -> Figure:
    """Speed, scores and reach."""
    figure = new_figure(4)
    (speeds, adding), (digits, gradient) = figure.subplots(2, 2)
    names = [f"{NAMES[model]}\n{hidden}" for model, hidden in SIZES]
    for place, size in enumerate(SIZES):
        colour = COLOURS[size[0]]
        for axes, task in ((adding, "adding"), (digits, "digits")):
            scores = [score(run) for run in runs_of(sweep, task, size)]
            axes.plot([place] * len(scores), scores, "o", color=colour, ms=8)
        for task, marker in zip(TASKS, "os", strict=True):
            rate = over_seeds(runs_of(sweep, task, size), speed).mean
            speeds.plot(place, rate, marker, color=colour, ms=9)
    for task, marker in zip(TASKS, "os", strict=True):
        speeds.plot([], [], marker, color="black", label=task)
    base = baseline(runs_of(sweep, "adding", SIZES[0])[0])
    adding.axhline(base, color="black", lw=1.2, label="baseline: always 1")
    adding.axhline(SOLVED * base, color="black", lw=1.2, ls=":", label="a tenth of it: solved")
    adding.set(yscale="log", ylabel="test loss (MSE)", title="adding")
    digits.set(ylabel="test accuracy (% right)", title="digits, pixel by pixel")
    speeds.set(ylabel="training steps per second", title="speed")
    speeds.set_ylim(0, 1.25 * speeds.get_ylim()[1])
    for axes in (speeds, adding, digits):
        axes.set_xticks(range(len(SIZES)), labels=names)
        axes.set_xlim(-0.5, len(SIZES) - 0.5)
        axes.set_xlabel("model and units")
    for model, colour in COLOURS.items():
        run = runs_of(sweep, "adding", (model, 64))[0]
        for row, words in ((0, "before training"), (-1, "after")):
            lags, log10 = curve(run, "adj_h_log10", row)
            dashes = "-" if row else DASHES[1]
            gradient.plot(lags, log10, color=colour, ls=dashes, label=f"{NAMES[model]} {words}")
    gradient.set(xlabel=LAG, ylabel="log10 |∂ℓ/∂h_t|", title="the gradient, adding, 64 units")
    for axes in (speeds, adding, gradient):
        axes.legend(fontsize=10)
    return figure


if __name__ == "__main__":
    sys.exit(main("gru_vs_lstm", check))
