"""The layers, cost and running time of a model, and the dynamics of its training.

`summary`, `count_operations`, `time_operations` and `machine` are about cost; `curvature`,
`spectra`, `landscape` and `dynamics` about the loss, its second derivative and signs in training.
"""

from tinybnn.analysis.curvature import CurvatureOperator, GaussNewtonOperator, HessianOperator
from tinybnn.analysis.dynamics import (
    BatchStatistics,
    ExpectedLoss,
    FlipTracker,
    LogisticNoise,
    UniformNoise,
    agreement,
    batch_statistics,
    binary_layers,
    compare_estimators,
    expected_loss,
    latent_statistics,
    sign_patterns,
)
from tinybnn.analysis.landscape import (
    FlipSpectrum,
    Landscape,
    Trajectory,
    flip_spectrum,
    load_landscape,
    loss_landscape,
    mean_loss,
    parameter_vector,
    random_direction,
    trajectory,
)
from tinybnn.analysis.machine import machine, processor
from tinybnn.analysis.opcount import OperationCount, count_operations
from tinybnn.analysis.operations import OperationTimes, time_operations
from tinybnn.analysis.spectra import (
    Eigenpairs,
    Lanczos,
    SpectralDensity,
    TraceEstimate,
    estimate_trace,
    spectral_density,
    top_eigenvalues,
)
from tinybnn.analysis.summary import Summary, summary

__all__ = [
    "BatchStatistics", "CurvatureOperator", "Eigenpairs", "ExpectedLoss", "FlipSpectrum",
    "FlipTracker", "GaussNewtonOperator", "HessianOperator", "Lanczos", "Landscape",
    "LogisticNoise", "OperationCount", "OperationTimes", "SpectralDensity", "Summary",
    "TraceEstimate", "Trajectory", "UniformNoise", "agreement", "batch_statistics",
    "binary_layers", "compare_estimators", "count_operations", "estimate_trace", "expected_loss",
    "flip_spectrum", "latent_statistics", "load_landscape", "loss_landscape", "machine",
    "mean_loss", "parameter_vector", "processor", "random_direction", "sign_patterns",
    "spectral_density", "summary", "time_operations", "top_eigenvalues", "trajectory",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else
