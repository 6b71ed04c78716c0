"""What every task promises, for every yaml of ``conf/task`` without a list of them here.

The file ``test_<module>.py`` beside this one may add what only it can know of its task:
``guess(task, batch, split)``, the outputs of the guess that the baseline names (``RTOL``: how
closely its loss on held-out data must match the baseline's), and ``VARIANTS``, further options to
run the contract with.
"""

import dataclasses
import functools
import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omegaconf import OmegaConf

from gradlab.tasks.base import Baseline, Batch, Generated, Task, settle
from tests import ROOT

CONF = ROOT / "conf" / "task"
STEMS = sorted(path.stem for path in CONF.glob("*.yaml"))
B = 500
KEYS = jax.random.split(jax.random.key(3), 4)


def read_yaml(stem):
    options = OmegaConf.to_container(OmegaConf.load(CONF / f"{stem}.yaml"))
    module, _, name = options.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), name), options


def oracle(cls):
    """The test file of the task's own module, or None."""
    name = f"{__package__}.test_{cls.__module__.rpartition('.')[2]}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


@functools.cache
def build(stem, variant):
    cls, options = read_yaml(stem)
    return cls(**{**options, **dict(variant)})


@functools.cache
def compiled(task):
    """A function that draws ``B`` examples with a key, and the batch sizes it was traced for."""
    traces = []

    def step(data, key, batch):
        traces.append(batch)
        return task.sample(data, key, batch)

    step = jax.jit(step, static_argnames="batch")
    return lambda key: step(task.data, key, batch=B), traces


def builds():
    for stem in STEMS:
        for variant in [{}, *getattr(oracle(read_yaml(stem)[0]), "VARIANTS", [])]:
            told = ",".join(f"{key}={value}" for key, value in variant.items())
            yield pytest.param((stem, tuple(variant.items())), id=f"{stem}[{told}]")


@pytest.fixture(params=builds())
def task(request):
    return build(*request.param)


def obeys(task, batch, B):
    """Assert everything that ``Batch`` and ``Task`` say of one batch."""
    T = task.length
    steps = (T,) if task.readout == "every" else ()
    if task.symbols is None:
        assert batch.inputs.shape == (T, B, task.features)
        assert batch.inputs.dtype == jnp.result_type(float)
        assert np.isfinite(batch.inputs).all()
    else:
        assert batch.inputs.shape == (T, B)
        assert batch.inputs.dtype == jnp.int32
        assert np.min(batch.inputs) >= 0
        assert np.max(batch.inputs) < task.symbols
    if task.loss == "mse":
        assert batch.targets.shape == (*steps, B, task.outputs)
        assert batch.targets.dtype == jnp.result_type(float)
        assert np.isfinite(batch.targets).all()
    else:
        assert batch.targets.shape == (*steps, B)
        assert batch.targets.dtype == jnp.int32
        assert np.min(batch.targets) >= 0
        assert np.max(batch.targets) < task.outputs
    assert (batch.weights is None) == (task.readout == "last")
    if batch.weights is not None:
        assert batch.weights.shape == (T, B)
        assert np.min(batch.weights) >= 0
        np.testing.assert_allclose(np.sum(batch.weights, 0, dtype=float), 1, rtol=1e-5)
    if batch.mask is not None:
        mask = np.asarray(batch.mask)
        assert mask.shape == (T, B)
        assert mask.dtype == bool
        assert mask[0].all()
        assert (mask[1:] <= mask[:-1]).all()  # once False, False to the end
        if batch.weights is not None:
            assert (np.asarray(batch.weights)[~mask] == 0).all()


def same(first, second):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def examples(batch):
    """Each example's inputs and targets as bytes."""
    B = batch.inputs.shape[1]
    inputs = np.moveaxis(np.asarray(batch.inputs), 1, 0)
    targets = np.asarray(batch.targets)
    targets = np.moveaxis(targets, targets.ndim - 1, 0) if targets.shape[0] != B else targets
    return [a.tobytes() + b.tobytes() for a, b in zip(inputs, targets, strict=True)]


@pytest.mark.parametrize("stem", STEMS)
def test_yaml_holds_every_option(stem):
    cls, options = read_yaml(stem)
    fields = {f.name: f.default for f in dataclasses.fields(cls) if f.init}
    assert set(options) == set(fields)
    if stem == cls.__module__.rpartition(".")[2]:  # a second yaml of a class may differ
        assert options == fields


