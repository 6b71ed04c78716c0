"""What are recurrent networks used for, and are LSTM and GRU better at it than a plain RNN?

python experiments/applications/check.py DIR…
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from gradlab.claims.command import main
from gradlab.claims.finding import Finding, number
from gradlab.claims.sweep import ENDED, Sweep, baseline, parameters
from gradlab.compare.recorded import Recorded
from gradlab.compare.statistics import Difference, Estimate, difference, estimate
from gradlab.record.figures.common import BLUE, GREEN, GREY, ORANGE, new_figure

PLACE = 7
QUICK = (
    "trainer.steps=200",
    "seed=range(2)",
    "probe=none",
    "record.wandb.mode=disabled",
)
CAPTION = """Test score of each model on each task, a dot a seed, the bar their mean: of the
parameters that were best in validation. Above, lower is better, below, higher. Dashed: the task's
own guess without memory. Dotted: what a simple rule reaches, a table of character pairs, and a
linear autoregression whose order validation chose."""


@dataclass(frozen=True)
class Use:
    """What a network is used for.

    Attributes:
      words: it, in a statement.
      score: ``accuracy`` or ``loss``: what tells how good a network is at it.
      unit: of the score, that of an accuracy being per cent.
      axis: the score on an axis.
      guess: the baseline's, in two short lines.
    """

    words: str
    score: str
    unit: str
    axis: str
    guess: str

    @property
    def scale(self) -> float:
        """Factor from what was recorded to the unit."""
        return 100.0 if self.score == "accuracy" else 1.0

    @property
    def sign(self) -> int:
        """1 where a higher score is better, else -1."""
        return 1 if self.score == "accuracy" else -1

    @property
    def bounds(self) -> tuple[float, float]:
        """What a score cannot be below or above: a loss here is an entropy or a square."""
        return 0.0, 100.0 if self.score == "accuracy" else math.inf

    def shown(self, value: float) -> str:
        """A score in digits."""
        return f"{value:.{1 if self.score == 'accuracy' else 3}f}"


USES = {
    "text": Use(
        "Text, the next character",
        "loss",
        "nats a character",
        "test loss (nats a character)",
        "frequencies of\nthe characters",
    ),
    "sunspots": Use(
        "Time series, next year's sunspots",
        "loss",
        "MSE of standardised values",
        "test MSE (standardised values)",
        "repeat the\nlast year",
    ),
    "digits": Use(
        "Images read pixel by pixel, digits",
        "accuracy",
        "% right",
        "test accuracy (% of digits right)",
        "the most\nfrequent digit",
    ),
    "dates": Use(
        "Translation, sequence to sequence, written dates into ISO form",
        "accuracy",
        "% of characters right",
        "test accuracy (% of characters right)",
        "each position's\nmost frequent",
    ),
}
NAMES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
COLOURS = {"rnn": BLUE, "lstm": ORANGE, "gru": GREEN}


def runs_of(sweep: Sweep, task: str, model: str) -> list[Recorded]:
    """The seeds of a model on a task; two at least, for an interval."""
    return sweep.where({"task": task, "model": model}, least=2, ended=ENDED)


def scores_of(sweep: Sweep, task: str, model: str) -> list[float]:
    """The test score of each seed, in the task's unit; NaN if it diverged before it had one."""
    use, runs = USES[task], runs_of(sweep, task, model)
    return [use.scale * run.entry.figure(f"test/{use.score}") for run in runs]


def guess_of(sweep: Sweep, task: str) -> float:
    """The score of the task's guess without memory."""
    use = USES[task]
    return use.scale * baseline(runs_of(sweep, task, "rnn")[0], use.score)


def check(sweep: Sweep) -> list[Finding]:
    """For each use, whether the networks are of any, and whether gates help."""
    return [find(sweep, task) for task in USES for find in (_beats, _gates)]


def _beats(sweep: Sweep, task: str) -> Finding:
    use, guess = USES[task], guess_of(sweep, task)
    parts, held = [], True
    for model, name in NAMES.items():
        scores = scores_of(sweep, task, model)
        found = estimate(scores, use.bounds)
        held &= _whole(scores) and (found.low > guess if use.sign > 0 else found.high < guess)
        parts.append(f"{name} {_told(use, found)}{_lost(scores)}")
    rule = rival(sweep, task)
    more = f"; {rule[1]} {use.shown(rule[0])}" if rule else ""
    return Finding(
        f"{use.words}: an RNN, an LSTM and a GRU each beat the baseline without memory.",
        held,
        f"{', '.join(parts)} {use.unit}; baseline {use.shown(guess)}{more}",
    )


def _gates(sweep: Sweep, task: str) -> Finding:
    use, scores = USES[task], {model: scores_of(sweep, task, model) for model in NAMES}
    parts, held = [], True
    for model in ("lstm", "gru"):
        if not _whole([*scores[model], *scores["rnn"]]):
            held = False
            parts.append(f"no lead of the {NAMES[model]}, where a seed diverged")
            continue
        found = better(use, scores[model], scores["rnn"])
        held &= found.low > 0
        verdict = "better" if found.low > 0 else "worse" if found.high < 0 else "not told apart"
        ends = f"{use.shown(found.low)} … {use.shown(found.high)}"
        parts.append(f"lead of the {NAMES[model]} {use.shown(found.value)} ({ends}), {verdict}")
    sizes = [
        f"{name} {number(parameters(runs_of(sweep, task, model)[0]))}"
        for model, name in NAMES.items()
    ]
    return Finding(
        f"{use.words}: the LSTM and the GRU are better than a plain RNN of as many units.",
        held,
        f"{'; '.join(parts)}; {use.unit}; parameters {', '.join(sizes)}",
    )


