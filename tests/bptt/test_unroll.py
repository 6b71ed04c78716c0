import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradlab.bptt.unroll import make_taps, unroll
from gradlab.cells import GRU, LSTM, FeedForward, SimpleRNN
from gradlab.errors import BadInput
from tests.models import every_model, every_model_in_stacks
from tests.oracles import as_float64, jacobian_product_adjoints, walked

LOG10_2 = math.log10(2)


def measure(layers, inputs, loss, *, mask=None, every=True):
    """Value, gradients by layer and direction, and log10 adjoints of a scalar loss."""
    taps = make_taps(layers, inputs.shape)
    split = [[nnx.split(cell, nnx.Param, ...) for cell in layer] for layer in layers]

    def total(params, inputs, taps):
        built = [
            [
                nnx.merge(graph, p, rest, copy=True)
                for (graph, _, rest), p in zip(layer, layer_params, strict=True)
            ]
            for layer, layer_params in zip(split, params, strict=True)
        ]
        run = unroll(built, inputs, mask=mask, taps=taps, every=every)
        return loss(run)

    params = [[p for _, p, _ in layer] for layer in split]
    grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    value, (grads, input_grads, norms) = grad(params, inputs, taps)
    return value, grads, input_grads, jax.tree.map(lambda n: np.asarray(n) * LOG10_2, norms)


def scalar_rnn(w, activation="identity"):
    cell = SimpleRNN(1, 1, activation_fn=activation, rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.full((1, 1), w)
    cell.dense_i.kernel[...] = jnp.ones((1, 1))
    return cell


# Against closed forms, at T = 5000 in float32.


@pytest.mark.parametrize("w", [0.5, 0.9, 1.1, 2.0])
def test_scalar_linear_rnn_follows_w_to_the_lag_over_5000_steps(w):
    inputs = jnp.zeros((5000, 2, 1))
    _, _, _, norms = measure([[scalar_rnn(w)]], inputs, lambda run: jnp.sum(run.last), every=False)
    lag = np.arange(4999, -1, -1)[:, None]
    np.testing.assert_allclose(norms[0][0]["h"], np.tile(lag * math.log10(w), 2), atol=1e-3)
    if w == 0.5:
        assert norms[0][0]["h"][0, 0] == pytest.approx(-1504.85, abs=0.01)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (2.0, 2.0), (0.5, 0.4), (0.5, 2.0)])
def test_stacked_linear_rnns_carry_the_scale_from_layer_to_layer(low, high):
    """Of layer 0: Σ_k high^(T-1-k) low^(k-t), all of it through a layer outside float32."""
    steps = 5000
    _, _, _, norms = measure(
        [[scalar_rnn(low)], [scalar_rnn(high)]],
        jnp.zeros((steps, 1, 1)),
        lambda run: jnp.sum(run.last),
        every=False,
    )
    lag = np.arange(steps - 1, -1, -1)
    larger, smaller = max(low, high), min(low, high)
    if low == high:
        sums = np.log10(lag + 1.0)
    else:
        ratio = smaller / larger
        sums = np.log10((1 - ratio ** (lag + 1.0)) / (1 - ratio))
    np.testing.assert_allclose(norms[0][0]["h"][:, 0], lag * math.log10(larger) + sums, atol=1e-3)
    np.testing.assert_allclose(norms[1][0]["h"][:, 0], lag * math.log10(high), atol=1e-3)


