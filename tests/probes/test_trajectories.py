"""The probes of the step Jacobians against numpy in float64, and against known numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab import analyze
from gradlab.bptt.closeup import Closeup
from gradlab.bptt.products import random_orthonormal
from gradlab.cells import GRU, LSTM, SimpleRNN
from gradlab.errors import BadInput
from gradlab.probes.base import Setting, Unsupported
from gradlab.probes.forget_path import ForgetPath
from gradlab.probes.long_jacobian import LongJacobian
from gradlab.probes.lyapunov import Lyapunov, entropy_rate, kaplan_yorke
from gradlab.probes.setting import setting_of
from gradlab.probes.singular_spectrum import SingularSpectrum
from gradlab.probes.step_jacobian import StepJacobian
from tests.closeups import Case, E, H, I, Separate, T, make_case, packed
from tests.models import every_model_in_stacks_gru_slowly

TRANSIENT = 2
PROBES = (
    StepJacobian(examples=E),
    LongJacobian(examples=E),
    SingularSpectrum(examples=2),
    ForgetPath(examples=99),
    Lyapunov(exponents=None, transient=TRANSIENT, examples=E),
)


def supported(setting):
    """The probes that can measure this cell."""
    return [one for one in PROBES if setting.retention or not isinstance(one, ForgetPath)]


def measured(case: Case, probes):
    @jax.jit
    def measure(inputs):
        closeup = case._replace(inputs=inputs).closeup()
        found = {"gates": [layer.retention for layer in closeup.layers]}
        for probe in probes:
            found |= probe(closeup)
        return found

    return jax.tree.map(np.asarray, measure(case.inputs))


def step_jacobians(case: Case):
    """Of each direction ``(T, E, S, S)``, from the cells alone; the identity where masked."""
    read, found, index = case.inputs, [], 0
    for layer in case.layers:
        outputs = []
        for direction, cell in enumerate(layer):
            order = slice(None, None, -1 if direction else 1)
            real = jnp.asarray(case.real_of(index))
            jacobians, out = _direction(cell, read[order], real)
            found.append(np.asarray(jacobians))
            outputs.append(out[order])
            index += 1
        read = jnp.concatenate(outputs, -1)
    return found


def _direction(cell, inputs, real):
    start = cell.initialize_carry((E, inputs.shape[-1]), nnx.Rngs(0))
    leaves, tree = jax.tree.flatten(start)

    def one(vector, x):
        new, y = cell(jax.tree.unflatten(tree, jnp.split(vector, len(leaves))), x)
        return jnp.concatenate(jax.tree.leaves(new)), y

    def step(vectors, now):
        x, keep = now
        new, y = jax.vmap(one)(vectors, x)
        found = jax.vmap(jax.jacrev(lambda v, x: one(v, x)[0]))(vectors, x)
        found = jnp.where(keep[:, None, None], found, jnp.eye(found.shape[-1]))
        return jnp.where(keep[:, None], new, vectors), (found, y)

    return jax.jit(lambda *read: jax.lax.scan(step, *read))(packed(start), (inputs, real))[1]


def log10(x):
    with np.errstate(divide="ignore"):
        return np.log10(x)


def top(matrix):
    return np.linalg.svd(matrix, compute_uv=False)[0]


def mean(values):
    """Over examples, of those that are not exactly zero; nan of none."""
    values = np.asarray(values, float)
    some = values[values > -math.inf]
    if not values.size:
        return math.nan
    return some.mean() if some.size else -math.inf


def after(jacobians, t):
    """``J_{T-1} ⋯ J_{t+1}`` of one example."""
    product = np.eye(jacobians.shape[-1])
    for jacobian in jacobians[t + 1 :]:
        product = jacobian @ product
    return product


def parts_of(setting):
    return {name: slice(k * H, (k + 1) * H) for k, name in enumerate(setting.states)}


def check_norms(setting, real, jacobians, index, got):
    for t in range(T):
        alive = np.flatnonzero(real[t])
        here = [jacobians[t, e] for e in alive]
        long = [after(jacobians[:, e], t) for e in alive]
        same = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8)
        same(got["step_jacobian_log10"][index, t], mean(log10([top(j) for j in here])))
        same(got["long_jacobian_log10"][index, t], mean(log10([top(j) for j in long])))
        frobenius = mean(log10([np.linalg.norm(j) for j in long]))
        same(got["long_jacobian_log10_frobenius"][index, t], frobenius)
        parts = parts_of(setting)
        for a, to in enumerate(parts.values()):
            for b, source in enumerate(parts.values()):
                want = mean(log10([np.linalg.norm(j[to, source]) for j in here]))
                same(got["step_jacobian_block_log10"][index, a, b, t], want)


def check_spectrum(real, jacobians, index, got, examples=2):
    values, exponents, conditions = [], [], []
    for e in range(examples):
        product = after(jacobians[:, e], 0)
        found = np.linalg.svd(product, compute_uv=False)
        # What is left of a rank that is not full is rounding error in the oracle.
        found[found < 1e-14 * found[0]] = 0
        values.append(log10(found))
        exponents.append(np.log(10) * log10(found) / real[1:, e].sum())
        last = log10(found[-1])
        conditions.append(math.inf if last == -math.inf else log10(found[0]) - last)
    want = [mean(one) for one in np.transpose(values)]
    np.testing.assert_allclose(got["singular_value_log10"][index], want, rtol=1e-6, atol=1e-6)
    want = [mean(one) for one in np.transpose(exponents)]
    np.testing.assert_allclose(got["finite_time_exponent"][index], want, rtol=1e-6, atol=1e-6)
    want = np.mean(conditions)
    np.testing.assert_allclose(got["condition_log10"][index], want, rtol=1e-6, atol=1e-6)
    lost = np.mean([np.sum(np.isneginf(one)) for one in values])
    assert got["directions_lost"][index] == lost


def check_paths(setting, real, jacobians, gates, index, got):
    memory = parts_of(setting)["c" if "c" in setting.states else "h"]
    for t in range(T):
        whole, forget = [], []
        for e in np.flatnonzero(real[t]):
            whole.append(after(jacobians[:, e], t)[memory, memory])
            kept = gates[t + 1 :, e][real[t + 1 :, e]]
            forget.append(np.diag(np.prod(kept, axis=0)))
        rest = [a - b for a, b in zip(whole, forget, strict=True)]
        for name, parts in (("whole", whole), ("forget", forget), ("residual", rest)):
            want = mean([log10(np.linalg.norm(part)) for part in parts])
            here = got[f"{name}_path_log10"][index, t]
            if want < -14:  # nothing is left but the rounding error of the oracle's difference
                assert here == -math.inf
            else:
                np.testing.assert_allclose(here, want, rtol=1e-7, atol=1e-7)


def per_step(rates, steps):
    """What examples grow per step together, of those that have not lost the direction."""
    counted = (steps > 0) & (rates > -np.inf)
    if not counted.any():
        return -math.inf if (steps > 0).any() else math.nan
    return np.average(rates[counted], weights=steps[counted])


def check_exponents(real, jacobians, index, got):
    size = jacobians.shape[-1]
    average, running, passed = [], [], []
    for e in range(E):
        q, logs = random_orthonormal(size, size), np.zeros((T, size))
        for t in range(T):
            q, r = np.linalg.qr(jacobians[t, e] @ q)
            logs[t] = log10(np.abs(np.diag(r))) * math.log(10)
        steps = np.maximum(np.cumsum(real[:, e]) - TRANSIENT, 0)  # of its own
        if steps[-1]:
            logs[np.cumsum(real[:, e]) <= TRANSIENT] = 0
            total = np.cumsum(logs, axis=0) / np.maximum(steps, 1)[:, None]
            average.append(total[-1])
            running.append(total[:, 0])
            passed.append(steps)
    passed = np.array(passed)
    means = np.array([per_step(one, passed[:, -1]) for one in np.transpose(average)])
    order = np.argsort(-means, kind="stable")
    want, spread = means[order], np.std(np.nan_to_num(average, neginf=-99), axis=0, ddof=1)[order]
    lost = want < -5  # rounding errors in the place of directions that are lost
    exponents = got["lyapunov_exponent"][index]
    np.testing.assert_allclose(exponents[~lost], want[~lost], rtol=1e-8, atol=1e-8)
    assert np.all(exponents[lost] < -5)
    found = got["lyapunov_exponent_spread"][index]
    np.testing.assert_allclose(found[~lost], spread[~lost], rtol=1e-6, atol=1e-8)
    curve = got["lyapunov_running"][index]
    assert np.isnan(curve[:TRANSIENT]).all()
    late = [per_step(*one) for one in zip(np.transpose(running), passed.T, strict=True)]
    if not lost[0]:
        np.testing.assert_allclose(curve, late, rtol=1e-8, atol=1e-8)
        horizon = -1 / want[0] if want[0] < 0 else math.inf
        assert got["lyapunov_horizon"][index] == pytest.approx(horizon)
    assert got["entropy_rate"][index] == pytest.approx(np.maximum(exponents, 0).sum())
    assert got["lyapunov_dimension"][index] == pytest.approx(dimension(exponents))


def dimension(exponents):
    k = 0
    while k < len(exponents) and exponents[: k + 1].sum() >= 0:
        k += 1
    return k + (exponents[:k].sum() / -exponents[k] if k < len(exponents) else 0)


def check(case: Case):
    setting = setting_of(case.layers, I, length=T)
    probes = supported(setting)
    got = measured(case, probes)
    names = [name for probe in probes for name in probe.variables(setting)]
    assert sorted([*names, "gates"]) == sorted(got)
    for index, jacobians in enumerate(step_jacobians(case)):
        real = case.real_of(index)
        check_norms(setting, real, jacobians, index, got)
        check_spectrum(real, jacobians, index, got)
        check_exponents(real, jacobians, index, got)
        if setting.retention:
            check_paths(setting, real, jacobians, got["gates"][index], index, got)


@every_model_in_stacks_gru_slowly()
def test_every_cell_against_numpy(makes):
    with jax.enable_x64(True):
        check(make_case(makes, masked=True))


def test_a_cell_whose_output_is_not_its_state():
    with jax.enable_x64(True):
        check(make_case(Separate, masked=True))


# What is known.


def look(cell, inputs, *probes, dtype=None):
    """What the probes measure of one cell on ``(T, E, I)``, as numpy arrays of its one layer."""
    graph, state = nnx.split(cell)

    @jax.jit
    def measure(state, inputs):
        closeup = Closeup([[nnx.merge(graph, state)]], inputs, lambda last: jnp.sum(last, -1))
        found = {}
        for probe in probes:
            found |= probe(closeup)
        return found

    found = measure(state, jnp.asarray(inputs, dtype or jnp.result_type(float)))
    return {name: np.asarray(value)[0] for name, value in found.items()}


def recurrent(matrix, activation="tanh", **types):
    """A plain network without inputs whose W, acting on columns, is this one."""
    size = len(matrix)
    cell = SimpleRNN(1, size, activation_fn=activation, rngs=nnx.Rngs(0), **types)
    cell.dense_h.kernel[...] = jnp.asarray(matrix.T, cell.dense_h.kernel[...].dtype)
    cell.dense_i.kernel[...] = jnp.zeros_like(cell.dense_i.kernel[...])
    return cell


def without_recurrence(cell, dense_h):
    """The same cell with recurrent weights of zero."""
    dense_h.kernel[...] = jnp.zeros_like(dense_h.kernel[...])
    return cell


def test_the_forget_path_is_all_there_is_without_recurrent_weights():
    cell = LSTM(2, 3, rngs=nnx.Rngs(0))
    without_recurrence(cell, cell.dense_h)
    cell.dense_i.kernel[...] = jnp.zeros_like(cell.dense_i.kernel[...])
    got = look(cell, np.zeros((101, 1, 2)), ForgetPath(), SingularSpectrum())
    lag = np.arange(101)[::-1]
    want = lag * math.log10(1 / (1 + math.exp(-1))) + 0.5 * math.log10(3)
    np.testing.assert_allclose(got["forget_path_log10"], want, atol=1e-4)
    np.testing.assert_allclose(got["whole_path_log10"], want, atol=1e-4)
    assert np.isneginf(got["residual_path_log10"]).all()
    assert 10 ** (want[0] - 0.5 * math.log10(3)) == pytest.approx(2.48e-14, rel=1e-3)
    assert np.isneginf(got["singular_value_log10"]).sum() == 3


def test_the_update_gate_is_all_there_is_without_recurrent_weights():
    cell = GRU(2, 3, rngs=nnx.Rngs(0))
    without_recurrence(cell, cell.dense_h)
    inputs = np.random.default_rng(0).normal(size=(200, 2, 2))
    got = look(cell, inputs, ForgetPath(examples=2))
    assert np.isneginf(got["residual_path_log10"]).all()
    np.testing.assert_allclose(got["forget_path_log10"], got["whole_path_log10"], atol=1e-4)
    assert got["forget_path_log10"][0] < -39  # below what float32 holds


def test_an_lstm_must_show_that_its_gates_are_not_all():
    """b_f = 1, H = 32, T = 50: the forget product and the true norm are decades apart."""
    inputs = np.random.default_rng(0).normal(size=(50, 4, 8))
    width = 1 / math.sqrt(32)
    cell = LSTM(8, 32, recurrent_kernel_init=nnx.initializers.normal(width), rngs=nnx.Rngs(0))
    got = look(cell, inputs, ForgetPath(examples=4))
    forget, rest, whole = (got[f"{n}_path_log10"][0] for n in ("forget", "residual", "whole"))
    assert whole > forget + 2
    assert whole == pytest.approx(rest, abs=0.1)
    assert -7 < forget < -5


@pytest.mark.parametrize(("activation", "steepest"), [("tanh", 1.0), ("sigmoid", 0.25)])
def test_no_product_exceeds_the_bound_of_pascanu(activation, steepest):
    rng = np.random.default_rng(0)
    cell = recurrent(rng.normal(size=(12, 12)) / 2, activation)
    cell.dense_i.kernel[...] = jnp.asarray(rng.normal(size=(1, 12)), jnp.float32)
    got = look(cell, rng.normal(size=(40, 2, 1)), LongJacobian(examples=2))
    sigma = top(np.asarray(cell.dense_h.kernel[...]))
    bound = np.arange(40)[::-1] * math.log10(steepest * sigma)
    assert np.all(got["long_jacobian_log10"] <= bound + 1e-5)
    assert got["long_jacobian_log10"][-1] == 0


def test_exponents_of_a_linear_network_are_those_of_its_matrix():
    with jax.enable_x64(True):
        matrix = np.random.default_rng(1).normal(size=(20, 20)) / math.sqrt(20)
        types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        cell = recurrent(matrix, "identity", **types)
        got = look(cell, np.zeros((3000, 1, 1)), Lyapunov(exponents=None))
    want = np.sort(np.log(np.abs(np.linalg.eigvals(matrix))))[::-1]
    np.testing.assert_allclose(got["lyapunov_exponent"], want, atol=2e-4)
    assert got["lyapunov_dimension"] == pytest.approx(dimension(want), abs=2e-3)
    assert got["lyapunov_running"][-1] == pytest.approx(got["lyapunov_exponent"][0])


def test_an_orthogonal_network_keeps_everything():
    matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
    probes = StepJacobian(), LongJacobian(), SingularSpectrum(), Lyapunov()
    got = look(recurrent(matrix, "identity"), np.zeros((300, 1, 1)), *probes)
    for name in ("step_jacobian_log10", "long_jacobian_log10", "singular_value_log10"):
        np.testing.assert_allclose(got[name], 0, atol=1e-4)
    np.testing.assert_allclose(got["long_jacobian_log10_frobenius"], math.log10(4), atol=1e-4)
    np.testing.assert_allclose(got["lyapunov_exponent"], 0, atol=1e-6)
    assert got["lyapunov_horizon"] > 1e6  # or inf: 0 but for rounding, on either side
    assert got["lyapunov_dimension"] == 16
    assert got["condition_log10"] == pytest.approx(0, abs=1e-4)
    assert got["directions_lost"] == 0


def test_lyapunov_against_two_trajectories():
    """The largest exponent as the mean growth of a small distance, brought back at every step."""
    size, steps, begin, eps = 20, 1500, 300, 1e-7
    rng = np.random.default_rng(4)
    matrix = 2.5 * rng.normal(size=(size, size)) / math.sqrt(size)
    drive = 0.1 * rng.normal(size=(steps, size))
    with jax.enable_x64(True):
        types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        cell = SimpleRNN(size, size, rngs=nnx.Rngs(0), **types)
        cell.dense_h.kernel[...] = jnp.asarray(matrix.T)
        cell.dense_i.kernel[...] = jnp.eye(size)
        probe = Lyapunov(exponents=3, transient=begin, interval=2)
        got = look(
            cell, drive[:, None], probe, lambda closeup: {"h": closeup.layers[0].before[None]}
        )
    apart, logs = rng.normal(size=size), []
    for h, x in zip(got["h"][:, 0], drive, strict=True):
        other = h + eps * apart / np.linalg.norm(apart)
        apart = (np.tanh(matrix @ other + x) - np.tanh(matrix @ h + x)) / eps
        logs.append(math.log(np.linalg.norm(apart)))
    assert got["lyapunov_exponent"][0] > 0.05  # it is chaotic, so that the check means something
    assert got["lyapunov_exponent"][0] == pytest.approx(np.mean(logs[begin:]), abs=1e-5)


class QuadraticMap(nnx.RNNCellBase):
    """``(x, y) -> (1 - a x² + b y, c x)`` plus the input, of known exponents."""

    in_features, hidden_features = 1, 2

    def __init__(self, a, b, c):
        self.numbers = nnx.Param(jnp.array([a, b, c]))

    def __call__(self, carry, inputs):
        a, b, c = self.numbers[...]
        x, y = carry[..., 0], carry[..., 1]
        new = jnp.stack([1 - a * x**2 + b * y, c * x], axis=-1) + inputs
        return new, new

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], 2), self.numbers[...].dtype)


class CatMap(QuadraticMap):
    """Arnold's ``(x, y) -> (2 x + y, x + y)`` modulo 1, plus the input."""

    def __call__(self, carry, inputs):
        x, y = carry[..., 0], carry[..., 1]
        new = jnp.mod(jnp.stack([2 * x + y, x + y], axis=-1) + inputs, 1)
        return new, new


