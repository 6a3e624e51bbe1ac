"""The federated experiments: what their figures are made of, and how they go on after a stop."""

import dataclasses
import json

import numpy as np
import pytest

from tinybnn import cli, datasets, federated
from tinybnn.experiments import fedavg, fedhybnn

SMALL = fedhybnn.Config(epochs_vae=1, rounds=2, limit=200, bits=24)


@pytest.fixture(scope="module")
def hybnn_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "fedhybnn"
    lines = []
    result = fedhybnn.run(out, SMALL, seeds=2, progress=False, say=lines.append)
    return out, result, lines


def test_fedhybnn_gives_all_figures(hybnn_run):
    out, result, lines = hybnn_run
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert lines[0] == "Only the first 200 images were used."
    assert len(lines) == 4 and "after 2 rounds" in lines[-2]
    assert result["tasks"] == ["0 / 1", "2 / 3", "4 / 5", "6 / 7", "8 / 9"]
    for seed in result["seeds"]:
        assert len(seed["centralized"]) == 5
        for partition in fedhybnn.PARTITIONS:
            assert seed["federated"][partition].keys() == fedhybnn.ARMS.keys()
            for arm, tasks in seed["federated"][partition].items():
                assert len(tasks) == 5
                for i, task in enumerate(tasks):
                    assert len(task["accuracy"]) == len(task["bytes_up"]) == 2
                    same = seed["federated"]["iid"]["fedavg"][i]
                    assert sum(task["samples"]) == sum(same["samples"])
                    assert (task["flipped"] == 0) == (arm == "vote")
    text = (out / "report.md").read_text()
    for title in (*result["arms"].values(), "Bytes on the wire", "weights flipped, %"):
        assert title in text
    assert {p.name for p in out.glob("*.png")} == {
        "rounds-iid.png", "rounds-skewed.png", "bytes-iid.png", "bytes-skewed.png",
        "partitions.png",
    }  # fmt: skip


def test_fedhybnn_counts_bytes(hybnn_run):
    """For the paper's head of 200 bits: weights 31 times smaller, all of it 19 and 28 times."""
    _, result, _ = hybnn_run
    arms = {arm: tasks[0] for arm, tasks in result["seeds"][0]["federated"]["iid"].items()}
    assert arms["fedavg"]["saving_up"] == arms["fedavg"]["saving_down"] == 1
    assert arms["vote"]["bytes_up"] == arms["sign"]["bytes_up"]
    assert arms["sign-frozen"]["bytes_up"][0] < arms["sign"]["bytes_up"][0]
    config = dataclasses.replace(SMALL, bits=200, rounds=1)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, (40, 1, 1, 200), dtype=np.uint8)
    own = [datasets.from_arrays(codes, rng.integers(0, 2, 40), maximum=1)] * 2
    sent = {
        arm: fedhybnn._federated(own, 0, config, "iid", fedhybnn.ARMS[arm])
        for arm in ("sign", "sign-local", "sign-frozen")
    }
    assert sent["sign"]["saving_weights_up"] >= 31
    assert sent["sign"]["saving_up"] >= 19
    assert min(sent["sign-local"]["saving_up"], sent["sign-frozen"]["saving_up"]) >= 28


def test_fedhybnn_goes_on_after_a_stop(hybnn_run, tmp_path, monkeypatch):
    """Stopped in a training, and called again: the same figures as without."""
    _, whole, _ = hybnn_run
    out, trained, real = tmp_path / "run", [], fedhybnn._federated

    def stopped(*args):
        trained.append(args)
        if len(trained) == 20:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(fedhybnn, "_federated", stopped)
    with pytest.raises(KeyboardInterrupt):
        fedhybnn.run(out, SMALL, seeds=1, progress=False, say=str)
    done = len(list((out / "seed-0").glob("task-*.json")))
    assert done == 19 + 2  # and two centralized heads
    again = fedhybnn.run(out, SMALL, seeds=1, progress=False, say=str)
    assert len(trained) == 20 + 80 - 19
    assert again["seeds"] == whole["seeds"][:1]
    with pytest.raises(ValueError, match="is a run with rounds=2, not rounds=3"):
        fedhybnn.run(out, dataclasses.replace(SMALL, rounds=3), progress=False, say=str)


@pytest.mark.parametrize("partition", fedhybnn.PARTITIONS)
def test_all_clients_have_codes(partition):
    labels = np.random.default_rng(0).integers(0, 2, 3000)
    for seed in range(5):
        parts = fedhybnn.split(labels, partition, seed, SMALL)
        assert len(parts) == 3 and min(map(len, parts)) >= 2
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(3000))
    shares = [labels[part].mean() for part in parts]
    assert (max(shares) - min(shares) < 0.2) == (partition == "iid")


