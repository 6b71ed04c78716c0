"""Derivatives of saturated units, free of cancellation.

JAX differentiates tanh as ``(1 + y)(1 - y)`` and the logistic function as ``y (1 - y)``, with the
rounded value y: beyond ``|a|`` of about 9 (17 for the logistic function, and for ``expm1`` below
-17) that is exactly 0 in float32, though the derivative is 1e-8 and more. A direction of the state
that is only nearly lost then reads as lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core


def well_differentiated(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function of arrays, with derivatives that keep their digits where it saturates.

    Its values are those of the same operations. Derivatives of ``tanh``, ``logistic`` and ``expm1``
    come from the argument instead of the value, also inside of ``jit``, ``scan``, ``cond``,
    ``while_loop`` and ``checkpoint``. A function with a rule of its own (``jax.custom_jvp``,
    ``jax.custom_vjp``) keeps it.

    Args:
      function: from arrays to one array; traceable.
    """

    def evaluate(*arrays: Any) -> jax.Array:
        traced = jax.make_jaxpr(lambda *own: function(*own))(*arrays)
        replaced = traced.replace(jaxpr=_replaced(traced.jaxpr))
        return core.jaxpr_as_fun(replaced)(*arrays)[0]

    return evaluate


def _from_argument(
    value: Callable[[jax.Array], jax.Array], slope: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
    """A function with the slope that is calculated from its argument."""
    function = jax.custom_jvp(value)
    function.defjvps(lambda tangent, _, a: tangent * slope(a))
    return function


def _tanh_slope(a: jax.Array) -> jax.Array:
    """``sech²(a)``."""
    e = jnp.exp(-2 * jnp.abs(a))
    return 4 * e / jnp.square(1 + e)


def _logistic_slope(a: jax.Array) -> jax.Array:
    e = jnp.exp(-jnp.abs(a))
    return e / jnp.square(1 + e)


_FROM_ARGUMENT = {
    "tanh": _from_argument(lax.tanh, _tanh_slope),
    "logistic": _from_argument(lax.logistic, _logistic_slope),
    "expm1": _from_argument(lax.expm1, jnp.exp),
}
_OWN_RULE = ("custom_jvp_call", "custom_vjp_call")


def _replaced(jaxpr: Any) -> Any:
    """A program with the primitives of the table replaced in it, and in the programs in it."""
    return jaxpr.replace(eqns=[_replaced_in(eqn) for eqn in jaxpr.eqns])


def _replaced_in(eqn: Any) -> Any:
    name = eqn.primitive.name
    if name in _OWN_RULE:
        return eqn
    if name in _FROM_ARGUMENT and jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating):
        made = jax.make_jaxpr(_FROM_ARGUMENT[name])(_like(eqn.invars[0].aval))
        (call,) = made.jaxpr.eqns
        return call.replace(invars=eqn.invars, outvars=eqn.outvars)
    return eqn.replace(params={key: _in_param(value) for key, value in eqn.params.items()})


def _like(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def _in_param(value: Any) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        return value.replace(jaxpr=_replaced(value.jaxpr))
    if isinstance(value, core.Jaxpr):
        return _replaced(value)
    if type(value) in (tuple, list):
        return type(value)(map(_in_param, value))
    return value
