"""Flower: the same clients and the same server, each on a machine of its own.

Flower (https://flower.ai, the extra ``flower``) carries messages between machines; their content is
made and read by `Client` and `Server`::

    Client  <->  ClientApp  <->  SuperNode  <-- network -->  SuperLink  <->  ServerApp  <->  Server

The bytes of `wire` travel as bytes of a ConfigRecord. In an ArrayRecord they would be taken for
numbers: Flower's strategies average everything in it, packed bits included.

A process that runs a ClientApp may live for one message only, so a client is built anew for each
message, and what it keeps between rounds (`Client.state`) is stored in its SuperNode.

Flower's own strategies (momentum, robust and private ones) average floats, and work with the same
ClientApp: `array_record` converts the head of a model, and clients with `FedAvg()` answer by
floats.

Flower is imported where it is used, so that the rest of the library works without it.
"""

from __future__ import annotations

import functools
import logging
import operator
import os
import time
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import numpy as np

import tinybnn.federated.aggregation as rules
from tinybnn import storage
from tinybnn.datasets import DataLoader
from tinybnn.federated.client import Client
from tinybnn.federated.head import Head
from tinybnn.federated.rounds import Round, RoundHistory, read_ledger
from tinybnn.federated.server import Server
from tinybnn.nn import Module
from tinybnn.training import evaluate
from tinybnn.typing import Array

Settings: TypeAlias = dict[str, Any]  # the configuration of a run: strings and numbers

logger: logging.Logger = logging.getLogger("tinybnn.federated")

RECORD: str = "tinybnn"  # name of the ConfigRecord in each message
_STATE = "tinybnn-state"  # name of the ArrayRecord with the state of a client
_POLL = 1.0  # seconds between two queries for the nodes that are online

# What `server_app` reads from the run's configuration, with the values of missing settings.
DEFAULTS: Settings = {
    "clients": 2, "rounds": 3, "fraction": 1.0, "epochs": 1, "batch-size": 10, "wait": 600.0,
    "timeout": 600.0, "out": "",
}  # fmt: skip


# ------------------------------------------------------------------------------ messages of a round


class Exchange:
    """The messages between a `Server` and the nodes of a network, whatever carries them.

    The transport names the nodes. A node tells its client's number once, and from then on no other
    node can answer for that client.

    Parameters
    ----------
    server : Server
    fraction, epochs, batch_size
        As for `run_rounds`.

    Attributes
    ----------
    server : Server
    fraction : float
    history : RoundHistory
        As of `run_rounds`, with a row for each round, also for those that changed nothing: their
        ``accepted`` is too short.
    numbers : dict
        Node -> number of its client.
    """

    def __init__(
        self,
        server: Server,
        *,
        fraction: float = 1.0,
        epochs: int = 1,
        batch_size: int | None = 10,
    ) -> None:
        self.server: Server = server
        self.fraction: float = fraction
        self.history: RoundHistory = RoundHistory()
        self.numbers: dict[Any, int] = {}
        self._settings = {"epochs": epochs, "batch-size": batch_size or 0}
        self._versions = {}  # node -> version of the model that its client holds
        self._round = self._nodes = None  # of the open round; number -> node

    def introduce(self, node: Any, number: Any, online: Collection[Any]) -> None:
        """Register the number of a node's client.

        Refused are numbers outside 0 to 2**32 - 1, other objects, and the number of another node
        that is online.
        """
        if type(number) is not int or not 0 <= number < 1 << 32:
            logger.warning("node %s refused: %s is no number of a client", node, _quoted(number))
            return
        holder = {own: other for other, own in self.numbers.items()}.get(number, node)
        if holder != node and holder in online:
            logger.warning("node %s refused: client %s is with node %s", node, number, holder)
            return
        self.numbers.pop(holder, None)
        self.numbers[node] = number

    def begin(self, online: Collection[Any]) -> dict[Any, dict[str, Any]]:
        """Open a round with the clients of these nodes.

        Returns
        -------
        dict
            Node -> content of its message: bytes and numbers by name.
        """
        self._nodes = {number: node for node, number in self.numbers.items() if node in online}
        self._round, content = Round(self.server, self.history), {}
        for number in self._round.open(self._nodes, self.fraction):
            node = self._nodes[number]
            message = self._round.send(number, self._versions.get(node))
            content[node] = {"message": message, **self._settings}
        return content

    def finish(self, replies: dict[Any, dict[str, Any] | str]) -> bool:
        """Pass all replies to the server and close the round.

        Parameters
        ----------
        replies : dict
            Node -> content of its reply, or the reason (str) why there is none.

        Returns
        -------
        bool
            Whether the model has changed.
        """
        for number in self._round.row["clients"]:
            node = self._nodes[number]
            reply = replies.get(node, "no answer")
            if isinstance(reply, str):
                # The client may have trained, or lost its state: send the whole model next time.
                reply, reason = {}, reply
            else:
                reason = f"failed: {reply['error']}" if "error" in reply else None
            version = reply.get("version")
            self._versions[node] = version if isinstance(version, int) and version >= 0 else None
            reason = None if reason is None else _quoted(reason)
            self._round.receive(number, reply.get("message"), reason)
        changed = self._round.close()
        self.history.rows.append(self._round.row)
        return changed


