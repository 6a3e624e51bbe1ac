"""BD-Net's experiments: recipes, runs that go on, statistics, Figure 4; mobile rows of bench."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_deploy import randomize

from tinybnn import analysis, bench, cli, datasets, deploy, models, nn, optim, storage, training
from tinybnn import functional as F
from tinybnn.bench import models as bench_models
from tinybnn.bench import peers
from tinybnn.bench.rounds import Settings
from tinybnn.experiments import bdnet, runner
from tinybnn.experiments import report as pages
from tinybnn.experiments.bdnet import fronts
from tinybnn.experiments.bdnet.arms import TRAINING
from tinybnn.kernels.machine.threads import num_threads
from tinybnn.kernels.training import float_pooling
from tinybnn.tensor import Tensor
from tinybnn.testing import assert_identical

SMALL = bdnet.Config(dataset="digits", width=0.1, epochs=2, batch_size=16, lr=0.01, limit=64)
posix = pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")


def run(folder, config=SMALL, experiment="bdnet-ablation", **options):
    return bdnet.run(experiment, folder, config, progress=False, say=lambda text: None, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small ablation with two seeds, and its result."""
    folder = tmp_path_factory.mktemp("bdnet") / "run"
    return folder, run(folder, seeds=2, note="upscaled")


@pytest.fixture(scope="module")
def digits():
    return bdnet.load("digits", 64)


def small(name="both", config=SMALL, seed=0):
    """A network of the ablation for digits."""
    return bdnet.ABLATION[name].network(config, (1, 32, 32), 10, np.random.default_rng(seed))


def figures(result):
    """A result without what differs from run to run: times, dates, the command."""
    if isinstance(result, dict):
        left_out = ("seconds", "date", "latency", "command")
        return {k: figures(v) for k, v in result.items() if k not in left_out}
    return [figures(v) for v in result] if isinstance(result, list) else result


# ------------------------------------------------------------------------------ what a run leaves


def test_a_run_leaves_figures_tables_and_pictures(made):
    folder, result = made
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert [(row["name"], row["seed"]) for row in result["runs"]] == [
        (name, seed) for seed in range(2) for name in ("naive", "dual", "pre-bn", "both")
    ]
    for row in result["runs"]:
        path = folder / f"{row['name']}-{row['seed']}" / "result.json"
        assert json.loads(path.read_text()) == json.loads(json.dumps(row))
        assert row["identical_logits"] == row["test_images"] == 64
        assert len(row["history"]) == row["epochs"] == 2
        assert row["machine"]["processor"] and row["date"]
        assert row["command"].startswith("tinybnn reproduce bdnet-ablation --seeds 2 --dataset")
    text = (folder / "report.md").read_text()
    assert "digits (upscaled)" in text and "2 seeds: 64 images" in " ".join(text.split())
    assert "## What differs from the paper" in text and "- images: digits (upscaled);" in text
    pictures = [line.split("(")[1][:-1] for line in text.splitlines() if line.startswith("![")]
    assert pictures == ["accuracy.png", "layers.png", "levels.png"]
    for name in pictures:
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    assert not [line for line in text.splitlines() if line[:1] not in "| " and len(line) > 100]


def test_accuracy_is_that_of_the_last_epoch_on_the_test_set(made, digits):
    folder, result = made
    for row in result["runs"][::3]:
        model = small(row["name"], seed=row["seed"])
        training.load_weights(folder / f"{row['name']}-{row['seed']}" / "step-1.npz", model)
        evaluated = training.evaluate(model, datasets.DataLoader(digits[1], batch_size=256))
        assert evaluated == {"loss": row["test_loss"], "accuracy": row["test_accuracy"]}


def test_operations_are_those_of_the_networks(made):
    _, result = made
    ops = {row["name"]: (row["bops"], row["flops"]) for row in result["runs"]}
    # 9 taps for each pixel of each of the 13 depth-wise layers once more.
    more = ops["dual"][0] - ops["naive"][0]
    channels = [models.blocks.scaled(c, 0.1) for c in (32, 64, 128, 128, 256, 256, 512)]
    channels += [models.blocks.scaled(512, 0.1)] * 5 + [models.blocks.scaled(1024, 0.1)]
    sizes = (32, 16, 16, 8, 8, 4, 4, 4, 4, 4, 4, 2, 2)
    assert more == sum(9 * c * n * n for c, n in zip(channels, sizes, strict=True))
    assert ops["both"] == ops["dual"] and ops["pre-bn"] == ops["naive"]


