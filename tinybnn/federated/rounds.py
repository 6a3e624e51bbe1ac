"""Federated learning in one process: the rounds, what they cost, and how they go on after a kill.

`run_rounds` plays the network between a `Server` and its `Client`s. All that passes is bytes, and
each byte is written into a `Ledger`.
"""

from __future__ import annotations

import logging
import os
import time
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tinybnn import storage
from tinybnn.federated.server import RejectedError
from tinybnn.training import History, evaluate

logger = logging.getLogger("tinybnn.federated")

KIND, VERSION = "federated", 1


class RoundError(RuntimeError):
    """A round had too few answers, as often as it was tried."""


# -------------------------------------------------------------------------------------- the ledger


class Transfer(NamedTuple):
    """One message.

    Attributes
    ----------
    round : int
        From 1, of those that changed the model; one that was repeated keeps its number.
    client : int
    is_up : bool
        From the client to the server.
    nbytes : int
    float32 : int
        Bytes of the same message with all weights and batch norms as float32.
    """

    round: int
    client: int
    is_up: bool
    nbytes: int
    float32: int


class Ledger:
    """Every message that was sent, also those that were rejected.

    Attributes
    ----------
    rows : list of Transfer
    """

    def __init__(self, rows=()):
        self.rows = list(rows)

    def total(self, direction, column="nbytes", *, round=None, client=None):
        """Sum of a column over messages.

        Parameters
        ----------
        direction : 'up' or 'down'
        column : 'nbytes' or 'float32'
        round, client : int, optional
            Of these only.
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

    def saving(self, direction):
        """How many times as many bytes float32 would have taken; NaN if nothing was sent."""
        sent = self.total(direction)
        return self.total(direction, "float32") / sent if sent else float("nan")

    def __len__(self):
        return len(self.rows)


def read_ledger(array):
    """The `Ledger` of an array (messages, 5) int64 as files keep it."""
    if array.ndim != 2 or array.dtype != np.int64:
        raise ValueError(f"a ledger must be rows of int64, got {array.dtype} of {array.shape}")
    return Ledger(Transfer(r, c, bool(up), n, f) for r, c, up, n, f in array.tolist())


class RoundHistory(History):
    """One row for each round, and the ledger of all messages.

    Attributes
    ----------
    rows : list of dict
        Keys: round (from 1), clients (numbers of those chosen), accepted (of those whose answers
        were used), rejected (pairs of number and reason), attempts (1, or more if the round had to
        be repeated: the other keys but rejected and bytes are then of the last one), bytes_up,
        bytes_down, seconds; val_loss and val_accuracy where a validation set was given.
    ledger : Ledger
    """

    def __init__(self, rows=(), ledger=None):
        super().__init__(list(rows))
        self.ledger = Ledger() if ledger is None else ledger


# -------------------------------------------------------------------------------------- the rounds


def run_rounds(
    server,
    clients,
    rounds,
    *,
    fraction=1.0,
    epochs=1,
    batch_size=10,
    deadline=None,
    attempts=3,
    validation=None,
    history=None,
    checkpoint=None,
    progress=True,
    clock=time.monotonic,
):
    """Federated averaging and its kin (McMahan et al. 2017, algorithm 1), client by client.

    A client that does not answer, answers too late, raises an exception or sends what the server
    rejects is left out of its round; the reason is logged and stands in the history.

    Parameters
    ----------
    server : Server
    clients : sequence of Client
        Or of anything with ``number``, ``samples``, ``version`` and ``train``.
    rounds : int
        How many times the model shall change; with `checkpoint`, how many rounds the history shall
        have in the end.
    fraction : float
        C, the share of clients in a round; one at least.
    epochs : int
        E, passes of a client over its data in a round.
    batch_size : int or None
        B; None for all samples of a client at once.
    deadline : float, optional
        Seconds that a client may take. With it, the result depends on the machine.
    attempts : int
        How often a round is tried, with clients drawn anew, until the server has enough answers.
    validation : DataLoader, optional
        Evaluated after each round, with the server's model; where batch norms are local, by each
        client that has trained, with its own, and averaged by samples.
    history : RoundHistory, optional
        Rows are added to it.
    checkpoint : path, optional
        A file with the state of the server, what clients remember, the history and the ledger (no
        data), written before the first round and after each one. If it exists, it is read first,
        and the run goes on behind its last complete round exactly as if it had never stopped.
    progress : bool
        Show a progress bar on stderr.
    clock : callable
        Gives seconds, for `deadline`.

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
    goal = len(history) + rounds
    if checkpoint is not None:
        settings = {"fraction": fraction, "epochs": epochs, "batch_size": batch_size,
                    "deadline": deadline, "attempts": attempts}  # fmt: skip
        state = _Checkpoint(checkpoint, server, clients, history, settings)
        if not state.restore():
            state.save()
        goal = rounds
    bar = tqdm(total=goal, initial=min(goal, len(history)), disable=not progress, unit="round")
    with bar:
        while len(history) < goal:
            start, first = time.perf_counter(), len(history.ledger)
            row = {"round": len(history) + 1, "clients": [], "accepted": [], "rejected": []}
            for row["attempts"] in range(1, attempts + 1):
                row["clients"] = server.choose(list(clients), fraction)
                server.open_round(row["clients"])
                for number in row["clients"]:
                    reason = _ask(
                        server, clients[number], row["round"], history.ledger, deadline, clock,
                        epochs=epochs, batch_size=batch_size,
                    )  # fmt: skip
                    if reason is not None:
                        row["rejected"].append([number, reason])
                row["accepted"] = server.accepted
                if server.close_round():
                    break
            else:
                reasons = "; ".join(f"client {number}: {why}" for number, why in row["rejected"])
                raise RoundError(
                    f"round {row['round']}: {len(row['accepted'])} of at least {server.minimum} "
                    f"answers in the last of {attempts} attempts ({reasons})"
                )
            sent = Ledger(history.ledger.rows[first:])
            row.update(bytes_up=sent.total("up"), bytes_down=sent.total("down"))
            row["seconds"] = time.perf_counter() - start
            history.rows.append(row)
            if validation is not None:
                found = _evaluate(server, clients, history, validation)
                row.update(val_loss=found["loss"], val_accuracy=found["accuracy"])
                bar.set_postfix(val_accuracy=f"{row['val_accuracy']:.4f}")
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


