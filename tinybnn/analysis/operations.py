"""A profile of a training step: the seconds of each operation, forward and backward."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tinybnn import tables
from tinybnn.autograd import Function
from tinybnn.optim import Optimizer


class OperationTimes:
    """The times of operations in a block, by `time_operations`; prints as a table.

    Attributes
    ----------
    seconds : float
        Time of the whole block, once it has ended. The part outside of operations is the Python
        code of the layers, the engine, which orders the graph and accumulates gradients, and
        everything else in the block.
    """

    seconds: float

    def __init__(self) -> None:
        self.seconds = 0.0
        self._times = {}  # (operation, shape) -> [calls, forward seconds, backward seconds]

    def add(
        self,
        operation: str,
        shape: Sequence[int],
        *,
        calls: int = 0,
        forward: float = 0.0,
        backward: float = 0.0,
    ) -> None:
        """Add calls and seconds of an operation whose output has this shape."""
        entry = self._times.setdefault((operation, tuple(shape)), [0, 0.0, 0.0])
        for i, more in enumerate((calls, forward, backward)):
            entry[i] += more

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The times of each operation and output shape, slowest first.

        Returns
        -------
        list of dict
            ``operation``; ``shape`` of the output (empty for an optimizer's step); ``calls``;
            ``forward_s`` and ``backward_s`` in seconds; ``share`` of both in the whole block.
        """
        rows = [
            {
                "operation": operation,
                "shape": list(shape),
                "calls": calls,
                "forward_s": forward,
                "backward_s": backward,
                "share": (forward + backward) / self.seconds if self.seconds else 0.0,
            }
            for (operation, shape), (calls, forward, backward) in self._times.items()
        ]
        return sorted(rows, key=lambda row: -row["share"])

    def __str__(self) -> str:
        return table(self.rows)


_HEADER = ("operation", "output", "calls", "forward, ms", "backward, ms", "share")
_LEAST = 0.02  # smallest share of the block for which a shape gets a line


def table(rows: Sequence[dict[str, Any]], width: int = tables.WIDTH) -> str:
    """Format the rows of `OperationTimes`: operations, each followed by its slowest shapes."""
    groups = {}
    for row in rows:
        groups.setdefault(row["operation"], []).append(row)
    lines = []
    sums = {operation: _sum(group) for operation, group in groups.items()}
    for operation, total in sorted(sums.items(), key=lambda item: -item[1]["share"]):
        group = groups[operation]
        lines.append(_cells(operation, group[0]["shape"] if len(group) == 1 else (), total))
        if len(group) > 1:
            lines += [_cells("", row["shape"], row) for row in group if row["share"] >= _LEAST]
    rest = 1.0 - sum(row["share"] for row in rows)
    lines.append(("layers, engine", "", "", "", "", f"{rest:.0%}"))
    return tables.text(_HEADER, lines, "<<>>>>", width)


def _sum(group):
    columns = ("calls", "forward_s", "backward_s", "share")
    return {column: sum(row[column] for row in group) for column in columns}


def _cells(operation, shape, row):
    forward, backward = (f"{1e3 * row[key]:.3f}" for key in ("forward_s", "backward_s"))
    text = "×".join(map(str, shape))
    return operation, text, f"{row['calls']:,}", forward, backward, f"{row['share']:.0%}"


@contextlib.contextmanager
def time_operations() -> Iterator[OperationTimes]:
    """Time each operation on Tensors, each backward rule and each optimizer step in a block.

    An operation called by another one, as in backward rules, counts as part of it. Operations of
    other threads are not counted. The methods that the block replaces are restored at its end, so
    nothing outside of it is slower.

    Yields
    ------
    OperationTimes

    Examples
    --------
    >>> from tinybnn import Tensor
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> with time_operations() as times:
    ...     (x * x).sum().backward()
    >>> sorted((row["operation"], row["calls"]) for row in times.rows)
    [('Mul', 1), ('Sum', 1)]
    """
    times, thread, is_inside = OperationTimes(), threading.get_ident(), False
    before = Function.__dict__["apply"], Function._gradients, Optimizer.step
    apply, gradients, step = before[0].__func__, *before[1:]

    def timed(call):
        """Return the result of a call and its seconds, None inside of another timed call."""
        nonlocal is_inside
        if is_inside or threading.get_ident() != thread:
            return call(), None
        is_inside, start = True, time.perf_counter()
        try:
            return call(), time.perf_counter() - start
        finally:
            is_inside = False

    def timed_apply(cls, *inputs, **options):
        output, seconds = timed(lambda: apply(cls, *inputs, **options))
        if seconds is not None:
            times.add(cls.__name__, np.shape(output), calls=1, forward=seconds)
        return output

    def timed_gradients(self, grad, needs, create_graph):
        parts, seconds = timed(lambda: list(gradients(self, grad, needs, create_graph)))
        if seconds is not None:
            times.add(type(self).__name__, np.shape(grad), backward=seconds)
        return parts

    def timed_step(self):
        _, seconds = timed(lambda: step(self))
        if seconds is not None:
            times.add(f"{type(self).__name__}.step", (), calls=1, forward=seconds)

    Function.apply = classmethod(timed_apply)
    Function._gradients, Optimizer.step = timed_gradients, timed_step
    start = time.perf_counter()
    try:
        yield times
    finally:
        times.seconds = time.perf_counter() - start
        Function.apply, Function._gradients, Optimizer.step = before
