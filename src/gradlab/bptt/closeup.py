"""A close look at a few sequences: the network as functions, for probes that need more than norms.

A :class:`Closeup` runs a stack of cells over ``E`` examples and hands out whatever exact analysis
needs: the step Jacobians, the adjoints themselves, the gradient of each step, the loss as a
function of the parameters. Everything is computed when it is first asked for and then shared, so
that under ``jax.jit`` the program holds what the chosen probes use and no more.

Shapes: ``T`` steps, ``E`` examples, ``H`` hidden width, ``S`` size of the state (``2H`` for the
LSTM's [c; h], ``H`` elsewhere).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from gradlab.bptt.parts import Params, Parts, by_name
from gradlab.bptt.passes import Route, output_is_state, state_names
from gradlab.bptt.saturation import well_differentiated
from gradlab.bptt.scaling import Scaled
from gradlab.bptt.unroll import (
    Backward,
    Carries,
    Layer,
    Trace,
    Unrolled,
    backward,
    unroll_plainly,
)
from gradlab.cells import stock


class LayerView:
    """One direction of one layer, and what it went through; time runs in its own reading order.

    Attributes:
      name: its label, e.g. ``"0"``.
      cell: the cell itself.
      prefix: what its parameters' names begin with in :attr:`Closeup.params`.
      trace: carries before each step, what it read, and the last carry.
      mask: ``(T, E)`` bool, True where a step was real and its state is finite. After a state that
        is not finite there is nothing to measure.
      backwards: whether it reads the last input first.
      states: names of the state's parts, in the order in which they are packed.
    """

    def __init__(
        self,
        name: str,
        cell: nnx.RNNCellBase,
        prefix: str,
        trace: Trace,
        mask: jax.Array,
        back: Callable[[], Backward],
        backwards: bool = False,
        start_names: Sequence[str] = (),
        route: Route = "full",
    ):
        self.name, self.cell, self.prefix, self.trace = name, cell, prefix, trace
        self.mask = mask & jnp.cumprod(jnp.isfinite(_packed(self._after())).all(-1), 0).astype(bool)
        self.states = state_names(trace.before)
        self._back, self.backwards, self._start_names = back, backwards, start_names
        self._route: Route = route
        self._parts = Parts.of(cell)
        self._fewer: dict[int, LayerView] = {}

    def first(self, examples: int) -> LayerView:
        """The same layer on the first so many examples; the same view for the same number."""
        if examples >= self.mask.shape[1]:
            return self
        if examples not in self._fewer:
            few = slice(examples)
            trace = Trace(
                jax.tree.map(lambda leaf: leaf[:, few], self.trace.before),
                self.trace.inputs[:, few],
                jax.tree.map(lambda leaf: leaf[few], self.trace.final),
            )

            def back() -> Backward:
                whole = self._back()
                adjoint, direct = jax.tree.map(lambda a: a[:, few], (whole.adjoint, whole.direct))
                start = jax.tree.map(lambda a: a[few], whole.start)
                return Backward(None, adjoint, direct, start)

            self._fewer[examples] = LayerView(
                self.name,
                self.cell,
                self.prefix,
                trace,
                self.mask[:, few],
                back,
                self.backwards,
                self._start_names,
                self._route,
            )
        return self._fewer[examples]

    @property
    def lag(self) -> jax.Array:
        """How many real steps are still to come, ``(T, E)``."""
        upto_end = jnp.cumsum(self.mask[::-1], axis=0)[::-1]
        return upto_end - self.mask.astype(upto_end.dtype)

    def _after(self) -> Any:
        return jax.tree.map(
            lambda before, final: jnp.concatenate([before[1:], final[None]]),
            self.trace.before,
            self.trace.final,
        )

    @cached_property
    def after(self) -> jax.Array:
        """The packed state after each step, ``(T, E, S)``."""
        return _packed(self._after())

    @cached_property
    def before(self) -> jax.Array:
        """The packed state before each step, ``(T, E, S)``."""
        return _packed(self.trace.before)

    def part(self, state: str) -> slice:
        """Where one part of the state, e.g. ``"c"``, lies in the packed vector."""
        sizes = [leaf.shape[-1] for leaf in jax.tree.leaves(self.trace.before)]
        ends = [int(end) for end in np.cumsum([0, *sizes])]
        return dict(zip(self.states, (slice(a, b) for a, b in pairwise(ends)), strict=True))[state]

    @property
    def memory(self) -> str:
        """The part of the state that the retention gate multiplies: ``"c"`` if there is one."""
        return "c" if "c" in self.states else "h"

    def unpack(self, packed: jax.Array) -> Any:
        """A carry with leaves ``(..., H)`` from ``(..., S)``."""
        leaves = [packed[..., self.part(name)] for name in self.states]
        return jax.tree.unflatten(jax.tree.structure(self.trace.before), leaves)

    def step(self, state: jax.Array, x: jax.Array) -> jax.Array:
        """``(..., S), (..., I) -> (..., S)``: one step of the packed state."""
        return _packed(self.cell(self.unpack(state), x)[0])

    def results_with(
        self, params: Params, state: jax.Array, x: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """``(..., S), (..., I) -> (..., S), (..., D)``: the new state and the output.

        With other parameters, named as in :attr:`params`.
        """
        carry, y = self._parts.with_params(params)(self.unpack(state), x)
        return _packed(carry), y

    @cached_property
    def params(self) -> Params:
        """The cell's own parameters, by their names within the cell."""
        return by_name(self._parts.params)

    @cached_property
    def jacobian(self) -> jax.Array:
        """``J_t = ∂s_t/∂s_{t-1}``, ``(T, E, S, S)``, rows = output; the identity where masked.

        By forward-mode autodiff of the cell itself, so right for any cell; saturated units keep
        their digits, which they do not in a backward pass. O(T E S²) memory.
        """
        one = jax.jacfwd(well_differentiated(self.step))

        def at(read: Any) -> jax.Array:
            state, x, real = read
            jacobians = jax.vmap(one)(state, x)
            return jnp.where(real[:, None, None], jacobians, jnp.eye(state.shape[-1]))

        return lax.map(at, (self.before, self.trace.inputs, self.mask))

    @cached_property
    def transport(self) -> jax.Array:
        """What an adjoint is multiplied by on its way back: the Jacobian, without a cut route.

        ``(T, E, S, S)``, rows = output; the identity where masked.
        """
        if self._route == "full":
            return self.jacobian
        real, memory = self.mask[..., None, None], self.part(self.memory)
        if self.memory == "c":
            cut = self.part("h") if self._route == "no_h_path" else memory
            return jnp.where(real, self.jacobian.at[..., cut].set(0), self.jacobian)
        assert self.retention is not None
        identity = jnp.eye(self.before.shape[-1], dtype=self.before.dtype)[None, None]
        gate = jnp.zeros_like(self.before).at[..., memory].set(self.retention)
        through_gate = gate[..., None] * identity
        left = through_gate if self._route == "no_h_path" else self.jacobian - through_gate
        return jnp.where(real, left, identity)

    @cached_property
    def adjoint(self) -> Scaled:
        """∂ℓ/∂s_t of each example's own loss: mantissas ``(T, E, S)``, exponents ``(T, E)``."""
        return _packed_scaled(self._back().adjoint)

    @cached_property
    def direct(self) -> Scaled:
        """The part of ∂ℓ/∂h_t that does not come through this layer's next state, ``(T, E, H)``."""
        return self._back().direct

    @cached_property
    def gates(self) -> Mapping[str, jax.Array]:
        """Activations of the gates that can be seen, by name, ``(T, E, H)`` each."""
        names = stock.gate_view(self.cell).names
        found = stock.gates(self.cell, self.trace.before, self.trace.inputs)
        return {name: getattr(found, name) for name in names}

    @property
    def retention(self) -> jax.Array | None:
        """Activations of the retention gate, ``(T, E, H)``, or None."""
        name = stock.gate_view(self.cell).retention
        return None if name is None else self.gates[name]

    @property
    def kept(self) -> jax.Array | None:
        """What an adjoint of the memory is multiplied by on its way back through the gate alone.

        ``(T, E, H)``: the retention gate, 1 where masked, 0 where this way is cut; or None.
        """
        gate = self.retention
        if gate is None:
            return None
        passes = jnp.zeros_like(gate) if self._route == "no_c_path" else gate
        return jnp.where(self.mask[..., None], passes, 1)

    @property
    def recurrent_matrices(self) -> dict[str, jax.Array]:
        """The matrices ``(H, H)`` that multiply h, acting on columns, by name."""
        return stock.recurrent_matrices(self.cell)

    @property
    def plain_rnn(self) -> stock.PlainRNN | None:
        """The cell as ``h' = φ(W h + drive(x))``, or None."""
        return stock.plain_rnn(self.cell)

    @cached_property
    def cotangents(self) -> Scaled:
        """∂ℓ/∂(the two results of each step), its new state and its output; zero where masked.

        A cell whose output is its new h has all of it in the state. Where the output is something
        else, what reads it is no part of the adjoint, and stands beside it. Mantissas ``(T, E, S)``
        and ``(T, E, D)`` at one exponent ``(T, E)``.
        """
        return self._cotangents_of(self._back())

    def _cotangents_of(self, back: Backward) -> Scaled:
        adjoint = _packed_scaled(back.adjoint)
        real = self.mask[..., None]
        if output_is_state(self.cell, jax.tree.map(lambda leaf: leaf[0], self.trace.before)):
            from_y = jnp.zeros_like(back.direct.mantissa)
        else:
            adjoint, from_y = adjoint.normalise().align(back.direct)
        both = (jnp.where(real, adjoint.mantissa, 0), jnp.where(real, from_y, 0))
        return Scaled(both, adjoint.exponent)

    @cached_property
    def _transposed(self) -> Callable[[Any], tuple[Params]]:
        def results(params: Params) -> Any:
            def one(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
                return self.results_with(params, state, x)

            return jax.vmap(jax.vmap(one))(self.before, self.trace.inputs)

        return jax.vjp(results, dict(self.params))[1]

    def gradient_of(self, back: Backward) -> Params:
        """The gradient of the cell's parameters, summed over examples, by name within the cell.

        Of all steps in one product, where the backward pass itself adds up one step after another.
        """
        return self._transposed(self._cotangents_of(back).plain())[0]

    @cached_property
    def contribution(self) -> Callable[[Any], dict[str, Scaled]]:
        """What enters the gradient of each example's loss through a step: a function of the step.

        The transpose of ``∂⁺s_t/∂θ`` applied to the adjoint; over ``t`` it sums to ∂ℓ/∂θ. Ask for
        the function outside of a scan that calls it: what it reads is computed then.

        The function takes a timestep, traced or not, or ``(E,)`` with one for each example. It
        gives, by name within the cell, mantissas ``(E, *θ.shape)`` and exponents ``(E,)``: of each
        parameter its own, since an input of 0 silences one and not another.
        """
        cotangents = self.cotangents
        reads = (self.before, self.trace.inputs, *cotangents)

        def one(state: jax.Array, x: jax.Array, cotangent: tuple[jax.Array, jax.Array]):
            _, pull = jax.vjp(lambda params: self.results_with(params, state, x), self.params)
            return pull(cotangent)[0]

        def at(t: Any) -> dict[str, Scaled]:
            index = t if jnp.ndim(t) == 0 else (t, jnp.arange(len(t)))
            *read, exponent = jax.tree.map(lambda array: array[index], reads)
            entering = jax.vmap(one)(*read)
            return {name: Scaled(leaf, exponent).normalise() for name, leaf in entering.items()}

        return at

    @cached_property
    def start_contributions(self) -> dict[str, Scaled]:
        """What enters the gradient of each example's loss through a learned initial state.

        By full name, mantissas ``(E, H)`` and exponents ``(E,)``; empty where none is learned. All
        of it enters before the first step that the direction reads.
        """
        if not self._start_names:
            return {}
        start = self._back().start
        named = zip(self._start_names, jax.tree.leaves(start.mantissa), strict=True)
        return {name: Scaled(leaf, start.exponent).normalise() for name, leaf in sorted(named)}


class Closeup:
    """A stack of cells read over ``E`` examples, with the loss of each.

    Args:
      layers: for each layer a sequence of one cell, or of a forward and a backward cell.
      inputs: ``(T, E, I)``.
      losses: from what is read out to the loss of each example ``(E,)``: from ``(T, E, O)`` if
        ``every``, else from ``(E, O)``.
      readout: a module applied to the outputs first, or None.
      every: whether the loss reads every step, or the last real one only.
      mask: ``(T, E)`` bool, True where a step is real; None if all are.
      prefix: what a cell's parameters' names begin with, from its layer and direction.
      batch: ``B``, the examples of a training step: the batch whose noise is judged.
      start: the carries before the first step, as for
        :func:`gradlab.bptt.unroll.starting_carries`; None: the cells' own.
      learns_start: whether the parts of ``start``, ``(H,)`` each, are parameters, named like
        ``initial_state/0/0/h`` by layer and direction.
      backward: what passes back from each step, as for :func:`gradlab.bptt.unroll.unroll`. Adjoints
        and gradients are those of that backward pass; :meth:`loss` and the Jacobians are the
        network's own.
      removed: gives what clipping takes away from the gradient of a whole batch; None if nothing
        clips.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        inputs: jax.Array,
        losses: Callable[[jax.Array], jax.Array],
        *,
        readout: nnx.Module | None = None,
        every: bool = False,
        mask: jax.Array | None = None,
        names: Sequence[str] | None = None,
        prefix: Callable[[int, int], str] = "layers/{}/{}/".format,
        batch: int = 1,
        start: Carries | None = None,
        learns_start: bool = False,
        backward: Route = "full",
        removed: Callable[[], Params] | None = None,
    ):
        self._layers, self.inputs, self._losses = layers, inputs, losses
        self._readout, self.every, self._mask, self.batch = readout, every, mask, batch
        self._start, self._removed = start, removed
        self._route: Route = backward
        self.length, self.examples = inputs.shape[:2]
        self._places = [(depth, d) for depth, one in enumerate(layers) for d in range(len(one))]
        self._prefixes = [prefix(*place) for place in self._places]
        self._names = list(names) if names else [f"{depth}" for depth, _ in self._places]
        self._cells = [Parts.of(layers[depth][direction]) for depth, direction in self._places]
        self._readout_parts = None if readout is None else Parts.of(readout)
        self._start_names: list[list[str]] = [[] for _ in self._places]
        if learns_start:
            assert start is not None
            self._start_names = [
                [f"initial_state/{depth}/{d}/{name}" for name in state_names(start[depth][d])]
                for depth, d in self._places
            ]

    @cached_property
    def run(self) -> Unrolled:
        """The forward pass; gradients flow through its traces."""
        return unroll_plainly(self._layers, self.inputs, mask=self._mask, start=self._start)

    @cached_property
    def mask(self) -> jax.Array:
        """``(T, E)`` bool, True where a step is real, in the order of the input."""
        return jnp.ones(self.inputs.shape[:2], bool) if self._mask is None else self._mask

    @cached_property
    def layers(self) -> list[LayerView]:
        """The layers and directions, in the order of the recorded ``layer`` dimension."""
        views = []
        for index, (depth, direction) in enumerate(self._places):
            mask = self.mask[::-1] if direction else self.mask
            views.append(
                LayerView(
                    self._names[index],
                    self._layers[depth][direction],
                    self._prefixes[index],
                    self.run.traces[depth][direction],
                    mask,
                    lambda depth=depth, direction=direction: self._adjoints[depth][direction],
                    backwards=bool(direction),
                    start_names=self._start_names[index],
                    route=self._route,
                )
            )
        return views

    def first(self, examples: int) -> list[LayerView]:
        """The layers on the first so many examples, for what costs too much on all of them."""
        return [layer.first(examples) for layer in self.layers]

    def _read(self, readout: Any, run: Unrolled) -> jax.Array:
        outputs = run.outputs if self.every else run.last
        assert outputs is not None
        return self._losses(outputs if readout is None else readout(outputs))

    @cached_property
    def losses(self) -> jax.Array:
        """The loss of each example, ``(E,)``."""
        return self._read(self._readout, self.run)

    @cached_property
    def _cotangents(self) -> tuple[jax.Array, jax.Array]:
        def total(outputs: jax.Array, last: jax.Array) -> jax.Array:
            return jnp.sum(self._read(self._readout, Unrolled(outputs, last, ())))

        return jax.grad(total, argnums=(0, 1))(self.run.outputs, self.run.last)

    @property
    def reads_padding(self) -> jax.Array:
        """Whether the loss depends on the output of a step that is not real, ()."""
        from_outputs, _ = self._cotangents
        return jnp.any(~self.mask[..., None] & jnp.isfinite(from_outputs) & (from_outputs != 0))

    @cached_property
    def _adjoints(self) -> tuple[tuple[Backward, ...], ...]:
        return self._backward()

    def _backward(self, cuts: Sequence[jax.Array] | None = None):
        return backward(
            self._layers,
            self.run,
            *self._cotangents,
            mask=self._mask,
            cuts=cuts,
            backward=self._route,
        )

    @cached_property
    def params(self) -> Params:
        """Every parameter of initial states, cells and readout, by name, in the recorded order."""
        starts = self._learned_starts
        named = {name: starts[name] for own in self._start_names for name in sorted(own)}
        for prefix, cell in zip(self._prefixes, self._cells, strict=True):
            named |= by_name(cell.params, prefix)
        readout = self._readout_parts
        return named if readout is None else named | by_name(readout.params, "readout/")

    def loss(self, params: Params) -> jax.Array:
        """The mean loss as a function of all parameters, with nothing hidden from JAX."""
        start = self._start
        if learned := self._learned_starts:
            leaves = [params[name] for name in learned]
            start = jax.tree.unflatten(jax.tree.structure(start), leaves)
        cells = zip(self._prefixes, self._cells, strict=True)
        stack = iter([cell.with_params(params, prefix) for prefix, cell in cells])
        layers = [[next(stack) for _ in layer] for layer in self._layers]
        readout = self._readout_parts
        read = None if readout is None else readout.with_params(params, "readout/")
        run = unroll_plainly(layers, self.inputs, mask=self._mask, start=start)
        return jnp.mean(self._read(read, run))

    @property
    def _learned_starts(self) -> Params:
        """The learned initial states by name, in the order of their leaves."""
        names = list(chain(*self._start_names))
        return dict(zip(names, jax.tree.leaves(self._start), strict=True)) if names else {}

    @cached_property
    def gradient(self) -> Params:
        """The gradient of the mean loss of these examples, by name."""
        named: dict[str, jax.Array] = {}
        for view in self.layers:
            for name, each in view.start_contributions.items():
                named[name] = jnp.sum(each.plain(), axis=0)
        for prefix, back in zip(self._prefixes, chain(*self._adjoints), strict=True):
            named |= by_name(back.params, prefix)
        return {name: value / self.examples for name, value in named.items()} | {
            name: jnp.sum(value, 0) for name, value in self.readout_contributions.items()
        }

    @cached_property
    def readout_contributions(self) -> Params:
        """By name, the part of the mean loss's gradient of the readout that enters at each step.

        ``(T, *θ.shape)``. With a loss at the end only, that of an example enters at its last step.
        """
        if self._readout_parts is None:
            return {}
        last = self.length - 1 - jnp.argmax(self.mask[::-1], axis=0)
        outputs = self.run.outputs
        assert outputs is not None

        def mean_loss(copies: Any) -> jax.Array:
            if self.every:
                return jnp.mean(self._losses(jax.vmap(self._read_with)(copies, outputs)))
            read = jax.vmap(self._read_with, in_axes=(0, None))(copies, self.run.last)
            return jnp.mean(self._losses(read[last, jnp.arange(self.examples)]))

        return self._readout_gradient(mean_loss, self.length)

    def readout_by_lag(self, split: int) -> Params:
        """By name, what enters that gradient from lags below ``split``, and from all others.

        ``(2, *θ.shape)``; lags count from each example's own last step.
        """
        if self._readout_parts is None:
            return {}
        far = (self.lag_in(0) >= split)[..., None]
        outputs = self.run.outputs
        assert outputs is not None

        def mean_loss(copies: Any) -> jax.Array:
            read_all = jax.vmap(self._read_with, in_axes=(0, None))
            if not self.every:  # at lag 0
                return jnp.mean(self._losses(read_all(copies, self.run.last)[0]))
            short, long = read_all(copies, outputs)
            return jnp.mean(self._losses(jnp.where(far, long, short)))

        return self._readout_gradient(mean_loss, 2)

    def _read_with(self, params: Any, outputs: jax.Array) -> jax.Array:
        assert self._readout_parts is not None
        return self._readout_parts._replace(params=params).module()(outputs)

    def _readout_gradient(self, mean_loss: Callable[[Any], jax.Array], count: int) -> Params:
        """The gradient of a loss by so many copies of the readout's parameters, by name."""
        assert self._readout_parts is not None
        copies = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), self._readout_parts.params
        )
        return by_name(jax.grad(mean_loss)(copies), "readout/")

    @property
    def clips(self) -> bool:
        """Whether there is a clipping whose effect can be measured."""
        return self._removed is not None

    @cached_property
    def removed(self) -> Params:
        """What clipping takes away from the gradient of the whole training batch, by name."""
        assert self._removed is not None
        return self._removed()

    def lag_in(self, direction: int) -> jax.Array:
        """``(T, E)``: how many real steps a direction has still to read; -1 where there is none."""
        mask = self.mask[::-1] if direction else self.mask
        return jnp.where(mask, jnp.cumsum(mask[::-1], axis=0)[::-1] - 1, -1)

    @property
    def directions(self) -> int:
        """2 if any layer has a backward direction, else 1."""
        return max(len(layer) for layer in self._layers)

    def truncated(self, cuts: Sequence[jax.Array]) -> Params:
        """The gradient of the cells' parameters with the way back cut, by name.

        Args:
          cuts: for each direction ``(T, E)`` bool in its own reading order, True where nothing
            passes back from the next step into this one.
        """
        return {
            view.prefix + name: value / self.examples
            for view, back in zip(self.layers, chain(*self._backward(cuts)), strict=True)
            for name, value in view.gradient_of(back).items()
        }


def _packed(carry: Any) -> jax.Array:
    return jnp.concatenate(jax.tree.leaves(carry), axis=-1)


def _packed_scaled(carry: Scaled) -> Scaled:
    return Scaled(_packed(carry.mantissa), carry.exponent)
