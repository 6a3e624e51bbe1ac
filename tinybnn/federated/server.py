"""The server: it has the model, chooses clients, checks what they send, and puts it together.

It never sees a client, only numbers and bytes. A round is

    chosen = server.choose(numbers, fraction)
    server.open_round(chosen)
    message = server.broadcast()           # to each of them
    server.receive(number, answer)         # from each of them, in any order
    server.close_round()                   # True if enough were accepted

and everything that lasts from one round to the next is in `Server.state`.
"""

from __future__ import annotations

import logging
import math
import operator

import numpy as np

import tinybnn.federated.aggregation as rules
import tinybnn.federated.wire as wire
from tinybnn.federated.head import Head

logger = logging.getLogger("tinybnn.federated")


class RejectedError(ValueError):
    """An answer that the server does not use; the message is the reason."""


class Server:
    """The model that all clients share, and the rules by which it changes.

    Parameters
    ----------
    model : Module
        Gives the first weights, and holds those of the last round from then on, with the batch
        norms it came with where these are local.
    aggregation : Aggregation
    norm : 'average', 'local' or 'frozen'
        See `Head`.
    minimum : int
        Answers without which a round changes nothing.
    max_norm : float, optional
        An answer is rejected if the Euclidean norm of its change of all parameters that travel as
        floats is larger. (Bits are bounded by what they are.)
    max_statistics : float, optional
        The same for the running means and variances of batch norms. In the first rounds they move
        from 0 and 1 to those of sums of signs, in the order of the number of inputs.
    seed : int
        Of the choice of clients and of tied votes.

    Attributes
    ----------
    model : Module
    version : int
        Rounds that changed the model.
    round : int
        Rounds that were opened.
    minimum : int
    norm : str
    float32_size : int
        Bytes of a message with all weights and batch norms of the model as float32: what plain
        federated averaging sends in each direction.
    """

    def __init__(
        self,
        model,
        aggregation,
        *,
        norm="average",
        minimum=1,
        max_norm=None,
        max_statistics=None,
        seed=0,
    ):
        if minimum < 1:
            raise ValueError(f"Server: minimum must be >= 1, got {minimum!r}")
        for name, bound in (("max_norm", max_norm), ("max_statistics", max_statistics)):
            if bound is not None and not bound > 0:
                raise ValueError(f"Server: {name} must be above 0, got {bound!r}")
        self.model, self.version, self.round = model, 0, 0
        self.minimum, self._seed = minimum, seed
        self._bounds = {"parameters": max_norm, "statistics": max_statistics}
        self.norm, self.float32_size = norm, _float32_size(Head(model))
        self._aggregation, self._head = aggregation, Head(model, norm)
        self._shared = rules.starting_state(aggregation, self._head)
        self._head.write(self._shared)
        # Names of the weights whose steps are what goes down, and the steps of the last rounds.
        self._stepping = [
            entry.name
            for entry in self._head.entries
            if entry.kind == "latent" and aggregation.down == "steps"
        ]
        self._steps = []
        self._chosen, self._answers = None, {}  # of the open round

    # ------------------------------------------------------------------------------------ a round

    def choose(self, numbers, fraction=1.0):
        """Draw the clients of the next round: max(C K, 1) of K (McMahan et al. 2017).

        Parameters
        ----------
        numbers : sequence of int
        fraction : float
            C, from 0 to 1.

        Returns
        -------
        list of int
            Rising.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"choose: fraction must be from 0 to 1, got {fraction!r}")
        count = max(round(fraction * len(numbers)), 1)
        rng = np.random.default_rng([self._seed, 0, self.round + 1])
        return sorted(int(n) for n in rng.choice(sorted(numbers), count, replace=False))

    def open_round(self, chosen):
        """Begin a round with these clients; answers to earlier ones are not taken any more."""
        self.round += 1
        self._chosen, self._answers = frozenset(chosen), {}

    def broadcast(self, have=None):
        """The state as a message.

        Parameters
        ----------
        have : int, optional
            The version that the receiver holds already. Where the strategy allows, the message
            then holds the steps since.

        Returns
        -------
        bytes
        """
        steps = self._steps_since(have)
        fields = rules.fields(self._aggregation, self._head.entries, "down", steps)
        arrays = dict(self._shared)
        if steps is not None:
            missed = self._steps[len(self._steps) - steps :]
            for name in self._stepping:
                arrays[name] = np.array([step[name] for step in missed])
        header = wire.Header(
            "state" if steps is None else "steps", self.round, self.version, self._head.digest,
            self._token(), since=0 if steps is None else self.version - steps,
        )  # fmt: skip
        return wire.encode(header, [arrays[name] for name in fields], list(fields.values()))

    def receive(self, number, message):
        """Take the answer of a client, for `close_round` to use.

        Parameters
        ----------
        number : int
            Of the client, as the transport knows it.
        message : bytes

        Raises
        ------
        RejectedError
            If it is not one that this client may send now, or its content cannot be used. The
            reason is logged, and nothing has been changed.
        """
        try:
            self._answers[number] = self._checked(number, message)
        except (RejectedError, wire.WireError) as error:
            logger.warning("round %d: client %s rejected: %s", self.round, number, error)
            raise RejectedError(str(error)) from None

    @property
    def accepted(self):
        """Numbers of the clients whose answers the open round has, rising."""
        return sorted(self._answers)

    def close_round(self):
        """End the round, and change the model if there are enough answers.

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
        samples = [answers[number][0] for number in sorted(answers)]
        updates = [answers[number][1] for number in sorted(answers)]
        rng = np.random.default_rng([self._seed, 1, self.round])
        before, entries = self._shared, self._head.entries
        self._shared = rules.combine(self._aggregation, entries, before, updates, samples, rng)
        self.version += 1
        self._head.write(self._shared)
        if self._stepping:
            step = {
                name: self._aggregation.direction(before[name], self._shared[name])
                for name in self._stepping
            }
            self._steps = [*self._steps, step][-rules.MOST_STEPS :]
        return True

    def _steps_since(self, have):
        """How many steps lead from a version to this one; None if they cannot be sent."""
        steps = None if have is None else self.version - have
        return steps if self._stepping and steps in range(len(self._steps) + 1) else None

    def _token(self):
        state = self._shared.values()
        return wire.token(self._head.digest, self.round, self.version, state)

    # ------------------------------------------------------------------------------------- checks

    def _checked(self, number, message):
        """Samples and arrays of an answer."""
        if self._chosen is None:
            raise RejectedError("no round is open")
        if number not in self._chosen:
            raise RejectedError("not a client of this round")
        if number in self._answers:
            raise RejectedError("replayed: this round has its answer already")
        entries = self._head.entries
        fields = rules.fields(self._aggregation, entries, "up")
        header, arrays = wire.decode(message, fields)
        if header.kind != "update":
            raise RejectedError(f"a message of kind {header.kind!r}")
        if header.digest != self._head.digest:
            raise RejectedError("of another head, or with other frozen parts")
        if header.client != number:
            raise RejectedError(f"sent in the name of client {header.client}")
        if header.round != self.round:
            raise RejectedError(f"replayed or late: of round {header.round}")
        if (header.version, header.token) != (self.version, self._token()):
            raise RejectedError("it starts from another state than this round's")
        others = sum(samples for samples, _ in self._answers.values())
        if not 1 <= header.samples < rules.MOST_SAMPLES - others:
            raise RejectedError(f"{header.samples} samples")
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
                    raise RejectedError(f"{entry.name} does not go on from the number it was")
                continue
            what = "statistics" if entry.kind in ("mean", "variance") else "parameters"
            squares[what] += float(np.sum((array.astype(np.float64) - before) ** 2))
        for what, bound in self._bounds.items():
            norm = math.sqrt(squares[what])
            if bound is not None and norm > bound:
                raise RejectedError(
                    f"the change of the {what} has norm {norm:.4g}, above {bound:g}"
                )

    # -------------------------------------------------------------------------------------- state

    def describe(self):
        """What a saved state belongs to, as JSON values."""
        return {
            "head": self._head.digest.hex(),
            "aggregation": repr(self._aggregation),
            "minimum": self.minimum,
            "bounds": self._bounds,
            "seed": self._seed,
        }

    def state(self):
        """What must be kept between rounds: (arrays by name, numbers as JSON values)."""
        arrays = {f"shared.{name}": array for name, array in self._shared.items()}
        for name in self._stepping if self._steps else ():
            arrays[f"steps.{name}"] = np.array([step[name] for step in self._steps])
        return arrays, {"version": self.version, "round": self.round}

    def restore(self, arrays, numbers):
        """Take back what `state` gave. A round that was open is none any more: open it again."""
        self._shared = {e.name: np.array(arrays[f"shared.{e.name}"]) for e in self._head.entries}
        steps = {name: arrays.get(f"steps.{name}", ()) for name in self._stepping}
        count = max(map(len, steps.values()), default=0)
        self._steps = [{name: steps[name][i] for name in steps} for i in range(count)]
        self.version, self.round = (operator.index(numbers[k]) for k in ("version", "round"))
        self._chosen, self._answers = None, {}
        self._head.write(self._shared)


def _float32_size(head):
    return wire.size(
        wire.Field("int64" if entry.kind == "counter" else "float32", entry.shape)
        for entry in head.entries
    )
