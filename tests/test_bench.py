"""Benchmarks: what a row says, that turns are fair, and that every group runs."""

import json
import os
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest

from tinybnn import bench, cli, models, nn
from tinybnn.bench import (
    agreement,
    curvature,
    kernels,
    peers,
    report,
    rounds,
    torch_training,
    training,
)
from tinybnn.deploy.runtime import Profile
from tinybnn.kernels.signs import bits, depthwise
from tinybnn.tensor import Tape, Tensor

QUICK = rounds.Settings(1, quick=True)
COLUMNS = {
    "name": str, "shape": str, "threads": int, "ours_s": float, "ours_min_s": float,
    "ours_max_s": float, "peer": str, "peer_s": float, "peer_min_s": float,
    "peer_max_s": float, "ratio": float, "ratio_of_fastest": float, "target": float,
    "target_of": str, "is_met": bool, "peak_share": float, "rate": float, "unit": str,
    "bytes": int, "products": int, "peer_bytes": int, "profile": list, "memory": dict,
    "peer_memory": dict, "operations": list, "group": str,
}  # fmt: skip
ALWAYS = [*list(COLUMNS)[:12], "group"]


@pytest.fixture
def alone(monkeypatch):
    """Only NumPy is installed."""
    for module in (peers, report, torch_training):
        monkeypatch.setattr(module, "is_installed", lambda *names: False)
    monkeypatch.delenv("TINYBNN_LARQ_PYTHON", raising=False)
    monkeypatch.setattr(rounds, "cpu_features", lambda: {"avx512vpopcntdq"})  # for targets alone


# ------------------------------------------------------------------------------------------- turns


def test_a_turn_waits_for_threads_that_spin():
    end = time.perf_counter() + 0.15
    started = threading.Event()

    def spin():
        started.set()
        while time.perf_counter() < end:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    started.wait()
    began = []
    rounds.turn(lambda: began.append(time.perf_counter()), 1)
    thread.join()
    assert began[0] >= end


def test_the_first_run_of_a_turn_is_not_timed():
    calls = []

    def slow_at_first():
        calls.append(None)
        if len(calls) == 1:
            time.sleep(0.3)

    seconds = rounds.turn(slow_at_first, 3)
    assert len(calls) == 4 and len(seconds) == 3
    assert max(seconds) < 0.3


def test_contenders_take_turns():
    turns = []

    def entry(name, seconds):
        return rounds.Contender(
            name, lambda calls: turns.append((name, calls)) or [seconds] * calls
        )

    settings = rounds.Settings(1, seconds=0)
    between = []
    times = rounds.measure(
        [entry("quick", 0.01), entry("slow", 0.5)], settings, lambda: between.append(len(turns))
    )
    # Nothing of the first turns counts; then so many runs that a turn takes some 30 ms.
    assert turns == [("quick", 2), ("slow", 2)] + 5 * [("quick", 3), ("slow", 1)]
    assert [len(seconds) for seconds in times] == [15, 5]
    assert between == [4, 6, 8, 10, 12]


# -------------------------------------------------------------------------------------------- rows


def entry(name, *seconds, **options):
    return rounds.Contender(name, lambda calls: list(seconds), **options)


def compare(monkeypatch, others, ours=(0.01, 0.01, 0.04), **options):
    monkeypatch.setattr(rounds, "contender", lambda name, function: entry(name, *ours))
    return rounds.compare("product", "1×1", None, others, QUICK, **options)


def test_a_row_of_medians(monkeypatch):
    [row] = compare(
        monkeypatch, [entry("NumPy", 0.3, 0.2, 9.0, nbytes=64)], products=2 * 10**9, nbytes=8
    )
    assert row == dict.fromkeys(COLUMNS) | {
        "name": "product", "shape": "1×1", "threads": 1, "ours_s": 0.01, "ours_min_s": 0.01,
        "ours_max_s": 0.04, "peer": "NumPy", "peer_s": 0.3, "peer_min_s": 0.2,
        "peer_max_s": 9.0, "ratio": 30.0, "ratio_of_fastest": 20.0, "rate": 200.0,
        "unit": "Gbit-MAC/s", "bytes": 8, "products": 2 * 10**9, "peer_bytes": 64,
    }  # fmt: skip


