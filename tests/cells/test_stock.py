"""Recurrent matrices and plain networks against the cells that they are read from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab import cells
from gradlab.cells import stock
from gradlab.cells.rnn import ACTIVATIONS
from tests.models import every_model
from tests.oracles import as_float64

WIDTH, HIDDEN = 2, 9
NESTED = {"GRUResetBefore"}
"""Cells in which one matrix acts on what another one has gated."""


def drawn(make, seed=0):
    """A float64 cell with every parameter random, a random carry for it, and an input."""
    graph, state = nnx.split(as_float64(make(WIDTH, HIDDEN, rngs=nnx.Rngs(seed))))
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape)), state)
    cell = nnx.merge(graph, state)
    carry = cell.initialize_carry((1, WIDTH), nnx.Rngs(0))
    carry = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=HIDDEN)), carry)
    return cell, carry, jnp.asarray(rng.normal(size=WIDTH))


def with_h(carry, h):
    leaves, tree = jax.tree.flatten(carry)
    leaves[-1] = h
    return jax.tree.unflatten(tree, leaves)


def h_of(carry):
    return jax.tree.leaves(carry)[-1]


def left_over(jacobian, matrices):
    """What of each row's off-diagonal part is no combination of the same rows of the matrices."""
    worst = 0.0
    for i, row in enumerate(jacobian):
        others = np.arange(len(row)) != i
        basis = np.array([np.asarray(matrix)[i, others] for matrix in matrices])
        basis = basis.reshape(-1, others.sum()).T
        fitted = basis @ np.linalg.lstsq(basis, row[others])[0]
        worst = max(worst, np.abs(row[others] - fitted).max())
    return worst


@every_model()
def test_units_are_mixed_by_the_named_matrices_and_by_nothing_else(make):
    with jax.enable_x64(True):
        cell, carry, x = drawn(make)
        matrices = stock.recurrent_matrices(cell)
        assert all(matrix.shape == (HIDDEN, HIDDEN) for matrix in matrices.values())
        if type(cell).__name__ in NESTED:
            pytest.skip("see the test of the pre-activations")

        def new(h):
            return jnp.stack(jax.tree.leaves(cell(with_h(carry, h), x)[0]))

        jacobians = np.asarray(jax.jacfwd(new)(h_of(carry)))
    own, transposed = list(matrices.values()), [matrix.T for matrix in matrices.values()]
    for jacobian in jacobians:
        assert left_over(jacobian, own) < 1e-12
    if own:
        assert max(left_over(jacobian, transposed) for jacobian in jacobians) > 1e-3
        assert max(left_over(jacobian, own[1:]) for jacobian in jacobians) > 1e-3


@every_model()
def test_a_gate_moves_with_h_by_its_matrix(make):
    with jax.enable_x64(True):
        cell, carry, x = drawn(make)
        matrices = stock.recurrent_matrices(cell)
        h = h_of(carry)
        at_h = stock.gates(cell, carry, x)
        at_0 = stock.gates(cell, with_h(carry, jnp.zeros_like(h)), x)
        for name in stock.gate_view(cell).names:
            if name in matrices:
                moved = jax.scipy.special.logit(getattr(at_h, name)) - jax.scipy.special.logit(
                    getattr(at_0, name)
                )
                np.testing.assert_allclose(moved, matrices[name] @ h, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("make", "name", "after_reset"),
    [
        (cells.LSTM, "c_tilde", None),
        (nnx.LSTMCell, "c_tilde", None),
        (nnx.OptimizedLSTMCell, "c_tilde", None),
        (cells.GRU, "n", False),
        (nnx.GRUCell, "n", False),
        (cells.GRUResetBefore, "n", True),
    ],
)
def test_the_candidate_moves_with_h_by_its_matrix(make, name, after_reset):
    with jax.enable_x64(True):
        cell, carry, x = drawn(make)
        h = h_of(carry)
        at_h = stock.gates(cell, carry, x)
        at_0 = stock.gates(cell, with_h(carry, jnp.zeros_like(h)), x)
        moved = jnp.arctanh(getattr(at_h, name)) - jnp.arctanh(getattr(at_0, name))
        matrix = stock.recurrent_matrices(cell)[name]
        want = matrix @ h
        if after_reset is not None:
            want = matrix @ (at_h.r * h) if after_reset else at_h.r * (matrix @ h)
        np.testing.assert_allclose(moved, want, atol=1e-12)


def test_names_of_the_matrices():
    def names(make):
        return tuple(stock.recurrent_matrices(make(WIDTH, HIDDEN, rngs=nnx.Rngs(0))))

    assert names(cells.SimpleRNN) == names(nnx.SimpleCell) == ("h",)
    gates = ("i", "f", "c_tilde", "o")
    assert set(names(cells.LSTM)) == set(names(nnx.LSTMCell)) == set(gates)
    assert names(nnx.OptimizedLSTMCell) == names(cells.LSTM)
    assert names(cells.GRU) == names(nnx.GRUCell) == names(cells.GRUResetBefore) == ("r", "z", "n")
    assert names(cells.FeedForward) == ()


@every_model()
def test_a_plain_network_is_phi_of_w_h_and_the_drive(make):
    with jax.enable_x64(True):
        cell, carry, x = drawn(make)
        plain = stock.plain_rnn(cell)
        if plain is None:
            assert not isinstance(cell, cells.SimpleRNN | nnx.SimpleCell)
            return
        assert plain.activation == "tanh"
        (matrix,) = stock.recurrent_matrices(cell).values()
        want = jnp.tanh(matrix @ h_of(carry) + plain.drive(x))
        np.testing.assert_allclose(h_of(cell(carry, x)[0]), want, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_steepest_slope(name):
    rnn = cells.SimpleRNN(WIDTH, HIDDEN, activation_fn=name, rngs=nnx.Rngs(0))
    plain = stock.plain_rnn(rnn)
    slopes = jax.vmap(jax.grad(ACTIVATIONS[name]))(jnp.linspace(-3, 3, 61))
    assert plain.activation == name
    assert plain.steepest == pytest.approx(float(slopes.max()), rel=1e-6)


def test_an_activation_of_ones_own_has_no_name_and_a_residual_cell_is_not_plain():
    own = cells.SimpleRNN(WIDTH, HIDDEN, activation_fn=jnp.sin, rngs=nnx.Rngs(0))
    plain = stock.plain_rnn(own)
    assert plain.activation == ""
    assert np.isnan(plain.steepest)
    assert stock.plain_rnn(nnx.SimpleCell(WIDTH, HIDDEN, residual=True, rngs=nnx.Rngs(0))) is None
    assert stock.plain_rnn(cells.LSTM(WIDTH, HIDDEN, rngs=nnx.Rngs(0))) is None


class Mine(nnx.RNNCellBase):
    """A cell of a user's own, which says nothing about itself."""


def test_of_a_cell_that_is_not_known_nothing_is_seen():
    assert stock.recurrent_matrices(Mine()) == {}
    assert stock.plain_rnn(Mine()) is None
    assert stock.gate_view(Mine()).names == ()
