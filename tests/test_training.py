"""The training loop: it learns, it tells what happened, and nothing can make it lose its way."""

import errno
import functools
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinybnn
from tinybnn import checkpoint as checkpoints
from tinybnn import datasets, models, nn, optim, quantizers, storage, training
from tinybnn import functional as F
from tinybnn.storage import StorageError
from tinybnn.tensor import default_generator
from tinybnn.training import Checkpoint, History, fit

BATCHES = 4  # of an epoch of the small run


def small_data(seed=0, count=66):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 1, 6, 6), dtype=np.uint8)
    return datasets.from_arrays(images, rng.integers(0, 3, count))


class Run:
    """A small run with all that a checkpoint must hold: dropout, shuffling, a schedule."""

    def __init__(
        self,
        generators="shared",
        seed=0,
        model="mlp",
        dropout=0.2,
        hidden=8,
        batch_size=18,
        data_seed=0,
        optimizer=None,
        schedule=True,
        loss=F.cross_entropy,
    ):
        rng = np.random.default_rng(seed)
        drops, orders = {
            "shared": (rng, rng),
            "separate": (np.random.default_rng(seed + 7), seed + 8),
            "default": (None, seed + 8),
            "legacy": (
                np.random.Generator(np.random.MT19937(seed)),
                np.random.Generator(np.random.Philox(seed)),
            ),
        }[generators]
        tinybnn.manual_seed(seed + 9)
        if model == "mlp":
            self.model = nn.Sequential(
                nn.Flatten(),
                nn.BinaryLinear(36, hidden, input_quantizer=None, rng=rng),
                nn.BatchNorm1d(hidden),
                nn.Dropout(dropout, rng=drops),
                nn.BinaryLinear(hidden, 3, rng=rng),
                nn.BatchNorm1d(3),
            )
        else:
            self.model = models.cnn((1, 6, 6), 3, (4, 5, 6), 7, padding=1, rng=rng)
        self.train = datasets.DataLoader(small_data(data_seed), batch_size, True, rng=orders)
        self.validation = datasets.DataLoader(small_data(1, 20), 10, shuffle=True, rng=orders)
        make = optimizer or (lambda p: optim.Adam(p, lr=0.02))
        self.optimizer = make(self.model.parameters())
        self.schedule = optim.StepLR(self.optimizer, 5, 0.7) if schedule else None
        self.history = History()
        self.loss = loss

    def fit(self, epochs=4, checkpoint=None, **kw):
        settings = {
            "optimizer": self.optimizer, "schedule": self.schedule, "schedule_unit": "batch",
            "validation": self.validation, "loss": self.loss, "history": self.history,
            "progress": False,
        }  # fmt: skip
        return fit(self.model, self.train, epochs=epochs, checkpoint=checkpoint, **settings | kw)

    def everything(self):
        """All arrays and numbers that training changes, times aside."""
        found = {k: v.copy() for k, v in self.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            found.update({f"{i}.{k}": v.copy() for k, v in state.items()})
        found["rates"] = [group[rate] for group, rate in self.optimizer.rates]
        found["steps"] = self.schedule.last_epoch if self.schedule else 0
        found["random"] = [
            str(g.bit_generator.state) for g in (self.train.rng, tinybnn.tensor.default_generator())
        ]
        found["history"] = [
            {k: v for k, v in row.items() if k != "seconds"} for row in self.history.rows
        ]
        return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        if isinstance(expected[name], np.ndarray):
            assert found[name].dtype == expected[name].dtype, name
            assert found[name].tobytes() == expected[name].tobytes(), name
        else:
            assert found[name] == expected[name], name


class StopError(Exception):
    """An interruption."""


def interrupting(at):
    """Cross entropy that raises in its call number `at` (from 0, over all batches)."""
    calls = iter(range(10**9))

    def loss(logits, labels):
        if logits.requires_grad and next(calls) == at:  # not in the validation
            raise StopError
        return F.cross_entropy(logits, labels)

    return loss


# ---------------------------------------------------------------------------------------- the loop


def test_fit_learns_and_keeps_a_history():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 1, 4, 4), dtype=np.uint8)
    labels = (images[:, 0, :2].mean((1, 2)) > images[:, 0, 2:].mean((1, 2))).astype(int)
    data = datasets.from_arrays(images, labels)
    model = nn.Sequential(
        nn.Flatten(),
        nn.BinaryLinear(16, 32, input_quantizer=None, rng=rng),
        nn.BatchNorm1d(32),
        nn.BinaryLinear(32, 2, rng=rng),
        nn.BatchNorm1d(2),
    )
    loader = datasets.DataLoader(data[:150], 25, shuffle=True, rng=rng)
    held_out = datasets.DataLoader(data[150:], 50)
    optimizer = optim.Adam(model.parameters(), lr=0.02)
    schedule = optim.StepLR(optimizer, 5)
    history = fit(
        model, loader, epochs=10, optimizer=optimizer, schedule=schedule, validation=held_out,
        progress=False,
    )  # fmt: skip
    assert history["epoch"] == list(range(1, 11))
    np.testing.assert_allclose(history["lr"], 5 * [0.02] + 5 * [0.002])
    assert history["loss"][-1] < history["loss"][0]
    assert history["accuracy"][-1] > 0.9 and history["val_accuracy"][-1] > 0.85
    assert all(0 <= ratio <= 1 for ratio in history["flip_ratio"]) and history["flip_ratio"][0] > 0
    assert len(history) == 10 and all(s > 0 for s in history["seconds"])
    found = training.evaluate(model, held_out)
    assert found == {"loss": history["val_loss"][-1], "accuracy": history["val_accuracy"][-1]}
    assert not model.training


