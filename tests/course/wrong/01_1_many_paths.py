"""What was seen is looked up too late."""

NAMES = "keep a set"


def topological_order(result):
    order = []

    def visit(node):
        for parent in node.parents:
            visit(parent)
        if node not in order:
            order.append(node)

    visit(result)
    return order
