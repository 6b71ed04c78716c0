"""The step of a layer as a function of its packed state: what Jacobians are taken of.

Shapes: ``E`` examples, ``S`` numbers of state (:mod:`gradlab.bptt.packing`), ``D`` of output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import lax

from gradlab.bptt.form import Form, Step, form_of
from gradlab.bptt.packing import Numbers, Packing, flat, from_real_form, real_form
from gradlab.bptt.parts import Params, Parts, by_name
from gradlab.bptt.passes import Trace
from gradlab.bptt.precision import in_float32, programs
from gradlab.cells import stock

DRAWS = ("random_bits", "random_gamma", "rng_bit_generator", "rng_uniform", "threefry2x32")
"""Operations that draw random numbers."""


class Read(NamedTuple):
    """What a step reads.

    Attributes:
      state: the packed state before it, ``(E, S)``.
      carry: the whole carry before it, leaves ``(E, ...)``, for what it holds besides that state:
        whole numbers, what the examples share, and the states of other examples.
      x: the input, ``(E, ...)``.
      variables: the Variables that change, as they are before it.
    """

    state: jax.Array
    carry: Any
    x: jax.Array
    variables: Any


class PackedStep:
    """The step of one cell, from and to the packed state.

    Everything else that it reads is held: whole numbers, numbers that the examples share, Variables
    that change. It is calculated in float32 where the cell's own program has half precision.

    Args:
      cell: the cell.
      trace: what it went through; a single step will do.
      form: what is known of the cell; None: it is found out.

    Attributes:
      form: what is known of the cell.
      packing: of its state.
      params: its parameters by their names within the cell, in
        :func:`gradlab.bptt.packing.real_form`.
      draws: whether a step draws random numbers, which are others for another number of examples.
    """

    def __init__(self, cell: nnx.RNNCellBase, trace: Trace, form: Form | None = None):
        self._parts = Parts.of(cell)
        carry, x, variables = jax.tree.map(
            lambda leaf: leaf[0], (trace.before, trace.inputs, trace.variables or [])
        )
        self.form = form_of(cell, carry, x) if form is None else form
        self.packing = Packing(carry, self.form.names, self.form.states)
        own = by_name(self._parts.params)
        self._dtypes = {name: value.dtype for name, value in own.items()}
        self.params: Params = {name: real_form(value) for name, value in own.items()}
        read = Read(self.packing.pack(carry), carry, x, variables)
        program = jax.make_jaxpr(self._plainly)(
            self.params, self.packing.split(read.state), read
        ).jaxpr
        primitives = (eqn.primitive.name for one in programs(program) for eqn in one.eqns)
        self.draws = any(name in DRAWS for name in primitives)

    def reads(self, trace: Trace) -> Read:
        """What all steps read, leaves ``(T, ...)``."""
        state = self.packing.pack(trace.before)
        return Read(state, trace.before, trace.inputs, trace.variables or [])

    def __call__(self, params: Params, numbers: Numbers, read: Read) -> tuple[jax.Array, ...]:
        """The new state ``(E, S)``; also the output ``(E, D)`` where that is computed from it.

        What the output takes from the new state is held, since the adjoint of the state has it.

        Args:
          params: in the place of the cell's own.
          numbers: of each part of the state before the step, ``(E, n)``, in the place of those of
            ``read.state``.
          read: what the step reads.
        """
        return self._wide(self._plainly)(params, numbers, read)

    def from_output(
        self, cotangent: jax.Array, numbers: Numbers, read: Read
    ) -> tuple[jax.Array, jax.Array]:
        """What of the cotangent of the output ``(E, D)`` goes to the new and to the old state.

        ``(E, S)`` each, the other being held. Arguments as for a call.
        """
        own, before = self._own(self.params), self.packing.unpack(numbers, read.carry)
        after, _, _ = own(own.fixed, read.variables, before, read.x)

        def output(new: jax.Array, old: jax.Array) -> jax.Array:
            carries = (
                self.packing.unpack(self.packing.split(state), carry)
                for state, carry in ((old, before), (new, after))
            )
            return _output(own, read, *carries)

        states = self.packing.pack(after), self.packing.pack(before)
        return jax.vjp(self._wide(output), *states)[1](cotangent)

    def _plainly(self, params: Params, numbers: Numbers, read: Read) -> tuple[jax.Array, ...]:
        own, before = self._own(params), self.packing.unpack(numbers, read.carry)
        after, _, _ = own(own.fixed, read.variables, before, read.x)
        packed = self.packing.pack(after)
        if self.form.is_leaf:
            return (packed,)
        return packed, _output(own, read, before, lax.stop_gradient(after))

    def as_own(self, params: Params) -> Params:
        """The cell's own arrays from those in real numbers."""
        return {name: from_real_form(params[name], dtype) for name, dtype in self._dtypes.items()}

    def gates(self, read: Read) -> Any:
        """What :func:`gradlab.cells.stock.gates` sees at one step."""
        return stock.gates(self._own(self.params).module(read.variables), read.carry, read.x)

    def _own(self, params: Params) -> Step:
        return Step(Parts.of(self._parts.with_params(self.as_own(params))), self.form)

    def _wide(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return in_float32(function) if self.form.half else function


def _output(own: Step, read: Read, before: Any, after: Any) -> jax.Array:
    """The output ``(E, D)`` as it is computed from a new carry."""
    emit = own.emit(before, read.x, read.variables)
    y = emit(own.fixed, read.variables, before, read.x, jax.tree.leaves(after))
    return flat(y, y.ndim - 1)
