"""Every probe on one batch, for a notebook: no configuration, no training, no W&B."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import xarray
from flax import nnx

import gradlab.probes
from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup
from gradlab.bptt.parts import names_of
from gradlab.bptt.precision import in_all_digits
from gradlab.bptt.unroll import unroll
from gradlab.errors import BadInput, nearest
from gradlab.model import SequenceModel, per_example_loss
from gradlab.probes.base import CloseProbe, Probe, Seen, Setting, StepProbe
from gradlab.probes.setting import setting_of, supported

PRESETS: dict[str, type[Probe]] = {"full": Probe, "standard": StepProbe}
"""What a preset measures: every probe of this kind."""

PerExample = Callable[[jax.Array], jax.Array]
"""A loss: from what is read out to that of each example."""


def analyze(
    model_or_cell: nnx.RNNCellBase | nnx.RNN | SequenceModel,
    inputs: Any,
    targets_or_loss: Any,
    *,
    probes: str | Sequence[str | Probe] = "full",
    time_major: bool = False,
) -> xarray.Dataset:
    """Measure how the gradient of a loss travels through a recurrent network, on one batch.

    Args:
      model_or_cell: any Flax ``nnx.RNNCellBase``, an ``nnx.RNN`` around one, or a
        :class:`gradlab.SequenceModel`.
      inputs: ``(B, T, I)``; ``(T, B, I)`` with ``time_major``. Integer symbols ``(B, T)`` for a
        model that reads symbols.
      targets_or_loss: what the loss is. A callable from the outputs ``(B, T, H)`` (of a model what
        it reads out: ``(B, T, O)`` or ``(B, O)``) to the loss of each example ``(B,)``; or targets,
        compared with the last output by ``(B, H)``, with every one by ``(B, T, H)``: the mean
        squared error. Integer targets ``(B,)`` or ``(B, T)`` of a model: the cross-entropy.
      probes: ``"full"``, ``"standard"``, or a list of names such as ``["adjoint", "lyapunov"]``
        (or of :class:`gradlab.probes.base.Probe` objects). Those of a preset that cannot measure
        this cell are left out, with the reason in the attribute ``probes_left_out``.
      time_major: whether inputs, outputs and targets begin with time.

    Returns:
      A dataset over ``layer``, ``t`` (with ``lag``) and whatever dimensions the probes have; every
      variable with ``units`` and ``long_name``. The attributes hold the cell's name, the mean loss
      and ``probes_left_out`` (JSON). Names and definitions are those of a recorded run.

    Raises:
      BadInput: for inputs or targets of the wrong shape, an unknown probe, or one asked for by
        name that cannot measure this cell.
    """
    network = _network(model_or_cell)
    inputs = _time_major(jnp.asarray(inputs), time_major)
    _check_inputs(network, inputs)
    loss, targets = _loss(network, inputs, targets_or_loss, time_major)
    setting = setting_of(network.layers, network.width, length=len(inputs), trains=False)
    chosen, left_out = supported(_probes(probes), setting, by_preset=isinstance(probes, str))
    graph, state = nnx.split(network.module)
    plan = _Plan(graph, network.find, loss, tuple(chosen.items()), setting)
    measured, mean_loss = _measure(plan, state, inputs, targets)
    return _dataset(network, setting, chosen, jax.device_get(measured), mean_loss, left_out)


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
    if isinstance(given, SequenceModel):
        return _Network(given, _find_layers, given.layer_names(), given.width, given)
    cell = given.cell if isinstance(given, nnx.RNN) else given
    if not isinstance(cell, nnx.RNNCellBase):
        allowed = "a Flax nnx.RNNCellBase, an nnx.RNN, or a gradlab.SequenceModel"
        raise BadInput("model_or_cell", type(given).__name__, allowed)
    width = getattr(cell, "in_features", None)
    if width is None:
        allowed = "a cell with the attribute in_features, as Flax's own have it"
        raise BadInput("model_or_cell", type(cell).__name__, allowed)
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


class _UserLoss(NamedTuple):
    """The caller's loss, handed the outputs as the caller knows them."""

    function: PerExample
    swap: bool

    def __call__(self, outputs: jax.Array, targets: None) -> jax.Array:
        return self.function(jnp.swapaxes(outputs, 0, 1) if self.swap else outputs)


