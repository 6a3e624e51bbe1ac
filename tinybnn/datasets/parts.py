"""Parts of data sets, and several joined to one: PyTorch's names, for data sets of any kind.

For a part of a `Dataset` of images, ``dataset[indices]`` and `Dataset.split` return a `Dataset`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinybnn.datasets.loader import Samples, as_generator


class Subset:
    """The samples of a data set at some positions.

    Parameters
    ----------
    dataset : Dataset, TensorDataset, or any object with __len__ and __getitem__
    indices : sequence of int
    """

    def __init__(self, dataset: Samples, indices: ArrayLike) -> None:
        indices = np.asarray(indices)
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise TypeError(f"Subset: indices must be a row of integers, got {indices!r}")
        self.dataset: Samples = dataset
        self.indices: NDArray[np.intp] = indices.astype(np.intp)
        if indices.size and not -len(dataset) <= indices.min() <= indices.max() < len(dataset):
            raise IndexError(
                f"Subset: indices must lie in the {len(dataset)} samples, got {indices.min()} to "
                f"{indices.max()}"
            )

    @property
    def maximum(self) -> float:
        """The value of a white pixel, if the data set has one."""
        return self.dataset.maximum

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        """Return the sample at a position, as the data set does."""
        return self.dataset[int(self.indices[index])]

    def __repr__(self) -> str:
        return f"Subset({len(self)} of {self.dataset!r})"


class ConcatDataset:
    """Data sets one after the other.

    Parameters
    ----------
    datasets : iterable of data sets

    Attributes
    ----------
    cumulative_sizes : list of int
        The end of each data set.
    """

    def __init__(self, datasets: Iterable[Samples]) -> None:
        self.datasets: list[Samples] = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset: expects at least one data set, got none")
        self.cumulative_sizes: list[int] = np.cumsum([len(d) for d in self.datasets]).tolist()

    @property
    def maximum(self) -> float:
        """The value of a white pixel, if all data sets have the same."""
        values = {dataset.maximum for dataset in self.datasets}
        if len(values) > 1:
            raise ValueError(
                f"ConcatDataset: data sets with different values of white: {sorted(values)}"
            )
        return values.pop()

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: int) -> Any:
        """Return the sample at a position, as its data set does."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"ConcatDataset: sample {index} of {len(self)}")
        index = index % len(self)
        part = bisect.bisect_right(self.cumulative_sizes, index)
        return self.datasets[part][index - [0, *self.cumulative_sizes][part]]

    def __repr__(self) -> str:
        return f"ConcatDataset({self.datasets!r})"


def random_split(
    dataset: Samples,
    lengths: Sequence[float],
    generator: np.random.Generator | int | None = None,
) -> list[Subset]:
    """Split a data set at random into parts that share no sample.

    Parameters
    ----------
    dataset : Dataset, TensorDataset, or any object with __len__ and __getitem__
    lengths : sequence of int, or of float
        Sizes that add up to that of the data set; or shares that add up to 1: samples left over by
        rounding down go to the first parts, one each.
    generator : numpy.random.Generator or int, optional
        Draws the parts; an int is a seed. None: the generator that `tinybnn.manual_seed` restarts.

    Returns
    -------
    list of Subset
    """
    count, lengths = len(dataset), list(lengths)
    if all(isinstance(n, Integral) for n in lengths):
        sizes = [int(n) for n in lengths]
    elif min(lengths) >= 0 and math.isclose(sum(lengths), 1):
        sizes = [math.floor(count * share) for share in lengths]
        for i in range(count - sum(sizes)):
            sizes[i % len(sizes)] += 1
    else:
        raise ValueError(f"random_split: shares must be >= 0 and add up to 1, got {lengths}")
    if sum(sizes) != count or min(sizes, default=0) < 0:
        raise ValueError(
            f"random_split: lengths must be >= 0 and add up to the {count} samples, got {lengths}"
        )
    order = as_generator(generator, "random_split").permutation(count)
    return [Subset(dataset, part) for part in np.split(order, np.cumsum(sizes)[:-1])]
