"""Every probe on one batch, for a notebook: no configuration, no training, no W&B."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import xarray
from flax import nnx
from flax.errors import TraceContextError
from jax.extend import core

import gradlab.probes
from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup
from gradlab.bptt.parts import names_of
from gradlab.bptt.passes import Route
from gradlab.bptt.precision import in_all_digits
from gradlab.bptt.unroll import check_route, initial_carries, starting_carries, unroll
from gradlab.errors import BadInput, first_line, nearest, whole_number
from gradlab.model import SequenceModel, per_example_loss
from gradlab.probes.base import PRESETS, CloseProbe, Probe, Seen, Setting, StepProbe
from gradlab.probes.setting import coords_of, setting_of, supported

PerExample = Callable[[jax.Array], jax.Array]
"""A loss: from what is read out to that of each example."""


def analyze(
    network: nnx.RNNCellBase | nnx.RNN | SequenceModel,
    inputs: Any,
    targets_or_loss: Any,
    *,
    probes: str | Sequence[str | Probe] = "full",
    time_major: bool = False,
    seq_lengths: Any = None,
    initial_carry: Any = None,
    batch: int | None = None,
    backward: Route = "full",
) -> xarray.Dataset:
    """Measure how the gradient of a loss travels through a recurrent network, on one batch.

    Everything is read anew at every call: parameters, what the loss closes over, a Python number
    that it looks up. What is compiled is used again where the program is the same; it is, whatever
    the values of arrays that a loss closes over. (JAX itself keeps what a function under
    ``jax.jit``, or the body of a ``scan``, closed over when it was first called.)

    Args:
      network: any Flax ``nnx.RNNCellBase``, an ``nnx.RNN`` around one that reads forward, or a
        :class:`gradlab.SequenceModel`.
      inputs: ``(B, T, I)``; ``(T, B, I)`` with ``time_major``. Integer symbols ``(B, T)`` for a
        model that reads symbols.
      targets_or_loss: what the loss is. A callable from the outputs ``(B, T, H)`` (of a model what
        it reads out: ``(B, T, O)`` or ``(B, O)``) to the loss of each example ``(B,)``; or targets,
        compared with the last output by ``(B, H)``, with every one by ``(B, T, H)``: the mean
        squared error. Integer targets ``(B,)`` or ``(B, T)`` of a model: the cross-entropy.
      probes: ``"full"``, ``"standard"``, ``"research"``, or a list of names such as
        ``["adjoint", "lyapunov"]`` (or of :class:`gradlab.probes.base.Probe` objects). Those of a
        preset that cannot measure this cell are left out, with the reason in the attribute
        ``probes_left_out``.
      time_major: whether inputs, outputs and targets begin with time. An ``nnx.RNN`` may say so
        itself.
      seq_lengths: ``(B,)``, as of ``nnx.RNN``: how many steps of each example are real, from the
        first on; None: all. The others are padding: no state changes there and nothing is measured.
        With targets the last output is that of the last real step, and a mean over steps is one
        over the real ones. A callable is handed what ``nnx.RNN`` gives up to that length; it may
        not depend on what comes after it, where ``nnx.RNN`` reads on.
      initial_carry: the state before the first step. Of a cell its carry (or the leaves of one, as
        a tuple), of a model a list of these by layer and direction; leaves ``(B, H)``, or ``(H,)``
        for all examples. None: the model's or cell's own.
      batch: how many examples a training step would take, of which ``gradient_noise`` judges the
        noise; None: as many as are given.
      backward: what of an adjoint passes back from each step, in the backward pass alone:
        ``"full"``, ``"no_h_path"`` or ``"no_c_path"`` (see :data:`gradlab.bptt.passes.Route`).

    Returns:
      A dataset over ``layer``, ``t`` (with ``lag``) and whatever dimensions the probes have; every
      variable with ``units`` and ``long_name``. The attributes hold the cell's name, the mean loss,
      ``batch``, ``backward`` and ``probes_left_out`` (JSON). Names and definitions are those of a
      recorded run.

    Raises:
      BadInput: for inputs, targets, lengths or a carry of the wrong form, a loss that reads
        padding, an unknown probe, or one asked for by name that cannot measure this cell or batch.
    """
    found = _network(network)
    time_major = time_major or (isinstance(network, nnx.RNN) and network.time_major)
    inputs = _time_major(jnp.asarray(inputs), time_major)
    _check_inputs(found, inputs)
    examples = inputs.shape[1]
    lengths = _lengths(seq_lengths, *inputs.shape[:2])
    start = _start(found, inputs, initial_carry)
    check_route(backward, found.layers, "backward")
    if batch is not None:
        whole_number("batch", batch, 1)
    loss, captured = _loss(found, inputs, targets_or_loss, time_major)
    setting = setting_of(found.layers, found.width, length=len(inputs), trains=False)
    by_preset = isinstance(probes, str)
    chosen, left_out = supported(_probes(probes), setting, by_preset=by_preset)
    chosen, few = _enough(chosen, examples, by_preset=by_preset)
    graph, state = nnx.split(found.module)

    @in_all_digits
    def measure(state: Any, inputs: jax.Array, captured: Any, lengths: Any, start: Any):
        module = nnx.merge(graph, state)
        closeup = _closeup(
            found,
            module,
            inputs,
            lambda outputs: loss(outputs, captured, lengths),
            mask=None if lengths is None else _mask(lengths, len(inputs)),
            batch=batch or examples,
            start=start,
            backward=backward,
        )
        return _measured(closeup, chosen.values(), setting), _summary(closeup)

    measured, summary = _run(measure, state, inputs, captured, lengths, start)
    measured, summary = jax.device_get((measured, summary))
    if summary.reads_padding:
        allowed = "a loss that depends on no output beyond the length of its example"
        hint = "the last real one: outputs[jnp.arange(B), seq_lengths - 1]"
        raise BadInput("targets_or_loss", "a loss that reads padding", allowed, hint)
    attrs = {
        "cell": setting.cell,
        "loss": float(summary.mean_loss),
        "batch": batch or examples,
        "backward": backward,
        "probes_left_out": json.dumps({**left_out, **few}),
    }
    params = names_of(nnx.state(found.module, nnx.Param))
    if initial_carry is not None:
        params = [name for name in params if not name.startswith("initial_state/")]
    return _dataset(found.names, params, setting, chosen, measured, attrs)


class _Network(NamedTuple):
    """What is analysed: a module, and how its layers and its readout are found in it."""

    module: nnx.Module
    find: Callable[[Any], tuple[Any, nnx.Module | None]]
    names: list[str]
    width: int
    model: SequenceModel | None

    @property
    def layers(self) -> Any:
        return self.find(self.module)[0]


def _find_cell(cell: Any) -> tuple[Any, None]:
    return [[cell]], None


def _find_layers(model: Any) -> tuple[Any, nnx.Module]:
    return model.layers, model.readout


def _network(given: Any) -> _Network:
    for kind in (SequenceModel, nnx.RNN):
        if isinstance(given, kind) and type(given).__call__ is not kind.__call__:
            allowed = f"a {kind.__name__} with its own __call__, not one that reads differently"
            raise BadInput("network", type(given).__name__, allowed)
    if isinstance(given, SequenceModel):
        return _Network(given, _find_layers, given.layer_names(), given.width, given)
    cell = given
    if isinstance(given, nnx.RNN):
        for option in ("reverse", "return_carry"):
            if getattr(given, option):
                allowed = f"an nnx.RNN with {option}=False, whose outputs are those of its cell"
                raise BadInput("network", f"an nnx.RNN with {option}=True", allowed)
        cell = given.cell
    if not isinstance(cell, nnx.RNNCellBase):
        allowed = "a Flax nnx.RNNCellBase, an nnx.RNN, or a gradlab.SequenceModel"
        raise BadInput("network", type(given).__name__, allowed)
    width = getattr(cell, "in_features", None)
    if width is None:
        allowed = "a cell with the attribute in_features, as Flax's own have it"
        raise BadInput("network", type(cell).__name__, allowed)
    return _Network(cell, _find_cell, ["0"], width, None)


def _time_major(array: jax.Array, already: bool) -> jax.Array:
    return array if already or array.ndim < 2 else jnp.swapaxes(array, 0, 1)


def _check_inputs(network: _Network, inputs: jax.Array) -> None:
    symbols = network.model is not None and network.model.symbols is not None
    right = inputs.ndim == 2 if symbols else inputs.shape[2:] == (network.width,)
    if not right or 0 in inputs.shape:
        allowed = "symbols (B, T)" if symbols else f"an array (B, T, {network.width})"
        allowed += ", or time first with time_major=True"
        raise BadInput("inputs", f"(time first) {inputs.shape}", allowed)


def _lengths(given: Any, steps: int, examples: int) -> jax.Array | None:
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


def _mask(lengths: jax.Array, steps: int) -> jax.Array:
    """``(T, B)`` bool, True where a step is real."""
    return jnp.arange(steps)[:, None] < lengths[None]


def _start(network: _Network, inputs: jax.Array, given: Any) -> list[list[Any]] | None:
    """The carries that the caller wants, by layer and direction."""
    if given is None:
        return None
    shape = (*inputs.shape[:2], network.width)
    if network.model is not None:
        return starting_carries(network.layers, shape, given, "initial_carry")
    try:
        return starting_carries(network.layers, shape, [[given]], "initial_carry")
    except BadInput:
        own = jax.tree.map(jnp.shape, initial_carries(network.layers, shape)[0][0])
        allowed = f"the carry of the cell, real numbers {own}, or (H,) in the place of (B, H)"
        got = jax.tree.map(lambda leaf: np.shape(leaf) or leaf, given)
        raise BadInput("initial_carry", got, allowed) from None


# The loss, as a function of (outputs, what it needs besides, lengths or None), time first.


class _CallersLoss(NamedTuple):
    """The caller's loss as it was traced: what it closed over is handed to it."""

    jaxpr: Any

    def __call__(self, outputs: jax.Array, captured: Any, lengths: Any) -> jax.Array:
        return core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, captured))(outputs)[0]


