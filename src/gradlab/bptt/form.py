"""What kind of cell it is: found from one trace of its step, never from the order of its state.

A step is ``(carry, x) -> (carry, y)``. :func:`form_of` traces it once, with abstract arrays, and
says which leaf of the carry is h, which leaves have an adjoint of each example, which Variables a
step changes, and whether one example's step reads another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from gradlab.bptt.parts import Parts
from gradlab.bptt.precision import Products
from gradlab.errors import BadInput

FIXED, MOVING = "fixed", "moving"
Kind = str | int
"""Of a Variable: fixed over the steps, moving from one to the next, or its axis that is time."""

UNUSUAL = 10007
"""A prime: an axis of this size, or of a multiple of it, is the batch's and no other."""


@jax.tree_util.register_static
class Form(NamedTuple):
    """What is known of a cell from one trace of its step; hashable, and no array to JAX.

    A leaf of the carry is a *state* if it is inexact (float or complex) and its first axis is the
    batch: each example has an adjoint of it. An inexact leaf without that axis is *common* to all
    examples. Whole numbers and truth values ride along.

    Attributes:
      names: of every leaf of the carry, in the order of the leaves: the user's own names, joined by
        "_" where they are nested; without any, "h", "c" for the one other inexact leaf, else "s0",
        "s1" by position.
      states: those of the states.
      h: the state that is h.
      is_leaf: whether the output is h itself.
      shared: whether the adjoints of the examples have one exponent: where a step mixes them, or
        changes inexact numbers that are common to them.
      mixes: whether a step mixes the examples of a batch.
      half: whether anything in the step is in half precision.
      live: of each leaf whether it is inexact.
      batched: of each leaf whether its first axis is the batch.
      variables: what each array of the cell's Variables is, parameters first.
      output: shape and dtype of the output of one example.
    """

    names: tuple[str, ...]
    states: tuple[str, ...]
    h: str
    is_leaf: bool
    shared: bool
    mixes: bool
    half: bool
    live: tuple[bool, ...]
    batched: tuple[bool, ...]
    variables: tuple[Kind, ...]
    output: jax.ShapeDtypeStruct

    @property
    def at_h(self) -> int:
        """The position of h among the leaves of the carry."""
        return self.names.index(self.h)

    def hidden(self, carry: Any) -> jax.Array:
        """The h of a carry."""
        return jax.tree.leaves(carry)[self.at_h]

    def live_leaves(self, carry: Any) -> list[jax.Array]:
        """The inexact leaves of a carry: its states, and what is common."""
        return chosen(self.live, jax.tree.leaves(carry))

    @property
    def live_names(self) -> tuple[str, ...]:
        """The names of :meth:`live_leaves`."""
        return tuple(chosen(self.live, self.names))

    @property
    def live_batched(self) -> tuple[bool, ...]:
        """Which of :meth:`live_leaves` are states."""
        return tuple(chosen(self.live, self.batched))


