"""gradlab's layers do what Flax's do, with every option, and see what is under way."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import gradlab
from gradlab.cells import GRU, LSTM, SimpleRNN
from gradlab.watching import tape as tapes
from gradlab.watching.tape import Tape
from tests.oracles import as_float64

B, T, I, H = 4, 6, 3, 2  # noqa: E741
LENGTHS = jnp.array([6, 2, 1, 4])
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, I)), jnp.float32)


def cell(kind=SimpleRNN, width=I, seed=0):
    bias = nnx.initializers.normal(0.5)
    return kind(width, H, bias_init=bias, rngs=nnx.Rngs(seed))


def drawn(cell, batch=(B,)):
    """A first carry that is not zero."""
    return cell.initialize_carry((*batch, I), nnx.Rngs(7), nnx.initializers.normal(1.0))


def weighed(result):
    """A loss in which every number counts, those of a carry too."""
    leaves = jax.tree.leaves(result)
    return sum(jnp.sum(jnp.sin((1.3 + i) * leaf)) for i, leaf in enumerate(leaves))


def taped(loss, *args):
    """Value and gradients by all arguments with a tape running, and the cotangents of its taps."""

    def look():
        with Tape().running() as tape:
            loss(*nnx.clone(args))
        return {
            name: {
                state: jnp.zeros(call.run.traces[0][0].inputs.shape[:2])
                for state in call.run.forms[0][0].states
            }
            for name, call in tape.calls.items()
        }

    def run(taps, *args):
        with Tape(taps).running():
            return loss(*args)

    taps = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(look))
    wanted = tuple(range(len(args) + 1))
    value, (norms, *gradients) = nnx.value_and_grad(run, argnums=wanted)(taps, *args)
    return value, gradients, norms


def agree(found, due, rtol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(due), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(b)) + 1e-3))


def both(make, calls, rtol=1e-5):
    """Flax's layers and gradlab's, in one program: values, gradients, norms."""

    @nnx.jit
    def compare(theirs, ours):
        found = []
        for one, other, (x, keys, carry) in zip(theirs, ours, calls, strict=True):

            def loss(layer, x, carry, keys=keys):
                return weighed(layer(x, initial_carry=carry, **keys))

            by = (0, 1) if carry is None else (0, 1, 2)
            due = nnx.value_and_grad(loss, argnums=by)(one, x, carry)
            if carry is None:
                value, gradients, norms = taped(lambda a, b, f=loss: f(a, b, None), other, x)
            else:
                value, gradients, norms = taped(loss, other, x, carry)
            found.append((due, (value, tuple(gradients)), norms))
        return found

    found = compare(nnx.List(make()), gradlab.watch(nnx.List(make())))
    for due, ours, _ in found:
        agree(ours, due, rtol)
    return [norms for *_, norms in found]


def every_option():
    """Layers, and what they are called with: every option of Flax's, each at least once."""
    time_major = jnp.swapaxes(X, 0, 1)
    known = {"seq_lengths": LENGTHS}
    return [
        (nnx.RNN(cell(LSTM)), X, {}, None),
        (nnx.RNN(cell(GRU), return_carry=True), X, known, drawn(cell(GRU))),
        (nnx.RNN(cell(), time_major=True, unroll=4), time_major, {}, None),
        (nnx.RNN(cell(), reverse=True), X, {}, None),
        (nnx.RNN(cell(), reverse=True), X, known, None),
        (nnx.RNN(cell(LSTM), reverse=True, keep_order=True), X, known, drawn(cell(LSTM))),
        (nnx.RNN(cell()), X, {"reverse": True, "keep_order": True, "return_carry": True}, None),
        (nnx.RNN(cell()), time_major, {"time_major": True, "seq_lengths": LENGTHS}, None),
        (nnx.RNN(cell(), rngs=False), X[0], {}, None),
        (nnx.RNN(cell(), rngs=nnx.Rngs(3)), X.reshape(2, 2, T, I), {}, drawn(cell(), (2, 2))),
        (nnx.RNN(cell(nnx.OptimizedLSTMCell)), X, {"rngs": nnx.Rngs(5)}, None),
        (nnx.Bidirectional(nnx.RNN(cell()), nnx.RNN(cell(GRU))), X, known, None),
        (
            nnx.Bidirectional(
                nnx.RNN(cell(), unroll=2), nnx.RNN(cell(seed=1)), merge_fn=jnp.multiply,
                time_major=True, return_carry=True, rngs=nnx.Rngs(1),
            ), time_major, known, (drawn(cell()), drawn(cell(seed=1))),
        ),
    ]  # fmt: skip


