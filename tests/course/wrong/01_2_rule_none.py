"""Rule none."""

import numpy as np

NAMES = "has the rule None: pass over it"


def backward(result):
    order = topological_order(result)
    for node in order:
        node.grad = 0.0
    result.grad = np.ones_like(result.data)
    for node in reversed(order):
        for parent, share in zip(node.parents, node.rule(node.grad), strict=True):
            parent.grad = parent.grad + share
