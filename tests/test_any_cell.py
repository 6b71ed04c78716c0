"""Cells of every kind by every route, against plain autodiff: outputs, gradients and adjoints.

Routes: ``unroll``; ``gradlab.RNN`` under ``gradlab.value_and_grad``; ``gradlab.analyze`` of the
bare cell and of ``nnx.RNN``; and the command line, which is a :class:`gradlab.SequenceModel` and
:class:`gradlab.training.step.Steps` (``tests/launch/test_own_cells.py`` has whole runs of a few).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradlab.analysis import analyze
from gradlab.bptt.parts import names_of
from gradlab.bptt.unroll import unroll, whole_taps
from gradlab.errors import BadInput
from gradlab.model import SequenceModel
from gradlab.probes import Adjoint, GradNorm
from gradlab.probes.base import StepProbe
from gradlab.tasks.base import Batch, Task
from gradlab.training.optimizer import Optimizer
from gradlab.training.step import Steps
from gradlab.watching.gradient import value_and_grad
from gradlab.watching.layers import RNN
from tests import zoo
from tests.bptt.test_form import SAID
from tests.zoo import FAULTY, HALF, ZOO, Specimen

pure = nnx.to_pure_dict
RANKS = Adjoint((0.0, 0.5, 1.0))
assert len(RANKS.quantiles) == zoo.B  # so that every example's norm is among them


class Seen(NamedTuple):
    """What a route gives; None: it does not give that.

    Attributes:
      outputs, params, inputs, adjoints, variables: as of :class:`tests.zoo.Truth`; the adjoints may
        be their norms ``(T, B)``.
      loss: ``()``.
    """

    outputs: Any = None
    params: Any = None
    inputs: Any = None
    adjoints: Any = None
    variables: Any = None
    loss: Any = None


# Plain autodiff.


def by_loop(specimen: Specimen, cell: Any, inputs: Any) -> Seen:
    found = zoo.truth(specimen, cell, inputs)
    fields = (found.outputs, found.params, found.inputs, found.adjoints, found.variables)
    return Seen(*fields, found.loss)


def by_flax(specimen: Specimen, cell: Any, inputs: Any) -> Seen:
    outputs, *gradients, variables = zoo.flax_truth(specimen, cell, inputs)
    return Seen(outputs, *gradients, None, variables, zoo.weigh(outputs))


# The routes.


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

    derive = jax.value_and_grad(run, argnums=(0, 1, 2) if real else (0, 1), has_aux=True)
    (loss, (outputs, variables)), found = derive(params, taps, inputs if real else None)
    (seen,) = found[1][0]
    adjoints = {name: whole(leaf, seen["exponent"]) for name, leaf in seen["adjoint"].items()}
    by_inputs = found[2] if real else None
    return Seen(outputs, pure(found[0]), by_inputs, adjoints, pure(variables), loss)


def whole(mantissa: Any, exponent: Any) -> Any:
    size = jnp.exp2(exponent.astype(mantissa.real.dtype))
    return mantissa * size.reshape(*size.shape, *[1] * (mantissa.ndim - 2))


def by_layer(specimen: Specimen, cell: Any, inputs: Any) -> Seen:
    """Of the adjoints it gives the norms."""
    layer = RNN(cell, **specimen.scan)

    def loss(layer: Any, read: Any) -> Any:
        outputs = layer(read)
        return zoo.weigh(outputs), outputs

    real = jnp.issubdtype(inputs.dtype, jnp.inexact)
    by = (nnx.DiffState(0, zoo.inexact), *([1] if real else []))
    (mean, outputs), found, seen = value_and_grad(loss, argnums=by, has_aux=True)(layer, inputs)
    (own,) = seen.values()
    # Of each example's own loss; the loss is their mean.
    norms = {name: own[f"adj_{name}_log10"].T for name in specimen.states}
    norms = {name: 10**log / inputs.shape[0] for name, log in norms.items()}
    params = pure(found[0])["cell"]
    by_inputs = found[1] if real else None
    return Seen(outputs, params, by_inputs, norms, pure(nnx.state(cell)), mean)


def by_analyze(specimen: Specimen, network: Any, inputs: Any) -> Seen:
    """Of a cell or layer: the loss, norms of parameters' gradients, and of adjoints in order."""
    found = analyze(network, inputs, zoo.weigh_each, probes=[RANKS, GradNorm()])
    cell = network.cell if isinstance(network, nnx.RNN) else network
    return analyzed(specimen, cell, found)._replace(loss=np.float64(found.attrs["loss"]))