def form_of(
    cell: nnx.RNNCellBase,
    carry: Any,
    x: Any,
    *,
    state_axes: Mapping[Any, Any] | None = None,
    broadcast_rngs: Any = None,
) -> Form:
    """The form of a cell.

    Args:
      cell: the cell; if it has an attribute ``h_leaf``, that is the name or the position of h.
      carry: a carry of a batch, arrays or their shapes.
      x: one input of the batch ``(B, ...)``, or its shape.
      state_axes: as for ``nnx.RNN``.
      broadcast_rngs: as for ``nnx.RNN``.

    Raises:
      BadInput: for a step that does not return a carry like the one it was given and an array, that
        creates Variables, or whose h cannot be found.
    """
    key = f"cell {type(cell).__name__}"
    parts = Parts.of(cell)
    kinds = _kinds(parts, state_axes, broadcast_rngs)
    batch = x.shape[0] if x.shape else 0
    batched = tuple(jnp.shape(leaf)[:1] == (batch,) for leaf in jax.tree.leaves(carry))
    traced, alone = _traced_apart(key, parts, kinds, carry, x, batched)
    program = traced.program
    values, leaves = len(kinds), len(batched)
    before, after = program.invars[:values], program.outvars[leaves + 1 :]
    moving = [new is not old for old, new in zip(before, after, strict=True)]
    variables = tuple(
        FIXED if kind == MOVING and not moves else kind
        for kind, moves in zip(kinds, moving, strict=True)
    )
    live = tuple(_inexact(leaf) for leaf in jax.tree.leaves(carry))
    names, h = _names(key, cell, carry, program, live, batched)
    moved = zip(variables, moving, parts.leaves(), strict=True)
    common = any(a and not b for a, b in zip(live, batched, strict=True))
    changes = any(kind != FIXED and moves and _inexact(leaf) for kind, moves, leaf in moved)
    return Form(
        names=names,
        states=tuple(chosen([a and b for a, b in zip(live, batched, strict=True)], names)),
        h=h,
        is_leaf=program.outvars[leaves] is program.outvars[names.index(h)],
        shared=common or changes or not alone,
        mixes=not alone,
        half=any(_is_half(var) for var in _variables_in(program)),
        live=live,
        batched=batched,
        variables=variables,
        output=traced.output,
    )


class Step:
    """One step of a cell as a function of arrays alone.

    Args:
      parts: the cell's.
      form: its form.
      products: what its matrix products are made in, in the loops of a pass.

    Attributes:
      form, products: as given.
      fixed: the arrays of its fixed Variables.
      moved: those of the others; such as have an axis of time with that axis in front.
    """

    def __init__(self, parts: Parts, form: Form, products: Products = "float32"):
        self._parts, self.form = parts, form
        self.products: Products = products
        self._moves = [kind != FIXED for kind in form.variables]
        moved, self.fixed = parted(self._moves, parts.leaves())
        self.moved_kinds = chosen(self._moves, form.variables)
        self.moves_on = [kind == MOVING for kind in self.moved_kinds]
        each = zip(self.moved_kinds, moved, strict=True)
        self.moved = [
            leaf if kind == MOVING else jnp.moveaxis(leaf, kind, 0) for kind, leaf in each
        ]

    def whole(self, fixed: Sequence[Any], moved: Sequence[Any]) -> list[Any]:
        """All arrays of the Variables, or what belongs to each, in their own order and axes."""
        each = zip(self.moved_kinds, moved, strict=True)
        placed = [
            jnp.moveaxis(leaf, 0, kind) if isinstance(kind, int) and is_array(leaf) else leaf
            for kind, leaf in each
        ]
        return joined(self._moves, placed, fixed)

    def module(
        self, moved: Sequence[jax.Array] = (), fixed: Sequence[jax.Array] | None = None
    ) -> Any:
        """A copy of the cell with these arrays in place of those that are not fixed, and fixed."""
        own = self.fixed if fixed is None else fixed
        return self._parts.with_leaves(joined(self._moves, moved, own)).module()

    def __call__(
        self, fixed: Sequence[jax.Array], moved: Sequence[jax.Array], carry: Any, x: jax.Array
    ) -> tuple[Any, jax.Array, list[jax.Array]]:
        """The new carry, the output, and the arrays that are not fixed after the step."""
        cell = self._parts.with_leaves(joined(self._moves, moved, fixed)).module()
        new, y = cell(carry, x)
        return new, y, chosen(self._moves, Parts.of(cell).leaves()) if moved else []

    def emit(self, carry: Any, x: jax.Array, moved: Sequence[jax.Array]) -> Callable[..., Any]:
        """How the output is calculated from the new carry: the step's program, cut there.

        Args:
          carry, x, moved: arrays of the right shapes; their values are not read.

        Returns:
          ``(fixed, moved, carry, x, new leaves) -> y``. What the output takes from the parameters,
          the old carry or the input by another way than through the new carry, it still takes.
        """

        def step(fixed: Any, moved: Any, carry: Any, x: Any) -> Any:
            new, y, _ = self(fixed, moved, carry, x)
            return jax.tree.leaves(new), y

        traced = inlined(step, self.fixed, moved, carry, x)
        program, count = traced.jaxpr, len(self.form.names)
        cut, y = _made(program, count), program.outvars[count]
        eqns, _ = _needed(program, y, cut)

        def output(fixed: Any, moved: Any, carry: Any, x: Any, new: Sequence[jax.Array]) -> Any:
            arrays = jax.tree.leaves((fixed, moved, carry, x))
            given = {var: new[position] for var, position in cut.items()}
            environment = dict(zip(program.invars, arrays, strict=True))
            environment |= zip(program.constvars, traced.consts, strict=True)
            environment |= given
            _run(eqns, environment, given)
            return _read(environment, y)

        return output


