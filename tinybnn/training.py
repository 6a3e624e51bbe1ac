"""The training loop: fit, evaluate and predict.

The history that `fit` returns and the checkpoints that it writes are those of `tinybnn.checkpoint`.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn import datasets, storage
from tinybnn import functional as F
from tinybnn.autograd import Tensor, as_array, no_grad
from tinybnn.checkpoint import Checkpoint, History, load_weights, without_addresses
from tinybnn.nn import Module
from tinybnn.nn.module import warn_of_unregistered

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from tinybnn.typing import Array

__all__ = [
    "Checkpoint", "FlipCounter", "History", "accuracy", "evaluate", "fit", "load_weights",
    "predict",
]  # fmt: skip
__dir__: Callable[[], list[str]] = __all__.copy  # dir() lists the public names only


def predict(
    model: Module, loader: Iterable[tuple[Any, Any]], progress: bool = False
) -> tuple[Array, Array]:
    """Compute the logits of every sample, in the order of the batches, in evaluation mode.

    Every module keeps its mode.

    Parameters
    ----------
    model : Module
    loader : DataLoader or iterable of (x, y)
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    logits : (N, classes) float32
        Or other outputs of the model, concatenated.
    labels : (N,) int64
        Or other targets of the loader, concatenated.

    Raises
    ------
    ValueError
        If there are no batches.
    """
    from tqdm import tqdm  # late, so that `import tinybnn` does not wait for it

    _expect_batches("predict", "loader", loader)
    bar = tqdm(
        loader, total=_length(loader), desc="evaluating", unit="batch", leave=False, delay=1,
        disable=not progress,
    )  # fmt: skip
    logits, labels = [], []
    with bar, model.in_mode(training=False), no_grad():
        for x, y in _pairs("predict", bar):
            logits.append(model(Tensor(x)).data)
            labels.append(np.asarray(as_array(y)))
    if not logits:
        raise _no_batches("predict", loader)
    return np.concatenate(logits), np.concatenate(labels)


def evaluate(
    model: Module,
    loader: Iterable[tuple[Any, Any]],
    loss: Callable[..., Tensor] = F.cross_entropy,
    progress: bool = False,
) -> dict[str, float]:
    """Compute loss and accuracy over all batches, in evaluation mode.

    Every module keeps its mode.

    Parameters
    ----------
    model, loader, progress
        As in `predict`.
    loss : callable
        (outputs, labels) -> Tensor with one element.

    Returns
    -------
    dict
        ``loss`` (mean over samples) and, except for regressions, ``accuracy`` (0 to 1).
    """
    logits, labels = predict(model, loader, progress)
    with no_grad():
        figures = {"loss": float(loss(Tensor(logits), labels))}
    correct = _correct_or_none(logits, labels, loss)
    return figures if correct is None else {**figures, "accuracy": float(np.mean(correct))}


def accuracy(logits: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> float:
    """Compute the share of samples whose largest logit is that of the label, from 0 to 1.

    Parameters
    ----------
    logits : (N, classes), or (N,) or (N, 1)
        A single logit means class 1 where it is >= 0, else class 0.
    labels : (N,) or (N, 1) integers or bools, or (N, classes) distributions
        The largest entry of a distribution, such as a one-hot row, is its label. With single
        logits, floats that are all 0 or 1 are labels as well.

    Raises
    ------
    ValueError
        For other shapes and dtypes, and for labels outside the classes.
    """
    correct = _correct(np.asarray(as_array(logits)), np.asarray(as_array(labels)))
    if not correct.size:
        raise ValueError("accuracy: there are no samples")
    return float(np.mean(correct))


def _correct(logits, labels):
    """Tell for each sample whether it is classified as its label says; see `accuracy`."""
    count = len(logits) if logits.ndim else 0
    is_single = logits.size == count
    classes = 2 if is_single or not logits.ndim else logits.shape[-1]
    if logits.shape == labels.shape and logits.ndim == 2 and _are_distributions(labels):
        labels = labels.argmax(axis=1)
    is_flat = labels.shape in ((count,), (count, 1))
    is_label = labels.dtype.kind in "iub" or (
        is_single and bool(np.all((labels == 0) | (labels == 1)))
    )
    if not (0 < logits.ndim <= 2 and is_flat and is_label):
        raise ValueError(
            f"accuracy: expects logits (N, classes) with labels (N,) of integers (int8 to int64, "
            f"uint8 to uint64, bool) or one-hot rows (N, classes), got logits {logits.shape} and "
            f"labels {labels.shape} of {labels.dtype}"
        )
    labels = labels.reshape(count)
    if count and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"accuracy: labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}"
        )
    if is_single:
        return (logits.reshape(count) >= 0) == labels
    return logits.argmax(axis=1) == labels


def _are_distributions(labels):
    """Whether each row is a distribution over two or more classes, such as a one-hot row."""
    is_share = labels.shape[1] > 1 and np.all(labels >= 0)
    return bool(is_share and np.allclose(labels.sum(axis=1), 1, rtol=0, atol=1e-4))


def _correct_or_none(logits, labels, loss):
    """Return `_correct`, or None where there are no classes, as in a regression."""
    labels = np.asarray(as_array(labels))
    if logits.ndim not in (1, 2):
        return None
    if logits.size == len(logits):
        if loss is not F.binary_cross_entropy_with_logits:
            return None
    elif labels.shape == logits.shape and not _are_distributions(labels):
        return None
    try:
        return _correct(logits, labels)
    except ValueError:  # labels of another kind, which the loss accepted
        return None


# ----------------------------------------------------------------------------------------- batches


def _expect_batches(where, name, loader):
    """Raise a TypeError unless an object can be iterated in batches (x, y)."""
    if hasattr(loader, "images") or isinstance(loader, datasets.TensorDataset):
        raise TypeError(
            f"{where}: {name} is a {type(loader).__name__}; wrap it in "
            "DataLoader(dataset, batch_size=64)"
        )
    is_pair = isinstance(loader, tuple) and len(loader) == 2
    if isinstance(loader, np.ndarray | Tensor) or (is_pair and hasattr(loader[0], "shape")):
        raise TypeError(
            f"{where}: {name} must be a DataLoader or an iterable of batches (x, y), got arrays; "
            "wrap them in DataLoader(TensorDataset(x, y), batch_size=64)"
        )
    if not hasattr(loader, "__iter__"):
        raise TypeError(
            f"{where}: {name} must be a DataLoader or an iterable of batches (x, y), got "
            f"{type(loader).__name__}; wrap a data set in DataLoader(dataset, batch_size=64)"
        )


def _expect_repeatable(name, loader, epochs):
    if epochs > 1 and iter(loader) is loader:
        raise TypeError(
            f"fit: {name} is an iterator, which is used up after one epoch; pass a list of batches "
            "or a DataLoader"
        )


def _pairs(where, batches):
    """Yield the batches, each checked to be a pair."""
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            got = f"{len(batch)} items" if isinstance(batch, tuple | list) else type(batch)
            raise TypeError(f"{where}: each batch must be a pair (x, y), got {got}")
        yield batch


def _no_batches(where, loader):
    dataset = getattr(loader, "dataset", ())
    if getattr(loader, "drop_last", False) and len(dataset):
        return ValueError(
            f"{where}: no batch is complete: drop_last=True leaves out the {len(dataset)} samples, "
            f"fewer than batch_size={loader.batch_size}; choose a smaller batch_size, or "
            "drop_last=False"
        )
    return ValueError(f"{where}: the loader gave no batches: its data set is empty")


def _length(loader):
    """Number of batches, None if unknown."""
    return len(loader) if hasattr(loader, "__len__") else None


class FlipCounter:
    """Counts binary weights that have changed since the last call (larq's flip_ratio).

    The weights are those that the layers compute with, `Module.binary_weights`: AdaBin takes the
    signs of centred latent weights, and a ternary layer has three levels.

    Parameters
    ----------
    model : Module
    """

    def __init__(self, model: Module) -> None:
        self._model = model
        self._weights = model.binary_weights()

    def ratio(self) -> float:
        """Return the share of weights changed since the last call; 0 without binary weights."""
        before, self._weights = self._weights, self._model.binary_weights()
        flips = sum(np.count_nonzero(w != before[name]) for name, w in self._weights.items())
        return flips / max(1, sum(w.size for w in self._weights.values()))


def fit(
    model: Module,
    train: Iterable[tuple[Any, Any]],
    *,
    epochs: int,
    optimizer: Any,
    schedule: Any = None,
    schedule_unit: str = "epoch",
    loss: Callable[..., Tensor] = F.cross_entropy,
    validation: Iterable[tuple[Any, Any]] | None = None,
    history: History | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    threads: int | None = None,
) -> History:
    """Train a model, and leave it in evaluation mode.

    Parameters
    ----------
    model : Module
    train, validation : DataLoader, or any iterable of batches (x, y)
        A list of pairs of arrays, for example; not an iterator, which is used up after one epoch.
        `validation` (optional) is evaluated after each epoch. Make choices on it, and keep the
        test set for the end.
    epochs : int
        Number of epochs to train; with `checkpoint`, the total number of epochs.
    optimizer : Optimizer
    schedule : Schedule, optional
    schedule_unit : 'epoch' or 'batch'
        When to step the schedule.
    loss : callable
        (outputs Tensor, labels array) -> Tensor with one element.
    history : History, optional
        Rows are appended to it, also when training is interrupted.
    checkpoint : path, optional
        A file that is written before the first epoch and after each one. If it exists, it is read
        first, and training goes on after its last complete epoch as if it had never stopped; with
        `epochs` reached, nothing is left to train. See `Checkpoint`.
    progress : bool
        Show a progress bar with loss, accuracy and the ratio of flipped signs on stderr.
    threads : int, optional
        Number of threads of the kernels; by default all cores, or the value that
        `tinybnn.kernels.machine.threads.num_threads` has set. The weights are the same, bit for
        bit, for any number: no sum depends on how kernels divide their work, and NumPy's products
        run on one thread.

    Returns
    -------
    History

    Raises
    ------
    FloatingPointError
        If the loss is not finite: further training would only hide where it broke.
    TypeError
        If `train` or `validation` is no iterable of batches (x, y).
    ValueError
        If there is no batch, if the optimizer has none of the model's parameters, or if
        `checkpoint` is of a run with another model, optimizer, ...: it says what differs.
    StorageError
        If `checkpoint` is damaged. It is never overwritten then.
    OSError
        If `checkpoint` cannot be written. The file of the epoch before stays.
    """
    # Imported here, so that `import tinybnn` does not wait for Numba.
    from tinybnn.kernels.machine.compilation import announced
    from tinybnn.kernels.machine.threads import num_threads, one_blas_thread

    if epochs < 1:
        raise ValueError(f"fit: epochs must be >= 1, got {epochs!r}")
    if schedule_unit not in ("epoch", "batch"):
        raise ValueError(f"fit: schedule_unit must be 'epoch' or 'batch', got {schedule_unit!r}")
    _expect_batches("fit", "train", train)
    _expect_repeatable("train", train, epochs)
    if _length(train) == 0:
        raise _no_batches("fit", train)
    if validation is not None:
        _expect_batches("fit", "validation", validation)
        _expect_repeatable("validation", validation, epochs)
    if not {id(p) for p in model.parameters()} & {id(p) for p in optimizer.parameters}:
        raise ValueError(
            "fit: the optimizer has none of the model's parameters, and would train another model; "
            "make it from model.parameters()"
        )
    warn_of_unregistered(model, "fit")
    each_batch = schedule.step if schedule and schedule_unit == "batch" else None
    history = History() if history is None else history
    total, done = len(history) + epochs, 0
    if checkpoint is not None:
        settings = {"loss": _name(loss), "schedule_unit": schedule_unit}
        state = Checkpoint(
            checkpoint, model, optimizer, schedule, train, validation, history, settings
        )
        if state.restore():
            _expect_columns(checkpoint, history, validation)
        else:
            state.save()
        total, done = epochs, min(epochs, len(history))
    from tqdm import tqdm  # late, so that `import tinybnn` does not wait for it

    flips = FlipCounter(model)
    batches = _length(train)
    bar = tqdm(
        total=batches and (done + max(0, total - len(history))) * batches,
        initial=done * (batches or 0),
        disable=not progress,
        bar_format=BAR if batches else None,
        unit="batch",
    )
    try:
        with bar, announced(progress), num_threads(threads), one_blas_thread():
            for epoch in range(len(history) + 1, total + 1):
                start = time.perf_counter()
                group, rate = optimizer.rates[0]
                row = {"epoch": epoch, "lr": group[rate]}
                row.update(_train_epoch(model, train, optimizer, loss, each_batch, bar, epoch))
                row["flip_ratio"] = flips.ratio()
                if schedule and schedule_unit == "epoch":
                    schedule.step()
                row["seconds"] = time.perf_counter() - start
                if validation is not None:
                    figures = evaluate(model, validation, loss, progress)
                    row.update((f"val_{name}", value) for name, value in figures.items())
                history.rows.append(row)
                if checkpoint is not None:
                    state.save()
                bar.set_postfix_str(_figures(row))
    finally:
        model.eval()
    return history


BAR: str = "{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # in 80 columns


def _figures(row):
    """Format the figures of an epoch for the bar."""
    figures = [f"loss {row['loss']:.3g}"]
    if "accuracy" in row:
        figures.append(f"acc {row['accuracy']:.1%}")
    if "val_accuracy" in row:
        figures.append(f"val {row['val_accuracy']:.1%}")
    elif "val_loss" in row:
        figures.append(f"val {row['val_loss']:.3g}")
    else:
        figures.append(f"flips {row['flip_ratio']:.2%}")
    return ", ".join(figures)


def _expect_columns(path, history, validation):
    """Check that the rows of a restored checkpoint have the columns of `fit`."""
    columns = {"epoch", "lr", "loss", "flip_ratio", "seconds"}
    if validation is not None:
        columns.add("val_loss")
    for row in history.rows:
        if not all(isinstance(row.get(name), Number) for name in columns | row.keys()):
            raise storage.StorageError(
                f"{path}: not a valid checkpoint: its history lacks one of the numbers "
                f"{', '.join(sorted(columns))}"
            )


def _train_epoch(model, train, optimizer, loss, each_batch, bar, epoch):
    """Train one pass over the data; return the mean loss and accuracy over its samples."""
    model.train()
    total_loss = hits = count = 0
    bar.set_description(f"epoch {epoch}")
    for x, y in _pairs("fit", train):
        optimizer.zero_grad()
        logits = model(Tensor(x))
        value = loss(logits, y)
        if not np.isfinite(value.item()):
            raise FloatingPointError(f"fit: the loss became {value.item()} in epoch {epoch}")
        value.backward()
        optimizer.step()
        if each_batch:
            each_batch()
        total_loss += value.item() * len(y)
        correct = None if hits is None else _correct_or_none(logits.data, y, loss)
        hits = None if correct is None else hits + int(np.count_nonzero(correct))
        count += len(y)
        bar.update()
    if not count:
        raise _no_batches("fit", train)
    row = {"loss": total_loss / count}
    return row if hits is None else {**row, "accuracy": hits / count}


def _name(function):
    """Return the name of a loss; a partial function is named with its settings."""
    if isinstance(function, functools.partial):
        named = [f"{name}={value!r}" for name, value in function.keywords.items()]
        settings = ", ".join([*map(repr, function.args), *named])
        return f"{_name(function.func)}({without_addresses(settings)})"
    return getattr(function, "__qualname__", type(function).__name__)
