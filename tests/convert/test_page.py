"""The code on the page about other frameworks does what it says."""

import re
from types import SimpleNamespace

import numpy as np

import gradlab
from tests import ROOT
from tests.convert.equations import LSTM, keras_layer, state_dict

PAGE = ROOT / "docs" / "from_other_frameworks.md"


def test_every_block_runs():
    def made(width, hidden, num_layers, bidirectional):  # as torch.nn.LSTM
        ways = 1 + bidirectional
        state = state_dict("lstm", layers=num_layers, ways=ways, width=width, hidden=hidden)
        return SimpleNamespace(state_dict=lambda: state)

    given = {
        "gradlab": gradlab,
        "torch": SimpleNamespace(nn=SimpleNamespace(LSTM=made)),
        "model": SimpleNamespace(layers=[None, keras_layer(LSTM)]),
        "inputs": np.zeros((2, 5, 3), "f"),
    }
    blocks = re.findall("```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    widths = []
    for block in blocks:
        exec(block, given)  # noqa: S102
        widths.append(given["outputs"].shape)
    assert widths == [(2, 5, 128), (2, 5, 4)]
