"""Gradients of binary layers: what that in the input and that in the weight have in common.

The forward pass of a binary layer multiplies signs with signs, which `xnor` does on bits. In the
backward pass one side is a gradient, a real number; the other is still a sign. With G the gradient
of the output and S the signs of the weight or of the input, both gradients have the form

    out[i, c] = sum over k of G[i, k] * S[k, c],        S[k, c] = +1 or -1,

where k runs over filters and taps for the gradient in the input (`input_gradient`), and over pixels
for the gradient in the weight (`weight_gradient`). A term is either +g or -g. There are three ways
to add them up, of which one is chosen by the CPU and by what fills its registers:

- "lookup": tables of the sums of four gradients, from which four signs choose one (`lookup`).
- "masked": additions in the columns whose sign is +, for gradients most of which are zero
  (`masked`).
- "float": the real convolution (`convolution`) with unpacked signs, for few channels, and for CPUs
  that can do neither of the others.

Sums are float32. Their order depends on the method, but not on the number of threads: threads share
out the outputs, and each sum is one thread's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tinybnn.kernels.machine import threads
from tinybnn.kernels.machine.checks import check_groups
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.simd import cpu_features
from tinybnn.kernels.machine.windows import Windows, windows

METHODS = "lookup", "masked", "float"
_SPEED = 4e11  # products of floats and signs a second, of a fast core
_SPARSE = 0.3  # share of gradients that are not zero up to which masked additions are chosen
_FEW = 64  # channels with which half of the registers of masked additions stay empty, or more

# Costs of a gradient, in units of looking it up for a panel of 64 columns: to make its share of a
# table, and to multiply it with 64 columns of floats. A 1×1 convolution of few channels makes
# tables that hardly anybody reads; a panel that is half empty costs as much as a full one. Fitted
# to times of the two gradients by each method, filters of 1×1 to 5×5 and 16 to 512 channels.
_TABLE, _FLOATS = 1.5, 1.9

# --------------------------------------------------------------------------------------- the method


def choose_method(name, method, grad, channels, columns, panels):
    """The method to use: the one asked for, or one that suits.

    Parameters
    ----------
    name : str
        Of the function, for errors.
    method : str or None
    grad : (...,) float32
    channels : int
        Of a group.
    columns, panels : int
        Signs that a gradient is multiplied with, and panels of 64 in which tables serve them.
    """
    features = cpu_features()
    can = {"float"}
    if features & {"avx2", "avx512f"}:
        can.add("lookup")
    if "avx512f" in features:
        can.add("masked")
    if method is None:
        if "masked" in can and channels > _FEW and _share_of_nonzero(grad) <= _SPARSE:
            return "masked"
        pays = "lookup" in can and _TABLE + panels < _FLOATS * columns / 64
        return "lookup" if pays else "float"
    if method not in METHODS:
        raise ValueError(f"{name}: method must be one of {METHODS} or None, got {method!r}")
    if method not in can:
        raise ValueError(f"{name}: this CPU cannot do {method!r}, only {sorted(can)}")
    return method


def _share_of_nonzero(grad):
    """Of about 16,000 of the gradients, or all."""
    sample = grad.reshape(-1)[:: grad.size >> 14 | 1]
    return np.count_nonzero(sample) / max(len(sample), 1)


def tasks_for_products(products):
    """The number of threads that pays for so many products of a float with a sign."""
    return threads.tasks_for(products / _SPEED)


# ---------------------------------------------------------------------------------------- the shape


class Geometry(NamedTuple):
    """The shape of a convolution."""

    channels: int
    groups: int
    windows: Windows

    @property
    def group_channels(self):
        return self.channels // self.groups

    @property
    def options(self):
        """As the functions of `convolution` take them."""
        return self.windows.stride, self.windows.padding, self.windows.dilation, self.groups

    def group_slices(self, filters):
        """For each group its filters and its channels."""
        for group in range(self.groups):
            yield tuple(
                slice(group * count // self.groups, (group + 1) * count // self.groups)
                for count in (filters, self.channels)
            )


def check_geometry(name, grad, channels, groups, **sizes):
    """``grad`` for a kernel to read, and the shape of the convolution, or a ValueError.

    ``sizes`` are the arguments of `windows`.
    """
    grad = np.asarray(grad)
    if grad.dtype != np.float32 or grad.ndim != 4:
        raise ValueError(
            f"{name}: grad must be float32 with 4 axes (N, OH, OW, O), "
            f"got {grad.dtype} of shape {grad.shape}"
        )
    check_groups(name, channels, grad.shape[3], groups)
    found = windows(name, **sizes)
    if grad.shape[1:3] != found.out_size:
        (height, width), (kh, kw), (oh, ow) = found.size, found.kernel_size, found.out_size
        raise ValueError(
            f"{name}: images of {height} x {width} and filters of {kh} x {kw} with stride "
            f"{found.stride}, padding {found.padding} and dilation {found.dilation} "
            f"give {oh} x {ow} pixels, grad has {grad.shape[1]} x {grad.shape[2]}"
        )
    return for_kernel(grad), Geometry(int(channels), int(groups), found)


def as_image(name, argument, rows):
    """Rows of features as images of one pixel, (N, 1, 1, K), or a ValueError if they are none."""
    rows = np.asarray(rows)
    if rows.ndim != 2:
        raise ValueError(f"{name}: {argument} must have 2 axes, got shape {rows.shape}")
    return rows[:, None, None]