def test_exponents_of_maps_that_are_known():
    """Hénon's map, the logistic map as its conjugate 1 - 2 x², Arnold's cat map.

    In float64: float32 has so few numbers between 0 and 1 that a chaotic map soon comes back to one
    where it was, and goes round in a short cycle.
    """
    inputs = np.zeros((1, 6000, 1))
    inputs[0, 0] = -0.3  # away from 0, which the logistic map leaves for its fixed point
    with jax.enable_x64(True):
        henon, logistic, cat = (
            analyze(cell, inputs, lambda h: jnp.sum(h[:, -1], -1), probes=["lyapunov"])
            for cell in (
                QuadraticMap(1.4, 1.0, 0.3),
                QuadraticMap(2.0, 0.0, 1.0),
                CatMap(0.0, 0.0, 0.0),
            )
        )
    first, second = henon["lyapunov_exponent"].values[0]
    assert first == pytest.approx(0.4192, abs=0.01)
    assert second == pytest.approx(-1.6232, abs=0.01)
    assert first + second == pytest.approx(math.log(0.3), abs=1e-12)
    assert henon["lyapunov_dimension"].item() == pytest.approx(1.2583, abs=0.005)
    assert henon["entropy_rate"].item() == first
    assert logistic["lyapunov_exponent"].values[0, 0] == pytest.approx(math.log(2), abs=2e-3)
    assert logistic["lyapunov_exponent"].values[0, 1] < -30  # rounding: J has rank 1
    assert logistic["entropy_rate"].item() == pytest.approx(math.log(2), abs=2e-3)  # Kolmogorov's
    golden = math.log((3 + math.sqrt(5)) / 2)
    np.testing.assert_allclose(cat["lyapunov_exponent"].values[0], [golden, -golden], rtol=1e-5)
    assert golden == pytest.approx(0.96242, abs=1e-5)
    assert cat["lyapunov_dimension"].item() == pytest.approx(2, abs=1e-5)
    for one in (henon, logistic, cat):
        assert one["lyapunov_horizon"].item() == math.inf
        assert np.isnan(one["lyapunov_exponent_spread"]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gain", "theory", "simulated"), [(1.5, 0.0652, 0.056), (2.0, 0.1547, 0.145)]
)
def test_exponents_of_random_tanh_networks(gain, theory, simulated):
    """Against mean-field theory, and against simulations of N = 200, which lie below it.

    The median, since one network in ten falls into a cycle instead of chaos.
    """
    found = []
    for seed in range(9):
        rng = np.random.default_rng(seed)
        cell = recurrent(gain * rng.normal(size=(200, 200)) / math.sqrt(200))
        # The theory has no input; a first push takes the state away from the fixed point at 0.
        cell.dense_i.kernel[...] = jnp.asarray(rng.normal(size=(1, 200)), jnp.float32)
        inputs = np.zeros((800, 1, 1))
        inputs[0] = 1
        got = look(cell, inputs, Lyapunov(exponents=2, transient=100))
        found.append(got["lyapunov_exponent"][0])
    assert np.median(found) == pytest.approx(simulated, abs=0.01)
    assert np.median(found) == pytest.approx(theory, abs=0.015)