def test_seeds_are_paired(made):
    _, result = made
    accuracy = {(row["name"], row["seed"]): row["test_accuracy"] for row in result["runs"]}
    for name, entry in result["summary"].items():
        own = np.array([accuracy[name, seed] for seed in range(2)])
        first = np.array([accuracy["naive", seed] for seed in range(2)])
        assert entry["accuracies"] == own.tolist()
        assert (entry["mean"], entry["std"]) == (own.mean(), own.std(ddof=1))
        assert entry["difference"] == (own - first).mean()
        assert entry["difference_std"] == (own - first).std(ddof=1)


def test_gains_seed_by_seed(made):
    result = json.loads(json.dumps(made[1]))
    values = {"naive": (0.5, 0.5), "dual": (0.6, 0.6), "pre-bn": (0.7, 0.7), "both": (0.8, 0.81)}
    for row in result["runs"]:
        row["test_accuracy"] = values[row["name"]][row["seed"]]
    result["summary"] = bdnet.experiment.summary(result)
    _, table, note = bdnet.report.comparisons(result)
    both = "| both: BD-Net-A against naive | +30.50 ± 0.71 | 2 of 2 | p = 0.01 | +3.34 |"
    assert both in table and note == pages.PAIRED


@pytest.mark.parametrize(
    ("base", "said", "not_said"),
    [
        ("adabin", "BD-Net-A against MobileNet V1, AdaBin | +1.00 | 1 of 1 |  | +3.27 |",
         "against MobileNet V1, ReActNet"),
        ("reactnet", "BD-Net-A against MobileNet V1, ReActNet | +2.00 | 1 of 1 |  | +7.33 |",
         "against MobileNet V1, AdaBin"),
    ],
)  # fmt: skip
def test_comparisons_of_table_2(base, said, not_said):
    """Networks are compared with the first of their architecture, BD-Net with its base."""
    config, arms = bdnet.Config(base=base), bdnet.TABLE_2
    result = {
        "name": "bdnet-table2",
        "config": vars(config),
        "arms": {name: arm.title for name, arm in arms.items()},
        "paper": {name: arm.published(config) for name, arm in arms.items()},
        "against": bdnet.experiment.first_of_its_kind(arms),
        "runs": [
            {"name": name, "test_accuracy": 0.5 + 0.01 * i} for i, name in enumerate(arms)
        ],
    }  # fmt: skip
    result["summary"] = bdnet.experiment.summary(result)
    _, text, _ = bdnet.report.comparisons(result)
    assert said in text and not_said not in text
    pair = "MobileNet V3, ReActNet, broadcast against MobileNet V3, ReActNet"
    assert f"| {pair} | +1.00 | 1 of 1 |  | +67.13 |" in text
    assert text.count(" against ") == 6
    gains = {name: entry["difference"] for name, entry in result["summary"].items()}
    assert gains["shufflenet-reactnet"] == gains["mobilenet-v3-reactnet"] == gains["float"] == 0
    assert gains["shufflenet-bdnet-b-br"] == pytest.approx(0.02)


def test_networks_have_the_base_that_the_paper_has():
    config, rng = bdnet.Config(base="adabin", width=0.25), np.random.default_rng(0)
    for name, arm in bdnet.TABLE_2.items():
        model = arm.network(config, (3, 32, 32), 10, rng)
        is_adabin = any(isinstance(m, nn.AdaBinConv2d) for m in model.modules())
        assert is_adabin == (name in ("adabin", "bdnet-a", "bdnet-b")), name


def test_all_networks_of_a_seed_see_the_same_images(digits, tmp_path, monkeypatch):
    seen = []

    def fit(model, loader, **options):
        seen.append([x for x, _ in loader])
        return training.History([{"seconds": 0.0}])

    monkeypatch.setattr(training, "fit", fit)
    for name, seed in (("naive", 0), ("both", 0), ("both", 1)):
        bdnet.training.fit(tmp_path / "x", small(name), None, digits[0], SMALL, 1, [seed, 1])
    assert len(seen[0]) == 64 // 16
    for a, b, c in zip(*seen, strict=True):
        assert_identical(a, b)
        assert (a != c).any()


# ------------------------------------------------------------------------------------ equal costs


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=200), st.integers(1, 300), st.integers(0, 400)
)
def test_the_nearest_width_of_all(rises, slope, target):
    """Costs rise in steps, as those of channels that are multiples of 8 do."""
    heights = np.cumsum([1, *rises])

    def cost(width):
        steps = round(width / fronts.STEP)
        assert steps * fronts.STEP == width
        beyond = max(0, steps - len(heights) + 1)
        return heights[min(steps, len(heights) - 1)] + slope * beyond

    width, found = fronts.nearest_width(cost, target)
    assert found == cost(width)
    least = min(abs(cost(i * fronts.STEP) - target) for i in range(1, 700))
    assert abs(found - target) == least


