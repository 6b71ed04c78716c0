"""A backward pass with one route cut, and the initial state, against numpy written out by hand.

Differences of the loss are no oracle for a cut pass: the forward pass is the same, so that what is
handed out is not the derivative of any function of the parameters. Here the equations of the LSTM
and the GRU are transposed by hand, step by step, and the route is left out where it stands.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.bptt.passes import Route
from gradlab.bptt.products import paths
from gradlab.bptt.unroll import make_taps, unroll
from gradlab.cells import GRU, LSTM, SimpleRNN, stock
from gradlab.errors import BadInput
from tests.closeups import E, H, I, T, make_case

EXACT = {"rtol": 1e-10, "atol": 1e-13}
ROUTES: list[Route] = ["full", "no_h_path", "no_c_path"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class ByHand:
    """A cell as numpy, forward and transposed.

    Args:
      params: by name within the cell.
      inputs: ``(T, E, I)``, in reading order.
      real: ``(T, E)`` bool.
      start: the state before the first step, its parts ``(E, H)``; the last is h.
    """

    def __init__(self, params, inputs, real, start):
        self.params, self.inputs, self.real = params, inputs, real[..., None]
        self.before, self.inside, self.outputs = [], [], []
        state = start
        for x, counts in zip(inputs, self.real, strict=True):
            new, inside = self.step(state, x)
            self.before.append(state)
            self.inside.append(inside)
            state = [np.where(counts, n, old) for n, old in zip(new, state, strict=True)]
            self.outputs.append(state[-1])

    def transposed(self, direct, route):
        """``(gradient, of the inputs, of the start, adjoints)``, from that of the outputs."""
        gradient = {name: np.zeros_like(value) for name, value in self.params.items()}
        adjoint = [np.zeros((E, H)) for _ in self.before[0]]
        reads, adjoints = [], []
        for t in reversed(range(T)):
            adjoint = [*adjoint[:-1], adjoint[-1] + direct[t]]
            adjoints.insert(0, np.concatenate(adjoint, -1))
            real = self.real[t]
            of_z, earlier = self.back([np.where(real, a, 0) for a in adjoint], t, route)
            for name, (left, right) in of_z.items():
                gradient[name] += np.sum(right, 0) if left is None else left.T @ right
            reads.insert(0, of_z["dense_i/kernel"][1] @ self.params["dense_i/kernel"].T)
            adjoint = [np.where(real, e, a) for e, a in zip(earlier, adjoint, strict=True)]
        return gradient, np.array(reads), adjoint, np.array(adjoints)


class LSTMByHand(ByHand):
    def step(self, state, x):
        (c, h), p = state, self.params
        z = x @ p["dense_i/kernel"] + h @ p["dense_h/kernel"] + p["dense_h/bias"]
        i, f, g, o = np.split(z, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c = f * c + i * g
        return (c, o * np.tanh(c)), (i, f, g, o, np.tanh(c))

    def back(self, adjoint, t, route):
        (dc, dh), (i, f, g, o, tanh) = adjoint, self.inside[t]
        c, h = self.before[t]
        dc = dc + dh * o * (1 - tanh**2)
        blocks = (
            *(dc * g * i * (1 - i), dc * c * f * (1 - f)),
            *(dc * i * (1 - g**2), dh * tanh * o * (1 - o)),
        )
        dz = np.concatenate(blocks, -1)
        through_c, through_h = dc * f, dz @ self.params["dense_h/kernel"].T
        x = self.inputs[t]
        of_z = {"dense_i/kernel": (x, dz), "dense_h/kernel": (h, dz), "dense_h/bias": (None, dz)}
        cut_c, cut_h = route == "no_c_path", route == "no_h_path"
        return of_z, (0 * through_c if cut_c else through_c, 0 * through_h if cut_h else through_h)


class GRUByHand(ByHand):
    def step(self, state, x):
        (h,), p = state, self.params
        x_r, x_z, x_n = np.split(x @ p["dense_i/kernel"] + p["dense_i/bias"], 3, axis=-1)
        h_r, h_z, h_n = np.split(h @ p["dense_h/kernel"], 3, axis=-1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        n = np.tanh(x_n + r * h_n)
        return ((1 - z) * n + z * h,), (r, z, n, h_n)

    def back(self, adjoint, t, route):
        (dh,), (r, z, n, h_n) = adjoint, self.inside[t]
        (h,) = self.before[t]
        of_n = dh * (1 - z) * (1 - n**2)
        of_z, of_r = dh * (h - n) * z * (1 - z), of_n * h_n * r * (1 - r)
        from_x = np.concatenate([of_r, of_z, of_n], -1)
        from_h = np.concatenate([of_r, of_z, of_n * r], -1)
        kept, rest = dh * z, from_h @ self.params["dense_h/kernel"].T
        own = {
            "dense_i/kernel": (self.inputs[t], from_x),
            "dense_i/bias": (None, from_x),
            "dense_h/kernel": (h, from_h),
        }
        return own, ({"full": kept + rest, "no_h_path": kept, "no_c_path": rest}[route],)


class Network:
    """Two LSTMs, one of which reads from the end, under a GRU; lengths that differ; a start."""

    def __init__(self):
        with jax.enable_x64(True):
            self.case = make_case([[LSTM, LSTM], [GRU]], masked=True)
            rng = np.random.default_rng(3)
            pairs = [tuple(jnp.asarray(rng.normal(size=H)) for _ in range(2)) for _ in range(2)]
            self.start = [pairs, [jnp.asarray(rng.normal(size=H))]]

    def closeup(self, inputs, start, route):
        case = self.case._replace(inputs=inputs)
        return case.closeup(start=start, learns_start=True, backward=route)

    def by_hand(self, route):
        """The gradient by name, and the adjoints of each layer and direction."""
        case, real = self.case, self.case.real
        inputs = np.asarray(case.inputs)
        runs = []
        for depth, direction, kind in ((0, 0, LSTMByHand), (0, 1, LSTMByHand), (1, 0, GRUByHand)):
            order = slice(None, None, -1 if direction else 1)
            if depth:
                ahead, behind = runs
                inputs = np.concatenate([ahead.outputs, behind.outputs[::-1]], -1)
            own = self.start[depth][direction]
            parts = own if isinstance(own, tuple) else (own,)
            start = [np.tile(np.asarray(part), (E, 1)) for part in parts]
            own = by_cell(case.closeup().params, f"layers/{depth}/{direction}/")
            runs.append(kind(own, inputs[order], real[order], start))
        kernel, bias = (np.asarray(case.readout.kernel[...]), np.asarray(case.readout.bias[...]))
        top = np.array(runs[2].outputs)
        read = top @ kernel + bias
        weight = 2 / E * np.asarray(case.weights)[..., None]
        slope = weight * (np.sin(read) - np.asarray(case.targets)) * np.cos(read)
        found = {
            "readout/kernel": np.einsum("teh,teo->ho", top, slope),
            "readout/bias": slope.sum((0, 1)),
        }
        direct, adjoints = {(1, 0): slope @ kernel.T}, []
        for run, (depth, direction) in reversed(list(zip(runs, case.places, strict=True))):
            order = slice(None, None, -1 if direction else 1)
            gradient, below, start, own = run.transposed(direct[depth, direction][order], route)
            if depth:
                direct |= {(0, 0): below[..., :H], (0, 1): below[..., H:]}
            adjoints.insert(0, own * E)
            place = f"{depth}/{direction}/"
            found |= {f"layers/{place}{name}": value for name, value in gradient.items()}
            names = ("c", "h")[-len(start) :]
            found |= {
                f"initial_state/{place}{name}": part.sum(0)
                for name, part in zip(names, start, strict=True)
            }
        return found, adjoints


def by_cell(params, prefix) -> dict[str, Any]:
    named = {name: np.asarray(value) for name, value in params.items()}
    return {name.removeprefix(prefix): v for name, v in named.items() if name.startswith(prefix)}


@functools.cache
def network():
    return Network()


@functools.cache
def looked_at():
    """A close look by each route, in one program."""
    net = network()

    def look(inputs, start):
        found = {}
        for route in ROUTES:
            closeup = net.closeup(inputs, start, route)
            views = closeup.layers
            found[route] = {
                "gradient": dict(closeup.gradient),
                "adjoints": [view.adjoint.plain() for view in views],
                "transport": [view.transport for view in views],
                "kept": [view.kept for view in views],
            }
            if route == "full":
                found["jacobian"] = [view.jacobian for view in views]
                found["paths"] = [
                    paths(view.jacobian, view.kept, view.part(view.memory)) for view in views[1:]
                ]
        return found

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(look)(net.case.inputs, net.start))


@pytest.mark.parametrize("route", ROUTES)
def test_a_pass_with_one_route_cut_is_the_one_by_hand(route):
    gradient, adjoints = network().by_hand(route)
    got, true = looked_at()[route], looked_at()["full"]["gradient"]
    assert got["gradient"].keys() == gradient.keys()
    for name, want in gradient.items():
        np.testing.assert_allclose(got["gradient"][name], want, **EXACT, err_msg=name)
        cut = route != "full" and not name.startswith("readout")
        assert np.allclose(true[name], want, rtol=1e-3) != cut, name
    for mine, want in zip(got["adjoints"], adjoints, strict=True):
        np.testing.assert_allclose(mine, want, **EXACT)


def product_to_the_end(jacobians):
    """``J_{T-1} ⋯ J_{t+1}`` at each t but the last, ``(T - 1, E, S, S)``."""
    product, products = np.eye(jacobians.shape[-1]), []
    for jacobian in jacobians[:0:-1]:
        product = product @ jacobian
        products.insert(0, product)
    return np.array(products)


@pytest.mark.parametrize("index", [1, 2])
def test_what_vanishes_with_the_route_through_h_is_the_residual_path(index):
    """The product of the Jacobians minus that of what is left; of an LSTM and of a GRU."""
    found, memory, real = looked_at(), slice(0, H), network().case.real_of(index)
    full, cut, other = (found[route]["transport"][index] for route in ROUTES)
    np.testing.assert_array_equal(full, found["jacobian"][index])
    whole, left = (product_to_the_end(one)[..., memory, memory] for one in (full, cut))
    through_h = np.linalg.norm(whole - left, axis=(-2, -1))
    assert np.all(through_h[0] > 1e-4)
    path = found["paths"][index - 1]
    np.testing.assert_allclose(10 ** path.residual[:-1], through_h, rtol=1e-9, atol=1e-14)
    # What is left is the product of the gates.
    gates = found["no_h_path"]["kept"][index]
    product = np.cumprod(gates[::-1], axis=0)[::-1][1:]
    np.testing.assert_allclose(left, product[..., None] * np.eye(H), rtol=1e-12)
    np.testing.assert_allclose(10 ** path.forget[:-1], np.linalg.norm(product, axis=-1), rtol=1e-9)
    # The other route is the rest of each step, and padding cuts nothing.
    cut_both = cut + other - full
    beside = slice(H, None) if full.shape[-1] > H else slice(0)
    np.testing.assert_allclose(cut_both[real][:, :H, :H], 0, atol=1e-15)
    np.testing.assert_allclose(other[real][:, :, beside], full[real][:, :, beside])
    np.testing.assert_array_equal(found["no_c_path"]["kept"][index][real], 0)
    for one in (cut, other):
        np.testing.assert_array_equal(one[~real], full[~real])


@pytest.mark.parametrize("make", [GRU, pytest.param(LSTM, marks=pytest.mark.slow)])
def test_over_thousands_of_steps_the_gate_alone_is_the_adjoint(make):
    """Far below what float32 holds; and the parameters get what they get without measuring."""
    steps, cell = 3000, make(1, 1, rngs=nnx.Rngs(0))
    graph, params = nnx.split(cell)
    inputs = jax.random.normal(jax.random.key(0), (steps, 1, 1))

    def last(params, start, taps, route):
        layers = [[nnx.merge(graph, params, copy=True)]]
        run = unroll(layers, inputs, taps=taps, start=start, every=False, backward=route)
        return jnp.sum(run.last)

    start = [[(0.5 * jnp.ones(1),) * (2 if make is LSTM else 1)]]

    @jax.jit
    def look(params, taps):
        each = jax.grad(last, argnums=(0, 1, 2))
        measured = [each(params, start, taps, route) for route in ("no_h_path", "no_c_path")]
        plain = jax.grad(last, argnums=(0, 1))(params, start, None, "no_h_path")
        gates = stock.retention(cell, *unroll([[cell]], inputs, start=start).traces[0][0][:2])
        return measured, plain, gates

    (kept, rest), plain, gates = look(params, make_taps([[cell]], inputs.shape))
    jax.tree.map(np.testing.assert_array_equal, kept[:2], plain)
    log2 = np.log2(np.asarray(gates, float)[:, 0, 0])
    adjoints = {name: np.asarray(tap)[:, 0] for name, tap in kept[2][0][0].items()}
    if make is LSTM:
        assert np.all(np.isneginf(adjoints["h"][:-1]))
        assert np.all(np.isneginf(np.asarray(rest[2][0][0]["c"])))
        memory = adjoints["c"][:-1]
    else:
        memory = adjoints["h"]
    lost = np.append(np.cumsum(log2[::-1])[::-1], 0)[1 : len(memory) + 1]
    np.testing.assert_allclose(memory - memory[-1], lost - lost[-1], atol=5e-3)
    assert memory[0] < -1000


def test_a_cell_without_a_retention_gate_has_no_route_to_cut():
    cell = SimpleRNN(I, H, rngs=nnx.Rngs(0))
    with pytest.raises(BadInput, match="SimpleRNN has no retention gate") as refusal:
        unroll([[cell]], jnp.zeros((T, E, I)), backward="no_h_path")
    assert refusal.value.key == "backward"
    with pytest.raises(BadInput, match=r"full \| no_h_path \| no_c_path"):
        unroll([[cell]], jnp.zeros((T, E, I)), backward="no_c")  # pyright: ignore[reportArgumentType]
