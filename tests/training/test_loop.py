import contextlib
import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradlab.bptt.parts import by_name
from gradlab.cells import GRU, FeedForward, SimpleRNN
from gradlab.errors import BadInput
from gradlab.experiment import build_steps
from gradlab.model import SequenceModel, per_example_accuracy, per_example_loss
from gradlab.probes import Adjoint, ForgetPath, ForgetProduct, GradNorm
from gradlab.probes.base import CloseProbe
from gradlab.record.base import Outcome
from gradlab.record.reader import open_run
from gradlab.regularizers.base import Regularizer
from gradlab.run import run
from gradlab.tasks.adding import Adding
from gradlab.tasks.copying import Copying
from gradlab.tasks.digits import Digits
from gradlab.training.loop import Clock, Member, Trainer, train
from gradlab.training.optimizer import Optimizer
from gradlab.training.program import Solo
from gradlab.training.schedule import Schedule
from gradlab.variable import Variable
from tests.experiments import PROBES, experiment
from tests.oracles import as_float64


class Rows:
    def __init__(self, interrupt_at=None):
        self.rows, self.interrupt_at, self.outcome = [], interrupt_at, None

    def open(self, description):
        self.description = description

    def log(self, row):
        self.rows.append(row)
        if row.step == self.interrupt_at:
            raise KeyboardInterrupt

    def close(self, outcome):
        self.outcome = outcome


KEY = jax.random.key(5)


def compiled(exp):
    program = Solo(build_steps(exp), KEY, exp.trainer.eval_batch)
    program.compile()
    return program


def trained(exp, sink=None, save=None, program=None):
    """From the start; ``program`` is one that has been compiled for another trainer."""
    sink, program = sink or Rows(), program or compiled(exp)
    member, steps = Member([sink], save=save), program.steps
    program.resume({0: steps.start(KEY)})
    train(exp.trainer, program, [member], close=exp.close)
    return steps, member.outcome, program.state(), sink


@functools.cache
def usual():
    """The experiment as it is, trained once for all who look at it."""
    return trained(experiment())


class Counting(Rows):
    """Notes at each row how many programs have been compiled so far."""

    def __init__(self):
        super().__init__()
        self.compiled, self.at_rows = 0, []

    def hears(self, name, _, **__):
        self.compiled += "backend_compile" in name

    def log(self, row):
        super().log(row)
        self.at_rows.append(self.compiled)


@contextlib.contextmanager
def compilations():
    """A sink that counts compilations while the context lasts."""
    counting = Counting()
    jax.monitoring.register_event_duration_secs_listener(counting.hears)
    try:
        yield counting
    finally:
        jax.monitoring.unregister_event_duration_listener(counting.hears)


@dataclasses.dataclass(frozen=True)
class FirstLoss(CloseProbe):
    """A close look that costs nothing to compile: the losses it sees."""

    def variables(self, setting):
        return {"first_loss": Variable(("example",), "loss", "loss of each example")}

    def coords(self, setting):
        return {"example": [0, 1]}

    def __call__(self, closeup):
        return {"first_loss": closeup.losses}


@dataclasses.dataclass(frozen=True)
class PullToZero(Regularizer):
    """A penalty with a known gradient: half the square of every parameter."""

    def penalty(self, closeup):
        return sum(0.5 * jnp.sum(jnp.square(p)) for p in closeup.params.values())


def test_close_probes_look_at_their_own_steps_and_at_the_last():
    exp = experiment(probes=PROBES | {"close": FirstLoss()}, close=Schedule(4), close_examples=2)
    _, outcome, _, sink = trained(exp)
    assert [row.step for row in sink.rows] == [0, 4, 5, 8, 10, 11]
    looked = [row.step for row in sink.rows if "first_loss" in row.arrays]
    assert looked == [0, 4, 8, 11]
    assert all("adj_h_log10" in row.arrays for row in sink.rows)
    assert sink.rows[0].arrays["first_loss"].shape == (2,)
    assert outcome.timings["close_look"] > 0
    assert usual()[1].timings["close_look"] is None


