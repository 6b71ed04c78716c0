"""At which timesteps clipping takes the gradient away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup, LayerView, Params
from gradlab.bptt.scaling import Scaled
from gradlab.probes.base import CloseProbe, Setting, Unsupported, norm
from gradlab.variable import Variable


@dataclass(frozen=True)
class ClipRemoved(CloseProbe):
    """What clipping takes off the gradient, split over the timesteps through which it entered.

    Definition: ``r`` is the gradient of the whole training batch minus the clipped one. Of the
    examples looked at, ``c_t`` is the part of the gradient ``g`` of all parameters (cells and
    readout) that enters at timestep t, so that ``Σ_t c_t = g``. Recorded is
    ``clip_removed[t] = ‖r‖ ⟨r, c_t⟩ / ⟨r, g⟩``, the share of t in what is removed; over t it sums
    to ``‖r‖``. 0 everywhere when nothing was clipped, nan when g has no part at all along r.

    t is real time, the timestep of the input, in both directions of a bidirectional layer. A
    readout of the last state alone enters at each example's own last step, a learned initial state
    at the first step that its direction reads.

    Source: the clipping of Pascanu, Mikolov & Bengio (2013), section 3.2 (algorithm 1), with the
    temporal contributions of their equations 3 to 5.

    Cost: one gradient of the whole batch, and one step forward with a tangent for each of T steps
    and E examples: O(T E |θ|) work, O(T E S) memory.

    Mask: a padded step has no part in any gradient, and gives 0. Examples of different length are
    added where they stand in the input, so that t is no lag where lengths differ.

    Limits: what is removed is exact, of the whole batch; how it divides over t is that of the few
    examples looked at, scaled to sum to it. Where their gradient hardly points along what was
    removed, ⟨r, g⟩ is near 0 and the shares are large, with both signs. Sums over t lose what is
    10⁷ below the largest part in float32.

    How to read it: a peak says where the steep part of the loss lies. A curve that grows towards
    the far past: exploding contributions of the early steps were cut. A flat curve: clipping acts
    as a smaller learning rate for all timesteps alike. Negative values are steps that pulled
    against what was removed. Values far above ``‖r‖`` with both signs are parts that cancel, or
    examples that differ from their batch.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """One variable over time."""
        if not setting.clips:
            raise Unsupported(f"{setting.cell} is trained without clipping: nothing is removed")
        name = "gradient that clipping removed, by the timestep at which it entered"
        return {"clip_removed": Variable(("t",), "loss/parameter", name)}

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        removed = closeup.removed
        size = norm(jnp.stack([norm(value) for value in removed.values()]))
        unit = {name: value / jnp.where(size == 0, 1, size) for name, value in removed.items()}
        parts = [_along(view, unit) for view in closeup.layers]
        parts += [part for view in closeup.layers for part in _starts_along(view, unit)]
        parts.append(_readout_along(closeup, unit))
        by_time = _sum_over_examples(parts)
        share = by_time / jnp.sum(by_time)
        return {"clip_removed": jnp.where(size == 0, 0, size * share)}


def _along(view: LayerView, direction: Params) -> Scaled:
    """⟨direction, contribution of t to each example's gradient⟩, ``(T, E)``, in real time."""
    tangents = {name: direction[view.prefix + name] for name in view.params}
    motion = jax.jvp(view.results_with, (dict(view.params),), (tangents,))[1]
    cotangents = view.cotangents
    pairs = zip(motion, cotangents.mantissa, strict=True)
    # Where masked the cotangent is 0, which a motion that is not finite must not undo.
    dots = sum(jnp.sum(jnp.where(c == 0, 0, m * c), axis=-1) for m, c in pairs)
    along = Scaled(dots, cotangents.exponent)
    return jax.tree.map(lambda array: array[::-1], along) if view.backwards else along


def _starts_along(view: LayerView, direction: Params) -> Iterator[Scaled]:
    """The same of learned initial states: all at the first step that is read."""
    first = -1 if view.backwards else 0
    for name, each in view.start_contributions.items():
        products = each.mantissa * direction[name][None]
        dots = jnp.sum(products, axis=tuple(range(1, products.ndim)))
        at = jnp.zeros(view.mask.shape, dots.dtype).at[first].set(dots)
        yield Scaled(at, jnp.broadcast_to(each.exponent, at.shape)).normalise()


def _readout_along(closeup: Closeup, direction: Params) -> Scaled:
    """The same of the readout; ``(T, 1)``, the sum over examples."""
    dots = jnp.zeros(closeup.length)
    for name, parts in closeup.readout_contributions.items():
        products = parts * direction[name][None]
        dots = dots + jnp.sum(products, axis=tuple(range(1, parts.ndim))) * closeup.examples
    return Scaled.of(dots[:, None], 2)


def _sum_over_examples(parts: list[Scaled]) -> jax.Array:
    """``(T,)``: the sum of all columns, in units in which the largest number is about 1."""
    joined = jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), *parts)
    mantissa, exponent = joined.normalise()
    return jnp.sum(scaling.shift(mantissa, exponent - jnp.max(exponent)), axis=1)
