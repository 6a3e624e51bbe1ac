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
from tinybnn.analysis.machine import machine, processor
from tinybnn.analysis.opcount import OperationCount, count_operations
from tinybnn.analysis.operations import OperationTimes, time_operations
from tinybnn.analysis.summary import Summary, summary

__all__ = [
    "CurvatureOperator", "Eigenpairs", "GaussNewtonOperator", "HessianOperator", "Lanczos",
    "OperationCount", "OperationTimes", "SpectralDensity", "Summary", "TraceEstimate",
    "count_operations", "estimate_trace", "machine", "processor", "spectral_density", "summary",
    "time_operations", "top_eigenvalues",
]  # fmt: skip
__dir__ = __all__.copy  # dir() shows what is public, and nothing else
