"""Runs: a model trained into a folder, compiled, verified and used from there.

    RUN/config.json       how it is trained; never changed
    RUN/checkpoint.npz    the state after the last complete epoch
    RUN/result.json       figures, written when all epochs are done
    RUN/model.npz         the packed model, if it was compiled to there

A run is repeatable: its configuration determines every bit of its weights. The same call that
started a run continues it after an interruption.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import tinybnn
from tinybnn import datasets, deploy, models, optim, training
from tinybnn.kernels.machine.exact import identical
from tinybnn.nn import Module
from tinybnn.storage import (
    StorageError,
    check_name,
    expecting,
    open_regular,
    open_to_append,
    printable,
    read_json,
    try_lock,
    write_json,
)

CONFIG: str = "config.json"
CHECKPOINT: str = "checkpoint.npz"
RESULT: str = "result.json"
MODEL: str = "model.npz"
_LOCK = ".lock"


def _mlp(shape, classes, rng, hidden=(256, 256, 256), dropout=0.0):
    return models.mlp(int(np.prod(shape)), tuple(hidden), classes, dropout, rng=rng)


def _cnn(shape, classes, rng):
    padding = 0 if min(shape[1:]) >= 22 else 1  # unpadded, small images would vanish
    return models.cnn(shape, classes, padding=padding, rng=rng)


def _vgg_small(shape, classes, rng, width=1.0, quantizer="approx_sign"):
    return models.vgg_small(shape, classes, width, quantizer, rng=rng)


# name -> (input_shape, number of classes, rng, **options) -> Module
MODELS: dict[str, Callable[..., Module]] = {"mlp": _mlp, "cnn": _cnn, "vgg-small": _vgg_small}


@dataclass(frozen=True)
class Config:
    """How a run is trained: Adam, a cosine to 0 over all batches, cross entropy.

    Attributes
    ----------
    model : str
        A key of `MODELS`.
    dataset : str
        A name for `datasets.load`.
    epochs, batch_size : int
    lr : float
        Initial learning rate.
    seed : int
        Seeds initial weights, order of the images, dropout and the choice of validation images.
    validation : float
        The share of training images that is held out and evaluated after each epoch; 0 for none.
    shift : int
        Maximum random shift of training images in both directions, in pixels.
    flip : bool
        Whether to mirror training images at random, half of them.
    options : dict
        Keyword arguments for the model.
    """

    model: str
    dataset: str = "digits"
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.01
    seed: int = 0
    validation: float = 0.0
    shift: int = 0
    flip: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"unknown model {self.model!r}; known are {', '.join(MODELS)}")
        if self.epochs < 1:
            raise ValueError(f"epochs must be >= 1, got {self.epochs}")
        if self.batch_size < 2:  # a batch norm needs two values
            raise ValueError(f"batch_size must be >= 2, got {self.batch_size}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be a share in [0, 1), got {self.validation}")
        if self.shift < 0:
            raise ValueError(f"shift must be >= 0, got {self.shift}")

    def build(
        self, input_shape: tuple[int, ...], num_classes: int
    ) -> tuple[Module, np.random.Generator]:
        """Build the untrained model; return it and the generator, which later orders the images."""
        rng = np.random.default_rng(self.seed)
        return MODELS[self.model](input_shape, num_classes, rng, **self.options), rng


# ---------------------------------------------------------------------------------------- training


def train(
    folder: str | os.PathLike[str],
    config: Config,
    progress: bool = True,
    say: Callable[[str], object] = print,
    threads: int | None = None,
) -> dict[str, Any]:
    """Train a model into a folder, or go on where an earlier call was stopped.

    Parameters
    ----------
    folder : path
        Created if it does not exist.
    config : Config
    progress : bool
        Show a progress bar on stderr.
    say : callable
        Called with each line of text.
    threads : int, optional
        As for `training.fit`.

    Returns
    -------
    dict
        The figures, as in ``result.json``.

    Raises
    ------
    ValueError
        If the folder holds a run with another configuration, or something else.
    OSError
        If it cannot be written. The last checkpoint stays.
    StorageError
        If its checkpoint is damaged.
    """
    folder = Path(folder)
    _check_folder(folder, config)
    if (folder / RESULT).exists() and (folder / CHECKPOINT).exists():
        result = read_json(folder / RESULT)
        with expecting(folder / RESULT, "result of a run"):
            say(f"{folder} is complete: {config.epochs} epochs, {_tested(result)}.")
        return result

    with told(f"Reading {config.dataset}", progress):
        train_set, test_set = datasets.load(config.dataset)
    held_out = None
    if config.validation:
        try:
            train_set, held_out = train_set.split(float(config.validation), rng=config.seed)
        except ValueError as error:
            raise ValueError(f"validation: {error}; choose another share") from None
    if config.batch_size > len(train_set):
        raise ValueError(
            f"a batch of {config.batch_size} is more than the {len(train_set)} training images; "
            "choose a smaller batch size"
        )
    shape, classes = train_set.images.shape[1:], len(train_set.classes)
    if config.shift >= min(shape[1:]):
        raise ValueError(
            f"a shift of {config.shift} pixels moves images of {_shape(shape[1:])} out of sight; "
            f"choose at most {min(shape[1:]) - 1}"
        )
    model, rng = config.build(shape, classes)
    transform = None
    if config.shift or config.flip:
        steps = [datasets.RandomShift(config.shift)] if config.shift else []
        steps += [datasets.RandomHorizontalFlip()] if config.flip else []
        transform = datasets.Compose([*steps, datasets.to_signed(train_set.maximum)])
    loader = datasets.DataLoader(
        train_set, config.batch_size, shuffle=True, drop_last=True, transform=transform, rng=rng
    )
    optimizer = optim.Adam(model.parameters(), lr=config.lr)
    schedule = optim.CosineAnnealingLR(optimizer, config.epochs * len(loader))
    validation = datasets.DataLoader(held_out, batch_size=256) if held_out is not None else None

    folder.mkdir(parents=True, exist_ok=True)
    with _only_process(folder):
        _check_folder(folder, config)
        if not (folder / CONFIG).exists():
            data = {
                "input_shape": shape,
                "classes": train_set.classes,
                "maximum": train_set.maximum,
                "brightness": datasets.brightness(train_set.images, train_set.maximum),
            }
            version = {"tinybnn": tinybnn.__version__}
            write_json(folder / CONFIG, {**asdict(config), "data": data, **version})
        elif (folder / CHECKPOINT).exists():
            say(f"Going on with {folder}, from its last complete epoch.")
        history = training.fit(
            model,
            loader,
            epochs=config.epochs,
            optimizer=optimizer,
            schedule=schedule,
            schedule_unit="batch",
            validation=validation,
            checkpoint=folder / CHECKPOINT,
            progress=progress,
            threads=threads,
        )
        tested = training.evaluate(model, datasets.DataLoader(test_set, batch_size=256))
        result = {
            **asdict(config),
            "train_images": len(train_set),
            "train_seconds": round(sum(history["seconds"]), 2),
            "train_loss": history["loss"][-1],
            "train_accuracy": history["accuracy"][-1],
            "test_images": len(test_set),
            "test_loss": tested["loss"],
            "test_accuracy": tested["accuracy"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "float_bytes": float_bytes(model),
            "history": history.rows,
        }
        if validation is not None:
            result["validation_accuracy"] = history["val_accuracy"][-1]
        write_json(folder / RESULT, result)
    say(f"{folder}: {config.epochs} epochs done, {_tested(result)}.")
    return result


def _tested(result):
    return f"test accuracy {result['test_accuracy']:.2%} on {result['test_images']:,} images"


def _check_folder(folder, config):
    """Raise a ValueError if the folder belongs to another run, or holds other files."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, a run needs a folder; choose another name")
    if (folder / CONFIG).exists():
        old = asdict(read_config(folder)[0])
        new = json.loads(json.dumps(asdict(config)))
        different = [name for name in new if old[name] != new[name]]
        if different:
            was = ", ".join(f"{name}={json.dumps(old[name])}" for name in different)
            now = ", ".join(f"{name}={json.dumps(new[name])}" for name in different)
            raise ValueError(
                f"{folder} is a run with {was}, not {now}; repeat its own settings, "
                "or choose another folder"
            )
    elif any(not name.startswith(".") for name in os.listdir(folder)):
        raise ValueError(f"{folder} holds files, but no run; choose a new or empty folder")