def test_the_share_of_the_peak_is_that_of_the_fastest_run(monkeypatch):
    peaks = iter([3e11, 4e11, 3.5e11, 2e11, 3e11])
    monkeypatch.setattr(rounds.xnor, "register_peak", lambda repetitions: next(peaks))
    monkeypatch.setattr(rounds, "contender", lambda name, function: entry(name, 0.02, 0.01))
    options = {"products": 10**9, "of_peak": True, "target": rounds.Target("peak_share", 0.9)}
    settings = rounds.Settings(2, seconds=0)  # five rounds
    [row] = rounds.compare("p", "", None, [entry("NumPy", 1.0)], settings, **options)
    assert row["peak_share"] == 1e11 / (2 * 4e11)  # of two threads that nobody interrupts
    assert row["is_met"] is False


@pytest.mark.parametrize(("ratio", "is_met"), [(19.9, True), (20.1, False)])
def test_the_target_of_a_ratio_is_the_fastest_peer_that_counts(monkeypatch, ratio, is_met):
    others = [
        entry("NumPy", 0.1),
        entry("PyTorch NCHW", 0.3, counts=True),
        entry("PyTorch NHWC", 0.2, counts=True),
    ]
    rows = compare(monkeypatch, others, target=rounds.Target("ratio", ratio))
    assert [row["target"] for row in rows] == [None, None, ratio]
    assert rows[2]["target_of"] == "ratio" and rows[2]["is_met"] is is_met
    assert "is_met" in rows[0] and rows[0]["is_met"] is None
    [row] = compare(monkeypatch, others[:1], target=rounds.Target("ratio", ratio))
    assert row["target"] is None  # nobody to compare with


def test_a_target_for_seconds_is_an_upper_bound():
    target = rounds.Target("ours_s", 0.3)
    assert target.is_met({"ours_s": 0.3}) and not target.is_met({"ours_s": 0.31})
    assert rounds.Target("rate", 40.0).is_met({"rate": 40.0})


@pytest.mark.parametrize(
    ("features", "value"),
    [
        ({"avx2", "avx512bw", "avx512vpopcntdq"}, 3.5),
        ({"avx2", "avx512bw"}, 2.2),
        ({"avx2"}, 2.2),
        ({"sse4.2"}, None),
        ({"neon"}, None),
    ],
)
def test_a_target_is_that_of_the_kind_of_cpu(monkeypatch, features, value):
    monkeypatch.setattr(rounds, "cpu_features", lambda: features)
    expected = None if value is None else rounds.Target("ratio", value)
    assert rounds.ratio_of_this_cpu(3.5, 2.2) == expected


# ------------------------------------------------------------------------------------------ groups


def check(found, group):
    json.dumps(found)
    assert set(found) == {"machine", "threads", "command", "date", "roof", "rows"}
    assert found["command"] == f"tinybnn bench {group} --threads 1 --quick"
    assert found["threads"] == 1 and found["machine"]["peers"] == {}
    assert found["roof"]["register_peak"] > 0 and found["roof"]["bandwidth"] > 0
    for row in found["rows"]:
        assert list(row) == list(COLUMNS)
        for column, kind in COLUMNS.items():
            assert row[column] is None or isinstance(row[column], kind), (row["name"], column)
        assert None not in [row[column] for column in ALWAYS]
        assert 0 < row["ours_min_s"] <= row["ours_s"] <= row["ours_max_s"]
        assert 0 < row["peer_min_s"] <= row["peer_s"] <= row["peer_max_s"]
        assert row["ratio"] == row["peer_s"] / row["ours_s"]
        assert (row["target"] is None) == (row["target_of"] is None) == (row["is_met"] is None)
        assert (row["rate"] is None) == (row["unit"] is None)
    return found["rows"]


