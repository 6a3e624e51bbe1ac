"""Chapter 05: convolutions as products of windows, in floats and in words."""

from __future__ import annotations

import contextlib
import importlib
from types import ModuleType
from unittest import mock

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tinybnn.course.checks.packing import place, product
from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all, provided


def _padded(x, padding, value=0):
    frame = (padding, padding)
    return np.pad(x, ((0, 0), (0, 0), frame, frame), constant_values=value)


def _seen(x, size, stride=1, padding=0, value=0):
    """(N, Ho, Wo, C, size, size)"""
    seen = sliding_window_view(_padded(x, padding, value), (size, size), axis=(2, 3))
    return seen[:, :, ::stride, ::stride].transpose(0, 2, 3, 1, 4, 5)


def _flat(seen):
    return seen.reshape(*seen.shape[:3], -1)


def _windows(x, size, stride=1, padding=0, value=0):
    return _flat(_seen(x, size, stride, padding, value))


def _fold(grad, shape, size, stride=1, padding=0, add=True):
    images, channels, height, width = shape
    _, rows, columns, _ = grad.shape
    grad = grad.reshape(images, rows, columns, channels, size, size)
    padded = np.zeros((images, channels, height + 2 * padding, width + 2 * padding), grad.dtype)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            window = padded[:, :, top : top + size, left : left + size]
            window[...] = window + grad[:, i, j] if add else grad[:, i, j]
    return padded[:, :, padding : padding + height, padding : padding + width]


def _convolution(x, weight, padding=0, value=0):
    """(N, O, Ho, Wo) int64"""
    seen = _windows(x.astype(np.int64), weight.shape[-1], 1, padding, value)
    return (seen @ weight.reshape(len(weight), -1).astype(np.int64).T).transpose(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------- windows


def _one_apart(x, size, stride, padding, value):
    _, rows, columns, _ = _windows(x, size, stride, padding, value).shape
    return _windows(x, size, 1, padding, value)[:, :rows, :columns]


# Value of the frame, shape, size, stride, padding. Known mistakes differ on these, while the
# smallest counterexample may fit several.
_EXAMPLES = ((0, (1, 1, 3, 4), 2, 1, 0), (0, (1, 2, 2, 3), 2, 1, 0), (-1, (1, 1, 3, 4), 2, 3, 1))

_WINDOWS_MISTAKES = {
    "the values of a window are in the order row, column, channel; wanted is channel, row, column, "
    "the order in weight.reshape(O, -1)":
        lambda *args: _flat(_seen(*args).transpose(0, 1, 2, 4, 5, 3)),
    "the values of a window go down its columns; wanted is row by row: channel, row, column":
        lambda *args: _flat(_seen(*args).swapaxes(4, 5)),
    "each window is turned by 180 degrees, as in the convolution of mathematics; networks slide "
    "the filter as it is":
        lambda *args: _flat(_seen(*args)[..., ::-1, ::-1]),
    "the stride is not used: after each window comes the one that begins `stride` further on":
        lambda x, size, stride, padding, value: _windows(x, size, 1, padding, value),
    "the stride is not used: there are as many windows as there should be, but each begins one "
    "pixel after the one before":
        _one_apart,
    "windows lie side by side, as if the stride were their size; the step is `stride`":
        lambda x, size, stride, padding, value: _windows(x, size, size, padding, value),
    "the stride is used for rows only; columns have it as well":
        lambda x, size, stride, padding, value: _windows(x, size, 1, padding, value)[:, ::stride],
    "the frame holds 0 here; it must hold `value`":
        lambda x, size, stride, padding, value: _windows(x, size, stride, padding, 0),
    "there is no frame: the image is not padded":
        lambda x, size, stride, padding, value: _windows(x, size, stride, 0, value),
    "the frame is at one side only; `padding` rows and columns go on each of the four sides":
        lambda x, size, stride, padding, value: _windows(
            np.pad(x, ((0, 0), (0, 0), (0, padding), (0, padding)), constant_values=value),
            size, stride),
    "the last window of each row and column is missing: there are (H + 2 padding - size) // stride "
    "+ 1 of them":
        lambda *args: _windows(*args)[:, :-1, :-1],
    "rows and columns of the output are exchanged":
        lambda *args: _windows(*args).swapaxes(1, 2),
    "the answer has channels in front of the positions; wanted is (N, Ho, Wo, C * size * size)":
        lambda *args: np.moveaxis(_windows(*args), 3, 1),
}  # fmt: skip


def _geometries():
    """Strategy: images with their shape, and windows that fit into them."""
    from hypothesis import strategies as st

    def valid(g):
        (_, _, height, width), size, _, padding = g
        return min(height, width) + 2 * padding >= size

    shapes = st.tuples(
        st.integers(1, 2), st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)
    )  # fmt: skip
    sizes, strides, paddings = st.integers(1, 3), st.integers(1, 3), st.integers(0, 2)
    return st.tuples(shapes, sizes, strides, paddings).filter(valid)


