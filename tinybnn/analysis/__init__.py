"""What a model is and costs, where the time goes, and why it trains: curvature of its loss."""

from tinybnn.analysis.curvature import (
    CurvatureOperator,
    Eigenpairs,
    GaussNewtonOperator,
    HessianOperator,
    Lanczos,
    SpectralDensity,
    TraceEstimate,
    estimate_trace,
    spectral_density,
    top_eigenvalues,
)
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
from tinybnn.analysis.machine import machine, processor
from tinybnn.analysis.opcount import OperationCount, count_operations
from tinybnn.analysis.operations import OperationTimes, time_operations
from tinybnn.analysis.summary import Summary, summary

__all__ = [
    "BatchStatistics", "CurvatureOperator", "Eigenpairs", "ExpectedLoss", "FlipTracker",
    "GaussNewtonOperator", "HessianOperator", "Lanczos", "LogisticNoise", "OperationCount",
    "OperationTimes", "SpectralDensity", "Summary", "TraceEstimate", "UniformNoise", "agreement",
    "batch_statistics", "binary_layers", "compare_estimators", "count_operations",
    "estimate_trace", "expected_loss", "latent_statistics", "machine", "processor",
    "sign_patterns", "spectral_density", "summary", "time_operations", "top_eigenvalues",
]  # fmt: skip
__dir__ = __all__.copy  # dir() shows what is public, and nothing else
