"""Run folders that somebody means ill with are read or refused, and cost the others nothing."""

from __future__ import annotations

import numpy as np
import pytest

from gradlab.record.lock import Lock
from gradlab.record.shard import MISSING, Shard, replace
from tests.torture.hostile import KINDS, apart


def test_each_kind_is_read_or_is_one_refusal_and_costs_nobody_the_page(tmp_path):
    assert len(KINDS) >= 100
    assert apart(tmp_path, seed=0, count=20) == []


def test_what_links_in_a_folder_lead_to_is_not_written(tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(np.full((4, 2), MISSING, "<u8").tobytes())
    before = mine.read_bytes()
    for name in ("writer.lock", "run.json.partial", "shard"):
        (tmp_path / name).symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"):
        Lock(tmp_path).acquire()
    with pytest.raises(OSError, match="symbolic links"):
        replace(tmp_path / "run.json", b"{}")
    with pytest.raises(OSError, match="symbolic links"):
        Shard(tmp_path / "shard", 4, 100).write(0, b"chunk")
    assert mine.read_bytes() == before
