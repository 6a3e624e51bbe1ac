"""Random networks of all kinds: packed and float agree in every bit; failures are reported."""

import json
import subprocess
import sys

import pytest

from tinybnn import testing
from tinybnn.cli import main
from tinybnn.deploy import operations
from tinybnn.deploy.packed import PackedModel
from tinybnn.testing.campaign import _reason, outcome
from tinybnn.testing.networks import Line, RandomNetwork

REFUSALS = (
    "LogSoftmax has no packed form", "sums over axis # have no fixed order", "write x * x",
    "F.maximum of slices", "does not return signs", "returns its input unchanged",
    "does not depend on its input",
)  # fmt: skip


def test_two_hundred_networks(capsys, tmp_path):
    figures = tmp_path / "figures.json"
    assert main(["verify", "--random", "200", "--seed", "0", "--json", str(figures)]) == 0
    assert "seed 0, 200 random networks" in capsys.readouterr().out
    figure = json.loads(figures.read_text())
    assert figure["wrong"] == 0
    assert figure["tried"] == 200 == figure["equal"] + figure["refused"]
    assert figure["refused"] < 30  # most of them are compared
    for reason in figure["reasons"]:  # nothing that should compile is refused
        assert any(known in reason for known in REFUSALS), reason


def test_the_networks_are_of_all_kinds():
    sources = "\n".join(testing.random_network(seed).source() for seed in range(200))
    for part in (
        "Linear(", "BinaryLinear(", "Conv2d(", "BinaryConv2d(", "BinaryDepthwiseConv2d(",
        "AdaBinConv2d(", "DualBinaryConv2d(", "ConvTranspose2d(", "BatchNorm1d(", "BatchNorm2d(",
        "MaxPool2d(", "AvgPool2d(", "ste_tern", "padding_mode='ones'", "RSign(", "RPReLU(",
        "Maxout(", "SqueezeExcite(", "ChannelShuffle(", "models.mlp(", "F.cat(", "F.pad(",
        "F.where(", " += ", " -= ", " *= ", " /= ", ".detach()", "extreme=True", "steps=2",
        "reshape(", "affine=False", "output_padding=(1, 0)", "nn.Parameter(", "blocks.make_method(",
        "models.cnn(", "models.BinaryMLP(", "ede_sign", "F.log(", "SHAPE = (129, ",
        "[:, ::-1]", "permute(", "((2, 3)", "F.minimum(",
    ):  # fmt: skip
        assert part in sources, part


def test_a_seed_gives_the_same_network_and_the_same_weights():
    one, two = (testing.random_network(7) for _ in range(2))
    assert one == two
    assert one != testing.random_network(8)
    for a, b in zip(*(n.build().state_dict().items() for n in (one, two)), strict=True):
        assert a[0] == b[0]
        testing.assert_identical(a[1], b[1])


def run(source):
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)


def test_the_script_of_a_network_runs():
    done = run(testing.random_network(3).source())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all equal\n"


# operation: (the bug, as a line of a script; the operations of a small network)
BUGS = {
    "maximum": ("operations.OPERATIONS['minimum'].run", "F.maximum"),
    "sigmoid": ("lambda x: x", "nn.Sigmoid()"),
    "threshold": (
        "lambda sums, *, thresholds, flip: operations.compare_sums(sums, "
        "(thresholds + 1).astype(operations.np.int32), flip)",
        "Binary",
    ),
}


@pytest.mark.parametrize("operation", BUGS)
def test_a_wrong_operation_is_found_and_shown_by_a_small_script(operation, monkeypatch):
    """In the script the same bug is planted."""
    bug, part = BUGS[operation]
    wrong = staticmethod(eval(bug, {"operations": operations}))
    monkeypatch.setattr(operations.OPERATIONS[operation], "run", wrong)
    campaign = testing.campaign(1000, progress=False)
    assert campaign.wrong == 1
    small = campaign.counterexample
    assert 1 <= len(small.lines) <= 5
    assert not small.steps
    assert part in small.source()
    assert "differ" in campaign.error
    assert max(small.input_shape) <= 3
    planted = (
        "from tinybnn.deploy import operations\n"
        f"operations.OPERATIONS[{operation!r}].run = staticmethod({bug})\n"
    )
    done = run(planted + small.source())
    assert done.returncode == 1
    assert "differ" in done.stderr
    assert run(small.source()).returncode == 0


def test_the_command_prints_the_script(monkeypatch, capsys):
    monkeypatch.setattr(operations.OPERATIONS["sigmoid"], "run", staticmethod(lambda x: x))
    assert main(["verify", "--random", "1000"]) == 1
    out = capsys.readouterr().out
    assert "class Network(nn.Module):" in out
    assert "nn.Sigmoid()" in out
    assert " 1 wrong" in out


def test_numbers_of_channels_are_made_small_together():
    lines = (
        Line("{out} = {layer}({a})", (-1,), "nn.BinaryLinear(65, 70, rng=rng)"),
        Line("{out} = {layer}({a})", (0,), "nn.BatchNorm1d(70)"),
    )
    smaller = [n for n in RandomNetwork(0, (65,), lines).smaller() if len(n.lines) == 2]
    assert {n.input_shape for n in smaller} >= {(65,), (1,), (32,), (64,)}
    assert any("65, 1," in n.source() and "BatchNorm1d(1)" in n.source() for n in smaller)


@pytest.mark.parametrize("broken", ["predict", "save", "state"])
def test_each_kind_of_difference_is_wrong(broken, monkeypatch):
    network = RandomNetwork(0, (3,), (Line("{out} = {layer}({a})", (-1,), "nn.BatchNorm1d(3)"),))
    assert outcome(network) == ("equal", "")
    if broken == "predict":
        predict = PackedModel.predict
        monkeypatch.setattr(
            PackedModel, "predict",
            lambda self, x, **options: predict(self, x, **options) + (len(x) == 7),
        )  # fmt: skip
    elif broken == "save":
        stored, count = PackedModel._stored, iter(range(100))
        monkeypatch.setattr(
            PackedModel, "_stored",
            lambda self: (stored(self)[0], {**stored(self)[1], "info": {"n": next(count)}}),
        )  # fmt: skip
    else:
        code = "{out} = {layer}({a})\nself.layer_0.running_mean[0] += len(x) == 2"
        network = RandomNetwork(0, (3,), (Line(code, (-1,), "nn.BatchNorm1d(3)"),))
    kind, said = outcome(network)
    assert kind == "wrong"
    assert said


def test_what_has_no_packed_form_is_refused():
    network = RandomNetwork(0, (3,), (Line("{out} = {a} ** 2.0", (-1,)),))
    kind, said = outcome(network)
    assert kind == "refused"
    assert _reason(said).startswith("Pow has no packed form")


@pytest.mark.parametrize(
    "words",
    [["--random", "3", "run", "model"], ["run"], [], ["run", "model", "--seed", "3"]],
)
def test_random_networks_or_a_run(words, capsys):
    with pytest.raises(SystemExit) as error:
        main(["verify", *words])
    assert error.value.code == 2
    assert "--random" in capsys.readouterr().err
