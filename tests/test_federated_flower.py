"""Federated learning through Flower: the same weights as in one process, and the same refusals."""

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_federated_rounds import (
    BITS,
    STRATEGIES,
    assert_same,
    calibrated,
    codes,
    differ,
    federation,
    network,
    rounds,
    sgd,
    state_of,
)

from tinybnn import cli, datasets, models, nn
from tinybnn.federated import Client, FedAvg, Head, Server, SignOfUpdate, iid, launch, wire
from tinybnn.federated import aggregation as rules
from tinybnn.federated import flower as adapter

IS_INSTALLED = importlib.util.find_spec("flwr") is not None


def needs_flower(test):
    """Mark a test that needs Flower; importing Flower and Ray raises warnings."""
    for mark in (
        pytest.mark.filterwarnings("ignore"),
        pytest.mark.skipif(not IS_INSTALLED, reason="needs the extra flower"),
        pytest.mark.flower,
    ):
        test = mark(test)
    return test


def rows_of(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


def messages_of(history):
    """The ledger's rows, sorted: here all clients are asked before the first answers."""
    return sorted(history.ledger.rows)


# ------------------------------------------------------------------------------------ the exchange


def exchange_rounds(exchange, clients, count, fault=None):
    """Rounds between an Exchange and clients in this process, on nodes named a, b, ..."""
    nodes = dict(zip("abcdefgh", clients, strict=False))
    for node, client in nodes.items():
        exchange.introduce(node, client.number, set(nodes))
    for _ in range(count):
        replies = {}
        for node, asked in exchange.begin(set(nodes)).items():
            client = nodes[node]
            answer = client.train(
                asked["message"], epochs=asked["epochs"], batch_size=asked["batch-size"] or None
            )
            version = -1 if client.version is None else client.version
            replies[node] = {"message": answer, "version": version}
        if fault is not None:
            fault(replies)
        exchange.finish(replies)


@pytest.mark.parametrize("batch_size", [10, None])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_an_exchange_is_what_run_rounds_does(strategy, batch_size):
    options = {"epochs": 2, "batch_size": batch_size, "fraction": 0.7}
    server, clients = federation(strategy, seed=3)
    expected = rounds(server, clients, 3, **options)
    other, clients = federation(strategy, seed=3)
    exchange = adapter.Exchange(other, **options)
    exchange_rounds(exchange, clients, 3)
    assert_same(state_of(other.model), state_of(server.model))
    assert differ(state_of(other.model), state_of(network())) or "Majority" in repr(strategy)
    assert rows_of(exchange.history) == rows_of(expected)
    assert messages_of(exchange.history) == messages_of(expected)


def test_what_nodes_may_send_instead_of_an_answer():
    """Whatever one node sends, the round goes on with the others."""
    strategy = SignOfUpdate(0.05, both=True)
    server, clients = federation(strategy)
    exchange = adapter.Exchange(server)
    exchange_rounds(exchange, clients, 1)
    whole = wire.size(rules.fields(strategy, Head(network()).entries, "down").values())
    cases = [
        (lambda r: r.pop("b"), "no answer", True),
        (lambda r: r.update(b="failed: out of reach"), "failed: out of reach", True),
        (lambda r: r.update(b={"error": "Crash", "version": 2}), "failed: Crash", False),
        (lambda r: r["b"].update(message=r["a"]["message"]), "in the name of client 0", False),
        (lambda r: r["b"].update(message=r["b"]["message"][:-1]), "damaged or cut off", False),
        (lambda r: r["b"].update(message=7), "a message must be bytes, got int", False),
        (lambda r: r["b"].pop("message"), "a message must be bytes, got NoneType", False),
        (lambda r: r["b"].update(version="x", message=b""), "cut off: 0 bytes", True),
    ]
    for fault, reason, is_forgotten in cases:
        version = server.version
        exchange_rounds(exchange, clients, 1, fault)
        row = exchange.history.rows[-1]
        assert row["accepted"] == [0, 2] and server.version == version + 1
        ((number, why),) = row["rejected"]
        assert number == 1 and reason in why
        # A node whose state is unknown gets the whole model.
        exchange.begin({"b"})
        assert (exchange.history.ledger.rows[-1].nbytes == whole) == is_forgotten
        exchange.finish({})
        exchange_rounds(exchange, clients, 1)
        assert exchange.history.rows[-1]["accepted"] == [0, 1, 2]


def test_a_number_belongs_to_one_node():
    server, _ = federation(FedAvg(), clients=2)
    exchange = adapter.Exchange(server)
    exchange.introduce("a", 0, {"a"})
    exchange.introduce("b", 0, {"a", "b"})  # refused: it would answer in the name of another
    assert exchange.numbers == {"a": 0}
    exchange.introduce("b", 1, {"a", "b"})
    exchange.introduce("c", 1, {"a", "c"})  # b has restarted under a new name
    assert exchange.numbers == {"a": 0, "c": 1}
    assert list(exchange.begin({"a", "c"})) == ["a", "c"]
    exchange.finish({})
    assert exchange.begin(set()) == {}  # no node is connected
    assert not exchange.finish({}) and server.version == 0
    assert exchange.history.rows[-1]["clients"] == []


def test_without_flower_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    adapter._strategy_class.cache_clear()
    server, _ = federation(FedAvg(), clients=1)
    for call in (lambda: adapter.strategy(server), lambda: adapter.client_app(None)):
        with pytest.raises(ImportError, match=r"pip install 'tinybnn\[flower\]'"):
            call()
    with pytest.raises(launch.LaunchError, match=r"pip install 'tinybnn\[flower\]'"):
        launch._tool("flower-no-such-tool")


def test_an_app_to_change(tmp_path):
    launch.new_app(tmp_path / "mine")
    made = {p.relative_to(tmp_path / "mine").as_posix() for p in (tmp_path / "mine").rglob("*.*")}
    assert made >= {"pyproject.toml", "digits/task.py", "digits/client.py", "digits/server.py"}
    for side in ("client", "server"):  # Flower looks for an assignment without a type
        text = (tmp_path / "mine" / "digits" / f"{side}.py").read_text(encoding="utf-8")
        assert f"\napp = flower.{side}_app(" in text
    with pytest.raises(ValueError, match="is not an empty folder"):
        launch.new_app(tmp_path / "mine")


FLWR = """#!/bin/sh
case "$1" in
    list) echo '{"runs": [{"status": "finished:STATUS"}]}' ;;
    run) printf '\\033[92mINFO\\033[0m: %s\\n' "$5" "$6"; exec sleep "$SECONDS_OF_A_RUN" ;;
esac
"""


@pytest.fixture
def flwr(tmp_path, monkeypatch):
    """A function that makes stand-ins for Flower's program, which exit with a given status."""

    def make(status, seconds=0):
        program = tmp_path / "flwr"
        program.write_text(FLWR.replace("STATUS", status))
        program.chmod(0o755)
        monkeypatch.setattr(launch, "_tool", lambda name: str(program))
        monkeypatch.setenv("SECONDS_OF_A_RUN", str(seconds))

    return make


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_a_run_that_fails_or_takes_too_long(tmp_path, flwr):
    lines, network = [], launch.Network(tmp_path)
    flwr("completed")
    network.run("app", {"rounds": 2, "out": "a b"}, say=lines.append)
    assert lines == ["INFO: --run-config", 'INFO: rounds=2 out="a b"']
    flwr("failed")
    with pytest.raises(launch.LaunchError, match=r"ended as finished:failed; .*\nINFO: --run-c"):
        network.run("app", {"rounds": 2})
    flwr("completed", 600)
    start = time.monotonic()
    with pytest.raises(launch.LaunchError, match=r"ended as stopped after 0\.3 s; .*\nINFO: "):
        network.run("app", {"rounds": 2}, timeout=0.3)
    assert time.monotonic() - start < 60


def test_the_command_line(tmp_path, monkeypatch, capsys):
    def simulate(app, *, clients, workers, config, say):
        assert (Path(app), clients, workers) == (launch.APP, 4, 1)
        assert {k: v for k, v in config.items() if k != "out"} == {
            "rounds": 2, "strategy": "sign", "fraction": 0.5, "norm": "frozen",
        }  # fmt: skip
        assert os.path.isabs(config["out"])
        server, made = federation(SignOfUpdate(), clients=clients)
        validation = datasets.DataLoader(codes(20, 1), 20)
        history = rounds(server, made, config["rounds"], validation=validation)
        adapter.save_result(config["out"], server, history, config)
        say("a line of the log")

    monkeypatch.setattr(launch, "simulate", simulate)
    monkeypatch.chdir(tmp_path)
    words = ["federated", "simulate", "--clients", "4", "--rounds", "2", "--json", "f.json"]
    for setting in ("strategy=sign", "fraction=0.5", "norm=frozen"):
        words += ["--config", setting]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "a line of the log" in out and "federated.npz: 2 rounds, accuracy" in out
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["rounds"] == len(figures["history"]) == 2
    assert figures["saving_up"] > 2 > figures["saving_down"]
    with pytest.raises(SystemExit):
        cli.main(["federated", "simulate", "--config", "rounds"])
    assert "expects KEY=VALUE, got 'rounds'" in capsys.readouterr().err
    assert cli.federated._setting("out=a=b") == ("out", "a=b")
    assert cli.main(["federated", "new", "mine"]) == 0
    assert (tmp_path / "mine" / "README.md").exists()
    assert cli.main(["federated", "new", "mine"]) == 1
    for action in ([], ["simulate"], ["new"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["federated", *action, "--help"])
        assert end.value.code == 0 and "example" in capsys.readouterr().out


def test_a_result_is_what_was_saved(tmp_path):
    server, clients = federation(FedAvg())
    history = rounds(server, clients, 2, validation=datasets.DataLoader(codes(20, 1), 20))
    adapter.save_result(tmp_path / "r.npz", server, history, {"rounds": 2})
    state, loaded, metadata = adapter.load_result(tmp_path / "r.npz")
    assert_same(state, state_of(server.model))
    assert loaded.rows == history.rows and loaded.ledger.rows == history.ledger.rows
    assert metadata == {"version": 2, "config": {"rounds": 2}}


# ----------------------------------------------------------- the apps, without a network in between


class LocalGrid:
    """Carries messages to a ClientApp in this process, which keeps only its context."""

    def __init__(self, app, nodes, fault=lambda node, reply: reply):
        from flwr.app import Context, RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        for name in ("run_id", "node_id", "task_id"):  # of the messages that are made here
            setattr(TaskIdentity, name, 1)
        self.app, self.fault = app, fault
        self.contexts = {
            100 + k: Context(
                run_id=1, node_id=100 + k, run_config={}, state=RecordDict(),
                node_config={"partition-id": k, "num-partitions": nodes},
            )
            for k in range(nodes)
        }  # fmt: skip

    def get_node_ids(self):
        return list(self.contexts)

    def send_and_receive(self, messages, *, timeout=None):
        for message in messages:
            node = message.metadata.dst_node_id
            reply = self.app(message, self.contexts[node])
            reply.metadata.__dict__["_src_node_id"] = node
            reply = self.fault(node, reply)
            if reply is not None:
                yield reply


def apps(strategy, norm="average", clients=3, build=network, optimizer=None):
    """A server, and a ClientApp with the clients of `federation`."""
    data = codes(60)

    def client(number, count, config):
        part = iid(60, count)[number]
        return Client(number, data[part], build(), strategy, norm=norm, optimizer=optimizer)

    return Server(build(), strategy, norm=norm), adapter.client_app(client)


@needs_flower
@pytest.mark.parametrize("norm", ["average", "local", "frozen"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_clients_that_are_built_anew_for_each_message(strategy, norm):
    server, clients = federation(strategy, norm=norm, build=calibrated)
    expected = rounds(server, clients, 3)
    other, app = apps(strategy, norm, build=calibrated)
    rule = adapter.strategy(other, clients=3)
    result = rule.start(LocalGrid(app, 3), num_rounds=3)
    assert_same(state_of(other.model), state_of(server.model))
    assert rows_of(rule.history) == rows_of(expected)
    assert messages_of(rule.history) == messages_of(expected)
    for name, array in result.arrays.items():
        np.testing.assert_array_equal(array.numpy(), other.model.state_dict()[name])


@needs_flower
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_clients_without_batch_norms(strategy):
    def build():
        head = models.BinaryMLP(BITS, 8, 2, norm="none", rng=np.random.default_rng(0))
        return nn.Sequential(nn.Flatten(), head)

    server, clients = federation(strategy, build=build)
    expected = rounds(server, clients, 3)
    other, app = apps(strategy, build=build)
    rule = adapter.strategy(other, clients=3)
    rule.start(LocalGrid(app, 3), num_rounds=3)
    assert_same(state_of(other.model), state_of(server.model))
    assert differ(state_of(other.model), state_of(build()))
    assert messages_of(rule.history) == messages_of(expected)


@needs_flower
def test_replies_that_do_not_come_or_are_errors():
    from flwr.app import ConfigRecord, Error, Message, RecordDict

    server, app = apps(FedAvg())

    def fault(node, reply):
        record = reply.content.get(adapter.RECORD, {})
        if "message" in record and node != 100:
            number = server.round
            if number == 1:
                return None if node == 101 else reply
            if number == 2:
                error = Error(code=1, reason="crashed")
                reply = Message(error, reply_to=reply)
                reply.metadata.__dict__["_src_node_id"] = node
            elif number == 3:
                reply.content = RecordDict({"other": ConfigRecord({})})
        return reply

    rule = adapter.strategy(server, clients=3)
    rule.start(LocalGrid(app, 3, fault), num_rounds=4)
    assert rule.history["accepted"] == [[0, 2], [0], [0], [0, 1, 2]]
    assert rule.history["rejected"] == [
        [[1, "no answer"]],
        [[1, "failed: crashed"], [2, "failed: crashed"]],
        [[1, "failed: a reply of another kind"], [2, "failed: a reply of another kind"]],
        [],
    ]
    assert server.version == 4


@needs_flower
def test_what_breaks_a_client_is_the_reason_in_the_history():
    server, _ = apps(FedAvg())

    def broken(number, count, config):
        def explode(parameters):
            raise MemoryError("out of memory")

        return Client(number, codes(20), network(), FedAvg(), optimizer=explode)

    rule = adapter.strategy(server, clients=2)
    result = rule.start(LocalGrid(adapter.client_app(broken), 2), num_rounds=1)
    assert server.version == 0 and not result.arrays
    reason = "failed: MemoryError: out of memory"
    assert rule.history["rejected"] == [[[0, reason], [1, reason]]]


@needs_flower
def test_a_node_without_a_number():
    from flwr.app import ConfigRecord, Context, Message, RecordDict

    _, app = apps(FedAvg())
    question = Message(RecordDict({"tinybnn": ConfigRecord({})}), 1, "query")
    context = Context(run_id=1, node_id=1, node_config={}, run_config={}, state=RecordDict())
    with pytest.raises(ValueError, match="--node-config 'partition-id=0 num-partitions=2'"):
        app(question, context)


@needs_flower
def test_a_server_app_reads_its_configuration(tmp_path):
    from flwr.app import Context, RecordDict

    settings = {}

    def build(config):
        settings.update(config)
        return apps(FedAvg())[0]

    def validation(config):
        return datasets.DataLoader(codes(30, 1), 30)

    config = {"clients": 3, "rounds": 2, "epochs": 2, "out": str(tmp_path / "r.npz")}
    context = Context(run_id=1, node_id=0, node_config={}, run_config=config, state=RecordDict())
    adapter.server_app(build, validation)(LocalGrid(apps(FedAvg())[1], 3), context)
    assert settings == {**adapter.DEFAULTS, **config}
    server, clients = federation(FedAvg())
    expected = rounds(server, clients, 2, epochs=2, validation=validation({}))
    state, history, metadata = adapter.load_result(tmp_path / "r.npz")
    assert_same(state, state_of(server.model))
    assert rows_of(history) == rows_of(expected) and metadata["version"] == 2


@needs_flower
@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedMedian"])
def test_strategies_of_flower(name):
    """They average the head's floats; FedAvg gives the same weights as `run_rounds`."""
    from flwr.serverapp import strategy as flowers

    server, app = apps(FedAvg(), "frozen", build=calibrated, optimizer=sgd)
    model = server.model
    start = state_of(model)
    options = {"fraction_evaluate": 0.0, "min_train_nodes": 3, "min_available_nodes": 3}
    rule = getattr(flowers, name)(**options)
    result = rule.start(LocalGrid(app, 3), adapter.array_record(model, "frozen"), num_rounds=3)
    adapter.load_array_record(model, result.arrays, "frozen")
    assert differ(state_of(model), start)
    if name == "FedAvg":
        expected, clients = federation(FedAvg(), norm="frozen", build=calibrated, optimizer=sgd)
        rounds(expected, clients, 3)
        for key, array in state_of(model).items():
            np.testing.assert_allclose(array, expected.model.state_dict()[key], atol=1e-5)


@needs_flower
def test_averages_of_counters_are_whole_numbers():
    from flwr.app import Array

    model = network()
    name = "1.layers.1.num_batches_tracked"
    record = adapter.array_record(model)
    record[name] = Array(np.array(6.9999998))  # a weighted mean of 7s may round to this
    adapter.load_array_record(model, record)
    assert model.state_dict()[name] == 7 and model.state_dict()[name].dtype == np.int64


@needs_flower
def test_strategies_of_flower_do_not_get_bits():
    from flwr.serverapp.strategy import FedAvg as FlowersFedAvg

    server, app = apps(SignOfUpdate())
    rule = FlowersFedAvg(fraction_evaluate=0.0)
    with pytest.raises(ValueError, match=r"average floats, the client needs FedAvg\(\), not Sign"):
        rule.start(LocalGrid(app, 2), adapter.array_record(server.model), num_rounds=1)
    with pytest.raises(ValueError, match="expected the arrays"):
        adapter.load_array_record(server.model, adapter.array_record(network(), "frozen"))


# ------------------------------------------------------------------------- processes of Flower


def task_of(folder):
    """The module `task` of an app."""
    path = folder / "digits" / "task.py"
    spec = importlib.util.spec_from_file_location("task_of_an_app", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def app_config(**changes):
    import tomllib

    with open(launch.APP / "pyproject.toml", "rb") as file:
        return {**tomllib.load(file)["tool"]["flwr"]["app"]["config"], **changes}


def in_process(config, count, clients, lost=()):
    """The rounds of an app in this process; `lost` are clients that fail from a round on."""
    task = task_of(launch.APP)
    server = task.server(config)
    exchange = adapter.Exchange(server, batch_size=config["batch-size"])
    made = [task.client(k, clients, config) for k in range(clients)]
    for number in range(1, count + 1):
        gone = {"ab"[k] for k, since in lost if number >= since}
        exchange_rounds(exchange, made, 1, lambda r, gone=gone: [r.pop(node) for node in gone])
    return server, exchange.history


def listeners(mark):
    """Find where processes listen whose environment contains a text (Linux)."""
    addresses, listening = {}, set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[i] for i in (1, 3, 9))
            if state == "0A":
                addresses[f"socket:[{inode}]"] = local.partition(":")[0]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                links = {os.readlink(fd) for fd in (process / "fd").iterdir()}
                listening |= {addresses[link] for link in links & addresses.keys()}
    return {_as_text(address) for address in listening}


def _as_text(address):
    """An address from /proc/net, which has 32-bit words in native order, in hexadecimal."""
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    data = struct.pack(f"={len(words)}I", *words)
    family = socket.AF_INET if len(data) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, data).removeprefix("::ffff:")


@needs_flower
@pytest.mark.slow
def test_flowers_simulation_gives_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYBNN_TEST", mark := tmp_path.as_posix())
    config = app_config(strategy="sign-both", norm="local", partition="label", rounds=3, clients=3)
    out = tmp_path / "simulated.npz"
    places = set()

    def say(line):
        if "ROUND 2" in line and sys.platform == "linux":
            places.update(listeners(mark))

    launch.simulate(clients=3, config={**config, "out": str(out)}, timeout=400, say=say)
    state, history, _ = adapter.load_result(out)
    server, expected = in_process(config, 3, 3)
    assert_same(state, state_of(server.model))
    assert rows_of(history) == rows_of(expected)
    assert messages_of(history) == messages_of(expected)
    assert places == {launch.HOST} or sys.platform != "linux"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Create certificates for the loopback with the commands of the app's page."""
    folder = tmp_path_factory.mktemp("certificates")
    page = (launch.APP / "README.md").read_text(encoding="utf-8")
    steps = page[page.index("1. Make a certificate") : page.index("`ca.pem` goes to")]
    commands = "\n".join(line[7:] for line in steps.splitlines() if line.startswith(" " * 7))
    commands = commands.replace("192.0.2.10", launch.HOST)
    subprocess.run(["bash", "-ec", commands], cwd=folder, check=True, capture_output=True)
    return [folder / name for name in ("ca.pem", "server.pem", "server.key")]


def supernode(net, number, encryption=("--insecure",)):
    """Start the SuperNode of one of the two clients."""
    arguments = [
        "--superlink", net.address, "--host", launch.HOST, "--port", str(launch.free_port()),
        "--node-config", f"partition-id={number} num-partitions=2", *encryption,
    ]  # fmt: skip
    return net.start("flower-supernode", arguments, f"supernode-{number}")


@needs_flower
@pytest.mark.slow
def test_machines_with_tls_give_the_same_weights(tmp_path, certificates):
    """A SuperLink and two SuperNodes, each a process, on the loopback."""
    ca, certificate, key = map(str, certificates)
    options = ["--ssl-ca-certfile", ca, "--ssl-certfile", certificate, "--ssl-keyfile", key]
    with launch.Network(tmp_path / "home", options, {"root-certificates": ca}) as net:
        for number in range(2):
            supernode(net, number, ["--root-certificates", ca])
        for strategy, norm in (("fedavg", "average"), ("sign", "average"), ("sign", "none")):
            config = app_config(strategy=strategy, norm=norm, rounds=3)
            out = tmp_path / f"{strategy}-{norm}.npz"
            net.run(launch.APP, {**config, "out": str(out)}, timeout=400)
            state, history, _ = adapter.load_result(out)
            server, expected = in_process(config, 3, 2)
            assert_same(state, state_of(server.model))
            assert messages_of(history) == messages_of(expected)
            assert history["accepted"] == [[0, 1]] * 3
            assert history["val_accuracy"][-1] > history["val_accuracy"][0] > 0.15
            is_batch_norm = [name for name in state if "running" in name]
            assert bool(is_batch_norm) == (norm == "average")


SLOW_CLIENT = """

_built = client


def client(number, clients, config):
    import pathlib, time
    from tinybnn.federated import wire

    made = _built(number, clients, config)
    train = made.train

    def slow(message, **settings):
        if number == 1 and wire.read_header(message).round == 2:
            pathlib.Path({marker!r}).touch()
            time.sleep(600)
        return train(message, **settings)

    made.train = slow
    return made
"""


@needs_flower
@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_supernode_that_is_killed_in_a_round(tmp_path):
    """The run ends with the other client, at the weights that its answers alone give."""
    app, marker, out = tmp_path / "app", tmp_path / "training", tmp_path / "result.npz"
    launch.new_app(app)
    task = app / "digits" / "task.py"
    task.write_text(task.read_text() + SLOW_CLIENT.replace("{marker!r}", repr(str(marker))))
    config = app_config(rounds=3, timeout=15.0)
    killed = []

    def kill():
        end = time.monotonic() + 300
        while not marker.exists() and time.monotonic() < end:
            time.sleep(0.1)
        if marker.exists():
            os.killpg(node.pid, signal.SIGKILL)
            killed.append(True)

    with launch.Network(tmp_path / "home", ["--insecure"]) as net:
        supernode(net, 0)
        node = supernode(net, 1)
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            net.run(app, {**config, "out": str(out)}, timeout=400)
        finally:
            killer.join()
    assert killed
    state, history, metadata = adapter.load_result(out)
    assert history["accepted"] == [[0, 1], [0], [0]] and metadata["version"] == 3
    assert [len(rejected) for rejected in history["rejected"]] == [0, 1, 1]
    server, _ = in_process(config, 3, 2, lost=[(1, 2)])
    assert_same(state, state_of(server.model))
