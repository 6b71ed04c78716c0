"""One small cell of every kind that a user may bring, and slow truth about each of them.

The cells are plain Flax, written as a user would write them. :data:`ZOO` holds those that must
work, :data:`FAULTY` those that must be refused. Where the output is not a leaf of the new carry, a
cell has ``emit(before, x, after)``, which gives the output from a new carry that was altered: the
truth needs it and nothing else does.

Every class is made by ``(in_features, hidden_features, *, rngs)``, so that the command line can
name it, too: ``model.cell._target_=tests.zoo.HiddenFirst``.

Shapes: batch-major, ``(B, T, *features)``, as in Flax; adjoints are time-major, ``(T, B, ...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.recurrent import modified_orthogonal

B, T, I, H = 3, 5, 3, 4  # noqa: E741


class Own(nnx.RNNCellBase):
    """What a user's cell has at the least: sizes, and a first state of zeros."""

    num_feature_axes = 1

    def __init__(self, in_features, hidden_features, *, param_dtype=jnp.float32, rngs):
        self.in_features, self.hidden_features = in_features, hidden_features
        self.param_dtype = param_dtype
        self.fill(rngs)

    def linear(self, inputs, outputs, rngs, **keys):
        return nnx.Linear(inputs, outputs, param_dtype=self.param_dtype, rngs=rngs, **keys)

    def fill(self, rngs):
        """The parameters: those of a plain network, unless a cell has others."""
        self.read = self.linear(self.in_features, self.hidden_features, rngs)
        self.recur = self.linear(self.hidden_features, self.hidden_features, rngs, use_bias=False)

    def zeros(self, input_shape, *widths):
        batch = input_shape[: len(input_shape) - self.num_feature_axes]
        return tuple(jnp.zeros((*batch, width), self.param_dtype) for width in widths)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.zeros(input_shape, self.hidden_features)[0]

    def new(self, h, x):
        return jnp.tanh(self.read(x) + self.recur(h))


# The LSTM's recurrence, with a carry of every form. The same keys give the same weights.


