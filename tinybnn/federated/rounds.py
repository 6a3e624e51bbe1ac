"""Federated learning in one process: the rounds, their bytes, and how a killed run goes on.

`run_rounds` takes the place of the network between a `Server` and its `Client`s. They exchange
bytes only, and a `Ledger` records each message.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tinybnn import storage
from tinybnn.checkpoint import as_json, below, rows_of
from tinybnn.federated.client import Client
from tinybnn.federated.server import RejectedError, Server
from tinybnn.training import History, evaluate
from tinybnn.typing import Array

logger: logging.Logger = logging.getLogger("tinybnn.federated")

KIND: str = "federated"
VERSION: int = 1


class RoundError(RuntimeError):
    """A round had too few answers in each of its attempts."""


# -------------------------------------------------------------------------------------- the ledger


class Transfer(NamedTuple):
    """One message.

    Attributes
    ----------
    round : int
        From 1, counting the rounds that changed the model; a repeated round keeps its number.
    client : int
    is_up : bool
        From the client to the server.
    nbytes : int
    float32 : int
        Number of bytes of the same message with all weights and batch norms as float32.
    """

    round: int
    client: int
    is_up: bool
    nbytes: int
    float32: int


class Ledger:
    """Every message that was sent, including those that were rejected.

    Attributes
    ----------
    rows : list of Transfer
    """

    def __init__(self, rows: Iterable[Transfer] = ()) -> None:
        self.rows: list[Transfer] = list(rows)

    def total(
        self,
        direction: str,
        column: str = "nbytes",
        *,
        round: int | None = None,
        client: int | None = None,
    ) -> int:
        """Sum a column over messages.

        Parameters
        ----------
        direction : 'up' or 'down'
        column : 'nbytes' or 'float32'
        round, client : int, optional
            Restrict the sum to a round or a client.
        """
        if direction not in ("up", "down"):
            raise ValueError(f"total: direction must be 'up' or 'down', got {direction!r}")
        return sum(
            getattr(row, column)
            for row in self.rows
            if row.is_up == (direction == "up")
            and round in (None, row.round)
            and client in (None, row.client)
        )

    def saving(self, direction: str) -> float:
        """Return the bytes that float32 would have taken, over those sent; NaN if none were."""
        sent = self.total(direction)
        return self.total(direction, "float32") / sent if sent else float("nan")

    def __len__(self) -> int:
        return len(self.rows)

    def to_array(self) -> Array:
        """Convert the ledger to an array (messages, 5) int64, as files store it."""
        return np.array(self.rows, np.int64).reshape(-1, 5)


def read_ledger(array: Array) -> Ledger:
    """Convert an array (messages, 5) int64 to a `Ledger`."""
    if array.ndim != 2 or array.dtype != np.int64:
        raise ValueError(f"a ledger must be rows of int64, got {array.dtype} of {array.shape}")
    return Ledger(Transfer(r, c, bool(up), n, f) for r, c, up, n, f in array.tolist())


class RoundHistory(History):
    """One row for each round, and the ledger of all messages.

    Attributes
    ----------
    rows : list of dict
        Keys: round (from 1), clients (numbers of those chosen), accepted (of those whose answers
        were used), rejected (pairs of number and reason), attempts (1, or more if the round was
        repeated: clients and accepted are then of the last attempt), bytes_up, bytes_down, seconds;
        val_loss and val_accuracy where a validation set was given.
    ledger : Ledger
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = (), ledger: Ledger | None = None) -> None:
        super().__init__(list(rows))
        self.ledger: Ledger = Ledger() if ledger is None else ledger


# -------------------------------------------------------------------------------------- the rounds


