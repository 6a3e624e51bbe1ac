"""Tensors are appended when they are reached."""

NAMES = "not when it is found"


def topological_order(result):
    order, seen, stack = [], set(), [result]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            order.append(node)
            stack.extend(node.parents)
    return order[::-1]
