"""No first gradient."""

NAMES = "never set to 1"


def backward(result):
    order = topological_order(result)
    for node in order:
        node.grad = None
    for node in reversed(order):
        if node.rule is not None:
            for parent, share in zip(node.parents, node.rule(node.grad), strict=True):
                parent.grad = share if parent.grad is None else parent.grad + share
