"""What the curves say, in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from gradlab.record.base import AT_LENGTH, Description, Outcome, Row
from gradlab.record.lags import FORGET, RESIDUAL, share_of_rest, values_by_lag

E = math.log10(math.e)
"""A factor e, in decades."""

Kind = Literal["vanishing", "exploding", "stable", "uneven", "cut off"]


class Network(NamedTuple):
    """What the verdict has to know of the network and its training besides the curves.

    Attributes:
      layers: the layers' labels, e.g. ``["0", "0 backward", "1"]``.
      length: ``T``.
      gate: the name of the retention gate, or None.
      memory: the part of the state that it multiplies, ``"c"`` or ``"h"``.
      earlier_steps_have_loss: whether timesteps before the last feed the loss directly too; None:
        not known.
      others_read_it: whether it is not known which layers read which, so that any may be fed by
        another at every step.
      backward: what the backward pass was cut to, ``trainer.backward``.
      measured_by: what measures which way the gradient goes.
    """

    layers: Sequence[str]
    length: int
    gate: str | None = None
    memory: str = "h"
    earlier_steps_have_loss: bool | None = False
    others_read_it: bool = False
    backward: str = "full"
    measured_by: str = "probe=full or probe=[standard,forget_path]"

    @property
    def way_around(self) -> str:
        """What is not the way through the gate."""
        return "h" if self.memory == "c" else "the recurrent weights"


def verdict(row: Row, network: Network, paths: Row | None = None) -> list[str]:
    """One line a layer: how its gradient travels, and which way where that was measured.

    Args:
      row: of one training step, with ``adjoint_slope`` and what belongs to it, and, as far as they
        were measured, ``memory_horizon``, the adjoints and the forget product.
      network: what it is of.
      paths: the last row with the forget and the residual path, of this step or an earlier one;
        None if there is none.

    Returns:
      Lines like ``"layer 0: vanishing. ..."``; empty if the slope was not measured.
    """
    if "adjoint_slope" not in row.arrays:
        return []
    return [
        f"layer {label}: {' '.join(_Layer(row, network, paths, index).sentences())}"
        for index, label in enumerate(network.layers)
    ]


def rests_on_first_steps(horizon: float, by_line: float) -> bool:
    """Whether the first two steps bring the gradient to 1/e, and the line would take far longer.

    Args:
      horizon: the memory horizon, in steps.
      by_line: after how many steps the fitted line comes to it; inf: never.
    """
    return horizon <= 2 and by_line >= 2 * max(horizon, 1)


def kind_of(decades_lost: float, slope: float, length: int) -> Kind:
    """What becomes of the gradient over ``length`` steps, within a factor e.

    It vanishes or explodes where its ends say so and the line through it too. Where they do not
    agree, it is uneven, as where all is lost in the first step.

    Args:
      decades_lost: from lag 0 to the longest; nan: not known, the line decides.
      slope: of the line, in nats per step; nan: no gradient passes at all.
    """
    if math.isnan(slope):
        return "cut off"
    by_line = -slope * (length - 1) * E
    lost = by_line if math.isnan(decades_lost) else decades_lost
    if abs(lost - by_line) <= E:
        lost = by_line = (lost + by_line) / 2
    if min(lost, by_line) > E:
        return "vanishing"
    if max(lost, by_line) < -E:
        return "exploding"
    return "stable" if max(abs(lost), abs(by_line)) <= E else "uneven"


class _Layer:
    """The sentences on one layer."""

    def __init__(self, row: Row, network: Network, paths: Row | None, index: int):
        self.row, self.network, self.paths, self.index = row, network, paths, index
        self.slope, self.lost = self._number("adjoint_slope"), self._number("decades_lost")
        self.kind = kind_of(self.lost, self.slope, network.length)
        self.adjoints = {
            name: values_by_lag(row.arrays, f"adj_{name}_log10")[index]
            for name in ("h", "c")
            if f"adj_{name}_log10" in row.arrays
        }

    def _number(self, name: str) -> float:
        return float(self.row.arrays[name][self.index]) if name in self.row.arrays else math.nan

    def sentences(self) -> list[str]:
        """What is said of it, most robust first."""
        network, at = self.network, f"At step {self.row.step:,}"
        if self.kind == "cut off" and network.length == 1:
            return ["one timestep only. There is no time for a gradient to travel through."]
        if self.kind == "cut off":
            passes = (
                "in most examples or all exactly no gradient passes from one timestep to the one "
                "before it."
            )
            return [f"cut off. {at} {passes}", *self._cut()]
        if network.earlier_steps_have_loss:
            fed = (
                "fed along the way. The task has a loss at more timesteps than the last, so "
                "earlier states receive gradient of their own, and the curve does not tell how it "
                "travels."
            )
            return [fed, f"{at} it {self._fall()}.", *self._cut(), *self._ways()]
        if network.earlier_steps_have_loss is None or network.others_read_it:
            told = [self._may_be_fed(at), *self._horizon(), *self._product()]
            return [*told, *self._cut(), *self._ways()]
        told = [f"{self.kind}. {at} the gradient {self._fall()}.", *self._horizon()]
        if self._is_last:
            told += self._product()
        else:
            told.append("The layer above feeds it at every step: not all of it came through time.")
        return [*told, *self._cut(), *self._ways()]

    @property
    def _is_last(self) -> bool:
        """Whether the readout is above it and no other layer."""
        depths = [str(label).split()[0] for label in self.network.layers]
        return depths[self.index] == depths[-1]

    def _may_be_fed(self, at: str) -> str:
        """What was measured, with who may have fed it on the way, so that it has no name yet."""
        loss = self.network.earlier_steps_have_loss is None
        who = "the loss or another layer" if self.network.others_read_it else "the loss"
        who = who if loss else "another layer"
        return (
            f"{at} the gradient {self._fall()}; where {who} reads it at earlier timesteps too, "
            "which is not known, not all of it came through time."
        )

    def _fall(self) -> str:
        """From lag 0 to the longest, by the line, and how straight that is."""
        longest, r2 = self._longest(), self._number("adjoint_line_r2")
        back = f"{longest} step{'' if longest == 1 else 's'} back"
        by_line = -100 * self.slope * E
        line = f"{_decades(by_line)} per 100 steps by the line"
        far = f"does not reach {back}: it is exactly zero there in most examples; before that it"
        if math.isnan(self.lost):
            far = f"over {back}"
        elif math.isfinite(self.lost):
            far = f"{_decades(self.lost)} over {back},"
            far += " but not along a line:" if self.kind == "uneven" else ""
            if by_line * self.lost >= 0:
                line = f"{abs(by_line):.3g} per 100 steps by the line"
        straight = "" if math.isnan(r2) else f", r² {r2:.2f}"
        return f"{far} {line} (slope {self.slope:+.4f} nats per step{straight})"

    def _longest(self) -> int:
        """The longest lag of any example."""
        known = [np.flatnonzero(~np.isnan(curve)) for curve in self.adjoints.values()]
        return max((int(lags[-1]) for lags in known if lags.size), default=self.network.length - 1)

    def _horizon(self) -> list[str]:
        """The memory horizon with its definition, and whether it tells more than the first step."""
        horizon = self._number("memory_horizon")
        norm, there = "the norm of the whole state's gradient is", "1/e of that at lag 0"
        if math.isnan(horizon):
            return []
        if horizon >= self.network.length:
            return [f"No memory horizon: {norm} nowhere down to {there}."]
        told = f"Memory horizon {horizon:.1f} steps, where {norm} first {there}"
        by_line = -1 / self.slope if self.slope < 0 else math.inf
        if not rests_on_first_steps(horizon, by_line):
            return [f"{told}."]
        first = "the first step takes" if horizon <= 1 else "the first two steps take"
        moves = ", moving it from h to c" if self._moves_to_c() else ""
        than = "never come to it" if math.isinf(by_line) else f"take {by_line:.1f} steps"
        return [f"{told}: {first} it there{moves}, while the line would {than}."]

    def _moves_to_c(self) -> bool:
        """Whether the gradient is in h at lag 0, and mostly in c one step back."""
        if self.adjoints.keys() != {"h", "c"}:
            return False
        h, c = self.adjoints["h"], self.adjoints["c"]
        return bool(c[0] < h[0] - 1 and c[1] > h[1])

    def _product(self) -> list[str]:
        """The fall of the norm beside that of the gate's product, which is one too; no cause."""
        network, product = self.network, "forget_product_rms_log10"
        if product not in self.row.arrays or network.memory not in self.adjoints:
            return []
        norm = self.adjoints[network.memory]
        gates = values_by_lag(self.row.arrays, product)[self.index]
        lags = np.flatnonzero(np.isfinite(norm) & np.isfinite(gates))
        if lags.size < 2:
            return []
        ends = (lags[0], lags[-1])
        return [
            f"From lag {ends[0]} to {ends[1]} the norm of ∂ℓ/∂{network.memory} "
            f"{_change(norm, *ends)}, the product of the {network.gate} gate "
            f"{_change(gates, *ends)} (root mean square over units)."
        ]

    def _cut(self) -> list[str]:
        """What the backward pass was kept from."""
        network = self.network
        ways = {"no_h_path": network.way_around, "no_c_path": f"the {network.gate} gate"}
        if network.backward not in ways:
            return []
        way = ways[network.backward]
        option = f"trainer.backward={network.backward}"
        return [f"The backward pass was cut: nothing goes back through {way} ({option})."]

    def _ways(self) -> list[str]:
        """Which way the gradient goes where that was measured, and else that it is not known.

        Of a pass that was cut nothing: there the way was chosen.
        """
        network, paths = self.network, self.paths
        if network.gate is None or network.length == 1 or network.backward != "full":
            return []
        around, gate = network.way_around, f"the {network.gate} gate"
        if paths is None:
            return [
                f"How much of it goes through {around} is not known: {network.measured_by} "
                "measures it."
            ]
        forget, residual = (
            values_by_lag(paths.arrays, name)[self.index] for name in (FORGET, RESIDUAL)
        )
        share, at = share_of_rest(forget, residual), f"in the close look at step {paths.step:,}"
        derivative = f"∂{network.memory}_T/∂{network.memory}_t"
        if share is None:
            return [f"Nothing of {derivative} is left one step back ({at})."]
        if share.lag < 2 and network.memory == "c":  # h is made of c, and is back in it a step on
            return [f"What goes through {around} shows in {derivative} from two steps back on."]
        if np.isneginf(residual[: share.lag + 1]).all():
            return [f"Nothing of {derivative} goes through {around}: all is through {gate} ({at})."]
        return [
            f"Through {around} goes {share.percent} of the squared norm of {derivative} at lag "
            f"{share.lag}, the rest through {gate} ({at})."
        ]


def _decades(lost: float) -> str:
    """``loses 2.8 decades``, or gains."""
    return f"{'gains' if lost < 0 else 'loses'} {abs(lost):.3g} decades"


def _change(log10: np.ndarray, first: int, last: int) -> str:
    """``falls by 10^-2.8``, or grows, or stays."""
    change = round(float(log10[last] - log10[first]), 1)
    return f"{'grows' if change > 0 else 'falls'} by 10^{change:.1f}" if change else "stays"


def against_baseline(outcome: Outcome, description: Description) -> list[str]:
    """One line that says whether the model beat the guess without memory on the test split."""
    baseline, summary = description.baseline["test"], outcome.summary
    if "test/loss" not in summary:
        return []
    score, guess = summary["test/loss"], baseline["loss"]
    word = "beats" if score < guess else "does not beat"
    best = f" of step {summary['best/step']:,.0f}" if "best/step" in summary else ""
    line = f"test loss {score:.4g}{best} {word} the baseline {guess:.4g} ({baseline['name']})"
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