@pytest.mark.parametrize("match", ["ops", "bytes"])
def test_networks_of_equal_cost(match):
    """Within the tolerance, and no wider multiple of channels would do."""
    config = fronts.Config(match=match)
    task = config, (3, 32, 32), 10
    target = fronts.cost_of(fronts.ARMS["adabin"], *task)
    for name in ("adabin", "bdnet-b"):
        row = fronts._matched(fronts.ARMS[name], target, *task)
        arm = fronts._resized(fronts.ARMS[name], row["width"], row["multiple"])
        assert fronts.cost_of(arm, *task) == row["cost"]
        assert abs(row["cost"] / target - 1) <= fronts.TOLERANCE[match]
    if match == "ops":  # its real layers grow in large steps
        assert row["multiple"] == 4


def test_arms_train_with_their_own_settings(digits, tmp_path):
    config = dataclasses.replace(SMALL, epochs=2)
    steps = {}
    for name in ("one-step", "two-step"):
        row = bdnet.training.train_arm(
            tmp_path / name, TRAINING[name], config, 0, digits, progress=False
        )
        steps[name] = [epoch["step"] for epoch in row["history"]]
    assert steps == {"one-step": [1, 1], "two-step": [1, 2]}


# ---------------------------------------------------------------------------------- interruptions


def test_a_complete_run_is_not_computed_again(made, monkeypatch):
    folder, result = made

    def fail(*arguments, **options):
        raise AssertionError("computed again")

    for place, name in (
        (training, "fit"),
        (deploy, "compile"),
        (bdnet.training, "layer_statistics"),
    ):
        monkeypatch.setattr(place, name, fail)
    again = run(folder, seeds=2, note="upscaled")
    assert figures(again) == figures(result) and again["latency"] == result["latency"]


def test_networks_may_be_added_by_another_call(made, tmp_path):
    _, result = made
    part = run(tmp_path / "run", seeds=1, arms=["both"])
    assert "bdnet-ablation --seeds 1 --arms both --" in part["command"]
    assert [row["name"] for row in part["runs"]] == ["both"]
    assert "The order" not in (tmp_path / "run" / "report.md").read_text()
    more = run(tmp_path / "run", seeds=1, arms=["naive", "both"])
    assert more["runs"][1] == part["runs"][0] and [*more["latency"]] == ["naive", "both"]
    again = run(tmp_path / "run", seeds=1, arms=["both"])
    assert again["latency"] == more["latency"]
    assert figures(part["runs"][0]) == figures(
        next(row for row in result["runs"] if row["name"] == "both")
    )


def test_what_is_refused(made, tmp_path):
    folder, _ = made
    with pytest.raises(ValueError, match=r"is a run with width=0\.1, not width=0\.2"):
        run(folder, dataclasses.replace(SMALL, width=0.2))
    with pytest.raises(ValueError, match="unknown arm 'botch', choose from naive, dual"):
        run(tmp_path, arms=["botch"])
    with pytest.raises(ValueError, match="a batch of 65 is more than the 64 training images"):
        run(tmp_path, dataclasses.replace(SMALL, batch_size=65))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"epochs": 1, "two_step": True}, "epochs must be >= 2, got 1"),
        ({"batch_size": 1}, "batch_size must be >= 2"),
        ({"width": 0.0}, "width must be positive"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"base": "xnor"}, "base must be 'reactnet' or 'adabin', got 'xnor'"),
        ({"schedule": "step"}, "schedule must be 'cosine' or 'linear', got 'step'"),
        ({"distill": 1.5}, r"distill must lie in \[0, 1\], got 1.5"),
    ],
)
def test_errors_of_a_configuration(change, message):
    with pytest.raises(ValueError, match=f"Config: {message}"):
        bdnet.Config(**change)


KILLED = """
import os, signal, sys
from tinybnn import storage
from tinybnn.experiments import bdnet
from tinybnn.kernels.training import float_pooling
from tinybnn.kernels.machine.threads import num_threads

save, saved = storage.save, []

def save_and_die(path, arrays, **options):
    size = save(path, arrays, **options)
    saved.append(path)
    if len(saved) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return size

storage.save = save_and_die
config = bdnet.Config(
    dataset="digits", width=0.1, epochs=4, batch_size=16, lr=0.01, limit=64, base="adabin",
    two_step=True, distill=0.5,
)
bdnet.run("bdnet-ablation", sys.argv[1], config, seeds=1, arms=["both"], progress=False)
"""


