"""The close look against plain networks in float64: see ``closeups.py``."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup
from gradlab.bptt.unroll import unroll_plainly
from gradlab.cells import GRU, LSTM, SimpleRNN
from tests.closeups import (
    LENGTHS,
    Case,
    E,
    H,
    I,
    Plain,
    Scalar,
    Separate,
    T,
    make_case,
    named,
    packed,
    scalar_closeup,
)
from tests.models import every_model_in_stacks_gru_slowly

TWO_WAYS = {"bidirectional": True, "masked": True}
EXACT = {"rtol": 1e-10, "atol": 1e-13}


def random_cuts(case: Case):
    """Cuts at random steps, after which a loss at the end is still to come."""
    cuts = np.random.default_rng(0).random((T, E)) < 0.4
    return jnp.asarray(cuts & (np.arange(T)[:, None] < np.array(LENGTHS) - 1))


def plain_numbers(found):
    return {name: scaling.plain(value) for name, value in found.items()}


def observed(case: Case, cuts):
    """Everything a close look gives, in one compiled program."""

    def measure(inputs):
        closeup = case._replace(inputs=inputs).closeup()
        views = closeup.layers
        enters = [view.contribution for view in views]
        params = dict(closeup.params)
        return {
            "losses": closeup.losses,
            "gradient": dict(closeup.gradient),
            "autodiff": jax.grad(closeup.loss)(params),
            "readout": closeup.readout_contributions,
            "truncated": dict(closeup.truncated([cuts, cuts])),
            "lags": [closeup.lag_in(direction) for direction in (0, 1)],
            "views": [
                {
                    "adjoint": scaling.plain(view.adjoint),
                    "direct": scaling.plain(view.direct),
                    "jacobian": view.jacobian,
                    "mask": view.mask,
                    "before": view.before,
                    "after": view.after,
                    "inputs": view.trace.inputs,
                }
                for view in views
            ],
            "contributions": [
                jax.vmap(lambda t, at=at: plain_numbers(at(t)))(jnp.arange(T)) for at in enters
            ],
            "of_one_each": plain_numbers(enters[-1](jnp.array([2, 0, 1]))),
        }

    return jax.jit(measure)(case.inputs)


def expected(case: Case, cuts):
    """The same from the plain network."""
    plain = Plain(case)

    def measure(params):
        copies = plain.copies(params)
        losses = plain.losses(copies)
        by = jax.grad(lambda copies: jnp.sum(plain.losses(copies)))(copies)
        cut = jax.grad(lambda params: plain.mean_loss(params, [cuts] * len(case.places)))
        return losses, by, cut(params)

    return jax.jit(measure)(plain.params)


def check(case: Case):
    cuts = random_cuts(case)
    got = jax.tree.map(np.asarray, observed(case, cuts))
    losses, by, cut = expected(case, cuts)
    np.testing.assert_allclose(got["losses"], losses, **EXACT)
    readout = {k: v.sum(1) / E for k, v in named("readout/", by.readout).items()}
    whole, truncated = {}, {}
    for index, ((depth, direction), view) in enumerate(zip(case.places, got["views"], strict=True)):
        real = case.real_of(index)
        np.testing.assert_array_equal(view["mask"], real)
        seen = real[..., None]
        np.testing.assert_allclose(view["adjoint"] * seen, packed(by.nudges[index]), **EXACT)
        np.testing.assert_allclose(view["direct"] * seen, by.lifts[index], **EXACT)
        prefix = f"layers/{depth}/{direction}/"
        copies = named("", by.cells[index])
        for name, array in got["contributions"][index].items():
            np.testing.assert_allclose(array, copies[name], **EXACT)
            whole[prefix + name] = array.sum((0, 1)) / E
        truncated |= named(prefix, cut[index])
    for name, array in got["readout"].items():
        np.testing.assert_allclose(array, readout[name], **EXACT)
        whole[name] = array.sum(0)
    assert whole.keys() == got["gradient"].keys() == got["autodiff"].keys()
    for name, array in whole.items():
        # Float64 precision: contributions, backward pass and autodiff add up in different orders.
        size = np.abs(array).max()
        np.testing.assert_allclose(got["gradient"][name], array, rtol=1e-12, atol=1e-14 * size)
        np.testing.assert_allclose(got["autodiff"][name], array, rtol=1e-10, atol=1e-13 * size)
    assert got["truncated"].keys() == truncated.keys()
    for name, array in truncated.items():
        np.testing.assert_allclose(got["truncated"][name], array, **EXACT)
    for name, array in got["of_one_each"].items():
        own = got["contributions"][-1][name]
        np.testing.assert_allclose(array, own[[2, 0, 1], np.arange(E)], **EXACT)
    lengths = case.real.sum(0)
    t = np.arange(T)[:, None]  # padding comes last in reading forwards, first in reading backwards
    np.testing.assert_array_equal(got["lags"][0], np.maximum(lengths - 1 - t, -1))
    np.testing.assert_array_equal(got["lags"][1], np.where(t >= T - lengths, T - 1 - t, -1))
    for index, view in enumerate(got["views"]):
        check_jacobian(case, index, view)


def check_jacobian(case: Case, index: int, view):
    """Against central differences in float64, and against a second packing of the state."""
    depth, direction = case.places[index]
    cell, size = case.layers[depth][direction], view["before"].shape[-1]
    start = cell.initialize_carry((1, I), nnx.Rngs(0))
    tree, parts = jax.tree.structure(start), size // H

    @jax.jit
    def step(state, x):
        carry = jax.tree.unflatten(tree, jnp.split(state, parts, -1))
        x = jnp.broadcast_to(x, (*state.shape[:-1], x.shape[-1]))
        return jnp.concatenate(jax.tree.leaves(cell(carry, x)[0]), -1)

    state, real, eps = view["before"], case.real_of(index)[..., None, None], 1e-5
    nudge = eps * np.eye(size)
    nudges = np.concatenate([np.zeros((1, size)), nudge, -nudge])[:, None, None]
    new, *ends = np.asarray(step(state + nudges, view["inputs"]))
    np.testing.assert_allclose(view["after"], np.where(real[..., 0], new, state), rtol=1e-12)
    columns = np.subtract(ends[:size], ends[size:]) / (2 * eps)
    want = np.where(real, np.moveaxis(columns, 0, -1), np.eye(size))
    np.testing.assert_allclose(view["jacobian"], want, atol=1e-8)
    assert np.all((view["jacobian"] == np.eye(size)) | real)


@every_model_in_stacks_gru_slowly()
def test_every_cell_masked(makes):
    with jax.enable_x64(True):
        check(make_case(makes, masked=True))


@pytest.mark.parametrize(
    ("cell", "config"), [(SimpleRNN, TWO_WAYS), (LSTM, {})], ids=["two ways", "one way"]
)
def test_a_loss_at_the_end(cell, config):
    with jax.enable_x64(True):
        check(make_case(cell, every=False, **config))


@pytest.mark.parametrize("every", [True, False])
def test_a_cell_whose_output_is_not_its_state(every):
    with jax.enable_x64(True):
        check(make_case(Separate, masked=True, every=every))


def test_the_plain_network_itself_against_finite_differences():
    with jax.enable_x64(True):
        plain = Plain(make_case(LSTM, **TWO_WAYS))
        copies = plain.copies()
        leaves, tree = jax.tree.flatten(copies)
        keys = jax.random.split(jax.random.key(5), len(leaves))
        random = [
            jax.random.normal(key, leaf.shape, leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]

        @jax.jit
        def along(size):
            moved = [leaf + size * way for leaf, way in zip(leaves, random, strict=True)]
            return jnp.sum(plain.losses(jax.tree.unflatten(tree, moved)))

        difference = (along(1e-5) - along(-1e-5)) / 2e-5
        assert float(jax.jit(jax.grad(along))(0.0)) == pytest.approx(float(difference), rel=1e-7)


def test_gradients_flow_through_the_traces_of_the_plain_unroll():
    """A loss of the states themselves, as a regularizer has it: against finite differences."""
    with jax.enable_x64(True):
        case = make_case(GRU, layers=2, masked=True)
        graph, params, rest = nnx.split(case.layers[0][0], nnx.Param, ...)

        @jax.jit
        def of_states(size):
            moved = jax.tree.map(lambda leaf: leaf + size * jnp.cos(leaf), params)
            first = nnx.merge(graph, moved, rest, copy=True)
            run = unroll_plainly([[first], case.layers[1]], case.inputs, mask=case.mask)
            return sum(jnp.sum(jnp.sin(trace.before.h)) for layer in run.traces for trace in layer)

        difference = (of_states(1e-5) - of_states(-1e-5)) / 2e-5
        assert abs(float(difference)) > 0.1
        assert float(jax.jit(jax.grad(of_states))(0.0)) == pytest.approx(float(difference), 1e-7)


def test_parts_of_the_state_by_name():
    closeup = make_case(LSTM, every=False, dtype=jnp.float32).closeup()
    (view,) = closeup.layers
    assert (view.states, view.memory, view.name) == (("c", "h"), "c", "0")
    np.testing.assert_array_equal(view.before[..., view.part("h")], view.trace.before.h)
    np.testing.assert_array_equal(view.before[..., view.part("c")], view.trace.before.c)
    np.testing.assert_array_equal(view.after[-1, :, view.part("h")], view.trace.final.h)
    np.testing.assert_array_equal(view.after[:-1, :, view.part("c")], view.trace.before.c[1:])
    case = make_case(SimpleRNN, bidirectional=True, dtype=jnp.float32)
    ahead, behind = case.closeup(names=["0", "0 backward"]).layers
    assert (ahead.memory, ahead.backwards, ahead.name) == ("h", False, "0")
    assert (behind.memory, behind.backwards, behind.name) == ("h", True, "0 backward")


def test_after_a_state_that_is_not_finite_nothing_is_real():
    """One example overflows at its fourth step; the other runs on."""
    cell = Scalar(1.0, 1.0)
    inputs = jnp.stack([jnp.full(T, 1.5e38), jnp.ones(T)], axis=1)
    closeup = scalar_closeup(cell, inputs)
    (view,) = closeup.layers
    want = np.ones((T, 2), bool)
    want[2:, 0] = False
    np.testing.assert_array_equal(view.mask, want)
    assert np.all(np.isfinite(view.jacobian))
    np.testing.assert_array_equal(view.jacobian[2:, 0, 0, 0], 1)


# Known numbers.


@pytest.mark.parametrize("w", [0.5, 0.9, 2.0])
def test_each_step_gives_w_to_the_t_minus_one_far_outside_float32(w):
    """x_t = x_0 w^t: dx_t/dw = t x_0 w^(t-1), in t equal parts."""
    steps = 3000
    inputs = jnp.zeros((steps, 1)).at[0].set(1.0)

    @jax.jit
    def look(w, inputs):
        (view,) = scalar_closeup(Scalar(w, 1.0), inputs).layers
        enters = view.contribution

        def log10(t):
            part = enters(t)["w"]
            return scaling.log2_norm(part.mantissa, part.exponent) * math.log10(2)

        return jax.vmap(log10)(jnp.arange(steps)), view.mask

    curve, mask = look(jnp.float32(w), inputs)
    got = np.asarray(curve)[:, 0]
    assert got[0] == -math.inf
    if w == 2.0:  # the state itself overflows where w^t does: only its first steps are there
        assert not np.any(mask[128:])
        return
    # h_{t-1} is w^(t-1) in float32 as long as it is a normal number.
    normal = int(-37 / math.log10(w))
    np.testing.assert_allclose(got[1:normal], (steps - 2) * math.log10(w), atol=2e-3)


def test_truncated_to_k_steps_a_geometric_sum_keeps_one_minus_lambda_to_the_k():
    steps, decay = 3000, 0.99
    with jax.enable_x64(True):
        cell = Scalar(decay, 1.0, learn=("u",), dtype=jnp.float64)
        sizes = jnp.array([10, 50, 100])[:, None, None]

        @jax.jit
        def kept(inputs):
            closeup = scalar_closeup(cell, inputs)
            lag = closeup.lag_in(0)
            cuts = (lag > 0)[None] & (lag[None] % sizes == 0)
            name = "layers/0/0/u"
            return jax.vmap(closeup.truncated)([cuts])[name] / closeup.gradient[name]

        got = np.asarray(kept(jnp.ones((steps, 1))))
    np.testing.assert_allclose(got, 1 - decay ** np.array([10, 50, 100]), rtol=1e-9)
    np.testing.assert_allclose(got, [0.096, 0.395, 0.634], atol=5e-4)


def test_what_clipping_removes_is_asked_for_once_and_only_if_something_clips():
    asked = []
    inputs = jnp.ones((T, 1))
    cell = Scalar(0.5, 1.0)
    clipping = Closeup(
        [[cell]],
        inputs[..., None],
        lambda last: last[:, 0],
        removed=lambda: asked.append(1) or {"layers/0/0/w": jnp.float32(2.0)},
    )
    assert clipping.clips
    assert not scalar_closeup(cell, inputs).clips
    assert not asked
    assert float(clipping.removed["layers/0/0/w"]) == float(clipping.removed["layers/0/0/w"]) == 2
    assert asked == [1]
