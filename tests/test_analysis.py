"""Summaries: the table agrees with the model and its file."""

import numpy as np
import pytest
from hypothesis import given, settings
from test_deploy import networks

from tinybnn import analysis, deploy, models, nn
from tinybnn import functional as F
from tinybnn.tensor import Tensor, no_grad


@settings(max_examples=30)
@given(networks())
def test_packed_bytes_are_the_bytes_in_the_file(tmp_path_factory, network):
    model, shape = network
    path = tmp_path_factory.mktemp("summary") / "model.npz"
    table = analysis.summary(model, shape)
    packed = deploy.compile(model, shape)
    packed.save(path)
    with np.load(path) as file:  # plain NumPy, without the header
        stored = sum(file[name].nbytes for name in file.files if not name.startswith("__"))
    assert table.total("packed_bytes") == packed.nbytes == stored


@settings(max_examples=30)
@given(networks())
def test_shapes_and_parameters(network):
    model, shape = network
    table = analysis.summary(model, shape)
    with no_grad():
        output = model(Tensor(np.zeros((1, *shape), np.float32)))
    assert table.rows[-1]["output_shape"] == output.shape[1:]
    assert table.total("parameters") == sum(p.numel() for p in model.parameters())
    for row, module in zip(table.rows, model, strict=True):
        assert row["type"] == type(module).__name__


def test_counts_of_a_known_network():
    """The layers of the small CNN on 28×28, counted by hand."""
    table = analysis.summary(models.cnn((1, 28, 28)), (1, 28, 28))
    products = [26**2 * 288, 11**2 * 18_432, 3**2 * 36_864, 34_560, 600]
    binary = [row for row in table.rows if row["type"].startswith("Binary")]
    assert [row["bops"] + row["flops"] for row in binary] == products
    assert table.total("flops") == products[0]  # real pixels: no binary operations
    assert table.ops == sum(products[1:]) / 64 + products[0]
    assert [row["weight_bits"] for row in binary] == [288, 18_432, 36_864, 34_560, 600]
    assert table.total("parameters") == 91_204


@pytest.mark.parametrize(
    ("layer", "shape", "bops", "flops", "bits"),
    [
        (nn.Linear(10, 4), (10,), 0, 40, 32 * 44),
        (nn.BinaryLinear(10, 4), (10,), 40, 0, 40),
        (nn.BinaryLinear(10, 4, scale="learned"), (10,), 40, 0, 40 + 128),
        (nn.BinaryLinear(10, 4, weight_quantizer="ste_tern"), (10,), 40, 0, 80),
        (nn.BinaryLinear(10, 4, input_quantizer=None), (10,), 0, 40, 40),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (4, 5, 7), 0, 35 * 108, 32 * 108),
        (nn.BinaryConv2d(4, 4, 3, stride=2, groups=4), (4, 7, 7), 9 * 36, 0, 36),
        (nn.ConvTranspose2d(3, 5, 2, stride=2, bias=False), (3, 4, 4), 0, 16 * 60, 32 * 60),
        (nn.AdaBinConv2d(3, 5, 2), (3, 4, 4), 9 * 60 + 9 * 12, 0, 60 + 32 * 12),
        (nn.BatchNorm2d(3), (3, 4, 4), 0, 0, 32 * 6),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else None,
)
def test_cost_of_a_layer(layer, shape, bops, flops, bits):
    cost = layer.cost(shape)
    assert (cost.bops, cost.flops, cost.weight_bits) == (bops, flops, bits)
    with no_grad():
        assert (
            cost.output_shape == layer.eval()(Tensor(np.zeros((1, *shape), np.float32))).shape[1:]
        )


def test_a_model_without_packed_form_says_why():
    class Softmax(nn.Module):
        def forward(self, x):
            return F.softmax(x, 1)

    table = analysis.summary(nn.Sequential(nn.BinaryLinear(9, 4), Softmax()), (9,))
    assert table.total("packed_bytes") is None
    assert "LogSoftmax has no packed form" in str(table)


def test_a_shared_layer_counts_once():
    shared = nn.BinaryLinear(6, 6)
    table = analysis.summary(nn.Sequential(shared, shared), (6,))
    assert [row["parameters"] for row in table.rows] == [36, 0]
    assert [row["bops"] for row in table.rows] == [36, 36]


def test_the_table():
    text = str(analysis.summary(models.mlp(64, hidden=(32,)), (64,)))
    lines = text.splitlines()
    assert lines[0].split() == [
        "layer", "output", "parameters", "bits", "packed", "bytes", "BOPs", "FLOPs",
    ]  # fmt: skip
    assert any(line.startswith("1 (BinaryLinear)") and "2,048" in line for line in lines)
    assert len({len(line) for line in lines if set(line) == {"-"}}) == 1
