"""PyTorch's ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, with the weights that they have."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradlab.cells.rnn import activation
from gradlab.convert import filled
from gradlab.errors import BadInput
from gradlab.watching.layers import RNN, Bidirectional

Nonlinearity = Literal["tanh", "relu"]

_NAME = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(\d+)(_reverse)?)?")
_FIRST = re.compile(r"weight_ih(_l0)?$")
_BLOCKS = {1: "RNN", 3: "GRU", 4: "LSTM"}
"""By how many blocks of H rows its matrices have."""
_log = logging.getLogger("gradlab")


class Stack(nnx.Module):
    """Recurrent layers on one another, as a module of PyTorch's has them.

    Attributes:
      layers: a :class:`gradlab.RNN` or :class:`gradlab.Bidirectional` each, from the input up.
    """

    def __init__(self, layers: list[RNN | Bidirectional]):
        self.layers = nnx.List(layers)

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Any = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool = False,
    ) -> Any:
        """``(B, T, I)`` to the top layer's outputs ``(B, T, D)``.

        Args:
          inputs: batch-major, whatever ``batch_first`` was.
          initial_carry: a carry for each layer, a pair of them where it reads in both directions;
            None: zeros.
          seq_lengths: ``(B,)``; as in a packed sequence, the carry returned is that at its end, and
            the backward direction begins there. Outputs beyond mean nothing.
          return_carry: give ``(carries, outputs)``, the carries as for ``initial_carry``.
        """
        starts = [None] * len(self.layers) if initial_carry is None else initial_carry
        carries: list[Any] = []
        read: Any = inputs
        for layer, start in zip(self.layers, starts, strict=True):
            carry, read = layer(
                read, initial_carry=start, seq_lengths=seq_lengths, return_carry=True
            )
            carries.append(carry)
        return (carries, read) if return_carry else read


def from_torch(module: Any, *, nonlinearity: Nonlinearity | None = None, prefix: str = "") -> Stack:
    r"""A module of PyTorch's as one of gradlab's layers, which compute and train the same.

    PyTorch is not imported; a state dict will do, of its tensors or of arrays. Kind and sizes are
    told by the weights. The outputs are those of ``module.eval()``, ``(B, T, D)`` whatever
    ``batch_first`` is: dropout between the layers is left out.

    PyTorch's LSTM and RNN have two biases that are only ever added to one another; here they are
    one, their sum. Plain gradient descent moves that sum half as far as it moves the two. The GRU
    keeps both. A module without biases has none here, either.

    Args:
      module: an ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU`` (or the cell of one, as a layer by itself),
        or its ``state_dict()``.
      nonlinearity: of an RNN of which the state dict alone is given: "tanh", which is assumed, or
        "relu".
      prefix: of its names in the state dict of a larger model, such as ``"encoder.rnn."``.

    Returns:
      :class:`Stack`. Its cells are :class:`gradlab.cells.SimpleRNN`, ``LSTM`` and ``GRU`` (the one
      with ``recurrent_bias``), and :class:`gradlab.convert.projected.ProjectedLSTM` for
      ``proj_size``.

    Raises:
      BadInput: for another module, and for weights that are missing or do not fit together.
    """
    state = _state_of(module, prefix)
    blocks, hidden, out = _sizes(state[0, 0])
    ways = 1 + max(way for _, way in state)
    own_width = (*state[0, 0]["weight_ih"].shape, 0, 0)[1]
    act = _nonlinearity(module, nonlinearity, _BLOCKS[blocks])
    if getattr(module, "dropout", 0):
        _log.warning("from_torch leaves the dropout between layers out, as module.eval() does")
    layers: list[RNN | Bidirectional] = []
    for depth in range(1 + max(depth for depth, _ in state)):
        width = ways * out if depth else own_width
        due = _due(state[0, 0], blocks * hidden, width, out, hidden)
        rnns = []
        for way in range(ways):
            own = state[depth, way]
            _check(own, due, f"_l{depth}" + "_reverse" * way)
            rnns.append(RNN(_cell(own, blocks, act)))
        layers.append(Bidirectional(*rnns) if ways == 2 else rnns[0])
    return Stack(layers)


Layer = dict[str, np.ndarray]
"""The weights of one layer and direction, under PyTorch's names for them."""


