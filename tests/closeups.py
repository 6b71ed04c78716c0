"""Close looks at tiny networks, and the same networks written as plainly as possible.

The plain network is one scan a direction in which every step and every example has parameters of
its own (*copies*), a number added to its new state (a *nudge*) and one added to the h that its
output is or is made of (a *lift*). Plain autodiff by these gives what enters through each step, the
total adjoints, and the direct ones; nothing of gradlab is used but the cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradlab.bptt.closeup import Closeup

T, E, I, H, O = 7, 3, 2, 3, 2  # noqa: E741
LENGTHS = (7, 5, 3)


class Separate(nnx.RNNCellBase):
    """A cell whose output is not its state, with parameters of the output's own."""

    def __init__(
        self, in_features, hidden_features, *, param_dtype=jnp.float32, dtype=None, rngs=None
    ):
        self.in_features, self.hidden_features = in_features, hidden_features
        self.param_dtype = param_dtype
        types = {"param_dtype": param_dtype, "dtype": dtype, "rngs": rngs}
        self.dense = nnx.Linear(in_features + hidden_features, hidden_features, **types)
        self.out = nnx.Linear(hidden_features, hidden_features, **types)

    def __call__(self, carry, inputs):
        h = jnp.tanh(self.dense(jnp.concatenate([carry, inputs], -1)))
        return h, self.emit(h)

    def emit(self, h):
        return jnp.tanh(self.out(h))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.param_dtype)


class Scalar(nnx.RNNCellBase):
    """``h' = w h + u x`` with one unit; w and u are parameters or fixed numbers."""

    in_features = hidden_features = 1

    def __init__(self, w, u, *, learn=("w",), dtype=jnp.float32):
        for name, value in (("w", w), ("u", u)):
            array = jnp.asarray(value, dtype)
            setattr(self, name, nnx.Param(array) if name in learn else nnx.Variable(array))
        self.dtype = dtype

    def __call__(self, carry, inputs):
        h = self.w[...] * carry + self.u[...] * inputs
        return h, h

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], 1), self.dtype)


def scalar_closeup(cell: Scalar, inputs: jax.Array, *, batch: int = 1) -> Closeup:
    """A close look at a :class:`Scalar` whose loss is its last state; ``inputs (T, E)``."""
    return Closeup([[cell]], inputs[..., None], lambda last: last[:, 0], batch=batch)


class Case(NamedTuple):
    """A network, what it reads, and its loss.

    Attributes:
      layers, readout: the modules.
      inputs: ``(T, E, I)``.
      targets: ``(T, E, O)``.
      weights: ``(T, E)``, zero where masked.
      mask: ``(T, E)``, or None.
      every: whether the loss reads every step.
    """

    layers: list[list[Any]]
    readout: nnx.Linear
    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array
    mask: jax.Array | None
    every: bool

    def losses(self, read: jax.Array) -> jax.Array:
        """``(E,)``: of each example."""
        if self.every:
            return jnp.sum(self.weights[..., None] * (jnp.sin(read) - self.targets) ** 2, (0, 2))
        return jnp.sum((jnp.sin(read) - self.targets[-1]) ** 2, -1)

    def closeup(self, **keys: Any) -> Closeup:
        """The close look at it."""
        return Closeup(
            self.layers,
            self.inputs,
            self.losses,
            readout=self.readout,
            every=self.every,
            mask=self.mask,
            batch=16,
            **keys,
        )

    @property
    def places(self) -> list[tuple[int, int]]:
        """Layer and direction, in the order of :attr:`Closeup.layers`."""
        return [(a, b) for a, layer in enumerate(self.layers) for b in range(len(layer))]

    @property
    def real(self) -> np.ndarray:
        """``(T, E)`` bool, in the order of the input."""
        return np.ones((T, E), bool) if self.mask is None else np.asarray(self.mask)

    def real_of(self, index: int) -> np.ndarray:
        """The same in the reading order of one direction."""
        return self.real[::-1] if self.places[index][1] else self.real

    def lag_of(self, index: int) -> np.ndarray:
        """``(T, E)``: steps from each example's last step in the direction's reading order."""
        real = self.real_of(index)
        return lags(real)


def lags(real: np.ndarray) -> np.ndarray:
    """``(T, E)``: steps from each example's last real step; ``real`` likewise."""
    last = np.array([np.flatnonzero(real[:, e])[-1] for e in range(E)])
    return last - np.arange(T)[:, None]


def make_case(
    make: Callable[..., Any] | list[list[Callable[..., Any]]],
    *,
    layers: int = 1,
    bidirectional: bool = False,
    masked: bool = False,
    every: bool = True,
    dtype: Any = jnp.float64,
) -> Case:
    """A tiny network of these cells; call it under ``jax.enable_x64`` for float64.

    Args:
      make: makes every cell; or, for each layer and direction, what makes that one.
    """
    directions = 2 if bidirectional else 1
    makes = make if isinstance(make, list) else [[make] * directions] * layers
    rng = np.random.default_rng(0)

    def drawn(make, *sizes):
        """With random parameters; that of each cell's own start would be compiled one by one."""
        types = {"dtype": dtype, "param_dtype": dtype}
        graph, state = nnx.split(nnx.eval_shape(lambda: make(*sizes, rngs=nnx.Rngs(0), **types)))
        return nnx.merge(graph, jax.tree.map(lambda a: normal(*a.shape, size=0.5), state))

    def normal(*shape, size=1.0):
        return jnp.asarray(size * rng.normal(size=shape), dtype)

    stack, width = [], I
    for layer in makes:
        stack.append([drawn(one, width, H) for one in layer])
        width = len(layer) * H
    mask = np.arange(T)[:, None] < np.array([LENGTHS]) if masked else None
    weights = rng.uniform(size=(T, E)) * (1 if mask is None else mask)
    return Case(
        stack,
        drawn(nnx.Linear, width, O),
        normal(T, E, I),
        normal(T, E, O),
        jnp.asarray(weights, dtype),
        None if mask is None else jnp.asarray(mask),
        every,
    )


