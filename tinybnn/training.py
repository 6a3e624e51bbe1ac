"""The training loop: fit, evaluate, the history of what happened, checkpoints.

A checkpoint holds everything that training changes: the model's state, the optimizer's, the
schedule's, the history, and the state of every random generator that takes part. So a run that was
killed goes on from its last complete epoch to the same final weights, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import zlib
from dataclasses import dataclass, field
from numbers import Number
from types import ModuleType

import numpy as np

from tinybnn import functional as F
from tinybnn import storage
from tinybnn.nn import LatentParameter
from tinybnn.tensor import Tensor, default_generator, no_grad


@dataclass
class History:
    """One row for each epoch.

    Attributes
    ----------
    rows : list of dict
        Keys: epoch (from 1), lr, loss and accuracy (running means over the epoch's training
        batches), flip_ratio (share of latent weights whose sign changed during the epoch),
        seconds; val_loss and val_accuracy where a validation set was given.
    """

    rows: list = field(default_factory=list)

    def __getitem__(self, name):
        """The values of one column, e.g. ``history["loss"]``."""
        return [row[name] for row in self.rows]

    def __len__(self):
        return len(self.rows)


def predict(model, loader):
    """Logits of every sample of a DataLoader, in its order, in evaluation mode.

    Returns
    -------
    logits : (N, classes) float32
    labels : (N,) int64
    """
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            batches = [(model(Tensor(x)).data, y) for x, y in loader]
    finally:
        model.train(was_training)
    if not batches:
        raise ValueError("predict: the loader gave no batches")
    logits, labels = zip(*batches, strict=True)
    return np.concatenate(logits), np.concatenate(labels)


def evaluate(model, loader, loss=F.cross_entropy):
    """Loss and accuracy over a DataLoader, in evaluation mode.

    Returns
    -------
    dict
        ``loss`` (mean over samples) and ``accuracy`` (0 to 1).
    """
    logits, labels = predict(model, loader)
    return {
        "loss": float(loss(logits, labels)),
        "accuracy": accuracy(logits, labels),
    }


def accuracy(logits, labels):
    """Share of rows whose largest logit stands at the label."""
    return float(np.mean(np.argmax(logits, axis=1) == labels))


class FlipCounter:
    """Counts latent weights whose sign has changed since the last call (larq's flip_ratio)."""

    def __init__(self, model):
        self._latents = [p for p in model.parameters() if isinstance(p, LatentParameter)]
        self._signs = [p.data >= 0 for p in self._latents]

    def ratio(self):
        """Share of flipped signs since the last call; 0 for a model without latent weights."""
        now = [p.data >= 0 for p in self._latents]
        flipped = sum(int(np.count_nonzero(a != b)) for a, b in zip(now, self._signs, strict=True))
        self._signs = now
        return flipped / max(1, sum(a.size for a in now))


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
    train, validation : DataLoader
        `validation` (optional) is evaluated after each epoch. Make choices on it, and leave the
        test set for the end.
    epochs : int
        How many to train; with `checkpoint`, how many the history shall have in the end.
    optimizer : Optimizer
    schedule : Schedule, optional
    schedule_unit : 'epoch' or 'batch'
        After what the schedule is stepped.
    loss : callable
        (logits Tensor, labels array) -> Tensor with one element.
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
        `tinybnn.kernels.threads.num_threads` says. The weights are the same, bit for bit, for any
        number: kernels share out their work so that no sum depends on it, and NumPy's products run
        on one thread.

    Returns
    -------
    History

    Raises
    ------
    FloatingPointError
        If the loss is not finite: training on would only hide where it broke.
    ValueError
        If `checkpoint` is of a run with another model, optimizer, ...: it says what differs.
    StorageError
        If `checkpoint` is damaged. It is never overwritten then.
    OSError
        If `checkpoint` cannot be written. The file of the epoch before stays.
    """
    # Here, since the import of tinybnn does not wait for that of Numba.
    from tinybnn.kernels.threads import num_threads, one_blas_thread

    if epochs < 1:
        raise ValueError(f"fit: epochs must be >= 1, got {epochs!r}")
    if schedule_unit not in ("epoch", "batch"):
        raise ValueError(f"fit: schedule_unit must be 'epoch' or 'batch', got {schedule_unit!r}")
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
    bar = tqdm(
        total=(done + max(0, total - len(history))) * len(train),
        initial=done * len(train),
        disable=not progress,
        unit="batch",
    )
    try:
        with bar, num_threads(threads), one_blas_thread():
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
                    found = evaluate(model, validation, loss)
                    row.update(val_loss=found["loss"], val_accuracy=found["accuracy"])
                history.rows.append(row)
                if checkpoint is not None:
                    state.save()
                names = ("loss", "accuracy", "flip_ratio", "val_accuracy")
                bar.set_postfix({k: f"{row[k]:.4f}" for k in names if k in row})
    finally:
        model.eval()
    return history


def _expect_columns(path, history, validation):
    """The rows that a checkpoint gave back are those of `fit`."""
    columns = {"epoch", "lr", "loss", "accuracy", "flip_ratio", "seconds"}
    if validation is not None:
        columns |= {"val_loss", "val_accuracy"}
    for row in history.rows:
        if not all(isinstance(row.get(name), Number) for name in columns):
            raise storage.StorageError(
                f"{path}: not a valid checkpoint: its history lacks one of the numbers "
                f"{', '.join(sorted(columns))}"
            )


def _train_epoch(model, train, optimizer, loss, each_batch, bar, epoch):
    """One pass over the data: mean loss and accuracy over its samples."""
    model.train()
    total_loss = correct = count = 0
    bar.set_description(f"epoch {epoch}")
    for x, y in train:
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
        correct += int(np.count_nonzero(np.argmax(logits.data, axis=1) == y))
        count += len(y)
        bar.update()
    return {"loss": total_loss / count, "accuracy": correct / count}


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

    KIND, VERSION = "checkpoint", 1

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
            "model": _describe_model(model),
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
        except FileNotFoundError:
            return False
        then, now = metadata["run"], json.loads(json.dumps(self._description()))
        with storage.expecting(self.path, "checkpoint"):
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


def _describe_model(model):
    """Layers with their settings, state with its dtypes and shapes."""
    layers = {}
    for path, module in model.named_modules():
        settings = re.sub(r" at 0x\w+", "", module.extra_repr())  # addresses differ in each run
        layers[path or "(top)"] = f"{type(module).__name__}({settings})"
    state = {name: f"{a.dtype} {a.shape}" for name, a in model.state_dict().items()}
    return {"layers": layers, "state": state}


def _describe_loader(loader):
    """What tells one loader from another; None stays None."""
    if loader is None:
        return None
    found = {"batches": len(loader)}
    for name in ("batch_size", "shuffle", "drop_last"):
        if hasattr(loader, name):
            found[name] = getattr(loader, name)
    dataset = getattr(loader, "dataset", None)
    if hasattr(dataset, "images") and hasattr(dataset, "labels"):
        found["dataset"] = getattr(dataset, "name", None)
        found["images"] = f"{dataset.images.dtype} {dataset.images.shape}"
        found["labels (CRC-32)"] = zlib.crc32(np.ascontiguousarray(dataset.labels).view(np.uint8))
    return found


def _name(function):
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
