"""Parts of data sets, and several as one: PyTorch's names, for data sets of any kind.

For a part of a `Dataset` of images, ``dataset[indices]`` and `Dataset.split` give a `Dataset`
again.
"""

from __future__ import annotations

import bisect
import math
from numbers import Integral

import numpy as np

from tinybnn.datasets.loader import as_generator


class Subset:
    """The samples of a data set at some positions.

    Parameters
    ----------
    dataset : Dataset, TensorDataset, or any object with __len__ and __getitem__
    indices : sequence of int
    """

    def __init__(self, dataset, indices):
        indices = np.asarray(indices)
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise TypeError(f"Subset: indices must be a row of integers, got {indices!r}")
        indices = indices.astype(np.intp)
        if indices.size and not -len(dataset) <= indices.min() <= indices.max() < len(dataset):
            raise IndexError(
                f"Subset: indices must lie in the {len(dataset)} samples, got {indices.min()} to "
                f"{indices.max()}"
            )
        self.dataset, self.indices = dataset, indices

    def __getattr__(self, name):
        if name == "maximum" and "dataset" in vars(self):  # the value of white, where it has one
            return self.dataset.maximum
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.dataset[int(self.indices[index])]

    def __repr__(self):
        return f"Subset({len(self)} of {self.dataset!r})"


class ConcatDataset:
    """Data sets one after the other.

    Parameters
    ----------
    datasets : iterable of data sets

    Attributes
    ----------
    cumulative_sizes : list of int
        Where each data set ends.
    """

    def __init__(self, datasets):
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset: expects at least one data set, got none")
        self.cumulative_sizes = np.cumsum([len(d) for d in self.datasets]).tolist()

    def __getattr__(self, name):
        if name == "maximum" and "datasets" in vars(self):
            found = {getattr(dataset, name, None) for dataset in self.datasets}
            if None not in found:
                if len(found) > 1:
                    raise ValueError(
                        f"ConcatDataset: data sets with different values of white: {sorted(found)}"
                    )
                return found.pop()
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __len__(self):
        return self.cumulative_sizes[-1]

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(f"ConcatDataset: sample {index} of {len(self)}")
        index = index % len(self)
        part = bisect.bisect_right(self.cumulative_sizes, index)
        return self.datasets[part][index - [0, *self.cumulative_sizes][part]]

    def __repr__(self):
        return f"ConcatDataset({self.datasets!r})"


def random_split(dataset, lengths, generator=None):
    """Cut a data set at random into parts that share no sample.

    Parameters
    ----------
    dataset : Dataset, TensorDataset, or any object with __len__ and __getitem__
    lengths : sequence of int, or of float
        The sizes, which add up to that of the data set; or shares, which add up to 1: what rounding
        down leaves over goes to the first parts, one each.
    generator : numpy.random.Generator or int, optional
        Draws the parts; an int is a seed. None: the one that `tinybnn.manual_seed` restarts.

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
