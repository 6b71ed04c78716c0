"""Cells that change Variables, in half precision, of complex numbers: trained as Flax trains them.

The truth is Flax's own loop: ``nnx.RNN``, ``nnx.value_and_grad``, ``nnx.Optimizer``.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradlab.bptt.parts import by_name
from gradlab.errors import BadInput
from gradlab.experiment import build_steps
from gradlab.model import per_example_accuracy, per_example_loss
from gradlab.probes import Adjoint, GradNorm
from gradlab.tasks.adding import Adding
from gradlab.training.checkpoint import Best, Checkpoints, Position, from_bytes, to_bytes
from gradlab.training.loop import Trainer
from gradlab.training.optimizer import Optimizer
from gradlab.training.population import Population
from gradlab.training.program import Solo
from tests import ROOT, zoo
from tests.experiments import experiment, make
from tests.training.test_mesh import bits

KEY = jax.random.key(5)


@pytest.fixture(autouse=True)
def types_are_promoted():
    with zoo.as_users_do():
        yield


class Changing(zoo.BatchNormed):
    """All that moves at once: dropout, batch statistics, a counter, a key that it splits itself."""

    def fill(self, rngs):
        super().fill(rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.count = zoo.Count(jnp.int32(0))
        self.noise = nnx.Variable(jax.random.key(3))

    def __call__(self, carry, inputs):
        self.count[...] = self.count[...] + 1
        key, now = jax.random.split(self.noise[...])
        self.noise[...] = key
        drive = self.norm(self.read(inputs) + self.recur(carry))
        h = self.drop(jnp.tanh(drive)) + 0.01 * jax.random.normal(now, carry.shape)
        return h, h


STEPS = 6


def changing(**changes):
    """What trains it. (Adam would make steps of what is left of gradients that are zero.)"""
    usual = {"make_cell": Changing, "hidden": 4, "probes": {}, "rule": optax.sgd}
    return experiment(**usual | {"learning_rate": 0.1} | changes)


@functools.cache
def trained():
    """``(steps, program, the state after 3 steps, that after 6)``."""
    steps = build_steps(changing())
    program = Solo(steps, KEY, 250)
    program.compile()
    make(program, 3)
    half_way = program.state()
    make(program, STEPS - 4, measured=True)
    return steps, program, half_way, program.state()


class Plain(nnx.Module):
    """The same network in plain Flax, around the cell and the readout of gradlab's."""

    def __init__(self, model):
        self.layer = nnx.RNN(model.layers[0][0], time_major=True)
        self.readout = model.readout

    def __call__(self, inputs):
        return self.readout(self.layer(inputs)[-1])


def test_what_a_pass_changes_moves_as_in_flaxs_own_loop_and_rests_in_validation():
    steps, program, _, state = trained()
    plain, start = Plain(steps.model(steps.first)), steps.start(KEY)
    optimizer = nnx.Optimizer(
        plain, optax.chain(steps.optimizer.clip, steps.optimizer.update), wrt=nnx.Param
    )

    def loss(plain, batch):
        return jnp.mean(jnp.square(plain(batch.inputs) - batch.targets))

    @nnx.jit
    def step(plain, optimizer, batch):
        optimizer.update(plain, nnx.grad(loss)(plain, batch))

    for index in range(STEPS):
        step(plain, optimizer, steps.draw(start._replace(step=jnp.int32(index)), ()))
    mine = steps.model(state.values)
    ours, theirs = nnx.state(mine.layers[0][0]), nnx.state(plain.layer.cell)
    for (path, one), (_, other) in zip(*map(nnx.to_flat_state, (ours, theirs)), strict=True):
        one, other = bits(one.get_value()), bits(other.get_value())
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6, err_msg=str(path))
    assert int(mine.layers[0][0].count[...]) == STEPS * steps.task.length
    plain.eval()
    held = steps.task.held_out("val")
    assert program.score("val")[0]["loss"] == pytest.approx(float(loss(plain, held)), rel=1e-4)


def test_it_is_resumed_with_the_same_bits(tmp_path):
    steps, program, half_way, state = trained()
    best = Best(0.5, 2, half_way.params, {"loss": 0.5}, half_way.variables)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Position(half_way, best=best))
    checkpoints.close()
    kept = Checkpoints(tmp_path).restore(steps, KEY)
    sent = from_bytes(to_bytes(kept), steps.start(KEY))
    program.resume({0: sent.state})
    make(program, STEPS - 4, measured=True)
    same((program.state(), sent.best.values), (state, half_way.values))


