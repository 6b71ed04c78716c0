"""The contract of a probe: a pure function from what was seen to named arrays.

A probe is a frozen dataclass in a file of its own with a yaml in ``conf/probe``. Its fields are
options; :meth:`Probe.variables` says what it will record for a given model; calling it measures,
on the device, inside a compiled function. The contract tests find it from the config folder.

There are two kinds. A :class:`StepProbe` reads what a training step saw anyway (:class:`Seen`), at
every logged step. A :class:`CloseProbe` looks closely at a few examples
(:class:`gradlab.bptt.closeup.Closeup`), every ``probe.every`` steps.

Shapes: ``L`` layers (both directions of a bidirectional one counted), ``T`` steps, ``B`` examples,
``H`` hidden width.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.folding import Folded, Gates, fold_over
from gradlab.bptt.passes import wide, wide_type
from gradlab.errors import BadInput, number
from gradlab.variable import Variable, over_lag_name

PRESETS = ("standard", "full", "research")
"""Sets of probes from cheap to costly, each with all that the ones before it hold."""


class Setting(NamedTuple):
    """What is known of a model before it runs.

    Attributes:
      cell: the cell's name, for messages.
      states: names of the state's parts, e.g. ``("c", "h")``.
      gates: names of the gates that can be seen, e.g. ``("i", "f", "o")``.
      retention: the gate that multiplies the old state, or None.
      matrices: names of the recurrent matrices that can be seen, e.g. ``("i", "f", ...)``.
      activation: of a plain recurrent network its φ, e.g. ``"tanh"``; None for any other cell.
      length: ``T``.
      hidden: ``H``, the units of the part that the retention gate multiplies, c or h.
      clips: whether gradients are clipped.
      trains: whether there is an optimizer at work, and not a lone batch being analysed.
      h: which of the states is h.
      size: of the packed state, in real numbers; 0: ``H`` for each of the states.
      mixes: whether a step mixes the examples of a batch, or changes real numbers that they share.
    """

    cell: str
    states: tuple[str, ...]
    gates: tuple[str, ...]
    retention: str | None
    matrices: tuple[str, ...] = ()
    activation: str | None = None
    length: int = 0
    hidden: int = 0
    clips: bool = False
    trains: bool = True
    h: str = "h"
    size: int = 0
    mixes: bool = False

    @property
    def state_size(self) -> int:
        """``S``, the size of the packed state in real numbers."""
        return self.size or len(self.states) * self.hidden

    @property
    def memory(self) -> str:
        """The state that the retention gate multiplies."""
        return "c" if "c" in self.states else self.h

    @property
    def renames_h(self) -> bool:
        """Whether h has a name of its own, so that its adjoint is recorded as that of h as well."""
        return "h" not in self.states

    def hidden_of(self, adjoints: Mapping[str, jax.Array]) -> jax.Array | None:
        """What :attr:`Seen.hidden` is, from the adjoints by the names of the states."""
        return adjoints[self.h] if self.renames_h else None


class Seen(NamedTuple):
    """What one training step saw.

    Attributes:
      adjoints: state name -> ``(L, T, B)``: log10 of the 2-norm of ∂ℓ/∂(state after reading x_t),
        ℓ being the loss of that example alone; -inf where it is exactly zero.
      mask: ``(L, T, B)`` bool, True where a step was real.
      gates: gate name -> ``(L, T, B, H)`` activations.
      retention: ``(L, T, B, H)`` activations of the retention gate, or None.
      params, grads, clipped, updates: parameter name -> array: the parameters before the update,
        the gradient of the mean loss, the same after clipping, and what was added.
    """

    adjoints: Mapping[str, jax.Array]
    mask: jax.Array
    gates: Mapping[str, jax.Array]
    retention: jax.Array | None
    params: Mapping[str, jax.Array]
    grads: Mapping[str, jax.Array]
    clipped: Mapping[str, jax.Array]
    updates: Mapping[str, jax.Array]
    hidden: jax.Array | None = None


class Unsupported(Exception):
    """This probe cannot measure this model; the message says why."""


class Probe(abc.ABC):
    """One measurement: see :class:`StepProbe` and :class:`CloseProbe`.

    Attributes:
      preset: the first of :data:`PRESETS` that holds it; ``conf/probe`` has the same sets as yaml.
      research: options that the preset of this name sets, where the defaults are made for ``full``.
    """

    preset: ClassVar[str]
    research: ClassVar[Mapping[str, Any]] = {}

    @abc.abstractmethod
    def variables(self, setting: Setting) -> dict[str, Variable]:
        """What calling it will return for this model, by name.

        Raises:
          Unsupported: if the model lacks what the probe measures.
          BadInput: for an option that this model cannot have.
        """

    def coords(self, setting: Setting) -> dict[str, list[Any]]:
        """Values of dimensions that only this probe has, e.g. its quantiles."""
        return {}


class StepProbe(Probe):
    """A measurement of a training step, from what the step saw anyway."""

    preset = "standard"

    @abc.abstractmethod
    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """Measure. Pure and traceable; arrays shaped as the dims of :meth:`variables`."""


class GateProbe(StepProbe):
    """A step probe that reads gates: a fold over time, from the last step to the first.

    The backward pass that trains makes the fold (:mod:`gradlab.bptt.folding`) of gates that it has
    anyway, on each device of the examples there; called with what a step saw, it makes it of gates
    that were kept.
    """

    @abc.abstractmethod
    def begin(self, gates: Gates) -> Any:
        """See :meth:`gradlab.bptt.folding.Fold.begin`."""

    @abc.abstractmethod
    def step(self, carry: Any, gates: Gates, real: jax.Array | None) -> tuple[Any, Any]:
        """See :meth:`gradlab.bptt.folding.Fold.step`."""

    @abc.abstractmethod
    def finish(self, carry: Any, kept: Any) -> Folded:
        """See :meth:`gradlab.bptt.folding.Fold.finish`."""

    @abc.abstractmethod
    def measure(self, folded: Folded, mask: jax.Array) -> dict[str, jax.Array]:
        """Measure.

        Args:
          folded: the result of the fold over the whole batch, of each layer: rows ``(L, T, B)``,
            sums ``(L, ...)``.
          mask: ``(L, T, B)`` as of :class:`Seen`.
        """

    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """See :meth:`StepProbe.__call__`."""

        def of_layer(at: int) -> Folded:
            named = {name: gate[at] for name, gate in seen.gates.items()}
            kept = None if seen.retention is None else seen.retention[at]
            return fold_over(self, Gates(named, kept), seen.mask[at])

        return self.measure(stacked(list(map(of_layer, range(len(seen.mask))))), seen.mask)


def stacked(layers: Sequence[Any]) -> Any:
    """Trees of arrays, one for each layer, as one tree with a leading axis of layers."""
    return jax.tree.map(lambda *each: jnp.stack(each), *layers)


class CloseProbe(Probe):
    """A measurement that needs the network itself, on a few examples.

    Attributes:
      examples: how many of them it needs the Jacobians of; a field of those that do.
      fewest: how many examples it needs to say anything.
    """

    preset = "full"
    examples: int = 0
    fewest: ClassVar[int] = 1

    @abc.abstractmethod
    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """Measure. Pure and traceable; arrays shaped as the dims of :meth:`variables`."""


def check_quantiles(key: str, given: tuple[float, ...]) -> None:
    """Refuse what are not quantiles, with :class:`gradlab.errors.BadInput`."""
    for quantile in given:
        number(key, quantile, 0, 1)
    if not 0 < len(set(given)) == len(given):
        raise BadInput(key, given, "a list of numbers from 0 to 1, each once, at least one")


def mean_log10(log10: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over examples ``(L, T, B) -> (L, T)`` of logs, over real steps with a nonzero value.

    -inf where every real example is exactly zero, nan where no example is real. An example that is
    not finite in the other direction (nan, +inf) shows in the mean.
    """
    counted = mask & (log10 > -jnp.inf) | mask & jnp.isnan(log10)
    total = jnp.sum(jnp.where(counted, log10, 0), axis=-1)
    mean = total / jnp.maximum(jnp.sum(counted, axis=-1), 1).astype(total.dtype)
    nothing = jnp.where(jnp.any(mask, axis=-1), -jnp.inf, jnp.nan)
    return jnp.where(jnp.any(counted, axis=-1), mean, nothing)


