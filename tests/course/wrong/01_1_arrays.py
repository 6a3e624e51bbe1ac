"""Arrays."""

NAMES = "the order holds an array"


def topological_order(result):
    order, seen, stack = [], set(), [(result, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node.data)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents)
    return order
