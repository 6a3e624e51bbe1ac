"""What both sides share: the network, the strategy, and the partition of the digits.

Change this file for your own federation. `config` holds the settings of pyproject.toml, with the
changes of `flwr run --run-config`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinybnn import datasets, federated, models, nn

STRATEGIES: dict[str, Callable[[], federated.Aggregation]] = {
    "fedavg": federated.FedAvg,
    "float16": lambda: federated.FedAvg("float16"),
    "stochastic": federated.StochasticSign,
    "sign": lambda: federated.SignOfUpdate(0.02),
    "sign-both": lambda: federated.SignOfUpdate(0.02, both=True),
    "vote": federated.MajorityVote,
}


def network(config: dict[str, Any]) -> nn.Module:
    """Build the network; the seed gives all sides the same first weights."""
    rng, norm = np.random.default_rng(config["seed"]), config["norm"]
    if norm in ("none", "layer"):  # no statistics that clients would have to share
        return models.mlp(64, (128,), 10, rng=rng, norm=norm)
    model = models.mlp(64, (128,), 10, rng=rng)
    # Inputs that are no client's and known to all, for batch norms that nobody will train.
    if norm == "frozen":
        x = np.random.default_rng(config["seed"]).uniform(-1, 1, (256, 1, 8, 8))
        federated.calibrate_norms(model, x.astype(np.float32))
    return model


def server(config: dict[str, Any]) -> federated.Server:
    return federated.Server(
        network(config), strategy(config), norm=batch_norms(config), minimum=config["minimum"],
        seed=config["seed"],
    )  # fmt: skip


def client(number: int, clients: int, config: dict[str, Any]) -> federated.Client:
    """Build a client. Here it takes its part of a common data set; yours would read its files."""
    train, _ = datasets.load("digits")
    if config["partition"] == "label":
        parts = federated.shards(train.labels, clients, rng=config["seed"])
    else:
        parts = federated.iid(len(train), clients, rng=config["seed"])
    return federated.Client(
        number, train[parts[number]], network(config), strategy(config), norm=batch_norms(config),
        seed=config["seed"],
    )  # fmt: skip


def batch_norms(config: dict[str, Any]) -> str:
    """Return how batch norms are treated; a network without any has none to treat."""
    return config["norm"] if config["norm"] in federated.head.NORMS else "average"


def strategy(config: dict[str, Any]) -> federated.Aggregation:
    return STRATEGIES[config["strategy"]]()


def validation(config: dict[str, Any]) -> datasets.DataLoader:
    """Make a loader of digits on which the server evaluates."""
    return datasets.DataLoader(datasets.load("digits")[1], 500)
