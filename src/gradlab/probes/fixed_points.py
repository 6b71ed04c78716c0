"""Where the state would come to rest: fixed and slow points, and what is unstable about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.products import HIGHEST, eigenvalues
from gradlab.errors import BadInput, number, whole_number
from gradlab.probes.base import CloseProbe, Setting, norm, over_layers
from gradlab.variable import Variable

KEY = "probe.measure.fixed_points"

NEWTON = 4
"""Undamped steps at the end, for the last digits."""

MOST = 1e3
"""A start that gets no slower with this much damping is done."""

APART = 1e-3
"""Points nearer to each other than this, relative to their size, are one."""


@dataclass(frozen=True)
class FixedPoints(CloseProbe):
    """Fixed and slow points of the dynamics under a constant input, and their stability.

    Definition: with ``F(s, x)`` one step of the layer and x̄ the input that is held, the speed of a
    state is ``‖F(s, x̄) - s‖ = √(2q)``. From each of ``starts`` visited states, spread evenly over
    all real steps of all examples, q is minimised: by Levenberg and Marquardt's damped steps, of
    which only those are taken that lower it, and a few of Newton's for the last digits. Where the
    speed ends at ``fixed`` times the state's size or below there is a fixed point, up to ``slow``
    times a slow one. A state's size is its norm, or the least norm of the starts where that is
    larger. Fixed points nearer to each other than 10⁻³ of their size are one.

    Recorded are how many starts ended at a fixed point (``fixed_point_converged``), at a slow one
    (``fixed_point_slow``), or have no finite next state and so are left out
    (``fixed_point_lost``); log10 of the largest speed among those that ended at no fixed point
    (``fixed_point_rest_log10``; -inf if there are none); and how many different fixed points there
    are (``fixed_point_count``). Of the first ``points`` of them, in the order of how many starts
    ended there (``fixed_point_starts``): the state itself (``fixed_point_state``), log10 of its
    speed, the largest modulus of the eigenvalues of ``∂F/∂s`` there (``fixed_point_radius``), how
    many moduli are above 1 by more than rounding, the unstable directions
    (``fixed_point_unstable``), and the eigenvalues, largest modulus first. nan where there are
    fewer points.

    Source: Sussillo & Barak (2013), "Opening the black box", who minimise q with second derivatives
    by the same (Gauss-Newton) approximation.

    Cost: O(iterations N S (P + S²)) time for N starts and P parameters of the cell: a Jacobian and
    a factorisation for each start and iteration, whatever T is. O(N S²) memory.

    Mask: starts are drawn from real steps alone, so that a longer example gives more of them, and
    the held mean is over real steps.

    Limits: only what can be reached from the visited states is found: a count is a lower bound.
    A search can end at a local minimum of q that is no fixed point; such starts show in
    ``fixed_point_rest_log10``. In float32 a speed below about 10⁻⁷ of the state's size is rounding,
    and two points that are about to merge are told apart down to 10⁻³ of their size. A line
    attractor gives as many points as starts, with an eigenvalue near 1 each. The mean is an input
    that the network may never read: under inputs that differ much from their mean, the points
    say little about where the state goes. Of whole numbers and truth values, which have no mean,
    the lower median is held. What a cell reads besides its state and its input is held, too, as it
    is before the first example's last step: a counter, and the numbers of dropout's next mask.

    How to read it: with a radius below 1 a point is stable: states nearby are drawn to it, and
    gradients that stay there vanish like ``radius^lag``. One or two unstable directions make it a
    saddle, often the one that decides between two stable points. Several stable points are a
    memory that needs no carrying, a radius near 1 is one that leaks slowly, and complex
    eigenvalues near the unit circle are an oscillation. No fixed point and a large remaining speed
    say that the network does not rest under this input.

    Args:
      starts: how many visited states the search begins from.
      points: how many of the fixed points found are recorded.
      iterations: steps of the search.
      input: what is held: ``"mean"``, over real steps and examples of what the layer reads (of
        whole numbers their median), or ``"zero"``.
      fixed: the largest speed of a fixed point, relative to its size.
      slow: the largest speed of a slow point, likewise.
    """

    preset: ClassVar[str] = "research"

    starts: int = 32
    points: int = 8
    iterations: int = 60
    input: Literal["mean", "zero"] = "mean"
    fixed: float = 1e-5
    slow: float = 1e-2

    def __post_init__(self):
        """Refuse what cannot be for any model."""
        whole_number(f"{KEY}.starts", self.starts, 1)
        whole_number(f"{KEY}.points", self.points, 1)
        whole_number(f"{KEY}.iterations", self.iterations, 1)
        if self.input not in ("mean", "zero"):
            raise BadInput(f"{KEY}.input", self.input, "mean or zero")
        number(f"{KEY}.slow", self.slow, 0, 1, "(]")
        number(f"{KEY}.fixed", self.fixed, 0, self.slow, "()", f", below {KEY}.slow")

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """What the search came to, and the points."""
        search, points = ("layer",), ("layer", "point")
        what = "of a fixed point"
        return {
            "fixed_point_count": Variable(search, "1", "different fixed points found"),
            "fixed_point_converged": Variable(search, "1", "starts that ended at a fixed point"),
            "fixed_point_slow": Variable(search, "1", "starts that ended at a slow point"),
            "fixed_point_lost": Variable(search, "1", "starts without a finite next state"),
            "fixed_point_rest_log10": Variable(
                search, "log10", "largest remaining speed of starts that ended at no fixed point"
            ),
            "fixed_point_starts": Variable(points, "1", "starts that ended at a fixed point"),
            "fixed_point_speed_log10": Variable(points, "log10", f"speed ‖F(s) - s‖ {what}"),
            "fixed_point_radius": Variable(points, "1", f"largest |eigenvalue| {what}"),
            "fixed_point_unstable": Variable(points, "1", f"unstable directions {what}"),
            "fixed_point_eigenvalue_real": Variable(
                (*points, "eigenvalue"), "1", f"eigenvalues {what}, real part"
            ),
            "fixed_point_eigenvalue_imaginary": Variable(
                (*points, "eigenvalue"), "1", f"eigenvalues {what}, imaginary part"
            ),
            "fixed_point_state": Variable((*points, "component"), "1", f"state {what}"),
        }

    def coords(self, setting: Setting) -> dict[str, list[Any]]:
        """Numbers of the points, of the eigenvalues and of the state's components."""
        size = list(range(setting.state_size))
        return {"point": list(range(self.points)), "eigenvalue": size, "component": size}

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""

        def of(layer: LayerView) -> dict[str, jax.Array]:
            real = closeup.mask[::-1] if layer.backwards else closeup.mask
            return self._layer(layer, real)

        return over_layers(of, closeup.layers)

    def _layer(self, layer: LayerView, real: jax.Array) -> dict[str, jax.Array]:
        inputs = layer.trace.inputs
        held = typical(inputs, layer.mask) if self.input == "mean" else jnp.zeros_like(inputs[0, 0])
        step = layer.at_rest(held)
        starts = visited(layer.after, real, self.starts)
        found = search(step, starts, self.iterations)
        seen = jnp.isfinite(found.speed)
        usual = jnp.nanmin(jnp.where(seen, _norms(starts), jnp.nan))
        sizes = jnp.maximum(_norms(found.state), usual)
        fixed = seen & (found.speed <= self.fixed * sizes)
        slow = seen & ~fixed & (found.speed <= self.slow * sizes)
        rest = jnp.max(jnp.where(seen & ~fixed, found.speed, 0))
        merged = merge(found.state, fixed, APART * sizes)

        def count(which: jax.Array) -> jax.Array:
            return jnp.sum(which).astype(starts.dtype)

        return {
            "fixed_point_count": count(merged > 0),
            "fixed_point_converged": count(fixed),
            "fixed_point_slow": count(slow),
            "fixed_point_lost": count(~seen),
            "fixed_point_rest_log10": jnp.log10(rest),
        } | self._points(step, found, merged)

    def _points(
        self, step: Callable[[jax.Array], jax.Array], found: Found, merged: jax.Array
    ) -> dict[str, jax.Array]:
        """What is recorded of each point; nan where there are fewer."""
        most = min(self.points, len(merged))
        order = jnp.argsort(-merged, stable=True)[:most]
        there = merged[order] > 0
        state = jnp.where(there[:, None], found.state[order], 0)
        jacobian = jax.vmap(jax.jacfwd(step))(state)
        mantissa, exponent = eigenvalues(jacobian)
        real, imaginary, moduli = (
            scaling.shift(part(mantissa), exponent) for part in (jnp.real, jnp.imag, jnp.abs)
        )
        rounding = moduli.shape[-1] * jnp.finfo(moduli.dtype).eps
        unstable = moduli > 1 + rounding * jnp.maximum(moduli[:, :1], 1)
        measured = {
            "fixed_point_starts": merged[order],
            "fixed_point_speed_log10": jnp.log10(found.speed[order]),
            "fixed_point_radius": moduli[:, 0],
            "fixed_point_unstable": jnp.sum(unstable, axis=-1),
            "fixed_point_eigenvalue_real": real,
            "fixed_point_eigenvalue_imaginary": imaginary,
            "fixed_point_state": state,
        }

        def padded(value: jax.Array) -> jax.Array:
            known = there.reshape(-1, *(1,) * (value.ndim - 1))
            value = jnp.where(known, value.astype(moduli.dtype), jnp.nan)
            more = [(0, self.points - most)] + [(0, 0)] * (value.ndim - 1)
            return jnp.pad(value, more, constant_values=jnp.nan)

        return {name: padded(value) for name, value in measured.items()}