def analyzed(specimen: Specimen, cell: Any, found: Any, layer: int = 0, prefix: str = "") -> Seen:
    norms = {name: found[f"adj_{name}_log10_q"].values[layer] for name in specimen.states}
    sizes = found["grad_norm"]
    params = {name: sizes.sel(parameter=prefix + name).values for name in names_of(of_cell(cell))}
    return Seen(params=params, adjoints=ranked(norms))


def of_cell(cell: Any) -> Any:
    return nnx.state(cell, nnx.Param)


def ranked(log10: Mapping[str, Any]) -> dict[str, Any]:
    """Adjoints' norms ``(T, B)`` of the mean loss, from quantiles ``(Q, T)`` of each example's."""
    return {name: 10**one.T / zoo.B for name, one in log10.items()}


@dataclass(frozen=True, eq=False)
class OneBatch(Task):
    """The same batch at every step."""

    data: Any
    features = zoo.I
    length, outputs = zoo.T, 2
    loss, readout = "mse", "every"

    def sample(self, data, key, batch):
        return Batch(*data)

    def held_out(self, split):
        return Batch(*self.data)

    def baseline(self, split):
        raise NotImplementedError


class Gradient(StepProbe):
    """The gradient itself."""

    def variables(self, setting):
        return {}

    def __call__(self, seen):
        return {"gradient": seen.grads}


def refused(specimen: Specimen) -> str:
    """Why the command line cannot have a cell of that kind; "" if it can."""
    if specimen.reads != "float":
        return "its tasks give real numbers, and symbols as one-hot ones"
    if len(specimen.features) != 1:
        return "its tasks give inputs (T, B, I)"
    return "it has no option for them" if specimen.scan else ""


def model_of(specimen: Specimen) -> SequenceModel:
    return SequenceModel(
        partial(specimen.kind, **specimen.keys),
        features=zoo.I,
        hidden=specimen.hidden,
        layers=1,
        outputs=OneBatch.outputs,
        readout=OneBatch.readout,
        rngs=nnx.Rngs(0),
    )


def batch_of(inputs: jax.Array) -> Batch:
    """Time-major; with targets, and a weight of each step's loss."""
    batch, steps = inputs.shape[:2]
    real = jnp.promote_types(inputs.dtype, jnp.float32)
    places = jnp.arange(steps * batch * OneBatch.outputs, dtype=real)
    weights = jnp.arange(1, steps + 1, dtype=real) / (steps * (steps + 1) / 2)
    return Batch(
        jnp.swapaxes(inputs, 0, 1),
        jnp.cos(places).reshape(steps, batch, -1),
        jnp.broadcast_to(weights[:, None], (steps, batch)),
    )


def by_command_line(specimen: Specimen, model: SequenceModel, inputs: Any) -> Seen:
    """One probed step; adjoints in order."""
    task = OneBatch(tuple(batch_of(inputs)[:3]))
    rule = Optimizer(optax.sgd, steps=1, learning_rate=0.1)
    steps = Steps(model, task, rule, {"adjoint": RANKS, "gradient": Gradient()}, zoo.B)
    after, report, measured = steps.probe(steps.start(jax.random.key(0)), task.data)
    norms = {name: measured[f"adj_{name}_log10_q"][0] for name in specimen.states}
    variables = pure(nnx.state(steps.model(after.values).layers[0][0], nnx.Not(nnx.Param)))
    gradient = measured["gradient"]
    return Seen(None, gradient, None, ranked(norms), variables, report.loss)


def by_its_loop(specimen: Specimen, model: SequenceModel, inputs: Any) -> Seen:
    """The same by plain autodiff: the cell in a loop, and the readout written out."""
    cell, weights = model.layers[0][0], pure(nnx.state(model.readout))
    _, targets, share, _ = batch_of(inputs)

    def loss(weights: Any, outputs: Any) -> Any:
        parts = [outputs.real, outputs.imag] if jnp.iscomplexobj(outputs) else [outputs]
        read = jnp.swapaxes(jnp.concatenate(parts, -1), 0, 1)
        misses = read @ weights["kernel"] + weights["bias"] - targets
        return jnp.mean(jnp.sum(share * jnp.mean(misses**2, -1), 0))

    found = zoo.truth(specimen, cell, inputs, loss=lambda outputs, _: loss(weights, outputs))
    own = jax.grad(loss)(weights, found.outputs)
    params = {f"readout/{name}": one for name, one in own.items()}
    flat = nnx.traversals.flatten_mapping(found.params, sep="/")
    for name in names_of(of_cell(cell)):
        params[f"layers/0/0/{name}"] = flat[name].conj()  # the direction in which the loss rises
    kept = nnx.to_flat_state(nnx.state(cell, nnx.Not(nnx.Param)))
    flat = nnx.traversals.flatten_mapping(found.variables)
    variables = nnx.traversals.unflatten_mapping({path: flat[path] for path, _ in kept})
    return Seen(None, params, None, found.adjoints, variables, found.loss)


