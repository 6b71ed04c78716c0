"""Run folders that somebody means ill with are read or refused, and cost the others nothing."""

from __future__ import annotations

import pytest

from tests.hostile import KINDS, compared, forked, make, mutations, read_all


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    return place, make(place, KINDS | mutations(0, 20))


def test_each_kind_is_read_or_is_one_refusal(bad):
    _, paths = bad
    assert len(KINDS) >= 100
    assert forked(lambda: read_all(paths), 120) == []


def test_none_costs_the_page_of_the_others(bad):
    place, paths = bad
    assert forked(lambda: compared(place, paths), 120) == []
