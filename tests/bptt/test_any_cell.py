"""Cells of every kind in one stack, against plain autodiff of a loop; what no single cell shows."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.bptt.unroll import make_taps, unroll, whole_taps
from gradlab.cells import LSTM
from tests.zoo import (
    HALF,
    LRU,
    LSTMP,
    B,
    H,
    I,
    LearnedMemory,
    Own,
    Projected,
    as_users_do,
    inexact,
    widened,
)

LOG10_2 = math.log10(2)
STEPS = 4
LENGTHS = (STEPS, 2, 3)


class LearnedLRU(LRU):
    """A complex state whose first value is learned."""

    def fill(self, rngs):
        super().fill(rngs)
        self.first = nnx.Param(self.draw(rngs, (self.hidden_features,)))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.broadcast_to(self.first[...], (*input_shape[:-1], self.hidden_features))


class LearnedProjected(Projected):
    """y = P·h, with a learned first state."""

    def fill(self, rngs):
        super().fill(rngs)
        self.first = nnx.Param(0.3 * rngs.params.normal((self.hidden_features,), self.param_dtype))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.broadcast_to(self.first[...], (*input_shape[:-1], self.hidden_features))


def stack():
    rngs = nnx.Rngs(0)
    layers = [
        [LearnedMemory(I, H, rngs=rngs), LearnedProjected(I, H, rngs=rngs)],
        [LearnedLRU(H + 2, H, rngs=rngs), LSTMP(H + 2, H, rngs=rngs)],
    ]
    return nnx.List(nnx.List(layer) for layer in layers)


def emitted(cell, carry, x, after, nudge):
    """The new carry with a number added to each leaf, and the output made of that."""
    moved = jax.tree.map(jnp.add, after, nudge)
    if hasattr(cell, "emit"):
        return moved, cell.emit(carry, x, moved)
    return moved, moved[1]


def walked(layers, inputs, mask, nudges):
    """Outputs and the last output, by a loop over layers, directions and steps."""
    read, ends = inputs, []
    for depth, layer in enumerate(layers):
        outputs, ends = [], []
        for direction, cell in enumerate(layer):
            order = slice(None, None, -1 if direction else 1)
            carry = cell.initialize_carry(read.shape[1:], nnx.Rngs(0))
            made = []
            for t, (x, real) in enumerate(zip(read[order], mask[order], strict=True)):
                after, _ = cell(carry, x)
                nudge = jax.tree.map(lambda leaf, t=t: leaf[t], nudges[depth][direction])
                after, y = emitted(cell, carry, x, after, nudge)
                pairs = zip(jax.tree.leaves(after), jax.tree.leaves(carry), strict=True)
                held = [jnp.where(real[:, None], new, old) for new, old in pairs]
                carry = jax.tree.unflatten(jax.tree.structure(carry), held)
                is_h = not hasattr(cell, "emit")
                made.append(carry[1] if is_h else jnp.where(real[:, None], y, 0))
            found = jnp.stack(made)
            at = mask.shape[0] - 1 - jnp.argmax(mask[order][::-1], axis=0)
            ends.append(found[at, jnp.arange(mask.shape[1])])
            outputs.append(found[order])
        read = jnp.concatenate(outputs, -1)
    return read, jnp.concatenate(ends, -1)


def loss_of(outputs, last):
    weights = jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape)
    return jnp.sum(weights * jnp.sin(outputs)) + jnp.sum(jnp.square(last))


@pytest.mark.slow
def test_any_cells_in_one_stack_equal_plain_autodiff_of_a_loop():
    """Learned first states, complex ones, projections, two directions, padding full of NaN."""
    layers = stack()
    with as_users_do(wide=True):
        wide: Any = widened(layers)
        inputs = jax.random.normal(jax.random.key(1), (STEPS, B, I))
        mask = jnp.arange(STEPS)[:, None] < jnp.array([LENGTHS])
        graph, params, rest = nnx.split(wide, inexact, ...)

        def oracle(params, inputs, nudges):
            module = nnx.merge(graph, params, rest, copy=True)
            return loss_of(*walked(module, inputs, mask, nudges))

        def ours(params, inputs, taps):
            module = nnx.merge(graph, params, rest, copy=True)
            run = unroll(module, inputs, mask=mask, taps=taps)
            return loss_of(run.outputs, run.last)

        nudges = [
            [
                jax.tree.map(
                    lambda leaf: jnp.zeros((STEPS, *leaf.shape), leaf.dtype),
                    cell.initialize_carry((B, I), nnx.Rngs(0)),
                )
                for cell in layer
            ]
            for layer in wide
        ]
        want, (want_params, want_inputs, adjoints) = jax.jit(
            jax.value_and_grad(oracle, argnums=(0, 1, 2))
        )(params, inputs, nudges)
        derive = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2)))
        got, (got_params, got_inputs, taps) = derive(params, inputs, whole_taps(wide, inputs.shape))
        spoilt = jnp.where(mask[..., None], inputs, jnp.array([jnp.nan, jnp.inf, -jnp.inf]))
        from_spoilt = derive(params, spoilt, whole_taps(wide, inputs.shape))
        tight: Any = {"rtol": 1e-10, "atol": 1e-12}
        assert float(got) == pytest.approx(float(want), rel=1e-12)
        np.testing.assert_allclose(got_inputs, want_inputs, **tight)
        firsts = 0
        for (path, value), (_, due) in zip(
            nnx.to_flat_state(got_params), nnx.to_flat_state(want_params), strict=True
        ):
            np.testing.assert_allclose(value[...], due[...], err_msg=str(path), **tight)
            firsts += path[-1] in ("c0", "h0", "first") and bool(jnp.all(value[...] != 0))
        assert firsts == 4
        for depth, direction in ((0, 0), (0, 1), (1, 0), (1, 1)):
            seen, due = taps[depth][direction], jax.tree.leaves(adjoints[depth][direction])
            real = np.asarray(mask[::-1] if direction else mask)
            size = 2.0 ** np.asarray(seen["exponent"])
            for name, leaf in zip(seen["adjoint"], due, strict=True):
                found = np.asarray(seen["adjoint"][name]) * size[..., None]
                np.testing.assert_allclose(found[real], np.asarray(leaf)[real], **tight)
        # What the padding holds is nothing to the gradient, nor to what is seen on the way.
        clean = jax.tree.leaves((got, (got_params, got_inputs, taps)))
        for one, other in zip(clean, jax.tree.leaves(from_spoilt), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_pass_that_runs_on_is_that_of_flax_and_padding_changes_no_gradient():
    """``waits=False`` beside ``nnx.RNN`` with ``seq_lengths``, its final carry included."""
    cell = LSTM(I, H, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(1), (STEPS, B, I))
    lengths = jnp.array(LENGTHS)
    mask = jnp.arange(STEPS)[:, None] < lengths[None]
    graph, params = nnx.split(cell)

    def loss(outputs, carry, everything):
        real = outputs if everything is None else jnp.where(mask[..., None], outputs, 0)
        return jnp.sum(jnp.sin(real)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(carry))

    def ours(params, inputs, everything):
        run = unroll([[nnx.merge(graph, params, copy=True)]], inputs, mask=mask, waits=False)
        return loss(run.outputs, run.finals[0][0], everything)

    def theirs(params, inputs, everything):
        layer = nnx.RNN(nnx.merge(graph, params, copy=True), time_major=True, return_carry=True)
        carry, outputs = layer(inputs, seq_lengths=lengths)
        return loss(outputs, carry, everything)

    derive = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)), static_argnums=2)
    for everything in (
        None,
        False,
    ):  # a loss that reads the padding's outputs, and one that does not
        want = jax.jit(jax.value_and_grad(theirs, argnums=(0, 1)), static_argnums=2)(
            params, inputs, everything
        )
        got = derive(params, inputs, everything)
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    spoilt = jnp.where(mask[..., None], inputs, jnp.nan)
    for one, other in zip(
        jax.tree.leaves(got), jax.tree.leaves(derive(params, spoilt, False)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


class Spiral(Own):
    """One complex number that turns and shrinks: z' = λ z + x, y = Re(w z)."""

    rate, weight = 0.5 * complex(math.cos(0.3), math.sin(0.3)), complex(3, 4)

    def fill(self, rngs):
        self.scale = nnx.Param(jnp.ones(()))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], 1), jnp.complex64)

    def __call__(self, carry, inputs):
        z = self.scale[...] * (self.rate * carry) + inputs
        return z, (self.weight * z).real