def norms_of(adjoints: Any) -> Any:
    def norm(adjoint: Any) -> Any:
        flat = adjoint.reshape(*adjoint.shape[:2], -1)
        return jnp.sqrt(jnp.sum(flat.real**2 + flat.imag**2, -1))

    return {name: norm(adjoint) for name, adjoint in adjoints.items()}


# What they are held to.

TRACED = {
    "loop": by_loop,
    "nnx.RNN": by_flax,
    "unroll": by_unroll,
    "gradlab.RNN": by_layer,
    "its loop": by_its_loop,
    "command line": by_command_line,
}
ANALYZED = ("analyze a layer", "analyze a cell")
ROUTES = ("nnx.RNN", "unroll", "gradlab.RNN", *ANALYZED, "command line")
OF_MODELS = ("its loop", "command line")
Errors = dict[str, dict[str, float]]
"""By route, of each thing that it gives."""


def can(route: str, specimen: Specimen) -> bool:
    """Whether a specimen can go that way."""
    if route == "analyze a cell":
        return specimen.features == (zoo.I,) and not specimen.scan
    if route == "command line":
        return not refused(specimen)
    return route != "nnx.RNN" or specimen.half is None  # it sums gradients in half precision


def loop_of(route: str) -> str:
    return "its loop" if route == "command line" else "loop"


def errors(specimen: Specimen, routes: Sequence[str] = ROUTES, wide: bool = False) -> Errors:
    """Of each route; of half precision against float64."""
    routes = [route for route in routes if can(route, specimen)]
    loops = list(dict.fromkeys(map(loop_of, routes)))
    if specimen.half is None:
        found = traced([*loops, *routes], specimen, wide)
    else:
        found = {**traced(loops, specimen, True), **traced(routes, specimen, wide)}
    with zoo.as_users_do(wide):
        for route in ANALYZED:
            if route in routes:
                cell, inputs = built("loop", specimen, wide), specimen.inputs(wide=wide)
                network = cell if route == "analyze a cell" else nnx.RNN(cell, **specimen.scan)
                found[route] = by_analyze(specimen, network, inputs)
    with zoo.as_users_do(True):
        return {
            route: {
                name: zoo.error(one, other)
                for name, one, other in zip(
                    Seen._fields, found[route], due_of(route, found), strict=True
                )
                if one is not None
            }
            for route in routes
        }


def built(route: str, specimen: Specimen, wide: bool) -> Any:
    """The cell, or the command line's model with it."""
    with zoo.as_users_do():  # in double precision jax would draw other weights
        module: Any = model_of(specimen) if route in OF_MODELS else specimen.build()
    with zoo.as_users_do(wide):
        return zoo.widened(module) if wide else module


def traced(routes: Sequence[str], specimen: Specimen, wide: bool) -> dict[str, Seen]:
    """What those of the routes give that can be traced: in one program."""
    split = {route: nnx.split(built(route, specimen, wide)) for route in routes if route in TRACED}

    @jax.jit
    def all_of(states: Any, inputs: Any) -> Any:
        own = {route: nnx.merge(split[route][0], states[route], copy=True) for route in split}
        return {route: TRACED[route](specimen, own[route], inputs) for route in split}

    with zoo.as_users_do(wide):
        states = {route: state for route, (_, state) in split.items()}
        return jax.device_get(all_of(states, specimen.inputs(wide=wide)))


def due_of(route: str, found: Mapping[str, Seen]) -> Seen:
    """What plain autodiff says, in the form in which a route gives it."""
    due = found[loop_of(route)]
    if route in ("unroll", "nnx.RNN"):
        return due
    norms = norms_of(due.adjoints)
    if route == "gradlab.RNN":
        return due._replace(adjoints=norms)
    due = due._replace(adjoints={name: np.sort(one, -1) for name, one in norms.items()})
    if route == "command line":
        return due
    flat = nnx.traversals.flatten_mapping(due.params, sep="/")
    return due._replace(
        params={name: np.linalg.norm(np.ravel(flat[name])) for name in found[route].params}
    )