def test_describes_itself(task):
    assert isinstance(task, Task)
    assert task.loss in ("mse", "cross_entropy")
    assert task.readout in ("last", "every")
    assert task.length >= 1
    assert task.outputs >= 1
    assert (task.symbols or task.features) >= 1
    assert 10 < len(task.describe()) < 100
    assert task.describe() != Task.__doc__.splitlines()[0]
    hash(task)  # so that it can be a static argument


def test_sample_obeys_under_jit_and_compiles_once(task):
    draw, traces = compiled(task)
    one, other = draw(KEYS[0]), draw(KEYS[1])
    assert traces == [B]
    obeys(task, one, B)
    obeys(task, other, B)
    assert same(one, draw(KEYS[0]))
    assert not same(one.inputs, other.inputs)


@pytest.mark.parametrize("stem", STEMS)
def test_sample_maps_over_members(stem):
    """A population draws for all its members at once, and each gets what it would get alone."""
    task = build(stem, ())
    many = jax.jit(jax.vmap(lambda key: task.sample(task.data, key, B)))(KEYS[:2])
    for member, key in enumerate(KEYS[:2]):
        alone = compiled(task)[0](key)
        assert same([leaf[member] for leaf in jax.tree.leaves(many)], jax.tree.leaves(alone))


def test_data_is_an_argument_and_no_constant(task):
    jaxpr = jax.make_jaxpr(lambda data, key: task.sample(data, key, 2))(task.data, KEYS[0])
    assert sum(np.size(constant) for constant in jaxpr.consts) <= 2 * task.length


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_obeys_and_is_fixed(task, split):
    batch = task.held_out(split)
    obeys(task, batch, batch.inputs.shape[1])
    assert same(batch, task.held_out(split))


def test_no_example_is_in_two_splits(task):
    draw, _ = compiled(task)
    train = {example for key in KEYS for example in examples(draw(key))}
    val, test = (set(examples(task.held_out(split))) for split in ("val", "test"))
    assert not train & val
    assert not train & test
    assert not val & test


@pytest.mark.parametrize("split", ["val", "test"])
def test_baseline_is_what_its_guess_scores(task, split):
    own = oracle(type(task))
    if not hasattr(own, "guess"):
        pytest.skip("its test file has no guess(task, batch, split)")
    batch, baseline = task.held_out(split), task.baseline(split)
    outputs = np.asarray(own.guess(task, batch, split), float)
    targets = np.asarray(batch.targets)
    B = batch.inputs.shape[1]
    steps = (task.length,) if task.readout == "every" else ()
    outputs = np.broadcast_to(outputs, (*steps, B, task.outputs))
    weights = 1.0 if batch.weights is None else np.asarray(batch.weights, float)
    if task.loss == "mse":
        loss = ((outputs - targets) ** 2).mean(-1)
        assert baseline.accuracy is None
    else:
        total = np.log(np.exp(outputs).sum(-1))
        loss = total - np.take_along_axis(outputs, targets[..., None], -1)[..., 0]
        right = (outputs.argmax(-1) == targets) * weights
        p = baseline.accuracy
        assert right.sum() / B == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / B))
    assert (loss * weights).sum() / B == pytest.approx(baseline.loss, rel=own.RTOL)
    assert baseline.name == baseline.name.lower()


def test_baseline_of_training(task):
    """Train is a split too, and no harder to guess than the others by an order of magnitude."""
    assert 0.1 < task.baseline("train").loss / task.baseline("test").loss < 10


@dataclasses.dataclass(frozen=True)
class Told(Generated):
    """All its sequences are one table, from a file whose name is its only option."""

    path: str
    held_out_examples: int = 2

    def __post_init__(self):
        settle(self, table=np.loadtxt(self.path, dtype=np.float32))

    def sample(self, data, key, batch):
        return Batch(jnp.broadcast_to(self.table[:, None, None], (3, batch, 1)), jnp.ones(batch))

    def baseline(self, split):
        return Baseline("nothing", 0.0)


def test_a_table_that_changed_is_not_served_as_it_was(tmp_path):
    """Two tasks with the same options are equal, and what they read need not be."""
    path = tmp_path / "table"
    for numbers in ("1 2 3", "4 5 6"):
        path.write_text(numbers)
        found = Told(str(path)).held_out("val").inputs[:, 0, 0]
        np.testing.assert_array_equal(found, np.float32(numbers.split()))
