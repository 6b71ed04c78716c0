"""Every probe on cells of other kinds than gradlab's own: complex ones, a user's names, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from gradlab.analysis import probe_class, probe_names
from gradlab.bptt.closeup import Closeup
from gradlab.errors import BadInput
from gradlab.probes.adjoint import Adjoint
from gradlab.probes.base import CloseProbe, Seen
from gradlab.probes.fixed_points import FixedPoints, typical
from gradlab.probes.lyapunov import Lyapunov
from gradlab.probes.setting import setting_of, supported
from gradlab.probes.step_jacobian import StepJacobian
from gradlab.probes.trajectory_end import TrajectoryEnd
from tests import zoo

CLOSE = {
    name: probe_class(name)(**probe_class(name).research)
    for name in probe_names()
    if issubclass(probe_class(name), CloseProbe)
}


def last_sum(outputs):
    return jnp.sum(jnp.sin(outputs.reshape(len(outputs), -1)), -1)


def setting_for(cell, specimen, **keys):
    inputs = specimen.inputs()
    return setting_of([[cell]], inputs.shape[2:], length=zoo.T, dtype=inputs.dtype, **keys)


def measured(cell, inputs, probes, mask=None):
    """By the names of the variables; inputs ``(B, T, ...)``."""

    @jax.jit
    def run(inputs):
        closeup = Closeup(
            [[cell]],
            jnp.swapaxes(inputs, 0, 1),
            last_sum,
            mask=mask,
            batch=8,
            removed=lambda: {n: 0.1 * g + 0.01 for n, g in closeup.gradient.items()},
        )
        return {name: value for probe in probes for name, value in probe(closeup).items()}

    return jax.device_get(run(inputs))


class RealLRU(zoo.LRU):
    """The same cell with the real and the imaginary parts of its state side by side."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        (zeros,) = self.zeros(input_shape, 2 * self.hidden_features)
        return zeros

    def __call__(self, carry, inputs):
        new = self.new(lax.complex(*jnp.split(carry, 2, -1)), inputs)
        new = jnp.concatenate([new.real, new.imag], -1)
        return new, self.emit(carry, inputs, lax.complex(*jnp.split(new, 2, -1)))


def supported_of(setting):
    return supported(CLOSE, setting, by_preset=True)[0].values()


@pytest.mark.slow
def test_every_probe_of_a_complex_cell_is_that_of_its_real_twin():
    with zoo.as_users_do(wide=True):
        specimen = zoo.ZOO["LRU"]
        inputs = specimen.inputs(wide=True, steps=12)
        found = []
        for kind in (zoo.LRU, RealLRU):
            cell = zoo.widened(dataclasses.replace(specimen, kind=kind).build())
            setting = setting_for(cell, specimen, clips=True)
            assert setting.state_size == 2 * zoo.H
            found.append(measured(cell, inputs, supported_of(setting)))
        complex_, real = found
        assert complex_.keys() == real.keys()
        assert len(real) > 40
        for name, value in real.items():
            if name != "fixed_point_speed_log10":  # rounding
                np.testing.assert_allclose(
                    complex_[name], value, rtol=1e-9, atol=1e-9, err_msg=name
                )


def test_a_complex_diagonal_cell_has_the_exponents_ln_lambda_each_twice():
    with zoo.as_users_do(wide=True):
        cell = zoo.widened(zoo.ZOO["LRU"].build())
        inputs = zoo.ZOO["LRU"].inputs(wide=True, steps=300)
        found = measured(cell, inputs, [Lyapunov(exponents=None), StepJacobian()])
    rates = -np.exp(np.asarray(cell.log_decay[...]))  # ln|λ|
    want = np.sort(np.repeat(rates, 2))[::-1]
    # The directions begin at random, and turn within the first steps.
    np.testing.assert_allclose(found["lyapunov_exponent"][0], want, atol=5e-3)
    assert found["lyapunov_exponent"][0].sum() == pytest.approx(want.sum(), rel=1e-12)
    np.testing.assert_allclose(found["step_jacobian_log10"], rates.max() / np.log(10), atol=1e-3)


FORMS = ("carry (h, c)", "carry dict", "carry NamedTuple", "carry nested")


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_every_probe_whatever_the_form_of_the_carry(name):
    """Those over the parts of the state by their names; the others in any case."""
    with zoo.as_users_do(wide=True):
        found = {}
        for one in ("carry (c, h)", name):
            specimen = zoo.ZOO[one]
            cell = zoo.widened(specimen.build())
            setting = setting_for(cell, specimen, clips=True)
            found[one] = setting, measured(cell, specimen.inputs(wide=True), supported_of(setting))
        (flax, want), (own, got) = found.values()
        # Where c is not called so, what the retention gate multiplies is not known to be it.
        order = [
            own.states.index(own.h) if s == "h" else 1 - own.states.index(own.h)
            for s in flax.states
        ]
        for variable, value in want.items():
            other = got[variable]
            if variable == "step_jacobian_block_log10":
                other = other[:, order][:, :, order]
            elif variable.startswith(("state_", "participation", "autocorrelation")):
                other = other[:, order]
            elif variable in ("fixed_point_state", "fixed_point_speed_log10", *RANDOM_START):
                continue
            np.testing.assert_allclose(other, value, rtol=1e-7, atol=1e-7, err_msg=variable)


RANDOM_START = (
    "lyapunov_exponent",
    "lyapunov_exponent_spread",
    "lyapunov_running",
    "lyapunov_dimension",
    "entropy_rate",
    "lyapunov_horizon",
    "adjoint_cosine_lyapunov_over_lag",
)
"""They begin with drawn directions of the state, which here is packed in another order."""