def test_a_complex_state_behind_a_computed_output_follows_its_rate_over_5000_steps():
    """∂ℓ/∂z = |w| |λ|^lag, 10^-1504 at the far end."""
    with as_users_do():
        cell = Spiral(1, 1, rngs=nnx.Rngs(0))
        taps = make_taps([[cell]], (5000, 2, 1))
        inputs = jnp.zeros((5000, 2, 1))

        def loss(taps):
            return jnp.sum(unroll([[cell]], inputs, taps=taps, every=False).last)

        ((found,),) = jax.jit(jax.grad(loss))(taps)
    lag = np.arange(4999, -1, -1)
    want = math.log10(5) + lag * math.log10(0.5)
    np.testing.assert_allclose(np.asarray(found["h"][:, 0]) * LOG10_2, want, atol=1e-3)


def test_half_precision_sees_what_float64_sees_far_below_its_own_floor():
    """Over 150 steps the adjoint falls by 20 decades and more; float16 ends at 10^-7.

    The norms are right to 0.1 in log10, the gradient to 3 % of its largest number.
    """
    specimen, steps = HALF["gradlab GRU, float16"], 150

    def seen(cell, inputs):
        graph, params = nnx.split(cell)
        read = jnp.moveaxis(inputs, 1, 0)

        def loss(params, taps):
            module = nnx.merge(graph, params, copy=True)
            last = unroll([[module]], read, taps=taps, every=False).last
            return jnp.sum(last.astype(jnp.promote_types(last.dtype, jnp.float32)) ** 2)

        derive = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return derive(params, make_taps([[cell]], read.shape, read.dtype))

    with as_users_do():
        cell = specimen.build()
        grads, ((norms,),) = seen(cell, specimen.inputs(steps=steps))
    with as_users_do(wide=True):
        exact, ((due,),) = seen(widened(cell), specimen.inputs(steps=steps, wide=True))
    assert norms["h"].dtype == jnp.float32
    for state, curve in norms.items():
        want = np.asarray(due[state]) * LOG10_2
        assert want[0, 0] < -20
        np.testing.assert_allclose(np.asarray(curve) * LOG10_2, want, atol=0.1)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        assert one.dtype == specimen.wants
        want = np.asarray(other)
        np.testing.assert_allclose(np.asarray(one, float), want, atol=0.03 * np.abs(want).max())