# ------------------------------------------------------------------------------------- the server


@functools.cache
def _strategy_class():
    """Define the class of `strategy`, whose base is Flower's."""
    flwr = _flwr()

    class BitStrategy(flwr.serverapp.strategy.Strategy):
        """A Flower Strategy whose replies are bytes for a `Server`, bits among them."""

        def __init__(self, exchange, clients, wait, timeout):
            self.exchange, self.history = exchange, exchange.history
            self._clients, self._wait, self._timeout = clients, wait, timeout

        def summary(self):
            logger.info("server: %s", self.exchange.server.describe())

        def configure_train(self, server_round, arrays, config, grid):
            content = self.exchange.begin(self._online(grid))
            return [_message(record, node, "train") for node, record in content.items()]

        def aggregate_train(self, server_round, replies):
            changed = self.exchange.finish(
                {reply.metadata.src_node_id: _content(reply) for reply in replies}
            )
            row, server = self.history.rows[-1], self.exchange.server
            metrics = flwr.app.MetricRecord(
                {"accepted": len(row["accepted"]), "rejected": len(row["rejected"]),
                 "bytes-up": row["bytes_up"], "bytes-down": row["bytes_down"]}
            )  # fmt: skip
            return array_record(server.model, server.norm) if changed else None, metrics

        def configure_evaluate(self, server_round, arrays, config, grid):
            return []  # the server evaluates, see `server_app`

        def aggregate_evaluate(self, server_round, replies):
            return None

        def start(self, grid, initial_arrays=None, num_rounds=3, timeout=None, **options):
            """Run the rounds; the weights are the server's, not `initial_arrays`."""
            server = self.exchange.server
            self._timeout = self._timeout if timeout is None else timeout
            arrays = array_record(server.model, server.norm)
            return super().start(grid, arrays, num_rounds, self._timeout, **options)

        def _online(self, grid):
            """Wait for enough nodes, and ask new ones for their numbers."""
            need = self.exchange.server.minimum if len(self.history) else self._clients
            end = time.monotonic() + self._wait
            while True:
                online = set(grid.get_node_ids())
                new = sorted(online - self.exchange.numbers.keys())
                questions = [_message({}, node, "query") for node in new]
                for reply in grid.send_and_receive(questions, timeout=self._timeout) if new else ():
                    answer, node = _content(reply), reply.metadata.src_node_id
                    if isinstance(answer, dict) and "number" in answer:
                        self.exchange.introduce(node, answer["number"], online)
                    else:
                        logger.warning("node %s has no client: %s", node, _quoted(answer))
                present = online & self.exchange.numbers.keys()
                if len(present) >= need or time.monotonic() > end:
                    return present
                time.sleep(_POLL)

    return BitStrategy


def strategy(
    server: Server,
    *,
    clients: int = 2,
    fraction: float = 1.0,
    epochs: int = 1,
    batch_size: int | None = 10,
    wait: float = 600.0,
    timeout: float = 600.0,
) -> Any:
    """Make a Flower Strategy of a `Server`.

    Its ``aggregate_train`` passes the bytes of each reply to `Server.receive`, which checks them,
    and so accepts whatever the server's aggregation sends: bits, halves or floats. A reply that is
    missing, late, an error or rejected is left out of the round, and the reason is logged. A round
    with fewer answers than the server's minimum changes nothing.

    Parameters
    ----------
    server : Server
    clients : int
        Number of nodes to wait for before the first round; later it is the server's minimum.
    fraction, epochs, batch_size
        As for `run_rounds`.
    wait : float
        Seconds to wait for these nodes; after that the round begins with those that are online.
    timeout : float
        Seconds to wait for the answers of a round.

    Returns
    -------
    flwr.serverapp.strategy.Strategy
        With the additional attribute ``history``, a RoundHistory.
    """
    exchange = Exchange(server, fraction=fraction, epochs=epochs, batch_size=batch_size)
    return _strategy_class()(exchange, clients, wait, timeout)


