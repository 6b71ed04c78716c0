"""Steps transposed by hand against the same transposed by JAX."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.bptt import unroll as unrolling
from gradlab.bptt import written
from gradlab.bptt.form import Step
from gradlab.bptt.parts import Parts
from gradlab.bptt.unroll import forms_of, initial_carries, unroll, whole_taps
from gradlab.cells import GRU, LSTM, SimpleRNN
from tests.conftest import SOURCE

T, B, I, H = 7, 3, 2, 16  # noqa: E741


def own_gate(a):
    return 0.5 + 0.5 * a / jnp.sqrt(1 + jnp.square(a))


CELLS = {
    "gru_with_a_bias": lambda **own: GRU(I, H, recurrent_bias=True, **own),
    "flax_lstm_of_layers": lambda **own: nnx.LSTMCell(I, H, **own),
    "flax_residual_relu": lambda **own: nnx.SimpleCell(
        I, H, residual=True, activation_fn=jax.nn.relu, **own | {"dtype": own["param_dtype"]}
    ),
    "lstm_of_own_gates": lambda **own: LSTM(I, H, gate_fn=own_gate, **own),
    "rnn": lambda **own: SimpleRNN(I, H, **own),
    "identity": lambda **own: SimpleRNN(I, H, activation_fn="identity", **own),
    "lstm": lambda **own: LSTM(I, H, **own),
    "gru": lambda **own: GRU(I, H, **own),
    "flax_rnn": lambda **own: nnx.SimpleCell(I, H, **own | {"dtype": own["param_dtype"]}),
    "flax_gru": lambda **own: nnx.GRUCell(I, H, **own),
    "flax_lstm": lambda **own: nnx.OptimizedLSTMCell(I, H, **own),
}
HOW = {
    "alone": {},
    "waiting": {"masked": True},
    "running on": {"masked": True, "waits": False},
    "no_h_path": {"masked": True, "backward": "no_h_path"},
    "no_c_path": {"backward": "no_c_path"},
}


def measured(monkeypatch, route, make, dtype, *, masked=False, **options):
    """Gradients of all that a run gives, by all that it is given; the adjoints, as numbers."""
    with monkeypatch.context() as patch:
        if route == "generic":
            patch.setattr(unrolling, "written_of", lambda *_: None)
        if route == "made again":
            patch.setattr(written, "KEPT_AT_MOST", 0)
        cell = make(rngs=nnx.Rngs(0), param_dtype=dtype)
        graph, params, rest = nnx.split(cell, nnx.Param, ...)
        inputs = jax.random.normal(jax.random.key(1), (T, B, I), dtype)
        mask = jnp.arange(T)[:, None] < jnp.array([T, 3, 5])[None] if masked else None
        start = initial_carries([[cell]], inputs.shape, dtype)
        taps = whole_taps([[cell]], inputs.shape, dtype)

        @jax.jit
        def loss(params, inputs, start, taps):
            built = nnx.merge(graph, params, rest, copy=True)
            run = unroll([[built]], inputs, mask=mask, start=start, taps=taps, **options)
            assert run.outputs is not None
            drawn = jax.random.normal(jax.random.key(2), run.outputs.shape, dtype)
            ends = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(run.finals))
            return jnp.sum(drawn * run.outputs) + jnp.sum(run.last) + ends

        grads = jax.grad(loss, argnums=(0, 1, 2, 3))(params, inputs, start, taps)
    *found, seen = jax.tree.map(np.asarray, grads)
    own = seen[0][0]
    scale = np.exp2(np.maximum(own["exponent"], -200))[..., None]
    return jax.tree.leaves((found, [leaf * scale for leaf in own["adjoint"].values()]))


def cases():
    for name in CELLS:
        gated = not ("rnn" in name or name in ("identity", "flax_residual_relu"))
        for how in HOW:
            if gated or not how.endswith("path"):
                for dtype in ("float64", "float32"):
                    quick = (name, how, dtype) == ("gru_with_a_bias", "waiting", "float64")
                    marks = [] if quick else [pytest.mark.slow]
                    yield pytest.param(name, how, dtype, marks=marks)


@pytest.mark.parametrize(("name", "how", "dtype"), list(cases()))
def test_both_routes_give_the_same_gradients_and_adjoints(monkeypatch, name, how, dtype):
    tolerance = {"float64": 1e-12, "float32": 2e-6}[dtype]
    with jax.enable_x64(dtype == "float64"):
        generic, kept, again = (
            measured(monkeypatch, route, CELLS[name], jnp.dtype(dtype), **HOW[how])
            for route in ("generic", "kept", "made again")
        )
    for other in (kept, again):
        for a, b in zip(generic, other, strict=True):
            np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * np.abs(a).max())


def form_and_step(cell, dtype=jnp.float32):
    inputs = jnp.zeros((T, B, I), dtype)
    carry = initial_carries([[cell]], inputs.shape, dtype)[0][0]
    form = forms_of([[cell]], inputs.shape, dtype)[0][0]
    return Step(Parts.of(cell), form), carry, inputs


def test_the_written_route_is_for_these_cells_as_they_are():
    """Whatever may have been changed of a cell, the generic route takes it."""

    class Own(LSTM):
        pass

    rngs = nnx.Rngs(0)
    changed = LSTM(I, H, rngs=rngs)
    changed.dense_h.dot_general = lambda *args, **options: jax.lax.dot_general(*args, **options)
    replaced = LSTM(I, H, rngs=rngs)
    replaced.step = lambda carry, x: LSTM.step(replaced, carry, x)
    for cell in (Own(I, H, rngs=rngs), changed, replaced):
        assert written.written_of(*form_and_step(cell)) is None
    half = LSTM(I, H, param_dtype=jnp.bfloat16, rngs=rngs)
    assert written.written_of(*form_and_step(half, jnp.bfloat16)) is None
    for name in ("rnn", "gru", "flax_lstm_of_layers"):
        own = CELLS[name](rngs=rngs, param_dtype=jnp.float32)
        assert written.written_of(*form_and_step(own)) is not None


BITS = """
import jax, jax.numpy as jnp, numpy as np, optax, sys
from flax import nnx
from jax.sharding import AxisType, PartitionSpec as P
from gradlab.bptt.unroll import make_taps, unroll
from gradlab.cells import GRU, LSTM, GRUResetBefore, SimpleRNN
assert jax.device_count() == 2
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
T, B, I, H = 40, 16, 3, 64
inputs = jax.random.normal(jax.random.key(1), (T, B, I))
targets = jax.random.normal(jax.random.key(2), (T, B, 1))

