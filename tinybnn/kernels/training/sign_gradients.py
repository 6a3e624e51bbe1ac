"""Gradients of binary layers: the common part of the input's and the weight's.

The forward pass of a binary layer multiplies signs by signs, which `xnor` does on bits. In the
backward pass one operand is a gradient, a real number; the other is still a sign. With G the
gradient of the output and S the signs of the weight or of the input, both gradients have the form

    out[i, c] = sum over k of G[i, k] * S[k, c],        S[k, c] = +1 or -1,

where k runs over filters and taps for the gradient in the input (`input_gradient`), and over pixels
for the gradient in the weight (`weight_gradient`). Each term is +g or -g. There are three ways to
add them up:

- "lookup": tables of the sums of four gradients, from which four signs choose one (`lookup`).
- "masked": additions in the columns whose sign is +, for gradients that are mostly zero (`masked`).
- "float": the float convolution (`convolution`) with unpacked signs.

`choose_method` chooses the fastest one for the CPU and the layer. Milliseconds of both gradients
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

An addition costs as much as the multiply-add of "float". A look-up adds four gradients at once,
whatever their values. So, in effect, does a masked addition when three of four gradients are zero,
as behind a 2×2 max-pool, but only with AVX-512, where a mask costs nothing; with AVX2 or NEON it
would take two more instructions. Where a gradient meets few columns, as in a 1×1 convolution of few
channels, "float" wins: a table would be built and hardly used.

ARM64 has not been timed and takes the costs of AVX2. By llvm-mca's estimate for the inner loops,
four gradients take 1.75 cycles per four floats by look-ups (cortex-a72 and -a76; apple-m1 0.51)
and, by "float", 4.0 if the tile fits the registers and 8.1 if it does not (1.4 and 3.7).

Sums are float32. Their order depends on the method, and for look-ups in the input also on the kind
of CPU (see `input_gradient`), but not on the number of threads or the other images of the batch:
threads share the outputs, and one thread computes each sum. So trained weights may differ between
kinds of CPUs, but not between two runs on one.

"lookup" and "masked" are for speed alone. `tinybnn bench train --profile` times the steps and their
parts. Figures here and in the other files of this folder are for one thread.
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
SPEED = 4e11  # products of floats and signs per second on a fast core
_SPARSE = 0.3  # largest share of nonzero gradients for which masked additions are chosen
_FEW = 64  # with this many channels or less, half of the registers of masked additions are empty

# ------------------------------------------------------------------------------------------- method


class _Costs(NamedTuple):
    """Costs of a gradient, relative to looking it up for 64 columns.

    Attributes
    ----------
    input_table, weight_table : float
        Cost of its share of building a table: for the gradient in the input, whose rows have to be
        transposed, and for that in the weight.
    floats : float
        Cost of multiplying it by 64 columns of floats.
    """

    input_table: float
    weight_table: float
    floats: float


# Fitted to times of the two gradients by each method, filters of 1×1 to 5×5 and 16 to 512 channels.
# Those with AVX-512 favour floats more than they should: choosing tables more often would change
# the order of sums, and so the trained weights, compared with earlier versions.
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
    """Return the requested method, or choose the fastest one.

    Parameters
    ----------
    name : str
        Name of the function, for errors.
    method : str or None
    grad : (...,) float32
    side : "input" or "weight"
        Whether the gradient in the input or in the weight is computed.
    channels : int
        Channels of a group.
    columns, panels : int
        Signs that a gradient is multiplied by, and panels of 64 that hold them.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If ``method`` is unknown, or the CPU cannot do it.
    """
    has_masks = "avx512f" in cpu_features()
    possible = {"lookup", "float"} | ({"masked"} if has_masks else set())
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
    if method not in possible:
        raise ValueError(f"{name}: this CPU cannot do {method!r}, only {sorted(possible)}")
    return method


# -------------------------------------------------------------------------------------------- shape


class Geometry(NamedTuple):
    """Shapes of a binary convolution, without the number of images; made by `geometry_of`.

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
        """Stride, padding, dilation and groups, in the order of `convolution`'s parameters."""
        return self.windows.stride, self.windows.padding, self.windows.dilation, self.groups

    def group_slices(self) -> Iterator[tuple[slice, slice]]:
        """Yield for each group the slices of its filters and of its channels."""
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
    """Compute the shapes of a binary convolution for its two gradients.

    Parameters
    ----------
    channels, filters : int
        C and O.
    size, kernel_size, stride, padding, dilation : (int, int)
        Along height and width.
    groups : int
        Divides C and O.
    padding_mode : "zeros" or "ones"
        Value outside the image: 0, which adds nothing to a sum, or +1.

    Returns
    -------
    Geometry

    Raises
    ------
    ValueError
        If a parameter is invalid, or the image is smaller than a window.
    """
    check_groups("geometry_of", channels, filters, groups)
    check_padding_mode("geometry_of", padding_mode)
    window = windows("geometry_of", size, kernel_size, stride, padding, dilation)
    channels, filters, groups = int(channels), int(filters), int(groups)
    per_group = channels // groups
    return Geometry(
        image=(*window.size, channels),
        output=(*window.out_size, filters),
        weight=(filters, *window.kernel_size, per_group),
        image_words=(*window.size, words_for(channels)),
        weight_words=(filters, *window.kernel_size, words_for(per_group)),
        groups=groups,
        windows=window,
        padding_mode=padding_mode,
    )


def operands(name: str, **expected: tuple[ArrayLike, DTypeLike, Shape]) -> list[Array]:
    """Return arrays for a kernel; a ValueError if one has another dtype or shape.

    Parameters
    ----------
    name : str
        Name of the function, for errors.
    **expected : (array, dtype, shape)
        Each argument by its name, with its required dtype and shape.

    Returns
    -------
    list of arrays
    """
    arrays = []
    for argument, (array, dtype, shape) in expected.items():
        array = np.asarray(array)
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{name}: {argument} must be {np.dtype(dtype)} of shape {shape}, "
                f"got {array.dtype} of shape {array.shape}"
            )
        arrays.append(for_kernel(array))
    return arrays


def with_zeros(grad: FloatArray, multiple: int) -> FloatArray:
    """Copy gradients (N, H, W, O) and append zero channels up to a multiple of ``multiple``."""
    filters = grad.shape[3]
    out = np.zeros((*grad.shape[:3], -(-filters // multiple) * multiple), grad.dtype)
    out[..., :filters] = grad
    return out


def as_image(name: str, argument: str, rows: ArrayLike) -> Array:
    """Return rows (N, K) as images of one pixel, (N, 1, 1, K); a ValueError for other shapes."""
    rows = np.asarray(rows)
    if rows.ndim != 2:
        raise ValueError(f"{name}: {argument} must have 2 axes, got shape {rows.shape}")
    return rows[:, None, None]
