"""A dataset from a folder of pictures, one subfolder for each class."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np

from tinybnn.datasets.dataset import Dataset
from tinybnn.datasets.files import DatasetError, open_data
from tinybnn.datasets.transforms import pair_of_sizes

# Pillow opens files by their content. Only these decoders may see them: there are others that run
# programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# A photograph unpacks to some 10 to 30 times its JPEG file, small or plain pictures to more. What
# unpacks to much more than that is made to fill the memory.
_MAX_RATIO, _FREE = 32, 1 << 25


def from_folder(root, size=None, classes=None, mode="RGB"):
    """A Dataset from pictures that lie as ``root/<class>/<picture>``.

    Classes and pictures are taken in the order of their names. Pictures are the files that end in
    .png, .jpg, .jpeg, .bmp, .gif (the first frame), .webp, .tif, .tiff, .pgm or .ppm; other files
    and names that begin with a dot are passed over. Photographs are turned upright as their EXIF
    data says.

    Parameters
    ----------
    root : str or PathLike
    size : (int, int) or int, optional
        Height and width to which pictures are scaled (bilinear, the ratio of the sides is not
        kept); an int for a square. Without it all pictures must be of one size.
    classes : sequence of str, optional
        Names of subfolders, in the order of their labels; others are passed over. Pass the training
        set's here when the test set may lack a class. Default: all subfolders.
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
    if size is None:
        height, width = _size_of(files[0])
        _check_memory(
            root, len(files) * height * width * channels, sum(map(os.path.getsize, files))
        )
    else:
        height, width = size
    pixels = np.empty((len(files), height, width, channels), np.uint8)
    for i, file in enumerate(files):
        picture = read_picture(file, size, mode)  # (H, W) or (H, W, C)
        if picture.shape[:2] != (height, width):
            found, first = (f"{w}×{h}" for h, w in (picture.shape[:2], (height, width)))
            raise DatasetError(
                f"{file}: {found} pixels, but {files[0]} has {first}; pass size to scale them"
            )
        pixels[i] = picture.reshape(height, width, channels)
    name = root.resolve().name or "folder"
    return Dataset(pixels.transpose(0, 3, 1, 2), np.array(labels, np.int64), classes, name)


def _classes(root, chosen):
    """The names of the class folders, in the order of their labels."""
    with os.scandir(root) as entries:
        found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if chosen is None:
        if not found:
            raise DatasetError(f"{root}: no folders of classes; expected {root}/<class>/<picture>")
        return tuple(found)
    if isinstance(chosen, str) or not all(isinstance(name, str) for name in chosen):
        raise TypeError(f"from_folder: classes must be a sequence of names, got {chosen!r}")
    chosen = tuple(chosen)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"from_folder: classes must be different names, got {chosen!r}")
    if missing := [name for name in chosen if name not in found]:
        raise DatasetError(f"{root}: no folder for the class {', '.join(map(repr, missing))}")
    return chosen


def _size_of(file):
    """Height and width of a picture."""
    return _decode(file, lambda picture: _upright(picture, pixels=False))


def read_picture(file, size, mode):
    """The pixels of a picture file.

    Parameters
    ----------
    file : path
        PNG, JPEG or another format that stands in this file.
    size : (int, int) or None
        Height and width to scale it to.
    mode : "L" or "RGB"
        Gray or colours.

    Returns
    -------
    (H, W) or (H, W, 3) uint8

    Raises
    ------
    DatasetError
        If it is not a readable picture of 8 bits a channel, has transparent pixels, or would unpack
        to far more than photographs do (which is seen before it is unpacked).
    """

    def read(picture):
        from PIL import Image

        if picture.mode.startswith(("I", "F")):
            raise DatasetError(f"has {picture.mode} pixels; convert it to 8 bits a channel")
        picture = _upright(picture)
        if picture.has_transparency_data:
            alpha = picture.convert("RGBA").getchannel("A")
            if alpha.getextrema()[0] < 255:
                raise DatasetError("has transparent pixels; put it on a background first")
        if size is not None and picture.size != size[::-1]:
            picture = picture.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(picture.convert(mode))

    return _decode(file, read)


def _upright(picture, pixels=True):
    """The picture as the camera's EXIF entry says; or only its (height, width)."""
    from PIL import ExifTags, ImageOps

    if pixels:
        ImageOps.exif_transpose(picture, in_place=True)
        return picture
    turned = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # by 90 degrees
    return picture.size if turned else picture.size[::-1]


def _decode(path, read):
    """What `read` makes of an opened picture; all that goes wrong names the file."""
    from PIL import Image, UnidentifiedImageError

    with open_data(path) as (file, size), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd about a picture, but does no harm
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            # From memory, where reading a length that a file makes up takes none.
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
        except Exception as error:  # decoders of damaged files raise whatever they stumble over
            text = " ".join(str(error).split())[:200]
            raise DatasetError(f"not a readable picture ({type(error).__name__}: {text})") from None


def _check_memory(what, needed, size):
    if needed > _MAX_RATIO * size + _FREE:
        raise DatasetError(
            f"{what} unpacks to {needed:,} bytes from {size:,}, far more than photographs do"
        )
