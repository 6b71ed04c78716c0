"""Any state as one real vector, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.bptt.packing import Packing, from_real_form, real_form, real_gradient


def carry():
    return {
        "count": jnp.array([3, 4]),
        "half": jnp.array([[1.5], [2.5]], jnp.bfloat16),
        "turning": jnp.array([[[1 + 2j, 3 - 4j]], [[5j, 6 + 0j]]]),
    }


def test_a_state_of_several_types_is_packed_and_unpacked():
    packing = Packing(carry(), ("count", "half", "turning"), ("half", "turning"))
    packed = packing.pack(carry())
    np.testing.assert_array_equal(packed, [[1.5, 1, 3, 2, -4], [2.5, 0, 6, 5, 0]])
    assert packed.dtype == jnp.float32
    assert (packing.size, packing.parts["turning"].place) == (5, slice(1, 5))
    other = jax.tree.map(lambda leaf: leaf[:, None] * 0 + 7, carry())  # with an axis more
    back = packing.unpack(packing.split(packed[:, None]), other)
    np.testing.assert_array_equal(back["count"], [[7], [7]])
    for name in ("half", "turning"):
        np.testing.assert_array_equal(back[name][:, 0], carry()[name])
        assert back[name].dtype == carry()[name].dtype


def test_the_gradient_by_packed_numbers_is_that_of_finite_differences():
    start = carry()
    names = ("half", "turning")
    packing = Packing(start, ("count", *names), names)

    def loss(half, turning):
        return jnp.sum(half.astype(jnp.float32) ** 2) + jnp.sum(jnp.sin(turning * (1 + 2j)).real)

    def packed_loss(numbers):
        state = packing.unpack(packing.split(numbers), start)
        return loss(state["half"], state["turning"])

    cotangents = jax.grad(loss, argnums=(0, 1))(start["half"], start["turning"])
    want = jax.grad(packed_loss)(packing.pack(start))
    np.testing.assert_allclose(packing.pack_cotangent(cotangents), want, rtol=1e-5)
    numbers, way, size = packing.pack(start)[:, 1:], jnp.array([0.3, -0.2, 0.5, 0.1]), 1e-3
    ends = [
        packed_loss(packing.pack(start).at[:, 1:].set(numbers + sign * size * way[None]))
        for sign in (1, -1)
    ]
    slope = float(ends[0] - ends[1]) / (2 * size)
    assert float(jnp.sum(want[:, 1:] * way[None])) == pytest.approx(slope, rel=1e-2)


def test_real_forms():
    numbers = jnp.array([1 + 2j, 3 - 4j])
    np.testing.assert_array_equal(real_form(numbers), [[1, 2], [3, -4]])
    np.testing.assert_array_equal(real_gradient(numbers), [[1, -2], [3, 4]])
    np.testing.assert_array_equal(from_real_form(real_form(numbers), numbers.dtype), numbers)
    assert real_form(jnp.ones(2, jnp.float16)).dtype == jnp.float32
