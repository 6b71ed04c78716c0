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
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.extend import core

from gradlab.bptt import scaling
from gradlab.bptt.form import Form
from gradlab.bptt.packing import (
    Numbers,
    flat,
    flat_cotangent,
    from_real_form,
    real_form,
    real_gradient,
)
from gradlab.bptt.parts import Params, Parts, by_name
from gradlab.bptt.passes import Route, Trace
from gradlab.bptt.precision import in_float32
from gradlab.bptt.saturation import well_differentiated
from gradlab.bptt.scaling import Scaled
from gradlab.bptt.steps import PackedStep, Read
from gradlab.bptt.unroll import (
    Backward,
    Carries,
    Layer,
    Unrolled,
    backward,
    initial_carries,
    unroll_plainly,
)
from gradlab.cells import stock

MIXES = (
    "a step of {} mixes the examples of a batch, or changes real numbers that they share, so that"
    " no example has Jacobians and adjoints of its own (batch normalisation does so in training"
    " alone: module.eval())"
)
"""Why there is no close look at a cell of such a name."""


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
      form: what is known of the cell.
      states: names of the state's parts, in the order in which they are packed.
      memory: the part that the retention gate multiplies: ``"c"`` if there is one, else h.

    Args:
      back: gives the backward pass; called when that is first needed.
      learned: what the names of the first state's parts begin with, where these are parameters
        beside the cell's; else None.
      start: the first carry as a function of the cell's own parameters, by their names; None where
        it is no such function.
      route: what passes back from each step.
      whole: where these are the first examples of a batch, the view of all.
      form: what is known of the cell, where not all its Variables go on from step to step; None: it
        is found out.
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
        learned: str | None = None,
        start: Callable[[Params], Any] | None = None,
        route: Route = "full",
        whole: LayerView | None = None,
        form: Form | None = None,
    ):
        self.name, self.cell, self.prefix, self.trace = name, cell, prefix, trace
        self.backwards, self._back, self._learned = backwards, back, learned
        self._start = start
        self._route: Route = route
        self._whole = trace if whole is None else whole._whole
        self._step = PackedStep(cell, trace, form) if whole is None else whole._step
        self.form, self._packing = self._step.form, self._step.packing
        self.states = self.form.states
        self.memory = "c" if "c" in self.states else self.form.h
        finite = jnp.isfinite(self.after).all(-1)
        self.mask = mask & jnp.cumprod(finite, 0).astype(bool)
        self._fewer: dict[int, LayerView] = {}

    def first(self, examples: int) -> LayerView:
        """The same layer on the first so many examples; the same view for the same number."""
        if examples >= self.mask.shape[1]:
            return self
        if examples not in self._fewer:
            few = slice(examples)

            def of_leaves(carry: Any, axis: int) -> Any:
                index = (slice(None),) * axis + (few,)
                leaves, tree = jax.tree.flatten(carry)
                own = zip(leaves, self.form.batched, strict=True)
                return tree.unflatten([leaf[index] if batched else leaf for leaf, batched in own])

            def back() -> Backward:
                whole = self._back()
                adjoint, direct = jax.tree.map(lambda a: a[:, few], (whole.adjoint, whole.direct))
                start = jax.tree.map(lambda a: a[few], whole.start)
                return Backward(None, adjoint, direct, start)

            self._fewer[examples] = LayerView(
                self.name,
                self.cell,
                self.prefix,
                self.trace._replace(
                    before=of_leaves(self.trace.before, 1),
                    inputs=self.trace.inputs[:, few],
                    final=of_leaves(self.trace.final, 0),
                ),
                self.mask[:, few],
                back,
                self.backwards,
                self._learned,
                self._start,
                self._route,
                self,
            )
        return self._fewer[examples]

    @property
    def lag(self) -> jax.Array:
        """How many real steps are still to come, ``(T, E)``."""
        upto_end = jnp.cumsum(self.mask[::-1], axis=0)[::-1]
        return upto_end - self.mask.astype(upto_end.dtype)

    # The state.

    @cached_property
    def after(self) -> jax.Array:
        """The packed state after each step, ``(T, E, S)``."""
        after = jax.tree.map(
            lambda before, final: jnp.concatenate([before[1:], final[None]]),
            self.trace.before,
            self.trace.final,
        )
        return self._packing.pack(after)

    @cached_property
    def before(self) -> jax.Array:
        """The packed state before each step, ``(T, E, S)``."""
        return self._packing.pack(self.trace.before)

    def part(self, state: str) -> slice:
        """Where one part of the state, e.g. ``"c"``, lies in the packed vector."""
        return self._packing.parts[state].place

    # The step.

    @cached_property
    def reads(self) -> Read:
        """What each step read, leaves ``(T, ...)``, for :meth:`step`.

        Where a step is not real: the example's first state and first real input, so that padding
        that is not finite changes no derivative. Of all examples of the batch, where the step draws
        random numbers for them together.
        """
        read, real = self._step.reads(self._whole if self._step.draws else self.trace), self.mask
        state = read.state[:, : real.shape[1]]
        read = read._replace(state=jnp.where(real[..., None], state, state[:1]))
        if real.shape[1] < read.x.shape[1]:
            return read
        first = read.x[jnp.argmax(real, axis=0), jnp.arange(real.shape[1])]
        of_x = real.reshape(*real.shape, *(1,) * (read.x.ndim - 2))
        return read._replace(x=jnp.where(of_x, read.x, first[None]))

    def step(self, state: jax.Array, read: Read) -> jax.Array:
        """``(E, S) -> (E, S)``: one step of the packed state, with one of :attr:`reads`."""
        return self._results(self.params, state, read)[0]

    def results_with(self, params: Params) -> tuple[jax.Array, ...]:
        """What each step gives with other parameters, named as in :attr:`params`.

        The new state ``(T, E, S)``; and the output ``(T, E, D)`` where that is computed from the
        new state, which is held there.
        """
        return jax.vmap(lambda read: self._results(params, read.state, read))(self.reads)

    def _results(self, params: Params, state: jax.Array, read: Read) -> tuple[jax.Array, ...]:
        found = self._step(params, self._numbers(state, read), read)
        return jax.tree.map(lambda array: array[: len(state)], found)

    def _numbers(self, state: jax.Array, read: Read) -> Numbers:
        """Those of each part of a state, and of the states of the other examples that are run."""
        others = self._packing.pack(read.carry)[len(state) :]
        return self._packing.split(jnp.concatenate([state, others]) if len(others) else state)

    @cached_property
    def _has_rows(self) -> Any:
        """Of each leaf of :attr:`reads` whether an example needs its own row of it alone."""
        alone: Any = not self._step.draws
        carry = jax.tree.structure(self.reads.carry)
        rows = carry.unflatten([alone and own for own in self.form.batched])
        return Read(alone, rows, alone, [False for _ in self.reads.variables])

    def _of_each(self, function: Callable[..., Any], read: Read, *more: Any, apart: bool) -> Any:
        """``function(step, numbers, *more)`` of each example alone, over the examples.

        The step maps parameters and the numbers of each part of the state ``(n,)`` to what it gives
        for this example. One that draws random numbers for the batch is run on all of it.

        Args:
          function: see above; the numbers are those of the state that was read.
          read: one of :attr:`reads`.
          more: arrays ``(E, ...)``.
          apart: whether each example is at a time of its own, which all leaves of ``read`` have.
        """

        def alone(e: jax.Array, read: Read, *more: Any) -> Any:
            draws, split = self._step.draws, self._packing.split
            read = jax.tree.map(lambda leaf, row: leaf[None] if row else leaf, read, self._has_rows)
            at, everyone = (e, self._numbers(read.state, read)) if draws else (0, split(read.state))

            def step(params: Params, numbers: Numbers) -> tuple[jax.Array, ...]:
                if draws:
                    joined = {name: everyone[name].at[e].set(own) for name, own in numbers.items()}
                else:
                    joined = {name: own[None] for name, own in numbers.items()}
                return jax.tree.map(lambda a: a[at], self._step(params, joined, read))

            return function(step, {name: own[at] for name, own in everyone.items()}, *more)

        axes = jax.tree.map(lambda row: 0 if row or apart else None, self._has_rows)
        over = jax.vmap(alone, (0, axes, *(0 for _ in more)))
        return over(jnp.arange(self.mask.shape[1]), read, *more)

    def at_rest(self, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """The step ``(S,) -> (S,)`` of one example alone under a constant input.

        Whole numbers, numbers that the examples share and Variables that change are held as they
        are before the first example's last step.
        """
        read = jax.tree.map(lambda leaf: leaf[-1], self._step.reads(self.trace))
        rows = zip(jax.tree.leaves(read.carry), self.form.batched, strict=True)
        leaves = [leaf[:1] if own else leaf for leaf, own in rows]
        carry = jax.tree.unflatten(jax.tree.structure(read.carry), leaves)
        row = Read(read.state[:1], carry, x[None], read.variables)

        def step(state: jax.Array) -> jax.Array:
            return self._step(self.params, self._packing.split(state[None]), row)[0][0]

        return step

    @cached_property
    def jacobian(self) -> jax.Array:
        """``J_t = ∂s_t/∂s_{t-1}``, ``(T, E, S, S)``, rows = output; the identity where masked.

        By forward-mode autodiff of the cell itself, so right for any cell; saturated units keep
        their digits, which they do not in a backward pass. O(T E S²) memory.
        """

        def columns(step: Callable[..., Any], numbers: Numbers) -> jax.Array:
            def of(name: str) -> jax.Array:
                def new(part: jax.Array) -> jax.Array:
                    return step(self.params, {**numbers, name: part})[0]

                return jax.jacfwd(well_differentiated(new))(numbers[name])

            return jnp.concatenate([of(name) for name in self.states], axis=-1)

        def at(now: Any) -> jax.Array:
            read, real = now
            jacobians = self._of_each(columns, read, apart=False)
            return jnp.where(real[:, None, None], jacobians, jnp.eye(jacobians.shape[-1]))

        return lax.map(at, (self.reads, self.mask))

    @cached_property
    def transport(self) -> jax.Array:
        """What an adjoint is multiplied by on its way back: the Jacobian, without a cut route.

        ``(T, E, S, S)``, rows = output; the identity where masked.
        """
        if self._route == "full":
            return self.jacobian
        real, memory = self.mask[..., None, None], self.part(self.memory)
        if self.memory != self.form.h:
            cut = self.part(self.form.h) if self._route == "no_h_path" else memory
            return jnp.where(real, self.jacobian.at[..., cut].set(0), self.jacobian)
        assert self.retention is not None
        identity = jnp.eye(self.before.shape[-1], dtype=self.before.dtype)[None, None]
        gate = jnp.zeros_like(self.before).at[..., memory].set(self._gate_of_memory())
        through_gate = gate[..., None] * identity
        left = through_gate if self._route == "no_h_path" else self.jacobian - through_gate
        return jnp.where(real, left, identity)

    # The backward pass.

    @cached_property
    def adjoint(self) -> Scaled:
        """∂ℓ/∂s_t of each example's own loss: mantissas ``(T, E, S)``, exponents ``(T, E)``.

        In real numbers: of a complex part the derivatives by its real and its imaginary parts.
        """
        return self._packed(self._back().adjoint)

    def _packed(self, adjoint: Scaled) -> Scaled:
        return adjoint._replace(mantissa=self._packing.pack_cotangent(adjoint.mantissa))

    @cached_property
    def direct(self) -> Scaled:
        """The part of ∂ℓ/∂h_t that does not come through this layer's next state, ``(T, E, n)``.

        Through the output of its own step; and where the output reads the old state, too, through
        that of the next.
        """
        from_y = self._from_output(self._back())
        if self.form.is_leaf:
            return from_y

        def to_h(cotangent: jax.Array, read: Read) -> tuple[jax.Array, jax.Array]:
            few, numbers = len(cotangent), self._numbers(read.state, read)
            others = jnp.zeros((len(read.x) - few, cotangent.shape[1]), cotangent.dtype)
            everyone = jnp.concatenate([cotangent, others])
            found = self._step.from_output(everyone, numbers, read)
            return jax.tree.map(lambda one: one[:few, self.part(self.form.h)], found)

        cotangent = jnp.where(self.mask[..., None], from_y.mantissa, 0)
        new, old = jax.vmap(to_h)(cotangent, self.reads)
        later = Scaled(old, from_y.exponent).normalise()
        later = Scaled(
            jnp.concatenate([later.mantissa[1:], jnp.zeros_like(old[:1])]),
            jnp.concatenate([later.exponent[1:], jnp.full_like(later.exponent[:1], scaling.ZERO)]),
        )
        return Scaled(new, from_y.exponent).normalise().add(later)

    def _from_output(self, back: Backward) -> Scaled:
        """∂ℓ/∂y_t that comes from the readout or the layer above, ``(T, E, D)``."""
        mantissa = back.direct.mantissa
        return back.direct._replace(mantissa=flat_cotangent(mantissa, mantissa.ndim - 2))

    # Gates and matrices.

    @cached_property
    def gates(self) -> Mapping[str, jax.Array]:
        """Activations of the gates that can be seen, by name, ``(T, E, H)`` each."""
        names = stock.gate_view(self.cell).names
        if not names:
            return {}
        few, trace = self.mask.shape[1], self._whole if self._step.draws else self.trace
        if trace.variables is None:
            found = stock.gates(self.cell, trace.before, trace.inputs)
        else:
            found = jax.vmap(self._step.gates)(self._step.reads(trace))
        each = {name: getattr(found, name)[:, :few] for name in names}
        return {name: flat(gate, gate.ndim - 2) for name, gate in each.items()}

    @property
    def retention(self) -> jax.Array | None:
        """Activations of the retention gate, ``(T, E, H)``, or None."""
        name = stock.gate_view(self.cell).retention
        return None if name is None else self.gates[name]

    def _gate_of_memory(self) -> jax.Array:
        """The retention gate of each number of the memory, which may be complex."""
        assert self.retention is not None
        place = self.part(self.memory)
        times = (place.stop - place.start) // self.retention.shape[-1]
        return jnp.tile(self.retention, times)

    @property
    def kept(self) -> jax.Array | None:
        """What an adjoint of the memory is multiplied by on its way back through the gate alone.

        ``(T, E, n)``: the retention gate, 1 where masked, 0 where this way is cut; or None.
        """
        if self.retention is None:
            return None
        gate = self._gate_of_memory()
        passes = jnp.zeros_like(gate) if self._route == "no_c_path" else gate
        return jnp.where(self.mask[..., None], passes, 1)

    @property
    def recurrent_matrices(self) -> dict[str, jax.Array]:
        """The matrices ``(H, H)`` that multiply h, acting on columns, by name."""
        found = stock.recurrent_matrices(self.cell)
        return {name: real_form(matrix) for name, matrix in found.items()}

    @property
    def plain_rnn(self) -> stock.PlainRNN | None:
        """The cell as ``h' = φ(W h + drive(x))``, or None."""
        return stock.plain_rnn(self.cell)

    # What enters the gradient.

    @property
    def params(self) -> Params:
        """The cell's own parameters by their names within it, in real numbers.

        As :func:`gradlab.bptt.packing.real_form` has them.
        """
        return self._step.params

    @cached_property
    def cotangents(self) -> Scaled:
        """∂ℓ/∂(what :meth:`results_with` gives), zero where masked.

        At one exponent ``(T, E)``. The output's stands beside the adjoint of the state for what the
        output does not take from the new state.
        """
        return self._cotangents_of(self._back())

    def _cotangents_of(self, back: Backward) -> Scaled:
        adjoint, rest = self._packed(back.adjoint), ()
        if not self.form.is_leaf:
            adjoint, from_y = adjoint.normalise().align(self._from_output(back))
            rest = (from_y,)
        real = self.mask[..., None]
        each = tuple(jnp.where(real, one, 0) for one in (adjoint.mantissa, *rest))
        return Scaled(each, adjoint.exponent)

    @cached_property
    def _transposed(self) -> Callable[[Any], tuple[Params]]:
        return jax.vjp(self.results_with, dict(self.params))[1]

    def gradient_of(self, back: Backward) -> Params:
        """The gradient of the cell's parameters, summed over examples, by name within the cell.

        Of all steps in one product, where the backward pass itself adds up one step after another.
        """
        gradient = dict(self._transposed(self._cotangents_of(back).plain())[0])
        for name, each in self._start_of_each(back).items():
            gradient[name] += jnp.sum(each.plain(), axis=0)
        return gradient

    @cached_property
    def contribution(self) -> Callable[[Any], dict[str, Scaled]]:
        """What enters the gradient of each example's loss through a step: a function of the step.

        The transpose of ``∂⁺s_t/∂θ`` applied to the adjoint; over ``t`` it sums to ∂ℓ/∂θ. What
        enters through a first state that is made of these parameters enters at step 0. Ask for the
        function outside of a scan that calls it: what it reads is computed then.

        The function takes a timestep, traced or not, or ``(E,)`` with one for each example. It
        gives, by name within the cell, mantissas ``(E, *θ.shape)`` and exponents ``(E,)``: of each
        parameter its own, since an input of 0 silences one and not another.
        """
        # Read here, not within a scan that calls the function.
        reads, has_rows = self.reads, self._has_rows
        cotangents, first = self.cotangents, self._start_of_each(self._back())

        def transposed(step: Callable[..., Any], numbers: Numbers, cotangent: Any) -> Params:
            _, pull = jax.vjp(lambda params: step(params, numbers), self.params)
            return pull(cotangent)[0]

        def at(t: Any) -> dict[str, Scaled]:
            apart = jnp.ndim(t) > 0
            own = (t, jnp.arange(len(t))) if apart else t
            read = jax.tree.map(lambda leaf, row: leaf[own if row else t], reads, has_rows)
            cotangent, exponent = jax.tree.map(lambda array: array[own], cotangents)
            entering = self._of_each(transposed, read, cotangent, apart=apart)
            found = {n: Scaled(leaf, exponent).normalise() for n, leaf in entering.items()}
            for name, each in first.items():
                at_start = jnp.where(jnp.asarray(t) == 0, each.exponent, scaling.ZERO)
                found[name] = found[name].add(each._replace(exponent=at_start))
            return found

        return at

    @cached_property
    def start_contributions(self) -> dict[str, Scaled]:
        """What enters the gradient of each example's loss through a learned initial state.

        By full name, in real numbers, mantissas ``(E, *θ.shape)`` and exponents ``(E,)``; empty
        where none is learned. All of it enters before the first step that the direction reads. A
        parameter of the cell that the first state is made of has this part in
        :attr:`contribution`, too.
        """
        back = self._back()
        if self._learned is None:
            own = self._start_of_each(back)
            return {self.prefix + name: each for name, each in own.items()}
        named = zip(self.states, back.start.mantissa, strict=True)
        return {
            self._learned + name: Scaled(real_gradient(leaf), back.start.exponent).normalise()
            for name, leaf in sorted(named, key=lambda pair: pair[0])
        }

    @property
    def common_start_gradient(self) -> Params:
        """What enters through numbers of the first carry that all examples share, by full name.

        Of the sum of losses; empty where the cell makes none of them of its own parameters.
        """
        common = self._back().common
        if self._start is None or not common:
            return {}

        def first(params: Params) -> list[jax.Array]:
            assert self._start is not None
            leaves = jax.tree.leaves(self._start(self._step.as_own(params)))
            states = zip(leaves, self.form.live, self.form.batched, strict=True)
            return [leaf for leaf, live, batched in states if live and not batched]

        given, pull = jax.vjp(first, dict(self.params))
        pairs = zip(common, given, strict=True)
        (found,) = pull([own.astype(leaf.dtype) for own, leaf in pairs])
        return {self.prefix + name: value for name, value in found.items()}

    def learned_start(self, start: Any) -> Params:
        """The parts of a first carry that are parameters beside the cell's, by name."""
        if self._learned is None:
            return {}
        leaves, parts = jax.tree.leaves(start), self._packing.parts
        return {self._learned + name: leaves[parts[name].index] for name in sorted(parts)}

    def with_learned_start(self, start: Any, params: Params) -> Any:
        """The carry with the parts of :meth:`learned_start` replaced by those of these names."""
        assert self._learned is not None
        leaves, tree = jax.tree.flatten(start)
        for name, part in self._packing.parts.items():
            own = params[self._learned + name]
            leaves[part.index] = from_real_form(own, leaves[part.index].dtype)
        return jax.tree.unflatten(tree, leaves)

    def _start_of_each(self, back: Backward) -> dict[str, Scaled]:
        """What enters through a first state that is made of the cell's own parameters."""
        if self._start is None:
            return {}
        names = _reaching(self._first_state, self.params)
        if not names:
            return {}

        def first(chosen: Params) -> jax.Array:
            return self._first_state({**self.params, **chosen})

        _, pull = jax.vjp(first, {name: self.params[name] for name in names})
        start = self._packed(back.start)
        alone = jnp.eye(len(start.exponent), dtype=start.mantissa.dtype)
        each = jax.vmap(lambda one: pull(one[:, None] * start.mantissa)[0])(alone)
        return {n: Scaled(leaf, start.exponent).normalise() for n, leaf in each.items()}

    def _first_state(self, params: Params) -> jax.Array:
        """The packed first state, from the cell's parameters in real numbers."""
        assert self._start is not None
        return self._packing.pack(self._start(self._step.as_own(params)))


def _reaching(function: Callable[[Params], jax.Array], params: Params) -> list[str]:
    """The names of the parameters that the result of a function depends on."""
    jaxpr = jax.make_jaxpr(function)(params).jaxpr
    names = [key.key for (key,), _ in jax.tree_util.tree_flatten_with_path(dict(params))[0]]
    found = []
    for name, variable in zip(names, jaxpr.invars, strict=True):
        reached = {variable}
        for eqn in jaxpr.eqns:
            if any(one in reached for one in eqn.invars if isinstance(one, core.Var)):
                reached.update(eqn.outvars)
        found += [name] if jaxpr.outvars[0] in reached else []
    return found


class Closeup:
    """A stack of cells read over ``E`` examples, with the loss of each.

    What probes and penalties may use of it, and what stands in its place has to have: ``layers``,
    ``first``, ``inputs``, ``length``, ``examples``, ``batch``, ``every``, ``mask``, ``directions``,
    ``lag_in``, ``losses``, ``loss``, ``params``, ``gradient``, ``readout_contributions``,
    ``readout_by_lag``, ``truncated``, ``clips`` and ``removed``. A cell whose step mixes examples
    (``Form.shared``) cannot be looked at.

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
        self._learns_start = learns_start

    @cached_property
    def run(self) -> Unrolled:
        """The forward pass; gradients flow through its traces."""
        return self._unrolled([cell.module() for cell in self._cells], self._start)

    def _unrolled(self, cells: Sequence[nnx.RNNCellBase], start: Carries | None) -> Unrolled:
        stack = iter(cells)
        layers = [[next(stack) for _ in layer] for layer in self._layers]
        return unroll_plainly(layers, self.inputs, mask=self._mask, start=start)

    @cached_property
    def mask(self) -> jax.Array:
        """``(T, E)`` bool, True where a step is real, in the order of the input."""
        return jnp.ones(self.inputs.shape[:2], bool) if self._mask is None else self._mask

    @cached_property
    def layers(self) -> list[LayerView]:
        """The layers and directions, in the order of the recorded ``layer`` dimension."""
        views = []
        for index, (depth, direction) in enumerate(self._places):
            trace, cell = self.run.traces[depth][direction], self._cells[index]

            def start(params: Params, cell: Parts = cell, read: jax.Array = trace.inputs) -> Any:
                own = cell.with_params(params)
                return initial_carries([[own]], read.shape, read.dtype)[0][0]

            views.append(
                LayerView(
                    self._names[index],
                    self._layers[depth][direction],
                    self._prefixes[index],
                    trace,
                    self.mask[::-1] if direction else self.mask,
                    lambda depth=depth, direction=direction: self._adjoints[depth][direction],
                    backwards=bool(direction),
                    learned=f"initial_state/{depth}/{direction}/" if self._learns_start else None,
                    start=start if self._start is None else None,
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
        """Every parameter of initial states, cells and readout, by name, in the recorded order.

        In real numbers, in at least float32: see :func:`gradlab.bptt.packing.real_form`.
        """
        named = dict(self._learned_starts)
        for prefix, cell in zip(self._prefixes, self._cells, strict=True):
            named |= by_name(cell.params, prefix)
        return {name: real_form(value) for name, value in (named | self._readout_params).items()}

    @property
    def _readout_params(self) -> dict[str, jax.Array]:
        readout = self._readout_parts
        return {} if readout is None else by_name(readout.params, "readout/")

    @property
    def _learned_starts(self) -> Params:
        """The parts of learned initial states, by name."""
        if not self._learns_start:
            return {}
        assert self._start is not None
        named: dict[str, jax.Array] = {}
        for view, (depth, direction) in zip(self.layers, self._places, strict=True):
            named |= view.learned_start(self._start[depth][direction])
        return named

    def loss(self, params: Params) -> jax.Array:
        """The mean loss as a function of all parameters, with nothing hidden from JAX.

        Calculated in float32 where the cells do so in half precision.
        """
        half = any(view.form.half for view in self.layers)
        return in_float32(self._loss)(params) if half else self._loss(params)

    def _loss(self, params: Params) -> jax.Array:
        own = {
            name: from_real_form(params[name], value.dtype)
            for prefix, cell in zip(self._prefixes, self._cells, strict=True)
            for name, value in by_name(cell.params, prefix).items()
        }
        cells = zip(self._prefixes, self._cells, strict=True)
        stack = [cell.with_params(own, prefix) for prefix, cell in cells]
        start = self._start
        if start is not None and self._learns_start:
            start = [list(layer) for layer in start]
            for view, (depth, d) in zip(self.layers, self._places, strict=True):
                start[depth][d] = view.with_learned_start(start[depth][d], params)
        read, readout = None, self._readout_parts
        if readout is not None:
            types = {name: value.dtype for name, value in self._readout_params.items()}
            own = {name: from_real_form(params[name], dtype) for name, dtype in types.items()}
            read = readout.with_params(own, "readout/")
        return jnp.mean(self._read(read, self._unrolled(stack, start)))

    @cached_property
    def gradient(self) -> Params:
        """The gradient of the mean loss of these examples, by name, as :attr:`params`."""
        named: dict[str, jax.Array] = {}
        for view, back in zip(self.layers, chain(*self._adjoints), strict=True):
            own = by_name(back.params, view.prefix)
            named |= {name: real_gradient(value) for name, value in own.items()}
            for name, each in view.start_contributions.items():
                named[name] = named.get(name, 0) + jnp.sum(each.plain(), axis=0)
            for name, value in view.common_start_gradient.items():
                named[name] += value
        named = {name: value / self.examples for name, value in named.items()}
        named |= {name: jnp.sum(value, 0) for name, value in self.readout_contributions.items()}
        return {name: named[name] for name in self.params}

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
        found = by_name(jax.grad(mean_loss)(copies), "readout/")
        return {name: real_gradient(value) for name, value in found.items()}

    @property
    def clips(self) -> bool:
        """Whether there is a clipping whose effect can be measured."""
        return self._removed is not None

    @cached_property
    def removed(self) -> Params:
        """What clipping takes away from the gradient of the whole training batch, by name."""
        assert self._removed is not None
        return {name: real_gradient(value) for name, value in self._removed().items()}

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