# Options, and what cannot be measured.


def test_examples_of_different_length_and_one_that_diverges():
    """Steps after the end and after the first state that is not finite change nothing."""
    cell = recurrent(np.diag([2.0, 0.5]), "identity")
    inputs = np.zeros((12, 1, 1))
    whole = look(cell, inputs[:8], LongJacobian(), Lyapunov(transient=0))
    cell.dense_i.kernel[...] = jnp.ones((1, 2))
    inputs[8] = math.inf
    probes = LongJacobian(), Lyapunov(transient=0), StepJacobian(), SingularSpectrum()
    got = look(cell, inputs, *probes)
    for name in ("long_jacobian_log10", "lyapunov_running"):
        np.testing.assert_allclose(got[name][:8], whole[name], rtol=1e-6)
    np.testing.assert_allclose(got["lyapunov_exponent"], whole["lyapunov_exponent"], rtol=1e-6)
    np.testing.assert_allclose(got["finite_time_exponent"], np.log([2, 0.5]), rtol=1e-5)
    assert np.isnan(got["step_jacobian_log10"][8:]).all()


def test_running_exponent_is_held_between_orthonormalisations():
    cell = recurrent(np.diag([2.0, 0.5]), "identity")
    got = look(cell, np.zeros((11, 1, 1)), Lyapunov(transient=2, interval=3))
    running = got["lyapunov_running"]
    assert np.isnan(running[:5]).all()  # steps 0 to 2 are left out, 3 to 5 are the first interval
    assert running[5] == running[6] == running[7] != running[8]
    assert running[10] == pytest.approx(got["lyapunov_exponent"][0])


