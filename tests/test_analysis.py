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
from gradlab.bptt.unroll import unroll
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


@pytest.mark.parametrize(
    "cell",
    [
        FeedForward,
        *(pytest.param(c, marks=pytest.mark.slow) for c in (Quiet, nnx.OptimizedLSTMCell)),
    ],
)
def test_every_probe_on_any_cell(cell):
    """Those of conf/model have their oracles in tests/probes; here are three that are unlike."""
    found = gradlab.analyze(cell(I, H, rngs=nnx.Rngs(0)), inputs(), last_square)
    assert found.sizes["t"] == T
    assert found["lag"].values.tolist() == list(range(T))[::-1]
    for name, variable in found.data_vars.items():
        assert variable.attrs["units"], name
        assert variable.attrs["long_name"], name
        assert (variable.attrs["units"] == "log10") == ("_log10" in str(name)), name
        told = cell is not nnx.OptimizedLSTMCell or str(name).endswith("_spread")  # of one example
        assert told or not np.isnan(variable).all(), name
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


# Nothing stale, and nothing compiled twice.


@pytest.fixture
def compilations():
    """Grows by one entry for each program that XLA compiles."""
    found = []

    def listen(name, *_, **__):
        if "backend_compile" in name:
            found.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


STALE = ["curvature", "grad_norm"]
"""What knows the first and the second derivative of the loss."""


def measured(loss, cell, compilations=None):
    """Loss and curvature, and how many programs were compiled for them."""
    before = len(compilations or ())
    found = gradlab.analyze(cell, inputs(), loss, probes=STALE)
    compiled = len(compilations or ()) - before
    return found.attrs["loss"], float(found["gradient_curvature"]), compiled


def test_a_readout_that_was_trained_counts_as_it_is_now(compilations):
    cell, readout = nnx.SimpleCell(I, H, rngs=nnx.Rngs(0)), nnx.Linear(H, 1, rngs=nnx.Rngs(1))
    losses = [lambda y, power=2: readout(y[:, -1])[:, 0] ** power for _ in range(10)]
    first, bend, _ = measured(losses[0], cell)
    again = [measured(loss, cell, compilations) for loss in losses]
    assert again == [(first, bend, 0)] * 10
    readout.kernel[...] *= 100
    trained, steeper, compiled = measured(losses[0], cell, compilations)
    assert trained == pytest.approx(1e4 * first, rel=1e-5)
    assert steeper == pytest.approx(1e4 * bend, rel=1e-4)
    assert trained == pytest.approx(float(jnp.mean(losses[0](nnx.RNN(cell)(inputs())))), rel=1e-5)
    assert compiled == 0


def test_other_parameters_and_inputs_compile_nothing(compilations):
    cells = [SimpleRNN(I, H, rngs=nnx.Rngs(seed)) for seed in range(2)]
    gradlab.analyze(cells[0], inputs(), last_square, probes=CHEAP)
    compilations.clear()
    found = [gradlab.analyze(cell, inputs(), last_square, probes=CHEAP) for cell in cells]
    assert not compilations
    assert found[0].attrs["loss"] != found[1].attrs["loss"]


@pytest.mark.slow
def test_whatever_a_loss_looks_up_counts_as_it_is_now(compilations):
    cell = nnx.SimpleCell(I, H, rngs=nnx.Rngs(0))
    array, number, key = np.ones(H, np.float32), [1.0], [jax.random.key(0)]
    within = jax.custom_vjp(lambda y: y)  # a rule whose numbers no forward program shows
    within.defvjp(lambda y: (y, None), lambda _, given: (number[0] * given,))

    def loss(outputs):
        drawn = jax.random.normal(key[0], (H,))
        host = jax.pure_callback(
            lambda: np.float32(number[0]), jax.ShapeDtypeStruct((), np.float32)
        )
        return jnp.sum(within(outputs[:, -1]) ** 2 * (array * drawn)[None], -1) + host

    def now():
        return float(jnp.mean(loss(nnx.RNN(cell)(inputs()))))

    for change in (
        lambda: None,
        lambda: array.__setitem__(0, 5),
        lambda: number.__setitem__(0, 3.0),
        lambda: key.__setitem__(0, jax.random.key(1)),
    ):
        change()
        assert measured(loss, cell)[0] == pytest.approx(now(), rel=1e-5)

    ruled = lambda outputs: jnp.sum(within(outputs[:, -1]), -1)  # noqa: E731
    norms = []
    for factor in (1, 1, 3):
        number[0], before = factor, len(compilations)
        norms.append(gradlab.analyze(cell, inputs(), ruled, probes=["grad_norm"])["grad_norm"])
    assert len(compilations) == before + 1
    np.testing.assert_allclose(norms[2], 3 * norms[1], rtol=1e-5)