class _TargetLoss(NamedTuple):
    """The distance to targets, of the last output alone or of whatever is read out."""

    kind: Literal["mse", "cross_entropy"]
    last: bool

    def __call__(self, outputs: jax.Array, targets: jax.Array, lengths: Any) -> jax.Array:
        steps = outputs.shape[0]
        if self.last and lengths is None:
            outputs = outputs[-1]
        elif self.last:
            outputs = outputs[lengths - 1, jnp.arange(len(targets))]
        weights = None
        if outputs.ndim == 3:
            own = jnp.full(outputs.shape[1], steps) if lengths is None else lengths
            weights = _mask(own, steps).astype(outputs.dtype) / own[None].astype(outputs.dtype)
        return per_example_loss(self.kind, outputs, targets, weights)


def _loss(network: _Network, inputs: jax.Array, given: Any, time_major: bool) -> tuple[Any, Any]:
    """``(loss, what it needs besides the outputs)``."""
    outputs = jax.eval_shape(lambda x: _outputs(network, x), inputs)
    every = len(outputs.shape) == 3
    if callable(given):
        return _callers_loss(
            cast(PerExample, given), outputs, inputs.shape[1], swap=every and not time_major
        )
    try:
        targets = jnp.asarray(given)
    except (TypeError, ValueError):
        allowed = f"a callable, or an array of targets {outputs.shape}"
        raise BadInput("targets_or_loss", given, allowed) from None
    classes = network.model is not None and jnp.issubdtype(targets.dtype, jnp.integer)
    kind = "cross_entropy" if classes else "mse"
    wanted = outputs.shape[:-1] if classes else outputs.shape
    if network.model is None and targets.shape == wanted[1:]:
        return _TargetLoss(kind, last=True), targets
    if every:
        targets = _time_major(targets, time_major)
    if targets.shape != wanted:
        allowed = f"a callable, or targets {wanted}" + (" (time first)" if every else "")
        raise BadInput("targets_or_loss", f"{targets.dtype} {targets.shape}", allowed)
    return _TargetLoss(kind, last=False), targets