@contextlib.contextmanager
def _only_process(folder):
    """Keep other processes from training into the folder at the same time."""
    with open_to_append(folder / _LOCK) as file:
        if try_lock(file) is False:
            raise ValueError(f"{folder}: another process is training this run")
        yield


def files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of all files that training writes into a run, existing or not."""
    return [Path(folder) / name for name in (CONFIG, CHECKPOINT, RESULT, _LOCK)]


def read_config(folder: str | os.PathLike[str]) -> tuple[Config, dict[str, Any]]:
    """Read the configuration of a run.

    Returns
    -------
    config : Config
    data : dict
        Properties of its data set: ``input_shape``, ``classes``, ``maximum``; and ``brightness``,
        the result of `datasets.brightness` (None in runs without this entry).

    Raises
    ------
    ValueError
        If the folder holds no run, or its ``config.json`` is damaged.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.exists():
        raise ValueError(f"{_no_run(folder)}; `tinybnn train` makes one")
    try:
        values = read_json(path)
    except StorageError as error:
        raise StorageError(f"{error}; train into another folder") from None
    try:
        data = values["data"]
        data = {
            "input_shape": tuple(map(int, data["input_shape"])),
            "classes": tuple(map(str, data["classes"])),
            "maximum": float(data["maximum"]),
            "brightness": data.get("brightness"),
        }
        if not 0 < data["maximum"] < np.inf:
            raise ValueError(f"maximum must be a positive number, got {data['maximum']!r}")
        datasets.check_brightness(data["brightness"], "brightness")
        for name in (*data["classes"], values["dataset"]):
            check_name(name, "a name")
        known = {name: value for name, value in values.items() if name not in ("data", "tinybnn")}
        return Config(**known), data
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged: {type(error).__name__}: {error}; train into another folder"
        ) from None