def _numbered(shape):
    """Make images whose pixels are 1, 2, 3 and so on."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def windows_values(convolution: ModuleType) -> None:
    """each window holds its pixels, for any size, stride, padding and value of the frame."""
    from hypothesis import strategies as st

    def check(geometry, value):
        shape, size, stride, padding = geometry
        inputs = {
            "x": _numbered(shape), "size": size, "stride": stride, "padding": padding,
            "value": value,
        }  # fmt: skip
        compare(convolution.windows, _windows, inputs, _WINDOWS_MISTAKES)

    for value, *geometry in _EXAMPLES:
        check(geometry, value)
    for_all(check, geometry=_geometries(), value=st.sampled_from([0, -1]))


def windows_dtype(convolution: ModuleType) -> None:
    """windows keeps the dtype."""
    for dtype in (np.float32, np.float64, np.int8):
        x = _numbered((1, 1, 3, 3)).astype(dtype)
        inputs = {"x": x, "size": 2, "stride": 1, "padding": 1, "value": -1}
        answer = np.asarray(call(convolution.windows, inputs))
        if answer.dtype != dtype:
            raise Wrong("the dtype of x is not kept", inputs, answer.dtype, np.dtype(dtype))


# ------------------------------------------------------------------------------------------- fold

_FOLD_MISTAKES = {
    "windows overwrite each other: a pixel that several windows see gets the gradient of one of "
    "them only; it must get the sum":
        lambda grad, shape, *args: _fold(grad, shape, *args, add=False),
    "the gradients of overlapping windows are averaged; they must be added":
        lambda grad, shape, *args: (
            _fold(grad, shape, *args) / np.maximum(_fold(np.ones_like(grad), shape, *args), 1)),
    "the stride is not used: window (i, j) begins at row i * stride, column j * stride":
        lambda grad, shape, size, stride, padding: _by_one(grad, shape, size, padding),
    "the frame is still there: cut `padding` rows and columns off on each side":
        lambda grad, shape, size, stride, padding: _framed(grad, shape, size, stride, padding),
    "the frame is cut off at one side only: pixel (0, 0) of the image is at (padding, padding)":
        lambda grad, shape, size, stride, padding: _framed(
            grad, shape, size, stride, padding)[:, :, : shape[2], : shape[3]],
    "the values of a window are taken in the order row, column, channel; `windows` has them in the "
    "order channel, row, column":
        lambda grad, shape, size, stride, padding: _fold(_flat(
            grad.reshape(*grad.shape[:3], size, size, shape[1]).transpose(0, 1, 2, 5, 3, 4)
        ), shape, size, stride, padding),
}  # fmt: skip


def _framed(grad, shape, size, stride, padding):
    images, channels, height, width = shape
    larger = (images, channels, height + 2 * padding, width + 2 * padding)
    return _fold(grad, larger, size, stride)


def _by_one(grad, shape, size, padding):
    return _fold(grad, shape, size, 1, padding)


def fold_counts(convolution: ModuleType) -> None:
    """windows of ones give each pixel the number of windows that see it."""

    def check(geometry):
        shape, size, stride, padding = geometry
        grad = np.ones_like(_windows(np.ones(shape, np.float32), size, stride, padding))
        _compare_fold(convolution, grad, shape, size, stride, padding)

    for _, *geometry in _EXAMPLES:
        check(geometry)
    for_all(check, geometry=_geometries())


def fold_values(convolution: ModuleType) -> None:
    """each value comes back to its own pixel: sum(windows(x) * g) = sum(x * fold_windows(g))."""

    def check(geometry):
        shape, size, stride, padding = geometry
        grad = _numbered(_windows(np.ones(shape, np.float32), size, stride, padding).shape)
        _compare_fold(convolution, grad, shape, size, stride, padding)

    for _, *geometry in _EXAMPLES:
        check(geometry)
    for_all(check, geometry=_geometries())


def _compare_fold(convolution, grad, shape, size, stride, padding):
    inputs = {"grad": grad, "shape": shape, "size": size, "stride": stride, "padding": padding}
    compare(convolution.fold_windows, _fold, inputs, _FOLD_MISTAKES)


# ------------------------------------------------------------------------------------------ scale

_SCALE_MISTAKES = {
    "this is the mean of the signs; the scale is the mean of the magnitudes, |latent|":
        lambda latent: np.where(latent >= 0, 1.0, -1.0).mean(axis=(1, 2, 3)),
    "this is the magnitude of the mean; positive and negative weights cancel in it. Take the mean "
    "of the magnitudes":
        lambda latent: np.abs(latent.mean(axis=(1, 2, 3))),
    "this is the mean of the weights with their signs; the scale is the mean of |latent|":
        lambda latent: latent.mean(axis=(1, 2, 3)),
    "this is one number for all filters; each filter has its own":
        lambda latent: np.abs(latent).mean(),
    "the mean of all filters stands for each of them; each filter has its own":
        lambda latent: np.full(len(latent), np.abs(latent).mean()),
    "the mean goes over the wrong axes, (0, 2, 3): this is one number for each input channel; a "
    "scale belongs to a filter, axis 0, so take the mean over axes 1, 2, 3":
        lambda latent: np.abs(latent).mean(axis=(0, 2, 3)),
    "the mean goes over the filters, axis 0; it must go over axes 1, 2, 3 of each filter":
        lambda latent: np.abs(latent).mean(axis=0),
    "the mean goes over rows and columns only; the channels of a filter belong to it as well":
        lambda latent: np.abs(latent).mean(axis=(2, 3)),
    "this is the sum of the magnitudes; divide by the number of weights in a filter":
        lambda latent: np.abs(latent).sum(axis=(1, 2, 3)),
    "this is the largest magnitude; the scale with the least squared error is the mean":
        lambda latent: np.abs(latent).max(axis=(1, 2, 3)),
    "this is the root of the mean square; the scale with the least squared error is the mean of "
    "the magnitudes":
        lambda latent: np.sqrt((latent**2).mean(axis=(1, 2, 3))),
}  # fmt: skip


def scale_values(convolution: ModuleType) -> None:
    """the scale is the mean magnitude of each filter."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    shapes = st.tuples(*(st.integers(1, 3) for _ in range(2)), st.just(2), st.just(2))
    values = st.integers(-4, 4).map(lambda n: n / 4)

    def check(latent):
        compare(
            convolution.weight_scale, lambda w: np.abs(w).mean(axis=(1, 2, 3)),
            {"latent": latent}, _SCALE_MISTAKES, tolerance=1e-6,
        )  # fmt: skip

    check(np.float64([1, -2, 3, -4, -5, -6, 7, 1, 2, 3, -2, -1]).reshape(2, 3, 1, 2) / 4)
    for_all(check, latent=shapes.flatmap(lambda s: arrays(np.float64, s, elements=values)))


