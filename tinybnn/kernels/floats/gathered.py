"""Products with a matrix that is never written down.

A convolution is a matrix product: a row of the one matrix is a patch of the image, what the filter
sees from one output pixel, and a column of the other is a filter. Written down, the matrix of
patches (*im2col*) holds each pixel as often as the filter has taps, and making it takes longer than
a fast product with it. But the place in the image of each of its elements is a sum of two numbers,
where the output pixel begins and how far the tap is from there::

    patches[i, k] = source[places[i] + steps[k]]

So two short tables stand for the matrix, and stride, padding, dilation and the width of an image
are all in the tables. Exchange the tables, and the matrix is transposed at no cost: the gradient in
the weight is a product with it.

`product` multiplies by such a matrix. It is the inner loop of all real-valued convolutions in
training, and the place where their time goes. 6 rows × 4 vectors of 16 columns are sums in 24
registers of the 32 that AVX-512 has; a step loads 4 vectors and 6 numbers for 24 multiply-adds,
two of which a core can start in each cycle. A processor with 16 registers, which hold 8 floats,
gets 6 rows × 1 vector.

Multiplication and addition are fused where the processor can do so (one rounding instead of two).
Sums in training need no fixed order; those of eval mode do, and have their own kernels in `signed`.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic, overload

from tinybnn.kernels.machine.simd import (
    FLOATS,
    cpu_features,
    inlined,
    kernel,
    load,
    load_splat,
    store,
    store_first,
    store_four,
    zero_floats,
)

WIDE, MIDDLE, NARROW = 4 * FLOATS, 2 * FLOATS, FLOATS  # columns of a panel
TOGETHER, TOGETHER_CHANNELWISE = 6, 9  # rows in registers at a time


def panel_widths(columns):
    """How the columns of a product are cut into panels: a list of widths.

    A wide panel takes 12 cycles for a step of 6 rows, a middle one 6, and a narrow one about 4,
    since its 6 sums are too few to hide how long an addition takes.
    """
    if "avx512f" not in cpu_features():
        return [NARROW] * -(-columns // NARROW)
    widths = [WIDE] * (columns // WIDE)
    rest = columns % WIDE
    if rest > MIDDLE + NARROW:
        return [*widths, WIDE]
    if rest > NARROW:
        widths.append(MIDDLE)
        rest -= MIDDLE
    return [*widths, NARROW] if rest > 0 else widths


# ------------------------------------------------------------------------------------- vector words


def multiply_add(x, w, total):
    """``x * w + total`` lane by lane; rounded once where the CPU can, else twice."""
    return x * w + total


@intrinsic
def _multiply_add(typing, x, w, total):
    def generate(context, builder, signature, arguments):
        lanes = arguments[0].type
        kind = ir.FunctionType(lanes, [lanes, lanes, lanes])
        # Unlike llvm.fma, which would call a library function for each lane on a CPU without it.
        name = f"llvm.fmuladd.v{lanes.count}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return x(x, w, total), generate


@overload(multiply_add)
def _compiled_multiply_add(x, w, total):
    if x == w == total:
        return lambda x, w, total: _multiply_add(x, w, total)


def entry(table, index):
    """table[index], where the index is not negative; Numba would ask at each."""
    return table[index]


@intrinsic
def _entry(typing, table, index):
    def generate(context, builder, signature, arguments):
        return builder.load(_pointer(context, builder, table, *arguments))

    return table.dtype(table, types.intp), generate


@overload(entry)
def _compiled_entry(table, index):
    return lambda table, index: _entry(table, index)


def copy_floats(source, start, target, to, length):
    """target[to : to + length] = source[start : start + length], which do not overlap."""
    target[to : to + length] = source[start : start + length]


def clear_floats(target, to, length):
    """target[to : to + length] = 0"""
    target[to : to + length] = 0


# The library functions memcpy and memset. Loops that LLVM unrolls would take longer to compile.


def _pointer(context, builder, array_type, array, index):
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def _copy_floats(typing, source, start, target, to, length):
    def generate(context, builder, signature, arguments):
        source_value, start_value, target_value, to_value, count = arguments
        read = _pointer(context, builder, source, source_value, start_value)
        write = _pointer(context, builder, target, target_value, to_value)
        cgutils.raw_memcpy(builder, write, read, count, 4, align=4)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), generate


@intrinsic
def _clear_floats(typing, target, to, length):
    def generate(context, builder, signature, arguments):
        target_value, to_value, count = arguments
        size = builder.mul(count, ir.Constant(count.type, 4))
        pointer = _pointer(context, builder, target, target_value, to_value)
        cgutils.memset(builder, pointer, size, 0)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp), generate


@overload(copy_floats)
def _compiled_copy_floats(source, start, target, to, length):
    return lambda source, start, target, to, length: _copy_floats(source, start, target, to, length)


@overload(clear_floats)
def _compiled_clear_floats(target, to, length):
    return lambda target, to, length: _clear_floats(target, to, length)


# -------------------------------------------------------------------------------------- the product


@kernel(allocates=False)
def product(
    first, end, k0, k1, source, base, places, steps, panel, q, width, out, to, targets, count, adds,
):  # fmt: skip
    """Rows first to end - 1 of the product with one panel, or a stretch of their sums.

    For each row i and each column j < count::

        out[to + targets[i] + j] = sum over k0 <= k < k1 of
            source[base + places[i] + steps[k]] * panel[q + (k - k0) * width + j]

    Parameters
    ----------
    first, end : int
    k0, k1 : int
    source, panel, out : float32
    places, targets : int64
        One for each row.
    steps : int64
        One for each step of the summation.
    base, q, to : int
    width : int
        WIDE, MIDDLE or NARROW; the panel has as many columns.
    count : int
        Columns that are stored, up to the width.
    adds : bool
        The sums are added to `out`. All columns of the panel are stored then.
    """
    for i in range(first, end, TOGETHER):
        # The last block may have fewer rows: it computes its last one several times.
        more = end - 1 - i
        i1, i2, i3 = i + min(more, 1), i + min(more, 2), i + min(more, 3)
        i4, i5 = i + min(more, 4), i + min(more, 5)
        a0, a1, a2 = entry(places, i), entry(places, i1), entry(places, i2)
        a3, a4, a5 = entry(places, i3), entry(places, i4), entry(places, i5)
        a0, a1, a2, a3, a4, a5 = a0 + base, a1 + base, a2 + base, a3 + base, a4 + base, a5 + base
        t0, t1, t2 = entry(targets, i), entry(targets, i1), entry(targets, i2)
        t3, t4, t5 = entry(targets, i3), entry(targets, i4), entry(targets, i5)
        t0, t1, t2, t3, t4, t5 = t0 + to, t1 + to, t2 + to, t3 + to, t4 + to, t5 + to
        if width == WIDE:
            s = _six_by_wide(source, a0, a1, a2, a3, a4, a5, steps, k0, k1, panel, q)
            _put_wide(out, t0, s[0:4], count, adds)
            # A sum that is added must not be added twice.
            if more > 0:
                _put_wide(out, t1, s[4:8], count, adds)
            if more > 1:
                _put_wide(out, t2, s[8:12], count, adds)
            if more > 2:
                _put_wide(out, t3, s[12:16], count, adds)
            if more > 3:
                _put_wide(out, t4, s[16:20], count, adds)
            if more > 4:
                _put_wide(out, t5, s[20:24], count, adds)
        elif width == MIDDLE:
            s = _six_by_middle(source, a0, a1, a2, a3, a4, a5, steps, k0, k1, panel, q)
            _put_middle(out, t0, s[0:2], count, adds)
            if more > 0:
                _put_middle(out, t1, s[2:4], count, adds)
            if more > 1:
                _put_middle(out, t2, s[4:6], count, adds)
            if more > 2:
                _put_middle(out, t3, s[6:8], count, adds)
            if more > 3:
                _put_middle(out, t4, s[8:10], count, adds)
            if more > 4:
                _put_middle(out, t5, s[10:12], count, adds)
        else:
            s = _six_by_narrow(source, a0, a1, a2, a3, a4, a5, steps, k0, k1, panel, q)
            _put(out, t0, s[0], count, adds)
            if more > 0:
                _put(out, t1, s[1], count, adds)
            if more > 1:
                _put(out, t2, s[2], count, adds)
            if more > 2:
                _put(out, t3, s[3], count, adds)
            if more > 3:
                _put(out, t4, s[4], count, adds)
            if more > 4:
                _put(out, t5, s[5], count, adds)


@inlined
def _six_by_wide(source, a0, a1, a2, a3, a4, a5, steps, k0, k1, panel, q):
    """The sums of 6 rows with 64 columns."""
    s00, s01, s02, s03 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    s10, s11, s12, s13 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    s20, s21, s22, s23 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    s30, s31, s32, s33 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    s40, s41, s42, s43 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    s50, s51, s52, s53 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    for k in range(k0, k1):
        step = entry(steps, k)
        w0, w1 = load(panel, q), load(panel, q + 16)
        w2, w3 = load(panel, q + 32), load(panel, q + 48)
        x = load_splat(source, a0 + step)
        s00, s01 = multiply_add(x, w0, s00), multiply_add(x, w1, s01)
        s02, s03 = multiply_add(x, w2, s02), multiply_add(x, w3, s03)
        x = load_splat(source, a1 + step)
        s10, s11 = multiply_add(x, w0, s10), multiply_add(x, w1, s11)
        s12, s13 = multiply_add(x, w2, s12), multiply_add(x, w3, s13)
        x = load_splat(source, a2 + step)
        s20, s21 = multiply_add(x, w0, s20), multiply_add(x, w1, s21)
        s22, s23 = multiply_add(x, w2, s22), multiply_add(x, w3, s23)
        x = load_splat(source, a3 + step)
        s30, s31 = multiply_add(x, w0, s30), multiply_add(x, w1, s31)
        s32, s33 = multiply_add(x, w2, s32), multiply_add(x, w3, s33)
        x = load_splat(source, a4 + step)
        s40, s41 = multiply_add(x, w0, s40), multiply_add(x, w1, s41)
        s42, s43 = multiply_add(x, w2, s42), multiply_add(x, w3, s43)
        x = load_splat(source, a5 + step)
        s50, s51 = multiply_add(x, w0, s50), multiply_add(x, w1, s51)
        s52, s53 = multiply_add(x, w2, s52), multiply_add(x, w3, s53)
        q += WIDE
    return (
        s00, s01, s02, s03, s10, s11, s12, s13, s20, s21, s22, s23,
        s30, s31, s32, s33, s40, s41, s42, s43, s50, s51, s52, s53,
    )  # fmt: skip


@inlined
def _six_by_middle(source, a0, a1, a2, a3, a4, a5, steps, k0, k1, panel, q):
    """The same for 32 columns."""
    s00, s01, s10, s11 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    s20, s21, s30, s31 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    s40, s41, s50, s51 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    for k in range(k0, k1):
        step = entry(steps, k)
        w0, w1 = load(panel, q), load(panel, q + 16)
        x = load_splat(source, a0 + step)
        s00, s01 = multiply_add(x, w0, s00), multiply_add(x, w1, s01)
        x = load_splat(source, a1 + step)
        s10, s11 = multiply_add(x, w0, s10), multiply_add(x, w1, s11)
        x = load_splat(source, a2 + step)
        s20, s21 = multiply_add(x, w0, s20), multiply_add(x, w1, s21)
        x = load_splat(source, a3 + step)
        s30, s31 = multiply_add(x, w0, s30), multiply_add(x, w1, s31)
        x = load_splat(source, a4 + step)
        s40, s41 = multiply_add(x, w0, s40), multiply_add(x, w1, s41)
        x = load_splat(source, a5 + step)
        s50, s51 = multiply_add(x, w0, s50), multiply_add(x, w1, s51)
        q += MIDDLE
    return s00, s01, s10, s11, s20, s21, s30, s31, s40, s41, s50, s51


@inlined
def _six_by_narrow(source, a0, a1, a2, a3, a4, a5, steps, k0, k1, panel, q):
    """The same for 16 columns."""
    s0, s1, s2 = zero_floats(), zero_floats(), zero_floats()
    s3, s4, s5 = zero_floats(), zero_floats(), zero_floats()
    for k in range(k0, k1):
        step = entry(steps, k)
        w = load(panel, q)
        s0 = multiply_add(load_splat(source, a0 + step), w, s0)
        s1 = multiply_add(load_splat(source, a1 + step), w, s1)
        s2 = multiply_add(load_splat(source, a2 + step), w, s2)
        s3 = multiply_add(load_splat(source, a3 + step), w, s3)
        s4 = multiply_add(load_splat(source, a4 + step), w, s4)
        s5 = multiply_add(load_splat(source, a5 + step), w, s5)
        q += NARROW
    return s0, s1, s2, s3, s4, s5


@inlined
def _put_wide(out, to, s, count, adds):
    s0, s1, s2, s3 = s
    if adds:
        s0, s1 = s0 + load(out, to), s1 + load(out, to + 16)
        s2, s3 = s2 + load(out, to + 32), s3 + load(out, to + 48)
    store_four(out, to, (s0, s1, s2, s3), count)


@inlined
def _put_middle(out, to, s, count, adds):
    s0, s1 = s
    if adds:
        s0, s1 = s0 + load(out, to), s1 + load(out, to + 16)
    if count == MIDDLE:
        store(out, to, s0)
        store(out, to + 16, s1)
    else:
        store_first(out, to, s0, count)
        store_first(out, to + 16, s1, count - 16)


@inlined
def _put(out, to, s, count, adds):
    if adds:
        s = s + load(out, to)
    if count == NARROW:
        store(out, to, s)
    else:
        store_first(out, to, s, count)


# ------------------------------------------------------------------------------- channel by channel


@kernel(allocates=False)
def channelwise_product(
    first, end, k0, k1, source, base, places, steps, factors, q, stride, channels, out, to, targets,
    adds,
):  # fmt: skip
    """The same for filters that see one channel each: depth-wise convolutions.

    For each row i and each channel j < channels::

        out[to + targets[i] + j] = sum over k0 <= k < k1 of
            source[base + places[i] + steps[k] + j] * factors[q + (k - k0) * stride + j]

    There are 9 rows in registers at a time, as many as a 3×3 filter has taps: in the gradient in
    the weight these are the rows. `source` and `factors` hold 15 floats more than these sums need,
    if the channels are no multiple of 16, and if ``adds`` then so does each row of `out`.
    """
    for i in range(first, end, TOGETHER_CHANNELWISE):
        more = end - 1 - i
        i1, i2, i3, i4 = i + min(more, 1), i + min(more, 2), i + min(more, 3), i + min(more, 4)
        i5, i6, i7, i8 = i + min(more, 5), i + min(more, 6), i + min(more, 7), i + min(more, 8)
        a0, a1, a2 = entry(places, i), entry(places, i1), entry(places, i2)
        a3, a4, a5 = entry(places, i3), entry(places, i4), entry(places, i5)
        a6, a7, a8 = entry(places, i6), entry(places, i7), entry(places, i8)
        t0, t1, t2 = entry(targets, i), entry(targets, i1), entry(targets, i2)
        t3, t4, t5 = entry(targets, i3), entry(targets, i4), entry(targets, i5)
        t6, t7, t8 = entry(targets, i6), entry(targets, i7), entry(targets, i8)
        for channel in range(0, channels, FLOATS):
            s0, s1, s2 = zero_floats(), zero_floats(), zero_floats()
            s3, s4, s5 = zero_floats(), zero_floats(), zero_floats()
            s6, s7, s8 = zero_floats(), zero_floats(), zero_floats()
            at = q + channel
            for k in range(k0, k1):
                x = base + channel + entry(steps, k)
                w = load(factors, at)
                s0 = multiply_add(load(source, a0 + x), w, s0)
                s1 = multiply_add(load(source, a1 + x), w, s1)
                s2 = multiply_add(load(source, a2 + x), w, s2)
                s3 = multiply_add(load(source, a3 + x), w, s3)
                s4 = multiply_add(load(source, a4 + x), w, s4)
                s5 = multiply_add(load(source, a5 + x), w, s5)
                s6 = multiply_add(load(source, a6 + x), w, s6)
                s7 = multiply_add(load(source, a7 + x), w, s7)
                s8 = multiply_add(load(source, a8 + x), w, s8)
                at += stride
            y, count = to + channel, min(channels - channel, FLOATS)
            _put(out, t0 + y, s0, count, adds)
            if more > 0:
                _put(out, t1 + y, s1, count, adds)
            if more > 1:
                _put(out, t2 + y, s2, count, adds)
            if more > 2:
                _put(out, t3 + y, s3, count, adds)
            if more > 3:
                _put(out, t4 + y, s4, count, adds)
            if more > 4:
                _put(out, t5 + y, s5, count, adds)
            if more > 5:
                _put(out, t6 + y, s6, count, adds)
            if more > 6:
                _put(out, t7 + y, s7, count, adds)
            if more > 7:
                _put(out, t8 + y, s8, count, adds)
