"""Measurements: how fast kernels, packed models and training are, beside what computes the same.

A row of the result compares one thing of ours with one peer: the medians of both, their ratio, the
spread of ours (its fastest and slowest run), and, where the project asks something of itself, the
target and whether it is met. How the two share a machine that never has quite the same speed is
told in `rounds`. Absolute times mean little on a busy machine; ratios within a row do, and so does
the share of the peak, which is measured in the same rounds.

Peers are NumPy always, and PyTorch, ONNX Runtime and Larq Compute Engine where they are installed
(`peers`). None of them is needed.
"""

from tinybnn.bench.report import GROUPS, check, draw, page, run

__all__ = ["GROUPS", "check", "draw", "page", "run"]
