"""The values between the steps of a packed program, and checks of the constants of steps.

A program may come from an untrusted file: every check raises a ValueError that says what was
expected and what was given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.kernels.machine.layout import words_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinybnn.typing import Array, Shape

MOST_BYTES = 1 << 28  # limit for a step's result for one sample, padded and as float32

FLOAT: str = "floats"
SUMS: str = "sums"
BITS: str = "bits"
FLAT: str = "bits of a flattened image"


@dataclass(frozen=True)
class Value:
    """The result of a step.

    Attributes
    ----------
    kind : str
        FLOAT, SUMS (integers), BITS, or FLAT (bits of an image (C, H, W), pixel by pixel).
    shape : tuple of int
        Shape of one sample, channels first; for FLAT that of the image.
    single : bool
        Whether a single sample holds for the whole batch.
    """

    kind: str
    shape: Shape
    single: bool = False


def nhwc(x: Array) -> Array:
    """View images (N, C, H, W) as (N, H, W, C); other arrays are returned unchanged."""
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def nchw(x: Array) -> Array:
    """View images (N, H, W, C) as (N, C, H, W); other arrays are returned unchanged."""
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


def expect_memory(name: str, shape: Sequence[int]) -> None:
    """Check that a result (or padded image) of this shape is not too large for memory."""
    if 4 * math.prod(shape) > MOST_BYTES:
        raise ValueError(
            f"{name} of shape {tuple(shape)} takes {4 * math.prod(shape) / 2**20:.0f} MiB for each "
            f"sample; a packed model holds up to {MOST_BYTES >> 20} MiB"
        )


# ------------------------------------------------------------------------------- checks of settings


def expect_int(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """Check that a setting is an int from `low` to `high`, and return it."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be an int from {low} to {high}, got {value!r}")
    return value


def expect_count(name: str, value: Any, channels: int) -> None:
    """Check that a setting equals the number of channels."""
    if type(value) is not int or value != channels:
        raise ValueError(f"{name} is {value!r}, the input has {channels} channels")


def expect_number(name: str, value: Any, *, finite: bool = False) -> None:
    """Check that a setting is a float, or an int in the range of float32."""
    is_number = type(value) is float or (type(value) is int and abs(value) < 2**127)  # float32's
    if not is_number or (finite and not math.isfinite(value)):
        raise ValueError(f"{name} must be a number, got {value!r}")


def expect_sizes(name: str, value: Any, low: int = 1) -> Shape:
    """Check that a setting is a list of ints from `low`, and return it as a tuple."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} must be a list of ints, got {value!r}")
    return tuple(expect_int(name, n, low) for n in value)


def expect_pair(name: str, value: Any, low: int) -> tuple[int, int]:
    """Check that a setting is a pair of ints from `low`, and return it as a tuple."""
    pair = expect_sizes(name, value, low)
    if len(pair) != 2:
        raise ValueError(f"{name} must be two ints, got {value!r}")
    return pair


def expect_array(name: str, array: Array, kinds: str, shape: Sequence[int]) -> None:
    """Check the shape of an array and its kind of dtype, one of `kinds`; floats are float32."""
    if array.dtype.kind not in kinds or array.shape != tuple(shape):
        raise ValueError(
            f"{name} must have the shape {tuple(shape)}, got {array.dtype} of shape {array.shape}"
        )
    if kinds == "f" and array.dtype != np.float32:
        raise ValueError(f"{name} must be float32, got {array.dtype}")


def expect_words(name: str, array: Array, shape: Sequence[int], count: int) -> None:
    """Check an array of words, (*shape, words), with `count` bits a row and zeros after them."""
    expect_array(name, array, "u", (*shape, words_for(count)))
    if array.dtype != np.uint64:
        raise ValueError(f"{name} must be uint64, got {array.dtype}")
    if count % 64 and np.any(array[..., -1] >> np.uint64(count % 64)):
        raise ValueError(f"{name} has bits set after the {count} of a row")


def expect_image(value: Value) -> Shape:
    """Check that a value is an image, and return its shape (C, H, W)."""
    if len(value.shape) != 3:
        raise ValueError(f"expects images (C, H, W), got {value.shape}")
    return value.shape


def window_counts(
    image: Shape, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any = (1, 1)
) -> Shape:
    """Compute the output size (OH, OW) of sliding windows over an image (C, H, W)."""
    channels, *size = image
    height, width = (n + 2 * p for n, p in zip(size, padding, strict=True))
    expect_memory("the padded image", (channels, height, width))
    result = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        if span > n + 2 * p:
            raise ValueError(f"a window of {span} does not fit into {n} pixels, padded by {p}")
        result.append((n + 2 * p - span) // s + 1)
    return tuple(result)


def broadcast(first: Value, *others: Value | Array) -> Value:
    """Infer the value of floats broadcast against other values or constant arrays."""
    shapes, single = [(1, *first.shape)], first.single
    for other in others:
        if isinstance(other, Value):
            shapes.append((1, *other.shape))
            single = single and other.single
        elif other.dtype != np.float32:
            raise ValueError(f"constants must be float32, got {other.dtype}")
        else:
            shapes.append(other.shape)
    shape = np.broadcast_shapes(*shapes)
    sizes = {len(shape), *(1 + len(v.shape) for v in (first, *others) if isinstance(v, Value))}
    if shape[0] != 1 or len(sizes) > 1:  # samples would meet pixels
        raise ValueError(f"shapes {shapes} do not broadcast to a shape of samples")
    return Value(FLOAT, shape[1:], single)


def conv_size(
    image: Shape, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> Shape:
    """Check the settings of a convolution, and compute its output size (OH, OW)."""
    return window_counts(
        image, kernel, expect_pair("stride", stride, 1), expect_pair("padding", padding, 0),
        expect_pair("dilation", dilation, 1),
    )  # fmt: skip


def pool(x: Value, kind: str, kernel_size: Any, stride: Any, padding: Any) -> Value:
    """Check the settings of pooling an image, and infer the value of the result."""
    image = expect_image(x)
    kernel, padding = expect_pair("kernel_size", kernel_size, 1), expect_pair("padding", padding, 0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding {padding} is more than half of the window {kernel}")
    size = window_counts(image, kernel, expect_pair("stride", stride, 1), padding)
    return Value(kind, (image[0], *size), x.single)
