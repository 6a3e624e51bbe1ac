"""Gradients of binary layers: what those in the input and in the weight have in common.

The forward pass of a binary layer multiplies signs with signs, which `xnor` does on bits. In the
backward pass one side is a gradient, a real number; the other is still a sign. With G the gradient
of the output and S the signs of the weight or of the input, both gradients have the form

    out[i, c] = sum over k of G[i, k] * S[k, c],        S[k, c] = +1 or -1,

where k runs over filters and taps for the gradient in the input (`input_gradient`), and over pixels
for the gradient in the weight (`weight_gradient`). A term is either +g or -g. There are three ways
to add them up:

- "lookup": tables of the sums of four gradients, from which four signs choose one (`lookup`).
- "masked": additions in the columns whose sign is +, for gradients that are mostly zero (`masked`).
- "float": the real convolution (`convolution`) with unpacked signs.

`choose_method` takes the one that suits the CPU and the layer. Milliseconds of both gradients
together, one thread (Zen 4; "AVX2" is the same CPU with its other features off, which is not an
older CPU):

    layer                                        AVX-512                AVX2
                                          lookup masked  float     lookup  float
    3×3 128->128, 64 images of 32×32, ¾ zeros  163    127    367        142    385
    3×3 512->512, 64 images of 8×8, ¾ zeros    131    107    403        115    422
    3×3 256->512, 64 images of 8×8              66    179    191         60    206
    3×3 32->64, 64 images of 14×14             4.6     37    9.3        3.7    9.6
    1×1 512->512, 64 images of 2×2             1.1    2.8    3.4        1.0    3.2
    1×1 16->32, 64 images of 32×32             3.0     16    1.6        2.5    2.0
    dense 1024->1024, 128 rows                 2.8    9.0     13        2.2     11

An addition costs a CPU as much as the multiplication and addition of "float" together. A look-up
adds four gradients at once, whatever they are. So does a masked addition, in effect, when three of
four gradients are zero, as behind a 2×2 max-pool: only with AVX-512, where a mask costs nothing;
with AVX2 it would take two more instructions. Where a gradient meets few columns, as in a 1×1
convolution of few channels, floats win: a table is made that is hardly read.

Sums are float32. Their order depends on the method, and with look-ups in the input also on the kind
of CPU (see `input_gradient`), but not on the number of threads or the other images of the batch:
threads share out the outputs, and each sum is one thread's. Trained weights may thus differ between
kinds of CPUs, but not between two runs on one.

"lookup" and "masked" are for speed alone. `tinybnn bench train --profile` times the steps and their
parts. Here and in the other files of this folder figures are of one thread.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn.kernels.machine.checks import check_groups, check_padding_mode
from tinybnn.kernels.machine.layout import for_kernel, words_for
from tinybnn.kernels.machine.simd import cpu_features
from tinybnn.kernels.machine.windows import Windows, windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from tinybnn.typing import Array, FloatArray, Shape

METHODS = "lookup", "masked", "float"
SPEED = 4e11  # products of floats and signs a second, of a fast core
_SPARSE = 0.3  # share of gradients that are not zero up to which masked additions are chosen
_FEW = 64  # channels with which half of the registers of masked additions stay empty, or more

# --------------------------------------------------------------------------------------- the method


class _Costs(NamedTuple):
    """Costs of a gradient, in units of looking it up for 64 columns.

    Attributes
    ----------
    input_table, weight_table : float
        To make its share of a table: for the gradient in the input, whose rows have to be laid side
        by side, and for that in the weight.
    floats : float
        To multiply it with 64 columns of floats.
    """

    input_table: float
    weight_table: float
    floats: float


# Fitted to times of the two gradients by each method, filters of 1×1 to 5×5 and 16 to 512 channels.
# Those with AVX-512 favour floats more than they should: to choose tables more often would give
# other orders of sums, and other trained weights, than earlier versions did.
_AVX512, _OTHERS = _Costs(1.5, 1.5, 1.9), _Costs(1.25, 0.2, 3.3)


def choose_method(
    name: str,
    method: str | None,
    grad: NDArray[np.float32],
    side: str,
    channels: int,
    columns: int,
    panels: int,
) -> str:
    """The method to use: the one asked for, or one that suits.

    Parameters
    ----------
    name : str
        Of the function, for errors.
    method : str or None
    grad : (...,) float32
    side : "input" or "weight"
        What the gradient is of.
    channels : int
        Of a group.
    columns, panels : int
        Signs that a gradient is multiplied with, and panels of 64 that hold them.
    """
    has_masks = "avx512f" in cpu_features()
    can = {"lookup", "float"} | ({"masked"} if has_masks else set())
    if method is None:
        if has_masks and channels > _FEW:
            sample = grad.reshape(-1)[:: grad.size >> 14 | 1]  # about 16,000 gradients, or all
            if np.count_nonzero(sample) / max(len(sample), 1) <= _SPARSE:
                return "masked"
        costs, work = (_AVX512, panels) if has_masks else (_OTHERS, columns / 64)
        table = costs.input_table if side == "input" else costs.weight_table
        return "lookup" if table + work < costs.floats * columns / 64 else "float"
    if method not in METHODS:
        raise ValueError(f"{name}: method must be one of {METHODS} or None, got {method!r}")
    if method not in can:
        raise ValueError(f"{name}: this CPU cannot do {method!r}, only {sorted(can)}")
    return method


# ---------------------------------------------------------------------------------------- the shape


class Geometry(NamedTuple):
    """The shape of a binary convolution, but for the number of images; made by `geometry_of`.

    Attributes
    ----------
    image, output : tuple of int
        (H, W, C) and (OH, OW, O).
    weight : tuple of int
        (O, kh, kw, C / groups).
    image_words, weight_words : tuple of int
        Shapes of the packed image and weight.
    groups : int
    windows : Windows
    padding_mode : str
    """

    image: Shape
    output: Shape
    weight: Shape
    image_words: Shape
    weight_words: Shape
    groups: int
    windows: Windows
    padding_mode: str

    @property
    def options(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        """As the functions of `convolution` take them."""
        return self.windows.stride, self.windows.padding, self.windows.dilation, self.groups

    def group_slices(self) -> Iterator[tuple[slice, slice]]:
        """For each group its filters and its channels."""
        filters, channels = self.weight[0] // self.groups, self.weight[3]
        for group in range(self.groups):
            yield tuple(slice(group * count, (group + 1) * count) for count in (filters, channels))


@functools.lru_cache(maxsize=1024)  # a layer in training asks at each step
def geometry_of(
    channels: int,
    filters: int,
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Geometry:
    """The shape of a binary convolution, as its two gradients take it.

    Parameters
    ----------
    channels, filters : int
        C and O.
    size, kernel_size, stride, padding, dilation : (int, int)
        Along height and width.
    groups : int
        A divisor of C and of O.
    padding_mode : "zeros" or "ones"
        What stands outside the image: nothing that adds to a sum, or +1.

    Returns
    -------
    Geometry

    Raises
    ------
    ValueError
        If a parameter does not fit, or no window fits.
    """
    check_groups("geometry_of", channels, filters, groups)
    check_padding_mode("geometry_of", padding_mode)
    of = windows("geometry_of", size, kernel_size, stride, padding, dilation)
    channels, filters, groups = int(channels), int(filters), int(groups)
    per_group = channels // groups
    return Geometry(
        image=(*of.size, channels),
        output=(*of.out_size, filters),
        weight=(filters, *of.kernel_size, per_group),
        image_words=(*of.size, words_for(channels)),
        weight_words=(filters, *of.kernel_size, words_for(per_group)),
        groups=groups,
        windows=of,
        padding_mode=padding_mode,
    )


def operands(name: str, **expected: tuple[ArrayLike, DTypeLike, Shape]) -> list[Array]:
    """Arrays for a kernel to read, or a ValueError if one has another dtype or shape.

    Each is given by its name, with the dtype and the shape that it must have.
    """
    found = []
    for argument, (array, dtype, shape) in expected.items():
        array = np.asarray(array)
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{name}: {argument} must be {np.dtype(dtype)} of shape {shape}, "
                f"got {array.dtype} of shape {array.shape}"
            )
        found.append(for_kernel(array))
    return found


def with_zeros(grad: FloatArray, multiple: int) -> FloatArray:
    """A copy of (N, H, W, O) gradients with channels of zeros up to a multiple."""
    filters = grad.shape[3]
    out = np.zeros((*grad.shape[:3], -(-filters // multiple) * multiple), grad.dtype)
    out[..., :filters] = grad
    return out


def as_image(name: str, argument: str, rows: ArrayLike) -> Array:
    """Rows of features as images of one pixel, (N, 1, 1, K), or a ValueError if they are none."""
    rows = np.asarray(rows)
    if rows.ndim != 2:
        raise ValueError(f"{name}: {argument} must have 2 axes, got shape {rows.shape}")
    return rows[:, None, None]
