"""Real-valued convolutions for training: forward, gradient in the image, gradient in the weight.

With images x, filters w, and the gradient g of the output, the three are::

    conv2d          out[n, y, o]  = sum over tap, c of  x[n, z, c] * w[o, c, tap]
    conv2d_input    dx[n, z, c]   = sum over tap, o of  g[n, y, o] * w[o, c, tap]
    conv2d_weight   dw[o, c, tap] = sum over n, y of    g[n, y, o] * x[n, z, c]

    where z = y * stride + tap - padding.

(y, z and tap stand for two coordinates each; tap counts pixels, so dilation is in it.) Each of them
is a product with a matrix of patches, and none of them makes that matrix: `gathered.product` reads
the image through two tables of offsets.

- **Forward**: rows are output pixels, steps are taps and channels, and the filters are laid out in
  panels.
- **Gradient in the image**: the same for stride 1, with the filter turned round and its channels
  exchanged for its filters. With a larger stride s, only those taps reach a pixel z for which
  z + padding - tap is a multiple of s. Pixels with the same remainder see the same taps: so the
  image falls into s * s *phases*, each of which is a dense convolution of g with some of the taps
  (the sub-pixel view of Shi et al. 2016, arXiv:1609.07009), and no zeros are multiplied. A
  transposed convolution is this.
- **Gradient in the weight**: rows are taps and channels, steps are pixels: the tables of the
  forward pass exchanged. The gradients of a few hundred pixels at a time are laid out in panels.

A 1×1 convolution is the plain matrix product of pixels and filters: its tables say so, and nothing
is copied. A depth-wise one (groups = C = O) multiplies 16 channels with a filter each at a time.
Where there are too few filters (or channels of the image) to fill a vector, the taps fill it: see
`_spread`.

Work goes through *units*: so many rows of an image, or whole images, that what they see stays in
the cache. There they are copied with the zeros of their padding. Threads share out rows and images;
in the gradient in the weight also taps. How sums are grouped depends on shapes only: the result is
the same for any number of threads. BLAS takes no part, so its threads do not meet these.

Arrays are float32; images are (N, H, W, C) and contiguous, weights (O, C / groups, kh, kw).
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn.kernels.floats.gathered import (
    TOGETHER,
    TOGETHER_CHANNELWISE,
    Panel,
    Patches,
    Sums,
    channelwise_product,
    panel_widths,
    product,
)
from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.checks import out_array
from tinybnn.kernels.machine.layout import for_kernel
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
from tinybnn.kernels.machine.windows import Windows, pair, windows, with_border

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import FloatArray

_UNIT_FLOATS = 1 << 16  # floats that the pixels of a unit see, about
_UNIT_PIXELS = 256  # output pixels of a unit at least: each unit reads all weights
_DEPTH = 512  # steps of a sum that meet all rows of a unit before the next ones
_CHUNK, _CHUNK_CHANNELWISE = 256, 64  # pixels that meet all taps before the next ones
_PARTIAL_FLOATS = 1 << 20  # partial sums of the gradient in the weight, about
_PART_PIXELS = 1 << 11  # pixels whose sums are one of the partial sums, at least
_CYCLES_OF_SPREADING = 4  # of adding a number to a pixel
_PART_PRODUCTS = 1 << 21  # multiplications of such a part, at least
_SPEED = 2e11  # multiplications a second, of a fast core

# What the numbers are in a row of a plan's table of phases (see `_Plan`),
_FIRST_STEP, _END_STEP, _FIRST_PLACE, _PHASE_ROWS, _PHASE_COLUMNS, _PHASE_PANELS = range(6)
# and in a row of its table of panels.
_BEFORE, _PANEL_WIDTH, _SOURCE, _TARGET, _COUNT, _START = range(6)


# ------------------------------------------------------------------------------- the three products


def conv2d(
    x: ArrayLike,
    weight: ArrayLike,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    out: NDArray[np.float32] | None = None,
    output_size: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """2-D convolution (cross-correlation).

    Parameters
    ----------
    x : (N, H, W, C) float32
    weight : (O, C / groups, kh, kw) float32
    stride, padding, dilation : (int, int)
        Along height and width. `padding` zeros are added on both sides.
    groups : int
        A divisor of C and O. Output channel o sees the channels of group ``o // (O / groups)``.
    out : (N, OH, OW, O) float32, optional
        Contiguous, to be written to.
    output_size : (int, int), optional
        Height and width of the output, if not all pixels are wanted: as many from the beginning.

    Returns
    -------
    (N, OH, OW, O) float32
        ``OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1``, OW likewise.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the output would be empty.
    """
    x, weight = _images("conv2d", "x", x), _filters("conv2d", weight)
    _check_groups("conv2d", weight.shape, groups)
    _check_channels("conv2d", "x", x, weight.shape[1] * groups, "input")
    sizes = x.shape[1:3], weight.shape[2:], stride, padding, dilation
    of = _windows("conv2d", output_size, *sizes)
    out = out_array("conv2d", out, (len(x), *of.out_size, len(weight)))
    filters, channels, *taps = weight.shape
    if groups == 1 and of.stride == (1, 1) and _is_spread(channels, filters, *taps):
        # A pixel's products go to where its taps are, seen from the output.
        turned = Windows(
            *of.out_size, *of.size, *taps, 1, 1, -of.top, -of.left, *(-d for d in of.dilation)
        )
        return _spread(x, for_kernel(weight.transpose(1, 0, 2, 3)), out, turned)
    return _convolve(_forward_plan(x.shape, weight.shape, of, int(groups)), x, weight, out)


def conv2d_reference(
    x: FloatArray,
    weight: FloatArray,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    output_size: tuple[int, int] | None = None,
) -> FloatArray:
    """What :func:`conv2d` computes, in plain NumPy: one tap at a time; any dtype."""
    sizes = x.shape[1:3], weight.shape[2:], stride, padding, dilation
    of = _windows("conv2d_reference", output_size, *sizes)
    shape = len(x), *of.out_size, groups, len(weight) // groups
    total = np.zeros(shape, np.result_type(x, weight))
    for seen, filters in _taps(with_border(x, padding), weight, of, groups):
        total += np.einsum("nyxgc,goc->nyxgo", seen, filters)
    return total.reshape(len(x), *of.out_size, len(weight))


def conv2d_input(
    grad: ArrayLike,
    weight: ArrayLike,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The gradient of `conv2d` in the image; as a map of its own, the transposed convolution.

    Parameters
    ----------
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    weight : (O, C / groups, kh, kw) float32
    size : (int, int)
        Height H and width W of the images.
    stride, padding, dilation : (int, int)
    groups : int
    out : (N, H, W, C) float32, optional
        Contiguous, to be written to.

    Returns
    -------
    (N, H, W, C) float32

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit.
    """
    name = "conv2d_input"
    grad, weight = _images(name, "grad", grad), _filters(name, weight)
    _check_groups(name, weight.shape, groups)
    _check_channels(name, "grad", grad, len(weight), "output")
    size = pair(name, "size", size, 1)
    of = _windows(name, grad.shape[1:3], size, weight.shape[2:], stride, padding, dilation)
    out = out_array(name, out, (len(grad), *size, weight.shape[1] * groups))
    if groups == 1 and _is_spread(*weight.shape):
        return _spread(grad, weight, out, of)
    return _convolve(_input_plan(grad.shape, weight.shape, of, int(groups)), grad, weight, out)