class Round:
    """One round, whatever carries its messages; it records them and the row of the history.

    Parameters
    ----------
    server : Server
    history : RoundHistory
        Its ledger is written to; `close` completes `row`, which the caller appends to the history.

    Attributes
    ----------
    row : dict
        See `RoundHistory`.
    """

    def __init__(self, server: Server, history: RoundHistory) -> None:
        self._server, self._ledger = server, history.ledger
        self._start, self._first = time.perf_counter(), len(history.ledger)
        self.row: dict[str, Any] = {
            "round": len(history) + 1, "clients": [], "accepted": [], "rejected": [], "attempts": 0,
        }  # fmt: skip

    def open(self, numbers: Iterable[int], fraction: float) -> list[int]:
        """Begin an attempt, and return the numbers of the clients chosen for it."""
        self.row["clients"] = self._server.choose(numbers, fraction)
        self.row["attempts"] += 1
        self._server.open_round(self.row["clients"])
        return self.row["clients"]

    def send(self, number: int, have: int | None) -> bytes:
        """Return the message to a client that holds a version of the model."""
        message = self._server.broadcast(have)
        self._record(number, False, message)
        return message

    def receive(self, number: int, answer: Any, reason: str | None = None) -> None:
        """Pass a client's answer to the server; with a reason, reject it instead."""
        if isinstance(answer, bytes):
            self._record(number, True, answer)
        if reason is not None:
            logger.warning("round %d: client %d left out: %s", self._server.round, number, reason)
        else:
            try:
                return self._server.receive(number, answer)  # it logs its own reasons
            except RejectedError as error:
                reason = str(error)
        self.row["rejected"].append([number, reason])

    def close(self) -> bool:
        """End an attempt, and return whether the model has changed."""
        self.row["accepted"] = self._server.accepted
        sent = Ledger(self._ledger.rows[self._first :])
        self.row.update(bytes_up=sent.total("up"), bytes_down=sent.total("down"))
        is_changed = self._server.close_round()
        self.row["seconds"] = time.perf_counter() - self._start
        return is_changed

    def _record(self, number, is_up, message):
        size = self._server.float32_size
        self._ledger.rows.append(Transfer(self.row["round"], number, is_up, len(message), size))


