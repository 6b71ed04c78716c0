"""How far layers of PyTorch and Keras are from those that gradlab makes of them.

    pip install -e '.[bench]'
    python scripts/frameworks.py

Every variant that ``gradlab.from_torch`` and ``gradlab.from_keras`` read, with the frameworks' own
first weights, in float32 on the CPU. Prints a table in Markdown: for each kind of layer the largest
absolute difference of an output and of a final state, and of a gradient as a share of the largest
entry of its array, over all its variants.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from datetime import date
from itertools import product
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")

import flax
import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch
from flax import nnx
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gradlab import from_keras, from_torch

B, T, I, H = 8, 50, 5, 16  # noqa: E741
LENGTHS = np.array([50, 50, 44, 31, 20, 9, 2, 1])
READ = np.random.default_rng(0).standard_normal((B, T, I)).astype("f")
Errors = dict[str, float]


def main() -> None:
    """Compare them all and print the table."""
    print(f"{date.today()}, {platform.machine()}, Python {platform.python_version()},")
    print(f"torch {torch.__version__}, keras {keras.__version__}, jax {jax.__version__},")
    print(f"flax {flax.__version__}; B = {B}, T = {T}, I = {I}, H = {H}\n")
    print("| layer | variants | output | final state | gradient of parameters | of inputs |")
    print("|---|---|---|---|---|---|")
    for name, found in {**torch_layers(), **keras_layers()}.items():
        errors = list(found)
        largest = [max(error[key] for error in errors) for key in errors[0]]
        cells = " | ".join(f"{value:.1e}" for value in largest)
        print(f"| {name} | {len(errors)} | {cells} |", flush=True)


def torch_layers() -> dict[str, Iterator[Errors]]:
    """By kind: the errors of each of its variants."""
    kinds = {
        "torch RNN, tanh": (torch.nn.RNN, {}),
        "torch RNN, relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
        "torch GRU": (torch.nn.GRU, {}),
        "torch LSTM": (torch.nn.LSTM, {}),
        "torch LSTM, proj_size": (torch.nn.LSTM, {"proj_size": 6}),
    }
    return {name: torch_variants(*kind) for name, kind in kinds.items()}


def torch_variants(kind: Any, keys: dict[str, Any]) -> Iterator[Errors]:
    """Layers, directions, biases, the order of axes, and whether sequences end before T."""
    for layers, both, bias, first, ends in product((1, 2, 3), *[(False, True)] * 4):
        torch.manual_seed(0)
        options = {"num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": first}
        yield of_torch(kind(I, H, **options, **keys), ends)


def of_torch(module: Any, ends: bool) -> Errors:
    """The differences of one module; with ``ends`` of sequences of several lengths, packed."""
    own = torch.tensor(READ, requires_grad=True)
    read = own if module.batch_first else own.transpose(0, 1)
    lengths = torch.tensor(LENGTHS)
    if ends:
        read = pack_padded_sequence(read, lengths, batch_first=module.batch_first)
    outputs, finals = module(read)
    if ends:
        outputs, _ = pad_packed_sequence(outputs, batch_first=module.batch_first, total_length=T)
    outputs = outputs if module.batch_first else outputs.transpose(0, 1)
    torch.sum(torch.sin(outputs)).backward()
    gradient = {name: weight.grad for name, weight in module.named_parameters()}
    if not isinstance(module, torch.nn.GRU):  # of two biases that are one sum each has its gradient
        gradient |= {n: 0 * g for n, g in gradient.items() if n.startswith("bias_hh")}

    real = np.arange(T) < LENGTHS[:, None] if ends else np.ones((B, T), bool)
    due = from_torch(gradient, **_nonlinearity(module))
    return compared(
        from_torch(module),
        [outputs.detach().numpy(), _states(finals)],
        nnx.state(due, nnx.Param),
        own.grad.numpy(),
        real=real,
        seq_lengths=jnp.asarray(LENGTHS) if ends else None,
    )


def _nonlinearity(module: Any) -> dict[str, str]:
    return {"nonlinearity": module.nonlinearity} if isinstance(module, torch.nn.RNN) else {}


def _states(finals: Any) -> list[np.ndarray]:
    """h of each layer and direction, then c of each, if there is one."""
    parts = finals if isinstance(finals, tuple) else (finals,)
    return [one.detach().numpy() for part in parts for one in part]


def keras_layers() -> dict[str, Iterator[Errors]]:
    """By kind: the errors of each of its variants."""
    kinds = {
        "Keras SimpleRNN": (keras.layers.SimpleRNN, {}),
        "Keras LSTM": (keras.layers.LSTM, {}),
        "Keras GRU": (keras.layers.GRU, {"reset_after": True}),
        "Keras GRU, reset_after=False": (keras.layers.GRU, {"reset_after": False}),
    }
    return {name: keras_variants(*kind) for name, kind in kinds.items()}


def keras_variants(kind: Any, keys: dict[str, Any]) -> Iterator[Errors]:
    """Biases, directions, activations, and each way to put two directions together."""
    keys = {**keys, "return_sequences": True, "return_state": True, "bias_initializer": "normal"}
    gated = kind is not keras.layers.SimpleRNN
    for bias, back, act in product((False, True), (False, True), ("tanh", "relu", "softsign")):
        keras.utils.set_random_seed(0)
        options = {"use_bias": bias, "go_backwards": back, "activation": act}
        if gated:
            options["recurrent_activation"] = "hard_sigmoid" if act == "relu" else "sigmoid"
        yield of_keras(kind(H, **options, **keys))
    for merge in ("concat", "sum", "mul", "ave"):
        yield of_keras(keras.layers.Bidirectional(kind(H, **keys), merge_mode=merge))


def of_keras(layer: Any) -> Errors:
    """The differences of one layer."""
    layer.build((None, None, I))
    outputs, *finals = layer(READ)
    weights = [variable.value for variable in layer.trainable_variables]
    fixed = [variable.value for variable in layer.non_trainable_variables]

    def loss(weights: Any, read: Any) -> Any:
        (outputs, *_), _ = layer.stateless_call(weights, fixed, read)
        return jnp.sum(jnp.sin(outputs))

    by_weights, by_inputs = jax.grad(loss, argnums=(0, 1))(weights, jnp.asarray(READ))
    module = from_keras(layer)
    for variable, gradient in zip(layer.trainable_variables, by_weights, strict=True):
        variable.assign(gradient)
    gated = len(finals) in (2, 4) and "LSTM" in str(layer.get_config())
    order = [[0, 1], [0, 2, 1, 3]][len(finals) == 4] if gated else range(len(finals))
    states = [np.asarray(finals[place]) for place in order]
    due = nnx.state(from_keras(layer), nnx.Param)
    return compared(module, [np.asarray(outputs), states], due, np.asarray(by_inputs))


def compared(
    module: Any, run: list[Any], by_params: Any, by_inputs: Any, *, real: Any = None, **keys: Any
) -> Errors:
    """The differences of gradlab's module from what the framework gave."""
    real = np.ones((B, T), bool) if real is None else real

    def loss(module: Any, read: Any) -> Any:
        carries, outputs = module(read, return_carry=True, **keys)
        kept = jnp.where(jnp.asarray(real)[..., None], outputs, 0)
        return jnp.sum(jnp.sin(kept)), (carries, outputs)

    derive = nnx.jit(nnx.grad(loss, argnums=(0, 1), has_aux=True))
    (params, inputs), (carries, outputs) = derive(module, jnp.asarray(READ))
    flat = _carries(carries)
    states = [carry.h for carry in flat] + [carry.c for carry in flat if hasattr(carry, "c")]
    found, due = jax.tree.leaves(params), jax.tree.leaves(by_params)
    return {
        "output": float(np.abs(np.asarray(outputs)[real] - run[0][real]).max()),
        "state": max(_largest(*pair) for pair in zip(states, run[1], strict=True)),
        "params": max(_share(*pair) for pair in zip(found, due, strict=True)),
        "inputs": _share(inputs, by_inputs),
    }


def _carries(tree: Any) -> list[Any]:
    """The carries of all layers and directions in order."""
    return [tree] if hasattr(tree, "h") else [one for part in tree for one in _carries(part)]


def _largest(found: Any, due: Any) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(due)).max())


def _share(found: Any, due: Any) -> float:
    return _largest(found, due) / float(np.abs(np.asarray(due)).max())


if __name__ == "__main__":
    main()
