"""Recurrent cells, one a file. ``base.py`` is the contract."""

from gradlab.cells.base import Cell, HiddenCarry, MemoryCarry
from gradlab.cells.feedforward import FeedForward
from gradlab.cells.gru import GRU
from gradlab.cells.gru_reset_before import GRUResetBefore
from gradlab.cells.lstm import LSTM
from gradlab.cells.rnn import SimpleRNN

__all__ = [
    "GRU",
    "LSTM",
    "Cell",
    "FeedForward",
    "GRUResetBefore",
    "HiddenCarry",
    "MemoryCarry",
    "SimpleRNN",
]
