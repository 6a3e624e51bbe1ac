"""Measurements of kernels, packed models and training beside peers that compute the same.

A row of the result compares one computation of ours with one peer: the medians of both, their
ratio, our fastest and slowest run, and, where the project has a target, whether it is met. `rounds`
explains how contenders share a machine whose speed varies. Absolute times mean little on a busy
machine; ratios within a row do, and so does the share of the peak, which is measured in the same
rounds.

NumPy is always a peer; PyTorch, ONNX Runtime and Larq Compute Engine are where they are installed
(`peers`). None of them is required.
"""

from tinybnn.bench.report import GROUPS, check, draw, page, run

__all__ = ["GROUPS", "check", "draw", "page", "run"]