def is_array(leaf: Any) -> bool:
    """Whether it has numbers; a cotangent of whole numbers has none."""
    return leaf is not None and leaf.dtype != jax.dtypes.float0


# Lists taken apart and put together again.


def chosen(flags: Sequence[bool], items: Sequence[Any]) -> list[Any]:
    """The items whose flag is true."""
    return [item for flag, item in zip(flags, items, strict=True) if flag]


def parted(flags: Sequence[bool], items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The items whose flag is true, and the others."""
    return chosen(flags, items), chosen([not flag for flag in flags], items)


def joined(flags: Sequence[bool], true: Sequence[Any], false: Sequence[Any]) -> list[Any]:
    """What :func:`parted` took apart."""
    yes, no = iter(true), iter(false)
    return [next(yes) if flag else next(no) for flag in flags]


# The trace.


class _Traced(NamedTuple):
    """The program of a step ``(values, carry, x) -> (carry, y, values)``, inlined; its output."""

    program: Any
    output: jax.ShapeDtypeStruct


def _traced_apart(
    key: str, parts: Parts, kinds: Sequence[Kind], carry: Any, x: Any, batched: Sequence[bool]
) -> tuple[_Traced, bool]:
    """A trace of the step, and whether each example is on its own in it.

    With a batch of an unusual size. A cell that holds arrays of its batch's own size cannot be
    traced with another; then it counts as one that mixes the examples.
    """
    leaves, tree = jax.tree.flatten(carry)
    sized = [
        _like(leaf, UNUSUAL if own else None) for leaf, own in zip(leaves, batched, strict=True)
    ]
    try:
        traced = _traced(key, parts, kinds, tree.unflatten(sized), _like(x, UNUSUAL))
    except (TypeError, ValueError, AssertionError):  # the cell's own fault is raised again
        return _traced(key, parts, kinds, jax.tree.map(_like, carry), _like(x)), False
    return traced, not _mixes(traced.program)


def _traced(key: str, parts: Parts, kinds: Sequence[Kind], carry: Any, x: Any) -> _Traced:
    def step(values: Any, carry: Any, x: Any) -> Any:
        cell = parts.with_leaves(values).module()
        returned = cell(carry, x)
        new, y = _checked(key, type(cell).__name__, carry, returned)
        after = Parts.of(cell)
        if jax.tree.structure(after[1:]) != jax.tree.structure(parts[1:]):
            hint = "create them in __init__"
            raise BadInput(key, "a step that creates Variables", "one that creates none", hint)
        return jax.tree.leaves(new), y, after.leaves()

    values = [
        _like(leaf) if isinstance(kind, str) else _without_axis(leaf, kind)
        for kind, leaf in zip(kinds, parts.leaves(), strict=True)
    ]
    program = inlined(step, values, carry, x)
    y = program.jaxpr.outvars[len(jax.tree.leaves(carry))].aval
    return _Traced(program.jaxpr, jax.ShapeDtypeStruct(y.shape[1:], y.dtype))


def _checked(key: str, name: str, before: Any, returned: Any) -> tuple[Any, jax.Array]:
    if not (isinstance(returned, tuple) and len(returned) == 2):
        kind = "an array" if hasattr(returned, "shape") else f"a {type(returned).__name__}"
        given = f"a step that returns {kind}"
        raise BadInput(key, given, f"(carry, y), returned by {name}.__call__")
    new, y = returned
    old, same = jax.tree.structure(before), jax.tree.structure(new)
    alike = old == same and all(
        (a.shape, a.dtype) == (b.shape, b.dtype)
        for a, b in zip(jax.tree.leaves(before), map(_like, jax.tree.leaves(new)), strict=True)
    )
    if not alike:
        raise BadInput(
            key,
            jax.tree.map(_described, new),
            f"a new carry of the same form as the old one, {jax.tree.map(_described, before)}",
            f"return (carry, y) from {name}.__call__ with the carry's names, shapes and dtypes",
        )
    if len(jax.tree.leaves(y)) != 1 or jax.tree.structure(y) != jax.tree.structure(0):
        given = f"an output that is a {type(y).__name__}"
        hint = "join its parts to one array"
        raise BadInput(key, given, f"one array (B, …), returned by {name}.__call__", hint)
    return new, y


def _like(leaf: Any, batch: int | None = None) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, with another size of its first axis."""
    array = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    shape = array.shape if batch is None else (batch, *array.shape[1:])
    return jax.ShapeDtypeStruct(shape, array.dtype)


def _described(leaf: Any) -> str:
    like = _like(leaf)
    sizes = ["B" if size == UNUSUAL else str(size) for size in like.shape]
    return f"{like.dtype}[{', '.join(sizes)}]"


def _without_axis(leaf: Any, axis: int) -> jax.ShapeDtypeStruct:
    shape = list(leaf.shape)
    del shape[axis]
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)


