"""Rows of single kernels: sign products, packing, depth-wise convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tinybnn import nn
from tinybnn.bench.peers import torch_contenders
from tinybnn.bench.rounds import (
    Row,
    Settings,
    Target,
    compare,
    contender,
    of_this_cpu,
    ratio_of_this_cpu,
)
from tinybnn.kernels.signs import bits, depthwise, xnor

if TYPE_CHECKING:
    from tinybnn.typing import FloatArray

# M, N, K of a product [M, K] x [N, K]; its targets: on CPUs that count bits the share of the peak
# on one core, on others the ratio to sgemm (their products use look-ups, whose register-only peak
# cannot be reached, since the tables change).
PRODUCTS = (
    ((1024, 1024, 4096), (0.90, 10.9)),
    ((3136, 128, 1152), (0.90, 12.6)),  # a convolution 3x3 of 128 channels, 56x56 pixels
    ((3136, 256, 256), (0.75, 10.3)),
    ((1, 1024, 1024), None),  # one sample
    ((1024, 10, 1024), None),  # few classes
    ((4096, 256, 64), None),  # one word of signs
)

# Images (N, C, H, W), kernel size, stride; the target for the ratio of bits to PyTorch.
DEPTHWISE = (
    ((64, 128, 16, 16), 3, 1, 10.0),
    ((64, 64, 32, 32), 3, 1, None),
    ((64, 128, 16, 16), 3, 2, None),
    ((64, 128, 16, 16), 5, 1, None),
    ((1, 128, 16, 16), 3, 1, None),
)


def kernels(settings: Settings) -> Iterator[Row]:
    """Yield the rows of sign products and of packing."""
    rng = np.random.default_rng(0)
    for (m, n, k), goals in PRODUCTS:
        yield from _product(rng, m, n, k, goals, settings)
    yield from _packing(rng, settings)


def _product(rng, m, n, k, goals, settings):
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
    a, b = bits.pack(x), bits.pack(w)
    thresholds = rng.integers(-5, 6, n, np.int32)
    flip = rng.random(n) < 0.5
    float_bytes = x.nbytes + w.nbytes + 4 * m * n

    def sums_by_numpy():
        return x @ w.T

    def bits_by_numpy():
        return np.packbits((x @ w.T >= thresholds) != flip, axis=1)

    target = goals and of_this_cpu(Target("peak_share", goals[0]), Target("ratio", goals[1]))
    thresholded = xnor.prepare_matmul(b, k, thresholds=thresholds, flip=flip)
    for output, prepared, peer_name, peer, goal in (
        ("sums", xnor.prepare_matmul(b, k), "NumPy sgemm", sums_by_numpy, target),
        ("bits", thresholded, "NumPy sgemm, packbits", bits_by_numpy, None),
    ):
        out = xnor.run(prepared, a)
        yield from compare(
            f"XNOR product, {output}", (m, n, k), partial(xnor.run, prepared, a, out),
            [contender(peer_name, peer, float_bytes, counts=True)], settings,
            products=m * n * k, nbytes=a.nbytes + b.nbytes + out.nbytes, of_peak=True,
            target=goal,
        )  # fmt: skip


def _packing(rng, settings):
    rows = rng.standard_normal((4096, 1024), np.float32)
    nhwc = rng.standard_normal((64, 32, 32, 64), np.float32)
    nchw = rng.standard_normal((64, 64, 32, 32), np.float32).transpose(0, 2, 3, 1)
    levels = rng.standard_normal(64, np.float32)
    fast = of_this_cpu(Target("rate", 40.0), Target("rate", 25.0))
    for name, x, thresholds, compared in (
        ("pack", rows, None, "0"),
        ("pack, thresholds, NHWC", nhwc, levels, "t"),
        ("pack, thresholds, NCHW", nchw, levels, "t"),
    ):
        by_numpy = partial(_pack_by_numpy, x, 0 if thresholds is None else thresholds)
        words = bits.pack(x, thresholds)
        yield from compare(
            name, x.shape, partial(bits.pack, x, thresholds),
            [contender(f"np.packbits(x >= {compared})", by_numpy)], settings,
            nbytes=x.nbytes + words.nbytes, rate=(x.nbytes / 1e9, "GB/s read"), target=fast,
        )  # fmt: skip
    words = bits.pack(rows)

    def by_numpy():
        return 2 * np.unpackbits(words.view(np.uint8), axis=1).astype(np.float32) - 1

    yield from compare(
        "unpack", rows.shape, partial(bits.unpack, words, 1024),
        [contender("np.unpackbits", by_numpy)], settings,
        nbytes=rows.nbytes + words.nbytes, rate=(rows.nbytes / 1e9, "GB/s written"),
    )  # fmt: skip


def _pack_by_numpy(x, thresholds):
    return np.packbits(x >= thresholds, axis=-1)


def depthwise_convolutions(settings: Settings) -> Iterator[Row]:
    """Yield the rows of depth-wise convolutions, bits and sums."""
    rng = np.random.default_rng(0)
    for shape, size, stride, ratio in DEPTHWISE:
        yield from _depthwise(rng, shape, size, stride, ratio, settings)


def _depthwise(rng, shape, size, stride, ratio, settings):
    n, channels, height, width = shape
    images = rng.standard_normal((n, height, width, channels), np.float32)
    weight = rng.standard_normal((size, size, channels), np.float32)
    x, words = bits.pack(images), bits.pack(weight)
    plan = depthwise.prepare(
        words, channels, (height, width), stride=(stride, stride),
        padding=(size // 2, size // 2), thresholds=rng.integers(-2, 3, channels, np.int32),
        flip=rng.random(channels) < 0.5,
    )  # fmt: skip
    signs, filters = np.where(images >= 0, 1, -1).astype(np.float32), bits.unpack(words, channels)
    layer = float_depthwise(filters, stride)
    rivals = [
        contender("NumPy, shifted products", partial(shifted_products, signs, filters, stride)),
        *torch_contenders(nn.Sequential(layer), signs.transpose(0, 3, 1, 2), settings.num_threads),
    ]
    text = "×".join(map(str, shape)) + f", {size}×{size}" + (f", stride {stride}" * (stride > 1))
    bits_out, sums_out = depthwise.conv2d_bits(plan, x), depthwise.conv2d_sums(plan, x, np.int8)
    by_bits = partial(depthwise.conv2d_bits, plan, x, bits_out)
    by_sums = partial(depthwise.conv2d_sums, plan, x, np.int8, sums_out)
    target = ratio and ratio_of_this_cpu(ratio, ratio)
    for output, ours, out, goal in (
        ("bits", by_bits, bits_out, target), ("sums", by_sums, sums_out, None),
    ):  # fmt: skip
        yield from compare(
            f"depth-wise, {output}", text, ours, rivals, settings,
            products=sums_out.size * size * size,
            nbytes=x.nbytes + words.nbytes + out.nbytes, target=goal,
        )  # fmt: skip


def float_depthwise(weight: FloatArray, stride: int) -> nn.Conv2d:
    """Build the real depth-wise convolution that keeps the size, from weights (k, k, C)."""
    size, _, channels = weight.shape
    layer = nn.Conv2d(
        channels, channels, size, stride, size // 2, groups=channels, bias=False
    )  # fmt: skip
    layer.weight.data[...] = weight.transpose(2, 0, 1)[:, None]
    return layer


def shifted_products(x: FloatArray, weight: FloatArray, stride: int) -> FloatArray:
    """Convolve depth-wise in plain NumPy: a product for each tap, zero padding keeps the size.

    Parameters
    ----------
    x : (N, H, W, C) float32
    weight : (k, k, C) float32
        k is odd.
    stride : int

    Returns
    -------
    (N, OH, OW, C) float32
        OH = ceil(H / stride), OW alike.
    """
    size = len(weight)
    n, height, width, channels = x.shape
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    out = np.zeros((n, -(-height // stride), -(-width // stride), channels), np.float32)
    for dy in range(size):
        for dx in range(size):
            seen = padded[:, dy : dy + height : stride, dx : dx + width : stride]
            out += seen * weight[dy, dx]
    return out
