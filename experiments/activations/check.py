"""Sigmoid, tanh, ReLU: which of them lets the gradient through?

python experiments/activations/check.py DIR…
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from gradlab.claims.command import main
from gradlab.claims.finding import Finding, number, power, spread
from gradlab.claims.sweep import Sweep, baseline, curve, over_seeds, value
from gradlab.compare.recorded import Recorded
from gradlab.record.figures.common import BLUE, GREEN, LAG, ORANGE, new_figure

PLACE = 3
QUICK = (
    "trainer.steps=600",
    "seed=range(2)",
    "record.wandb.mode=disabled",
)
CAPTION = """The largest singular value of the product of the step Jacobians over the lag (solid)
and the bound (γ σ_max)^lag (dotted), of the first seed. Top: before training; W has σ_max = 1, so
the bound is 1 for tanh and ReLU and 4^-lag for the sigmoid. Bottom: after training. Left: W began
orthogonal, right: as the identity."""

COLOURS = {"sigmoid": BLUE, "tanh": ORANGE, "relu": GREEN}
NAMES = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU"}
INITS = {"orthogonal": "an orthogonal matrix", "identity": "the identity"}
FIRST, LAST = 0, -1
"""Rows: before training, and at its end."""
WHEN = {FIRST: "before training", LAST: "after training"}
SOLVED = 0.1
"""A run has learned to add with a test loss below this share of the baseline's."""
PRODUCT, BOUND, ADJOINT = "long_jacobian_log10", "pascanu_bound_log10", "adj_h_log10"
NEEDS = (PRODUCT, BOUND, ADJOINT, "spectral_norm")


def runs_of(sweep: Sweep, activation: str, *inits: str) -> list[Recorded]:
    """The seeds of an activation from some initial matrices; from all if none is named."""
    return [
        run
        for init in inits or INITS
        for run in sweep.where(
            {"model.cell.activation_fn": activation, "model.cell.recurrent_kernel_init": init},
            needs=NEEDS,
        )
    ]


def all_of(sweep: Sweep) -> list[Recorded]:
    """All runs."""
    return [run for activation in NAMES for run in runs_of(sweep, activation)]


def lag_of(run: Recorded) -> int:
    """The longest lag."""
    return int(curve(run, PRODUCT, FIRST)[0][-1])


def left(run: Recorded, row: int) -> np.ndarray:
    """log10 of the gradient by h_t over that by the last h, by lag ``(T,)``."""
    _, adjoint = curve(run, ADJOINT, row)
    return adjoint - adjoint[0]


def end(run: Recorded, row: int) -> float:
    """log10 of what is left of the gradient at the longest lag."""
    return float(left(run, row)[-1])


def gap(run: Recorded, row: int) -> float:
    """Decades between the bound and the product's norm at the longest lag."""
    return float(curve(run, BOUND, row)[1][-1] - curve(run, PRODUCT, row)[1][-1])


def solved(run: Recorded) -> bool:
    """Whether a run has learned to add."""
    return run.entry.figure("test/loss") < SOLVED * baseline(run)


def check(sweep: Sweep) -> list[Finding]:
    """What of the lecture's statements is measured."""
    return [
        *(_order(sweep, init) for init in INITS),
        _relu(sweep),
        _sigmoid(sweep),
        _bound(sweep),
        _estimate(sweep),
        _grows(sweep),
        _opened(sweep),
        _success(sweep),
    ]


def _bound(sweep: Sweep) -> Finding:
    runs = all_of(sweep)
    over = [
        max(
            np.nanmax((found - curve(run, BOUND, row)[1])[1:])
            for found in (curve(run, PRODUCT, row)[1], left(run, row))
        )
        for run in runs
        for row in WHEN
    ]
    return Finding(
        "No gradient passes the bound: ‖∂h_T/∂h_t‖ ≤ (γ σ_max)^lag, with γ = 1/4 for the sigmoid "
        "and 1 for tanh and ReLU.",
        bool(max(over) < 1e-3),
        f"at every lag up to {lag_of(runs[0])} of {len(runs)} networks, before training and "
        f"after it; of lags from 1 the largest excess is {number(max(0.0, max(over)))} decades",
    )


def _sigmoid(sweep: Sweep) -> Finding:
    def rate(run: Recorded) -> float:
        return float(curve(run, PRODUCT, FIRST)[1][-1]) * math.log(10) / lag_of(run)

    parts = [
        f"{spread(over_seeds(runs_of(sweep, 'sigmoid', init), rate), 'nats per step')} from {words}"
        for init, words in INITS.items()
    ]
    runs = runs_of(sweep, "sigmoid")
    left_over = over_seeds(runs, lambda run: float(curve(run, PRODUCT, FIRST)[1][-1]))
    norm = over_seeds(runs, lambda run: value(run, "spectral_norm", FIRST))
    return Finding(
        "The sigmoid's gradient vanishes by at least a factor 4 a step, -1.386 nats, where σ_max "
        "is 1.",
        all(rate(run) <= -math.log(4) for run in runs),
        f"before training, σ_max = {number(norm.mean)}: the norm of the product changes by "
        f"{'; '.join(parts)}; {power(left_over.mean)} is left after {lag_of(runs[0])} steps",
    )


