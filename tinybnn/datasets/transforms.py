"""Transforms of batches of images, between the dataset and the network.

A transform is a callable (images, rng) -> images. It gets a whole batch (B, C, H, W), leaves it
unchanged and returns a new one, channels-last in memory if the input is. Random numbers are drawn
from `rng`, the generator of the DataLoader, so one seed repeats every batch.

>>> import numpy as np
>>> transform = Compose([RandomShift(1), RandomHorizontalFlip(), to_signed(255)])
>>> x = transform(np.zeros((2, 3, 32, 32), np.uint8), np.random.default_rng(0))
>>> x.shape, x.dtype, x.min(), x.max()
((2, 3, 32, 32), dtype('float32'), np.float32(-1.0), np.float32(-1.0))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from tinybnn.typing import Array, FloatArray

Transform: TypeAlias = Callable[[Array, np.random.Generator | None], Array]

# ----------------------------------------------------------------------------------- pixel values


def to_signed(maximum: float) -> Transform:
    """Make the transform that maps pixels 0 to `maximum` linearly onto [-1, 1].

    Both ends are exact, and the middle goes to 0, where the sign changes.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) float32
    """
    half = _positive("to_signed", maximum) / np.float32(2)
    return _Rescale(f"to_signed({maximum:g})", half, half)


def to_unit(maximum: float) -> Transform:
    """Make the transform that maps pixels 0 to `maximum` linearly onto [0, 1]; both ends are exact.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) float32
    """
    return _Rescale(f"to_unit({maximum:g})", np.float32(0), _positive("to_unit", maximum))


class _Rescale:
    """(images - offset) / scale as float32; `name` is its repr."""

    def __init__(self, name, offset, scale):
        self.name, self.offset, self.scale = name, offset, scale

    def __call__(self, images, rng=None):
        x = images.astype(np.float32)
        if self.offset:
            x -= self.offset  # first, since it is exact for 8-bit images: symmetry is kept
        x /= self.scale
        return x

    def __repr__(self):
        return self.name


def _positive(where, maximum):
    value = np.float32(maximum)
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{where}: maximum must be positive and finite, got {maximum!r}")
    return value


class ImageTransform:
    """Base of the transforms of images.

    A subclass defines ``_changed(pixels, rng)`` for pixels (B, H, W, C); its attributes are its
    arguments.
    """

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """Transform images (B, C, H, W) to a new batch, channels-last in memory."""
        if not isinstance(images, np.ndarray) or images.ndim != 4:
            is_array = isinstance(images, np.ndarray)
            got = f"shape {images.shape}" if is_array else type(images).__name__
            raise ValueError(
                f"{type(self).__name__}: images must be an array (B, C, H, W), got {got}"
            )
        return self._changed(images.transpose(0, 2, 3, 1), rng).transpose(0, 3, 1, 2)

    def _changed(self, pixels: Array, rng: np.random.Generator) -> Array:
        """Transform pixels (B, H, W, C) to a new array (B, H', W', C)."""
        raise NotImplementedError

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class Normalize(ImageTransform):
    """Subtract a mean and divide by a standard deviation, channel by channel.

    Parameters
    ----------
    mean, std : float or sequence of C floats
        In the units of the input images: after ``to_unit(255)``, fractions of white.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) float32

    Raises
    ------
    ValueError
        If a value is not finite, or a standard deviation is not positive; when called, if there
        are not as many as channels.
    """

    mean: FloatArray
    std: FloatArray

    def __init__(self, mean: ArrayLike, std: ArrayLike) -> None:
        self.mean, self.std = (np.atleast_1d(np.asarray(v, np.float32)) for v in (mean, std))
        for name, value in (("mean", self.mean), ("std", self.std)):
            if value.ndim != 1 or not np.isfinite(value).all():
                raise ValueError(
                    f"Normalize: {name} must be a finite number or one for each channel, "
                    f"got {value.tolist()}"
                )
        if not (self.std > 0).all():
            raise ValueError(f"Normalize: std must be positive, got {self.std.tolist()}")

    def _changed(self, pixels: Array, rng: np.random.Generator | None) -> Array:
        channels = pixels.shape[3]
        for name, value in (("mean", self.mean), ("std", self.std)):
            if len(value) not in (1, channels):
                raise ValueError(
                    f"Normalize: {name} has {len(value)} values, the images have {channels} "
                    f"channels (pixels {pixels.shape})"
                )
        x = pixels.astype(np.float32)
        x -= self.mean
        x /= self.std
        return x

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean.tolist()}, std={self.std.tolist()})"


# -------------------------------------------------------------------------------- moving pixels


class RandomCrop(ImageTransform):
    """Cut a window out of each image, at a place drawn for each.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the window; an int for a square.
    padding : int
        Width of the border that is put around each image first.
    fill : float
        Value of the border. 0, the default, is black in the pixels of a dataset, so crop before
        `to_signed`, where black is -1.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, *size) of the same dtype

    Raises
    ------
    TypeError, ValueError
        For other arguments; when called, if the window is larger than the padded images.
    """

    def __init__(self, size: int | tuple[int, int], padding: int = 0, fill: float = 0) -> None:
        self.size: tuple[int, int] = pair_of_sizes("RandomCrop", size)
        self.padding: int = whole("RandomCrop", "padding", padding)
        self.fill: float = fill

    def _changed(self, pixels: Array, rng: np.random.Generator) -> Array:
        room = [n + 2 * self.padding for n in pixels.shape[1:3]]
        if room[0] < self.size[0] or room[1] < self.size[1]:
            raise ValueError(
                f"RandomCrop: a window of {self.size[0]}×{self.size[1]} does not fit into images "
                f"of shape {(*pixels.shape[1:3],)} with padding {self.padding}"
            )
        return _windows(pixels, rng, self.size, self.padding, self.fill)


class RandomShift(ImageTransform):
    """Move each image by up to `pixels` in both directions; `fill` comes in from the border.

    Every whole number of pixels from -`pixels` to `pixels` is equally likely, vertically and
    horizontally, independently: ``RandomCrop((H, W), padding=pixels)`` for any size of image.

    Parameters
    ----------
    pixels : int
    fill : float
        0, the default, is black in the pixels of a dataset, so shift before `to_signed`.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) of the same dtype
    """

    def __init__(self, pixels: int, fill: float = 0) -> None:
        self.pixels: int = whole("RandomShift", "pixels", pixels)
        self.fill: float = fill

    def _changed(self, pixels: Array, rng: np.random.Generator) -> Array:
        return _windows(pixels, rng, pixels.shape[1:3], self.pixels, self.fill)


class RandomHorizontalFlip(ImageTransform):
    """Mirror each image, left to right, with probability `p`.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) of the same dtype
    """

    def __init__(self, p: float = 0.5) -> None:
        if isinstance(p, (bool, np.bool_)) or not isinstance(p, Real) or not 0 <= p <= 1:
            raise ValueError(f"RandomHorizontalFlip: p must be a probability, got {p!r}")
        self.p: float = float(p)

    def _changed(self, pixels: Array, rng: np.random.Generator) -> Array:
        flip = rng.random(len(pixels)) < self.p  # (B,)
        pixels = pixels.copy()
        pixels[flip] = pixels[flip, :, ::-1]
        return pixels


class Compose:
    """Apply transforms one after the other.

    Parameters
    ----------
    transforms : sequence of callables (images (B, C, H, W), rng) -> images
        For a DataLoader the last one must return float32.
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        self.transforms: list[Transform] = list(transforms)
        for transform in self.transforms:
            if not callable(transform):
                raise TypeError(f"Compose: expected callables (images, rng), got {transform!r}")

    def __call__(self, images: Array, rng: np.random.Generator | None) -> Array:
        """Transform images (B, C, H, W) by one transform after the other."""
        for transform in self.transforms:
            images = transform(images, rng)
        return images

    def __repr__(self) -> str:
        names = [getattr(t, "__qualname__", "").split(".")[0] or repr(t) for t in self.transforms]
        return f"Compose([{', '.join(names)}])"


