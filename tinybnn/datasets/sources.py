"""Datasets by name: what they are, where their files lie and how they are read."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinybnn.datasets.cifar import parse_binary10, parse_binary100, parse_python, read_cifar
from tinybnn.datasets.dataset import Dataset
from tinybnn.datasets.files import DatasetError
from tinybnn.datasets.idx import read_idx


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset lies on the disk.

    Attributes
    ----------
    files : tuple of str
        The files that make the dataset; dots, dashes and capitals in their names may differ.
    read : callable
        Takes the paths of `files` in order; returns the training and the test arrays, each as
        (images (N, C, H, W) uint8, labels (N,) int64).
    folder : str
        The folder that an official archive unpacks to. The files are looked for beside it, too.
    gzipped : bool
        Each file may lie there as ``<file>.gz`` instead.
    """

    files: tuple[str, ...]
    read: Callable
    folder: str = ""
    gzipped: bool = False


@dataclass(frozen=True)
class Source:
    """What is known about a dataset before its files are read.

    Attributes
    ----------
    classes : tuple of str
    image_shape : (C, H, W)
    layouts : tuple of Layout
        The first that is complete is read.
    size : (int, int)
        Number of training and test images.
    origin : str
        Where it comes from.
    licence : str
    maximum : float
        The value of a white pixel.
    folder : str
        The folder of its files, if it is not called like the dataset.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    layouts: tuple[Layout, ...]
    size: tuple[int, int]
    origin: str
    licence: str
    maximum: float = 255
    folder: str = ""


# ------------------------------------------------------------------------------------ MNIST-likes


def _read_mnist_like(paths, upright=True, first_label=0):
    """Images and labels for training, then for testing, one IDX file each."""
    arrays = []
    for path, ndim in zip(paths, (3, 1, 3, 1), strict=True):
        array = read_idx(path)
        if array.dtype != np.uint8 or array.ndim != ndim:
            raise DatasetError(f"{path}: expected {ndim}-d uint8, got {array.ndim}-d {array.dtype}")
        if ndim == 1:
            arrays.append(array.astype(np.int64) - first_label)
        else:
            arrays.append((array if upright else _transposed(array))[:, None])
    return arrays[:2], arrays[2:]


def _transposed(images):
    """Rows and columns of (N, H, W) exchanged; square images within their own memory."""
    if images.shape[1] != images.shape[2]:
        return images.transpose(0, 2, 1)
    for start in range(0, len(images), 1024):
        part = images[start : start + 1024]
        part[:] = part.transpose(0, 2, 1).copy()
    return images


_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_HIRAGANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_UPPER, _LOWER = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), tuple("abcdefghijklmnopqrstuvwxyz")
_MERGED = (*_DIGITS, *_UPPER, *"abdefghnqrt")  # the other small letters count as capitals

_MNIST = Layout(
    (
        "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
    ),
    _read_mnist_like,
    gzipped=True,
)  # fmt: skip


def _emnist(split, classes, size, first_label=0):
    """EMNIST stores images with rows and columns exchanged; here they are upright."""
    files = (f"emnist-{split}-{part}" for part in EMNIST_PARTS)
    read = functools.partial(_read_mnist_like, upright=False, first_label=first_label)
    return Source(
        classes,
        (1, 28, 28),
        (Layout(tuple(files), read, "gzip", gzipped=True),),
        size,
        "https://www.nist.gov/itl/products-and-services/emnist-dataset",
        "none stated; cite Cohen et al., 2017 (arXiv:1702.05373)",
        folder="emnist",
    )


EMNIST_PARTS = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "test-images-idx3-ubyte", "test-labels-idx1-ubyte",
)  # fmt: skip


# ------------------------------------------------------------------------------------------ CIFAR


def _cifar(number, train, test, parse_binary, classes):
    def layouts():
        for kind, folder, ending, parse in (
            ("binary", "batches-bin" if number == 10 else "binary", ".bin", parse_binary),
            ("python", "batches-py" if number == 10 else "python", "", parse_python),
        ):
            parts = [tuple(f"{name}{ending}" for name in names) for names in (train, test)]
            read = functools.partial(read_cifar, train=parts[0], test=parts[1], parse=parse)
            yield Layout((*parts[0], *parts[1]), read, f"cifar-{number}-{folder}")
            yield Layout((f"cifar-{number}-{kind}.tar",), read, gzipped=True)

    return Source(
        classes,
        (3, 32, 32),
        tuple(layouts()),
        (50_000, 10_000),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "none stated; cite Krizhevsky, 2009 (Learning Multiple Layers of Features)",
    )


_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


# -------------------------------------------------------------------------------------- the table

SOURCES = {
    "digits": Source(
        _DIGITS, (1, 8, 8), (_MNIST,), (1437, 360), "https://archive.ics.uci.edu/dataset/80",
        "CC BY 4.0", maximum=16,
    ),
    "mnist": Source(
        _DIGITS, (1, 28, 28), (_MNIST,), (60_000, 10_000), "http://yann.lecun.com/exdb/mnist/",
        "CC BY-SA 3.0",
    ),
    "fashion-mnist": Source(
        _FASHION, (1, 28, 28), (_MNIST,), (60_000, 10_000),
        "https://github.com/zalandoresearch/fashion-mnist", "MIT",
    ),
    "kmnist": Source(
        _HIRAGANA, (1, 28, 28), (_MNIST,), (60_000, 10_000),
        "http://codh.rois.ac.jp/kmnist/", "CC BY-SA 4.0",
    ),
    "emnist-balanced": _emnist("balanced", _MERGED, (112_800, 18_800)),
    "emnist-byclass": _emnist("byclass", (*_DIGITS, *_UPPER, *_LOWER), (697_932, 116_323)),
    "emnist-bymerge": _emnist("bymerge", _MERGED, (697_932, 116_323)),
    "emnist-digits": _emnist("digits", _DIGITS, (240_000, 40_000)),
    "emnist-letters": _emnist("letters", _UPPER, (124_800, 20_800), first_label=1),
    "emnist-mnist": _emnist("mnist", _DIGITS, (60_000, 10_000)),
    "cifar10": _cifar(
        10, [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], parse_binary10,
        _CIFAR10,
    ),
    "cifar100": _cifar(100, ["train"], ["test"], parse_binary100, tuple(_CIFAR100.split())),
}  # fmt: skip


# --------------------------------------------------------------------------------- finding, reading


def load(name, root=None):
    """Load a dataset by name.

    ================  ===========  =======  =======  =======  =====================================
    name              image        classes    train     test  classes are
    ================  ===========  =======  =======  =======  =====================================
    digits            (1, 8, 8)         10    1,437      360  digits; pixels from 0 to 16; bundled
    mnist             (1, 28, 28)       10   60,000   10,000  digits
    fashion-mnist     (1, 28, 28)       10   60,000   10,000  clothes
    kmnist            (1, 28, 28)       10   60,000   10,000  hiragana
    emnist-balanced   (1, 28, 28)       47  112,800   18,800  digits, letters of two shapes twice
    emnist-byclass    (1, 28, 28)       62  697,932  116,323  digits, capitals, small letters
    emnist-bymerge    (1, 28, 28)       47  697,932  116,323  as emnist-balanced
    emnist-digits     (1, 28, 28)       10  240,000   40,000  digits
    emnist-letters    (1, 28, 28)       26  124,800   20,800  letters, large and small as one
    emnist-mnist      (1, 28, 28)       10   60,000   10,000  digits
    cifar10           (3, 32, 32)       10   50,000   10,000  animals and vehicles
    cifar100          (3, 32, 32)      100   50,000   10,000  the fine labels
    ================  ===========  =======  =======  =======  =====================================

    Images are uint8 from 0 to 255 (digits: 16), labels int64 from 0. EMNIST's files hold images
    with rows and columns exchanged, and letters counted from 1: both are put right.

    Parameters
    ----------
    name : str
        A key of `SOURCES`.
    root : str or PathLike, optional
        A folder that holds the dataset's files, or a folder `name` with them. If given, nothing
        else is searched; `search_folders` lists where a dataset is looked for otherwise. Names may
        be those of other loaders: ``train-images.idx3-ubyte``, ``MNIST/raw``,
        ``cifar-10-batches-py``.

    Returns
    -------
    train, test : Dataset

    Raises
    ------
    ValueError
        For an unknown name.
    FileNotFoundError
        If no folder has the files; it lists the folders and the command that downloads them.
    DatasetError
        If the files are damaged or hold something else.
    """
    source = known_source(name, "load")
    _, layout, paths = _find(name, root)
    train, test = layout.read(paths)
    return _checked(name, source, train, paths[0]), _checked(name, source, test, paths[-1])


def path(name, root=None):
    """The folder in which `load` finds a dataset.

    Same parameters and errors as `load`; the files are not read.

    Returns
    -------
    pathlib.Path
    """
    known_source(name, "path")
    return _find(name, root)[0]


def search_folders(name, root=None):
    """The folders in which `load` looks for a dataset, in order.

    Only `root` and ``root/name`` if `root` is given. Otherwise ``$TINYBNN_DATA/name``, the user's
    cache (``$XDG_CACHE_HOME/tinybnn/name``, by default ``~/.cache/tinybnn/name``), the data
    installed with the package, and the ``data`` folder beside the package in a checkout. All parts
    of EMNIST also lie together in folders called ``emnist``.

    Returns
    -------
    list of pathlib.Path
    """
    names = [name]
    if (source := SOURCES.get(name)) and source.folder:
        names.append(source.folder)
    if root is not None:
        root = Path(os.path.expanduser(root))
        return [root, *(root / n for n in names)]
    package = Path(__file__).resolve().parents[1]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    bases = [Path(cache, "tinybnn"), package / "data", package.parent / "data"]
    if data := os.environ.get("TINYBNN_DATA"):
        bases.insert(0, Path(os.path.expanduser(data)))
    return [base / n for base in bases for n in names]


def known_source(name, where):
    """The entry of `SOURCES`, or a ValueError that lists the names."""
    if not isinstance(name, str) or name not in SOURCES:
        raise ValueError(f"{where}: unknown dataset {name!r}; known are {', '.join(SOURCES)}")
    return SOURCES[name]


def _find(name, root):
    """The first folder that has a whole layout: folder, layout, the paths of its files."""
    searched, folders = [], search_folders(name, root)
    for folder in folders:
        most, missing = 0, []  # of the layout of which most is there
        for place, layout in _places(folder, name, beside=root is None):
            names = _files(place)
            paths = [_existing(place, names, file, layout.gzipped) for file in layout.files]
            if None not in paths:
                found = next((f for f in folders[::-1] if place.is_relative_to(f)), place)
                return found, layout, paths
            if (found := len(paths) - paths.count(None)) > most:
                most = found
                files = zip(layout.files, paths, strict=True)
                missing = [_shown(file, layout) for file, path in files if path is None]
        searched.append(f"  {folder} ({_seen(folder, missing, root is None)})")
    wanted = " or ".join(map(_shown_files, SOURCES[name].layouts))
    raise FileNotFoundError(
        f"the dataset {name!r} was not found. Searched:\n"
        + "\n".join(searched)
        + f"\nExpected {wanted}, there or in raw/ or {name}/; dots, dashes and capitals may "
        + f"differ.\n`tinybnn data fetch {name}` downloads it; or set TINYBNN_DATA to a folder "
        + f"that holds {name}/, or pass root."
    )


def mnist_files(folder):
    """The four files of a folder that are named as MNIST's, or as `load` allows.

    Parameters
    ----------
    folder : str or PathLike

    Returns
    -------
    list of pathlib.Path
        Training images and labels, test images and labels.

    Raises
    ------
    FileNotFoundError
        If one is missing; it says what is there instead.
    """
    folder = Path(folder)
    for place in (folder, *_subfolders(folder, {"raw"})):
        names = _files(place)
        paths = [_existing(place, names, file, _MNIST.gzipped) for file in _MNIST.files]
        if None not in paths:
            return paths
    raise FileNotFoundError(
        f"{folder}: expected {_shown_files(_MNIST)}, there or in raw/; {_seen(folder)}"
    )


def _places(folder, name, beside):
    """Where files of a dataset may lie: (folder, layout), the first to be preferred.

    Besides `folder` these are folders in it that archives and other loaders make (``MNIST/raw``);
    with `beside` also folders next to it that say which dataset they hold (``MNIST`` for ``mnist``,
    ``cifar-10-batches-py``), and files that do.
    """
    source, plain = SOURCES[name], _plain(name)
    own = {plain, _plain(source.folder or name)}
    unpacked = {_plain(layout.folder) for layout in source.layouts}
    inside = own | unpacked | {"raw"}
    tops = [folder]
    if beside:
        named = own | {word for word in unpacked if word.startswith(plain)}
        tops += _subfolders(folder.parent, named)
    places = dict.fromkeys(place for top in tops for place in (top, *_below(top, inside)))
    for layout in source.layouts:
        yield from ((place, layout) for place in places)
        if beside and all(_plain(file).startswith(plain) for file in layout.files):
            yield folder.parent, layout


def _below(folder, words):
    """Folders with such a plain name, at most two levels down."""
    for place in _subfolders(folder, words):
        yield place
        yield from _subfolders(place, words)


def _subfolders(folder, words):
    return [folder / name for name in _entries(folder, os.DirEntry.is_dir) if _plain(name) in words]


def _files(folder):
    return _entries(folder, os.DirEntry.is_file)


def _entries(folder, wanted=lambda entry: True):
    """Names in a folder, sorted, without hidden ones; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if wanted(e) and not e.name.startswith("."))
    except OSError:
        return []


