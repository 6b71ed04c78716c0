"""Runs that take a moment, for the tests that need one: the same sizes share what is compiled."""

TINY = [
    *("model.hidden=4", "task.length=8", "task.held_out_examples=4"),
    *("trainer.steps=3", "trainer.batch=3", "trainer.log_every=2"),
]
QUIET = ["record.figures=false", "record.terminal=false"]


def ended(process, timeout=120):
    """``(code, out, err)`` of a process, at its end."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err