@pytest.mark.parametrize(
    ("exponents", "size", "expected"),
    [
        ([-0.1, -0.2], 2, 0.0),
        ([0.2, 0.0, -0.1, -0.4], 4, 3.25),
        ([0.3, -math.inf], 2, 1.0),
        ([-math.inf, -math.inf], 2, 0.0),
        ([1e-9, -1e-8, -1e-8], 3, 3.0),
        ([0.2, 0.1], 2, 2.0),
        ([0.2, 0.1], 3, math.nan),
        ([0.1, math.nan], 2, math.nan),
    ],
)
def test_kaplan_yorke_dimension(exponents, size, expected):
    got = kaplan_yorke(jnp.asarray(exponents, jnp.float32), size)
    assert float(got) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("exponents", "size", "expected"),
    [
        ([0.3, 0.2, -0.1], 3, 0.5),
        ([0.3, 0.2, 0.0], 9, 0.5),
        ([0.3, 0.2], 9, math.nan),
        ([0.3, 0.2], 2, 0.5),
        ([-0.1, -math.inf], 2, 0.0),
        ([math.nan, math.nan], 2, math.nan),
    ],
)
def test_entropy_rate(exponents, size, expected):
    got = entropy_rate(jnp.asarray(exponents, jnp.float32), size)
    assert float(got) == pytest.approx(expected, nan_ok=True)


