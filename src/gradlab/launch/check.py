"""Are these the arguments that this constructor takes? Asked before anything is built."""

from __future__ import annotations

import collections.abc
import inspect
import json
import types
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from inspect import Parameter
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from gradlab.errors import BadInput, nearest

_PLAIN = (int, float, str, bool, type(None), Ellipsis)
_IN_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Callable: "a section with _target_: the dotted name of a function",
    dict: "a section of its own",
}
BY_POSITION = frozenset({"in_features", "hidden_features"})
"""The first arguments of a cell, which its class is free to call otherwise."""
DTYPES = ("float32", "bfloat16", "float16")
"""What arguments named ``dtype``, or ``…_dtype``, can be: the types that networks compute in."""
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_LISTS = (tuple, list, collections.abc.Sequence)
_UNIONS = (Union, types.UnionType)


def check_keys(prefix: str, given: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Refuse a section that lacks one of its keys, has another, or holds one of another type.

    Args:
      prefix: the configuration key of the section; empty for the whole configuration.
      given: the section.
      kinds: the type of every key, as for :func:`check_type`.

    Raises:
      BadInput: with the full key, what was given and what is allowed.
    """
    dot = f"{prefix}." if prefix else ""
    _refuse_unknown(dot, given, kinds, "one of these keys")
    for name, kind in kinds.items():
        if name not in given:
            raise BadInput(f"{dot}{name}", None, f"{in_words(kind)}; it cannot be left out")
        check_type(f"{dot}{name}", given[name], kind)


def check_arguments(
    prefix: str,
    target: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    supplied: Set[str] = frozenset(),
    partial: bool = False,
) -> None:
    """Refuse arguments that ``target`` does not take, misses, or annotates with another type.

    Only annotations made of plain types (int, float, str, bool, None, Literal, tuples and lists of
    them) and of functions are compared; what a constructor takes beyond that is its own to check.

    Args:
      prefix: the configuration key of the section, e.g. ``"task"``.
      target: a class or function.
      given: keyword arguments from the configuration.
      supplied: names of arguments that the program itself will add.
      partial: whether more arguments come later, so that none is missing.

    Raises:
      BadInput: with the full key, what was given and what is allowed.
    """
    parameters = _parameters(target)
    if parameters is None:
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {
        name: p
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    if supplied >= BY_POSITION and not named.keys() >= BY_POSITION and inspect.isclass(target):
        first = [name for name, p in parameters.items() if p.kind in _POSITIONAL][:2]
        if len(first) == 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
            supplied = supplied - BY_POSITION | set(first)
    if (lacking := sorted(supplied - parameters.keys())) and not takes_any:
        allowed = f"a class or function that takes {', '.join(sorted(supplied))}"
        hint = f"an argument {lacking[0]} in {_name(target)}"
        raise BadInput(f"{prefix}._target_", _name(target), allowed, hint)
    named = {name: p for name, p in named.items() if name not in supplied}
    if not takes_any:
        _refuse_unknown(f"{prefix}.", given, named, f"the keys of {_name(target)}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in given and not partial:
            raise BadInput(f"{prefix}.{name}", None, f"a value; {_name(target)} needs one")
    hints = _hints(target)
    for name, value in given.items():
        if name in hints and not (isinstance(value, dict) and "_target_" in value):
            kind = _without_functions(hints[name])
            if Callable in _options(kind) or _is_plain(kind):
                check_type(f"{prefix}.{name}", value, kind)
            elif _is_number(kind):
                check_type(f"{prefix}.{name}", value, _plain_number(kind))
        if name.endswith("dtype") and value is not None and value not in DTYPES:
            raise BadInput(f"{prefix}.{name}", value, f"{' | '.join(DTYPES)}, or null")


def check_type(key: str, value: Any, hint: Any) -> None:
    """Refuse ``value`` with :class:`BadInput` unless it is of the annotated plain type."""
    if hint is dict and isinstance(value, Mapping):
        return
    try:
        found = TypeAdapter(hint).validate_json(json.dumps(value, allow_nan=False), strict=True)
        json.dumps(found, allow_nan=False)  # a whole number can be beyond all floats
    except (ValidationError, ValueError):
        raise BadInput(key, value, in_words(hint), _instead(key, value, hint)) from None


def in_words(hint: Any) -> str:
    """A plain type annotation in words: ``"a whole number, or null"``."""
    if hint in _IN_WORDS:
        return _IN_WORDS[hint]
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return " | ".join(map(str, options))
    if get_origin(hint) in _LISTS:
        return f"a list of {in_words(options[0]).removeprefix('a ')}s"
    return ", or ".join(in_words(option) for option in options)


def _instead(key: str, value: Any, hint: Any) -> str:
    """What may have been meant."""
    if value == "None" and type(None) in get_args(hint):
        return f"{key}=null"
    if isinstance(value, str):
        words = [
            w for h in (hint, *get_args(hint)) if get_origin(h) is Literal for w in get_args(h)
        ]
        return ", ".join(f"{key}={word}" for word in nearest(value, map(str, words))[:1])
    if isinstance(value, float) and hint is int and abs(value) < 1e15:
        return f"{key}={round(value)}"
    return ""


def _refuse_unknown(dot: str, given: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    for name in given:
        if name not in known:
            close = nearest(name, known)
            allowed = f"{what}: {', '.join(sorted(known))}"
            hint = f"{dot}{close[0]}" if close else ""
            raise BadInput(f"{dot}{name}", given[name], allowed, hint)


def _parameters(target: Callable[..., Any]) -> Mapping[str, Parameter] | None:
    try:
        parameters = inspect.signature(target).parameters
        kinds = {one.kind for one in parameters.values()}
        if inspect.isclass(target) and kinds == {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
            # Its metaclass hides what it takes, as that of Flax's modules does.
            parameters = inspect.signature(types.MethodType(target.__init__, target)).parameters
    except ValueError:  # something built in that does not tell
        return None
    return parameters


def _without_functions(hint: Any) -> Any:
    """A hint without its functions: a configuration cannot hold one but by ``_target_``.

    Where they are all that there is, besides null, one ``Callable`` stands for them.
    """
    options = _options(hint)
    kept = tuple(option for option in options if not _is_function(option))
    if kept == options:
        return hint
    return Union[kept if set(kept) - {type(None)} else (Callable, *kept)]  # noqa: UP007


def _is_function(hint: Any) -> bool:
    """Whether it is a function's type, or like ``jax.nn.initializers.Initializer``."""
    protocol = getattr(hint, "_is_protocol", False) and "__call__" in vars(hint)
    return protocol or (get_origin(hint) or hint) is collections.abc.Callable


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in _UNIONS else (hint,)


def _is_number(hint: Any) -> bool:
    """Whether it is like ``jax.typing.ArrayLike``: numbers of several kinds, and no text."""
    options = _options(hint)
    types_alone = all(isinstance(option, type) for option in options)
    return len(options) > 1 and float in options and str not in options and types_alone


def _plain_number(hint: Any) -> Any:
    """What of it a configuration can hold: true and false are none."""
    return float | None if type(None) in _options(hint) else float


def _is_plain(hint: Any) -> bool:
    if hint in _PLAIN or get_origin(hint) is Literal:
        return True
    return get_origin(hint) in (*_UNIONS, *_LISTS) and all(map(_is_plain, get_args(hint)))


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    source: Any = target.__init__ if inspect.isclass(target) else target
    hints: dict[str, Any] = {}
    for name, hint in getattr(source, "__annotations__", {}).items():
        one = types.SimpleNamespace(__annotations__={name: hint})
        with suppress(
            AttributeError, NameError, TypeError
        ):  # one that only a type checker can resolve
            hints |= get_type_hints(one, getattr(inspect.unwrap(source), "__globals__", {}))
    return hints


def _name(target: Any) -> str:
    return getattr(target, "__qualname__", str(target))