def check_options(chosen, rtol=1e-5):
    cases = [every_option()[i] for i in chosen]
    return both(lambda: [every_option()[i][0] for i in chosen], [case[1:] for case in cases], rtol)


def test_the_options_of_flax_give_its_numbers_and_every_gradient():
    """The most of them in one layer; the slow test has each by itself."""
    (norms,) = check_options([-1])
    assert set(norms) == {"0/forward_rnn", "0/backward_rnn"}
    assert norms["0/forward_rnn"]["h"].shape == (T, B)


@pytest.mark.slow
def test_each_option_of_flax_gives_its_numbers_and_every_gradient():
    check_options(range(len(every_option())))


@pytest.mark.slow
def test_in_double_precision_the_numbers_agree_to_ten_digits():
    with jax.enable_x64(True):
        layers = [as_float64(every_option()[i][0]) for i in (0, 5, 11)]
        calls = [
            jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, case)
            for case in ([X, {}, None], [X, {"seq_lengths": LENGTHS}, drawn(cell(LSTM))])
        ]
        calls.append([calls[0][0], {"seq_lengths": LENGTHS}, None])
        both(lambda: nnx.clone(layers), calls, 1e-10)


# What Flax's own tests of its layers ask for.


def test_a_layer_reads_any_batch_and_gives_an_output_a_step():
    layer = gradlab.RNN(cell(nnx.LSTMCell))
    for batch in (1, 3):
        x = jnp.ones((batch, T, I))
        with Tape().running():
            seen = layer(x, initial_carry=layer.cell.initialize_carry((batch, I), nnx.Rngs(1)))
        assert seen.shape == layer(x).shape == (batch, T, H)


@pytest.mark.parametrize("seen", [False, True])
def test_lengths_order_and_carry_are_those_of_the_cell_stepped_by_hand(seen):
    """Reversed: each example from its own last real step back, and padding stays behind."""
    own = cell(LSTM)
    start = drawn(own)
    layer = gradlab.RNN(own, reverse=True, return_carry=True)
    with Tape().running() if seen else nullcontext():
        carry, outputs = layer(X, initial_carry=start, seq_lengths=LENGTHS)
        _, kept = layer(X, initial_carry=start, seq_lengths=LENGTHS, keep_order=True)
    for b, length in enumerate(map(int, LENGTHS)):
        first, final = (jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], c) for c in (start, carry))
        state, ys = first, []
        for x in X[b, :length][::-1]:
            state, y = own(state, x[None])
            ys.append(y)
        agree(final, state, 1e-5)
        agree(outputs[b, :length], jnp.concatenate(ys), 1e-5)
        agree(kept[b, :length], jnp.concatenate(ys[::-1]), 1e-5)


class Plain(nnx.Module):
    """A user's cell that derives from nothing of Flax's, with a counter common to the batch."""

    num_feature_axes = 1

    def __init__(self, rngs):
        self.dense = nnx.Linear(I + H, H, rngs=rngs)

    def initialize_carry(self, input_shape, rngs):
        return jnp.zeros((*input_shape[:-1], H)), jnp.zeros((), jnp.int32)

    def __call__(self, carry, inputs):
        h = jnp.tanh(self.dense(jnp.concatenate([inputs, carry[0]], axis=-1)))
        return (h, carry[1] + 1), h


@pytest.mark.parametrize("seen", [False, True])
def test_a_cell_of_ones_own_whose_counter_has_no_batch_gives_its_last_carry(seen):
    """Where nnx.RNN ends with an error."""
    layer = gradlab.RNN(Plain(nnx.Rngs(0)), return_carry=True)
    with Tape().running() if seen else nullcontext():
        (h, count), outputs = layer(X, seq_lengths=LENGTHS)
    np.testing.assert_array_equal(h, outputs[jnp.arange(B), LENGTHS - 1])
    assert count == T


