"""Flower: the same clients and the same server, each on a machine of its own.

Flower (https://flower.ai, the extra ``flower``) carries messages between machines; what is in them
and what is made of them stays with `Client` and `Server`::

    Client  <->  ClientApp  <->  SuperNode  <-- network -->  SuperLink  <->  ServerApp  <->  Server

The bytes of `wire` travel inside a ConfigRecord, as bytes. In an ArrayRecord they would be taken
for numbers: the strategies of Flower average whatever they find there, packed bits as well.

A process that runs a ClientApp may live for one message only, so a client is built anew for each,
and what it must remember between rounds (`Client.state`) is kept in its SuperNode.

Strategies of Flower itself (momentum, robust and private ones) average floats, and work with the
same ClientApp: `array_record` gives them the head of a model, and clients with `FedAvg()` answer
them in kind.

Flower is imported where it is used, so that the rest of the library does without it.
"""

from __future__ import annotations

import functools
import logging
import operator
import time

import numpy as np

import tinybnn.federated.aggregation as rules
import tinybnn.federated.wire as wire
from tinybnn import storage
from tinybnn.federated.head import Head
from tinybnn.federated.rounds import Ledger, RoundHistory, Transfer, read_ledger
from tinybnn.federated.server import RejectedError
from tinybnn.training import evaluate

logger = logging.getLogger("tinybnn.federated")

RECORD = "tinybnn"  # name of the ConfigRecord in each message
_STATE = "tinybnn-state"  # of the ArrayRecord with what a client remembers
_POLL = 1.0  # seconds between two looks at which nodes are there

# What `server_app` reads from the run's configuration, where it is not given there.
DEFAULTS = {
    "clients": 2, "rounds": 3, "fraction": 1.0, "epochs": 1, "batch-size": 10, "wait": 600.0,
    "timeout": 600.0, "out": "",
}  # fmt: skip


# --------------------------------------------------------------------------------- a round of it


class Exchange:
    """What a `Server` and the nodes of a network say to each other, whatever carries it.

    Nodes have the names that the transport gives them; a client's number is what its node said when
    it was asked first, and no other node can answer in its name.

    Parameters
    ----------
    server : Server
    fraction, epochs, batch_size
        As for `run_rounds`.

    Attributes
    ----------
    history : RoundHistory
        As of `run_rounds`; a row for each round, also for those that changed nothing: what they
        lack is in ``accepted``.
    numbers : dict
        Node -> number of its client.
    """

    def __init__(self, server, *, fraction=1.0, epochs=1, batch_size=10):
        self.server, self.fraction = server, fraction
        self.history, self.numbers = RoundHistory(), {}
        self._settings = {"epochs": epochs, "batch-size": batch_size or 0}
        self._versions = {}  # node -> version of the model that its client holds
        self._row = self._start = self._first = None  # of the open round

    def introduce(self, node, number, online):
        """A node tells its client's number; refused if a node that is online has it already.

        Refused as well is what is no number of a client, from 0 to 2**32 - 1.
        """
        if type(number) is not int or not 0 <= number < 1 << 32:
            logger.warning("node %s refused: %s is no number of a client", node, _quoted(number))
            return
        holder = next((n for n, other in self.numbers.items() if other == number), None)
        if holder is not None and holder != node and holder in online:
            logger.warning("node %s refused: client %s is with node %s", node, number, holder)
            return
        if holder is not None:
            del self.numbers[holder]
        self.numbers[node] = number

    def begin(self, online):
        """Open a round with the clients of these nodes.

        Returns
        -------
        dict
            Node -> what to send to it: a dict of bytes and numbers.
        """
        nodes = {number: node for node, number in self.numbers.items() if node in online}
        chosen = self.server.choose(list(nodes), self.fraction) if nodes else []
        self.server.open_round(chosen)
        self._start, self._first = time.perf_counter(), len(self.history.ledger)
        self._row = {"round": len(self.history) + 1, "clients": chosen, "rejected": []}
        content = {}
        for number in chosen:
            message = self.server.broadcast(self._versions.get(nodes[number]))
            self._note(number, False, message)
            content[nodes[number]] = {"message": message, **self._settings}
        return content

    def finish(self, replies):
        """Hand all replies to the server and close the round.

        Parameters
        ----------
        replies : dict
            Node -> what came from it, or a text that says why nothing came.

        Returns
        -------
        bool
            Whether the model has changed.
        """
        row = self._row
        nodes = {self.numbers[node]: node for node in self.numbers}
        for number in row["clients"]:
            reason = self._take(number, nodes[number], replies.get(nodes[number], "no answer"))
            if reason is not None:
                row["rejected"].append([number, reason])
        row["accepted"] = self.server.accepted
        changed = self.server.close_round()
        sent = Ledger(self.history.ledger.rows[self._first :])
        row.update(attempts=1, bytes_up=sent.total("up"), bytes_down=sent.total("down"))
        row["seconds"] = time.perf_counter() - self._start
        self.history.rows.append(row)
        return changed

    def _take(self, number, node, reply):
        """Give one reply to the server; returns why it was not used, or None."""
        if isinstance(reply, str):
            reply = _quoted(reply)
            # It may have trained, or lost what it held: send all of the model next time.
            self._versions.pop(node, None)
            logger.warning("round %d: client %s left out: %s", self.server.round, number, reply)
            return reply
        version = reply.get("version", -1)
        self._versions[node] = version if isinstance(version, int) and version >= 0 else None
        if "error" in reply:
            reason = f"failed: {_quoted(reply['error'])}"
            logger.warning("round %d: client %s left out: %s", self.server.round, number, reason)
            return reason
        message = reply.get("message")
        if isinstance(message, bytes):
            self._note(number, True, message)
        try:
            self.server.receive(number, message)  # it logs its own reasons
        except RejectedError as error:
            return str(error)
        return None

    def _note(self, number, is_up, message):
        size = self.server.float32_size
        row = Transfer(self._row["round"], number, is_up, len(message), size)
        self.history.ledger.rows.append(row)


