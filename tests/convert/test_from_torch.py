"""Weights of PyTorch's layers give PyTorch's numbers, by its equations in numpy."""

import logging
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab import BadInput, from_torch
from tests.convert.equations import state_dict, torch_run

B, T, LENGTHS = 3, 5, np.array([5, 2, 4])
READ = np.random.default_rng(1).standard_normal((B, T, 3)).astype("f")


def carries_of(carries):
    """A carry for each layer and direction: (h, c), c None where there is none."""
    flat = [one for layer in carries for one in (layer if type(layer) is tuple else (layer,))]
    return [(carry.h, getattr(carry, "c", None)) for carry in flat]


def params(module):
    return [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))]


def agree(state, kind, **keys):
    """Outputs and final states, for sequences of several lengths."""
    module = from_torch(state, **keys)
    due, finals = torch_run(kind, state, READ, LENGTHS)
    run = nnx.jit(lambda module: module(READ, seq_lengths=LENGTHS, return_carry=True))
    carries, outputs = run(module)
    real = np.arange(T) < LENGTHS[:, None]
    np.testing.assert_allclose(outputs[real], due[real], rtol=0, atol=1e-5)
    for (h, c), (due_h, due_c) in zip(carries_of(carries), finals, strict=True):
        np.testing.assert_allclose(h, due_h, rtol=0, atol=1e-5)
        if c is not None:
            np.testing.assert_allclose(c, due_c, rtol=0, atol=1e-5)
    return module


KINDS = [("tanh", 0), ("relu", 0), ("gru", 0), ("lstm", 0), ("lstm", 2)]
FEW = [
    ("tanh", 0, 1, 1, True),
    ("relu", 0, 2, 1, False),
    ("gru", 0, 2, 2, True),
    ("lstm", 0, 1, 2, False),
    ("lstm", 2, 2, 2, True),
]
ALL = [(*kind, *rest) for kind in KINDS for rest in product((1, 2, 3), (1, 2), (True, False))]
REST = [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in FEW]


@pytest.mark.parametrize(("kind", "proj", "layers", "ways", "bias"), [*FEW, *REST])
def test_outputs_and_final_states_are_those_of_pytorchs_equations(kind, proj, layers, ways, bias):
    state = state_dict(kind, layers=layers, ways=ways, bias=bias, proj=proj)
    module = agree(state, kind, **({"nonlinearity": kind} if kind in ("tanh", "relu") else {}))
    names = [path[-1] for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))]
    each = (2 if kind == "gru" else 1) if bias else 0  # what is only ever added is one
    assert names.count("bias") == each * layers * ways
    assert names.count("kernel") == (2 + bool(proj)) * layers * ways


class Tensor:
    """As much of a tensor as is read."""

    def __init__(self, array, dtype="torch.float32"):
        self.array, self.dtype = array, dtype

    def detach(self):
        return self

    cpu = detach

    def float(self):
        return Tensor(self.array.astype(np.float32))

    def numpy(self):
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array


class Module:
    """As much of a module as is read."""

    def __init__(self, state, **attributes):
        self.state = state
        self.__dict__.update(attributes)

    def state_dict(self):
        return self.state


def test_a_module_of_tensors_is_read_and_copied(caplog):
    state = state_dict("relu", layers=2)
    tensors = {name: Tensor(array) for name, array in state.items()}
    module = from_torch(Module(tensors, nonlinearity="relu", dropout=0.5))
    assert "leaves the dropout between layers out" in caplog.text
    same = agree(state, "relu", nonlinearity="relu")
    jax.tree.map(np.testing.assert_array_equal, params(module), params(same))
    gru = state_dict("gru")
    converted = from_torch(gru)
    first = params(converted)
    for array in gru.values():  # as PyTorch's optimizers do
        array += 1
    jax.tree.map(np.testing.assert_array_equal, first, params(converted))


def test_half_precision_stays_half():
    state = state_dict("gru", dtype=jnp.bfloat16)
    tensors = {name: Tensor(array, "torch.bfloat16") for name, array in state.items()}
    module = from_torch(tensors)
    assert {leaf.dtype for leaf in params(module)} == {jnp.dtype("bfloat16")}
    with jax.numpy_dtype_promotion("standard"):
        outputs = module(READ.astype(jnp.bfloat16))
    due, _ = torch_run("gru", state, READ, np.full(B, T))
    np.testing.assert_allclose(outputs.astype(np.float32), due, rtol=0, atol=0.05)


