"""Execution of a plan: preallocated memory, blocks of the batch, time measurements."""

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

_CACHE = 1 << 20  # bytes of live results for a block of samples
_LEAST = 8  # samples of a block at least, so that kernel calls on small images pay off
_LINE = 64  # bytes of a cache line, the alignment of results
_SMALL = 1 << 17  # bytes of an input that is always copied


class Profile(list):
    """The result of `PackedModel.profile`: a list of dicts, one a task, which prints as a table."""

    _HEADER = ("layer", "operations", "ms", "share", "Gbit-MAC/s", "peak")
    _ALIGN = "<<>>>>"

    def table(self, width: int = tables.WIDTH) -> str:
        """Return the table as text of at most `width` characters a line."""
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
    """The memory of one call: an arena with an offset for each result of a plan.

    A result is live from the task that writes it to the last one that reads it; results that are
    never live at the same time share memory.

    Parameters
    ----------
    tasks : sequence of Task
    samples : int
        The largest size of a block.

    Attributes
    ----------
    nbytes : int
    """

    tasks: Sequence[Task]
    samples: int
    places: dict[int, int]
    own: frozenset[int]
    own_and_input: frozenset[int]
    place_of: dict[int, tuple[int, int]]
    arena: Array
    memory: Array
    views: dict[int, list[Any]]
    calls: dict[Any, list[Any]]
    done: list[list[int]]
    copies: dict[int, Array]
    nbytes: int

    def __init__(self, tasks: Sequence[Task], samples: int) -> None:
        self.tasks, self.samples = tasks, samples
        self.places, size = _lay_out(tasks, samples)
        self.own = frozenset(self.places)
        self.own_and_input = self.own | {-1}
        self.place_of = {
            step: (i, k)
            for i, task in enumerate(tasks)
            for k, (step, _) in enumerate(zip(task.steps, task.buffers, strict=False))
        }
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
        raise TypeError("Workspace: the memory of a call cannot be copied; copy the PackedModel")

    def outputs(self, samples: int) -> list[Any]:
        """For each task, its output arrays in memory order and as (N, C, H, W) or (N, F)."""
        if samples not in self.views:
            if len(self.views) > 3:  # usually two sizes: full blocks, and the last one
                self.views.clear()
                self.calls.clear()
                self.copies.clear()
            self.views[samples] = [self._views_of(task, samples) for task in self.tasks]
        return self.views[samples]

    def callables(self, samples: int, own: frozenset[int] | set[int]) -> list[Any]:
        """For each task the callable of an earlier block, or None.

        Only callables are kept that read results of ``own`` steps, whose arrays belong to the
        workspace. Other arrays (from the caller or from NumPy) change with each call.
        """
        key = samples, threads.count(), own
        if key not in self.calls:
            self.calls[key] = [None] * len(self.tasks)
        return self.calls[key]

    def value(self, step: int, values: dict[int, Array], outputs: list[Any]) -> Array:
        """The result of a step: among the given values, or one of the workspace's outputs."""
        if step in values:
            return values[step]
        task, position = self.place_of[step]
        return outputs[task][1][position]

    def _views_of(self, task, samples):
        outputs = []
        for step, buffer in zip(task.steps, task.buffers, strict=False):
            start = self.places[step]
            part = self.arena[start : start + samples * buffer.nbytes]
            outputs.append(part.view(buffer.dtype).reshape(samples, *buffer.shape))
        return tuple(outputs), tuple([nchw(a) if a.dtype == np.float32 else a for a in outputs])

    def in_order(self, x: Array) -> Array:
        """The model's input (N, C, H, W), channels-last in memory; copied if it is not, or small.

        Copying a small input takes less time than preparing the kernel that reads it.
        """
        if x.nbytes > _SMALL and nhwc(x).flags.carray:
            return x
        n = len(x)
        if n not in self.copies:
            self.copies[n] = nchw(np.empty(nhwc(x).shape, x.dtype))
        self.copies[n][...] = x
        return self.copies[n]


def _lay_out(tasks, samples):
    """The offset of each result in the arena, and the size of the arena, in bytes.

    Each result gets the lowest offset that is free while it is live (first fit).
    """
    born, dies, nbytes, root = {}, {}, {}, {}
    for i, task in enumerate(tasks):
        for source in task.inputs:
            # A result computed by NumPy may be a view of its inputs.
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
    """Return the number of samples of a block whose results fit the cache, at least 8."""
    _, size = _lay_out(tasks, 16)
    return max(_LEAST, _CACHE * 16 // max(size, 1))


def carry_out(
    tasks: Sequence[Task],
    workspace: Workspace,
    x: Array,
    clock: list[float] | None = None,
    packs: Collection[int] = (),
) -> Iterator[tuple[Task, Sequence[Array]]]:
    """Run the tasks one after the other, and yield (task, results).

    Results are views of the workspace: read them before requesting the next task.

    Parameters
    ----------
    tasks : sequence of Task
    workspace : Workspace
    x : (n, ...) float32
        n at most ``workspace.samples``.
    clock : list of float, optional
        Accumulates the seconds of each task.
    packs : collection of int
        Steps that pack the model's input, if x already is their result (words of bits). They are
        skipped; no other step may read the input.
    """
    values, own = _inputs(workspace, x, packs)
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


def _inputs(workspace, x, packs):
    """The values that are known at the start, and the steps whose arrays are the workspace's."""
    if packs:
        return dict.fromkeys(packs, x), workspace.own.difference(packs)
    ordered = workspace.in_order(x)
    return {-1: ordered}, workspace.own if ordered is x else workspace.own_and_input


def last_results(
    tasks: Sequence[Task], workspace: Workspace, x: Array, packs: Collection[int] = ()
) -> Sequence[Array]:
    """Run the tasks as `carry_out` does, and return the results of the last one.

    It is faster, since results are looked up only for tasks without a callable.
    """
    values, own = _inputs(workspace, x, packs)
    outputs, calls = workspace.outputs(len(x)), workspace.callables(len(x), own)
    results = ()
    for i, call in enumerate(calls):
        if call is not None:
            call()
            continue
        task = tasks[i]
        if packs and set(task.steps).issubset(packs):
            continue
        inputs = [workspace.value(source, values, outputs) for source in task.inputs]
        if not task.buffers:
            results = (task.function(*inputs),)
            values.update(zip(task.steps, results, strict=True))
            continue
        call = task.function(inputs, outputs[i][0], workspace.memory)
        if own.issuperset(task.inputs):
            calls[i] = call
        call()
    return outputs[-1][1] if tasks[-1].buffers else results
