"""What the curves say, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gradlab.record.base import AT_LENGTH, Description, Outcome

CURVES = ("adjoint_slope", "memory_horizon", "adj_h_log10", "adj_c_log10", "forget_product_log10")
"""What the verdict reads, each with a leading layer axis."""


def verdict(
    curves: Mapping[str, np.ndarray],
    layers: list[str],
    *,
    length: int,
    earlier_steps_have_loss: bool = False,
    gate: str | None = None,
) -> list[str]:
    """One line a layer, from the curves of one training step.

    Args:
      curves: ``adj_h_log10``, ``adjoint_slope``, ``memory_horizon`` and, where there is a retention
        gate, ``forget_product_log10`` and ``adj_c_log10``; each with a leading layer axis.
      layers: the layers' labels.
      length: ``T``.
      earlier_steps_have_loss: whether timesteps before the last feed the loss directly too.
      gate: the name of the retention gate.

    Returns:
      Lines like ``"layer 0: vanishing. ..."``; empty if slope or horizon was not measured.
    """
    if not {"adjoint_slope", "memory_horizon"} <= curves.keys():
        return []
    used = [name for name in CURVES if name in curves]
    return [
        f"layer {label}: "
        + _layer({name: curves[name][row] for name in used}, length, earlier_steps_have_loss, gate)
        for row, label in enumerate(layers)
    ]


def kind_of(slope: float, horizon: float, length: int) -> str:
    """``"vanishing"``, ``"exploding"`` or ``"stable"`` (within a factor e over the sequence)."""
    if not math.isfinite(slope):
        return "cut off"
    if horizon < length - 1 and slope * (length - 1) < -1:
        return "vanishing"
    if slope * (length - 1) > 1:
        return "exploding"
    return "stable"


def _layer(curve: Mapping[str, np.ndarray], length: int, earlier: bool, gate: str | None) -> str:
    slope, horizon = float(curve["adjoint_slope"]), float(curve["memory_horizon"])
    kind = kind_of(slope, horizon, length)
    if kind == "cut off":
        return (
            "cut off. Exactly no gradient passes from one timestep to the one before it."
            if length > 1
            else "one timestep only. There is no time for a gradient to travel through."
        )
    if earlier:
        return (
            "fed along the way. The task has a loss at more timesteps than the last, so earlier "
            f"states receive gradient of their own and the curve stays up (slope {slope:+.4f} nats "
            "per step); read it against a task with its loss at the end before calling it stable."
        )
    return f"{kind}. {_reach(kind, slope, horizon, length)}{_explained(curve, gate)}"


def _reach(kind: str, slope: float, horizon: float, length: int) -> str:
    total = slope * (length - 1) / math.log(10)
    rate = f"slope {slope:+.4f} nats per step back, 10^{total:+.1f} over all {length} steps"
    if kind == "vanishing":
        return f"The gradient has fallen by e after {horizon:.1f} of {length} steps ({rate})."
    if kind == "exploding":
        return f"The gradient grows on its way back through time ({rate})."
    if horizon >= length:
        return f"The gradient reaches all {length} steps within a factor e ({rate})."
    return f"The gradient first falls by e after {horizon:.1f} of {length} steps ({rate})."


def _explained(curve: Mapping[str, np.ndarray], gate: str | None) -> str:
    """How much of the fall of the adjoint the forget product accounts for."""
    if not {"forget_product_log10", "adj_h_log10"} <= curve.keys():
        return ""
    carried = curve.get("adj_c_log10", curve["adj_h_log10"])
    fall, product = _falls(carried, curve["forget_product_log10"])
    if not (math.isfinite(fall) and math.isfinite(product)):
        return ""
    name = f"the product of the {gate} gate" if gate else "the forget product"
    if fall > -0.1:
        return f" Through {name} alone it would have fallen by 10^{product:.1f}."
    share = product / fall
    if share <= 1.05:
        return f" {name.capitalize()} explains {100 * min(share, 1):.0f} % of that fall."
    return (
        f" {name.capitalize()} alone would have taken it down by 10^{product:.1f}; "
        f"it fell by 10^{fall:.1f}, the rest came through the hidden state."
    )


def _falls(adjoint: np.ndarray, product: np.ndarray) -> tuple[float, float]:
    """How far both fall, in decades, from the last step where the adjoint is not zero to t = 0."""
    present = np.flatnonzero(np.isfinite(adjoint))
    if not present.size:
        return math.nan, math.nan
    last = present[-1]
    return float(adjoint[0] - adjoint[last]), float(product[0] - product[last])


def against_baseline(outcome: Outcome, description: Description) -> list[str]:
    """One line that says whether the model beat the guess without memory on the test split."""
    baseline, summary = description.baseline["test"], outcome.summary
    if "test/loss" not in summary:
        return []
    score, guess = summary["test/loss"], baseline["loss"]
    word = "beats" if score < guess else "does not beat"
    line = f"test loss {score:.4g} {word} the baseline {guess:.4g} ({baseline['name']})"
    if baseline.get("accuracy") is not None and "test/accuracy" in summary:
        line += f"; test accuracy {summary['test/accuracy']:.1%} against {baseline['accuracy']:.1%}"
    return [line]


def at_other_lengths(
    outcome: Outcome, description: Description, lengths: Sequence[int]
) -> list[str]:
    """One line a figure: what it is on the test split at each of some lengths, and the baseline."""
    summary, lines = outcome.summary, []
    for figure, form in (("loss", ".4g"), ("accuracy", ".1%")):
        told = []
        for length in lengths:
            score = summary.get(f"test/{figure}{AT_LENGTH}{length}")
            guess = description.baseline[f"test{AT_LENGTH}{length}"][figure]
            if score is not None:
                words = "" if guess is None else f" (baseline {guess:{form}})"
                told.append(f"{length}: {score:{form}}{words}")
        if told:
            lines.append(f"test {figure} at other lengths: {', '.join(told)}")
    return lines