def test_a_tiny_late_signal_from_above_is_not_drowned_by_zeros():
    """The upper layer reads only the first half: below it the lower adjoint starts at 10^-750."""
    steps = 5000
    _, _, _, norms = measure(
        [[scalar_rnn(0.5)], [scalar_rnn(0.5)]],
        jnp.zeros((steps, 1, 1)),
        lambda run: run.outputs[steps // 2, 0, 0],
    )
    lag = steps // 2 - np.arange(steps)
    want = np.where(lag >= 0, np.log10(np.maximum(lag, 0) + 1.0) + lag * math.log10(0.5), -np.inf)
    np.testing.assert_allclose(norms[0][0]["h"][:, 0], want, atol=1e-3)


def test_lstm_without_recurrent_weights_follows_its_forget_gate():
    cell = LSTM(1, 3, forget_bias=1.0, rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.zeros((3, 12))
    _, _, _, norms = measure(
        [[cell]], jnp.zeros((5000, 1, 1)), lambda run: jnp.sum(run.last), every=False
    )
    c = norms[0][0]["c"][:, 0]
    assert c[-1] == -math.inf  # at the last step all of the gradient is in h
    lag = np.arange(4998, -1, -1)
    log10_f = -math.log10(1 + math.exp(-1))
    np.testing.assert_allclose(c[:-1] - c[-2], lag * log10_f, atol=1e-3)
    assert np.all(np.isneginf(norms[0][0]["h"][:-1]))


# Against float64, for every cell of conf/model.


@every_model()
def test_adjoints_equal_an_explicit_float64_jacobian_product(make):
    """Of a loss of every step; see below for the last one alone."""
    steps, batch, width, hidden = 7, 3, 2, 4
    cell = make(width, hidden, rngs=nnx.Rngs(3))
    inputs = jax.random.normal(jax.random.key(0), (steps, batch, width))
    weight = jax.random.normal(jax.random.key(1), (steps, 1, hidden))
    _, _, _, norms = measure(
        [[cell]], inputs, lambda run: jnp.sum(weight * jnp.sin(run.outputs)), every=True
    )
    with jax.enable_x64(True):
        walk = walked(as_float64(cell), inputs)
    direct = np.zeros_like(walk.after)
    h = walk.parts[-1]
    direct[..., h] = np.asarray(weight, float) * np.cos(walk.after[..., h])
    adjoints = jacobian_product_adjoints(walk.jacobians, direct)
    for name, part in zip(norms[0][0], walk.parts, strict=True):
        with np.errstate(divide="ignore"):
            want = np.log10(np.linalg.norm(adjoints[..., part], axis=-1))
        np.testing.assert_allclose(norms[0][0][name], want, atol=1e-4)


def test_lstm_at_flax_defaults_over_200_steps_is_finite_where_float32_reads_zero():
    steps, batch, width, hidden = 200, 4, 2, 32
    cell = nnx.OptimizedLSTMCell(width, hidden, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (steps, batch, width))

    def run_loss(run):
        return jnp.sum(run.last)

    _, _, _, norms = measure([[cell]], inputs, run_loss, every=False)
    h = norms[0][0]["h"]
    assert np.all(np.isfinite(h))

    def plain_adjoints(cell, inputs):
        """By plain autodiff: the gradient of additive zeros at every state."""

        def total(extra):
            def step(carry, read):
                x, add = read
                (c, h), _ = cell(carry, x)
                return (c, h + add), None

            dtype = inputs.dtype
            start = (jnp.zeros((batch, hidden), dtype), jnp.zeros((batch, hidden), dtype))
            (_, last), _ = jax.lax.scan(step, start, (inputs, extra))
            return jnp.sum(last)

        return jax.jit(jax.grad(total))(jnp.zeros((steps, batch, hidden), inputs.dtype))

    narrow = plain_adjoints(cell, inputs)
    assert float(jnp.linalg.norm(narrow[0, 0])) == 0.0
    with jax.enable_x64(True):
        exact = np.asarray(plain_adjoints(as_float64(cell), jnp.asarray(inputs, jnp.float64)))
    want = np.log10(np.linalg.norm(exact, axis=-1))
    assert want.min() < -40
    np.testing.assert_allclose(h, want, atol=0.01)


def test_adjoints_equal_flax_perturb():
    """Flax's own route: perturbations of the carry inside ``nnx.RNN``."""
    steps, batch, width, hidden = 9, 3, 2, 4
    inner = nnx.OptimizedLSTMCell(width, hidden, rngs=nnx.Rngs(1))
    inputs = jax.random.normal(jax.random.key(0), (steps, batch, width))

    def loss(deltas):
        def step(carry, read):
            x, (dc, dh) = read
            (c, h), _ = inner(carry, x)
            return (c + dc, h + dh), h + dh

        start = inner.initialize_carry((batch, width), nnx.Rngs(0))
        _, outputs = jax.lax.scan(step, start, (inputs, deltas))
        return jnp.sum(jnp.tanh(outputs))

    zeros = jnp.zeros((steps, batch, hidden))
    dc, dh = jax.jit(jax.grad(loss))((zeros, zeros))
    _, _, _, norms = measure([[inner]], inputs, lambda run: jnp.sum(jnp.tanh(run.outputs)))
    for name, want in (("c", dc), ("h", dh)):
        size = np.linalg.norm(want, axis=-1)
        got = 10.0 ** norms[0][0][name]
        np.testing.assert_allclose(got, size, rtol=1e-5, atol=1e-12)


def test_adjoint_equals_finite_differences():
    steps, width, hidden, at = 6, 2, 3, 2
    with jax.enable_x64(True):
        cell = as_float64(GRU(width, hidden, rngs=nnx.Rngs(2)))
        cell.param_dtype = jnp.float64
        inputs = jax.random.normal(jax.random.key(0), (steps, 1, width), jnp.float64)

        def last_from(nudge):
            def step(carry, read):
                t, x = read
                carry, _ = cell(carry, x)
                return carry._replace(h=carry.h + jnp.where(t == at, nudge[None], 0)), None

            start = cell.initialize_carry((1, width))
            carry, _ = jax.lax.scan(step, start, (jnp.arange(steps), inputs))
            return jnp.sum(jnp.cos(carry.h))

        nudges = 1e-6 * jnp.eye(hidden)
        ends = jax.jit(jax.vmap(last_from))(jnp.concatenate([nudges, -nudges]))
        difference = (ends[:hidden] - ends[hidden:]) / 2e-6
        _, _, _, norms = measure(
            [[cell]], inputs, lambda run: jnp.sum(jnp.cos(run.last)), every=False
        )
    assert 10 ** norms[0][0]["h"][at, 0] == pytest.approx(np.linalg.norm(difference), rel=1e-6)


# Gradients and outputs.


@every_model_in_stacks()
def test_stacked_layers_equal_plain_autodiff_of_a_python_loop(makes):
    """Value, gradients and adjoints, of the last step's loss; here every cell is a layer."""
    steps, batch, width, hidden = 4, 3, 2, 4
    below, *above = [make for layer in makes for make in layer]
    cells = [below(width, hidden, rngs=nnx.Rngs(0))]
    cells += [make(hidden, hidden, rngs=nnx.Rngs(1)) for make in above]
    inputs = jax.random.normal(jax.random.key(0), (steps, batch, width))
    split = [nnx.split(cell, nnx.Param, ...) for cell in cells]
    starts = [cell.initialize_carry((batch, width), nnx.Rngs(0)) for cell in cells]

    def by_loop(params, inputs, nudges):
        carries = list(starts)
        built = [
            nnx.merge(graph, p, rest, copy=True)
            for (graph, _, rest), p in zip(split, params, strict=True)
        ]
        for t, x in enumerate(inputs):
            for depth, cell in enumerate(built):
                new, _ = cell(carries[depth], x)
                nudge = jax.tree.map(lambda leaf, t=t: leaf[t], nudges[depth])
                carries[depth] = jax.tree.map(jnp.add, new, nudge)
                x = jax.tree.leaves(carries[depth])[-1]  # the output of these cells is their h
        return jnp.sum(jnp.sin(x))

    value, grads, input_grads, norms = measure(
        [[cell] for cell in cells], inputs, lambda run: jnp.sum(jnp.sin(run.last)), every=False
    )
    nudges = jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape)), starts)
    loop = jax.jit(jax.value_and_grad(by_loop, argnums=(0, 1, 2)))
    want, (want_grads, want_inputs, adjoints) = loop([p for _, p, _ in split], inputs, nudges)
    assert float(value) == pytest.approx(float(want), rel=1e-6)
    np.testing.assert_allclose(input_grads, want_inputs, rtol=1e-4, atol=1e-6)
    got_leaves, want_leaves = jax.tree.leaves(grads), jax.tree.leaves(want_grads)
    for got, expected in zip(got_leaves, want_leaves, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-6)
    for (found,), adjoint in zip(norms, adjoints, strict=True):
        for name, leaf in zip(found, jax.tree.leaves(adjoint), strict=True):
            size = np.linalg.norm(leaf, axis=-1)
            np.testing.assert_allclose(10.0 ** found[name], size, rtol=1e-4, atol=1e-8)