def test_history_of_one_epoch_by_hand():
    """Mean loss and accuracy over samples, batches of unequal size, flips of binary weights."""
    run = Run(dropout=0.0, schedule=False, optimizer=lambda p: optim.SGD(p, lr=0.0))
    latents = [p for p in run.model.parameters() if isinstance(p, nn.LatentParameter)]
    run.train = datasets.DataLoader(run.train.dataset, 60)  # 60 and 6
    run.model.train()
    batches = [(run.model(tinybnn.Tensor(x)).data, y) for x, y in run.train]
    losses = [F.cross_entropy(tinybnn.Tensor(z), y).item() * len(y) for z, y in batches]
    right = sum(int((z.argmax(1) == y).sum()) for z, y in batches)
    row = run.fit(1).rows[0]
    assert row["loss"] == pytest.approx(sum(losses) / 66, rel=1e-6)
    assert row["accuracy"] == right / 66
    assert row["flip_ratio"] == 0.0
    counter = training.FlipCounter(run.model)
    latents[0].data[0, :3] *= -1
    assert counter.ratio() == 3 / sum(p.numel() for p in latents)
    assert counter.ratio() == 0.0


@pytest.mark.parametrize(
    ("layer", "changed"),
    [
        (lambda: nn.BinaryConv2d(1, 1, 2), 0),
        (lambda: nn.AdaBinConv2d(1, 1, 2), 2),
        (lambda: nn.DualAdaBinConv2d(1, 1, 2), 2),
    ],
)
def test_flips_are_those_of_the_weights_that_a_layer_computes_with(layer, changed):
    """Latent weights 1 to 4 have one sign; AdaBin's are the signs of what exceeds their mean."""
    model = nn.Sequential(layer())
    latent = next(p for p in model.parameters() if isinstance(p, nn.LatentParameter))
    latent.data[...] = np.float32([[1, 2], [3, 4]])
    counter = training.FlipCounter(model)
    latent.data[...] = np.float32([[1, 3], [2, 4]])
    assert counter.ratio() == changed / sum(w.size for w in model.binary_weights().values())
    assert counter.ratio() == 0


def test_the_mode_of_the_model_comes_back():
    run = Run()
    for mode in (True, False):
        run.model.train(mode)
        training.evaluate(run.model, run.validation)
        assert all(m.training is mode for m in run.model.modules())
    run.model.train()
    with pytest.raises(ValueError, match="35"):
        training.predict(run.model, [(np.zeros((2, 35), np.float32), np.zeros(2, np.int64))])
    assert run.model.training
    run.loss = interrupting(2)
    with pytest.raises(StopError):
        run.fit()
    assert not run.model.training


def test_predict_gives_logits_in_order():
    run = Run()
    run.model.eval()
    loader = datasets.DataLoader(small_data(), 20)
    logits, labels = training.predict(run.model, loader)
    assert np.array_equal(labels, small_data().labels)
    assert np.array_equal(logits[20:40], training.predict(run.model, list(loader)[1:2])[0])
    with pytest.raises(ValueError, match="no batches"):
        training.predict(run.model, [])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops(value):
    run = Run(loss=lambda logits, labels: F.cross_entropy(logits, labels) * value)
    before = {k: v.copy() for k, v in run.model.state_dict().items() if "weight" in k}
    with pytest.raises(FloatingPointError, match=f"{value} in epoch 1"):
        run.fit()
    assert all(np.array_equal(run.model.state_dict()[k], v) for k, v in before.items())


def test_wrong_arguments():
    with pytest.raises(ValueError, match="epochs must be >= 1, got 0"):
        Run().fit(0)
    with pytest.raises(ValueError, match="schedule_unit must be 'epoch' or 'batch'"):
        Run().fit(schedule_unit="step")


def test_a_given_history_goes_on():
    run = Run()
    run.fit(2)
    assert run.fit(3)["epoch"] == [1, 2, 3, 4, 5]


# ---------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("generators", ["shared", "separate", "default", "legacy"])
def test_an_interrupted_run_ends_the_same(tmp_path, generators):
    """Stopped in each batch in turn, and gone on with in new objects."""
    undisturbed = Run(generators)
    undisturbed.fit()
    expected = undisturbed.everything()
    for at in range(4 * BATCHES):
        path = tmp_path / f"{at}.npz"
        run = Run(generators, loss=interrupting(at))
        with pytest.raises(StopError):
            run.fit(checkpoint=path)
        assert len(run.history) == at // BATCHES
        again = Run(generators, loss=interrupting(None))
        assert again.fit(checkpoint=path) is again.history
        assert_same(again.everything(), expected)
        assert not again.model.training


def test_the_checkpoint_itself_changes_nothing(tmp_path):
    one, two = Run(), Run()
    one.fit()
    two.fit(checkpoint=tmp_path / "run.npz")
    assert_same(two.everything(), one.everything())


def test_gone_on_with_in_the_same_objects(tmp_path):
    """As in a notebook: the cell was stopped, and is run again. Nothing was seeded."""
    path = tmp_path / "run.npz"
    run = Run(loss=interrupting(9))
    run.train.rng = run.model[3].rng = np.random.default_rng()
    twin = Run(loss=interrupting(None))
    twin.train.rng = twin.model[3].rng = np.random.default_rng()
    twin.train.rng.bit_generator.state = run.train.rng.bit_generator.state
    twin.validation.rng, run.validation.rng = twin.train.rng, run.train.rng
    twin.fit()
    with pytest.raises(StopError):
        run.fit(checkpoint=path)
    run.fit(checkpoint=path)
    assert_same(run.everything(), twin.everything())


