"""Phase 3 of HyBNN: networks on codes, and the networks they are compared with.

A task is to tell two classes apart: 0 from 1, 2 from 3, and so on. All arms of a seed see the same
images in the same order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinybnn import datasets, nn, optim, storage, training
from tinybnn import functional as F
from tinybnn.datasets import Dataset
from tinybnn.experiments.hybnn.features import batch_size
from tinybnn.models import BinaryCNN, BinaryMLP
from tinybnn.models.binary_vae import CHANNELS, image_sizes
from tinybnn.typing import Array, FloatArray, Shape, Words

HIDDEN = 128  # units of the paper's task network
WIDE = 1024  # units of a head for all classes at once
FEATURES = 200  # width of the CNNs' first dense layer, whatever the code has
FLIPS = 0.05  # share of a head's input bits that are flipped in training, against overfitting


@dataclasses.dataclass(eq=False)
class CodeLoader:
    """Batches of packed codes, unpacked to ±1, with labels: what `training.fit` iterates over.

    Parameters
    ----------
    words : (N, words) uint64
    bits : int
        Bits of a code.
    labels : (N,) int64
    batch_size : int
    rng : numpy.random.Generator, optional
        Shuffles each epoch, and an incomplete last batch is dropped: a loader for training. Without
        it all rows are yielded in order.
    flips : float
        In training, the probability that a bit is flipped.

    Yields
    ------
    codes : (B, bits) float32 of ±1
    labels : (B,) int64
    """

    words: Words
    bits: int
    labels: Array
    batch_size: int
    rng: np.random.Generator | None = None
    flips: float = 0.0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole + (rest > 0 and self.rng is None)

    def __iter__(self) -> Iterator[tuple[FloatArray, Array]]:
        from tinybnn.kernels.signs.bits import unpack

        count = len(self.labels)
        order = np.arange(count) if self.rng is None else self.rng.permutation(count)
        for batch in range(len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            codes = unpack(self.words[rows], self.bits)
            if self.rng is not None and self.flips:
                codes[self.rng.random(codes.shape, np.float32) < self.flips] *= -1
            yield codes, self.labels[rows]


# ----------------------------------------------------------------------------- tasks and their arms


def tasks_of(images: Dataset) -> list[list[int]]:
    """Return the tasks: pairs of classes, 0 and 1, 2 and 3, ..."""
    return [[2 * i, 2 * i + 1] for i in range(len(images.classes) // 2)]


def titles_of(images: Dataset) -> list[str]:
    """Return titles for the tasks of `tasks_of`, such as "0 / 1"."""
    return [" / ".join(images.classes[c] for c in task) for task in tasks_of(images)]


def float_mlp(
    in_features: int, hidden: int, num_classes: int, rng: np.random.Generator
) -> nn.Sequential:
    """Build a `BinaryMLP` with real weights and ReLU, (N, in_features) -> (N, num_classes)."""
    return nn.Sequential(
        nn.Linear(in_features, hidden, bias=False, rng=rng),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes, bias=False, rng=rng),
        nn.BatchNorm1d(num_classes),
    )


def float_cnn(image_shape: Shape, num_classes: int, rng: np.random.Generator) -> nn.Sequential:
    """Build a `BinaryCNN` with real weights and ReLU, (N, C, H, W) -> (N, num_classes).

    It is encoder and head as one float network.
    """
    layers, channels = [], image_shape[0]
    for outputs in CHANNELS:
        layers += [
            nn.Conv2d(channels, outputs, 3, stride=2, padding=1, bias=False, rng=rng),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
        channels = outputs
    features = channels * math.prod(image_sizes(image_shape)[-1])
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(features, FEATURES, bias=False, rng=rng),
        nn.BatchNorm1d(FEATURES), nn.ReLU(), *float_mlp(FEATURES, HIDDEN, num_classes, rng),
    )  # fmt: skip


class Arm(NamedTuple):
    """One way to do the tasks.

    Attributes
    ----------
    title : str
    features : str
        Its input: 'codes', 'pixels' or 'projection', rows of bits; or 'images', in [0, 1].
    build : callable
        (in_features or image_shape, classes, rng) -> Module.
    lr : float
        Learning rate of Adam at the start.
    flips : float
        As for `CodeLoader`.
    """

    title: str
    features: str
    build: Callable[[Any, int, np.random.Generator], nn.Module]
    lr: float = 3e-2
    flips: float = FLIPS


def _head(hidden):
    return lambda bits, classes, rng: BinaryMLP(bits, hidden, classes, rng=rng)


def _binary_cnn(threshold):
    return lambda shape, classes, rng: BinaryCNN(
        shape, classes, threshold, FEATURES, HIDDEN, rng=rng
    )


ARMS: dict[str, Arm] = {
    "hybnn": Arm("HyBNN: binary head on codes", "codes", _head(HIDDEN)),
    "float-head": Arm(
        "float head on codes", "codes",
        lambda bits, classes, rng: float_mlp(bits, HIDDEN, classes, rng), 1e-3,
    ),
    "pixels": Arm("binary head on pixels >= 0.5", "pixels", _head(HIDDEN)),
    "projection": Arm("binary head on a random projection", "projection", _head(HIDDEN)),
    "cnn-paper": Arm("binary CNN, sign(x): the paper's", "images", _binary_cnn(0.0), 3e-3),
    "cnn": Arm("binary CNN, sign(x - 0.5)", "images", _binary_cnn(0.5), 3e-3),
    "float-cnn": Arm("float CNN of the same shape", "images", float_cnn, 1e-3),
}  # fmt: skip

ALL_CLASSES: dict[str, Arm] = {
    f"all-{features}-{hidden}": Arm(
        f"binary head of {hidden:,} units on {what}", features, _head(hidden), 1e-2
    )
    for hidden in (HIDDEN, WIDE)
    for features, what in (("codes", "codes"), ("pixels", "pixels >= 0.5"))
}


class Features(NamedTuple):
    """Rows of bits for all images of a set.

    Attributes
    ----------
    train, test : (N, words) uint64
    bits : int
        Bits of a row.
    """

    train: Words
    test: Words
    bits: int


def _loaders(arm, data, features, classes, rng):
    """Return loaders for the images of some classes, relabelled 0, 1, ..., and the input's size.

    Parameters
    ----------
    data : (Dataset, Dataset)
        For training and for testing.
    features : dict
        Name -> Features.
    """
    loaders = []
    for i, images in enumerate(data):
        rows = np.flatnonzero(np.isin(images.labels, classes))
        labels = np.searchsorted(classes, images.labels[rows])
        size, order = (1000, None) if i else (batch_size(len(rows)), rng)
        if arm.features == "images":
            part = dataclasses.replace(images[rows], labels=labels)
            loaders.append(
                datasets.DataLoader(
                    part, size, shuffle=not i, drop_last=not i,
                    transform=datasets.to_unit(images.maximum), rng=order,
                )
            )  # fmt: skip
        else:
            words, bits = features[arm.features][i][rows], features[arm.features].bits
            loaders.append(CodeLoader(words, bits, labels, size, order, arm.flips))
    source = data[0].images.shape[1:] if arm.features == "images" else features[arm.features].bits
    return *loaders, source


_KIND, _VERSION = "network", 1


def _save(path, model, figures):
    path.parent.mkdir(exist_ok=True)
    storage.save(path, model.state_dict(), kind=_KIND, version=_VERSION, metadata=figures)


def _fit(model, loader, epochs, lr, validation=None):
    """Adam, cosine to 0 over all batches."""
    optimizer = optim.Adam(model.parameters(), lr=lr)
    return training.fit(
        model, loader, epochs=epochs, optimizer=optimizer, schedule_unit="batch",
        schedule=optim.CosineAnnealingLR(optimizer, epochs * len(loader)), validation=validation,
        progress=False,
    )  # fmt: skip


def network(
    path: Path,
    arm: Arm,
    data: tuple[Dataset, Dataset],
    features: Mapping[str, Features],
    classes: Sequence[int],
    seed: int,
    epochs: int,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train the network of an arm on some classes, or read it from its file.

    Parameters
    ----------
    path : path
    arm : Arm
    data : (Dataset, Dataset)
        For training and for testing.
    features : dict
        Name -> Features of these images.
    classes : sequence of int
        In ascending order.
    seed, epochs : int

    Returns
    -------
    model : Module
        In evaluation mode.
    figures : dict
        ``accuracy`` and ``loss`` on test images after the last epoch; ``test_images``;
        ``predicted``, the number of predictions of each class; ``shares`` of the classes among
        them; ``constant``, whether all of them have the same logits; ``seconds`` of an epoch (the
        fastest) and of all; ``history``, lists with one number an epoch.
    """
    rng = np.random.default_rng(seed)
    train, test, source = _loaders(arm, data, features, classes, rng)
    model = arm.build(source, len(classes), rng).eval()
    if path.exists():
        arrays, figures = storage.load(path, kind=_KIND, version=_VERSION)
        model.load_state_dict(arrays)
        return model, figures
    history = _fit(model, train, epochs, arm.lr, test)
    logits, labels = training.predict(model, test)
    counts = [np.bincount(a, minlength=len(classes)) for a in (logits.argmax(1), labels)]
    figures = {
        "accuracy": training.accuracy(logits, labels),
        "loss": float(F.cross_entropy(logits, labels)),
        "test_images": len(labels),
        "predicted": counts[0].tolist(),
        "shares": (counts[1] / len(labels)).tolist(),
        "constant": bool(np.ptp(logits, axis=0).max() == 0),
        "seconds": {"epoch": min(history["seconds"]), "all": sum(history["seconds"])},
        "history": {
            name: history[column]
            for name, column in (
                ("loss", "loss"), ("accuracy", "accuracy"), ("test_loss", "val_loss"),
                ("test_accuracy", "val_accuracy"),
            )
        },
    }  # fmt: skip
    _save(path, model, figures)
    return model, figures


def in_sequence(
    path: Path,
    data: tuple[Dataset, Dataset],
    features: Mapping[str, Features],
    tasks: Sequence[Sequence[int]],
    seed: int,
    epochs: int,
    arm: str = "hybnn",
) -> list[list[float]]:
    """Train one network on the tasks one after the other, without revisiting an old one.

    The limitation that section 6 of the paper names.

    Parameters
    ----------
    path, data, features, seed, epochs
        As for `network`; the epochs are those of each task.
    tasks : list of list of int
    arm : str
        A key of `ARMS`.

    Returns
    -------
    list of lists
        Row i: accuracies on the test images of all tasks after the training on task i.
    """
    if path.exists():
        return storage.load(path, kind=_KIND, version=_VERSION)[1]["accuracies"]
    rng = np.random.default_rng(seed)
    loaders = [_loaders(ARMS[arm], data, features, task, rng) for task in tasks]
    model, accuracies = ARMS[arm].build(loaders[0][2], 2, rng), []
    for train, _, _ in loaders:
        _fit(model, train, epochs, ARMS[arm].lr)
        accuracies.append([training.evaluate(model, test)["accuracy"] for _, test, _ in loaders])
    _save(path, model, {"accuracies": accuracies})
    return accuracies