def quick(group):
    lines = []
    found = bench.run(group, 1, quick=True, say=lines.append)
    rows = check(found, group)
    text = "\n".join(lines)
    assert all(row["name"] in text and row["peer"] in text for row in rows)
    assert max(map(len, text.split("\n"))) <= 100
    return found, rows, text


def test_kernels(alone, tmp_path):
    found, rows, text = quick("kernels")
    products = [row for row in rows if row["products"]]
    assert {row["name"] for row in products} == {"XNOR product, sums", "XNOR product, bits"}
    assert len(products) == 2 * len(kernels.PRODUCTS)
    targets = {row["shape"]: row["target"] for row in products if row["target"]}
    assert targets == {"1024×1024×4096": 0.9, "3136×128×1152": 0.9, "3136×256×256": 0.75}
    [row] = [r for r in products if r["shape"] == "1×1024×1024" and r["name"].endswith("sums")]
    assert row["products"] == 1024 * 1024 and row["peak_share"] > 0
    assert row["bytes"] == 128 + 1024 * 128 + 4 * 1024
    assert row["peer_bytes"] == 4 * (1024 + 1024 * 1024 + 1024)
    packing = [row for row in rows if not row["products"]]
    assert [row["target_of"] for row in packing] == ["rate", "rate", "rate", None]
    assert "40 GB/s: " in text and "90% of the peak: " in text
    bench.draw(tmp_path / "roofline.png", found)
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    page = bench.page(found)
    assert found["machine"]["processor"] in page and found["machine"]["vectors"] in page
    lines = [line for line in page.split("\n") if line.startswith("| XNOR product, sums 3136×256×")]
    assert len(lines) == 1 and "75% of the peak: " in lines[0]


def test_depthwise(alone):
    _, rows, _ = quick("depthwise")
    assert len(rows) == 2 * len(kernels.DEPTHWISE)
    assert {row["peer"] for row in rows} == {"NumPy, shifted products"}
    assert rows[0]["products"] == 64 * 128 * 16 * 16 * 9
    stride = [row for row in rows if "stride 2" in row["shape"]]
    assert {row["products"] for row in stride} == {64 * 128 * 8 * 8 * 9}


def test_models(alone, monkeypatch):
    monkeypatch.setattr(models, "vgg_small", partial(models.vgg_small, width=0.5))
    _, rows, text = quick("models")
    assert {row["peer"] for row in rows} == {"our float path"}
    rows = [row for row in rows if row["name"] == "VGG-small, packed"]
    assert [row["shape"] for row in rows] == ["64×3×32×32", "1×3×32×32"]
    # Binary weights × pixels of the outputs, by the table at the top of models/vgg_small.py;
    # half the width is a quarter of the weights.
    macs = 147_456 * 32**2 + (294_912 + 589_824) * 16**2 + (1_179_648 + 2_359_296) * 8**2
    for row, batch in zip(rows, (64, 1), strict=True):
        assert row["products"] == batch * macs // 4
        assert {"layer", "operations", "seconds", "share", "products", "rate", "peak_share"} <= set(
            row["profile"][0]
        )
        names = {name for layer in row["profile"] for name in layer["layer"].split(" + ")}
        assert all(name.split()[0] in text for name in names)


def test_startup(alone, monkeypatch):
    run = subprocess.run

    def run_uncompiled(*arguments, env=None, **options):
        env = {**(os.environ if env is None else env), "NUMBA_DISABLE_JIT": "1"}
        return run(*arguments, env=env, **options)

    monkeypatch.setattr(subprocess, "run", run_uncompiled)  # the new processes compile nothing
    _, rows, text = quick("startup")
    assert [row["name"] for row in rows] == [
        "first prediction, warm", "first prediction, cold", "import tinybnn",
        "kernels of training, warm", "kernels of training, cold",
    ]  # fmt: skip
    assert [row["target"] for row in rows] == [0.35, 7.0, 0.3, 1.0, 15.0]
    assert rows[2]["ours_s"] < rows[0]["ours_s"]
    assert "15 s: met" in text and "7 s: met" in text


