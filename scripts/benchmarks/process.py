"""Contestants in processes of their own, which stay, and make steps when they are told to.

So each framework has its own threads and settings, and yet all take turns within one run.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Mapping
from typing import Any

from benchmarks import machine
from benchmarks.contestants import Contestant, home_of


class Process:
    """The process of some contestants.

    Args:
      home: which; see :data:`benchmarks.contestants.HOMES`.
    """

    def __init__(self, home: str):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        args = (theirs, home_of(home).environment(machine.cores()))
        self.process = context.Process(target=_serve, args=args, daemon=True)
        self.process.start()
        theirs.close()

    def send(self, what: str, *args: Any) -> None:
        """Have it do this, without waiting."""
        with contextlib.suppress(BrokenPipeError):  # of one that has died; its answer says so
            self.pipe.send((what, args))

    def answer(self) -> Any:
        """What came of what was sent; the first one first.

        Raises:
          Failed: with its traceback.
        """
        try:
            went_well, found = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise Failed(f"the process ended with {self.process.exitcode}") from None
        if not went_well:
            raise Failed(found)
        return found

    def ask(self, what: str, *args: Any) -> Any:
        """Both."""
        self.send(what, *args)
        return self.answer()

    def end(self) -> None:
        """Let it go."""
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()


class Failed(Exception):
    """A contestant's own error."""


def _serve(pipe: Any, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    desk = Desk()
    while True:
        try:
            what, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, getattr(desk, what)(*args)))
        except Exception:  # noqa: BLE001  (whatever a framework raises is told to the other side)
            pipe.send((False, traceback.format_exc()))


class Desk:
    """What can be asked of a process."""

    def __init__(self) -> None:
        self.built: dict[str, Contestant] = {}

    def build(self, name: str, module: str, cell: str, size: Any) -> Any:
        """Make a contestant, in place of another of this name; what its first step gives."""
        self.built.pop(name, None)
        contestant = importlib.import_module(module).make(name, cell, size)
        found = contestant.first()
        self.built[name] = contestant
        return found

    def drop(self) -> None:
        """Forget all of them."""
        self.built.clear()

    def time(self, name: str, steps: int, warm: int) -> dict[str, float]:
        """Seconds of so many steps, after some that do not count; and of a close look, if any."""
        contestant = self.built[name]
        if warm:
            contestant.run(warm)
        found = {"steps": _seconds(lambda: contestant.run(steps))}
        if hasattr(contestant, "look"):
            found["look"] = _seconds(contestant.look)
        return found

    def temporaries(self, name: str) -> int | None:
        """Bytes of temporaries of a step, as the compiler says; None where there is no compiler."""
        contestant = self.built[name]
        return contestant.temporaries() if hasattr(contestant, "temporaries") else None

    def resident(self) -> int:
        """Bytes of memory that this process has held at most, so far."""
        import resource

        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _seconds(act: Any) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
