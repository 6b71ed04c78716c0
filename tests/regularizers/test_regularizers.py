"""The penalties and their gradients against slow float64 computations, and what they do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradlab import cells
from gradlab.bptt.closeup import Closeup
from gradlab.bptt.products import random_orthonormal
from gradlab.errors import BadInput
from gradlab.regularizers import Flossing, Omega
from tests.models import every_model
from tests.oracles import as_float64, flat, jacobian_product_adjoints, walked

STEPS, EXAMPLES, WIDTH, HIDDEN = 6, 2, 2, 3
ENDS = (6, 4)
MASK = np.arange(STEPS)[:, None] < np.array(ENDS)


def last_sum(outputs):
    return jnp.sum(jnp.sin(outputs), -1)


def drawn(make):
    """A float64 cell with every parameter random, so that no bias is zero."""
    build = lambda: make(WIDTH, HIDDEN, param_dtype=jnp.float64, rngs=nnx.Rngs(0))  # noqa: E731
    graph, state = nnx.split(nnx.eval_shape(build))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda a: jnp.asarray(0.7 * rng.normal(size=a.shape)), state)
    return nnx.split(as_float64(nnx.merge(graph, state)))


def penalty_of(regularizer, graph, inputs, losses=last_sum, mask=None):
    """The penalty as a function of one cell's parameters."""

    def penalty(params):
        cell = nnx.merge(graph, params, copy=True)
        return regularizer.penalty(Closeup([[cell]], inputs, losses, mask=mask))

    return penalty


def along(tree, direction):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(direction), strict=True)
    return sum(float(np.vdot(a, b)) for a, b in pairs)


def random_direction(params, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), params)


def slope(function, params, direction, step=1e-5):
    """The central difference of a function of parameters."""
    ends = [
        function(
            jax.tree.map(
                lambda a, d, s=sign: np.asarray(a) + s * step * np.asarray(d), params, direction
            )
        )
        for sign in (1, -1)
    ]
    return float(ends[0] - ends[1]) / (2 * step)


def start_of(cell):
    return jax.tree.map(lambda a: a[0], cell.initialize_carry((1, WIDTH), nnx.Rngs(0)))


def packed_step(cell):
    tree = jax.tree.structure(start_of(cell))

    def step(state, x):
        return flat(cell(jax.tree.unflatten(tree, jnp.split(state, tree.num_leaves)), x)[0])

    return step


def lived(cell, inputs):
    """Of each example's real steps: states before them, inputs, adjoints and Jacobians."""
    walk, h = walked(cell, inputs), slice(-HIDDEN, None)
    for e, end in enumerate(ENDS):
        direct = np.zeros_like(walk.after[:end, e : e + 1])
        direct[-1, 0, h] = np.cos(walk.after[end - 1, e, h])
        adjoints = jacobian_product_adjoints(walk.jacobians[:end, e : e + 1], direct)
        yield walk.before[:end, e], inputs[:end, e], adjoints[:, 0], walk.jacobians[:end, e]


def omega_by_hand(graph, frozen):
    """Ω as a function of the parameters, of examples whose states and adjoints are fixed."""

    def omega(params):
        step = packed_step(nnx.merge(graph, params, copy=True))
        total = 0.0
        for states, read, adjoints, _ in frozen:
            jacobians = jax.vmap(jax.jacfwd(step))(states, read)[1:]
            adjoints, before = adjoints[1:], jnp.linalg.norm(adjoints[1:], axis=-1)
            after = jnp.linalg.norm(jnp.einsum("ti,tij->tj", adjoints, jacobians), axis=-1)
            ratio = jnp.where(before > 0, after / jnp.where(before > 0, before, 1), 1)
            total += jnp.sum((ratio - 1) ** 2) / len(frozen)
        return total

    return jax.jit(omega)


