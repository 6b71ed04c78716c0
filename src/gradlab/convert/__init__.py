"""Recurrent layers of other frameworks as layers of gradlab's; none of those is imported."""

from gradlab.convert.from_keras import from_keras
from gradlab.convert.from_torch import from_torch

__all__ = ["from_keras", "from_torch"]