NARROW = (
    training.Network(
        "VGG", lambda rng: models.vgg_small(width=0.125, rng=rng), (3, 32, 32), 16, (3.5, 2)
    ),
    training.Network("separable", lambda rng: training.separable(0.125), (3, 32, 32), 4, (1.5, 1)),
    training.Network(
        "autoencoder", lambda rng: training.autoencoder(), (1, 28, 28), 4, (1, 1), None
    ),
)


def test_training(alone, monkeypatch):
    memory = {"step": 2_000_000, "growth": 0, "process": 9_000_000}
    asked = []
    monkeypatch.setattr(training, "NETWORKS", NARROW)
    monkeypatch.setattr(training, "memory_of", lambda *task: asked.append(task[:3]) or memory)
    _, rows, text = quick("train")
    assert [row["name"] for row in rows] == [
        "VGG", "VGG, eval forward", "separable", "separable, eval forward", "autoencoder"
    ]  # fmt: skip
    evals, rows = rows[1::2], rows[::2]
    assert {(row["peer"], row["target"]) for row in evals} == {("forward in training", 0.909)}
    assert [row["shape"] for row in rows] == ["8×3×32×32", "4×3×32×32", "4×1×28×28"]
    assert {row["peer"] for row in rows} == {"ours, forward on floats"}
    assert {row["unit"] for row in (*rows, *evals)} == {"images/s"}
    assert rows[1]["rate"] == 4 / rows[1]["ours_s"]
    assert asked[:2] == [("VGG", "ours", 8), ("VGG", "ours, forward on floats", 8)]
    assert rows[0]["memory"] == rows[0]["peer_memory"] == memory
    assert "memory of a step: 2.0 MB, ours, forward on floats 2.0 MB (not less)" in text
    assert rows[0]["operations"] is None


def test_training_with_its_profile(alone, monkeypatch):
    monkeypatch.setattr(training, "NETWORKS", NARROW[:1])
    monkeypatch.setattr(training, "memory_of", lambda *task: None)
    lines = []
    found = bench.run("train", 1, True, lines.append, profile=True)
    assert found["command"] == "tinybnn bench train --threads 1 --profile --quick"
    row, _ = found["rows"]
    json.dumps(row)
    assert row["memory"] is None
    calls = {}
    for entry in row["operations"]:
        calls[entry["operation"]] = calls.get(entry["operation"], 0) + entry["calls"]
    assert calls["SignConv2d"] == 5 and calls["BatchNorm"] == 6 and calls["Adam.step"] == 1
    assert "SignConv2d" in lines[-2] and "layers, engine" in lines[-2]


def test_forward_on_floats_is_another_path_to_the_same_gradients():
    network = training.NETWORKS[3]
    ours, floats = training.Training(network, 8), training.FloatTraining(network, 8)
    ours.compute_gradients()
    floats.compute_gradients()
    for p, q in zip(ours.model.parameters(), floats.model.parameters(), strict=True):
        np.testing.assert_array_equal(p.grad.data, q.grad.data)


def test_a_step_moves_every_parameter_and_takes_a_batch_of_its_own():
    step = training.Training(NARROW[2], 2)
    before = [p.data.copy() for p in step.model.parameters()]
    assert step.target is step.x and step.x.shape == (2, 1, 28, 28)
    step()
    assert all((p.data != b).any() for p, b in zip(step.model.parameters(), before, strict=True))
    first = step.x
    step.draw()
    assert (step.x != first).any()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_steps():
    found = training.memory_of("MLP 784-1024-1024-10", "ours", 128, QUICK)
    parameters = 784 * 1024 + 1024 * 1024 + 1024 * 10
    # Gradients and the two means of Adam stay, 4 bytes each; the weights were there before.
    assert 3 * 4 * parameters < found["step"] < 100e6
    assert 0 <= found["growth"] < found["step"]
    assert found["process"] > found["step"] + 4 * parameters