def _inexact(leaf: Any) -> bool:
    return jnp.issubdtype(_like(leaf).dtype, jnp.inexact)


# What becomes of the cell's Variables.


def _kinds(parts: Parts, state_axes: Mapping[Any, Any] | None, broadcast_rngs: Any) -> list[Kind]:
    """What each array of the Variables may be: moving, unless it is said to be something else."""
    axes = {nnx.All(nnx.RngState, broadcast_rngs): None, **(state_axes or {...: nnx.Carry})}
    filters = [(nnx.filterlib.to_predicate(own), axis) for own, axis in axes.items()]
    kinds: list[Kind] = []
    for state in (parts.params, parts.rest):
        for path, variable in nnx.to_flat_state(state):
            found = [axis for matches, axis in filters if matches(path, variable)]
            if not found:
                name = "/".join(map(str, path))
                allowed = f"filters that cover every Variable, {name} too"
                raise BadInput("state_axes", state_axes, allowed, "add ...: nnx.Carry")
            axis = found[0]
            kind = FIXED if axis is None else MOVING if axis is nnx.Carry else int(axis)
            kinds += [kind] * len(jax.tree.leaves(variable))
    return kinds


# Which leaf is what.


def names_of_leaves(carry: Any, h: int | None) -> tuple[str, ...]:
    """A name for each leaf of a carry.

    Args:
      carry: any pytree.
      h: the position of h among its leaves; None: not known.
    """
    found = jax.tree_util.tree_flatten_with_path(carry)[0]
    live = [_inexact(leaf) for _, leaf in found]
    others = [i for i, own in enumerate(live) if own and i != h]
    position = iter(range(len(found)))
    names = []
    for index, (path, _) in enumerate(found):
        parts = [_own_name(key) for key in path]
        if any(own for own, _ in parts):
            names.append("_".join(own or place for own, place in parts))
        elif index == h:
            names.append("h")
        else:
            alone = h is not None and others == [index]
            names.append("c" if alone else f"s{next(position)}")
    return tuple(names)


def _own_name(key: Any) -> tuple[str, str]:
    """The user's name of a place in a pytree, empty if there is none, and its position."""
    for attribute in ("name", "key"):
        own = getattr(key, attribute, None)
        if own is not None and not isinstance(key, jax.tree_util.FlattenedIndexKey):
            return str(own), ""
    return "", str(getattr(key, "idx", getattr(key, "key", "")))