class Dropping(nnx.OptimizedLSTMCell):
    """An LSTM that drops a part of its memory, the same part at each step."""

    def __init__(self, rngs):
        super().__init__(I, H, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=False, rng_collection="drop", rngs=rngs)

    def __call__(self, carry, x):
        c, h = carry
        return super().__call__((self.drop(c), h), x)


def test_one_mask_for_all_steps_and_another_at_the_next_call():
    layers = [
        kind(Dropping(nnx.Rngs(0, drop=1)), broadcast_rngs="drop")
        for kind in (nnx.RNN, gradlab.RNN)
    ]
    for calls in (1, 2):
        due = layers[0](X)
        with Tape().running():
            seen = layers[1](X)
        agree(seen, due, 1e-6)
        assert layers[1].cell.drop.rngs.count[...] == calls


def test_linen_gives_the_same_numbers_from_the_same_weights():
    theirs = linen.RNN(linen.LSTMCell(H))
    variables = theirs.init(jax.random.key(0), X)
    weights = variables["params"]["cell"]
    own = LSTM(I, H, rngs=nnx.Rngs(0))
    for dense, name in ((own.dense_i, "i"), (own.dense_h, "h")):
        kernels = [weights[name + gate]["kernel"] for gate in "ifgo"]
        dense.kernel[...] = jnp.concatenate(kernels, axis=-1)
    own.dense_h.bias[...] = jnp.concatenate([weights["h" + gate]["bias"] for gate in "ifgo"])
    agree(gradlab.RNN(own)(X), theirs.apply(variables, X), 1e-5)


def test_a_layer_of_both_directions_joins_adds_and_gives_both_carries():
    layers = nnx.RNN(cell()), nnx.RNN(cell(GRU))
    joined = gradlab.watch(nnx.Bidirectional(*layers, return_carry=True))
    alike = gradlab.Bidirectional(*2 * [joined.forward_rnn], merge_fn=jnp.subtract)
    with Tape().running():
        (forward, backward), outputs = joined(X)
        assert outputs.shape == (B, T, 2 * H)
        assert forward.h.shape == backward.h.shape == (B, H)
        agree(outputs[:, -1, :H], forward.h, 1e-6)
        agree(outputs[:, 0, H:], backward.h, 1e-6)
        same = alike(jnp.broadcast_to(X[:, :1], X.shape))
    agree(same, -same[:, ::-1], 1e-5)


# Where there is no tape, or it does not reach.


def test_without_a_tape_every_derivative_can_be_taken():
    theirs, ours = nnx.RNN(cell()), gradlab.RNN(cell())

    def curved(layer):
        graph, params, rest = nnx.split(layer, nnx.Param, ...)

        def loss(x):
            return weighed(nnx.merge(graph, params, rest, copy=True)(x))

        pushed = jax.jvp(jax.grad(loss), (X,), (jnp.ones_like(X),))[1]
        pulled = jax.grad(lambda x: jnp.sum(jax.grad(loss)(x)))(X)
        return pushed, pulled

    for found, due in zip(curved(ours), curved(theirs), strict=True):
        agree(found, due, 1e-6)


class Wrapped(nnx.Module):
    """A layer within a transformation, and one beside it."""

    def __init__(self, transform):
        self.inner, self.outer = nnx.RNN(cell()), nnx.RNN(cell(width=H))
        self.transform = transform

    def __call__(self, x):
        return self.outer(self.transform(lambda layer, x: layer(x))(self.inner, x))


@pytest.mark.parametrize(
    "transform", [nnx.jit, pytest.param(nnx.remat, marks=pytest.mark.slow)], ids=["jit", "remat"]
)
def test_a_layer_within_a_transformation_runs_unseen_and_it_is_told(transform, caplog):
    tapes._tell.cache_clear()
    theirs, ours = Wrapped(transform), gradlab.watch(Wrapped(transform))

    def loss(module, x):
        return weighed(module(x))

    due = nnx.value_and_grad(loss, argnums=(0, 1))(theirs, X)
    value, gradients, norms = taped(loss, ours, X)
    agree((value, tuple(gradients)), due, 1e-5)
    assert set(norms) == {"outer"}
    (said,) = [line for line in caplog.messages if "cannot see inner" in line]
    assert "transformation" in said