def _plain(name):
    """What remains of a name where loaders differ in dots, dashes and capitals."""
    return re.sub("[^a-z0-9]", "", name.lower())


def _existing(folder, names, file, gzipped):
    """The path of a file whose name, or one like it, is among those in a folder; or None."""

    def plain(name):
        if gzipped:
            name = re.sub(r"\.gz$", "", re.sub(r"\.tgz$", ".tar", name, flags=re.I), flags=re.I)
        return _plain(name)

    exact = [f"{file}.gz", file] if gzipped else [file]
    alike = [name for name in names if plain(name) == _plain(file)]
    return next((folder / name for name in (*exact, *alike) if name in names), None)


# ------------------------------------------------------------------------ what was not found, told


def _seen(folder, missing=(), beside=False):
    """What there is instead of a dataset, in the folder or `beside` it."""
    if not folder.exists():
        there = _few(_entries(folder.parent)) if beside else ""
        return f"no such folder; {folder.parent} holds {there}" if there else "no such folder"
    if not folder.is_dir():
        return "no folder, but a file"
    there = f"it holds {_few(_entries(folder)) or 'nothing'}"
    return f"missing {', '.join(missing)}; {there}" if missing else f"none of its files; {there}"


def _few(names, most=4):
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def _shown(file, layout):
    return f"{file}[.gz]" if layout.gzipped else file


def _shown_files(layout):
    files = [_shown(file, layout) for file in layout.files]
    return ", ".join(files if len(files) <= 4 else [files[0], "...", files[-1]])


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