@posix
@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    """SIGKILL after a checkpoint of the teacher, of either step, and between them."""
    config = dataclasses.replace(SMALL, epochs=4, base="adabin", two_step=True, distill=0.5)
    options = {"seeds": 1, "arms": ["both"]}
    whole = run(tmp_path / "whole", config, **options)
    assert [row["step"] for row in whole["runs"][0]["history"]] == [1, 1, 2, 2]
    # Files are saved in this order: of the teacher 1 + 4 checkpoints and the packed model, then for
    # each step 1 + 2 checkpoints, then the packed model.
    for count in (3, 9):
        folder = tmp_path / f"killed-{count}"
        arguments = [sys.executable, "-c", KILLED, str(folder), str(count)]
        done = subprocess.run(arguments, capture_output=True, timeout=300, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert figures(run(folder, config, **options)) == figures(whole)
        for name in ("float-0/step-1", "both-0/step-1", "both-0/step-2", "both-0/packed"):
            header = storage.read_header(folder / f"{name}.npz")
            stored = [
                storage.load(f / f"{name}.npz", kind=header["kind"], version=header["version"])[0]
                for f in (folder, tmp_path / "whole")
            ]
            assert {k: v.tobytes() for k, v in stored[0].items()} == {
                k: v.tobytes() for k, v in stored[1].items()
            }


# ---------------------------------------------------------------------------------------- recipes


def test_the_first_of_two_steps_has_real_weights_and_binary_activations():
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((2, 3, 6, 6), np.float32))
    layers = {
        "binary": nn.BinaryConv2d(3, 4, 3, padding=1, input_quantizer="approx_sign", rng=rng),
        "adabin": nn.AdaBinConv2d(3, 4, 3, padding=1, rng=rng),
    }
    for mode in (True, False):
        for name, layer in layers.items():
            layer.train(mode)
            bdnet.training.release_weights(layer)
            signs = np.where(x.data >= 0, np.float32(1), np.float32(-1))
            expected = F.conv2d(signs, layer.weight.data, None, 1, 1)
            np.testing.assert_allclose(layer(x).data, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_second_step_starts_from_the_weights_of_the_first(digits, tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, two_step=True, epochs=3)
    taken, fit = [], training.fit

    def noted(model, loader, **options):
        before = {k: v.copy() for k, v in model.state_dict().items()}
        quantizers = {
            type(m.weight_quantizer).__name__ for m in model.modules() if hasattr(m, "weight")
            and hasattr(m, "weight_quantizer")
        }  # fmt: skip
        history = fit(model, loader, **options)
        after = {k: v.copy() for k, v in model.state_dict().items()}
        taken.append((before, after, quantizers, options["epochs"]))
        return history

    monkeypatch.setattr(training, "fit", noted)
    row = bdnet.training.train_arm(
        tmp_path / "both", bdnet.ABLATION["both"], config, 0, digits, False
    )
    (_, first, real, one), (second, last, binary, two) = taken
    assert (one, two) == (1, 2) and row["epochs"] == 3
    assert real == {"NoneType"} and "NoneType" not in binary
    for name, array in first.items():
        assert_identical(second[name], array)
    assert any((last[name] != array).any() for name, array in second.items())


def test_a_key_that_is_dropped_at_the_hand_over_is_an_error():
    first, second = small("dual"), small("naive", seed=1)
    before = {k: v.copy() for k, v in second.state_dict().items()}
    with pytest.raises(KeyError, match=r"has no place for .*branches\.1"):
        bdnet.training.hand_over(first, second)
    with pytest.raises(KeyError, match=r"misses .*branches\.1"):
        bdnet.training.hand_over(second, first)
    with pytest.raises(ValueError, match="has shape"):
        bdnet.training.hand_over(small("naive", dataclasses.replace(SMALL, width=0.2)), second)
    for name, array in second.state_dict().items():
        assert_identical(array, before[name])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_distillation(share):
    rng = np.random.default_rng(0)
    student, teacher = nn.Linear(5, 3, rng=rng), nn.Sequential(nn.Linear(5, 3, rng=rng))
    both = bdnet.training.Distilled(student, teacher, share).train()
    x, labels = Tensor(rng.standard_normal((7, 5), np.float32)), rng.integers(0, 3, 7)
    logits = both(x)
    loss = both.loss(logits, labels)
    said = F.softmax(teacher(x), 1).data
    log_p = np.log(F.softmax(student(x), 1).data.astype(np.float64))
    expected = -(share * said * log_p).sum(1)
    expected -= (1 - share) * log_p[np.arange(7), labels]
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-5)
    loss.backward()
    assert student.weight.grad is not None and teacher[0].weight.grad is None
    assert not teacher.training
    both.eval()
    assert_identical(both(x).data, student(x).data)