def test_unseeded_runs_go_on_in_new_objects(tmp_path):
    """What the system drew at random is no seed that must be the same."""
    path = tmp_path / "run.npz"

    def make(at):
        run = Run(loss=interrupting(at))
        run.train.rng = run.validation.rng = run.model[3].rng = np.random.default_rng()
        return run

    first = make(9)
    with pytest.raises(StopError):
        first.fit(checkpoint=path)
    results = []
    kept = path.read_bytes()
    for _ in range(2):
        path.write_bytes(kept)
        again = make(None)
        again.fit(checkpoint=path)
        results.append(again.everything())
    assert_same(results[0], results[1])


def test_convolutions_and_two_optimizers_go_on(tmp_path):
    """Weights with channels last in memory; state of Bop and of SGD with momentum."""

    def make(at=None):
        def optimizers(params):
            latent = [p for p in params if isinstance(p, nn.LatentParameter)]
            rest = [p for p in params if not isinstance(p, nn.LatentParameter)]
            sgd = optim.SGD(rest, lr=0.05, momentum=0.9, nesterov=True)
            return optim.MultiOptimizer(optim.Bop(latent, 1e-4, 1e-2), sgd)

        return Run(model="cnn", optimizer=optimizers, loss=interrupting(at))

    undisturbed = make()
    undisturbed.fit()
    for at in (2, 7, 12):
        path = tmp_path / f"{at}.npz"
        with pytest.raises(StopError):
            make(at).fit(checkpoint=path)
        again = make()
        again.fit(checkpoint=path)
        assert_same(again.everything(), undisturbed.everything())


def float_network(rng):
    """Real and binary, strided, depth-wise and grouped convolutions, pooling and dense layers."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1, rng=rng),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False, rng=rng),
        nn.BatchNorm2d(32),
        nn.BinaryConv2d(32, 64, 1, input_quantizer="approx_sign", rng=rng),
        nn.BatchNorm2d(64),
        nn.BinaryConv2d(64, 64, 3, padding=1, groups=64, input_quantizer="ste_sign", rng=rng),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 64, 10, rng=rng),
    )


@pytest.mark.parametrize("network", [float_network, functools.partial(models.vgg_small, width=0.5)])
def test_the_same_weights_for_any_number_of_threads(network):
    from tinybnn.kernels.machine import threads

    if threads.most() < 2:
        pytest.skip("one core")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    data = datasets.from_arrays(images, rng.integers(0, 10, 64))
    trained = []
    for n in (1, threads.most(), 1):
        model = network(rng=np.random.default_rng(1))
        optimizer = optim.Adam(model.parameters(), lr=1e-2)
        loader = datasets.DataLoader(data, 32, shuffle=True, rng=np.random.default_rng(2))
        fit(model, loader, epochs=1, optimizer=optimizer, progress=False, threads=n)
        trained.append(model.state_dict())
    assert_same(trained[0], trained[1])
    assert_same(trained[0], trained[2])


def test_a_wrong_number_of_threads_is_refused():
    with pytest.raises(ValueError, match="num_threads: n must be from 1 to"):
        Run().fit(threads=0)


def test_epochs_count_from_the_first(tmp_path):
    path = tmp_path / "run.npz"
    Run().fit(2, checkpoint=path)
    longer, whole = Run(), Run()
    longer.fit(5, checkpoint=path)
    whole.fit(5)
    assert_same(longer.everything(), whole.everything())
    kept = path.read_bytes()
    done = Run()
    assert len(done.fit(3, checkpoint=path)) == 5  # more than asked for: nothing to do
    assert_same(done.everything(), whole.everything())
    assert path.read_bytes() == kept
    assert not done.model.training


def test_the_progress_bar_starts_where_the_run_goes_on(tmp_path, capsys):
    path = tmp_path / "run.npz"
    Run().fit(2, checkpoint=path)
    capsys.readouterr()
    Run().fit(4, checkpoint=path, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    steps = [int(n) for n in re.findall(rf"(\d+)/{4 * BATCHES}", shown.err)]
    assert steps[0] == 2 * BATCHES and steps[-1] == 4 * BATCHES
    Run().fit(4, checkpoint=path, progress=True)
    assert f"{4 * BATCHES}/{4 * BATCHES}" in capsys.readouterr().err


def test_numbers_that_json_lacks_come_back(tmp_path):
    path, run = tmp_path / "run.npz", Run()
    run.history.rows.append({"epoch": 1, "val_loss": np.inf, "loss": np.float32(0.5)})
    run.history.rows.append({"epoch": 2, "val_loss": -np.inf, "loss": np.nan})
    Checkpoint(path, run.model, run.optimizer, history=run.history).save()
    found = History()
    assert Checkpoint(path, run.model, run.optimizer, history=found).restore()
    assert found["val_loss"] == [np.inf, -np.inf]
    assert found["loss"][0] == 0.5 and np.isnan(found["loss"][1])


@pytest.mark.parametrize(("then", "now"), [(None, 5), (5, None), (5, 5), (5, 6)])
def test_the_default_generator_may_be_seeded_on_one_side_alone(tmp_path, then, now):
    """It goes on from the file's state all the same; two seeds that were chosen must agree."""
    path, run = tmp_path / "run.npz", Run()
    tinybnn.manual_seed(then)
    Checkpoint(path, run.model, run.optimizer).save()
    draws = default_generator().random(3)
    tinybnn.manual_seed(now)
    state = Checkpoint(path, run.model, run.optimizer)
    if None in (then, now) or then == now:
        assert state.restore()
        assert np.array_equal(default_generator().random(3), draws)
    else:
        with pytest.raises(ValueError, match="default: seed: 5 in the checkpoint, 6 here"):
            state.restore()


