"""What a model is, what it costs, on what machine that was measured, and where the time goes."""

from tinybnn.analysis.machine import machine, processor
from tinybnn.analysis.opcount import OperationCount, count_operations
from tinybnn.analysis.operations import OperationTimes, time_operations
from tinybnn.analysis.summary import Summary, summary

__all__ = [
    "OperationCount", "OperationTimes", "Summary", "count_operations", "machine", "processor",
    "summary", "time_operations",
]  # fmt: skip
__dir__ = __all__.copy  # dir() shows what is public, and nothing else
