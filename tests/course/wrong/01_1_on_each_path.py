"""Nothing remembers what was seen."""

NAMES = "in the order twice"


def topological_order(result):
    order, stack = [], [(result, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        else:
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents)
    return order
