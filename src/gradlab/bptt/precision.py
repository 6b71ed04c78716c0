"""What numbers are calculated in: products in all the digits of float32, on an accelerator too, or
of operands in bfloat16; derivatives of half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

P = ParamSpec("P")
R = TypeVar("R")


def in_all_digits(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; what it multiplies while it is traced keeps the digits of its type.

    Left to itself JAX multiplies float32 with 10 bits behind the point (TF32) on a recent GPU, and
    with 8 (bfloat16) on a TPU. Products that say themselves how they are made, and a setting of
    ``jax_default_matmul_precision``, are left as they are.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        config: Any = jax.config  # whose type does not know its settings
        with jax.default_matmul_precision(config.jax_default_matmul_precision or "highest"):
            return function(*args, **kwargs)

    return call


HALF = (jnp.float16, jnp.bfloat16)
_OWN = ("custom_jvp_call", "custom_vjp_call", "bitcast_convert_type")
"""What has a rule of its own, or reads bits."""


Products = Literal["float32", "bfloat16"]
"""What the matrix products of cells are made in."""
_BFLOAT16 = lax.DotAlgorithmPreset.BF16_BF16_F32


def with_products(function: Callable[..., Any], kind: Products) -> Callable[..., Any]:
    """The same function of arrays, with matrix products of such numbers.

    ``"bfloat16"``: both operands of each product in float32 are rounded to bfloat16 and their sums
    are in float32; all else is as it was. A product that says itself how it is made is left as it
    is. The numbers are the same on every machine that adds in the same order; where there is no
    such product, as on most CPUs, it is one in float32 of rounded numbers, which is no faster. What
    comes out is not meant to be differentiated.

    Args:
      function: from arrays to a pytree of arrays; traceable.
      kind: float32 leaves it as it is.
    """
    if kind == "float32":
        return function

    def evaluate(*arrays: Any) -> Any:
        with jax.default_matmul_precision(_BFLOAT16.name):
            traced, shapes = jax.make_jaxpr(lambda *own: function(*own), return_shape=True)(*arrays)
        flat = _Rounded().evaluated(traced.jaxpr, traced.consts, jax.tree.leaves(arrays))
        return jax.tree.unflatten(jax.tree.structure(shapes), flat)

    return evaluate


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, with float32 wherever its program has half precision.

    For derivatives: in bfloat16 they would have two digits, and in float16 what is below 6e-8 would
    be 0. Values differ from the function's own by what half precision rounds. A function with a
    derivative of its own (``jax.custom_jvp``, ``jax.custom_vjp``) is left as it is.

    Args:
      function: from arrays to a pytree of arrays; traceable.
    """

    def evaluate(*arrays: Any) -> Any:
        traced, shapes = jax.make_jaxpr(lambda *own: function(*own), return_shape=True)(*arrays)
        flat = jax.tree.leaves(arrays)
        if has_half(traced.jaxpr):
            flat = _Widened().evaluated(traced.jaxpr, traced.consts, flat)
        else:
            flat = core.jaxpr_as_fun(traced)(*flat)
        return jax.tree.unflatten(jax.tree.structure(shapes), flat)

    return evaluate


def programs(jaxpr: Any) -> Iterator[Any]:
    """A program and all programs in it."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            for inner in _held(value):
                yield from programs(inner)


def _held(value: Any) -> list[Any]:
    """The programs in one parameter of an operation."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [one for each in value for one in _held(each)] if type(value) in (tuple, list) else []


def has_half(jaxpr: Any) -> bool:
    """Whether any number in a program is in half precision."""
    return any(
        _is_half(variable.aval)
        for program in programs(jaxpr)
        for held in (program.invars, program.constvars, *(eqn.outvars for eqn in program.eqns))
        for variable in held
    )


def _is_half(typed: Any) -> bool:
    return getattr(typed, "dtype", None) in HALF


