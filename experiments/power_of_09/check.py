"""How much of a gradient is left after 100 steps of a factor 0.9, or 1.1?

python experiments/power_of_09/check.py DIR…
"""

from __future__ import annotations

import math
import sys

import numpy as np
from matplotlib.figure import Figure

from gradlab.claims.command import main
from gradlab.claims.finding import Finding, number, power, spread
from gradlab.claims.sweep import Sweep, curve, over_seeds, value
from gradlab.compare.recorded import Recorded
from gradlab.compare.statistics import decay
from gradlab.record.figures.common import BLUE, GREY, LAG, ORANGE, new_figure, panels

PLACE = 2
QUICK = ("seed=range(2)", "record.wandb.mode=disabled", "record.figures=false")
CAPTION = """Left: the measured gradient of a network of one linear unit, and the power of its
weight under it (dotted). Right: 64 linear units, the largest singular value of the product of the
step Jacobians over the lag. Solid: orthogonal weights, whose spectral radius ρ and norm σ are the
same. Dashed: Gaussian weights of one seed, with ρ^lag (dotted) and σ^lag (dash-dotted): ρ sets the
slope, σ is a bound from far away."""

STEPS = 100
GAINS = {0.9: BLUE, 1.1: ORANGE}
NAMES = {"orthogonal": "orthogonal", "gaussian": "Gaussian"}
NEEDS = ("adj_h_log10", "long_jacobian_log10", "spectral_radius", "spectral_norm")


def runs_of(sweep: Sweep, hidden: int, init: str, gain: float) -> list[Recorded]:
    """The seeds of one network."""
    settings = {"model.hidden": hidden, "model.cell.recurrent_kernel_init": init}
    return sweep.where(settings | {"model.cell.recurrent_gain": gain}, needs=NEEDS)


def left(run: Recorded) -> np.ndarray:
    """log10 of the gradient by h_t over that by the last h, by lag ``(T,)``."""
    _, adjoint = curve(run, "adj_h_log10", 0)
    return adjoint - adjoint[0]


def product(run: Recorded) -> np.ndarray:
    """log10 of the largest singular value of J_{T:t}, by lag ``(T,)``."""
    return curve(run, "long_jacobian_log10", 0)[1]


def check(sweep: Sweep) -> list[Finding]:
    """What of the lecture's numbers is measured."""
    return [
        _scalar(sweep, 0.9, "; slides that print 0.000017, which is 0.9^104, are wrong"),
        _scalar(sweep, 1.1, ""),
        _orthogonal(sweep),
        _radius(sweep),
        _bounds(sweep),
    ]


def _scalar(sweep: Sweep, gain: float, more: str) -> Finding:
    runs = runs_of(sweep, 1, "orthogonal", gain)
    found = over_seeds(runs, lambda run: 10 ** left(run)[STEPS])
    exact = gain**STEPS
    held = all(abs(10 ** left(run)[STEPS] / exact - 1) < 1e-3 for run in runs)
    return Finding(
        f"A weight of {gain} leaves {gain}^{STEPS} = {exact:.4g} of the gradient after {STEPS} "
        f"steps{more}.",
        held,
        f"{found.mean:.4g}, {found.mean / exact - 1:+.1e} from the power, {found.n} seeds",
    )


def _orthogonal(sweep: Sweep) -> Finding:
    parts, held = [], True
    for gain in GAINS:
        runs = runs_of(sweep, 64, "orthogonal", gain)
        both = [[10 ** left(run)[STEPS], 10 ** product(run)[STEPS]] for run in runs]
        held &= bool(np.all(np.abs(np.array(both) / gain**STEPS - 1) < 1e-2))
        parts.append(f"{np.mean(both):.4g} for {gain}")
    return Finding(
        "With an orthogonal matrix of 64 units times 0.9 or 1.1, every direction has that factor: "
        "the gradient's norm falls and grows by the same powers.",
        held,
        "; ".join(parts),
    )


