"""What a step saw of its recurrent layers, as recorded variables: the standard step probes.

Those that need the adjoints alone are computed here, in one small compiled function beside the
step; what they make of the gates comes with what was seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradlab import probes
from gradlab.bptt.parts import names_of
from gradlab.cells import stock
from gradlab.errors import BadInput
from gradlab.probes.base import Seen as StepSeen
from gradlab.probes.base import Setting, StepProbe
from gradlab.probes.setting import coords_of, supported
from gradlab.variable import Variable
from gradlab.watching.gates import OF_GATES
from gradlab.watching.layers import RNN

OF_ADJOINTS: dict[str, StepProbe] = {
    "adjoint": probes.Adjoint(),
    "adjoint_slope": probes.AdjointSlope(),
    "memory_horizon": probes.MemoryHorizon(),
    "gradient_mass": probes.GradientMass(),
}
"""The standard step probes that need nothing but adjoints and mask."""
NORM = "grad_norm"
"""The norm of the gradient of each parameter."""
_FIRST, _LAST = "adj_", "_log10"
_ONE_LENGTH = (
    "pad every batch to one length and say by seq_lengths which steps are real, or take another "
    "Recorder; the number of examples may change"
)
_ONE_MODULE = "what was seen of the module that the Recorder was made with"


class Measured(NamedTuple):
    """What was measured of one step; arrays of the device, which may still be computing.

    Attributes:
      arrays: by the variable's name, over its dimensions.
      broken: for each layer and state, by name, the last timestep at which an adjoint of a real
        step is not finite (one that is exactly zero is); -1 for none.
    """

    arrays: Mapping[str, Any]
    broken: Mapping[str, Mapping[str, Any]]


class _Plan(NamedTuple):
    """Where values of each layer lie in arrays over all layers.

    Attributes:
      layers: in order.
      dims: of each variable, by its name.
      sizes: of each dimension, by its name.
      h: of layers whose h is called otherwise, by their names, what it is called.
      gates: of each layer, by its name, the positions of its gates among all.
    """

    layers: tuple[str, ...]
    dims: tuple[tuple[str, tuple[str, ...]], ...]
    sizes: tuple[tuple[str, int], ...]
    h: tuple[tuple[str, str], ...]
    gates: tuple[tuple[str, tuple[int, ...]], ...]

    def place(self, layer: str, dims: Sequence[str], shape: Sequence[int]) -> tuple[Any, ...]:
        """Where values of one layer, of ``shape``, lie in an array over ``dims``."""
        gates = dict(self.gates)[layer]
        ranges = zip(dims, shape, strict=True)
        return np.ix_(*(gates if dim == "gate" else range(size) for dim, size in ranges))


class Watched:
    """The recurrent layers of a module, and how what is seen of them is recorded.

    Variables of layers are recorded over ``layer`` and the dimensions of the probes, ``t`` being as
    long as the longest layer: NaN stands beyond the end of a shorter one, and for what a layer does
    not have.

    Args:
      module: with layers of gradlab's.

    Attributes:
      parameters: how many numbers the module learns.
      settings: by the layer's name, of each layer that was seen.

    Raises:
      BadInput: for what is no module, one without a layer that gradlab sees, or two layers of one
        name.
    """

    def __init__(self, module: nnx.Module):
        hint = "gradlab.watch(module)"
        if not isinstance(module, nnx.Module):
            kind = f"a {type(module).__name__}"
            kind = f"the class {module.__name__}" if isinstance(module, type) else kind
            raise BadInput("module", kind, "the nnx.Module that is trained", hint)
        self._cells: dict[str, nnx.RNNCellBase] = {}
        for _, node in nnx.iter_graph(module):
            if not isinstance(node, RNN):
                continue
            if node.path in self._cells:
                raise BadInput("module", f"two layers called {node.path!r}", "other names", hint)
            self._cells[node.path] = node.cell
        if not self._cells:
            allowed = "a module with a recurrent layer that gradlab watches"
            raise BadInput("module", f"a {type(module).__name__}", allowed, hint)
        params = nnx.state(module, nnx.Param)
        self.parameters = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
        self._names = names_of(params)
        self.settings: dict[str, Setting] = {}

    @property
    def layers(self) -> list[str]:
        """Their names; those of further calls of one layer, ``rnn#2``, once they were seen."""
        return [*self._cells, *(name for name in self.settings if name not in self._cells)]

    @property
    def length(self) -> int:
        """``T`` of the longest layer; 0 before anything was seen."""
        return max((one.length for one in self.settings.values()), default=0)

    def facts(self) -> dict[str, dict[str, Any]]:
        """Of each layer ``cell``, and once it was seen ``states``, which is ``h``, ``T``, ``gate``.

        ``gate`` is the one that multiplies the old state; a layer without one has no such key.
        """
        found: dict[str, dict[str, Any]] = {}
        for name in self.layers:
            found[name] = {"cell": type(self._cell(name)).__name__}
            if one := self.settings.get(name):
                found[name] |= {"states": list(one.states), "h": one.h, "T": one.length}
                found[name] |= {"gate": one.retention} if one.retention else {}
        return found

    def remember(self, facts: Any) -> None:
        """What an earlier process recorded of the layers, by its :meth:`facts`.

        Raises:
          ValueError: if that was another module.
        """
        own = {name: type(cell).__name__ for name, cell in self._cells.items()}
        recorded = {name: one["cell"] for name, one in facts.items() if "#" not in name}
        if own != recorded:
            raise ValueError(f"its layers: {_listed(recorded)}; of the one given: {_listed(own)}")
        for name, one in facts.items():
            if "T" in one:
                states, length = tuple(map(str, one["states"])), int(one["T"])
                self.settings[name] = self._setting(name, states, length, str(one["h"]))

    def begin(self, seen: Any, coords: Mapping[str, Sequence[Any]]) -> Measured:
        """Begin to measure, without waiting for it.

        Args:
          seen: third result of :func:`gradlab.value_and_grad`, of any number of examples.
          coords: of what is recorded already.

        Raises:
          BadInput: for anything else, and for a layer that has no place there, or reads other
            sequences than before.
        """
        _check_seen(seen)
        h = dict(getattr(seen, "h", {}))
        adjoints = {name: _adjoints(one, h.get(name, "h")) for name, one in seen.items()}
        forms = {name: (tuple(own), seen[name]["mask"].shape[1]) for name, own in adjoints.items()}
        for name, form in forms.items():
            self._check_form(name, form, coords)
            self._check_gates(name, form, h.get(name, "h"), seen[name].get("measured", {}))
        for name, (states, length) in forms.items():
            self.settings.setdefault(name, self._setting(name, states, length, h.get(name, "h")))
        masks = {name: one["mask"] for name, one in seen.items()}
        gates = {name: dict(one.get("measured", {})) for name, one in seen.items()}
        norms = getattr(seen, "gradient_norms", {})
        coords = {**self.coords(norms), **coords}
        known = [norms.get(name, np.nan) for name in coords["parameter"]] if norms else []
        measured = _measure(adjoints, masks, gates, known, self._plan(coords))
        for leaf in jax.tree.leaves(measured):
            leaf.copy_to_host_async()
        return measured

    def variables(self) -> Mapping[str, Variable]:
        """What is recorded of the layers that were seen."""
        return _variables(*self.settings.values())

    def coords(self, norms: Iterable[str]) -> dict[str, list[Any]]:
        """Values of every dimension of these variables.

        Args:
          norms: the parameters whose gradients' norms are known.
        """
        gates = dict.fromkeys(gate for cell in self._cells.values() for gate in _gates(cell))
        longest = Setting("", (), tuple(gates), None, length=self.length)
        found = coords_of({**OF_ADJOINTS, **OF_GATES}, longest)
        own = [name for name in self._names if name in norms]
        names = own + [name for name in norms if name not in own]
        return {**found, "layer": self.layers, "parameter": names}

    def _plan(self, coords: Mapping[str, Sequence[Any]]) -> _Plan:
        return _Plan(
            layers=tuple(coords["layer"]),
            dims=tuple((name, one.dims) for name, one in self.variables().items()),
            sizes=tuple((dim, len(values)) for dim, values in coords.items()),
            h=tuple((name, one.h) for name, one in self.settings.items() if one.renames_h),
            gates=tuple(
                (name, tuple(coords["gate"].index(gate) for gate in one.gates))
                for name, one in self.settings.items()
            ),
        )

    def _check_form(
        self, name: str, form: tuple[tuple[str, ...], int], coords: Mapping[str, Sequence[Any]]
    ) -> None:
        states, length = form
        self._cell(name)
        before, longest = self.settings.get(name), len(coords.get("t", ()))
        said, hint = f"T = {length}", _ONE_LENGTH
        if before is not None and states != before.states:
            said = f"the states {', '.join(states)}"
            allowed, hint = f"{', '.join(before.states)}, as at the steps before", _ONE_MODULE
        elif before is not None and length != before.length:
            allowed = f"T = {before.length}, as at the steps before"
        elif before is None and longest and length > longest:
            allowed = f"T = {longest} at most, as in what is recorded"
        elif name not in coords.get("layer", [name]):
            said, allowed = "called", f"the layers that are recorded: {', '.join(coords['layer'])}"
        else:
            return
        raise BadInput(f"seen[{name!r}]", said, allowed, hint)

    def _check_gates(
        self, name: str, form: tuple[tuple[str, ...], int], h: str, measured: Mapping[str, Any]
    ) -> None:
        """Refuse what came of other gates than those of the layer's cell."""
        setting = self._setting(name, *form, h)
        variables, gates = _variables(setting), len(setting.gates)
        for variable, values in measured.items():
            dims = variables[variable].dims[1:] if variable in variables else ()
            shape = np.shape(values)
            fits = len(dims) == len(shape) and (
                "gate" not in dims or shape[dims.index("gate")] == gates
            )
            if variable not in variables or not fits:
                own = ", ".join(setting.gates) or "none that can be seen"
                allowed = f"that of a {setting.cell} (its gates: {own})"
                raise BadInput(f"seen[{name!r}]", f"{variable}, {shape}", allowed, _ONE_MODULE)

    def _cell(self, name: str) -> nnx.RNNCellBase:
        path = name if name in self._cells else name.rpartition("#")[0]
        if path not in self._cells:
            known = ", ".join(self._cells)
            allowed = f"what value_and_grad saw of the module recorded here; its layers: {known}"
            raise BadInput("seen", f"a layer {name!r}", allowed)
        return self._cells[path]

    def _setting(self, name: str, states: tuple[str, ...], length: int, h: str) -> Setting:
        cell = self._cell(name)
        view, kind = stock.gate_view(cell), type(cell).__name__
        return Setting(kind, states, view.names, view.retention, length=length, h=h)


