"""What Flax's own tests of its cells ask for, asked of gradlab's in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from gradlab.cells import GRU, LSTM, FeedForward, GRUResetBefore, SimpleRNN

EVERY = [LSTM, GRU, GRUResetBefore, SimpleRNN, FeedForward]
B, I, H = 2, 3, 4  # noqa: E741
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, I)), jnp.float32)


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", EVERY)
def test_a_cell_in_half_precision_is_a_rounded_one(kind, half):
    """Its recurrent kernels are the orthogonal ones, which no machine draws in half precision."""
    cell, single = (kind(I, H, param_dtype=own, rngs=nnx.Rngs(0)) for own in (half, jnp.float32))
    near = float(jnp.finfo(half).eps)
    nnx.update(single, jax.tree.map(lambda a: a.astype(jnp.float32), nnx.state(cell)))
    drawn = [dense.kernel[...] for dense in (getattr(cell, "dense_h", None),) if dense is not None]
    for kernel in drawn:
        first = kernel.astype(jnp.float32)
        np.testing.assert_allclose(first @ first.T, np.eye(H), atol=4 * near)
    x = X.astype(half)
    carry, y = cell(cell.initialize_carry(x.shape), x)
    _, due = single(single.initialize_carry(x.shape), x.astype(jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves((carry, y))} == {jnp.dtype(half)}
    np.testing.assert_allclose(y.astype(jnp.float32), due, atol=8 * near)


@pytest.mark.parametrize("kind", EVERY)
def test_a_state_keeps_its_type_whatever_the_cell_calculates_in(kind):
    """So that a cell of any types can be carried through a scan."""
    mixed = {"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}, {"dtype": jnp.float16}
    with jax.numpy_dtype_promotion("standard"):
        for types in mixed:
            cell = kind(I, H, rngs=nnx.Rngs(0), **types)
            start = cell.initialize_carry(X.shape)
            carry, _ = cell(start, X)
            assert jax.tree.map(jnp.result_type, carry) == jax.tree.map(jnp.result_type, start)


@pytest.mark.parametrize("form", [tuple, list])
def test_a_carry_comes_back_in_the_form_it_was_given(form):
    cell = LSTM(I, H, rngs=nnx.Rngs(0))
    due, _ = cell(cell.initialize_carry(X.shape), X)
    carry, _ = cell(form(cell.initialize_carry(X.shape)), X)
    assert type(carry) is form
    for found, own in zip(carry, due, strict=True):
        np.testing.assert_array_equal(found, own)
    bare, same = GRU(I, H, rngs=nnx.Rngs(0))(jnp.zeros((B, H)), X)
    assert bare is same


class Dropping(LSTM):
    """A user's subclass, which takes Flax's plain pair and gives it back."""

    def __call__(self, carry, inputs):
        c, h = carry
        (c, h), y = super().__call__((c, h), inputs)
        return (0.5 * c, h), y


def test_a_subclass_may_return_a_plain_pair():
    outputs = nnx.RNN(Dropping(I, H, rngs=nnx.Rngs(0)))(jnp.stack([X, X], axis=1))
    whole = nnx.RNN(LSTM(I, H, rngs=nnx.Rngs(0)))(jnp.stack([X, X], axis=1))
    np.testing.assert_array_equal(outputs[:, 0], whole[:, 0])
    assert not np.allclose(outputs[:, 1], whole[:, 1])


def test_a_first_carry_is_drawn_and_activations_are_ones_own():
    cell = LSTM(I, H, gate_fn=jax.nn.relu, activation_fn=jax.nn.elu, rngs=nnx.Rngs(0))
    carry = cell.initialize_carry((1, I), nnx.Rngs(0), carry_init=nnx.initializers.ones)
    assert all(bool(jnp.all(leaf == 1)) and leaf.shape == (1, H) for leaf in carry)
    blocks = cell.dense_i(X[:1]) + cell.dense_h(carry.h)
    i, f, g, o = np.split(np.asarray(blocks), 4, axis=-1)
    c = np.maximum(f, 0) + np.maximum(i, 0) * np.where(g > 0, g, np.expm1(g))
    due = np.maximum(o, 0) * np.where(c > 0, c, np.expm1(c))
    np.testing.assert_allclose(cell(carry, X[:1])[1], due, rtol=1e-5, atol=1e-6)


def test_linen_takes_the_same_step_from_the_same_weights():
    theirs, own = linen.LSTMCell(H), LSTM(I, H, rngs=nnx.Rngs(0))
    state = own.initialize_carry(X.shape, nnx.Rngs(1), nnx.initializers.normal(1.0))
    variables = theirs.init(jax.random.key(0), tuple(state), X)
    weights = variables["params"]
    for dense, name in ((own.dense_i, "i"), (own.dense_h, "h")):
        kernels = [weights[name + gate]["kernel"] for gate in "ifgo"]
        dense.kernel[...] = jnp.concatenate(kernels, axis=-1)
    own.dense_h.bias[...] = jnp.concatenate([weights["h" + gate]["bias"] for gate in "ifgo"])
    due, _ = theirs.apply(variables, tuple(state), X)
    for found, wanted in zip(own(state, X)[0], due, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