def _windows(pixels, rng, size, padding, fill):
    """A window of each padded image (B, H, W, C), at a place drawn for each: (B, *size, C)."""
    if padding:
        count, height, width, channels = pixels.shape
        shape = (count, height + 2 * padding, width + 2 * padding, channels)
        padded = np.full(shape, fill, pixels.dtype) if fill else np.zeros(shape, pixels.dtype)
        padded[:, padding : padding + height, padding : padding + width] = pixels
        pixels = padded
    # Every window as a view, (B, rows, columns, C, *size); picking one each copies whole rows.
    views = np.lib.stride_tricks.sliding_window_view(pixels, size, axis=(1, 2))
    views = views.transpose(0, 1, 2, 4, 5, 3)  # (B, rows, columns, *size, C)
    rows, columns = (rng.integers(0, n, len(pixels)) for n in views.shape[1:3])
    return views[np.arange(len(pixels)), rows, columns]


def whole(where: str, name: str, value: Any, least: int = 0) -> int:
    """Check that a value is an integer of at least `least`, and return it as an int."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise TypeError(f"{where}: {name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{where}: {name} must be >= {least}, got {value}")
    return int(value)


def pair_of_sizes(where: str, size: Any) -> tuple[int, int]:
    """Check a pair (height, width) or an int, and return the pair."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"{where}: size must be an int or (height, width), got {size!r}")
    return tuple(whole(where, "size", value, least=1) for value in pair)
