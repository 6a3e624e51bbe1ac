"""Labelled images as two arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinybnn import tables
from tinybnn.datasets.loader import as_generator
from tinybnn.storage import check_name
from tinybnn.typing import Array


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images with labels.

    Attributes
    ----------
    images : (N, C, H, W) uint8 or float32
        Values from 0 to `maximum`. Channels-last in memory (copied into that order if need be).
    labels : (N,) int64
        Positions in `classes`.
    classes : tuple of str
        Names of the classes.
    name : str
    maximum : float
        The value of a white pixel: 255 for most 8-bit images, 16 for the bundled digits.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values are not as above. `from_arrays` is more lenient.
    """

    images: Array
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    name: str = "arrays"
    maximum: float = 255

    def __post_init__(self) -> None:
        images, labels, classes = self.images, self.labels, self.classes
        for name, array in (("images", images), ("labels", labels)):
            if not isinstance(array, np.ndarray):
                raise TypeError(f"Dataset: {name} must be an array, got {type(array).__name__}")
        if images.ndim != 4 or 0 in images.shape[1:]:
            raise ValueError(f"Dataset: images must be (N, C, H, W), got shape {images.shape}")
        if images.dtype not in (np.uint8, np.float32):
            raise TypeError(f"Dataset: images must be uint8 or float32, got {images.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"Dataset: {len(images)} images need labels of shape ({len(images)},), "
                f"got {labels.shape}"
            )
        if labels.dtype != np.int64:
            raise TypeError(f"Dataset: labels must be int64, got {labels.dtype}")
        if isinstance(classes, str) or not all(isinstance(c, str) for c in classes):
            raise TypeError(f"Dataset: classes must be a tuple of names, got {classes!r}")
        for name in classes:
            check_name(name, "Dataset: a class")
        if not isinstance(self.maximum, Real) or not 0 < self.maximum < np.inf:
            raise ValueError(f"Dataset: maximum must be a positive number, got {self.maximum!r}")
        if labels.size:
            low, high = labels.min(), labels.max()
            if low < 0 or high >= len(classes):
                raise ValueError(
                    f"Dataset: labels must be 0 to {len(classes) - 1} for {len(classes)} classes, "
                    f"got {low} to {high}"
                )
            low, high = images.min(), images.max()
            if not (low >= 0 and high <= np.float32(self.maximum)):  # NaN fails too
                raise ValueError(
                    f"Dataset: images must have values from 0 to maximum={self.maximum}, "
                    f"got {low} to {high}; pass another maximum, or use TensorDataset(x, y) for "
                    "standardised and negative values"
                )
        pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))  # (N, H, W, C)
        object.__setattr__(self, "images", pixels.transpose(0, 3, 1, 2))
        object.__setattr__(self, "classes", tuple(classes))

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt, since a pickle forgets that images are channels-last in memory.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __getitem__(self, index: int | slice | ArrayLike) -> Any:
        """Return (image (C, H, W), label) for an integer, a Dataset for a slice or an array.

        The array holds positions, or one boolean for each image. Slices share memory.
        """
        if not isinstance(index, (slice, list, np.ndarray)):
            if isinstance(index, (bool, np.bool_)) or not hasattr(index, "__index__"):
                raise TypeError(
                    "Dataset: an index must be an integer, a slice, or an array of integers or "
                    f"booleans, got {type(index).__name__}"
                )
            index = operator.index(index)
            return self.images[index], int(self.labels[index])
        if not isinstance(index, slice):
            index = np.asarray(index)
            if index.size == 0 and index.dtype != bool:
                index = index.astype(np.intp)  # NumPy makes an empty list a float array
            if index.ndim != 1 or index.dtype.kind not in "iub":
                raise TypeError(
                    "Dataset: an index array must be 1-d, of integers or booleans, "
                    f"got {index.dtype} of shape {index.shape}"
                )
        return Dataset(
            self.images[index], self.labels[index], self.classes, self.name, self.maximum
        )

    def split(
        self, size: float, rng: np.random.Generator | int | None = 0
    ) -> tuple[Dataset, Dataset]:
        """Hold out a random part, e.g. for validation.

        Each part keeps the original order of its images. Classes are not balanced.

        Parameters
        ----------
        size : float or int
            The part to hold out: a fraction between 0 and 1, or a number of images.
        rng : numpy.random.Generator or int or None
            The default, seed 0, holds out the same images on every run. None: the generator that
            `tinybnn.manual_seed` restarts.

        Returns
        -------
        rest, held_out : Dataset
        """
        if isinstance(size, (bool, np.bool_)) or not isinstance(size, Real):
            raise TypeError(f"split: size must be a fraction or a number of images, got {size!r}")
        if isinstance(size, Integral):
            count = int(size)
        elif 0 < size < 1:
            count = round(float(size) * len(self))
        else:
            raise ValueError(f"split: a fraction must lie between 0 and 1, got {size!r}")
        if not 0 < count < len(self):
            raise ValueError(
                f"split: {size!r} of {len(self)} images leaves one part empty (or asks for more)"
            )
        order = as_generator(rng, "split").permutation(len(self))
        return self[np.sort(order[count:])], self[np.sort(order[:count])]

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        return (
            f"Dataset({self.name}: {len(self)} images {shape} {self.images.dtype} "
            f"up to {self.maximum:g}, {len(self.classes)} classes)"
        )

    def _repr_html_(self):
        counts = np.bincount(self.labels, minlength=len(self.classes))
        rows = [
            (i, name, f"{count:,}")
            for i, (name, count) in enumerate(zip(self.classes, counts, strict=True))
        ]
        return tables.html(("label", "class", "images"), rows, "><>", repr(self))


def from_arrays(
    images: ArrayLike,
    labels: ArrayLike,
    classes: Iterable[str] | None = None,
    name: str = "arrays",
    maximum: float | None = None,
) -> Dataset:
    """Make a Dataset from your own arrays.

    Parameters
    ----------
    images : (N, H, W) or (N, C, H, W) uint8 or float
        Floats become float32.
    labels : (N,) integers
    classes : sequence of str, optional
        Default: "0", "1", ... up to the largest label.
    name : str
    maximum : float, optional
        The value of a white pixel; 255 for uint8 and 1 for floats by default.

    Returns
    -------
    Dataset
        It shares the memory of `images` if dtype and memory order allow.

    Raises
    ------
    TypeError, ValueError
        If the arrays do not fit this description, or have values outside 0 to `maximum`.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim not in (3, 4):
        raise ValueError(
            f"from_arrays: images must be (N, H, W) or (N, C, H, W), got shape {images.shape}; "
            "for other data use TensorDataset(x, y)"
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise TypeError(f"from_arrays: images must be uint8 or floats, got {images.dtype}")
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"from_arrays: labels must be integers (int8 to int64, uint8 to uint64), got "
            f"{labels.dtype}; convert them by .astype(np.int64), or use TensorDataset(x, y) for "
            "targets that are not classes"
        )
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(
            f"from_arrays: labels must be (N,), got shape {labels.shape}; convert one-hot rows by "
            ".argmax(axis=1)"
        )
    if maximum is None:
        maximum = 255 if images.dtype == np.uint8 else 1
    if images.dtype != np.uint8:
        images = images.astype(np.float32, copy=False)
    if images.ndim == 3:
        images = images[:, None]
    if classes is None:
        largest = int(labels.max()) if labels.size else -1
        if largest > 1_000_000:
            raise ValueError(
                f"from_arrays: {largest} is too large for a label; pass classes if it is one"
            )
        classes = map(str, range(largest + 1))
    return Dataset(images, labels.astype(np.int64), tuple(classes), name, maximum)