def scale_is_nearest(convolution: ModuleType) -> None:
    """no other factor brings the signs nearer to the latent weights."""
    latent = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    scale = np.asarray(call(convolution.weight_scale, {"latent": latent}))

    def error(scale):
        return np.square(latent - scale[:, None, None, None] * np.sign(latent)).sum()

    if min(error(scale * 1.01), error(scale * 0.99)) < error(scale):
        raise Wrong("a scale that is 1% larger or smaller has a smaller squared error")


# ------------------------------------------------------------------------------------ convolution

_CONV_MISTAKES = {
    "the frame is counted as -1: bits of 0 stand for -1, and a tap on the frame adds its "
    "opposite; a frame of zeros adds nothing":
        lambda x, weight, padding: _convolution(x, weight, padding, -1),
    "the frame is counted as +1: a tap on the frame adds its weight; a frame of zeros adds nothing":
        lambda x, weight, padding: _convolution(x, weight, padding, 1),
    "the differences on the frame are left out, but k counts its taps: use the number of taps "
    "inside at each position":
        lambda x, weight, padding: _convolution(x, weight, padding) + _outside(
            x, np.ones_like(weight), padding),
    "the frame is corrected with the wrong sign: bits of 0 have added -weight for each tap "
    "outside, so add the weight":
        lambda x, weight, padding: _convolution(x, weight, padding, -1) - _outside(
            x, weight, padding),
    "the frame is corrected twice over":
        lambda x, weight, padding: _convolution(x, weight, padding, -1) + 2 * _outside(
            x, weight, padding),
    "the filters are turned by 180 degrees, as in the convolution of mathematics; networks slide "
    "them as they are":
        lambda x, weight, padding: _convolution(x, weight[:, :, ::-1, ::-1], padding),
    "the image has no frame: use padding":
        lambda x, weight, padding: _convolution(x, weight),
    "the answer has its channels last; wanted is (N, O, Ho, Wo)":
        lambda x, weight, padding: _convolution(x, weight, padding).transpose(0, 2, 3, 1),
    "the sums of all positions are reshaped to (N, O, Ho, Wo) as they are; they are in the order "
    "N, Ho, Wo, O: reshape to that, then transpose":
        lambda x, weight, padding: _convolution(x, weight, padding).transpose(0, 2, 3, 1).reshape(
            _convolution(x, weight, padding).shape),
}  # fmt: skip


