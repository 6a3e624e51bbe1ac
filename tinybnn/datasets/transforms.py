"""Transforms: what happens to a batch of images between the dataset and the network.

A transform is a callable (images, rng) -> images. It gets a whole batch (B, C, H, W), leaves it
unchanged and returns a new one, channels-last in memory where it came so. Whatever is random about
it is drawn from `rng`, the generator of the DataLoader, so one seed repeats every batch.

>>> import numpy as np
>>> transform = Compose([RandomShift(1), RandomHorizontalFlip(), to_signed(255)])
>>> x = transform(np.zeros((2, 3, 32, 32), np.uint8), np.random.default_rng(0))
>>> x.shape, x.dtype, x.min(), x.max()
((2, 3, 32, 32), dtype('float32'), np.float32(-1.0), np.float32(-1.0))
"""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np

# ----------------------------------------------------------------------------------- pixel values


def to_signed(maximum):
    """The transform that maps pixels 0 to `maximum` linearly onto [-1, 1].

    Both ends are exact, and the middle goes to 0, where the sign changes.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) float32
    """
    half = _positive("to_signed", maximum) / np.float32(2)
    return _Rescale(f"to_signed({maximum:g})", half, half)


def to_unit(maximum):
    """The transform that maps pixels 0 to `maximum` linearly onto [0, 1]; both ends are exact.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) float32
    """
    return _Rescale(f"to_unit({maximum:g})", np.float32(0), _positive("to_unit", maximum))


class _Rescale:
    """(images - offset) / scale as float32; `name` is what it prints as."""

    def __init__(self, name, offset, scale):
        self.name, self.offset, self.scale = name, offset, scale

    def __call__(self, images, rng):
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


class Normalize:
    """Subtract a mean and divide by a standard deviation, channel by channel.

    Parameters
    ----------
    mean, std : float or sequence of C floats
        In the units of the images that come in: behind ``to_unit(255)``, fractions of white.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) float32

    Raises
    ------
    ValueError
        If a value is not finite, or a standard deviation is not positive; when called, if their
        number does not fit the images.
    """

    def __init__(self, mean, std):
        self.mean, self.std = (np.atleast_1d(np.asarray(v, np.float32)) for v in (mean, std))
        for name, value in (("mean", self.mean), ("std", self.std)):
            if value.ndim != 1 or not np.isfinite(value).all():
                raise ValueError(
                    f"Normalize: {name} must be a finite number or one for each channel, "
                    f"got {value.tolist()}"
                )
        if not (self.std > 0).all():
            raise ValueError(f"Normalize: std must be positive, got {self.std.tolist()}")

    def __call__(self, images, rng):
        check_images("Normalize", images)
        for name, value in (("mean", self.mean), ("std", self.std)):
            if len(value) not in (1, images.shape[1]):
                raise ValueError(
                    f"Normalize: {name} has {len(value)} values, the images have "
                    f"{images.shape[1]} channels (shape {images.shape})"
                )
        x = images.astype(np.float32)
        x -= self.mean[:, None, None]
        x /= self.std[:, None, None]
        return x

    def __repr__(self):
        return f"Normalize(mean={self.mean.tolist()}, std={self.std.tolist()})"


# -------------------------------------------------------------------------------- moving pixels


