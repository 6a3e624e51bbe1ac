"""A tensor is marked as seen when it is put on the stack."""

NAMES = "put on the stack"


def topological_order(result):
    order, seen, stack = [], {result}, [(result, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        stack.append((node, True))
        for parent in node.parents:
            if parent not in seen:
                seen.add(parent)
                stack.append((parent, False))
    return order