def test_masked_sequences_equal_each_sequence_alone():
    steps, width, hidden = 8, 2, 4
    lengths = [8, 5, 1]
    cells = [LSTM(width, hidden, rngs=nnx.Rngs(0)), GRU(hidden, hidden, rngs=nnx.Rngs(1))]
    layers = [[cell] for cell in cells]
    inputs = jax.random.normal(jax.random.key(0), (steps, 3, width))
    mask = jnp.arange(steps)[:, None] < jnp.asarray(lengths)[None]
    last = lambda run: jnp.sum(jnp.sin(run.last))  # noqa: E731
    _, grads, input_grads, norms = measure(layers, inputs, last, mask=mask, every=False)
    alone_grads = []
    for example, length in enumerate(lengths):
        own = inputs[:length, example : example + 1]
        _, own_grads, own_inputs, own_norms = measure(layers, own, last, every=False)
        alone_grads.append(own_grads)
        for depth in range(2):
            for name, curve in own_norms[depth][0].items():
                got = norms[depth][0][name][:length, example]
                np.testing.assert_allclose(got, curve[:, 0], atol=1e-5)
        np.testing.assert_allclose(
            input_grads[:length, example], own_inputs[:, 0], rtol=1e-5, atol=1e-9
        )
        assert not np.any(input_grads[length:, example])
    summed = jax.tree.map(lambda *parts: sum(parts), *alone_grads)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(summed), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_bidirectional_layers_equal_two_unrolls_of_which_one_is_reversed():
    steps, batch, width, hidden = 6, 2, 2, 3
    forward, backward = LSTM(width, hidden, rngs=nnx.Rngs(0)), LSTM(width, hidden, rngs=nnx.Rngs(1))
    top = SimpleRNN(2 * hidden, hidden, rngs=nnx.Rngs(2))
    inputs = jax.random.normal(jax.random.key(0), (steps, batch, width))
    weights = jax.random.normal(jax.random.key(1), (steps, batch, hidden))

    @jax.jit
    @jax.value_and_grad
    def by_hand(deltas, real, weight):
        def read(cell, inputs, real, delta):
            def step(carry, now):
                x, keep, nudge = now
                new, _ = cell(carry, x)
                new = new._replace(h=new.h + nudge)
                carry = jax.tree.map(lambda n, o: jnp.where(keep[:, None], n, o), new, carry)
                return carry, carry.h

            start = cell.initialize_carry((batch, inputs.shape[-1]))
            return jax.lax.scan(step, start, (inputs, real, delta))[1]

        ahead = read(forward, inputs, real, deltas[0])
        behind = read(backward, inputs[::-1], real[::-1], deltas[1])[::-1]
        outputs = read(top, jnp.concatenate([ahead, behind], -1), real, jnp.zeros_like(weight))
        return jnp.sum(weight * outputs)

    for mask in (None, jnp.arange(steps)[:, None] < jnp.array([[6, 4]])):
        real = jnp.ones((steps, batch), bool) if mask is None else mask
        weight = weights * real[..., None].astype(weights.dtype)
        want, deltas = by_hand((jnp.zeros((steps, batch, hidden)),) * 2, real, weight)
        value, _, _, norms = measure(
            [[forward, backward], [top]],
            inputs,
            lambda run, weight=weight: jnp.sum(weight * run.outputs),
            mask=mask,
        )
        assert float(value) == pytest.approx(float(want), rel=1e-4)
        for direction in (0, 1):
            in_order = np.asarray(real[::-1] if direction else real)
            size = np.linalg.norm(deltas[direction], axis=-1)
            got = 10.0 ** norms[0][direction]["h"]
            np.testing.assert_allclose(got[in_order], size[in_order], rtol=1e-4)