def _outside(x, weight, padding):
    """Sum the weights whose taps are on the frame."""
    frame = _padded(np.zeros((1, *x.shape[1:]), np.int64), padding, 1)
    return _convolution(frame, weight)


def _with_right_parts(convolution, pack=place):
    """Context manager: replace the student's other functions, to judge this one independently."""
    parts = {"pack": pack, "xnor_matmul": _dot, "xnor_matmul_fast": _dot}
    context = contextlib.ExitStack()
    context.enter_context(provided(convolution, windows=_windows, **parts))
    packing = importlib.import_module(f"{convolution.__package__}.packing")
    context.enter_context(provided(packing, **parts))
    return context


def _dot(a, b, k):
    return product(a, b, k).astype(np.int32)


def conv_values(convolution: ModuleType) -> None:
    """xnor_conv2d equals the float convolution with a frame of zeros, for any padding."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    signs = st.sampled_from(np.float32([-1, 1]))
    sizes = st.tuples(
        st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(3, 5),
        st.integers(3, 5), st.integers(1, 3), st.integers(0, 2),
    )  # fmt: skip

    def operands(sizes):
        images, filters, channels, height, width, size, padding = sizes
        return st.tuples(
            arrays(np.float32, (images, channels, height, width), elements=signs),
            arrays(np.float32, (filters, channels, size, size), elements=signs),
            st.just(padding),
        )

    def check(operands):
        inputs = dict(zip(("x", "weight", "padding"), operands, strict=True))
        compare(convolution.xnor_conv2d, _convolution, inputs, _CONV_MISTAKES)

    image = np.float32([[-1, 1, 1], [1, 1, -1], [1, -1, -1]])[None, None]
    kernel = np.float32([[1, 1, -1], [-1, 1, 1], [1, 1, 1]])[None, None]
    with _with_right_parts(convolution):
        check((image, kernel, 1))
        check((image, np.concatenate([kernel, -kernel]), 1))
        for_all(check, examples=100, operands=sizes.flatmap(operands))


def conv_on_words(convolution: ModuleType) -> None:
    """xnor_conv2d packs windows and filters, and returns int32."""
    rng = np.random.default_rng(0)
    x = rng.choice(np.float32([-1, 1]), (2, 40, 5, 4))
    weight = rng.choice(np.float32([-1, 1]), (3, 40, 3, 3))
    spy = mock.Mock(side_effect=place)
    with _with_right_parts(convolution, pack=spy):
        answer = np.asarray(convolution.xnor_conv2d(x, weight, 1))
    if not spy.called:
        raise Wrong(
            "xnor_conv2d multiplies numbers: it never calls pack of your packing.py. Pack the "
            "windows and the filters, and let xnor_matmul count"
        )
    if not np.array_equal(answer, _convolution(x, weight, 1)):
        raise Wrong("the sums of 40 channels are not right, where each window has several words")
    if answer.dtype != np.int32:
        raise Wrong("the answer is not int32", got=answer.dtype, expected="int32")


# ------------------------------------------------------------------------------------------- pool


def _quads(bits):
    """(4, N, C, H // 2, W // 2)"""
    height, width = bits.shape[2] // 2 * 2, bits.shape[3] // 2 * 2
    bits = bits[:, :, :height, :width]
    return np.stack([bits[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])


def _unpaired(bits):
    """Combine every second row with the others by |, where NumPy broadcasts 1 row to 2."""
    if bits.shape[2:] != (3, 3):
        return None
    rows = bits[:, :, 0::2] | bits[:, :, 1::2]
    return rows[..., 0::2] | rows[..., 1::2]


_POOL_MISTAKES = {
    "this is AND, the smallest of the four signs; the largest is +1 as soon as one is: OR":
        lambda bits: _quads(bits).all(axis=0),
    "pairs of rows are combined only: columns have to be paired as well":
        lambda bits: bits[:, :, 0 : bits.shape[2] // 2 * 2 : 2] | bits[:, :, 1::2],
    "pairs of columns are combined only: rows have to be paired as well":
        lambda bits: bits[..., 0 : bits.shape[3] // 2 * 2 : 2] | bits[..., 1::2],
    "this is the first of the four signs; the largest of them is wanted: OR":
        lambda bits: _quads(bits)[0],
    "two of the four signs are left out: the OR of the first row of each window only":
        lambda bits: _quads(bits)[:2].any(axis=0),
    "two of the four signs are left out: the OR of the first column of each window only":
        lambda bits: _quads(bits)[::2].any(axis=0),
    "this is XOR: with two or four times +1 it gives -1; the largest of the signs is their OR":
        lambda bits: np.logical_xor.reduce(_quads(bits)),
    "this is the majority of the four signs; the largest of them is wanted: OR":
        lambda bits: _quads(bits).sum(axis=0) >= 2,
    "with an odd number of rows or columns the last one has no partner: cut it off first, since "
    "the answer has H // 2 rows and W // 2 columns":
        _unpaired,
    "windows overlap: each window begins two rows or columns after the one before":
        lambda bits: _seen(bits, 2).any(axis=(-1, -2)).transpose(0, 3, 1, 2),
}  # fmt: skip


def pool_values(convolution: ModuleType) -> None:
    """max_pool_bits is the maximum of each 2 x 2 signs; an odd last row or column is dropped."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    shapes = st.tuples(
        st.integers(1, 2), st.integers(1, 2), st.integers(2, 5), st.integers(2, 5)
    )  # fmt: skip

    def check(bits):
        compare(
            convolution.max_pool_bits, lambda bits: _quads(bits).any(axis=0), {"bits": bits},
            _POOL_MISTAKES,
        )  # fmt: skip

    rows = "001001", "000110", "110000", "110000", "100011", "010111"
    image = np.array([[bit == "1" for bit in row] for row in rows])[None, None]
    check(image)
    check(image[:, :, :3, :3])
    for_all(check, bits=shapes.flatmap(lambda s: arrays(bool, s)))


def pool_dtype(convolution: ModuleType) -> None:
    """max_pool_bits returns bool."""
    bits = np.array([[[[True, False], [False, False]]]])
    answer = np.asarray(call(convolution.max_pool_bits, {"bits": bits}))
    if answer.dtype != bool:
        raise Wrong("the answer is not bool", {"bits": bits}, answer.dtype, "bool")


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "05.1",
        "windows",
        "What a filter sees at each position: the rows of a matrix product.",
        "A convolution is a product of matrices",
        (windows_values, windows_dtype),
        (
            "With two loops over the positions, what is the part of the padded image at (i, j)?",
            "np.pad makes the frame: ((0, 0), (0, 0), (padding, padding), (padding, padding)). The "
            "window at (i, j) begins at row i * stride and column j * stride of the padded image.",
            "Make an array of shape (N, Ho, Wo, C, size, size), fill [:, i, j] in two loops, and "
            "reshape its last three axes to one.",
        ),
    ),
    Exercise(
        "05.2",
        "fold_windows",
        "The way back: add the gradients of windows to the pixels they came from.",
        "The gradient of a convolution",
        (fold_counts, fold_values),
        (
            "A pixel goes into several windows. What is its gradient if each has one?",
            "It is windows backwards: where that reads a part of the padded image, this adds to "
            "it. Reshape grad to (N, Ho, Wo, C, size, size) first.",
            "Begin with zeros of the padded shape, add grad[:, i, j] with += to the part of "
            "window (i, j), and at the end cut the frame off.",
        ),
    ),
    Exercise(
        "05.3",
        "weight_scale",
        "The mean of the magnitudes of each filter's latent weights.",
        "A scale for each filter",
        (scale_values, scale_is_nearest),
        (
            "How many numbers are wanted, and which weights belong to each?",
            "First the magnitudes, then the mean. The other way round, + and - cancel.",
            "mean takes several axes at once: axis=(1, 2, 3).",
        ),
    ),
    Exercise(
        "05.4",
        "xnor_conv2d",
        "The convolution of signs with a frame of zeros, counted on words.",
        "The better version: a correction",
        (conv_values, conv_on_words),
        (
            "With padding=0 it is windows, pack and xnor_matmul. What does the frame add to a sum "
            "if its bits are 0?",
            "windows(..., value=-1) gives the frame bits of 0, so each tap w on the frame has "
            "added -1 * w. That depends on the filter and the position, not on the image.",
            "1 - windows(ones, size, padding=padding) of an image of ones is 1 at the taps on the "
            "frame and 0 inside. Its product with the filters is what has to be added.",
        ),
    ),
    Exercise(
        "05.5",
        "max_pool_bits",
        "Max-pool of 2 x 2 signs as OR of their bits.",
        "Max-pool of bits",
        (pool_values, pool_dtype),
        (
            "When is the largest of four signs -1?",
            "bits[:, :, 0::2] is every second row, from the first on, and bits[:, :, 1::2] every "
            "second from the second on; | combines them.",
            "The same for columns. With an odd number of rows the two have different lengths: cut "
            "the image to an even size first.",
        ),
    ),
)
