"""Arithmetic on packed signs: matrix product, convolution, threshold and max-pool.

Two signs multiply to +1 when they agree and to -1 when they differ, so the dot product of K signs
is (number of agreements) - (number of disagreements) = K - 2 * disagreements, and 64 disagreements
at a time are counted by one exclusive or and one population count::

    dot(a, b) = K - 2 * popcount(a ^ b)

(Courbariaux et al. 2016, arXiv:1602.02830; Rastegari et al. 2016, XNOR-Net,
arXiv:1603.05279.) K is the true length: the tails of both rows are 0, agree, and add
no disagreement.

Each function has a twin, ``*_reference``, that computes the same in plain NumPy.

Product and convolution are one kernel, in two steps, for programs that use the same weights again
and again:

1. `prepare_matmul` or `prepare_conv2d` lays the weights out once and makes the tables the kernel
   needs. With ``thresholds`` a batch norm and a sign follow (see `threshold`) and the kernel writes
   bits: the sums stay in registers, no array of them exists.
2. `run` computes.

`xnor_matmul` and `xnor_conv2d` do both in one call.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numba
import numpy as np
from numba import prange

from tinybnn.kernels import threads
from tinybnn.kernels.bits import (
    from_bytes,
    pack_reference,
    split_groups_reference,
    unpack_reference,
    words_for,
)
from tinybnn.kernels.simd import (
    INTEGERS,
    WORDS,
    at_most,
    inlined,
    interleave,
    kernel,
    load,
    load_splat,
    popcount,
    splat,
    store,
    store_first,
    zero_words,
)

_NO_BITS = np.uint64(0)
_ALL_BITS = np.uint64(2**64 - 1)

WIDE, NARROW = 4 * WORDS, 2 * WORDS  # columns of a panel
_PART = 256  # pixels that pass through all panels before the next ones: their words stay in cache
_GRAIN = 1 << 25  # products of signs (some 15 microseconds) below which a second thread costs time

# ---------------------------------------------------------------------------------- matrix product


def xnor_matmul(a, b, count):
    """Dot products of all rows of ``a`` with all rows of ``b``: ``a @ b.T`` on signs.

    Parameters
    ----------
    a : (M, W) uint64
    b : (N, W) uint64
        At least words_for(count) words a row. Bits that are no signs, at the tail or between parts
        that are padded to whole words (pixels, say), are 0 on both sides and do not count.
    count : int
        K, the number of signs a row.

    Returns
    -------
    (M, N) int32
        ``K - 2 * popcount(a[i] ^ b[j])``.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or ``count`` is not positive.
    """
    a, b = _words("xnor_matmul", "a", a, 2), _words("xnor_matmul", "b", b, 2)
    if count < 1:
        raise ValueError(f"xnor_matmul: count must be positive, got {count}")
    if a.shape[1] < words_for(count):
        raise ValueError(
            f"xnor_matmul: a has {a.shape[1]} words a row, count {count} needs {words_for(count)}"
        )
    if b.shape[1] != a.shape[1]:
        raise ValueError(f"xnor_matmul: b has {b.shape[1]} words a row, a has {a.shape[1]}")
    return _run(_prepare_matmul("xnor_matmul", b, count), a)


def xnor_matmul_reference(a, b, count):
    """What :func:`xnor_matmul` computes, in plain NumPy."""
    differ = a[:, None, :] ^ b[None, :, :]  # (M, N, W)
    return (count - 2 * np.bitwise_count(differ).sum(axis=2, dtype=np.int64)).astype(np.int32)


# ------------------------------------------------------------------------------------- convolution


def xnor_conv2d(
    x,
    weight,
    channels,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
):
    """2-D convolution (cross-correlation, as in PyTorch) of signs, channels last.

    Parameters
    ----------
    x : (N, H, W, words_for(channels)) uint64
    weight : (O, kh, kw, words_for(channels // groups)) uint64
        Tail bits are 0.
    channels : int
        C, the channels of ``x``.
    stride, padding, dilation : (int, int)
        Along height and width.
    groups : int
        A divisor of C and of O. Output channel o sees the channels of group ``o // (O // groups)``.
    padding_mode : "zeros" or "ones"
        What stands outside the image. A zero is not a sign and has no bit: a tap of the filter that
        falls on it adds nothing. "ones" puts +1 there.

    Returns
    -------
    (N, OH, OW, O) int32
        ``OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1``, OW likewise. With the
        taps that count (all for "ones", those inside the image for "zeros") and C / groups channels
        each, ``taps * C / groups - 2 * popcount(x ^ weight over these taps)``.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the output would be empty.
    """
    name = "xnor_conv2d"
    x, weight = _words(name, "x", x, 4), _words(name, "weight", weight, 4)
    _check_row(name, "x", x, "channels", channels)
    geometry = stride, padding, dilation, groups, padding_mode
    return _run(_prepare_conv2d(name, weight, channels, x.shape[1:3], *geometry), x)


def xnor_conv2d_reference(
    x,
    weight,
    channels,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
):
    """What :func:`xnor_conv2d` computes, in plain NumPy: one matrix product a tap and group."""
    filters, kh, kw, _ = weight.shape
    group_channels, group_filters = channels // groups, filters // groups
    border = ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0))
    outside = 1 if padding_mode == "ones" else 0
    image = np.pad(unpack_reference(x, channels), border, constant_values=outside)  # (N, H', W', C)
    taps = unpack_reference(weight, group_channels)  # (O, kh, kw, C/groups)
    oh, ow = _output_size(
        "xnor_conv2d_reference", x.shape[1:3], (kh, kw), stride, padding, dilation
    )
    out = np.zeros((len(x), oh, ow, filters), np.float32)
    for ky in range(kh):
        for kx in range(kw):
            top, left = ky * dilation[0], kx * dilation[1]
            bottom, right = top + (oh - 1) * stride[0] + 1, left + (ow - 1) * stride[1] + 1
            seen = image[:, top : bottom : stride[0], left : right : stride[1]]  # (N, OH, OW, C)
            for group in range(groups):
                c = slice(group * group_channels, (group + 1) * group_channels)
                o = slice(group * group_filters, (group + 1) * group_filters)
                out[..., o] += seen[..., c] @ taps[o, ky, kx].T
    return out.astype(np.int32)


# --------------------------------------------------------------------------------- laid-out weights


@dataclass(frozen=True, eq=False)
class Prepared:
    """Weights laid out for `run`, with the tables of one geometry; plain arrays and integers.

    Everything is seen as a convolution of flat words: an output pixel sees the L words at
    ``first word of the pixel + taps``. So nothing but a table knows of stride, dilation and the
    width of the image, and a matrix product is the case of images of one pixel.

    The filters of a group are cut into panels of 32, and one of 16 where that is enough for the
    rest. A panel holds word 0 of each of its filters, then word 1 of each, and so on, so that one
    load gives the words of 8 filters: those with an even number among 16, then those with an odd
    one. Two vectors of 64-bit counts then become one of 32-bit sums by putting the second into the
    upper halves of the first.

    Attributes
    ----------
    input_shape, output_shape : tuple of int
        Without the number of images or rows; the input in words, the output in channels.
    channels : int
        Input channels of a convolution; of a product, signs a row.
    panels : (...,) uint64
        The words of all panels, one panel after the other.
    table : (P, 6) int64
        For each panel: its start in ``panels``, its width, its group, the first output channel and
        the number of them, its first column in ``constants``.
    taps : (L,) int64
        Where the words under a filter are, counted from the pixel's first word.
    pixels : (OH * OW,) int64
        Where the first word is that an output pixel sees, counted from the image's first.
    rows : (OH * OW,) int64
        Where an output pixel's row in ``constants`` starts.
    constants : (...,) int32
        A row for each border class (the pixels whose taps on the padding are the same). For sums
        ``base``, so that the sum is ``base - 2 * disagreements``; for bits ``limit``, so that the
        comparison is ``disagreements <= limit``.
    flips : (P,) uint64
        For bits: the channels of a panel whose comparison is turned round.
    to_bits : bool
    groups : int
    group_stride, image_stride : int
        Words between two groups of an image and between two images.
    border : (2,) int64
        Rows and columns of padding.
    outside : (words_for(channels // groups),) uint64
        What a pixel of the padding holds.
    copies : bool
        Whether images have to be copied, padded and by groups, before they are read.
    together : int
        Number of images that are copied at a time.
    work : int
        Products of signs an image.
    """

    input_shape: tuple
    output_shape: tuple
    channels: int
    panels: np.ndarray
    table: np.ndarray
    taps: np.ndarray
    pixels: np.ndarray
    rows: np.ndarray
    constants: np.ndarray
    flips: np.ndarray
    to_bits: bool
    groups: int
    group_stride: int
    image_stride: int
    border: np.ndarray
    outside: np.ndarray
    copies: bool
    together: int
    work: int

    def workspace_words(self, images):
        """Words of the ``workspace`` that `run` needs for this number of images, at most."""
        return self._workspace(images, numba.config.NUMBA_NUM_THREADS)

    def _workspace(self, images, tasks):
        return tasks * min(self.together, max(images, 1)) * self.image_stride if self.copies else 0

    def out_shape(self, images):
        """Shape of the result."""
        *size, channels = self.output_shape
        return (images, *size, words_for(channels) if self.to_bits else channels)


def _panel_widths(filters):
    """Widths of the panels that hold the filters of a group."""
    wide, rest = divmod(filters, WIDE)
    return [WIDE] * wide + [WIDE if rest > NARROW else NARROW] * (rest > 0)


def _lay_out(weight, groups):
    """(O, L) words of filters -> panels, the table of panels, the number of columns."""
    filters, length = weight.shape
    group_filters = filters // groups
    panels, table, start, column = [], [], 0, 0
    for group in range(groups):
        first, end = group * group_filters, (group + 1) * group_filters
        for width in _panel_widths(group_filters):
            count = min(width, end - first)
            panel = np.zeros((length, width), np.uint64)
            panel[:, :count] = weight[first : first + count].T
            panel = panel.reshape(length, -1, WORDS, 2).swapaxes(2, 3)  # even columns, odd columns
            panels.append(panel.reshape(-1))
            table.append((start, width, group, first, count, column))
            start, column, first = start + panel.size, column + width, first + count
    table = np.array(table, np.int64).reshape(-1, 6)
    return np.concatenate(panels) if panels else np.zeros(0, np.uint64), table, column


def _epilogue(base, table, columns, thresholds, flip):
    """Tables for what follows the count of disagreements.

    base : (classes, O) int64
    """
    flips = np.zeros(len(table), np.uint64)
    filters = base.shape[1]
    if thresholds is None:
        values, empty = base, 0
    else:
        # (base - 2 d >= t) is (d <= (base - t) / 2), and d is an integer.
        # Limits beyond what it can be say the same as the nearest ones that int32 holds.
        values, empty = (base - thresholds.astype(np.int64)) >> 1, -1
        values = np.clip(values, -1, np.iinfo(np.int32).max)
    constants = np.full((len(base), columns), empty, np.int32)  # unused columns give bit 0
    for panel, (_, _, _, first, count, column) in enumerate(table):
        constants[:, column : column + count] = values[:, first : first + count]
        if thresholds is not None:
            turned = np.packbits(flip[first : first + count], bitorder="little")
            flips[panel] = int.from_bytes(turned.tobytes(), "little")
    assert filters == sum(table[:, 4])
    return constants.reshape(-1), flips


def _check_thresholds(function, thresholds, flip, filters):
    if (thresholds is None) != (flip is None):
        raise ValueError(f"{function}: thresholds and flip belong together, got only one of them")
    if thresholds is None:
        return None, None
    thresholds, flip = np.asarray(thresholds), np.asarray(flip)
    _check_vector(function, "thresholds", thresholds, np.int32, filters)
    _check_vector(function, "flip", flip, np.bool_, filters)
    return thresholds, flip


def prepare_matmul(b, count, *, thresholds=None, flip=None):
    """Lay out the right-hand side of `xnor_matmul`.

    Parameters
    ----------
    b : (N, W) uint64
    count : int
        K, the number of signs a row.
    thresholds, flip : (N,) int32 and (N,) bool, optional
        With them `run` gives bits, as `threshold` of the product does.

    Returns
    -------
    Prepared
        `run` takes it with ``a``, (M, W) uint64; gives (M, N) int32 or (M, words_for(N)) uint64.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or ``count`` is not positive.
    """
    return _prepare_matmul("prepare_matmul", b, count, thresholds, flip)


def _prepare_matmul(name, b, count, thresholds=None, flip=None):
    b = _words(name, "b", b, 2)
    if count < 1:
        raise ValueError(f"{name}: count must be positive, got {count}")
    filters, length = b.shape
    if length < words_for(count):
        raise ValueError(
            f"{name}: b has {length} words a row, count {count} needs {words_for(count)}"
        )
    thresholds, flip = _check_thresholds(name, thresholds, flip, filters)
    panels, table, columns = _lay_out(b, 1)
    base = np.full((1, filters), count, np.int64)
    constants, flips = _epilogue(base, table, columns, thresholds, flip)
    return Prepared(
        input_shape=(length,),
        output_shape=(filters,),
        channels=count,
        panels=panels,
        table=table,
        taps=np.arange(length),
        pixels=np.zeros(1, np.int64),
        rows=np.zeros(1, np.int64),
        constants=constants,
        flips=flips,
        to_bits=thresholds is not None,
        groups=1,
        group_stride=0,
        image_stride=length,
        border=np.zeros(2, np.int64),
        outside=np.zeros(1, np.uint64),
        copies=False,
        together=1,
        work=64 * length * columns,
    )


def prepare_conv2d(
    weight,
    channels,
    size,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
    thresholds=None,
    flip=None,
):
    """Lay out the filters of `xnor_conv2d` for images of one size.

    Parameters
    ----------
    weight, channels, stride, padding, dilation, groups, padding_mode
        As in `xnor_conv2d`.
    size : (int, int)
        Height and width of the images.
    thresholds, flip : (O,) int32 and (O,) bool, optional
        With them `run` gives bits, as `threshold` of the convolution does.

    Returns
    -------
    Prepared
        `run` takes it with ``x``, (N, H, W, words_for(channels)) uint64, and gives (N, OH, OW, O)
        int32 or (N, OH, OW, words_for(O)) uint64.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the output would be empty.
    """
    name = "prepare_conv2d"
    size = _pair(name, "size", size, 0)
    geometry = stride, padding, dilation, groups, padding_mode
    return _prepare_conv2d(name, weight, channels, size, *geometry, thresholds, flip)


def _prepare_conv2d(
    name,
    weight,
    channels,
    size,
    stride,
    padding,
    dilation,
    groups,
    padding_mode,
    thresholds=None,
    flip=None,
):
    weight = _words(name, "weight", weight, 4)
    stride, dilation = _pair(name, "stride", stride, 1), _pair(name, "dilation", dilation, 1)
    padding = _pair(name, "padding", padding, 0)
    if channels < 1:
        raise ValueError(f"{name}: channels must be positive, got {channels}")
    if groups < 1 or channels % groups or len(weight) % groups:
        raise ValueError(
            f"{name}: groups must divide {channels} input channels and {len(weight)} output "
            f"channels, got {groups}"
        )
    _check_row(name, "weight", weight, "channels // groups", channels // groups)
    if padding_mode not in ("zeros", "ones"):
        raise ValueError(f'{name}: padding_mode must be "zeros" or "ones", got {padding_mode!r}')
    filters, kh, kw, words = weight.shape
    oh, ow = _output_size(name, size, (kh, kw), stride, padding, dilation)
    thresholds, flip = _check_thresholds(name, thresholds, flip, filters)
    panels, table, columns = _lay_out(weight.reshape(filters, -1), groups)

    copies = groups > 1 or padding != (0, 0)
    height, width = size[0] + 2 * padding[0], size[1] + 2 * padding[1]
    row = width * words
    taps = (
        (np.arange(kh) * dilation[0] * row)[:, None, None]
        + (np.arange(kw) * dilation[1] * words)[:, None]
        + np.arange(words)
    )  # (kh, kw, words)
    starts = (np.arange(oh) * stride[0] * row)[:, None] + np.arange(ow) * stride[1] * words

    base, classes = _border_classes(
        weight, channels // groups, size, (oh, ow), stride, padding, dilation, padding_mode
    )
    constants, flips = _epilogue(base, table, columns, thresholds, flip)
    return Prepared(
        input_shape=(*size, words_for(channels)),
        output_shape=(oh, ow, filters),
        channels=channels,
        panels=panels,
        table=table,
        taps=taps.reshape(-1).astype(np.int64),
        pixels=starts.reshape(-1).astype(np.int64),
        rows=(classes * columns).astype(np.int64),
        constants=constants,
        flips=flips,
        to_bits=thresholds is not None,
        groups=groups,
        group_stride=height * row,
        image_stride=groups * height * row,
        border=np.array(padding, np.int64),
        outside=(
            _row_of_ones(channels // groups)
            if padding_mode == "ones"
            else np.zeros(words, np.uint64)
        ),
        copies=copies,
        together=-(-64 // (oh * ow)),  # a block takes 4 pixels: few of them are counted twice
        work=64 * taps.size * columns * oh * ow,
    )


def _border_classes(weight, channels, size, out_size, stride, padding, dilation, padding_mode):
    """What makes padding with zeros exact.

    A zero is no sign, but the padded image has to hold bits: it holds 0, so that a tap of the
    filter on the padding counts the tap's +1s as disagreements. What it counts depends on the
    weights only, and is given back here: with T taps inside the image,

        sum = T * C - 2 * (disagreements - popcount of the taps outside)

    Pixels with the same taps inside form a class: 9 for a 3 x 3 filter with padding 1.

    Returns
    -------
    base : (classes, O) int64
        ``T * C + 2 * popcount of the taps outside``.
    classes : (OH * OW,) int64
        The class of each output pixel.
    """
    filters, kh, kw, _ = weight.shape
    oh, ow = out_size
    if padding_mode == "ones":
        base = np.full((1, filters), kh * kw * channels, np.int64)
        return base, np.zeros(oh * ow, np.int64)
    inside, which = [], []
    for axis, taps in enumerate((kh, kw)):
        position = (
            np.arange(out_size[axis])[:, None] * stride[axis]
            + np.arange(taps) * dilation[axis]
            - padding[axis]
        )  # (outputs, taps)
        is_inside = (position >= 0) & (position < size[axis])
        kinds, kind = np.unique(is_inside, axis=0, return_inverse=True)
        inside.append(kinds)
        which.append(kind.reshape(-1))
    both = inside[0][:, None, :, None] & inside[1][None, :, None, :]  # (rows, columns, kh, kw)
    both = both.reshape(-1, kh * kw).astype(np.float64)
    ones = np.bitwise_count(weight).sum(-1, dtype=np.int64).reshape(filters, kh * kw)
    base = both.sum(1, keepdims=True) * channels + 2 * ((1 - both) @ ones.T)
    classes = which[0][:, None] * len(inside[1]) + which[1]
    return base.astype(np.int64), classes.reshape(-1)


# ------------------------------------------------------------------------------------------ running


def run(prepared, x, out=None, workspace=None):
    """The product or convolution of ``x`` with prepared weights.

    Parameters
    ----------
    prepared : Prepared
    x : (N, *prepared.input_shape) uint64
        Bits that are no signs are 0.
    out : array, optional
        Contiguous, of the result's shape and dtype, to be written to.
    workspace : (n,) uint64, optional
        Memory for padded images, at least ``prepared.workspace_words(N)`` words.

    Returns
    -------
    (N, *prepared.output_shape) int32
        Sums; or, if the weights were prepared with thresholds, uint64 words of bits with
        words_for(channels) words in place of the channels.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit.
    """
    x = np.asarray(x)
    if x.dtype != np.uint64 or x.shape[1:] != prepared.input_shape or x.ndim == 0:
        expected = ", ".join(map(str, ("N", *prepared.input_shape)))
        raise ValueError(
            f"run: x must be uint64 of shape ({expected}), got {x.dtype} of shape {x.shape}"
        )
    return _run(prepared, np.ascontiguousarray(x), out, workspace)


def run_reference(prepared, x):
    """What :func:`run` computes, in plain NumPy, from the same tables: one output at a time."""
    to_bits, (filters, *_) = prepared.to_bits, prepared.output_shape[::-1]
    group_words = len(prepared.outside)
    image = np.asarray(x)
    if prepared.copies:
        split = split_groups_reference(image, prepared.channels, prepared.groups)
        (py, px), (n, h, w, groups, _) = prepared.border, split.shape
        padded = np.empty((n, groups, h + 2 * py, w + 2 * px, group_words), np.uint64)
        padded[:] = prepared.outside
        padded[:, :, py : py + h, px : px + w] = split.transpose(0, 3, 1, 2, 4)
        image = padded
    image = image.reshape(len(image), math.prod(image.shape[1:]))
    sums = np.zeros((len(image), len(prepared.pixels), filters), np.int64)
    for panel, (start, width, group, first, count, column) in enumerate(prepared.table):
        length = len(prepared.taps)
        words = prepared.panels[start : start + width * length].reshape(length, -1, 2, WORDS)
        words = words.swapaxes(2, 3).reshape(length, width)
        for pixel, (address, row) in enumerate(zip(prepared.pixels, prepared.rows, strict=True)):
            seen = image[:, group * prepared.group_stride + address + prepared.taps]
            differ = np.bitwise_count(seen[:, :, None] ^ words).sum(1, dtype=np.int64)  # (N, width)
            constant = prepared.constants[row + column : row + column + width]
            if to_bits:
                turned = prepared.flips[panel] >> np.arange(width, dtype=np.uint64) & np.uint64(1)
                value = (differ <= constant) != (turned > 0)
            else:
                value = constant - 2 * differ
            sums[:, pixel, first : first + count] = value[:, :count]
    shape = (len(image), *prepared.output_shape)
    if to_bits:
        return pack_reference(2 * sums.reshape(shape) - 1)
    return sums.reshape(shape).astype(np.int32)


def _run(prepared, x, out=None, workspace=None):
    """`run` after the checks of ``x``."""
    shape = prepared.out_shape(len(x))
    dtype = np.uint64 if prepared.to_bits else np.int32
    out = _out("run", out, shape, dtype)
    if out.size == 0:
        return out
    images, pixels, panels = len(x), len(prepared.pixels), len(prepared.table)
    tasks = min(numba.get_num_threads(), images * prepared.work // _GRAIN)
    needed = prepared._workspace(images, max(tasks, 1))
    if workspace is None:
        workspace = np.empty(needed, np.uint64)
    elif workspace.dtype != np.uint64 or workspace.ndim != 1 or len(workspace) < needed:
        raise ValueError(
            f"run: workspace must be a row of at least {needed} words, "
            f"got {workspace.dtype} of shape {workspace.shape}"
        )
    if prepared.to_bits:
        sums, bits = _NO_SUMS, out.reshape(-1)
    else:
        sums, bits = out.reshape(-1), _NO_WORDS
    source = x.reshape(-1)
    height, width = prepared.input_shape[:2] if prepared.copies else (0, 0)
    constant = (
        prepared.panels, prepared.table, prepared.taps, prepared.pixels, prepared.rows,
        prepared.constants, prepared.flips, prepared.group_stride, prepared.image_stride,
        prepared.output_shape[-1], sums, bits,
    )  # fmt: skip
    copy = (
        height, width, prepared.channels, prepared.groups, prepared.border, prepared.outside,
        prepared.together,
    )  # fmt: skip
    if tasks <= 1:
        _task(0, images * pixels, 0, panels, 0, prepared.copies, source, workspace, copy, constant)
        return out
    copies, unit, items = prepared.copies, 1, images * pixels
    by_panels = items < 8 * tasks  # too few pixels to share out; there are as many weights as ever
    if copies and images >= tasks and not by_panels:
        unit = pixels  # each task copies and computes whole images
    elif copies:  # the threads share images that are copied before they start
        _copy(source, 0, images, workspace, 0, prepared.image_stride, copy)
        source, copies = workspace, False
    work = np.zeros((tasks, 5), np.int64)  # pixels, panels, where the task's workspace begins
    work[:, 1], work[:, 3] = items, panels
    share = np.arange(tasks + 1)
    if by_panels:
        starts = np.arange(panels)
        if prepared.to_bits:  # two threads must not write to one word
            starts = np.flatnonzero(prepared.table[:, 3] % 64 == 0)
        bounds = np.append(starts, panels)[share * len(starts) // tasks]
        work[:, 2], work[:, 3] = bounds[:-1], bounds[1:]
    else:
        bounds = share * (items // unit) // tasks * unit
        work[:, 0], work[:, 1] = bounds[:-1], bounds[1:]
    if copies:
        work[:, 4] = share[:-1] * (needed // tasks)
    with threads.exclusive():
        _tasks(work, copies, source, workspace, copy, constant)
    return out


_NO_SUMS, _NO_WORDS = np.zeros(0, np.int32), np.zeros(0, np.uint64)


@kernel(parallel=True)
def _tasks(work, copies, source, workspace, copy, constant):
    for task in prange(len(work)):
        first, end, panel, panel_end, slot = work[task]
        _task(first, end, panel, panel_end, slot, copies, source, workspace, copy, constant)


@kernel(allocates=False)
def _task(first, end, panel, panel_end, slot, copies, source, workspace, copy, constant):
    """Output pixels first to end - 1, counted through all images, of some panels."""
    image_stride, pixels = constant[8], len(constant[3])
    if not copies:
        for start in range(first, end, _PART):
            _blocks(start, min(start + _PART, end), panel, panel_end, source, slot, constant)
        return
    # A few images at a time are copied and used while they are in cache.
    together = copy[6]
    for image in range(first // pixels, end // pixels, together):
        stop = min(image + together, end // pixels)
        _copy(source, image, stop, workspace, slot, image_stride, copy)
        base = slot - image * image_stride
        _blocks(image * pixels, stop * pixels, panel, panel_end, workspace, base, constant)


@kernel(allocates=False)
def _copy(source, first, end, workspace, slot, image_stride, copy):
    """Images with their padding; each group an image of its own, from bit 0 on."""
    height, width, channels, groups, border, outside, _ = copy
    words, group_channels, group_words = (channels + 63) // 64, channels // groups, len(outside)
    row = (width + 2 * border[1]) * group_words
    for image in range(first, end):
        at = slot + (image - first) * image_stride
        for group in range(groups):
            for y in range(-border[0], height + border[0]):
                inside = 0 <= y < height
                left = border[1] if inside else row // group_words
                for pixel in range(left):
                    for j in range(group_words):
                        workspace[at + pixel * group_words + j] = outside[j]
                if inside:
                    start, to = (image * height + y) * width * words, at + left * group_words
                    if groups == 1:
                        for i in range(width * words):
                            workspace[to + i] = source[start + i]
                    else:
                        for x in range(width):
                            for j in range(group_words):
                                count = min(64, group_channels - 64 * j)
                                workspace[to] = _bits_from(
                                    source,
                                    start + x * words,
                                    group * group_channels + 64 * j,
                                    count,
                                )
                                to += 1
                    for pixel in range(left + width, row // group_words):
                        for j in range(group_words):
                            workspace[at + pixel * group_words + j] = outside[j]
                at += row


@inlined
def _bits_from(words, start, first, count):
    """Bits first to first + count - 1 of the row that begins at words[start]; count <= 64."""
    at, shift = start + first // 64, first % 64
    word = words[at] >> np.uint64(shift)
    if shift + count > 64:  # the rest lies in the next word
        word |= words[at + 1] << np.uint64(64 - shift)
    return word & (_ALL_BITS >> np.uint64(64 - count))


# --------------------------------------------------------------------------------------- the blocks

# The inner loops. Counting the disagreements of a vector of words takes three instructions: xor,
# popcount, add. To keep these busy, what they work on has to be in registers: a block of 4 pixels
# times 32 filters has 16 vectors of counts, and the words loaded for one step (4 vectors of 8
# filters each, 4 words of pixels) meet 4 times each, so that 8 loads serve 48 instructions. The 16
# counts are independent of each other, so none waits for the one before.


@kernel(allocates=False)
def _blocks(first, end, panel, panel_end, words, base, constant):
    """Output pixels first to end - 1; image n begins at ``words[base + n * image_stride]``."""
    (
        panels, table, taps, pixels, rows, constants, flips, group_stride, image_stride,
        channels, sums, bits,
    ) = constant  # fmt: skip
    per_image = len(pixels)
    step = 4 if end - first >= 4 else 1
    for p in range(panel, panel_end):
        q, width, group, channel, count, column = table[p]
        start = base + group * group_stride
        place = start, image_stride, pixels, column, rows
        target = constants, flips[p], count, channel, channels, sums, bits
        image, pixel = first // per_image, first % per_image
        for i in range(first, end, step):
            if i > end - step:  # the last block moves back over pixels that are done
                i = end - step
                image, pixel = i // per_image, i % per_image
            a0, c0, image, pixel = _where(image, pixel, place)
            if step == 1:
                if width == WIDE:
                    _finish(_one_by_wide(words, a0, taps, panels, q), c0, i, target)
                else:
                    _finish_narrow(_one_by_narrow(words, a0, taps, panels, q), c0, i, target)
                continue
            a1, c1, image, pixel = _where(image, pixel, place)
            a2, c2, image, pixel = _where(image, pixel, place)
            a3, c3, image, pixel = _where(image, pixel, place)
            if width == WIDE:
                counts = _four_by_wide(words, a0, a1, a2, a3, taps, panels, q)
                _finish(counts[0:4], c0, i, target)
                _finish(counts[4:8], c1, i + 1, target)
                _finish(counts[8:12], c2, i + 2, target)
                _finish(counts[12:16], c3, i + 3, target)
            else:
                counts = _four_by_narrow(words, a0, a1, a2, a3, taps, panels, q)
                _finish_narrow(counts[0:2], c0, i, target)
                _finish_narrow(counts[2:4], c1, i + 1, target)
                _finish_narrow(counts[4:6], c2, i + 2, target)
                _finish_narrow(counts[6:8], c3, i + 3, target)


@inlined
def _where(image, pixel, place):
    """An output pixel's first word and row of constants; and the output pixel that follows."""
    start, image_stride, pixels, column, rows = place
    address, row = start + image * image_stride + pixels[pixel], column + rows[pixel]
    is_last = pixel + 1 == len(pixels)
    return address, row, image + is_last, 0 if is_last else pixel + 1


@inlined
def _four_by_wide(words, a0, a1, a2, a3, taps, panels, q):
    """Counts of disagreements of 4 pixels with 32 filters."""
    c00, c01, c02, c03 = zero_words(), zero_words(), zero_words(), zero_words()
    c10, c11, c12, c13 = zero_words(), zero_words(), zero_words(), zero_words()
    c20, c21, c22, c23 = zero_words(), zero_words(), zero_words(), zero_words()
    c30, c31, c32, c33 = zero_words(), zero_words(), zero_words(), zero_words()
    for j in range(len(taps)):
        k = taps[j]
        w0, w1, w2, w3 = (
            load(panels, q),
            load(panels, q + 8),
            load(panels, q + 16),
            load(panels, q + 24),
        )
        x = load_splat(words, a0 + k)
        c00 += popcount(x ^ w0)
        c01 += popcount(x ^ w1)
        c02 += popcount(x ^ w2)
        c03 += popcount(x ^ w3)
        x = load_splat(words, a1 + k)
        c10 += popcount(x ^ w0)
        c11 += popcount(x ^ w1)
        c12 += popcount(x ^ w2)
        c13 += popcount(x ^ w3)
        x = load_splat(words, a2 + k)
        c20 += popcount(x ^ w0)
        c21 += popcount(x ^ w1)
        c22 += popcount(x ^ w2)
        c23 += popcount(x ^ w3)
        x = load_splat(words, a3 + k)
        c30 += popcount(x ^ w0)
        c31 += popcount(x ^ w1)
        c32 += popcount(x ^ w2)
        c33 += popcount(x ^ w3)
        q += 32
    return c00, c01, c02, c03, c10, c11, c12, c13, c20, c21, c22, c23, c30, c31, c32, c33


@inlined
def _one_by_wide(words, a, taps, panels, q):
    c0, c1, c2, c3 = zero_words(), zero_words(), zero_words(), zero_words()
    for j in range(len(taps)):
        k = taps[j]
        x = load_splat(words, a + k)
        c0 += popcount(x ^ load(panels, q))
        c1 += popcount(x ^ load(panels, q + 8))
        c2 += popcount(x ^ load(panels, q + 16))
        c3 += popcount(x ^ load(panels, q + 24))
        q += 32
    return c0, c1, c2, c3


@inlined
def _four_by_narrow(words, a0, a1, a2, a3, taps, panels, q):
    """The same for 16 filters."""
    c00, c01, c10, c11 = zero_words(), zero_words(), zero_words(), zero_words()
    c20, c21, c30, c31 = zero_words(), zero_words(), zero_words(), zero_words()
    for j in range(len(taps)):
        k = taps[j]
        w0, w1 = load(panels, q), load(panels, q + 8)
        x = load_splat(words, a0 + k)
        c00 += popcount(x ^ w0)
        c01 += popcount(x ^ w1)
        x = load_splat(words, a1 + k)
        c10 += popcount(x ^ w0)
        c11 += popcount(x ^ w1)
        x = load_splat(words, a2 + k)
        c20 += popcount(x ^ w0)
        c21 += popcount(x ^ w1)
        x = load_splat(words, a3 + k)
        c30 += popcount(x ^ w0)
        c31 += popcount(x ^ w1)
        q += NARROW
    return c00, c01, c10, c11, c20, c21, c30, c31


@inlined
def _one_by_narrow(words, a, taps, panels, q):
    c0, c1 = zero_words(), zero_words()
    for j in range(len(taps)):
        k = taps[j]
        x = load_splat(words, a + k)
        c0 += popcount(x ^ load(panels, q))
        c1 += popcount(x ^ load(panels, q + 8))
        q += NARROW
    return c0, c1


@inlined
def _finish(counts, c, item, target):
    """The sums or the bits of one pixel and the filters of a wide panel."""
    constants, turned, count, channel, channels, sums, bits = target
    low, high = interleave(counts[0], counts[1]), interleave(counts[2], counts[3])
    low_constants, high_constants = load(constants, c), load(constants, c + INTEGERS)
    to = item * channels + channel
    if len(bits) > 0:
        mask = at_most(low, low_constants) | at_most(high, high_constants) << np.uint64(INTEGERS)
        _put(bits, item, channels, channel, count, mask ^ turned)
    elif count == WIDE:
        store(sums, to, low_constants - low - low)
        store(sums, to + INTEGERS, high_constants - high - high)
    else:  # the panel is not full: the memory behind it belongs to others
        store_first(sums, to, low_constants - low - low, count)
        store_first(sums, to + INTEGERS, high_constants - high - high, count - INTEGERS)


@inlined
def _finish_narrow(counts, c, item, target):
    """The same for a narrow panel."""
    constants, turned, count, channel, channels, sums, bits = target
    low, low_constants = interleave(counts[0], counts[1]), load(constants, c)
    if len(bits) > 0:
        _put(bits, item, channels, channel, count, at_most(low, low_constants) ^ turned)
    else:
        store_first(sums, item * channels + channel, low_constants - low - low, count)


@inlined
def _put(bits, row, channels, channel, count, mask):
    """Write ``count`` bits from ``channel`` on. The channels of a row come in ascending order."""
    at, shift = row * ((channels + 63) // 64) + channel // 64, channel % 64
    if shift == 0:
        bits[at] = mask
    else:
        bits[at] |= mask << np.uint64(shift)
        if shift + count > 64:
            bits[at + 1] = mask >> np.uint64(64 - shift)


# ------------------------------------------------------------------------------ what can be reached


def register_peak(repetitions=200_000):
    """Products of signs a second that one core can count when nothing has to be loaded.

    The same instructions as the inner loop of the product, on values that stay in registers. What
    `xnor_matmul` reaches of it is what loads, stores and loops leave.

    Returns
    -------
    float
        Sign products a second, the best of 5 runs.
    """
    _register_loop(1, np.uint64(1))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        _register_loop(repetitions, np.uint64(repetitions))
        seconds.append(time.perf_counter() - start)
    return repetitions * 4 * WIDE * 64 / min(seconds)


@kernel
def _register_loop(repetitions, seed):
    c00, c01, c02, c03 = zero_words(), zero_words(), zero_words(), zero_words()
    c10, c11, c12, c13 = zero_words(), zero_words(), zero_words(), zero_words()
    c20, c21, c22, c23 = zero_words(), zero_words(), zero_words(), zero_words()
    c30, c31, c32, c33 = zero_words(), zero_words(), zero_words(), zero_words()
    w = splat(seed)
    for _ in range(repetitions):
        # Each count goes into its next value, so that nothing can be computed before the loop.
        c00 += popcount(c00 ^ w)
        c01 += popcount(c01 ^ w)
        c02 += popcount(c02 ^ w)
        c03 += popcount(c03 ^ w)
        c10 += popcount(c10 ^ w)
        c11 += popcount(c11 ^ w)
        c12 += popcount(c12 ^ w)
        c13 += popcount(c13 ^ w)
        c20 += popcount(c20 ^ w)
        c21 += popcount(c21 ^ w)
        c22 += popcount(c22 ^ w)
        c23 += popcount(c23 ^ w)
        c30 += popcount(c30 ^ w)
        c31 += popcount(c31 ^ w)
        c32 += popcount(c32 ^ w)
        c33 += popcount(c33 ^ w)
    total = np.empty(WORDS, np.uint64)
    c00 += c01 + c02 + c03 + c10 + c11 + c12 + c13
    store(total, 0, c00 + c20 + c21 + c22 + c23 + c30 + c31 + c32 + c33)
    return total[0]


# --------------------------------------------------------------------------------------- threshold


def threshold(accumulator, thresholds, flip, out=None):
    """Integer sums to packed signs: what batch norm and sign come to on integers.

    ``sign(gamma * (acc - mean) / std + beta)`` changes once as ``acc`` grows, so it is one
    comparison a channel; a negative gamma turns it round (Umuroglu et al. 2017, FINN,
    arXiv:1612.07119).

    Parameters
    ----------
    accumulator : (..., C) int32
    thresholds : (C,) int32
    flip : (C,) bool
    out : (..., words_for(C)) uint64, optional
        Contiguous, to be written to.

    Returns
    -------
    (..., words_for(C)) uint64
        Bit c is ``(accumulator[..., c] >= thresholds[c]) != flip[c]``.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or C is 0.
    """
    accumulator, thresholds, flip = map(np.asarray, (accumulator, thresholds, flip))
    if accumulator.dtype != np.int32 or accumulator.ndim == 0 or accumulator.shape[-1] == 0:
        raise ValueError(
            f"threshold: accumulator must be int32 with elements in its last axis, "
            f"got {accumulator.dtype} of shape {accumulator.shape}"
        )
    *lead, channels = accumulator.shape
    _check_vector("threshold", "thresholds", thresholds, np.int32, channels)
    _check_vector("threshold", "flip", flip, np.bool_, channels)
    rows = np.ascontiguousarray(accumulator).reshape(-1, channels)
    out = _out("threshold", out, (*lead, words_for(channels)), np.uint64)
    words = out.reshape(len(rows), words_for(channels))
    _threshold(rows, np.ascontiguousarray(thresholds), np.ascontiguousarray(flip), words)
    return out


def threshold_reference(accumulator, thresholds, flip):
    """What :func:`threshold` computes, in plain NumPy."""
    bits = (accumulator >= thresholds) != flip  # (..., C)
    return pack_reference(np.where(bits, 1, -1))


# Whole words have a loop of constant length, as in bits.pack, for the sake of vector instructions.
@numba.njit(cache=True, nogil=True)
def _threshold(accumulator, thresholds, flip, words):
    rows, channels = accumulator.shape
    whole, tail = channels // 64, channels % 64
    for row in range(rows):
        for j in range(whole):
            word = _NO_BITS
            for bit in range(64):
                c = 64 * j + bit
                is_one = (accumulator[row, c] >= thresholds[c]) != flip[c]
                word |= np.uint64(is_one) << np.uint64(bit)
            words[row, j] = word
        if tail:
            word = _NO_BITS
            for bit in range(tail):
                c = 64 * whole + bit
                is_one = (accumulator[row, c] >= thresholds[c]) != flip[c]
                word |= np.uint64(is_one) << np.uint64(bit)
            words[row, whole] = word


# ---------------------------------------------------------------------------------------- max-pool


def max_pool2d(words, channels, kernel_size, stride, padding, minimum, out=None):
    """Pooling of packed signs: the maximum of a window is the OR of its bits.

    Where ``minimum`` is set it is the AND: a pool that stands before a batch norm with negative
    gamma, which turns the order round, has taken the maximum of what are now minima. (The OR:
    Umuroglu et al. 2017, FINN, arXiv:1612.07119.)

    Parameters
    ----------
    words : (N, H, W, words_for(channels)) uint64
    channels : int
        C.
    kernel_size, stride, padding : (int, int)
        Along height and width. Padding is at most half the kernel, as in PyTorch, so that each
        window holds a pixel; positions outside the image are left out.
    minimum : (C,) bool
    out : (N, OH, OW, words_for(channels)) uint64, optional
        Contiguous, to be written to.

    Returns
    -------
    (N, OH, OW, words_for(channels)) uint64
        ``OH = (H + 2 * padding - kernel) // stride + 1``, OW likewise.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the output would be empty.
    """
    words = _words("max_pool2d", "words", words, 4)
    _check_row("max_pool2d", "words", words, "channels", channels)
    kernel_size = _pair("max_pool2d", "kernel_size", kernel_size, 1)
    stride = _pair("max_pool2d", "stride", stride, 1)
    padding = _pair("max_pool2d", "padding", padding, 0)
    if padding[0] > kernel_size[0] // 2 or padding[1] > kernel_size[1] // 2:
        raise ValueError(
            f"max_pool2d: padding must be at most half of kernel_size {kernel_size}, got {padding}"
        )
    minimum = np.asarray(minimum)
    _check_vector("max_pool2d", "minimum", minimum, np.bool_, channels)
    size = _output_size("max_pool2d", words.shape[1:3], kernel_size, stride, padding, (1, 1))
    out = _out("max_pool2d", out, (len(words), *size, words.shape[3]), np.uint64)
    use_and = from_bytes(np.packbits(minimum, bitorder="little"), channels)
    _max_pool2d(words, kernel_size, stride, padding, use_and, out)
    return out


def max_pool2d_reference(words, channels, kernel_size, stride, padding, minimum):
    """What :func:`max_pool2d` computes, in plain NumPy."""
    (kh, kw), (sy, sx), (py, px) = kernel_size, stride, padding
    turn = np.where(minimum, -1, 1)  # min(x) = -max(-x)
    border = ((0, 0), (py, py), (px, px), (0, 0))
    signs = unpack_reference(words, channels, np.int32) * turn  # (N, H, W, C)
    signs = np.pad(signs, border, constant_values=-1)  # no larger than anything in a window
    windows = np.lib.stride_tricks.sliding_window_view(signs, (kh, kw), axis=(1, 2))
    largest = windows[:, ::sy, ::sx].max(axis=(-2, -1))  # (N, OH, OW, C)
    return pack_reference(largest * turn)


@numba.njit(cache=True, nogil=True)
def _max_pool2d(words, kernel_size, stride, padding, use_and, out):
    _, height, width, _ = words.shape
    images, out_height, out_width, row_words = out.shape
    for n in range(images):
        for oy in range(out_height):
            top = oy * stride[0] - padding[0]
            for ox in range(out_width):
                left = ox * stride[1] - padding[1]
                bottom, right = min(top + kernel_size[0], height), min(left + kernel_size[1], width)
                for w in range(row_words):
                    # a & b = ~(~a | ~b): one OR serves both, between two turns of the minima.
                    any_set = _NO_BITS
                    for y in range(max(top, 0), bottom):
                        for x in range(max(left, 0), right):
                            any_set |= words[n, y, x, w] ^ use_and[w]
                    out[n, oy, ox, w] = any_set ^ use_and[w]


# ------------------------------------------------------------------------------------------ checks


def _words(function, name, array, axes):
    """``array`` as a contiguous array of words, or a ValueError if it is something else."""
    array = np.asarray(array)
    if array.dtype != np.uint64 or array.ndim != axes:
        raise ValueError(
            f"{function}: {name} must be uint64 with {axes} axes, "
            f"got {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array)


def _check_row(function, name, words, count_name, count):
    if count < 1:
        raise ValueError(f"{function}: {count_name} must be positive, got {count}")
    if words.shape[-1] != words_for(count):
        raise ValueError(
            f"{function}: {name} has {words.shape[-1]} words a row, "
            f"{count_name} {count} needs {words_for(count)}"
        )


def _check_vector(function, name, array, dtype, channels):
    if array.dtype != dtype or array.shape != (channels,):
        raise ValueError(
            f"{function}: {name} must be {np.dtype(dtype)} of shape ({channels},), "
            f"got {array.dtype} of shape {array.shape}"
        )


def _pair(function, name, pair, least):
    pair = tuple(pair)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{function}: {name} must be two integers >= {least}, got {pair}")
    return int(pair[0]), int(pair[1])


def _out(function, out, shape, dtype):
    """Memory for a result: new, or what the caller gave."""
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"{function}: out must be contiguous {np.dtype(dtype)} of shape {shape}, "
            f"got {out.dtype} of shape {out.shape}"
        )
    return out


def _output_size(function, size, kernel_size, stride, padding, dilation):
    """Height and width after a window has slid over an image."""
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    padded = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    if min(kernel_size) < 1 or padded[0] < spans[0] or padded[1] < spans[1]:
        raise ValueError(
            f"{function}: the kernel covers {spans[0]} x {spans[1]} pixels, "
            f"the padded image has {padded[0]} x {padded[1]}"
        )
    return tuple((n - span) // s + 1 for n, span, s in zip(padded, spans, stride, strict=True))


def _row_of_ones(count):
    """The words of ``count`` signs that are all +1."""
    return from_bytes(np.packbits(np.ones(count, np.bool_), bitorder="little"), count)