def _state_of(module: Any, prefix: str) -> dict[tuple[int, int], Layer]:
    """Its weights by layer and direction; a place that is not there has none."""
    wanted = "an nn.RNN, nn.LSTM or nn.GRU, or its state_dict()"
    if isinstance(module, type) or not (
        isinstance(module, Mapping) or callable(getattr(module, "state_dict", None))
    ):
        raise BadInput("module", module, wanted, "a module that is made: torch.nn.LSTM(3, 4)")
    names = module if isinstance(module, Mapping) else module.state_dict()
    state: dict[tuple[int, int], Layer] = defaultdict(dict)
    other = []
    for name, tensor in names.items():
        if not str(name).startswith(prefix):
            continue
        if (found := _NAME.fullmatch(str(name)[len(prefix) :])) is None:
            other.append(name)
            continue
        place = int(found[2] or 0), int(found[3] is not None)
        state[place][found[1]] = _array(name, tensor)
    if other or "weight_hh" not in state[0, 0] or "weight_ih" not in state[0, 0]:
        key = "prefix" if prefix else "module"
        given = (
            prefix or f"{type(module).__name__} with {', '.join(map(str, names)) or 'no weights'}"
        )
        inside = {name[: found.start()] for name in names if (found := _FIRST.search(str(name)))}
        hint = " or ".join(f'prefix="{found}"' for found in sorted(inside) if found)
        raise BadInput(key, given, f"{wanted}, with weight_ih_l0, weight_hh_l0 and so on", hint)
    return state


def _array(name: Any, tensor: Any) -> np.ndarray:
    """As an array of numpy's, in half precision too; it may still share the tensor's memory."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        half = str(tensor.dtype) == "torch.bfloat16"  # which numpy does not have
        tensor = tensor.float().numpy().astype(jnp.bfloat16) if half else tensor.numpy()
    array = np.asarray(tensor)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise BadInput(f"module: {name}", array.dtype.name, "real numbers in floating point")
    return array


def _sizes(first: Layer) -> tuple[int, int, int]:
    """How many blocks its matrices have, and the widths of state and output."""
    rows, columns = (*first["weight_hh"].shape, 0, 0)[:2]
    projection = first.get("weight_hr")
    hidden = columns if projection is None else projection.shape[-1]
    blocks = rows // hidden if hidden and rows % hidden == 0 else 0
    if blocks not in _BLOCKS or (projection is not None and blocks != 4):
        allowed = "(H, H) of an RNN, (3H, H) of a GRU, (4H, H) or (4H, proj_size) of an LSTM"
        raise BadInput("module: weight_hh_l0", first["weight_hh"].shape, allowed)
    return blocks, hidden, columns


def _due(first: Layer, rows: int, width: int, out: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's weights: of those that the first one has."""
    shapes = {
        "weight_ih": (rows, width),
        "weight_hh": (rows, out),
        "weight_hr": (out, hidden),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
    }
    biased = {"bias_ih", "bias_hh"} & first.keys()
    without = {"bias_ih", "bias_hh"} if not biased else set()
    return {
        name: shape
        for name, shape in shapes.items()
        if name not in without and (name != "weight_hr" or name in first)
    }


def _check(own: Layer, due: dict[str, tuple[int, ...]], place: str) -> None:
    for name in sorted(own.keys() | due.keys()):
        if name not in due:
            raise BadInput(f"module: {name}{place}", own[name].shape, "none: layer 0 has none")
        if name not in own:
            raise BadInput(f"module: {name}{place}", None, f"an array {due[name]}")
        if own[name].shape != due[name]:
            raise BadInput(f"module: {name}{place}", own[name].shape, f"an array {due[name]}")


def _nonlinearity(module: Any, given: Any, kind: str) -> Nonlinearity:
    known = getattr(module, "nonlinearity", None)
    if kind != "RNN":
        if given is not None:
            raise BadInput("nonlinearity", given, f"None: these are the weights of a torch {kind}")
        return "tanh"
    if given is None and known is None:
        _log.warning('from_torch takes this RNN for one of tanh; if not, nonlinearity="relu"')
    found = given or known or "tanh"
    allowed = get_args(Nonlinearity) if known is None else (known,)
    if found not in allowed or found not in get_args(Nonlinearity):
        raise BadInput("nonlinearity", found, " | ".join(allowed))
    return found


def _cell(own: Layer, blocks: int, nonlinearity: Nonlinearity) -> nnx.RNNCellBase:
    kernel, recurrent = own["weight_ih"].T, own["weight_hh"].T
    bias, inner = own.get("bias_ih"), own.get("bias_hh")
    if blocks == 3:
        return filled.gru(kernel, recurrent, bias, inner)
    both = None if bias is None or inner is None else bias + inner
    if blocks == 1:
        return filled.simple_rnn(kernel, recurrent, both, activation(nonlinearity))
    projection = own.get("weight_hr")
    return filled.lstm(kernel, recurrent, both, None if projection is None else projection.T)
