"""Arguments against constructors, before anything is built."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import optax
import pytest
from flax import nnx

from gradlab import cells, probes, regularizers, tasks
from gradlab.errors import BadInput
from gradlab.launch.check import check_arguments, check_keys, check_type, in_words

Word = Literal["tanh", "relu"]


def build(
    size: int,
    rate: float = 0.1,
    word: Word | Callable[[float], float] = "tanh",
    tags: Sequence[str] = (),
    quantiles: tuple[float, ...] = (),
    decay: jax.typing.ArrayLike = 0.9,
    path: Path | None = None,
    other: Any = None,
    *,
    rngs: int = 0,
):
    """A constructor with every kind of annotation."""


class Own(nnx.RNNCellBase):
    """A user's own cell, with an annotation that cannot be resolved."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        width: int,
        rate: float | None = None,
        parts: Sequence[Callable] = (),
        *,
        rngs: "NotThere",  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    ):
        self.sizes = in_features, hidden_features, width, rate, parts


class Passing(Own):
    """One that takes whatever its base takes."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)


def check(given, supplied=frozenset(), target=build, **how):
    check_arguments("task", target, given, supplied=set(supplied), **how)


class OnlyByPosition(nnx.RNNCellBase):
    def __init__(self, n_in, n_out, /, *, rngs: nnx.Rngs):
        self.sizes = n_in, n_out


class Anything(nnx.RNNCellBase):
    def __init__(self, *sizes: int, rngs: nnx.Rngs):
        self.sizes = sizes


class Defaults(nnx.RNNCellBase):
    def __init__(self, n_in: int = 1, n_out: int = 4, *, rngs: nnx.Rngs):
        self.sizes = n_in, n_out


class ByName(nnx.RNNCellBase):
    def __init__(self, *, hidden_features: int, in_features: int, rngs: nnx.Rngs):
        self.sizes = in_features, hidden_features


class Swapped(nnx.RNNCellBase):
    def __init__(self, width: int, hidden_features: int, in_features: int, *, rngs: nnx.Rngs):
        self.sizes = in_features, hidden_features, width


class OtherNames(nnx.RNNCellBase):
    def __init__(self, n_in: int, n_out: int, width: int, *, rngs: nnx.Rngs):
        self.sizes = n_in, n_out, width


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"rate": 1},
        {"word": "relu"},
        {"word": {"_target_": "jax.nn.gelu"}},
        {"tags": ["a", "b"]},
        {"quantiles": [0.5, 1]},
        {"decay": 1},
        {"path": "anywhere"},
        {"other": {"a": [1]}},
    ],
)
def test_right_arguments_pass(given):
    check({"size": 3} | given)


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({}, "task.size", "build needs one"),
        ({"size": "3"}, "task.size", "a whole number"),
        ({"size": True}, "task.size", "a whole number"),
        ({"size": None}, "task.size", "a whole number"),
        ({"size": 2.5}, "task.size", "try: task.size=2"),
        ({"rate": float("inf")}, "task.rate", "a finite number"),
        ({"word": "tahn"}, "task.word", "try: task.word=tanh"),
        ({"tags": "a"}, "task.tags", "a list of texts"),
        ({"quantiles": [0.5, "a"]}, "task.quantiles", "a list of finite numbers"),
        ({"decay": "a"}, "task.decay", "a finite number"),
        ({"decay": True}, "task.decay", "a finite number"),
        ({"decay": [1]}, "task.decay", "a finite number"),
        ({"decay": None}, "task.decay", "a finite number"),
        ({"decay": 10**400}, "task.decay", "a finite number"),
        ({"rate": 10**400}, "task.rate", "a finite number"),
        ({"sise": 3}, "task.sise", "try: task.size"),
        ({"rngs": 3}, "task.rngs", "the keys of build: decay, other, path"),
    ],
)
def test_wrong_arguments_are_refused(given, key, words):
    sized = given if "size" in given or not given else {"size": 3} | given
    with pytest.raises(BadInput) as refusal:
        check(sized, supplied={"rngs"})
    assert refusal.value.key == key
    assert words in str(refusal.value)


def test_what_is_supplied_must_be_taken():
    with pytest.raises(BadInput, match="a class or function that takes hidden, rngs"):
        check({"size": 3}, supplied={"rngs", "hidden"})
    check({"hidden": 3, "anything": 4}, supplied={"rngs"}, target=lambda **_: None)


@pytest.mark.parametrize(
    ("target", "given", "key", "words"),
    [
        (cells.SimpleRNN, {"foo": 1}, "foo", "the keys of SimpleRNN: activation_fn, bias_init"),
        (cells.LSTM, {"forget_bais": 1}, "forget_bais", "try: task.forget_bias"),
        (cells.LSTM, {"in_features": 3}, "in_features", "the keys of LSTM"),
        (cells.LSTM, {"forget_bias": "x"}, "forget_bias", "a finite number"),
        (cells.GRU, {"recurrent_kernel_init": 3}, "recurrent_kernel_init", "| gaussian | identity"),
        (cells.GRU, {"gate_fn": "tanh"}, "gate_fn", "a section with _target_: the dotted name"),
        (nnx.OptimizedLSTMCell, {"foo": 1}, "foo", "the keys of OptimizedLSTMCell: activation_fn"),
        (nnx.OptimizedLSTMCell, {"recurrent_kernel_init": "gaussian"}, "recurrent_kernel_init", ""),
        (nnx.OptimizedLSTMCell, {"gate_fn": 3}, "gate_fn", "a section with _target_"),
        (nnx.GRUCell, {"carry_init": "zeros"}, "carry_init", "dotted name of a function, or null"),
        (nnx.SimpleCell, {"residual": 3}, "residual", "true or false"),
        (Own, {"width": 1, "foo": 1}, "foo", "the keys of Own: parts, rate, width"),
        (Own, {}, "width", "Own needs one"),
        (Own, {"width": 1.5}, "width", "a whole number"),
        (nnx.RNN, {}, "_target_", "a class or function that takes hidden_features, in_features"),
    ],
)
def test_wrong_arguments_of_a_cell_are_refused(target, given, key, words):
    with pytest.raises(BadInput) as refusal:
        check(given, {"in_features", "hidden_features", "rngs"}, target)
    assert refusal.value.key == f"task.{key}"
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("target", "given", "key"),
    [
        (tasks.Adding, {"foo": 1}, "foo"),
        (tasks.Adding, {"length": "x"}, "length"),
        (probes.GradNorm, {"foo": 1}, "foo"),
        (probes.Adjoint, {"quantiles": 3}, "quantiles"),
        (regularizers.Omega, {"foo": 1}, "foo"),
        (regularizers.Omega, {"weight": "x"}, "weight"),
        (optax.adam, {"learning_rate": 1, "foo": 1}, "foo"),
        (optax.adam, {}, "learning_rate"),
        (optax.adamw, {"learning_rate": 1, "b1": "x"}, "b1"),
    ],
)
def test_wrong_arguments_of_the_other_parts_are_refused(target, given, key):
    with pytest.raises(BadInput) as refusal:
        check(given, target=target)
    assert refusal.value.key == f"task.{key}"


@pytest.mark.parametrize(
    ("target", "given"),
    [
        (cells.LSTM, {"forget_bias": 1, "gate_fn": {"_target_": "jax.nn.sigmoid"}}),
        (cells.LSTM, {"dtype": "bfloat16", "recurrent_kernel_init": "gaussian"}),
        (nnx.OptimizedLSTMCell, {"dtype": None, "keep_rngs": False}),
        (nnx.GRUCell, {"carry_init": None}),
        (Own, {"width": 1, "rate": None}),
        (Own, {"width": 1, "parts": [{"_target_": "jax.numpy.tanh"}]}),
        (Passing, {"width": 1}),
        (OtherNames, {"width": 1}),
        (OnlyByPosition, {}),
        (Anything, {}),
        (Defaults, {}),
        (ByName, {}),
        (Swapped, {"width": 3}),
    ],
)
def test_right_arguments_of_a_cell_pass(target, given):
    check(given, {"in_features", "hidden_features", "rngs"}, target)


def test_a_part_needs_no_more_arguments():
    check({}, partial=True)


def test_what_cannot_be_inspected_passes():
    check({"anything": 3}, target=dict)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 1}, "x.b: got nothing .null.\n  allowed: a section of its own"),
        ({"a": 1, "b": 2}, "x.b: got 2"),
        ({"a": 1, "b": {}, "bb": 2}, "x.bb: got 2\n  allowed: one of these keys: a, b\n  try: x.b"),
    ],
)
def test_sections_have_their_keys(given, message):
    check_keys("x", {"a": 1, "b": {"nan": float("nan")}}, {"a": int, "b": dict})
    with pytest.raises(BadInput, match=message):
        check_keys("x", given, {"a": int, "b": dict})


def test_types_in_words():
    assert in_words(int | None) == "a whole number, or null"
    assert in_words(Word) == "tanh | relu"
    assert in_words(list[int]) == "a list of whole numbers"
    check_type("x", None, int | None)


def test_a_refusal_survives_the_way_between_processes():
    refusal = BadInput("key", 3, "more", "4")
    again = pickle.loads(pickle.dumps(refusal))  # noqa: S301
    assert str(again) == str(refusal) == "key: got 3\n  allowed: more\n  try: 4"