def test_taps_change_no_bit_of_the_gradient():
    cell = LSTM(3, 16, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (60, 8, 3))

    def grads(taps):
        def loss(cell, taps):
            return jnp.mean(jnp.sum(unroll([[cell]], inputs, taps=taps, every=False).last, -1))

        return nnx.jit(nnx.grad(loss, argnums=(0, 1)))(cell, taps)[0]

    @nnx.jit
    @nnx.grad
    def untapped(cell):
        return jnp.mean(jnp.sum(unroll([[cell]], inputs, every=False).last, -1))

    plain = untapped(cell)
    tapped = grads(make_taps([[cell]], inputs.shape))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(tapped), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_adjoint_is_each_examples_own_whatever_the_batch():
    cell = GRU(2, 4, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (10, 6, 2))
    total = lambda run: jnp.sum(run.last)  # noqa: E731
    _, _, _, all_norms = measure([[cell]], inputs, total, every=False)
    _, _, _, two_norms = measure([[cell]], inputs[:, 2:4], total, every=False)
    np.testing.assert_allclose(all_norms[0][0]["h"][:, 2:4], two_norms[0][0]["h"], atol=1e-5)


def test_measuring_takes_memory_of_order_t_times_b_not_h():
    steps, batch, hidden = 400, 8, 128
    cell = LSTM(2, hidden, rngs=nnx.Rngs(0))
    graph, params = nnx.split(cell)
    inputs = jnp.ones((steps, batch, 2))
    taps = make_taps([[cell]], inputs.shape)

    def loss(params, taps):
        cell = nnx.merge(graph, params, copy=True)
        return jnp.sum(unroll([[cell]], inputs, taps=taps, every=False).last)

    def memory(taps, argnums):
        compiled = jax.jit(jax.grad(loss, argnums)).lower(params, taps).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    extra = memory(taps, (0, 1)) - memory(None, 0)
    one_buffer = steps * batch * hidden * 4
    assert extra < 0.25 * one_buffer


