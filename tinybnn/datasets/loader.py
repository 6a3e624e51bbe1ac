"""Batches: the DataLoader, and arrays of any kind as a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from tinybnn.autograd import Tensor, as_array, default_generator
from tinybnn.datasets.transforms import Transform, to_signed, whole
from tinybnn.typing import Array

Samples: TypeAlias = Any  # an object with __len__ and __getitem__


class TensorDataset:
    """Samples and their targets as two arrays: tables, standardised images, regressions.

    PyTorch's class of that name, for two arrays. For images with classes use `from_arrays`: it
    makes a `Dataset`, which knows the value of white and the classes' names.

    Parameters
    ----------
    x : (N, ...) numbers
        Floats become float32.
    y : (N, ...) numbers
        Integers become int64, floats float32.

    Raises
    ------
    TypeError, ValueError
        If they are not such arrays, or differ in length.
    """

    x: Array
    y: Array

    def __init__(self, x: Tensor | ArrayLike, y: Tensor | ArrayLike) -> None:
        x, y = np.asarray(as_array(x)), np.asarray(as_array(y))
        if not x.ndim or x.shape[:1] != y.shape[:1]:
            raise ValueError(
                f"TensorDataset: x and y must have one length, got shapes {x.shape} and {y.shape}"
            )
        for name, array in (("x", x), ("y", y)):
            if array.dtype.kind not in "biuf":
                raise TypeError(f"TensorDataset: {name} must hold numbers, got {array.dtype}")
        self.x = x.astype(np.float32, copy=False) if x.dtype.kind == "f" else x
        self.y = y.astype(np.float32 if y.dtype.kind == "f" else np.int64, copy=False)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int | slice | ArrayLike) -> tuple[Array, Array]:
        """Return the pair (x, y) at an integer, a slice or an array of positions."""
        return self.x[index], self.y[index]

    def __repr__(self) -> str:
        return f"TensorDataset(x {self.x.shape} {self.x.dtype}, y {self.y.shape} {self.y.dtype})"


class DataLoader:
    """Iterate over a data set in batches.

    Parameters
    ----------
    dataset : Dataset, TensorDataset, or any object with __len__ and __getitem__
        In a class of your own, or a list, ``dataset[i]`` is a pair (x, y) of numbers or arrays.
    batch_size : int
    shuffle : bool
        Draw a new order at the start of each epoch (each ``iter(loader)``).
    drop_last : bool
        Leave out the last batch if it is smaller than the others.
    transform : callable, optional
        (x (B, ...) as the data set has it, rng) -> (B, ...) float32; it must not change its input.
        Default for a `Dataset` and its parts: ``to_signed(dataset.maximum)``, so that inputs fill
        [-1, 1]; for others: conversion to float32.
    rng : numpy.random.Generator or int, optional
        Draws the orders and the random numbers of the transform. An int is the seed of a new
        generator: the same seed gives the same batches on every run. None: the generator that
        `tinybnn.manual_seed` restarts, in its state at the start of each epoch.
    collate_fn : callable, optional
        Makes a batch from a list of samples ``dataset[i]``, of any form and length; the loader
        yields its result unchanged. Replaces a transform.

    Yields
    ------
    x : (B, ...) float32
        Images (B, C, H, W) are channels-last in memory: ``x.transpose(0, 2, 3, 1)`` is
        C-contiguous.
    y : (B,) int64
        Other targets likewise: integers as int64, floats as float32.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or range, when samples are not pairs or differ in shape, and
        when a transform returns something else.
    """

    def __init__(
        self,
        dataset: Samples,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        transform: Transform | None = None,
        rng: np.random.Generator | int | None = None,
        *,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        has_images = all(hasattr(dataset, name) for name in ("images", "labels", "maximum"))
        has_items = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, np.ndarray | str | dict) or not (has_images or has_items):
            raise TypeError(
                f"DataLoader: expected a Dataset, a TensorDataset, or an object with __len__ and "
                f"a __getitem__ that returns pairs (x, y), got {type(dataset).__name__} "
                "(tinybnn.datasets.from_arrays makes a Dataset of images and labels)"
            )
        for name, value in (("shuffle", shuffle), ("drop_last", drop_last)):
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"DataLoader: {name} must be True or False, got {value!r}")
        if transform is not None and not callable(transform):
            raise TypeError(f"DataLoader: transform must be callable, got {transform!r}")
        if collate_fn is not None and (transform is not None or not callable(collate_fn)):
            raise TypeError(
                "DataLoader: collate_fn must be callable, and replaces a transform; got "
                f"collate_fn={collate_fn!r}, transform={transform!r}"
            )
        self.dataset: Samples = dataset
        self.batch_size: int = whole("DataLoader", "batch_size", batch_size, least=1)
        self.shuffle: bool = bool(shuffle)
        self.drop_last: bool = bool(drop_last)
        self._read = _read_images if has_images else _read_items
        if transform is None:
            transform = to_signed(dataset.maximum) if hasattr(dataset, "maximum") else _to_float
        self.transform: Transform = transform
        self.collate_fn: Callable[[list[Any]], Any] | None = collate_fn
        # None stays None, so that a seed set after this line still counts.
        self.rng: np.random.Generator | None = (
            None if rng is None else as_generator(rng, "DataLoader")
        )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of one epoch."""
        count = len(self.dataset)
        rng = as_generator(self.rng, "DataLoader")
        order = rng.permutation(count) if self.shuffle else None
        for batch in range(len(self)):
            rows = slice(batch * self.batch_size, min((batch + 1) * self.batch_size, count))
            if order is not None:
                rows = order[rows]
            if self.collate_fn is not None:
                yield self.collate_fn([self.dataset[i] for i in _positions(rows)])
                continue
            x, y = self._read(self.dataset, rows)
            yield _checked(self.transform(x, rng), x.shape), y

    def __repr__(self) -> str:
        return (
            f"DataLoader({self.dataset!r}, batch_size={self.batch_size}, shuffle={self.shuffle}, "
            f"drop_last={self.drop_last})"
        )