# ------------------------------------------------------------------------------------- the server


@functools.cache
def _strategy_class():
    """The class behind `strategy`, made where Flower is installed."""
    flwr = _flwr()

    class BitStrategy(flwr.serverapp.strategy.Strategy):
        """A Flower Strategy whose replies are bytes for a `Server`, bits among them."""

        def __init__(self, exchange, clients, wait, timeout):
            self.exchange, self._clients = exchange, clients
            self._wait, self._timeout = wait, timeout

        @property
        def history(self):
            return self.exchange.history

        def summary(self):
            logger.info("server: %s", self.exchange.server.describe())

        def configure_train(self, server_round, arrays, config, grid):
            content = self.exchange.begin(self._online(grid))
            return [_message(node, "train", record) for node, record in content.items()]

        def aggregate_train(self, server_round, replies):
            changed = self.exchange.finish(
                {reply.metadata.src_node_id: _content(reply) for reply in replies}
            )
            row = self.history.rows[-1]
            metrics = flwr.app.MetricRecord(
                {"accepted": len(row["accepted"]), "rejected": len(row["rejected"]),
                 "bytes-up": row["bytes_up"], "bytes-down": row["bytes_down"]}
            )  # fmt: skip
            server = self.exchange.server
            return array_record(server.model, server.norm) if changed else None, metrics

        def configure_evaluate(self, server_round, arrays, config, grid):
            return []  # the server evaluates, see `server_app`

        def aggregate_evaluate(self, server_round, replies):
            return None

        def start(self, grid, initial_arrays=None, num_rounds=3, timeout=None, **options):
            """As Flower's; the weights are the server's, whatever `initial_arrays` are."""
            server = self.exchange.server
            self._timeout = self._timeout if timeout is None else timeout
            arrays = array_record(server.model, server.norm)
            return super().start(grid, arrays, num_rounds, self._timeout, **options)

        def _online(self, grid):
            """The nodes that are there, once there are enough; the new ones are asked first."""
            need = self.exchange.server.minimum if len(self.history) else self._clients
            end = time.monotonic() + self._wait
            while True:
                online = set(grid.get_node_ids())
                new = online - self.exchange.numbers.keys()
                if new:
                    questions = [_message(node, "query", {}) for node in sorted(new)]
                    for reply in grid.send_and_receive(questions, timeout=self._timeout):
                        found, node = _content(reply), reply.metadata.src_node_id
                        if isinstance(found, dict) and "number" in found:
                            self.exchange.introduce(node, found["number"], online)
                        else:
                            logger.warning("node %s has no client: %s", node, _quoted(found))
                present = online & self.exchange.numbers.keys()
                if len(present) >= need or time.monotonic() > end:
                    return present
                time.sleep(_POLL)

    return BitStrategy


