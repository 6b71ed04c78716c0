"""gradlab's layers do what Flax's do, with every option, and see what is under way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradlab
from gradlab.bptt.unroll import make_taps
from gradlab.cells import GRU, LSTM, SimpleRNN
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
            name: make_taps([[call.cell]], call.run.traces[0][0].inputs.shape)[0][0]
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
    """The most of them at once; the slow test has each by itself."""
    first, last = check_options([5, 12])
    assert first["0"]["c"].shape == (T, B)
    assert set(last) == {"1/forward_rnn", "1/backward_rnn"}


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


def stepped(cell, carry, xs):
    """The cell by hand: the carry after each step, and the outputs."""
    carries, outputs = [], []
    for x in xs:
        carry, y = cell(carry, x)
        carries.append(carry)
        outputs.append(y)
    return carries, outputs


@pytest.mark.parametrize("seen", [False, True])
def test_lengths_order_and_carry_are_those_of_the_cell_stepped_by_hand(seen):
    """Reversed: each example from its own last real step back, and padding stays behind."""
    own = cell(LSTM)
    layer = gradlab.RNN(own, reverse=True, return_carry=True)
    tape = Tape()
    with tape.running() if seen else Tape().running():
        pass
    start = drawn(own)
    if seen:
        with tape.running():
            carry, outputs = layer(X, initial_carry=start, seq_lengths=LENGTHS)
    else:
        carry, outputs = layer(X, initial_carry=start, seq_lengths=LENGTHS)
    for b, length in enumerate(map(int, LENGTHS)):
        first = jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], start)
        carries, ys = stepped(own, first, X[b, :length][::-1, None])
        agree(jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], carry), carries[-1], 1e-5)
        agree(outputs[b, :length], jnp.concatenate(ys), 1e-5)
    kept = layer(X, initial_carry=start, seq_lengths=LENGTHS, keep_order=True)[1]
    agree(kept[1, :2], outputs[1, :2][::-1], 1e-6)
