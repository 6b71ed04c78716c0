"""Cells of every kind by every route, against plain autodiff: outputs, gradients and adjoints."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.analysis import analyze
from gradlab.bptt.unroll import unroll, whole_taps
from gradlab.probes import Adjoint, GradNorm
from gradlab.watching.gradient import value_and_grad
from gradlab.watching.layers import RNN
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
    taps = whole_taps([[cell]], shape, inputs.dtype, **specimen.scan)

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


def by_layer(specimen: Specimen, cell: Any, inputs: Any) -> Seen:
    """``gradlab.RNN`` under ``gradlab.value_and_grad``; of the adjoints it gives the norms."""
    layer = RNN(cell, **specimen.scan)

    def loss(layer: Any, read: Any) -> Any:
        outputs = layer(read)
        return zoo.weigh(outputs), outputs

    real = jnp.issubdtype(inputs.dtype, jnp.inexact)
    by = (nnx.DiffState(0, zoo.inexact), *([1] if real else []))
    (_, outputs), found, seen = value_and_grad(loss, argnums=by, has_aux=True)(layer, inputs)
    (own,) = seen.values()
    # Of each example's own loss; the loss is their mean.
    norms = {name: own[f"adj_{name}_log10"].T for name in specimen.states}
    norms = {name: 10**log / inputs.shape[0] for name, log in norms.items()}
    pure = nnx.to_pure_dict
    params = pure(found[0])["cell"]
    return Seen(outputs, params, found[1] if real else None, norms, pure(nnx.state(cell)))


def norms_of(adjoints: Any) -> Any:
    def norm(adjoint: Any) -> Any:
        flat = adjoint.reshape(*adjoint.shape[:2], -1)
        return jnp.sqrt(jnp.sum(flat.real**2 + flat.imag**2, -1))

    return {name: norm(adjoint) for name, adjoint in adjoints.items()}


def by_analyze(specimen: Specimen, cell: Any, inputs: Any) -> Any:
    """``gradlab.analyze``: the loss, norms of parameters' gradients, and of adjoints in order."""
    layer, ranks = nnx.RNN(cell, **specimen.scan), Adjoint((0.0, 0.5, 1.0))
    found = analyze(layer, inputs, zoo.weigh_each, probes=[ranks, GradNorm()])
    assert inputs.shape[0] == len(ranks.quantiles)
    norms = {
        name: 10 ** found[f"adj_{name}_log10_q"].values[0].T / inputs.shape[0]
        for name in specimen.states
    }
    return found.attrs["loss"], np.sort(found["grad_norm"].values), norms


ROUTES = {"unroll": by_unroll, "gradlab.RNN": by_layer}


def errors(specimen: Specimen, wide: bool = False) -> dict[str, dict[str, float]]:
    """Of each route, of each thing that it gives; of half precision against float64."""
    with zoo.as_users_do(wide):
        found = made(specimen, ROUTES if specimen.half else {"truth": by_truth, **ROUTES}, wide)
    with zoo.as_users_do(True):
        if specimen.half:
            found |= made(specimen, {"truth": by_truth}, True)
        due = found.pop("truth")
    return {route: errors_of(found[route], due) for route in ROUTES}  # as the columns are


def made(specimen: Specimen, routes: dict[str, Any], wide: bool) -> dict[str, Seen]:
    """All of them in one program."""
    with zoo.as_users_do():  # in double precision jax would draw other weights
        cell = specimen.build()
    graph, state = nnx.split(zoo.widened(cell) if wide else cell)

    @jax.jit
    def all_of(state: Any, inputs: Any) -> Any:
        copies = {name: nnx.merge(graph, jax.tree.map(lambda a: a, state)) for name in routes}
        return {name: route(specimen, copies[name], inputs) for name, route in routes.items()}

    return all_of(state, specimen.inputs(wide=wide))


def errors_of(seen: Seen, due: Seen) -> dict[str, float]:
    if seen.adjoints["h" if "h" in seen.adjoints else next(iter(seen.adjoints))].ndim == 2:
        due = due._replace(adjoints=norms_of(due.adjoints))
    pairs = zip(Seen._fields, seen, due, strict=True)
    return {name: zoo.error(one, other) for name, one, other in pairs}


FIRST = [
    "Flax OptimizedLSTMCell", "carry NamedTuple", "learned h0", "y = P·h + Q·x + R·old h",
    "LSTMP", "counter", "scalar of all examples", "unitary", "dropout", "fast weights",
    "symbols (B,)", "nnx.jit",
]  # fmt: skip
"""One of every kind; the others are slow only because they are many."""


@pytest.mark.parametrize(
    "name", [*FIRST, *(pytest.param(n, marks=pytest.mark.slow) for n in ZOO if n not in FIRST)]
)
def test_every_route_gives_what_plain_autodiff_gives(name):
    for route, found in errors(ZOO[name]).items():
        assert max(found.values()) < 1e-5, (route, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_route_gives_it_to_ten_digits_in_double_precision(name):
    for route, found in errors(ZOO[name], wide=True).items():
        norms = found.pop("adjoints") if route == "gradlab.RNN" else 0.0  # recorded in float32
        assert max(found.values()) < 1e-10, (route, found)
        assert norms < 1e-5, (route, norms)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n == "LSTMP" else pytest.mark.slow)
        for n in ZOO
        if not ZOO[n].mixes
    ],
)
def test_analyze_gives_the_norms_that_plain_autodiff_gives(name):
    with zoo.as_users_do():
        cell, inputs = ZOO[name].build(), ZOO[name].inputs()
        due = made(ZOO[name], {"truth": by_truth}, False)["truth"]
        loss, params, adjoints = by_analyze(ZOO[name], cell, inputs)
    assert loss == pytest.approx(float(zoo.weigh(due.outputs)), rel=1e-5)
    own = nnx.to_flat_state(nnx.state(cell, nnx.Param))
    flat = nnx.traversals.flatten_mapping(due.params)
    norms = np.sort([np.linalg.norm(np.ravel(flat[path])) for path, _ in own])
    assert zoo.error(params, norms) < 1e-5
    ranked = {key: np.sort(one, -1) for key, one in norms_of(due.adjoints).items()}
    assert zoo.error(adjoints, ranked) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_as_near_to_double_as_it_can_be(name):
    half = HALF[name].half
    for route, found in errors(HALF[name]).items():
        assert max(found.values()) < half, (route, found)


def main() -> None:
    """``python -m tests.test_any_cell`` prints the largest errors by kind and route."""
    print("| cell | " + " | ".join(ROUTES) + " |\n|---|" + "---|" * len(ROUTES))
    for name, specimen in {**ZOO, **HALF}.items():
        largest = [max(found.values()) for found in errors(specimen).values()]
        print(f"| {name} | " + " | ".join(f"{error:.0e}" for error in largest) + " |", flush=True)


if __name__ == "__main__":
    main()
