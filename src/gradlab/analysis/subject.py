"""What is analysed: a stack of cells, or a module of anyone's, and how it is called."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradlab.analysis.losses import Answer, real
from gradlab.bptt.closeup import Closeup
from gradlab.bptt.parts import names_of
from gradlab.bptt.passes import Route, is_inexact
from gradlab.bptt.unroll import check_route, initial_carries, starting_carries, unroll
from gradlab.errors import BadInput
from gradlab.model import SequenceModel
from gradlab.probes.base import Setting
from gradlab.probes.setting import setting_of
from gradlab.watching.closeup import Handed, ModuleCloseup
from gradlab.watching.watch import watch


class Kind(NamedTuple):
    """Layers that are alike.

    Attributes:
      layers: their positions.
      setting: what the probes may know of them.
    """

    layers: tuple[int, ...]
    setting: Setting


class Subject(abc.ABC):
    """A network and how it is called.

    Attributes:
      module: the network, or a copy of it whose layers are watched.
      inputs: what it is called with.
      lengths: ``(B,)``, or None.
      start: the first carries, or None.
      layers: names of the layers, as they are recorded.
      params: those of the parameters.
      own_params: what these are called in :attr:`module`.
      kinds: what kinds of layers there are.
      answer: what it gives.
      about: attributes of the dataset.
    """

    module: nnx.Module
    inputs: Any
    lengths: jax.Array | None
    start: Any
    layers: list[str]
    params: list[str]
    own_params: list[str]
    kinds: list[Kind]
    answer: Answer
    about: Mapping[str, Any]

    @abc.abstractmethod
    def closeup(
        self, module: Any, inputs: Any, losses: Any, lengths: Any, start: Any, **keys: Any
    ) -> Any:
        """The close look at it.

        Args:
          module: :attr:`module`, with arrays that may be traced; likewise ``inputs``, ``lengths``
            and ``start``.
          losses: from outputs and the state of the network to that of each example.
          keys: ``batch`` and ``backward``, as for :class:`gradlab.bptt.closeup.Closeup`.
        """


def subject_of(
    network: Any,
    inputs: Any,
    time_major: bool,
    seq_lengths: Any,
    initial_carry: Any,
    backward: Route,
) -> Subject:
    """What is analysed; arguments as for :func:`gradlab.analyze`.

    Raises:
      BadInput: for what cannot be analysed.
    """
    arguments = (inputs, time_major, seq_lengths, initial_carry, backward)
    if isinstance(network, SequenceModel | nnx.RNNCellBase):
        return Stack(network, *arguments)
    return Whole(network, *arguments)


class Stack(Subject):
    """A cell, or a :class:`gradlab.SequenceModel`; inside, time comes first."""

    def __init__(
        self,
        network: SequenceModel | nnx.RNNCellBase,
        inputs: Any,
        time_major: bool,
        seq_lengths: Any,
        initial_carry: Any,
        backward: Route,
    ):
        self.module = network
        self.model = network if isinstance(network, SequenceModel) else None
        self.width = _width(network)
        array = jnp.asarray(inputs)
        swaps = array.ndim > 1 and not time_major
        self.inputs = jnp.swapaxes(array, 0, 1) if swaps else array
        self._check_inputs()
        steps, examples = self.inputs.shape[:2]
        self.lengths = lengths_of(seq_lengths, steps, examples)
        self.start = self._start(initial_carry)
        check_route(backward, self._stack(network), "backward")
        setting = setting_of(self._stack(network), self.width, length=steps, trains=False)
        self.layers = ["0"] if self.model is None else self.model.layer_names()
        self.kinds = [Kind(tuple(range(len(self.layers))), setting)]
        outputs = jax.eval_shape(self._outputs, nnx.state(network), self.inputs)
        every = len(outputs.shape) == 3
        self.answer = Answer(
            outputs,
            None,
            examples,
            caller_first=every and not time_major,
            time_first=every,
            last=self.model is None,
            classes=self.model is not None,
        )
        own = names_of(nnx.state(network, nnx.Param))
        gone = initial_carry is not None
        self.params = [name for name in own if not (gone and name.startswith("initial_state/"))]
        self.own_params = self.params
        self.about = {"cell": setting.cell}

    def _stack(self, network: Any) -> Any:
        return [[network]] if self.model is None else network.layers

    def _check_inputs(self) -> None:
        shape = self.inputs.shape
        symbols = self.model is not None and self.model.symbols is not None
        right = len(shape) == 2 if symbols else shape[2:] == (self.width,)
        if not right or 0 in shape:
            allowed = "symbols (B, T)" if symbols else f"an array (B, T, {self.width})"
            allowed += ", or time first with time_major=True"
            hint = "nnx.RNN(cell) in its place, if it reads anything else" if not self.model else ""
            raise BadInput("inputs", f"(time first) {shape}", allowed, hint)

    def _start(self, given: Any) -> Any:
        """The carries that the caller wants, by layer and direction."""
        if given is None:
            return None
        shape = (*self.inputs.shape[:2], self.width)
        if self.model is not None:
            return starting_carries(self.model.layers, shape, given, "initial_carry")
        return [[carry_of(self.module, shape, given)]]

    def _outputs(self, state: Any, inputs: jax.Array) -> jax.Array:
        """Of a copy, which may change its Variables."""
        network: Any = nnx.merge(nnx.graphdef(self.module), state)
        if self.model is not None:
            return network(inputs).outputs
        outputs = unroll(self._stack(network), inputs).outputs
        assert outputs is not None
        return outputs

    def closeup(
        self, module: Any, inputs: Any, losses: Any, lengths: Any, start: Any, **keys: Any
    ) -> Closeup:
        """See the base."""
        mask = None if lengths is None else real(lengths, len(inputs))
        keys |= {"mask": mask, "losses": lambda outputs: losses(outputs, None)}
        if self.model is None:
            return Closeup([[module]], inputs, every=True, prefix="".format, start=start, **keys)
        own = start is None
        return Closeup(
            module.layers,
            module.encode(inputs),
            readout=module.readout,
            every=module.readout_at == "every",
            names=self.layers,
            start=module.start() if own else start,
            learns_start=own and module.learns_start,
            **keys,
        )


def _width(network: Any) -> int:
    if isinstance(network, SequenceModel):
        if type(network).__call__ is not SequenceModel.__call__:
            allowed = "a SequenceModel with its own __call__, not one that reads differently"
            raise BadInput("network", type(network).__name__, allowed)
        return network.width
    width = getattr(network, "in_features", None)
    if width is None:
        allowed = "a cell with the attribute in_features, as Flax's own have it"
        raise BadInput("network", type(network).__name__, allowed)
    return width


def lengths_of(given: Any, steps: int, examples: int) -> jax.Array | None:
    """The lengths ``(B,)``, checked; None if all are whole."""
    if given is None:
        return None
    try:
        lengths = np.asarray(given)
    except ValueError:  # of lists of unequal length numpy makes no array
        lengths = np.empty(0)
    right = lengths.shape == (examples,) and np.issubdtype(lengths.dtype, np.integer)
    if not right or not ((lengths >= 1) & (lengths <= steps)).all():
        allowed = f"a whole number from 1 to {steps} for each of {examples} examples"
        raise BadInput("seq_lengths", given, allowed)
    return jnp.asarray(lengths.astype(np.int32))


def carry_of(cell: Any, shape: tuple[int, ...], given: Any) -> Any:
    """The first carry of a cell for inputs ``(T, B, I)``, leaves ``(B, H)``."""
    try:
        return starting_carries([[cell]], shape, [[given]], "initial_carry")[0][0]
    except BadInput:
        own = jax.tree.map(jnp.shape, initial_carries([[cell]], shape)[0][0])
        allowed = f"the carry of the cell, real numbers {own}, or (H,) in the place of (B, H)"
        got = jax.tree.map(lambda leaf: np.shape(leaf) or leaf, given)
        raise BadInput("initial_carry", got, allowed) from None


class Whole(Subject):
    """A module that holds recurrent layers; what it is called with and gives is its own."""

    def __init__(
        self,
        network: Any,
        inputs: Any,
        time_major: bool,
        seq_lengths: Any,
        initial_carry: Any,
        backward: Route,
    ):
        self.module = _watched(network)
        self._layer = isinstance(network, nnx.RNN | nnx.Bidirectional)
        self._time_major = time_major or (self._layer and network.time_major)
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        self.inputs = jax.tree.map(jnp.asarray, given)
        self._check_inputs(network)
        self._takes = _keywords(type(network).__call__)
        self.start = self._start(network, initial_carry)
        found, outputs = self._look(seq_lengths, backward)
        steps, examples = max(one.steps for one in found), found[0].examples
        self.lengths = lengths_of(seq_lengths, steps, examples)
        bare = isinstance(network, nnx.RNN)
        self.layers = ["0"] if bare else [one.name for one in found]
        own = names_of(nnx.state(self.module, nnx.Param))
        self.own_params = own
        self.params = [name.removeprefix("cell/") if bare else name for name in own]
        self.kinds = _kinds(found)
        graph, state = nnx.split(self.module)
        self.answer = Answer(
            outputs,
            (graph, state),
            examples,
            caller_first=False,
            time_first=self._time_major,
            last=self._layer,
            classes=not self._layer,
        )
        cells = dict.fromkeys(kind.setting.cell for kind in self.kinds)
        self.about = {"cell": ", ".join(cells), **_mode(network)}

    def _check_inputs(self, network: Any) -> None:
        shapes = [leaf.shape for leaf in jax.tree.leaves(self.inputs)]
        given = shapes[0] if len(shapes) == 1 else tuple(shapes)
        allowed = "arrays with something in them"
        right = bool(shapes) and not any(0 in shape for shape in shapes)
        width = getattr(getattr(network, "cell", None), "in_features", None)
        layer = isinstance(network, nnx.RNN) and network.cell.num_feature_axes == 1
        if layer and width and all(map(is_inexact, jax.tree.leaves(self.inputs))):
            right = right and len(shapes) == 1 and shapes[0][2:] == (width,)
            allowed = f"an array (B, T, {width}), or time first with time_major=True"
        if not right:
            raise BadInput("inputs", given, allowed)
        signature = inspect.signature(network.__call__)
        by_name = [
            one.name for one in signature.parameters.values() if one.kind is one.KEYWORD_ONLY
        ]
        try:
            signature.bind(*self.inputs, **dict.fromkeys(by_name))
        except TypeError:
            allowed = (
                f"what {type(network).__name__} is called with, {signature}; several as a tuple"
            )
            raise BadInput("inputs", f"{len(self.inputs)} arguments", allowed) from None

    def _start(self, network: Any, given: Any) -> Any:
        if given is None:
            return None
        if isinstance(network, nnx.RNN):
            array = self.inputs[0]
            shape = array.shape if self._time_major else (*array.shape[:2][::-1], *array.shape[2:])
            return carry_of(network.cell, shape, given)
        if "initial_carry" not in self._takes and not isinstance(given, Mapping):
            allowed = f"a dict from names of layers to carries: {type(network).__name__}"
            allowed += ".__call__ has no argument initial_carry"
            raise BadInput("initial_carry", f"a {type(given).__name__}", allowed)
        return jax.tree.map(jnp.asarray, given)

    def _call(self, module: Any, inputs: Any, lengths: Any, start: Any) -> Any:
        options: dict[str, Any] = {"time_major": self._time_major} if self._layer else {}
        if "seq_lengths" in self._takes and lengths is not None:
            options["seq_lengths"] = lengths
        if "initial_carry" in self._takes and start is not None:
            options["initial_carry"] = start
        return module(*inputs, **options)

    def closeup(
        self, module: Any, inputs: Any, losses: Any, lengths: Any, start: Any, **keys: Any
    ) -> ModuleCloseup:
        """See the base."""
        own = Handed(
            None if "seq_lengths" in self._takes else lengths,
            None if "initial_carry" in self._takes else start,
        )
        return ModuleCloseup(
            module,
            lambda module: self._call(module, inputs, lengths, start),
            lambda outputs, module: losses(outputs, nnx.state(module)),
            handed=own,
            lengths=lengths,
            time_major=self._time_major,
            **keys,
        )

    def _whole_numbers(self, lengths: Any) -> jax.Array | None:
        """Lengths of the right form; their size is known when it is known what is read."""
        if lengths is None:
            return None
        sizes = {size for leaf in jax.tree.leaves(self.inputs) for size in leaf.shape[:2]}
        try:
            found = np.asarray(lengths)
        except ValueError:  # of lists of unequal length numpy makes no array
            found = np.empty(0)
        if found.ndim != 1 or len(found) not in sizes or not np.issubdtype(found.dtype, np.integer):
            raise BadInput("seq_lengths", lengths, "a whole number for each example, (B,)")
        return jnp.asarray(found.astype(np.int32))

    def _look(self, lengths: Any, backward: Route) -> tuple[list[_Found], Any]:
        """What is called, and what comes out of it, without calculating anything."""
        graph, state = nnx.split(self.module)
        found: list[_Found] = []

        def look(state: Any, inputs: Any, lengths: Any, start: Any) -> Any:
            module = nnx.merge(graph, state)
            closeup = self.closeup(module, inputs, lambda *_: 0, lengths, start, backward=backward)
            ran = closeup.ran
            for name, call in ran.calls.items():
                check_route(backward, [[call.cell]], "backward")
                steps, examples, *_ = call.inputs.shape
                setting = setting_of(
                    [[call.cell]],
                    call.inputs.shape[2:],
                    length=steps,
                    trains=False,
                    dtype=call.inputs.dtype,
                    state_axes=call.axes,
                )
                found.append(_Found(name, steps, examples, setting, call.mask is not None))
            return ran.outputs, [call.run.outputs for call in ran.calls.values()]

        arrays = self._whole_numbers(lengths)
        try:
            outputs, _ = jax.eval_shape(look, state, self.inputs, arrays, self.start)
        except jax.errors.UnexpectedTracerError as error:
            given = "a layer that is called inside of a scan, jit, vmap or remat of the module's"
            allowed = "layers that the module calls itself, where they can be seen"
            raise BadInput("network", given, allowed) from error
        if not found:
            given = f"a {type(self.module).__name__} that calls none of its recurrent layers"
            raise BadInput("network", given, "a module that calls an nnx.RNN or nnx.Bidirectional")
        for one in found:
            if one.examples != found[0].examples:
                given = f"{one.name} reads {one.examples} sequences, {found[0].name} reads "
                given += str(found[0].examples)
                raise BadInput("network", given, "layers that read one sequence of each example")
        if isinstance(self.start, Mapping) and "initial_carry" not in self._takes:
            names = [one.name for one in found]
            for name in self.start:
                if name not in names:
                    raise BadInput("initial_carry", name, " | ".join(names))
        return found, outputs


class _Found(NamedTuple):
    """A call of a layer, as it is known before anything runs."""

    name: str
    steps: int
    examples: int
    setting: Setting
    padded: bool


def _kinds(found: Sequence[_Found]) -> list[Kind]:
    """Those that are alike together; those with lengths apart, since each has its own."""
    kinds: dict[Any, list[int]] = {}
    for index, one in enumerate(found):
        kinds.setdefault((one.setting, index if one.padded else None), []).append(index)
    return [Kind(tuple(layers), setting) for (setting, _), layers in kinds.items()]


def _watched(network: Any) -> nnx.Module:
    """A copy whose layers are gradlab's."""
    copy = nnx.clone(network) if isinstance(network, nnx.Module) else network
    try:
        return watch(copy)
    except BadInput as error:
        allowed = "a Flax nnx.RNNCellBase, an nnx.RNN or nnx.Bidirectional, a module that holds one"
        allowed += ", or a gradlab.SequenceModel"
        raise BadInput("network", error.given, allowed, error.hint) from None


def _keywords(call: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(call).parameters)


def _mode(network: nnx.Module) -> dict[str, str]:
    """Whether dropout and batch normalisation are at work, where there are any."""
    found = [
        getattr(node, name)
        for _, node in nnx.iter_graph(network)
        if isinstance(node, nnx.Module)
        for name in ("deterministic", "use_running_average")
        if isinstance(getattr(node, name, None), bool)
    ]
    return {"mode": "eval" if all(found) else "train"} if found else {}
