"""Numbers in their ranges, refused alike on the command line and in a notebook."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradlab import cells, probes, regularizers, tasks
from gradlab.errors import BadInput, number, whole_number
from gradlab.record.wandb.sink import WandbSink
from gradlab.training.loop import Trainer
from gradlab.training.optimizer import Optimizer
from gradlab.training.schedule import Schedule

NO_NUMBERS = [float("nan"), True, "1", None, [1], {}, 10**400, 2**70]


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0.5, -1, 2**31])
def test_no_whole_number(value):
    with pytest.raises(BadInput, match="key: got"):
        whole_number("key", value, 0)


@pytest.mark.parametrize("value", [*NO_NUMBERS, float("inf"), -1e-9, 1])
def test_no_share(value):
    with pytest.raises(BadInput, match="a number from 0 and below 1, or null"):
        number("key", value, 0, 1, "[)", ", or null")


def test_numbers_of_every_kind_pass():
    for value in (0, np.int64(3), np.uint8(3), 2**31 - 1):
        whole_number("key", value, 0)
    for value in (0, 0.5, np.float32(0.5), jnp.float32(0.5), np.int64(0)):
        number("key", value, 0, 1, "[)")


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ("[]", "a number from 0 to 2"),
        ("[)", "a number from 0 and below 2"),
        ("(]", "a number above 0 to 2"),
        ("()", "a number above 0 and below 2"),
    ],
)
def test_ranges_in_words(ends, words):
    with pytest.raises(BadInput) as refusal:
        number("key", 3, 0, 2, ends)
    assert refusal.value.allowed == words
    for end, belongs in ((0, ends[0] == "["), (2, ends[1] == "]")):
        if belongs:
            number("key", end, 0, 2, ends)
        else:
            with pytest.raises(BadInput):
                number("key", end, 0, 2, ends)


def test_a_long_value_is_cut_short():
    assert len(str(BadInput("key", "x" * 5000, "less"))) < 400


def optimizer(learning_rate=0.1, rule=optax.sgd, **options):
    return Optimizer(partial(rule, **options), steps=10, learning_rate=learning_rate)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: optimizer(rule=optax.adam, b1=1), "optimizer.rule.b1"),
        (lambda: optimizer(rule=optax.adam, b2=float("nan")), "optimizer.rule.b2"),
        (lambda: optimizer(rule=optax.lion, weight_decay=-1), "optimizer.rule.weight_decay"),
        (lambda: optimizer(rule=optax.adam, mu_dtype="foo"), "optimizer.rule"),
        (lambda: optimizer(rule=optax.lbfgs), "optimizer.rule"),
        (lambda: optimizer(rule=dict), "optimizer.rule._target_"),
        (lambda: optimizer(1e-300), "optimizer.learning_rate"),
        (lambda: optimizer(True), "optimizer.learning_rate"),
        (lambda: Trainer(steps=2**31, batch=1), "trainer.steps"),
        (lambda: Trainer(steps=1, batch=1.5), "trainer.batch"),
        (lambda: Trainer(1, 1, checkpoint_seconds=float("nan")), "trainer.checkpoint_seconds"),
        (lambda: Schedule(10, 1001), "trainer.log_per_decade"),
        (lambda: WandbSink(".", finish_timeout=1e300), "record.wandb.finish_timeout"),
        (lambda: tasks.Adding(length=2**63), "task.length"),
        (lambda: tasks.Sunspots(val_fraction=float("nan")), "task.val_fraction"),
        (lambda: probes.Adjoint((0.5, 0.5)), "probe.measure.adjoint.quantiles"),
        (lambda: probes.Adjoint((0.5, 2)), "probe.measure.adjoint.quantiles"),
        (lambda: probes.GateSaturation(0.9, 0.1), "probe.measure.gate_saturation.high"),
        (lambda: probes.GateStatistics(lowest=-1e30), "probe.measure.gate_statistics.lowest"),
        (lambda: probes.GradientMass(1.0), "probe.measure.gradient_mass.share"),
        (lambda: probes.Curvature(10**9), "probe.measure.curvature.iterations"),
        (lambda: probes.Lyapunov(interval=True), "probe.measure.lyapunov.interval"),
        (lambda: regularizers.Omega(weight=True), "trainer.omega.weight"),
        (lambda: regularizers.Omega(until=2**40), "trainer.omega.until"),
        (lambda: regularizers.Flossing(target=1e30), "trainer.flossing.target"),
        (lambda: cells.base.recurrent_init("gaussian", 1e30), "model.cell.recurrent_gain"),
    ],
)
def test_a_notebook_is_refused_the_same(make, key):
    with pytest.raises(BadInput) as refusal:
        make()
    assert refusal.value.key == key


@pytest.mark.parametrize("rule", [optax.adam, optax.lion, optax.adafactor, optax.rmsprop])
def test_rules_of_optax_pass(rule):
    assert optimizer(rule=rule).update is not None