def _callers_loss(
    given: PerExample, outputs: jax.ShapeDtypeStruct, examples: int, *, swap: bool
) -> tuple[_CallersLoss, list[jax.Array]]:
    """The loss as it is now, and the arrays that it closes over as they are now."""

    def loss(outputs: jax.Array) -> jax.Array:
        return given(jnp.swapaxes(outputs, 0, 1) if swap else outputs)

    try:
        traced, shapes = jax.make_jaxpr(loss, return_shape=True)(outputs)
    except TraceContextError as error:
        allowed = "a loss that changes nothing outside of itself"
        hint = "module.eval(), which sets dropout and batch normalization at rest"
        raise BadInput("targets_or_loss", first_line(error), allowed, hint) from None
    got = jax.tree.map(lambda one: one.shape, shapes)
    if got != (examples,):
        allowed = f"a loss that gives one value per example, ({examples},)"
        raise BadInput("targets_or_loss", f"a loss that gives {got}", allowed)
    return _CallersLoss(traced.jaxpr), jax.tree.map(jnp.asarray, traced.consts)


def _outputs(network: _Network, inputs: jax.Array) -> jax.Array:
    """What the loss is handed, time first."""
    if network.model is not None:
        return network.model(inputs).outputs
    outputs = unroll(network.layers, inputs).outputs
    assert outputs is not None
    return outputs


