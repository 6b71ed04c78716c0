"""What truncated backpropagation through time would make of this gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt.closeup import Closeup, Params
from gradlab.probes.base import CloseProbe, Setting, norm
from gradlab.variable import Variable


@dataclass(frozen=True)
class Truncation(CloseProbe):
    """How far the gradient of truncated backpropagation is from the whole one, by window.

    Definition: ``g`` is the gradient of the mean loss by the parameters of all cells (without the
    readout, which no truncation touches), and ``g_K`` the same with the state held constant
    (detached) every K steps, counted back from each example's end: the last K steps form the last
    window, the K before them another one, and nothing passes from one into another.
    ``truncation_bias`` is ``‖g_K - g‖ / ‖g‖`` and ``truncation_cosine`` the cosine between the
    two, for K = 1, 2, 4, ... up to T. nan where ``g`` (for the cosine: or ``g_K``) is zero.

    A backward direction is cut in its own reading order, whose end is the first input.

    Source: truncated backpropagation through time, Williams & Peng (1990), their BPTT(h; h') with
    h = h' = K: windows that do not overlap, as with a state detached between chunks.

    Cost: log2(T) + 1 backward passes, done as one with that many times the examples:
    O(T E H log T) memory.

    Mask: windows are counted back from each example's own last real step, in the order in which the
    direction reads; a padded step ends no window. An example shorter than K is one window.

    Limits: of the few examples looked at: the bias of their mean gradient, not of a whole batch's,
    and with one example that of a single gradient. K is a power of two, and no offset of the
    windows but that to the end is looked at. In float32 a bias below about 10⁻⁶ is rounding.

    How to read it: with a loss at the end only the last window counts, and the bias is what lies
    beyond K steps. A bias that is small from K on says that this network, as it is now, loses
    nothing by a window of K (which does not say that it could not learn more with a longer one). A
    cosine near 1 with a large bias: the truncated gradient is shorter, not wrong, which a learning
    rate or Adam makes up for. A low or negative cosine: it points elsewhere. The bias can exceed 1
    where the parts from long and short range cancel.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Two curves over windows."""
        bias = "relative error of the gradient truncated to windows of K steps"
        cosine = "cosine between the gradient truncated to windows of K steps and the whole"
        return {
            "truncation_bias": Variable(("window",), "1", bias),
            "truncation_cosine": Variable(("window",), "1", cosine),
        }

    def coords(self, setting: Setting) -> dict[str, list[Any]]:
        """The windows, in steps."""
        return {"window": windows(setting.length)}

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        whole = closeup.gradient  # also runs what every window shares, outside of the vmap
        size = jnp.asarray(windows(closeup.length))[:, None, None]
        # Between the states at lags K and K - 1, so that a loss at the end reaches back K steps.
        lags = [closeup.lag_in(direction) for direction in range(closeup.directions)]
        cuts = [(lag > 0)[None] & (lag[None] % size == 0) for lag in lags]

        def compare(cuts: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
            cut = closeup.truncated(cuts)
            return _bias_and_cosine(cut, {name: whole[name] for name in cut})

        bias, cosine = jax.vmap(compare)(cuts)
        return {"truncation_bias": bias, "truncation_cosine": cosine}


def windows(length: int) -> list[int]:
    """Powers of two up to ``length``."""
    return [2**power for power in range(length.bit_length())]


def _bias_and_cosine(cut: Params, whole: Params) -> tuple[jax.Array, jax.Array]:
    def total(vectors: list[jax.Array]) -> jax.Array:
        return norm(jnp.stack([norm(one) for one in vectors]))

    size = total(list(whole.values()))
    bias = total([cut[name] - whole[name] for name in cut]) / size
    own = total(list(cut.values()))
    cosine = sum(
        jnp.vdot(cut[name] / own, whole[name] / size, precision=lax.Precision.HIGHEST)
        for name in cut
    )
    return bias, jnp.clip(cosine, -1, 1)