def test_a_teacher_is_trained_once_and_left_alone(digits, tmp_path):
    config = dataclasses.replace(SMALL, distill=1.0, epochs=1)
    arms = bdnet.ABLATION
    for name in ("naive", "both"):
        bdnet.training.train_arm(tmp_path / f"{name}-0", arms[name], config, 0, digits, False)
        checkpoint = (tmp_path / "float-0" / "step-1.npz").stat().st_mtime_ns
        if name == "naive":
            before = checkpoint
    assert checkpoint == before
    teacher = bdnet.training._teacher(tmp_path, config, 0, digits, False)
    arrays, _ = storage.load(tmp_path / "both-0" / "step-1.npz", kind="checkpoint", version=2)
    for name, array in teacher.state_dict().items():
        assert_identical(arrays[f"model.teacher.{name}"], array)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_end_at_zero_and_ede_sharpens(digits, tmp_path, monkeypatch, schedule):
    config = dataclasses.replace(SMALL, base="adabin", schedule=schedule, epochs=1)
    model, rates, step = small("both", config), [], optim.Adam.step

    def noted(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(optim.Adam, "step", noted)
    bdnet.training.fit(tmp_path / "step.npz", model, None, digits[0], config, 1, 0, progress=False)
    progress = np.arange(4) / 4
    expected = 1 - progress if schedule == "linear" else (1 + np.cos(np.pi * progress)) / 2
    assert rates == pytest.approx(0.01 * expected)
    slopes = {m.weight_quantizer.t for m in model.modules() if isinstance(m, nn.AdaBinConv2d)}
    assert len(slopes) == 1 and slopes.pop() == pytest.approx(10.0)


# -------------------------------------------------------------------------------------- statistics


def test_statistics_are_those_of_the_batches(digits):
    model = small("both").eval()
    batches = bdnet.instability.first_batches(digits[0], size=16)
    before = {k: v.copy() for k, v in model.state_dict().items()}
    rows = bdnet.layer_statistics(model, batches)
    assert len(batches) == 4 and len(rows) == 13
    assert {row["layer"] for row in rows} == {str(i) for i in range(1, 26, 2)}
    assert all(row["binary"] and row["groups"] == row["channels"] for row in rows)
    assert not model.training
    for name, array in model.state_dict().items():
        assert_identical(array, before[name])
    # The third layer with many taps by hand: what its batch norm reads, and the gradients.
    path = int(rows[2]["layer"])
    model.train()
    variances, gradients = [], []
    for x, labels in batches:
        model.zero_grad()
        y = model[:path](Tensor(x))
        layer = model[path]
        sums = layer.conv(y) + layer.shortcut(y)
        variances.append(sums.data.astype(np.float64).var((0, 2, 3)))
        F.cross_entropy(model[path:](y), labels).backward()
        weights = [conv.weight.grad.data.ravel() for conv in layer.conv.convolutions()]
        gradients.append(np.concatenate(weights).astype(np.float64))
    factors = np.mean([1 / np.sqrt(v + layer.norm.eps) for v in variances], 0)  # γ = 1
    mean = np.mean(variances, 0)
    assert rows[2]["variance"] == pytest.approx([mean.min(), np.median(mean), mean.max()])
    assert rows[2]["factor"] == pytest.approx([factors.min(), np.median(factors), factors.max()])
    squares = np.mean([g @ g for g in gradients])
    products = np.mean([a @ b for a, b in itertools.combinations(gradients, 2)])
    assert rows[2]["gradient"] == pytest.approx(np.mean([np.sqrt(g @ g) for g in gradients]))
    assert rows[2]["agreement"] == pytest.approx(products / squares)


def test_equal_batches_agree(digits):
    [batch, *_] = bdnet.instability.first_batches(digits[0], size=16)
    rows = bdnet.layer_statistics(small("naive"), [batch, batch, batch])
    assert [row["agreement"] for row in rows] == pytest.approx([1.0] * 13)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("reactnet", {(True, False)}),
        ("bdnet-b", {(True, True), (False, True)}),
        ("mobilenet-v3-bdnet-b-br", {(True, True), (False, True)}),
        ("float", {(False, True)}),
    ],
)
def test_statistics_of_other_networks(digits, name, kinds):
    arm = bdnet.TABLE_2[name]
    model = arm.network(SMALL, (1, 32, 32), 10, np.random.default_rng(0))
    rows = bdnet.layer_statistics(model, bdnet.instability.first_batches(digits[0], size=16)[:2])
    layers = {(row["binary"], row["groups"] == row["channels"]) for row in rows}
    assert layers == kinds