def test_one_client_is_the_centralized_head(hybnn_run):
    """What a client of its own learns in rounds is plain training, but for Adam's fresh starts."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 2, (200, 1, 1, 24), dtype=np.uint8)
    labels = (codes[:, 0, 0, :5].sum(1) > 2).astype(int)
    own = [datasets.from_arrays(codes, labels, maximum=1)] * 2
    config = dataclasses.replace(SMALL, clients=1, rounds=4)
    averaged = fedhybnn._federated(own, 0, config, "iid", fedhybnn.ARMS["fedavg"])["accuracy"]
    central = fedhybnn._centralized(own, 0, config)["accuracy"]
    assert len(central) == len(averaged) == 4
    assert central[-1] > 0.85 and averaged[-1] > 0.85
    twice = dataclasses.replace(config, epochs=2, rounds=2)
    assert fedhybnn._centralized(own, 0, twice)["accuracy"] == central[1::2]


# ----------------------------------------------------------------------------------------- fedavg

FEW = fedavg.Config(dataset="digits", clients=8, fraction=0.5, rounds=23, target=0.8)


def test_fedavg_ends_at_its_target(tmp_path):
    result = fedavg.run(tmp_path / "run", FEW, arms=["2nn"], progress=False, say=str)
    for run in result["trainings"]:
        reached = run["rounds_to_target"]
        assert reached is not None and len(run["accuracy"]) == reached < 23
        assert run["accuracy"][-1] >= 0.8 > max(run["accuracy"][:-1])
        assert run["bytes_up"] == run["bytes_down"] == reached * 4 * _bytes_of_2nn()
    text = (tmp_path / "run" / "report.md").read_text()
    assert "rounds to 80%" in text and "2NN, FedAvg" in text
    assert (tmp_path / "run" / "rounds.png").stat().st_size > 5000
    # Another arm may come later, and what is there is not trained again.
    stamp = (tmp_path / "run" / "2nn-iid.json").stat().st_mtime_ns
    lasting = dataclasses.replace(FEW, rounds=2)
    more = fedavg.run(tmp_path / "two", lasting, arms=["binary-sign"], progress=False, say=str)
    assert [t["rounds_to_target"] for t in more["trainings"]] == [None, None]
    assert more["trainings"][0]["saving_up"] > 15
    more = fedavg.run(tmp_path / "two", lasting, arms=["2nn"], progress=False, say=str)
    assert [t["arm"] for t in more["trainings"]] == ["2nn"] * 2 + ["binary-sign"] * 2
    assert "--arms 2nn,binary-sign " in more["command"]
    both = fedavg.run(tmp_path / "run", FEW, arms=["2nn"], progress=False, say=str)
    assert both["trainings"] == result["trainings"]
    assert (tmp_path / "run" / "2nn-iid.json").stat().st_mtime_ns == stamp


def test_frozen_norms_have_the_statistics_of_public_images(tmp_path, monkeypatch):
    config, servers, make = dataclasses.replace(FEW, rounds=2), [], federated.Server

    def kept(*args, **options):
        servers.append(make(*args, **options))
        return servers[-1]

    monkeypatch.setattr(federated, "Server", kept)
    trained = fedavg._train(tmp_path, "binary-sign-frozen", "iid", config, *_digits(), False)
    assert trained["saving_up"] > 20  # weights alone: 32, but for headers
    _, first, norm, second, *_ = servers[0].model
    untrained = fedavg.ARMS["binary"].build(64, 10, np.random.default_rng(0))
    x, _ = next(iter(datasets.DataLoader(_digits()[0][0], fedavg.PUBLIC)))
    sums = untrained[1](untrained[0](x))
    assert np.allclose(norm.running_mean, sums.data.mean(0), atol=1e-3)
    assert np.allclose(norm.running_var, sums.data.var(0, ddof=1), rtol=1e-3)
    assert norm.frozen and not first.frozen and not second.frozen
    assert (first.weight.data != untrained[1].weight.data).any()


def test_what_each_head_sends_and_how_it_is_tested(tmp_path):
    """Local norms do not travel; all else of an arm is its network's state."""
    config, rows = dataclasses.replace(FEW, rounds=2, target=1.0, lr_decay=0.9, momentum=0.5), {}
    for head in fedavg.HEADS:
        arm = f"binary-sign{head}"
        rows[head] = fedavg._train(tmp_path, arm, "shards", config, *_digits(), False)
        assert 0 <= rows[head]["personalised"] <= 1
        assert rows[head]["bytes_down"] > 5 * rows[head]["bytes_up"]
    up = {head: row["bytes_up"] for head, row in rows.items()}
    assert up["-local"] == up["-frozen"] < up["-none"] < up["-layer"] < up[""]
    biases = 2 * 4 * (4 * (200 + 200 + 10) + 3 * 6)  # a float for each unit, three headers
    assert up["-none"] - up["-local"] == biases


