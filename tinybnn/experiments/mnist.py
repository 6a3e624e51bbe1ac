"""Binary networks on MNIST: accuracy over seeds, size, and exactness of the packed model.

The recipes were chosen on the last 5,000 training images (``validate=True``); the figures that are
reported come from training on all 60,000 images and one look at the test set after the last epoch.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinybnn import datasets, deploy, models, optim, training
from tinybnn.storage import write_atomic


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained: Adam, cosine to 0, cross entropy."""

    build: Callable  # (input_shape, rng) -> Module
    epochs: int
    batch_size: int
    lr: float


RECIPES = {
    "mnist-cnn": Recipe(
        build=lambda shape, rng: models.cnn(shape, rng=rng), epochs=6, batch_size=64, lr=5e-3
    ),
}


def run(name, out, dataset="mnist", seeds=3, epochs=None, validate=False, progress=True, say=print):
    """Train one network for each seed and compare each with its packed form on all test images.

    Parameters
    ----------
    name : str
        A key of `RECIPES`.
    out : path
        Folder of the results, ``<name>.json``; written after each seed.
    dataset : str
    seeds : int
        Seeds 0, 1, ...
    epochs : int, optional
        Instead of the recipe's.
    validate : bool
        Hold the last 5,000 training images out and test on them: for choosing a recipe.
    progress : bool
    say : callable
        Gets a line of text at a time.

    Returns
    -------
    dict
        The figures, as in the file.
    """
    recipe = RECIPES[name]
    epochs = recipe.epochs if epochs is None else epochs
    train, test = datasets.load(dataset)
    if validate:
        train, test = train[:-5000], train[-5000:]
    result = {
        "name": name,
        "dataset": dataset,
        "tested_on": "held-out training images" if validate else "test set",
        "epochs": epochs,
        "batch_size": recipe.batch_size,
        "lr": recipe.lr,
        "processor": _processor(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": [],
    }
    for seed in range(seeds):
        row = _one_seed(recipe, train, test, seed, epochs, progress)
        result["runs"].append(row)
        accuracies = [r["accuracy"] for r in result["runs"]]
        result["accuracy_mean"] = float(np.mean(accuracies))
        result["accuracy_std"] = float(np.std(accuracies, ddof=1)) if seed else None
        path = Path(out) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(result, indent=2) + "\n").encode())
        say(
            f"seed {seed}: accuracy {row['accuracy']:.2%} after {epochs} epochs "
            f"({row['seconds']:.0f} s); identical logits on {row['identical_logits']:,} of "
            f"{len(test):,} images; {row['packed_bytes']:,} bytes packed"
        )
    spread = f" ± {result['accuracy_std']:.2%}" if seeds > 1 else ""
    say(f"{name}: {result['accuracy_mean']:.2%}{spread} over {seeds} seeds ({result['tested_on']})")
    return result


def _one_seed(recipe, train, test, seed, epochs, progress):
    rng = np.random.default_rng(seed)
    shape = train.images.shape[1:]
    model = recipe.build(shape, rng)
    loader = datasets.DataLoader(
        train, batch_size=recipe.batch_size, shuffle=True, drop_last=True, rng=rng
    )
    optimizer = optim.Adam(model.parameters(), lr=recipe.lr)
    start = time.perf_counter()
    history = training.fit(
        model,
        loader,
        epochs=epochs,
        optimizer=optimizer,
        schedule=optim.CosineAnnealingLR(optimizer, epochs * len(loader)),
        schedule_unit="batch",
        progress=progress,
    )
    seconds = time.perf_counter() - start
    test_loader = datasets.DataLoader(test, batch_size=500)
    logits, labels = training.predict(model, test_loader)
    packed = deploy.compile(model, shape)
    packed_logits = np.concatenate([packed.predict(x) for x, _ in test_loader])
    return {
        "seed": seed,
        "accuracy": training.accuracy(logits, labels),
        "loss": float(history["loss"][-1]),
        "seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "identical_logits": int(np.all(packed_logits == logits, axis=1).sum()),
        "images": len(labels),
        "packed_bytes": packed.nbytes,
    }


def _processor():
    """The processor's model name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
