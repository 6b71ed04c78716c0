import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradlab.tasks.adding import Adding
from gradlab.tasks.digits import Digits
from gradlab.training import lift
from gradlab.training.optimizer import Optimizer


class Pair(NamedTuple):
    first: float
    second: str


@dataclasses.dataclass(frozen=True)
class Noise:
    level: float = 0.1
    name: str = "white"
    levels: tuple[float, ...] = (0.1, 0.2)

    def __post_init__(self):
        if self.level < 0:
            raise ValueError("negative")


def optimizer(rate=0.1, decay=0.01, **more):
    rule = functools.partial(optax.adamw, weight_decay=decay)
    return Optimizer(rule, steps=10, learning_rate=rate, **more)


def activation(slope):
    return lambda x: slope * x


def test_every_float_has_a_path():
    assert lift.numbers({"a": 1.5, "b": [2.5, "x"], "c": Pair(3.5, "y"), "n": 4, "t": True}) == {
        "a": 1.5,
        "b.0": 2.5,
        "c.0": 3.5,
    }
    found = lift.numbers(optimizer(0.5, 0.25, clip_norm=2), "optimizer")
    assert found["optimizer.learning_rate"] == 0.5
    assert found["optimizer.rule.weight_decay"] == 0.25
    assert found["optimizer.clip_norm"] == 2.0  # a whole number was given


def test_values_take_the_place_of_the_floats_and_nothing_is_checked():
    noise = Noise()
    changed = lift.replaced(noise, {"level": -1.0, "levels.1": 9.0})
    assert (changed.level, changed.levels, changed.name) == (-1.0, (0.1, 9.0), "white")
    assert noise == Noise()
    assert lift.replaced(noise, {"elsewhere": 1.0}) is noise
    pair = lift.replaced(Pair(1.0, "x"), {"0": 2.0})
    assert pair == Pair(2.0, "x")
    assert isinstance(pair, Pair)


def test_an_optimizer_of_traced_numbers_is_the_optimizer_of_those_numbers():
    gradient = jnp.array([3.0, -4.0])

    def update(values):
        one = lift.replaced(optimizer(clip_norm=9.0, schedule="cosine"), values)
        state = one.clip.init(gradient), one.update.init(gradient)
        clipped, _ = one.clip.update(gradient, state[0], gradient)
        return one.update.update(clipped, state[1], gradient)[0]

    values = {"learning_rate": 0.3, "rule.weight_decay": 0.2, "clip_norm": 0.5}
    own = optimizer(0.3, 0.2, clip_norm=0.5, schedule="cosine")
    clipped, _ = own.clip.update(gradient, own.clip.init(gradient), gradient)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        expected, _ = own.update.update(clipped, own.update.init(gradient), gradient)
        np.testing.assert_allclose(jax.jit(update)(values), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (optimizer(0.1, 0.1), optimizer(0.2, 0.3)),
        (Adding(length=8), Adding(length=8)),
        (Digits(), Digits()),
        ({"x": (1.0, "a")}, {"x": (2.0, "a")}),
        (activation(2.0), activation(2.0)),
        (None, None),
    ],
)
def test_alike(one, other):
    assert lift.alike(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (optimizer(), optimizer(clip_norm=1.0)),
        (optimizer(), optimizer(schedule="linear")),
        (optimizer(), optimizer(warmup_steps=3)),
        (Optimizer(optax.adam, 10, 0.1), Optimizer(optax.sgd, 10, 0.1)),
        (Adding(length=8), Adding(length=9)),
        (Digits(), Digits(split_seed=1)),
        (Noise(), Adding()),
        ({"x": 1.0}, {"y": 1.0}),
        ((1.0, 2.0), (1.0, 2.0, 3.0)),
        # A number inside a function cannot be taken out of it.
        (activation(2.0), activation(3.0)),
        (np.zeros(2), np.ones(2)),
        (object(), object()),
    ],
)
def test_not_alike(one, other):
    assert not lift.alike(one, other)


def test_what_a_part_derived_from_its_number_keeps_it_apart():
    @dataclasses.dataclass(frozen=True)
    class Table:
        scale: float
        table: tuple = dataclasses.field(init=False, compare=False)

        def __post_init__(self):
            object.__setattr__(self, "table", (self.scale, 2 * self.scale))

    assert lift.alike(Table(1.0), Table(1.0))
    assert not lift.alike(Table(1.0), Table(2.0))
