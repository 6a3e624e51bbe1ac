"""CIFAR-10 and CIFAR-100 in the layouts of their authors (https://www.cs.toronto.edu/~kriz/).

Binary: a record for each image, one byte with its label (CIFAR-100: one with its coarse label, then
one with its fine label), then 3,072 bytes of pixels, 32 rows of 32 for red, then green, then blue.

Python: a pickled dict with the pixels as an array (N, 3072) in the same order, and lists of labels.
It is read without unpickling it.

Both are read from the folder that the official archive unpacks to, or straight from the archive.
"""

from __future__ import annotations

import numpy as np

from tinybnn.datasets.files import DatasetError, open_data
from tinybnn.datasets.pickled import read_pickle
from tinybnn.datasets.tar import read_members

_PIXELS = 3 * 32 * 32


def read_cifar(paths, train, test, parse):
    """The training and the test images of a CIFAR dataset.

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
    names = [*train, *test]
    if len(paths) == len(names):
        parts = {name: _read(path, parse) for name, path in zip(names, paths, strict=True)}
    else:
        (path,) = paths
        parts = {}
        for name, data in read_members(path, names):
            try:
                parts[name] = _as_arrays(*parse(data))
            except DatasetError as error:
                raise DatasetError(f"{path}: {name}: {error}") from None
    return _joined([parts[name] for name in train]), _joined([parts[name] for name in test])


def _read(path, parse):
    with open_data(path) as (file, size):
        data = np.empty(size, np.uint8)
        if file.readinto(data) != size:
            raise DatasetError("it was cut off while it was read")
        return _as_arrays(*parse(data))


def _as_arrays(pixels, labels):
    """(N, 3072) pixels as images, copied into channels-last order, and labels as int64."""
    planes = pixels.reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return images, labels.astype(np.int64)


def _joined(parts):
    if len(parts) == 1:
        return parts[0]
    images = np.concatenate([images.transpose(0, 2, 3, 1) for images, _ in parts])
    return images.transpose(0, 3, 1, 2), np.concatenate([labels for _, labels in parts])


# --------------------------------------------------------------- layouts: bytes -> pixels, labels


def parse_binary10(data):
    """Records of a label and 3,072 pixels."""
    records = _records(data, 1)
    return records[:, 1:], records[:, 0]


def parse_binary100(data):
    """Records of a coarse label, a fine label and 3,072 pixels; the fine label is used."""
    records = _records(data, 2)
    return records[:, 2:], records[:, 1]


def _records(data, labels):
    size = labels + _PIXELS
    count, rest = divmod(len(data), size)
    if rest or not count:
        raise DatasetError(f"{len(data):,} bytes are no whole number of {size:,}-byte records")
    return np.frombuffer(data, np.uint8).reshape(count, size)


def parse_python(data):
    """A pickled dict with ``data`` and ``labels`` (CIFAR-10) or ``fine_labels`` (CIFAR-100)."""
    batch = read_pickle(data)
    if type(batch) is not dict:
        raise DatasetError("a pickle without a dict")
    pixels, labels = batch.get(b"data"), batch.get(b"fine_labels", batch.get(b"labels"))
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise DatasetError(f"a pickle without an array 'data' of shape (N, {_PIXELS})")
    if type(labels) is not list or not all(type(label) is int for label in labels):
        raise DatasetError("a pickle without a list of labels")
    if len(labels) != len(pixels) or not labels:
        raise DatasetError(f"a pickle with {len(pixels)} images and {len(labels)} labels")
    return pixels, np.array(labels, np.int64)
