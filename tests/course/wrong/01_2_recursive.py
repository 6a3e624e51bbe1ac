"""An order of its own, found by recursion."""

import numpy as np

NAMES = "calls itself"


def backward(result):
    order, seen = [], set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for parent in node.parents:
                visit(parent)
            order.append(node)

    visit(result)
    for node in order:
        node.grad = None
    result.grad = np.ones_like(result.data)
    for node in reversed(order):
        if node.rule is not None:
            for parent, share in zip(node.parents, node.rule(node.grad), strict=True):
                parent.grad = share if parent.grad is None else parent.grad + share