def test_an_rnn_whose_nonlinearity_nobody_said_is_taken_for_one_of_tanh(caplog):
    with caplog.at_level(logging.WARNING, "gradlab"):
        agree(state_dict("tanh"), "tanh")
    assert 'nonlinearity="relu"' in caplog.text


def test_the_weights_of_a_cell_are_one_layer():
    state = state_dict("gru")
    own = {name.removesuffix("_l0"): array for name, array in state.items()}
    jax.tree.map(np.testing.assert_array_equal, params(from_torch(own)), params(from_torch(state)))


def test_a_larger_models_weights_are_read_by_their_prefix():
    state = state_dict("gru")
    model = {f"encoder.rnn.{name}": array for name, array in state.items()}
    model |= {"head.weight": np.zeros((2, 4)), "head.bias": np.zeros(2)}
    own = params(from_torch(model, prefix="encoder.rnn."))
    jax.tree.map(np.testing.assert_array_equal, own, params(from_torch(state)))
    for keys in ({}, {"prefix": "decoder."}):
        with pytest.raises(BadInput) as caught:
            from_torch(model, **keys)
        assert caught.value.hint == 'prefix="encoder.rnn."'
        assert caught.value.key == ("prefix" if keys else "module")


def _without(name, **keys):
    return {key: array for key, array in state_dict("lstm", **keys).items() if key != name}


def _with(**arrays):
    return {**state_dict("lstm", layers=2), **arrays}


@pytest.mark.parametrize(
    ("module", "keys", "key"),
    [
        (None, {}, "module"),
        (np.zeros((4, 4)), {}, "module"),
        (Module, {}, "module"),
        (Module({}), {}, "module"),
        ({"weight": np.zeros((4, 3)), "bias": np.zeros(4)}, {}, "module"),
        (_without("weight_hh_l0"), {}, "module"),
        (_without("weight_ih_l1", layers=2), {}, "module: weight_ih_l1"),
        (_without("bias_hh_l1", layers=2), {}, "module: bias_hh_l1"),
        (_without("bias_hh_l0"), {}, "module: bias_hh_l0"),
        (_without("weight_hr_l1", layers=2, proj=2), {}, "module: weight_hr_l1"),
        (_without("weight_ih_l0_reverse", ways=2), {}, "module: weight_ih_l0_reverse"),
        (_with(weight_hh_l0=np.zeros((15, 4))), {}, "module: weight_hh_l0"),
        (_with(weight_hh_l0=np.zeros(16)), {}, "module: weight_hh_l0"),
        (_with(weight_hh_l0=np.zeros((8, 4))), {}, "module: weight_hh_l0"),
        (_with(weight_ih_l0=np.zeros(16)), {}, "module: weight_ih_l0"),
        (_with(weight_ih_l0=np.zeros((12, 3))), {}, "module: weight_ih_l0"),
        (_with(weight_ih_l1=np.zeros((16, 3))), {}, "module: weight_ih_l1"),
        (_with(weight_hr_l1=np.zeros((4, 2))), {}, "module: weight_hr_l1"),
        (_with(bias_ih_l1=np.zeros((1, 16))), {}, "module: bias_ih_l1"),
        (_with(bias_ih_l1=np.zeros(16, int)), {}, "module: bias_ih_l1"),
        (_with(bias_ih_l1=np.array("x")), {}, "module: bias_ih_l1"),
        (_with(weight_ih_l7=np.zeros((16, 4))), {}, "module: bias_hh_l2"),
        (state_dict("tanh"), {"nonlinearity": "sigmoid"}, "nonlinearity"),
        (state_dict("lstm"), {"nonlinearity": "tanh"}, "nonlinearity"),
        (Module(state_dict("tanh"), nonlinearity="relu"), {"nonlinearity": "tanh"}, "nonlinearity"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_message(module, keys, key):
    with pytest.raises(BadInput) as caught:
        from_torch(module, **keys)
    assert caught.value.key == key
    assert caught.value.allowed
