"""What a run hands on to its verdict."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from gradlab.cells import LSTM
from gradlab.probes import AdjointSlope, ForgetPath
from gradlab.record.base import Row
from gradlab.record.reader import open_run
from gradlab.recording import Recording
from gradlab.run import run
from gradlab.training.loop import Trainer
from tests.experiments import experiment


@pytest.fixture
def gates_alone():
    """An LSTM before its first update, in which nothing can go through h."""
    return experiment(
        make_cell=functools.partial(LSTM, recurrent_gain=0.0),
        hidden=4,
        probes={"adjoint_slope": AdjointSlope(), "forget_path": ForgetPath()},
        trainer=Trainer(1, 4),
        config={"trainer": {"backward": "full"}},
    )


def test_the_verdict_of_a_network_whose_recurrent_weights_are_zero(tmp_path, gates_alone):
    run(gates_alone, tmp_path, [], figures=False)
    recorded = open_run(tmp_path)
    assert np.isneginf(recorded.curves["residual_path_log10"]).all()
    (told, _) = recorded.info["verdict"]
    assert told.endswith(
        "Nothing of ∂c_T/∂c_t goes through h: all is through the f gate (in the close look at "
        "step 0)."
    )
    assert "decades over" in told


def test_the_latest_paths_are_kept_for_the_verdict(tmp_path, gates_alone):
    """Those of a step that was made: at the one where a run diverges they are not finite."""
    last = Recording(gates_alone, tmp_path).last
    paths = {"forget_path_log10": np.zeros((1, 5)), "residual_path_log10": np.zeros((1, 5))}
    last.log(Row(0, {"train/loss": 1.0}, paths))
    last.log(Row(3, {"train/loss": 1.0}, paths))
    last.log(Row(5, {"train/loss": 1.0}, {}))
    last.log(Row(6, {}, paths))
    assert [row and row.step for row in (last.row, last.paths)] == [5, 3]