def conv2d_input_reference(
    grad: FloatArray,
    weight: FloatArray,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> FloatArray:
    """What :func:`conv2d_input` computes, in plain NumPy: gradients are spread over patches."""
    images, *output, filters = grad.shape
    sizes = size, weight.shape[2:], stride, padding, dilation
    of = _windows("conv2d_input_reference", output, *sizes)
    shape = images, *of.padded_size, weight.shape[1] * groups
    padded = np.zeros(shape, np.result_type(grad, weight))
    grouped = grad.reshape(images, *output, groups, filters // groups)
    for seen, taps in _taps(padded, weight, of, groups):
        seen += np.einsum("nyxgo,goc->nyxgc", grouped, taps)  # a view of `padded`
    return padded[:, of.top : of.top + of.height, of.left : of.left + of.width]


def conv2d_weight(
    x: ArrayLike,
    grad: ArrayLike,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The gradient of `conv2d` in the weight.

    Parameters
    ----------
    x : (N, H, W, C) float32
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    kernel_size : (int, int)
        Height kh and width kw of the filters.
    stride, padding, dilation : (int, int)
    groups : int
    out : (O, C / groups, kh, kw) float32, optional
        Contiguous, to be written to.

    Returns
    -------
    (O, C / groups, kh, kw) float32

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit.
    """
    name = "conv2d_weight"
    x, grad = _images(name, "x", x), _images(name, "grad", grad)
    kernel_size = pair(name, "kernel_size", kernel_size, 1)
    if groups < 1 or x.shape[3] % groups:
        raise ValueError(f"{name}: groups must divide the {x.shape[3]} channels of x, got {groups}")
    shape = grad.shape[3], x.shape[3] // groups, *kernel_size
    _check_groups(name, shape, groups)
    if len(grad) != len(x):
        raise ValueError(f"{name}: grad must have the {len(x)} images of x, got {len(grad)}")
    of = _windows(name, grad.shape[1:3], x.shape[1:3], kernel_size, stride, padding, dilation)
    out = out_array(name, out, shape)
    if 0 in x.shape or 0 in grad.shape:
        out[...] = 0
        return out
    return _weight_gradient(_forward_plan(x.shape, shape, of, int(groups)), x, grad, out)


def conv2d_weight_reference(
    x: FloatArray,
    grad: FloatArray,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> FloatArray:
    """What :func:`conv2d_weight` computes, in plain NumPy: one tap at a time."""
    images, *output, filters = grad.shape
    weight = np.zeros((filters, x.shape[3] // groups, *kernel_size), np.result_type(x, grad))
    grouped = grad.reshape(images, *output, groups, filters // groups)
    sizes = x.shape[1:3], kernel_size, stride, padding, dilation
    of = _windows("conv2d_weight_reference", output, *sizes)
    for seen, taps in _taps(with_border(x, padding), weight, of, groups):
        taps += np.einsum("nyxgc,nyxgo->goc", seen, grouped)  # a view of `weight`
    return weight


def _taps(padded, weight, of, groups):
    """For each tap the pixels under it, (N, OH, OW, G, C / G), and its weights, (G, O / G, C / G).

    Both are views.
    """
    image = padded.reshape(*padded.shape[:3], groups, -1)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    for ky, kx, seen in of.views(image):
        yield seen, grouped[..., ky, kx]


# -------------------------------------------------------------------------------------------- plans


class _Axis(NamedTuple):
    """A phase along one axis: target pixels in equal distances, which see the same taps.

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
    """Of an axis of the forward pass: there is one."""
    offsets = tuple(tap * dilation - padding for tap in range(taps))
    return [_Axis(output, 0, 1, stride, tuple(range(taps)), offsets)]


def _input_phases(size, taps, stride, padding, dilation):
    """Of an axis of the gradient in the image: one for each remainder of a pixel by the stride."""
    phases = []
    for start in range(min(stride, size)):
        distances = {tap: start + padding - tap * dilation for tap in range(taps)}
        reaching = {tap: n // stride for tap, n in distances.items() if n % stride == 0}
        count = len(range(start, size, stride))
        phases.append(_Axis(count, start, stride, 1, tuple(reaching), tuple(reaching.values())))
    return phases


class _Tables(NamedTuple):
    """What is summed where; arrays of int64.

    Attributes
    ----------
    places, targets, steps
        As `gathered.product` reads them, those of all phases one after the other.
    phases : (P, 6)
        First and last step, first place, rows, columns, where its panels begin.
    panels : (Q, 6)
        Columns before the panel, its width, first source channel, first target channel, number of
        target channels, where its weights begin.
    """

    places: np.ndarray
    targets: np.ndarray
    steps: np.ndarray
    phases: np.ndarray
    panels: np.ndarray


class _Units(NamedTuple):
    """How the source is worked on, a unit at a time: rows of an image, or whole images."""

    height: int  # of the source
    width: int
    channels: int
    out_height: int  # of the target
    out_width: int
    out_channels: int
    rows: int  # of the largest phase
    unit_rows: int
    unit_images: int  # if a unit holds all their rows, else 0
    row_stride: int  # distance of neighbouring rows of a phase in the target
    row_step: int  # and in the source
    copies: int  # whether units are copied
    low_y: int  # the first row and column that the first pixel sees
    low_x: int
    span: int  # how many rows it sees
    seen_width: int  # how many columns a row of pixels sees
    most_steps: int  # steps of a sum, and pixels, that come before the next ones
    most_pixels: int
    depthwise: int
    copied: int  # floats of the copy of a unit; 0 if pixels are read where they are


class _Plan(NamedTuple):
    """All that the kernels need to know but the numbers; made once for each geometry.

    Attributes
    ----------
    items : int
        What threads share out: images, or rows (of the largest phase) through all images.
    units : _Units
    tables : _Tables
    columns : int
        Of all panels.
    lane : int
        Distance of the weights of neighbouring columns.
    of_weight : (len(steps),) int64
        Where in the weights of a column each step finds its own.
    pixels, work : int
        Pixels of a phase in all images; multiplications.
    """

    items: int
    units: _Units
    tables: _Tables
    columns: int
    lane: int
    of_weight: np.ndarray
    pixels: int
    work: int


@functools.lru_cache(maxsize=256)
def _forward_plan(shape, weight, of, groups):
    """Of images of ``shape`` (N, H, W, C) and filters of the shape ``weight``."""
    filters, group_channels, *_ = weight
    axes = of.out_size, of.kernel_size, of.stride, of.padding, of.dilation
    phases = [_forward_phases(*axis) for axis in zip(*axes, strict=True)]
    # Step (tap, c) of filter o is weight[o, c, tap].
    distances = of.taps, group_channels * of.taps
    return _plan(shape, (*of.out_size, filters), phases, of, groups, *distances)


@functools.lru_cache(maxsize=256)
def _input_plan(shape, weight, of, groups):
    """Of gradients of ``shape`` (N, OH, OW, O)."""
    group_channels = weight[1]
    axes = of.size, of.kernel_size, of.stride, of.padding, of.dilation
    phases = [_input_phases(*axis) for axis in zip(*axes, strict=True)]
    # Step (tap, o) of channel c is weight[o, c, tap].
    distances = group_channels * of.taps, of.taps
    return _plan(shape, (*of.size, groups * group_channels), phases, of, groups, *distances)


def _panels(groups, sources, targets, of_group, lane):
    """The table of panels: for groups with so many source and target channels each."""
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


def _plan(shape, target, phases, of, groups, step, lane):
    """Tables for a source of ``shape`` and a target (H, W, C), through phases along both axes.

    ``step`` and ``lane`` are the distances in the weights of neighbouring channels of the source,
    and of the target.
    """
    images, height, width, channels = shape
    target_height, target_width, target_channels = target
    sources, targets = channels // groups, target_channels // groups
    table, before = _panels(groups, sources, targets, sources * targets * of.taps, lane)
    of_weight, depthwise = np.arange(sources) * step, sources == targets == 1
    rows, columns = (max(phase.count for phase in axis) for axis in phases)
    # What is seen reaches from `low` to `high` (exclusive), beyond the image on either side or not.
    low, spans = zip(*(_reach(axis) for axis in phases), strict=True)
    row_step = phases[0][0].step
    seen_width = (columns - 1) * phases[1][0].step + spans[1]
    high = low[0] + (rows - 1) * row_step + spans[0], low[1] + seen_width
    copies = min(low) < 0 or high[0] > height or high[1] > width
    # The load of the last channels of a depth-wise pixel goes beyond it.
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
        tap = np.array(y.taps)[:, None] * of.kernel_width + np.array(x.taps)
        steps.append(np.add.outer(pixel, np.arange(len(of_weight))))
        weights.append(np.add.outer(tap, of_weight))
        lines.append((start, start + steps[-1].size, place, y.count, x.count, panel))
        start += steps[-1].size
        place += places[-1].size
        panel += steps[-1].size * before
    copied_rows = max(unit_images, 1) * ((unit_rows - 1) * row_step + spans[0])
    units = _Units(
        height, width, channels, target_height, target_width, target_channels,
        rows, unit_rows, unit_images, phases[0][0].stride, row_step, int(copies), *low, spans[0],
        seen_width, _DEPTH, _CHUNK_CHANNELWISE if depthwise else _CHUNK, int(depthwise),
        copied_rows * row_floats if copies else 0,
    )  # fmt: skip
    steps_of_pixels = images * sum(line[3] * line[4] * (line[1] - line[0]) for line in lines)
    return _Plan(
        items=images if unit_images else images * rows,
        units=units,
        tables=_Tables(*map(_joined, (places, pixels, steps)), np.array(lines, np.int64), table),
        columns=before,
        lane=lane,
        of_weight=_joined(weights),
        pixels=images * rows * columns,
        work=steps_of_pixels * before,
    )


def _unit_size(images, rows, columns, row_floats, image_floats):
    """Rows of a unit; and its images, if it has all their rows, else 0."""
    unit_rows = max(_UNIT_FLOATS // max(row_floats, 1), -(-_UNIT_PIXELS // columns))
    if unit_rows < rows:
        return unit_rows, 0
    unit_images = max(_UNIT_FLOATS // max(image_floats, 1), -(-_UNIT_PIXELS // (rows * columns)))
    return rows, max(min(unit_images, images), 1)


def _joined(parts):
    return np.concatenate([part.reshape(-1) for part in parts]).astype(np.int64)


def _reach(axis):
    """The lowest offset of an axis' phases, and how far the highest is from it, inclusive."""
    offsets = [offset for phase in axis for offset in phase.offsets] or [0]
    return min(offsets), max(offsets) - min(offsets) + 1


# ----------------------------------------------------------------------------------- running a plan


def _convolve(plan, source, weight, out):
    """Forward or gradient in the image, as the plan says."""
    if out.size == 0:
        return out
    if source.size == 0:  # no channels: sums of nothing
        out[...] = 0
        return out
    panels = empty((len(plan.of_weight) * plan.columns,), np.float32)
    phases, table = plan.tables.phases, plan.tables.panels
    _lay_out(weight.reshape(-1), plan.lane, plan.of_weight, phases, table, panels)
    count = max(1, min(threads.tasks_for(plan.work / _SPEED), plan.items))
    tasks = _tasks_of_items(plan.items, count)
    _run(_convolution_tasks, count, tasks, plan, 0, source, panels, out)
    return out


@functools.lru_cache(maxsize=256)
def _tasks_of_items(items, count):
    """Tasks that are ranges of items."""
    tasks = np.zeros((count, 5), np.int64)
    tasks[:, :2] = parallel.shares(items, count)
    return tasks


def _weight_gradient(plan, x, grad, out):
    """The tables of the forward pass exchanged: rows are taps, steps are pixels."""
    taps, columns, table = len(plan.of_weight), plan.columns, plan.tables.panels
    count = threads.tasks_for(plan.work / _SPEED)
    parts, tasks, targets = _tasks_of_taps(
        plan.items, plan.pixels, plan.work, taps, columns, plan.units.depthwise, count
    )
    # Gradients that lie as a panel does are used where they are.
    is_laid_out = len(table) == 1 and table[0, _PANEL_WIDTH] == table[0, _COUNT]
    laid_out = 0 if is_laid_out else plan.units.most_pixels * columns
    partial = empty((parts, taps * columns), np.float32)
    _run(_weight_tasks, count, tasks, plan, laid_out, x, grad, partial, targets)
    for part in partial[1:]:
        partial[0] += part
    _collect(partial[0], columns, plan.lane, plan.of_weight, table, out.reshape(-1))
    return out


@functools.lru_cache(maxsize=256)
def _tasks_of_taps(items, pixels, work, taps, columns, depthwise, count):
    """The number of parts of the images, tasks that are ranges of items and taps, and targets.

    Images fall into a few parts, whose sums are added in their order: as many as there is memory
    for, whatever the number of threads. Beyond these, threads share out the taps.
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
    """Run tasks on ``count`` threads, each with a place of its own for copies."""
    # The load of the last channels may go beyond them.
    room = -(-(plan.units.copied + laid_out) // FLOATS) * FLOATS + FLOATS
    count = min(count, len(tasks))
    memory = empty((count * room,), np.float32)
    arrays = source.reshape(-1), other.reshape(-1), out.reshape(-1), *targets
    with np.errstate(over="ignore", invalid="ignore"):  # as compiled code, when the JIT is off
        parallel.share_out(
            worker, parallel.shares(len(tasks), count), tasks, (memory, room, laid_out), arrays,
            plan.units, plan.tables,
        )  # fmt: skip


# Tasks are ranges of items, and in the gradient in the weight of taps. All arrays but tables are
# flat. The memory has ``room`` for each thread.


@kernel(allocates=False)
def _convolution_tasks(first, end, thread, tasks, memory, arrays, units, tables):
    """Forward, or gradient in the image: tasks first to end - 1, whose rows are pixels."""
    (copies, room, _), (source, panels, out) = memory, arrays
    for task in range(first, end):
        item, stop = tasks[task, 0], tasks[task, 1]
        while item < stop:
            unit = _unit(item, stop, units)
            image, row, images, count = unit
            item += images if units.unit_images else count
            seen, base = _seen(source, unit, copies, thread * room, units)
            pixel = (image * units.out_height + row * units.row_stride) * units.out_width
            of_unit = Patches(seen, base, tables.places, tables.steps)
            sums = Sums(out, pixel * units.out_channels, tables.targets, False)
            _pixels_by_filters(row, images, count, of_unit, panels, sums, units, tables)


@kernel(allocates=False)
def _weight_tasks(first, end, thread, tasks, memory, arrays, units, tables):
    """Gradient in the weight: tasks first to end - 1, whose rows are taps."""
    (copies, room, laid_out), (source, grad, out, targets) = memory, arrays
    slot = thread * room
    for task in range(first, end):
        item, stop, tap, end_tap, to = tasks[task]
        adds = False
        while item < stop:
            unit = _unit(item, stop, units)
            image, row, images, count = unit
            item += images if units.unit_images else count
            seen, base = _seen(source, unit, copies, slot, units)
            pixel = (image * units.out_height + row * units.row_stride) * units.out_width
            of_unit = Patches(seen, base, tables.steps, tables.places)
            gradients = _Gradients(
                grad, pixel * units.out_channels, images * count * units.out_width,
                copies, slot + units.copied, laid_out > 0,
            )  # fmt: skip
            sums = Sums(out, to, targets, adds)
            _taps_by_filters(tap, end_tap, of_unit, gradients, sums, units, tables.panels)
            adds = True


class _Gradients(NamedTuple):
    """The gradients of so many pixels, from ``grad[at]`` on, and where they are laid out, if so."""

    grad: np.ndarray
    at: int
    pixels: int
    memory: np.ndarray
    slot: int
    laid_out: bool


@inlined
def _unit(first, end, units):
    """The unit that begins at item ``first``: image, row, number of images, number of rows."""
    rows = units.rows
    if units.unit_images:
        return first, 0, min(units.unit_images, end - first), rows
    row = first % rows
    return first // rows, row, 1, min(units.unit_rows, rows - row, end - first)


@inlined
def _seen(source, unit, memory, to, units):
    """Where a unit's pixels are read, and where what the first one sees begins there."""
    image, row, _, _ = unit
    if units.copies:
        _copy_unit(source, unit, memory, to, units)
        return memory, to
    first_row = image * units.height + row * units.row_step + units.low_y
    return source, (first_row * units.width + units.low_x) * units.channels


@subkernel
def _copy_unit(source, unit, memory, to, units):
    """Copy all that a unit sees to memory[to] and what follows, with zeros beyond the image."""
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
    """Forward, and gradient in the image: each phase of a unit times its panels."""
    phases, table = tables.phases, tables.panels
    for f in range(len(phases)):
        k0, k1, place = phases[f, _FIRST_STEP], phases[f, _END_STEP], phases[f, _FIRST_PLACE]
        phase_rows = max(min(rows, phases[f, _PHASE_ROWS] - row), 0)
        end = place + images * phase_rows * phases[f, _PHASE_COLUMNS]
        for p in range(len(table)):
            width, filters = table[p, _PANEL_WIDTH], table[p, _COUNT]
            panel = phases[f, _PHASE_PANELS] + table[p, _BEFORE] * (k1 - k0)
            base, to = patches.base + table[p, _SOURCE], sums.at + table[p, _TARGET]
            of_panel = Patches(patches.source, base, patches.places, patches.steps)
            # Where a panel is not full, its sums cannot be added to what is in memory.
            depth = units.most_steps if filters == width else max(k1 - k0, 1)
            # Pixels that no tap reaches have one stretch of no steps: they become 0.
            for k in range(k0, max(k1, k0 + 1), depth):
                stop, weights = (
                    min(k + depth, k1),
                    Panel(panels, panel + (k - k0) * width, width, filters),
                )
                there = Sums(sums.out, to, sums.targets, k > k0)
                if units.depthwise:
                    channelwise_product(place, end, k, stop, of_panel, weights, there)
                else:
                    product(place, end, k, stop, of_panel, weights, there)


@subkernel
def _taps_by_filters(tap, end_tap, patches, gradients, sums, units, table):
    """Gradient in the weight: what some taps see of a unit, times the gradients of its pixels."""
    filters, chunk = units.out_channels, units.most_pixels
    for k in range(0, gradients.pixels, chunk):
        count = min(chunk, gradients.pixels - k)
        panel, q = gradients.grad, gradients.at + k * filters
        if gradients.laid_out:
            panel, q = gradients.memory, gradients.slot
            at = gradients.at + k * filters
            _lay_out_gradient(gradients.grad, at, count, filters, table, panel, q)
        for p in range(len(table)):
            before, width = table[p, _BEFORE], table[p, _PANEL_WIDTH]
            base = patches.base + table[p, _SOURCE]
            of_panel = Patches(patches.source, base, patches.places, patches.steps)
            weights = Panel(panel, q + before * count, width, width)
            there = Sums(sums.out, sums.at + before, sums.targets, sums.adds or k > 0)
            if units.depthwise:
                channelwise_product(tap, end_tap, k, k + count, of_panel, weights, there)
            else:
                product(tap, end_tap, k, k + count, of_panel, weights, there)


@inlined
def _lay_out_gradient(grad, at, pixels, filters, table, memory, to):
    """The gradients of some pixels into panels: pixel by pixel, in a pixel filter by filter."""
    for p in range(len(table)):
        width, first, count = table[p, _PANEL_WIDTH], table[p, _TARGET], table[p, _COUNT]
        whole = count - count % FLOATS
        for i in range(at + first, at + first + pixels * filters, filters):
            for j in range(0, whole, FLOATS):
                store(memory, to + j, load(grad, i + j))
            if whole < width:
                clear(memory, to + whole, width - whole)
                copy(grad, i + whole, memory, to + whole, count - whole)
            to += width


@kernel(allocates=False)
def _lay_out(weight, lane, of_weight, phases, table, panels):
    """The weights of each phase into panels: step by step, in a step column by column."""
    for f in range(len(phases)):
        k0, k1 = phases[f, _FIRST_STEP], phases[f, _END_STEP]
        for p in range(len(table)):
            width, count, start = table[p, _PANEL_WIDTH], table[p, _COUNT], table[p, _START]
            q = phases[f, _PHASE_PANELS] + table[p, _BEFORE] * (k1 - k0)
            for k in range(k0, k1):
                for j in range(count):
                    panels[q + j] = weight[start + j * lane + of_weight[k]]
                for j in range(count, width):
                    panels[q + j] = np.float32(0)
                q += width


@kernel(allocates=False)
def _collect(sums, columns, lane, of_weight, table, weight):
    """Sums of (tap, channel) by filter into weights: the other way round."""
    for p in range(len(table)):
        before, count, start = table[p, _BEFORE], table[p, _COUNT], table[p, _START]
        for k in range(len(of_weight)):
            for j in range(count):
                weight[start + j * lane + of_weight[k]] = sums[k * columns + before + j]


# ------------------------------------------------------------------------------ few target channels

# A vector has 16 columns; with fewer filters, or channels of the image, most of it is wasted. Then
# it is better to take all taps for columns: to multiply each pixel with all weights it meets, a
# 1x1 convolution, and to spread the products over the pixels they belong to.


@functools.cache
def _is_spread(sources, targets, kh, kw):
    """Whether spreading takes fewer cycles, for each 6 pixels of the source."""
    columns = kh * kw * targets
    spread = sources * _cycles(columns) + TOGETHER * columns * _CYCLES_OF_SPREADING
    return kh * kw > 1 and spread < kh * kw * sources * _cycles(targets)


def _cycles(columns):
    """Of a step of 6 rows of a product."""
    return sum(max(TOGETHER * width // (2 * FLOATS), 4) for width in panel_widths(columns))


def _spread(source, weight, out, of):
    """For each pixel and tap: out[pixel * stride + tap * dilation - padding] += product.

    source : (N, OH, OW, K), weight : (K, M, kh, kw), out : (N, H, W, M)
    """
    out[...] = 0
    if 0 in source.shape or out.size == 0:
        return out
    images, height, width, channels = source.shape
    columns = math.prod(weight.shape[1:])
    table, total = _panels(1, channels, columns, 0, 1)
    phases = np.array([(0, channels, 0, 0, 0, 0)])
    panels = empty((channels * total,), np.float32)
    of_weight = np.arange(channels)
    _lay_out(weight.reshape(-1), 1, of_weight * columns, phases, table, panels)
    pixels = min(max(1, _UNIT_PIXELS // width), height) * width
    number = np.arange(pixels)
    tasks = min(threads.tasks_for(source.size * total / _SPEED), images)
    products = empty((tasks * pixels * total,), np.float32)
    tables = _Tables(number * channels, number * total, of_weight, phases, table)
    arrays = source.reshape(-1), panels, products, out.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        parallel.share_out(
            _spread_images, parallel.shares(images, tasks), of, weight.shape[1], arrays, tables
        )
    return out


@kernel(allocates=False)
def _spread_images(first, end, thread, of, out_channels, arrays, tables):
    """Images first to end - 1, some rows at a time."""
    (source, panels, products, out), table = arrays, tables.panels
    height, width, channels = of.out_height, of.out_width, len(tables.steps)
    together, total = len(tables.places) // width, table[-1, _BEFORE] + table[-1, _PANEL_WIDTH]
    slot = thread * len(tables.places) * total
    for image in range(first, end):
        for top in range(0, height, together):
            rows = min(together, height - top)
            for p in range(len(table)):
                before, columns = table[p, _BEFORE], table[p, _PANEL_WIDTH]
                start = (image * height + top) * width * channels
                patches = Patches(source, start, tables.places, tables.steps)
                weights = Panel(panels, before * channels, columns, columns)
                # False, but no constant: `product` is compiled once.
                sums = Sums(products, slot + before, tables.targets, image < first)
                product(0, rows * width, 0, channels, patches, weights, sums)
            for i in range(rows * width):
                y, x = top + i // width, i % width
                _spread_pixel(image, y, x, of, out_channels, products, slot + i * total, out)


@inlined
def _spread_pixel(image, y, x, of, channels, products, at, out):
    """Add the products of one pixel to the pixels of the target that it meets."""
    top, left = y * of.row_stride - of.top, x * of.column_stride - of.left
    for channel in range(channels):
        for i in range(of.kernel_height):
            row = top + i * of.row_dilation
            if 0 <= row < of.height:
                to = (image * of.height + row) * of.width * channels + channel
                for j in range(of.kernel_width):
                    column = left + j * of.column_dilation
                    if 0 <= column < of.width:
                        out[to + column * channels] += products[at + j]
            at += of.kernel_width


# ------------------------------------------------------------------------------------------- checks


def _images(function, name, x):
    """``x`` as images that a kernel can read; a ValueError if it is something else."""
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim != 4:
        raise ValueError(
            f"{function}: {name} must be float32 with 4 axes (N, H, W, C), "
            f"got {x.dtype} of shape {x.shape}"
        )
    return for_kernel(x)


def _filters(function, weight):
    weight = np.asarray(weight)
    if weight.dtype != np.float32 or weight.ndim != 4 or 0 in weight.shape[2:]:
        raise ValueError(
            f"{function}: weight must be float32 of shape (O, C / groups, kh, kw), "
            f"got {weight.dtype} of shape {weight.shape}"
        )
    return for_kernel(weight)


def _check_groups(function, weight, groups):
    if groups < 1 or weight[0] % groups:
        raise ValueError(
            f"{function}: groups must divide the {weight[0]} output channels, got {groups}"
        )


def _check_channels(function, name, x, channels, kind):
    if x.shape[3] != channels:
        raise ValueError(
            f"{function}: weight has {channels} {kind} channels, {name} has {x.shape[3]} "
            f"(shape {x.shape})"
        )


def _windows(function, wanted, *sizes):
    """The windows; where an output size is wanted, as many from the beginning, or a ValueError."""
    of = windows(function, *sizes)
    if wanted is None:
        return of
    height, width = wanted = pair(function, "the output's size", wanted, 1)
    if height > of.out_height or width > of.out_width:
        raise ValueError(
            f"{function}: the output can have {of.out_height} x {of.out_width} pixels, "
            f"got {height} x {width}"
        )
    return of._replace(out_height=height, out_width=width)