def test_functions_with_rules_of_their_own_compile_once(compilations):
    cell = nnx.SimpleCell(I, H, rngs=nnx.Rngs(0))

    def loss():
        return lambda y: jnp.sum(nnx.relu(y[:, -1]), -1) + jax.nn.logsumexp(y[:, -1], -1)

    first = measured(loss(), cell)
    assert measured(loss(), cell, compilations) == (*first[:2], 0)


@pytest.mark.slow
def test_what_a_cell_closes_over_counts_as_it_is_now():
    array, variable = np.ones(H, np.float32), nnx.Variable(jnp.float32(1))
    cell = nnx.SimpleCell(
        I, H, activation_fn=lambda a: jnp.tanh(a * array[None] * variable[...]), rngs=nnx.Rngs(0)
    )
    for change in (
        lambda: None,
        lambda: array.__setitem__(0, 2),
        lambda: variable.set_value(jnp.float32(3)),
    ):
        change()
        now = float(jnp.mean(last_square(nnx.RNN(cell)(inputs()))))
        assert measured(last_square, cell)[0] == pytest.approx(now, rel=1e-5)


# Lengths, and where the state begins.

LENGTHS = np.array([T, 5, 9])
FEW = ["adjoint", "adjoint_slope", "long_jacobian", "singular_spectrum", "state_norm"]


def ends_square(outputs):
    return jnp.sum(jnp.square(outputs[jnp.arange(len(outputs)), LENGTHS - 1]), -1)


@pytest.mark.parametrize("cell", [LSTM, pytest.param(Quiet, marks=pytest.mark.slow)])
def test_padding_is_as_if_it_were_not_there(cell):
    """Against each example by itself, without its padding; the padding itself is noise."""
    cell, x = cell(I, H, rngs=nnx.Rngs(0)), inputs()
    both = gradlab.analyze(cell, x, ends_square, probes=CHEAP, seq_lengths=LENGTHS)
    outputs = nnx.RNN(cell)(x, seq_lengths=LENGTHS)
    assert both.attrs["loss"] == pytest.approx(float(jnp.mean(ends_square(outputs))), rel=1e-5)
    alone = [
        gradlab.analyze(cell, x[e : e + 1, :length], last_square, probes=CHEAP)
        for e, length in enumerate(LENGTHS)
    ]
    for name in ("adj_h_over_lag_log10", "adj_c_over_lag_log10"):
        if name in both:
            far = np.full((3, T), np.nan)
            for e, length in enumerate(LENGTHS):
                far[e, :length] = alone[e][name][0]
            far[far == -np.inf] = np.nan  # of logs, over those with a nonzero value
            some = ~np.isnan(far).all(0)
            want = np.nanmean(far[:, some], 0)
            np.testing.assert_allclose(both[name][0][some], want, atol=1e-4)


def test_targets_know_the_lengths():
    x = inputs()
    for cell in (LSTM(I, H, rngs=nnx.Rngs(0)), Quiet(I, H, rngs=nnx.Rngs(0))):
        outputs = nnx.RNN(cell)(x, seq_lengths=LENGTHS)
        last, every = jnp.ones((B, H)), jnp.ones((B, T, H))
        real = np.float32(np.arange(T)[None, :, None] < LENGTHS[:, None, None])
        ends = outputs[np.arange(B), LENGTHS - 1]
        over = jnp.sum(jnp.square(outputs - 1) * real, (1, 2)) / np.float32(LENGTHS * H)
        for targets, want in ((last, jnp.mean(jnp.square(ends - 1))), (every, jnp.mean(over))):
            found = gradlab.analyze(cell, x, targets, probes=["grad_norm"], seq_lengths=LENGTHS)
            assert found.attrs["loss"] == pytest.approx(float(want), rel=1e-5)


