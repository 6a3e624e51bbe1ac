"""The experiments by name, and their reports written again."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinybnn.storage import StorageError, read_json

if TYPE_CHECKING:
    from tinybnn.experiments.runner import Experiment

# Name -> the module of an experiment, and a line for lists of them.
EXPERIMENTS: dict[str, tuple[str, str]] = {
    "mnist-cnn": ("classifiers", "a small binary CNN on MNIST: accuracy over seeds"),
    "mnist-mlp": ("classifiers", "dense layers of 256 on MNIST, all of 1 bit: accuracy over seeds"),
    "mnist-mlp-1024": (
        "classifiers", "dense layers of 1024 on MNIST, all of 1 bit: accuracy over seeds"
    ),
    "cifar10-vgg-small": ("classifiers", "VGG-small on CIFAR-10: accuracy over seeds"),
    "hybnn": (
        "hybnn.experiment", "HyBNN's tasks, with its baselines: accuracy, codes, times"
    ),
    "hybnn-bounds": (
        "hybnn.bounds", "estimators of gradients through binary latents, by the bound they reach"
    ),
    "fedhybnn": (
        "fedhybnn", "HyBNN's heads trained by clients: accuracy against bytes on the wire"
    ),
    "fedavg": ("fedavg", "McMahan's 2NN on MNIST: rounds of federated averaging to 97%"),
    "bdnet-ablation": (
        "bdnet.experiment", "BD-Net's Table 6: binary depth-wise convolutions, part by part"
    ),
    "bdnet-training": (
        "bdnet.experiment", "BD-Net-A in one step or two, with a teacher and without"
    ),
    "bdnet-fronts": (
        "bdnet.fronts", "mobile networks of equal operations, bytes or milliseconds"
    ),
    "bdnet-table2": (
        "bdnet.experiment", "mobile networks: accuracy against operations and measured time"
    ),
    "hessian": (
        "bdnet.curvature", "BD-Net's Figure 5: the largest eigenvalues of the Hessian"
    ),
    "landscape": ("bdnet.landscape", "BD-Net's Figures 2 and 6: loss landscapes"),
}  # fmt: skip


def load(name: str) -> Experiment:
    """Import the experiment of a name, a key of `EXPERIMENTS`."""
    module = importlib.import_module(f"tinybnn.experiments.{EXPERIMENTS[name][0]}")
    return module.EXPERIMENTS[name] if hasattr(module, "EXPERIMENTS") else module.EXPERIMENT


def write_again(folder: str | Path, say: Callable[[str], Any] = print) -> None:
    """Rewrite the reports of a run, and the pictures that its figures give; nothing is trained.

    Parameters
    ----------
    folder : path
        With the complete figures of an experiment.
    say : callable
        Takes a line of text at a time.

    Raises
    ------
    StorageError
        If there are none, or they are not the figures of an experiment.
    """
    folder = Path(folder)
    paths = [folder / f"{stem}.json" for stem in ("result", *EXPERIMENTS)]
    for path in [path for path in paths if path.exists()] or paths[:1]:
        result = read_json(path)
        experiment = experiment_of(result, path)
        try:
            experiment.write_report(folder, result)
        except KeyError as error:
            raise StorageError(
                f"{path} lacks {error}; was the run stopped before its end?"
            ) from None
        say(f"{folder / experiment.report}.md")


def experiment_of(result: Any, path: Path) -> Experiment:
    """Return the experiment whose figures a file holds."""
    name = result.get("name") if isinstance(result, dict) else None
    if name not in EXPERIMENTS:
        raise StorageError(
            f"{path} is no result of an experiment: expected one of {', '.join(EXPERIMENTS)}"
        )
    return load(name)
