"""What does an exploding gradient do to training, and what does clipping save?

python experiments/exploding/check.py DIR…
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from gradlab.claims.command import main
from gradlab.claims.finding import Finding, number, power, spread
from gradlab.claims.sweep import ENDED, Sweep, baseline, curve, over_seeds, setting
from gradlab.compare.recorded import Recorded
from gradlab.compare.statistics import bounds_of, estimate
from gradlab.record.figures.common import BLUE, DASHES, GREY, LAG, ORANGE, new_figure, step_colours
from gradlab.record.lags import values_by_lag

PLACE = 6
QUICK = (
    "trainer.steps=100",
    "probe.every=50",
    "model.cell.recurrent_gain=0.8,1.2,1.6,2.0",
    "seed=range(2)",
    "record.wandb.mode=disabled",
)
CAPTION = """Top left: ReLU's gradient over the lag before the first update, by gain, the geometric
mean over seeds. Top right: the loss before the first update by gain, a dot a seed, and the edges
(dotted). Bottom left: the training loss of ReLU networks of the last seed with clipping, in the
colours of the gains; a × is one that diverges without it, within two updates. Bottom right: the
share of the lags up to each in what clipping removes, at the largest gain, a line a seed: a
straight line takes from all timesteps alike, a late rise from the far past."""

EDGES = {"relu": math.sqrt(2), "tanh": 1.0}
"""Gains at which a wide network without input is at the edge between vanishing and exploding."""
NAMES = {"relu": "ReLU", "tanh": "tanh"}
COLOURS = {"relu": BLUE, "tanh": ORANGE}
WALL = 6
"""Decades of loss from the edge to the largest gain that make a wall."""
FAR = 2 / 3
"""Clipping takes from the far past if the first half of the sequence has more than this share."""
LOOKS = {0: "first step", 1: "next look"}
ADJOINT, REMOVED = "adj_h_log10", "clip_removed"


def runs_of(sweep: Sweep, activation: str, clip: float | None, *gains: float) -> list[Recorded]:
    """The runs of an activation, clipped at a norm or not, of some gains; of all if none is given.

    Those that diverged are among them.
    """
    return [
        run
        for gain in gains or gains_of(sweep)
        for run in sweep.where(
            {
                "model.cell.activation_fn": activation,
                "optimizer.clip_norm": clip,
                "model.cell.recurrent_gain": gain,
            },
            ended=ENDED,
            needs=(ADJOINT, *(() if clip is None else (REMOVED,))),
        )
    ]


def gains_of(sweep: Sweep) -> list[float]:
    """The gains, ascending."""
    return sweep.values("model.cell.recurrent_gain")


def clip_of(sweep: Sweep) -> float:
    """The norm at which the clipped runs are clipped."""
    return sweep.values("optimizer.clip_norm")[0]


def grown(run: Recorded, row: int = 0) -> float:
    """log10 of the gradient by the first h over that by the last; row 0: before any update."""
    _, log10 = curve(run, ADJOINT, row)
    return float(log10[-1] - log10[0])


def explodes(run: Recorded) -> bool:
    """Whether the gradient by the first h is larger than that by the last, before any update."""
    return grown(run) > 0


def diverged(run: Recorded) -> bool:
    """Whether the run's numbers stopped being finite."""
    return run.entry.status == "diverged"


def of_step(run: Recorded, name: str) -> np.ndarray:
    """A scalar at the steps that were made."""
    found = run.series(name)
    assert found is not None
    return found.values[:, 0]


def first_loss(run: Recorded) -> float:
    """log10 of the loss before the first update."""
    return math.log10(of_step(run, "train/loss")[0])


def removed(run: Recorded, row: int = 0) -> np.ndarray:
    """The share of the lags up to each in what clipping removed at a close look, ``(T,)``.

    NaN where it removed nothing. Parts that cancel can make it less than 0 or more than 1.
    """
    assert run.run is not None
    found = values_by_lag(run.run.curves, REMOVED)
    look = found[~np.isnan(found).all(1)][row].astype(float)
    return np.cumsum(look) / (look.sum() or math.nan)


