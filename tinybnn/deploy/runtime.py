"""Carrying out a plan: memory that is laid out once, blocks of the batch, measured layers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn import tables
from tinybnn.deploy.values import nchw, nhwc
from tinybnn.kernels.machine import threads
from tinybnn.kernels.machine.memory import empty

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from tinybnn.deploy.plan import Task
    from tinybnn.typing import Array

_CACHE = 1 << 20  # bytes of results that a block of samples may have in work at a time
_LEAST = 8  # samples of a block: with fewer, small images are too little work for a call
_LINE = 64  # bytes of a cache line: where a result begins


class Profile(list):
    """What `PackedModel.profile` gives: a list of a dict for each task, which prints as a table."""

    _HEADER = ("layer", "operations", "ms", "share", "Gbit-MAC/s", "peak")
    _ALIGN = "<<>>>>"

    def table(self, width: int = tables.WIDTH) -> str:
        """The table in lines of at most `width` characters."""
        return tables.text(self._HEADER, [*self._rows()], self._ALIGN, width)

    def _rows(self):
        total = sum(row["seconds"] for row in self)
        yield from (
            (
                row["layer"],
                ", ".join(row["operations"]),
                f"{row['seconds'] * 1e3:.3f}",
                f"{row['share']:.0%}",
                f"{row['rate'] / 1e9:,.0f}" if row["products"] else "",
                f"{row['peak_share']:.0%}" if row["products"] else "",
            )
            for row in self
        )
        yield "total", "", f"{total * 1e3:.3f}", "", "", ""

    def __repr__(self) -> str:
        return self.table()

    __str__ = __repr__

    def _repr_html_(self):
        return tables.html(self._HEADER, self._rows(), self._ALIGN)


class Workspace:
    """The memory of one call: a place for each result of a plan, used again when it is free.

    A result is needed from the task that writes it to the last one that reads it, so that results
    which are never needed at the same time share their memory.

    Parameters
    ----------
    tasks : sequence of Task
    samples : int
        The largest block that it will be used for.

    Attributes
    ----------
    nbytes : int
    """

    def __init__(self, tasks: Sequence[Task], samples: int) -> None:
        self.tasks, self.samples = tasks, samples
        self.places, size = _lay_out(tasks, samples)
        self.own = frozenset(self.places)
        self.arena = empty((size,), np.uint8)
        scratch = max((task.memory(samples) for task in tasks), default=0)
        self.memory = empty((scratch,), np.uint64)
        self.views = {}  # number of samples -> for each task its outputs
        self.calls = {}  # samples, threads, own steps -> for each task a callable, or None
        last = {source: i for i, task in enumerate(tasks) for source in task.inputs}
        self.done = [[s for s in {*task.inputs} if last[s] == i] for i, task in enumerate(tasks)]
        self.copies = {}  # number of samples -> copies of the model's input
        self.nbytes = self.arena.nbytes + self.memory.nbytes

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("Workspace: the memory of a call is not copied; copy the PackedModel")

    def outputs(self, samples: int) -> list[Any]:
        """For each task the arrays that its results go to, and the same as steps see them."""
        if samples not in self.views:
            if len(self.views) > 3:  # blocks have one size, and the last of a batch another one
                self.views.clear()
                self.calls.clear()
                self.copies.clear()
            self.views[samples] = [self._views_of(task, samples) for task in self.tasks]
        return self.views[samples]

    def callables(self, samples: int, own: frozenset[int] | set[int]) -> list[Any]:
        """For each task a callable that an earlier block has left, or None.

        Kept are those that read results of ``own`` steps only, whose arrays are the workspace's.
        What the caller gave, or NumPy made, is another array each time.
        """
        key = samples, threads.count(), own
        if key not in self.calls:
            self.calls[key] = [None] * len(self.tasks)
        return self.calls[key]

    def _views_of(self, task, samples):
        outputs = []
        for step, buffer in zip(task.steps, task.buffers, strict=False):
            start = self.places[step]
            part = self.arena[start : start + samples * buffer.nbytes]
            outputs.append(part.view(buffer.dtype).reshape(samples, *buffer.shape))
        return tuple(outputs), tuple([nchw(a) if a.dtype == np.float32 else a for a in outputs])

    def in_order(self, x: Array) -> Array:
        """The model's input as kernels read it, images with channels last; else a copy, kept."""
        if nhwc(x).flags.carray:
            return x
        n = len(x)
        if n not in self.copies:
            self.copies[n] = nchw(np.empty(nhwc(x).shape, x.dtype))
        self.copies[n][...] = x
        return self.copies[n]


