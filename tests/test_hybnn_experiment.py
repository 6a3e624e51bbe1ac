"""HyBNN's experiments: the three phases and their files, the baselines, the report, the bounds."""

import dataclasses
import gzip
import io
import itertools
import json
import os
import re
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import cli, datasets, deploy, nn, plots, storage, training
from tinybnn.cli import reproduce
from tinybnn.experiments import hybnn
from tinybnn.experiments import report as pages
from tinybnn.experiments.hybnn import bounds, report
from tinybnn.experiments.hybnn.speed import is_bits_only
from tinybnn.kernels.signs import bits
from tinybnn.models import BinaryCNN, BinaryMLP, BinaryVAE, latents, load_codes
from tinybnn.testing import assert_identical

SMALL = hybnn.Config(
    bits=40, epochs_vae=3, epochs=3, epochs_cnn=1, epochs_all=1, limit=300
)  # fmt: skip
posix = pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")


def run(folder, config=SMALL, **options):
    return hybnn.run(folder, config, progress=False, say=lambda text: None, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small run with two seeds, and its result."""
    folder = tmp_path_factory.mktemp("hybnn") / "run"
    return folder, run(folder, seeds=2)


def figures(result):
    """A result without what differs from run to run: times, dates."""
    if isinstance(result, dict):
        left_out = ("seconds", "date", "times")
        return {k: figures(v) for k, v in result.items() if k not in left_out}
    return [figures(v) for v in result] if isinstance(result, list) else result


# ------------------------------------------------------------------------------ what a run leaves


def test_a_run_leaves_tables_figures_and_pictures(made):
    folder, result = made
    stored = json.loads((folder / "result.json").read_text())
    assert stored == json.loads(json.dumps(result))
    text = (folder / "report.md").read_text()
    for title in (*result["arms"].values(), *result["all_classes"].values(), result["command"]):
        assert title in text
    assert "over 95%" in text and "10 of 10 such" in " ".join(text.split())
    pictures = [line.split("(")[1][:-1] for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 9
    for name in pictures:
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    assert not [line for line in text.splitlines() if line[:1] not in "| " and len(line) > 100]


def test_the_summary_is_mean_and_deviation_of_the_last_epoch(made):
    folder, result = made
    for arm in result["arms"]:
        accuracies = []
        for seed in range(2):
            paths = [folder / f"seed-{seed}" / "networks" / f"{arm}-{i}.npz" for i in range(5)]
            found = [storage.load(path, kind="network", version=1)[1] for path in paths]
            accuracies.append([f["history"]["test_accuracy"][-1] for f in found])
        assert result["summary"][arm]["mean"] == {
            "mean": np.mean(np.mean(accuracies, 1)), "std": np.std(np.mean(accuracies, 1), ddof=1),
        }  # fmt: skip
        for i, task in enumerate(result["summary"][arm]["tasks"]):
            column = np.array(accuracies)[:, i]
            assert task == {"mean": np.mean(column), "std": np.std(column, ddof=1)}


def test_the_papers_cnn_is_a_constant_and_the_repaired_one_is_not(made):
    _, result = made
    for seed in result["seeds"]:
        for task in seed["tasks"]["cnn-paper"]:
            assert task["constant"] and sorted(task["predicted"])[0] == 0
            assert task["accuracy"] == task["shares"][int(np.argmax(task["predicted"]))]
        assert not any(task["constant"] for task in seed["tasks"]["cnn"])


def test_seeds_have_autoencoders_of_their_own(made):
    folder, _ = made
    codes = [load_codes(folder / f"seed-{seed}" / "codes-test.npz").words for seed in range(2)]
    assert (codes[0] != codes[1]).any()


def test_codes_are_those_of_the_autoencoder_and_take_5_bytes(made):
    folder, _ = made
    vae = BinaryVAE((1, 8, 8), 40)
    training.load_weights(folder / "seed-0" / "vae.npz", vae)
    for name, part in zip(("train", "test"), datasets.load("digits"), strict=True):
        part = part[:300]
        path = folder / "seed-0" / f"codes-{name}.npz"
        found = load_codes(path)
        assert_identical(found.words, vae.encode_packed(part.images / np.float32(16)))
        assert_identical(found.labels, part.labels)
        assert 300 * 5 < path.stat().st_size < 300 * (5 + 8) + 2000  # labels are int64


def test_compiled_heads_predict_the_same_for_all_images(made):
    folder, result = made
    for seed in result["seeds"]:
        assert len(seed["compiled"]) == 5 + 2 + 1
        for name, found in seed["compiled"].items():
            count = found["images"]
            assert found["identical_predictions"] == found["identical_logits"] == count == 300
            assert name == "whole" or found["bits_only"]
    head = deploy.PackedModel.load(folder / "seed-1" / "head-task-2.npz")
    codes = load_codes(folder / "seed-1" / "codes-test.npz")
    rows = np.isin(codes.labels, (4, 5))
    right = head.predict_packed(codes.words[rows]).argmax(1) == codes.labels[rows] - 4
    assert right.mean() == result["seeds"][1]["tasks"]["hybnn"][2]["accuracy"]


def test_a_float_layer_on_the_way_is_noticed():
    rng = np.random.default_rng(0)
    words = bits.pack(rng.choice(np.float32([-1, 1]), (5, 40)))
    real = nn.Sequential(
        nn.BinaryLinear(40, 8, input_quantizer="ste_sign"), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Linear(8, 6), nn.BinaryLinear(6, 2, input_quantizer="ste_sign"), nn.BatchNorm1d(2),
    ).eval()  # fmt: skip
    assert not is_bits_only(deploy.compile(real, (40,)), words)
    assert is_bits_only(deploy.compile(BinaryMLP(40, 8, 2).eval(), (40,)), words)


# ---------------------------------------------------------------------------------- interruptions


def test_a_complete_run_is_not_computed_again(made, monkeypatch):
    folder, result = made
    files = [p for p in folder.rglob("*") if p.suffix in (".npz", ".json") and p.parent != folder]
    before = {path: path.stat().st_mtime_ns for path in files}

    def fail(*arguments, **options):
        raise AssertionError("computed again")

    for place, name in (
        (training, "fit"), (BinaryVAE, "loss"), (BinaryVAE, "encode_packed"), (deploy, "compile"),
        (training.Checkpoint, "save"), (storage, "save"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, fail)
    again = run(folder, seeds=2)
    assert figures(again) == figures(result) and again["times"] == result["times"]
    assert {path: path.stat().st_mtime_ns for path in files} == before


KILLED = """
import os, signal, sys
from tinybnn import storage, training
from tinybnn.experiments import hybnn

kind, count = sys.argv[2], int(sys.argv[3])
save, saved = storage.save, []

def save_and_die(path, arrays, **options):
    size = save(path, arrays, **options)
    saved.append(options["kind"])
    if saved.count(kind) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return size

storage.save = save_and_die
config = hybnn.Config(bits=40, epochs_vae=3, epochs=3, epochs_cnn=1, epochs_all=1, limit=300)
hybnn.run(sys.argv[1], config, seeds=1, progress=False)
"""


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"), [("checkpoint", 2), ("codes", 1), ("network", 7)],
    ids=["in phase 1", "in phase 2", "in phase 3"],
)  # fmt: skip
def test_a_killed_run_goes_on_where_it_was(made, tmp_path, monkeypatch, kind, count):
    """SIGKILL right after a file; the next call gives the same weights and figures."""
    folder, result = made
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "run"), kind, str(count)]
    done = subprocess.run(arguments, capture_output=True, timeout=1200, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.npz")}
    if kind == "checkpoint":
        history = training.load_weights(tmp_path / "run/seed-0/vae.npz", BinaryVAE((1, 8, 8), 40))
        assert len(history) == count
    save, saved = storage.save, []
    monkeypatch.setattr(
        storage, "save", lambda *a, kind, **more: saved.append(kind) or save(*a, kind=kind, **more)
    )
    again = run(tmp_path / "run", seeds=1)
    complete = {"checkpoint": 3, "codes": 2, "network": 41}  # epochs; sets; networks
    phases = list(complete)
    for i, phase in enumerate(phases):
        before = complete[phase] if i < phases.index(kind) else count if phase == kind else 0
        assert saved.count(phase) == complete[phase] - before
    assert figures(again["seeds"]) == figures(result["seeds"][:1])
    kept = [p for p in left if kind != "checkpoint" or p.name != "vae.npz"]
    assert all(p.stat().st_mtime_ns == left[p] for p in kept)
    paths = [p.relative_to(folder) for p in (folder / "seed-0").rglob("*.npz")]
    assert len(paths) == 52
    for path in paths:
        header = storage.read_header(folder / path)
        arrays = [
            storage.load(f / path, kind=header["kind"], version=header["version"])[0]
            for f in (folder, tmp_path / "run")
        ]
        assert {k: v.tobytes() for k, v in arrays[0].items()} == {
            k: v.tobytes() for k, v in arrays[1].items()
        }, path


def test_another_run_in_the_same_folder_is_refused(made, tmp_path):
    folder, _ = made
    with pytest.raises(ValueError, match="is a run with bits=40, not bits=48"):
        run(folder, dataclasses.replace(SMALL, bits=48))
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds files, but no run"):
        run(tmp_path)


# ------------------------------------------------------------------------------- phases 1 and 2


def trained_vae(path, images, epochs=2, estimator="sign"):
    rng = np.random.default_rng(0)
    vae = BinaryVAE((1, 8, 8), 24, estimator, rng=rng)
    history = hybnn.features.train_vae(path, vae, images, epochs=epochs, rng=rng, progress=False)
    return vae, history


def test_representation_learning_reads_no_labels(tmp_path):
    images, _ = hybnn.features.load("digits", 200)
    other = dataclasses.replace(images, labels=images.labels[::-1].copy())
    first, second = (trained_vae(tmp_path / str(i), d)[0] for i, d in enumerate((images, other)))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert_identical(a.data, b.data)


def test_training_makes_the_reconstruction_better(tmp_path):
    images, _ = hybnn.features.load("digits", 400)
    vae, history = trained_vae(tmp_path / "vae", images, epochs=5)
    assert history["reconstruction"][-1] < history["reconstruction"][0] - 5
    assert not vae.training
    nats, wrong = hybnn.codes.reconstruction(vae, images)
    x = images.images / np.float32(16)
    decoded = vae.decode(vae.encode(x)).astype(np.float64)
    expected = -(x * np.log(decoded) + (1 - x) * np.log(1 - decoded)).sum((1, 2, 3)).mean()
    assert nats == pytest.approx(expected, rel=1e-5)
    assert wrong == pytest.approx(np.mean((decoded >= 0.5) != (x >= 0.5)))


def test_the_weight_of_the_rate(tmp_path):
    images, _ = hybnn.features.load("digits", 300)
    rates = []
    for weight in (0.0, 3.0):
        rng = np.random.default_rng(0)
        vae = BinaryVAE((1, 8, 8), 24, "straight_through", rng=rng)
        history = hybnn.features.train_vae(
            tmp_path / str(weight), vae, images, epochs=8, rate_weight=weight, rng=rng,
            progress=False,
        )  # fmt: skip
        rates.append(history["rate"][-1])
    assert rates[0] > 1.5 * rates[1]


def test_a_gumbel_softmax_is_cooled(tmp_path):
    images, _ = hybnn.features.load("digits", 200)
    vae, _ = trained_vae(tmp_path / "vae", images, estimator="gumbel_softmax")
    assert vae.estimator.temperature == 0.5


def test_a_loss_that_is_not_finite_ends_training(tmp_path, monkeypatch):
    images, _ = hybnn.features.load("digits", 100)
    rate = latents.Sign.rate
    monkeypatch.setattr(latents.Sign, "rate", lambda *arguments: rate(*arguments) * np.nan)
    with pytest.raises(FloatingPointError, match="train_vae: the loss became nan"):
        trained_vae(tmp_path / "vae", images)


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


def test_a_folder_of_idx_files_is_a_data_set(tmp_path):
    rng = np.random.default_rng(0)
    for part, count, most in (("train", 30, 3), ("t10k", 20, 4)):
        ending = ".gz" if part == "train" else ""
        write_idx(
            tmp_path / f"{part}-images-idx3-ubyte{ending}", rng.integers(0, 256, (count, 9, 11))
        )
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{ending}", np.arange(count) % most)
    train, test = hybnn.features.load(str(tmp_path))
    assert train.images.shape == (30, 1, 9, 11) and test.images.shape == (20, 1, 9, 11)
    assert train.classes == test.classes == ("0", "1", "2", "3")
    assert [len(part) for part in hybnn.features.load(str(tmp_path), 7)] == [7, 7]
    with pytest.raises(ValueError, match="unknown dataset 'nothing'"):
        hybnn.features.load("nothing")


def test_features_that_were_not_learned():
    images, _ = hybnn.features.load("digits", 300)
    x = images.images.reshape(300, 64) / np.float32(16)
    found = hybnn.features.extract(images, hybnn.features.thresholded_pixels, 70)
    assert_identical(bits.unpack(found, 64), np.where(x >= 0.5, 1, -1).astype(np.float32))
    project = hybnn.features.random_projection(images, 50, np.random.default_rng(3))
    signs = np.random.default_rng(3).choice(np.float32([-1, 1]), (64, 50))
    mean = (images.images.reshape(300, 64).mean(0) / 16).astype(np.float32)
    expected = np.where((x - mean) @ signs >= 0, 1, -1)
    assert_identical(bits.unpack(hybnn.features.extract(images, project), 50, np.int8),
                     expected.astype(np.int8))  # fmt: skip
    assert 0.3 < (expected > 0).mean() < 0.7


@given(st.integers(2, 50), st.integers(1, 60), st.booleans())
def test_a_loader_gives_each_code_once(count, batch_size, is_training):
    words = bits.pack(np.random.default_rng(0).choice(np.float32([-1, 1]), (count, 20)))
    labels, rng = np.arange(count), np.random.default_rng(1) if is_training else None
    loader = hybnn.networks.CodeLoader(words, 20, labels, batch_size, rng)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert all(len(x) == batch_size for x, _ in (batches if is_training else batches[:-1]))
    seen = np.concatenate([y for _, y in batches] or [labels[:0]])
    assert len(seen) == (count - count % batch_size if is_training else count)
    assert len(set(seen.tolist())) == len(seen)
    for x, y in batches:
        assert_identical(x, bits.unpack(words[y], 20))
    if not is_training:
        assert_identical(seen, labels)


def test_bits_are_flipped_in_training_only():
    words = bits.pack(np.ones((400, 50), np.float32))
    for rng, share in ((np.random.default_rng(0), 0.1), (None, 0.0)):
        loader = hybnn.networks.CodeLoader(words, 50, np.arange(400), 100, rng, flips=0.1)
        first, again = (np.concatenate([x for x, _ in loader]) for _ in range(2))
        assert np.all(np.abs(first) == 1)
        assert np.mean(first < 0) == pytest.approx(share, abs=0.01)
        assert (first != again).any() == (rng is not None)  # others in each epoch


# ------------------------------------------------------------------------------------- the arms


def test_the_float_twins_have_the_shapes_of_the_binary_networks():
    def shapes(model):
        return [p.shape for p in model.parameters()]

    rng = np.random.default_rng(0)
    for image in ((1, 8, 8), (3, 28, 20)):
        assert shapes(hybnn.networks.float_cnn(image, 3, rng)) == shapes(BinaryCNN(image, 3))
    assert shapes(hybnn.networks.float_mlp(200, 128, 2, rng)) == shapes(BinaryMLP(200, 128, 2))


def test_old_tasks_are_forgotten_unless_they_are_one(tmp_path):
    images, _ = hybnn.features.load("digits", 400)
    pixels = hybnn.features.extract(images, hybnn.features.thresholded_pixels)
    features = {"codes": hybnn.networks.Features(pixels, pixels, 64)}
    found = hybnn.networks.in_sequence(
        tmp_path / "a" / "net", (images, images), features, [[0, 1], [2, 3], [0, 1]], 0, 30
    )
    assert np.shape(found) == (3, 3)
    assert found[0][0] == found[0][2] > 0.95 and found[1][1] > 0.95 and found[2][0] > 0.95
    assert found[0][1] < 0.9


def test_a_sequence_is_compared_with_the_repaired_cnn(made):
    """That HyBNN stays above a constant proves nothing."""
    result = json.loads(json.dumps(made[1]))
    for seed, a, b in zip(result["seeds"], (0.5, 0.6), (0.7, 0.81), strict=True):
        seed["in_sequence"][-1], seed["in_sequence_cnn"][-1] = [a] * 5, [b] * 5
    text = "".join(report._in_sequence(result))
    [cnn] = re.findall(r"binary CNN.* after 8 / 9 .*", text)
    assert cnn.endswith("| 75.50 ± 7.78 |")
    assert "| mean of all tasks | -20.50 ± 0.71 | 0 of 2 | p = 0.016 |" in text
    del result["seeds"][-1]["in_sequence_cnn"]  # an older run's
    assert "binary CNN" not in "".join(report._in_sequence(result)[2:])


# ------------------------------------------------------------------------------------- the codes


def codes_of(n, count, seed=0):
    return np.random.default_rng(seed).choice(np.float32([-1, 1]), (n, count))


@given(st.integers(0, 2**32 - 1), st.integers(2, 130), st.integers(2, 40))
def test_statistics_of_codes(seed, count, n):
    codes = codes_of(n, count, seed)
    codes[:, 0] = 1  # a bit that says nothing
    found = hybnn.codes.statistics(bits.pack(codes), count)
    np.testing.assert_allclose(found["balance"], (codes > 0).mean(0), atol=1e-12)
    used = np.flatnonzero(codes.std(0))
    assert found["used"] == len(used) < count
    assert found["distinct"] == len({row.tobytes() for row in codes})
    expected = np.zeros((count, count))
    if len(used):
        expected[np.ix_(used, used)] = np.corrcoef(codes[:, used].T.astype(np.float64))
    np.testing.assert_allclose(found["correlation"], expected, atol=1e-5)
    if len(used) > 1:
        pairs = [abs(expected[i, j]) for i, j in itertools.combinations(used, 2)]
        assert found["mean_correlation"] == pytest.approx(np.mean(pairs), abs=1e-5)
    p = np.clip((codes > 0).mean(0, dtype=np.float64), 1e-300, 1)
    q = np.clip(1 - p, 1e-300, 1)
    assert found["entropy"] == pytest.approx(np.mean(-p * np.log2(p) - q * np.log2(q)), abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 130), st.integers(1, 4))
def test_nearest_neighbours(seed, count, neighbours):
    queries, codes = codes_of(7, count, seed), codes_of(30, count, seed + 1)
    rows, distances = hybnn.codes.nearest(
        bits.pack(queries), bits.pack(codes), count, neighbours, block=3
    )
    every = (queries[:, None] != codes).sum(2)
    assert_identical(rows, np.argsort(every, 1, kind="stable")[:, :neighbours])
    assert_identical(distances, np.sort(every, 1)[:, :neighbours].astype(np.int64))


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 12))
def test_a_path_of_flips(seed, count, steps):
    start, end = codes_of(2, count, seed)
    path = hybnn.codes.flip_path(start, end, steps, np.random.default_rng(seed))
    assert_identical(path[0], start)
    assert_identical(path[-1], end)
    distance = (path != start).sum(1)
    assert np.all(np.diff(distance) >= 0) and np.all(np.abs(path) == 1)
    assert_identical(distance + (path != end).sum(1), np.full(steps, distance[-1]))
    assert np.ptp(np.diff(distance)) <= 1


# ------------------------------------------------------------------------------------- the report


def with_accuracies(result, **accuracies):
    """A result whose arms have some accuracies: one for each seed, in all tasks."""
    result = json.loads(json.dumps(result))
    for arm, values in accuracies.items():
        for seed, value in zip(result["seeds"], values, strict=True):
            for task in seed["tasks"][arm]:
                task["accuracy"] = value
    return result


def test_baselines_are_compared_seed_by_seed(made):
    """Seeds that all point in one direction give a small p, however close the means are."""
    result = with_accuracies(made[1], hybnn=[0.97, 0.9], pixels=[0.9711, 0.901], cnn=[0.9, 0.97])
    _, table, note, *_ = report._tasks(result)
    assert "| -0.11 ± 0.01 | 0 of 2 | p = 0.03 |" in table
    assert "| +0.00 ± 9.90 | 1 of 2 | p = 1 |" in table and note == pages.PAIRED
    _, table, *_ = report._tasks(result | {"seeds": result["seeds"][:1]})
    assert "| -0.11 | 0 of 1 |  |" in table


def test_bits_that_are_flipped_without_a_word(made):
    """What helps a head beyond the paper's recipe stands in the report."""
    text = " ".join((made[0] / "report.md").read_text(encoding="utf-8").split())
    assert "heads 5% of the input bits are flipped at random" in text
    assert "batch norm before the sign" in text and "which the paper calls regular" in text


# ------------------------------------------------------------------------------------- the bounds


def test_bounds_of_estimators_after_equal_work(tmp_path):
    config = bounds.Config(bits=12, epochs=4, samples=3, limit=150)
    names = ["straight_through", "disarm", "sign"]
    say = []
    result = bounds.run(tmp_path / "run", config, arms=names[:2], progress=False, say=say.append)
    assert [row["codes"] * row["epochs"] for row in result["rows"]] == [4, 4]
    result = bounds.run(tmp_path / "run", config, arms=names, progress=False, say=say.append)
    rows = {row["estimator"]: row for row in result["rows"]}
    assert rows.keys() == {*names}
    for row in (rows["straight_through"], rows["disarm"]):
        assert 0 < row["best"] < row["bound"] < 64 * np.log(2)
        assert 0 < row["bound_train"] < 64 * np.log(2)
    sign = rows["sign"]
    assert sign["best"] == pytest.approx(sign["bound"]) and sign["rate"] == pytest.approx(
        12 * np.log(2)
    )
    text = (tmp_path / "run" / "report.md").read_text()
    assert "64 - 512 - 256 - 12" in text and "116.0" in text and result["command"] in text
    # The published bounds are of many codes: not for the column of one code.
    assert "| bound, one code | 3 codes | published, 1,000 codes, MNIST |" in text
    assert (tmp_path / "run" / "bounds.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="is a run with bits=12, not bits=13"):
        bounds.run(tmp_path / "run", dataclasses.replace(config, bits=13), arms=names)


def test_pixels_are_drawn_once_with_their_brightness():
    images = datasets.from_arrays(
        np.tile(np.uint8([0, 51, 204, 255]), (4000, 1))[:, None], np.zeros(4000, int)
    )
    found = bounds.binarized(images, np.random.default_rng(0))
    assert found.maximum == 1 and found.images.dtype == np.uint8
    mean = found.images.reshape(4000, 4).mean(0)
    assert mean[0] == 0 and mean[3] == 1
    np.testing.assert_allclose(mean, [0, 0.2, 0.8, 1], atol=0.03)
    again = bounds.binarized(images, np.random.default_rng(0))
    assert_identical(again.images, found.images)


# ------------------------------------------------------------------------------ the command line


def parsed(command):
    return cli._parser().parse_args(command.split()[1:])


@pytest.mark.parametrize(
    ("experiment", "config"),
    [
        (hybnn, SMALL),
        (hybnn, hybnn.Config()),
        (hybnn, hybnn.Config("mnist", "fashion-mnist", "disarm", 0.0, 9, 5, 6, 7, 8, limit=1000)),
        (bounds, bounds.Config()),
        (bounds, bounds.Config("mnist", 20, 3, 4, 2e-3, limit=600)),
    ],
)
def test_the_command_of_a_run_gives_its_configuration(experiment, config):
    options = parsed(experiment.EXPERIMENT.command(config, 4))
    assert reproduce._config(options, experiment.EXPERIMENT) == config
    assert options.seeds == 4


def test_quick_is_overruled_by_what_was_chosen():
    options = parsed("tinybnn reproduce hybnn --quick --epochs 9")
    config = reproduce._config(options, hybnn.EXPERIMENT)
    assert config == hybnn.Config(**{**hybnn.EXPERIMENT.quick, "epochs": 9})
    folder = reproduce._folder(options, config)
    assert folder == os.path.join("runs", "hybnn-digits-quick")


@pytest.mark.parametrize("name", ["hybnn", "hybnn-bounds"])
def test_the_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit):
        cli.main(["reproduce", name, "--help"])
    text = capsys.readouterr().out
    assert f"tinybnn reproduce {name} --dataset mnist" in text
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("name", ["hybnn", "hybnn-bounds"])
def test_the_command_line(tmp_path, name):
    small = ["--quick", "--limit", "150", "--bits", "16", "--threads", "1", "--quiet"]
    if name == "hybnn-bounds":
        small += ["--estimators", "sign,gumbel_softmax"]
    code = cli.main(["reproduce", name, *small, "--out", str(tmp_path / "run")])
    assert code == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["name"] == name
    code = cli.main(["reproduce", name, *small, "--bits", "17", "--out", str(tmp_path / "run")])
    assert code == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hybnn --dataset nothing", "unknown data set 'nothing'"),
        ("hybnn --estimator none", "unknown 'none', choose from sign"),
        ("hybnn --bits 0", "expects a whole number >= 1, got '0'"),
        ("hybnn-bounds --estimators sign,none", "argument --estimators: unknown 'none'"),
    ],
)
def test_wrong_options_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["reproduce", *words.split()])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_images_of_two_shapes_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (30, 9, 9)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(30) % 4)
    with pytest.raises(ValueError, match=r"must have the shape \(1, 8, 8\) of the tasks' images"):
        run(tmp_path / "run", dataclasses.replace(SMALL, vae_dataset=str(tmp_path)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (hybnn.Config, {"bits": 0}), (hybnn.Config, {"epochs": 0}),
        (hybnn.Config, {"rate_weight": -1}),
        (hybnn.Config, {"estimator": "x"}), (bounds.Config, {"samples": 0}),
        (bounds.Config, {"lr": 0.0}),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be(make, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)


# ------------------------------------------------------------------------------------- pictures


def drawn(draw):
    figure = plots.figure(figsize=(4, 3))
    axes = figure.subplots()
    draw(axes)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    assert file.getvalue()[:4] == b"\x89PNG"
    return axes


@pytest.mark.parametrize("channels", [1, 3])
def test_images_side_by_side(channels):
    images = np.linspace(0, 1, 5 * channels * 12, dtype=np.float32).reshape(5, channels, 3, 4)
    axes = drawn(lambda axes: plots.images(images, columns=2, title="five", ax=axes))
    sheet = np.asarray(axes.get_images()[0].get_array())
    assert sheet.shape[:2] == (3 * 4, 2 * 5 - 1)
    found = sheet.reshape(12, 9, channels)[4:7, 5:9]
    assert_identical(found, images[3].transpose(1, 2, 0).astype(found.dtype))
    labels = ["a", "b", "c", "d", "e"]
    axes = drawn(lambda axes: plots.images(images, 2, labels=labels, ax=axes))
    assert [text.get_text() for text in axes.texts] == labels


def test_heat_maps():
    array = np.array([[0, 0.25], [0.5, 1]])
    axes = drawn(lambda axes: plots.heat_map(array, ["a", "b"], ["c", "d"], "x", "y", ax=axes))
    assert [t.get_text() for t in axes.texts] == ["0.00", "0.25", "0.50", "1.00"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["c", "d"]
    assert not drawn(lambda axes: plots.heat_map(array, limits=(-1, 1), ax=axes)).texts


def test_curves_of_different_lengths():
    lines = {"a": [3.0, 2.0, 1.0], "b": [1.0]}
    axes = drawn(lambda axes: plots.curves(lines, "loss", ax=axes))
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[1, 2, 3], [1]]