class _TargetLoss(NamedTuple):
    """The distance to targets, of the last output alone or of whatever is read out."""

    kind: Literal["mse", "cross_entropy"]
    last: bool

    def __call__(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        read = outputs[-1] if self.last else outputs
        weights = jnp.full(read.shape[:2], 1 / len(read), read.dtype) if read.ndim == 3 else None
        return per_example_loss(self.kind, read, targets, weights)


def _loss(network: _Network, inputs: jax.Array, given: Any, time_major: bool) -> tuple[Any, Any]:
    """``(loss(outputs, targets), targets)``; the loss hashable, so that programs are reused."""
    outputs = jax.eval_shape(lambda x: _outputs(network, x), inputs).shape
    every = len(outputs) == 3
    if callable(given):
        loss = _UserLoss(cast(PerExample, given), swap=every and not time_major)
        got = jax.eval_shape(lambda x: loss(_outputs(network, x), None), inputs).shape
        if got != (inputs.shape[1],):
            allowed = f"a loss that gives one value per example, ({inputs.shape[1]},)"
            raise BadInput("targets_or_loss", f"a loss that gives {got}", allowed)
        return loss, None
    targets = jnp.asarray(given)
    classes = network.model is not None and jnp.issubdtype(targets.dtype, jnp.integer)
    kind = "cross_entropy" if classes else "mse"
    wanted = outputs[:-1] if classes else outputs
    if network.model is None and targets.shape == wanted[1:]:
        return _TargetLoss(kind, last=True), targets
    if every:
        targets = _time_major(targets, time_major)
    if targets.shape != wanted:
        allowed = f"a callable, or targets {wanted}" + (" (time first)" if every else "")
        raise BadInput("targets_or_loss", f"{targets.dtype} {targets.shape}", allowed)
    return _TargetLoss(kind, last=False), targets


def _outputs(network: _Network, inputs: jax.Array) -> jax.Array:
    """What the loss is handed, time first."""
    if network.model is not None:
        return network.model(inputs).outputs
    outputs = unroll(network.layers, inputs).outputs
    assert outputs is not None
    return outputs


def _closeup(find: Any, module: Any, inputs: jax.Array, losses: PerExample) -> Closeup:
    layers, readout = find(module)
    if readout is None:
        return Closeup(layers, inputs, losses, every=True, prefix=lambda *_: "")
    every = module.readout_at == "every"
    names, read = module.layer_names(), module.encode(inputs)
    return Closeup(layers, read, losses, readout=readout, every=every, names=names)


# Probes by name.


def _probes(wanted: str | Sequence[str | Probe]) -> dict[str, Probe]:
    if isinstance(wanted, str):
        if wanted not in PRESETS:
            hint = f"probes=[{wanted!r}]" if wanted in probe_names() else ""
            allowed = f"{', '.join(map(repr, PRESETS))}, or a list of names"
            raise BadInput("probes", wanted, allowed, hint)
        found = {name: probe_class(name) for name in probe_names()}
        kind = PRESETS[wanted]
        return {name: one() for name, one in found.items() if issubclass(one, kind)}
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


# Measuring.


class _Plan(NamedTuple):
    """All that the compiled program depends on besides the shapes."""

    graph: Any
    find: Callable[[Any], Any]
    loss: Callable[[Any, Any], jax.Array]
    probes: tuple[tuple[str, Probe], ...]
    setting: Setting


@partial(jax.jit, static_argnums=0)
@in_all_digits
def _measure(plan: _Plan, state: Any, inputs: jax.Array, targets: Any):
    module = nnx.merge(plan.graph, state)
    closeup = _closeup(plan.find, module, inputs, lambda outputs: plan.loss(outputs, targets))
    measured: dict[str, jax.Array] = {}
    probes = [probe for _, probe in plan.probes]
    if any(isinstance(probe, StepProbe) for probe in probes):
        seen = _seen(closeup, plan.setting)
    for probe in probes:
        if isinstance(probe, StepProbe):
            measured |= probe(seen)
        elif isinstance(probe, CloseProbe):
            measured |= probe(closeup)
    return measured, jnp.mean(closeup.losses)


def _seen(closeup: Closeup, setting: Setting) -> Seen:
    """What a training step would have seen."""
    layers = closeup.layers

    def log10(name: str) -> jax.Array:
        own = [layer.adjoint.mantissa[..., layer.part(name)] for layer in layers]
        exponents = [layer.adjoint.exponent for layer in layers]
        return jnp.stack(list(map(scaling.log10_norm, own, exponents)))

    gates = {name: jnp.stack([layer.gates[name] for layer in layers]) for name in setting.gates}
    return Seen(
        adjoints={name: log10(name) for name in setting.states},
        mask=jnp.stack([layer.mask for layer in layers]),
        gates=gates,
        retention=gates.get(setting.retention or ""),
        params=closeup.params,
        grads=closeup.gradient,
        clipped=closeup.gradient,
        updates={},
    )


def _dataset(
    network: _Network,
    setting: Setting,
    probes: Mapping[str, Probe],
    measured: Mapping[str, np.ndarray],
    mean_loss: Any,
    left_out: Mapping[str, str],
) -> xarray.Dataset:
    t = np.arange(setting.length)
    coords: dict[str, Any] = {
        "layer": network.names,
        "t": ("t", t, {"units": "timesteps", "long_name": "timestep"}),
        "lag": (
            "t",
            t[::-1],
            {"units": "timesteps", "long_name": "timesteps back from the end of the sequence"},
        ),
        "gate": list(setting.gates),
        "parameter": names_of(nnx.state(network.module, nnx.Param)),
    }
    variables = {}
    for probe in probes.values():
        coords |= probe.coords(setting)
        for name, variable in probe.variables(setting).items():
            attrs = {"units": variable.units, "long_name": variable.long_name, **variable.attrs}
            variables[name] = (variable.dims, np.asarray(measured[name]), attrs)
    used = {dim for dims, _, _ in variables.values() for dim in dims}
    used |= {"lag"} if "t" in used else set()
    attrs = {
        "cell": setting.cell,
        "loss": float(mean_loss),
        "probes_left_out": json.dumps(dict(left_out)),
    }
    kept = {name: values for name, values in coords.items() if name in used}
    return xarray.Dataset(variables, kept, attrs)
