"""Kernels of float convolutions: forward, gradient in the image, gradient in the weight.

They follow the tables of `convolution_plans`; see `convolution` for what is computed.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn.kernels.floats.convolution_plans import (
    BEFORE,
    COUNT,
    END_STEP,
    FIRST_PLACE,
    FIRST_STEP,
    PANEL_WIDTH,
    PHASE_COLUMNS,
    PHASE_PANELS,
    PHASE_ROWS,
    SOURCE,
    START,
    TARGET,
    Plan,
)
from tinybnn.kernels.floats.gathered import (
    TOGETHER,
    TOGETHER_CHANNELWISE,
    Panel,
    Patches,
    Sums,
    channelwise_product,
    product,
)
from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import (
    FLOATS,
    clear,
    copy,
    inlined,
    kernel,
    load,
    store,
    subkernel,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PARTIAL_FLOATS = 1 << 20  # approximate number of partial sums of the gradient in the weight
_PART_PIXELS = 1 << 11  # least pixels of one partial sum
_PART_PRODUCTS = 1 << 21  # least multiplications of one partial sum
_SPEED = 2e11  # multiplications per second on a fast core


def convolve(
    plan: Plan, source: NDArray[np.float32], weight: NDArray[np.float32], out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compute the forward pass or the gradient in the image, as the plan says.

    source : (N, H, W, C), weight : (O, C / groups, kh, kw), out : as the plan's target
    """
    if out.size == 0:
        return out
    if source.size == 0:  # no channels: sums of nothing
        out[...] = 0
        return out
    panels = empty((len(plan.of_weight) * plan.columns,), np.float32)
    phases, table = plan.tables.phases, plan.tables.panels
    lay_out(weight.reshape(-1), plan.lane, plan.of_weight, phases, table, panels)
    count = max(1, min(threads.tasks_for(plan.work / _SPEED), plan.items))
    tasks = _tasks_of_items(plan.items, count)
    _run(_convolution_tasks, count, tasks, plan, 0, source, panels, out)
    return out


@functools.lru_cache(maxsize=256)
def _tasks_of_items(items, count):
    """Divide items among tasks: (count, 5) int64."""
    tasks = np.zeros((count, 5), np.int64)
    tasks[:, :2] = parallel.shares(items, count)
    return tasks