def run_rounds(
    server: Server,
    clients: Iterable[Client],
    rounds: int,
    *,
    fraction: float = 1.0,
    epochs: int = 1,
    batch_size: int | None = 10,
    deadline: float | None = None,
    attempts: int = 3,
    validation: Iterable[tuple[Any, Any]] | None = None,
    history: RoundHistory | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> RoundHistory:
    """Run federated averaging and related strategies (McMahan et al. 2017, algorithm 1).

    Clients train one after the other. One that does not answer, answers too late, raises an
    exception or sends what the server rejects is left out of the round; the reason is logged and
    recorded in the history.

    Parameters
    ----------
    server : Server
    clients : sequence of Client
        Or of other objects with ``number``, ``samples``, ``version`` and ``train``.
    rounds : int
        Number of times that the model changes; with `checkpoint`, the total number of rounds.
    fraction : float
        C, the share of clients in a round; one at least.
    epochs : int
        E, passes of a client over its data in a round.
    batch_size : int or None
        B; None for all samples of a client at once.
    deadline : float, optional
        Seconds that a client may take. With it, the result depends on the machine.
    attempts : int
        How often a round is tried, with newly drawn clients, until the server has enough answers.
    validation : DataLoader, optional
        Evaluated after each round, with the server's model; where batch norms are local, by each
        client that has trained, with its own, and averaged by samples.
    history : RoundHistory, optional
        Rows are appended to it.
    checkpoint : path, optional
        A file with the state of the server, that of the clients, the history and the ledger (no
        data), written before the first round and after each one. If it exists, it is read first,
        and the run goes on after its last complete round as if it had never stopped.
    progress : bool
        Show a progress bar on stderr.
    clock : callable
        Returns seconds, for `deadline`.

    Returns
    -------
    RoundHistory

    Raises
    ------
    RoundError
        If a round had fewer answers than the server's minimum in each attempt.
    ValueError
        If an argument is out of range, or `checkpoint` is of another run.
    StorageError
        If `checkpoint` is damaged. It is never overwritten then.
    """
    clients = {client.number: client for client in _checked(clients, rounds, epochs, attempts)}
    history = RoundHistory() if history is None else history
    goal, training = len(history) + rounds, {"epochs": epochs, "batch_size": batch_size}
    if checkpoint is not None:
        settings = {"fraction": fraction, **training, "deadline": deadline, "attempts": attempts}
        state = _Checkpoint(checkpoint, server, clients, history, settings)
        if not state.restore():
            state.save()
        goal = rounds
    bar = tqdm(total=goal, initial=min(goal, len(history)), disable=not progress, unit="round")
    with bar:
        while len(history) < goal:
            current = Round(server, history)
            for _ in range(attempts):
                for number in current.open(clients, fraction):
                    client = clients[number]
                    message = current.send(number, client.version)
                    current.receive(number, *_ask(client, message, deadline, clock, training))
                if current.close():
                    break
            else:
                raise RoundError(_failure(current.row, server.minimum))
            history.rows.append(current.row)
            if validation is not None:
                figures = _evaluate(server, clients, history, validation)
                current.row.update({f"val_{name}": value for name, value in figures.items()})
                bar.set_postfix(val_accuracy=f"{figures['accuracy']:.4f}")
            if checkpoint is not None:
                state.save()
            bar.update()
    return history


def _checked(clients, rounds, epochs, attempts):
    for name, value in (("rounds", rounds), ("epochs", epochs), ("attempts", attempts)):
        if value < 1:
            raise ValueError(f"run_rounds: {name} must be >= 1, got {value!r}")
    clients = list(clients)
    numbers = [client.number for client in clients]
    if not clients or len(set(numbers)) < len(numbers):
        raise ValueError(f"run_rounds: clients must have different numbers, got {numbers}")
    return clients


def _ask(client, message, deadline, clock, training):
    """Let a client train; return its answer, and the reason why it cannot be used, or None."""
    start = clock()
    try:
        answer = client.train(message, **training)
    except Exception as error:  # no error of a client may break the round
        return None, f"failed: {type(error).__name__}: {error}"
    seconds = clock() - start
    if answer is None:
        return None, "no answer"
    is_late = deadline is not None and seconds > deadline
    return answer, f"late: {seconds:.3g} s, the deadline is {deadline:g} s" if is_late else None


def _failure(row, minimum):
    reasons = "; ".join(f"client {number}: {reason}" for number, reason in row["rejected"])
    return (
        f"round {row['round']}: {len(row['accepted'])} of at least {minimum} answers in the last "
        f"of {row['attempts']} attempts ({reasons})"
    )


def _evaluate(server, clients, history, validation):
    """Compute loss and accuracy of the shared model."""
    if server.norm != "local":
        return evaluate(server.model, validation)
    trained = sorted({number for row in history.rows for number in row["accepted"]})
    message = server.broadcast()  # a measurement: no entry in the ledger
    figures = [clients[number].evaluate(message, validation) for number in trained]
    weights = [clients[number].samples for number in trained]
    return {
        name: float(np.average([one[name] for one in figures], weights=weights))
        for name in ("loss", "accuracy")
    }


class _Checkpoint:
    """Everything that a run in one process changes, in one file that is written atomically."""

    def __init__(self, path, server, clients, history, settings):
        self.path, self.server, self.clients, self.history = path, server, clients, history
        self._run = {
            "server": server.describe(),
            "clients": [clients[number].describe() for number in sorted(clients)],
            **settings,
        }

    def save(self):
        arrays, numbers = self.server.state()
        arrays = {f"server.{name}": array for name, array in arrays.items()}
        versions = {}
        for number, client in self.clients.items():
            own, versions[str(number)] = client.state()
            arrays.update((f"client.{number}.{name}", array) for name, array in own.items())
        arrays["ledger"] = self.history.ledger.to_array()
        metadata = {
            "run": self._run, "server": numbers, "versions": versions,
            "history": as_json(self.history.rows),
        }  # fmt: skip
        storage.save(self.path, arrays, kind=KIND, version=VERSION, metadata=metadata)

    def restore(self):
        """Read the file if there is one, and return whether there was."""
        if not os.path.exists(self.path):
            return False
        arrays, metadata = storage.load(self.path, kind=KIND, version=VERSION)
        with storage.expecting(self.path, "checkpoint of rounds"):
            run = {name: metadata["run"].get(name) for name in self._run}
        for name, value in self._run.items():
            if run[name] != value:
                raise ValueError(
                    f"{self.path} is the checkpoint of another run: {name} was {run[name]}, is "
                    f"{value}; choose another path, or delete the file to start anew"
                )
        with storage.expecting(self.path, "checkpoint of rounds"):
            ledger, rows = read_ledger(arrays["ledger"]), rows_of(metadata)
            if not all(isinstance(row["accepted"], list) for row in rows):
                raise TypeError("a round of its history has no list of accepted clients")
            self.server.restore(below("server.", arrays), metadata["server"])
            for number, client in self.clients.items():
                own = below(f"client.{number}.", arrays)
                client.restore(own, metadata["versions"][str(number)])
            self.history.ledger.rows[:] = ledger.rows
            self.history.rows[:] = rows
        return True