def exponents_by_hand(jacobians, count):
    """The exponents of one example, by numpy's QR at every step."""
    q, growth = random_orthonormal(jacobians.shape[-1], count), 0
    for jacobian in np.asarray(jacobians):
        q, r = np.linalg.qr(jacobian @ q)
        growth += np.log(np.abs(np.diag(r))) / len(jacobians)
    return growth


@every_model()
def test_penalties_and_their_gradients(make):
    with jax.enable_x64(True):
        graph, params = drawn(make)
        cell = nnx.merge(graph, params, copy=True)
        inputs = jax.random.normal(jax.random.key(2), (STEPS, EXAMPLES, WIDTH))
        direction = random_direction(params)
        frozen = list(lived(cell, inputs))

        kinds = Omega(), Flossing(exponents=2, target=-0.1, interval=2)

        @jax.jit
        def both(params, weights):
            def total(params):
                own = nnx.merge(graph, params, copy=True)
                closeup = Closeup([[own]], inputs, last_sum, mask=jnp.asarray(MASK))
                values = jnp.stack([kind.penalty(closeup) for kind in kinds])
                return jnp.vdot(weights, values), values

            return jax.grad(total, has_aux=True)(params)

        omega_gradient, (omega, floss) = both(params, np.array([1.0, 0.0]))
        floss_gradient, _ = both(params, np.array([0.0, 1.0]))

        by_hand = omega_by_hand(graph, frozen)
        assert omega == pytest.approx(float(by_hand(params)), rel=1e-10)
        assert omega > 0.01
        want = slope(by_hand, params, direction)
        assert along(omega_gradient, direction) == pytest.approx(want, rel=1e-6, abs=1e-12)

        if isinstance(cell, cells.FeedForward):  # nothing passes through time
            assert floss == 0
            assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(floss_gradient))
            return
        found = [exponents_by_hand(jacobians, 2) for *_, jacobians in frozen]
        assert floss == pytest.approx(np.mean((np.stack(found) + 0.1) ** 2), rel=1e-9)
        want = slope(lambda params: both(params, np.zeros(2))[1][1], params, direction, 1e-6)
        assert along(floss_gradient, direction) == pytest.approx(want, rel=1e-5)


def rnn(activation="tanh", *, hidden=HIDDEN, scale=1.0, seed=0, **options):
    start = nnx.initializers.orthogonal(scale)
    return cells.SimpleRNN(WIDTH, hidden, activation_fn=activation, recurrent_kernel_init=start,
                           rngs=nnx.Rngs(seed), **options)  # fmt: skip


def value_and_grad(regularizer, cell, inputs):
    graph, params = nnx.split(cell)
    return jax.jit(jax.value_and_grad(penalty_of(regularizer, graph, inputs)))(params)