def far(run: Recorded, row: int = 0) -> float:
    """The share of the first half of the sequence in what clipping removed at a close look."""
    up_to = removed(run, row)
    return float(1 - up_to[len(up_to) // 2 - 1])


def check(sweep: Sweep) -> list[Finding]:
    """What of the lecture's statements is measured."""
    return [
        *(_diverges(sweep, activation) for activation in EDGES),
        _survives(sweep),
        *(_edge(sweep, activation) for activation in EDGES),
        _wall(sweep),
        _learns(sweep),
        *(_from_afar(sweep, activation) for activation in EDGES),
    ]


def _edge(sweep: Sweep, activation: str) -> Finding:
    edge, parts, held = EDGES[activation], [], True
    for gain in gains_of(sweep):
        runs = runs_of(sweep, activation, None, gain)
        found = over_seeds(runs, grown)
        if gain != edge:
            held &= bool((found.mean > 0) == (gain > edge))
        parts.append(f"{gain:g}: {spread(found)}")
    return Finding(
        f"{NAMES[activation]}'s gradient vanishes below a gain of {edge:.3g} and explodes above "
        "it.",
        held,
        f"decades that it gains from the last step to the first, by gain, before the first update: "
        f"{'; '.join(parts)}",
    )


def _wall(sweep: Sweep) -> Finding:
    lowest, *_, highest = gains_of(sweep)
    below = max(gain for gain in gains_of(sweep) if gain < EDGES["relu"])
    parts, steep = [], {}
    for activation, name in NAMES.items():
        levels = [
            over_seeds(runs_of(sweep, activation, None, gain), first_loss)
            for gain in (lowest, below, highest)
        ]
        steep[activation] = levels[2].mean - levels[1].mean
        told = " → ".join(power(level.mean) for level in levels)
        parts.append(f"{name} {told} (± {number(levels[2].half)} decades at the last)")
    norms = [
        over_seeds(
            runs_of(sweep, "relu", None, gain),
            lambda run: math.log10(of_step(run, "train/grad_norm")[0]),
        ).mean
        for gain in (below, highest)
    ]
    return Finding(
        f"Above the edge the loss is a wall: for ReLU it rises by {WALL} decades or more from a "
        f"gain of {below:g} to {highest:g}.",
        bool(steep["relu"] >= WALL),
        f"loss before the first update at gains {lowest:g}, {below:g} and {highest:g}: "
        f"{'; '.join(parts)}; ReLU's gradient norm {power(norms[0])} → {power(norms[1])}",
    )


def _diverges(sweep: Sweep, activation: str) -> Finding:
    runs = runs_of(sweep, activation, None)
    exploding = [run for run in runs if explodes(run)]
    others = [run for run in runs if not explodes(run)]
    lost, spared = sum(map(diverged, exploding)), sum(map(diverged, others))
    reasons = sorted({_step_of(run) for run in runs if diverged(run)})
    ended = f" at step {', '.join(reasons)}" if reasons else ""
    kept = [run for run in exploding if not diverged(run)]
    told = ""
    if kept:
        zeros = sum(grown(run, -1) == -math.inf for run in kept)
        ends = estimate(grown(run, -1) for run in kept)  # of those that are not 0
        told = (
            f"; in those that did not, the loss grows by a factor of up to "
            f"{number(max(map(_jump, kept)))} in one step, and the gradient by the first h, "
            f"{spread(over_seeds(kept, grown))} decades above that by the last, ends at "
            f"{spread(ends)}, or at 0 exactly ({zeros} of {len(kept)})"
        )
    example = next((f' ("{run.entry.reason}")' for run in runs if diverged(run)), "")
    return Finding(
        f"Without clipping, a network of {NAMES[activation]} diverges where its gradient explodes.",
        bool(exploding) and lost == len(exploding),
        f"{lost} of {len(exploding)} whose gradient explodes diverged{ended}{example}, and "
        f"{spared} of {len(others)} whose gradient vanishes{told}",
    )


def _step_of(run: Recorded) -> str:
    """At which step a run diverged, of ``diverged at step 1: …``."""
    return run.entry.reason.partition(":")[0].rpartition(" ")[2]


def _jump(run: Recorded) -> float:
    """The largest factor by which the training loss grew from a step to the next."""
    loss = of_step(run, "train/loss")
    return float(np.max(loss[1:] / loss[:-1]))


def _survives(sweep: Sweep) -> Finding:
    runs = [run for activation in EDGES for run in runs_of(sweep, activation, clip_of(sweep))]
    exploding = [run for run in runs if explodes(run)]
    rates = over_seeds(
        exploding,
        lambda run: float(of_step(run, "train/clip_rate").mean()),
        bounds_of("train/clip_rate"),
    )
    most = max(float(np.max(of_step(run, "train/grad_norm"))) for run in runs)
    return Finding(
        f"With the norm clipped at {number(clip_of(sweep))}, every network survives.",
        not any(map(diverged, runs)),
        f"{sum(map(diverged, runs))} of {len(runs)} diverged; where the gradient explodes "
        f"{spread(rates)} of the steps are clipped, and the largest norm is "
        f"{power(math.log10(most))}",
    )


def _learns(sweep: Sweep) -> Finding:
    saved = [
        run
        for activation in EDGES
        for gain in gains_of(sweep)
        for run in runs_of(sweep, activation, clip_of(sweep), gain)
        if any(
            diverged(other) and setting(other, "seed") == setting(run, "seed")
            for other in runs_of(sweep, activation, None, gain)
        )
    ]
    learned = [run for run in saved if run.entry.figure("test/loss") < baseline(run)]
    rest = [run for run in saved if run not in learned]
    falls = [(first_loss(run), math.log10(of_step(run, "train/loss")[-1])) for run in rest]
    told = ""
    if falls:
        worst = max(falls, key=lambda fall: fall[1])
        told = (
            f"; the training loss of the others falls by "
            f"{spread(estimate(a - b for a, b in falls))} decades, of the worst from "
            f"{power(worst[0])} to {power(worst[1])}"
        )
    base = number(baseline(runs_of(sweep, "relu", clip_of(sweep))[0]))
    return Finding(
        "What clipping has saved learns: its test loss ends below the baseline's.",
        bool(saved) and not rest,
        f"{len(learned)} of {len(saved)} that diverge without clipping end below {base}{told}",
    )


def _from_afar(sweep: Sweep, activation: str) -> Finding:
    runs = [run for run in runs_of(sweep, activation, clip_of(sweep)) if explodes(run)]
    first, second = (over_seeds(runs, lambda run, r=row: far(run, r)) for row in (0, 1))
    return Finding(
        f"Clipping takes away what explodes, the far past: for {NAMES[activation]}, more than two "
        "thirds of what it removes entered in the first half of the sequence.",
        bool(first.mean > FAR),
        f"share of that half where the gradient explodes: {spread(first)} at the first step "
        f"({first.n} networks), {spread(second)} at the next look ({second.n})",
    )


def draw(sweep: Sweep) -> Figure:
    """The explosion, the wall, the runs at it, and what clipping removes."""
    figure = new_figure(4)
    (gradient, wall), (training, clipped) = figure.subplots(2, 2)
    gains = gains_of(sweep)
    for gain, colour in zip(gains, step_colours(len(gains)), strict=True):
        runs = runs_of(sweep, "relu", None, gain)
        curves = [curve(run, ADJOINT, 0) for run in runs]
        mean = np.mean([log10 - log10[0] for _, log10 in curves], axis=0)
        gradient.plot(curves[0][0], mean, color=colour, label=f"{gain:g}")
        _draw_training(training, sweep, gain, colour)
    for activation, colour in COLOURS.items():
        points = [
            (gain, first_loss(run))
            for gain in gains
            for run in runs_of(sweep, activation, None, gain)
        ]
        wall.plot(*zip(*points, strict=True), "o", color=colour, label=NAMES[activation], ms=7)
        wall.axvline(EDGES[activation], color=colour, ls=":", lw=1.6)
        for index, run in enumerate(runs_of(sweep, activation, clip_of(sweep), gains[-1])):
            for row, dashes in zip(LOOKS, DASHES, strict=False):
                label = "" if index else f"{NAMES[activation]}, {LOOKS[row]}"
                up_to = removed(run, row)
                clipped.plot(np.arange(len(up_to)), up_to, color=colour, label=label, ls=dashes)
    gradient.axhline(0, color=GREY, lw=1.0)
    gradient.set(xlabel=LAG, ylabel="log10 |∂ℓ/∂h_t| over that at lag 0")
    gradient.set_title("the gradient, ReLU, by gain")
    wall.set(xlabel="gain of the recurrent weights", ylabel="log10 of the loss (MSE)")
    wall.set_title("the wall, before the first update")
    training.set(xlabel="training step", ylabel="log10 of the training loss (MSE)")
    training.set_title("ReLU with clipping; × diverged without it")
    clipped.set(xlabel=LAG, ylabel="share of the lags up to here", ylim=(-0.1, 1.1))
    clipped.set_title(f"what clipping removes, gain {gains[-1]:g}")
    gradient.legend(fontsize=10, title="gain", ncols=2, loc="best")
    for axes in (wall, clipped):
        axes.legend(fontsize=11, loc="upper left")
    return figure


def _draw_training(axes, sweep: Sweep, gain: float, colour) -> None:
    clipped, plain = (
        _of_last_seed(runs_of(sweep, "relu", clip, gain)) for clip in (clip_of(sweep), None)
    )
    loss = np.log10(of_step(clipped, "train/loss"))
    axes.plot(np.arange(len(loss)), loss, color=colour, lw=1.6)
    if diverged(plain):
        axes.plot([0], [first_loss(plain)], "x", color=colour, ms=10, mew=2.5, clip_on=False)


def _of_last_seed(runs: Sequence[Recorded]) -> Recorded:
    return max(runs, key=lambda run: setting(run, "seed"))


if __name__ == "__main__":
    sys.exit(main("exploding", check))
