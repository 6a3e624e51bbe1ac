"""The folder of a run: its configuration, its training, and the trained model.

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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import tinybnn
from tinybnn import datasets, models, optim, training
from tinybnn.nn import Module
from tinybnn.storage import (
    StorageError,
    check_name,
    expecting,
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
            f"a shift of {config.shift} pixels moves images of {shape_text(shape[1:])} out of "
            f"sight; choose at most {min(shape[1:]) - 1}"
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


def float_bytes(model: Module) -> int:
    """Count the bytes of all parameters and statistics as float32."""
    return sum(a.nbytes for a in model.state_dict().values() if a.dtype == np.float32)


def shape_text(shape: tuple[int, ...]) -> str:
    """Format a shape, such as 1×28×28."""
    return "×".join(map(str, shape))
