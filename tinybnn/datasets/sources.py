"""Datasets by name: their descriptions, the search for their files, and their readers."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinybnn.datasets.cifar import parse_binary10, parse_binary100, parse_python, read_cifar
from tinybnn.datasets.dataset import Dataset
from tinybnn.datasets.files import DatasetError
from tinybnn.datasets.idx import read_idx
from tinybnn.typing import Array


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset is stored on the disk.

    Attributes
    ----------
    files : tuple of str
        The files of the dataset; dots, dashes and capitals in their names may differ.
    read : callable
        Takes the paths of `files` in order; returns the training and the test arrays, each as
        (images (N, C, H, W) uint8, labels (N,) int64).
    folder : str
        The folder that an official archive unpacks to. The files are also looked for beside it.
    gzipped : bool
        Each file may be stored as ``<file>.gz`` instead.
    """

    files: tuple[str, ...]
    read: Callable[[Sequence[Path]], Any]
    folder: str = ""
    gzipped: bool = False


@dataclass(frozen=True)
class Source:
    """Facts about a dataset that are known before its files are read.

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
        The folder of its files, if its name differs from the dataset's.
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


def _read_mnist_like(
    paths: Sequence[Path], upright: bool = True, first_label: int = 0
) -> tuple[list[Array], list[Array]]:
    """Images and labels for training, then for testing, one IDX file each."""
    arrays = []
    for path, ndim in zip(paths, (3, 1, 3, 1), strict=True):
        array = read_idx(path)
        if array.dtype != np.uint8 or array.ndim != ndim:
            raise DatasetError(f"{path}: expected {ndim}-d uint8, got {array.ndim}-d {array.dtype}")
        if ndim == 1:
            arrays.append(array.astype(np.int64) - first_label)
        else:
            arrays.append((array if upright else array.transpose(0, 2, 1))[:, None])
    return arrays[:2], arrays[2:]


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


def _emnist(
    split: str, classes: tuple[str, ...], size: tuple[int, int], first_label: int = 0
) -> Source:
    """EMNIST stores images with rows and columns exchanged; here they are upright."""
    files = (f"emnist-{split}-{file.replace('t10k', 'test')}" for file in _MNIST.files)
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


# ------------------------------------------------------------------------------------------ CIFAR


def _cifar(
    number: int,
    train: list[str],
    test: list[str],
    parse_binary: Callable[[bytes], Any],
    classes: tuple[str, ...],
) -> Source:
    def layouts() -> Iterator[Layout]:
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

SOURCES: dict[str, Source] = {
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


def load(name: str, root: str | os.PathLike[str] | None = None) -> tuple[Dataset, Dataset]:
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

    Images (N, C, H, W) are uint8 from 0 to 255 (digits: 16), labels (N,) int64 from 0. EMNIST's
    files hold images with rows and columns exchanged, and letters counted from 1; both are
    corrected.

    Parameters
    ----------
    name : str
        A key of `SOURCES`.
    root : str or PathLike, optional
        A folder with the dataset's files, or with a folder `name` of them. If given, nothing else
        is searched; otherwise the folders of `search_folders` are. Names may be those of other
        loaders: ``train-images.idx3-ubyte``, ``MNIST/raw``, ``cifar-10-batches-py``.

    Returns
    -------
    train, test : Dataset

    Raises
    ------
    ValueError
        For an unknown name.
    FileNotFoundError
        If no folder has the files; the message lists the folders and the command for a download.
    DatasetError
        If the files are damaged or hold something else.
    """
    source = known_source(name, "load")
    _, layout, paths = _find(name, root)
    train, test = layout.read(paths)
    return _checked(name, source, train, paths[0]), _checked(name, source, test, paths[-1])