class Log(nnx.Variable):
    """What each step writes down, and reads."""


class Writes(Own):
    """Reads a number of its own at each step and writes another; counts besides."""

    def fill(self, rngs):
        super().fill(rngs)
        self.log = Log(0.1 * rngs.params.normal((self.hidden_features, STEPS), self.param_dtype))
        self.fast = nnx.Variable(0.1 * rngs.params.normal((self.hidden_features,)))
        self.drop = nnx.Dropout(0.4, rngs=nnx.Rngs(dropout=7))

    def __call__(self, carry, inputs):
        h = self.drop(jnp.tanh(self.new(carry, inputs) + self.log[...] * carry + self.fast[...]))
        self.log[...] = self.log[...] + 2 * jnp.mean(h, 0)
        self.fast[...] = 0.5 * self.fast[...] + jnp.mean(h, 0)
        return h, h


def test_variables_that_steps_change_are_those_of_flax_and_pass_gradients_on():
    """Two calls with ``state_axes`` and ``broadcast_rngs``, then a loss of the Variables, too."""
    with as_users_do():
        cell = Writes(I, H, rngs=nnx.Rngs(0))
        scan = {"state_axes": nnx.StateAxes({Log: 1, ...: nnx.Carry}), "broadcast_rngs": "dropout"}
        inputs = jax.random.normal(jax.random.key(1), (STEPS, B, I))
        graph, params, rest = nnx.split(cell, inexact, ...)

        def loss(module, run):
            total = jnp.sum(jnp.sin(run(inputs))) + jnp.sum(jnp.cos(2 * run(inputs)))
            after = jnp.sum(module.log[...] ** 2) + jnp.sum(jnp.sin(module.fast[...]))
            return total + after, nnx.state(module)

        def ours(params, taps):
            module = nnx.merge(graph, params, rest, copy=True)
            return loss(module, lambda x: unroll([[module]], x, taps=taps, **scan).outputs)

        def theirs(params):
            module = nnx.merge(graph, params, rest, copy=True)
            return loss(module, nnx.RNN(module, time_major=True, **scan))

        taps = make_taps([[cell]], inputs.shape, **scan)
        (got, state), (grads, norms) = jax.jit(
            jax.value_and_grad(ours, argnums=(0, 1), has_aux=True)
        )(params, taps)
        (want, due), exact = jax.jit(jax.value_and_grad(theirs, has_aux=True))(params)
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    assert np.all(np.isfinite(norms[0][0]["h"]))
    stream: Any = cell.drop.rngs
    assert stream.count[...] == 0  # the cell outside is what it was
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(due), strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
