"""Datasets: labelled images as two arrays, found on disk by name, and batches of them.

>>> from tinybnn.datasets import DataLoader, load
>>> train, test = load("digits")
>>> train
Dataset(digits: 1437 images 1×8×8 uint8 up to 16, 10 classes)
>>> x, y = next(iter(DataLoader(train, batch_size=32, shuffle=True, rng=0)))
>>> x.shape, x.dtype, y.shape
((32, 1, 8, 8), dtype('float32'), (32,))
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from tinybnn.datasets.idx import DatasetError, read_idx
from tinybnn.datasets.loader import DataLoader, as_generator, to_signed, to_unit

__all__ = [
    "SOURCES", "DataLoader", "Dataset", "DatasetError", "Source", "from_arrays", "load",
    "read_idx", "search_folders", "to_signed", "to_unit",
]  # fmt: skip


# ------------------------------------------------------------------------------- images and labels


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
        The names of the classes.
    name : str
    maximum : float
        The value of a white pixel: 255 for most 8-bit images, 16 for the bundled digits.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or values are not as above. `from_arrays` is more lenient.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str = "arrays"
    maximum: float = 255

    def __post_init__(self):
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
                    f"got {low} to {high}"
                )
        pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))  # (N, H, W, C)
        object.__setattr__(self, "images", pixels.transpose(0, 3, 1, 2))
        object.__setattr__(self, "classes", tuple(classes))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        """One (image (C, H, W), label) for an integer; a Dataset for a slice or an array.

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

    def split(self, size, rng=0):
        """Hold out a random part, e.g. for validation.

        Each part keeps the original order of its images. Classes are not balanced.

        Parameters
        ----------
        size : float or int
            The part to hold out: a fraction between 0 and 1, or a number of images.
        rng : numpy.random.Generator or int or None
            The default, seed 0, holds out the same images on every run.

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

    def __repr__(self):
        shape = "×".join(map(str, self.images.shape[1:]))
        return (
            f"Dataset({self.name}: {len(self)} images {shape} {self.images.dtype} "
            f"up to {self.maximum:g}, {len(self.classes)} classes)"
        )


def from_arrays(images, labels, classes=None, name="arrays", maximum=None):
    """A Dataset from your own arrays.

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
        It shares the memory of `images` where dtype and memory order allow.

    Raises
    ------
    TypeError, ValueError
        If the arrays do not fit this description, or have values outside 0 to `maximum`.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim not in (3, 4):
        raise ValueError(
            f"from_arrays: images must be (N, H, W) or (N, C, H, W), got shape {images.shape}"
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise TypeError(f"from_arrays: images must be uint8 or floats, got {images.dtype}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"from_arrays: labels must be integers, got {labels.dtype}")
    if labels.ndim != 1:
        raise ValueError(f"from_arrays: labels must be (N,), got shape {labels.shape}")
    if maximum is None:
        maximum = 255 if images.dtype == np.uint8 else 1
    if images.dtype != np.uint8:
        images = images.astype(np.float32, copy=False)
    if images.ndim == 3:
        images = images[:, None]
    if classes is None:
        if labels.size and int(labels.max()) > 1_000_000:
            raise ValueError(f"from_arrays: {labels.max()} is no label; pass classes if it is")
        classes = map(str, range(int(labels.max()) + 1 if labels.size else 0))
    return Dataset(images, labels.astype(np.int64), tuple(classes), name, maximum)


# ------------------------------------------------------------------------------- datasets by name


@dataclass(frozen=True)
class Source:
    """What is known about a dataset before its files are read.

    Attributes
    ----------
    classes : tuple of str
    image_shape : (C, H, W)
    files : tuple of str
        The files that make the dataset, as they are called without ``.gz``.
    read : callable
        Takes the paths of `files` in order; returns the training and the test arrays, each as
        (images (N, C, H, W) uint8, labels (N,) int64).
    maximum : float
        The value of a white pixel.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    files: tuple[str, ...]
    read: Callable
    maximum: float = 255


def _read_mnist_like(paths):
    """Images and labels for training, then for testing, one IDX file each."""
    arrays = []
    for path, ndim in zip(paths, (3, 1, 3, 1), strict=True):
        array = read_idx(path)
        if array.dtype != np.uint8 or array.ndim != ndim:
            raise DatasetError(f"{path}: expected {ndim}-d uint8, got {array.ndim}-d {array.dtype}")
        arrays.append(array[:, None] if ndim == 3 else array.astype(np.int64))
    return arrays[:2], arrays[2:]


_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_MNIST_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip

SOURCES = {
    "digits": Source(_DIGITS, (1, 8, 8), _MNIST_FILES, _read_mnist_like, maximum=16),
    "mnist": Source(_DIGITS, (1, 28, 28), _MNIST_FILES, _read_mnist_like),
    "fashion-mnist": Source(_FASHION, (1, 28, 28), _MNIST_FILES, _read_mnist_like),
}


def load(name, root=None):
    """Load a dataset by name.

    Parameters
    ----------
    name : str
        "digits" (bundled), "mnist" or "fashion-mnist": a key of `SOURCES`.
    root : str or PathLike, optional
        A folder that holds the dataset's files, or a folder `name` with them. If given, nothing
        else is searched; `search_folders` lists where a dataset is looked for otherwise.

    Returns
    -------
    train, test : Dataset

    Raises
    ------
    ValueError
        For an unknown name.
    FileNotFoundError
        If no folder has the files; it lists the folders.
    DatasetError
        If the files are damaged or hold something else.
    """
    if name not in SOURCES:
        raise ValueError(f"load: unknown dataset {name!r}; known are {', '.join(SOURCES)}")
    source = SOURCES[name]
    paths = _find(name, source.files, root)
    train, test = source.read(paths)
    return _checked(name, source, train, paths[0]), _checked(name, source, test, paths[-1])


def search_folders(name, root=None):
    """The folders in which `load` looks for a dataset, in order.

    Only `root` and ``root/name`` if `root` is given. Otherwise ``$TINYBNN_DATA/name``, the user's
    cache (``$XDG_CACHE_HOME/tinybnn/name``, by default ``~/.cache/tinybnn/name``), the data
    installed with the package, and the ``data`` folder beside the package in a checkout.

    Returns
    -------
    list of pathlib.Path
    """
    if root is not None:
        root = Path(os.path.expanduser(root))
        return [root, root / name]
    package = Path(__file__).resolve().parents[1]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folders = [
        Path(cache, "tinybnn", name),
        package / "data" / name,
        package.parent / "data" / name,
    ]
    if data := os.environ.get("TINYBNN_DATA"):
        folders.insert(0, Path(os.path.expanduser(data), name))
    return folders


def _find(name, files, root):
    """The path of each file, all in the first folder that has them all, with or without .gz."""
    searched = []
    for folder in search_folders(name, root):
        paths = [
            next((p for p in (folder / f"{file}.gz", folder / file) if p.is_file()), None)
            for file in files
        ]
        if None not in paths:
            return paths
        missing = [f"{file}[.gz]" for file, path in zip(files, paths, strict=True) if path is None]
        if not folder.is_dir():
            searched.append(f"  {folder} (no such folder)")
        elif len(missing) == len(files):
            searched.append(f"  {folder} (none of its files)")
        else:
            searched.append(f"  {folder} (missing {', '.join(missing)})")
    raise FileNotFoundError(
        f"the dataset {name!r} was not found. Searched:\n"
        + "\n".join(searched)
        + f"\n`tinybnn data fetch {name}` downloads it; or set TINYBNN_DATA to a folder that holds "
        + f"{name}/, or pass root."
    )


def _checked(name, source, arrays, path):
    """A Dataset of what a source's reader gave."""
    images, labels = arrays
    try:
        if images.shape[1:] != source.image_shape:
            raise ValueError(f"expected images {source.image_shape}, got {images.shape[1:]}")
        return Dataset(images, labels, source.classes, name, source.maximum)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"{path.parent} holds no {name}: {path.name} and its pair: {error}"
        ) from None