def _names(
    key: str, cell: Any, carry: Any, program: Any, live: Sequence[bool], batched: Sequence[bool]
) -> tuple[tuple[str, ...], str]:
    """The names of the leaves and that of h."""
    states = [i for i, both in enumerate(zip(live, batched, strict=True)) if all(both)]
    positions = names_of_leaves(carry, None)
    given = getattr(cell, "h_leaf", None)
    if given is not None:
        at = given if isinstance(given, int) else _position(positions, given)
        if at not in states:
            allowed = " | ".join(positions[i] for i in states) + ", or their positions"
            raise BadInput(f"{key}.h_leaf", given, allowed)
    else:
        at = _found_h(program, positions, states)
    if at is None:
        choice = " | ".join(f'"{positions[i]}"' for i in states) or "none has one"
        raise BadInput(
            key,
            "a carry whose h cannot be found",
            f"one floating-point leaf (B, …) that the output is or is made of: {choice}",
            'h_leaf = "…" as an attribute of the cell, the name or position of that leaf',
        )
    names = names_of_leaves(carry, at)
    return names, names[at]


def _position(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None


def _found_h(program: Any, names: Sequence[str], states: Sequence[int]) -> int | None:
    """The position of h among the leaves, from what the cell gives out; None if it is not clear."""
    y = program.outvars[len(names)]
    same = [i for i in states if program.outvars[i] is y]
    reached = _reached(program, len(names))
    made_of = [i for i in states if i in reached]
    called_h = [i for i in states if names[i] == "h"]
    for found in (same, made_of, called_h, states):
        if len(found) == 1:
            return found[0]
        if found is same and found:
            return next((i for i in found if i in called_h), found[-1])
    return None


# Programs: nested calls inlined, cut at the new carry, searched for what mixes the examples.

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr"}
"""Primitives that do no more than call another program, and the parameter that holds it."""


def inlined(function: Callable[..., Any], *arrays: Any) -> core.ClosedJaxpr:
    """The program of a function, with nested ``jit`` and ``checkpoint`` written out.

    So two results that are one array are one variable.
    """
    traced = jax.make_jaxpr(function)(*arrays)

    def flat(*leaves: Any) -> list[Any]:
        environment = dict(zip(traced.jaxpr.invars, leaves, strict=True))
        environment |= zip(traced.jaxpr.constvars, traced.consts, strict=True)
        _run(traced.jaxpr.eqns, environment)
        return [_read(environment, var) for var in traced.jaxpr.outvars]

    return jax.make_jaxpr(flat)(*jax.tree.leaves(arrays))


def _read(environment: Mapping[Any, Any], var: Any) -> Any:
    return var.val if isinstance(var, core.Literal) else environment[var]


def _run(eqns: Sequence[Any], environment: dict[Any, Any], given: Mapping[Any, Any] = {}) -> None:
    """Fills in what the equations give; what is ``given`` stands in the place of their results."""
    for eqn in eqns:
        read = [_read(environment, var) for var in eqn.invars]
        if eqn.primitive.name in _CALLS:
            inner = eqn.params[_CALLS[eqn.primitive.name]]
            consts = inner.consts if isinstance(inner, core.ClosedJaxpr) else []
            program = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
            within = dict(zip(program.invars, read, strict=True))
            within |= zip(program.constvars, consts, strict=True)
            _run(program.eqns, within)
            found = [_read(within, var) for var in program.outvars]
        else:
            found = _bound(eqn, read)
            found = found if eqn.primitive.multiple_results else [found]
        environment |= zip(eqn.outvars, found, strict=True)
        environment |= {var: given[var] for var in eqn.outvars if var in given}


def _bound(eqn: Any, read: Sequence[Any]) -> Any:
    given = eqn.primitive.get_bind_params(eqn.params)
    functions, params = given if isinstance(given, tuple) else ((), given)  # as of jax's version
    with eqn.ctx.manager:
        return eqn.primitive.bind(*functions, *read, **params)


def _needed(program: Any, wanted: Any, cut: Iterable[Any]) -> tuple[list[Any], set[Any]]:
    """The equations that ``wanted`` is calculated by from the variables ``cut``, and all they read.

    What only the variables that are cut need is left out.
    """
    cut, needed, eqns = set(cut), {wanted}, []
    for eqn in reversed(program.eqns):
        if any(var in needed - cut for var in eqn.outvars):
            needed |= {var for var in eqn.invars if not isinstance(var, core.Literal)}
            eqns.append(eqn)
    return eqns[::-1], needed


def _made(program: Any, count: int) -> dict[Any, int]:
    """The variables of the first results that an equation makes, and the position of each."""
    made = {var for eqn in program.eqns for var in eqn.outvars}
    results = enumerate(program.outvars[:count])
    return {var: i for i, var in results if not isinstance(var, core.Literal) and var in made}


def _reached(program: Any, count: int) -> set[int]:
    """Which leaves of the new carry the output is calculated from, the nearest of them."""
    y, made = program.outvars[count], _made(program, count)
    if isinstance(y, core.Literal):
        return set()
    _, needed = _needed(program, y, made)
    return {position for var, position in made.items() if var in needed}


def _subprograms(eqn: Any) -> Iterator[Any]:
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def _variables_in(program: Any) -> Iterator[Any]:
    yield from program.invars
    for eqn in program.eqns:
        yield from eqn.outvars
        for inner in _subprograms(eqn):
            yield from _variables_in(inner)


def _is_half(var: Any) -> bool:
    dtype = getattr(var.aval, "dtype", jnp.dtype(bool))
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 16


def _mixes(program: Any) -> bool:
    """Whether one example's results depend on another's; the batch is of the :data:`UNUSUAL` size.

    An operation along the axis of the batch says so, or one after which that axis is gone.
    """
    return any(_mixes_in(eqn) for eqn in program.eqns)


def _mixes_in(eqn: Any) -> bool:
    batches = [_batch_axes(var.aval) for var in eqn.invars]
    if not any(batches) or not eqn.outvars:
        return False
    inner = list(_subprograms(eqn))
    if inner:
        over_batch = eqn.primitive.name == "scan" and any(
            0 in axes for axes in batches[eqn.params["num_consts"] + eqn.params["num_carry"] :]
        )
        return over_batch or any(map(_mixes, inner))
    if not any(_batch_axes(var.aval) for var in eqn.outvars):
        return True
    return any(axis in batches[index] for index, axis in _axes_along(eqn))


def _batch_axes(aval: Any) -> set[int]:
    shape = getattr(aval, "shape", ())
    return {axis for axis, size in enumerate(shape) if size and size % UNUSUAL == 0}


def _axes_along(eqn: Any) -> Iterator[tuple[int, int]]:
    """Operands, by position, and the axes along which an operation reads more than one place."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (left, right), _ = params["dimension_numbers"]
        yield from ((0, axis) for axis in left)
        yield from ((1, axis) for axis in right)
    elif name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        yield from ((0, axis) for axis in numbers.lhs_spec[1:])
        yield from ((1, axis) for axis in numbers.rhs_spec)
    elif name == "gather":
        yield from ((0, axis) for axis in params["dimension_numbers"].start_index_map)
    elif name.startswith("scatter"):
        axes = params["dimension_numbers"].scatter_dims_to_operand_dims
        yield from ((0, axis) for axis in axes)
    elif name.startswith(("reduce_window", "select_and_")):
        window = params["window_dimensions"]
        yield from ((0, axis) for axis, size in enumerate(window) if size > 1)
    else:
        along = [params.get(key) for key in ("axes", "axis", "dimension", "dimensions")]
        for own in along:
            axes = own if isinstance(own, tuple | list) else () if own is None else (own,)
            yield from ((i, axis) for i in range(len(eqn.invars)) for axis in axes)
