"""`gradlab.analyze`: every probe on one batch, for any cell, as a recorded run would have it."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradlab
from gradlab import BadInput, SequenceModel, analysis
from gradlab.cells import LSTM, FeedForward, SimpleRNN
from gradlab.tasks import Adding
from gradlab.training.optimizer import Optimizer
from gradlab.training.step import Steps

B, T, I, H = 3, 12, 2, 4  # noqa: E741
CHEAP = ["adjoint", "adjoint_slope", "memory_horizon", "grad_norm"]


def inputs(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, T, I))


def last_square(outputs):
    return jnp.sum(jnp.square(outputs[:, -1]), axis=-1)


class Quiet(nnx.RNNCellBase):
    """A user's own cell: a bare array for a state, an output that is not the state, no gates."""

    num_feature_axes = 1

    def __init__(self, in_features, hidden_features, *, rngs):
        self.in_features, self.hidden_features = in_features, hidden_features
        self.dense = nnx.Linear(in_features + hidden_features, hidden_features, rngs=rngs)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], self.hidden_features))

    def __call__(self, carry, x):
        state = jnp.sin(self.dense(jnp.concatenate([x, carry], -1)))
        return state, 2 * state


@pytest.mark.parametrize("cell", [nnx.OptimizedLSTMCell, FeedForward, Quiet])
def test_every_probe_on_any_cell(cell):
    """Those of conf/model have their oracles in tests/probes; here are three that are unlike."""
    found = gradlab.analyze(cell(I, H, rngs=nnx.Rngs(0)), inputs(), last_square)
    assert found.sizes["t"] == T
    assert found["lag"].values.tolist() == list(range(T))[::-1]
    for name, variable in found.data_vars.items():
        assert variable.attrs["units"], name
        assert variable.attrs["long_name"], name
        assert (variable.attrs["units"] == "log10") == ("_log10" in str(name)), name
        assert cell is not nnx.OptimizedLSTMCell or not np.isnan(variable).all(), name
    left_out = json.loads(found.attrs["probes_left_out"])
    assert "update_ratio" in left_out
    assert ("forget_path" in left_out) == ("forget_path_log10" not in found)
    assert {"adj_h_log10", "long_jacobian_log10", "lyapunov_exponent"} <= set(found)


@pytest.mark.slow
def test_it_equals_what_a_run_records():
    """One batch by way of a training step, and the same batch by hand."""
    task = Adding(length=T, held_out_examples=2)
    model = SequenceModel(
        LSTM, features=2, hidden=H, layers=1, outputs=1, readout="last", rngs=nnx.Rngs(1)
    )
    names = [name for name in analysis.probe_names() if name not in ("update_ratio", "clipping")]
    probes = {name: analysis.probe_class(name)() for name in names if name not in PLAIN_ONLY}
    optimizer = Optimizer(optax.adam, steps=5, learning_rate=1e-3)
    steps = Steps(model, task, optimizer, probes, B, examples=B)
    state = steps.start(jax.random.key(0))
    _, report, recorded = jax.jit(steps.probe)(state, ())
    recorded |= jax.jit(steps.measure)(state, ())
    batch = steps.draw(state, ())
    found = gradlab.analyze(
        model, batch.inputs, batch.targets, probes=list(probes.values()), time_major=True
    )
    assert set(found) == set(recorded)
    assert found.attrs["loss"] == pytest.approx(float(report.loss), rel=1e-5)
    for name in recorded:
        if name.startswith(("long_range_snr", "noise_horizon")):
            continue  # judged against the noise of a training batch there, of one example here
        np.testing.assert_allclose(
            found[name], recorded[name], rtol=2e-3, atol=2e-3, err_msg=str(name)
        )


PLAIN_ONLY = ("mean_field", "pascanu_bound")