def server_app(
    build: Callable[[Settings], Server],
    validation: Callable[[Settings], DataLoader] | None = None,
) -> Any:
    """Make a ServerApp that runs the rounds of the run's configuration (`DEFAULTS`).

    Parameters
    ----------
    build : callable
        config -> Server. The configuration is a dict of strings and numbers: that of the app
        (``[tool.flwr.app.config]`` in its pyproject.toml), with the changes of
        ``flwr run --run-config``.
    validation : callable, optional
        config -> DataLoader, on which the server's model is evaluated after each round. Ignored
        with local batch norms: the server has none that fit its weights.

    Returns
    -------
    flwr.serverapp.ServerApp
        A run writes the model and the history to the file ``out``, if the configuration has one;
        see `load_result`.
    """
    flwr = _flwr()
    app = flwr.serverapp.ServerApp()

    @app.main()
    def main(grid, context):
        config = {**DEFAULTS, **context.run_config}
        server = build(config)
        rounds = strategy(
            server, clients=config["clients"], fraction=config["fraction"],
            epochs=config["epochs"], batch_size=config["batch-size"] or None,
            wait=config["wait"], timeout=config["timeout"],
        )  # fmt: skip
        loader = None if validation is None or server.norm == "local" else validation(config)

        def evaluate_round(number, _):
            if loader is None:
                return None
            figures = evaluate(server.model, loader)
            if number:
                row = rounds.history.rows[-1]
                row.update({f"val_{name}": value for name, value in figures.items()})
            return flwr.app.MetricRecord(figures)

        rounds.start(grid, num_rounds=config["rounds"], evaluate_fn=evaluate_round)
        if config["out"]:
            save_result(config["out"], server, rounds.history, config)

    return app


KIND: str = "federated-result"
VERSION: int = 1


def save_result(
    path: str | os.PathLike[str], server: Server, history: RoundHistory, config: Settings
) -> None:
    """Write the model of a server and the history of its rounds, atomically."""
    arrays = {f"model.{name}": array for name, array in server.model.state_dict().items()}
    arrays["ledger"] = history.ledger.to_array()
    metadata = {"version": server.version, "history": history.rows, "config": config}
    storage.save(path, arrays, kind=KIND, version=VERSION, metadata=metadata)


def load_result(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Array], RoundHistory, dict[str, Any]]:
    """Read a file of `save_result`.

    Returns
    -------
    state : dict of arrays
        For `Module.load_state_dict`.
    history : RoundHistory
    metadata : dict
        ``version``, the number of rounds that changed the model, and ``config``.

    Raises
    ------
    StorageError
    """
    arrays, metadata = storage.load(path, kind=KIND, version=VERSION)
    with storage.expecting(path, "result of rounds"):
        operator.index(metadata["version"])
        rows = [dict(row) for row in metadata.pop("history")]
        history = RoundHistory(rows, read_ledger(arrays.pop("ledger")))
    return {name.removeprefix("model."): a for name, a in arrays.items()}, history, metadata


# ------------------------------------------------------------------------------------ the clients


def client_app(build: Callable[[int, int, Settings], Client]) -> Any:
    """Make a ClientApp that trains a `Client`.

    Parameters
    ----------
    build : callable
        (number, clients, config) -> Client. The number is the node's ``partition-id``, `clients`
        its ``num-partitions``; Flower's simulation sets both, a SuperNode gets them from
        ``--node-config``. The configuration is as for `server_app`.

    Returns
    -------
    flwr.clientapp.ClientApp
        It answers `strategy`, and Flower's strategies that average floats.
    """
    app = _flwr().clientapp.ClientApp()

    @app.query()
    def query(message, context):
        return _message({"number": _number(context)}, reply_to=message)

    @app.train()
    def train(message, context):
        number = _number(context)
        client = build(number, int(context.node_config["num-partitions"]), dict(context.run_config))
        if RECORD not in message.content:
            return _train_on_floats(client, message, context.run_config)
        _load_state(client, context.state)
        asked = message.content[RECORD]
        try:
            answer = client.train(
                asked["message"], epochs=asked["epochs"], batch_size=asked["batch-size"] or None
            )
        except Exception as error:  # the server gets the reason, not a traceback
            record = {"error": f"{type(error).__name__}: {error}"}
        else:
            record = {"message": answer}
        version = _save_state(client, context.state)
        return _message({**record, "version": version}, reply_to=message)

    return app


