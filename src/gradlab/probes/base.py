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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt.closeup import Closeup, LayerView
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

    What ``jnp.nanquantile(..., method="nearest")`` gives, but for the sign of a zero. Sorted as
    whole numbers, since XLA sorts those six times as fast on a CPU.
    """
    whole = {4: jnp.int32, 8: jnp.int64}[values.dtype.itemsize]
    largest = jnp.iinfo(whole).max  # read as a float it is nan

    def turned(bits: jax.Array) -> jax.Array:
        return jnp.where(bits < 0, bits ^ largest, bits)

    bits = turned(lax.bitcast_convert_type(values, whole))
    bits = jnp.sort(jnp.where(jnp.isnan(values), largest, bits), axis=-1)
    ordered = lax.bitcast_convert_type(turned(bits), values.dtype)
    count = jnp.sum(~jnp.isnan(values), axis=-1, keepdims=True).astype(values.dtype)
    wanted = jnp.asarray(quantiles, values.dtype).reshape((1,) * (values.ndim - 1) + (-1,))
    place = wanted * jnp.maximum(count - 1, 0)
    low = jnp.floor(place)
    index = jnp.where(place - low <= 0.5, low, low + 1).astype(jnp.int32)
    return jnp.take_along_axis(ordered, index, axis=-1)


def over_layers(measure: Callable[[LayerView], Any], layers: Sequence[LayerView]) -> Any:
    """What is measured of each layer, a pytree of arrays, stacked over the layers."""
    return jax.tree.map(lambda *each: jnp.stack(each), *map(measure, layers))


def state_log10(adjoints: Mapping[str, jax.Array]) -> jax.Array:
    """log10 of the norm of the adjoint of the whole state, e.g. s = [c; h]: ``(L, T, B)``."""
    parts = jnp.stack(list(adjoints.values()))
    largest = jnp.max(parts, axis=0)
    finite = jnp.where(jnp.isfinite(largest), largest, 0)
    joined = finite + 0.5 * jnp.log10(jnp.sum(jnp.square(10.0 ** (parts - finite[None])), axis=0))
    return jnp.where(jnp.isfinite(largest), joined, largest)


def norm(array: jax.Array) -> jax.Array:
    """The plain 2-norm in at least float32, with no square below or above the float range."""
    array = jnp.abs(array) if jnp.iscomplexobj(array) else array
    array = array if jnp.finfo(array.dtype).bits >= 32 else array.astype(jnp.float32)
    largest = jnp.max(jnp.abs(array))
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return safe * jnp.linalg.norm((array / safe).ravel())