def _lay_out(tasks, samples):
    """Where in the arena each result begins, and the size of the arena, in bytes.

    Each result gets the lowest place that is free for as long as it is needed.
    """
    born, dies, nbytes, root = {}, {}, {}, {}
    for i, task in enumerate(tasks):
        for source in task.inputs:
            # A result that NumPy made may be a view of what it was made from.
            for step in root.get(source, (source,)):
                dies[step] = i
        for step, buffer in zip(task.steps, task.buffers, strict=False):
            born[step], dies[step] = i, i
            nbytes[step] = -(-samples * buffer.nbytes // _LINE) * _LINE
        if not task.buffers:
            sources = {s for source in task.inputs for s in root.get(source, (source,))}
            root |= dict.fromkeys(task.steps, tuple(sources))
    for step in (tasks[-1].steps[-1], *root.get(tasks[-1].steps[-1], ())):
        dies[step] = len(tasks)
    places, size = {}, 0
    for step, birth in born.items():
        alive = [s for s in places if birth <= dies[s] and born[s] <= dies[step]]
        place = 0
        for other in sorted(alive, key=places.get):
            if place + nbytes[step] <= places[other]:
                break
            place = max(place, places[other] + nbytes[other])
        places[step] = place
        size = max(size, place + nbytes[step])
    return places, size


def block_size(tasks: Sequence[Task]) -> int:
    """Samples of a block whose results stay in the cache, as far as it goes."""
    _, size = _lay_out(tasks, 16)
    return max(_LEAST, _CACHE * 16 // max(size, 1))


def carry_out(
    tasks: Sequence[Task],
    workspace: Workspace,
    x: Array,
    clock: list[float] | None = None,
    packs: Collection[int] = (),
) -> Iterator[tuple[Task, Sequence[Array]]]:
    """Yield (task, results) one after the other.

    Parameters
    ----------
    tasks : sequence of Task
    workspace : Workspace
    x : (n, ...) float32
        n at most ``workspace.samples``.
    clock : list of float, optional
        The seconds of each task are added to it.
    packs : collection of int
        Steps that pack the model's input, if x is what they give: words of bits. They are left out,
        and nothing else may read the input.

    Results are views of the workspace: to be read before the next task is asked for.
    """
    values = dict.fromkeys(packs, x) if packs else {-1: workspace.in_order(x)}
    is_copy = not packs and values[-1] is not x
    own = workspace.own.difference(packs) | ({-1} if is_copy else set())
    outputs, calls = workspace.outputs(len(x)), workspace.callables(len(x), own)
    for i, task in enumerate(tasks):
        if packs and set(task.steps).issubset(packs):
            continue
        start = time.perf_counter() if clock else 0
        if task.buffers:
            arrays, results = outputs[i]
            call = calls[i]
            if call is None:
                inputs = [values[source] for source in task.inputs]
                call = task.function(inputs, arrays, workspace.memory)
                if own.issuperset(task.inputs):
                    calls[i] = call
            call()
        else:
            results = (task.function(*[values[source] for source in task.inputs]),)
        if clock:
            clock[i] += time.perf_counter() - start
        for step, result in zip(task.steps, results, strict=True):
            values[step] = result
        yield task, results
        for source in workspace.done[i]:
            values.pop(source, None)