def weight_gradient(
    plan: Plan, x: NDArray[np.float32], grad: NDArray[np.float32], out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compute the gradient in the weight: rows are taps, steps are pixels.

    x : (N, H, W, C), grad : (N, OH, OW, O), out : (O, C / groups, kh, kw)
    """
    taps, columns, table = len(plan.of_weight), plan.columns, plan.tables.panels
    count = threads.tasks_for(plan.work / _SPEED)
    parts, tasks, targets = _tasks_of_taps(
        plan.items, plan.pixels, plan.work, taps, columns, plan.units.depthwise, count
    )
    # Gradients whose layout is that of a panel are used in place.
    is_laid_out = len(table) == 1 and table[0, PANEL_WIDTH] == table[0, COUNT]
    laid_out = 0 if is_laid_out else plan.units.most_pixels * columns
    partial = empty((parts, taps * columns), np.float32)
    _run(_weight_tasks, count, tasks, plan, laid_out, x, grad, partial, targets)
    for part in partial[1:]:
        partial[0] += part
    _collect(partial[0], columns, plan.lane, plan.of_weight, table, out.reshape(-1))
    return out


@functools.lru_cache(maxsize=256)
def _tasks_of_taps(items, pixels, work, taps, columns, depthwise, count):
    """Return the number of parts of the images, tasks (ranges of items and taps), and targets.

    The images are divided into a few parts, whose sums are added in order: as many as the memory
    allows, whatever the number of threads. If there are more threads, they also share the taps.
    """
    parts = pixels // _PART_PIXELS, _PARTIAL_FLOATS // (taps * columns)
    parts = max(1, min(*parts, items, work // _PART_PRODUCTS))
    together = TOGETHER_CHANNELWISE if depthwise else TOGETHER
    blocks = -(-taps // together)
    slices = 1 if parts >= 4 * count else min(count // math.gcd(parts, count), blocks)
    tap_bounds = np.minimum(np.arange(slices + 1) * blocks // slices * together, taps)
    bounds = np.arange(parts + 1) * items // parts
    spans = itertools.product(enumerate(itertools.pairwise(bounds)), itertools.pairwise(tap_bounds))
    tasks = [(*of_part, *span, part * taps * columns) for (part, of_part), span in spans]
    return parts, np.array(tasks, np.int64), np.arange(taps) * columns


def _run(worker, count, tasks, plan, laid_out, source, other, out, *targets):
    """Run tasks on ``count`` threads, each with its own memory for copies."""
    # Loading the last channels may read beyond them.
    room = -(-(plan.units.copied + laid_out) // FLOATS) * FLOATS + FLOATS
    count = min(count, len(tasks))
    memory = empty((count * room,), np.float32)
    arrays = source.reshape(-1), other.reshape(-1), out.reshape(-1), *targets
    with np.errstate(over="ignore", invalid="ignore"):  # as compiled code, when the JIT is off
        parallel.share_out(
            worker, parallel.shares(len(tasks), count), tasks, (memory, room, laid_out), arrays,
            plan.units, plan.tables,
        )  # fmt: skip


# Tasks are ranges of items, and for the gradient in the weight also of taps. All arrays except
# tables are flat. The memory has ``room`` floats for each thread.


@kernel(allocates=False)
def _convolution_tasks(first, end, thread, tasks, memory, arrays, units, tables):
    """Compute forward, or gradient in the image: tasks first to end - 1; rows are pixels."""
    (copies, room, _), (source, panels, out) = memory, arrays
    for task in range(first, end):
        item, stop = tasks[task, 0], tasks[task, 1]
        while item < stop:
            unit = _unit(item, stop, units)
            image, row, images, count = unit
            item += images if units.unit_images else count
            pixels, base = _seen(source, unit, copies, thread * room, units)
            pixel = (image * units.out_height + row * units.row_stride) * units.out_width
            of_unit = Patches(pixels, base, tables.places, tables.steps)
            sums = Sums(out, pixel * units.out_channels, tables.targets, False)
            _pixels_by_filters(row, images, count, of_unit, panels, sums, units, tables)


@kernel(allocates=False)
def _weight_tasks(first, end, thread, tasks, memory, arrays, units, tables):
    """Compute the gradient in the weight: tasks first to end - 1; rows are taps."""
    (copies, room, laid_out), (source, grad, out, targets) = memory, arrays
    slot = thread * room
    for task in range(first, end):
        item, stop, tap, end_tap, to = tasks[task]
        adds = False
        while item < stop:
            unit = _unit(item, stop, units)
            image, row, images, count = unit
            item += images if units.unit_images else count
            pixels, base = _seen(source, unit, copies, slot, units)
            pixel = (image * units.out_height + row * units.row_stride) * units.out_width
            of_unit = Patches(pixels, base, tables.steps, tables.places)
            gradients = _Gradients(
                grad, pixel * units.out_channels, images * count * units.out_width,
                copies, slot + units.copied, laid_out > 0,
            )  # fmt: skip
            sums = Sums(out, to, targets, adds)
            _taps_by_filters(tap, end_tap, of_unit, gradients, sums, units, tables.panels)
            adds = True


class _Gradients(NamedTuple):
    """The gradients of ``pixels`` pixels, from ``grad[at]`` on, and the memory for their layout."""

    grad: np.ndarray
    at: int
    pixels: int
    memory: np.ndarray
    slot: int
    laid_out: bool


@inlined
def _unit(first, end, units):
    """Return the unit that begins at item ``first``: image, row, images, rows."""
    rows = units.rows
    if units.unit_images:
        return first, 0, min(units.unit_images, end - first), rows
    row = first % rows
    return first // rows, row, 1, min(units.unit_rows, rows - row, end - first)


@inlined
def _seen(source, unit, memory, to, units):
    """Return the array that holds a unit's pixels, and where the first pixel's patch begins."""
    image, row, _, _ = unit
    if units.copies:
        _copy_unit(source, unit, memory, to, units)
        return memory, to
    first_row = image * units.height + row * units.row_step + units.low_y
    return source, (first_row * units.width + units.low_x) * units.channels


@subkernel
def _copy_unit(source, unit, memory, to, units):
    """Copy all pixels that a unit sees to memory[to] and following, with zeros beyond the image."""
    image, row, images, rows = unit
    height, width, channels = units.height, units.width, units.channels
    low_x, seen_width = units.low_x, units.seen_width
    from_x, to_x = max(low_x, 0), min(low_x + seen_width, width)
    inside = max(to_x - from_x, 0) * channels
    left = min(max(-low_x, 0), seen_width) * channels
    right = seen_width * channels - left - inside
    top = row * units.row_step + units.low_y
    bottom = top + (rows - 1) * units.row_step + units.span
    for i in range(image, image + images):
        for y in range(top, bottom):
            if y < 0 or y >= height:
                clear(memory, to, left + inside + right)
            else:
                clear(memory, to, left)
                at = ((i * height + y) * width + from_x) * channels
                copy(source, at, memory, to + left, inside)
                clear(memory, to + left + inside, right)
            to += left + inside + right


@subkernel
def _pixels_by_filters(row, images, rows, patches, panels, sums, units, tables):
    """Multiply each phase of a unit by its panels: forward, or gradient in the image."""
    phases, table = tables.phases, tables.panels
    for f in range(len(phases)):
        k0, k1, place = phases[f, FIRST_STEP], phases[f, END_STEP], phases[f, FIRST_PLACE]
        phase_rows = max(min(rows, phases[f, PHASE_ROWS] - row), 0)
        end = place + images * phase_rows * phases[f, PHASE_COLUMNS]
        for p in range(len(table)):
            width, filters = table[p, PANEL_WIDTH], table[p, COUNT]
            panel = phases[f, PHASE_PANELS] + table[p, BEFORE] * (k1 - k0)
            base, to = patches.base + table[p, SOURCE], sums.at + table[p, TARGET]
            of_panel = Patches(patches.source, base, patches.places, patches.steps)
            # The sums of a partly filled panel cannot be added to memory.
            depth = units.most_steps if filters == width else max(k1 - k0, 1)
            # Pixels that no tap reaches have one empty block of steps: they become 0.
            for k in range(k0, max(k1, k0 + 1), depth):
                stop, weights = (
                    min(k + depth, k1),
                    Panel(panels, panel + (k - k0) * width, width, filters),
                )
                target_sums = Sums(sums.out, to, sums.targets, k > k0)
                if units.depthwise:
                    channelwise_product(place, end, k, stop, of_panel, weights, target_sums)
                else:
                    product(place, end, k, stop, of_panel, weights, target_sums)


@subkernel
def _taps_by_filters(tap, end_tap, patches, gradients, sums, units, table):
    """Multiply the pixels of a unit under some taps by their gradients: gradient in the weight."""
    filters, chunk = units.out_channels, units.most_pixels
    for k in range(0, gradients.pixels, chunk):
        count = min(chunk, gradients.pixels - k)
        panel, q = gradients.grad, gradients.at + k * filters
        if gradients.laid_out:
            panel, q = gradients.memory, gradients.slot
            at = gradients.at + k * filters
            _lay_out_gradient(gradients.grad, at, count, filters, table, panel, q)
        for p in range(len(table)):
            before, width = table[p, BEFORE], table[p, PANEL_WIDTH]
            base = patches.base + table[p, SOURCE]
            of_panel = Patches(patches.source, base, patches.places, patches.steps)
            weights = Panel(panel, q + before * count, width, width)
            target_sums = Sums(sums.out, sums.at + before, sums.targets, sums.adds or k > 0)
            if units.depthwise:
                channelwise_product(tap, end_tap, k, k + count, of_panel, weights, target_sums)
            else:
                product(tap, end_tap, k, k + count, of_panel, weights, target_sums)


@inlined
def _lay_out_gradient(grad, at, pixels, filters, table, memory, to):
    """Copy the gradients of some pixels into panels, pixel by pixel, filter by filter."""
    for p in range(len(table)):
        width, first, count = table[p, PANEL_WIDTH], table[p, TARGET], table[p, COUNT]
        whole = count - count % FLOATS
        for i in range(at + first, at + first + pixels * filters, filters):
            for j in range(0, whole, FLOATS):
                store(memory, to + j, load(grad, i + j))
            if whole < width:
                clear(memory, to + whole, width - whole)
                copy(grad, i + whole, memory, to + whole, count - whole)
            to += width


@kernel(allocates=False)
def lay_out(
    weight: NDArray[np.float32],
    lane: int,
    of_weight: NDArray[np.int64],
    phases: NDArray[np.int64],
    table: NDArray[np.int64],
    panels: NDArray[np.float32],
) -> None:
    """Copy the weights of each phase into panels, step by step, column by column.

    All arrays are flat, except ``phases`` (P, 6) and ``table`` (Q, 6), as in
    `convolution_plans.Tables`.
    """
    for f in range(len(phases)):
        k0, k1 = phases[f, FIRST_STEP], phases[f, END_STEP]
        for p in range(len(table)):
            width, count, start = table[p, PANEL_WIDTH], table[p, COUNT], table[p, START]
            q = phases[f, PHASE_PANELS] + table[p, BEFORE] * (k1 - k0)
            for k in range(k0, k1):
                for j in range(count):
                    panels[q + j] = weight[start + j * lane + of_weight[k]]
                for j in range(count, width):
                    panels[q + j] = np.float32(0)
                q += width


@kernel(allocates=False)
def _collect(sums, columns, lane, of_weight, table, weight):
    """Copy sums of (tap, channel) by filter back into the layout of weights."""
    for p in range(len(table)):
        before, count, start = table[p, BEFORE], table[p, COUNT], table[p, START]
        for k in range(len(of_weight)):
            for j in range(count):
                weight[start + j * lane + of_weight[k]] = sums[k * columns + before + j]