def _estimate(sweep: Sweep) -> Finding:
    parts, held = [], True
    for row, words in WHEN.items():
        gaps = []
        for activation, name in NAMES.items():
            runs = runs_of(sweep, activation)
            held &= all(gap(run, row) < 1 for run in runs)
            gaps += [
                f"{name} {init} {number(over_seeds(own, lambda run, r=row: gap(run, r)).mean)}"
                for init in INITS
                if (own := runs_of(sweep, activation, init))
            ]
        parts.append(f"{words}: {', '.join(gaps)}")
    norms = over_seeds(all_of(sweep), lambda run: value(run, "spectral_norm", LAST))
    return Finding(
        "The bound says how much is left: the norm is less than a decade below it.",
        held,
        f"decades below the bound at the longest lag {'; '.join(parts)}, with σ_max grown to "
        f"{spread(norms)}",
    )


def _order(sweep: Sweep, init: str) -> Finding:
    ends = {
        activation: [end(run, FIRST) for run in runs_of(sweep, activation, init)]
        for activation in NAMES
    }
    ordered = list(ends.values())
    means = [
        f"{NAMES[activation]} {power(float(np.mean(found)))}" for activation, found in ends.items()
    ]
    return Finding(
        f"ReLU lets through more than tanh, and tanh more than the sigmoid, from {INITS[init]}.",
        all(max(low) < min(high) for low, high in pairwise(ordered)),
        f"left of the gradient at the longest lag, before training: {', '.join(means)} (geometric "
        f"means of {len(ordered[0])} seeds)",
    )


def _relu(sweep: Sweep) -> Finding:
    def rate(run: Recorded) -> float:
        return end(run, FIRST) * math.log(10) / lag_of(run)

    runs = runs_of(sweep, "relu")
    parts = [
        f"from {words} {spread(over_seeds(runs_of(sweep, 'relu', init), rate), 'nats per step')}"
        for init, words in INITS.items()
    ]
    return Finding(
        "ReLU's derivative is 1 where it is on, so its gradient does not vanish: less than a "
        "decade is lost, before training.",
        all(end(run, FIRST) > -1 for run in runs),
        f"{'; '.join(parts)}; half of the directions off at each step makes "
        f"{-0.5 * math.log(2):.3f}, the power √½",
    )


def _grows(sweep: Sweep) -> Finding:
    parts = []
    for activation, name in NAMES.items():
        for init in INITS:
            runs = runs_of(sweep, activation, init)
            before, after = (
                power(over_seeds(runs, lambda run, r=row: end(run, r)).mean) for row in WHEN
            )
            parts.append(f"{name} {init} {before} → {after}")
    return Finding(
        "Training lets more of the gradient through, whatever the activation.",
        all(end(run, LAST) > end(run, FIRST) for run in all_of(sweep)),
        f"left at the longest lag, before → after: {', '.join(parts)}",
    )


def _opened(sweep: Sweep) -> Finding:
    learned = [run for run in all_of(sweep) if solved(run)]
    others = [run for run in all_of(sweep) if not solved(run)]
    before, after = (over_seeds(learned, lambda run, r=row: -end(run, r)) for row in (FIRST, LAST))
    rest = [-end(run, LAST) for run in others]
    told = f"{number(min(rest))} to {number(max(rest))}" if rest else "none are there"
    return Finding(
        "A network that has learned to add has opened the way: less than 2 decades are lost over "
        "the sequence.",
        bool(learned) and all(end(run, LAST) > -2 for run in learned),
        f"{len(learned)} that learned: {spread(before)} decades lost before training, "
        f"{spread(after)} after; {len(others)} that did not: after training {told}",
    )


def _success(sweep: Sweep) -> Finding:
    parts, shares = [], {}
    for activation, name in NAMES.items():
        runs = runs_of(sweep, activation)
        shares[activation] = sum(map(solved, runs)) / len(runs)
        for init in INITS:
            own = runs_of(sweep, activation, init)
            loss = over_seeds(own, lambda run: run.entry.figure("test/loss"))
            parts.append(
                f"{name} {init} {sum(map(solved, own))} of {len(own)} (MSE {number(loss.mean)})"
            )
    return Finding(
        f"At T = {lag_of(all_of(sweep)[0]) + 1} the network of ReLUs learns to add, and that of "
        "sigmoids does not.",
        shares["relu"] == 1 and shares["sigmoid"] == 0,
        f"{', '.join(parts)}; baseline {number(baseline(all_of(sweep)[0]))}",
    )


def draw(sweep: Sweep) -> Figure:
    """The product's norm and its bound, before training and after."""
    figure = new_figure(4)
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    for (row, when), line in zip(WHEN.items(), grid, strict=True):
        for (init, words), axes in zip(INITS.items(), line, strict=True):
            for activation, colour in COLOURS.items():
                run = runs_of(sweep, activation, init)[0]
                lags, log10 = curve(run, PRODUCT, row)
                axes.plot(lags, log10, color=colour, label=NAMES[activation])
                _, bound = curve(run, BOUND, row)
                axes.plot(lags, bound, color=colour, ls=":", lw=2.2)
            axes.plot([], [], color="black", ls=":", lw=2.2, label="bound (γ σ_max)^lag")
            axes.set_title(f"{when}, from {words}")
    for axes in grid[:, 0]:
        axes.set_ylabel("log10 of the largest\nsingular value of J_{T:t}")
    for axes in grid[1]:
        axes.set_xlabel(LAG, fontsize=12)
    grid[0, 0].legend(loc="lower left", fontsize=11)
    return figure


if __name__ == "__main__":
    sys.exit(main("activations", check))
