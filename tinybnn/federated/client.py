"""A client of federated learning: it trains on its own data, and sends nothing but updates.

Its messages are bytes, so it does not matter whether the server is in the same process or on
another machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import tinybnn.federated.aggregation as rules
import tinybnn.federated.wire as wire
from tinybnn import functional as F
from tinybnn import optim
from tinybnn.autograd import Tensor
from tinybnn.datasets import DataLoader
from tinybnn.federated.head import Head
from tinybnn.nn import Module
from tinybnn.training import evaluate, fit
from tinybnn.typing import Array


class Client:
    """A client, which holds data and a copy of the model.

    Each round creates a new optimizer, and a random generator seeded by ``[seed, number, round]``
    for the order of samples, dropout, and the stochastic rounding of updates. Only what `state`
    returns is kept between rounds; from the same state and message, a round gives the same update,
    bit for bit.

    Parameters
    ----------
    number : int
        Identifies the client, from 0 to 2**32 - 1.
    dataset : Dataset
    model : Module
        Same architecture and frozen parts as the server's model. It is modified.
    aggregation : Aggregation
        The same as the server's.
    norm : 'average', 'local' or 'frozen'
        How batch norms are treated, the same as on the server; see `Head`.
    optimizer : callable, optional
        parameters -> Optimizer, called in each round. Default: Adam with lr=0.01.
    loss, transform
        As for `training.fit` and `datasets.DataLoader`.
    lr_decay : float
        In (0, 1]: in round t the optimizer's rate is multiplied by ``lr_decay ** (t - 1)``. On
        clients that differ, federated averaging with a constant rate does not approach the optimum
        (Li et al. 2020, "On the convergence of FedAvg on non-IID data", theorem 4).
    proximal : float
        μ of FedProx: the clients minimize ``loss + μ/2 ‖w - w_t‖²``, with w the shared parameters
        and w_t their values at the start of the round (Li et al. 2020, "Federated optimization in
        heterogeneous networks", eq. 2). 0 is federated averaging.
    seed : int

    Attributes
    ----------
    number : int
    samples : int
        Number of samples in the data set, by which the server weights the client's updates.
    version : int or None
        Version of the server's weights that the client has kept, or None. To a client that has
        kept them, the server may broadcast only the signs of the steps taken since.
    """

    def __init__(
        self,
        number: int,
        dataset: Any,
        model: Module,
        aggregation: rules.Aggregation,
        *,
        norm: str = "average",
        optimizer: Callable[..., Any] | None = None,
        loss: Callable[..., Tensor] = F.cross_entropy,
        transform: Callable[..., Array] | None = None,
        lr_decay: float = 1.0,
        proximal: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= number < 1 << 32:
            raise ValueError(f"Client: number must be from 0 to 2**32 - 1, got {number!r}")
        if not len(dataset):
            raise ValueError(f"Client: client {number} has no samples")
        if not 0 < lr_decay <= 1:
            raise ValueError(f"Client: lr_decay must be above 0, and at most 1, got {lr_decay!r}")
        if not 0 <= proximal < math.inf:
            raise ValueError(f"Client: proximal must be a number >= 0, got {proximal!r}")
        self.number: int = int(number)
        self.samples: int = len(dataset)
        self.version: int | None = None
        self._dataset, self._model, self._aggregation = dataset, model, aggregation
        self._head = Head(model, norm)
        self._optimizer = _adam if optimizer is None else optimizer
        self._loss, self._transform, self._seed = loss, transform, seed
        self._drift = {
            name: float(value)
            for name, value, usual in (("lr_decay", lr_decay, 1), ("proximal", proximal, 0))
            if value != usual
        }
        self._replica = None  # the shared state of `version`
        self._local = self._head.read_local()

    def train(self, message: bytes, *, epochs: int = 1, batch_size: int | None = 10) -> bytes:
        """Load the server's state, train on the client's data, and return an update.

        Parameters
        ----------
        message : bytes
            From `Server.broadcast`.
        epochs : int
            E, the number of passes over the data.
        batch_size : int or None
            B, the batch size; None for all samples at once. Batch norms that are trained need two
            samples, so with them a last batch of one sample is left out.

        Returns
        -------
        bytes
            The update, for `Server.receive`.

        Raises
        ------
        WireError
            If the message is damaged, or if server and client do not match. Model and local state
            are unchanged; if the copy of the server's weights turns out to differ from the
            server's, it is dropped, so that the next broadcast must be complete.
        FloatingPointError
            If the loss is not finite.
        """
        header, before = self._open(message)
        if self._aggregation.down == "steps":
            self._replica, self.version = before, header.version
        arrays = self.update(before, header.round, epochs=epochs, batch_size=batch_size)
        answer = wire.Header(
            "update", header.round, header.version, self._head.digest, header.token,
            client=self.number, samples=self.samples,
        )  # fmt: skip
        fields = rules.fields(self._aggregation, self._head.entries, "up")
        return wire.encode(answer, list(arrays.values()), list(fields.values()))

    def update(
        self, before: dict[str, Array], round: int, *, epochs: int, batch_size: int | None
    ) -> dict[str, Array]:
        """Train from a shared state, as `train` does from a message.

        Parameters
        ----------
        before : dict of str to array
            The state that the server shares, as from `Head.read`.
        round : int
            Number of the round, which seeds the training together with the client's seed and
            number.
        epochs, batch_size
            As in `train`.

        Returns
        -------
        dict of str to array
            The update, as from `aggregation.update`.
        """
        self._head.write(before, self._local)
        rng = np.random.default_rng([self._seed, self.number, round])
        for module in self._model.modules():
            if hasattr(module, "rng"):  # dropout
                module.rng = rng
        optimizer = self._optimizer(self._model.parameters())
        if "lr_decay" in self._drift:
            for group, rate in optimizer.rates:
                group[rate] *= self._drift["lr_decay"] ** (round - 1)
        fit(
            self._model,
            self._loader(batch_size, rng),
            epochs=epochs,
            optimizer=optimizer,
            loss=self._local_loss(before),
            progress=False,
        )
        self._local = self._head.read_local()
        after = self._head.read()
        return rules.update(self._aggregation, self._head.entries, before, after, rng)

    def _local_loss(self, before):
        """The loss that the client minimizes in a round: FedProx adds the proximal term."""
        if "proximal" not in self._drift:
            return self._loss
        shared = [(p, before[name]) for name, p in self._model.named_parameters() if name in before]

        def loss(output, target):
            distance = sum(((weight - start) ** 2).sum() for weight, start in shared)
            return self._loss(output, target) + 0.5 * self._drift["proximal"] * distance

        return loss

    def evaluate(self, message: bytes, loader: Iterable[tuple[Any, Any]]) -> dict[str, float]:
        """Evaluate the server's state on some data, with the client's own batch norms if local.

        What the client keeps between rounds does not change.

        Parameters
        ----------
        message : bytes
            From `Server.broadcast`.
        loader : DataLoader

        Returns
        -------
        dict
            Loss and accuracy, as in `training.evaluate`.
        """
        self._head.write(self._open(message)[1], self._local)
        return evaluate(self._model, loader, self._loss)

    def _open(self, message):
        """Decode the header and the shared state of a broadcast."""
        header = wire.read_header(message)
        if header.digest != self._head.digest:
            raise wire.WireError("the server has another head, or other frozen parts")
        steps = None
        if header.kind == "steps":
            if self._replica is None or header.since != self.version:
                raise wire.WireError(
                    f"the message has the steps from version {header.since}, but this client holds "
                    f"version {self.version}; send it a complete state"
                )
            steps = header.version - header.since
            if not 0 <= steps <= rules.MOST_STEPS:
                raise wire.WireError(f"a message has 0 to {rules.MOST_STEPS} steps, got {steps}")
        elif header.kind != "state":
            raise wire.WireError(
                f"a client takes messages of kind 'state' or 'steps', got {header.kind!r}"
            )
        fields = rules.fields(self._aggregation, self._head.entries, "down", steps)
        _, state = wire.decode(message, fields)
        for entry in self._head.entries:
            array = state[entry.name]
            if steps is not None and entry.kind == "latent":
                weight = self._replica[entry.name]
                for direction in array.reshape(steps, *entry.shape):
                    weight = self._aggregation.move(weight, direction, entry.clip)
                state[entry.name] = weight
            elif entry.kind != "counter":
                state[entry.name] = array.reshape(entry.shape).astype(np.float32)
        token = wire.token(header.digest, header.round, header.version, state.values())
        if token != header.token:
            self._replica = self.version = None  # the next broadcast is a complete one
            raise wire.WireError("the state differs from the one that the server holds")
        return header, state

    def _loader(self, batch_size, rng):
        size = self.samples if batch_size is None else batch_size
        needs_two = any(e.kind == "mean" for e in self._head.entries) or bool(self._head.local)
        return DataLoader(
            self._dataset,
            size,
            shuffle=True,
            drop_last=needs_two and self.samples > size and self.samples % size == 1,
            transform=self._transform,
            rng=rng,
        )

    # ------------------------------------------------------------------------------------ state

    def describe(self) -> dict[str, Any]:
        """Describe the client that a saved state belongs to, as JSON values."""
        return {
            "number": self.number, "samples": self.samples, "seed": self._seed, **self._drift
        }  # fmt: skip

    def state(self) -> tuple[dict[str, Array], int | None]:
        """Return what the client keeps between rounds: (arrays by name, version).

        The arrays are its batch norms, with norm="local", and its copy of the server's state, if
        the server sends steps; otherwise there are none.
        """
        arrays = {f"local.{name}": array for name, array in self._local.items()}
        arrays.update((f"shared.{name}", array) for name, array in (self._replica or {}).items())
        return arrays, self.version

    def restore(self, arrays: dict[str, Array], version: int | None) -> None:
        """Restore the result of `state`."""
        self._local = {name: np.array(arrays[f"local.{name}"]) for name in self._head.local}
        self._replica, self.version = None, version
        if version is not None:
            names = [entry.name for entry in self._head.entries]
            self._replica = {name: np.array(arrays[f"shared.{name}"]) for name in names}


def _adam(parameters):
    return optim.Adam(parameters, lr=0.01)
