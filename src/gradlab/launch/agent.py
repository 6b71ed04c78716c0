"""What W&B's agent passes on the command line, as Hydra reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence


def from_agent(arguments: Sequence[str]) -> list[str]:
    """``arguments``; where W&B's agent wrote them, its ``key=None`` is ``key=null``.

    A ``null`` among the values of a sweep file comes as Python writes it, which Hydra takes for
    text. Elsewhere ``None`` remains the text that it is.
    """
    if not os.environ.get("WANDB_SWEEP_ID"):
        return list(arguments)
    none = "=None"
    return [a.removesuffix(none) + "=null" if a.endswith(none) else a for a in arguments]