class RandomCrop:
    """Cut a window out of each image, at a place drawn for each.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the window; an int for a square.
    padding : int
        Width of the border that is put around each image first.
    fill : float
        The border's value. 0, the default, is black in the pixels of a dataset, so crop before
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

    def __init__(self, size, padding=0, fill=0):
        self.size = pair_of_sizes("RandomCrop", size)
        self.padding = whole("RandomCrop", "padding", padding)
        self.fill = fill

    def __call__(self, images, rng):
        check_images("RandomCrop", images)
        height, width = self.size
        if (
            images.shape[2] + 2 * self.padding < height
            or images.shape[3] + 2 * self.padding < width
        ):
            raise ValueError(
                f"RandomCrop: a window of {height}×{width} does not fit into images of shape "
                f"{images.shape} with padding {self.padding}"
            )
        return _windows(images, rng, self.size, self.padding, self.fill)

    def __repr__(self):
        return f"RandomCrop(size={self.size}, padding={self.padding}, fill={self.fill})"


class RandomShift:
    """Move each image by up to `pixels` in both directions; `fill` comes in from the border.

    Every whole number of pixels from -`pixels` to `pixels` is equally likely, up and down and to
    the sides independently: ``RandomCrop((H, W), padding=pixels)`` for any size of image.

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

    def __init__(self, pixels, fill=0):
        self.pixels = whole("RandomShift", "pixels", pixels)
        self.fill = fill

    def __call__(self, images, rng):
        check_images("RandomShift", images)
        return _windows(images, rng, images.shape[2:], self.pixels, self.fill)

    def __repr__(self):
        return f"RandomShift({self.pixels}, fill={self.fill})"


class RandomHorizontalFlip:
    """Mirror each image, left to right, with probability `p`.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) of the same dtype
    """

    def __init__(self, p=0.5):
        if isinstance(p, (bool, np.bool_)) or not isinstance(p, Real) or not 0 <= p <= 1:
            raise ValueError(f"RandomHorizontalFlip: p must be a probability, got {p!r}")
        self.p = float(p)

    def __call__(self, images, rng):
        check_images("RandomHorizontalFlip", images)
        flip = rng.random(len(images)) < self.p  # (B,)
        pixels = images.transpose(0, 2, 3, 1).copy()  # (B, H, W, C)
        pixels[flip] = pixels[flip, :, ::-1]
        return pixels.transpose(0, 3, 1, 2)

    def __repr__(self):
        return f"RandomHorizontalFlip(p={self.p})"


class Compose:
    """Transforms one after the other.

    Parameters
    ----------
    transforms : sequence of callables (images, rng) -> images
        For a DataLoader the last one must return float32.
    """

    def __init__(self, transforms):
        self.transforms = list(transforms)
        for transform in self.transforms:
            if not callable(transform):
                raise TypeError(f"Compose: expected callables (images, rng), got {transform!r}")

    def __call__(self, images, rng):
        for transform in self.transforms:
            images = transform(images, rng)
        return images

    def __repr__(self):
        names = [getattr(t, "__qualname__", "").split(".")[0] or repr(t) for t in self.transforms]
        return f"Compose([{', '.join(names)}])"


def _windows(images, rng, size, padding, fill):
    """A window of each padded image (B, C, H, W), at a place drawn for each: (B, C, *size)."""
    pixels = images.transpose(0, 2, 3, 1)  # (B, H, W, C)
    if padding:
        count, height, width, channels = pixels.shape
        shape = (count, height + 2 * padding, width + 2 * padding, channels)
        padded = np.full(shape, fill, images.dtype) if fill else np.zeros(shape, images.dtype)
        padded[:, padding : padding + height, padding : padding + width] = pixels
        pixels = padded
    # Every window as a view, (B, rows, columns, C, *size); picking one each copies whole rows.
    views = np.lib.stride_tricks.sliding_window_view(pixels, size, axis=(1, 2))
    views = views.transpose(0, 1, 2, 4, 5, 3)  # (B, rows, columns, *size, C)
    rows, columns = (rng.integers(0, n, len(pixels)) for n in views.shape[1:3])
    return views[np.arange(len(pixels)), rows, columns].transpose(0, 3, 1, 2)


def check_images(where, images):
    """Raise a ValueError unless images are an array (B, C, H, W)."""
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        found = f"shape {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"{where}: images must be an array (B, C, H, W), got {found}")


def whole(where, name, value, least=0):
    """An int of at least `least`, checked."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise TypeError(f"{where}: {name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{where}: {name} must be >= {least}, got {value}")
    return int(value)


def pair_of_sizes(where, size):
    """(height, width) from such a pair or an int, checked."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"{where}: size must be an int or (height, width), got {size!r}")
    return tuple(whole(where, "size", value, least=1) for value in pair)
