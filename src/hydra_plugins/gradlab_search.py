"""Where Hydra looks for ``hydra/sweeper=search``; see :mod:`gradlab.launch.sweep.search`.

Hydra imports every module of this package at each start, so nothing heavy is imported here.
"""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper


class Search(Sweeper):
    """A search by Optuna that goes on where an earlier command was stopped.

    Args:
      settings: the section ``hydra.sweeper``.
    """

    def __init__(self, **settings: Any):
        self._settings = settings

    def setup(self, **parts: Any) -> None:
        """See the base class."""
        from gradlab.launch.sweep.search import OptunaSearch

        # Not before: Hydra would wrap the refusal of a setting in one of its own.
        self._search = OptunaSearch(**self._settings)
        self._search.setup(**parts)

    def sweep(self, arguments: list[str]) -> None:
        """See the base class."""
        self._search.sweep(arguments)
