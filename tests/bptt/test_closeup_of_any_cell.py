"""Close looks at cells of every kind, in float64: against plain loops and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup
from gradlab.bptt.packing import flat_cotangent
from tests import zoo

EXACT = {"rtol": 1e-10, "atol": 1e-12}
SHARED = [name for name, one in zoo.ZOO.items() if one.mixes] + ["scalar", "number in a Variable"]
REST = [name for name, one in zoo.ZOO.items() if name not in SHARED and not one.scan]


class Everything(zoo.Own):
    """All of the kinds in one cell: a complex state and a real one of another width, both learned
    at the start, a counter, dropout, and an output that reads both, the old state and the input."""

    def fill(self, rngs):
        self.into = nnx.Param(zoo.LRU.draw(self, rngs, (self.in_features, self.hidden_features)))
        self.h0 = nnx.Param(zoo.LRU.draw(self, rngs, (self.hidden_features,)))
        self.slow0 = nnx.Param(jnp.linspace(-0.5, 0.5, 2, dtype=self.param_dtype))
        self.read = self.linear(2 * self.hidden_features, 2, rngs)
        self.out = self.linear(4 * self.hidden_features + 2 + self.in_features, 2, rngs)
        self.drop = nnx.Dropout(0.3, rngs=nnx.Rngs(dropout=7))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        batch = input_shape[:-1]
        starts = {"h": self.h0[...], "slow": self.slow0[...]}
        carry = {n: jnp.broadcast_to(one, (*batch, *one.shape)) for n, one in starts.items()}
        return {"count": jnp.zeros(batch, jnp.int32), **carry}

    def emit(self, before, x, after):
        parts = [before["h"].real, before["h"].imag, after["h"].real, after["h"].imag]
        return jnp.tanh(self.out(jnp.concatenate([*parts, after["slow"], x], -1)))

    def __call__(self, carry, inputs):
        h, slow, count = carry["h"], carry["slow"], carry["count"] + 1
        rate = 1 / (1 + count[:, None].astype(slow.dtype))
        x = lax.complex(inputs, jnp.zeros_like(inputs))
        turned = (
            h * jnp.exp(1j * 0.3) + jnp.sin(x @ self.into[...]) + 0.1 * jnp.sum(slow, -1)[:, None]
        )
        kept = self.drop(jnp.ones_like(h.real)) * rate
        seen = self.read(jnp.concatenate([h.real, h.imag], -1))
        after = {"h": kept * turned, "slow": jnp.tanh(slow + seen), "count": count}
        return after, self.emit(carry, inputs, after)


ALL_IN_ONE = zoo.Specimen(
    Everything,
    {"h": (zoo.H,), "slow": (2,)},
    is_leaf=False,
    others=("count",),
    places=(1, 2),
    width=(2,),
)


def losses(outputs):
    """``(E,)`` of ``(T, E, ...)``: every number counts in its own way."""
    total = 0
    for shift, part in enumerate(jnp.stack([outputs.real, outputs.imag])):
        weights = jnp.cos(jnp.arange(part.size) + shift).reshape(part.shape)
        each = weights * part + jnp.sin(2 * part)
        total = total + jnp.sum(each.reshape(*part.shape[:2], -1), (0, 2))
    return total


def look(cell, inputs):
    """What a close look gives; inputs ``(B, T, ...)``."""
    closeup = Closeup([[cell]], jnp.swapaxes(inputs, 0, 1), losses, every=True, prefix="".format)
    (view,) = closeup.layers
    few, enters = view.first(2), view.contribution

    def plain(found):
        return {name: each.plain() for name, each in found.items()}

    def moved(size):
        """Every step's new state after a change of each number of the old one."""
        ways = size * jnp.eye(view.before.shape[-1])
        shifted = jax.vmap(lambda way: jax.vmap(view.step)(view.before + way, view.reads))
        return jnp.moveaxis(shifted(ways), 0, -1)

    return {
        "states": view.states,
        "jacobian": view.jacobian,
        "difference": (moved(1e-5) - moved(-1e-5)) / 2e-5,
        "few": few.jacobian,
        "few after": jax.vmap(few.step)(few.reads.state, few.reads),
        "after": view.after,
        "adjoint": scaling.plain(view.adjoint),
        "direct": scaling.plain(view.direct),
        "of h": jnp.arange(view.before.shape[-1])[view.part(view.form.h)],
        "gradient": closeup.gradient,
        "autodiff": jax.grad(closeup.loss)(dict(closeup.params)),
        "uncut": closeup.truncated([jnp.zeros(view.mask.shape, bool)]),
        "parts": jax.vmap(lambda t: plain(enters(t)))(jnp.arange(zoo.T)),
        "own times": plain(enters(jnp.array([2, 0, 1]))),
        "start": plain(view.start_contributions),
    }


def check(specimen):
    """Adjoints, Jacobians, gradients and what enters at each step."""
    cell, inputs = zoo.widened(specimen.build()), specimen.inputs(wide=True)
    known = getattr(cell, "emit", True) is not None  # else a loop cannot tell the adjoints
    states = []

    @jax.jit
    def measure(inputs):
        found = look(cell, inputs)
        states.extend(found.pop("states"))
        total = lambda outputs, _: jnp.sum(losses(jnp.swapaxes(outputs, 0, 1)))  # noqa: E731
        return found, zoo.truth(specimen, cell, inputs, loss=total).adjoints if known else {}

    got, true = jax.device_get(measure(inputs))
    if known:
        each = [flat_cotangent(jnp.asarray(true[name]), true[name].ndim - 2) for name in states]
        np.testing.assert_allclose(got["adjoint"], np.concatenate(each, -1), **EXACT)
    np.testing.assert_allclose(got["jacobian"], got["difference"], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(got["few"], got["jacobian"][:, :2], **EXACT)
    np.testing.assert_allclose(got["few after"], got["after"][:, :2], **EXACT)
    later = np.einsum("teij,tei->tej", got["jacobian"][1:], got["adjoint"][1:])
    direct = (got["adjoint"][:-1] - later)[..., got["of h"]]
    np.testing.assert_allclose(got["direct"][:-1], direct, **EXACT)
    np.testing.assert_allclose(got["direct"][-1], got["adjoint"][-1][..., got["of h"]], **EXACT)
    for key, whole in got["autodiff"].items():
        np.testing.assert_allclose(got["gradient"][key], whole, **EXACT)
        np.testing.assert_allclose(got["uncut"][key], whole, **EXACT)
        np.testing.assert_allclose(got["parts"][key].sum((0, 1)) / zoo.B, whole, **EXACT)
        own = got["parts"][key][[2, 0, 1], np.arange(zoo.B)]
        np.testing.assert_allclose(got["own times"][key], own, **EXACT)
    return got


@pytest.mark.slow
def test_a_close_look_at_a_cell_that_is_of_all_kinds():
    with zoo.as_users_do(wide=True):
        got = check(ALL_IN_ONE)
    assert got["start"].keys() == {"h0", "slow0"}
    assert all(np.abs(part).max() > 1e-3 for part in got["start"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_a_close_look_at(name):
    with zoo.as_users_do(wide=True):
        check(zoo.ZOO[name])
