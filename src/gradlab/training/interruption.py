"""Signals that ask a run to end: heard at once, obeyed where nothing is lost."""

from __future__ import annotations

import signal
import threading
from typing import Any, Self

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR2", "SIGHUP")
"""Ctrl-C, the request to end, what Slurm is told to send before it takes a job's node away, and
what comes when the terminal is gone."""


class Interruption:
    """Within it, the first of each signal is only noted; a second one does what it did before.

    But for SIGHUP, which may come from the shell and from the system for the same terminal; under
    ``nohup`` nobody hears it.

    An exception raised by the signal itself could be swallowed by a callback that it happens to
    interrupt. Outside the main thread, where Python hears no signals, nothing is changed.

    Attributes:
      signal: number of the signal that came, of the first if several did; 0 if none did. Slurm
        sends SIGTERM soon after the SIGUSR2 that says why.
    """

    signal = 0

    def __enter__(self) -> Self:
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)
                before = None if number is None else signal.getsignal(number)
                unheard = name == "SIGHUP" and before is signal.SIG_IGN
                if number is not None and before is not None and not unheard:
                    self.before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal != 0

    def __str__(self) -> str:
        """As it is recorded: empty for Ctrl-C, which needs no name."""
        name = signal.Signals(self.signal).name if self.signal else ""
        return "" if name == "SIGINT" else f" ({name})"

    def _asked(self, number: int, _: object) -> None:
        self.signal = self.signal or number
        if signal.Signals(number).name != "SIGHUP":
            signal.signal(number, self.before[number])
