"""Signs of floats, and the gradient that passes through where the input was near zero.

A quantizer's backward pass multiplies the gradient by a slope that depends on the input
(`quantizers`). Where that slope is 1 in an interval and 0 outside, one bit for each number says all
that backward needs: `signs_and_mask` makes these bits in the pass over memory that makes the signs,
and `masked_gradient` applies them. They take a 32nd of the memory of the input.

All is done in one pass, and elementwise: results do not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import empty, empty_like
from tinybnn.kernels.machine.simd import inlined, kernel
from tinybnn.kernels.signs.bits import pack_reference, unpack_reference, words_for

_GRAIN = 1 << 18  # floats below which a second thread costs time

_SIGN, _GATE, _TENT, _PACK, _MASK = range(5)
_NO_FLOATS, _NO_WORDS = np.empty(0, np.float32), np.empty(0, np.uint64)


def sign(x):
    """+1 where x >= 0, else -1 (also where x is NaN).

    Parameters
    ----------
    x : (n,) float32, C-contiguous

    Returns
    -------
    (n,) float32
    """
    out = empty_like(x)
    _run(_SIGN, x, _NO_FLOATS, out)
    return out


def gated_gradient(grad, x, low, high):
    """``grad * (low <= x <= high)``: the gradient of a limit, or of a sign with a limit's slope.

    Parameters
    ----------
    grad, x : (n,) float32, C-contiguous
    low, high : float
        Rounded to float32. For an open interval give the next floats (`numpy.nextafter`).

    Returns
    -------
    (n,) float32
    """
    out = empty_like(x)
    _run(_GATE, x, grad, out, (low, high))
    return out


def tent_gradient(grad, x):
    """``grad * (2 - 2 |x| where |x| <= 1, else 0)`` (Bi-Real Net, Liu et al. 2018, eq. 8).

    Parameters
    ----------
    grad, x : (n,) float32, C-contiguous

    Returns
    -------
    (n,) float32
    """
    out = empty_like(x)
    _run(_TENT, x, grad, out)
    return out


def signs_and_mask(x, clip):
    """Packed signs of rows, and packed bits that say where |x| <= clip, in one pass.

    Parameters
    ----------
    x : (..., C) float32, C-contiguous
    clip : float
        Rounded to float32.

    Returns
    -------
    signs, mask : (..., words_for(C)) uint64
        The signs are those of `bits.pack`. Where x is NaN both bits are 0.

    Raises
    ------
    ValueError
        If x is not such an array.
    """
    _check("signs_and_mask", "x", x)
    *lead, channels = x.shape
    signs = empty((*lead, words_for(channels)), np.uint64)
    mask = empty_like(signs)
    _run(_PACK, x, _NO_FLOATS, _NO_FLOATS, (-clip, clip), channels, signs, mask)
    return signs, mask


def signs_and_mask_reference(x, clip):
    """What `signs_and_mask` computes, in plain NumPy."""
    return pack_reference(x), sign_mask_reference(x, clip)


def sign_mask(x, clip):
    """Packed bits that say where |x| <= clip: `signs_and_mask` without the signs."""
    return signs_and_mask(x, clip)[1]


def sign_mask_reference(x, clip):
    """What `sign_mask` computes, in plain NumPy."""
    return pack_reference(np.where(np.abs(x) <= np.float32(clip), 1, -1))


def masked_gradient(grad, mask):
    """``grad`` times 1 where a bit of the mask is 1, times 0 elsewhere.

    Parameters
    ----------
    grad : (..., C) float32, C-contiguous
    mask : (..., words_for(C)) uint64, C-contiguous

    Returns
    -------
    (..., C) float32

    Raises
    ------
    ValueError
        If the arrays are not such or do not fit.
    """
    _check("masked_gradient", "grad", grad)
    *lead, channels = grad.shape
    expected = (*lead, words_for(channels))
    if mask.dtype != np.uint64 or mask.shape != expected or not mask.flags.c_contiguous:
        raise ValueError(
            f"masked_gradient: mask must be contiguous uint64 of shape {expected}, "
            f"got {mask.dtype} of shape {mask.shape}"
        )
    out = empty_like(grad)
    _run(_MASK, _NO_FLOATS, grad, out, channels=channels, mask=mask)
    return out


def masked_gradient_reference(grad, mask):
    """What `masked_gradient` computes, in plain NumPy."""
    return grad * (unpack_reference(mask, grad.shape[-1]) > 0)


def _check(function, name, x):
    if x.dtype != np.float32 or x.ndim == 0 or not x.shape[-1] or not x.flags.c_contiguous:
        raise ValueError(
            f"{function}: {name} must be contiguous float32 with channels on its last axis, "
            f"got {x.dtype} of shape {x.shape}"
        )


def _run(step, x, grad, out, limits=(0.0, 0.0), channels=1, signs=_NO_WORDS, mask=_NO_WORDS):
    """The items that threads share out are rows of ``channels`` numbers."""
    x, grad, mask = map(for_kernel, (x, grad, mask))
    rows = max(x.size, grad.size) // channels
    limits = tuple(map(np.float32, limits))
    arrays = x.reshape(-1), grad.reshape(-1), out.reshape(-1)
    words = channels, signs.reshape(-1), mask.reshape(-1)
    tasks = min(threads.count(), rows) if rows * channels >= _GRAIN else 1
    worker, arguments = _numbers, (step, limits, *arrays)
    if step in (_PACK, _MASK):
        worker, arguments = _rows, (*arguments, *words)
    if tasks == 1:
        worker(0, rows, 0, *arguments)
    else:
        parallel.share_out(worker, parallel.shares(rows, tasks), *arguments)


# ---------------------------------------------------------------------------------------- kernels


@kernel(allocates=False)
def _numbers(first, end, task, step, limits, x, grad, out):
    """Signs or gradients of the numbers first to end - 1."""
    low, high = limits
    x, out = x[first:end], out[first:end]
    one, zero, two = np.float32(1), np.float32(0), np.float32(2)
    if step == _SIGN:
        for i in range(len(x)):
            out[i] = one if x[i] >= 0 else -one
        return
    grad = grad[first:end]
    for i in range(len(x)):
        if step == _GATE:
            slope = one if (x[i] >= low) & (x[i] <= high) else zero
        else:
            size = abs(x[i])
            slope = two - two * size if size <= one else zero
        out[i] = grad[i] * slope


@kernel(allocates=False)
def _rows(first, end, task, step, limits, x, grad, out, channels, signs, mask):
    """Bits of the rows first to end - 1, or gradients with bits applied."""
    clip, words = limits[1], (channels + 63) // 64
    for row in range(first, end):
        for j in range(words):
            word, at, size = row * words + j, row * channels + 64 * j, min(64, channels - 64 * j)
            if step == _PACK:
                values = x[at : at + size]
                # A length that the compiler knows makes vector instructions of the loop.
                if size == 64:
                    signs[word], mask[word] = _signs(values, 64), _near(values, clip, 64)
                else:
                    signs[word], mask[word] = _signs(values, size), _near(values, clip, size)
            else:
                bits, given, target = mask[word], grad[at : at + size], out[at : at + size]
                for i in range(size):
                    target[i] = given[i] * np.float32((bits >> np.uint64(i)) & np.uint64(1))


@inlined
def _signs(values, size):
    word = np.uint64(0)
    for bit in range(size):
        word |= np.uint64(values[bit] >= 0) << np.uint64(bit)
    return word


@inlined
def _near(values, clip, size):
    word = np.uint64(0)
    for bit in range(size):
        word |= np.uint64(abs(values[bit]) <= clip) << np.uint64(bit)
    return word