def same(given, wanted):
    """To the last bit."""
    assert jax.tree.structure(given) == jax.tree.structure(wanted)
    for one, other in zip(*map(jax.tree.leaves, (given, wanted)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(bits(one), bits(other))


@pytest.mark.slow
def test_members_of_a_population_move_as_alone():
    steps, program, half_way, _ = trained()
    other = build_steps(changing(learning_rate=3e-3))
    population = Population([steps, other], [KEY, KEY], 250)
    population.compile()
    make(population, 3, members=(0, 1))
    for one, two in zip(
        *(jax.tree.leaves(s.values) for s in (population.state(0), half_way)), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=2e-5, atol=1e-6)
    program.resume({0: half_way})
    alone = program.score("val")[0]["loss"]
    scores = population.score("val", [0, 1])
    assert scores[0]["loss"] == pytest.approx(alone, rel=1e-4)
    assert scores[1]["loss"] != scores[0]["loss"]
    counts = [population.state(i).variables["layers"][0][0]["count"].get_value() for i in (0, 1)]
    assert counts == [24, 24]


class Deep(nnx.Module):
    """Two layers of two directions in plain Flax, around gradlab's cells and readout."""

    def __init__(self, model):
        def layer(cells):
            ahead, behind = cells
            back = nnx.RNN(behind, time_major=True, reverse=True, keep_order=True)
            return nnx.List([nnx.RNN(ahead, time_major=True), back])

        self.layers, self.readout = nnx.List(map(layer, model.layers)), model.readout

    def __call__(self, read):
        for ahead, behind in self.layers:
            outputs = ahead(read), behind(read)
            read = jnp.concatenate(outputs, -1)
        return self.readout(jnp.concatenate([outputs[0][-1], outputs[1][0]], -1))


@pytest.mark.slow
def test_a_learned_first_state_has_its_gradient_in_every_layer_and_direction():
    """In training, and in a close look."""
    deep = {"make_cell": zoo.LearnedStart, "layers": 2, "bidirectional": True, "hidden": 3}
    steps = build_steps(experiment(**deep, probes={}))
    start = steps.start(KEY)
    batch = steps.draw(start, ())

    def gradients(values, batch):
        closely = steps.closeup(values, batch, None)
        return by_name(steps._gradient(values, batch).grads), dict(closely.gradient)

    def loss(plain):
        return jnp.mean(jnp.square(plain(batch.inputs) - batch.targets))

    true = nnx.grad(loss)(Deep(steps.model(steps.first)))
    found = jax.jit(gradients)(start.values, batch)
    places = [(depth, direction) for depth in range(2) for direction in range(2)]
    for depth, direction in places:
        wanted = true["layers"][depth][direction]["cell"]["h0"].get_value()
        assert np.linalg.norm(wanted) > 1e-3
        for one in found:
            given = one[f"layers/{depth}/{direction}/h0"]
            np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-6)


def _on_devices():
    """In a process with four devices: each has statistics and random numbers of its own."""
    trainer = Trainer(steps=12, batch=8, mesh="data")
    steps = build_steps(changing(trainer=trainer))
    assert steps.mesh.devices == 4
    program = Solo(steps, KEY, 250)
    program.compile()
    state, batch = program.state(), steps.draw(steps.start(KEY), ())

    def of_device(index):
        one = build_steps(changing(trainer=dataclasses.replace(trainer, mesh=None)))
        model = one.model(one.first)
        for _, variable in nnx.iter_graph(model):
            if isinstance(variable, nnx.Variable) and jnp.issubdtype(
                variable.dtype, jax.dtypes.prng_key
            ):
                variable.set_value(jax.random.fold_in(variable.get_value(), index))
        one.hold(model)
        rows = slice(2 * index, 2 * index + 2)
        own = batch._replace(inputs=batch.inputs[:, rows], targets=batch.targets[rows])
        return one._gradient(one.first, own)

    each = [of_device(index) for index in range(4)]
    assert not np.allclose(*(by_name(one.grads)["readout/kernel"] for one in each[:2]))
    found = jax.jit(steps._gradient)(state.values, batch)
    for name, value in by_name(found.grads).items():
        wanted = np.mean([by_name(one.grads)[name] for one in each], axis=0)
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6, err_msg=name)
    for name, value in by_name(found.changed).items():
        own = [np.asarray(by_name(one.changed)[name]) for one in each]
        wanted = np.mean(own, axis=0) if value.dtype == jnp.float32 else own[0]
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6, err_msg=name)
    ends = []
    for _ in range(2):
        program.resume({0: state})
        make(program, 5, measured=True)
        ends.append(program.state())
    same(*ends)
    for leaf in jax.tree.leaves(ends[0].values):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all(np.array_equal(copy, copies[0]) for copy in copies)


@pytest.mark.slow
def test_each_of_several_devices_has_its_own_statistics_and_random_numbers():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.test_variables"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


# Numbers of other kinds.


