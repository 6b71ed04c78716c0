"""How a cell is told its sizes."""

from functools import partial

import pytest
from flax import nnx

from gradlab.cells import SimpleRNN
from gradlab.experiment import build_steps
from gradlab.model import SequenceModel
from tests.experiments import experiment


class Swapped(SimpleRNN):
    def __init__(self, hidden_features, in_features, *, gain=1.0, rngs):
        super().__init__(in_features, hidden_features, recurrent_gain=gain, rngs=rngs)


class ByName(SimpleRNN):
    def __init__(self, *, in_features, hidden_features, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)


class OtherNames(SimpleRNN):
    def __init__(self, n_in, n_out, *, rngs):
        super().__init__(n_in, n_out, rngs=rngs)


def in_a_function(in_features, hidden_features, rngs):
    return SimpleRNN(in_features, hidden_features, rngs=rngs)


@pytest.mark.parametrize(
    "make_cell",
    [SimpleRNN, Swapped, partial(Swapped, gain=2.0), ByName, OtherNames, in_a_function],
)
def test_sizes_go_by_name_or_in_order(make_cell):
    sizes = {"features": 3, "hidden": 4, "layers": 2, "outputs": 1}
    model = SequenceModel(make_cell, **sizes, readout="last", rngs=nnx.Rngs(0))
    assert [cell.dense_i.kernel.shape for cell in model.cells()] == [(3, 4), (4, 4)]


@pytest.mark.parametrize(("layers", "said"), [(29, ""), (100, "each of 100 layers")])
def test_what_many_layers_cost_is_said_before_any_is_made(monkeypatch, caplog, layers, said):
    def made(_):
        raise TimeoutError

    monkeypatch.setattr("gradlab.experiment._model", made)
    with pytest.raises(TimeoutError):
        build_steps(experiment(layers=layers))
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)
