"""Who makes the training step. A file for each framework, with ``make(name, cell, size)``.

The files import their framework, so they are imported only in the process of their home.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.problem import First, Size


class Contestant(Protocol):
    """One that makes training steps of one cell at one size.

    It may have ``look()``, what a run does besides at every 50th step, and ``temporaries()``, the
    bytes that the compiler says a step needs beside its arguments and results.
    """

    def first(self) -> First | None:
        """Make the first step: its loss and gradient; None for what computes neither."""
        ...

    def run(self, steps: int) -> None:
        """Make so many, and wait for the last."""
        ...


class Home(NamedTuple):
    """A kind of process.

    Attributes:
      environment: the variables it has, by the number of cores.
      needs: a package that must be installed.
      cores: how many there must be.
    """

    environment: Callable[[int], dict[str, str]]
    needs: str = "jax"
    cores: int = 1


def _flags(added: str = "") -> dict[str, str]:
    own = os.environ.get("XLA_FLAGS", "")
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{own} {added}".strip()}


def _keras(cores: int) -> dict[str, str]:
    home = os.environ.get("KERAS_HOME", os.path.join(tempfile.gettempdir(), "keras"))
    return {**_flags(), "KERAS_BACKEND": "jax", "KERAS_HOME": home}


HOMES = {
    "one device": Home(lambda cores: _flags()),
    "a device a core": Home(
        lambda cores: _flags(f"--xla_force_host_platform_device_count={cores}"), cores=2
    ),
    "keras": Home(_keras, "keras"),
    "torch": Home(lambda cores: {"OMP_NUM_THREADS": str(cores)}, "torch"),
}


def home_of(name: str) -> Home:
    """By its name."""
    return HOMES[name]


class Entry(NamedTuple):
    """A line of the list.

    Attributes:
      label: in tables.
      home: the process it runs in.
      file: beside this one.
    """

    label: str
    home: str
    file: str

    @property
    def module(self) -> str:
        """To import."""
        return f"benchmarks.contestants.{self.file}"


CONTESTANTS = {
    "flax": Entry("Flax", "one device", "flax_rnn"),
    "flax-split": Entry("Flax, split", "a device a core", "flax_rnn"),
    "flax-taps": Entry("Flax, taps by hand", "one device", "flax_rnn"),
    "gradlab-split": Entry("gradlab, split", "a device a core", "gradlab_steps"),
    "gradlab-standard-split": Entry("gradlab, standard, split", "a device a core", "gradlab_steps"),
    "gradlab-full-split": Entry("gradlab, full, split", "a device a core", "gradlab_steps"),
    "gradlab": Entry("gradlab", "one device", "gradlab_steps"),
    "gradlab-standard": Entry("gradlab, standard", "one device", "gradlab_steps"),
    "gradlab-full": Entry("gradlab, full", "one device", "gradlab_steps"),
    "keras": Entry("Keras on JAX", "keras", "keras_rnn"),
    "torch": Entry("PyTorch", "torch", "torch_rnn"),
    "torch-hooks": Entry("PyTorch, hooks", "torch", "torch_rnn"),
    "floor": Entry("matrix products alone", "one device", "floor"),
    "floor-split": Entry("matrix products alone, split", "a device a core", "floor"),
}
DEFAULT = [name for name in CONTESTANTS if name != "gradlab-full"]
QUICK = [name for name in DEFAULT if "full" not in name and "hooks" not in name]


def missing(name: str, cores: int) -> str | None:
    """Why a contestant cannot take part here; None: it can."""
    home = HOMES[CONTESTANTS[name].home]
    if importlib.util.find_spec(home.needs) is None:
        return f"{home.needs} is not installed (pip install -e '.[bench]')"
    if cores < home.cores:
        return f"there is one core, and it splits a batch over at least {home.cores}"
    return None


def share(batch: int, cores: int) -> int:
    """Over how many devices a batch is split: the most that divide it evenly."""
    return max(count for count in range(1, cores + 1) if batch % count == 0)


def arrays_of(cell: Any, readout: Any) -> dict[str, Any]:
    """Flax's Variables under the names of the problem; gradlab's cells have the same."""
    bias = cell.dense_h.bias if cell.dense_h.bias is not None else cell.dense_i.bias
    variables = (cell.dense_i.kernel, cell.dense_h.kernel, bias, readout.kernel, readout.bias)
    return dict(zip(("kernel", "recurrent", "bias", "readout", "offset"), variables, strict=True))


def size_of(given: Any) -> Size:
    """A size as it comes through a pipe."""
    return Size(*map(int, np.asarray(given)))