class MemoryFirst(Own):
    """The carry is (c, h), as Flax has it."""

    def fill(self, rngs):
        self.read = self.linear(self.in_features, 4 * self.hidden_features, rngs, use_bias=False)
        self.recur = self.linear(self.hidden_features, 4 * self.hidden_features, rngs)

    def pack(self, c, h):
        return c, h

    def unpack(self, carry):
        return carry

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.pack(*self.zeros(input_shape, self.hidden_features, self.hidden_features))

    def __call__(self, carry, inputs):
        c, h = self.unpack(carry)
        i, f, g, o = jnp.split(self.read(inputs) + self.recur(h), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return self.pack(c, h), h


class HiddenFirst(MemoryFirst):
    """The carry is (h, c), as in PyTorch."""

    def pack(self, c, h):
        return h, c

    def unpack(self, carry):
        h, c = carry
        return c, h


class AsList(HiddenFirst):
    """The carry is a list."""

    def pack(self, c, h):
        return [h, c]


class AsDict(MemoryFirst):
    """The carry is a dict; jax orders its leaves by their names."""

    def pack(self, c, h):
        return {"memory": c, "hidden": h}

    def unpack(self, carry):
        return carry["memory"], carry["hidden"]


class Nested(MemoryFirst):
    """A dict within a dict."""

    def pack(self, c, h):
        return {"upper": {"h": h}, "lower": {"slow": c}}

    def unpack(self, carry):
        return carry["lower"]["slow"], carry["upper"]["h"]


class Memory(NamedTuple):
    """A user's own names."""

    output: jax.Array
    store: jax.Array


class Named(MemoryFirst):
    """The carry is a NamedTuple."""

    def pack(self, c, h):
        return Memory(output=h, store=c)

    def unpack(self, carry):
        return carry.store, carry.output


@partial(jax.tree_util.register_dataclass, data_fields=["output", "store"], meta_fields=["version"])
@dataclass
class Kept:
    """A user's own dataclass."""

    output: jax.Array
    store: jax.Array
    version: int = 1


class AsDataclass(MemoryFirst):
    """The carry is a dataclass that jax knows."""

    def pack(self, c, h):
        return Kept(output=h, store=c)

    def unpack(self, carry):
        return carry.store, carry.output


# A first state that is learned.


class LearnedStart(Own):
    """A plain network with a parameter for its first state."""

    def fill(self, rngs):
        super().fill(rngs)
        self.h0 = nnx.Param(0.3 * rngs.params.normal((self.hidden_features,), self.param_dtype))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.broadcast_to(self.h0[...], (*input_shape[:-1], self.hidden_features))

    def __call__(self, carry, inputs):
        h = self.new(carry, inputs)
        return h, h


class LearnedMemory(MemoryFirst):
    """An LSTM with a parameter for each of its first states."""

    def fill(self, rngs):
        super().fill(rngs)
        for name in ("c0", "h0"):
            drawn = 0.3 * rngs.params.normal((self.hidden_features,), self.param_dtype)
            setattr(self, name, nnx.Param(drawn))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        shape = (*input_shape[:-1], self.hidden_features)
        return self.pack(*(jnp.broadcast_to(first[...], shape) for first in (self.c0, self.h0)))


# An output that is not a leaf of the carry.


class Emits(Own):
    """A plain network whose output is computed: ``emit`` says how."""

    def emit(self, before, x, after):
        raise NotImplementedError

    def __call__(self, carry, inputs):
        after = self.new(carry, inputs)
        return after, self.emit(carry, inputs, after)


class Twice(Emits):
    """y = 2h."""

    def emit(self, before, x, after):
        return 2 * after


class Projected(Emits):
    """y = P·h, of another width."""

    out_features = 2

    def fill(self, rngs):
        super().fill(rngs)
        self.project = self.linear(self.hidden_features, self.out_features, rngs, use_bias=False)

    def emit(self, before, x, after):
        return self.project(after)


class Residual(Projected):
    """y = P·h + Q·x + R·(the old h): part of y does not come through the new carry."""

    def fill(self, rngs):
        super().fill(rngs)
        self.skip = self.linear(self.in_features, self.out_features, rngs)
        self.old = self.linear(self.hidden_features, self.out_features, rngs, use_bias=False)

    def emit(self, before, x, after):
        return self.project(after) + self.skip(x) + self.old(before)


class Mealy(Projected):
    """y comes from the old state and the input alone, and from nothing of the new carry."""

    def fill(self, rngs):
        super().fill(rngs)
        self.skip = self.linear(self.in_features, self.out_features, rngs)

    def emit(self, before, x, after):
        return self.skip(x) * self.project(before)


class TwiceMemory(MemoryFirst):
    """An LSTM whose output is 2h, h = o·tanh(c): y comes from c, too, but only through h."""

    def emit(self, before, x, after):
        return 2 * self.unpack(after)[1]

    def __call__(self, carry, inputs):
        after, h = super().__call__(carry, inputs)
        return after, 2 * h


class Sum(Own):
    """Two states of one standing, y = fast + slow: a user has to say which is h."""

    h_leaf = 1

    def fill(self, rngs):
        super().fill(rngs)
        self.read_slow = self.linear(self.in_features, self.hidden_features, rngs)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.pack(*self.zeros(input_shape, self.hidden_features, self.hidden_features))

    def pack(self, fast, slow):
        return fast, slow

    def unpack(self, carry):
        return carry

    def emit(self, before, x, after):
        fast, slow = self.unpack(after)
        return fast + slow

    def __call__(self, carry, inputs):
        fast, slow = self.unpack(carry)
        new = self.new(fast + slow, inputs)
        after = self.pack(new, 0.9 * slow + 0.1 * jnp.tanh(self.read_slow(inputs)))
        return after, self.emit(carry, inputs, after)


class SumNamed(Sum):
    """The same, with the name of h said."""

    h_leaf = "slow"

    def pack(self, fast, slow):
        return {"fast": fast, "slow": slow}

    def unpack(self, carry):
        return carry["fast"], carry["slow"]


class SumWithH(SumNamed):
    """The same, with nothing said, and a leaf that is called h."""

    h_leaf = None

    def pack(self, fast, slow):
        return {"h": fast, "slow": slow}

    def unpack(self, carry):
        return carry["h"], carry["slow"]


# Leaves of different widths.


class LSTMP(Own):
    """The LSTM with a projection (Sak et al. 2014): h = P·(o·tanh(c)) is half as wide as c."""

    def fill(self, rngs):
        self.narrow = max(1, self.hidden_features // 2)
        self.read = self.linear(self.in_features, 4 * self.hidden_features, rngs, use_bias=False)
        self.recur = self.linear(self.narrow, 4 * self.hidden_features, rngs)
        self.project = self.linear(self.hidden_features, self.narrow, rngs, use_bias=False)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.zeros(input_shape, self.hidden_features, self.narrow)

    def __call__(self, carry, inputs):
        c, h = carry
        i, f, g, o = jnp.split(self.read(inputs) + self.recur(h), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = self.project(jax.nn.sigmoid(o) * jnp.tanh(c))
        return (c, h), h


class Three(Own):
    """Three leaves, each of a width of its own, with h in the middle."""

    def fill(self, rngs):
        super().fill(rngs)
        self.slow = self.linear(self.in_features, 2, rngs)
        self.back = self.linear(2, self.hidden_features, rngs)
        self.last = self.linear(self.hidden_features, 1, rngs)
        self.again = self.linear(1, self.hidden_features, rngs)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.zeros(input_shape, 2, self.hidden_features, 1)

    def __call__(self, carry, inputs):
        slow, h, last = carry
        slow = 0.9 * slow + 0.1 * self.slow(inputs)
        drive = self.read(inputs) + self.recur(h) + self.back(slow) + self.again(last)
        new = jnp.tanh(drive)
        return (slow, new, jnp.sin(self.last(h))), new


# Leaves that are no states of the examples.


class Counter(Own):
    """A whole number without a batch axis, which a leak depends on."""

    axis = False

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        shape = input_shape[:-1] if self.axis else ()
        return {"h": super().initialize_carry(input_shape), "count": jnp.zeros(shape, jnp.int32)}

    def __call__(self, carry, inputs):
        h, count = carry["h"], carry["count"] + 1
        leak = 1 / count.astype(h.dtype)
        leak = jnp.broadcast_to(leak[..., None] if self.axis else leak, h.shape)
        h = (1 - leak) * h + leak * self.new(h, inputs)
        return {"h": h, "count": count}, h


class CounterPerExample(Counter):
    """A whole number for each example."""

    axis = True


class Scalar(Own):
    """A real number without a batch axis, whose gradient is that of the batch as a whole."""

    mixing = False

    def fill(self, rngs):
        super().fill(rngs)
        self.decay = nnx.Param(jnp.asarray(0.7, self.param_dtype))
        self.gain0 = nnx.Param(jnp.asarray(0.9, self.param_dtype))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return super().initialize_carry(input_shape), self.gain0[...]

    def __call__(self, carry, inputs):
        h, gain = carry
        h = jnp.tanh(self.read(inputs) + gain * self.recur(h))
        gain = self.decay[...] * gain + 0.1
        return (h, gain + jnp.mean(h) if self.mixing else gain), h


class MixingScalar(Scalar):
    """The same, and the number is made of all examples."""

    mixing = True


class Flag(Own):
    """A bool for each example."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return super().initialize_carry(input_shape), jnp.zeros(input_shape[:-1], bool)

    def __call__(self, carry, inputs):
        h, waits = carry
        new = jnp.where(waits[..., None], 0.5 * h, self.new(h, inputs))
        return (new, inputs[..., 0] > 0.5), new


# Complex states.


class LRU(Own):
    """A linear recurrent unit (Orvieto et al. 2023): x' = λ x + B u, y = Re(C x) + D u."""

    def fill(self, rngs):
        wide, real = self.hidden_features, self.param_dtype
        angle = jnp.linspace(0.1, 1.5, wide, dtype=real)
        self.log_decay = nnx.Param(jnp.linspace(-3.0, -1.0, wide, dtype=real))
        self.angle = nnx.Param(angle)
        self.into = nnx.Param(self.draw(rngs, (self.in_features, wide)))
        self.out = nnx.Param(self.draw(rngs, (wide, 2)))
        self.skip = self.linear(self.in_features, 2, rngs, use_bias=False)

    def draw(self, rngs, shape):
        parts = (rngs.params.normal(shape, self.param_dtype) / shape[0] ** 0.5 for _ in range(2))
        return jax.lax.complex(*parts)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        (zeros,) = self.zeros(input_shape, self.hidden_features)
        return jax.lax.complex(zeros, zeros)

    def new(self, h, x):
        rate = jax.lax.complex(-jnp.exp(self.log_decay[...]), self.angle[...])
        x = jax.lax.complex(x, jnp.zeros_like(x))
        return jnp.broadcast_to(jnp.exp(rate), h.shape) * h + x @ self.into[...]

    def emit(self, before, x, after):
        return (after @ self.out[...]).real + self.skip(x)

    def __call__(self, carry, inputs):
        after = self.new(carry, inputs)
        return after, self.emit(carry, inputs, after)


class Bare(LRU):
    """A complex linear unit whose output is its complex state."""

    emit = None

    def __call__(self, carry, inputs):
        after = self.new(carry, inputs)
        return after, after


class Unitary(LRU):
    """A unitary matrix and modReLU (Arjovsky et al. 2016); y holds both parts of the state."""

    def fill(self, rngs):
        wide = self.hidden_features
        self.turn = nnx.Param(jnp.linalg.qr(self.draw(rngs, (wide, wide)))[0])
        self.into = nnx.Param(self.draw(rngs, (self.in_features, wide)))
        self.shift = nnx.Param(jnp.full((wide,), -0.05, self.param_dtype))

    def new(self, h, x):
        z = h @ self.turn[...] + jax.lax.complex(x, jnp.zeros_like(x)) @ self.into[...]
        size = jnp.sqrt(z.real**2 + z.imag**2 + 1e-6)
        scale = jax.nn.relu(size + jnp.broadcast_to(self.shift[...], size.shape)) / size
        return jax.lax.complex(scale * z.real, scale * z.imag)

    def emit(self, before, x, after):
        return jnp.concatenate([after.real, after.imag], -1)


# Cells that change Variables.


class Dropout(Own):
    """Dropout on h, by a stream of its own."""

    def fill(self, rngs):
        super().fill(rngs)
        self.drop = nnx.Dropout(0.4, rngs=nnx.Rngs(dropout=7))

    def __call__(self, carry, inputs):
        h = self.drop(self.new(carry, inputs))
        return h, h


class DropoutNext(Dropout):
    """Dropout on what the next step reads; y is the whole h, no leaf of the carry."""

    emit = None  # y is no function of the new carry: what is dropped cannot be read from it

    def __call__(self, carry, inputs):
        h = self.new(self.drop(carry), inputs)
        return h, h


class BatchNormed(Own):
    """Batch normalisation within the step, in training: it mixes the examples."""

    trains = True

    def fill(self, rngs):
        super().fill(rngs)
        self.norm = nnx.BatchNorm(
            self.hidden_features,
            momentum=0.8,
            use_running_average=not self.trains,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )
        # As after some training, so that evaluation depends on them.
        shift = jnp.linspace(-0.2, 0.3, self.hidden_features, dtype=self.param_dtype)
        self.norm.mean.set_value(shift)
        self.norm.var.set_value(1 + shift)

    def __call__(self, carry, inputs):
        h = jnp.tanh(self.norm(self.read(inputs) + self.recur(carry)))
        return h, h


class BatchNormedEvaluated(BatchNormed):
    """The same, in evaluation: its statistics are constants, and nothing mixes."""

    trains = False


class LayerNormed(Own):
    """Layer normalisation: a mean, but not over the examples."""

    def fill(self, rngs):
        super().fill(rngs)
        self.norm = nnx.LayerNorm(self.hidden_features, param_dtype=self.param_dtype, rngs=rngs)

    def __call__(self, carry, inputs):
        h = jnp.tanh(self.norm(self.read(inputs) + self.recur(carry)))
        return h, h


class Count(nnx.Variable):
    """How many steps there were."""


class CountingVariable(Own):
    """A leak that depends on a whole number in a Variable."""

    def fill(self, rngs):
        super().fill(rngs)
        self.count = Count(jnp.asarray(0, jnp.int32))

    def __call__(self, carry, inputs):
        self.count[...] = self.count[...] + 1
        leak = jnp.broadcast_to(1 / self.count[...].astype(carry.dtype), carry.shape)
        h = (1 - leak) * carry + leak * self.new(carry, inputs)
        return h, h


class Decaying(Own):
    """A real number in a Variable that each step makes smaller, whatever the examples are."""

    def fill(self, rngs):
        super().fill(rngs)
        self.gain = nnx.Variable(jnp.asarray(1.0, self.param_dtype))
        self.rate = nnx.Param(jnp.asarray(0.8, self.param_dtype))

    def __call__(self, carry, inputs):
        h = jnp.tanh(self.read(inputs) + self.gain[...] * self.recur(carry))
        self.gain[...] = self.gain[...] * self.rate[...]
        return h, h


class FastWeights(Own):
    """Weights that the examples of the batch write together (after Ba et al. 2016)."""

    def fill(self, rngs):
        super().fill(rngs)
        shape = (self.hidden_features, self.hidden_features)
        self.fast = nnx.Variable(0.1 * rngs.params.normal(shape, self.param_dtype))

    def __call__(self, carry, inputs):
        h = jnp.tanh(self.read(inputs) + self.recur(carry) + carry @ self.fast[...])
        self.fast[...] = 0.9 * self.fast[...] + 0.5 * (h.T @ h) / h.shape[0]
        return h, h


class Fixed(Own):
    """A recurrent matrix in a Variable that is no Param, and receives a gradient all the same."""

    def fill(self, rngs):
        self.read = self.linear(self.in_features, self.hidden_features, rngs)
        shape = (self.hidden_features, self.hidden_features)
        self.matrix = nnx.BatchStat(0.5 * rngs.params.normal(shape, self.param_dtype))

    def __call__(self, carry, inputs):
        h = jnp.tanh(self.read(inputs) + carry @ self.matrix[...])
        return h, h


class PerStep(nnx.Variable):
    """One value for each step."""


class Clocked(Own):
    """A bias of its own for each step, which ``state_axes={PerStep: 0, ...}`` hands out."""

    def fill(self, rngs):
        super().fill(rngs)
        shape = (T, self.hidden_features)
        self.clock = PerStep(0.3 * rngs.params.normal(shape, self.param_dtype))

    def __call__(self, carry, inputs):
        bias = jnp.broadcast_to(self.clock[...], carry.shape)
        h = jnp.tanh(self.read(inputs) + self.recur(carry) + bias)
        return h, h


# Inputs that are no real numbers.


class Embedding(Own):
    """Reads whole numbers ``(B, 1)``."""

    def fill(self, rngs):
        shape = (self.in_features, self.hidden_features)
        self.table = nnx.Param(rngs.params.normal(shape, self.param_dtype))
        self.recur = self.linear(self.hidden_features, self.hidden_features, rngs)

    def symbols(self, x):
        return x[..., 0]

    def __call__(self, carry, inputs):
        h = jnp.tanh(self.table[...][self.symbols(inputs)] + self.recur(carry))
        return h, h


class BareEmbedding(Embedding):
    """Reads whole numbers ``(B,)``, without an axis of features."""

    num_feature_axes = 0

    def symbols(self, x):
        return x


class Switched(Own):
    """Reads bools ``(B, I)``."""

    def __call__(self, carry, inputs):
        h = jnp.tanh(self.read(jnp.where(inputs, 1.0, -0.5).astype(carry.dtype)))
        h = h + 0.5 * self.recur(carry)
        return h, h


# Several axes of features.


class ConvLSTM(Own):
    """The LSTM of Shi et al. (2015), with convolutions over ``(rows, columns, channels)``."""

    num_feature_axes = 3

    def fill(self, rngs):
        keys = {"param_dtype": self.param_dtype, "rngs": rngs}
        self.read = nnx.Conv(self.in_features, 4 * self.hidden_features, (3, 3), **keys)
        self.recur = nnx.Conv(self.hidden_features, 4 * self.hidden_features, (3, 3), **keys)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        zeros = jnp.zeros((*input_shape[:-1], self.hidden_features), self.param_dtype)
        return zeros, zeros

    def __call__(self, carry, inputs):
        c, h = carry
        i, f, g, o = jnp.split(self.read(inputs) + self.recur(h), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h


# A step within another transformation.


class Jitted(MemoryFirst):
    """The step is a jitted function of arrays."""

    def __call__(self, carry, inputs):
        graph, state = nnx.split(self)

        @jax.jit
        def step(state, carry, x):
            return MemoryFirst.__call__(nnx.merge(graph, state), carry, x)

        return step(state, carry, inputs)


class NnxJitted(MemoryFirst):
    """The step is under ``nnx.jit``."""

    @nnx.jit
    def __call__(self, carry, inputs):
        return MemoryFirst.__call__(self, carry, inputs)


class Checkpointed(MemoryFirst):
    """The step is under ``nnx.remat``, which is ``jax.checkpoint``."""

    @nnx.remat
    def __call__(self, carry, inputs):
        return MemoryFirst.__call__(self, carry, inputs)


class JittedProjected(Projected):
    """An output that is not the state, within ``nnx.jit``."""

    @nnx.jit
    def __call__(self, carry, inputs):
        return Projected.__call__(self, carry, inputs)


# What must be refused.


class Ambiguous(Sum):
    """y = fast + slow, and nobody says which is h."""

    h_leaf = None


class WrongName(SumNamed):
    """Says the name of a leaf that there is not."""

    h_leaf = "middle"


class OtherType(Own):
    """A new carry in half precision."""

    def __call__(self, carry, inputs):
        h = self.new(carry, inputs).astype(jnp.bfloat16)
        return h, h


class OtherForm(MemoryFirst):
    """A list for a tuple."""

    def __call__(self, carry, inputs):
        after, h = super().__call__(carry, inputs)
        return list(after), h


class OtherShape(Own):
    """A new carry that is wider than the old one."""

    def __call__(self, carry, inputs):
        h = self.new(carry, inputs)
        return jnp.concatenate([h, h], -1), h


class NoPair(Own):
    """Returns h alone."""

    def __call__(self, carry, inputs):
        return self.new(carry, inputs)


class NothingReal(Own):
    """A carry that is a whole number and nothing else."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], 1), jnp.int32)

    def __call__(self, carry, inputs):
        return carry + 1, self.read(inputs)


class MakesVariables(Own):
    """A step that makes a Variable, as a lazy cache would."""

    def __call__(self, carry, inputs):
        h = self.new(carry, inputs)
        self.cache = nnx.Variable(h)
        return h, h


def reads(kind: str, batch: int, steps: int, features: tuple[int, ...], seed: int = 0) -> Any:
    """Inputs ``(B, T, *features)`` of one kind: "float", "symbols" (below I) or "bool"."""
    rng = np.random.default_rng(seed)
    shape = (batch, steps, *features)
    if kind == "float":
        return rng.standard_normal(shape)
    return (
        rng.integers(0, I, shape, dtype=np.int32) if kind == "symbols" else rng.random(shape) < 0.5
    )


@dataclass(frozen=True)
class Specimen:
    """A cell of the zoo and what is known of it.

    Attributes:
      kind: the class; made by :meth:`build`.
      keys: more arguments of its constructor.
      states: its leaves that have an adjoint of each example, name -> shape without the batch, in
        the order of the tree.
      h: the one of them that is h.
      is_leaf: whether the output IS h.
      others: names of its other leaves, each with the place in the tree.
      width: the output's shape without the batch.
      reads: kind of its inputs, as of :func:`reads`.
      features: their shape without batch and time.
      wants: dtype of its inputs where they are real numbers.
      mixes: whether a step mixes the examples of the batch.
      scan: ``state_axes`` and ``broadcast_rngs`` for ``nnx.RNN``.
      same_as: the name of a cell that is the same function, given the same keys.
      half: whether anything is in half precision, and the tolerance by which it meets float64.
      exact: whether a loop over steps tells its adjoints (see ``emit``).
    """

    kind: Callable[..., nnx.RNNCellBase]
    states: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"h": (H,)})
    h: str = "h"
    is_leaf: bool = True
    others: tuple[str, ...] = ()
    places: tuple[int, ...] | None = None
    width: tuple[int, ...] = (H,)
    reads: str = "float"
    features: tuple[int, ...] = (I,)
    wants: Any = jnp.float32
    mixes: bool = False
    scan: dict[str, Any] = field(default_factory=dict)
    same_as: str | None = None
    half: float | None = None
    keys: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0) -> nnx.RNNCellBase:
        """A new one; its weights follow from the seed."""
        inputs = I if not self.features or self.reads == "symbols" else self.features[-1]
        return self.kind(inputs, self.hidden, rngs=nnx.Rngs(seed), **self.keys)

    def inputs(
        self, batch: int = B, steps: int = T, seed: int = 0, wide: bool = False
    ) -> jax.Array:
        """``(B, T, *features)``; in float64 if ``wide``."""
        found = reads(self.reads, batch, steps, self.features, seed)
        if self.reads != "float":
            return jnp.asarray(found)
        # Rounded first, so that narrow and wide ones are the same numbers.
        rounded = jnp.asarray(found, jnp.float32).astype(self.wants)
        return rounded.astype(jnp.float64 if wide else self.wants)

    @property
    def hidden(self) -> int:
        """How many units it is made with."""
        return self.states[self.h][-1] if self.kind is not LSTMP else H

    @property
    def at(self) -> dict[str, int]:
        """The place of each state among the leaves of the carry."""
        return dict(zip(self.states, self.places or range(len(self.states)), strict=True))


def lstm(kind: Any, c: str, h: str, *, first: str = "c", **facts: Any) -> Specimen:
    names = (c, h) if first == "c" else (h, c)
    return Specimen(kind, dict.fromkeys(names, (H,)), h=h, **facts)


def _stock(name: str) -> Callable[..., nnx.RNNCellBase]:
    """A cell of gradlab's own, imported when it is built."""

    def make(*sizes: int, **keys: Any) -> nnx.RNNCellBase:
        from gradlab import cells

        return getattr(cells, name)(*sizes, **keys)

    make.__name__ = name
    return make


COMPLEX = {"width": (2,), "is_leaf": False}
BOTH = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}, jnp.bfloat16, 0.02
COMPUTE = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}, jnp.float32, 0.02
BOTH16 = {"dtype": jnp.float16, "param_dtype": jnp.float16}, jnp.float16, 0.005
COMPUTE16 = {"dtype": jnp.float16, "param_dtype": jnp.float32}, jnp.float32, 0.005
HALVES = {
    "bfloat16": BOTH,
    "dtype=bfloat16": COMPUTE,
    "float16": BOTH16,
    "dtype=float16": COMPUTE16,
}


def _halved(name: str, kind: Any, make: Callable[..., Specimen]) -> dict[str, Specimen]:
    return {
        f"{name}, {how}": make(kind, keys=keys, wants=wants, half=half)
        for how, (keys, wants, half) in HALVES.items()
    }


_lstm = partial(lstm, c="c", h="h")

REFERENCE: dict[str, Specimen] = {
    "Flax SimpleCell": Specimen(nnx.SimpleCell),
    "Flax GRUCell": Specimen(nnx.GRUCell),
    "Flax LSTMCell": _lstm(nnx.LSTMCell),
    "Flax OptimizedLSTMCell": _lstm(nnx.OptimizedLSTMCell),
    "gradlab SimpleRNN": Specimen(_stock("SimpleRNN"), same_as="Flax SimpleCell"),
    "gradlab GRU": Specimen(_stock("GRU"), same_as="Flax GRUCell"),
    "gradlab LSTM": _lstm(
        _stock("LSTM"), same_as="Flax OptimizedLSTMCell", keys={"forget_bias": 0.0}
    ),
}
"""Those that ran before."""

ZOO: dict[str, Specimen] = {
    **REFERENCE,
    # the carry's form
    "carry (c, h)": _lstm(MemoryFirst),
    "carry (h, c)": _lstm(HiddenFirst, first="h", same_as="carry (c, h)"),
    "carry list": _lstm(AsList, first="h", same_as="carry (c, h)"),
    "carry dict": lstm(AsDict, "memory", "hidden", first="h", same_as="carry (c, h)"),
    "carry nested": lstm(Nested, "lower_slow", "upper_h", same_as="carry (c, h)"),
    "carry NamedTuple": lstm(Named, "store", "output", first="h", same_as="carry (c, h)"),
    "carry dataclass": lstm(AsDataclass, "store", "output", first="h", same_as="carry (c, h)"),
    # the first state
    "learned h0": Specimen(LearnedStart),
    "learned c0, h0": _lstm(LearnedMemory),
    # the output
    "y = 2h": Specimen(Twice, is_leaf=False),
    "y = P·h": Specimen(Projected, is_leaf=False, width=(2,)),
    "y = P·h + Q·x + R·old h": Specimen(Residual, is_leaf=False, width=(2,)),
    "y from the old h": Specimen(Mealy, is_leaf=False, width=(2,)),
    "LSTM with y = 2h": _lstm(TwiceMemory, is_leaf=False),
    "h said by its place": Specimen(Sum, {"c": (H,), "h": (H,)}, is_leaf=False),
    "h said by its name": Specimen(SumNamed, {"fast": (H,), "slow": (H,)}, "slow", is_leaf=False),
    "h by its own name": Specimen(SumWithH, {"h": (H,), "slow": (H,)}, is_leaf=False),
    # widths
    "LSTMP": Specimen(LSTMP, {"c": (H,), "h": (H // 2,)}, width=(H // 2,)),
    "three widths": Specimen(Three, {"s0": (2,), "h": (H,), "s1": (1,)}),
    # other leaves
    "counter": Specimen(Counter, others=("count",), places=(1,)),
    "counter of each example": Specimen(CounterPerExample, others=("count",), places=(1,)),
    "scalar": Specimen(Scalar, others=("c",)),
    "scalar of all examples": Specimen(MixingScalar, others=("c",), mixes=True),
    "bool leaf": Specimen(Flag, others=("s0",)),
    # complex
    "LRU": Specimen(LRU, **COMPLEX),
    "complex output": Specimen(Bare),
    "unitary": Specimen(Unitary, is_leaf=False, width=(2 * H,)),
    # Variables
    "dropout": Specimen(Dropout),
    "dropout, one mask": Specimen(Dropout, scan={"broadcast_rngs": "dropout"}),
    "dropout of the old h": Specimen(DropoutNext),
    "batch norm": Specimen(BatchNormed, mixes=True),
    "batch norm, evaluated": Specimen(BatchNormedEvaluated),
    "layer norm": Specimen(LayerNormed),
    "counter in a Variable": Specimen(CountingVariable),
    "number in a Variable": Specimen(Decaying),
    "fast weights": Specimen(FastWeights, mixes=True),
    "weights that are no Param": Specimen(Fixed),
    "bias of each step": Specimen(
        Clocked, scan={"state_axes": nnx.StateAxes({PerStep: 0, ...: nnx.Carry})}
    ),
    # inputs
    "symbols (B, 1)": Specimen(Embedding, reads="symbols", features=(1,)),
    "symbols (B,)": Specimen(BareEmbedding, reads="symbols", features=()),
    "bool inputs": Specimen(Switched, reads="bool"),
    # several axes of features
    "ConvLSTM": Specimen(
        ConvLSTM, {"c": (3, 2, 4), "h": (3, 2, 4)}, width=(3, 2, 4), features=(3, 2, 2)
    ),
    # transformations within
    "jax.jit": _lstm(Jitted, same_as="carry (c, h)"),
    "nnx.jit": _lstm(NnxJitted, same_as="carry (c, h)"),
    "checkpoint": _lstm(Checkpointed, same_as="carry (c, h)"),
    "nnx.jit, y = P·h": Specimen(JittedProjected, is_leaf=False, width=(2,), same_as="y = P·h"),
}
"""Those in single precision."""

HALF: dict[str, Specimen] = {
    **_halved("Flax LSTMCell", nnx.LSTMCell, _lstm),
    # GRUCell's own first recurrent kernel cannot be drawn in half precision, LSTMCell's can.
    **_halved(
        "Flax GRUCell",
        partial(nnx.GRUCell, recurrent_kernel_init=modified_orthogonal),
        Specimen,
    ),
    **_halved("gradlab LSTM", _stock("LSTM"), _lstm),
    **_halved("gradlab GRU", _stock("GRU"), Specimen),
}
"""Those in half precision, wholly or in what they calculate."""

FAULTY: dict[str, Specimen] = {
    "h cannot be found": Specimen(Ambiguous),
    "h_leaf names no leaf": Specimen(WrongName),
    "another dtype": Specimen(OtherType),
    "another form": Specimen(OtherForm),
    "another shape": Specimen(OtherShape),
    "no pair": Specimen(NoPair),
    "nothing real": Specimen(NothingReal),
    "makes Variables": Specimen(MakesVariables),
}
"""Those that must be refused in one message."""


@contextmanager
def as_users_do(wide: bool = False) -> Iterator[None]:
    """jax as it is outside of these tests: types and ranks promoted; float64 if ``wide``.

    Flax's own cells in half precision need it.
    """
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(wide),
    ):
        yield


def widened(module: nnx.Module) -> nnx.Module:
    """A copy with all real numbers in float64 and complex ones in complex128; under x64."""

    def wide(dtype: Any) -> Any:
        if jnp.issubdtype(dtype, jnp.complexfloating):
            return jnp.complex128
        return jnp.float64 if jnp.issubdtype(dtype, jnp.floating) else dtype

    graph, state = nnx.split(module)
    state = jax.tree.map(
        lambda a: a.astype(wide(a.dtype)) if jnp.issubdtype(a.dtype, jnp.inexact) else a, state
    )
    copy = nnx.merge(graph, state)
    for _, node in nnx.iter_graph(copy):
        for name in ("dtype", "param_dtype"):
            if isinstance(node, nnx.Module) and getattr(node, name, None) is not None:
                setattr(node, name, wide(getattr(node, name)))
    return copy


def weigh_each(outputs: jax.Array) -> jax.Array:
    """A loss of each example, ``(B,)``; every number of ``(B, T, ...)`` counts in its own way."""
    parts = [outputs.real, outputs.imag] if jnp.iscomplexobj(outputs) else [outputs]
    total = jnp.zeros(outputs.shape[:1], jnp.promote_types(parts[0].dtype, jnp.float32))
    for shift, part in enumerate(parts):
        part = part.astype(total.dtype)
        weights = jnp.cos(jnp.arange(part.size) + shift).reshape(part.shape).astype(total.dtype)
        each = weights * part + jnp.sin(2 * part)
        total = total + jnp.sum(each.reshape(each.shape[0], -1), 1)
    return total


def weigh(outputs: jax.Array) -> jax.Array:
    """Its mean over the examples."""
    return jnp.mean(weigh_each(outputs))


def _inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def inexact(path: Any, variable: Any) -> bool:
    """A filter for ``nnx.split``: every Variable that can receive a gradient."""
    return _inexact(variable)


class Truth(NamedTuple):
    """What plain autodiff says.

    Attributes:
      loss: ``()``.
      outputs: ``(B, T, *width)``.
      final: the last carry.
      params: the gradient by every inexact Variable at the start, nested as in the module.
      inputs: that by the inputs, ``(B, T, *features)``; None where they are no real numbers.
      adjoints: name of each state -> ``(T, B, ...)``: the total derivative of the loss by that
        leaf after each step, the leaves being independent coordinates.
      variables: the module's Variables after the last step.
    """

    loss: jax.Array
    outputs: jax.Array
    final: Any
    params: Any
    inputs: jax.Array | None
    adjoints: dict[str, jax.Array]
    variables: Any


def truth(
    specimen: Specimen,
    cell: nnx.RNNCellBase,
    inputs: jax.Array,
    *,
    start: Any = None,
    loss: Callable[[Any, Any], jax.Array] = lambda outputs, final: weigh(outputs),
) -> Truth:
    """By a plain Python loop over the steps: numbers added to each new leaf tell its adjoint.

    Args:
      specimen: what is known of ``cell``.
      cell: it is left as it is.
      inputs: ``(B, T, *features)``.
      start: a first carry; None: the cell's own.
      loss: of outputs and final carry.
    """
    graph, params, rest = nnx.split(cell, inexact, ...)
    steps = inputs.shape[1]
    first = _first(cell, inputs) if start is None else start
    leaves = jax.tree.leaves(first)
    nudges = {
        name: jnp.zeros((steps, *leaves[place].shape), leaves[place].dtype)
        for name, place in specimen.at.items()
    }
    real = _inexact(inputs)

    def run(params: Any, nudges: Any, read: Any) -> Any:
        module = _merged(graph, params, rest)
        read = inputs if read is None else read
        own = _first(module, read) if start is None else start
        with _split(specimen, module):
            outputs, final = _walk(specimen, module, read, nudges, own)
        return loss(outputs, final), (outputs, final, nnx.state(module))

    by = (0, 1, 2) if real else (0, 1)
    derive = jax.value_and_grad(run, argnums=by, has_aux=True)
    (value, (outputs, final, variables)), found = derive(params, nudges, inputs if real else None)
    return Truth(
        value,
        outputs,
        final,
        nnx.to_pure_dict(found[0]),
        found[2] if real else None,
        found[1],
        nnx.to_pure_dict(variables),
    )


def _merged(graph: Any, *states: Any) -> Any:
    """A module with Variables of its own, which may be changed under the trace that asks."""
    return nnx.merge(graph, *jax.tree.map(lambda array: array, states))


def _first(cell: Any, inputs: jax.Array) -> Any:
    return cell.initialize_carry((inputs.shape[0], *inputs.shape[2:]), nnx.Rngs(0))


def _split(specimen: Specimen, cell: Any) -> Any:
    """Streams that are the same at each step are new ones at each call, as in ``nnx.RNN``."""
    only = specimen.scan.get("broadcast_rngs")
    return nnx.split_rngs(cell, splits=1, only=only, squeeze=True) if only else nullcontext()


def _walk(specimen: Specimen, cell: Any, inputs: jax.Array, nudges: Any, carry: Any) -> Any:
    sliced = {
        path: variable.get_value()
        for path, variable in nnx.iter_graph(cell)
        if isinstance(variable, PerStep)
    }
    streams = [s for _, s in nnx.iter_graph(cell) if isinstance(s, nnx.RngStream)]
    held = specimen.scan.get("broadcast_rngs") is not None
    counts = [stream.count.get_value() for stream in streams]
    outputs = []
    for t in range(inputs.shape[1]):
        for path, variable in nnx.iter_graph(cell):
            if path in sliced:
                variable.set_value(sliced[path][t])
        if held:
            for stream, count in zip(streams, counts, strict=True):
                stream.count.set_value(count)
        x = inputs[:, t]
        after, _ = cell(carry, x)
        leaves, tree = jax.tree.flatten(after)
        for name, place in specimen.at.items():
            leaves[place] = leaves[place] + nudges[name][t]
        after = tree.unflatten(leaves)
        place = specimen.at[specimen.h]
        y = leaves[place] if specimen.is_leaf else cell.emit(carry, x, after)
        carry = after
        outputs.append(y)
    for path, variable in nnx.iter_graph(cell):
        if path in sliced:
            variable.set_value(sliced[path])
    return jnp.stack(outputs, 1), carry


def error(found: Any, due: Any) -> float:
    """The largest difference of any number, as a share of the largest number of all that are due.

    So that a gradient of zero is held to the size of its neighbours. Whole numbers and bools must
    be equal.
    """
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(due), strict=True))
    pairs = [pair for pair in pairs if not jnp.issubdtype(pair[1].dtype, jax.dtypes.prng_key)]
    real = [(_wide(a), _wide(b)) for a, b in pairs if _inexact(b)]
    for a, b in pairs:
        assert a.shape == b.shape, (a.shape, b.shape)
        if not _inexact(b) and not bool(jnp.all(a == b)):
            return float("inf")
        if _inexact(b) and not bool(jnp.all(jnp.isfinite(a))):
            return float("inf")
    largest = max((np.abs(b).max() for _, b in real if b.size), default=0.0) or 1.0
    return max((float(np.abs(a - b).max() / largest) for a, b in real if b.size), default=0.0)


def _wide(array: Any) -> np.ndarray:
    return np.asarray(array, np.complex128 if jnp.iscomplexobj(array) else np.float64)


def flax_truth(
    specimen: Specimen, cell: nnx.RNNCellBase, inputs: jax.Array, **keys: Any
) -> tuple[jax.Array, Any, jax.Array | None, Any]:
    """Outputs, gradient by Variables and by inputs, and Variables afterwards: by ``nnx.RNN``.

    Args:
      specimen, cell, inputs: as for :func:`truth`.
      keys: of the call, such as ``seq_lengths``.
    """
    graph, params, rest = nnx.split(cell, inexact, ...)
    real = _inexact(inputs)

    def run(params: Any, read: Any) -> Any:
        module = _merged(graph, params, rest)
        layer = nnx.RNN(module, **specimen.scan)
        outputs = layer(inputs if read is None else read, **keys)
        return weigh(outputs), (outputs, nnx.state(module))

    derive = jax.value_and_grad(run, argnums=(0, 1) if real else 0, has_aux=True)
    (_, (outputs, variables)), found = derive(params, inputs if real else None)
    by_params, by_inputs = found if real else (found, None)
    return outputs, nnx.to_pure_dict(by_params), by_inputs, nnx.to_pure_dict(variables)


def log10_norms(adjoint: jax.Array) -> np.ndarray:
    """``(T, B)``: log10 of the 2-norm of each step's and example's adjoint, real and imaginary."""
    squares = np.abs(_wide(adjoint).reshape(*adjoint.shape[:2], -1)) ** 2
    with np.errstate(divide="ignore"):
        return 0.5 * np.log10(squares.sum(-1))