def visited(states: jax.Array, real: jax.Array, count: int) -> jax.Array:
    """``(count, S)`` of the states ``(T, E, S)`` at real steps ``(T, E)``, spread evenly.

    nan if no step is real.
    """
    order = jnp.argsort(~real.ravel(), stable=True)
    many = jnp.sum(real)
    # Not count * many, which may leave the integers.
    part = (jnp.arange(count, dtype=states.dtype) + 0.5) / count
    place = jnp.minimum((part * many.astype(states.dtype)).astype(many.dtype), many - 1)
    chosen = states.reshape(-1, states.shape[-1])[order[place]]
    return jnp.where(many > 0, chosen, jnp.nan)


class Found(NamedTuple):
    """Where a search has come to.

    Attributes:
      state: ``(N, S)``.
      speed: ``(N,)``; inf where the state or the next one is not finite.
      damping: ``(N,)`` of the next step, relative to the mean square singular value of the slope.
    """

    state: jax.Array
    speed: jax.Array
    damping: jax.Array


def search(step: Callable[[jax.Array], jax.Array], starts: jax.Array, iterations: int) -> Found:
    """States of least speed ``‖step(s) - s‖``, one from each start and never faster than it.

    Damped steps until all starts rest or no damping lets them get slower, then undamped ones.

    Args:
      step: ``(S,) -> (S,)``.
      starts: ``(N, S)``. One with an infinite speed stays where it is.
      iterations: damped steps at most.
    """
    eye = jnp.eye(starts.shape[-1], dtype=starts.dtype)[None]
    eps = jnp.finfo(starts.dtype).eps

    def velocity(state: jax.Array) -> jax.Array:
        return jax.vmap(step)(state) - state

    def speed(state: jax.Array) -> jax.Array:
        found = _norms(velocity(state))
        return jnp.where(jnp.isfinite(found), found, jnp.inf)

    def damped(slope: jax.Array, moves: jax.Array, damping: jax.Array) -> jax.Array:
        square = jnp.einsum("nij,nik->njk", slope, slope, precision=HIGHEST)
        pull = jnp.einsum("nij,ni->nj", slope, moves, precision=HIGHEST)
        mean = jnp.trace(square, axis1=-2, axis2=-1) / starts.shape[-1]
        factor = jax.scipy.linalg.cho_factor(square + (damping * mean)[:, None, None] * eye)
        return jax.scipy.linalg.cho_solve(factor, pull[..., None])[..., 0]

    def undamped(slope: jax.Array, moves: jax.Array, damping: jax.Array) -> jax.Array:
        return jnp.linalg.solve(slope, moves[..., None])[..., 0]

    def improve(now: tuple[jax.Array, Found]) -> tuple[jax.Array, Found]:
        k, found = now
        slope, moves = jax.vmap(jax.jacfwd(step))(found.state) - eye, velocity(found.state)
        steep, fast = _largest(slope), _largest(moves)
        unit = slope / steep[:, None, None], moves / fast[:, None], found.damping
        change = lax.cond(k < iterations, damped, undamped, *unit)
        there = found.state - (fast / steep)[:, None] * change
        slower = speed(there)
        taken = slower < found.speed
        state = jnp.where(taken[:, None], there, found.state)
        damping = jnp.where(taken, found.damping / 5, found.damping * 4)
        found = Found(
            state, jnp.where(taken, slower, found.speed), jnp.clip(damping, 10 * eps, MOST)
        )
        going = (found.damping < MOST) & (found.speed > eps * _norms(state))
        k = jnp.where(jnp.any(going), k + 1, jnp.maximum(k + 1, iterations))
        return k, found

    def unfinished(now: tuple[jax.Array, Found]) -> jax.Array:
        return now[0] < iterations + NEWTON

    damping = jnp.full(len(starts), 1e-2, starts.dtype)
    start = (jnp.int32(0), Found(starts, speed(starts), damping))
    return lax.while_loop(unfinished, improve, start)[1]


