"""The server: it holds the model, chooses clients, checks their answers, and combines them.

It never sees a client, only numbers and bytes. A round is

    chosen = server.choose(numbers, fraction)
    server.open_round(chosen)
    message = server.broadcast()           # to each of them
    server.receive(number, answer)         # from each of them, in any order
    server.close_round()                   # True if enough were accepted

and `Server.state` holds everything that is kept from one round to the next.
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

import tinybnn.federated.aggregation as rules
import tinybnn.federated.wire as wire
from tinybnn.federated.head import Head
from tinybnn.nn import Module
from tinybnn.typing import Array

logger: logging.Logger = logging.getLogger("tinybnn.federated")


class RejectedError(ValueError):
    """An answer that the server does not use; the message is the reason."""


class Server:
    """The model that all clients share, and the rules by which it changes.

    Parameters
    ----------
    model : Module
        Its weights are the first ones; from then on it holds those of the last round. Local batch
        norms stay as they are.
    aggregation : Aggregation
    norm : 'average', 'local' or 'frozen'
        See `Head`.
    momentum : float
        β of FedAvgM, from 0 to 1, excluded: with Δ the step of the aggregation, the server keeps
        v = β v + Δ and moves by v (Hsu et al. 2019). Latent weights stay within their
        clips. Running means and variances of batch norms have no momentum, as a variance could
        become negative. Strategies whose weights go down as bits or steps have none either.
    minimum : int
        Number of answers below which a round changes nothing.
    max_norm : float, optional
        Largest Euclidean norm of an answer's change of all parameters that travel as floats; a
        larger one is rejected. (Bits are bounded anyway.)
    max_statistics : float, optional
        The same for the running means and variances of batch norms. In the first rounds they move
        from 0 and 1 to those of sums of signs, whose order is the number of inputs.
    seed : int
        Seeds the choice of clients and tied votes.

    Attributes
    ----------
    model : Module
    version : int
        Number of rounds that changed the model.
    round : int
        Number of rounds that were opened.
    minimum : int
    norm : str
    float32_size : int
        Number of bytes of a message with all weights and batch norms of the model as float32: what
        plain federated averaging sends in each direction.
    """

    def __init__(
        self,
        model: Module,
        aggregation: rules.Aggregation,
        *,
        norm: str = "average",
        momentum: float = 0.0,
        minimum: int = 1,
        max_norm: float | None = None,
        max_statistics: float | None = None,
        seed: int = 0,
    ) -> None:
        if minimum < 1:
            raise ValueError(f"Server: minimum must be >= 1, got {minimum!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"Server: momentum must be from 0 to below 1, got {momentum!r}")
        if momentum and aggregation.down in ("bits", "steps"):
            raise ValueError(
                f"Server: momentum needs weights that go down as floats; {aggregation!r} sends "
                f"{aggregation.down}"
            )
        for name, bound in (("max_norm", max_norm), ("max_statistics", max_statistics)):
            if bound is not None and not bound > 0:
                raise ValueError(f"Server: {name} must be above 0, got {bound!r}")
        self.model: Module = model
        self.version: int = 0
        self.round: int = 0
        self.minimum: int = minimum
        self.norm: str = norm
        self.float32_size: int = wire.size(
            rules.fields(rules.FedAvg(), Head(model).entries, "up").values()
        )
        self._bounds = {"parameters": max_norm, "statistics": max_statistics}
        self._aggregation, self._head, self._seed = aggregation, Head(model, norm), seed
        self._shared = rules.starting_state(aggregation, self._head)
        self._head.write(self._shared)
        # The steps of the last rounds, (rounds, *shape) int8, for weights that go down as steps.
        self._steps = {
            entry.name: np.empty((0, *entry.shape), np.int8)
            for entry in self._head.entries
            if entry.kind == "latent" and aggregation.down == "steps"
        }
        self._momentum, self._velocity = float(momentum), {}
        if momentum:
            self._velocity = {
                entry.name: np.zeros(entry.shape, np.float32)
                for entry in self._head.entries
                if entry.kind in ("latent", "real", "norm")
            }
        self._chosen, self._answers = None, {}  # of the open round

    # ------------------------------------------------------------------------------------ a round

    def choose(self, numbers: Iterable[int], fraction: float = 1.0) -> list[int]:
        """Draw the clients of the next round: max(C K, 1) of K (McMahan et al. 2017).

        Parameters
        ----------
        numbers : sequence of int
        fraction : float
            C, from 0 to 1.

        Returns
        -------
        list of int
            In ascending order; empty if `numbers` is.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"choose: fraction must be from 0 to 1, got {fraction!r}")
        numbers = np.sort(np.array([*numbers], np.int64))
        count = min(max(round(fraction * len(numbers)), 1), len(numbers))
        rng = np.random.default_rng([self._seed, 0, self.round + 1])
        return sorted(rng.choice(numbers, count, replace=False).tolist())

    def open_round(self, chosen: Iterable[int]) -> None:
        """Begin a round with these clients; answers to earlier rounds are rejected from now on."""
        self.round += 1
        self._chosen, self._answers = frozenset(chosen), {}

    def broadcast(self, have: int | None = None) -> bytes:
        """Encode the state as a message.

        Parameters
        ----------
        have : int, optional
            The version that the receiver holds. If the strategy allows it, the message then
            consists of the steps since.

        Returns
        -------
        bytes
        """
        steps = self._steps_since(have)
        fields = rules.fields(self._aggregation, self._head.entries, "down", steps)
        arrays = dict(self._shared)
        if steps is not None:
            arrays.update((name, past[len(past) - steps :]) for name, past in self._steps.items())
        header = wire.Header(
            "state" if steps is None else "steps", self.round, self.version, self._head.digest,
            self._token(), since=0 if steps is None else self.version - steps,
        )  # fmt: skip
        return wire.encode(header, [arrays[name] for name in fields], list(fields.values()))

    def receive(self, number: int, message: bytes) -> None:
        """Accept the answer of a client, for `close_round` to use.

        Parameters
        ----------
        number : int
            The client's, as known to the transport.
        message : bytes

        Raises
        ------
        RejectedError
            If this client may not send this message now, or its content is unusable. The reason is
            logged, and nothing changes.
        """
        try:
            self._answers[number] = self._checked(number, message)
        except (RejectedError, wire.WireError) as error:
            logger.warning("round %d: client %s rejected: %s", self.round, number, error)
            raise RejectedError(str(error)) from None

    @property
    def accepted(self) -> list[int]:
        """Numbers of the clients whose answers the open round has accepted, in ascending order."""
        return sorted(self._answers)

    def close_round(self) -> bool:
        """End the round, and update the model if there are enough answers.

        Returns
        -------
        bool
            Whether the model has changed.
        """
        if self._chosen is None:
            raise RuntimeError("close_round: no round is open")
        answers, self._chosen, self._answers = self._answers, None, {}
        if len(answers) < self.minimum:
            logger.warning(
                "round %d: %d of at least %d answers, the model stays as it is",
                self.round, len(answers), self.minimum,
            )  # fmt: skip
            return False
        samples, updates = zip(*(answers[number] for number in sorted(answers)), strict=True)
        rng = np.random.default_rng([self._seed, 1, self.round])
        before, entries = self._shared, self._head.entries
        self._shared = rules.combine(self._aggregation, entries, before, updates, samples, rng)
        self._accelerate(before)
        self.version += 1
        self._head.write(self._shared)
        for name, past in self._steps.items():
            step = self._aggregation.direction(before[name], self._shared[name])
            self._steps[name] = np.concatenate([past, step[None]])[-rules.MOST_STEPS :]
        return True

    def _accelerate(self, before):
        """Replace the step from `before` to the shared state by one with momentum (FedAvgM)."""
        for entry in self._head.entries:
            if (velocity := self._velocity.get(entry.name)) is None:
                continue
            velocity = self._momentum * velocity + (self._shared[entry.name] - before[entry.name])
            weight = before[entry.name] + velocity
            if entry.clip is not None:
                weight = np.clip(weight, np.float32(-entry.clip), np.float32(entry.clip))
            self._velocity[entry.name] = velocity
            self._shared[entry.name] = rules.start(self._aggregation, entry, weight)

    def _steps_since(self, have):
        """Count the steps from a version to this one; None if they cannot be sent."""
        if have is None or not self._steps:
            return None
        steps, kept = self.version - have, len(next(iter(self._steps.values())))
        return steps if 0 <= steps <= kept else None

    def _token(self):
        state = self._shared.values()
        return wire.token(self._head.digest, self.round, self.version, state)

    # ------------------------------------------------------------------------------------- checks

    def _checked(self, number, message):
        """Check an answer, and return its number of samples and its arrays."""
        if self._chosen is None:
            raise RejectedError("no round is open")
        if number not in self._chosen:
            raise RejectedError("not a client of this round")
        if number in self._answers:
            raise RejectedError("replayed: this round has its answer already")
        entries = self._head.entries
        fields = rules.fields(self._aggregation, entries, "up")
        header, arrays = wire.decode(message, fields)
        others = sum(samples for samples, _ in self._answers.values())
        for is_right, reason in (
            (header.kind == "update", f"a message of kind {header.kind!r}"),
            (header.digest == self._head.digest, "it has another head, or other frozen parts"),
            (header.client == number, f"sent in the name of client {header.client}"),
            (header.round == self.round, f"replayed or late: of round {header.round}"),
            (
                (header.version, header.token) == (self.version, self._token()),
                "it starts from another state than this round's",
            ),
            (1 <= header.samples < rules.MOST_SAMPLES - others, f"{header.samples} samples"),
        ):
            if not is_right:
                raise RejectedError(reason)
        arrays = {entry.name: arrays[entry.name].reshape(entry.shape) for entry in entries}
        self._check_values(entries, arrays, fields)
        return header.samples, arrays

    def _check_values(self, entries, arrays, fields):
        squares = {"parameters": 0.0, "statistics": 0.0}
        for entry in entries:
            array, before = arrays[entry.name], self._shared[entry.name]
            if fields[entry.name].encoding == "bits":
                continue
            if not np.all(np.isfinite(array)):
                raise RejectedError(f"{entry.name} has values that are not finite")
            if entry.kind == "variance" and array.min(initial=0.0) < 0:
                raise RejectedError(f"{entry.name} has a variance below 0")
            if entry.kind == "counter":
                if np.any(array < before) or np.any(array - before >= 1 << 32):
                    raise RejectedError(f"{entry.name} does not go on from its last value")
                continue
            group = "statistics" if entry.kind in ("mean", "variance") else "parameters"
            squares[group] += float(np.sum((array.astype(np.float64) - before) ** 2))
        for group, bound in self._bounds.items():
            norm = math.sqrt(squares[group])
            if bound is not None and norm > bound:
                raise RejectedError(
                    f"the change of the {group} has norm {norm:.4g}, above {bound:g}"
                )

    # -------------------------------------------------------------------------------------- state

    def describe(self) -> dict[str, Any]:
        """Describe the server that a saved state belongs to, as JSON values."""
        return {
            "head": self._head.digest.hex(),
            "aggregation": repr(self._aggregation),
            "minimum": self.minimum,
            "bounds": self._bounds,
            "seed": self._seed,
            **({"momentum": self._momentum} if self._momentum else {}),
        }

    def state(self) -> tuple[dict[str, Array], dict[str, int]]:
        """Return what is kept between rounds: (arrays by name, numbers as JSON values)."""
        arrays = {f"shared.{name}": array for name, array in self._shared.items()}
        arrays.update((f"steps.{name}", past) for name, past in self._steps.items() if len(past))
        arrays.update((f"velocity.{name}", array) for name, array in self._velocity.items())
        return arrays, {"version": self.version, "round": self.round}

    def restore(self, arrays: dict[str, Array], numbers: dict[str, int]) -> None:
        """Restore the result of `state`. A round that was open must be opened again."""
        self._shared = {e.name: np.array(arrays[f"shared.{e.name}"]) for e in self._head.entries}
        for name, past in self._steps.items():
            self._steps[name] = np.array(arrays.get(f"steps.{name}", past[:0]))
        self._velocity = {name: np.array(arrays[f"velocity.{name}"]) for name in self._velocity}
        self.version, self.round = (operator.index(numbers[k]) for k in ("version", "round"))
        self._chosen, self._answers = None, {}
        self._head.write(self._shared)
