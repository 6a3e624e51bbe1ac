"""Each tensor once, in the order in which it is found."""

import numpy as np

NAMES = "before all of it has arrived"


def backward(result):
    for node in topological_order(result):
        node.grad = None
    result.grad = np.ones_like(result.data)
    waiting, seen = [result], {result}
    while waiting:
        node = waiting.pop(0)
        if node.rule is None:
            continue
        for parent, share in zip(node.parents, node.rule(node.grad), strict=True):
            parent.grad = share if parent.grad is None else parent.grad + share
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
