"""Rounds between a server and clients: results, refusals, and resuming."""

import dataclasses
import gc
import hashlib
import logging
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from tinybnn import datasets, models, nn, optim, storage, training
from tinybnn import functional as F
from tinybnn.federated import (
    Client,
    FedAvg,
    Head,
    Ledger,
    MajorityVote,
    RejectedError,
    RoundError,
    Server,
    SignOfUpdate,
    StochasticSign,
    WireError,
    by_size,
    calibrate_norms,
    iid,
    run_rounds,
    wire,
)
from tinybnn.federated import aggregation as rules

STRATEGIES = [
    FedAvg(),
    FedAvg("float16"),
    StochasticSign(),
    SignOfUpdate(0.05),
    SignOfUpdate(0.05, both=True),
    MajorityVote(),
]
BITS = 20


def codes(count, seed=0):
    """Random codes, labelled by the sign of a fixed sum: a Dataset of 0 and 1."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (count, BITS), dtype=np.uint8)
    teacher = np.random.default_rng(99).standard_normal(BITS)
    labels = ((2.0 * bits - 1) @ teacher >= 0).astype(int)
    return datasets.from_arrays(bits[:, None, None, :], labels, maximum=1)


def network(seed=0, hidden=8):
    head = models.BinaryMLP(BITS, hidden, 2, rng=np.random.default_rng(seed))
    return nn.Sequential(nn.Flatten(), head)


def calibrated(seed=0):
    model = network(seed)
    x = np.random.default_rng(5).choice(np.float32([-1, 1]), (64, 1, 1, BITS))
    calibrate_norms(model, x)
    return model


def sgd(parameters):
    return optim.SGD(parameters, lr=0.1)


def federation(strategy, clients=3, norm="average", samples=60, sizes=None, build=network,
               optimizer=None, **options):  # fmt: skip
    data = codes(samples)
    parts = iid(samples, clients) if sizes is None else by_size(samples, sizes)
    server = Server(build(), strategy, norm=norm, **options)
    made = [
        Client(k, data[part], build(), strategy, norm=norm, optimizer=optimizer)
        for k, part in enumerate(parts)
    ]
    return server, made


def rounds(server, clients, count, **options):
    return run_rounds(server, clients, count, **{"progress": False, **options})


def state_of(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype


def differ(a, b):
    return any(not np.array_equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------- what a round computes


@pytest.mark.parametrize("count, epochs", [(4, 1), (1, 3)])
def test_one_client_is_plain_training(count, epochs):
    server, clients = federation(FedAvg(), clients=1, optimizer=sgd)
    rounds(server, clients, count, epochs=epochs, batch_size=8)
    model, data = network(), codes(60)
    optimizer = sgd(model.parameters())
    for number in range(1, count + 1):
        rng = np.random.default_rng([0, 0, number])
        loader = datasets.DataLoader(data, 8, shuffle=True, rng=rng)
        training.fit(model, loader, epochs=epochs, optimizer=optimizer, progress=False)
    assert_same(state_of(server.model), state_of(model))
    assert server.model[1].layers[1].num_batches_tracked == count * epochs * 8
    assert differ(state_of(model), state_of(network()))


def test_fedavg_by_hand():
    """Algorithm 1 of McMahan et al., with NumPy's mean in place of the server and the wire."""
    data, sizes = codes(60), [3, 2, 1]
    server, clients = federation(FedAvg(), sizes=sizes)
    history = rounds(server, clients, 3, batch_size=8)
    parts = by_size(60, sizes)
    shared = state_of(network())
    for number in (1, 2, 3):
        trained = []
        for k, part in enumerate(parts):
            model = network(seed=k)
            model.load_state_dict(shared)
            rng = np.random.default_rng([0, k, number])
            loader = datasets.DataLoader(data[part], 8, shuffle=True, rng=rng)
            adam = optim.Adam(model.parameters(), lr=0.01)
            training.fit(model, loader, epochs=1, optimizer=adam, progress=False)
            trained.append(state_of(model))
        counts = [len(part) for part in parts]
        for name, array in shared.items():
            stack = np.array([one[name] for one in trained], np.float64)
            mean = np.average(stack, axis=0, weights=counts)
            shared[name] = (stack.max(0) if array.dtype == np.int64 else mean).astype(array.dtype)
    for name, array in state_of(server.model).items():
        np.testing.assert_allclose(array, shared[name], rtol=2e-7, atol=1e-9, err_msg=name)
    assert history["accepted"] == [[0, 1, 2]] * 3 and history["rejected"] == [[]] * 3


class Line(nn.Module):
    """w x, from (N, 1, 1, 1) to (N, 1): a model of one number, for rounds computed by hand."""

    def __init__(self, weight):
        self.weight = nn.Parameter(np.float32([[weight]]))

    def forward(self, x):
        return F.linear(F.flatten(x, 1), self.weight)


def lines(count=1, weight=1.0, **options):
    """Clients whose one sample is x = 1 with the label 1, and whose loss is (w - 1)² / 2 there."""
    data = datasets.from_arrays(np.ones((1, 1, 1, 1), np.uint8), [0], maximum=1)

    def loss(output, target):
        return ((output - 1.0) ** 2).sum() * 0.5

    return [
        Client(k, data, Line(weight), FedAvg(), optimizer=sgd, loss=loss, **options)
        for k in range(count)
    ]


