"""The short half of ``python scripts/torture.py kill``."""

from __future__ import annotations

import pytest

from tests.torture.kills import SMALL, Trials


@pytest.mark.slow
def test_what_was_killed_is_resumed_to_the_same_end(tmp_path, monkeypatch):
    """In the time after the last row, and again while it is resumed; of a run and of a sweep."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    trials = Trials(tmp_path, SMALL, seed=0)
    assert trials.kill("end", 2) >= 2
    assert trials.kill("resume", 2) >= 2