def strategy(
    server, *, clients=2, fraction=1.0, epochs=1, batch_size=10, wait=600.0, timeout=600.0
):
    """A Flower Strategy around a `Server`.

    Its ``aggregate_train`` gives the bytes of each reply to `Server.receive`, which checks them,
    and so understands whatever the server's aggregation sends: bits, halves or floats. A reply that
    is missing, late, an error or rejected is left out of the round, and the reason is logged. A
    round with fewer answers than the server's minimum changes nothing.

    Parameters
    ----------
    server : Server
    clients : int
        Nodes to wait for before the first round; before later ones, the server's minimum.
    fraction, epochs, batch_size
        As for `run_rounds`.
    wait : float
        Seconds to wait for these nodes; then the round begins with those that are there.
    timeout : float
        Seconds to wait for the answers of a round.

    Returns
    -------
    flwr.serverapp.strategy.Strategy
        With the further attribute ``history``, a RoundHistory.
    """
    exchange = Exchange(server, fraction=fraction, epochs=epochs, batch_size=batch_size)
    return _strategy_class()(exchange, clients, wait, timeout)


def server_app(build, validation=None):
    """A ServerApp that runs the rounds which the run's configuration asks for (`DEFAULTS`).

    Parameters
    ----------
    build : callable
        config -> Server. The configuration is a dict of strings and numbers: that of the app
        (``[tool.flwr.app.config]`` in its pyproject.toml), with what ``flwr run --run-config``
        changes.
    validation : callable, optional
        config -> DataLoader, on which the server's model is evaluated after each round. Not for
        batch norms that stay with the clients: the server has none that fit its weights.

    Returns
    -------
    flwr.serverapp.ServerApp
        Its run writes the model and the history to the file ``out``, if the configuration has one;
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
            found = evaluate(server.model, loader)
            if number:
                row = rounds.history.rows[-1]
                row.update(val_loss=found["loss"], val_accuracy=found["accuracy"])
            return flwr.app.MetricRecord(found)

        rounds.start(grid, num_rounds=config["rounds"], evaluate_fn=evaluate_round)
        if config["out"]:
            save_result(config["out"], server, rounds.history, config)

    return app


KIND, VERSION = "federated-result", 1


def save_result(path, server, history, config):
    """Write the model of a server and the history of its rounds, atomically."""
    arrays = {f"model.{name}": array for name, array in server.model.state_dict().items()}
    arrays["ledger"] = np.array(history.ledger.rows, np.int64).reshape(-1, 5)
    metadata = {"version": server.version, "history": history.rows, "config": config}
    storage.save(path, arrays, kind=KIND, version=VERSION, metadata=metadata)


def load_result(path):
    """What `save_result` wrote.

    Returns
    -------
    state : dict of arrays
        For `Module.load_state_dict`.
    history : RoundHistory
    metadata : dict
        ``version``, the rounds that changed the model, and ``config``.

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


def client_app(build):
    """A ClientApp that lets a `Client` train.

    Parameters
    ----------
    build : callable
        (number, clients, config) -> Client. The number is the node's ``partition-id``, `clients`
        its ``num-partitions``; Flower's simulation sets both, a SuperNode is given them with
        ``--node-config``. The configuration is as for `server_app`.

    Returns
    -------
    flwr.clientapp.ClientApp
        It answers `strategy`, and the strategies of Flower that average floats.
    """
    flwr = _flwr()
    app = flwr.clientapp.ClientApp()

    @app.query()
    def query(message, context):
        return _reply(message, {"number": _number(context)})

    @app.train()
    def train(message, context):
        number = _number(context)
        client = build(number, int(context.node_config["num-partitions"]), dict(context.run_config))
        if RECORD not in message.content:
            return _train_on_floats(client, message, context.run_config)
        _remind(client, context.state)
        asked = message.content[RECORD]
        try:
            answer = client.train(
                asked["message"], epochs=asked["epochs"], batch_size=asked["batch-size"] or None
            )
        except Exception as error:  # it goes to the server as a reason, not as a stack of ours
            record = {"error": f"{type(error).__name__}: {error}"}
        else:
            record = {"message": answer}
        _remember(client, context.state)
        version = -1 if client.version is None else client.version
        return _reply(message, {**record, "version": version})

    return app


