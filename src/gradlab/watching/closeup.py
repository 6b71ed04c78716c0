"""A close look at a module of anyone's: what :mod:`gradlab.bptt.closeup` is for a stack of cells.

The module is run under a :class:`gradlab.watching.tape.Tape`, on which its layers leave what they
went through. The adjoints come from each layer's own backward pass, from the last that was called
to the first, and pass through the module's own code between them by
:mod:`gradlab.watching.between`.

Shapes: ``T`` steps, ``E`` examples; time-major, in each layer's own reading order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from gradlab.bptt.closeup import LayerView
from gradlab.bptt.form import FIXED, Form, form_of
from gradlab.bptt.packing import from_real_form, real_form, real_gradient
from gradlab.bptt.parts import Params, Parts, by_name, names_of
from gradlab.bptt.passes import Route, is_inexact, last_real, wide
from gradlab.bptt.precision import in_float32
from gradlab.bptt.scaling import ZERO, Scaled
from gradlab.bptt.unroll import Backward, Unrolled, backward_of_one, initial_carries
from gradlab.watching.between import Between, in_bands, only
from gradlab.watching.tape import Call, Given, Tape

Losses = Callable[[Any, Any], jax.Array]
"""From what a module gives, and the module, to the loss of each example ``(E,)``."""


class Handed(NamedTuple):
    """What layers are handed whose caller gives them none; see :class:`Tape`."""

    seq_lengths: jax.Array | None = None
    starts: Mapping[str, Any] | None = None

    def tape(self, given: Mapping[str, Given] | None = None) -> Tape:
        """A tape with it, for a run that any derivative can be taken of."""
        return Tape(plainly=True, given=given, seq_lengths=self.seq_lengths, starts=self.starts)


class ModuleCloseup:
    """A module of anyone's on ``E`` examples, with the loss of each.

    Args:
      module: one whose layers :func:`gradlab.watch` has put in place; it stays as it is.
      call: runs it: from the module to its outputs, a pytree.
      losses: see :data:`Losses`.
      handed: what its layers are handed.
      batch: as for :class:`gradlab.bptt.closeup.Closeup`.
      lengths: ``(E,)``, how many steps of each example are real; None: all.
      time_major: whether the outputs begin with time.
      backward: as for :class:`gradlab.bptt.closeup.Closeup`.
    """

    clips = False

    def __init__(
        self,
        module: nnx.Module,
        call: Callable[[Any], Any],
        losses: Losses,
        *,
        handed: Handed,
        batch: int = 1,
        lengths: jax.Array | None = None,
        time_major: bool = False,
        backward: Route = "full",
    ):
        self._parts, self._call, self._losses = Parts.of(module), call, losses
        self._handed, self.batch, self._lengths = handed, batch, lengths
        self._time_major = time_major
        self._route: Route = backward
        self._names = names_of(self._parts.params)

    # The forward pass.

    @cached_property
    def ran(self) -> Ran:
        """The forward pass."""
        module, tape = self._parts.module(), self._handed.tape()
        with tape.running():
            outputs = self._call(module)
        names = {
            id(node): "/".join(map(str, path))
            for path, node in nnx.iter_graph(module)
            if isinstance(node, nnx.Param)
        }
        calls = tape.calls
        cells = {name: _as_begun(call) for name, call in calls.items()}
        return Ran(
            outputs,
            calls,
            {name: _given(call) for name, call in calls.items()},
            cells,
            {name: _form(call, cells[name]) for name, call in calls.items()},
            {name: _parameters(call.cell, names) for name, call in calls.items()},
        )

    @cached_property
    def length(self) -> int:
        """``T``, of the layer that reads longest."""
        return max(len(call.inputs) for call in self.ran.calls.values())

    @cached_property
    def examples(self) -> int:
        """``E``."""
        return next(iter(self.ran.calls.values())).inputs.shape[1]

    @cached_property
    def mask(self) -> jax.Array:
        """``(T, E)`` bool, True where a step of the input is real."""
        if self._lengths is None:
            return jnp.ones((self.length, self.examples), bool)
        return jnp.arange(self.length)[:, None] < self._lengths[None]

    @cached_property
    def losses(self) -> jax.Array:
        """The loss of each example, ``(E,)``."""
        return self._losses(self.ran.outputs, self._parts.module())

    @cached_property
    def params(self) -> Params:
        """Every parameter of the module, by name, as :func:`gradlab.bptt.packing.real_form`."""
        return {name: real_form(value) for name, value in by_name(self._parts.params).items()}

    def loss(self, params: Params) -> jax.Array:
        """The mean loss as a function of all parameters, with nothing hidden from JAX."""
        half = any(form.half for form in self.ran.forms.values())
        return in_float32(self._loss)(params) if half else self._loss(params)

    def _loss(self, params: Params) -> jax.Array:
        types = by_name(self._parts.params)
        own = {name: from_real_form(params[name], value.dtype) for name, value in types.items()}
        with self._handed.tape().running():
            outputs = self._call(self._parts.with_params(own))
        return jnp.mean(self._losses(outputs, self._parts.with_params(own)))

    # The layers.

    @cached_property
    def layers(self) -> list[LayerView]:
        """The layers in the order in which they were called."""
        return [
            LayerView(
                name,
                self.ran.cells[name],
                self._prefix(name),
                call.run.traces[0][0],
                _real(call),
                lambda name=name: self._adjoints.layers[name],
                start=_first_carry(call, self.ran.cells[name]),
                route=self._route,
                form=self.ran.forms[name],
            )
            for name, call in self.ran.calls.items()
        ]

    def first(self, examples: int) -> list[LayerView]:
        """The layers on the first so many examples."""
        return [layer.first(examples) for layer in self.layers]

    def mask_of(self, index: int) -> jax.Array:
        """``(T, E)`` bool, True where a step of that layer was real."""
        return _real(list(self.ran.calls.values())[index])

    def _prefix(self, name: str) -> str:
        """What its parameters' names begin with; one that no name has if others read them, too."""
        own = self.ran.own[name]
        begins = {full.removesuffix(within) for within, full in own.items()}
        alone = all(full not in self.untimed for full in own.values())
        return begins.pop() if alone and len(begins) == 1 else f"{name}: "

    @cached_property
    def untimed(self) -> Mapping[str, str]:
        """The parameters of which no step can be named at which they learn, and why."""
        between, reasons = self._between, dict[str, str]()
        calls = Counter(full for own in self.ran.own.values() for full in own.values())
        calls_of = zip(between.results[1], self.ran.calls.values(), strict=True)
        results = [one[:1] if call.own_start else one for one, call in calls_of]
        reads = {name for one in results for name in self._named(between.reads(one))}
        loss = set(self._named(self._judged.reads(self._judged.results)))
        for name in self._names:
            if calls[name] > 1:
                reasons[name] = "more than one call of a layer reads it"
            elif calls[name] and (name in reads or name in loss or name in self._read_by_outputs):
                reasons[name] = "what stands outside of the layer reads it, too"
            elif name in reads:
                reasons[name] = "it is read before a layer is"
            elif name in loss:
                reasons[name] = "the loss reads it"
            elif name in self._read_by_outputs and self._by_step is None:
                reasons[name] = "in what the module gives the examples are not the first axis"
        for name, own in self.ran.own.items():
            if any(kind != FIXED for kind in self.ran.forms[name].variables[: len(own)]):
                why = "a parameter of its layer is another one at each step"
                reasons |= {full: why for full in own.values() if full not in reasons}
        return reasons

    def _named(self, leaves: Sequence[int]) -> list[str]:
        """The names of those leaves of a function's arguments that are parameters: the first."""
        return [self._names[at] for at in leaves if at < len(self._names)]

    # Adjoints, from the loss back.

    @cached_property
    def _between(self) -> Between:
        """From parameters and what calls give to ``(outputs, [(inputs, start) of each call])``."""

        def function(params: Any, gives: list[Any]) -> Any:
            given = {
                name: _giving(one, *pair)
                for (name, one), pair in zip(self.ran.given.items(), gives, strict=True)
            }
            module, tape = self._parts._replace(params=params).module(), self._handed.tape(given)
            with tape.running():
                outputs = self._call(module)
            return outputs, [(call.inputs, call.start) for call in tape.calls.values()]

        gives = [_gives(one.run) for one in self.ran.given.values()]
        return Between(function, self._parts.params, gives)

    @cached_property
    def _judged(self) -> Between:
        """From parameters and outputs to the sum of the losses."""

        def function(params: Any, outputs: Any) -> jax.Array:
            return jnp.sum(self._losses(outputs, self._parts._replace(params=params).module()))

        return Between(function, self._parts.params, self.ran.outputs)

    @cached_property
    def _from_loss(self) -> tuple[dict[str, jax.Array], list[jax.Array]]:
        """The gradient of the sum of losses by parameters that the loss reads, and by outputs."""
        reads, pull = self._judged.transpose(self._judged.results)
        found = dict(zip(reads, pull([jnp.ones((), self.losses.dtype)]), strict=True))
        params = {self._names[at]: found[at] for at in reads if at < len(self._names)}
        count = len(self._names)
        leaves = jax.tree.leaves(self.ran.outputs)
        live = self._between.live(self._between.results[0])
        return params, [found.get(count + at, jnp.zeros_like(leaves[at])) for at in live]

    @cached_property
    def _adjoints(self) -> _Adjoints:
        return self._backward()

    def _backward(self, cuts: Sequence[jax.Array] | None = None) -> _Adjoints:
        sums, layers = self._outputs_back, dict[str, Backward]()
        calls, reads = self.ran.calls, self._between.results[1]
        for index, (name, call) in reversed(list(enumerate(calls.items()))):
            found = backward_of_one(
                self.ran.cells[name],
                self.ran.forms[name],
                call.run.traces[0][0],
                *sums.of_call(index),
                mask=call.mask,
                waits=False,
                cut=None if cuts is None else cuts[index],
                backward=self._route,
            )
            own = by_name(found.back.params)
            sums.add_params({full: own[within] for within, full in self.ran.own[name].items()})
            inputs = [] if found.inputs is None else [found.inputs]
            sums.add(reads[index], [*inputs, *found.start])
            layers[name] = found.back
        return _Adjoints(sums.params, layers)

    @property
    def _outputs_back(self) -> _Sums:
        """The sums after the loss and the outputs have handed back theirs."""
        from_loss, from_outputs = self._from_loss
        sums = _Sums(self._names, self._between, list(self.ran.forms.values()))
        sums.add_params(from_loss)
        sums.add(self._between.results[0], [Scaled.of(wide(one), 0) for one in from_outputs])
        return sums

    @property
    def reads_padding(self) -> jax.Array:
        """Whether the loss depends on the output of a step that is not real, ()."""
        found = [jnp.zeros((), bool)]
        for name, call in self.ran.calls.items():
            direct = self._adjoints.layers[name].direct.mantissa
            outside = only(direct, ~_real(call))
            found.append(jnp.any(jnp.isfinite(outside) & (outside != 0)))
        return jnp.any(jnp.stack(found))

    @cached_property
    def gradient(self) -> Params:
        """The gradient of the mean loss of these examples, by name."""
        return self._mean(self._adjoints.params)

    def _mean(self, sums: Params) -> dict[str, jax.Array]:
        """The gradient of the mean loss in real numbers, from JAX's of the sum."""
        return {name: real_gradient(value) / self.examples for name, value in sums.items()}

    # Which steps what stands outside of the layers learns from.

    @cached_property
    def _outside(self) -> list[str]:
        """The parameters that the outputs are computed from, after all layers, and nothing else."""
        return [name for name in self._read_by_outputs if name not in self.untimed]

    @cached_property
    def _read_by_outputs(self) -> list[str]:
        return self._named(self._between.reads(self._between.results[0]))

    @cached_property
    def _by_step(self) -> bool | None:
        """Whether the outputs have an axis of time; None if not even examples can be told apart."""
        shapes = [leaf.shape for leaf in jax.tree.leaves(self.ran.outputs) if is_inexact(leaf)]
        both = (self.examples, self.length)
        if all(shape[:2] == (both[::-1] if self._time_major else both) for shape in shapes):
            return True
        return False if all(shape[:1] == both[:1] for shape in shapes) else None

    @cached_property
    def reads_last(self) -> jax.Array:
        """Whether the outputs are those of the last real step of each example alone, ()."""
        sums, earlier = self._outputs_back, [jnp.zeros((), bool)]
        for index, call in enumerate(self.ran.calls.values()):
            direct, _ = sums.of_call(index)
            earlier.append(jnp.any((direct.exponent > ZERO) & ~last_real(_real(call))))
        return ~jnp.any(jnp.stack(earlier))

    @cached_property
    def readout_contributions(self) -> Params:
        """By name, what enters the mean loss's gradient at each step, ``(T, *θ.shape)``.

        Of the parameters that nothing but the outputs is computed from. With an axis of time in
        the outputs, at the step that they belong to; else at each example's last step, and nan
        if an earlier step is read.
        """
        at = jnp.arange(self.length)[:, None, None] == jnp.arange(self.length)[None, :, None]
        return self._entering(at, last_real(self.mask))

    def readout_by_lag(self, split: int) -> Params:
        """By name, what enters that gradient from lags below ``split``, and from all others.

        ``(2, *θ.shape)``; lags count from each example's own last step.
        """
        lag = jnp.where(self.mask, jnp.cumsum(self.mask[::-1], axis=0)[::-1] - 1, -1)
        return self._entering(jnp.stack([lag < split, lag >= split]), last_real(self.mask))

    def _entering(self, chosen: jax.Array, ends: jax.Array) -> Params:
        """What of the gradient comes through the outputs of chosen steps, ``(N, T, E)`` bool."""
        if not self._outside:
            return {}
        between = self._between
        reads, pull = between.transpose(between.results[0])
        names = [self._names[at] if at < len(self._names) else "" for at in reads]
        wanted = jnp.broadcast_to(chosen, (len(chosen), *self.mask.shape))
        if not self._by_step:  # all enters at the end
            wanted = jnp.any(wanted & ends[None], axis=1)

        def one(own: jax.Array) -> list[jax.Array]:
            weight = own.T if self._by_step and not self._time_major else own
            back = pull([only(leaf, weight) for leaf in self._from_loss[1]])
            found = dict(zip(names, back, strict=True))
            return list(self._mean({name: found[name] for name in self._outside}).values())

        parts = dict(zip(self._outside, lax.map(one, wanted), strict=True))
        if self._by_step:
            return parts
        return {name: jnp.where(self.reads_last, one, jnp.nan) for name, one in parts.items()}

    # Truncated backpropagation.

    @property
    def directions(self) -> int:
        """How many orders of reading there are: here each layer has its own."""
        return len(self.ran.calls)

    def lag_in(self, direction: int) -> jax.Array:
        """``(T, E)``: how many real steps a layer has still to read; -1 where there is none."""
        mask = self.mask_of(direction)
        return jnp.where(mask, jnp.cumsum(mask[::-1], axis=0)[::-1] - 1, -1)

    def truncated(self, cuts: Sequence[jax.Array]) -> Params:
        """The gradient of the cells' parameters with the way back cut, by name.

        Args:
          cuts: for each layer ``(T, E)`` bool in its own reading order, True where nothing passes
            back from the next step into this one.
        """
        found = self._backward(cuts).params
        cells = {full for own in self.ran.own.values() for full in own.values()}
        return self._mean({name: found[name] for name in self._names if name in cells})