def _largest(arrays: jax.Array) -> jax.Array:
    """The largest entry of each of ``(N, ...)``, by which it can be divided."""
    found = jnp.max(jnp.abs(arrays), axis=tuple(range(1, arrays.ndim)))
    return jnp.where((found > 0) & jnp.isfinite(found), found, 1)


def merge(states: jax.Array, fixed: jax.Array, radius: jax.Array) -> jax.Array:
    """How many fixed points each of ``(N, S)`` stands for, ``(N,)``; 0 where another one does.

    Each point goes to the first one before it that is nearer than its radius and stands for
    itself.
    """

    def assign(counts: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        near = (counts > 0) & (_norms(states - states[index][None]) <= radius[index])
        place = jnp.where(jnp.any(near), jnp.argmax(near), index)
        return counts.at[place].add(fixed[index].astype(counts.dtype)), None

    counts = jnp.zeros(len(states), jnp.int32)
    return lax.scan(assign, counts, jnp.arange(len(states)))[0]


def _norms(vectors: jax.Array) -> jax.Array:
    """Of ``(N, S)``, without squaring anything below or above the float range."""
    return jax.vmap(norm)(vectors)


def typical(inputs: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean ``(I,)`` of ``(T, E, I)`` over real steps; of whole numbers the lower median."""
    real, count = mask.reshape(*mask.shape, *(1,) * (inputs.ndim - 2)), jnp.sum(mask)
    if jnp.issubdtype(inputs.dtype, jnp.inexact):
        total = jnp.sum(jnp.where(real, inputs, 0), axis=(0, 1))
        return total / jnp.maximum(count, 1).astype(total.dtype)
    each = jnp.broadcast_to(real, inputs.shape).reshape(-1, *inputs.shape[2:])
    flat = inputs.reshape(each.shape)
    order = jnp.lexsort((flat, ~each), axis=0)  # those that are not real come last
    return jnp.take_along_axis(flat, order, axis=0)[jnp.maximum(count - 1, 0) // 2]
