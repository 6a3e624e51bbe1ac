"""Federated learning: many clients train one model, and none of them shares its data.

>>> import numpy as np
>>> from tinybnn import datasets, models
>>> train, test = datasets.load("digits")
>>> def build():
...     return models.mlp(64, (32,), 10, rng=np.random.default_rng(0))
>>> strategy = SignOfUpdate(step=0.02)
>>> parts = iid(len(train), clients=3)
>>> clients = [Client(k, train[part], build(), strategy) for k, part in enumerate(parts)]
>>> server = Server(build(), strategy)
>>> history = run_rounds(server, clients, 2, epochs=1, batch_size=32, progress=False)
>>> history["bytes_up"], round(history.ledger.saving("up"), 1)
([3348, 3348], 9.2)

`partition` divides a data set, `aggregation` holds the strategies, `head` selects the shared part
of a model, `wire` encodes it, and `rounds` is the loop of a simulation in one process.
`Client.train` and `Server.receive` take bytes, so that any transport can connect them.
"""

from collections.abc import Callable

from tinybnn.federated.aggregation import (
    Aggregation,
    FedAvg,
    MajorityVote,
    SignOfUpdate,
    StochasticSign,
)
from tinybnn.federated.client import Client
from tinybnn.federated.head import Head, calibrate_norms
from tinybnn.federated.partition import by_label, by_size, dirichlet, iid, shards
from tinybnn.federated.rounds import Ledger, RoundError, RoundHistory, Transfer, run_rounds
from tinybnn.federated.server import RejectedError, Server
from tinybnn.federated.wire import WireError

__all__ = [
    "Aggregation", "Client", "FedAvg", "Head", "Ledger", "MajorityVote", "RejectedError",
    "RoundError", "RoundHistory", "Server", "SignOfUpdate", "StochasticSign", "Transfer",
    "WireError", "by_label", "by_size", "calibrate_norms", "dirichlet", "iid", "run_rounds",
    "shards",
]  # fmt: skip
__dir__: Callable[[], list[str]] = __all__.copy  # dir() lists the public names only