def test_the_rate_of_a_client_decays():
    """w moves by -0.1 · 0.5^(t - 1) (w - 1): 3, then 2.8, then 2.71."""
    server = Server(Line(3.0), FedAvg())
    seen = []
    for _ in range(3):
        rounds(server, lines(lr_decay=0.5), 1)
        seen.append(server.model.weight.item())
    np.testing.assert_allclose(seen, [2.8, 2.71, 2.71 - 0.025 * 1.71], rtol=1e-6)


def test_the_proximal_term_of_fedprox():
    """Two epochs from w_t = 3 with μ = 4: the second gradient is (w - 1) + 4 (w - 3)."""
    server = Server(Line(3.0), FedAvg())
    rounds(server, lines(proximal=4.0), 1, epochs=2)
    w = 3 - 0.1 * 2.0
    w -= 0.1 * ((w - 1) + 4 * (w - 3))
    np.testing.assert_allclose(server.model.weight.item(), w, rtol=1e-6)  # 2.7, without it 2.62
    assert abs(w - 2.7) < 1e-9
    server, clients = federation(FedAvg())
    far, pulled = [], []
    for proximal, moves in ((0.0, far), (100.0, pulled)):
        server, clients = federation(FedAvg(), optimizer=lambda p: optim.SGD(p, lr=0.005))
        for client in clients:
            client._drift["proximal"] = proximal
        before = state_of(server.model)
        rounds(server, clients, 1, epochs=3)
        after = state_of(server.model)
        moves += [np.abs(after[n] - before[n]).max() for n in after if n.endswith("weight")]
    assert all(a < 0.7 * b for a, b in zip(pulled, far, strict=True))  # binary weights as well


def test_the_momentum_of_the_server():
    """FedAvgM: steps of -0.2, then -0.18 - 0.5 · 0.2, ..."""
    server, w, v = Server(Line(3.0), FedAvg(), momentum=0.5), 3.0, 0.0
    for _ in range(3):
        rounds(server, lines(2), 1)
        v = 0.5 * v - 0.1 * (w - 1)
        w += v
        np.testing.assert_allclose(server.model.weight.item(), w, rtol=1e-6)
    assert abs(v) > 0.25


@pytest.mark.parametrize("strategy", STRATEGIES[:4], ids=repr)
def test_momentum_on_top_of_every_strategy(strategy, tmp_path):
    """Weights stay in their clips, statistics are averages, and a stop changes nothing."""
    plain, clients = federation(strategy)
    rounds(plain, clients, 1)
    server, clients = federation(strategy, momentum=0.9)
    rounds(server, clients, 1)
    for name, array in state_of(server.model).items():  # the first step has no past
        np.testing.assert_allclose(array, plain.model.state_dict()[name], atol=1e-6)
    whole = tmp_path / "whole.npz"
    server, clients = federation(strategy, momentum=0.9)
    rounds(server, clients, 6, checkpoint=whole)
    other = tmp_path / "other.npz"
    for goal in (2, 3, 6):
        again, clients = federation(strategy, momentum=0.9)
        rounds(again, clients, goal, checkpoint=other)
    assert_same(state_of(again.model), state_of(server.model))
    layers = server.model[1].layers
    assert np.all(np.abs(layers[0].weight.data) <= 1) and np.all(layers[1].running_var > 0)
    if strategy.up == "float16":  # what the downlink carries
        latent = layers[0].weight.data
        np.testing.assert_array_equal(latent, latent.astype(np.float16).astype(np.float32))
    plain, clients = federation(strategy)
    with pytest.raises(ValueError, match="checkpoint of another run: server was"):
        rounds(plain, clients, 6, checkpoint=whole)


