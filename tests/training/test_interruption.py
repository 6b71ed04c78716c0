"""Signals are noted once, and then do what they did before."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from gradlab.training.interruption import SIGNALS, Interruption


@pytest.mark.parametrize("name", [name for name in SIGNALS if name != "SIGHUP"])
def test_the_first_is_noted_and_the_second_has_its_effect(name):
    number = getattr(signal, name)
    heard = []
    before = signal.signal(number, lambda *_: heard.append(name))
    try:
        with Interruption() as interruption:
            assert not interruption
            os.kill(os.getpid(), number)
            assert interruption.signal == number
            assert heard == []
            os.kill(os.getpid(), number)
            assert heard == [name]
        os.kill(os.getpid(), number)
        assert heard == [name, name]
        assert str(interruption) == ("" if name == "SIGINT" else f" ({name})")
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_gone_is_told_twice_or_under_nohup_not_at_all(nohup):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        with Interruption() as interruption:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert bool(interruption) is not nohup
            assert str(interruption) == ("" if nohup else " (SIGHUP)")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_as_before():
    before = [signal.getsignal(getattr(signal, name)) for name in SIGNALS]
    with Interruption():
        assert [signal.getsignal(getattr(signal, name)) for name in SIGNALS] != before
    assert [signal.getsignal(getattr(signal, name)) for name in SIGNALS] == before


def test_another_thread_changes_nothing():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_the_first_of_several_signals_is_the_one_that_is_obeyed():
    """Slurm sends SIGUSR2, and SIGTERM soon after it."""
    heard = []
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, lambda number, _: heard.append(number))
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGTERM)
        assert interruption.signal == signal.SIGUSR2
        assert heard == []
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
