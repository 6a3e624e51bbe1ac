"""Batches: the DataLoader."""

from __future__ import annotations

from numbers import Integral

import numpy as np

from tinybnn.datasets.transforms import to_signed
from tinybnn.tensor import default_generator


class DataLoader:
    """Iterate over a dataset in batches.

    Parameters
    ----------
    dataset : Dataset
    batch_size : int
    shuffle : bool
        Draw a new order at the start of each epoch (each ``iter(loader)``).
    drop_last : bool
        Leave out the last batch if it is smaller than the others.
    transform : callable, optional
        (images (B, C, H, W) of the dataset's dtype, rng) -> (B, C', H', W') float32; it must not
        change its input. Default: ``to_signed(dataset.maximum)``, so that inputs fill [-1, 1].
    rng : numpy.random.Generator or int, optional
        Draws the orders and whatever the transform draws. An int is the seed of a new generator:
        the same seed gives the same batches on every run. None: the generator that
        `tinybnn.manual_seed` restarts, as it is at the start of each epoch.

    Yields
    ------
    x : (B, C, H, W) float32
        Channels-last in memory: ``x.transpose(0, 2, 3, 1)`` is C-contiguous.
    y : (B,) int64

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or range, and when a transform returns something else.
    """

    def __init__(
        self, dataset, batch_size=1, shuffle=False, drop_last=False, transform=None, rng=None
    ):
        if not all(hasattr(dataset, name) for name in ("images", "labels", "maximum")):
            raise TypeError(
                f"DataLoader: expected a Dataset, got {type(dataset).__name__} "
                "(tinybnn.datasets.from_arrays makes one from arrays)"
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, Integral):
            raise TypeError(f"DataLoader: batch_size must be an integer, got {batch_size!r}")
        if batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be >= 1, got {batch_size}")
        for name, value in (("shuffle", shuffle), ("drop_last", drop_last)):
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"DataLoader: {name} must be True or False, got {value!r}")
        if transform is not None and not callable(transform):
            raise TypeError(f"DataLoader: transform must be callable, got {transform!r}")
        self.dataset = dataset
        self.batch_size = int(batch_size)
        self.shuffle = bool(shuffle)
        self.drop_last = bool(drop_last)
        self.transform = to_signed(dataset.maximum) if transform is None else transform
        # None stays None, so that a seed set after this line still counts.
        self.rng = None if rng is None else as_generator(rng, "DataLoader")

    def __len__(self):
        """Number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset.labels), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self):
        count = len(self.dataset.labels)
        pixels = self.dataset.images.transpose(0, 2, 3, 1)  # (N, H, W, C), contiguous
        rng = as_generator(self.rng, "DataLoader")
        order = rng.permutation(count) if self.shuffle else None
        for batch in range(len(self)):
            rows = slice(batch * self.batch_size, min((batch + 1) * self.batch_size, count))
            if order is not None:
                rows = order[rows]
            images = pixels[rows].transpose(0, 3, 1, 2)  # (B, C, H, W)
            x = self.transform(images, rng)
            yield _channels_last(x, len(images)), self.dataset.labels[rows].copy()

    def __repr__(self):
        return (
            f"DataLoader({self.dataset!r}, batch_size={self.batch_size}, shuffle={self.shuffle}, "
            f"drop_last={self.drop_last})"
        )


def _channels_last(x, count):
    """A transform's result, checked, with channels last in memory (copied only if they are not)."""
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 4 or len(x) != count:
        found = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(
            f"DataLoader: the transform must return a float32 array ({count}, C, H, W), got {found}"
        )
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def as_generator(rng, where):
    """A numpy.random.Generator from a Generator, a seed, or None: the default generator.

    The default generator is the one that layers draw from too; `tinybnn.manual_seed` restarts it.
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