def _closeup(
    network: _Network,
    module: Any,
    inputs: jax.Array,
    losses: PerExample,
    *,
    start: Any,
    **keys: Any,
) -> Closeup:
    layers, readout = network.find(module)
    if readout is None:
        no_prefix = "".format
        return Closeup(layers, inputs, losses, every=True, prefix=no_prefix, start=start, **keys)
    own = start is None
    return Closeup(
        layers,
        module.encode(inputs),
        losses,
        readout=readout,
        every=module.readout_at == "every",
        names=network.names,
        start=module.start() if own else start,
        learns_start=own and module.learns_start,
        **keys,
    )


# Probes by name.


def _probes(wanted: str | Sequence[str | Probe]) -> dict[str, Probe]:
    if isinstance(wanted, str):
        if wanted not in PRESETS:
            hint = f"probes=[{wanted!r}]" if wanted in probe_names() else ""
            allowed = f"{', '.join(map(repr, PRESETS))}, or a list of names"
            raise BadInput("probes", wanted, allowed, hint)
        found = {name: probe_class(name) for name in probe_names()}
        held = PRESETS[: PRESETS.index(wanted) + 1]
        return {
            name: one(**(one.research if wanted == "research" else {}))
            for name, one in found.items()
            if one.preset in held
        }
    chosen: dict[str, Probe] = {}
    for one in wanted:
        if isinstance(one, Probe):
            chosen[type(one).__module__.rpartition(".")[2]] = one
        elif one in probe_names():
            chosen[one] = probe_class(one)()
        else:
            allowed = f"names among {', '.join(probe_names())}"
            raise BadInput("probes", one, allowed, ", ".join(nearest(str(one), probe_names())))
    return chosen


def probe_names() -> list[str]:
    """The names of gradlab's probes: the modules of the room."""
    found = (module.name for module in pkgutil.iter_modules(gradlab.probes.__path__))
    return sorted(name for name in found if name not in ("base", "setting"))


def probe_class(name: str) -> type[Probe]:
    """The one probe that a module of the room defines."""
    module = importlib.import_module(f"gradlab.probes.{name}")
    (found,) = (
        one
        for one in vars(module).values()
        if inspect.isclass(one) and issubclass(one, Probe) and one.__module__ == module.__name__
    )
    return found


def _enough(
    probes: Mapping[str, Probe], examples: int, *, by_preset: bool
) -> tuple[dict[str, Probe], dict[str, str]]:
    """The probes for which there are enough examples, and why there are too few for the others."""
    reasons = {
        name: f"it needs {probe.fewest} examples, and there is {examples}"
        for name, probe in probes.items()
        if isinstance(probe, CloseProbe) and probe.fewest > examples
    }
    if reasons and not by_preset:
        name, reason = next(iter(reasons.items()))
        raise BadInput("probes", name, f"a probe for so few examples; {reason}")
    return {name: probe for name, probe in probes.items() if name not in reasons}, reasons