def test_layers_over_layers_and_over_examples_are_flax_s():
    """nnx.vmap over a batch of layers and over examples, nnx.scan over layers."""

    def stacked(kind):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return kind(SimpleRNN(H, H, rngs=rngs))

        layers = make(nnx.Rngs(0))
        x = X[..., :H]
        side_by_side = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(layers, x)
        through = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return side_by_side, through(x, layers)

    agree(stacked(gradlab.RNN), stacked(nnx.RNN), 1e-6)
    layer = gradlab.RNN(cell())
    alone = nnx.vmap(lambda layer, x: layer(x), in_axes=(None, 0))
    agree(alone(layer, X), layer(X), 1e-6)


# Exponents from layer to layer.


class Pyramid(nnx.Module):
    """Both directions, joined, are read by two layers; in every LSTM f is exactly one half."""

    def __init__(self, hidden=2):
        def lstm(width, seed):
            own = nnx.OptimizedLSTMCell(width, hidden, rngs=nnx.Rngs(seed))
            for dense in (own.dense_i, own.dense_h):
                kernel = dense.kernel
                kernel[...] = kernel[...].at[:, hidden : 2 * hidden].set(0.0)
            kernel = own.dense_h.kernel
            kernel[...] = 0.01 * kernel[...]
            return nnx.RNN(own)

        self.below = nnx.Bidirectional(lstm(I, 0), lstm(I, 1))
        self.one, self.other = lstm(2 * hidden, 2), lstm(2 * hidden, 3)

    def __call__(self, x):
        joined = self.below(x)
        return self.one(joined)[:, -1] + self.other(joined)[:, -1] * 3


def nudged(cell, x, nudges):
    """One LSTM over ``(T, B, I)``, numbers added to each of its states."""

    def step(carry, read):
        (c, h), _ = cell(carry, read[0])
        c, h = c + read[1]["c"], h + read[1]["h"]
        return (c, h), h

    zeros = jnp.zeros((x.shape[1], cell.hidden_features), x.dtype)
    return jax.lax.scan(step, (zeros, zeros), (x, nudges))[1]


def test_between_layers_an_adjoint_keeps_its_exponent():
    """500 steps of one half: 10^-150, where float32 ends at 10^-38."""
    module, steps = Pyramid(), 500
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, steps, I)), jnp.float32)

    def loss(module, x):
        return jnp.sum(module(x))

    _, (gradient, _), norms = nnx.jit(lambda m, x: taped(loss, m, x))(gradlab.watch(module), x)
    with jax.enable_x64(True):
        wide = as_float64(Pyramid())

        def due(nudges):
            read = jnp.asarray(np.asarray(x, np.float64)).swapaxes(0, 1)
            forward, backward = wide.below.forward_rnn.cell, wide.below.backward_rnn.cell
            up = nudged(forward, read, nudges["below/forward_rnn"])
            down = nudged(backward, read[::-1], nudges["below/backward_rnn"])[::-1]
            joined = jnp.concatenate([up, down], axis=-1)
            one, other = (
                nudged(rnn.cell, joined, nudges[name])
                for rnn, name in ((wide.one, "one"), (wide.other, "other"))
            )
            return jnp.sum(one[-1] + 3 * other[-1])

        zeros = {name: {state: jnp.zeros((steps, 2, 2)) for state in "ch"} for name in norms}
        adjoints = jax.jit(jax.grad(due))(zeros)
    for name, states in norms.items():
        for state, log2 in states.items():
            with np.errstate(divide="ignore"):
                wanted = np.log10(np.linalg.norm(adjoints[name][state], axis=-1))
            found = np.asarray(log2) * np.log10(2)
            real = np.isfinite(wanted)
            np.testing.assert_array_equal(np.isfinite(found), real)
            np.testing.assert_allclose(found[real], wanted[real], atol=0.01)
    assert np.min(norms["below/forward_rnn"]["c"][0]) * np.log10(2) < -148
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_other_code_between_two_layers_takes_plain_numbers():
    """The same gradient as with a port, where float32 holds it."""
    lower, upper = gradlab.RNN(cell()), gradlab.RNN(cell(width=H, seed=1))
    upper.path = "upper"

    def direct(lower, upper, x):
        return weighed(upper(lower(x)))

    def apart(lower, upper, x):
        return weighed(upper(1.0 * lower(x)))

    found, due = (taped(loss, lower, upper, X) for loss in (direct, apart))
    agree(found, due, 1e-5)
