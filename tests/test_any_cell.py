"""Cells of every kind by every route, against plain autodiff: outputs, gradients and adjoints."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.bptt.unroll import unroll, whole_taps
from tests import zoo
from tests.zoo import HALF, ZOO, Specimen


class Seen(NamedTuple):
    """What a route gives; fields as of :class:`tests.zoo.Truth`."""

    outputs: Any
    params: Any
    inputs: Any
    adjoints: Any
    variables: Any


def by_truth(specimen: Specimen, cell: Any, inputs: Any) -> Seen:
    found = zoo.truth(specimen, cell, inputs)
    return Seen(found.outputs, found.params, found.inputs, found.adjoints, found.variables)


def by_unroll(specimen: Specimen, cell: Any, inputs: Any) -> Seen:
    graph, params, rest = nnx.split(cell, zoo.inexact, ...)
    real = jnp.issubdtype(inputs.dtype, jnp.inexact)
    shape = (inputs.shape[1], inputs.shape[0], *inputs.shape[2:])
    taps = whole_taps([[cell]], shape, inputs.dtype)

    def run(params: Any, taps: Any, read: Any) -> Any:
        own = nnx.merge(graph, *jax.tree.map(lambda a: a, (params, rest)))
        x = jnp.swapaxes(inputs if read is None else read, 0, 1)
        outputs = jnp.swapaxes(unroll([[own]], x, taps=taps, **specimen.scan).outputs, 0, 1)
        return zoo.weigh(outputs), (outputs, nnx.state(own))

    derive = jax.grad(run, argnums=(0, 1, 2) if real else (0, 1), has_aux=True)
    found, (outputs, variables) = derive(params, taps, inputs if real else None)
    (seen,) = found[1][0]
    adjoints = {name: whole(leaf, seen["exponent"]) for name, leaf in seen["adjoint"].items()}
    pure = nnx.to_pure_dict
    return Seen(outputs, pure(found[0]), found[2] if real else None, adjoints, pure(variables))


def whole(mantissa: Any, exponent: Any) -> Any:
    size = jnp.exp2(exponent.astype(mantissa.real.dtype))
    return mantissa * size.reshape(*size.shape, *[1] * (mantissa.ndim - 2))


ROUTES = {"unroll": by_unroll}


def errors(specimen: Specimen, wide: bool = False) -> dict[str, dict[str, float]]:
    """Of each route, of each thing that it gives."""
    with zoo.as_users_do(wide or specimen.half is not None):
        cell = specimen.build()
        cell = zoo.widened(cell) if wide else cell
        graph, state = nnx.split(cell)

        @jax.jit
        def all_of(state: Any, inputs: Any) -> Any:
            made = {}
            for name, route in {"truth": by_truth, **ROUTES}.items():
                own = nnx.merge(graph, jax.tree.map(lambda a: a, state))
                made[name] = route(specimen, own, inputs)
            return made

        found = all_of(state, specimen.inputs(wide=wide))
        due = found.pop("truth")
    return {
        route: {
            name: zoo.error(one, other)
            for name, one, other in zip(Seen._fields, seen, due, strict=True)
        }
        for route, seen in found.items()
    }


@pytest.mark.parametrize("name", ZOO)
def test_every_route_gives_what_plain_autodiff_gives(name):
    for route, found in errors(ZOO[name]).items():
        assert max(found.values()) < 1e-5, (route, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_route_gives_it_to_ten_digits_in_double_precision(name):
    for route, found in errors(ZOO[name], wide=True).items():
        assert max(found.values()) < 1e-10, (route, found)
