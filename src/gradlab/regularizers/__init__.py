"""Penalties on how gradients travel, one a file. ``base.py`` is the contract."""

from gradlab.regularizers.base import Regularizer
from gradlab.regularizers.flossing import Flossing
from gradlab.regularizers.omega import Omega

__all__ = ["Flossing", "Omega", "Regularizer"]
