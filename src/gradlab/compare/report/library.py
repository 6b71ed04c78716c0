"""The package that knows the form of W&B's reports and workspaces, imported when it is needed."""

from __future__ import annotations

import warnings
from typing import Any

from gradlab.errors import BadInput


def reports() -> Any:
    """``wandb_workspaces.reports.v2``.

    Raises:
      BadInput: wandb-workspaces is not installed.
    """
    return _load()[0]


def workspaces() -> Any:
    """``wandb_workspaces.workspaces``; see :func:`reports`."""
    return _load()[1]


def _load() -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is written for an earlier pydantic, and says so
        try:
            import wandb_workspaces.reports.v2 as of_reports
            import wandb_workspaces.workspaces as of_workspaces
        except ImportError as error:
            if (error.name or "").partition(".")[0] != "wandb_workspaces":
                raise
            hint = "pip install 'gradlab[reports]'"
            allowed = "with the package wandb-workspaces, which is not installed"
            raise BadInput("--wandb", "", allowed, hint) from error
    return of_reports, of_workspaces
