"""Plans of float convolutions: tables of offsets, in place of a matrix of patches.

See `convolution` for what is computed and `convolution_tasks` for the kernels that read the tables.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn.kernels.floats.gathered import panel_widths
from tinybnn.kernels.machine.simd import FLOATS
from tinybnn.kernels.machine.windows import Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tinybnn.typing import Shape

_UNIT_FLOATS = 1 << 16  # approximate number of floats that the pixels of a unit see
UNIT_PIXELS = 256  # least output pixels of a unit: each unit reads all weights
_DEPTH = 512  # steps of a sum that meet all rows of a unit before the next ones
_CHUNK, _CHUNK_CHANNELWISE = 256, 64  # pixels that meet all taps before the next ones

# Columns of a plan's table of phases (see `Tables`),
FIRST_STEP, END_STEP, FIRST_PLACE, PHASE_ROWS, PHASE_COLUMNS, PHASE_PANELS = range(6)
# and of its table of panels.
BEFORE, PANEL_WIDTH, SOURCE, TARGET, COUNT, START = range(6)


class _Axis(NamedTuple):
    """A phase along one axis: equidistant target pixels that see the same taps.

    Target pixel ``start + r * stride``, for 0 <= r < count, sees source pixel ``r * step + offset``
    under tap t, for each t of ``taps`` and its offset.
    """

    count: int
    start: int
    stride: int
    step: int
    taps: tuple
    offsets: tuple


def _forward_phases(output, taps, stride, padding, dilation):
    """List the phases of an axis of the forward pass: there is one."""
    offsets = tuple(tap * dilation - padding for tap in range(taps))
    return [_Axis(output, 0, 1, stride, tuple(range(taps)), offsets)]


def _input_phases(size, taps, stride, padding, dilation):
    """List the phases of an axis of the gradient in the image: one per remainder by the stride."""
    phases = []
    for start in range(min(stride, size)):
        distances = {tap: start + padding - tap * dilation for tap in range(taps)}
        reaching = {tap: n // stride for tap, n in distances.items() if n % stride == 0}
        count = len(range(start, size, stride))
        phases.append(_Axis(count, start, stride, 1, tuple(reaching), tuple(reaching.values())))
    return phases


class Tables(NamedTuple):
    """Tables that say what is summed where; arrays of int64.

    Attributes
    ----------
    places, targets, steps : (...,)
        As `gathered.product` reads them, those of all phases one after the other.
    phases : (P, 6)
        First and last step, first place, rows, columns, start of its panels.
    panels : (Q, 6)
        Columns before the panel, its width, first source channel, first target channel, number of
        target channels, start of its weights.
    """

    places: np.ndarray
    targets: np.ndarray
    steps: np.ndarray
    phases: np.ndarray
    panels: np.ndarray


class Units(NamedTuple):
    """How the source is divided into units: rows of an image, or whole images."""

    height: int  # of the source
    width: int
    channels: int
    out_height: int  # of the target
    out_width: int
    out_channels: int
    rows: int  # of the largest phase
    unit_rows: int
    unit_images: int  # if a unit holds whole images, else 0
    row_stride: int  # distance of adjacent rows of a phase in the target
    row_step: int  # and in the source
    copies: int  # whether units are copied
    low_y: int  # first row and column that the first pixel sees
    low_x: int
    span: int  # number of rows that it sees
    seen_width: int  # number of columns that a row of pixels sees
    most_steps: int  # steps of a sum, and pixels, in one block of work
    most_pixels: int
    depthwise: int
    copied: int  # floats of the copy of a unit; 0 if pixels are read in place


class Plan(NamedTuple):
    """Everything that the kernels need except the data; made once for each geometry.

    Attributes
    ----------
    items : int
        Units of work that threads share: images, or rows (of the largest phase) across all images.
    units : Units
    tables : Tables
    columns : int
        Columns of all panels.
    lane : int
        Distance between the weights of adjacent columns.
    of_weight : (len(steps),) int64
        Offset of each step's weight among the weights of a column.
    pixels, work : int
        Pixels of a phase in all images; multiplications.
    """

    items: int
    units: Units
    tables: Tables
    columns: int
    lane: int
    of_weight: np.ndarray
    pixels: int
    work: int


@functools.lru_cache(maxsize=256)
def forward_plan(shape: Shape, weight: Shape, window: Windows, groups: int) -> Plan:
    """Plan the convolution of images (N, H, W, C) with a weight (O, C / groups, kh, kw).

    ``shape`` and ``weight`` are these shapes.
    """
    filters, group_channels, *_ = weight
    axes = window.out_size, window.kernel_size, window.stride, window.padding, window.dilation
    phases = [_forward_phases(*axis) for axis in zip(*axes, strict=True)]
    # Step (tap, c) of filter o is weight[o, c, tap].
    distances = window.taps, group_channels * window.taps
    return _plan(shape, (*window.out_size, filters), phases, window, groups, *distances)


@functools.lru_cache(maxsize=256)
def input_plan(shape: Shape, weight: Shape, window: Windows, groups: int) -> Plan:
    """Plan the gradient in the image, for gradients of ``shape`` (N, OH, OW, O).

    ``weight`` is the shape (O, C / groups, kh, kw).
    """
    group_channels = weight[1]
    axes = window.size, window.kernel_size, window.stride, window.padding, window.dilation
    phases = [_input_phases(*axis) for axis in zip(*axes, strict=True)]
    # Step (tap, o) of channel c is weight[o, c, tap].
    distances = group_channels * window.taps, window.taps
    return _plan(shape, (*window.size, groups * group_channels), phases, window, groups, *distances)


def panels_of(
    groups: int, sources: int, targets: int, of_group: int, lane: int
) -> tuple[NDArray[np.int64], int]:
    """Return the table of panels, (Q, 6) int64, and the number of columns.

    Each group has ``sources`` source channels and ``targets`` target channels; ``of_group`` and
    ``lane`` are distances in the weights between groups and between target channels.
    """
    if sources == targets == 1:  # depth-wise: one panel holds the filters of all channels
        width = -(-groups // FLOATS) * FLOATS
        return np.array([(0, width, 0, 0, groups, 0)]), width
    rows, before = [], 0
    for group in range(groups):
        first = 0
        for width in panel_widths(targets):
            count = min(width, targets - first)
            start = group * of_group + first * lane
            rows.append((before, width, group * sources, group * targets + first, count, start))
            before += width
            first += width
    return np.array(rows, np.int64), before


def _plan(shape, target, phases, window, groups, step, lane):
    """Build the tables for a source of ``shape`` and a target (H, W, C), with phases for both axes.

    ``step`` and ``lane`` are the distances in the weights between adjacent channels of the source,
    and of the target.
    """
    images, height, width, channels = shape
    target_height, target_width, target_channels = target
    sources, targets = channels // groups, target_channels // groups
    table, before = panels_of(groups, sources, targets, sources * targets * window.taps, lane)
    of_weight, depthwise = np.arange(sources) * step, sources == targets == 1
    rows, columns = (max(phase.count for phase in axis) for axis in phases)
    # Visible pixels reach from `low` to `high` (exclusive), possibly beyond the image.
    low, spans = zip(*(_reach(axis) for axis in phases), strict=True)
    row_step = phases[0][0].step
    seen_width = (columns - 1) * phases[1][0].step + spans[1]
    high = low[0] + (rows - 1) * row_step + spans[0], low[1] + seen_width
    copies = min(low) < 0 or high[0] > height or high[1] > width
    # Loading the last channels of a depth-wise pixel reads beyond it.
    copies = copies or (depthwise and channels % FLOATS > 0)
    row_floats = (seen_width if copies else width) * channels
    image_floats = (
        ((rows - 1) * row_step + spans[0]) * row_floats if copies else height * width * channels
    )

    unit_rows, unit_images = _unit_size(images, rows, columns, row_step * row_floats, image_floats)
    places, pixels, steps, weights, lines = [], [], [], [], []
    start = place = panel = 0
    for y, x in itertools.product(*phases):
        image = np.arange(max(unit_images, 1))[:, None, None]
        r, c = np.arange(min(y.count, unit_rows))[:, None], np.arange(x.count)
        places.append(image * image_floats + r * y.step * row_floats + c * x.step * channels)
        to_row, to_column = y.start + r * y.stride, x.start + c * x.stride
        to_pixel = (image * target_height + to_row) * target_width + to_column
        pixels.append(to_pixel * target_channels)
        pixel = (np.array(y.offsets)[:, None] - low[0]) * row_floats + (
            np.array(x.offsets) - low[1]
        ) * channels
        tap = np.array(y.taps)[:, None] * window.kernel_width + np.array(x.taps)
        steps.append(np.add.outer(pixel, np.arange(len(of_weight))))
        weights.append(np.add.outer(tap, of_weight))
        lines.append((start, start + steps[-1].size, place, y.count, x.count, panel))
        start += steps[-1].size
        place += places[-1].size
        panel += steps[-1].size * before
    copied_rows = max(unit_images, 1) * ((unit_rows - 1) * row_step + spans[0])
    units = Units(
        height, width, channels, target_height, target_width, target_channels,
        rows, unit_rows, unit_images, phases[0][0].stride, row_step, int(copies), *low, spans[0],
        seen_width, _DEPTH, _CHUNK_CHANNELWISE if depthwise else _CHUNK, int(depthwise),
        copied_rows * row_floats if copies else 0,
    )  # fmt: skip
    steps_of_pixels = images * sum(line[3] * line[4] * (line[1] - line[0]) for line in lines)
    return Plan(
        items=images if unit_images else images * rows,
        units=units,
        tables=Tables(*map(_joined, (places, pixels, steps)), np.array(lines, np.int64), table),
        columns=before,
        lane=lane,
        of_weight=_joined(weights),
        pixels=images * rows * columns,
        work=steps_of_pixels * before,
    )


def _unit_size(images, rows, columns, row_floats, image_floats):
    """Return the rows of a unit, and its images if it holds whole images, else 0."""
    unit_rows = max(_UNIT_FLOATS // max(row_floats, 1), -(-UNIT_PIXELS // columns))
    if unit_rows < rows:
        return unit_rows, 0
    unit_images = max(_UNIT_FLOATS // max(image_floats, 1), -(-UNIT_PIXELS // (rows * columns)))
    return rows, max(min(unit_images, images), 1)


def _joined(parts):
    return np.concatenate([part.reshape(-1) for part in parts]).astype(np.int64)


def _reach(axis):
    """Return the lowest offset of an axis' phases, and the number of offsets up to the highest."""
    offsets = [offset for phase in axis for offset in phase.offsets] or [0]
    return min(offsets), max(offsets) - min(offsets) + 1