@partial(jax.jit, static_argnames="plan")
def _measure(
    adjoints: dict[str, dict[str, Any]],
    masks: dict[str, Any],
    gates: dict[str, dict[str, Any]],
    norms: Sequence[Any],
    plan: _Plan,
) -> Measured:
    """What the probes make of each layer, with what came of its gates, laid out over all."""
    found, broken, renamed = {}, {}, dict(plan.h)
    for layer, own in adjoints.items():
        seen = StepSeen(
            {state: log10.T[None] for state, log10 in own.items()},
            *(masks[layer].T[None], {}, None, {}, {}, {}, {}),
            hidden=own[renamed[layer]].T[None] if layer in renamed else None,
        )
        found[layer] = gates[layer]
        for probe in OF_ADJOINTS.values():
            found[layer] |= {name: values[0] for name, values in probe(seen).items()}
        broken[layer] = {
            state: _last(jnp.any(masks[layer] & ~(log10 < jnp.inf), axis=0))
            for state, log10 in own.items()
        }
    arrays = {}
    for name, dims in plan.dims:
        own = {layer: values[name] for layer, values in found.items() if name in values}
        if own:
            arrays[name] = _laid_out(own, dims[1:], plan)
    if norms:
        arrays[NORM] = jnp.stack(norms).astype(jnp.float32)
    return Measured(arrays, broken)