def _ask(server, client, round_number, ledger, deadline, clock, **settings):
    """Let one client take part; returns why its answer was not used, or None."""

    def note(is_up, message):
        ledger.rows.append(
            Transfer(round_number, client.number, is_up, len(message), server.float32_size)
        )

    message = server.broadcast(client.version)
    note(False, message)
    start = clock()
    try:
        answer = client.train(message, **settings)
    except Exception as error:  # whatever breaks a client must not break the round
        reason = f"failed: {type(error).__name__}: {error}"
    else:
        seconds = clock() - start
        if isinstance(answer, bytes):
            note(True, answer)
        if answer is None:
            reason = "no answer"
        elif deadline is not None and seconds > deadline:
            reason = f"late: {seconds:.3g} s, the deadline is {deadline:g} s"
        else:
            try:
                server.receive(client.number, answer)  # it logs its own reasons
            except RejectedError as error:
                return str(error)
            return None
    logger.warning("round %d: client %d left out: %s", round_number, client.number, reason)
    return reason


def _evaluate(server, clients, history, validation):
    """Loss and accuracy of the shared model."""
    if server.norm != "local":
        return evaluate(server.model, validation)
    trained = sorted({number for row in history.rows for number in row["accepted"]})
    message = server.broadcast()  # a measurement: no entry in the ledger
    found = [clients[number].evaluate(message, validation) for number in trained]
    weights = [clients[number].samples for number in trained]
    return {
        name: float(np.average([one[name] for one in found], weights=weights))
        for name in ("loss", "accuracy")
    }


class _Checkpoint:
    """All that a run in one process changes, in one file: it is whole, or it is not there."""

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
        arrays["ledger"] = np.array(self.history.ledger.rows, np.int64).reshape(-1, 5)
        metadata = {
            "run": self._run, "server": numbers, "versions": versions,
            "history": [{k: _as_json(v) for k, v in row.items()} for row in self.history.rows],
        }  # fmt: skip
        storage.save(self.path, arrays, kind=KIND, version=VERSION, metadata=metadata)

    def restore(self):
        """Read the file, if there is one; whether there was."""
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
            ledger = read_ledger(arrays["ledger"])
            rows = [
                {k: float(v) if isinstance(v, str) else v for k, v in row.items()}
                for row in metadata["history"]
            ]
            if not all(isinstance(row["accepted"], list) for row in rows):
                raise TypeError("a round of its history has no list of accepted clients")
            self.server.restore(_below("server.", arrays), metadata["server"])
            for number, client in self.clients.items():
                own = _below(f"client.{number}.", arrays)
                client.restore(own, metadata["versions"][str(number)])
            self.history.ledger.rows[:] = ledger.rows
            self.history.rows[:] = rows
        return True


def _as_json(value):
    """Floats that JSON cannot hold as text."""
    return repr(value) if isinstance(value, float) and not np.isfinite(value) else value


def _below(prefix, arrays):
    """The arrays whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
