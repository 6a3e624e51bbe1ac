"""The training loop: fit, evaluate, and the history of what happened."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from tinybnn import functional as F
from tinybnn.nn import LatentParameter
from tinybnn.tensor import Tensor, no_grad


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
        "loss": float(as_number(loss(logits, labels))),
        "accuracy": accuracy(logits, labels),
    }


def accuracy(logits, labels):
    """Share of rows whose largest logit stands at the label."""
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def as_number(x):
    """The value of a Tensor or array with one element."""
    return x.item() if hasattr(x, "item") else x


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
    progress=True,
):
    """Train a model.

    Parameters
    ----------
    model : Module
    train, validation : DataLoader
        `validation` (optional) is evaluated after each epoch. Make choices on it, and leave the
        test set for the end.
    epochs : int
    optimizer : Optimizer
    schedule : Schedule, optional
    schedule_unit : 'epoch' or 'batch'
        After what the schedule is stepped.
    loss : callable
        (logits Tensor, labels array) -> Tensor with one element.
    history : History, optional
        Rows are added to it, also when training is interrupted.
    progress : bool
        Show a progress bar with loss, accuracy and the ratio of flipped signs.

    Returns
    -------
    History

    Raises
    ------
    FloatingPointError
        If the loss is not finite: training on would only hide where it broke.
    """
    if epochs < 1:
        raise ValueError(f"fit: epochs must be >= 1, got {epochs!r}")
    if schedule_unit not in ("epoch", "batch"):
        raise ValueError(f"fit: schedule_unit must be 'epoch' or 'batch', got {schedule_unit!r}")
    each_batch = schedule.step if schedule and schedule_unit == "batch" else None
    history = History() if history is None else history
    flips = FlipCounter(model)
    first = len(history) + 1
    with tqdm(total=epochs * len(train), disable=not progress, unit="batch") as bar:
        for epoch in range(first, first + epochs):
            start = time.perf_counter()
            row = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}
            row.update(_train_epoch(model, train, optimizer, loss, each_batch, bar, epoch))
            row["flip_ratio"] = flips.ratio()
            if schedule and schedule_unit == "epoch":
                schedule.step()
            row["seconds"] = time.perf_counter() - start
            if validation is not None:
                found = evaluate(model, validation, loss)
                row.update(val_loss=found["loss"], val_accuracy=found["accuracy"])
            history.rows.append(row)
            shown = {k: f"{row[k]:.4f}" for k in ("loss", "accuracy", "flip_ratio")}
            if validation is not None:
                shown["val_accuracy"] = f"{row['val_accuracy']:.4f}"
            bar.set_postfix(shown)
    model.eval()
    return history


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