def test_what_is_known_of_a_cell_with_names_of_its_own():
    with zoo.as_users_do():
        named = zoo.ZOO["carry NamedTuple"]
        setting = setting_for(named.build(), named)
        assert (setting.states, setting.h, setting.memory) == (
            ("output", "store"),
            "output",
            "output",
        )
        assert (setting.hidden, setting.state_size, setting.renames_h) == (zoo.H, 2 * zoo.H, True)
        narrow = zoo.ZOO["LSTMP"]
        setting = setting_for(narrow.build(), narrow)
        assert (setting.hidden, setting.state_size, setting.memory) == (zoo.H, 6, "c")
        assert not setting.renames_h
        deep = zoo.ZOO["ConvLSTM"]
        assert setting_for(deep.build(), deep).state_size == 2 * 3 * 2 * zoo.H


def test_the_adjoint_of_an_h_of_another_name_is_recorded_as_that_of_h_too():
    with zoo.as_users_do():
        named = zoo.ZOO["carry NamedTuple"]
        setting = setting_for(named.build(), named)
    log10 = -jnp.arange(30.0).reshape(1, 5, 6)
    seen = Seen(
        {"output": log10, "store": 2 * log10}, jnp.ones((1, 5, 6), bool), {}, None, {}, {}, {}, {}
    )
    found = Adjoint()(seen._replace(hidden=log10))
    assert found.keys() == Adjoint().variables(setting).keys()
    for name in ("adj_{}_log10", "adj_{}_log10_q", "adj_{}_over_lag_log10", "adj_{}_zero"):
        np.testing.assert_array_equal(found[name.format("h")], found[name.format("output")])
        assert not np.array_equal(found["adj_h_log10"], found["adj_store_log10"])


@pytest.mark.parametrize("name", ["batch norm", "fast weights", "scalar"])
def test_a_cell_that_mixes_examples_has_no_close_look(name):
    with zoo.as_users_do():
        setting = setting_for(zoo.ZOO[name].build(), zoo.ZOO[name])
    probes = {"trajectory_end": TrajectoryEnd(), "adjoint": Adjoint()}
    usable, reasons = supported(probes, setting, by_preset=True)
    assert usable.keys() == {"adjoint"}
    assert "module.eval()" in reasons["trajectory_end"]
    with pytest.raises(BadInput, match=r"module\.eval"):
        supported(probes, setting, by_preset=False)


def test_a_counter_is_held_where_fixed_points_are_looked_for():
    """h' = (1 - 1/n) h + tanh(…)/n has the fixed points of tanh(…), whatever the count n."""
    with zoo.as_users_do(wide=True):
        cell = zoo.widened(zoo.ZOO["counter"].build())
        inputs = zoo.ZOO["counter"].inputs(wide=True)
        found = measured(cell, inputs, [FixedPoints(starts=4, points=1, input="zero")])
    np.testing.assert_array_equal(found["fixed_point_count"], 1)
    state = found["fixed_point_state"][0, 0]
    kernel, bias = np.asarray(cell.recur.kernel[...]), np.asarray(cell.read.bias[...])
    np.testing.assert_allclose(state, np.tanh(state @ kernel + bias), atol=1e-9)
    # The last step counts to T, and at the fixed point the slope of tanh is 1 - h².
    slope = (1 - 1 / zoo.T) * np.eye(zoo.H) + (kernel * (1 - state**2)).T / zoo.T
    radius = np.abs(np.linalg.eigvals(slope)).max()
    np.testing.assert_allclose(found["fixed_point_radius"][0, 0], radius, rtol=1e-9)


def test_the_typical_input():
    mask = jnp.array([[True, True], [True, False]])
    numbers = jnp.array([[[1.0], [2.0]], [[6.0], [9.0]]])
    np.testing.assert_allclose(typical(numbers, mask), [3.0])
    symbols = jnp.array([[4, 1], [7, 0]])
    assert typical(symbols, mask) == 4  # of 1, 4, 7
    assert typical(symbols, jnp.zeros_like(mask)).shape == ()
    flags = jnp.array([[[True], [True]], [[False], [False]]])
    assert bool(typical(flags, mask)[0])


@pytest.mark.parametrize(
    "name",
    ["float16", *(pytest.param(n, marks=pytest.mark.slow) for n in ("bfloat16", "dtype=bfloat16"))],
)
def test_half_precision_is_looked_at_in_float32(name):
    """The Jacobians are those of the same cell in float32, at the states that were visited."""
    with zoo.as_users_do():
        specimen = zoo.HALF[f"Flax GRUCell, {name}"]
        cell, inputs = specimen.build(), specimen.inputs()
        wide = nnx.GRUCell(zoo.I, zoo.H, rngs=nnx.Rngs(0))
        nnx.update(wide, jax.tree.map(lambda a: a.astype(jnp.float32), nnx.state(cell, nnx.Param)))
        closeup = Closeup([[cell]], jnp.swapaxes(inputs, 0, 1), last_sum)

        @jax.jit
        def look():
            (view,) = closeup.layers
            one = jax.jacfwd(lambda h, x: wide(h, x)[0])
            read = view.trace.inputs.astype(jnp.float32)
            whole, parts = closeup.gradient, view.contribution
            each = jax.vmap(lambda t: {n: p.plain() for n, p in parts(t).items()})(
                jnp.arange(zoo.T)
            )
            return (view.jacobian, jax.vmap(jax.vmap(one))(view.before, read)), (whole, each)

        (got, want), (whole, parts) = jax.device_get(look())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    for key, value in whole.items():
        each = parts[key.removeprefix("layers/0/0/")]
        assert value.dtype == each.dtype == np.float32
        size = np.abs(value).max()
        np.testing.assert_allclose(each.sum((0, 1)) / zoo.B, value, atol=specimen.half * size)