def _laid_out(own: Mapping[str, jax.Array], dims: Sequence[str], plan: _Plan) -> jax.Array:
    """Values of some layers over ``dims`` over all layers; NaN where there are none."""
    sizes = dict(plan.sizes)
    nothing = jnp.full([sizes[dim] for dim in dims], jnp.nan, jnp.float32)
    rows = []
    for layer in plan.layers:
        row = nothing
        if layer in own:
            values = own[layer].astype(jnp.float32)
            row = row.at[plan.place(layer, dims, values.shape)].set(values) if dims else values
        rows.append(row)
    return jnp.stack(rows)


def _last(steps: jax.Array) -> jax.Array:
    """The last position that is true; -1 for none."""
    return jnp.max(jnp.where(steps, jnp.arange(len(steps), dtype=jnp.int32), jnp.int32(-1)))


def first_broken(measured: Measured) -> str:
    """Where the adjoints stop being finite, in words; empty where all are. Waits for the device."""
    for layer, states in jax.device_get(measured.broken).items():
        for state, step in states.items():
            if step >= 0:
                return (
                    f"in layer {layer} the adjoint of {state} is not finite from timestep "
                    f"{step} back"
                )
    return ""


def _check_seen(seen: Any) -> None:
    whole = isinstance(seen, Mapping) and all(
        isinstance(one, Mapping) and "mask" in one and any(_states(one)) for one in seen.values()
    )
    if not whole:
        allowed = "what gradlab.value_and_grad gives beside the value and the gradient, or None"
        raise BadInput("seen", type(seen).__name__, allowed)
    for name, one in seen.items():
        keys = ["mask", *(f"{_FIRST}{state}{_LAST}" for state in _states(one))]
        shapes = list(dict.fromkeys(np.shape(one[key]) for key in keys))
        if len(shapes) > 1 or len(shapes[0]) != 2:
            given = f"arrays of the shape {' and '.join(map(str, shapes))}"
            hint = "if steps were stacked, log each: jax.tree.map(lambda one: one[i], seen)"
            raise BadInput(f"seen[{name!r}]", given, "what one step saw, (B, T)", hint)