def test_omega_of_an_orthogonal_linear_network_is_zero():
    inputs = jax.random.normal(jax.random.key(0), (100, 2, WIDTH))
    with jax.enable_x64(True):
        wide = as_float64(rnn("identity", hidden=8, param_dtype=jnp.float64))
        value, gradient = value_and_grad(Omega(), wide, jnp.asarray(inputs, jnp.float64))
    assert 0 <= float(value) < 1e-28
    assert all(np.abs(leaf).max() < 1e-12 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_omega_far_beyond_the_float_range(scale):
    steps = 300
    inputs = jnp.zeros((steps, 2, WIDTH))
    value, gradient = value_and_grad(Omega(), rnn("identity", scale=scale), inputs)
    assert float(value) == pytest.approx((steps - 1) * (scale - 1) ** 2, rel=1e-4)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_omega_of_steps_that_pass_hardly_anything():
    inputs = jnp.zeros((4, 2, WIDTH))
    value, gradient = value_and_grad(Omega(), rnn("identity", scale=1e-30), inputs)
    assert float(value) == pytest.approx(3, rel=1e-6)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def descended(regularizer, cell, inputs, rate, steps):
    """The cell after some steps of Adam on the penalty alone."""
    graph, params = nnx.split(cell)
    gradient = jax.grad(penalty_of(regularizer, graph, inputs))
    rule = optax.adam(rate)

    def one(_, carry):
        params, state = carry
        grads = gradient(params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types
            updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    start = (params, rule.init(params))
    params, _ = jax.jit(lambda start: jax.lax.fori_loop(0, steps, one, start))(start)
    return nnx.merge(graph, params)


def looked_at(cell, inputs):
    """The adjoints, each at some scale, and the step Jacobians."""
    graph, params = nnx.split(cell)

    @jax.jit
    def look(params, inputs):
        layer = Closeup([[nnx.merge(graph, params)]], inputs, last_sum).layers[0]
        return layer.adjoint.mantissa, layer.jacobian

    return jax.tree.map(np.float64, look(params, inputs))


def ratios(cell, inputs):
    """‖vᵀJ‖ / ‖v‖ at every step, with the adjoints v."""
    adjoint, jacobian = looked_at(cell, inputs)
    moved = np.einsum("tes,tesr->ter", adjoint, jacobian)
    return (np.linalg.norm(moved, axis=-1) / np.linalg.norm(adjoint, axis=-1))[1:]


def test_fifty_steps_on_omega_bring_the_ratios_to_one():
    inputs = jax.random.normal(jax.random.key(0), (10, 2, WIDTH))
    before = rnn(hidden=6, scale=0.6)
    after = descended(Omega(), before, inputs, 0.02, 50)
    assert np.abs(ratios(before, inputs) - 1).mean() > 0.4
    assert np.abs(ratios(after, inputs) - 1).mean() < 0.1


def exponents(cell, inputs, count):
    _, jacobians = looked_at(cell, inputs)
    found = [exponents_by_hand(jacobians[:, e], count) for e in range(inputs.shape[1])]
    return np.stack(found)


def test_flossing_moves_the_exponents_to_zero():
    inputs = jax.random.normal(jax.random.key(0), (20, 2, WIDTH))
    before = rnn(hidden=6, scale=0.7)
    after = descended(Flossing(exponents=3), before, inputs, 0.02, 100)
    assert exponents(before, inputs, 3).max() < -0.4
    assert np.abs(exponents(after, inputs, 3)).max() < 0.06


# What has no direction through time.


def closeup_of(cell, inputs=None):
    inputs = jnp.ones((4, 2, WIDTH)) if inputs is None else inputs
    return Closeup([[cell]], inputs, last_sum)


@pytest.mark.parametrize("regularizer", [Omega(), Flossing()])
def test_a_feedforward_network_is_refused(regularizer):
    cell = cells.FeedForward(WIDTH, HIDDEN, rngs=nnx.Rngs(0))
    with pytest.raises(BadInput, match="FeedForward, which does not read its own state"):
        regularizer.check_model(closeup_of(cell))
    regularizer.check_model(closeup_of(rnn()))


def half_dead():
    """A ReLU network of which one example keeps every unit alive and the other none."""
    cell = rnn("relu", scale=0.2, kernel_init=nnx.initializers.ones)
    return cell, jnp.ones((4, 2, WIDTH)).at[:, 1].set(-50) * 50


def test_flossing_leaves_out_examples_that_lost_a_direction():
    cell, inputs = half_dead()
    both, gradient = value_and_grad(Flossing(target=1.0), cell, inputs)
    lone, alone = value_and_grad(Flossing(target=1.0), cell, inputs[:, :1])
    assert float(both) == pytest.approx(float(lone), rel=1e-5)
    assert float(lone) > 0.5
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert np.all(np.isfinite(a))


def test_flossing_refuses_more_exponents_than_survive():
    first_only = jnp.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]])
    cell = rnn("identity")
    cell.dense_h.kernel[...] = first_only
    with pytest.raises(BadInput, match=r"trainer\.flossing\.exponents=8"):
        Flossing().check_model(closeup_of(cell))
    Flossing(exponents=1).check_model(closeup_of(cell))
    value, gradient = value_and_grad(Flossing(), cell, jnp.ones((4, 2, WIDTH)))
    assert float(value) == 0
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