def test_float16_is_measured_below_its_own_range_and_trained_in_float32():
    probes = {"adjoint": Adjoint(), "grad_norm": GradNorm()}
    task = Adding(length=60, held_out_examples=4)

    def steps_of(dtype):
        make = functools.partial(zoo.MemoryFirst, param_dtype=dtype)
        return build_steps(experiment(make_cell=make, probes=probes, task=task))

    half, single = map(steps_of, ("float16", "float32"))
    start = half.start(KEY)
    state, report, measured = jax.jit(half.probe)(start, ())
    same_weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), start.params)
    _, _, wanted = jax.jit(single.probe)(single.start(KEY)._replace(params=same_weights), ())
    for name in ("adj_h_log10", "adj_c_log10"):
        assert wanted[name].min() < -12  # float16 ends at -7.2, its squares at -3.6
        np.testing.assert_allclose(measured[name], wanted[name], atol=0.1, err_msg=name)
    np.testing.assert_allclose(measured["grad_norm"], wanted["grad_norm"], rtol=0.05)
    assert {value.dtype for value in (*measured.values(), *report)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim} == {
        jnp.dtype("float32")
    }
    before, after = by_name(start.params), by_name(state.params)
    assert sum(value.dtype == jnp.float16 for value in after.values()) == len(after) - 2
    for name, value in after.items():
        moved = np.abs(np.asarray(value, float) - np.asarray(before[name], float))
        assert 0.005 < np.median(moved) < 0.02, name  # Adam's first step is the learning rate


def test_complex_parameters_go_down_the_slope_and_their_norms_are_real():
    rate = 1e-3
    steps = build_steps(
        experiment(make_cell=zoo.LRU, rule=optax.sgd, learning_rate=rate, clip_norm=None, probes={})
    )
    start = steps.start(KEY)
    batch = steps.draw(start, ())
    pulled = jax.jit(steps._gradient)(start.values, batch)
    loss = jax.jit(lambda params: steps.loss(steps.first._replace(params=params), batch, None)[0])
    rise = sum(float(jnp.sum(jnp.abs(leaf) ** 2)) for leaf in jax.tree.leaves(pulled.grads))

    def along(size):
        return float(loss(jax.tree.map(lambda p, g: p + size * g, start.params, pulled.grads)))

    assert (along(1e-3) - along(-1e-3)) / 2e-3 == pytest.approx(rise, rel=1e-2)
    state, report, _ = jax.jit(steps.probe)(start, ())
    assert not jnp.iscomplexobj(report.grad_norm)
    assert float(report.grad_norm) == pytest.approx(rise**0.5, rel=1e-5)
    before, after = (by_name(one.params)["layers/0/0/into"] for one in (start, state))
    into = by_name(pulled.grads)["layers/0/0/into"]
    np.testing.assert_allclose(after, before - rate * into, rtol=1e-5, atol=1e-7)


def test_what_an_optimizer_cannot_do_with_complex_parameters_is_said():
    clips = Optimizer(optax.adam, steps=12, learning_rate=0.01, clip_value=1.0)
    with pytest.raises(BadInput, match="complex") as refused:
        build_steps(experiment(make_cell=zoo.LRU, optimizer=clips))
    assert refused.value.key == "optimizer.clip_value"


# What nobody is to read.


@dataclasses.dataclass(frozen=True)
class Holes(Adding):
    """Adding with anything at all behind the end of each example."""

    filled: tuple[float, float] = (0.0, 0.0)

    def _with(self, batch):
        filled = jnp.asarray(self.filled)
        return batch._replace(inputs=jnp.where(batch.mask[..., None], batch.inputs, filled))

    def sample(self, data, key, batch):
        return self._with(super().sample(data, key, batch))

    def held_out(self, split):
        return self._with(super().held_out(split))


def test_what_lies_behind_the_end_of_an_example_changes_nothing():
    ends = []
    for filled in ((0.0, 0.0), (np.nan, np.inf)):
        task = Holes(length=8, min_length=3, held_out_examples=12, filled=filled)
        steps = build_steps(experiment(make_cell=nnx.SimpleCell, task=task, probes={}))
        program = Solo(steps, KEY, 250)
        state, report = jax.jit(steps.advance)(steps.start(KEY), (), 2)
        ends.append((state, report, program.score("test")[0]["loss"]))
    assert np.isfinite(ends[0][2])
    same(ends[1][:2], ends[0][:2])
    assert ends[1][2] == ends[0][2]


def test_a_target_without_weight_is_not_read():
    weights = jnp.array([[0.5, 0.0], [0.5, 1.0]])
    outputs = jnp.array([[[1.0, 2.0], [3.0, 4.0]], [[0.5, -1.0], [2.0, 0.0]]])
    real = jnp.array([[[0.0, 1.0], [9.0, 9.0]], [[1.0, 1.0], [1.0, 2.0]]])
    holes = real.at[0, 1].set(jnp.nan)

    def mean(outputs, targets):
        return jnp.mean(per_example_loss("mse", outputs, targets, weights))

    same(*(jax.value_and_grad(mean)(outputs, targets) for targets in (holes, real)))
    classes = jnp.array([[0, 99], [1, 0]])
    answer = (outputs, classes, weights)
    np.testing.assert_allclose(per_example_accuracy(*answer), [0.0, 1.0])
    first = np.log1p(np.exp(1.0)), np.log1p(np.exp(1.5))
    np.testing.assert_allclose(
        per_example_loss("cross_entropy", *answer),
        [np.mean(first), np.log1p(np.exp(-2))],
        rtol=1e-6,
    )


if __name__ == "__main__":
    with zoo.as_users_do():
        _on_devices()