def _no_run(folder):
    """Describe what a folder holds instead of a run."""
    if folder.is_file():
        return f"{folder} is no folder of a run, but a file"
    if not folder.is_dir():
        near = _runs_in(folder.parent)
        return f"{folder} is no folder of a run: no folder has this name" + (
            f", but {near}" if near else ""
        )
    near = _runs_in(folder)
    return f"{folder} holds no run" + (f" itself, but {near}" if near else "")


def _runs_in(folder, most=4):
    """Name some runs in a folder."""
    runs = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG}"))
    more = f" and {len(runs) - most:,} more" if len(runs) > most else ""
    return f"there is {', '.join(runs[:most])}{more}" if runs else ""


def load(folder: str | os.PathLike[str]) -> tuple[Module, Config, dict[str, Any]]:
    """Load the trained model of a complete run.

    Returns
    -------
    model : Module
        In evaluation mode.
    config : Config
    data : dict
        As in `read_config`.

    Raises
    ------
    ValueError
        If the folder holds no run, or an unfinished one.
    StorageError
        If the checkpoint is damaged.
    """
    folder = Path(folder)
    config, data = read_config(folder)
    if not (folder / CHECKPOINT).exists():
        raise ValueError(f"{folder} has no {CHECKPOINT} yet; repeat its `tinybnn train` command")
    with expecting(folder / CONFIG, "configuration of a run"):
        model, _ = config.build(data["input_shape"], len(data["classes"]))
    try:
        history = training.load_weights(folder / CHECKPOINT, model)
    except KeyError as error:
        raise ValueError(
            f"{folder / CHECKPOINT} holds another model: {error.args[0]}; "
            "remove it and repeat the `tinybnn train` command"
        ) from None
    if len(history) < config.epochs:
        raise ValueError(
            f"{folder} has {len(history)} of {config.epochs} epochs; "
            "repeat its `tinybnn train` command to finish it"
        )
    return model.eval(), config, data


# -------------------------------------------------------------------------------------- deployment


@contextlib.contextmanager
def told(text: str, progress: bool = True, seconds: float = 1.0) -> Iterator[None]:
    """Print a text on stderr if the block takes longer than a number of seconds."""
    if not progress:
        yield
        return
    timer = threading.Timer(
        seconds, lambda: print(printable(f"{text} ..."), file=sys.stderr, flush=True)
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
                f"{path} takes images of {_shape(packed.input_shape)}, {source} {_shape(shape)}"
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
        raise ValueError(f"{path} takes {_shape(packed.input_shape)} values, not images")
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
            f"{path}: {_shape(pixels.shape[1::-1])} pixels, the model takes {width}×{height}; "
            "--resize scales pictures"
        )
    images = pixels.reshape(1, height, width, channels).transpose(0, 3, 1, 2)
    return datasets.to_signed(255)(images, None)


def _shape(shape):
    return "×".join(map(str, shape))


def float_bytes(model: Module) -> int:
    """Count the bytes of all parameters and statistics as float32."""
    return sum(a.nbytes for a in model.state_dict().values() if a.dtype == np.float32)
