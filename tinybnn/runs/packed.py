"""The packed model of a run: compile it, verify it, and classify images with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinybnn import datasets, deploy, training
from tinybnn.kernels.machine.exact import identical
from tinybnn.runs.folder import MODEL, float_bytes, load, shape_text, told
from tinybnn.storage import StorageError, open_regular


def compile(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    say: Callable[[str], object] = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Pack the model of a complete run into a file.

    Parameters
    ----------
    folder : path
        Folder of the run.
    path : path, optional
        File of the packed model; ``model.npz`` in the folder by default.
    say : callable
        Called with each line of text.
    progress : bool
        Name the steps that take long on stderr.

    Returns
    -------
    dict
        ``model`` (the path), ``float_bytes``, ``packed_bytes`` (arrays) and ``file_bytes``.
    """
    model, config, data = load(folder)
    path = Path(folder) / MODEL if path is None else Path(path)
    with told(f"Packing {folder}", progress):
        packed = deploy.compile(model, data["input_shape"])
    packed.info = {
        "dataset": config.dataset,
        "classes": data["classes"],
        "maximum": data["maximum"],
        "brightness": data["brightness"],
    }
    result = {
        "run": str(folder),
        "model": str(path),
        "float_bytes": float_bytes(model),
        "packed_bytes": packed.nbytes,
        "file_bytes": packed.save(path),
    }
    ratio = result["float_bytes"] / result["packed_bytes"]
    say(
        f"{path}: {result['packed_bytes']:,} bytes packed, {result['float_bytes']:,} as floats "
        f"({ratio:.1f} to 1); the file has {result['file_bytes']:,} bytes."
    )
    return result


def verify(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    say: Callable[[str], object] = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare a packed model with the float model of a run on a test set, bit for bit.

    Parameters
    ----------
    folder : path
        Folder of the run.
    path : path, optional
        File of the packed model; ``model.npz`` in the folder by default.
    dataset : str, optional
        Name of another data set than the run's.
    say : callable
        Called with each line of text.
    progress : bool
        Show a bar on stderr, if it takes long.

    Returns
    -------
    dict
        ``images``; ``identical_logits``, the number of images with identical logits in both models;
        ``values_compared``, the number of equal values inside the network, None if some differ;
        ``difference``, a description of the first one, or None; ``accuracy`` of the packed model.
    """
    model, config, data = load(folder)
    path = Path(folder) / MODEL if path is None else Path(path)
    packed = _load_packed(path)
    name = config.dataset if dataset is None else dataset
    with told(f"Reading {name}", progress):
        _, test = datasets.load(name)
    for source, shape in (
        (f"the run {folder} was trained on", data["input_shape"]),
        (f"{name} has", test.images.shape[1:]),
    ):
        if packed.input_shape != shape:
            raise ValueError(
                f"{path} takes images of {shape_text(packed.input_shape)}, {source} "
                f"{shape_text(shape)}"
            )
    loader = datasets.DataLoader(test, batch_size=256)
    with _bar(3 * len(test), "image", progress) as bar:
        expected, labels = training.predict(model, _counted(loader, bar))
        logits = np.concatenate([packed.predict(x) for x, _ in _counted(loader, bar)])
        same = np.zeros(len(labels), bool)
        if logits.shape == expected.shape:
            same = np.all(identical(logits, expected), axis=1)
        compared, difference = 0, None
        try:
            for x, _ in _counted(loader, bar):
                compared += deploy.verify(model, packed, x)
        except AssertionError as error:
            compared, difference = None, str(error)
    result = {
        "run": str(folder),
        "model": str(path),
        "dataset": name,
        "images": len(labels),
        "identical_logits": int(same.sum()),
        "values_compared": compared,
        "difference": difference,
        "accuracy": training.accuracy(logits, labels),
    }
    say(
        f"{result['identical_logits']:,} of {len(labels):,} test images of {name} have identical "
        f"logits; accuracy {result['accuracy']:.2%}."
    )
    if difference is None:
        say(f"{compared:,} values inside the network compared: all equal.")
    return result


def _bar(total, unit, progress):
    """Make a progress bar that appears after half a second."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, disable=not progress, leave=False, delay=0.5)


def _counted(loader, bar):
    """Yield the batches of a loader, and count their images in the bar."""
    for batch in loader:
        yield batch
        bar.update(len(batch[0]))


def predict(
    path: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    resize: bool = False,
    invert: bool = False,
    progress: bool = True,
) -> Iterator[dict[str, Any]]:
    """Classify images with a packed model.

    Parameters
    ----------
    path : path
        File of the packed model.
    images : sequence of paths
        Picture files, ``.npy`` files and IDX files (gzipped or not), told apart by their content.
    resize : bool
        Scale pictures to the size that the model takes; by default other sizes are an error.
    invert : bool
        Exchange black and white.
    progress : bool
        Name the files that take long on stderr.

    Yields
    ------
    dict
        For each image: ``file``; ``index`` in a file of many images, else None; ``class``, its
        name; ``label``, its number; ``logits``, list of float; ``best``, class and logit of the
        two largest; ``looks_inverted``, whether black and white seem to be exchanged
        (`datasets.looks_inverted`), None if the model's file lacks the brightness of its training
        images.

    Raises
    ------
    ValueError, OSError
        If a file cannot be read or does not fit the model.
    """
    packed = _load_packed(path)
    if len(packed.input_shape) != 3:
        raise ValueError(f"{path} takes {shape_text(packed.input_shape)} values, not images")
    maximum = packed.info.get("maximum", 255)
    names = packed.info.get("classes") or list(map(str, range(packed.output_shape[0])))
    training_images = packed.info.get("brightness")
    for name in images:  # all of them, before the first is classified
        if not os.path.exists(name):
            raise FileNotFoundError(f"{name}: No such file or directory; check the name")
    for name in images:
        with told(f"Classifying {name}", progress):
            x, many = _read_images(name, packed.input_shape, maximum, resize)
            if invert:
                x = 0 - x  # -x would turn 0.0 into -0.0
            inverted = [None] * len(x)
            if training_images is not None:
                inverted = datasets.looks_inverted((x + 1) / 2, 1, training_images).tolist()
            scores = packed.predict(x)
        for i, logits in enumerate(scores):
            label = int(np.argmax(logits))
            order = [label, *(k for k in np.argsort(-logits, kind="stable").tolist() if k != label)]
            yield {
                "file": str(name),
                "index": i if many else None,
                "class": names[label],
                "label": label,
                "logits": logits.tolist(),
                "best": [{"class": names[k], "logit": float(logits[k])} for k in order[:2]],
                "looks_inverted": inverted[i],
            }


def _load_packed(path):
    """Load a packed model; errors name the next step."""
    path = Path(path)
    if path.is_dir():
        model = path / MODEL
        step = f"give {model}" if model.exists() else f"`tinybnn compile {path} -o FILE` makes one"
        raise ValueError(f"{path} is a folder, expected the file of a packed model; {step}")
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: No such file, expected a packed model; `tinybnn compile RUN -o {path}` makes "
            "one"
        )
    try:
        return deploy.PackedModel.load(path)
    except StorageError as error:
        raise StorageError(f"{error}; `tinybnn compile RUN -o FILE` makes a packed model") from None