def better(use: Use, first: Sequence[float], second: Sequence[float]) -> Difference:
    """By how much the first scores are better than the second, with Welch's 95 % interval."""
    return difference([use.sign * one for one in first], [use.sign * one for one in second])


def _told(use: Use, found: Estimate) -> str:
    if found.is_range:
        return f"{use.shown(found.mean)} (range {use.shown(found.low)} to {use.shown(found.high)})"
    if found.is_same:
        return f"{use.shown(found.mean)} (identical)"
    return f"{use.shown(found.mean)} ± {use.shown(found.half)}"


def _whole(scores: Sequence[float]) -> bool:
    return all(map(math.isfinite, scores))


def _lost(scores: Sequence[float]) -> str:
    lost = sum(not math.isfinite(one) for one in scores)
    return f" ({lost} of {len(scores)} diverged)" if lost else ""


# --- simple rules to set the networks beside ----------------------------------------------------


def rival(sweep: Sweep, task: str) -> tuple[float, str] | None:
    """The test score of a rule that is no network, and its name; None for a task without one."""
    options = dict(runs_of(sweep, task, "rnn")[0].entry.config["task"])
    options.pop("_target_")
    if task == "text":
        from gradlab.tasks.text import Text

        text = Text(**options)
        asked = text.held_out("test")
        return pairs(text.symbols, *map(np.asarray, (text.data, asked.inputs, asked.targets)))
    if task == "sunspots":
        from gradlab.tasks.sunspots import Sunspots

        years = Sunspots(**options)
        return autoregression(years.series, years.length, years.first_year)
    return None


def pairs(
    symbols: int, train: np.ndarray, inputs: np.ndarray, targets: np.ndarray
) -> tuple[float, str]:
    """The loss in nats of a table of which symbol follows which, counted on the training text.

    Each pair counts one more time than it was seen, divided by ``symbols``, so that none is
    impossible.

    Args:
      symbols: how many there are.
      train: ``(N,)`` whole numbers below ``symbols``.
      inputs: ``(T, B)`` of the test, likewise.
      targets: ``(T, B)`` what follows each of them.
    """
    counts = np.full((symbols, symbols), 1 / symbols)
    np.add.at(counts, (train[:-1].astype(int), train[1:].astype(int)), 1)
    share = counts / counts.sum(1, keepdims=True)
    return float(-np.log(share[inputs, targets]).mean()), "a table of character pairs"


def autoregression(series: np.ndarray, length: int, first: dict[str, int]) -> tuple[float, str]:
    """The test MSE of a linear forecast by least squares; its order has the best validation MSE.

    Args:
      series: ``(N,)`` values in order of time.
      length: the longest order, and the first value that is forecast in training.
      first: index of the first value of ``val`` and of ``test``.
    """
    borders = [length, first["val"], first["test"], len(series)]
    train, val, test = (np.arange(*ends) for ends in pairwise(borders))
    found = []
    for order in range(1, length + 1):
        weights = np.linalg.lstsq(_past(series, train, order), series[train], rcond=None)[0]
        errors = [
            float(np.mean((_past(series, years, order) @ weights - series[years]) ** 2))
            for years in (val, test)
        ]
        found.append((*errors, order))
    _, error, order = min(found)
    return error, f"a linear autoregression of {order} years"


def _past(series: np.ndarray, at: np.ndarray, order: int) -> np.ndarray:
    """The ``order`` values before each of ``at (N,)``, and a 1: ``(N, order + 1)``."""
    values = series[at[:, None] + np.arange(-order, 0)]
    return np.hstack([values, np.ones((len(at), 1))])


def draw(sweep: Sweep) -> Figure:
    """A panel a task: the score of every seed, and what it takes no network to reach."""
    figure = new_figure(4)
    for axes, (task, use) in zip(figure.subplots(2, 2).flat, USES.items(), strict=True):
        everything = []
        for place, (model, colour) in enumerate(COLOURS.items()):
            scores = scores_of(sweep, task, model)
            everything += scores
            apart = np.linspace(-0.15, 0.15, len(scores))
            axes.plot(place + apart, scores, "o", color=colour, ms=9)
            axes.hlines(estimate(scores).mean, place - 0.3, place + 0.3, color=colour, lw=2)
        rule = rival(sweep, task)
        levels = [(guess_of(sweep, task), "--", use.guess)]
        if rule:
            # a name over two lines, the first of them the longer
            words = rule[1].split()
            half = -(-len(words) // 2)
            levels.append((rule[0], ":", " ".join(words[:half]) + "\n" + " ".join(words[half:])))
        for level, dashes, words in levels:
            axes.axhline(level, color=GREY, ls=dashes, lw=1.6, zorder=1)
            axes.text(3.95, level, words, ha="right", va="bottom", fontsize=11, color=GREY)
        axes.set_xlim(-0.5, 4.0)
        axes.set_xticks(range(len(NAMES)), labels=list(NAMES.values()))
        axes.set(title=use.words.replace(", written", ",\nwritten"), ylabel=use.axis)
        low, high = np.nanmin([*everything, levels[0][0]]), np.nanmax([*everything, levels[0][0]])
        axes.set_ylim(
            (0, 104) if use.score == "accuracy" else (0.9 * low, low + 1.25 * (high - low))
        )
    return figure


if __name__ == "__main__":
    sys.exit(main("applications", check))
