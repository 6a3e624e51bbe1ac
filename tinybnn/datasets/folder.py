"""A dataset from a folder of pictures, one subfolder for each class."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinybnn.datasets.dataset import Dataset
from tinybnn.datasets.files import DatasetError, open_data
from tinybnn.datasets.transforms import pair_of_sizes

# Pillow detects formats by content. Only these decoders are allowed: some others run programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# A photograph unpacks to 10 to 30 times its JPEG file, small or plain pictures to more; a much
# larger ratio means a decompression bomb.
_MAX_RATIO, _FREE = 32, 1 << 25


def from_folder(
    root: str | os.PathLike[str],
    size: int | tuple[int, int] | None = None,
    classes: Iterable[str] | None = None,
    mode: str = "RGB",
) -> Dataset:
    """Make a Dataset from pictures stored as ``root/<class>/<picture>``.

    Classes and pictures are taken in the order of their names. Pictures are the files that end in
    .png, .jpg, .jpeg, .bmp, .gif (the first frame), .webp, .tif, .tiff, .pgm or .ppm; other files
    and names that begin with a dot are ignored. Photographs are rotated as their EXIF data says.

    Parameters
    ----------
    root : str or PathLike
    size : (int, int) or int, optional
        Height and width to which pictures are scaled (bilinear, the ratio of the sides is not
        kept); an int for a square. Without it all pictures must have the same size.
    classes : sequence of str, optional
        Names of subfolders, in the order of their labels; others are ignored. Pass the training
        set's classes if the test set may lack one. Default: all subfolders.
    mode : "RGB" or "L"
        Three channels, or one of grey values.

    Returns
    -------
    Dataset
        images (N, 3 or 1, H, W) uint8 from 0 to 255, labels (N,) int64.

    Raises
    ------
    TypeError, ValueError
        For other arguments.
    DatasetError
        If there are no classes, if a class has no pictures, or if a picture cannot be read, differs
        in size, has transparent or 16-bit pixels, or unpacks to far more than pictures do. It names
        the folder or file.
    OSError
        If a folder or file cannot be opened.

    Examples
    --------
    >>> train = from_folder("animals/train", size=(32, 32))  # doctest: +SKIP
    >>> test = from_folder("animals/test", (32, 32), train.classes)  # doctest: +SKIP
    """
    if mode not in ("RGB", "L"):
        raise ValueError(f"from_folder: mode must be 'RGB' or 'L', got {mode!r}")
    if size is not None:
        size = pair_of_sizes("from_folder", size)
    root = Path(os.path.expanduser(root))
    classes = _classes(root, classes)
    files, labels = [], []
    for label, name in enumerate(classes):
        pictures = sorted(
            entry.name
            for entry in os.scandir(root / name)
            if entry.name.lower().endswith(_SUFFIXES)
            and not entry.name.startswith(".")
            and entry.is_file()
        )
        if not pictures:
            raise DatasetError(f"{root / name}: no pictures ({', '.join(_SUFFIXES)})")
        files += [root / name / picture for picture in pictures]
        labels += [label] * len(pictures)

    channels = len(mode)  # "L" or "RGB"
    height, width = size or read_picture(files[0], None, mode).shape[:2]
    if size is None:
        needed = len(files) * height * width * channels
        _check_memory(root, needed, sum(map(os.path.getsize, files)))
    pixels = np.empty((len(files), height, width, channels), np.uint8)
    for i, file in enumerate(files):
        picture = read_picture(file, size, mode)  # (H, W) or (H, W, C)
        if picture.shape[:2] != (height, width):
            raise DatasetError(
                f"{file}: {picture.shape[1]}×{picture.shape[0]} pixels, but {files[0]} has "
                f"{width}×{height}; pass size to scale them"
            )
        pixels[i] = picture.reshape(height, width, channels)
    name = root.resolve().name or "folder"
    return Dataset(pixels.transpose(0, 3, 1, 2), np.array(labels, np.int64), classes, name)


def _classes(root: Path, chosen: Iterable[str] | None) -> tuple[str, ...]:
    """The names of the class folders, in the order of their labels."""
    with os.scandir(root) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if chosen is None:
        if not folders:
            raise DatasetError(f"{root}: no folders of classes; expected {root}/<class>/<picture>")
        return tuple(folders)
    if isinstance(chosen, str) or not all(isinstance(name, str) for name in chosen):
        raise TypeError(f"from_folder: classes must be a sequence of names, got {chosen!r}")
    chosen = tuple(chosen)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"from_folder: classes must be different names, got {chosen!r}")
    if missing := [name for name in chosen if name not in folders]:
        raise DatasetError(f"{root}: no folder for the class {', '.join(map(repr, missing))}")
    return chosen


def read_picture(
    file: str | os.PathLike[str], size: tuple[int, int] | None, mode: str
) -> NDArray[np.uint8]:
    """Read the pixels of a picture file.

    Parameters
    ----------
    file : path
        PNG, JPEG or another of the formats of `from_folder`.
    size : (int, int) or None
        Height and width to scale it to.
    mode : "L" or "RGB"
        Gray or colour.

    Returns
    -------
    (H, W) or (H, W, 3) uint8

    Raises
    ------
    DatasetError
        If it is not a readable picture of 8 bits a channel, has transparent pixels, or would unpack
        to far more than photographs do (checked before it is unpacked).
    """
    from PIL import Image, ImageOps

    def read(picture: Any) -> NDArray[np.uint8]:

        if picture.mode.startswith(("I", "F")):
            raise DatasetError(f"has {picture.mode} pixels; convert it to 8 bits a channel")
        ImageOps.exif_transpose(picture, in_place=True)  # upright, as the camera was held
        if picture.has_transparency_data:
            alpha = picture.convert("RGBA").getchannel("A")
            if alpha.getextrema()[0] < 255:
                raise DatasetError("has transparent pixels; put it on a background first")
        if size is not None and picture.size != size[::-1]:
            picture = picture.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(picture.convert(mode))

    return _decode(file, read)


def _decode(
    path: str | os.PathLike[str], read: Callable[[Any], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Open a picture and return the result of `read`; every error names the file."""
    from PIL import Image, UnidentifiedImageError

    with open_data(path) as (file, size), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about oddities that do no harm
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            # From memory, where reading a made-up length allocates nothing.
            with Image.open(io.BytesIO(file.read()), formats=_FORMATS) as picture:
                # Pillow stores a pixel in 4 bytes.
                _check_memory("the picture", 4 * picture.width * picture.height, size)
                return read(picture)
        except DatasetError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise DatasetError(f"too large a picture ({error})") from None
        except UnidentifiedImageError:
            known = ", ".join(_FORMATS)
            raise DatasetError(f"not a readable picture: expected {known}") from None
        except Exception as error:  # damaged files make decoders raise errors of many types
            text = " ".join(str(error).split())[:200]
            raise DatasetError(f"not a readable picture ({type(error).__name__}: {text})") from None


def _check_memory(what: object, needed: int, size: int) -> None:
    if needed > _MAX_RATIO * size + _FREE:
        raise DatasetError(
            f"{what} unpacks to {needed:,} bytes from {size:,}, far more than photographs do"
        )
