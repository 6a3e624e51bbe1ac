"""The demonstration: train a binary CNN on the bundled digits, pack it, prove both equal."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinybnn import datasets, deploy, models, nn, optim, plots, runs, training
from tinybnn.autograd import Tensor, no_grad
from tinybnn.kernels.machine import exact
from tinybnn.typing import FloatArray


def run(
    epochs: int = 20, seed: int = 0, progress: bool = True, say: Callable[[str], Any] = print
) -> tuple[dict[str, Any], nn.Module, training.History]:
    """Run the demonstration.

    Parameters
    ----------
    epochs, seed : int
    progress : bool
        Show a progress bar.
    say : callable
        Takes a line of text at a time.

    Returns
    -------
    result : dict
        The figures, ready for JSON.
    model : Module
        The trained float model, in eval mode.
    history : training.History
    """
    train, test = datasets.load("digits")
    train, validation = train.split(0.1, rng=seed)
    rng = np.random.default_rng(seed)
    model = models.cnn(train.images.shape[1:], len(train.classes), padding=1, rng=rng)
    say(
        f"A binary CNN on {len(train):,} handwritten digits of 8×8 pixels, "
        f"{len(validation)} more to validate, {len(test)} to test."
    )
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    history = training.fit(
        model,
        datasets.DataLoader(train, batch_size=64, shuffle=True, rng=rng),
        epochs=epochs,
        optimizer=optimizer,
        schedule=optim.CosineAnnealingLR(optimizer, epochs),
        validation=datasets.DataLoader(validation, batch_size=256),
        progress=progress,
    )

    packed = deploy.compile(model, test.images.shape[1:])
    x, labels = next(iter(datasets.DataLoader(test, batch_size=len(test))))
    compared = deploy.verify(model, packed, x)
    logits = packed.predict(x)
    identical = int(exact.identical(logits, float_logits(model, x)).all(1).sum())
    say(
        f"Packed: {compared:,} values inside the network compared, all equal; "
        f"{identical} of {len(test)} test images with identical logits."
    )
    batch, one = x[:256], x[:1]
    result = {
        "epochs": epochs,
        "seed": seed,
        "train_seconds": round(sum(history["seconds"]), 2),
        "validation_accuracy": history["val_accuracy"][-1],
        "test_accuracy": training.accuracy(logits, labels),
        "identical_logits": identical,
        "test_images": len(test),
        "float_bytes": runs.float_bytes(model),
        "packed_bytes": packed.nbytes,
        "float_us_per_image": best_seconds(lambda: float_logits(model, batch)) / len(batch) * 1e6,
        "packed_us_per_image": best_seconds(lambda: packed.predict(batch)) / len(batch) * 1e6,
        "float_us_one_image": best_seconds(lambda: float_logits(model, one)) * 1e6,
        "packed_us_one_image": best_seconds(lambda: packed.predict(one)) * 1e6,
    }
    for row in table_rows(result):
        say("  {:<30}{:>14}{:>14}".format(*row))
    return result, model, history


def float_logits(model: nn.Module, x: FloatArray) -> FloatArray:
    """Return the float model's logits (N, classes) for a batch (N, ...) float32."""
    with no_grad():
        return model(Tensor(x)).data


def best_seconds(function: Callable[[], Any], runs: int = 7) -> float:
    """Return the shortest of several runs, after one that is not counted."""
    function()
    return min(timeit.repeat(function, number=1, repeat=runs))


def table_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the result as rows (what, float, packed), header first."""
    accuracy = f"{result['test_accuracy']:.2%}"
    pairs = (
        ("bytes", "float_bytes", "packed_bytes", "{:,}"),
        ("µs an image, 256 at a time", "float_us_per_image", "packed_us_per_image", "{:.1f}"),
        ("µs an image, one at a time", "float_us_one_image", "packed_us_one_image", "{:.0f}"),
    )
    return [
        ("", "float", "packed"),
        ("test accuracy", accuracy, accuracy),
        *((what, form.format(result[a]), form.format(result[b])) for what, a, b, form in pairs),
    ]


def draw(
    path: str | Path, result: dict[str, Any], model: nn.Module, history: training.History
) -> None:
    """Draw the training curve, filters as bits and the table in one picture."""
    figure = plots.figure(figsize=(11, 6.5))
    curve, sheet, dense, table = figure.subplots(2, 2, width_ratios=(3, 2)).flat
    plots.history(history, ax=curve)
    curve.set_title("Training a binary CNN on 8×8 digits")
    binary = [m for m in model.modules() if isinstance(m, nn.BinaryConv2d | nn.BinaryLinear)]
    plots.filters(binary[0].binary_weight(), title="its first 3×3 filters", ax=sheet)
    plots.signs(
        binary[-2].binary_weight()[:, :128],
        "weights of a dense layer: orange +1, blue -1 (128 of its inputs)",
        ax=dense,
    )
    header, *rows = table_rows(result)
    plots.table(rows, header, ax=table)
    identical = f"{result['identical_logits']} of {result['test_images']} test images"
    table.set_title(f"Float and packed: identical logits on\n{identical}", y=0.84)
    plots.save(figure, path)
