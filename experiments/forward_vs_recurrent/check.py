"""Can a network without recurrence remember, and does one set of weights serve any length?

python experiments/forward_vs_recurrent/check.py DIR…
"""

from __future__ import annotations

import math
import sys

from matplotlib.figure import Figure

from gradlab.claims.command import main
from gradlab.claims.finding import Finding, number, spread
from gradlab.claims.sweep import Sweep, baseline, over_seeds, parameters, setting
from gradlab.compare.recorded import Recorded
from gradlab.compare.statistics import Estimate, bounds_of
from gradlab.errors import BadInput
from gradlab.record.figures.common import BLUE, GREY, ORANGE, new_figure

PLACE = 1
QUICK = (
    "trainer.steps=1000",
    "seed=range(2)",
    "record.wandb.mode=disabled",
)
CAPTION = """Test loss by the length of the sequence, a dot a seed, of networks that were trained at
one length only (the vertical line). Solid: the loss of the best answer that does not look at the
sequence. Dotted: of the best answer from the last input alone. Dashed: a tenth of the baseline."""

COLOURS = {"feedforward": GREY, "rnn": BLUE}
NAMES = {"feedforward": "feed-forward", "rnn": "plain RNN"}
SOLVED = 0.1
"""A network has learned to add with a test loss below this share of the baseline's."""


def runs_of(sweep: Sweep, model: str) -> list[Recorded]:
    """The seeds of a model."""
    return sweep.where({"model": model})


def trained_at(sweep: Sweep) -> int:
    """The length of the training sequences."""
    return sweep.values("task.length")[0]


def tested_at(sweep: Sweep) -> list[int]:
    """All lengths at which every run was tested, ascending.

    Raises:
      BadInput: if there is no other than the one they were trained at.
    """
    lists = [set(setting(run, "trainer.test_lengths") or ()) for run in sweep.runs]
    others = set.intersection(*lists)
    if not others:
        allowed = "runs that were tested at other lengths too"
        raise BadInput("runs", sweep.place, allowed, "trainer.test_lengths=[10,40]")
    return sorted(others | {trained_at(sweep)})


def loss(run: Recorded, length: int) -> float:
    """The test loss at a length."""
    own = setting(run, "task.length") == length
    return run.entry.figure("test/loss" if own else f"test/loss/length_{length}")


def memoryless(length: int) -> float:
    """The least mean squared error of an answer from the last input alone.

    It tells one of the two numbers where the second mark lies on it, one time in the length of the
    second half, and leaves the variance of the other, 1/12; elsewhere there is that of both, 1/6.
    """
    return 1 / 6 - 1 / 12 / (length - length // 2)


def mean(runs: list[Recorded], length: int) -> Estimate:
    """The test loss over seeds."""
    return over_seeds(runs, lambda run: loss(run, length), bounds_of("test/loss"))


def check(sweep: Sweep) -> list[Finding]:
    """What of the lecture's statements is measured."""
    forward, recurrent = (runs_of(sweep, model) for model in COLOURS)
    own, base = trained_at(sweep), baseline(forward[0])
    solved = SOLVED * base
    lengths = tested_at(sweep)
    near = [length for length in lengths if own / 2 <= length <= 1.5 * own and length != own]
    far = [length for length in lengths if length > 1.5 * own]
    words = {n: f"T = {n}: {number(mean(recurrent, n).mean)}" for n in lengths}
    reach = max((n for n in lengths if mean(recurrent, n).mean < solved), default=math.nan)
    return [
        Finding(
            "A feed-forward network on the current input cannot remember: it does no better than "
            "the best answer from the last input alone.",
            all(loss(run, own) > 0.95 * memoryless(own) for run in forward),
            f"T = {own}: MSE {spread(mean(forward, own))}; from the last input alone "
            f"{number(memoryless(own))}, always 1 {number(base)}",
        ),
        Finding(
            "A recurrent network can: it learns to add two numbers that lie steps apart.",
            all(loss(run, own) < solved for run in recurrent),
            f"T = {own}: MSE {spread(mean(recurrent, own))}, the baseline's over "
            f"{number(base / mean(recurrent, own).mean)}, with {parameters(recurrent[0]):,} "
            f"parameters against {parameters(forward[0]):,}",
        ),
        Finding(
            f"One set of weights serves other lengths, from half to one and a half of the {own} "
            "steps of training.",
            bool(near) and all(loss(run, n) < solved for run in recurrent for n in near),
            "; ".join(words[n] for n in near),
        ),
        Finding(
            "One set of weights serves any length.",
            bool(far) and all(mean(recurrent, n).mean < solved for n in lengths),
            f"{'; '.join(words[n] for n in far)}; below a tenth of the baseline up to T = "
            f"{number(reach)}",
        ),
    ]


def draw(sweep: Sweep) -> Figure:
    """Test loss by length."""
    figure = new_figure(1)
    axes = figure.subplots()
    lengths = tested_at(sweep)
    for model, colour in COLOURS.items():
        runs = runs_of(sweep, model)
        points = [(length, loss(run, length)) for length in lengths for run in runs]
        axes.plot(*zip(*points, strict=True), "o", color=colour, ms=7, label=NAMES[model])
        axes.plot(lengths, [mean(runs, n).mean for n in lengths], color=colour, lw=1.2)
    base = baseline(runs[0])
    axes.axhline(base, color="black", lw=1.2, label="baseline: always 1")
    axes.plot(lengths, [memoryless(n) for n in lengths], "k:", lw=1.2, label="last input alone")
    axes.axhline(SOLVED * base, color="black", ls="--", lw=1.0, label="a tenth of the baseline")
    axes.axvline(trained_at(sweep), color=ORANGE, lw=1.4, label="trained at")
    axes.set(xscale="log", yscale="log", xlabel="T (timesteps)", ylabel="test loss (MSE)")
    axes.set_xticks(lengths, labels=[str(n) for n in lengths])
    axes.minorticks_off()
    axes.set_title("Trained at one length, tested at others")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


if __name__ == "__main__":
    sys.exit(main("forward_vs_recurrent", check))