def test_a_loop_of_ones_own(tmp_path):
    """The class alone: no loaders, no history, no schedule."""
    path, run = tmp_path / "own.npz", Run()
    state = Checkpoint(path, run.model, run.optimizer)
    assert state.restore() is False
    assert state.save() == path.stat().st_size
    weights = {k: v.copy() for k, v in run.model.state_dict().items()}
    draws = run.model[3].rng.random(3)
    run.model[1].weight.data += 1
    assert state.restore() is True
    assert all(np.array_equal(v, weights[k]) for k, v in run.model.state_dict().items())
    assert np.array_equal(run.model[3].rng.random(3), draws)


def test_generators_are_found_wherever_they_are():
    class Transform:
        def __init__(self, rng):
            self.steps = [("noise", {"rng": rng})]
            self.again, self.itself = rng, self

        def __call__(self, images, rng):
            return images.astype(np.float32)

    rng = np.random.default_rng(0)
    loader = datasets.DataLoader(small_data(), transform=Transform(rng), rng=1)
    layer = nn.Dropout(rng=np.random.default_rng(2))
    found = checkpoints._find_generators(model=nn.Sequential(nn.Sequential(layer)), train=loader)
    assert {id(g) for g in found.values()} == {
        id(g) for g in (tinybnn.tensor.default_generator(), layer.rng, rng, loader.rng)
    }
    assert len(found) == 4 and "train.rng" in found and "default" in found


# ---------------------------------------------------------------------------------------- refusals


def another(**kw):
    return lambda: Run(**kw)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (another(hidden=9), "model: layers: 1: out_features: 8 in the checkpoint, 9 here"),
        (another(dropout=0.3), "model: layers: 3: p: 0.2 in the checkpoint, 0.3 here"),
        (another(model="cnn"), "model: layers"),
        (another(batch_size=16), "train: batch_size: 18 in the checkpoint, 16 here"),
        (another(data_seed=3), "train: labels"),
        (another(seed=1), "random generators: default: seed: 9 in the checkpoint, 10 here"),
        (another(generators="separate"), "random generators"),
        (another(schedule=False), "schedule: {.*} in the checkpoint, None here"),
        (another(loss=F.mse_loss), "loss: 'cross_entropy' in the checkpoint, 'mse_loss' here"),
        (
            another(optimizer=lambda p: optim.Adam(p, lr=0.03)),
            r"schedule: base_lrs: \[0\] 0.02 in the checkpoint, 0.03 here",
        ),
        (
            another(optimizer=lambda p: optim.Adam(p, lr=0.02, betas=(0.8, 0.999))),
            r"betas: \[0\] 0.9 in the checkpoint, 0.8 here",
        ),
        (
            another(optimizer=lambda p: optim.AdamW(p, lr=0.02, weight_decay=0)),
            "optimizer: 'Adam' in the checkpoint, 'AdamW' here",
        ),
        (another(optimizer=lambda p: optim.SGD(p, lr=0.02)), "optimizer: 'Adam'"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, make, what):
    path = tmp_path / "run.npz"
    Run().fit(1, checkpoint=path)
    kept, run = path.read_bytes(), make()
    before = run.everything()
    with pytest.raises(ValueError, match=what) as caught:
        run.fit(checkpoint=path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert_same(run.everything(), before)
    assert path.read_bytes() == kept


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "packed"])
def test_a_damaged_checkpoint_is_never_overwritten(tmp_path, damage):
    path = tmp_path / "run.npz"
    Run().fit(1, checkpoint=path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-100]
    elif damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "packed":
        storage.save(path, {}, kind="packed-model", version=1)
        data = path.read_bytes()
    else:
        data = b"" if damage == "empty" else b"weights"
    path.write_bytes(data)
    with pytest.raises(StorageError, match="delete the file to start anew") as caught:
        Run().fit(checkpoint=path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == bytes(data)
    with pytest.raises(StorageError, match=re.escape(str(path))):
        training.load_weights(path, Run().model)


def test_load_weights(tmp_path):
    path, run, other = tmp_path / "run.npz", Run(), Run(seed=5)
    run.fit(2, checkpoint=path)
    history = training.load_weights(path, other.model)
    assert history.rows == run.history.rows
    for name, array in run.model.state_dict().items():
        assert np.array_equal(other.model.state_dict()[name], array)
    with pytest.raises(KeyError, match="misses"):
        training.load_weights(path, models.mlp(36, (8, 8, 8), 3))
    with pytest.raises(FileNotFoundError):
        training.load_weights(tmp_path / "none.npz", run.model)


# ---------------------------------------------------------------------------------- where not to go


@pytest.mark.parametrize("place", ["no/such/folder/run.npz", "file/run.npz", "."])
def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path, place):
    (tmp_path / "file").write_text("")
    run, path = Run(), tmp_path / place
    before = run.everything()
    with pytest.raises((OSError, StorageError), match=re.escape(str(path))):
        run.fit(checkpoint=path)
    assert_same(run.everything(), before)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    path = tmp_path / "run.npz"
    Run().fit(1, checkpoint=path)
    kept = path.read_bytes()
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=re.escape(str(path))):
            Run().fit(2, checkpoint=path)
    finally:
        tmp_path.chmod(0o700)
    assert path.read_bytes() == kept


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, call):
    path, run = tmp_path / "run.npz", Run()
    run.fit(2, checkpoint=path)
    kept = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, call, full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            Run().fit(4, checkpoint=path)
    assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    assert path.read_bytes() == kept
    assert os.listdir(tmp_path) == ["run.npz"]  # nothing half-written is left
    again, whole = Run(), Run()
    again.fit(4, checkpoint=path)
    whole.fit(4)
    assert_same(again.everything(), whole.everything())


