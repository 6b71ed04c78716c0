"""What the probes may know of a model, and which of them can measure it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradlab.bptt.closeup import MIXES
from gradlab.bptt.packing import Packing
from gradlab.bptt.unroll import Layer, forms_of, initial_carries
from gradlab.cells import stock
from gradlab.errors import BadInput
from gradlab.probes.base import CloseProbe, Probe, Setting, Unsupported

BATCH = 7
"""Examples of the batch that a cell's state is looked at with: as no other axis is likely to be."""


def setting_of(
    layers: Sequence[Layer],
    features: int | tuple[int, ...],
    *,
    length: int,
    clips: bool = False,
    trains: bool = True,
    dtype: Any = None,
    state_axes: Mapping[Any, Any] | None = None,
) -> Setting:
    """What the probes may know of a stack of cells that reads ``(length, B, *features)``.

    Args:
      layers: as for :func:`gradlab.bptt.unroll.unroll`.
      features: the inputs' width, or their shape without time and examples.
      length: ``T``.
      clips, trains: see :class:`gradlab.probes.base.Setting`.
      dtype: of the inputs; None: that of the first state.
      state_axes: as for :func:`gradlab.bptt.unroll.unroll`.
    """
    cell = layers[0][0]
    view, plain = stock.gate_view(cell), stock.plain_rnn(cell)
    shape = (1, BATCH, *((features,) if isinstance(features, int) else features))
    carry = initial_carries(layers, shape, dtype, state_axes=state_axes)[0][0]
    forms = forms_of(layers, shape, dtype, state_axes=state_axes)
    form = forms[0][0]
    packing = Packing(carry, form.names, form.states)
    memory = "c" if "c" in form.states else form.h
    return Setting(
        cell=type(cell).__name__,
        states=form.states,
        gates=view.names,
        retention=view.retention,
        matrices=tuple(stock.recurrent_matrices(cell)),
        activation=None if plain is None else plain.activation,
        length=length,
        hidden=math.prod(packing.parts[memory].shape),
        clips=clips,
        trains=trains,
        h=form.h,
        size=packing.size,
        mixes=any(one.shared for layer in forms for one in layer),
    )


def coords_of(probes: Mapping[str, Probe], setting: Setting) -> dict[str, list[Any]]:
    """The values of every dimension that probes measure over, but layers and parameters.

    Raises:
      BadInput: if two probes have different values of one dimension.
    """
    steps = list(range(setting.length))
    coords: dict[str, list[Any]] = {"t": steps, "back": steps, "gate": list(setting.gates)}
    for probe in probes.values():
        for dim, values in probe.coords(setting).items():
            if coords.setdefault(dim, values) != values:
                allowed = f"the same for all probes that record it; another has {coords[dim]}"
                raise BadInput(f"probe ({dim})", values, allowed, f"set the option {dim}s of both")
    return coords


def supported(
    probes: Mapping[str, Probe], setting: Setting, *, by_preset: bool
) -> tuple[dict[str, Probe], dict[str, str]]:
    """The probes that can measure this model, and why the others cannot.

    Args:
      probes: name -> probe.
      setting: of the model.
      by_preset: whether a preset chose them; then those it cannot use are left out with a reason.

    Raises:
      BadInput: for a probe that was asked for by name and cannot measure this model.
    """
    usable, reasons = {}, {}
    for name, probe in probes.items():
        try:
            if setting.mixes and isinstance(probe, CloseProbe):
                raise Unsupported(MIXES.format(setting.cell))
            probe.variables(setting)
        except Unsupported as reason:
            if not by_preset:
                allowed = f"a probe that can measure this model; {reason}"
                hint = "leave it out, or a preset such as probe=standard, which does so by itself"
                raise BadInput("probe", name, allowed, hint) from None
            reasons[name] = str(reason)
        else:
            usable[name] = probe
    return usable, reasons