def test_a_loss_that_reads_padding_is_refused():
    cell = LSTM(I, H, rngs=nnx.Rngs(0))
    with pytest.raises(BadInput, match="reads padding"):
        gradlab.analyze(cell, inputs(), last_square, probes=["grad_norm"], seq_lengths=LENGTHS)


@pytest.mark.parametrize("given", [None, "mse", [[1.0], [1.0, 2.0]], object()])
def test_what_is_no_loss_and_no_array_is_refused(given):
    with pytest.raises(BadInput, match="targets_or_loss"):
        gradlab.analyze(LSTM(I, H, rngs=nnx.Rngs(0)), inputs(), given, probes=CHEAP)


@pytest.mark.slow
def test_the_state_begins_where_it_is_told_to():
    """As nnx.RNN has it; a model's list goes by layer and direction."""
    rng, x = np.random.default_rng(0), inputs()
    cell = nnx.OptimizedLSTMCell(I, H, rngs=nnx.Rngs(0))
    carry = tuple(jnp.asarray(rng.normal(size=(2, B, H)), jnp.float32))
    for given in (carry, tuple(leaf[0] for leaf in carry)):
        found = gradlab.analyze(cell, x, last_square, probes=["grad_norm"], initial_carry=given)
        begin = tuple(jnp.broadcast_to(leaf, (B, H)) for leaf in given)
        outputs = nnx.RNN(cell)(x, initial_carry=begin)
        assert found.attrs["loss"] == pytest.approx(float(jnp.mean(last_square(outputs))), rel=1e-5)
    options = {"features": I, "hidden": H, "layers": 2, "outputs": 1, "readout": "last"}
    for initial_state in ("zero", "learned"):
        model = SequenceModel(
            LSTM, **options, bidirectional=True, initial_state=initial_state, rngs=nnx.Rngs(0)
        )
        starts = [[(np.ones(H), np.ones((B, H)))] * 2] * 2
        at = {"probes": ["grad_norm"], "initial_carry": starts}
        found = gradlab.analyze(model, x, jnp.zeros((B, 1)), **at)
        run = unroll(model.layers, jnp.swapaxes(x, 0, 1), start=starts)
        want = float(jnp.mean(jnp.square(model.readout(run.last))))
        assert found.attrs["loss"] == pytest.approx(want, rel=1e-5)
        assert not any("initial_state" in name for name in found["parameter"].values)


def test_a_learned_start_is_measured_as_a_parameter():
    model = SequenceModel(
        SimpleRNN,
        features=I,
        hidden=H,
        layers=1,
        outputs=1,
        readout="last",
        initial_state="learned",
        rngs=nnx.Rngs(0),
    )
    found = gradlab.analyze(model, inputs(), jnp.zeros((B, 1)), probes=["grad_norm"])
    norm = found["grad_norm"].sel(parameter="initial_state/0/0/h")

    def loss(start):
        run = unroll(model.layers, jnp.swapaxes(inputs(), 0, 1), start=[[start]])
        return jnp.mean(jnp.square(model.readout(run.last)))

    want = float(jnp.linalg.norm(jax.grad(loss)(jnp.zeros(H))))
    assert float(norm) == pytest.approx(want, rel=1e-4)


def test_a_route_can_be_cut():
    cell = LSTM(I, H, rngs=nnx.Rngs(0))
    found = {
        route: gradlab.analyze(cell, inputs(), last_square, probes=CHEAP, backward=route)
        for route in ("full", "no_h_path")
    }
    assert found["no_h_path"].attrs["backward"] == "no_h_path"
    assert found["full"].attrs["loss"] == found["no_h_path"].attrs["loss"]
    first = [float(one["adj_c_log10"][0, 0]) for one in found.values()]
    assert first[0] != first[1]


