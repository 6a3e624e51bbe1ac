"""Gradients of the first call stay."""

import numpy as np

NAMES = "earlier call"


def backward(result):
    result.grad = np.ones_like(result.data)
    for node in reversed(topological_order(result)):
        if node.rule is not None:
            for parent, share in zip(node.parents, node.rule(node.grad), strict=True):
                parent.grad = share if parent.grad is None else parent.grad + share
