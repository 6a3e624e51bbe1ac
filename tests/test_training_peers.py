"""Our training step and PyTorch's give the same gradients and the same updates."""

from functools import partial

import numpy as np
import pytest

from tinybnn import nn, optim, quantizers
from tinybnn.bench import agreement, training
from tinybnn.bench.torch_training import TorchTraining, Variant, variants
from tinybnn.bench.twin import binary_layers, twin

torch = pytest.importorskip("torch")

SMALL = next(n for n in training.NETWORKS if n.name == "MLP 200-128-2")
AUTOENCODER = next(n for n in training.NETWORKS if n.classes is None)
BATCHES = {3: 4, 1: 8, 784: 64, 200: 64}  # by the channels or features of the input


@pytest.mark.parametrize("network", training.NETWORKS, ids=lambda network: network.name)
def test_gradients_and_updates_agree(network):
    row = agreement.compare_steps(network, 20, BATCHES[network.input_shape[0]])
    assert row["agrees"], row
    assert row["gradient"] <= 1e-5 and row["update"] <= 1e-6
    assert row["gradient"] > 0 and row["gradient_of"]  # something was compared


def test_all_networks_get_a_line(monkeypatch):
    monkeypatch.setattr(agreement, "NETWORKS", [SMALL, SMALL._replace(name="again", batch=16)])
    lines = []
    rows = agreement.compare_all(2, 64, 1, lines.append)
    assert [(row["name"], row["batch"], row["steps"]) for row in rows] == [
        ("MLP 200-128-2", 64, 2), ("again", 16, 2),
    ]  # fmt: skip
    assert len(lines) == 3 and all(line.endswith("agree") for line in lines[1:])


# ------------------------------------------------------------------------------- errors are found


def test_a_wrong_gradient_is_found(monkeypatch):
    gradient = quantizers.SteSign.gradient
    monkeypatch.setattr(
        quantizers.SteSign, "gradient",
        lambda self, grad, x: gradient(self, grad, x) * np.float32(1.0001),
    )  # fmt: skip
    row = agreement.compare_steps(SMALL, 1, 64)
    assert not row["agrees"] and 0.9e-4 < row["gradient"] < 1.1e-4


def test_a_pseudo_gradient_that_leaves_the_border_out_is_found(monkeypatch):
    gradient = quantizers.SteSign.gradient
    monkeypatch.setattr(
        quantizers.SteSign, "gradient",
        lambda self, grad, x: gradient(self, grad, x) * (np.abs(x) < 1),
    )  # fmt: skip
    row = agreement.compare_steps(SMALL, 1, 64)
    assert not row["agrees"] and row["gradient_of"] in ("1.weight", "3.weight")


def test_a_missing_clip_is_found(monkeypatch):
    update = optim.Adam.fused_update

    def without_clip(self, weight, grad, state, group, decay, clip):
        return update(self, weight, grad, state, group, decay, None) or clip

    monkeypatch.setattr(optim.Adam, "fused_update", without_clip)
    row = agreement.compare_steps(SMALL, 1, 64)
    assert not row["agrees"] and row["gradient"] <= 1e-5 and row["update"] > 0.01


def test_a_wrong_update_is_found(monkeypatch):
    update = optim.Adam.fused_update
    monkeypatch.setattr(
        optim.Adam, "fused_update",
        lambda self, w, g, s, group, *rest: update(
            self, w, g, s, group | {"lr": group["lr"] * 1.001}, *rest
        ),
    )  # fmt: skip
    row = agreement.compare_steps(SMALL, 1, 64)
    assert not row["agrees"] and row["update"] > 1e-4


# --------------------------------------------------------------------------------------- the twin


@pytest.mark.parametrize("network", [SMALL, AUTOENCODER], ids=lambda network: network.name)
def test_every_variant_computes_the_same(network):
    ours = training.Training(network, 8)
    found = variants(has_images=len(network.input_shape) == 3)
    assert len(found) == (4 if network is AUTOENCODER else 2)
    assert [variant.fused for variant in found] == sorted(variant.fused for variant in found)
    ours.compute_gradients()
    before = [p.data.copy() for p in ours.model.parameters()]
    ours.optimizer.step()
    for variant in found:
        theirs = TorchTraining(training.Training(network, 8), variant, 1)
        theirs()
        for (name, p), b in zip(ours.model.named_parameters(), before, strict=True):
            np.testing.assert_allclose(theirs.gradients()[name], p.grad.data, rtol=0, atol=1e-3)
            moved = theirs.weights()[name] - b
            assert np.abs(moved).max() == pytest.approx(1e-3, rel=1e-3)  # Adam's first step


def test_layouts_of_memory():
    ours = training.Training(AUTOENCODER, 4)
    for layout in ("contiguous_format", "channels_last"):
        theirs = TorchTraining(ours, Variant("", layout), 1)
        for p in (theirs.network[3].weight, theirs.network[9].weight):
            assert p.is_contiguous(memory_format=getattr(torch, layout))


def test_signs_and_slopes_of_the_twin():
    values = [-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0]
    for name, slopes in (
        ("SteSign", [0, 1, 1, 1, 1, 1, 1, 0]),
        ("ApproxSign", [0, 0, 1, 2, 2, 1, 0, 0]),
    ):
        x = torch.tensor(values, requires_grad=True)
        y = getattr(binary_layers(), name).apply(x)
        assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
        y.backward(torch.full((8,), 3.0))
        assert x.grad.tolist() == [3 * slope for slope in slopes]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (partial(nn.Softplus), "Softplus"),
        (partial(nn.Quantize, "swish_sign"), "SwishSign"),
        (partial(nn.Quantize, quantizers.SteSign(1.5)), "SteSign"),
        (partial(nn.BinaryLinear, 4, 3, scale="mean"), "no scale"),
        (partial(nn.BinaryConv2d, 4, 3, 3, padding=1, padding_mode="ones"), "zeros as padding"),
    ],
)
def test_what_has_no_twin_is_refused(layer, words):
    with pytest.raises(ValueError, match=f"twin: .*{words}"):
        twin(nn.Sequential(layer()))
