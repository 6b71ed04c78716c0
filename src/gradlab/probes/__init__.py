"""Measurements, one a file. ``base.py`` is the contract."""

from gradlab.probes.adjoint import Adjoint
from gradlab.probes.adjoint_alignment import AdjointAlignment
from gradlab.probes.adjoint_slope import AdjointSlope
from gradlab.probes.clipping import ClipRemoved
from gradlab.probes.curvature import Curvature
from gradlab.probes.direct_adjoint import DirectAdjoint
from gradlab.probes.fixed_points import FixedPoints
from gradlab.probes.forget_path import ForgetPath
from gradlab.probes.forget_product import ForgetProduct
from gradlab.probes.gate_saturation import GateSaturation
from gradlab.probes.gate_statistics import GateStatistics
from gradlab.probes.grad_norm import GradNorm
from gradlab.probes.gradient_mass import GradientMass
from gradlab.probes.gradient_noise import GradientNoise
from gradlab.probes.isometry import Isometry
from gradlab.probes.jacobian_eigenvalues import JacobianEigenvalues
from gradlab.probes.long_jacobian import LongJacobian
from gradlab.probes.lyapunov import Lyapunov
from gradlab.probes.mean_field import MeanField
from gradlab.probes.memory_horizon import MemoryHorizon
from gradlab.probes.pascanu_bound import PascanuBound
from gradlab.probes.recurrent_matrix import RecurrentMatrix
from gradlab.probes.singular_spectrum import SingularSpectrum
from gradlab.probes.state_covariance import StateCovariance
from gradlab.probes.step_jacobian import StepJacobian
from gradlab.probes.temporal_contribution import TemporalContribution
from gradlab.probes.trajectory_end import TrajectoryEnd
from gradlab.probes.truncation import Truncation
from gradlab.probes.update_ratio import UpdateRatio

__all__ = [
    "Adjoint",
    "AdjointAlignment",
    "AdjointSlope",
    "ClipRemoved",
    "Curvature",
    "DirectAdjoint",
    "FixedPoints",
    "ForgetPath",
    "ForgetProduct",
    "GateSaturation",
    "GateStatistics",
    "GradNorm",
    "GradientMass",
    "GradientNoise",
    "Isometry",
    "JacobianEigenvalues",
    "LongJacobian",
    "Lyapunov",
    "MeanField",
    "MemoryHorizon",
    "PascanuBound",
    "RecurrentMatrix",
    "SingularSpectrum",
    "StateCovariance",
    "StepJacobian",
    "TemporalContribution",
    "TrajectoryEnd",
    "Truncation",
    "UpdateRatio",
]
