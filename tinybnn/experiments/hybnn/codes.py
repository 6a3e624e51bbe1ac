"""Properties of codes beyond the tasks: statistics of bits, neighbours, reconstruction."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinybnn import datasets
from tinybnn.autograd import Tensor, no_grad
from tinybnn.datasets import Dataset
from tinybnn.models import BinaryVAE
from tinybnn.typing import Array, Words


def statistics(words: Words, bits: int) -> dict[str, Any]:
    """Measure how the bits of codes are used.

    Parameters
    ----------
    words : (N, words) uint64
    bits : int

    Returns
    -------
    dict
        ``balance``: (bits,) share of +1; ``correlation``: (bits, bits), 0 where a bit is constant;
        ``used``, the number of bits that are not constant; ``distinct``, the number of codes;
        ``entropy`` of a bit, averaged, in bits; ``mean_correlation``, the mean absolute correlation
        of all pairs of used bits.
    """
    from tinybnn.kernels.signs.bits import unpack

    codes = unpack(words, bits)
    mean = codes.mean(0, dtype=np.float64)
    deviation = np.sqrt(1 - mean**2)  # of ±1
    used = deviation > 0
    scale = np.where(used, deviation, 1)
    correlation = (codes.T @ codes / len(codes) - np.outer(mean, mean)) / np.outer(scale, scale)
    pairs = np.abs(correlation[np.triu_indices(bits, 1)])
    count = int(used.sum())
    p = (1 + mean) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(p * np.log2(p)) - np.nan_to_num((1 - p) * np.log2(1 - p))
    return {
        "balance": p,
        "correlation": correlation,
        "used": count,
        "distinct": len(np.unique(words, axis=0)),
        "entropy": float(entropy.mean()),
        "mean_correlation": float(pairs.sum() / max(1, count * (count - 1) // 2)),
    }


def nearest(
    queries: Words, words: Words, bits: int, count: int = 1, block: int = 256
) -> tuple[Array, Array]:
    """Find the codes nearest to each query in Hamming distance, by XNOR and popcount.

    The product of two codes of ±1 is bits - 2 · distance. Among codes at the same distance the
    first ones are taken.

    Parameters
    ----------
    queries, words : (M, words), (N, words) uint64
    bits : int
        Bits of a code.
    count : int
        Neighbours of a query.
    block : int
        Number of queries processed at a time.

    Returns
    -------
    rows : (M, count) int64
        Positions in `words`, nearest first.
    distances : (M, count) int64
    """
    from tinybnn.kernels.signs.xnor import xnor_matmul

    rows = np.empty((len(queries), count), np.int64)
    distances = np.empty((len(queries), count), np.int64)
    for start in range(0, len(queries), block):
        part = slice(start, start + block)
        far = (bits - xnor_matmul(queries[part], words, bits)) // 2
        if count == 1:
            rows[part, 0] = far.argmin(1)
        else:
            rows[part] = np.argsort(far, axis=1, kind="stable")[:, :count]
        distances[part] = np.take_along_axis(far, rows[part], axis=1)
    return rows, distances


def flip_path(start: Array, end: Array, steps: int, rng: np.random.Generator) -> Array:
    """Interpolate between two codes: the bits that differ are flipped in a random order.

    Parameters
    ----------
    start, end : (bits,) array of ±1
    steps : int
        Number of codes, both ends included.
    rng : numpy.random.Generator

    Returns
    -------
    (steps, bits) array of ±1, of the same dtype
    """
    differing = rng.permutation(np.flatnonzero(start != end))
    path = np.repeat(start[None], steps, axis=0)
    for i, row in enumerate(path):
        chosen = differing[: round(len(differing) * i / (steps - 1))]
        row[chosen] = end[chosen]
    return path


def reconstruction(vae: BinaryVAE, images: Dataset, batch_size: int = 1000) -> list[float]:
    """Measure the reconstruction of images (N, C, H, W) from their codes.

    Returns
    -------
    list of two float
        Cross entropy of an image given its code (nats), and the share of pixels on the wrong side
        of 0.5: means over the images.
    """
    loader = datasets.DataLoader(images, batch_size, transform=datasets.to_unit(images.maximum))
    sums = np.zeros(2)
    with no_grad():
        for x, _ in loader:
            codes = vae.encode(x)
            sums[0] += vae.reconstruction(Tensor(codes), x).data.sum()
            sums[1] += len(x) * np.mean((vae.decode(codes) >= 0.5) != (x >= 0.5))
    return (sums / len(images)).tolist()