# ----------------------------------------------------------------------------------- killed, really

# Trains a small network with a checkpoint. With a number, the process kills itself at that event:
# events are the batches, and in each write the half of its bytes and all calls to the system.
KILLED = """
import os, signal, sys
import numpy as np
import tinybnn
from tinybnn import datasets, functional, nn, optim, storage, training

path, epochs, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
events = 0

def event():
    global events
    events += 1
    if events == last:
        os.kill(os.getpid(), signal.SIGKILL)

def announced(function):
    def call(*args):
        event()
        result = function(*args)
        event()
        return result
    return call

def halved(*args, encode=storage._encode):
    chunks = encode(*args)
    yield from chunks[: len(chunks) // 2]
    event()
    yield from chunks[len(chunks) // 2 :]

if last:
    storage._encode = halved
    storage.os.fsync, storage.os.replace = announced(os.fsync), announced(os.replace)

def transform(images, rng):
    event()
    return images / np.float32(127.5) - np.float32(1)

tinybnn.manual_seed(4)
rng = np.random.default_rng(3)
images = rng.integers(0, 256, (80, 1, 5, 5), dtype=np.uint8)
data = datasets.from_arrays(images, rng.integers(0, 3, 80))
model = nn.Sequential(
    nn.Flatten(), nn.BinaryLinear(25, 24, input_quantizer=None, rng=rng), nn.BatchNorm1d(24),
    nn.Dropout(0.2, rng=rng), nn.BinaryLinear(24, 3, rng=rng), nn.BatchNorm1d(3),
)
adam = optim.Adam(model.parameters(), lr=0.02)
loader = datasets.DataLoader(data, 20, shuffle=True, transform=transform, rng=rng)
# Compiled kernels are loaded now: that takes longer than many of the runs live from here on.
logits = model(tinybnn.Tensor(np.ones((20, 1, 5, 5), np.float32)))
functional.cross_entropy(logits, np.zeros(20, int)).backward()
optim.Adam(model.parameters(), lr=0).step()
print("ready", flush=True)
training.fit(
    model, loader, epochs=epochs, optimizer=adam, checkpoint=path, progress=False,
    schedule=optim.CosineAnnealingLR(adam, 4 * epochs), schedule_unit="batch",
)
"""
WRITE = 7  # its events: half the bytes; before and after fsync, replace, fsync of the folder
EPOCH = 4 + WRITE  # four batches


def start(path, epochs, last=0):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(path), str(epochs), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def finished(process):
    """Wait for the end; False if the process was killed."""
    process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode == 0


def content(path):
    """All that a checkpoint holds but the time that the epochs took."""
    arrays, metadata = storage.load(path, kind="checkpoint", version=2)
    for row in metadata["history"]:
        del row["seconds"]
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}, metadata


def undisturbed(folder, epochs):
    """What a run leaves that nobody kills, and the seconds that its training takes."""
    path = folder / "undisturbed.npz"
    process = start(path, epochs)
    assert process.stdout.readline() == b"ready\n"
    begin = time.perf_counter()
    assert finished(process)
    seconds = time.perf_counter() - begin
    assert len(content(path)[1]["history"]) == epochs
    return content(path), seconds


def killed_at_events(folder, epochs, events):
    expected, _ = undisturbed(folder, epochs)
    for last in events:
        path = folder / f"{last}.npz"
        assert not finished(start(path, epochs, last))
        assert finished(start(path, epochs))
        assert content(path) == expected, f"killed at event {last}"


def killed_at_random(folder, epochs, runs, kills, longest, seed):
    """Kill each run at random moments a number of times, and compare what it leaves.

    The longest life is a share of the time that a whole run takes here and now. How far a run
    comes in such a life depends on what else the machine does: a run that ends before its last
    kill gives the rest of them to a run more.
    """
    (expected, seconds), left, run = undisturbed(folder, epochs), runs * kills, 0
    draw = random.Random(seed)
    while left:
        path, still = folder / f"run-{run}.npz", min(kills, left)
        while True:
            process = start(path, epochs)
            assert process.stdout.readline() == b"ready\n"
            if still:
                time.sleep(draw.uniform(0, longest * seconds))
                process.kill()
            if finished(process):
                break
            still, left = still - 1, left - 1
        assert content(path) == expected, f"run {run}, {left} kills to go"
        run += 1


posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")


@posix
def test_killed_in_a_batch_and_in_a_write(tmp_path):
    first = WRITE + EPOCH  # the first write comes before training
    killed_at_events(tmp_path, 3, [3, WRITE + 2, first - 6, first - 3, first + 3])


@posix
@pytest.mark.slow
def test_killed_at_every_event(tmp_path):
    killed_at_events(tmp_path, 2, range(1, WRITE + 2 * EPOCH + 1))