def trained(kind, rule, every, taps, split):
    rngs = nnx.Rngs(0)
    graph, params = nnx.split(nnx.List([kind(I, H, rngs=rngs), nnx.Linear(H, 1, rngs=rngs)]))

    def loss(params, taps, inputs, targets):
        cell, read = nnx.merge(graph, params, copy=True)
        run = unroll([[cell]], inputs, taps=taps, every=every)
        made, wanted = (run.outputs, targets) if every else (run.last, targets[-1])
        return jnp.mean(jnp.square(read(made) - wanted))

    def own(params, inputs, targets):
        cell, _ = nnx.merge(graph, params, copy=True)
        given = make_taps([[cell]], inputs.shape) if taps else None
        grads, norms = jax.grad(loss, argnums=(0, 1))(params, given, inputs, targets)
        return (jax.lax.pmean(grads, "data") if split else grads), norms

    rows = P(None, "data")
    both = jax.shard_map(
        own, mesh=mesh, in_specs=(P(), rows, rows), out_specs=(P(), rows), check_vma=False
    )

    def step(_, state):
        params, rule_state, seen = state
        grads, norms = (both if split else own)(params, inputs, targets)
        seen += sum(jnp.sum(jnp.maximum(leaf, -99)) for leaf in jax.tree.leaves(norms))
        updates, rule_state = rule.update(grads, rule_state, params)
        return optax.apply_updates(params, updates), rule_state, seen

    begin = (params, rule.init(params), jnp.float32(0))
    after, _, seen = jax.jit(lambda: jax.lax.fori_loop(0, 20, step, begin))()
    assert (seen != 0) == taps
    return jax.tree.map(np.asarray, jax.tree.leaves(after))

class Own(nnx.RNNCellBase):
    def __init__(self, I, H, *, rngs):
        self.from_x, self.from_h = nnx.Linear(I, 2 * H, rngs=rngs), nnx.Linear(H, 2 * H, rngs=rngs)
    def initialize_carry(self, shape, rngs=None, carry_init=None):
        return jnp.zeros((*shape[:-1], H))
    def __call__(self, h, x):
        f, n = jnp.split(self.from_x(x) + self.from_h(h), 2, -1)
        f = jax.nn.sigmoid(f)
        h = f * h + (1 - f) * jnp.tanh(n)
        return h, h

for kind in (SimpleRNN, LSTM, GRU, nnx.GRUCell, Own):
    for rule in (optax.sgd(0.1), optax.adam(1e-2)):
        for split in (False, True):
            for every in (False, True):
                plain, measured = (trained(kind, rule, every, t, split) for t in (False, True))
                same = all(np.array_equal(a, b) for a, b in zip(plain, measured, strict=True))
                print(kind.__name__, split, every, "same" if same else "other", flush=True)
"""


@pytest.mark.slow
def test_measuring_changes_no_bit_of_what_is_trained_as_the_compiler_is_by_default():
    """In a process of its own: here the compiler is told to do little."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    flags |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": SOURCE}
    done = subprocess.run(
        [sys.executable, "-c", BITS],
        env=environment | flags,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 40, done.stderr
    assert [line for line in lines if not line.endswith("same")] == []