class Ran(NamedTuple):
    """A run of the module.

    Attributes:
      outputs: what it gave.
      calls: of its layers, by name, in order.
      given: what these gave to the module's own code.
      cells: theirs, as they were before the first step.
      forms: of the cells.
      own: the names of a cell's parameters within it, and those in the module.
    """

    outputs: Any
    calls: dict[str, Call]
    given: dict[str, Given]
    cells: dict[str, nnx.RNNCellBase]
    forms: dict[str, Form]
    own: dict[str, dict[str, str]]


class _Adjoints(NamedTuple):
    """The gradient of the sum of losses, by name, and what each call's backward pass gave."""

    params: dict[str, jax.Array]
    layers: dict[str, Backward]


class _Sums:
    """The sum of what came back so far, for parameters and for what each call gave.

    Args:
      names: of the parameters.
      between: the module's own code.
      forms: of the calls.
    """

    def __init__(self, names: Sequence[str], between: Between, forms: Sequence[Form]):
        self._forms, self._between = forms, between
        params, self._gives = between.arguments
        self._name_at = dict(zip(jax.tree.leaves(params), names, strict=True))
        self._axes = dict[int, int]()
        for (outputs, carry), form in zip(self._gives, forms, strict=True):
            live = dict(zip(form.live_leaves(carry), form.live_batched, strict=True))
            self._axes |= {outputs: 2} | {at: int(own) for at, own in live.items()}
        self.params = {
            name: jnp.zeros_like(wide(between.leaves[at])) for at, name in self._name_at.items()
        }
        self._given: dict[int, Scaled] = {}

    def add_params(self, more: Params) -> None:
        """Add gradients by name."""
        for name, value in more.items():
            self.params[name] += wide(value)

    def add(self, results: Any, cotangents: Sequence[Scaled]) -> None:
        """Add what results of the module's own code hand back."""
        reads, pull = self._between.transpose(results)
        if not (reads and cotangents):
            return
        like = [self._between.leaves[at] for at in reads]
        axes = [self._axes.get(at) for at in reads]
        for at, found in zip(reads, in_bands(pull, cotangents, axes, like), strict=True):
            if at in self._name_at:
                self.params[self._name_at[at]] += found
            else:
                self._given[at] = self._given[at].add(found) if at in self._given else found

    def of_call(self, index: int) -> tuple[Scaled, list[Scaled]]:
        """The cotangents of what a call gave: of its outputs ``(T, E)``, of its carry's leaves."""
        outputs, carry = self._gives[index]
        return self._of(outputs), [self._of(at) for at in self._forms[index].live_leaves(carry)]

    def _of(self, at: Any) -> Scaled:
        if at in self._given:
            return self._given[at]
        return Scaled.of(jnp.zeros_like(wide(self._between.leaves[at])), self._axes[at])