def test_batch_first_and_time_first_agree():
    cell = LSTM(I, H, rngs=nnx.Rngs(0))
    one = gradlab.analyze(cell, inputs(), last_square, probes=CHEAP)
    two = gradlab.analyze(
        cell,
        jnp.swapaxes(inputs(), 0, 1),
        lambda outputs: jnp.sum(jnp.square(outputs[-1]), axis=-1),
        probes=CHEAP,
        time_major=True,
    )
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_targets_are_a_mean_squared_error():
    cell = SimpleRNN(I, H, rngs=nnx.Rngs(0))
    last = jax.random.normal(jax.random.key(1), (B, H))
    every = jax.random.normal(jax.random.key(2), (B, T, H))
    pairs = [
        (last, lambda y: jnp.mean(jnp.square(y[:, -1] - last), -1)),
        (every, lambda y: jnp.mean(jnp.square(y - every), (1, 2))),
    ]
    for targets, loss in pairs:
        one = gradlab.analyze(cell, inputs(), targets, probes=["adjoint"])
        two = gradlab.analyze(cell, inputs(), loss, probes=["adjoint"])
        assert one.attrs["loss"] == pytest.approx(two.attrs["loss"], rel=1e-5)
        np.testing.assert_allclose(one["adj_h_log10"], two["adj_h_log10"], atol=1e-4)


def test_an_rnn_layer_is_its_cell():
    cell = nnx.OptimizedLSTMCell(I, H, rngs=nnx.Rngs(0))
    one = gradlab.analyze(cell, inputs(), last_square, probes=CHEAP)
    two = gradlab.analyze(nnx.RNN(cell), inputs(), last_square, probes=CHEAP)
    np.testing.assert_array_equal(one["adj_c_log10"], two["adj_c_log10"])


def test_the_second_call_compiles_nothing():
    cell = SimpleRNN(I, H, rngs=nnx.Rngs(0))
    gradlab.analyze(cell, inputs(), last_square, probes=CHEAP)
    before = analysis._measure._cache_size()
    gradlab.analyze(cell, inputs(seed=1), last_square, probes=CHEAP)
    other = SimpleRNN(I, H, rngs=nnx.Rngs(1))
    gradlab.analyze(other, inputs(seed=1), last_square, probes=CHEAP)
    assert analysis._measure._cache_size() == before


def test_nothing_underflows_right_to_the_first_of_2000_steps():
    cell = SimpleRNN(1, 1, activation_fn="identity", rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.full((1, 1), 0.5)
    x = jnp.zeros((2, 2000, 1))
    loss = lambda y: y[:, -1, 0]  # noqa: E731
    found = gradlab.analyze(cell, x, loss, probes=["adjoint", "long_jacobian"])
    for name in ("adj_h_log10", "long_jacobian_log10"):
        assert float(found[name][0, 0]) == pytest.approx(1999 * np.log10(0.5), abs=1e-2)


def test_a_trajectory_that_leaves_the_floats_gives_what_is_finite():
    cell = SimpleRNN(1, 1, activation_fn="identity", rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.full((1, 1), 1e10)
    cell.dense_i.kernel[...] = jnp.ones((1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradlab.analyze(cell, jnp.ones((2, 8, 1)), last_square)
    assert int(found["trajectory_end"][0]) == 4  # 1e10, 1e20, 1e30 and then beyond 3.4e38
    assert float(found["step_jacobian_log10"][0, 1]) == pytest.approx(10, abs=1e-3)
    assert np.isfinite(found["lyapunov_exponent"]).all()


# Saying no.


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((jnp.ones((B, T)), last_square), {}, "an array (B, T, 2)"),
        ((jnp.ones((B, T, I + 1)), last_square), {}, "an array (B, T, 2)"),
        ((jnp.ones((B, 0, I)), last_square), {}, "inputs"),
        ((jnp.ones((B, T, I)), jnp.sum), {}, "one value per example, (3,)"),
        ((jnp.ones((B, T, I)), jnp.ones((B, T))), {}, "targets (12, 3, 4) (time first)"),
        ((jnp.ones((B, T, I)), last_square), {"probes": "fool"}, "'standard', 'full', 'research'"),
        ((jnp.ones((B, T, I)), last_square), {"probes": "adjoint"}, "probes=['adjoint']"),
        ((jnp.ones((B, T, I)), last_square), {"probes": ["adjoin"]}, "adjoint"),
        ((jnp.ones((B, T, I)), last_square), {"probes": ["forget_path"]}, "SimpleRNN"),
        ((jnp.ones((B, T, I)), last_square), {"probes": ["update_ratio"]}, "no optimizer"),
    ],
)
def test_bad_input_is_named(arguments, options, says):
    with pytest.raises(BadInput) as refused:
        gradlab.analyze(SimpleRNN(I, H, rngs=nnx.Rngs(0)), *arguments, **options)
    assert says in str(refused.value)


def test_something_that_is_no_cell_is_refused():
    with pytest.raises(BadInput, match="RNNCellBase"):
        gradlab.analyze(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), inputs(), last_square)