@pytest.mark.slow
def test_a_close_look_sees_the_examples_of_the_step_and_changes_nothing():
    exp = experiment(probes={"close": FirstLoss()}, close_examples=99, close=Schedule(3))
    _, _, state, sink = trained(exp)
    # All four examples of the batch, before the update: their mean is the loss of that step.
    assert sink.rows[1].step == 3
    only = trained(experiment(probes={}, trainer=Trainer(12, 4, log_every=1, eval_every=5)))
    losses = [row.scalars["train/loss"] for row in only[3].rows]
    for row in sink.rows:
        if "first_loss" in row.arrays:
            assert row.arrays["first_loss"].shape == (4,)
            assert np.mean(row.arrays["first_loss"]) == pytest.approx(losses[row.step], rel=1e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(only[2].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_clip_rate_is_the_share_of_clipped_steps_since_the_last_row():
    always = trained(experiment(clip_norm=1e-6, probes={}))[3].rows
    never = trained(experiment(clip_norm=1e6, probes={}))[3].rows
    none = trained(experiment(clip_norm=None, probes={}))[3].rows
    assert [row.scalars["train/clip_rate"] for row in always] == [1.0] * 4
    assert [row.scalars["train/clip_rate"] for row in never] == [0.0] * 4
    assert all("train/clip_rate" not in row.scalars for row in none)


@pytest.mark.slow
def test_a_regularizer_is_added_to_the_gradient_while_it_counts():
    """With plain gradient descent at rate r the weights shrink by (1 - r w) besides the loss."""
    rate, weight = 0.1, 0.3
    base = {"rule": optax.sgd, "learning_rate": rate, "clip_norm": None, "probes": {}}
    one = Trainer(steps=1, batch=4, log_every=5, eval_every=5)
    start = build_steps(experiment()).first_params
    plain = trained(experiment(**base, trainer=one))[2].params
    both = trained(experiment(**base, trainer=one, regularizer=PullToZero(weight=weight, alone=0)))
    alone = trained(experiment(**base, trainer=one, regularizer=PullToZero(weight=weight, alone=1)))
    leaves = map(jax.tree.leaves, (start, plain, both[2].params, alone[2].params))
    for first, without, together, only in zip(*leaves, strict=True):
        np.testing.assert_allclose(together, without - rate * weight * first, atol=1e-6)
        np.testing.assert_allclose(only, (1 - rate * weight) * first, atol=1e-6)
    size = sum(0.5 * float(jnp.sum(jnp.square(p))) for p in jax.tree.leaves(start))
    assert both[3].rows[0].scalars["train/penalty"] == pytest.approx(size, rel=1e-5)


@pytest.mark.slow
def test_a_regularizer_stops_counting():
    trainer = Trainer(steps=4, batch=4, log_every=1, eval_every=5)
    over = PullToZero(weight=1.0, alone=0, until=2)
    rows = trained(experiment(regularizer=over, trainer=trainer, probes={}))[3].rows
    penalties = [row.scalars["train/penalty"] for row in rows]
    assert penalties[0] > 0
    assert penalties[1] > 0
    assert penalties[2:] == [0.0, 0.0]


def test_rows_come_at_the_logged_steps_with_every_variable_announced():
    steps, outcome, state, sink = usual()
    assert [row.step for row in sink.rows] == [0, 5, 10, 11]
    assert int(state.step) == 12
    assert outcome.status == "finished"
    for row in sink.rows:
        assert row.arrays.keys() == steps.variables.keys()
        assert math.isfinite(row.scalars["train/loss"])
    assert ["val/loss" in row.scalars for row in sink.rows] == [True, True, True, True]
    assert outcome.timings["steps_per_second"] > 0
    overhead = outcome.timings["probe_overhead"]
    assert overhead is None or overhead > 0  # of steps as short as these it may not be seen
    assert {
        "train/loss",
        "val/loss",
        "test/loss",
        "adjoint_slope/layer_0",
    } <= outcome.summary.keys()


@pytest.mark.parametrize("layers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_measuring_more_often_changes_no_parameter(layers):
    """50 plain steps, 50 probed steps: the same arithmetic on the parameters, the same losses."""
    finals, losses = [], []
    for probes, often in ((PROBES, (1, 49, 7)), ({}, (50,))):
        program = None
        for log_every in often:
            trainer = Trainer(steps=50, batch=4, log_every=log_every, eval_every=100)
            exp = experiment(trainer=trainer, probes=probes, layers=layers)
            program = program or compiled(exp)
            _, _, state, sink = trained(exp, program=program)
            finals.append(state)
            losses.append([row.scalars["train/loss"] for row in sink.rows])
    every, since = losses[0], [*range(1, 50, 7), 50]
    means = [np.mean(every[a:b]) for a, b in zip([0, *since], since, strict=False)]
    np.testing.assert_allclose(losses[2], means, rtol=1e-5)  # of the steps since the last row
    for other in finals[1:]:
        pairs = zip(jax.tree.leaves(finals[0].params), jax.tree.leaves(other.params), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_with_a_cut_route_measuring_changes_no_parameter_and_sees_the_cut_pass():
    """An LSTM that learns its initial state too, on lengths that differ."""
    steps = build_steps(
        experiment(
            task=Adding(length=8, min_length=3, held_out_examples=30),
            trainer=Trainer(steps=20, batch=4, backward="no_h_path"),
            initial_state="learned",
            probes={"adjoint": Adjoint(), "path": ForgetPath(examples=4), "grad": GradNorm()},
        )
    )
    begin = steps.start(jax.random.key(5))
    plain, _ = jax.jit(lambda state: steps.advance(state, (), np.int32(5)))(begin)
    probe, state = jax.jit(lambda state: steps.probe(state, ())), begin
    for _ in range(5):
        state, _, row = probe(state)
    for one, other in zip(*map(jax.tree.leaves, (state.params, plain.params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    named = by_name(state.params)
    assert list(named)[:2] == ["initial_state/0/0/c", "initial_state/0/0/h"]
    np.testing.assert_array_equal(named["initial_state/0/0/h"], 0)  # that way is cut
    assert np.all(named["initial_state/0/0/c"] != 0)
    # Of a whole state's h, only the last real step's gets something, from the readout.
    assert np.all(np.isneginf(row["adj_h_log10"][0, :2]))
    assert np.all(np.isfinite(row["adj_c_log10"][0, :-1]))
    seen = jax.jit(lambda state: steps.measure(state, ()))(state)
    assert np.all(np.isneginf(seen["residual_path_log10"][0, :3]))  # every example has three
    np.testing.assert_array_equal(seen["whole_path_log10"], seen["forget_path_log10"])


def test_the_recorded_adjoint_is_that_of_one_examples_loss():
    """Against jax.grad of a single example's loss by a nudge of h_t, whatever the batch size."""
    exp = experiment(make_cell=GRU)
    steps = build_steps(exp)
    state = steps.start(jax.random.key(0))
    _, _, measured = jax.jit(steps.probe)(state, ())
    model, batch = steps.model(state.values), steps.draw(state, ())
    cell = model.layers[0][0]

    def loss(nudges, example):
        def step(carry, read):
            carry, _ = cell(carry, read[0][example][None])
            return carry._replace(h=carry.h + read[1]), None

        carry, _ = jax.lax.scan(step, cell.initialize_carry((1, 2)), (batch.inputs, nudges))
        out = model.readout(carry.h)
        return per_example_loss("mse", out, batch.targets[example][None], None)[0]

    gradient, curves = jax.jit(jax.grad(loss)), []
    for example in range(4):
        grads = gradient(jnp.zeros((8, 1, 5)), example)
        curves.append(np.log10(np.linalg.norm(np.asarray(grads, np.float64), axis=(1, 2))))
    np.testing.assert_allclose(measured["adj_h_log10"][0], np.mean(curves, 0), atol=1e-4)


@pytest.mark.slow
def test_the_recorded_adjoint_of_a_default_lstm_over_200_steps_equals_float64():
    """Flax's LSTM at its default init: plain float32 autodiff reads 0 at the first timesteps."""
    exp = experiment(
        make_cell=nnx.OptimizedLSTMCell, task=Adding(length=200, held_out_examples=10), hidden=16
    )
    steps = build_steps(exp)
    state = steps.start(jax.random.key(0))
    recorded = np.asarray(jax.jit(steps.probe)(state, ())[2]["adj_h_log10"][0])
    batch, model = steps.draw(state, ()), steps.model(state.values)

    def adjoints(model, dtype):
        cell, inputs = model.layers[0][0], batch.inputs.astype(dtype)
        start = (jnp.zeros((4, 16), dtype), jnp.zeros((4, 16), dtype))

        def total(nudges):
            def step(carry, read):
                (c, h), _ = cell(carry, read[0])
                return (c, h + read[1]), None

            (_, h), _ = jax.lax.scan(step, start, (inputs, nudges))
            return jnp.sum(jnp.square(model.readout(h) - batch.targets.astype(dtype)))

        return np.asarray(jax.jit(jax.grad(total))(jnp.zeros((200, 4, 16), dtype)))

    assert np.linalg.norm(adjoints(model, jnp.float32)[0]) == 0
    with jax.enable_x64(True):
        exact = adjoints(as_float64(model), jnp.float64)
    want = np.log10(np.linalg.norm(exact, axis=-1)).mean(axis=-1)
    assert np.all(np.isfinite(recorded))
    assert want[0] < -30
    np.testing.assert_allclose(recorded, want, atol=0.01)


def test_nothing_compiles_after_the_first_row():
    """However seldom or often something is due, and whatever it is."""
    trainer = Trainer(
        steps=40, batch=4, log_every=5, log_per_decade=3, eval_every=10, checkpoint_seconds=0
    )
    close = {"close": Schedule(16, 1), "probes": PROBES | {"close": FirstLoss()}}
    saved = []
    with compilations() as counts:
        trained(experiment(trainer=trainer, **close), counts, save=saved.append)
    assert counts.at_rows[0] > 0  # the listener does see compilations
    assert counts.at_rows[-1] == counts.at_rows[1]
    assert len(saved) > 5


# Evaluation.


def test_evaluation_in_chunks_is_the_mean_over_all_examples():
    exp = experiment(task=Copying(length=22, held_out_examples=30), hidden=3)
    steps = build_steps(exp)
    batch = exp.task.held_out("val")
    out = steps.model(steps.first)(batch.inputs).outputs
    answer = (out, batch.targets, batch.weights)
    loss = float(per_example_loss("cross_entropy", *answer).mean())
    accuracy = float(per_example_accuracy(*answer).mean())
    for chunk in (7, 30, 1000):
        scores = Solo(steps, jax.random.key(0), chunk).score("val")[0]
        assert scores == pytest.approx({"loss": loss, "accuracy": accuracy}, rel=1e-5), chunk


def test_test_scores_are_those_of_the_best_validation():
    trainer = Trainer(steps=60, batch=4, log_every=5, eval_every=5)
    sink = Rows()
    _, outcome, _, _ = trained(experiment(trainer=trainer, learning_rate=0.1, probes={}), sink)
    by_step = {row.step: row.scalars["val/loss"] for row in sink.rows}
    best = min(by_step, key=by_step.get)
    assert outcome.summary["best/step"] == best
    assert outcome.summary["val/loss"] == by_step[best]


# Ends.


def test_divergence_in_the_forward_pass_names_step_layer_and_timestep():
    exp = experiment(
        make_cell=lambda *a, **k: SimpleRNN(*a, activation_fn="identity", **k),
        task=Adding(length=60, held_out_examples=10),
        rule=optax.sgd,
        learning_rate=1e6,
        clip_norm=None,
        trainer=Trainer(steps=40, batch=4, log_every=7, eval_every=100),
    )
    _, outcome, state, sink = trained(exp)
    assert outcome.status == "diverged"
    assert "layer 0" in outcome.reason
    assert "timestep" in outcome.reason
    assert f"step {int(state.step)}:" in outcome.reason
    last = sink.rows[-1]  # what the step that failed looked like, without a loss
    assert (last.step, dict(last.scalars)) == (int(state.step), {})
    both = {"adj_h_log10", "adj_h_log10_q", "adj_h_over_lag_log10", "adj_h_over_lag_log10_q"}
    line = {"decades_lost", "decades_per_100", "adjoint_line_r2"}
    assert last.arrays.keys() == PROBES.keys() - {"adjoint"} | both | line | {"adj_h_zero"}
    assert math.isfinite(outcome.summary["train/loss"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))


def test_divergence_in_the_backward_pass_names_where_the_adjoint_left_float32():
    def exploding(width, hidden, *, rngs):
        cell = SimpleRNN(width, hidden, activation_fn="identity", rngs=rngs)
        cell.dense_h.kernel[...] = 20.0 * jnp.eye(hidden)
        cell.dense_i.kernel[...] = jnp.zeros((width, hidden))
        return cell

    exp = experiment(make_cell=exploding, task=Adding(length=60, held_out_examples=10))
    _, outcome, _, _ = trained(exp)
    assert outcome.status == "diverged"
    assert "diverged at step 0" in outcome.reason
    lag = 59 - int(outcome.reason.split("timestep ")[1].split()[0])
    assert lag == pytest.approx(38.5 / math.log10(20), abs=2)


def test_an_interrupt_keeps_what_was_recorded():
    _, outcome, _, sink = trained(experiment(), Rows(interrupt_at=5))
    assert outcome.status == "interrupted"
    assert [row.step for row in sink.rows] == [0, 5]
    assert "val/loss" in outcome.summary


def test_a_crash_keeps_what_was_recorded(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError("no more room")

    sink = Rows()
    monkeypatch.setattr("gradlab.run.train", fails)
    with pytest.raises(OSError, match="no more room"):
        run(experiment(), tmp_path / "run", [sink])
    assert sink.outcome.status == "crashed"
    assert "no more room" in json.loads((tmp_path / "run" / "run.json").read_text())["reason"]


@pytest.mark.slow
def test_another_sink_that_fails_ends_nothing(tmp_path, caplog):
    class Broken(Rows):
        def log(self, row):
            raise OSError("no more room")

    outcome = run(experiment(probes={}), tmp_path / "run", [Broken()], figures=False)
    assert outcome.status == "finished"
    assert open_run(tmp_path / "run").scalars.sizes["step"] == 4
    assert [record.getMessage() for record in caplog.records if "Broken" in record.getMessage()]


def test_a_run_leaves_a_directory_that_reads_back(tmp_path):
    exp = experiment(
        task=Digits(length=12), hidden=4, make_cell=GRU, probes={**PROBES, "f": ForgetProduct()}
    )
    outcome = run(exp, tmp_path / "run", [])
    recorded = open_run(tmp_path / "run")
    assert recorded.status == "finished"
    assert recorded.curves["forget_product_log10"].attrs["gate"] == "z"
    assert recorded.curves["adj_h_log10"].dims == ("step", "layer", "t")
    assert recorded.curves["adj_h_log10"].units == "log10"
    np.testing.assert_array_equal(recorded.curves["lag"], np.arange(11, -1, -1))
    assert recorded.summary["test/accuracy"] == pytest.approx(outcome.summary["test/accuracy"])
    assert recorded.info["verdict"][0].startswith("layer 0: ")
    assert (tmp_path / "run" / "figures" / "adjoint_over_lag.png").stat().st_size > 10_000


def test_a_preset_leaves_out_what_a_model_cannot_measure_and_a_name_is_refused():
    exp = experiment(make_cell=SimpleRNN, probes={"forget_product": ForgetProduct()})
    steps = build_steps(exp)
    assert not steps.probes
    assert "SimpleRNN has no retention gate" in steps.left_out["forget_product"]
    with pytest.raises(BadInput, match="no retention gate"):
        build_steps(dataclasses.replace(exp, probes_by_preset=False))


@pytest.mark.slow
def test_bidirectional_layers_are_recorded_side_by_side():
    steps, _, _, sink = trained(experiment(bidirectional=True, layers=2))
    assert steps.names == ["0", "0 backward", "1", "1 backward"]
    assert sink.rows[0].arrays["adj_h_log10"].shape == (4, 8)
    assert np.all(np.isfinite(sink.rows[0].arrays["adj_h_log10"]))


def test_a_memoryless_model_has_no_gradient_before_the_last_step():
    _, _, _, sink = trained(experiment(make_cell=FeedForward))
    curve = sink.rows[-1].arrays["adj_h_log10"][0]
    assert np.all(np.isneginf(curve[:-1]))
    assert math.isfinite(curve[-1])
    assert math.isnan(sink.rows[-1].arrays["adjoint_slope"][0])


def test_clipping_shows_between_the_two_gradient_norms():
    exp = experiment(clip_norm=1e-3, probes={"grad_norm": GradNorm()})
    _, _, _, sink = trained(exp)
    arrays = sink.rows[0].arrays
    assert np.linalg.norm(arrays["grad_norm"]) == pytest.approx(
        sink.rows[0].scalars["train/grad_norm"]
    )
    assert np.linalg.norm(arrays["grad_norm_postclip"]) == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("key", ["steps", "batch", "log_every", "eval_every", "eval_batch"])
def test_a_trainer_refuses_what_is_below_one(key):
    with pytest.raises(BadInput, match=f"trainer.{key}"):
        Trainer(**({"steps": 1, "batch": 1} | {key: 0}))


def test_the_clock_leaves_the_first_calls_out():
    clock = Clock()
    clock.plain += [(9.0, 9), (1.0, 10), (1.0, 10)]
    clock.probed += [(5.0, 1), (0.2, 1), (0.2, 1)]
    clock.mixed += [(7.0, 9), (2.0, 18)]
    clock.empty = 0.1
    timings = clock.timings()
    assert timings["steps_per_second"] == pytest.approx(40 / 4.4)
    assert timings["probe_overhead"] == pytest.approx((0.2 - 0.1) / (0.9 / 10))
    nothing = dict.fromkeys(("steps_per_second", "probe_overhead", "close_look"))
    assert Clock().timings() == nothing


def test_outcome_without_timings_is_complete():
    assert Outcome("finished").summary == {}


# The model and the optimizer.


def test_losses_by_hand():
    outputs, targets = jnp.array([[1.0, 3.0], [0.0, 0.0]]), jnp.array([[1.0, 1.0], [2.0, 0.0]])
    np.testing.assert_allclose(per_example_loss("mse", outputs, targets, None), [2.0, 2.0])
    logits, classes = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]])), jnp.array([0, 1])
    want = [-math.log(0.5), -math.log(0.1)]
    np.testing.assert_allclose(
        per_example_loss("cross_entropy", logits, classes, None), want, rtol=1e-5
    )
    over_time = jnp.stack([logits, logits[::-1]])[:, :, None, :][:, :, 0]
    both = jnp.stack([classes, classes])
    weights = jnp.array([[0.25, 1.0], [0.75, 0.0]])
    got = per_example_loss("cross_entropy", over_time, both, weights)
    want = [
        0.25 * -math.log(0.5) + 0.75 * -math.log(0.9),
        -math.log(0.1),
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    got = per_example_accuracy(over_time, both, weights)
    np.testing.assert_allclose(got, [1.0, 0.0])


def test_symbols_are_read_one_hot():
    model = SequenceModel(
        GRU, features=1, symbols=4, hidden=3, layers=1, outputs=2, readout="last",
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    symbols = jnp.array([[0, 3], [2, 1]])
    rows = SequenceModel(
        GRU, features=4, hidden=3, layers=1, outputs=2, readout="last", rngs=nnx.Rngs(0)
    )
    np.testing.assert_array_equal(model(symbols).outputs, rows(jax.nn.one_hot(symbols, 4)).outputs)


@pytest.mark.parametrize(
    ("schedule", "at_half", "at_end"),
    [
        ("constant", 1.0, 1.0),
        ("cosine", 0.5, 0.0),
        ("linear", 0.5, 0.0),
        ("exponential", 10**-1.5, 1e-3),
    ],
)
def test_schedules(schedule, at_half, at_end):
    rates = []

    def rule(learning_rate):
        rates.append(learning_rate)
        return optax.sgd(learning_rate)

    _ = Optimizer(rule, steps=110, learning_rate=2.0, schedule=schedule, warmup_steps=10).update
    rate = rates[0]
    assert float(rate(0)) == 0
    assert float(rate(5)) == pytest.approx(1.0)
    assert float(rate(10)) == pytest.approx(2.0)
    assert float(rate(60)) == pytest.approx(2 * at_half, abs=1e-6)
    assert float(rate(110)) == pytest.approx(2 * at_end, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm"),
        ({"clip_value": 0.0}, "optimizer.clip_value"),
        ({"clip_value": 1.0, "clip_norm": 1.0}, "optimizer.clip_value"),
        ({"warmup_steps": 100}, "optimizer.warmup_steps"),
        ({"final_fraction": 1.5}, "optimizer.final_fraction"),
    ],
)
def test_an_optimizer_refuses(wrong, key):
    with pytest.raises(BadInput, match=key):
        Optimizer(optax.adam, **({"steps": 100, "learning_rate": 1e-3} | wrong))


def test_clip_by_value():
    clip = Optimizer(optax.sgd, steps=1, learning_rate=1.0, clip_value=0.5).clip
    clipped, _ = clip.update(jnp.array([-3.0, 0.1, 9.0]), clip.init(jnp.zeros(3)))
    np.testing.assert_allclose(clipped, [-0.5, 0.1, 0.5])
