"""What was compiled, kept by the text of the program; and words where compiling takes long."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

KEPT = 64
"""How many compiled programs are kept."""
PATIENCE = 5.0
"""Seconds of work in silence; after that one line, and another whenever the time has doubled."""

_log = logging.getLogger("gradlab")
_programs: dict[Any, Any] = {}
"""What was compiled, by the text of the program; the one used last comes last."""


def run(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, compiled unless the same program was compiled before.

    ``jax.jit`` knows a function by its identity and freezes whatever else it reads at the first
    call. Here it is traced anew, and the program as the compiler would get it says whether it has
    been compiled: values that are frozen into it are part of its text. The text does not say which
    function of Python a callback is, so a program that has one is always compiled.

    Args:
      what: what it is, in words, for whoever waits.
      function: of arrays.
      arguments: what it is called with.
    """
    with _saying(f"tracing {what}"):
        lowered = jax.jit(lambda *own: function(*own)).lower(*arguments)
        text = lowered.as_text()
    if "callback" in text:
        return _compiled(what, lowered)(*arguments)
    key = (
        hashlib.sha256(text.encode()).digest(),
        lowered.in_tree,
        lowered.out_tree,
        tuple(leaf.sharding for leaf in jax.tree.leaves((arguments, jnp.zeros(())))),
    )
    program = _programs.pop(key, None) or _compiled(what, lowered)
    _programs[key] = program
    if len(_programs) > KEPT:
        del _programs[next(iter(_programs))]
    return program(*arguments)


def _compiled(what: str, lowered: Any) -> Any:
    with _saying(f"compiling {what}, which is kept for calls of the same shapes"):
        return lowered.compile()


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Say what is done if it takes long, and how long it has taken."""
    done, begun = threading.Event(), time.monotonic()

    def say() -> None:
        wait = PATIENCE
        while not done.wait(wait):
            seconds = time.monotonic() - begun
            _log.warning("%s: %.0f s so far", what, seconds)
            wait = seconds

    teller = threading.Thread(target=say, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