SETTING = Setting("LSTM", ("c", "h"), ("i", "f", "o"), "f", length=50, hidden=20)


def test_coordinates():
    assert StepJacobian().coords(SETTING) == {"to": ["c", "h"], "from": ["c", "h"]}
    assert Lyapunov().coords(SETTING) == {"index": list(range(32))}
    assert Lyapunov(exponents=None).coords(SETTING) == {"index": list(range(40))}
    assert Lyapunov(exponents=99).coords(SETTING) == {"index": list(range(40))}
    assert SingularSpectrum().coords(SETTING) == {"singular": list(range(40))}


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: SingularSpectrum(examples=0), "singular_spectrum.examples"),
        (lambda: StepJacobian(examples=0), "step_jacobian.examples"),
        (lambda: LongJacobian(examples=0), "long_jacobian.examples"),
        (lambda: ForgetPath(examples=0), "forget_path.examples"),
        (lambda: Lyapunov(examples=0), "lyapunov.examples"),
        (lambda: Lyapunov(exponents=0), "lyapunov.exponents"),
        (lambda: Lyapunov(transient=-1), "lyapunov.transient"),
        (lambda: Lyapunov(interval=0), "lyapunov.interval"),
        (lambda: Lyapunov(transient=50).variables(SETTING), "lyapunov.transient"),
        (lambda: Lyapunov(interval=50).variables(SETTING), "lyapunov.interval"),
    ],
)
def test_refuses(make, key):
    with pytest.raises(BadInput) as error:
        make()
    assert error.value.key == f"probe.measure.{key}"


def test_a_cell_without_a_retention_gate_has_no_forget_path():
    with pytest.raises(Unsupported, match=r"SimpleRNN has no retention gate.*it has no gates"):
        ForgetPath().variables(SETTING._replace(cell="SimpleRNN", gates=(), retention=None))
    with pytest.raises(Unsupported, match="its gates are a, b"):
        ForgetPath().variables(SETTING._replace(gates=("a", "b"), retention=None))
    assert ForgetPath().variables(SETTING)["forget_path_log10"].attrs == {"gate": "f"}