@posix
@pytest.mark.slow
def test_killed_a_hundred_times_at_random(tmp_path):
    killed_at_random(tmp_path, epochs=60, runs=4, kills=25, longest=0.2, seed=0)


# ----------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("form", ["(N,)", "(N, 1)", "one-hot", "soft", "bools", "Tensors"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "i8", "u8"])
def test_accuracy_of_all_forms_of_labels(form, dtype):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 2 if form == "bools" else 3)).astype(np.float32)
    labels = logits.argmax(1)
    labels[:2] = (labels[:2] + 1) % logits.shape[1]  # two are wrong
    given = {
        "(N,)": labels.astype(dtype),
        "(N, 1)": labels[:, None].astype(dtype),
        "one-hot": np.eye(3)[labels % 3].astype(dtype),
        "soft": 0.7 * np.eye(3, dtype=np.float32)[labels % 3] + 0.1,
        "bools": labels.astype(bool),
        "Tensors": labels.astype(dtype),
    }[form]
    if form == "Tensors":
        logits = tinybnn.Tensor(logits)
    assert training.accuracy(logits, given) == 0.75


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("dtype", [np.int64, bool, np.float32])
def test_accuracy_of_single_logits(shape, dtype):
    logits = np.array([-1.0, 2.0, 0.0, 3.0]).reshape(shape)
    for labels in (np.array([0, 1, 1, 0], dtype), np.array([[0], [1], [1], [0]], dtype)):
        assert training.accuracy(logits, labels) == 0.75


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ((4, 3), np.zeros((4, 2), int)), ((4, 3), np.zeros(3, int)), ((4, 3), np.zeros((3, 4))),
        ((4, 3), np.zeros((4, 3))), ((4, 3), np.array([0.0, 1.0, 2.0, 2.0])), ((4, 3), np.int64(1)),
        ((4, 3), np.array([0, 1, 2, 3])), ((4, 3), np.array([0, -1, 2, 2])), ((), np.int64(0)),
        ((4, 3, 2), np.zeros(4, int)), ((4, 1), np.array([0.0, 0.5, 1.0, 1.0])),
        ((4, 1), np.array([0, 1, 2, 1])), ((0, 3), np.zeros(0, int)),
    ],
    ids=range(13),
)  # fmt: skip
def test_accuracy_refuses_what_means_nothing(logits, labels):
    with pytest.raises(ValueError, match="accuracy: "):
        training.accuracy(np.zeros(logits), labels)


def rows(loss, labels, outputs):
    """What fit and evaluate note of a run with targets of some kind."""
    data = datasets.TensorDataset(np.random.default_rng(0).normal(size=(12, 4)), labels)
    loader = datasets.DataLoader(data, 5)
    model = nn.Linear(4, outputs, rng=np.random.default_rng(0))
    history = fit(
        model, loader, epochs=1, optimizer=optim.SGD(model.parameters()), loss=loss,
        validation=loader, progress=False,
    )  # fmt: skip
    return history.rows[0], training.evaluate(model, loader, loss)


@pytest.mark.parametrize(
    "targets", [np.linspace(0, 1, 12), np.arange(12) % 2.0, np.arange(12)], ids=range(3)
)
def test_a_regression_has_no_accuracy(targets):
    row, found = rows(lambda y, t: F.mse_loss(y, t.astype(np.float32)), targets[:, None], 1)
    assert "accuracy" not in row and "val_accuracy" not in row and found.keys() == {"loss"}
    assert row["val_loss"] == found["loss"]


def test_a_regression_of_several_outputs_has_no_accuracy():
    row, found = rows(F.mse_loss, np.random.default_rng(1).normal(size=(12, 3)), 3)
    assert "accuracy" not in row and found.keys() == {"loss"}


@pytest.mark.parametrize("kind", ["one-hot", "one logit"])
def test_classifications_with_other_targets_have_an_accuracy(kind):
    if kind == "one-hot":
        labels, loss, outputs = np.eye(3, dtype=np.float32)[np.arange(12) % 3], F.mse_loss, 3
    else:
        labels, outputs = np.arange(12)[:, None] % 2.0, 1
        loss = F.binary_cross_entropy_with_logits
    row, found = rows(loss, labels, outputs)
    assert 0 <= row["accuracy"] <= 1 and row["val_accuracy"] == found["accuracy"]


def test_a_checkpointed_regression_goes_on(tmp_path):
    data = datasets.TensorDataset(np.ones((6, 2)), np.arange(6.0)[:, None])
    for epochs in (1, 2):
        model = nn.Linear(2, 1, rng=np.random.default_rng(0))
        history = fit(
            model, datasets.DataLoader(data, 3), epochs=epochs, loss=F.mse_loss, progress=False,
            optimizer=optim.SGD(model.parameters()), checkpoint=tmp_path / "run.npz",
        )  # fmt: skip
    assert len(history) == 2 and "accuracy" not in history.rows[0]


# ------------------------------------------------------------------------------ what fit is given


def small_run(**kw):
    model = nn.Linear(4, 2, rng=np.random.default_rng(0))
    settings = {"epochs": 2, "optimizer": optim.SGD(model.parameters()), "progress": False}
    return model, settings | kw


