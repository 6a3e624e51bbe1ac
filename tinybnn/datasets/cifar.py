"""CIFAR-10 and CIFAR-100 in the layouts of their authors (https://www.cs.toronto.edu/~kriz/).

Binary: one record for each image, with a byte for its label (CIFAR-100: a byte for its coarse
label, then one for its fine label), then 3,072 bytes of pixels: 32 rows of 32 for red, then green,
then blue.

Python: a pickled dict with the pixels as an array (N, 3072) in the same order, and lists of labels.
It is read without unpickling it.

Both are read from the folder that the official archive unpacks to, or straight from the archive.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tinybnn.datasets.files import DatasetError, open_data
from tinybnn.datasets.pickled import read_pickle
from tinybnn.datasets.tar import read_members
from tinybnn.typing import Array

_PIXELS = 3 * 32 * 32
Images: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64]]  # with their labels


def read_cifar(
    paths: Sequence[str | os.PathLike[str]],
    train: Sequence[str],
    test: Sequence[str],
    parse: Callable[[bytes], tuple[Array, Array]],
) -> tuple[Images, Images]:
    """Read the training and the test images of a CIFAR dataset.

    Parameters
    ----------
    paths : sequence of paths
        The files `train` and `test`, in this order, or one official archive.
    train, test : sequence of str
        Names of the files that hold the training and the test images.
    parse : callable
        The layout: `parse_binary10`, `parse_binary100` or `parse_python`.

    Returns
    -------
    train, test : (images (N, 3, 32, 32) uint8, labels (N,) int64)
        Images are channels-last in memory.

    Raises
    ------
    DatasetError
        If a file is damaged, or holds something else.
    OSError
        If a file cannot be read.
    """
    names, parts = [*train, *test], {}
    if len(paths) == len(names):
        for name, path in zip(names, paths, strict=True):
            with open_data(path) as (file, _):
                parts[name] = parse(file.read())
    else:
        (path,) = paths
        for name, data in read_members(path, names):
            try:
                parts[name] = parse(data)
            except DatasetError as error:
                raise DatasetError(f"{path}: {name}: {error}") from None
    return _joined([parts[name] for name in train]), _joined([parts[name] for name in test])


def _joined(parts: list[tuple[Array, Array]]) -> Images:
    """Join parts of pixels (N, 3072) and labels (N,); the images are channels-last in memory."""
    planes = [pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for pixels, _ in parts]
    images = np.empty((sum(map(len, planes)), 32, 32, 3), np.uint8)
    labels = [labels for _, labels in parts]
    return (
        np.concatenate(planes, out=images).transpose(0, 3, 1, 2),
        np.concatenate(labels).astype(np.int64),
    )


# --------------------------------------------------------------- layouts: bytes -> pixels, labels


def parse_binary10(data: bytes) -> tuple[Array, Array]:
    """Split records of a label and 3,072 pixels: pixels (N, 3072) uint8, labels (N,) uint8."""
    records = _records(data, 1)
    return records[:, 1:], records[:, 0]


def parse_binary100(data: bytes) -> tuple[Array, Array]:
    """Split records of a coarse label, a fine label and 3,072 pixels; the fine label is used.

    Returns pixels (N, 3072) uint8 and labels (N,) uint8.
    """
    records = _records(data, 2)
    return records[:, 2:], records[:, 1]


def _records(data: bytes, labels: int) -> NDArray[np.uint8]:
    size = labels + _PIXELS
    count, rest = divmod(len(data), size)
    if rest or not count:
        raise DatasetError(f"{len(data):,} bytes are not a whole number of {size:,}-byte records")
    return np.frombuffer(data, np.uint8).reshape(count, size)


def parse_python(data: bytes) -> tuple[Array, Array]:
    """Read a pickled dict with ``data`` and ``labels`` (CIFAR-10) or ``fine_labels`` (CIFAR-100).

    Returns pixels (N, 3072) uint8 and labels (N,) uint8.
    """
    batch = read_pickle(data)
    if type(batch) is not dict:
        raise DatasetError("a pickle without a dict")
    pixels, labels = batch.get("data"), batch.get("fine_labels", batch.get("labels"))
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise DatasetError(f"a pickle without an array 'data' of shape (N, {_PIXELS})")
    if type(labels) is not list or not all(type(n) is int and 0 <= n < 256 for n in labels):
        raise DatasetError("a pickle without a list of labels from 0 to 255")
    if len(labels) != len(pixels) or not labels:
        raise DatasetError(f"a pickle with {len(pixels)} images and {len(labels)} labels")
    return pixels, np.array(labels, np.uint8)