def _number(context):
    try:
        return int(context.node_config["partition-id"])
    except KeyError:
        raise ValueError(
            "client_app: the node has no number; start its SuperNode with --node-config "
            "'partition-id=0 num-partitions=2'"
        ) from None


def _remind(client, state):
    """Give a new Client what the last one of its node remembered."""
    if RECORD in state:
        version = state[RECORD]["version"]
        arrays = {name: array.numpy() for name, array in state[_STATE].items()}
        client.restore(arrays, None if version < 0 else version)


def _remember(client, state):
    flwr = _flwr()
    arrays, version = client.state()
    state[_STATE] = _record_of_arrays(arrays)
    state[RECORD] = flwr.app.ConfigRecord({"version": -1 if version is None else version})


# ------------------------------------------------------------------ the strategies of Flower itself


def array_record(model, norm="average"):
    """The head of a model as Flower's ArrayRecord: what a strategy of Flower starts with.

    Batch norms that are averaged do not go well with each of them: a server's momentum can make a
    running variance negative. With ``norm="frozen"`` or ``"local"`` only weights travel.

    Parameters
    ----------
    model : Module
    norm : 'average', 'local' or 'frozen'
        As the clients'; see `Head`.
    """
    return _record_of_arrays(Head(model, norm).read())


def load_array_record(model, record, norm="average"):
    """Put what a strategy of Flower made of `array_record` back into the model."""
    head = Head(model, norm)
    head.write(_head_arrays(head, record))


def _train_on_floats(client, message, config):
    """Answer a strategy of Flower: floats in an ArrayRecord, both ways."""
    flwr = _flwr()
    plain = client._aggregation
    if not isinstance(plain, rules.FedAvg) or plain.dtype != "float32":
        raise ValueError(
            f"client_app: strategies of Flower average floats, the client needs FedAvg(), not "
            f"{plain!r}"
        )
    head, asked = client._head, message.content.config_records.get("config", {})
    (record,) = message.content.array_records.values()
    state = _head_arrays(head, record)
    number = int(asked.get("server-round", 0))
    token = wire.token(head.digest, number, 0, state.values())
    header = wire.Header("state", number, 0, head.digest, token)
    fields = rules.fields(plain, head.entries, "up")
    answer = client.train(
        wire.encode(header, list(state.values()), list(fields.values())),
        epochs=int(asked.get("epochs", config.get("epochs", DEFAULTS["epochs"]))),
        batch_size=int(asked.get("batch-size", config.get("batch-size", DEFAULTS["batch-size"])))
        or None,
    )
    arrays = _record_of_arrays(wire.decode(answer, fields)[1])
    metrics = flwr.app.MetricRecord({"num-examples": client.samples})
    content = flwr.app.RecordDict({"arrays": arrays, "metrics": metrics})
    return flwr.app.Message(content, reply_to=message)


def _head_arrays(head, record):
    """The arrays of a record in the head's order; averages of counters are whole numbers again."""
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


def _message(node, kind, record):
    flwr = _flwr()
    content = flwr.app.RecordDict({RECORD: flwr.app.ConfigRecord(record)})
    return flwr.app.Message(content, dst_node_id=node, message_type=kind)


def _reply(message, record):
    flwr = _flwr()
    content = flwr.app.RecordDict({RECORD: flwr.app.ConfigRecord(record)})
    return flwr.app.Message(content, reply_to=message)


def _quoted(said):
    """What a node said, short and without control characters: it goes to logs and terminals."""
    text = str(said)
    return storage.printable(text if len(text) <= 500 else f"{text[:500]} ...")


def _content(reply):
    """What a reply says as a dict, or why it says nothing as a text."""
    if reply.has_error():
        return f"failed: {reply.error.reason}"
    if RECORD not in reply.content:
        return "failed: a reply of another kind"
    return dict(reply.content[RECORD])


def _record_of_arrays(arrays):
    flwr = _flwr()
    return flwr.app.ArrayRecord(
        {name: flwr.app.Array(np.array(array, order="C")) for name, array in arrays.items()}
    )