def test_a_feed_forward_cell_sends_nothing_back():
    cell = FeedForward(2, 3, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (5, 2, 2))
    _, _, _, norms = measure([[cell]], inputs, lambda run: jnp.sum(run.last), every=False)
    assert np.all(np.isneginf(norms[0][0]["h"][:-1]))
    assert np.all(np.isfinite(norms[0][0]["h"][-1]))


class Doubled(nnx.RNNCellBase):
    """A user's cell whose output is not its state."""

    def __init__(self, in_features, hidden_features, *, rngs):
        self.in_features, self.hidden_features = in_features, hidden_features
        self.dense = nnx.Linear(in_features + hidden_features, hidden_features, rngs=rngs)

    def __call__(self, carry, x):
        h = jnp.tanh(self.dense(jnp.concatenate([carry, x], -1)))
        return h, 2 * h

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], self.hidden_features))


@pytest.mark.parametrize("every", [False, True])
def test_an_output_that_is_not_the_state_reaches_loss_and_gradient(every):
    cell = Doubled(2, 3, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (6, 2, 2))
    pick = (
        (lambda run: jnp.sum(jnp.sin(run.outputs)))
        if every
        else (lambda run: jnp.sum(jnp.sin(run.last)))
    )
    value, grads, _, norms = measure([[cell]], inputs, pick, every=every)

    def by_loop(cell):
        carry, outputs = cell.initialize_carry((2, 2)), []
        for x in inputs:
            carry, y = cell(carry, x)
            outputs.append(y)
        return jnp.sum(jnp.sin(jnp.stack(outputs) if every else outputs[-1]))

    want, want_grads = nnx.jit(nnx.value_and_grad(by_loop))(cell)
    assert float(value) == pytest.approx(float(want), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    last = unroll([[cell]], inputs).outputs[-1]  # 2h: the adjoint of h is twice that of the output
    size = np.linalg.norm(2 * np.cos(last), axis=-1)
    np.testing.assert_allclose(10.0 ** norms[0][0]["h"][-1], size, rtol=1e-5)


class WrongCarry(SimpleRNN):
    def __call__(self, carry, inputs):
        new, y = super().__call__(carry, inputs)
        return (new, new), y


def test_a_cell_that_returns_the_wrong_carry_is_refused():
    cell = WrongCarry(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(BadInput, match=r"WrongCarry[\s\S]*a new carry of the same form"):
        unroll([[cell]], jnp.zeros((4, 1, 2)))


# A whole training run, beside one that knows nothing of gradlab.


@pytest.mark.parametrize(
    ("make", "stock", "options"),
    [
        (LSTM, nnx.OptimizedLSTMCell, {"forget_bias": 0.0}),
        (GRU, nnx.GRUCell, {}),
        (SimpleRNN, nnx.SimpleCell, {}),
    ],
)
def test_fifty_tapped_steps_give_the_parameters_of_fifty_stock_flax_steps(make, stock, options):
    steps, batch, width, hidden = 20, 4, 2, 8
    keys = jax.random.split(jax.random.key(7), 50)
    optimizer = optax.adam(1e-2)

    def tapped_loss(cell, x):
        taps = make_taps([[cell]], x.shape)
        graph, params = nnx.split(cell)

        def loss(params, taps):
            own = nnx.merge(graph, params, copy=True)
            return jnp.mean(jnp.square(unroll([[own]], x, taps=taps, every=False).last))

        return jax.grad(loss, argnums=(0, 1))(params, taps)[0]

    def stock_loss(cell, x):
        graph, params = nnx.split(cell)

        def loss(params):
            rnn = nnx.RNN(nnx.merge(graph, params, copy=True), time_major=True)
            return jnp.mean(jnp.square(rnn(x)[-1]))

        return jax.grad(loss)(params)

    def trained(cell, gradient):
        graph, params = nnx.split(cell)

        @jax.jit
        def update(params, opt_state, key):
            x = jax.random.normal(key, (steps, batch, width))
            grads = gradient(nnx.merge(graph, params), x)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes types
                updates, opt_state = optimizer.update(grads, opt_state)
            return optax.apply_updates(params, updates), opt_state

        opt_state = optimizer.init(params)
        for key in keys:
            params, opt_state = update(params, opt_state, key)
        return params

    ours = trained(make(width, hidden, rngs=nnx.Rngs(0), **options), tapped_loss)
    with jax.default_matmul_precision("highest"):  # as ours; a GPU would take TF32
        theirs = trained(stock(width, hidden, rngs=nnx.Rngs(0)), stock_loss)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
