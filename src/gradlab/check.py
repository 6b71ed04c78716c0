"""Are these the arguments that this constructor takes? Asked before anything is built."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from gradlab.errors import BadInput, nearest

_PLAIN = (int, float, str, bool, type(None))
_IN_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def check_arguments(
    prefix: str, target: Callable[..., Any], given: Mapping[str, Any], *, supplied: set[str]
) -> None:
    """Refuse arguments that ``target`` does not take, misses, or annotates with another type.

    Only annotations made of plain types (int, float, str, bool, None, Literal, tuples and lists of
    them) are compared; what a constructor takes beyond that is its own to check.

    Args:
      prefix: the configuration key of the section, e.g. ``"task"``.
      target: a class or function.
      given: keyword arguments from the configuration.
      supplied: names of arguments that the program itself will add.

    Raises:
      BadInput: with the full key, what was given and what is allowed.
    """
    parameters = inspect.signature(target).parameters
    named = {
        name: p
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in supplied
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in given:
        if name not in named and not takes_any:
            close = nearest(name, named)
            raise BadInput(
                f"{prefix}.{name}",
                given[name],
                f"the keys of {_name(target)}: {', '.join(sorted(named))}",
                f"{prefix}.{close[0]}" if close else "",
            )
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in given:
            raise BadInput(f"{prefix}.{name}", None, f"a value; {_name(target)} needs one")
    hints = _hints(target)
    for name, value in given.items():
        if name in hints and _is_plain(hints[name]):
            check_type(f"{prefix}.{name}", value, hints[name])


def check_type(key: str, value: Any, hint: Any) -> None:
    """Refuse ``value`` with :class:`BadInput` unless it is of the annotated plain type."""
    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        raise BadInput(key, value, in_words(hint)) from None


def in_words(hint: Any) -> str:
    """A plain type annotation in words: ``"a whole number, or null"``."""
    if hint in _IN_WORDS:
        return _IN_WORDS[hint]
    if hint is type(None):
        return "null"
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return " | ".join(map(str, options))
    if get_origin(hint) in (tuple, list):
        return f"a list of {in_words(options[0]).removeprefix('a ')}s"
    return ", or ".join(in_words(option) for option in options)


def _is_plain(hint: Any) -> bool:
    if hint in _PLAIN or hint is Ellipsis or get_origin(hint) is Literal:
        return True
    containers = (Union, types.UnionType, tuple, list)
    return get_origin(hint) in containers and all(map(_is_plain, get_args(hint)))


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    source = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(source)
    except NameError:  # an annotation that only a type checker can resolve
        return {}


def _name(target: Any) -> str:
    return getattr(target, "__qualname__", str(target))