# ---------------------------------------------------------------------------------------- figure 4


def between_variance(gray, thresholds):
    """The variance between the classes, from their pixels."""
    classes = np.searchsorted(thresholds, gray, side="right")
    parts = [gray[classes == c].astype(float) for c in range(len(thresholds) + 1)]
    return sum(len(p) * (p.mean() - gray.mean()) ** 2 for p in parts if len(p)) / gray.size


@given(st.lists(st.integers(0, 9), min_size=3, max_size=30), st.integers(2, 4))
def test_otsu_finds_the_best_thresholds(pixels, levels):
    gray = np.array([pixels], np.uint8) * 20
    thresholds = bdnet.otsu(gray, levels)
    assert len(thresholds) == levels - 1 and (np.diff(thresholds) > 0).all()
    best = max(
        between_variance(gray, np.array(t) * 20)
        for t in itertools.combinations(range(1, 13), levels - 1)
    )
    assert between_variance(gray, thresholds) == pytest.approx(best, abs=1e-9)


def test_levels_of_an_image():
    gray = np.array([[0, 10, 20, 100, 110, 240, 255]], np.uint8)
    assert bdnet.to_levels(gray, 2).tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert bdnet.to_levels(gray, 3).tolist() == [[0, 0, 0, 0.5, 0.5, 1, 1]]
    assert bdnet.to_levels(gray, 3).dtype == np.float32
    colour = np.zeros((1, 3, 1, 4), np.uint8)
    colour[0, [0, 1, 2, 0, 1, 2], 0, [0, 1, 2, 3, 3, 3]] = 255
    assert bdnet.to_gray(colour).tolist() == [[[76, 150, 29, 255]]]
    assert bdnet.to_gray(np.full((2, 1, 1, 1), 8), 16).tolist() == [[[128]], [[128]]]
    with pytest.raises(ValueError, match="otsu: gray must hold uint8 pixels, got float64"):
        bdnet.otsu(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="otsu: levels must be from 2 to 256, got 1"):
        bdnet.otsu(gray, 1)
    with pytest.raises(ValueError, match="to_gray: images must have 1 or 3 channels"):
        bdnet.to_gray(np.zeros((1, 2, 3, 3)))


# --------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("experiment", "seeds", "arms"),
    [("bdnet-ablation", 3, ["both", "naive"]), ("bdnet-table2", 1, ["bdnet-a", "float"])],
)
def test_options(monkeypatch, experiment, seeds, arms):
    asked = []
    monkeypatch.setattr(runner.Experiment, "run", lambda *arguments: asked.append(arguments[:-1]))
    assert cli.main(["reproduce", experiment]) == 0
    known = bdnet.EXPERIMENTS[experiment]
    assert known.seeds == seeds
    assert asked[0] == (
        known, os.path.join("runs", f"{experiment}-cifar10"), bdnet.Config(), None, None, "", None,
        True,
    )  # fmt: skip
    assert cli.main(["reproduce", experiment, "--quick", "--two-step", "--distill", "1"]) == 0
    config = bdnet.Config(**bdnet.QUICK, two_step=True, distill=1.0)
    assert asked[1][1:4] == (os.path.join("runs", f"{experiment}-digits-quick"), config, 1)
    line = "--dataset digits --width 0.5 --base adabin --epochs 3 --batch-size 8 --lr 0.1"
    line += f" --schedule linear --limit 200 --seeds 2 --arms {','.join(arms)} --note x --threads 1"
    assert cli.main(["reproduce", experiment, *line.split(), "--quiet", "--out", "o"]) == 0
    config = bdnet.Config("digits", 0.5, "adabin", 3, 8, 0.1, "linear", limit=200)
    assert asked[2] == (known, "o", config, 2, arms, "x", 1, False)
    command = known.command(config, 2).split()
    assert cli.main([*command[1:]]) == 0 and asked[3][2:4] == (config, 2)


