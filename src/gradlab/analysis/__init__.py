"""Every probe on one batch, for a notebook: no configuration, no training, no W&B."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import xarray
from flax import nnx

import gradlab.probes
from gradlab.analysis.dataset import Part, dataset_of
from gradlab.analysis.losses import loss_of
from gradlab.analysis.programs import run
from gradlab.analysis.subject import Kind, Subject, subject_of
from gradlab.bptt import scaling
from gradlab.bptt.closeup import LayerView
from gradlab.bptt.passes import Route
from gradlab.bptt.precision import in_all_digits
from gradlab.errors import BadInput, nearest, whole_number
from gradlab.probes.base import PRESETS, CloseProbe, Probe, Seen, Setting, StepProbe
from gradlab.probes.setting import supported
from gradlab.watching.closeup import ModuleCloseup


def analyze(
    network: nnx.Module,
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

    The network stays as it is: its parameters, its random streams, the classes of its layers. A
    module runs as it is, in training or in evaluation: the attribute ``mode`` says which, where it
    has dropout or batch normalisation, and all that is measured is of the same draws.

    Everything is read anew at every call: parameters, what the loss closes over, a Python number
    that it looks up. What is compiled is used again where the program is the same; it is, whatever
    the values of arrays that a loss closes over. (JAX itself keeps what a function under
    ``jax.jit``, or the body of a ``scan``, closed over when it was first called.)

    Args:
      network: any Flax ``nnx.RNNCellBase``; a :class:`gradlab.SequenceModel`; an ``nnx.RNN`` or
        ``nnx.Bidirectional`` with whatever options; or any ``nnx.Module`` that holds such layers,
        however deep.
      inputs: ``(B, T, I)``; ``(T, B, I)`` with ``time_major``. Integer symbols ``(B, T)`` for a
        model that reads symbols. Of a module of your own whatever its call takes: an array, or a
        tuple of its positional arguments.
      targets_or_loss: what the loss is. A callable from the outputs ``(B, T, H)`` (of a model what
        it reads out: ``(B, T, O)`` or ``(B, O)``; of a module whatever it gives) to the loss of
        each example ``(B,)``, or, of a module, from ``(outputs, network)``; or targets, compared
        with the last output of a cell or layer by ``(B, H)``, else with all outputs by an array
        like them: the mean squared error. Integer targets ``(B,)`` or ``(B, T)`` of a model or
        module: the cross-entropy.
      probes: ``"full"``, ``"standard"``, ``"research"``, or a list of names such as
        ``["adjoint", "lyapunov"]`` (or of :class:`gradlab.probes.base.Probe` objects). Those of a
        preset that cannot measure this cell are left out, with the reason in the attribute
        ``probes_left_out``.
      time_major: whether inputs, outputs and targets begin with time. An ``nnx.RNN`` or
        ``nnx.Bidirectional`` may say so itself; of a module of your own it only says how its
        outputs are read.
      seq_lengths: ``(B,)``, as of ``nnx.RNN``: how many steps of each example are real, from the
        first on; None: all. The others are padding, and nothing is measured there. A module whose
        call has an argument of this name is handed them; else each of its layers is, unless its
        caller gives it others. With targets the last output is that of the last real step, and a
        mean over steps is one over the real ones. A callable is handed what ``nnx.RNN`` gives up to
        that length; it may not depend on what comes after it.
      initial_carry: the state before the first step. Of a cell or an ``nnx.RNN`` its carry (or the
        leaves of one, as a tuple), leaves ``(B, H)``, or ``(H,)`` for all examples; of a model a
        list of these by layer and direction; of an ``nnx.Bidirectional`` a pair. A module whose
        call has an argument of this name is handed it; else it is a dict from the names of layers
        to theirs. None: the network's own.
      batch: how many examples a training step would take, of which ``gradient_noise`` judges the
        noise; None: as many as are given.
      backward: what of an adjoint passes back from each step, in the backward pass alone:
        ``"full"``, ``"no_h_path"`` or ``"no_c_path"`` (see :data:`gradlab.bptt.passes.Route`).

    Returns:
      A dataset over ``layer``, ``t`` (with ``lag``) and whatever dimensions the probes have; every
      variable with ``units`` and ``long_name``. Layers of a module have their paths as names
      (``"encoder/rnn"``; the second call of one is ``"encoder/rnn#2"``), in the order in which they
      were called; t counts steps as a layer reads them. Where layers are of different kinds or
      lengths, what one does not have is nan. The attributes hold the cell's name, the mean loss,
      ``batch``, ``backward``, ``probes_left_out`` and, of a module, ``steps_not_known``: parameters
      without a curve over t, and why (JSON). Names and definitions are those of a recorded run.

    Raises:
      BadInput: for a network, inputs, targets, lengths or a carry of the wrong form, a loss that
        reads padding, a layer that cannot be seen, an unknown probe, or one asked for by name that
        cannot measure this network or batch.
    """
    subject = subject_of(network, inputs, time_major, seq_lengths, initial_carry, backward)
    if batch is not None:
        whole_number("batch", batch, 1)
    loss, captured = loss_of(targets_or_loss, subject.answer)
    examples = subject.answer.examples
    parts, left_out = _parts(_probes(probes), subject, by_preset=isinstance(probes, str))
    graph, state = nnx.split(subject.module)

    @in_all_digits
    def measure(state: Any, inputs: Any, captured: Any, lengths: Any, start: Any):
        closeup = subject.closeup(
            nnx.merge(graph, state),
            inputs,
            lambda outputs, network: loss(outputs, network, captured, lengths),
            lengths,
            start,
            batch=batch or examples,
            backward=backward,
        )
        measured = [_measured(closeup, part) for part in parts]
        if isinstance(closeup, ModuleCloseup):
            told.update(closeup.untimed)
        return measured, _summary(closeup)

    told: dict[str, str] = {}
    what = f"{sum(len(part.probes) for part in parts)} probes of {len(subject.layers)} layers"
    measured, summary = run(
        what, measure, state, subject.inputs, captured, subject.lengths, subject.start
    )
    measured, summary = jax.device_get((measured, summary))
    if summary.reads_padding:
        allowed = "a loss that depends on no output beyond the length of its example"
        hint = "the last real one: outputs[jnp.arange(B), seq_lengths - 1]"
        raise BadInput("targets_or_loss", "a loss that reads padding", allowed, hint)
    attrs = {
        **subject.about,
        "loss": float(summary.mean_loss),
        "batch": batch or examples,
        "backward": backward,
        "probes_left_out": json.dumps(left_out),
    }
    if told:
        names = dict(zip(subject.own_params, subject.params, strict=True))
        attrs["steps_not_known"] = json.dumps({names[name]: why for name, why in told.items()})
    return dataset_of(subject.layers, subject.params, parts, measured, attrs)


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