def _states(one: Mapping[str, Any]) -> Iterator[str]:
    """Names of the states whose adjoints were seen."""
    for key in one:
        if key.startswith(_FIRST) and key.endswith(_LAST):
            yield key.removeprefix(_FIRST).removesuffix(_LAST)


def _adjoints(one: Mapping[str, Any], h: str) -> dict[str, Any]:
    """By the names of the states; one that is called otherwise and is h is there once."""
    names = [name for name in sorted(_states(one)) if h == "h" or name != "h"]
    return {name: one[f"{_FIRST}{name}{_LAST}"] for name in names}


def _gates(cell: nnx.RNNCellBase) -> tuple[str, ...]:
    return stock.gate_view(cell).names


@cache
def _variables(*settings: Setting) -> Mapping[str, Variable]:
    """What is recorded of layers."""
    found: dict[str, Variable] = {}
    for setting in settings:
        usable, _ = supported({**OF_ADJOINTS, **OF_GATES}, setting, by_preset=True)
        for probe in usable.values():
            for name, variable in probe.variables(setting).items():
                found[name] = _joined(found.get(name, variable), variable)
    if found:
        found[NORM] = probes.GradNorm().variables(Setting("", (), (), None))[NORM]
    return found


def _joined(one: Variable, other: Variable) -> Variable:
    """A variable of layers of several kinds, whose gates have other names."""
    words = {
        key: "/".join(dict.fromkeys([*one.attrs.get(key, text).split("/"), text]))
        for key, text in other.attrs.items()
    }
    return one._replace(attrs={**one.attrs, **words})


def _listed(cells: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({cell})" for name, cell in cells.items())