FIRST = {
    "carry NamedTuple": ("gradlab.RNN",),
    "learned h0": ("gradlab.RNN",),
    "y = P·h + Q·x + R·old h": ("gradlab.RNN",),
    "LSTMP": ("unroll",),
    "counter": ("gradlab.RNN",),
    "scalar of all examples": ("gradlab.RNN", "analyze a cell"),
    "complex output": ("command line",),
    "unitary": ("unroll", "analyze a layer"),
    "dropout": ("gradlab.RNN",),
    "batch norm": ("analyze a cell", "command line"),
    "fast weights": ("unroll",),
    "bias of each step": ("analyze a layer",),
    "symbols (B,)": ("gradlab.RNN",),
}
"""One of every kind by one route and more; the others are slow only because they are many."""


@pytest.mark.parametrize("name", FIRST)
def test_some_of_every_kind_and_route_give_what_plain_autodiff_gives(name):
    for route, found in errors(ZOO[name], FIRST[name]).items():
        assert max(found.values()) < 1e-5, (route, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_route_gives_what_plain_autodiff_gives(name):
    for route, found in errors(ZOO[name]).items():
        assert max(found.values()) < 1e-5, (route, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_route_gives_it_to_ten_digits_in_double_precision(name):
    for route, found in errors(ZOO[name], wide=True).items():
        for thing, error in found.items():
            narrow = thing == "adjoints" and route not in ("unroll", "nnx.RNN")
            assert error < (1e-5 if narrow else 1e-10), (route, found)  # recorded in float32


@pytest.mark.slow
@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_as_near_to_double_as_it_can_be(name):
    half = HALF[name].half
    for route, found in errors(HALF[name]).items():
        assert max(found.values()) < half, (route, found)


BY_ROUTE = {
    "gradlab.RNN": by_layer,
    "analyze a cell": by_analyze,
    "analyze a layer": lambda specimen, cell, inputs: by_analyze(specimen, nnx.RNN(cell), inputs),
    "command line": lambda specimen, cell, inputs: model_of(specimen),
}


@pytest.mark.parametrize("route", BY_ROUTE)
@pytest.mark.parametrize("name", FAULTY)
def test_a_cell_that_cannot_run_is_refused_on_every_route_with_what_to_do(name, route):
    specimen = FAULTY[name]
    with zoo.as_users_do(), pytest.raises(BadInput, match=f"cell [\\s\\S]*{SAID[name]}"):
        BY_ROUTE[route](specimen, specimen.build(), specimen.inputs())


def test_what_analyze_does_not_do_for_a_cell_it_says():
    mixing, symbols = ZOO["batch norm"], ZOO["symbols (B,)"]
    with zoo.as_users_do():
        with pytest.raises(BadInput, match=r"mixes the examples[\s\S]*module\.eval\(\)"):
            analyze(mixing.build(), mixing.inputs(), zoo.weigh_each, probes=["lyapunov"])
        with pytest.raises(BadInput, match=r"nnx\.RNN\(cell\) in its place"):
            analyze(symbols.build(), symbols.inputs(), zoo.weigh_each)


class OfEachStep(nnx.Param):
    """One value for each step."""


class Scheduled(zoo.Clocked):
    """Its bias of each step is a parameter."""

    def fill(self, rngs):
        super().fill(rngs)
        self.clock = OfEachStep(self.clock.get_value())


@pytest.mark.slow
def test_a_parameter_of_each_step_has_a_gradient_and_no_curve_over_the_steps():
    with zoo.as_users_do():
        cell, inputs = Scheduled(zoo.I, zoo.H, rngs=nnx.Rngs(0)), ZOO["bias of each step"].inputs()
        layer = nnx.RNN(cell, state_axes=nnx.StateAxes({OfEachStep: 0, ...: nnx.Carry}))
        probes = ["grad_norm", "temporal_contribution"]
        found = analyze(layer, inputs, zoo.weigh_each, probes=probes).sel(parameter="clock")
        due = nnx.grad(lambda layer: zoo.weigh(layer(inputs)))(layer)["cell"]["clock"]
    assert float(found["grad_norm"]) == pytest.approx(float(jnp.linalg.norm(due[...])), rel=1e-5)
    assert np.isnan(found["temporal_contribution_log10"]).all()
    assert "at each step" in json.loads(found.attrs["steps_not_known"])["clock"]


def main() -> None:
    """``python -m tests.test_any_cell`` prints the largest errors by kind and route."""
    columns = ("unroll", "gradlab.RNN", "analyze", "command line")
    print("| cell | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, specimen in {**ZOO, **HALF}.items():
        found = errors(specimen)
        row = [name]
        for column in columns:
            own = [max(one.values()) for route, one in found.items() if route.startswith(column)]
            row.append(f"{max(own):.0e}" if own else "–")
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