@pytest.mark.slow
def test_the_quick_form_of_table_2(tmp_path):
    """By the command; of the networks with and without broadcast residual one pair."""
    out, arms = tmp_path / "run", ["float", "reactnet", "bdnet-a", "bdnet-b"]
    arms += ["shufflenet-reactnet", "shufflenet-reactnet-br"]
    line = ["--quick", "--quiet", "--epochs", "1", "--width", "0.1", "--out", str(out)]
    line += ["--arms", ",".join(arms)]
    assert cli.main(["reproduce", "bdnet-table2", *line]) == 0
    result = json.loads((out / "result.json").read_text())
    assert [row["name"] for row in result["runs"]] == arms
    assert all(row["identical_logits"] == row["test_images"] for row in result["runs"])
    assert all(min(t.values()) > 0 for t in result["latency"].values())
    ops = {row["name"]: row["ops"] for row in result["runs"]}
    assert ops["bdnet-a"] < ops["bdnet-b"] < ops["reactnet"] < ops["float"]
    assert ops["shufflenet-reactnet"] == ops["shufflenet-reactnet-br"]
    assert (out / "accuracy.png").read_bytes()[:4] == b"\x89PNG"


# --------------------------------------------------------------- the shortcuts of packed networks


@st.composite
def pooled_images(draw):
    """Images (N, H, W, C), and a geometry whose windows all hold a pixel."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    height, width = (draw(st.integers(k, k + 6)) for k in kernel)
    shape = draw(st.integers(1, 3)), height, width, draw(st.sampled_from([1, 3, 16, 33]))
    x = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape, np.float32)
    return x, (kernel, stride, padding)


@given(pooled_images())
def test_bound_average_pooling_is_the_reference_each_time(task):
    x, geometry = task
    expected = float_pooling.avg_pool2d_reference(x, geometry)
    out = np.full_like(expected, np.nan)
    run_again = float_pooling.bind_avg_pool2d(x, geometry, out)
    run_again()
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(F.avg_pool2d(x.transpose(0, 3, 1, 2), *geometry),
                                  expected.transpose(0, 3, 1, 2))  # fmt: skip
    x *= -3  # new values in the same arrays
    run_again()
    np.testing.assert_array_equal(out, float_pooling.avg_pool2d_reference(x, geometry))


def test_bound_average_pooling_on_several_threads():
    x = np.random.default_rng(0).standard_normal((8, 64, 64, 16), np.float32)
    geometry = (3, 3), (2, 2), (1, 1)
    for count in (1, 2):
        out = np.empty((8, 32, 32, 16), np.float32)
        with num_threads(min(count, numba.config.NUMBA_NUM_THREADS)):
            float_pooling.bind_avg_pool2d(x, geometry, out)()
        np.testing.assert_array_equal(out, float_pooling.avg_pool2d_reference(x, geometry))


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (np.zeros((1, 4, 4, 2)), np.zeros((1, 2, 2, 2), np.float32), "x must .* got float64"),
        (np.zeros((4, 4, 2), np.float32), None, r"x must be .* \(N, H, W, C\)"),
        (
            np.zeros((1, 4, 4, 2), np.float32), np.zeros((1, 2, 2, 3), np.float32),
            r"out must be C-contiguous float32 of shape \(1, 2, 2, 2\), got",
        ),
        (
            np.zeros((1, 4, 4, 4), np.float32)[..., ::2], np.zeros((1, 2, 2, 2), np.float32),
            "x must be C-contiguous",
        ),
    ],
)  # fmt: skip
def test_errors_of_bound_average_pooling(x, out, message):
    with pytest.raises(ValueError, match=f"bind_avg_pool2d: {message}"):
        float_pooling.bind_avg_pool2d(x, ((2, 2), (2, 2), (0, 0)), out)


def test_shortcuts_have_a_place_in_the_planned_memory():
    """So that what reads them is bound once; only a view and the float sums have none."""
    model = small("both").eval()
    packed = deploy.compile(model, (1, 32, 32))
    without = {packed.steps[t.steps[0]].operation for t in packed.tasks if not t.buffers}
    assert {"avg_pool2d", "take_channels"} <= {step.operation for step in packed.steps}
    assert not without & {"avg_pool2d", "take_channels"}
    x = np.random.default_rng(0).standard_normal((5, 1, 32, 32), np.float32)
    assert deploy.verify(model, packed, x) > 0
    first = packed.predict(x, batch_size=2)
    packed.predict(-x, batch_size=2)
    assert_identical(packed.predict(x, batch_size=3), first)


# ------------------------------------------------------------------------------------------ bench


@pytest.mark.parametrize(
    ("method", "base", "size", "classes"),
    [
        ("float", "reactnet", 32, 10),
        ("reactnet", "reactnet", 32, 10),
        ("bdnet-b", "reactnet", 224, 1000),
        ("bdnet-a", "reactnet", 32, 10),
        ("bdnet-b", "reactnet", 32, 10),
        ("bdnet-a", "reactnet", 224, 1000),
        ("adabin", "adabin", 32, 10),
        ("bdnet-a", "adabin", 32, 10),
        ("bdnet-b", "adabin", 224, 1000),
    ],
)
def test_packed_weights_take_the_bits_that_are_counted(method, base, size, classes):
    """Binary weights exactly; all arrays within 2% once the filters' scales are left out.

    A scale (mean |W|) comes from latent weights and is no parameter, so it is not counted. AdaBin
    has filters of ones beside its weights.
    """
    rng = np.random.default_rng(0)
    model = models.mobilenet_v1(1.0, size, classes, method, base=base, rng=rng)
    packed = deploy.compile(randomize(model, rng).eval(), (3, size, size))
    counted = analysis.count_operations(model, (3, size, size))
    arrays, metadata = packed._stored()
    names = {
        entry["arrays"][name]
        for step, entry in zip(packed.steps, metadata["steps"], strict=True) for name in step.bits
    }  # fmt: skip
    binary = sum(arrays[name].nbytes for name in names)
    layers = [layer.layer for layer in counted.layers if layer.bops]
    expected = sum(layer.weight.numel() for layer in layers)
    if base == "reactnet":
        # A row of fewer than 8 bits shares its bytes with others, up to the last byte of a layer.
        assert 0 <= 8 * binary - expected <= 7 * len(layers)
    scales = sum(
        4 * len(layer.weight) for layer in layers
        if "Magnitude" in type(layer.weight_quantizer).__name__
    )  # fmt: skip
    assert 0.98 < 8 * (packed.nbytes - scales) / counted.weight_bits < 1.02


def test_mobile_rows_of_the_benchmark(monkeypatch):
    monkeypatch.setattr(peers, "is_installed", lambda *names: False)
    rows = list(bench_models._mobile(Settings(1, quick=True)))
    names = [name for name, _ in bench_models.FORMS]
    assert [row["name"] for row in rows] == names * 3
    assert [row["shape"] for row in rows[::4]] == ["1×3×32×32", "4×3×32×32", "1×3×128×128"]
    assert {row["peer"] for row in rows} == {"our float path"}
    assert all(row["profile"] for row in rows)
    assert all((row["products"] is None) == (row["name"] == names[-1]) for row in rows)
    model = models.mobilenet_v1(0.25, 32, 10, "bdnet-a")
    assert rows[0]["products"] == analysis.count_operations(model, (3, 32, 32)).bops
    assert rows[4]["products"] == 4 * rows[0]["products"]
    json.dumps(rows)


def test_targets_of_the_mobile_rows():
    assert [(task.batch, task.size, task.ratios) for task in bench_models.MOBILE] == [
        (1, 32, (8.0, 6.0)), (64, 32, (5.0, 3.0)), (1, 224, (3.0, 3.0)),
    ]  # fmt: skip
    assert all(task.width == 1.0 for task in bench_models.MOBILE)


@pytest.mark.skipif(not peers.is_installed("torch"), reason="PyTorch is not installed")
@pytest.mark.parametrize("task", [bench_models.Task(2, 32, 7, 0.25), bench_models.Task(1, 224, 3)])
def test_the_peer_is_the_same_network(task):
    import torch

    model = models.mobilenet_v1(task.width, task.size, task.classes).train()
    x = np.random.default_rng(0).standard_normal((task.batch, 3, task.size, task.size), np.float32)
    contenders = list(peers.torch_contenders(model, x, 1))
    assert [c.name for c in contenders] == ["PyTorch float NCHW", "PyTorch float NHWC"]
    # In training mode, where batch norms keep the signal from fading.
    expected = model(Tensor(x)).data
    assert np.ptp(expected) > 0.1
    for contender in contenders:
        assert contender.counts
        network, images = contender.turn.args[0].__defaults__
        with torch.inference_mode():
            output = network.train()(images).numpy()
        np.testing.assert_allclose(output, expected, atol=1e-2)


def test_the_group_of_models_has_the_mobile_rows(monkeypatch):
    row = {"name": "MobileNet"}
    monkeypatch.setattr(bench_models, "_vgg_small", lambda settings, say: [{"name": "VGG"}])
    monkeypatch.setattr(bench_models, "_mobile", lambda settings: [row])
    assert [r["name"] for r in bench_models.networks(Settings(1), print)] == ["VGG", "MobileNet"]
    assert "models" in bench.report.GROUPS