def _radius(sweep: Sweep) -> Finding:
    parts, held = [], True
    for gain in GAINS:
        runs = runs_of(sweep, 64, "gaussian", gain)
        off = [_rate(run) - math.log(value(run, "spectral_radius", 0)) for run in runs]
        held &= all(abs(one) < 0.02 for one in off)
        rate = spread(over_seeds(runs, _rate), "nats per step")
        radius = spread(over_seeds(runs, lambda run: math.log(value(run, "spectral_radius", 0))))
        parts.append(
            f"gain {gain}: rate {rate}, ln ρ {radius}, at most {max(map(abs, off)):.3f} apart"
        )
    return Finding(
        "Of a matrix that is not orthogonal, the spectral radius ρ decides: after a transient the "
        "product grows or shrinks by ρ a step.",
        held,
        "; ".join(parts),
    )


def _rate(run: Recorded) -> float:
    lags, log10 = curve(run, "long_jacobian_log10", 0)
    return decay(lags[STEPS // 2 :], log10[STEPS // 2 :]).rate


def _bounds(sweep: Sweep) -> Finding:
    runs = [run for gain in GAINS for run in runs_of(sweep, 64, "gaussian", gain)]
    held, vanishing = True, []
    for run in runs:
        lags, log10 = curve(run, "long_jacobian_log10", 0)
        radius, norm = (math.log10(value(run, name, 0)) for name in NEEDS[2:])
        between = (lags * radius - 1e-3 <= log10) & (log10 <= lags * norm + 1e-3)
        held &= bool(between.all()) and (radius < 0) == bool(log10[STEPS] < 0)
        if radius < 0 < norm:
            vanishing.append(run)
    norm = over_seeds(vanishing, lambda run: value(run, "spectral_norm", 0))
    most = over_seeds(vanishing, lambda run: 10 ** product(run).max())
    end = over_seeds(vanishing, lambda run: product(run)[STEPS])
    return Finding(
        "The spectral norm σ only bounds it: ρ^lag ≤ ‖W^lag‖ ≤ σ^lag. With ρ < 1 < σ the gradient "
        "may grow at first, and vanishes all the same.",
        held and len(vanishing) > 0,
        f"holds at every lag of {len(runs)} networks; in the {len(vanishing)} with ρ < 1 < σ, "
        f"σ = {number(norm.mean)} would allow {power(STEPS * math.log10(norm.mean))} after {STEPS} "
        f"steps; there is {power(end.mean)}, after a peak of {number(most.mean)}",
    )


def draw(sweep: Sweep) -> Figure:
    """The powers, measured."""
    figure = new_figure(2)
    scalar, matrix = panels(figure, 2, sharey=False)
    for gain, colour in GAINS.items():
        run = runs_of(sweep, 1, "orthogonal", gain)[0]
        lags = np.arange(len(left(run)))
        scalar.plot(lags, left(run), color=colour, label=f"weight {gain}")
        scalar.plot(lags, lags * math.log10(gain), color="black", ls=":", lw=1.4)
        scalar.annotate(
            f"{gain}^{STEPS} = {gain**STEPS:.4g}",
            (STEPS, STEPS * math.log10(gain)),
            xytext=(0, 16 if gain > 1 else -26),
            textcoords="offset points",
            ha="right",
        )
        for init, dashes in (("orthogonal", "-"), ("gaussian", (0, (5, 2)))):
            run = runs_of(sweep, 64, init, gain)[-1]
            matrix.plot(
                lags, product(run), color=colour, ls=dashes, label=f"{NAMES[init]}, gain {gain}"
            )
        for name, dots in (("spectral_radius", ":"), ("spectral_norm", "-.")):
            level = math.log10(value(run, name, 0))
            matrix.plot(lags, lags * level, color=GREY, ls=dots, lw=1.4)
    scalar.set_ylim(-6.5, 8)
    matrix.set_ylim(-6.5, 14)
    scalar.set_title("one linear unit")
    scalar.set_ylabel("log10 of the gradient |∂ℓ/∂h_t| over that at lag 0")
    matrix.set_title("64 linear units")
    matrix.set_ylabel("log10 of the largest singular value of J_{T:t}")
    matrix.plot([], [], color=GREY, ls=":", lw=1.4, label="ρ^lag (Gaussian)")
    matrix.plot([], [], color=GREY, ls="-.", lw=1.4, label="σ^lag (Gaussian)")
    for axes in (scalar, matrix):
        axes.set_xlabel(LAG)
        axes.legend(loc="upper left" if axes is scalar else "upper right", fontsize=10)
    return figure


if __name__ == "__main__":
    sys.exit(main("power_of_09", check))
