"""PyTorch on the CPU, subnormal numbers flushed to zero, with as many threads as cores.

- ``torch``: ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` (the LSTM by oneDNN).
- ``torch-hooks``: what a careful user writes to measure: a loop of ``nn.LSTMCell`` and its like,
  ``retain_grad`` on each step's h, and the norm of its gradient for every example.

PyTorch has two biases where one would do; the second is zero here, and is not trained.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from benchmarks import problem
from benchmarks.machine import cores
from benchmarks.problem import First, Size

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


class Torch:
    """See above."""

    def __init__(self, name: str, cell: str, size: Size):
        torch.set_flush_denormal(True)
        torch.set_num_threads(cores())
        hooked = name == "torch-hooks"
        self.layer = (CELLS if hooked else LAYERS)[cell](size.I, size.H)
        self.readout, self.forward = nn.Linear(size.H, 1), self._hooked if hooked else self._plain
        end, own = "" if hooked else "_l0", problem.weights(cell, size)
        places = {
            "kernel": getattr(self.layer, "weight_ih" + end),
            "recurrent": getattr(self.layer, "weight_hh" + end),
            "bias": getattr(self.layer, "bias_ih" + end),
            "readout": self.readout.weight,
            "offset": self.readout.bias,
        }
        with torch.no_grad():
            for key, parameter in places.items():
                parameter.copy_(torch.from_numpy(own[key].T.copy()))
            unused = getattr(self.layer, "bias_hh" + end)
            unused.zero_()
        unused.requires_grad_(False)
        self.parameters = places
        betas = (problem.FIRST_MOMENT, 0.999)
        keys = {"lr": problem.LEARNING_RATE, "betas": betas, "fused": True}
        self.rule = torch.optim.Adam(places.values(), **keys)
        self.inputs, self.targets = map(torch.from_numpy, problem.batch(size))

    def _plain(self) -> torch.Tensor:
        outputs, _ = self.layer(self.inputs)
        return self.readout(outputs[-1])

    def _hooked(self) -> torch.Tensor:
        self.seen, carry = [], None
        for x in self.inputs:
            carry = self.layer(x, carry)
            h = carry[0] if isinstance(carry, tuple) else carry
            h.retain_grad()
            self.seen.append(h)
        return self.readout(h)

    def _step(self) -> torch.Tensor:
        self.rule.zero_grad(set_to_none=True)
        loss = torch.mean(torch.square(self.forward() - self.targets))
        loss.backward()
        if self.forward == self._hooked:
            self.norms = torch.stack([h.grad.norm(dim=-1) for h in self.seen]).log10()
            self.seen = []
        self.rule.step()
        return loss.detach()

    def first(self) -> First:
        """See :class:`benchmarks.contestants.Contestant`."""
        loss = self._step()
        found = {key: np.array(one.grad.numpy().T) for key, one in self.parameters.items()}
        return First(float(loss), found)

    def run(self, steps: int) -> None:
        """See there."""
        for _ in range(steps):
            self._step()


make = Torch