def test_settings_of_drift_that_are_wrong():
    for options, message in (
        ({"lr_decay": 0}, r"lr_decay must be above 0, and at most 1, got 0"),
        ({"lr_decay": 1.1}, r"lr_decay must be above 0, and at most 1, got 1.1"),
        ({"proximal": -1.0}, r"proximal must be a number >= 0, got -1.0"),
        ({"proximal": np.nan}, r"proximal must be a number >= 0, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            lines(**options)
    for strategy in STRATEGIES[4:]:
        with pytest.raises(ValueError, match="momentum needs weights that go down as floats; "):
            federation(strategy, momentum=0.5)
    for momentum in (1.0, -0.1):
        with pytest.raises(ValueError, match="momentum must be from 0 to below 1"):
            federation(FedAvg(), momentum=momentum)
    assert "proximal" not in lines()[0].describe()  # checkpoints of earlier versions still match


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_heads_without_batch_norms(norm, strategy):
    """Nothing but bits and one float a unit travels; a client may have a single sample."""

    def build(seed=0):
        head = models.BinaryMLP(BITS, 8, 2, norm=norm, rng=np.random.default_rng(seed))
        return nn.Sequential(nn.Flatten(), head)

    server, clients = federation(strategy, clients=60, build=build)
    kinds = [entry.kind for entry in Head(server.model).entries]
    assert kinds == ["latent"] + ["real"] * (1 if norm == "none" else 2) + ["latent", "real"]
    rounds(server, clients, 2, fraction=0.1, batch_size=1)
    assert differ(state_of(server.model), state_of(build()))
    if norm == "none" and strategy.up == "bits":
        fields = rules.fields(strategy, Head(server.model).entries, "up")
        floats = [f.encoding for f in fields.values() if f.encoding != "bits"]
        assert floats == ["float32", "float32"]
        bytes_of_bits = 8 * 3 + 2 * 1  # rows of 20 and of 8 bits
        empty = wire.size([f._replace(shape=(0, *f.shape[1:])) for f in fields.values()])
        assert wire.size(fields.values()) == empty + bytes_of_bits + 4 * (8 + 2)


@pytest.mark.parametrize("norm", ["average", "local", "frozen"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_every_strategy_runs_and_repeats(strategy, norm):
    states = []
    for _ in range(2):
        server, clients = federation(strategy, norm=norm, build=calibrated)
        start = state_of(server.model)
        history = rounds(server, clients, 3, batch_size=10)
        assert history["rejected"] == [[]] * 3 and server.version == 3
        latent = server.model[1].layers[0].weight.data
        assert np.all(np.abs(latent) <= 1)
        states.append(state_of(server.model))
    assert_same(*states)
    assert differ(states[0], start) or isinstance(strategy, MajorityVote)
    if norm != "average":
        assert_same(*({n: a for n, a in one.items() if ".1." in n or ".3." in n}
                      for one in (start, states[0])))  # fmt: skip
    entries = Head(network(), norm).entries
    up = wire.size(rules.fields(strategy, entries, "up").values())
    assert history["bytes_up"] == [3 * up] * 3
    assert history.ledger.total("up", "float32") == 9 * server.float32_size
    assert server.float32_size == wire.size(
        rules.fields(FedAvg(), Head(network()).entries, "up").values()
    )


def test_the_order_of_answers_does_not_matter():
    states = []
    for order in (1, -1):
        server, clients = federation(FedAvg(), sizes=[1, 2, 4])
        server.open_round([0, 1, 2])
        message = server.broadcast()
        for client in clients[::order]:
            server.receive(client.number, client.train(message, batch_size=5))
        assert server.accepted == [0, 1, 2] and server.close_round()
        states.append(state_of(server.model))
    assert_same(*states)


def test_majority_vote_freezes_and_the_sign_of_the_update_does_not():
    accuracy = {}
    for strategy in (MajorityVote(), SignOfUpdate(0.05), FedAvg()):
        server, clients = federation(strategy, norm="frozen", build=calibrated, samples=300)
        signs = server.model[1].layers[0].binary_weight()
        validation = datasets.DataLoader(codes(300, seed=1), 300)
        history = rounds(server, clients, 12, batch_size=10, validation=validation)
        flipped = np.count_nonzero(server.model[1].layers[0].binary_weight() != signs)
        assert (flipped == 0) == isinstance(strategy, MajorityVote)
        accuracy[type(strategy)] = history["val_accuracy"][-1]
    assert min(accuracy[SignOfUpdate], accuracy[FedAvg]) > 0.75 > 0.6 > accuracy[MajorityVote]


def test_clients_that_missed_rounds_catch_up_bit_by_bit():
    strategy = SignOfUpdate(0.05, both=True)
    server, clients = federation(strategy, clients=6, samples=90)
    history = rounds(server, clients, 12, fraction=0.3, batch_size=5)
    assert all(len(chosen) == 2 for chosen in history["clients"])
    entries, seen = Head(network()).entries, {}
    whole = wire.size(rules.fields(strategy, entries, "down").values())
    for transfer in history.ledger.rows:
        if not transfer.is_up:
            since = seen.get(transfer.client)
            if since is None:
                assert transfer.nbytes == whole
            else:
                fields = rules.fields(strategy, entries, "down", transfer.round - 1 - since)
                assert transfer.nbytes == wire.size(fields.values()) < whole
            seen[transfer.client] = transfer.round - 1
    # A client that takes part again holds exactly the server's state.
    messages = [server.broadcast(client.version) for client in clients]
    full = server.broadcast()
    for client, message in zip(clients, messages, strict=True):
        _, mine = client._open(message)
        assert_same(mine, client._open(full)[1])
        assert_same(mine, {e.name: server.model.state_dict()[e.name] for e in entries})


def test_a_client_that_was_away_for_long_gets_the_weights():
    strategy = SignOfUpdate(0.05, both=True)
    server, (early, late) = federation(strategy, clients=2)
    rounds(server, [early, late], 1)
    rounds(server, [early], rules.MOST_STEPS)
    assert wire.read_header(server.broadcast(late.version)).kind == "state"
    assert wire.read_header(server.broadcast(late.version + 1)).kind == "steps"
    assert wire.read_header(server.broadcast(server.version + 1)).kind == "state"
    history = rounds(server, [early, late], 1)
    assert history["accepted"] == [[0, 1]]


def test_the_choice_of_clients():
    server = Server(network(), FedAvg(), seed=3)
    numbers = list(range(100, 150))
    chosen = server.choose(numbers, 0.1)
    assert len(set(chosen)) == 5 and set(chosen) <= set(numbers) and chosen == sorted(chosen)
    assert server.choose(numbers[::-1], 0.1) == chosen  # of the same round
    assert server.choose(numbers, 0) != [] and server.choose(numbers) == numbers
    server.open_round(chosen)
    assert server.choose(numbers, 0.1) != chosen
    assert Server(network(), FedAvg(), seed=4).choose(numbers, 0.1) != chosen


# ------------------------------------------------------------------------------------ batch norms


def test_local_norms():
    """Each client keeps its own norms; accuracy is the mean over clients, weighted by samples."""
    server, clients = federation(FedAvg(), sizes=[1, 3], clients=2, norm="local")
    loader = datasets.DataLoader(codes(100, seed=1), 50)
    history = rounds(server, clients, 2, validation=loader)
    own = [client.state()[0] for client in clients]
    assert {name.split(".")[-1] for name in own[0]} == {
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    assert differ(*own)
    accuracies = []
    for client, local in zip(clients, own, strict=True):
        model = network()
        state = {**server.model.state_dict(), **{n[len("local.") :]: a for n, a in local.items()}}
        model.load_state_dict(state)
        accuracies.append(training.evaluate(model, loader)["accuracy"])
        assert client.evaluate(server.broadcast(), loader)["accuracy"] == accuracies[-1]
        assert not differ(local, client.state()[0])
    expected = np.average(accuracies, weights=[c.samples for c in clients])
    assert history["val_accuracy"][-1] == expected


def test_a_crash_leaves_local_norms_as_they_were():
    server, (client,) = federation(FedAvg(), clients=1, norm="local", optimizer=Explodes)
    before = client.state()[0]
    server.open_round([0])
    with pytest.raises(FloatingPointError):
        client.train(server.broadcast())
    assert differ(state_of(client._model), state_of(network()))  # it was interrupted
    assert_same(client.state()[0], before)


class Explodes(optim.SGD):
    """Works for one step, then fails like a broken machine."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.01)
        self.steps = 0

    def step(self):
        super().step()
        self.steps += 1
        if self.steps == 2:
            raise FloatingPointError("the loss became nan")


def test_a_last_batch_of_one_is_left_out():
    server, clients = federation(FedAvg(), clients=1, samples=21)
    history = rounds(server, clients, 1, batch_size=10)
    assert history["rejected"] == [[]]
    assert server.model[1].layers[1].num_batches_tracked == 2
    plain = nn.Sequential(nn.Flatten(), nn.Linear(BITS, 2, rng=np.random.default_rng(0)))
    client = Client(0, codes(21), plain, FedAvg())
    assert len(client._loader(10, None)) == 3 and len(client._loader(None, None)) == 1


def test_only_the_head_travels():
    """A frozen encoder is neither sent nor changed, and must be the same everywhere."""

    def with_encoder(seed=0):
        rng = np.random.default_rng(seed)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(BITS, 30, rng=rng), nn.BatchNorm1d(30),
                                nn.Quantize())  # fmt: skip
        head = models.BinaryMLP(30, 4, 2, rng=np.random.default_rng(7))
        return models.HyBNN(encoder, head)

    server, clients = federation(SignOfUpdate(), build=with_encoder)
    before = state_of(server.model)
    history = rounds(server, clients, 2)
    moved = {n for n, a in state_of(server.model).items() if not np.array_equal(a, before[n])}
    assert moved and all(name.startswith("head.") for name in moved)
    assert history["bytes_up"][0] == 3 * wire.size(
        rules.fields(SignOfUpdate(), Head(with_encoder().head).entries, "up").values()
    )
    other = Client(3, codes(20), with_encoder(seed=1), SignOfUpdate())
    history = rounds(server, [*clients, other], 1)
    assert history["accepted"] == [[0, 1, 2]]
    assert "another head, or other frozen parts" in history["rejected"][0][0][1]


def test_dropout_repeats():
    def build():
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(BITS, 2,
                             rng=np.random.default_rng(0)))  # fmt: skip

    states = []
    for _ in range(2):
        server, clients = federation(FedAvg(), build=build)
        rounds(server, clients, 2)
        states.append(state_of(server.model))
    assert_same(*states)


# ----------------------------------------------------------------------------------------- privacy


def reachable(root):
    """Every object reachable from `root`, except through modules, classes and functions."""
    objects, stack = {}, [root]
    while stack:
        value = stack.pop()
        if id(value) in objects or isinstance(
            value, type | types.ModuleType | types.FunctionType | types.BuiltinFunctionType
        ):
            continue
        objects[id(value)] = value
        stack.extend(gc.get_referents(value))
        if isinstance(value, np.ndarray) and value.base is not None:
            stack.append(value.base)
    return objects


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_the_server_cannot_reach_the_data(strategy):
    server, clients = federation(strategy)
    server.open_round([0, 1, 2])
    for client in clients:
        server.receive(client.number, client.train(server.broadcast()))
    for _ in range(2):  # with answers, and when the round is over
        objects = reachable(server)
        assert len(objects) > 100
        assert not any(isinstance(value, Client | datasets.Dataset) for value in objects.values())
        for client in clients:
            images, labels = client._dataset.images, client._dataset.labels
            for value in objects.values():
                if isinstance(value, np.ndarray):
                    assert not np.shares_memory(value, images)
                    assert not np.shares_memory(value, labels)
                    assert value.shape != labels.shape
        assert id(clients[0]._dataset) in reachable(clients[0])  # the walk would reach it
        server._chosen is None or server.close_round()


# ------------------------------------------------------------------------------------------ faults


class Faulty:
    """A client whose answers are faulty from a given server round on.

    `fault` : (answer, message) -> what is sent instead; it may raise.
    """

    def __init__(self, client, fault, first=2):
        self._client, self._fault, self._first, self._kept = client, fault, first, None
        self.number, self.samples = client.number, client.samples

    version = property(lambda self: self._client.version)

    def __getattr__(self, name):  # describe, state, restore
        return getattr(self._client, name)

    def train(self, message, **settings):
        answer = self._client.train(message, **settings)
        if wire.read_header(message).round < self._first:
            self._kept = answer
            return answer
        return self._fault(answer, self)


def rewritten(answer, strategy=None, header=None, **arrays):
    """An answer with other content, and the right checksum."""
    fields = rules.fields(strategy or FedAvg(), Head(network()).entries, "up")
    old, content = wire.decode(answer, fields)
    content.update({name.replace("__", "."): a for name, a in arrays.items()})
    changed = dataclasses.replace(old, **(header or {}))
    return wire.encode(changed, list(content.values()), list(fields.values()))


def crash(answer, client):
    raise MemoryError("out of memory")


def other_shapes(answer, client):
    strange = Client(client.number, codes(20), network(hidden=7), FedAvg())
    header = dataclasses.replace(wire.read_header(answer), digest=strange._head.digest)
    fields = rules.fields(FedAvg(), strange._head.entries, "up").values()
    return wire.encode(header, list(strange._head.read().values()), list(fields))


W0, MEAN, VAR = "1__layers__0__weight", "1__layers__1__running_mean", "1__layers__1__running_var"
nan = np.float32("nan")
FAULTS = {
    "dropped out": (lambda a, c: None, "no answer"),
    "crash": (crash, "failed: MemoryError: out of memory"),
    "truncated": (lambda a, c: a[:-20], "damaged or cut off"),
    "nearly nothing": (lambda a, c: a[:7], "cut off: 7 bytes"),
    "empty": (lambda a, c: b"", "cut off"),
    "damaged": (lambda a, c: a[:99] + bytes([a[99] ^ 4]) + a[100:], "damaged"),
    "oversized": (lambda a, c: a + bytes(10_000), "oversized"),
    "foreign": (lambda a, c: b"GET / HTTP/1.1\r\n" * 9, "not a message of tinybnn"),
    "no bytes": (lambda a, c: {"weights": 1}, "must be bytes, got dict"),
    "other version": (lambda a, c: a[:4] + b"\x07" + a[5:], "wire version 7"),
    "shapes": (other_shapes, r"1\.layers\.0\.weight: expected float32 \(8, 20\), the message has"),
    "NaN": (lambda a, c: rewritten(a, **{W0: np.full((8, 20), nan)}), "not finite"),
    "one inf": (lambda a, c: rewritten(a, **{MEAN: np.float32([np.inf] + [0] * 7)}), "not finite"),
    "variance": (lambda a, c: rewritten(a, **{VAR: -np.ones(8, "f")}), "variance below 0"),
    "counter": (
        lambda a, c: rewritten(a, **{"1__layers__1__num_batches_tracked": np.int64(-1)}),
        "does not go on",
    ),
    "norm": (
        lambda a, c: rewritten(a, **{W0: np.full((8, 20), 50, "f")}),
        "the parameters has norm 632",
    ),
    "statistics": (
        lambda a, c: rewritten(a, **{MEAN: np.full(8, 1e9, "f")}),
        "the statistics has norm",
    ),
    "replayed": (lambda a, c: c._kept, "replayed or late: of round 1"),
    "of a later round": (lambda a, c: rewritten(a, header={"round": 9}), "of round 9"),
    "another state": (lambda a, c: rewritten(a, header={"token": b"12345678"}), "another state"),
    "old version": (lambda a, c: rewritten(a, header={"version": 0}), "another state"),
    "another head": (lambda a, c: rewritten(a, header={"digest": b"12345678"}), "another head"),
    "another name": (lambda a, c: rewritten(a, header={"client": 0}), "in the name of client 0"),
    "no samples": (lambda a, c: rewritten(a, header={"samples": 0}), "0 samples"),
    "all samples": (lambda a, c: rewritten(a, header={"samples": 1 << 30}), "samples"),
    "a broadcast": (lambda a, c: rewritten(a, header={"kind": "state"}), "of kind 'state'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_one_answer(name, caplog):
    fault, reason = FAULTS[name]
    options = {"max_norm": 60.0, "max_statistics": 1e4}
    server, clients = federation(FedAvg(), **options)
    with caplog.at_level(logging.WARNING, "tinybnn.federated"):
        history = rounds(server, [*clients[:2], Faulty(clients[2], fault)], 2)
    assert history["accepted"] == [[0, 1, 2], [0, 1]]
    ((number, error),) = history["rejected"][1]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(error)
    assert number == 2 and error in caplog.text and "round 2: client 2" in caplog.text
    # The model is the one that the other clients give alone.
    expected, others = federation(FedAvg(), **options)
    rounds(expected, others, 1)
    rounds(expected, others[:2], 1)
    assert_same(state_of(server.model), state_of(expected.model))
    # Sent bytes count, used or not.
    count = sum(row.client == 2 and row.is_up for row in history.ledger.rows)
    assert count == (1 if name in ("dropped out", "crash", "no bytes") else 2)


def test_faults_in_bits():
    """A 1-bit answer cannot hold NaN, but its tails and headers can be faulty."""
    for strategy in (StochasticSign(), SignOfUpdate(), MajorityVote()):
        server, (client,) = federation(strategy, clients=1)
        server.open_round([0])
        answer = client.train(server.broadcast())
        start = len(answer) - 16 - sum(
            f.nbytes for f in rules.fields(strategy, Head(network()).entries, "up").values()
        )  # fmt: skip
        body = bytearray(answer[:-16])
        body[start + 2] |= 0x80  # bit 23 of a row of 20
        bad = bytes(body) + hashlib.sha256(bytes(body)).digest()[:16]
        with pytest.raises(RejectedError, match="bits set behind the 20 bits of a row"):
            server.receive(0, bad)
        server.receive(0, answer)


def test_an_answer_counts_once():
    server, clients = federation(FedAvg())
    with pytest.raises(RejectedError, match="no round is open"):
        server.receive(0, b"")
    server.open_round([0, 1])
    answers = [client.train(server.broadcast()) for client in clients]
    server.receive(0, answers[0])
    with pytest.raises(RejectedError, match="replayed: this round has its answer already"):
        server.receive(0, answers[0])
    with pytest.raises(RejectedError, match="sent in the name of client 0"):
        server.receive(1, answers[0])
    with pytest.raises(RejectedError, match="not a client of this round"):
        server.receive(2, answers[2])
    assert server.accepted == [0]
    assert server.close_round()
    with pytest.raises(RuntimeError, match="no round is open"):
        server.close_round()
    server.open_round([0])
    with pytest.raises(RejectedError, match="replayed or late: of round 1"):
        server.receive(0, answers[0])


def test_an_answer_to_another_run_is_refused():
    """The same round, version and head, but different weights."""
    server, (client,) = federation(FedAvg(), clients=1)
    other = Server(network(seed=1), FedAvg())
    for one in (server, other):
        one.open_round([0])
    with pytest.raises(RejectedError, match="starts from another state"):
        server.receive(0, client.train(other.broadcast()))


class Clock:
    """Shows given times."""

    def __init__(self, *times):
        self.times = list(times)

    def __call__(self):
        return self.times.pop(0)


def test_the_deadline():
    server, clients = federation(FedAvg())
    history = rounds(server, clients, 1, deadline=2.0, clock=Clock(0, 1, 1, 3, 3, 5.5))
    assert history["accepted"] == [[0, 1]]
    assert history["rejected"] == [[[2, "late: 2.5 s, the deadline is 2 s"]]]


def test_a_round_below_the_minimum_is_repeated():
    server, clients = federation(FedAvg(), minimum=3)
    failures = iter([crash, crash])
    flaky = Faulty(clients[1], lambda a, c: next(failures, lambda a, c: a)(a, c))
    history = rounds(server, [clients[0], flaky, clients[2]], 3)
    assert history["attempts"] == [1, 3, 1]
    assert len(history["rejected"][1]) == 2 and history["accepted"] == [[0, 1, 2]] * 3
    assert (server.version, server.round) == (3, 5)
    assert history["bytes_down"][1] == 3 * history["bytes_down"][0]
    assert history["bytes_up"][1] == 7 * history["bytes_up"][0] // 3  # two were lost


def test_a_round_that_fails_for_good_is_reported(tmp_path):
    server, clients = federation(FedAvg(), minimum=3)
    broken = [*clients[:2], Faulty(clients[2], crash)]
    path = tmp_path / "run.npz"
    history = None
    with pytest.raises(
        RoundError,
        match=r"round 2: 2 of at least 3 answers in the last of 2 attempts \(client 2: failed: "
        r"MemoryError: out of memory; client 2: failed",
    ):
        history = rounds(server, broken, 3, attempts=2)
    assert history is None and server.version == 1
    # The model is unchanged since the last good round.
    expected, others = federation(FedAvg(), minimum=3)
    rounds(expected, others, 1, checkpoint=path)
    assert_same(state_of(server.model), state_of(expected.model))


@pytest.mark.parametrize("strategy", [FedAvg(), SignOfUpdate(both=True)], ids=repr)
def test_a_broadcast_that_was_damaged_is_not_trained_on(strategy):
    server, (client,) = federation(strategy, clients=1)
    rounds(server, [client], 1)
    server.open_round([0])
    good = server.broadcast(client.version)
    before = client.state()
    for bad in (good[:-1], good[:80] + b"\xff" + good[81:], b""):
        with pytest.raises(WireError):
            client.train(bad)
        assert client.state()[1] == before[1]
    header = wire.read_header(good)
    fields = rules.fields(strategy, client._head.entries, "up").values()
    update = wire.encode(dataclasses.replace(header, kind="update"),
                         client._head.read().values(), list(fields))  # fmt: skip
    with pytest.raises(WireError, match="'state' or 'steps', got 'update'"):
        client.train(update)
    client.train(good)


def test_a_replica_that_went_astray_is_noticed():
    strategy = SignOfUpdate(both=True)
    server, (client,) = federation(strategy, clients=1)
    rounds(server, [client], 2)
    client._replica["1.layers.0.weight"][0, 0] += np.float32(0.01)
    server.open_round([0])
    with pytest.raises(WireError, match="differs from the one that the server holds"):
        client.train(server.broadcast(client.version))
    assert client.version is None  # so that the next broadcast contains the whole model
    server.receive(0, client.train(server.broadcast(client.version)))
    other = Client(1, codes(9), network(), strategy)
    with pytest.raises(WireError, match="steps from version 1, but this client holds version None"):
        other.train(server.broadcast(1))


def test_bad_arguments():
    server, clients = federation(FedAvg())
    data = codes(10)
    cases = [
        (lambda: Client(-1, data, network(), FedAvg()), "Client: number must be from 0 to"),
        (lambda: Client(0, data[:0], network(), FedAvg()), "Client: client 0 has no samples"),
        (lambda: Server(network(), FedAvg(), minimum=0), "Server: minimum must be >= 1, got 0"),
        (lambda: Server(network(), FedAvg(), max_norm=0), "Server: max_norm must be above 0"),
        (lambda: server.choose([0, 1], 1.5), "choose: fraction must be from 0 to 1, got 1.5"),
        (lambda: rounds(server, clients, 0), "run_rounds: rounds must be >= 1, got 0"),
        (lambda: rounds(server, clients, 1, epochs=0), "run_rounds: epochs must be >= 1"),
        (lambda: rounds(server, [], 1), "run_rounds: clients must have different numbers"),
        (lambda: rounds(server, [clients[0]] * 2, 1), r"different numbers, got \[0, 0\]"),
        (lambda: Ledger().total("left"), "total: direction must be 'up' or 'down', got 'left'"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert np.isnan(Ledger().saving("up"))


def test_the_ledger():
    server, clients = federation(SignOfUpdate(both=True), clients=2, norm="frozen")
    history = rounds(server, clients, 3)
    ledger = history.ledger
    assert len(ledger) == 12 and [row.round for row in ledger.rows] == [1] * 4 + [2] * 4 + [3] * 4
    for direction in ("up", "down"):
        total = ledger.total(direction)
        assert total == sum(history[f"bytes_{direction}"])
        assert total == sum(ledger.total(direction, round=r) for r in (1, 2, 3))
        assert total == sum(ledger.total(direction, client=c) for c in (0, 1))
        assert ledger.total(direction, "float32") == 6 * server.float32_size
        assert ledger.saving(direction) == 6 * server.float32_size / total
    assert ledger.total("down", round=1) > 5 * ledger.total("down", round=2)


# ----------------------------------------------------------------------------- stopped and resumed


def everything(server, clients, history):
    """All results of a run except its times."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
    return (
        state_of(server.model), [client.state() for client in clients], rows, history.ledger.rows,
        server.version, server.round,
    )  # fmt: skip


def assert_same_run(a, b):
    assert_same(a[0], b[0])
    for (mine, version), (other, expected) in zip(a[1], b[1], strict=True):
        assert_same(mine, other)
        assert version == expected
    assert a[2:] == b[2:]


@pytest.mark.parametrize("norm", ["average", "local"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_run_that_was_stopped_goes_on(strategy, norm, tmp_path):
    options = {"fraction": 0.7, "batch_size": 6}
    if norm == "local":
        options["validation"] = datasets.DataLoader(codes(30, 1), 30)

    def run(count, path=None):
        server, clients = federation(strategy, norm=norm)
        history = rounds(server, clients, count, checkpoint=path, **options)
        return everything(server, clients, history)

    whole = run(4)
    path = tmp_path / "run.npz"
    run(2, path)
    assert_same_run(run(4, path), whole)
    assert_same_run(run(4, path), whole)  # nothing left to do
    assert_same_run(run(3, path), whole)  # nor here


def test_attempts_are_counted_on_after_a_stop(tmp_path):
    """After a round was tried twice, the next attempt draws as the third, interrupted or not."""

    def run(count, path=None):
        server, clients = federation(FedAvg(), minimum=3)

        def fails_once(answer, client):
            return None if wire.read_header(answer).round == 2 else answer

        clients[1] = Faulty(clients[1], fails_once)
        return everything(server, clients, rounds(server, clients, count, checkpoint=path))

    whole, path = run(4), tmp_path / "run.npz"
    assert whole[-2:] == (4, 5)
    run(2, path)
    assert_same_run(run(4, path), whole)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    server, clients = federation(FedAvg())
    rounds(server, clients, 1, checkpoint=path)
    kept = path.read_bytes()
    others = [
        (federation(FedAvg()), {"batch_size": 11}, "batch_size was 10, is 11"),
        (federation(SignOfUpdate()), {}, r"server was .*FedAvg.*, is .*SignOfUpdate"),
        (federation(FedAvg(), norm="local"), {}, "server was"),
        (federation(FedAvg(), clients=2), {}, "clients was"),
        (federation(FedAvg(), seed=1), {}, "server was"),
    ]
    for (server, clients), options, message in others:
        before = state_of(server.model)
        with pytest.raises(ValueError, match=f"checkpoint of another run: {message}"):
            rounds(server, clients, 2, checkpoint=path, **options)
        assert_same(state_of(server.model), before)
    path.write_bytes(kept[:-30])
    with pytest.raises(storage.StorageError):
        rounds(*federation(FedAvg()), 2, checkpoint=path)
    assert path.read_bytes() == kept[:-30]


def test_a_checkpoint_holds_no_data(tmp_path):
    path = tmp_path / "run.npz"
    server, clients = federation(SignOfUpdate(both=True), norm="local")
    rounds(server, clients, 2, checkpoint=path)
    arrays, metadata = storage.load(path, kind="federated", version=1)
    assert metadata.keys() == {"run", "server", "versions", "history"}
    for client in clients:
        own = client.state()[0]
        assert {n for n in arrays if n.startswith(f"client.{client.number}.")} == {
            f"client.{client.number}.{name}" for name in own
        }
    shapes = {client._dataset.images.shape for client in clients} | {(20,)}
    assert not shapes & {array.shape for array in arrays.values()}


class Killed(BaseException):
    """An exception that no part of the library catches."""


def announce(event):
    """Call `event` before and after every change of a run's state; return the originals."""
    originals = []
    for owner, names in (
        (Server, ("open_round", "broadcast", "receive", "close_round")),
        (Client, ("train",)),
        (os, ("fsync", "replace")),
    ):
        for name in names:
            function = getattr(owner, name)
            originals.append((owner, name, function))

            def call(*args, function=function, **options):
                event()
                result = function(*args, **options)
                event()
                return result

            setattr(owner, name, call)
    return originals


def short_run(path):
    """Three rounds in which clients and server keep every kind of state."""
    server, clients = federation(SignOfUpdate(0.05, both=True), clients=2, norm="local")
    return rounds(server, clients, 3, batch_size=6, checkpoint=path)


def content(path):
    arrays, metadata = storage.load(path, kind="federated", version=1)
    for row in metadata["history"]:
        del row["seconds"]
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}, metadata


def test_a_run_that_was_stopped_between_any_two_steps(tmp_path):
    events, last = 0, None

    def event():
        nonlocal events
        events += 1
        if events == last:
            raise Killed

    short_run(tmp_path / "whole.npz")
    expected = content(tmp_path / "whole.npz")
    assert len(expected[1]["history"]) == 3
    originals = announce(event)
    try:
        short_run(tmp_path / "counted.npz")
        total = events
        assert total > 60
        for last in range(1, total + 1):
            events, path = 0, tmp_path / f"{last}.npz"
            with pytest.raises(Killed):
                short_run(path)
            events = total  # from here on it is not interrupted
            short_run(path)
            assert content(path) == expected, f"stopped at event {last} of {total}"
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


# The same by a signal that no process can catch.
KILLED = """
import os, signal, sys
from test_federated_rounds import announce, short_run

path, last = sys.argv[1], int(sys.argv[2])
events = 0

def event():
    global events
    events += 1
    if events == last:
        os.kill(os.getpid(), signal.SIGKILL)

announce(event)
short_run(path)
"""


def killed_run(path, last=0):
    """Whether the run ended without being killed."""
    paths = [os.path.dirname(os.path.abspath(__file__)), *filter(None, sys.path)]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(last)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode in (0, -signal.SIGKILL), run.stderr
    return run.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("last", [12, 29])
def test_a_run_that_was_killed(last, tmp_path):
    """Event 12 is in the first round, event 29 after its write."""
    short_run(tmp_path / "whole.npz")
    path = tmp_path / "killed.npz"
    assert not killed_run(path, last)
    assert content(path) != content(tmp_path / "whole.npz")
    assert killed_run(path)
    assert content(path) == content(tmp_path / "whole.npz")


# ---------------------------------------------------------------------------------- loss of choice


def test_another_loss():
    data, states = codes(40), []
    for loss in (F.cross_entropy, lambda z, y: F.cross_entropy(z, y) * 0.5):
        server = Server(network(), FedAvg())
        client = Client(0, data, network(), FedAvg(), loss=loss, optimizer=sgd)
        rounds(server, [client], 1)
        states.append(state_of(server.model))
    assert differ(*states)