def test_dead_steps_in_omega_cost_one_and_exert_no_force():
    cell, inputs = half_dead()
    value, gradient = value_and_grad(Omega(), cell, inputs[:, 1:])
    assert float(value) == pytest.approx(1)  # the last step; before it there is no adjoint
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_layers_and_directions():
    pair = [rnn(seed=1), rnn(seed=2)]
    over = cells.SimpleRNN(2 * HIDDEN, HIDDEN, rngs=nnx.Rngs(3))

    @jax.jit
    def run(inputs):
        stacked = Closeup([pair, [over]], inputs, last_sum)
        reads = [layer.trace.inputs for layer in stacked.layers]
        lone = [
            Closeup([[one]], read, last_sum) for one, read in zip([*pair, over], reads, strict=True)
        ]
        floss = [Flossing().penalty(one) for one in (stacked, *lone)]
        return jnp.stack(floss), Omega().penalty(stacked), Omega().penalty(lone[2])

    floss, omega, top = run(jax.random.normal(jax.random.key(0), (4, 2, WIDTH)))
    assert float(floss[0]) == pytest.approx(float(floss[1:].mean()), rel=1e-5)
    assert float(omega) > float(top) > 0


# Options.


@pytest.mark.parametrize(
    ("kind", "options", "key"),
    [
        (Omega, {"weight": -1.0}, "omega.weight"),
        (Omega, {"weight": math.nan}, "omega.weight"),
        (Omega, {"weight": math.inf}, "omega.weight"),
        (Omega, {"alone": -1}, "omega.alone"),
        (Omega, {"alone": 10, "until": 9}, "omega.until"),
        (Omega, {"examples": 0}, "omega.examples"),
        (Flossing, {"alone": 200}, "flossing.until"),
        (Flossing, {"exponents": 0}, "flossing.exponents"),
        (Flossing, {"interval": 0}, "flossing.interval"),
        (Flossing, {"target": math.inf}, "flossing.target"),
    ],
)
def test_bad_options(kind, options, key):
    with pytest.raises(BadInput) as refusal:
        kind(**options)
    assert refusal.value.key == f"trainer.{key}"


def test_defaults():
    assert Omega() == Omega(weight=1.0, alone=0, until=None, examples=None)
    floss = Flossing()
    assert floss.until == floss.alone > 0
    assert Flossing(alone=0, until=None).until is None


def test_padding_that_is_not_finite_changes_nothing():
    """Neither what the close look gives nor the penalties and their gradients."""
    cell = cells.SimpleRNN(WIDTH, HIDDEN, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (STEPS, EXAMPLES, WIDTH))
    graph, params = nnx.split(cell)

    @jax.jit
    def measure(params, inputs):
        def closeup(params):
            own = nnx.merge(graph, params, copy=True)
            return Closeup([[own]], inputs, last_sum, mask=jnp.asarray(MASK))

        def penalties(params):
            kinds = Omega(), Flossing(exponents=2)
            return sum(kind.penalty(closeup(params)) for kind in kinds)

        looked = closeup(params)
        (view,) = looked.layers
        return {
            "penalties": jax.value_and_grad(penalties)(params),
            "gradient": looked.gradient,
            "autodiff": jax.grad(looked.loss)(dict(looked.params)),
            "truncated": looked.truncated([jnp.zeros(MASK.shape, bool)]),
            "jacobian": view.jacobian,
            "parts": view.contribution(jnp.int32(STEPS - 1)),
        }

    bad = jnp.where(MASK[..., None], inputs, jnp.array([math.nan, math.inf]))
    want, got = measure(params, inputs), measure(params, bad)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.all(np.isfinite(theirs))
        np.testing.assert_array_equal(ours, theirs)
