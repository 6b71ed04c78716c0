"""The contract of a sink: what a run hands to whatever keeps or shows it.

A sink sees host numbers only (numpy, float), never a device array, a config object or a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from gradlab.errors import CannotRecord, LostPeer
from gradlab.variable import Variable

__all__ = [
    "AT_LENGTH",
    "OWN_LOOP",
    "Description",
    "Outcome",
    "Row",
    "Sink",
    "Status",
    "Variable",
    "baseline_of",
    "crashed",
    "figures_of",
    "reads_the_end",
]

Status = Literal["running", "finished", "diverged", "interrupted", "crashed"]
AT_LENGTH = "/length_"
"""Between the name of a test figure and the length that it is of, one of
``trainer.test_lengths``: ``test/loss/length_200``."""
FIGURES = "figures"
"""What is drawn of a run, as ``run.json`` names it when it is left to do, and its folder."""
OWN_LOOP = "own"
"""The fact ``loop`` of a run that a loop of the user's own made."""


@dataclass(frozen=True)
class Description:
    """Everything that is known about a run before its first step.

    Attributes:
      name: the experiment's name.
      config: the composed configuration as nested plain dicts.
      variables: every variable that will be recorded, by name.
      coords: values of every dimension but ``step``, e.g. ``{"layer": [0, 1], "t": [0, ...]}``.
      baseline: split -> ``{"name": str, "loss": float, "accuracy": float | None}``; of the test
        split at another length under ``test/length_200``.
      facts: what else a reader wants to see: ``task``, ``model``, ``parameters`` (a count),
        ``readout`` ("last" or "every"), ``T``, ``steps``.
      id: the run's own, eight lower-case letters and digits; kept when a run is resumed.
      resumed: whether the run was begun by an earlier process.
      recorded: the last step whose row an earlier process recorded; -1 for none.
    """

    name: str
    config: Mapping[str, Any]
    variables: Mapping[str, Variable]
    coords: Mapping[str, list[Any]]
    baseline: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    resumed: bool = False
    recorded: int = -1


def reads_the_end(facts: Mapping[str, Any]) -> bool:
    """Whether the loss reads the last timestep of the last layer, and nothing else of any.

    Args:
      facts: of a run; where a loop of the user's own does not say, it is not taken for granted.
    """
    if facts.get("loop") == OWN_LOOP:
        return facts.get("readout") == "last" and len(facts.get("layers") or ()) == 1
    return facts.get("readout") != "every"


def baseline_of(
    baselines: Mapping[str, Mapping[str, Any]], splits: Sequence[str]
) -> Mapping[str, Any] | None:
    """The baseline of the first of ``splits`` where there is one with a loss; else None."""
    found = (baselines.get(split) for split in splits)
    return next((one for one in found if one and one.get("loss") is not None), None)


class Row(NamedTuple):
    """What was measured at one training step. Variables not measured at this step are absent.

    Attributes:
      step: training step, counted from 0; the measurement is of the parameters *before* update
        ``step``.
      scalars: variables without further dimensions (``train/loss``, ``val/loss``).
      arrays: the others, float32 or float64, shaped as the variable's ``dims``.
    """

    step: int
    scalars: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
      status: see ``Status``.
      reason: in words; for ``diverged`` with the step, the layer and the timestep.
      summary: final figures, flat: ``train/loss``, ``val/loss``, ..., ``memory_horizon/layer_0``,
        ``test/loss/length_200``.
      timings: ``steps_per_second`` (steady state, compilation left out), ``probe_overhead``
        (time of a probed step over that of a plain one), ``compile_seconds``, ``train_seconds``;
        ``members``, how many runs were trained together, if more than one: the times and the speed
        are then those at which all of them went on side by side.
      verdict: the verdict's lines, in plain words.
      signal: number of the signal that interrupted it; 0 if none did.
    """

    status: Status
    reason: str = ""
    summary: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float | None] = field(default_factory=dict)
    verdict: list[str] = field(default_factory=list)
    signal: int = 0


def crashed(error: BaseException) -> Outcome:
    """The outcome of a run that an error has ended."""
    if isinstance(error, CannotRecord):
        return Outcome("crashed", f"cannot record: {error.reason}")
    if isinstance(error, LostPeer):
        return Outcome("crashed", f"another process of the run is gone ({error.reason})")
    return Outcome("crashed", f"{type(error).__name__}: {error}")


def figures_of(
    name: str, variable: Variable, array: np.ndarray, layers: Sequence[object]
) -> dict[str, float]:
    """What of a variable goes into the summary: numbers of the run or of each layer."""
    dims = variable.dims
    if not dims:
        return {name: float(array)}
    if dims == ("layer", "index"):  # a spectrum in descending order: its largest
        array, dims = array[:, 0], ("layer",)
    if dims != ("layer",):
        return {}
    names = [f"{name}/layer_{str(layer).replace(' ', '_')}" for layer in layers]
    return dict(zip(names, map(float, array), strict=True))


class Sink(Protocol):
    """Somewhere measurements go. Calls come in this order: ``open``, ``log``…, ``close``.

    The run directory is the truth. When a run is resumed, every other sink is opened with
    ``description.resumed`` set and is then given every row recorded so far again, before the new
    ones: it starts afresh, or skips what it already has.

    In a loop of the user's own further variables may come while it runs. A sink that has to know
    of each beforehand has a method ``extend(description)`` for that.
    """

    def open(self, description: Description) -> None:
        """Called once, before the first step."""
        ...

    def log(self, row: Row) -> None:
        """Called at every logged step, in increasing ``step``."""
        ...

    def close(self, outcome: Outcome) -> None:
        """Called once, however the run ended."""
        ...