def test_the_personalised_accuracy_is_of_a_clients_own_classes():
    train, test = _digits()[0]
    parts = [np.flatnonzero(train.labels == label)[:9] for label in (3, 7)]
    strategy = federated.FedAvg()

    def build():
        model = fedavg.two_nn(64, 10, np.random.default_rng(0))
        model[-1].weight.data[:], model[-1].bias.data[:] = 0, np.arange(10) == 3  # always a 3
        return model

    server = federated.Server(build(), strategy)
    clients = [federated.Client(k, train[p], build(), strategy) for k, p in enumerate(parts)]
    none = federated.RoundHistory()
    assert fedavg._personalised(server, clients, none, train.labels, parts, test) == 0.5
    parts[1] = np.flatnonzero(train.labels == 7)[:27]
    clients[1] = federated.Client(1, train[parts[1]], build(), strategy)
    assert fedavg._personalised(server, clients, none, train.labels, parts, test) == 0.25


def test_the_report_names_the_settings_against_drift():
    used = dataclasses.asdict(fedavg.Config(momentum=0.9, proximal=0.1))
    assert fedavg._drift(used) == "Server momentum 0.9, proximal term 0.1. "
    assert fedavg._drift({}) == ""  # of earlier versions


def test_settings_are_chosen_without_the_test_set(tmp_path, monkeypatch):
    train, test = datasets.load("digits")
    monkeypatch.setattr(fedavg.features, "load", lambda *_: (train, test[:0]))
    config = dataclasses.replace(FEW, rounds=1, validate=True)
    result = fedavg.run(tmp_path, config, arms=["2nn"], progress=False, say=str)
    held_out = len(train) // 6
    assert result["images"] == {"train": len(train) - held_out, "test": held_out}
    assert result["command"].endswith("--validate")
    assert f"{held_out} held-out training images." in (tmp_path / "report.md").read_text()


def _bytes_of_2nn():
    model = fedavg.two_nn(64, 10, np.random.default_rng(0))
    return federated.Server(model, federated.FedAvg()).float32_size


def test_the_2nn_has_the_papers_parameters():
    model = fedavg.two_nn(784, 10, np.random.default_rng(0))
    assert sum(p.data.size for p in model.parameters()) == 199_210


def test_fedavg_goes_on_after_a_stop(tmp_path, monkeypatch):
    config = dataclasses.replace(FEW, rounds=13, target=1.0)
    whole = fedavg._train(tmp_path, "binary-sign", "shards", config, *_digits(), False)
    assert whole["rounds_to_target"] is None and len(whole["accuracy"]) == 13
    folder, calls, train = tmp_path / "stopped", [], federated.Client.train
    folder.mkdir()

    def stopped(self, *args, **options):
        calls.append(self.number)
        if len(calls) == 4 * 6 + 2:  # in round 7
            raise KeyboardInterrupt
        return train(self, *args, **options)

    monkeypatch.setattr(federated.Client, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        fedavg._train(folder, "binary-sign", "shards", config, *_digits(), False)
    again = fedavg._train(folder, "binary-sign", "shards", config, *_digits(), False)
    assert len(calls) == 4 * 13 + 2
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in whole.items() if k != "seconds"
    }


def _digits():
    return [datasets.load("digits")]


def test_rounds_to():
    assert fedavg.rounds_to(0.5, [0.1, 0.5, 0.4]) == 2
    assert fedavg.rounds_to(0.6, [0.1, 0.5, 0.4]) is None


def test_bad_configurations(tmp_path):
    for config in (fedhybnn.Config, fedavg.Config):
        for changes, message in (
            ({"rounds": 0}, "Config: rounds must be >= 1, got 0"),
            ({"batch_size": 1}, "Config: batch_size must be >= 2, got 1"),
        ):
            with pytest.raises(ValueError, match=message):
                config(**changes)
    with pytest.raises(ValueError, match="unknown arm '3nn', choose from 2nn, binary, binary-l"):
        fedavg.run(tmp_path, FEW, arms=["3nn"], progress=False, say=str)
    config = fedavg.Config(clients=5, lr=0.2)
    first, command = "tinybnn reproduce fedavg --seeds 1", fedavg.EXPERIMENT.command
    assert command(config, 1, list(fedavg.ARMS)) == f"{first} --clients 5 --lr 0.2"
    assert command(config, 1, ["2nn"]) == f"{first} --arms 2nn --clients 5 --lr 0.2"
    command = fedhybnn.EXPERIMENT.command(fedhybnn.Config(batch_size=64), 2)
    assert command == "tinybnn reproduce fedhybnn --seeds 2 --batch-size 64"


def test_the_command_line(tmp_path, capsys):
    out = tmp_path / "quick"
    arguments = ["reproduce", "fedavg", "--quick", "--quiet", "--arms", "2nn", "--out", str(out)]
    assert cli.main([*arguments, "--rounds", "2"]) == 0
    assert "in 2 rounds, target: not reached" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text()) == dataclasses.asdict(
        fedavg.Config(**{**fedavg.EXPERIMENT.quick, "rounds": 2})
    )
    assert cli.main([*arguments, "--rounds", "3"]) == 1
    assert "is a run with rounds=2, not rounds=3" in capsys.readouterr().err
