"""What is found about a cell from one abstract trace; nothing here is compiled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from gradlab.bptt.form import form_of
from gradlab.bptt.unroll import forms_of, unroll
from gradlab.errors import BadInput
from tests.zoo import FAULTY, HALF, REFERENCE, ZOO, B, H, I, MemoryFirst, Own, T, as_users_do

NEW = [*(ZOO.keys() - REFERENCE.keys()), "gradlab GRU, float16", "Flax LSTMCell, dtype=bfloat16"]


@pytest.mark.parametrize("name", sorted(NEW))
def test_every_cell_of_the_zoo_is_what_it_is(name):
    specimen = {**ZOO, **HALF}[name]
    with as_users_do():
        cell, inputs = specimen.build(), specimen.inputs()
        shape = (T, B, *specimen.features)
        ((form,),) = forms_of([[cell]], shape, inputs.dtype, **specimen.scan)
    assert form.states == tuple(specimen.states)
    assert form.h == specimen.h
    assert form.is_leaf == specimen.is_leaf
    assert form.mixes == specimen.mixes
    assert form.half == (specimen.half is not None)
    assert tuple(one for one in form.names if one not in form.states) == specimen.others
    assert form.output.shape == specimen.width
    assert hash(form) == hash(form._replace())


SAID = {
    "h cannot be found": 'a carry whose h cannot be found[\\s\\S]*h_leaf = "…"',
    "h_leaf names no leaf": r"h_leaf: got 'middle'[\s\S]*fast \| slow",
    "another dtype": r"bfloat16\[B, 4\][\s\S]*of the same form as the old one, float32\[B, 4\]",
    "another form": r"a new carry of the same form as the old one",
    "another shape": r"float32\[B, 8\][\s\S]*float32\[B, 4\]",
    "no pair": r"returns an array[\s\S]*\(carry, y\), returned by NoPair",
    "nothing real": r"a carry whose h cannot be found",
    "makes Variables": r"a step that creates Variables[\s\S]*__init__",
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_cell_that_cannot_run_is_refused_with_what_to_do(name):
    specimen = FAULTY[name]
    with pytest.raises(BadInput, match=f"cell [\\s\\S]*{SAID[name]}"):
        unroll([[specimen.build()]], jnp.moveaxis(specimen.inputs(), 1, 0))


class TwoOutputs(MemoryFirst):
    def __call__(self, carry, inputs):
        new, h = super().__call__(carry, inputs)
        return new, (h, h)


def test_an_output_that_is_no_array_is_refused():
    with pytest.raises(BadInput, match=r"an output that is a tuple[\s\S]*one array \(B, …\)"):
        unroll([[TwoOutputs(I, H, rngs=nnx.Rngs(0))]], jnp.zeros((T, B, I)))


def test_filters_that_leave_out_a_variable_are_refused():
    cell, axes = MemoryFirst(I, H, rngs=nnx.Rngs(0)), {nnx.BatchStat: nnx.Carry}
    with pytest.raises(BadInput, match=r"state_axes[\s\S]*read/kernel"):
        unroll([[cell]], jnp.zeros((T, B, I)), state_axes=axes)


class Both(NamedTuple):
    one: jax.Array
    other: jax.Array


class Mixer(Own):
    """How a cell may look at the other examples of its batch, or not."""

    ways = {  # noqa: RUF012
        "mean": (lambda h: h - jnp.broadcast_to(jnp.mean(h, 0, keepdims=True), h.shape), True),
        "first example": (lambda h: h + h[:1], True),
        "neighbour": (lambda h: h + jnp.roll(h, 1, axis=0), True),
        "order": (lambda h: jnp.sort(h, axis=0), True),
        "running sum": (lambda h: jnp.cumsum(h, axis=0), True),
        "attention": (lambda h: jax.nn.softmax(h @ h.T, axis=-1) @ h, True),
        "a scan over the batch": (
            lambda h: jax.lax.scan(lambda s, x: (s + x, s), h[0], h)[1],
            True,
        ),
        "flat": (lambda h: h / jnp.broadcast_to(jnp.linalg.norm(h.ravel()), h.shape), True),
        "features": (lambda h: h / jnp.sum(jnp.square(h), -1, keepdims=True), False),
        "order of features": (lambda h: jnp.sort(h, axis=-1) + jnp.cumsum(h, axis=-1), False),
        "softmax": (lambda h: jax.nn.softmax(h, axis=-1), False),
        "each alone": (jax.vmap(lambda h: h * jnp.sum(h)), False),
        "reshaped": (lambda h: h.reshape(h.shape[0], 2, -1).swapaxes(1, 2).reshape(h.shape), False),
        "a loop": (lambda h: jax.lax.fori_loop(0, 3, lambda _, h: jnp.sin(h), h), False),
    }

    def __init__(self, way):
        super().__init__(I, H, rngs=nnx.Rngs(0))
        self.way = way

    def __call__(self, carry, inputs):
        h = self.ways[self.way][0](self.new(carry, inputs))
        return h, h


@pytest.mark.parametrize("way", Mixer.ways)
def test_a_step_that_mixes_the_examples_is_told_from_one_that_does_not(way):
    with as_users_do():
        form = form_of(Mixer(way), jnp.zeros((B, H)), jnp.zeros((B, I)))
    assert form.mixes == Mixer.ways[way][1]


class Held(Own):
    """An array of the batch's own size: it runs with that batch only."""

    def fill(self, rngs):
        super().fill(rngs)
        self.own = nnx.Variable(jnp.ones((B, self.hidden_features)))

    def __call__(self, carry, inputs):
        h = self.new(carry, inputs) * self.own[...]
        return Both(carry.one, h), h

    def new(self, carry, x):
        return super().new(carry.other, x)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return Both(*self.zeros(input_shape, self.hidden_features, self.hidden_features))


def test_a_cell_of_one_size_of_batch_runs_with_it_and_counts_as_one_that_mixes():
    ((form,),) = forms_of([[Held(I, H, rngs=nnx.Rngs(0))]], (T, B, I))
    assert form.mixes
    assert form.h == "other"
    assert form.names == ("one", "other")