def test_all_is_every_group(monkeypatch, alone):
    row = (
        dict.fromkeys(COLUMNS) | dict.fromkeys(ALWAYS, 1) | {"name": "a", "shape": "", "peer": "b"}
    )
    for name in ("kernels", "depthwise_convolutions", "startup"):
        monkeypatch.setattr(report, name, lambda settings, name=name: [row | {"name": name}])
    monkeypatch.setattr(report, "networks", lambda settings, say: [row | {"name": "networks"}])
    monkeypatch.setattr(
        report, "training", lambda settings, profile: [row | {"name": f"training, {profile}"}]
    )
    monkeypatch.setattr(report, "curvature", lambda settings: [row | {"name": "curvature"}])
    names = [row["name"] for row in bench.run("all", 1, True, lambda text: None)["rows"]]
    assert names == [
        "kernels", "depthwise_convolutions", "networks", "startup", "training, False", "curvature",
    ]  # fmt: skip


def _small_cnn(rng):
    return models.cnn((1, 8, 8), channels=(4, 8, 8), features=8, padding=1, rng=rng)


def small_product():
    """Of a network with all the layers that the rows of curvature have, and of few images."""
    return curvature.Task(training.Network("small", _small_cnn, (1, 8, 8), 8, None), 4)


def test_products_with_the_hessian(alone, monkeypatch):
    monkeypatch.setattr(curvature, "TASKS", (small_product(),))
    _, rows, text = quick("curvature")
    assert rows[0]["name"] == "small, Hessian product" and rows[-1]["name"] == "small, graph held"
    assert rows[0]["peer"] == rows[-1]["peer"] == "its gradient"
    assert rows[0]["target"] == 0.25 and "ratio 0.25" in text


@pytest.mark.skipif(not peers.is_installed("torch"), reason="PyTorch is not installed")
def test_products_are_those_of_pytorch():
    ours = curvature.Product(small_product().network, 8)
    theirs = curvature.TorchProduct(ours, torch_training.Variant("PyTorch"), 1)
    expected = theirs()
    assert np.abs(ours() - expected).max() < 1e-3 * np.abs(expected).max()


LONG = "a network with a name of many words, and_with_one_that_is_longer_than_a_line_" + "x" * 100


@pytest.mark.parametrize("name", ["pack", LONG])
@pytest.mark.parametrize("seconds", [1e-6, 0.123, 98765.0])
@pytest.mark.parametrize("is_met", [True, False])
def test_tables_are_no_wider_than_a_terminal(monkeypatch, alone, name, seconds, is_met):
    """All that `bench` prints, for every group, of rows as wide as they may be."""
    memory = {"step": 98_765_432_100, "growth": 12_345_678_900, "process": 1}
    profile = {
        "layer": name, "operations": [name] * 3, "seconds": seconds, "share": 1.0,
        "products": 10**15, "rate": 1e15, "peak_share": 12.34,
    }  # fmt: skip
    operation = {
        "operation": name, "shape": [64, 1024, 512, 512], "calls": 10**6, "forward_s": seconds,
        "backward_s": seconds, "share": 0.5,
    }  # fmt: skip
    row = dict.fromkeys(COLUMNS) | {
        "name": name, "shape": "64×1024×512×512, 5×5, stride 2", "threads": 2, "ours_s": seconds,
        "ours_min_s": seconds / 2, "ours_max_s": seconds * 2, "peer": name, "peer_s": seconds,
        "peer_min_s": seconds, "peer_max_s": seconds, "ratio": 123456.7, "is_met": is_met,
        "ratio_of_fastest": 123456.7, "rate": 123456789.0, "unit": "Gbit-MAC/s",
        "peak_share": 1.23, "target": 0.9, "target_of": "peak_share",
        "profile": Profile([profile]), "memory": memory, "peer_memory": memory,
        "operations": [operation, operation | {"operation": "Mul"}],
    }  # fmt: skip
    rows = [row, row | {"peer": "NumPy", "target": None}, row | {"ours_s": seconds / 3}]
    for group in ("kernels", "depthwise_convolutions", "startup"):
        monkeypatch.setattr(report, group, lambda settings: rows)
    monkeypatch.setattr(report, "networks", lambda settings, say: rows)
    monkeypatch.setattr(report, "training", lambda settings, profile: rows)
    lines = []
    bench.run("all", 1, True, lines.append, profile=True)
    text = "\n".join(lines)
    assert max(map(len, text.split("\n"))) <= 100
    assert text.count(f"90% of the peak: {'met' if is_met else 'missed'}") == 5 * 2
    assert text.count("123,456,789 Gbit-MAC/s, 123% of the peak") == 5 * 2  # once for both peers
    assert text.count("×123457") == 5 * 2 * 3
    assert text.count("memory of a step: 98765.4 MB") == 5 * 3


