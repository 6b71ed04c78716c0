"""A sink that fails is left alone, after one warning."""

from __future__ import annotations

import pytest

from gradlab.record.base import Outcome, Row
from gradlab.record.sinks import Guarded
from tests.record.synthetic import describe


class Fragile:
    def __init__(self, breaks_at):
        self.breaks_at, self.calls = breaks_at, []

    def _call(self, what):
        self.calls.append(what)
        if what == self.breaks_at:
            raise OSError("no room\nmore words")

    def open(self, description):
        self._call("open")

    def log(self, row):
        self._call("log")

    def close(self, outcome):
        self._call("close")


@pytest.mark.parametrize(
    ("breaks_at", "calls"),
    [
        ("open", ["open"]),
        ("log", ["open", "log"]),
        ("close", ["open", "log", "log", "close"]),
        (None, ["open", "log", "log", "close"]),
    ],
)
def test_one_warning_and_no_further_call(caplog, breaks_at, calls):
    inner = Fragile(breaks_at)
    sink = Guarded(inner)
    sink.open(describe(T=4))
    sink.log(Row(0, {}, {}))
    sink.log(Row(1, {}, {}))
    sink.close(Outcome("finished"))
    assert inner.calls == calls
    said = [record.getMessage() for record in caplog.records]
    expected = "Fragile fails and is left alone from here on (OSError: no room)"
    assert said == ([expected] if breaks_at else [])


def test_an_interrupt_is_no_failure():
    class Interrupted(Fragile):
        def log(self, row):
            raise KeyboardInterrupt

    sink = Guarded(Interrupted(None))
    with pytest.raises(KeyboardInterrupt):
        sink.log(Row(0, {}, {}))
