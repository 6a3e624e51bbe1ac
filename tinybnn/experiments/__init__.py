"""Experiments: each produces one table or figure, or those of one paper.

`runner` carries out every experiment: phases that leave files, resuming, seeds, figures as JSON;
`settings` declares their configurations, and `report` lays out their reports. A file each:
`classifiers`, `fedavg`, and `fedhybnn`, whose tables and pictures are made in `fedhybnn_report`.
A package each, for a paper: `hybnn` and `bdnet`. Computations without training are `ops`,
`bdnet.conditioning`, `demo`, and `claims`, the ledger of both papers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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
    module = importlib.import_module(f"{__name__}.{EXPERIMENTS[name][0]}")
    return module.EXPERIMENTS[name] if hasattr(module, "EXPERIMENTS") else module.EXPERIMENT