def _read_images(dataset, rows):
    """Images (B, C, H, W) and labels (B,) of a Dataset at some positions."""
    pixels = dataset.images.transpose(0, 2, 3, 1)  # (N, H, W, C), contiguous
    return pixels[rows].transpose(0, 3, 1, 2), dataset.labels[rows].copy()


def _positions(rows):
    """The positions in a slice or an array, as ints."""
    return range(rows.start, rows.stop) if isinstance(rows, slice) else map(int, rows)


def _read_items(dataset, rows):
    """Samples and targets of any other data set, each stacked to one array (B, ...)."""
    if isinstance(dataset, TensorDataset):
        x, y = dataset[rows]
        return x, y.copy()
    pairs = [dataset[i] for i in _positions(rows)]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise TypeError(
            f"DataLoader: {type(dataset).__name__}[i] must be a pair (x, y); for two arrays use "
            "TensorDataset(x, y)"
        )
    columns = []
    for name, values in zip("xy", zip(*pairs, strict=True), strict=True):
        arrays = [np.asarray(as_array(value)) for value in values]
        if len({array.shape for array in arrays}) > 1:
            shapes = sorted({str(array.shape) for array in arrays})
            raise ValueError(
                f"DataLoader: the {name} of a batch must have one shape, got {', '.join(shapes)}"
            )
        columns.append(np.stack(arrays))
    batch = TensorDataset(*columns)
    return batch.x, batch.y


def _to_float(x, rng):
    """Samples as float32; pixels need an explicit scale."""
    if x.dtype == np.uint8 and x.ndim > 2:
        raise ValueError(
            f"DataLoader: images {x.shape} of uint8 need a scale; pass "
            "transform=datasets.to_signed(255) for inputs in [-1, 1], or to_unit(255)"
        )
    return x.astype(np.float32, copy=x.base is not None)


def _checked(x, shape):
    """Check a transform's result; images become channels-last in memory (copied if need be)."""
    ndim = len(shape)
    if (
        not isinstance(x, np.ndarray)
        or x.dtype != np.float32
        or (ndim == 4 and x.ndim != 4)
        or not x.ndim
        or len(x) != shape[0]
    ):
        got = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        rest = "C, H, W" if ndim == 4 else "..."
        raise ValueError(
            f"DataLoader: the transform must return a float32 array ({shape[0]}, {rest}), got {got}"
        )
    if x.ndim != 4:
        return x
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def as_generator(rng: np.random.Generator | int | None, where: str) -> np.random.Generator:
    """Return a Generator for a Generator, a seed, or None; `where` begins error messages.

    None stands for the default generator, which layers draw from too; `tinybnn.manual_seed`
    restarts it.
    """
    if rng is None:
        return default_generator()
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool) or not isinstance(rng, Integral) or rng < 0:
        raise TypeError(
            f"{where}: rng must be a numpy.random.Generator, a seed >= 0 or None, got {rng!r}"
        )
    return np.random.default_rng(rng)
