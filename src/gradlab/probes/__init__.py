"""Measurements, one a file. ``base.py`` is the contract."""

from gradlab.probes.adjoint import Adjoint
from gradlab.probes.adjoint_slope import AdjointSlope
from gradlab.probes.forget_product import ForgetProduct
from gradlab.probes.gate_saturation import GateSaturation
from gradlab.probes.grad_norm import GradNorm
from gradlab.probes.memory_horizon import MemoryHorizon
from gradlab.probes.update_ratio import UpdateRatio

__all__ = [
    "Adjoint",
    "AdjointSlope",
    "ForgetProduct",
    "GateSaturation",
    "GradNorm",
    "MemoryHorizon",
    "UpdateRatio",
]
