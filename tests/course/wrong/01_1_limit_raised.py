"""Limit raised."""

import sys

NAMES = "calls itself"


def topological_order(result):
    sys.setrecursionlimit(100_000)
    order, seen = [], set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for parent in node.parents:
                visit(parent)
            order.append(node)

    visit(result)
    return order