def test_agreement_is_no_wider_than_a_terminal(monkeypatch):
    rows = [
        {"name": name, "batch": 64, "steps": 20, "redrawn": 3, "gradient": 1.2e-5, "update": 1e-7,
         "gradient_of": name, "update_of": "features.0.weight", "agrees": agrees}
        for name, agrees in ((LONG, False), ("MLP", True))
    ]  # fmt: skip
    monkeypatch.setattr(agreement, "NETWORKS", NARROW[:2])
    monkeypatch.setattr(agreement, "compare_steps", lambda *task: rows[task[0] is NARROW[1]])
    lines = []
    assert agreement.compare_all(num_threads=1, say=lines.append) == rows
    assert max(len(line) for text in lines for line in text.split("\n")) <= 100
    assert lines[1].split("\n")[0].endswith("DIFFER") and lines[2].split("\n")[0].endswith("agree")


def test_a_quick_run_says_that_its_figures_mean_nothing(monkeypatch, alone):
    for quick in (True, False):
        monkeypatch.setattr(report, "kernels", lambda settings: [])
        lines = []
        bench.run("kernels", 1, quick, lines.append)
        assert lines[0].startswith("A quick run: its figures mean nothing") is quick


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"bench: group must be one of .*'depthwise'.*'gpus'"):
        bench.run("gpus")
    with pytest.raises(ValueError, match="n must be from 1 to"):
        bench.run("kernels", 10_000)


# --------------------------------------------------------------------------------------- agreement


def test_values_that_only_rounding_parts_are_told_from_wrong_ones():
    def parted(module, ours, theirs):
        tape = Tape()
        tape.modules = [
            (module, (Tensor(np.float32(ours)),), None),
            (nn.Sequential(module), (Tensor(np.float32(ours)),), None),
        ]
        return agreement._parted(tape, [np.float64(theirs)])

    binary = nn.Quantize()
    assert parted(binary, [1e-7, 1.0], [-1e-7, 1.0])  # a sign
    assert parted(binary, [0.5, 1.0], [0.5, 1.0 + 1e-7])  # a pseudo-gradient
    assert not parted(binary, [0.5, 2.0], [0.5 + 1e-3, 3.0])  # both on the same side
    assert not parted(binary, [1e-3], [-1e-3])  # more than rounding
    assert not parted(nn.Flatten(), [1e-7], [-1e-7])  # no jump


def test_an_update_is_compared_beyond_what_float32_resolves():
    before = np.float32([1.0, 0.01])
    exact = before.astype(np.float64) - 1e-3
    rounded = exact.astype(np.float32)
    assert agreement.update_error(before, rounded, exact) == 0.0
    assert agreement.update_error(before, rounded - np.float32([0, 1e-7]), exact) > 1e-5
    assert agreement.update_error(before, rounded - np.float32([1e-6, 0]), exact) > 1e-4


def test_check_needs_torch(alone, capsys):
    assert cli.main(["bench", "train", "--check"]) == 1
    assert "PyTorch, which is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(("agrees", "code"), [(True, 0), (False, 1)])