def test_noise_is_that_of_the_batch_that_is_named():
    cell, options = LSTM(I, H, rngs=nnx.Rngs(0)), {"probes": ["gradient_noise"]}
    own = gradlab.analyze(cell, inputs(), last_square, **options)
    larger = gradlab.analyze(cell, inputs(), last_square, batch=100 * B, **options)
    assert (own.attrs["batch"], larger.attrs["batch"]) == (B, 100 * B)
    both = own["long_range_snr_log10"], larger["long_range_snr_log10"]
    finite = np.isfinite(both[0].values)
    assert finite.any()
    np.testing.assert_allclose((both[1] - both[0]).values[finite], 1, atol=1e-4)  # √100 is 10^1


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
        found = gradlab.analyze(cell, jnp.ones((1, 8, 1)), last_square)
    assert int(found["trajectory_end"][0]) == 4  # 1e10, 1e20, 1e30 and then beyond 3.4e38
    assert float(found["step_jacobian_log10"][0, 1]) == pytest.approx(10, abs=1e-3)
    assert np.isfinite(found["lyapunov_exponent"]).all()
    assert "2 examples" in json.loads(found.attrs["probes_left_out"])["gradient_noise"]
    assert "long_range_snr_log10" not in found


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
        ((jnp.ones((1, T, I)), last_square), {"probes": ["gradient_noise"]}, "needs 2 examples"),
        (
            (jnp.ones((B, T, I)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))),
            {},
            "nothing outside of itself",
        ),
        ((jnp.ones((B, T, I)), lambda y, network: y), {}, "a loss of the outputs alone"),
        ((jnp.ones((B, T, I)), last_square), {"seq_lengths": [T, 0, 1]}, "from 1 to 12"),
        ((jnp.ones((B, T, I)), last_square), {"seq_lengths": [T, T + 1, 1]}, "from 1 to 12"),
        ((jnp.ones((B, T, I)), last_square), {"seq_lengths": [T, 1.5, 1]}, "a whole number"),
        ((jnp.ones((B, T, I)), last_square), {"seq_lengths": [True] * B}, "a whole number"),
        ((jnp.ones((B, T, I)), last_square), {"seq_lengths": [T]}, "each of 3 examples"),
        ((jnp.ones((B, T, I)), last_square), {"seq_lengths": [[T], [1, 2]]}, "each of 3 examples"),
        ((jnp.ones((B, T, I)), last_square), {"initial_carry": jnp.ones((B, H + 1))}, "(3, 4)"),
        ((jnp.ones((B, T, I)), last_square), {"initial_carry": (jnp.ones(H),) * 2}, "(3, 4)"),
        ((jnp.ones((B, T, I)), last_square), {"initial_carry": "zero"}, "(3, 4)"),
        ((jnp.ones((B, T, I)), last_square), {"batch": 0}, "batch"),
        ((jnp.ones((B, T, I)), last_square), {"batch": 2.5}, "batch"),
        ((jnp.ones((B, T, I)), last_square), {"backward": "no_h_path"}, "SimpleRNN"),
        ((jnp.ones((B, T, I)), last_square), {"backward": "half"}, "no_c_path"),
    ],
)
def test_bad_input_is_named(arguments, options, says):
    with pytest.raises(BadInput) as refused:
        gradlab.analyze(SimpleRNN(I, H, rngs=nnx.Rngs(0)), *arguments, **options)
    assert says in str(refused.value)


def test_something_that_is_no_cell_is_refused():
    with pytest.raises(BadInput, match="RNNCellBase"):
        gradlab.analyze(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), inputs(), last_square)


class Doubled(nnx.RNN):
    """Not what its cell gives."""

    def __call__(self, *args, **kwargs):
        return 2 * super().__call__(*args, **kwargs)


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (Doubled, {}, "its own __call__"),
    ],
)
def test_a_layer_that_gives_something_else_than_its_cell_is_refused(make, options, says):
    cell = nnx.SimpleCell(I, H, rngs=nnx.Rngs(0))
    with pytest.raises(BadInput, match="network") as refused:
        gradlab.analyze(make(cell, **options), inputs(), last_square)
    assert says in str(refused.value)


def test_a_layer_may_say_itself_that_time_comes_first():
    cell = nnx.SimpleCell(I, H, rngs=nnx.Rngs(0))
    options = {"probes": ["grad_norm"]}
    one = gradlab.analyze(cell, inputs(), last_square, **options)
    two = gradlab.analyze(
        nnx.RNN(cell, time_major=True),
        jnp.swapaxes(inputs(), 0, 1),
        lambda y: jnp.sum(jnp.square(y[-1]), axis=-1),
        **options,
    )
    np.testing.assert_array_equal(one["grad_norm"], two["grad_norm"])