def _parameters(cell: nnx.Module, names: Mapping[int, str]) -> dict[str, str]:
    """The names of a cell's parameters within it, and those in the module."""
    return {
        "/".join(map(str, path)): names[id(node)]
        for path, node in nnx.iter_graph(cell)
        if isinstance(node, nnx.Param)
    }


def _given(call: Call) -> Given:
    return Given(call.run, call.ended)


def _gives(run: Unrolled) -> tuple[jax.Array, Any]:
    """The outputs and the carry that a call gives to the module's own code."""
    assert run.outputs is not None
    return run.outputs, run.finals[0][0]


def _giving(given: Given, outputs: jax.Array, carry: Any) -> Given:
    """The same call with others."""
    return given._replace(run=given.run._replace(outputs=outputs, finals=((carry,),)))


def _first_carry(call: Call, cell: nnx.RNNCellBase) -> Callable[[Params], Any] | None:
    """The first carry as a function of the cell's parameters, if the cell made it."""
    parts, read = Parts.of(cell), call.inputs

    def start(params: Params) -> Any:
        own = parts.with_params(params)
        begun = initial_carries([[own]], read.shape, read.dtype, state_axes=call.axes)
        return begun[0][0]

    return start if call.own_start else None


def _form(call: Call, cell: nnx.RNNCellBase) -> Form:
    before, x = jax.tree.map(lambda leaf: leaf[0], (call.run.traces[0][0].before, call.inputs))
    return form_of(cell, before, x, state_axes=call.axes)


def _as_begun(call: Call) -> nnx.RNNCellBase:
    """A copy of a call's cell, as it was before the first step."""
    cell = nnx.clone(call.cell)
    nnx.update(cell, call.begun)
    return cell


def _real(call: Call) -> jax.Array:
    return jnp.ones(call.inputs.shape[:2], bool) if call.mask is None else call.mask
