"""Products of floats with signs, without multiplication: the backward pass of binary layers.

The forward pass of a binary layer multiplies signs with signs, which `xnor` does on bits. In the
backward pass one side is a gradient, a real number; the other is still a sign. With G the gradient
of the output and S the signs of the weight or of the input, both gradients have the form

    out[i, c] = sum over k of G[i, k] * S[k, c],        S[k, c] = +1 or -1,

where k runs over filters and taps for the gradient in the input, and over pixels for the gradient
in the weight (written out at `conv2d_input_gradient` and `conv2d_weight_gradient`). A term is
either +g or -g. Here are two ways to add them up.

**Lookup tables.** Four gradients have only 16 sums ±g0 ±g1 ±g2 ±g3. Make a table of them once; then
for each column c four signs, read as a number from 0 to 15, say which of the sums it needs::

    number   signs      sum
    0        - - - -    -g0 -g1 -g2 -g3
    1        + - - -    +g0 -g1 -g2 -g3
    2        - + - -    -g0 +g1 -g2 -g3
    ...
    15       + + + +    +g0 +g1 +g2 +g3

One look-up and one addition take the place of four multiplications and four additions. (Tables of
all sums of a few rows are the Method of the Four Russians, Arlazarov, Dinic, Kronrod and Faradzhev
1970.) It is fast since 16 floats fill one AVX-512 register, and one instruction picks from it for
16 columns at once. The signs have to lie along k for this: 32 signs of one column are the bits of
an integer, which is shifted by four from one table to the next. They arrive packed along c, and
`_turn` brings them there.

Half of a table tells all: when every sign is turned round, the sum changes its sign and nothing
else. So 8 entries and the fourth sign suffice, and AVX2, which can pick from 8 floats at a time,
finds the same numbers. Other CPUs leave the product to BLAS, on unpacked signs.

**Masked additions.** Behind a 2 x 2 max-pool three of four gradients are zero. Since

    sum of ±g = 2 * (sum of the g whose sign is +) - (sum of all g),

it is enough to add g in those columns whose bit is 1. AVX-512 takes 16 bits of a packed row as they
are for the mask of an addition of 16 floats. A list of the gradients that are not zero is made
first, and only these are visited. Nothing has to be turned and no tables are made, but an addition
serves one gradient instead of four.

Sums are float32. Their order depends on the method, but not on the number of threads: threads share
out the outputs, and each sum is one thread's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic, overload

from tinybnn.kernels import parallel, threads
from tinybnn.kernels.bits import pack_reference, split_groups, unpack_reference
from tinybnn.kernels.checks import check_row, check_words, out_array, pair
from tinybnn.kernels.memory import empty
from tinybnn.kernels.simd import (
    FLOATS,
    call_llvm,
    cpu_features,
    inlined,
    kernel,
    load,
    load_splat,
    splat,
    store,
    store_first,
    zero_floats,
)

LANES = 4 * FLOATS  # columns of a panel
STEP = 32  # gradients whose signs are the bits of one integer
_STEP_FLOATS = STEP // 4 * FLOATS  # size of their tables

_CHUNK = 8  # steps of the weight gradient whose tables are in use at a time
_LIST = 2048  # pixels of the weight gradient of which a list is made at a time
_TILE = 8  # filters of the weight gradient that are in use at a time
_TURNED_BYTES = 1 << 22  # turned signs of the input that are kept at a time
_BAND_BYTES = 1 << 20  # tables of the input gradient that are kept at a time, as far as possible
_BLAS_BYTES = 1 << 22  # gradients that go through BLAS at a time
_GRAIN = 1 << 22  # products (some 15 microseconds) below which a second thread costs time
_SPARSE = 0.3  # share of gradients that are not zero up to which masked additions are chosen

METHODS = "lookup", "masked", "blas"


# ------------------------------------------------------------------------------------- vector words


def look_up(table, index):
    """The floats table[index % 16], lane by lane; of the table, entry 15 - i is minus entry i."""
    return table[index & 15]


def next_four(index):
    """The integers shifted by four bits, so that the next four signs are the lowest bits."""
    return (index.view(np.uint32) >> np.uint32(4)).view(np.int32)


def or_where(integers, value, bits):
    """integers | value in lane i if bit i of the uint64 ``bits`` is 1; elsewhere integers."""
    return np.where(_lanes_set(bits), integers | value, integers)


def add_where(floats, value, bits):
    """floats + value in lane i if bit i of the uint64 ``bits`` is 1; elsewhere floats."""
    return np.where(_lanes_set(bits), floats + value, floats)


def load_strided(array, index, step):
    """The floats array[index], array[index + step], ..."""
    return array[index : index + (FLOATS - 1) * step + 1 : step].copy()


def nonzero(floats):
    """A uint64 whose bit i is 1 where lane i is not zero."""
    return np.uint64(((floats != 0) << np.arange(FLOATS)).sum())


def compress(vector, bits):
    """The lanes of floats or integers whose bit is 1, at the front; behind them zeros."""
    kept = vector[_lanes_set(bits) > 0]
    return np.concatenate([kept, np.zeros(FLOATS - len(kept), vector.dtype)])


def count_ones(bits):
    """The number of bits of a uint64 that are 1."""
    return int(bits).bit_count()


def total(floats):
    """The sum of the lanes."""
    return floats.sum()


def _lanes_set(bits):
    """1 in each lane whose bit is 1."""
    return (int(bits) % 2**FLOATS >> np.arange(FLOATS) & 1).astype(np.int32)


def _llvm_constant(kind, value):
    return ir.Constant(kind, [value] * kind.count)


def _mask(builder, bits):
    """The lowest 16 bits of a word as a vector of conditions."""
    low = builder.trunc(bits, ir.IntType(FLOATS))
    return builder.bitcast(low, ir.VectorType(ir.IntType(1), FLOATS))


@intrinsic
def _look_up(typing, table, index):
    def generate(context, builder, signature, arguments):
        pick = _pick_of_16 if "avx512f" in cpu_features() else _pick_of_8
        return pick(builder, *arguments)

    return table(table, index), generate


def _pick_of_16(builder, table, index):
    """AVX-512: the instruction itself looks at the lowest four bits only."""
    return call_llvm(builder, "llvm.x86.avx512.permvar.sf.512", table.type, table, index)


def _pick_of_8(builder, table, index):
    """AVX2: entries 8 to 15; where the fourth bit is 0, minus the entry of the inverted bits."""
    integers, half = index.type, ir.VectorType(ir.FloatType(), 8)
    fourth = builder.shl(index, _llvm_constant(integers, 28))
    is_plus = builder.ashr(fourth, _llvm_constant(integers, 31))  # all bits 1, or none
    is_minus = builder.not_(is_plus)
    index = builder.xor(index, is_minus)
    numbers = ir.VectorType(ir.IntType(32), 8)
    upper = builder.shuffle_vector(table, table, ir.Constant(numbers, list(range(8, 16))))
    picked = []
    for first in (0, 8):
        lanes = ir.Constant(numbers, list(range(first, first + 8)))
        part = builder.shuffle_vector(index, index, lanes)
        picked.append(call_llvm(builder, "llvm.x86.avx2.permps", half, upper, part))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), 16), list(range(16)))
    both = builder.bitcast(builder.shuffle_vector(*picked, lanes), integers)
    sign = builder.and_(is_minus, _llvm_constant(integers, -(2**31)))
    return builder.bitcast(builder.xor(both, sign), table.type)


@intrinsic
def _next_four(typing, index):
    def generate(context, builder, signature, arguments):
        return builder.lshr(arguments[0], _llvm_constant(arguments[0].type, 4))

    return index(index), generate


@intrinsic
def _or_where(typing, integers, value, bits):
    def generate(context, builder, signature, arguments):
        integers_value, value_value, bits_value = arguments
        either = builder.or_(integers_value, value_value)
        return builder.select(_mask(builder, bits_value), either, integers_value)

    return integers(integers, value, bits), generate


@intrinsic
def _add_where(typing, floats, value, bits):
    def generate(context, builder, signature, arguments):
        floats_value, value_value, bits_value = arguments
        added = builder.fadd(floats_value, value_value)
        return builder.select(_mask(builder, bits_value), added, floats_value)

    return floats(floats, value, bits), generate


@intrinsic
def _load_strided(typing, vector, array, index, step):
    """``vector`` only gives the type of the result."""

    def generate(context, builder, signature, arguments):
        _, array_value, at, step_value = arguments
        data = context.make_array(array)(context, builder, array_value).data
        value = ir.Constant(context.get_value_type(vector), ir.Undefined)
        for lane in range(FLOATS):
            number = builder.load(builder.gep(data, [at]))
            value = builder.insert_element(value, number, ir.Constant(ir.IntType(32), lane))
            at = builder.add(at, step_value)
        return value

    return vector(vector, array, types.intp, types.intp), generate


@intrinsic
def _nonzero(typing, floats):
    def generate(context, builder, signature, arguments):
        zero = ir.Constant(arguments[0].type, None)
        lanes = builder.fcmp_unordered("!=", arguments[0], zero)  # NaN is not zero
        return builder.zext(builder.bitcast(lanes, ir.IntType(FLOATS)), ir.IntType(64))

    return types.uint64(floats), generate


@intrinsic
def _compress(typing, vector, bits):
    def generate(context, builder, signature, arguments):
        value, zero = arguments[0], ir.Constant(arguments[0].type, None)
        element = "f32" if isinstance(vector.element, types.Float) else "i32"
        name = f"llvm.x86.avx512.mask.compress.v16{element}"
        return call_llvm(builder, name, value.type, value, zero, _mask(builder, arguments[1]))

    return vector(vector, bits), generate


@intrinsic
def _count_ones(typing, bits):
    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(bits), generate


@intrinsic
def _total(typing, floats):
    def generate(context, builder, signature, arguments):
        value = arguments[0]
        lanes = FLOATS
        while lanes > 1:  # the upper half onto the lower half
            lanes //= 2
            places = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(lanes)))
            low = builder.shuffle_vector(value, value, places)
            places = ir.Constant(
                ir.VectorType(ir.IntType(32), lanes), list(range(lanes, 2 * lanes))
            )
            value = builder.fadd(low, builder.shuffle_vector(value, value, places))
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float32(floats), generate


@overload(look_up)
def _compiled_look_up(table, index):
    return lambda table, index: _look_up(table, index)


@overload(next_four)
def _compiled_next_four(index):
    return lambda index: _next_four(index)


@overload(or_where)
def _compiled_or_where(integers, value, bits):
    return lambda integers, value, bits: _or_where(integers, value, bits)


@overload(add_where)
def _compiled_add_where(floats, value, bits):
    return lambda floats, value, bits: _add_where(floats, value, bits)


@overload(load_strided)
def _compiled_load_strided(array, index, step):
    return lambda array, index, step: _load_strided(zero_floats(), array, index, step)


@overload(nonzero)
def _compiled_nonzero(floats):
    return lambda floats: _nonzero(floats)


@overload(compress)
def _compiled_compress(vector, bits):
    return lambda vector, bits: _compress(vector, bits)


@overload(count_ones)
def _compiled_count_ones(bits):
    return lambda bits: _count_ones(bits)


@overload(total)
def _compiled_total(floats):
    return lambda floats: _total(floats)


# --------------------------------------------------------------------------- gradient in the input


def conv2d_input_gradient(
    grad,
    weight,
    channels,
    size,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    method=None,
    out=None,
):
    """Gradient of a binary convolution in its input: floats times the signs of the weight.

    With the input pixel (y, x) that the tap (ky, kx) of output pixel (oy, ox) falls on,
    y = oy * stride - padding + ky * dilation (x likewise),

        out[n, y, x, c] = sum over o, ky, kx of grad[n, oy, ox, o] * sign(weight[o, ky, kx, c]).

    What the padding holds is constant and does not matter here.

    Parameters
    ----------
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    weight : (O, kh, kw, words_for(channels // groups)) uint64
    channels : int
        C, the channels of the input.
    size : (int, int)
        H, W of the input.
    stride, padding, dilation : (int, int)
        Along height and width.
    groups : int
        A divisor of C and of O.
    method : "lookup", "masked" or "blas", optional
        By default what suits the CPU and the share of zeros in ``grad``.
    out : (N, H, W, C) float32, optional
        C-contiguous, to be written to.

    Returns
    -------
    (N, H, W, C) float32

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the CPU cannot do ``method``.
    """
    name = "conv2d_input_gradient"
    size = pair(name, "size", size, 1)
    weight = check_words(name, "weight", weight, 4)
    grad, geometry = _geometry(
        name, grad, channels, size, weight.shape[1:3], stride, padding, dilation, groups
    )
    check_row(name, "weight", weight, "channels // groups", geometry.group_channels)
    if len(weight) != grad.shape[3]:
        raise ValueError(f"{name}: weight has {len(weight)} filters, grad has {grad.shape[3]}")
    out = out_array(name, out, (len(grad), *size, channels))
    method = _method(name, method, grad)
    if out.size == 0:
        return out
    if method == "blas":
        for block in _blocks(grad, geometry):
            out[block] = _input_reference(grad[block], weight, geometry)
        return out
    pointwise = geometry.kernel_size == geometry.stride == (1, 1) and geometry.padding == (0, 0)
    if pointwise:  # each pixel for itself: one image of many rows, which can be cut anywhere
        pixels = len(grad) * size[0] * size[1]
        grad = grad.reshape(1, pixels, 1, grad.shape[3])
        geometry = geometry._replace(size=(pixels, 1), out_size=(pixels, 1))
    for group in range(groups):
        _input_gradient(grad, weight, geometry, group, method, out)
    return out


def conv2d_input_gradient_reference(
    grad,
    weight,
    channels,
    size,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
):
    """What :func:`conv2d_input_gradient` computes, in plain NumPy, in the dtype of ``grad``."""
    return _input_reference(
        grad,
        weight,
        Geometry(
            channels, size, grad.shape[1:3], weight.shape[1:3], stride, padding, dilation, groups
        ),
    )


def _input_reference(grad, weight, geometry):
    """One matrix product a tap: each output pixel is spread over the pixels its taps fall on."""
    (h, w), (ph, pw) = geometry.size, geometry.padding
    signs = unpack_reference(weight, geometry.group_channels, grad.dtype)  # (O, kh, kw, C/groups)
    padded = np.zeros((len(grad), h + 2 * ph, w + 2 * pw, geometry.channels), grad.dtype)
    for ky, kx, seen in geometry.taps(padded):  # seen : (N, OH, OW, C), a view
        for o, c in geometry.group_slices(grad.shape[3]):
            seen[..., c] += grad[..., o] @ signs[o, ky, kx]
    return padded[:, ph : ph + h, pw : pw + w]


class _Input(NamedTuple):
    """The numbers that the kernels for the gradient in the input need.

    The image is worked on in bands of rows. For each a part of the gradient is laid out, ``cells``
    in rows of ``columns``, those outside the gradient with nothing in them: a cell is the tables of
    a pixel, or its list.

    With a stride, the taps that fall on an input row y are those whose ky * dilation has the same
    remainder by the stride as y + padding: a *phase*. Rows and columns of the same phases see the
    same taps, at the same distances.
    """

    height: int
    width: int
    out_height: int
    out_width: int
    row_stride: int
    column_stride: int
    top: int  # padding
    left: int
    channels: int  # of all groups
    first_channel: int
    group_channels: int
    filters: int
    first_filter: int
    group_filters: int
    band: int  # input rows
    bands: int  # in an image
    rows_before: int  # gradient rows that reach down into an input row, but the last one
    columns_before: int
    columns: int
    cells: int  # at most, of a band


@inlined
def _input_numbers(n):
    """The same from an array."""
    return _Input(
        n[0],
        n[1],
        n[2],
        n[3],
        n[4],
        n[5],
        n[6],
        n[7],
        n[8],
        n[9],
        n[10],
        n[11],
        n[12],
        n[13],
        n[14],
        n[15],
        n[16],
        n[17],
        n[18],
        n[19],
    )


def _input_gradient(grad, weight, geometry, group, method, out):
    """One group. grad : (N, OH, OW, O), out : (N, H, W, C), of which C / groups are written."""
    images, *_, filters = grad.shape
    kh, kw, words = weight.shape[1:]
    (height, width), (sy, sx), (top, left) = geometry.size, geometry.stride, geometry.padding
    dy, dx = geometry.dilation
    group_filters, group_channels = filters // geometry.groups, geometry.group_channels
    steps = -(-group_filters // STEP)
    cell = steps * _STEP_FLOATS if method == "lookup" else 3 * group_filters  # in float32

    # Bands of equal height whose cells fit the cache.
    rows_before, columns_before = (kh - 1) * dy // sy, (kw - 1) * dx // sx
    columns = (width - 1 + left) // sx - left // sx + columns_before + 1

    def rows(band):
        return -(-(band - 1) // sy) + rows_before + 1

    most = _BAND_BYTES // (columns * cell * 4)
    band = max(1, min(height, (most - rows_before - 1) * sy + 1))
    bands = -(-height // band)
    band = -(-height // bands)
    g = _Input(
        height, width, *geometry.out_size, sy, sx, top, left,
        geometry.channels, group * group_channels, group_channels,
        filters, group * group_filters, group_filters,
        band, bands, rows_before, columns_before, columns, rows(band) * columns,
    )  # fmt: skip

    # The taps of each phase: where their cells are, and where their weights are.
    table, cells, taps = np.zeros((sy * sx, 2), np.int64), [], []
    for phase in range(sy * sx):
        table[phase, 0] = len(taps)
        for ky in range(kh):
            for kx in range(kw):
                if (ky * dy % sy, kx * dx % sx) == divmod(phase, sx):
                    cells.append(-(ky * dy // sy * columns + kx * dx // sx))
                    taps.append((ky * kw + kx) * words)
        table[phase, 1] = len(taps)
    cells, taps = np.array(cells, np.int64), np.array(taps, np.int64)

    tasks = _tasks(images * height * width * group_channels * kh * kw * group_filters)
    tasks = min(tasks, images * bands)
    shares = parallel.shares(images * bands, tasks)
    flat, result = grad.reshape(-1), out.reshape(-1)
    if method == "lookup":
        turned, offsets, phases = _turn_weight(weight, g, table, cells, taps)
        scratch = empty(tasks * g.cells * cell, np.float32)
        pixels = empty(2 * tasks * band * width, np.int64)
        parallel.share_out(
            _input_by_tables, shares, flat, turned, offsets, phases, _PATTERNS, scratch, pixels,
            cell, result, np.array(g),
        )  # fmt: skip
        return
    values = empty(tasks * (g.cells * group_filters + FLOATS), np.float32)
    places = empty(len(values), np.int32)
    starts = np.arange(filters, dtype=np.int32) * (kh * kw * words)
    ends = empty(tasks * (g.cells + 1), np.int64)
    totals = empty(tasks * g.cells, np.float32)
    parallel.share_out(
        _input_by_masks, shares, flat, weight.reshape(-1), cells, taps, table, values, places, ends,
        totals, starts, words, result, np.array(g),
    )  # fmt: skip


def _turn_weight(weight, g, table, cells, taps):
    """The weights of a group with their signs along the filters, and the tables they belong to.

    Returns
    -------
    turned : (...,) int32
        For each phase, panel, step and tap of the phase: integers for 64 channels, whose bits are
        the signs of 32 filters.
    offsets : (...,) int64
        For each phase, step and tap: where the step's tables are, from a pixel's cell.
    phases : (P, 4) int64
        For each phase: where its offsets begin and end, where its integers begin, and how many of
        them a panel has.
    """
    steps, panels = -(-g.group_filters // STEP), -(-g.group_channels // LANES)
    filters = np.minimum(np.arange(steps * STEP), g.group_filters - 1) + g.first_filter
    starts = filters * (weight.size // len(weight))
    turned = empty(steps * len(taps) * panels * LANES, np.int32)
    offsets, phases = [], np.zeros((len(table), 4), np.int64)
    channel = np.arange(0, g.group_channels, FLOATS)
    base = 0
    for phase, (first, end) in enumerate(table):
        count = end - first
        phases[phase] = len(offsets), len(offsets) + steps * count, base, steps * count * LANES
        for step in range(steps):
            offsets.extend(cells[first:end] * steps * _STEP_FLOATS + step * _STEP_FLOATS)
        if not count:
            continue
        sources = taps[first:end, None] + channel // 64
        shifts = np.broadcast_to(channel % 64, sources.shape)
        places = np.arange(count)[:, None] * LANES + channel // LANES * phases[phase, 3]
        places = base + places + channel % LANES
        _turn(
            0, steps, 0, weight.reshape(-1), starts, sources.reshape(-1),
            shifts.reshape(-1).astype(np.uint64), places.reshape(-1),
            1, count * LANES, 0, _POWERS, turned,
        )  # fmt: skip
        base += panels * phases[phase, 3]
    return turned, np.array(offsets, np.int64), phases


@kernel(allocates=False)
def _input_by_tables(
    first, end, slot, grad, turned, offsets, phases, patterns, tables, pixels, cell, out, numbers
):
    """Bands first to end - 1, counted through all images."""
    g = _input_numbers(numbers)
    base, list_at = slot * g.cells * cell, 2 * slot * g.band * g.width
    for unit in range(first, end):
        image, y0 = unit // g.bands, unit % g.bands * g.band
        y1 = min(y0 + g.band, g.height)
        top, left = (y0 + g.top) // g.row_stride - g.rows_before, g.left // g.column_stride
        left -= g.columns_before
        at = base
        for oy in range(top, (y1 - 1 + g.top) // g.row_stride + 1):
            for ox in range(left, left + g.columns):
                count = 0
                if 0 <= oy < g.out_height and 0 <= ox < g.out_width:
                    count = g.group_filters
                pixel = (image * g.out_height + oy) * g.out_width + ox
                _make_tables(
                    grad,
                    pixel * g.filters + g.first_filter,
                    count,
                    np.int64(1),
                    patterns,
                    tables,
                    at,
                    cell,
                )
                at += cell
        for phase in range(len(phases)):
            phase_y, phase_x = phase // g.column_stride, phase % g.column_stride
            count = np.int64(0)
            for y in range(y0 + (phase_y - y0 - g.top) % g.row_stride, y1, g.row_stride):
                row = ((y + g.top) // g.row_stride - top) * g.columns - left
                x0 = (phase_x - g.left) % g.column_stride
                for x in range(x0, g.width, g.column_stride):
                    column = (x + g.left) // g.column_stride
                    pixel = (image * g.height + y) * g.width + x
                    pixels[list_at + 2 * count] = base + (row + column) * cell
                    pixels[list_at + 2 * count + 1] = pixel * g.channels + g.first_channel
                    count += 1
            _product(
                tables, pixels, list_at, count, offsets, phases[phase, 0], phases[phase, 1],
                turned, phases[phase, 2], phases[phase, 3], g.group_channels, np.bool_(False), out,
            )  # fmt: skip


# ------------------------------------------------------------------------- gradient in the weight


def conv2d_weight_gradient(
    grad,
    x,
    channels,
    kernel_size,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
    method=None,
    out=None,
):
    """Gradient of a binary convolution in its weight: floats times the signs of the input.

    With the input pixel (y, x) that the tap (ky, kx) of output pixel (oy, ox) falls on,

        out[o, ky, kx, c] = sum over n, oy, ox of grad[n, oy, ox, o] * sign(x[n, y, x, c]).

    Parameters
    ----------
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    x : (N, H, W, words_for(channels)) uint64
    channels : int
        C.
    kernel_size : (int, int)
        kh, kw.
    stride, padding, dilation : (int, int)
        Along height and width.
    groups : int
        A divisor of C and of O.
    padding_mode : "zeros" or "ones"
        What stands outside the image: nothing that adds to the sum, or +1.
    method : "lookup", "masked" or "blas", optional
        By default what suits the CPU and the share of zeros in ``grad``.
    out : (O, kh, kw, C // groups) float32, optional
        C-contiguous, to be written to.

    Returns
    -------
    (O, kh, kw, C // groups) float32

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the CPU cannot do ``method``.
    """
    name = "conv2d_weight_gradient"
    x = check_words(name, "x", x, 4)
    kernel_size = pair(name, "kernel_size", kernel_size, 1)
    grad, geometry = _geometry(
        name, grad, channels, x.shape[1:3], kernel_size, stride, padding, dilation, groups
    )
    check_row(name, "x", x, "channels", channels)
    if len(x) != len(grad):
        raise ValueError(f"{name}: x has {len(x)} images, grad has {len(grad)}")
    if padding_mode not in ("zeros", "ones"):
        raise ValueError(f'{name}: padding_mode must be "zeros" or "ones", got {padding_mode!r}')
    out = out_array(name, out, (grad.shape[3], *kernel_size, geometry.group_channels))
    method = _method(name, method, grad)
    if out.size == 0 or grad.size == 0:
        out[...] = 0
        return out
    if method == "blas":
        out[...] = 0
        for block in _blocks(grad, geometry):
            out += _weight_reference(grad[block], x[block], geometry, padding_mode)
        return out
    split = split_groups(x, channels, groups) if groups > 1 else x[:, :, :, None]
    for group, (o, _) in enumerate(geometry.group_slices(len(out))):
        _weight_gradient(grad, split[:, :, :, group], geometry, o, padding_mode, method, out[o])
    return out


def conv2d_weight_gradient_reference(
    grad,
    x,
    channels,
    kernel_size,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
):
    """What :func:`conv2d_weight_gradient` computes, in plain NumPy, in the dtype of ``grad``."""
    geometry = Geometry(
        channels, x.shape[1:3], grad.shape[1:3], kernel_size, stride, padding, dilation, groups
    )
    return _weight_reference(grad, x, geometry, padding_mode)


def _weight_reference(grad, x, geometry, padding_mode):
    """One matrix product a tap: the pixels it falls on, each weighted by its gradient."""
    border = ((0, 0), *((p, p) for p in geometry.padding), (0, 0))
    outside = 1 if padding_mode == "ones" else 0
    image = np.pad(
        unpack_reference(x, geometry.channels, grad.dtype), border, constant_values=outside
    )
    filters, per_group = grad.shape[3], geometry.group_channels
    out = empty((filters, *geometry.kernel_size, per_group), grad.dtype)
    for ky, kx, seen in geometry.taps(image):  # (N, OH, OW, C)
        for o, c in geometry.group_slices(filters):
            rows = grad[..., o].reshape(-1, filters // geometry.groups)  # (N*OH*OW, O/groups)
            out[o, ky, kx] = rows.T @ seen[..., c].reshape(-1, per_group)
    return out


class _Weight(NamedTuple):
    """The numbers that the kernels for the gradient in the weight need, for some of the images."""

    pixels: int  # of the output, of all these images
    first_pixel: int  # in the batch
    filters: int  # of all groups
    first_filter: int
    taps: int
    group_channels: int
    tap_lanes: int  # columns of a tap: its channels, filled up to whole vectors
    lanes: int  # columns of all taps, filled up to whole panels
    fresh: int  # whether no images have been added yet


@inlined
def _weight_numbers(n):
    """The same from an array."""
    return _Weight(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8])


def _weight_gradient(grad, x, geometry, filters, padding_mode, method, out):
    """One group. x : (N, H, W, words), filters : slice, out : (O/groups, kh, kw, C/groups)."""
    images, (oh, ow), (kh, kw) = len(grad), geometry.out_size, geometry.kernel_size
    (ph, pw), per_group, words = geometry.padding, geometry.group_channels, x.shape[3]
    outside = np.zeros(words, np.uint64)
    if padding_mode == "ones":
        outside = pack_reference(np.ones(per_group))
    correction = _beyond_the_image(grad[..., filters], geometry, padding_mode)  # (O/groups, taps)

    # Sums are kept in rows of whole panels; those of whole channels are the result itself.
    taps, tap_lanes = kh * kw, -(-per_group // FLOATS) * FLOATS
    lanes = -(-taps * tap_lanes // LANES) * LANES
    direct = lanes == taps * per_group
    rows = out.reshape(len(out), lanes) if direct else empty((len(out), lanes), np.float32)

    # The columns come from here: a vector of 16 channels of a tap.
    row = (geometry.size[1] + 2 * pw) * words
    dy, dx = geometry.dilation
    tap = np.arange(kh)[:, None] * dy * row + np.arange(kw) * dx * words
    pixel = np.arange(oh)[:, None] * geometry.stride[0] * row
    pixel = (pixel + np.arange(ow) * geometry.stride[1] * words).reshape(-1)

    image_bytes = oh * ow * lanes // 8
    together = min(images, max(1, _TURNED_BYTES // image_bytes))
    work = together * oh * ow * taps * per_group * len(out)
    tasks = min(_tasks(work), -(-len(out) // 4))
    shares = parallel.shares(-(-len(out) // 4), tasks)
    shares[:, :2] = np.minimum(4 * shares[:, :2], len(out))  # rows are computed by fours
    image_words = (geometry.size[0] + 2 * ph) * row
    padded = empty((together, geometry.size[0] + 2 * ph, row // words, words), np.uint64)
    padded[...] = outside
    flat, sums = grad.reshape(-1), rows.reshape(-1)
    for first in range(0, images, together):
        some = min(together, images - first)
        padded[:some, ph : ph + geometry.size[0], pw : pw + geometry.size[1]] = x[
            first : first + some
        ]
        starts = (np.arange(some)[:, None] * image_words + pixel).reshape(-1)
        g = _Weight(
            some * oh * ow, first * oh * ow, grad.shape[3], filters.start,
            taps, per_group, tap_lanes, lanes, first == 0,
        )  # fmt: skip
        more = flat, padded.reshape(-1), starts, tap.reshape(-1), correction.reshape(-1), sums, g
        _add_by_tables(shares, *more) if method == "lookup" else _add_by_masks(shares, *more)
    if not direct:
        columns = rows[:, : taps * tap_lanes].reshape(len(out), kh, kw, tap_lanes)
        out[...] = columns[..., :per_group]


def _beyond_the_image(grad, geometry, padding_mode):
    """What makes padding with zeros exact: (O, taps), to be added to each column of a tap.

    A zero is no sign, but in the padded image a bit 0 stands in its place, a sign -1. What it
    subtracts is the same for all channels: the gradients of the output pixels whose tap falls on
    the padding.
    """
    (kh, kw), filters = geometry.kernel_size, grad.shape[3]
    sums = np.zeros((kh, kw, filters), np.float32)
    if padding_mode == "zeros" and geometry.padding != (0, 0):
        rows, columns = geometry.inside(0), geometry.inside(1)
        with np.errstate(over="ignore", invalid="ignore"):
            # Whole rows of output pixels, and of the others those in some columns.
            for ky, (top, bottom) in enumerate(rows):
                sums[ky] = _sum(grad[:, :top], (0, 1, 2)) + _sum(grad[:, bottom:], (0, 1, 2))
            for kx, (left, right) in enumerate(columns):
                beyond = _sum(grad[:, :, :left], (0, 2)) + _sum(grad[:, :, right:], (0, 2))
                for ky, (top, bottom) in enumerate(rows):  # beyond : (OH, O)
                    sums[ky, kx] += _sum(beyond[top:bottom], 0)
    return np.ascontiguousarray(sums.reshape(kh * kw, filters).T)


def _sum(array, axes):
    return array.sum(axis=axes, dtype=np.float32)


def _add_by_tables(shares, grad, x, starts, taps, correction, sums, g):
    """Turn the signs of some images, then add their part of the gradient."""
    steps = -(-g.pixels // STEP)
    chunks = -(-steps // _CHUNK)
    # Pixels behind the last one have zeros in their tables: any signs will do.
    starts = np.append(starts, np.full(steps * STEP - len(starts), starts[-1]))
    channel = np.arange(0, g.tap_lanes, FLOATS)
    sources = taps[:, None] + channel // 64
    shifts = np.broadcast_to(channel % 64, sources.shape)
    lane = np.arange(g.taps)[:, None] * g.tap_lanes + channel
    places = lane // LANES * _CHUNK * LANES + lane % LANES
    turned = empty(chunks * _CHUNK * g.lanes, np.int32)
    parallel.share_out(
        _turn, parallel.shares(steps, min(len(shares), steps)), x, starts, sources.reshape(-1),
        shifts.reshape(-1).astype(np.uint64), places.reshape(-1),
        _CHUNK, _CHUNK * g.lanes, LANES, _POWERS, turned,
    )  # fmt: skip
    tasks = len(shares)
    tables = empty(tasks * _TILE * _CHUNK * _STEP_FLOATS, np.float32)
    rows = empty(2 * tasks * _TILE, np.int64)
    offsets = np.arange(_CHUNK) * _STEP_FLOATS
    parallel.share_out(
        _weight_by_tables, shares, grad, turned, offsets, _PATTERNS, tables, rows, correction, sums,
        np.array(g),
    )  # fmt: skip


@kernel(allocates=False)
def _weight_by_tables(
    first, end, slot, grad, turned, offsets, patterns, tables, rows, correction, sums, numbers
):
    """Filters first to end - 1 of the group."""
    g = _weight_numbers(numbers)
    size = _CHUNK * _STEP_FLOATS
    for tile in range(first, end, _TILE):
        filters = min(_TILE, end - tile)
        if g.fresh:
            _begin(tile, filters, correction, sums, g)
        for r in range(filters):
            rows[2 * (slot * _TILE + r)] = (slot * _TILE + r) * size
            rows[2 * (slot * _TILE + r) + 1] = (tile + r) * g.lanes
        for chunk in range(0, g.pixels, _CHUNK * STEP):
            pixels = min(_CHUNK * STEP, g.pixels - chunk)
            steps = (pixels + STEP - 1) // STEP
            for pixel in range(0, steps * STEP, 4):  # a cache line of a pixel has 16 filters
                at = (g.first_pixel + chunk + pixel) * g.filters + g.first_filter + tile
                for r in range(filters):
                    to = (slot * _TILE + r) * size + pixel // 4 * FLOATS
                    count = min(max(pixels - pixel, 0), 4)
                    _make_tables(
                        grad, at + r, count, g.filters, patterns, tables, to, np.int64(FLOATS)
                    )
            _product(
                tables, rows, 2 * slot * _TILE, filters, offsets, np.int64(0), steps,
                turned, chunk // STEP * g.lanes, _CHUNK * LANES, g.lanes, np.bool_(True), sums,
            )  # fmt: skip


@inlined
def _begin(first, count, correction, sums, g):
    """The rows of the result before anything is added: the correction of their border."""
    for row in range(first, first + count):
        for column in range(g.lanes):
            tap = min(column // g.tap_lanes, g.taps - 1)
            sums[row * g.lanes + column] = correction[row * g.taps + tap]


# ----------------------------------------------------------------------------------- lookup tables

# Lane i of pattern j: the sign of gradient j in sum number i.
_PATTERNS = np.where(np.arange(16) >> np.arange(4)[:, None] & 1, 1, -1).astype(np.float32).ravel()


@inlined
def _make_tables(grad, at, count, step, patterns, tables, to, size):
    """The tables of grad[at], grad[at + step], ..., filled up with zeros.

    tables[to : to + size] holds tables of 16 floats, each of four gradients.
    """
    whole = count - count % 4
    for i in range(0, whole, 4):
        g0, g1 = load_splat(grad, at + i * step), load_splat(grad, at + (i + 1) * step)
        g2, g3 = load_splat(grad, at + (i + 2) * step), load_splat(grad, at + (i + 3) * step)
        low = g0 * load(patterns, 0) + g1 * load(patterns, 16)
        high = g2 * load(patterns, 32) + g3 * load(patterns, 48)
        store(tables, to + i * (FLOATS // 4), low + high)
    for i in range(whole, size // (FLOATS // 4), 4):
        table = zero_floats()
        for k in range(i, count):
            table += load_splat(grad, at + k * step) * load(patterns, (k - i) * FLOATS)
        store(tables, to + i * (FLOATS // 4), table)


# An addition takes a few cycles before the next one of the same sum can start: 4 rows times 64
# columns are 16 vectors of sums that do not wait for each other. A table then serves four vectors
# of signs, and a vector of signs four tables.
@kernel(allocates=False)
def _product_of_64(
    tables, rows, rows_at, count, offsets, first, end, turned, at, panel_size, lanes, add, out
):
    """Rows of sums: for each row and column, all gradients of a row with their signs.

    Parameters
    ----------
    tables : (...,) float32
    rows : (...,) int64
        From ``rows_at`` on, for each of ``count`` rows: where its tables begin, and where its sums
        are in ``out``.
    offsets : (...,) int64
        From ``first`` to ``end``, for each step: where its tables are, from the row's first.
    turned : (...,) int32
        From ``at`` on, panel after panel of ``panel_size``, for each step: 64 integers of 32 signs.
    lanes : int
        Columns.
    add : bool
        Whether to add to what is in ``out``. The columns are then whole panels.
    """
    for row in range(0, count, 4):
        # With fewer than 4 rows left, one is computed several times.
        a0 = rows_at + 2 * row
        a1, a2 = rows_at + 2 * min(row + 1, count - 1), rows_at + 2 * min(row + 2, count - 1)
        a3 = rows_at + 2 * min(row + 3, count - 1)
        for panel in range((lanes + LANES - 1) // LANES):
            column = panel * LANES
            o0, o1, o2, o3 = (
                rows[a0 + 1] + column,
                rows[a1 + 1] + column,
                rows[a2 + 1] + column,
                rows[a3 + 1] + column,
            )
            s00, s01, s02, s03 = _sums(out, o0, add)
            s10, s11, s12, s13 = _sums(out, o1, add)
            s20, s21, s22, s23 = _sums(out, o2, add)
            s30, s31, s32, s33 = _sums(out, o3, add)
            q = at + panel * panel_size
            for step in range(first, end):
                i0, i1 = load(turned, q), load(turned, q + 16)
                i2, i3 = load(turned, q + 32), load(turned, q + 48)
                t = offsets[step]
                for _ in range(STEP // 4):
                    table = load(tables, rows[a0] + t)
                    s00 += look_up(table, i0)
                    s01 += look_up(table, i1)
                    s02 += look_up(table, i2)
                    s03 += look_up(table, i3)
                    table = load(tables, rows[a1] + t)
                    s10 += look_up(table, i0)
                    s11 += look_up(table, i1)
                    s12 += look_up(table, i2)
                    s13 += look_up(table, i3)
                    table = load(tables, rows[a2] + t)
                    s20 += look_up(table, i0)
                    s21 += look_up(table, i1)
                    s22 += look_up(table, i2)
                    s23 += look_up(table, i3)
                    table = load(tables, rows[a3] + t)
                    s30 += look_up(table, i0)
                    s31 += look_up(table, i1)
                    s32 += look_up(table, i2)
                    s33 += look_up(table, i3)
                    i0, i1, i2, i3 = next_four(i0), next_four(i1), next_four(i2), next_four(i3)
                    t += FLOATS
                q += LANES
            _put(out, o0, lanes - column, s00, s01, s02, s03)
            _put(out, o1, lanes - column, s10, s11, s12, s13)
            _put(out, o2, lanes - column, s20, s21, s22, s23)
            _put(out, o3, lanes - column, s30, s31, s32, s33)


# AVX2 has 16 registers of 8 floats: 4 rows times 16 columns, with the indices and their signs.
@kernel(allocates=False)
def _product_of_16(
    tables, rows, rows_at, count, offsets, first, end, turned, at, panel_size, lanes, add, out
):
    """The same for CPUs with few registers: a quarter of a panel at a time."""
    for row in range(0, count, 4):
        a0 = rows_at + 2 * row
        a1, a2 = rows_at + 2 * min(row + 1, count - 1), rows_at + 2 * min(row + 2, count - 1)
        a3 = rows_at + 2 * min(row + 3, count - 1)
        for column in range(0, lanes, FLOATS):
            s0, s1, s2, s3 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
            q = at + column // LANES * panel_size + column % LANES
            for step in range(first, end):
                index = load(turned, q)
                t = offsets[step]
                for _ in range(STEP // 4):
                    s0 += look_up(load(tables, rows[a0] + t), index)
                    s1 += look_up(load(tables, rows[a1] + t), index)
                    s2 += look_up(load(tables, rows[a2] + t), index)
                    s3 += look_up(load(tables, rows[a3] + t), index)
                    index = next_four(index)
                    t += FLOATS
                q += LANES
            o0, o1 = rows[a0 + 1] + column, rows[a1 + 1] + column
            o2, o3 = rows[a2 + 1] + column, rows[a3 + 1] + column
            if add:
                s0, s1, s2, s3 = (
                    s0 + load(out, o0),
                    s1 + load(out, o1),
                    s2 + load(out, o2),
                    s3 + load(out, o3),
                )
            store_first(out, o0, s0, lanes - column)
            store_first(out, o1, s1, lanes - column)
            store_first(out, o2, s2, lanes - column)
            store_first(out, o3, s3, lanes - column)


_product = _product_of_64 if "avx512f" in cpu_features() else _product_of_16


@inlined
def _sums(out, at, add):
    """Four vectors of sums to begin with."""
    if add:
        return load(out, at), load(out, at + 16), load(out, at + 32), load(out, at + 48)
    return zero_floats(), zero_floats(), zero_floats(), zero_floats()


@inlined
def _put(out, at, count, s0, s1, s2, s3):
    """Store the first ``count`` of 64 sums."""
    if count >= LANES:
        store(out, at, s0)
        store(out, at + 16, s1)
        store(out, at + 32, s2)
        store(out, at + 48, s3)
    else:  # what is behind them belongs to others
        store_first(out, at, s0, count)
        store_first(out, at + 16, s1, count - 16)
        store_first(out, at + 32, s2, count - 32)
        store_first(out, at + 48, s3, count - 48)


# 1, 2, 4, ..., one for each bit of an integer, and a vector of zeros.
_POWERS = np.append(np.uint32(1) << np.arange(STEP, dtype=np.uint32), np.zeros(FLOATS, np.uint32))
_POWERS = _POWERS.astype(np.uint32).view(np.int32)


@kernel(allocates=False)
def _turn(first, end, _, words, starts, sources, shifts, places, per, large, small, powers, turned):
    """Signs packed along channels become integers of 32 signs along rows.

    Bit j of lane i of the vector for rows 32 g, 32 g + 1, ... and source s is bit shifts[s] + i of
    words[starts[32 g + j] + sources[s]].

    Parameters
    ----------
    first, end : int
        The groups g of 32 rows.
    starts : (...,) int64
        Where a row begins in ``words``.
    sources, shifts, places : (n,) int64, (n,) uint64, (n,) int64
        The last says where in ``turned`` the 16 integers of a source go, for g = 0.
    per, large, small : int
        For other g they go ``g // per * large + g % per * small`` further on.
    """
    for g in range(first, end):
        base = g // per * large + g % per * small
        for s in range(len(sources)):
            vector = load(powers, STEP)  # zeros
            for j in range(STEP):
                word = words[starts[g * STEP + j] + sources[s]]
                vector = or_where(vector, load_splat(powers, j), word >> shifts[s])
            store(turned, base + places[s], vector)


# -------------------------------------------------------------------------------- masked additions


@kernel(allocates=False)
def _input_by_masks(
    first, end, slot, grad, weight, cells, taps, phases, values, places, ends, totals,
    starts, words, out, numbers,
):  # fmt: skip
    """Bands first to end - 1, counted through all images.

    A cell c is the list of the pixel's gradients that are not zero, from ends[c] to ends[c + 1]:
    values, and where the filters begin in ``weight``; and the sum of the values.
    """
    g = _input_numbers(numbers)
    cells_at, ends_at = slot * g.cells, slot * (g.cells + 1)
    list_at = slot * (g.cells * g.group_filters + FLOATS)
    for unit in range(first, end):
        image, y0 = unit // g.bands, unit % g.bands * g.band
        y1 = min(y0 + g.band, g.height)
        top, left = (y0 + g.top) // g.row_stride - g.rows_before, g.left // g.column_stride
        left -= g.columns_before
        n, cell = list_at, 0
        ends[ends_at] = n
        for oy in range(top, (y1 - 1 + g.top) // g.row_stride + 1):
            for ox in range(left, left + g.columns):
                sum_of_all = np.float32(0)
                if 0 <= oy < g.out_height and 0 <= ox < g.out_width:
                    pixel = (image * g.out_height + oy) * g.out_width + ox
                    n, sum_of_all = _list(
                        grad, pixel * g.filters + g.first_filter, g.group_filters, np.int64(1),
                        starts, g.first_filter, values, places, n,
                    )  # fmt: skip
                totals[cells_at + cell] = sum_of_all
                cell += 1
                ends[ends_at + cell] = n
        for y in range(y0, y1):
            for x in range(g.width):
                phase = (y + g.top) % g.row_stride * g.column_stride
                phase += (x + g.left) % g.column_stride
                row, column = (y + g.top) // g.row_stride, (x + g.left) // g.column_stride
                cell = (row - top) * g.columns + column - left
                sum_of_all = np.float32(0)
                for tap in range(phases[phase, 0], phases[phase, 1]):
                    sum_of_all += totals[cells_at + cell + cells[tap]]
                pixel = (image * g.height + y) * g.width + x
                to = pixel * g.channels + g.first_channel
                for word in range(0, words, 2):
                    more = min(1, words - 1 - word)
                    s0, s1, s2, s3 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
                    s4, s5, s6, s7 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
                    for tap in range(phases[phase, 0], phases[phase, 1]):
                        at = ends_at + cell + cells[tap]
                        s0, s1, s2, s3, s4, s5, s6, s7 = _masked(
                            values, places, ends[at], ends[at + 1], weight, taps[tap] + word, more,
                            s0, s1, s2, s3, s4, s5, s6, s7,
                        )  # fmt: skip
                    minus = splat(sum_of_all)
                    count = g.group_channels - 64 * word
                    _put(
                        out, to + 64 * word, count, s0 + s0 - minus, s1 + s1 - minus,
                        s2 + s2 - minus, s3 + s3 - minus,
                    )  # fmt: skip
                    if more:
                        _put(
                            out, to + 64 * word + 64, count - 64, s4 + s4 - minus,
                            s5 + s5 - minus, s6 + s6 - minus, s7 + s7 - minus,
                        )  # fmt: skip


def _add_by_masks(shares, grad, x, starts, taps, correction, sums, g):
    """Add the part of the gradient that comes from some images."""
    tasks, size = len(shares), _TILE * (_LIST + FLOATS)
    values, places = empty(tasks * size, np.float32), empty(tasks * size, np.int32)
    ends, totals = empty(tasks * _TILE, np.int64), empty(tasks * _TILE, np.float32)
    parallel.share_out(
        _weight_by_masks, shares, grad, x, starts.astype(np.int32), taps, values, places, ends,
        totals, correction, sums, np.array(g),
    )  # fmt: skip


@kernel(allocates=False)
def _weight_by_masks(
    first, end, slot, grad, x, starts, taps, values, places, ends, totals, correction, sums, numbers
):
    """Filters first to end - 1 of the group: each with a list of its gradients that are not zero.

    A list holds values, and where the words of the pixel begin in ``x``.
    """
    g = _weight_numbers(numbers)
    words, at = (g.group_channels + 63) // 64, slot * _TILE
    for tile in range(first, end, _TILE):
        filters = min(_TILE, end - tile)
        if g.fresh:
            _begin(tile, filters, correction, sums, g)
        for chunk in range(0, g.pixels, _LIST):
            for r in range(filters):
                ends[at + r], totals[at + r] = (at + r) * (_LIST + FLOATS), 0
            end_of_list = min(chunk + _LIST, g.pixels)
            for pixel in range(chunk, end_of_list, FLOATS):  # cache lines hold several filters
                count = min(FLOATS, end_of_list - pixel)
                source = (g.first_pixel + pixel) * g.filters + g.first_filter + tile
                for r in range(filters):
                    ends[at + r], more_of_all = _list(
                        grad, source + r, count, g.filters, starts, pixel, values, places,
                        ends[at + r],
                    )  # fmt: skip
                    totals[at + r] += more_of_all
            for r in range(filters):
                minus = splat(totals[at + r])
                for tap in range(g.taps):
                    for word in range(0, words, 2):
                        more = min(1, words - 1 - word)
                        s0, s1, s2, s3 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
                        s4, s5, s6, s7 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
                        s0, s1, s2, s3, s4, s5, s6, s7 = _masked(
                            values, places, (at + r) * (_LIST + FLOATS), ends[at + r],
                            x, taps[tap] + word, more, s0, s1, s2, s3, s4, s5, s6, s7,
                        )  # fmt: skip
                        to = (tile + r) * g.lanes + tap * g.tap_lanes + 64 * word
                        count = g.tap_lanes - 64 * word
                        _add(sums, to, count, s0 + s0 - minus)
                        _add(sums, to + 16, count - 16, s1 + s1 - minus)
                        _add(sums, to + 32, count - 32, s2 + s2 - minus)
                        _add(sums, to + 48, count - 48, s3 + s3 - minus)
                        if more:
                            _add(sums, to + 64, count - 64, s4 + s4 - minus)
                            _add(sums, to + 80, count - 80, s5 + s5 - minus)
                            _add(sums, to + 96, count - 96, s6 + s6 - minus)
                            _add(sums, to + 112, count - 112, s7 + s7 - minus)


@inlined
def _list(grad, at, count, step, starts, first, values, places, n):
    """Append to a list those of ``count`` gradients, ``step`` apart, that are not zero.

    With each goes a number from ``starts``, whose ``first`` belongs to the first gradient. The list
    needs room for a whole vector behind its last entry.

    Returns
    -------
    The end of the list, and the sum of the gradients.
    """
    sums, whole = zero_floats(), count - count % FLOATS
    for i in range(0, whole, FLOATS):
        at_i = at + i * step
        vector = load(grad, at_i) if step == 1 else load_strided(grad, at_i, step)
        bits = nonzero(vector)
        store(values, n, compress(vector, bits))
        store(places, n, compress(load(starts, first + i), bits))
        sums += vector
        n += count_ones(bits)
    sum_of_all = total(sums)
    for i in range(whole, count):
        value = grad[at + i * step]
        values[n], places[n] = value, starts[first + i]
        sum_of_all += value
        n += value != 0  # a zero is overwritten by the next one
    return n, sum_of_all


@inlined
def _add(sums, at, count, vector):
    """Add a vector to the sums, if any of its lanes is needed."""
    if count > 0:
        store(sums, at, load(sums, at) + vector)


@inlined
def _masked(values, places, first, end, words, offset, more, s0, s1, s2, s3, s4, s5, s6, s7):
    """Add the values of a list where the bits are 1: of two words, or twice of one."""
    for n in range(first, end):
        value, at = load_splat(values, n), places[n] + offset
        word = words[at]
        s0 = add_where(s0, value, word)
        s1 = add_where(s1, value, word >> np.uint64(16))
        s2 = add_where(s2, value, word >> np.uint64(32))
        s3 = add_where(s3, value, word >> np.uint64(48))
        word = words[at + more]
        s4 = add_where(s4, value, word)
        s5 = add_where(s5, value, word >> np.uint64(16))
        s6 = add_where(s6, value, word >> np.uint64(32))
        s7 = add_where(s7, value, word >> np.uint64(48))
    return s0, s1, s2, s3, s4, s5, s6, s7


# ----------------------------------------------------------------------------------------- threads


def _tasks(products):
    """Number of threads that pays for so many products."""
    return max(1, min(threads.count(), products // _GRAIN))


# ------------------------------------------------------------------------------------------ linear


def linear_input_gradient(grad, weight, features, *, method=None, out=None):
    """Gradient of a binary linear layer in its input: ``grad @ sign(weight)``.

    Parameters
    ----------
    grad : (N, O) float32
    weight : (O, words_for(features)) uint64
    features : int
        K, the inputs of the layer.
    method, out
        As in `conv2d_input_gradient`; ``out`` is (N, K) float32.

    Returns
    -------
    (N, K) float32

    Raises
    ------
    ValueError
        As `conv2d_input_gradient`.
    """
    grad, weight = (
        _matrix("linear_input_gradient", "grad", grad),
        _matrix("linear_input_gradient", "weight", weight),
    )
    if out is not None:
        out = _matrix("linear_input_gradient", "out", out)[:, None, None]
    result = conv2d_input_gradient(
        grad[:, None, None], weight[:, None, None], features, (1, 1), method=method, out=out
    )
    return result[:, 0, 0]


def linear_weight_gradient(grad, x, features, *, method=None, out=None):
    """Gradient of a binary linear layer in its weight: ``grad.T @ sign(x)``.

    Parameters
    ----------
    grad : (N, O) float32
    x : (N, words_for(features)) uint64
    features : int
        K, the inputs of the layer.
    method, out
        As in `conv2d_weight_gradient`; ``out`` is (O, K) float32.

    Returns
    -------
    (O, K) float32

    Raises
    ------
    ValueError
        As `conv2d_weight_gradient`.
    """
    grad, x = (
        _matrix("linear_weight_gradient", "grad", grad),
        _matrix("linear_weight_gradient", "x", x),
    )
    if out is not None:
        out = _matrix("linear_weight_gradient", "out", out)[:, None, None]
    result = conv2d_weight_gradient(
        grad[:, None, None], x[:, None, None], features, (1, 1), method=method, out=out
    )
    return result[:, 0, 0]


# --------------------------------------------------------------------------------- shape and checks


class Geometry(NamedTuple):
    """The shape of a convolution."""

    channels: int
    size: tuple
    out_size: tuple
    kernel_size: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int

    @property
    def group_channels(self):
        return self.channels // self.groups

    def taps(self, padded):
        """ky, kx and the pixels of padded images that the tap falls on: (N, OH, OW, C), a view."""
        for ky in range(self.kernel_size[0]):
            for kx in range(self.kernel_size[1]):
                top, left = ky * self.dilation[0], kx * self.dilation[1]
                bottom = top + (self.out_size[0] - 1) * self.stride[0] + 1
                right = left + (self.out_size[1] - 1) * self.stride[1] + 1
                rows, columns = (
                    slice(top, bottom, self.stride[0]),
                    slice(left, right, self.stride[1]),
                )
                yield ky, kx, padded[:, rows, columns]

    def group_slices(self, filters):
        """For each group its filters and its channels."""
        for group in range(self.groups):
            yield tuple(
                slice(group * count // self.groups, (group + 1) * count // self.groups)
                for count in (filters, self.channels)
            )

    def inside(self, axis):
        """For each tap along an axis: first and last + 1 output position inside the image."""
        bounds = []
        for k in range(self.kernel_size[axis]):
            begin = k * self.dilation[axis] - self.padding[axis]  # what output 0 sees
            first = max(0, -(begin // self.stride[axis]))
            end = max(first, -((begin - self.size[axis]) // self.stride[axis]))
            bounds.append((min(first, self.out_size[axis]), min(end, self.out_size[axis])))
        return bounds


def _blocks(grad, geometry):
    """Slices of a few images each."""
    bytes_ = max(4 * grad[0].size, 4 * geometry.channels * geometry.size[0] * geometry.size[1])
    together = max(1, _BLAS_BYTES // bytes_)
    return [slice(first, first + together) for first in range(0, len(grad), together)]


def _method(name, method, grad):
    """The method to use: the one that was asked for, or one that suits."""
    features = cpu_features()
    can = {"blas"}
    if features & {"avx2", "avx512f"}:
        can.add("lookup")
    if "avx512f" in features:
        can.add("masked")
    if method is None:
        if "masked" in can and _share_of_nonzero(grad) <= _SPARSE:
            return "masked"
        return "lookup" if "lookup" in can else "blas"
    if method not in METHODS:
        raise ValueError(f"{name}: method must be one of {METHODS} or None, got {method!r}")
    if method not in can:
        raise ValueError(f"{name}: this CPU cannot do {method!r}, only {sorted(can)}")
    return method


def _share_of_nonzero(grad):
    """Of about 16,000 of the gradients, or all."""
    sample = grad.reshape(-1)[:: grad.size >> 14 | 1]
    return np.count_nonzero(sample) / max(len(sample), 1)


def _geometry(name, grad, channels, size, kernel_size, stride, padding, dilation, groups):
    """grad as a contiguous array, and the shape of the convolution, or a ValueError."""
    grad = np.asarray(grad)
    if grad.dtype != np.float32 or grad.ndim != 4:
        raise ValueError(
            f"{name}: grad must be float32 with 4 axes (N, OH, OW, O), "
            f"got {grad.dtype} of shape {grad.shape}"
        )
    stride, dilation = pair(name, "stride", stride, 1), pair(name, "dilation", dilation, 1)
    padding = pair(name, "padding", padding, 0)
    if channels < 1:
        raise ValueError(f"{name}: channels must be positive, got {channels}")
    if groups < 1 or channels % groups or grad.shape[3] % groups:
        raise ValueError(
            f"{name}: groups must divide {channels} input channels and {grad.shape[3]} output "
            f"channels, got {groups}"
        )
    out_size = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel_size, stride, strict=True)
    )
    if grad.shape[1:3] != out_size:
        raise ValueError(
            f"{name}: images of {size[0]} x {size[1]} and filters of {kernel_size[0]} x "
            f"{kernel_size[1]} with stride {stride}, padding {padding} and dilation {dilation} "
            f"give {out_size[0]} x {out_size[1]} pixels, grad has {grad.shape[1]} x {grad.shape[2]}"
        )
    geometry = Geometry(
        channels, tuple(size), out_size, tuple(kernel_size), stride, padding, dilation, groups
    )
    return np.ascontiguousarray(grad), geometry


def _matrix(name, argument, array):
    array = np.asarray(array)
    if array.ndim != 2:
        raise ValueError(f"{name}: {argument} must have 2 axes, got shape {array.shape}")
    return array