def _number(context):
    try:
        return int(context.node_config["partition-id"])
    except KeyError:
        raise ValueError(
            "client_app: the node has no number; start its SuperNode with --node-config "
            "'partition-id=0 num-partitions=2'"
        ) from None


def _load_state(client, state):
    """Restore a new Client to the state of the last one on its node."""
    if RECORD in state:
        version = state[RECORD]["version"]
        arrays = {name: array.numpy() for name, array in state[_STATE].items()}
        client.restore(arrays, None if version < 0 else version)


def _save_state(client, state):
    """Store the state of a Client on its node; return its version, -1 for None."""
    arrays, version = client.state()
    version = -1 if version is None else version
    state[_STATE] = _record_of_arrays(arrays)
    state[RECORD] = _flwr().app.ConfigRecord({"version": version})
    return version


# ------------------------------------------------------------------------- Flower's own strategies


def array_record(model: Module, norm: str = "average") -> Any:
    """Convert the head of a model to Flower's ArrayRecord, from which its strategies start.

    Not every strategy works with averaged batch norms: a server's momentum can make a running
    variance negative. With ``norm="frozen"`` or ``"local"`` only weights travel.

    Parameters
    ----------
    model : Module
    norm : 'average', 'local' or 'frozen'
        As the clients'; see `Head`.

    Returns
    -------
    flwr.app.ArrayRecord
        The entries of the head by name, float32 and int64, with their shapes.
    """
    return _record_of_arrays(Head(model, norm).read())


def load_array_record(model: Module, record: Any, norm: str = "average") -> None:
    """Load an ArrayRecord, as a strategy of Flower returns it, into the model.

    Parameters
    ----------
    model : Module
    record : flwr.app.ArrayRecord
        With the names and sizes of `array_record`.
    norm : 'average', 'local' or 'frozen'
    """
    head = Head(model, norm)
    head.write(_head_arrays(head, record))


def _train_on_floats(client, message, config):
    """Answer a strategy of Flower: floats in an ArrayRecord, both ways."""
    plain = client._aggregation
    if not isinstance(plain, rules.FedAvg) or plain.dtype != "float32":
        raise ValueError(
            f"client_app: strategies of Flower average floats, the client needs FedAvg(), not "
            f"{plain!r}"
        )
    asked = message.content.config_records.get("config", {})
    settings = {**DEFAULTS, "server-round": 0, **config, **asked}
    (record,) = message.content.array_records.values()
    update = client.update(
        _head_arrays(client._head, record),
        int(settings["server-round"]),
        epochs=int(settings["epochs"]),
        batch_size=int(settings["batch-size"]) or None,
    )
    arrays, app = _record_of_arrays(update), _flwr().app
    metrics = app.MetricRecord({"num-examples": client.samples})
    return app.Message(app.RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def _head_arrays(head, record):
    """Read the arrays of a record in the head's order; averaged counters are rounded."""
    names = [entry.name for entry in head.entries]
    if set(record) != set(names):
        raise ValueError(f"expected the arrays {names}, got {list(record)}")
    arrays = {}
    for entry in head.entries:
        array = record[entry.name].numpy().reshape(entry.shape)
        counter = entry.kind == "counter"
        arrays[entry.name] = np.rint(array).astype(np.int64) if counter else np.float32(array)
    return arrays


# ------------------------------------------------------------------------------ records of Flower


def _flwr():
    try:
        import flwr.app
        import flwr.clientapp
        import flwr.serverapp.strategy
    except ImportError as error:
        raise ImportError(
            "tinybnn.federated.flower needs Flower: pip install 'tinybnn[flower]'"
        ) from error
    return flwr


def _message(record, node=None, kind=None, reply_to=None):
    """Make a message with one ConfigRecord, to a node or in reply to another message."""
    app = _flwr().app
    content = app.RecordDict({RECORD: app.ConfigRecord(record)})
    if reply_to is not None:
        return app.Message(content, reply_to=reply_to)
    return app.Message(content, dst_node_id=node, message_type=kind)


def _quoted(text):
    """Shorten and escape what a node said: it goes to logs and terminals."""
    text = str(text)
    return storage.printable(text if len(text) <= 500 else f"{text[:500]} ...")


def _content(reply):
    """Return the reply's content (dict), or the reason why it is unusable (str)."""
    if reply.has_error():
        return f"failed: {reply.error.reason}"
    if RECORD not in reply.content:
        return "failed: a reply of another kind"
    return dict(reply.content[RECORD])


def _record_of_arrays(arrays):
    app = _flwr().app
    return app.ArrayRecord({k: app.Array(np.array(a, order="C")) for k, a in arrays.items()})