class _Rewritten:
    """A program evaluated with some of its operations replaced, in the programs within it, too."""

    def value(self, array: Any) -> Any:
        """What stands for an array."""
        return array

    def param(self, value: Any) -> Any:
        """What stands for a parameter of an operation that is no program."""
        return value

    def applied(self, eqn: Any, values: list[Any]) -> list[Any]:
        """The results of an operation on what stands for its arrays."""
        return self.bound(eqn, values, {key: self._param(own) for key, own in eqn.params.items()})

    def bound(self, eqn: Any, values: Sequence[Any], params: Any) -> list[Any]:
        """The results of an operation with other parameters."""
        found = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(params))
        return list(found) if eqn.primitive.multiple_results else [found]

    def evaluated(self, jaxpr: Any, consts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        """The results of a program."""
        known = dict(zip(jaxpr.constvars, map(self.value, consts), strict=True))
        known |= dict(zip(jaxpr.invars, map(self.value, arrays), strict=True))

        def read(variable: Any) -> Any:
            literal = isinstance(variable, core.Literal)
            return self.value(variable.val) if literal else known[variable]

        for eqn in jaxpr.eqns:
            found = self.applied(eqn, [read(variable) for variable in eqn.invars])
            known |= dict(zip(eqn.outvars, map(self.value, found), strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _param(self, value: Any) -> Any:
        if isinstance(value, core.ClosedJaxpr):
            return self._program(value.jaxpr, value.consts)
        if isinstance(value, core.Jaxpr):
            return self._program(value, ()).jaxpr
        if type(value) in (tuple, list):
            return type(value)(map(self._param, value))
        return self.param(value)

    def _program(self, jaxpr: Any, consts: Sequence[Any]) -> Any:
        def evaluate(*arrays: Any) -> Any:
            return self.evaluated(jaxpr, consts, arrays)

        reads = [jax.eval_shape(self.value, _like(one.aval)) for one in jaxpr.invars]
        return jax.make_jaxpr(evaluate)(*reads)


def _like(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


class _Widened(_Rewritten):
    """In float32."""

    def value(self, array: Any) -> Any:
        return jnp.asarray(array, jnp.float32) if _is_half(array) else array

    def param(self, value: Any) -> Any:
        return jnp.dtype(jnp.float32) if isinstance(value, jnp.dtype) and value in HALF else value

    def applied(self, eqn: Any, values: list[Any]) -> list[Any]:
        if eqn.primitive.name not in _OWN:
            return super().applied(eqn, values)
        types = [variable.aval.dtype for variable in eqn.invars]
        values = [
            jnp.asarray(value, dtype) if dtype in HALF else value
            for value, dtype in zip(values, types, strict=True)
        ]
        return self.bound(eqn, values, eqn.params)


class _Rounded(_Rewritten):
    """With the operands of matrix products in float32 rounded to bfloat16."""

    def applied(self, eqn: Any, values: list[Any]) -> list[Any]:
        if eqn.primitive is not lax.dot_general_p or eqn.params["precision"] != _BFLOAT16:
            return super().applied(eqn, values)
        if any(value.dtype != jnp.float32 for value in values):
            exact = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
            return self.bound(eqn, values, eqn.params | {"precision": exact})
        # Not a conversion there and back, which a compiler may leave out.
        rounded = [lax.reduce_precision(value, 8, 7) for value in values]
        return self.bound(eqn, rounded, eqn.params)


def settled(tree: Any, zero: jax.Array) -> Any:
    """The same numbers, each rounded before anything is made of it.

    A compiler may join a multiplication and the addition that follows into one operation, which
    rounds once, and does not where the product is read elsewhere, too. What is made of settled
    numbers has the same bits in every program. (On a CPU ``lax.optimization_barrier`` is gone
    before XLA joins operations.)

    Args:
      tree: of arrays.
      zero: () integer, 0, in a way that the compiler does not know.
    """

    def one(leaf: jax.Array) -> jax.Array:
        if jnp.iscomplexobj(leaf):
            return lax.complex(one(leaf.real), one(leaf.imag))
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        whole = {1: jnp.int8, 2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[leaf.dtype.itemsize]
        bits = lax.bitcast_convert_type(leaf, whole) ^ zero.astype(whole)
        return lax.bitcast_convert_type(bits, leaf.dtype)

    return jax.tree.map(one, tree)