def _parts(
    probes: Mapping[str, Probe], subject: Subject, *, by_preset: bool
) -> tuple[list[Part], dict[str, str]]:
    """What is measured of which layers, and why some probes are left out.

    Layers of one kind are measured together, with all that is not of a layer. Where there are
    several, the probes of layers go by kind: those that can measure it.
    """
    probes, left_out = _enough(probes, subject.answer.examples, by_preset=by_preset)
    if len(subject.kinds) == 1:
        (kind,) = subject.kinds
        chosen, reasons = supported(probes, kind.setting, by_preset=by_preset)
        return [Part(None, kind.layers, kind.setting, chosen)], {**reasons, **left_out}
    longest = max(subject.kinds, key=lambda kind: kind.setting.length)
    parts, reasons = [], dict[str, dict[str, str]]()
    for kind in subject.kinds:
        able, unable = supported(probes, kind.setting, by_preset=True)
        names = ", ".join(subject.layers[index] for index in kind.layers)
        for name, reason in unable.items():
            reasons.setdefault(name, {})[names] = reason
        of_layers = {name: probe for name, probe in able.items() if _of_layers(probe, kind)}
        rest = {name: probe for name, probe in able.items() if name not in of_layers}
        parts.append(Part(kind.layers, kind.layers, kind.setting, of_layers))
        if kind is longest:
            parts.append(Part(None, kind.layers, kind.setting, rest))
    for name, why in reasons.items():
        nowhere = len(why) == len(subject.kinds)
        if nowhere and not by_preset:
            supported({name: probes[name]}, longest.setting, by_preset=False)
        of = "; ".join(f"of {names}: {reason}" for names, reason in why.items())
        left_out[name] = next(iter(why.values())) if nowhere else of
    return parts, left_out


def _of_layers(probe: Probe, kind: Kind) -> bool:
    return any("layer" in one.dims for one in probe.variables(kind.setting).values())


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


def _summary(closeup: Any) -> _Summary:
    return _Summary(jnp.mean(closeup.losses), closeup.reads_padding)


class _Few:
    """Some layers of a close look, for the probes that measure layers."""

    def __init__(self, whole: ModuleCloseup, layers: Sequence[int], setting: Setting):
        self._layers, self.length = layers, setting.length
        self._whole, self.batch, self.examples = whole, whole.batch, whole.examples

    @property
    def layers(self) -> list[LayerView]:
        """Those."""
        return [self._whole.layers[index] for index in self._layers]

    @property
    def mask(self) -> jax.Array:
        """``(T, E)``: that of the first, which the others share."""
        return self._whole.mask_of(self._layers[0])

    def first(self, examples: int) -> list[LayerView]:
        """The layers on the first so many examples."""
        return [layer.first(examples) for layer in self.layers]


def _measured(closeup: Any, part: Part) -> dict[str, jax.Array]:
    own: Any = closeup if part.layers is None else _Few(closeup, part.layers, part.setting)
    measured: dict[str, jax.Array] = {}
    if any(isinstance(probe, StepProbe) for probe in part.probes.values()):
        seen = _seen(closeup, part)
    for probe in part.probes.values():
        if isinstance(probe, StepProbe):
            measured |= probe(seen)
        elif isinstance(probe, CloseProbe):
            measured |= probe(own)
    return measured


def _seen(closeup: Any, part: Part) -> Seen:
    """What a training step would have seen of layers that are alike."""
    layers, setting = [closeup.layers[index] for index in part.alike], part.setting

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
