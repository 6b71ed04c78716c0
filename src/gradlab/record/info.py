"""``run.json`` of a run that somebody may have sent: of the types that every reader counts on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from gradlab.record.base import Status

MOST_SETTINGS = 4096
"""Most values of a configuration; a larger one is not recorded either."""
Check = Callable[[Any], bool]


def wrong_keys(info: Mapping[str, Any]) -> list[str]:
    """The keys that are missing or hold something of another type than a reader may expect.

    Keys that are not known, of a later version, are left alone.
    """
    required = {"config": _config, "summary": _figures, "status": lambda v: v in get_args(Status)}
    wrong = [key for key, holds in required.items() if key not in info or not holds(info[key])]
    for key, holds in _OPTIONAL.items():
        if info.get(key) is not None and not holds(info[key]):
            wrong.append(key)
    return wrong


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _each(holds: Check) -> Check:
    """Whether every value of a section, if it has one, holds what it should."""
    return lambda value: (
        isinstance(value, Mapping) and all(one is None or holds(one) for one in value.values())
    )


def _list(holds: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _with(**keys: Check) -> Check:
    """Whether those keys that a section has hold what they should."""
    return lambda value: (
        isinstance(value, Mapping)
        and all(value.get(key) is None or holds(value[key]) for key, holds in keys.items())
    )


def _config(value: Any) -> bool:
    return isinstance(value, Mapping) and count(value) <= MOST_SETTINGS


def count(nest: Any) -> int:
    """How many values a nest of sections and lists holds, itself included."""
    inner = nest.values() if isinstance(nest, Mapping) else nest if isinstance(nest, list) else ()
    return 1 + sum(map(count, inner))


_figures = _each(_number)
_OPTIONAL: dict[str, Check] = {
    "id": _text,
    "name": _text,
    "reason": _text,
    "started": _text,
    "ended": _text,
    "resumed": _list(_with(at=_text, rows=_whole, **{"from": _text})),
    "steps_per_second": _number,
    "probe_overhead": _number,
    "timings": _each(_number),
    "verdict": _list(_text),
    "devices": _list(_text),
    "versions": _each(_text),
    "git": _with(commit=_text),
    "facts": _with(
        model=_text,
        task=_text,
        readout=_text,
        cell=_text,
        T=_whole,
        parameters=_whole,
        steps=_whole,
        split=_whole,
        segments=_whole,
    ),
    "baseline": _each(_with(name=_text, loss=_number, accuracy=_number)),
    "overrides": _list(_text),
}