def test_check(monkeypatch, capsys, agrees, code):
    asked = []

    def compare_all(*options):
        asked.append(options[:3])
        return [{"name": "MLP", "agrees": agrees}]

    monkeypatch.setattr(report, "is_installed", lambda *names: True)
    monkeypatch.setattr(report, "compare_all", compare_all)
    assert cli.main(["bench", "train", "--check", "--threads", "1", "--json", "-"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == "tinybnn bench train --threads 1 --check"
    assert found["rows"] == [{"name": "MLP", "agrees": agrees}] and asked == [(20, 16, 1)]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["kernels", "--check"], "--check is an option of train, not of kernels"),
        (["models", "--profile"], "--profile is an option of train, not of models"),
        (["train", "--check", "--profile"], "leave --plot, --page and --profile out"),
    ],
)
def test_options_of_training(arguments, advice, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    assert ended.value.code == 2 and advice in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- peers


def signs(*shape, seed=0):
    return np.where(np.random.default_rng(seed).random(shape) < 0.5, -1, 1).astype(np.float32)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 1), (3, 2)])
def test_depthwise_peers_compute_what_ours_does(size, stride):
    x, weight = signs(2, 8, 6, 5), signs(size, size, 5, seed=1)
    expected = depthwise.conv2d_sums_reference(
        bits.pack(x), bits.pack(weight), 5, stride=(stride, stride),
        padding=(size // 2, size // 2),
    )  # fmt: skip
    np.testing.assert_array_equal(kernels.shifted_products(x, weight, stride), expected)
    if peers.is_installed("torch"):
        layer = nn.Sequential(kernels.float_depthwise(weight, stride))
        for contender in peers.torch_contenders(layer, x.transpose(0, 3, 1, 2), 1):
            output = contender.turn.args[0]().numpy()
            np.testing.assert_array_equal(output.transpose(0, 2, 3, 1), expected)
            assert contender.counts


def test_layers_of_vgg_small():
    layers = peers.layers_of(models.vgg_small(width=0.125))
    assert layers[:4] == [
        ("convolution", 3, 16, False), ("norm", 16), ("convolution", 16, 16, True), ("pool",),
    ]  # fmt: skip
    assert layers[-2:] == [("flatten",), ("dense", 1024, 10)]
    assert [layer[0] for layer in layers].count("convolution") == 6


@pytest.mark.parametrize("packages", [["torch"], ["onnx", "onnxruntime"]])
def test_float_networks(packages, monkeypatch):
    if not peers.is_installed(*packages):
        pytest.skip("not installed")
    monkeypatch.setattr(peers, "is_installed", lambda *names: set(names) <= set(packages))
    x = signs(2, 3, 8, 8)
    said = []
    with peers.other_networks(models.vgg_small((3, 8, 8), width=0.125), x, 1, said.append) as found:
        assert len(found) == (2 if packages == ["torch"] else 1)
        for contender in found:
            output = contender.turn.args[0]()
            logits = output[0] if isinstance(output, list) else output.numpy()
            assert logits.shape == (2, 10) and np.isfinite(logits).all() and logits.std() > 0
            assert len(contender.turn(2)) == 2
    assert said == []


LARQ = """
import json, sys
layers, shape, num_threads = json.loads(sys.argv[1])
assert layers[2] == ["convolution", 16, 16, True] and shape == [8, 6, 3] and num_threads == 1
print("[]", flush=True)
for line in sys.stdin:
    print(json.dumps([0.25] * int(line)), flush=True)
"""


def larq(monkeypatch, program, batch=1):
    monkeypatch.setattr(peers, "_LARQ", program)
    monkeypatch.setenv("TINYBNN_LARQ_PYTHON", sys.executable)
    said = []
    model = models.vgg_small(width=0.125)
    with peers.other_networks(model, signs(batch, 3, 8, 6), 1, said.append) as found:
        return [(c.name, c.turn(3)) for c in found], said


def test_larq_runs_in_a_process_of_its_own(alone, monkeypatch):
    found, said = larq(monkeypatch, LARQ)
    assert found == [("Larq Compute Engine", [0.25] * 3)] and said == []
    assert larq(monkeypatch, LARQ, batch=2) == ([], [])  # it takes one image at a time


def test_larq_that_does_not_run_is_left_out(alone, monkeypatch):
    found, [said] = larq(monkeypatch, "import no_such_module")
    assert found == []
    assert "left out: ModuleNotFoundError: No module named 'no_such_module'" in said
