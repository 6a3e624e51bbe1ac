"""The training loop: fit, evaluate, the history of what happened, checkpoints.

A checkpoint holds everything that training changes: the model's state, the optimizer's, the
schedule's, the history, and the state of every random generator that takes part. So a run that was
killed goes on from its last complete epoch to the same final weights, bit for bit.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import time
import warnings
import zlib
from dataclasses import dataclass, field
from numbers import Number
from types import ModuleType

import numpy as np

from tinybnn import datasets, storage, tables
from tinybnn import functional as F
from tinybnn.autograd import Tensor, as_array, default_generator, no_grad
from tinybnn.nn import LatentParameter, Module
from tinybnn.nn.module import warn_of_unregistered
from tinybnn.quantizers import Quantizer

__all__ = [
    "Checkpoint", "FlipCounter", "History", "accuracy", "evaluate", "fit", "load_weights",
    "predict",
]  # fmt: skip
__dir__ = __all__.copy  # dir() shows what is public, and nothing else


@dataclass
class History:
    """One row for each epoch.

    Attributes
    ----------
    rows : list of dict
        Keys: epoch (from 1), lr, loss and accuracy (running means over the epoch's training
        batches), flip_ratio (share of latent weights whose sign changed during the epoch),
        seconds; val_loss and val_accuracy where a validation set was given. A regression has no
        accuracies.
    """

    rows: list = field(default_factory=list)

    def __getitem__(self, name):
        """The values of one column, e.g. ``history["loss"]``."""
        return [row[name] for row in self.rows]

    def __len__(self):
        return len(self.rows)

    def _repr_html_(self):
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        rows = [[_cell(row.get(name, "")) for name in columns] for row in self.rows]
        title = f"{type(self).__name__}: {len(self)} epochs"
        return tables.html(columns, rows, ">" * len(columns), title)


def _cell(value):
    """A figure of a History, as short as it is read."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def predict(model, loader, progress=False):
    """Logits of every sample, in the order of the batches, in evaluation mode.

    Every module keeps the mode that it had.

    Parameters
    ----------
    model : Module
    loader : DataLoader or iterable of (x, y)
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    logits : (N, classes) float32
        Or whatever the model gives.
    labels : (N,) int64
        Or whatever the loader gives.

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


def evaluate(model, loader, loss=F.cross_entropy, progress=False):
    """Loss and accuracy over all batches, in evaluation mode.

    Every module keeps the mode that it had.

    Parameters
    ----------
    model, loader, progress
        As in `predict`.
    loss : callable
        (outputs, labels) -> Tensor with one element.

    Returns
    -------
    dict
        ``loss`` (mean over samples) and, unless it is a regression, ``accuracy`` (0 to 1).
    """
    logits, labels = predict(model, loader, progress)
    with no_grad():
        found = {"loss": float(loss(Tensor(logits), labels))}
    right = _right_or_none(logits, labels, loss)
    return found if right is None else {**found, "accuracy": float(np.mean(right))}


def accuracy(logits, labels):
    """Share of samples whose largest logit stands at the label, from 0 to 1.

    Parameters
    ----------
    logits : (N, classes), or (N,) or (N, 1)
        A single logit means class 1 where it is >= 0, else class 0.
    labels : (N,) or (N, 1) integers or bools, or (N, classes) distributions
        Of a distribution, such as a one-hot row, the largest entry counts. For single logits also
        floats, all 0 or 1.

    Raises
    ------
    ValueError
        For other shapes and dtypes, and for labels that are no class.
    """
    right = _right(np.asarray(as_array(logits)), np.asarray(as_array(labels)))
    if not right.size:
        raise ValueError("accuracy: there are no samples")
    return float(np.mean(right))


def _right(logits, labels):
    """Whether each sample is classified as its label says; see `accuracy`."""
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
    """Whether rows say how likely each of two or more classes is, as one-hot rows do."""
    is_share = labels.shape[1] > 1 and np.all(labels >= 0)
    return bool(is_share and np.allclose(labels.sum(axis=1), 1, rtol=0, atol=1e-4))


def _right_or_none(logits, labels, loss):
    """`_right`, or None where the loss alone knows what right is, as in a regression."""
    labels = np.asarray(as_array(labels))
    if logits.ndim not in (1, 2):
        return None
    if logits.size == len(logits):
        if loss is not F.binary_cross_entropy_with_logits:
            return None
    elif labels.shape == logits.shape and not _are_distributions(labels):
        return None
    try:
        return _right(logits, labels)
    except ValueError:  # labels that the loss has taken all the same
        return None


# ----------------------------------------------------------------------------------------- batches


def _expect_batches(where, name, loader):
    """Refuse what cannot be gone through in batches (x, y)."""
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
    """The batches, each checked to be a pair."""
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            found = f"{len(batch)} items" if isinstance(batch, tuple | list) else type(batch)
            raise TypeError(f"{where}: each batch must be a pair (x, y), got {found}")
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
    """Number of batches, None where it is not known."""
    return len(loader) if hasattr(loader, "__len__") else None


class FlipCounter:
    """Counts binary weights that have changed since the last call (larq's flip_ratio).

    The weights are those that the layers compute with, `Module.binary_weights`: AdaBin takes the
    signs of centred latent weights, and a ternary layer has three levels.

    Parameters
    ----------
    model : Module
    """

    def __init__(self, model):
        self._model = model
        self._weights = model.binary_weights()

    def ratio(self):
        """Share of weights changed since the last call; 0 for a model without binary weights."""
        before, self._weights = self._weights, self._model.binary_weights()
        flips = sum(np.count_nonzero(w != before[name]) for name, w in self._weights.items())
        return flips / max(1, sum(w.size for w in self._weights.values()))


def fit(
    model,
    train,
    *,
    epochs,
    optimizer,
    schedule=None,
    schedule_unit="epoch",
    loss=F.cross_entropy,
    validation=None,
    history=None,
    checkpoint=None,
    progress=True,
    threads=None,
):
    """Train a model, and leave it in evaluation mode.

    Parameters
    ----------
    model : Module
    train, validation : DataLoader, or any iterable of batches (x, y)
        A list of pairs of arrays, say; not an iterator, which has one epoch in it. `validation`
        (optional) is evaluated after each epoch. Make choices on it, and leave the test set for
        the end.
    epochs : int
        How many to train; with `checkpoint`, how many the history shall have in the end.
    optimizer : Optimizer
    schedule : Schedule, optional
    schedule_unit : 'epoch' or 'batch'
        After what the schedule is stepped.
    loss : callable
        (outputs Tensor, labels array) -> Tensor with one element.
    history : History, optional
        Rows are added to it, also when training is interrupted.
    checkpoint : path, optional
        A file that is written before the first epoch and after each one. If it exists already, it
        is read first, and training goes on after its last complete epoch exactly as if nothing had
        happened; with `epochs` reached, nothing is left to train. See `Checkpoint`.
    progress : bool
        Show a progress bar with loss, accuracy and the ratio of flipped signs on stderr.
    threads : int, optional
        How many the kernels use; by default all cores, or what
        `tinybnn.kernels.machine.threads.num_threads` says. The weights are the same, bit for bit,
        for any number: kernels share out their work so that no sum depends on it, and NumPy's
        products run on one thread.

    Returns
    -------
    History

    Raises
    ------
    FloatingPointError
        If the loss is not finite: training on would only hide where it broke.
    TypeError
        If `train` or `validation` gives no batches (x, y).
    ValueError
        If there is no batch, if the optimizer has none of the model's parameters, or if
        `checkpoint` is of a run with another model, optimizer, ...: it says what differs.
    StorageError
        If `checkpoint` is damaged. It is never overwritten then.
    OSError
        If `checkpoint` cannot be written. The file of the epoch before stays.
    """
    # Here, since the import of tinybnn does not wait for that of Numba.
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
                    found = evaluate(model, validation, loss, progress)
                    row.update((f"val_{name}", value) for name, value in found.items())
                history.rows.append(row)
                if checkpoint is not None:
                    state.save()
                bar.set_postfix_str(_figures(row))
    finally:
        model.eval()
    return history


BAR = "{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # in 80 columns


def _figures(row):
    """What the bar says of an epoch, shortly."""
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
    """The rows that a checkpoint gave back are those of `fit`."""
    columns = {"epoch", "lr", "loss", "flip_ratio", "seconds"}
    if validation is not None:
        columns.add("val_loss")
    for row in history.rows:
        found = [row.get(name) for name in columns | row.keys()]
        if not all(isinstance(value, Number) for value in found):
            raise storage.StorageError(
                f"{path}: not a valid checkpoint: its history lacks one of the numbers "
                f"{', '.join(sorted(columns))}"
            )


def _train_epoch(model, train, optimizer, loss, each_batch, bar, epoch):
    """One pass over the data: mean loss and accuracy over its samples."""
    model.train()
    total_loss = right = count = 0
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
        found = None if right is None else _right_or_none(logits.data, y, loss)
        right = None if found is None else right + int(np.count_nonzero(found))
        count += len(y)
        bar.update()
    if not count:
        raise _no_batches("fit", train)
    row = {"loss": total_loss / count}
    return row if right is None else {**row, "accuracy": right / count}


# ------------------------------------------------------------------------------------- checkpoints


class Checkpoint:
    """Everything that training changes, as a file.

    `fit` uses it; a training loop of your own can, too: `restore` before the loop, and `save` where
    all is complete, say after each epoch.

    Random generators are found by themselves: the default one, and those that can be reached from
    attributes of the model's layers and of the loaders. One that several share stays shared. Their
    seeds must be the same when training goes on, except that the default generator may be seeded
    on one side alone: a run with generators of its own need not call `tinybnn.manual_seed`, and
    whoever called it for something else can still go on with that run.

    Results are equal bit for bit where the arithmetic is: on the same kind of processor, with the
    same versions of NumPy and Numba.

    Parameters
    ----------
    path : str or PathLike
    model : Module
    optimizer : Optimizer
    schedule : Schedule, optional
    train, validation : DataLoader, optional
    history : History, optional
    settings : dict, optional
        Whatever else must be the same when training goes on, as JSON values.
    """

    KIND, VERSION = "checkpoint", 2

    def __init__(
        self,
        path,
        model,
        optimizer,
        schedule=None,
        train=None,
        validation=None,
        history=None,
        settings=None,
    ):
        self.path = os.fspath(path)
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.history = History() if history is None else history
        self._generators = _find_generators(model=model, train=train, validation=validation)
        self._fixed = {
            "model": _describe_model(model, _moved_by(schedule)),
            "train": _describe_loader(train),
            "validation": _describe_loader(validation),
            "random generators": {
                name: {"kind": type(g.bit_generator).__name__, "seed": _seed(g)}
                for name, g in self._generators.items()
            },
            **(settings or {}),
        }

    def __reduce_ex__(self, protocol):
        raise TypeError(
            "Checkpoint: belongs to one file and to the objects that it restores; copy these, and "
            "make a Checkpoint of them"
        )

    def save(self):
        """Write the file, atomically; returns its size in bytes.

        Raises
        ------
        OSError
            Naming the path. An older checkpoint stays as it was.
        """
        arrays = {f"model.{name}": array for name, array in self.model.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        for i, state in optimizer["state"].items():
            arrays.update((f"optimizer.{i}.{name}", array) for name, array in state.items())
        metadata = {
            "run": self._description(),
            "param_groups": optimizer["param_groups"],
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "random": {
                name: _as_json(g.bit_generator.state) for name, g in self._generators.items()
            },
            "history": _as_json(self.history.rows),
        }
        return storage.save(
            self.path, arrays, kind=self.KIND, version=self.VERSION, metadata=metadata
        )

    def restore(self):
        """Read the file and put all back where it was, into the same objects.

        Returns
        -------
        bool
            False if there is no file, and so nothing to restore.

        Raises
        ------
        StorageError
            If the file is damaged or no checkpoint.
        ValueError
            If it is of a run with another model, optimizer, schedule, loader or seed: the message
            says what differs. Nothing has been changed then.
        """
        try:
            arrays, metadata = _read(self.path)
            version = storage.read_header(self.path)["version"]
        except FileNotFoundError:
            return False
        then, now = metadata["run"], json.loads(json.dumps(self._description()))
        with storage.expecting(self.path, "checkpoint"):
            if version == 1:
                now = _as_in_version_1(now, then, self.model)
            default = then["random generators"]["default"]
            other = now["random generators"]["default"]
            if default["seed"] is None or other["seed"] is None:
                other["seed"] = default["seed"]
            different = list(_differences(then, now))
        if different:
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise ValueError(
                f"{self.path} is the checkpoint of another run: {different[0]}{more}; "
                "choose another path, or delete the file to start anew"
            )
        if version == 1:
            warnings.warn(
                f"{self.path} was written by version 0.1, which noted less of the layers' settings "
                "and no transforms: only what it noted was compared with this run",
                stacklevel=2,
            )
        with storage.expecting(self.path, "checkpoint"):
            rows, state = _rows(metadata), {}
            for name, array in _below("optimizer.", arrays).items():
                i, name = name.split(".", 1)
                state.setdefault(i, {})[name] = array
            self.model.load_state_dict(_below("model.", arrays))
            groups = metadata["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            if self.schedule:
                self.schedule.load_state_dict(metadata["schedule"])
            for name, generator in self._generators.items():
                generator.bit_generator.state = metadata["random"][name]
            self.history.rows[:] = rows
        return True

    def _description(self):
        """What must be the same when training goes on, by name."""
        groups = []
        for (group, rate), entry in zip(
            self.optimizer.rates, self.optimizer.state_dict()["param_groups"], strict=True
        ):
            moving = {rate} if f"initial_{rate}" in group else set()  # a schedule moves the rate
            moving |= {
                name for part in _parts(self.schedule) for name in getattr(part, "moves", ())
            }
            groups.append({k: v for k, v in entry.items() if k not in moving})
        parts = getattr(self.optimizer, "optimizers", [self.optimizer])
        schedule = None
        if self.schedule:
            schedule = {"kind": type(self.schedule).__name__, **self.schedule.state_dict()}
            del schedule["last_epoch"]
        return {
            **self._fixed,
            "optimizer": " and ".join(type(part).__name__ for part in parts),
            "settings of the optimizer": groups,
            "schedule": schedule,
        }


def load_weights(path, model):
    """Give a model the weights of a checkpoint, and nothing else.

    Parameters
    ----------
    path : str or PathLike
        A file that `fit` or `Checkpoint` wrote.
    model : Module
        With the names and shapes of the model that was trained.

    Returns
    -------
    History
        Of the training so far.

    Raises
    ------
    StorageError
        If the file is damaged or no checkpoint.
    KeyError, ValueError
        If it holds another model.
    """
    arrays, metadata = _read(os.fspath(path))
    with storage.expecting(path, "checkpoint"):
        history = History(_rows(metadata))
    model.load_state_dict(_below("model.", arrays))
    return history


def _read(path):
    """Arrays and metadata of a checkpoint."""
    try:
        arrays, metadata = storage.load(path, kind=Checkpoint.KIND, version=Checkpoint.VERSION)
        if metadata.keys() != {"run", "param_groups", "schedule", "random", "history"}:
            raise storage.StorageError(f"{path}: damaged: its metadata is of no checkpoint")
    except storage.StorageError as error:
        raise storage.StorageError(
            f"{error}; training cannot go on from it: delete the file to start anew, "
            "or choose another path"
        ) from None
    return arrays, metadata


def _below(prefix, arrays):
    """The arrays whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def _rows(metadata):
    """Rows of a history; numbers that JSON cannot hold were stored as text."""
    return [
        {k: float(v) if isinstance(v, str) else v for k, v in row.items()}
        for row in metadata["history"]
    ]


def _as_json(value):
    """Dicts, lists, arrays and numbers as JSON holds them."""
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _as_json(value.tolist())
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _differences(old, new, where=""):
    """Sentences about where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get("kind") != new.get("kind"):
            yield f"{where}{old.get('kind')} in the checkpoint, {new.get('kind')} here"
            return
        for name in sorted({*old, *new}):
            if name not in new:
                yield f"{where}{name} is in the checkpoint, but not here"
            elif name not in old:
                yield f"{where}{name} is not in the checkpoint"
            else:
                yield from _differences(old[name], new[name], f"{where}{name}: ")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, f"{where}[{i}] ")
    elif old != new:
        yield f"{where}{old!r} in the checkpoint, {new!r} here"


def _describe_model(model, moved):
    """Layers with all that decides what they compute, state with its dtypes and shapes."""
    layers = {
        path or "(top)": {"kind": type(module).__name__, **_settings(module, moved)}
        for path, module in model.named_modules()
    }
    state = {name: f"{a.dtype} {a.shape}" for name, a in model.state_dict().items()}
    return {"layers": layers, "state": state}


def _settings(thing, moved=()):
    """Public attributes of a layer, quantizer or transform, as JSON holds them.

    Without its state, and without what a schedule moves.
    """
    found = {}
    for name, value in vars(thing).items():
        if isinstance(value, LatentParameter):
            found[f"{name}.clip_value"] = value.clip_value
        is_state = isinstance(value, Module | Tensor | np.ndarray | np.random.Generator)
        if name.startswith("_") or name in ("training", "frozen") or is_state:
            continue
        found[name] = _setting(value, moved)
    return _as_json(found)


def _setting(value, moved):
    if isinstance(value, Quantizer):
        own = {} if id(value) in moved else _settings(value, moved)
        return {"kind": type(value).__name__, **own}
    if isinstance(value, list | tuple):
        return [_setting(item, moved) for item in value]
    if isinstance(value, dict):
        return {str(key): _setting(item, moved) for key, item in value.items()}
    if value is None or isinstance(value, Number | str | np.generic):
        return value
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    return _without_addresses(repr(value))


def _without_addresses(text):
    return re.sub(r" at 0x\w+", "", text)  # they differ in each run


def _moved_by(schedule):
    """The quantizers whose steepness a schedule moves, by id; their t is no setting."""
    return {id(q) for part in _parts(schedule) for q in getattr(part, "quantizers", ())}


def _parts(schedule):
    """The schedules that are chained in one."""
    return getattr(schedule, "schedules", [schedule])


# What version 0.1 did not yet print of a layer, as name=value at the start or after a comma.
_NEW_IN_VERSION_2 = re.compile(
    r"(^|, )(input_quantizer|weight_quantizer|quantizer|clip_value|eps|momentum|affine|beta|min_val"
    r"|max_val|start_dim|end_dim)=[^,()]*(\((?:[^()]|\([^()]*\))*\))?"
)


def _as_in_version_1(now, then, model):
    """A description as far as version 0.1 wrote it down: layers as text, with fewer settings."""
    now = {name: _restricted(value, then.get(name)) for name, value in now.items()}
    now["model"]["layers"] = layers = {}
    for path, module in model.named_modules():
        settings = _without_addresses(_NEW_IN_VERSION_2.sub("", module.extra_repr()))
        layers[path or "(top)"] = f"{type(module).__name__}({settings.removeprefix(', ')})"
    return now


def _restricted(value, like):
    """A dict with the keys that another has; anything else as it is."""
    if not (isinstance(value, dict) and isinstance(like, dict)):
        return value
    return {name: _restricted(item, like[name]) for name, item in value.items() if name in like}


def _describe_loader(loader):
    """What tells one loader from another; None stays None."""
    if loader is None:
        return None
    found = {"batches": _length(loader)}
    for name in ("batch_size", "shuffle", "drop_last"):
        if hasattr(loader, name):
            found[name] = getattr(loader, name)
    if hasattr(loader, "transform"):
        found["transform"] = _setting(loader.transform, ())
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, datasets.TensorDataset):
        found["dataset"] = repr(dataset)
        found["targets (CRC-32)"] = zlib.crc32(np.ascontiguousarray(dataset.y).view(np.uint8))
    if hasattr(dataset, "images") and hasattr(dataset, "labels"):
        found["dataset"] = getattr(dataset, "name", None)
        found["images"] = f"{dataset.images.dtype} {dataset.images.shape}"
        found["labels (CRC-32)"] = zlib.crc32(np.ascontiguousarray(dataset.labels).view(np.uint8))
    return found


def _name(function):
    """What a loss is called; a partial function with its settings."""
    if isinstance(function, functools.partial):
        named = [f"{name}={value!r}" for name, value in function.keywords.items()]
        settings = ", ".join([*map(repr, function.args), *named])
        return f"{_name(function.func)}({_without_addresses(settings)})"
    return getattr(function, "__qualname__", type(function).__name__)


_PLAIN = (Number, str, bytes, np.ndarray, np.generic, Tensor, type, ModuleType)


def _find_generators(**places):
    """Every Generator below some objects and the default one, by name; each once.

    Names are paths of attributes, such as ``train.rng`` or ``model.3.rng``.
    """
    found, seen = {}, {}
    stack = [*reversed(places.items()), ("default", default_generator())]
    while stack:
        name, value = stack.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value  # kept, so that no other object gets its id
        if isinstance(value, np.random.Generator):
            found[name] = value
        elif isinstance(value, list | tuple):
            stack.extend((f"{name}.{i}", item) for i, item in enumerate(value))
        elif isinstance(value, dict):
            stack.extend((f"{name}.{key}", item) for key, item in value.items())
        elif hasattr(value, "__dict__"):
            stack.extend((f"{name}.{key}", item) for key, item in vars(value).items())
    return found


def _seed(generator):
    """The seed that somebody chose, an int or a list; None if the system drew one."""
    sequence = getattr(generator.bit_generator, "seed_seq", None)
    entropy = getattr(sequence, "entropy", None)
    if entropy is None:
        return None
    numbers = [int(n) for n in np.ravel(np.array(entropy, object))]
    if max(numbers, default=0) >= 1 << 64:  # NumPy draws 128 bits where no seed is given
        return None
    numbers += [int(n) for n in sequence.spawn_key]
    return numbers[0] if len(numbers) == 1 else numbers