@pytest.mark.parametrize("kind", ["list", "own class", "lists", "Tensors"])
def test_any_iterable_of_batches(kind):
    x, y = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), np.arange(6) % 2

    class Batches:
        def __iter__(self):
            return iter([(x[:3], y[:3]), (x[3:], y[3:])])

    batches = {
        "list": list(Batches()),
        "own class": Batches(),
        "lists": [[x[:3].tolist(), y[:3].tolist()], [x[3:].tolist(), y[3:].tolist()]],
        "Tensors": [(tinybnn.Tensor(x[:3]), y[:3]), (tinybnn.Tensor(x[3:]), y[3:])],
    }[kind]
    model, settings = small_run(validation=batches)
    expected, _ = small_run()
    history = fit(model, batches, **settings)
    loader = datasets.DataLoader(datasets.TensorDataset(x, y), 3)
    other = fit(expected, loader, **settings | {"optimizer": optim.SGD(expected.parameters())})
    assert history["loss"] == other["loss"] and history["accuracy"] == other["accuracy"]
    assert training.predict(model, batches)[0].shape == (6, 2)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda: small_data(), r"train is a Dataset; wrap it in DataLoader\(dataset"),
        (lambda: datasets.TensorDataset(np.ones((4, 4)), np.arange(4)), "TensorDataset; wrap it"),
        (lambda: (np.ones((4, 4)), np.arange(4) % 2), r"arrays; wrap them in DataLoader\(TensorDa"),
        (lambda: np.ones((4, 4)), "got arrays"),
        (lambda: iter([(np.ones((2, 4)), np.arange(2))]), "iterator, which is used up after one"),
        (lambda: 7, "iterable of batches .*, got int"),
        (lambda: [np.ones((2, 4))], r"each batch must be a pair \(x, y\), got <class"),
        (lambda: [(1, 2, 3)], "each batch must be a pair .*, got 3 items"),
    ],
    ids=range(8),
)
def test_what_is_no_loader(train, message):
    model, settings = small_run()
    for place in ("train", "validation"):
        loader = datasets.DataLoader(datasets.TensorDataset(np.ones((4, 4)), np.arange(4) % 2), 2)
        given = {"train": loader} | {place: train()}
        with pytest.raises(TypeError, match=message.replace("train is", f"{place} is")):
            fit(model, **given, **settings)


@pytest.mark.parametrize("where", ["fit", "predict"])
@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (3, {"batch_size": 4, "drop_last": True}, "leaves out the 3 samples.*batch_size=4"),
        (0, {"batch_size": 4}, "its data set is empty"),
        (0, {"batch_size": 4, "drop_last": True}, "its data set is empty"),
    ],
)  # fmt: skip
def test_no_batch_at_all(where, count, options, message):
    data = datasets.TensorDataset(np.ones((count, 4), np.float32), np.zeros(count, int))
    model, settings = small_run()
    with pytest.raises(ValueError, match=f"{where}: .*{message}"):
        if where == "fit":
            fit(model, datasets.DataLoader(data, **options), **settings)
        else:
            training.predict(model, datasets.DataLoader(data, **options))


def test_one_sample_left_for_batch_norm():
    data = datasets.TensorDataset(np.ones((65, 4)), np.arange(65) % 2)
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"single sample, choose drop_last=True or another batch"):
        fit(
            model, datasets.DataLoader(data, 64), epochs=1, progress=False,
            optimizer=optim.SGD(model.parameters()),
        )  # fmt: skip


def test_the_optimizer_of_another_model():
    model, settings = small_run()
    other = nn.Linear(4, 2)
    settings["optimizer"] = optim.SGD(other.parameters())
    with pytest.raises(ValueError, match="none of the model's parameters"):
        fit(model, [(np.ones((2, 4)), np.arange(2))], **settings)


def test_fit_warns_of_layers_that_it_cannot_see():
    class Hidden(nn.Module):
        def __init__(self):
            self.layers = [nn.Linear(4, 4)]
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.layers[0](x))

    model = Hidden()
    with pytest.warns(UserWarning, match=r"fit: Hidden reaches layers\[0\] .*nn.ModuleList"):
        fit(
            model, [(np.ones((2, 4)), np.arange(2))], epochs=1, progress=False,
            optimizer=optim.SGD(model.parameters()),
        )  # fmt: skip


@pytest.mark.parametrize("look", [training.predict, training.evaluate])
def test_looking_at_a_model_changes_no_mode(look):
    run = Run()
    run.model.train()
    run.model[2].eval()
    modes = [module.training for module in run.model.modules()]
    look(run.model, run.validation)
    assert [module.training for module in run.model.modules()] == modes


def test_the_bar_fits_into_80_columns_with_the_validation_accuracy(capsys):
    run = Run()
    run.fit(progress=True, epochs=2)
    lines = capsys.readouterr().err.replace("\n", "\r").split("\r")
    assert all(len(line.strip()) <= 80 for line in lines)
    assert any("val " in line and "acc " in line and "loss " in line for line in lines)
    row = {"loss": 123.456, "accuracy": 1.0, "val_accuracy": 1.0}
    from tqdm import tqdm

    text = tqdm.format_meter(
        99999, 99999, 3599, ncols=80, prefix="epoch 999", bar_format=training.BAR,
        postfix=training._figures(row),
    )  # fmt: skip
    assert len(text) <= 80 and "val 100.0%" in text


