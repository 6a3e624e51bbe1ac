"""Datasets: labelled images as two arrays, loaded by name, and batches of them.

>>> from tinybnn.datasets import DataLoader, load
>>> train, test = load("digits")
>>> train
Dataset(digits: 1437 images 1×8×8 uint8 up to 16, 10 classes)
>>> x, y = next(iter(DataLoader(train, batch_size=32, shuffle=True, rng=0)))
>>> x.shape, x.dtype, y.shape
((32, 1, 8, 8), dtype('float32'), (32,))

`fetch` downloads data sets that are not bundled, `from_folder` and `from_arrays` take images of
your own, `TensorDataset` takes tables, standardised values and regressions, and a transform
augments the training set:

>>> from tinybnn.datasets import Compose, RandomShift, to_signed
>>> transform = Compose([RandomShift(1), to_signed(train.maximum)])
>>> loader = DataLoader(train, batch_size=32, shuffle=True, transform=transform, rng=0)
"""

from tinybnn.datasets.brightness import brightness, check_brightness, looks_inverted
from tinybnn.datasets.dataset import Dataset, from_arrays
from tinybnn.datasets.download import Available, DownloadError, available, fetch
from tinybnn.datasets.files import DatasetError
from tinybnn.datasets.folder import from_folder, read_picture
from tinybnn.datasets.idx import read_idx
from tinybnn.datasets.loader import DataLoader, TensorDataset, as_generator
from tinybnn.datasets.npy import is_npy, read_npy
from tinybnn.datasets.parts import ConcatDataset, Subset, random_split
from tinybnn.datasets.resampling import Cutout, RandomRotation, Resize
from tinybnn.datasets.sources import (
    SOURCES,
    Layout,
    Source,
    load,
    mnist_files,
    path,
    search_folders,
)
from tinybnn.datasets.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomShift,
    to_signed,
    to_unit,
)

__all__ = [
    "SOURCES", "Available", "Compose", "ConcatDataset", "Cutout", "DataLoader", "Dataset",
    "DatasetError", "DownloadError", "Layout", "Normalize", "RandomCrop", "RandomHorizontalFlip",
    "RandomRotation", "RandomShift", "Resize", "Source", "Subset", "TensorDataset", "as_generator",
    "available", "brightness", "check_brightness", "fetch", "from_arrays", "from_folder", "is_npy",
    "load", "looks_inverted", "mnist_files", "path", "random_split", "read_idx", "read_npy",
    "read_picture", "search_folders", "to_signed", "to_unit",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else