class Copies(NamedTuple):
    """What the plain network is differentiated by.

    Attributes:
      cells: for each direction its parameters, leaves ``(T, E, *θ.shape)`` in reading order.
      nudges: for each direction what is added to its new state, a carry of ``(T, E, H)``.
      lifts: for each direction what is added to the h that its outputs are, or are made of,
        ``(T, E, H)``.
      readout: leaves ``(T, E, *θ.shape)``, in the order of the input.
    """

    cells: list[Any]
    nudges: list[Any]
    lifts: list[jax.Array]
    readout: Any


def repeated(params: Any, *axes: int) -> Any:
    """Every leaf ``(*axes, *θ.shape)``."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*axes, *leaf.shape)), params)


class Plain:
    """The plain network of a case.

    Attributes:
      params: of each direction, and last of the readout.
    """

    def __init__(self, case: Case):
        self.case = case
        modules = [*(case.layers[a][b] for a, b in case.places), case.readout]
        split = [nnx.split(module, nnx.Param, ...) for module in modules]
        self.params = [own for _, own, _ in split]
        self.modules = [
            lambda own, graph=graph, rest=rest: nnx.merge(graph, own, rest, copy=True)
            for graph, _, rest in split
        ]
        self.starts = [
            case.layers[a][b].initialize_carry((E, case.inputs.shape[-1]), nnx.Rngs(0))
            for a, b in case.places
        ]

    def copies(self, params: Any = None) -> Copies:
        """The same parameters at every step and example, and nothing added."""
        *cells, readout = self.params if params is None else params
        zeros = [jax.tree.map(lambda s: jnp.zeros((T, *s.shape), s.dtype), s) for s in self.starts]
        return Copies(
            [repeated(one, T, E) for one in cells],
            zeros,
            [jnp.zeros((T, E, H), self.case.inputs.dtype) for _ in self.starts],
            repeated(readout, T, E),
        )

    def losses(self, copies: Copies, cuts: Any = None) -> jax.Array:
        """``(E,)``; with ``cuts``, ``(T, E)`` for each direction, the state is held there."""
        case, index, read, ends = self.case, 0, self.case.inputs, []
        for layer in case.layers:
            outputs, ends = [], []
            for direction in range(len(layer)):
                out = self._direction(copies, index, read, direction, cuts)
                outputs.append(out[::-1] if direction else out)
                last = T - 1 - np.argmax(case.real_of(index)[::-1], axis=0)
                ends.append(out[last, np.arange(E)])
                index += 1
            read = jnp.concatenate(outputs, -1)
        each = jax.vmap(lambda own, outputs: self.modules[-1](own)(outputs))
        if case.every:
            return case.losses(jax.vmap(each)(copies.readout, read))
        last = T - 1 - np.argmax(case.real[::-1], axis=0)
        own = jax.tree.map(lambda leaf: leaf[last, np.arange(E)], copies.readout)
        return case.losses(each(own, jnp.concatenate(ends, -1)))

    def _direction(self, copies, index, read, direction, cuts):
        separate, module = isinstance(self.case.layers[0][0], Separate), self.modules[index]
        one = jax.vmap(lambda own, carry, x: module(own)(carry, x)[0])
        emit = jax.vmap(lambda own, h: module(own).emit(h))
        cut = jnp.zeros((T, E), bool) if cuts is None else cuts[index]

        def step(carry, now):
            own, nudge, lift, x, real, cut = now
            new = one(own, carry, x)
            new = jax.tree.map(jnp.add, new, nudge)
            new = jax.tree.map(lambda n, o: jnp.where(real[:, None], n, o), new, carry)
            h = jax.tree.leaves(new)[-1] + lift
            y = emit(own, h) if separate else h
            held = jax.lax.stop_gradient(new)
            onward = jax.tree.map(lambda n, h: jnp.where(cut[:, None], h, n), new, held)
            return onward, y

        order = slice(None, None, -1 if direction else 1)
        reads = (
            copies.cells[index],
            copies.nudges[index],
            copies.lifts[index],
            read[order],
            jnp.asarray(self.case.real_of(index)),
            cut,
        )
        return jax.lax.scan(step, self.starts[index], reads)[1]

    def mean_loss(self, params: Any, cuts: Any = None) -> jax.Array:
        """The mean loss as a function of parameters like :attr:`params`."""
        return jnp.mean(self.losses(self.copies(params), cuts))


def packed(carry: Any) -> np.ndarray:
    """``(..., S)`` from a carry."""
    return np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(carry)], axis=-1)


def named(prefix: str, tree: Any) -> dict[str, np.ndarray]:
    """The leaves of parameters by their names as in :attr:`Closeup.params`."""
    flat = nnx.to_flat_state(tree)
    return {prefix + "/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}
