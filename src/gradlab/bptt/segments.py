"""Time cut into segments: only the states at their borders are kept, and the rest are made again.

A backward pass needs the state that each step began from: ``O(T B H)`` numbers. Of about ``√T``
segments only the first state of each is kept, and each is run forward a second time where the
backward pass comes to it: ``O(√T B H)`` numbers for one forward pass more. The states made again
are those of the forward pass, by the same program.

Source: Chen, Xu, Zhang & Guestrin 2016, "Training deep nets with sublinear memory cost".

``stored`` are states before steps, time in front: of every step, or of the first of each segment.
How many there are says which. All segments are equally long, but for a shorter last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Body = Callable[[Any, Any], tuple[Any, Any]]
"""Of a loop: from a state and what a step reads to the next state and what the step gives."""


def about_root(steps: int) -> int:
    """A number of segments that needs little memory: about ``√T``.

    They are equally long where ``T`` has a divisor between half the root and twice the root, as
    the rest would be copied.
    """
    root = math.isqrt(steps)
    fair = [n for n in range(max(1, root // 2), 2 * root + 1) if steps % n == 0]
    return min(fair, key=lambda n: abs(math.log(n / root)), default=root)


def forward(
    body: Body, state: Any, reads: Any, count: int | None = None, steps_at_once: int = 1
) -> tuple[Any, Any, Any]:
    """The last state, ``stored``, and what each step gives.

    Args:
      body: of the loop.
      state: the first.
      reads: what the steps read, time in front.
      count: of the segments; None: every state is kept.
      steps_at_once: ``lax.scan``'s ``unroll``.
    """

    def kept(state: Any, read: Any) -> Any:
        after, given = body(state, read)
        return after, (state, given)

    def segment(state: Any, of_segment: Any) -> Any:
        after, given = lax.scan(body, state, of_segment[1], unroll=steps_at_once)
        return after, (jax.tree.map(lambda leaf: leaf[None], state), given)

    length = 1 if count is None else math.ceil(_steps(reads) / count)
    if length == 1:
        final, (stored, given) = lax.scan(kept, state, reads, unroll=steps_at_once)
    else:
        final, (stored, given) = _over(segment, state, (), reads, length)
    return final, stored, given


def backward(
    body: Body, again: Body, state: Any, stored: Any, reads: Any, steps_at_once: int = 1
) -> tuple[Any, Any]:
    """A loop from the last step to the first: the last state, and what each step gives.

    Args:
      body: of that loop, which reads of each step ``(state before it, read)``.
      again: the body of the forward loop that ``stored`` is of; what it gives is not looked at.
      state: the first.
      stored: see the module.
      reads: what the steps read, and what they read forward, time in front.
      steps_at_once: ``lax.scan``'s ``unroll``.
    """

    def segment(state: Any, of_segment: Any) -> Any:
        border, (own, forth) = of_segment
        _, every, _ = forward(again, border, forth, steps_at_once=steps_at_once)
        return lax.scan(body, state, (every, own), reverse=True, unroll=steps_at_once)

    length = math.ceil(_steps(reads) / _steps(stored))
    if length == 1:
        return lax.scan(body, state, (stored, reads[0]), reverse=True, unroll=steps_at_once)
    return _over(segment, state, stored, reads, length, reverse=True)


def every_state(again: Body, stored: Any, reads: Any, look: Callable[[Any], Any]) -> Any:
    """What ``look`` makes of the states before every step, one segment of them at a time.

    Args:
      again, stored, reads: as for :func:`backward`, ``reads`` forward.
      look: from states to what is kept of them, time in front of both.
    """

    def segment(_: Any, of_segment: Any) -> Any:
        border, forth = of_segment
        return (), look(forward(again, border, forth)[1])

    length = math.ceil(_steps(reads) / _steps(stored))
    return look(stored) if length == 1 else _over(segment, (), stored, reads, length)[1]


def _steps(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _over(
    segment: Body, state: Any, borders: Any, reads: Any, length: int, reverse: bool = False
) -> tuple[Any, Any]:
    """A loop over segments, which read ``(border, reads of its steps)``; a shorter one is last."""
    whole = _steps(reads) // length
    equal = (
        jax.tree.map(lambda leaf: leaf[:whole], borders),
        jax.tree.map(
            lambda leaf: leaf[: whole * length].reshape(whole, length, *leaf.shape[1:]), reads
        ),
    )

    def of_equal(state: Any) -> Any:
        state, given = lax.scan(segment, state, equal, reverse=reverse)
        return state, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), given)

    if whole * length == _steps(reads):
        return of_equal(state)
    rest = (
        jax.tree.map(lambda leaf: leaf[whole], borders),
        jax.tree.map(lambda leaf: leaf[whole * length :], reads),
    )
    if reverse:
        state, late = segment(state, rest)
        state, early = of_equal(state)
    else:
        state, early = of_equal(state)
        state, late = segment(state, rest)
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), early, late)