def _read_images(path, shape, maximum, resize):
    """Read the network inputs (N, C, H, W) of a file, and whether it can hold many images."""
    if os.path.isdir(path):
        raise ValueError(
            f"{path} is a folder, expected pictures, .npy or IDX files: give its files"
        )
    with open_regular(path) as file:
        start = file.read(6)
    if datasets.is_npy(start):
        array = datasets.read_npy(path)
    elif start[:2] in (b"\0\0", b"\x1f\x8b"):
        array = datasets.read_idx(path)
    else:
        return _read_picture(path, shape, resize), False
    return _as_inputs(path, array, shape, maximum)


def _as_inputs(path, array, shape, maximum):
    """Convert images in the units of the training set (uint8) or from 0 to 1 (floats) to inputs."""
    if array.shape in (shape, shape[1:]):
        many, images = False, array.reshape(1, *array.shape[-2:]) if shape[0] == 1 else array[None]
    else:
        many, images = True, array
    if images.ndim == 3 and shape[0] == 1:
        images = images[:, None]  # (N, 1, H, W)
    if images.shape[1:] != shape:
        raise ValueError(
            f"{path}: an array of shape {array.shape}, "
            f"expected (N, {', '.join(map(str, shape))}) for this model"
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"{path}: pixels must be uint8 or floats, got {array.dtype}")
    if array.dtype != np.uint8:
        images, maximum = images.astype(np.float32), 1
    if images.size and not (images.min() >= 0 and images.max() <= maximum):
        raise ValueError(
            f"{path}: pixels from {images.min()} to {images.max()}, expected 0 to {maximum:g}"
        )
    return datasets.to_signed(maximum)(images, None), many


def _read_picture(path, shape, resize):
    """Read a picture file as a network input (1, C, H, W)."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"{path}: the model takes {channels} channels, a picture has 1 or 3")
    size, mode = (height, width) if resize else None, "L" if channels == 1 else "RGB"
    pixels = datasets.read_picture(path, size, mode)
    if pixels.shape[:2] != (height, width):
        raise ValueError(
            f"{path}: {shape_text(pixels.shape[1::-1])} pixels, the model takes {width}×{height}; "
            "--resize scales pictures"
        )
    images = pixels.reshape(1, height, width, channels).transpose(0, 3, 1, 2)
    return datasets.to_signed(255)(images, None)