def by_lag(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values and mask ``(L, T, B)`` by steps back from each example's own last real step.

    Index 0 of the second axis is that step; the mask says how far back an example goes. What stands
    beyond is not meant to be read.
    """
    reversed_ = values[:, ::-1], mask[:, ::-1]
    return lax.cond(jnp.all(mask), lambda: reversed_, lambda: _gathered(values, mask))


def _gathered(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    length = mask.shape[1]
    later = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] - 1
    layers, steps, examples = jnp.indices(mask.shape, sparse=True)
    steps = jnp.broadcast_to(steps, mask.shape)
    index = (layers, jnp.where(mask, later, length), examples)
    place = jnp.zeros(mask.shape, steps.dtype).at[index].set(steps, mode="drop")
    real = jnp.arange(length)[None, :, None] < jnp.sum(mask, axis=1, keepdims=True)
    return jnp.take_along_axis(values, place, axis=1), real


def both_ways(
    measure: Callable[[jax.Array, jax.Array], jax.Array], values: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What is measured of ``(L, T, B)`` at each t, and at each step back from the end.

    ``measure(values, mask)`` gives ``(..., T)``. Without padding the second is the first reversed.
    """
    over_time = measure(values, mask)
    over_lag = lax.cond(
        jnp.all(mask), lambda: over_time[..., ::-1], lambda: measure(*_gathered(values, mask))
    )
    return over_time, over_lag


def both_means(name: str, log10: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """The mean of ``name`` over t and over the lag, as :func:`gradlab.variable.over_lag` has it.

    Over the lag of the examples that go so far back; nan beyond the longest of them.
    """
    over_time, over_lag = both_ways(mean_log10, log10, mask)
    return {name: over_time, over_lag_name(name): over_lag}


def mean_change(log10: jax.Array, mask: jax.Array) -> jax.Array:
    """How far ``(L, T, B)`` has moved k steps back from where each example ends: ``(L, T)``.

    The mean over the examples that go so far back of the difference to their own value at lag 0,
    so that examples of other lengths, whose gradients are larger or smaller from the start, add
    nothing. Without padding it is the mean by lag, less that at lag 0. Where more than half of them
    are exactly zero it is -inf: the few that are left say nothing of the rest.
    """
    values, real = by_lag(log10, mask)
    counted = real & (values[:, :1] != -jnp.inf)
    zero = jnp.sum(counted & (values == -jnp.inf), axis=-1)
    mean = mean_log10(values - values[:, :1], counted)
    return jnp.where(2 * zero > jnp.sum(counted, axis=-1), -jnp.inf, mean)


def nearest_quantiles(values: jax.Array, quantiles: Sequence[float]) -> jax.Array:
    """Over the last axis, the values nearest to these quantiles, ``(..., Q)``; nan is left out.

    What ``jnp.nanquantile(..., method="nearest")`` gives, but for the sign of a zero.
    """
    bits, largest = _ordered_bits(values)
    ordered = _as_floats(_sorted(jnp.where(jnp.isnan(values), largest, bits)), values.dtype)
    exact = wide_type(values)
    count = jnp.sum(~jnp.isnan(values), axis=-1, keepdims=True).astype(exact)
    wanted = jnp.asarray(quantiles, exact).reshape((1,) * (values.ndim - 1) + (-1,))
    place = wanted * jnp.maximum(count - 1, 0)
    low = jnp.floor(place)
    index = jnp.where(place - low <= 0.5, low, low + 1).astype(jnp.int32)
    return jnp.take_along_axis(ordered, index, axis=-1)


def greatest(values: jax.Array) -> jax.Array:
    """The largest of the last axis. By halves, since XLA is slow at it on a CPU."""
    while values.shape[-1] > 8 and values.shape[-1] % 2 == 0:
        values = jnp.maximum(*jnp.split(values, 2, axis=-1))
    return jnp.max(values, axis=-1)


def _ordered_bits(values: jax.Array) -> tuple[jax.Array, int]:
    """Whole numbers in the order of these floats, and the largest of them, which is nan."""
    whole = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[values.dtype.itemsize]
    return _turned(lax.bitcast_convert_type(values, whole)), jnp.iinfo(whole).max


def _as_floats(bits: jax.Array, dtype: Any) -> jax.Array:
    return lax.bitcast_convert_type(_turned(bits), dtype)


def _turned(bits: jax.Array) -> jax.Array:
    """Negative floats read as whole numbers are in reverse order; their own inverse."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _sorted(whole: jax.Array) -> jax.Array:
    """The last axis sorted, by a network of comparisons that takes all rows at once.

    Batcher's (1968) bitonic network: on a CPU more than twice as fast as XLA's sort.
    """
    size = whole.shape[-1]
    width = 1 << max(size - 1, 1).bit_length()
    rows = whole.reshape(-1, size).T  # the rows side by side, for vector instructions
    rows = jnp.pad(rows, ((0, width - size), (0, 0)), constant_values=jnp.iinfo(whole.dtype).max)
    span = 2
    while span <= width:
        rows, half = _exchanged(rows, span, flip=True), span // 2
        while half > 1:
            rows, half = _exchanged(rows, half, flip=False), half // 2
        span *= 2
    return rows[:size].T.reshape(whole.shape)


def _exchanged(rows: jax.Array, span: int, *, flip: bool) -> jax.Array:
    """In each block of ``span`` rows, the smaller of each pair of its halves in the first one."""
    first, second = jnp.moveaxis(rows.reshape(-1, 2, span // 2, rows.shape[-1]), 1, 0)
    second = second[:, ::-1] if flip else second
    low, high = jnp.minimum(first, second), jnp.maximum(first, second)
    return jnp.stack([low, high[:, ::-1] if flip else high], axis=1).reshape(rows.shape)


def over_layers(measure: Callable[[LayerView], Any], layers: Sequence[LayerView]) -> Any:
    """What is measured of each layer, a pytree of arrays, stacked over the layers."""
    return stacked([measure(layer) for layer in layers])


def state_log10(adjoints: Mapping[str, jax.Array]) -> jax.Array:
    """log10 of the norm of the adjoint of the whole state, e.g. s = [c; h]: ``(L, T, B)``."""
    parts = jnp.stack(list(adjoints.values()))
    largest = jnp.max(parts, axis=0)
    finite = jnp.where(jnp.isfinite(largest), largest, 0)
    joined = finite + 0.5 * jnp.log10(jnp.sum(pow10(2 * (parts - finite[None])), axis=0))
    return jnp.where(jnp.isfinite(largest), joined, largest)


def pow10(values: jax.Array) -> jax.Array:
    """``10**values``, several times as fast as a power."""
    return jnp.exp(math.log(10) * values)


def norm(array: jax.Array) -> jax.Array:
    """The plain 2-norm in at least float32, with no square below or above the float range."""
    sizes = wide(jnp.abs(array)).ravel()
    largest = _as_floats(jnp.max(_ordered_bits(sizes)[0], initial=0), sizes.dtype)
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    near_one = sizes / safe
    return safe * jnp.sqrt(jnp.vdot(near_one, near_one, precision=lax.Precision.HIGHEST))