# ------------------------------------------------------------------------- what a run is made of


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: setattr(m[1], "weight_quantizer", quantizers.approx_sign), "SteSign in .*Appr"),
        (lambda m: setattr(m[4], "input_quantizer", quantizers.SteSign(1.5)), "clip_value: 1.0 in"),
        (lambda m: setattr(m[2], "momentum", 0.2), "momentum: 0.1 in the checkpoint, 0.2 here"),
        (lambda m: setattr(m[2], "eps", 1e-3), "eps: 1e-05 in"),
        (lambda m: setattr(m[1].weight, "clip_value", None), "weight.clip_value: 1.0 in"),
        (lambda m: setattr(m[4], "scale_mode", "mean"), "scale_mode: None in"),
    ],
    ids=["estimator", "clip", "momentum", "eps", "latent", "scale"],
)  # fmt: skip
def test_a_checkpoint_of_layers_that_compute_something_else(tmp_path, change, what):
    run = Run()
    run.fit(epochs=1, checkpoint=tmp_path / "run.npz")
    other = Run()
    change(other.model)
    with pytest.raises(ValueError, match=f"another run: model: layers.*{what}"):
        other.fit(epochs=2, checkpoint=tmp_path / "run.npz")


def test_a_checkpoint_of_another_transform_or_loss(tmp_path):
    def attempt(transform=None, **smoothing):
        run = Run(loss=functools.partial(F.cross_entropy, **smoothing))
        if transform:
            run.train.transform = transform
        run.fit(epochs=1, checkpoint=tmp_path / "run.npz")

    attempt()
    attempt()
    with pytest.raises(ValueError, match=r"transform: 'to_signed\(255\)' in .* 'to_unit\(255\)'"):
        attempt(datasets.to_unit(255))
    with pytest.raises(ValueError, match=r"loss: .*label_smoothing=0.1\)' here"):
        attempt(label_smoothing=0.1)


@pytest.mark.parametrize("is_chained", [True, False])
def test_a_steepness_that_a_schedule_moves_is_no_setting(tmp_path, is_chained):
    def make():
        model = nn.BinaryLinear(4, 2, weight_quantizer="ede_sign", rng=np.random.default_rng(0))
        optimizer = optim.SGD(model.parameters())
        schedule = ede = optim.EdeSchedule(model, 4)
        if is_chained:
            schedule = optim.ChainedScheduler([optim.StepLR(optimizer, 2), ede])
        return model, ede, {"optimizer": optimizer, "schedule": schedule, "progress": False}

    batches, path = [(np.ones((2, 4)), np.arange(2))], tmp_path / "run.npz"
    model, ede, settings = make()
    for epochs in (1, 2):  # the second time with t moved, in the same objects
        fit(model, batches, epochs=epochs, checkpoint=path, **settings)
    model, ede, settings = make()
    fit(model, batches, epochs=3, checkpoint=path, **settings)
    assert model.weight_quantizer.t == ede.t(3)


def checkpoint_0_1(tmp_path, change=None):
    """The run of tests/data/make_checkpoint_0_1.py, and its file, in a place of its own."""
    path = Path(__file__).parent / "data" / "checkpoint_0_1.npz"
    run = runpy.run_path(str(path.with_name("make_checkpoint_0_1.py")))["make_run"]()
    if change:
        change(*run)
    return run, shutil.copy(path, tmp_path / "run.npz")


def test_a_checkpoint_of_version_0_1_goes_on(tmp_path):
    (model, loader, optimizer, schedule), path = checkpoint_0_1(tmp_path)
    settings = {"optimizer": optimizer, "schedule": schedule, "progress": False}
    with pytest.warns(UserWarning, match=r"was written by version 0\.1"):
        history = fit(model, loader, epochs=4, checkpoint=path, **settings)
    assert history["epoch"] == [1, 2, 3, 4] and history["lr"] == [0.02, 0.02, 0.01, 0.01]
    assert storage.read_header(path)["version"] == 2
    fit(model, loader, epochs=4, checkpoint=path, **settings)  # now without a warning


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda model, *_: setattr(model[0], "stride", (2, 2)),
            r"stride=\(2, 2\), bias=False\)' here",
        ),
        (lambda model, *_: setattr(model, "1", nn.Identity()), "1: .* here"),
        (lambda model, loader, *_: setattr(loader, "batch_size", 6), "batch_size: 8 in"),
        (lambda *run: run[2].param_groups[0].update(eps=0.1), "eps: 1e-08 in"),
    ],
    ids=["layer", "kind", "loader", "optimizer"],
)
def test_a_checkpoint_of_version_0_1_is_compared_as_far_as_it_goes(tmp_path, change, what):
    (model, loader, optimizer, schedule), path = checkpoint_0_1(tmp_path, change)
    with pytest.raises(ValueError, match=f"another run: .*{what}"):
        fit(
            model, loader, epochs=4, optimizer=optimizer, schedule=schedule, checkpoint=path,
            progress=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    "labels",
    [
        np.linspace(0, 1, 12)[:, None], np.arange(12)[:, None] % 2 * 0.8 + 0.1,
        np.arange(24).reshape(12, 2), np.arange(12.0), np.arange(12) - 1,
    ],
    ids=["shares", "smoothed", "several", "floats", "a label that is ignored"],
)  # fmt: skip
@pytest.mark.parametrize("outputs", [1, 3])
def test_labels_that_only_the_loss_understands(labels, outputs):
    """They train, without an accuracy; `accuracy` itself refuses them."""

    def loss(y, t):
        return (y * y).mean() * float(len(t))

    if outputs == 1 and labels.shape[1:] == (1,):
        loss = F.binary_cross_entropy_with_logits
    row, found = rows(loss, labels, outputs)
    assert "accuracy" not in row and found.keys() == {"loss"}


def test_a_data_set_of_ones_own_where_batches_are_wanted():
    class Own:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return np.ones(4), 0

    model, settings = small_run()
    with pytest.raises(TypeError, match=r"got Own; wrap a data set in DataLoader\(dataset"):
        fit(model, Own(), **settings)
