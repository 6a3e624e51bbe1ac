"""Rows of single kernels: products of signs, packing, depth-wise convolutions."""

from __future__ import annotations

from functools import partial

import numpy as np

from tinybnn.bench.peers import torch_depthwise
from tinybnn.bench.rounds import Target, compare, contender, of_this_cpu, ratio_of_this_cpu
from tinybnn.kernels.signs import bits, depthwise, xnor

# M, N, K of a product [M, K] x [N, K]; the share of the peak that it should reach on a core by
# counting, and the ratio to sgemm by look-ups, whose peak needs tables that are always the same.
PRODUCTS = (
    ((1024, 1024, 4096), (0.90, 10.9)),
    ((3136, 128, 1152), (0.90, 12.6)),  # a convolution 3x3 of 128 channels, 56x56 pixels
    ((3136, 256, 256), (0.75, 10.3)),
    ((1, 1024, 1024), None),  # one sample
    ((1024, 10, 1024), None),  # few classes
    ((4096, 256, 64), None),  # one word of signs
)

# Images (N, C, H, W), size of the kernel, stride; and the ratio to PyTorch that bits should reach.
DEPTHWISE = (
    ((64, 128, 16, 16), 3, 1, 10.0),
    ((64, 64, 32, 32), 3, 1, None),
    ((64, 128, 16, 16), 3, 2, None),
    ((64, 128, 16, 16), 5, 1, None),
    ((1, 128, 16, 16), 3, 1, None),
)


def kernels(settings):
    """Yield the rows of products and of packing."""
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

    asked = goals and of_this_cpu(Target("peak_share", goals[0]), Target("ratio", goals[1]))
    for name, prepared, peer, goal in (
        ("XNOR product, sums", xnor.prepare_matmul(b, k), sums_by_numpy, asked),
        (
            "XNOR product, bits",
            xnor.prepare_matmul(b, k, thresholds=thresholds, flip=flip),
            bits_by_numpy,
            None,
        ),
    ):
        out = xnor.run(prepared, a)
        peer_name = "NumPy sgemm" + ("" if peer is sums_by_numpy else ", packbits")
        yield from compare(
            name, f"{m}×{n}×{k}", partial(xnor.run, prepared, a, out),
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
    for name, x, thresholds, goal in (
        ("pack", rows, None, fast),
        ("pack, thresholds, NHWC", nhwc, levels, fast),
        ("pack, thresholds, NCHW", nchw, levels, fast),
    ):
        words = bits.pack(x, thresholds)
        if thresholds is None:
            peer = contender("np.packbits(x >= 0)", lambda: np.packbits(rows >= 0, axis=-1))
        else:
            peer = contender("np.packbits(x >= t)", lambda x=x: np.packbits(x >= levels, axis=-1))
        yield from compare(
            name, "×".join(map(str, x.shape)), partial(bits.pack, x, thresholds), [peer], settings,
            nbytes=x.nbytes + words.nbytes, rate=(x.nbytes / 1e9, "GB/s read"), target=goal,
        )  # fmt: skip
    words = bits.pack(rows)

    def by_numpy():
        return 2 * np.unpackbits(words.view(np.uint8), axis=1).astype(np.float32) - 1

    yield from compare(
        "unpack", "4096×1024", partial(bits.unpack, words, 1024),
        [contender("np.unpackbits", by_numpy)], settings,
        nbytes=rows.nbytes + words.nbytes, rate=(rows.nbytes / 1e9, "GB/s written"),
    )  # fmt: skip


def depthwise_convolutions(settings):
    """Yield the rows of depth-wise convolutions."""
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
    rivals = [
        contender("NumPy, shifted products", partial(shifted_products, signs, filters, stride)),
        *torch_depthwise(signs, filters, stride, settings.num_threads),
    ]
    text = "×".join(map(str, shape)) + f", {size}×{size}" + (f", stride {stride}" * (stride > 1))
    bits_out, sums_out = depthwise.conv2d_bits(plan, x), depthwise.conv2d_sums(plan, x, np.int8)
    for name, ours, out, goal in (
        (
            "depth-wise, bits",
            partial(depthwise.conv2d_bits, plan, x, bits_out),
            bits_out,
            ratio and ratio_of_this_cpu(ratio, ratio),
        ),
        (
            "depth-wise, sums",
            partial(depthwise.conv2d_sums, plan, x, np.int8, sums_out),
            sums_out,
            None,
        ),
    ):
        yield from compare(
            name, text, ours, rivals, settings, products=sums_out.size * size * size,
            nbytes=x.nbytes + words.nbytes + out.nbytes, target=goal,
        )  # fmt: skip


def shifted_products(x, weight, stride):
    """A depth-wise convolution in plain NumPy: a product for each tap, padded to keep the size.

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
