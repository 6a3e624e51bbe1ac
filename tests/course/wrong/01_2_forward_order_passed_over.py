"""Forward order passed over."""

import numpy as np

NAMES = "from its end"


def backward(result):
    order = topological_order(result)
    for node in order:
        node.grad = None
    result.grad = np.ones_like(result.data)
    for node in order:
        if node.rule is not None and node.grad is not None:
            for parent, share in zip(node.parents, node.rule(node.grad), strict=True):
                parent.grad = share if parent.grad is None else parent.grad + share