def path(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder in which `load` finds a dataset.

    Same parameters and errors as for `load`; the files are not read.

    Returns
    -------
    pathlib.Path
    """
    known_source(name, "path")
    return _find(name, root)[0]


def search_folders(name: str, root: str | os.PathLike[str] | None = None) -> list[Path]:
    """List the folders in which `load` looks for a dataset, in order.

    Only `root` and ``root/name`` if `root` is given. Otherwise ``$TINYBNN_DATA/name``, the user's
    cache (``$XDG_CACHE_HOME/tinybnn/name``, by default ``~/.cache/tinybnn/name``), the data
    installed with the package, and the ``data`` folder beside the package in a checkout. All parts
    of EMNIST may also be together in a folder ``emnist``.

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


def known_source(name: str, where: str) -> Source:
    """Look up an entry of `SOURCES`; raise a ValueError that lists the names."""
    if not isinstance(name, str) or name not in SOURCES:
        raise ValueError(f"{where}: unknown dataset {name!r}; known are {', '.join(SOURCES)}")
    return SOURCES[name]


def _find(name: str, root: str | os.PathLike[str] | None) -> tuple[Path, Layout, list[Path]]:
    """The first folder that has a whole layout: folder, layout, the paths of its files."""
    searched, folders = [], search_folders(name, root)
    for folder in folders:
        missing: list[str] | None = None  # from the layout that lacks the fewest files
        for place, layout in _places(folder, name, beside=root is None):
            paths = _paths(place, layout)
            lacking = [file for file in layout.files if file not in paths]
            if not lacking:
                parent = next((f for f in folders[::-1] if place.is_relative_to(f)), place)
                return parent, layout, [paths[file] for file in layout.files]
            if paths and (missing is None or len(lacking) < len(missing)):
                missing = [_shown(file, layout) for file in lacking]
        searched.append(f"  {folder} ({_seen(folder, missing, root is None)})")
    wanted = " or ".join(map(_shown_files, SOURCES[name].layouts))
    raise FileNotFoundError(
        f"the dataset {name!r} was not found. Searched:\n"
        + "\n".join(searched)
        + f"\nExpected {wanted}, there or in raw/ or {name}/; dots, dashes and capitals may "
        + f"differ.\n`tinybnn data fetch {name}` downloads it; or set TINYBNN_DATA to a folder "
        + f"that holds {name}/, or pass root."
    )


def mnist_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the four files in a folder that are named as MNIST's, or as `load` allows.

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
        If one is missing; the message lists the files that are there.
    """
    folder = Path(folder)
    for place in (folder, *_subfolders(folder, {"raw"})):
        paths = _paths(place, _MNIST)
        if len(paths) == len(_MNIST.files):
            return [paths[file] for file in _MNIST.files]
    raise FileNotFoundError(
        f"{folder}: expected {_shown_files(_MNIST)}, there or in raw/; {_seen(folder)}"
    )


def _places(folder: Path, name: str, beside: bool) -> Iterator[tuple[Path, Layout]]:
    """Where files of a dataset may be: (folder, layout), in order of preference.

    Besides `folder` these are folders in it that archives and other loaders make (``MNIST/raw``);
    with `beside` also folders next to it that are named for the dataset (``MNIST`` for ``mnist``,
    ``cifar-10-batches-py``), and its parent for layouts whose files are.
    """
    source, plain = SOURCES[name], _plain(name)
    own = {plain, _plain(source.folder or name)}
    unpacked = {_plain(layout.folder) for layout in source.layouts}
    inside = own | unpacked | {"raw"}
    tops = [folder]
    if beside:
        tops += _subfolders(folder.parent, own | {w for w in unpacked if w.startswith(plain)})
    places = dict.fromkeys(place for top in tops for place in (top, *_below(top, inside)))
    for layout in source.layouts:
        yield from ((place, layout) for place in places)
        if beside and all(_plain(file).startswith(plain) for file in layout.files):
            yield folder.parent, layout


def _below(folder: Path, words: set[str]) -> Iterator[Path]:
    """Folders with such a plain name, at most two levels down."""
    for place in _subfolders(folder, words):
        yield place
        yield from _subfolders(place, words)


def _subfolders(folder: Path, words: set[str]) -> list[Path]:
    """The folders in a folder whose plain name is one of the words."""
    return [
        entry for entry in _entries(folder) if _plain(entry.name) in words and os.path.isdir(entry)
    ]


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted, without hidden ones; none if it cannot be read."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []


def _plain(name: str) -> str:
    """A name without the dots, dashes and capitals in which loaders differ."""
    return re.sub("[^a-z0-9]", "", name.lower())


def _paths(folder: Path, layout: Layout) -> dict[str, Path]:
    """The files of a layout that a folder has, under the same names or alike: {file: path}."""
    paths = {}
    for entry in filter(os.path.isfile, _entries(folder)):
        name = entry.name
        if layout.gzipped:
            name = re.sub(r"\.gz$", "", re.sub(r"\.tgz$", ".tar.gz", name, flags=re.I), flags=re.I)
        for file in layout.files:
            if name == file or (_plain(name) == _plain(file) and file not in paths):
                paths[file] = entry  # the last of the same name: gzipped
    return paths


# -------------------------------------------------------------------- messages about missing files


def _seen(folder: Path, missing: list[str] | None = None, beside: bool = False) -> str:
    """Describe the content of a folder without the dataset, or of its parent if `beside`."""
    if not folder.exists():
        there = _few(_entries(folder.parent)) if beside else ""
        return f"no such folder; {folder.parent} holds {there}" if there else "no such folder"
    if not folder.is_dir():
        return "a file instead of a folder"
    lacking = f"missing {', '.join(missing)}" if missing else "none of its files"
    return f"{lacking}; it holds {_few(_entries(folder)) or 'nothing'}"


def _few(paths: list[Path], most: int = 4) -> str:
    rest = len(paths) - most
    return ", ".join(p.name for p in paths[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def _shown(file: str, layout: Layout) -> str:
    return f"{file}[.gz]" if layout.gzipped else file


def _shown_files(layout: Layout) -> str:
    files = [_shown(file, layout) for file in layout.files]
    return ", ".join(files if len(files) <= 4 else [files[0], "...", files[-1]])


def _checked(name: str, source: Source, arrays: tuple[Array, Array], path: Path) -> Dataset:
    """Make a Dataset from the images and labels that a reader returned."""
    images, labels = arrays
    try:
        if images.shape[1:] != source.image_shape:
            raise ValueError(f"expected images {source.image_shape}, got {images.shape[1:]}")
        return Dataset(images, labels, source.classes, name, source.maximum)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"{path.parent} holds no {name}: {path.name} and its pair: {error}"
        ) from None
