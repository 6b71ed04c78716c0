"""The cells that conf/model names, found from the folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from flax import nnx
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests import ROOT

MODELS = sorted(ROOT.joinpath("conf", "model").glob("*.yaml"))


def make_cell(path: Path) -> Callable[..., nnx.RNNCellBase]:
    """``make_cell(in_features, hidden_features, rngs=...)`` for a yaml of conf/model."""
    return instantiate(OmegaConf.load(path).cell, _partial_=True)


QUICK = ("lstm", "flax_lstm")
"""A cell of ours and one of Flax's; in what compiles for seconds the others are slow tests."""

every_model = functools.partial(
    pytest.mark.parametrize, "make", [pytest.param(make_cell(p), id=p.stem) for p in MODELS]
)

few_models = functools.partial(
    pytest.mark.parametrize,
    "make",
    [
        pytest.param(make_cell(p), id=p.stem, marks=() if p.stem in QUICK else pytest.mark.slow)
        for p in MODELS
    ],
)
