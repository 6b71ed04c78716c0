"""Measurements, one a file. ``base.py`` is the contract."""

from gradlab.probes.adjoint import Adjoint
from gradlab.probes.adjoint_slope import AdjointSlope
from gradlab.probes.clipping import ClipRemoved
from gradlab.probes.curvature import Curvature
from gradlab.probes.direct_adjoint import DirectAdjoint
from gradlab.probes.forget_product import ForgetProduct
from gradlab.probes.gate_saturation import GateSaturation
from gradlab.probes.gate_statistics import GateStatistics
from gradlab.probes.grad_norm import GradNorm
from gradlab.probes.gradient_mass import GradientMass
from gradlab.probes.gradient_noise import GradientNoise
from gradlab.probes.mean_field import MeanField
from gradlab.probes.memory_horizon import MemoryHorizon
from gradlab.probes.pascanu_bound import PascanuBound
from gradlab.probes.recurrent_matrix import RecurrentMatrix
from gradlab.probes.temporal_contribution import TemporalContribution
from gradlab.probes.trajectory_end import TrajectoryEnd
from gradlab.probes.truncation import Truncation
from gradlab.probes.update_ratio import UpdateRatio

__all__ = [
    "Adjoint",
    "AdjointSlope",
    "ClipRemoved",
    "Curvature",
    "DirectAdjoint",
    "ForgetProduct",
    "GateSaturation",
    "GateStatistics",
    "GradNorm",
    "GradientMass",
    "GradientNoise",
    "MeanField",
    "MemoryHorizon",
    "PascanuBound",
    "RecurrentMatrix",
    "TemporalContribution",
    "TrajectoryEnd",
    "Truncation",
    "UpdateRatio",
]
