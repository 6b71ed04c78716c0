"""The cells that conf/model names, found from the folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flax import nnx
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests import ROOT

MODELS = sorted(ROOT.joinpath("conf", "model").glob("*.yaml"))


def make_cell(path: Path) -> Callable[..., nnx.RNNCellBase]:
    """``make_cell(in_features, hidden_features, rngs=...)`` for a yaml of conf/model."""
    return instantiate(OmegaConf.load(path).cell, _partial_=True)


every_model = functools.partial(
    pytest.mark.parametrize, "make", [pytest.param(make_cell(p), id=p.stem) for p in MODELS]
)

ALIKE = [("lstm", "flax_lstm"), ("gru", "flax_gru", "gru_reset_before")]
ALIKE += [("rnn", "flax_rnn", "feedforward")]
ALIKE += [(p.stem,) for p in MODELS if not any(p.stem in names for names in ALIKE)]


def _stack(names: tuple[str, ...]) -> list[list[Callable[..., nnx.RNNCellBase]]]:
    makes = [make_cell(ROOT / "conf" / "model" / f"{name}.yaml") for name in names]
    return [makes[:2], *([make] for make in makes[2:])]


def _stacks(slow: tuple[str, ...] = ()) -> list[Any]:
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(_stack(n), id=" ".join(n), marks=marks[n[0] in slow]) for n in ALIKE]


every_model_in_stacks = functools.partial(pytest.mark.parametrize, "makes", _stacks())
"""Every cell once, for what compiles for seconds: those with the same state and the same kind of
gates are one network, the first two the directions of its first layer."""
every_model_in_stacks_gru_slowly = functools.partial(
    pytest.mark.parametrize, "makes", _stacks(slow=("gru",))
)
"""The same, the GRUs among the slow tests: what holds for h and for [c; h] is seen without them."""
