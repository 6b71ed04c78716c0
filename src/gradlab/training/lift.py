"""The numbers in an object: those that a compiled program can take as arguments.

The members of a population differ in numbers (a learning rate, a clip threshold, the weight of a
penalty) and share one compiled program. Here an object, such as an optimizer or a task, is taken
apart into its floats, each with a path, and everything else; two objects that are alike in
everything else can share a program, which is then traced with other values in their place.

Looked into are dataclasses, ``functools.partial``, mappings, lists and tuples. Whatever else an
object holds has to be equal: where that is not certain, the two are not alike, so that no value is
ever taken from the wrong member.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def numbers(part: Any, path: str = "") -> dict[str, float]:
    """Every float in ``part`` by its path, e.g. ``{"learning_rate": 0.01, ...}``."""
    if isinstance(part, float):
        return {path: part}
    found: dict[str, float] = {}
    for name, child in (_children(part) or {}).items():
        found |= numbers(child, f"{path}.{name}" if path else name)
    return found


def replaced(part: Any, values: Mapping[str, Any], path: str = "") -> Any:
    """A copy of ``part`` with ``values``, by path, in the place of its floats; nothing is checked.

    What holds none of them is not copied.
    """
    if path in values:
        return values[path]
    children = _children(part)
    if children is None:
        return part
    new = {
        name: replaced(child, values, f"{path}.{name}" if path else name)
        for name, child in children.items()
    }
    if all(new[name] is child for name, child in children.items()):
        return part
    return _with_children(part, new)


def alike(one: Any, other: Any) -> bool:
    """Whether the two are equal, but for floats where :func:`numbers` finds them."""
    if isinstance(one, float) and isinstance(other, float):
        return True
    ours, theirs = _children(one), _children(other)
    if ours is None or theirs is None or type(one) is not type(other):
        return equal(one, other)
    if ours.keys() != theirs.keys() or not equal(_hidden(one), _hidden(other)):
        return False
    return all(alike(child, theirs[name]) for name, child in ours.items())


def equal(one: Any, other: Any) -> bool:
    """Whether the two are certainly equal, functions made by one and the same code included."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | jax.Array):
        same_kind = one.shape == other.shape and one.dtype == other.dtype
        return same_kind and bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))
    if isinstance(one, types.FunctionType):
        return one.__code__ is other.__code__ and equal(_enclosed(one), _enclosed(other))
    ours, theirs = _children(one), _children(other)
    if ours is not None and theirs is not None:
        names = ours.keys() == theirs.keys()
        inside = names and all(equal(child, theirs[name]) for name, child in ours.items())
        return inside and equal(_hidden(one), _hidden(other))
    try:
        return bool(one == other)
    except (TypeError, ValueError):  # that does not compare, or gives an array
        return False


def _children(part: Any) -> dict[str, Any] | None:
    """What ``part`` consists of, by name; None if that is not known."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = [field for field in dataclasses.fields(part) if field.compare]
        return {field.name: _as_declared(getattr(part, field.name), field) for field in fields}
    if isinstance(part, functools.partial):
        return {"()": part.func, "*": part.args, **part.keywords}
    if isinstance(part, Mapping):
        return {str(key): value for key, value in part.items()}
    if isinstance(part, list | tuple):
        return {str(i): child for i, child in enumerate(part)}
    return None


def _as_declared(value: Any, field: dataclasses.Field) -> Any:
    """A whole number that stands where a float is declared is a float."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and "float" in str(field.type) else value


def _hidden(part: Any) -> Any:
    """What a dataclass keeps besides its declared fields, such as a data set it has loaded."""
    if not dataclasses.is_dataclass(part):
        return None
    declared = {field.name for field in dataclasses.fields(part) if field.compare}
    own = getattr(part, "__dict__", {})
    return {name: value for name, value in own.items() if name not in declared}


def _with_children(part: Any, children: dict[str, Any]) -> Any:
    if isinstance(part, functools.partial):
        keywords = {name: children[name] for name in part.keywords}
        return functools.partial(children["()"], *children["*"], **keywords)
    if isinstance(part, Mapping):
        return dict(zip(part, children.values(), strict=True))
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return type(part)(*children.values())
    if isinstance(part, list | tuple):
        return type(part)(children.values())
    changed = copy.copy(part)
    for name, child in children.items():
        object.__setattr__(changed, name, child)  # past a frozen dataclass and its checks
    return changed


def _enclosed(function: types.FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [*cells, function.__defaults__, function.__kwdefaults__]