# Measuring.


class _Summary(NamedTuple):
    """What is said of a batch besides the probes."""

    mean_loss: Any
    reads_padding: Any


def _summary(closeup: Closeup) -> _Summary:
    return _Summary(jnp.mean(closeup.losses), closeup.reads_padding)


def _measured(closeup: Closeup, probes: Iterable[Probe], setting: Setting) -> dict[str, jax.Array]:
    measured: dict[str, jax.Array] = {}
    probes = list(probes)
    if any(isinstance(probe, StepProbe) for probe in probes):
        seen = _seen(closeup, setting)
    for probe in probes:
        if isinstance(probe, StepProbe):
            measured |= probe(seen)
        elif isinstance(probe, CloseProbe):
            measured |= probe(closeup)
    return measured


def _seen(closeup: Closeup, setting: Setting) -> Seen:
    """What a training step would have seen."""
    layers = closeup.layers

    def log10(name: str) -> jax.Array:
        own = [layer.adjoint.mantissa[..., layer.part(name)] for layer in layers]
        exponents = [layer.adjoint.exponent for layer in layers]
        return jnp.stack(list(map(scaling.log10_norm, own, exponents)))

    gates = {name: jnp.stack([layer.gates[name] for layer in layers]) for name in setting.gates}
    adjoints = {name: log10(name) for name in setting.states}
    return Seen(
        adjoints=adjoints,
        mask=jnp.stack([layer.mask for layer in layers]),
        gates=gates,
        retention=gates.get(setting.retention or ""),
        params=closeup.params,
        grads=closeup.gradient,
        clipped=closeup.gradient,
        updates={},
        hidden=setting.hidden_of(adjoints),
    )


def _dataset(
    layers: list[str],
    params: list[str],
    setting: Setting,
    probes: Mapping[str, Probe],
    measured: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
) -> xarray.Dataset:
    t = np.arange(setting.length)
    coords: dict[str, Any] = {
        **coords_of(probes, setting),
        "layer": layers,
        "t": ("t", t, {"units": "timesteps", "long_name": "timestep"}),
        "lag": (
            "t",
            t[::-1],
            {"units": "timesteps", "long_name": "timesteps back from the end of the sequence"},
        ),
        "back": (
            "back",
            t,
            {"units": "timesteps", "long_name": "timesteps back from each example's own end"},
        ),
        "parameter": params,
    }
    variables = {}
    for probe in probes.values():
        for name, variable in probe.variables(setting).items():
            about = {"units": variable.units, "long_name": variable.long_name, **variable.attrs}
            variables[name] = (variable.dims, np.asarray(measured[name]), about)
    used = {dim for dims, _, _ in variables.values() for dim in dims}
    used |= {"lag"} if "t" in used else set()
    kept = {name: values for name, values in coords.items() if name in used}
    return xarray.Dataset(variables, kept, dict(attrs))


# Programs.

KEPT = 64
"""How many compiled programs are kept."""

_programs: dict[Any, Any] = {}
"""What was compiled, by the text of the program; the one used last comes last."""


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, compiled unless the same program was compiled before.

    ``jax.jit`` knows a function by its identity and freezes whatever else it reads at the first
    call. Here it is traced anew, and the program as the compiler would get it says whether it has
    been compiled: values that are frozen into it are part of its text. The text does not say which
    function of Python a callback is, so a program that has one is always compiled.
    """
    lowered = jax.jit(lambda *own: function(*own)).lower(*arguments)
    text = lowered.as_text()
    if "callback" in text:
        return lowered.compile()(*arguments)
    key = (
        hashlib.sha256(text.encode()).digest(),
        lowered.in_tree,
        lowered.out_tree,
        tuple(leaf.sharding for leaf in jax.tree.leaves((arguments, jnp.zeros(())))),
    )
    program = _programs.pop(key, None) or lowered.compile()
    _programs[key] = program
    if len(_programs) > KEPT:
        del _programs[next(iter(_programs))]
    return program(*arguments)
