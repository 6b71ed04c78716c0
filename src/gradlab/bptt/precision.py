"""Products in all the digits of float32, on an accelerator too; derivatives of half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

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
            flat = _evaluated(traced.jaxpr, traced.consts, flat)
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


def _widened(array: Any) -> Any:
    return jnp.asarray(array, jnp.float32) if _is_half(array) else array


def _evaluated(jaxpr: Any, consts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """The results of a program in float32."""
    known = dict(zip(jaxpr.constvars, map(_widened, consts), strict=True))
    known |= dict(zip(jaxpr.invars, map(_widened, arrays), strict=True))

    def read(variable: Any) -> Any:
        literal = isinstance(variable, core.Literal)
        return _widened(variable.val) if literal else known[variable]

    for eqn in jaxpr.eqns:
        found = _applied(eqn, [read(variable) for variable in eqn.invars])
        known |= dict(zip(eqn.outvars, found, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _applied(eqn: Any, values: list[Any]) -> list[Any]:
    params = eqn.params
    if eqn.primitive.name in _OWN:
        types = [variable.aval.dtype for variable in eqn.invars]
        values = [
            jnp.asarray(value, dtype) if dtype in HALF else value
            for value, dtype in zip(values, types, strict=True)
        ]
    else:
        params = {key: _in_param(value) for key, value in params.items()}
    found = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(params))
    return [_widened(one) for one in (found if eqn.primitive.multiple_results else [found])]


def _in_param(value: Any) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        return _in_program(value.jaxpr, value.consts)
    if isinstance(value, core.Jaxpr):
        return _in_program(value, ()).jaxpr
    if type(value) in (tuple, list):
        return type(value)(map(_in_param, value))
    return jnp.dtype(jnp.float32) if isinstance(value, jnp.dtype) and value in HALF else value


def _in_program(jaxpr: Any, consts: Sequence[Any]) -> Any:
    def wide(variable: Any) -> jax.ShapeDtypeStruct:
        aval = variable.aval
        return jax.ShapeDtypeStruct(aval.shape, jnp.float32 if _is_half(aval) else aval.dtype)

    run = lambda *arrays: _evaluated(jaxpr, consts, arrays)  # noqa: E731
    return jax.make_jaxpr(run)(*map(wide, jaxpr.invars))


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
