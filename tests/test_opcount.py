"""Operation counts, and the figures of BD-Net's tables that they give."""

import json
from collections import Counter

import numpy as np
import pytest

from tinybnn import analysis, cli, models, nn
from tinybnn.analysis.opcount import count_operations
from tinybnn.experiments import ops


def rsign_and_conv(**options):
    return nn.Sequential(nn.RSign(8), nn.BinaryConv2d(8, 4, 3, input_quantizer=None, **options))


@pytest.mark.parametrize(
    ("layers", "bops", "flops"),
    [
        (rsign_and_conv(), 4 * 9 * 8 * 9, 0),
        (rsign_and_conv(weight_quantizer="ste_tern"), 4 * 9 * 8 * 9, 0),
        (rsign_and_conv(weight_quantizer="dorefa_weight"), 0, 4 * 9 * 8 * 9),
        (nn.Sequential(nn.ReLU(), nn.BinaryConv2d(8, 4, 3, input_quantizer=None)), 0, 2592),
        (nn.Sequential(nn.Quantize("magnitude_aware_sign"), rsign_and_conv()[1]), 0, 2592),
        (nn.Sequential(nn.Quantize(), nn.MaxPool2d(3, 1), rsign_and_conv()[1]), 4 * 72, 0),
        (nn.Sequential(nn.Quantize(), nn.Flatten(), nn.Linear(200, 3)), 0, 600),
        (nn.DualBinaryConv2d(8, 4, 3), 2 * 2592, 0),
        (nn.DualBinaryConv2d(8, 8, 3, groups=8, branches=3), 3 * 9 * 9 * 8, 0),
        (nn.BinaryDepthwiseConv2d(8, 3, stride=2), 4 * 9 * 8, 0),
        (nn.SqueezeExcite(8, 2), 0, 32),
    ],
    ids=str,
)
def test_products_of_signs_count_as_bops(layers, bops, flops):
    shape = (8, 5, 5)
    count = count_operations(layers, shape)
    assert (count.bops, count.flops) == (bops, flops)
    assert count.ops == bops / 64 + flops
    summary = analysis.summary(layers, shape)  # the summary agrees
    assert (summary.total("bops"), summary.total("flops")) == (bops, flops)
    assert summary.total("weight_bits") == count.weight_bits


def test_the_layers_of_a_count():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), rsign_and_conv(), nn.Flatten(), nn.Linear(36, 2)
    )
    count = count_operations(model, (3, 7, 7))
    assert [layer.name for layer in count.layers] == ["0", "2.0", "2.1", "4"]
    assert [layer.input_shape for layer in count.layers] == [(3, 7, 7), (8, 5, 5), (8, 5, 5), (36,)]
    assert [layer.output_shape for layer in count.layers] == [
        (8, 5, 5), (8, 5, 5), (4, 3, 3), (2,),
    ]  # fmt: skip
    assert [layer.weight_bits for layer in count.layers] == [32 * 216, 256, 288, 32 * 74]
    assert count.layers[2].layer is model[2][1]
    text = str(count).splitlines()
    assert text[3].split() == ["2.1", "(BinaryConv2d)", "4×3×3", "2,592", "0", "288"]
    assert text[-1] == f"OPs = BOPs / 64 + FLOPs: {25 * 216 + 72 + 2592 / 64:,.0f}"
    assert all(module.training for module in model.modules())


class Rows(nn.Module):
    def __init__(self):
        self.dense = nn.Linear(18, 3)

    def forward(self, x):
        return self.dense(x.reshape(x.shape[0], -1))


def test_a_forward_method_that_takes_no_empty_batch():
    assert count_operations(Rows(), (2, 3, 3)).flops == 54
    with pytest.raises(ValueError, match="linear"):
        count_operations(Rows(), (2, 3, 4))


def test_a_layer_that_runs_twice():
    shared = nn.BinaryConv2d(4, 4, 1)
    count = count_operations(nn.Sequential(shared, shared), (4, 2, 2))
    assert [layer.bops for layer in count.layers] == [64, 64]
    assert [layer.weight_bits for layer in count.layers] == [16, 0]


def test_known_networks():
    """Multiply-accumulates on 224×224 images with 1,000 classes, as published."""
    shape = (3, 224, 224)
    count = count_operations(models.mobilenet_v1(), shape)
    assert (count.bops, count.flops) == (0, 568_740_352)  # 569 million: MobileNets, Table 4
    assert count.weight_bits == 32 * 4_231_976  # batch norms: alpha and beta
    count = count_operations(models.mobilenet_v3_small(), shape)
    assert count.flops == 56_510_400  # 56 million: MobileNetV3, Table 4
    count = count_operations(models.resnet18(), shape)
    assert count.flops == 1_814_073_344  # 1.8 billion: He et al. 2016, Table 1


# --------------------------------------------------------------------------------- BD-Net's tables


@pytest.fixture(scope="module")
def rows():
    return ops.compare()


def test_figures_that_match(rows):
    counts = Counter((row["table"], row["match"]) for row in rows)
    assert counts == {
        (1, "exact"): 4,
        (2, "fitted"): 28, (2, "no"): 7,
        (3, "exact"): 5, (3, "fitted"): 2, (3, "no"): 14,
        (4, "exact"): 10, (4, "fitted"): 4, (4, "no"): 1,
        (5, "exact"): 14, (5, "fitted"): 1,
    }  # fmt: skip


def test_what_is_not_explained(rows):
    unexplained = [(r["table"], r["row"], r["dataset"]) for r in rows if r["match"] == "no"]
    assert [u for u in unexplained if u[0] != 3] == [
        (2, "ReActNet", "Flowers 102"),
        (2, "BD-Net-A (ReActNet)", "Flowers 102"),
        (2, "BD-Net-B (ReActNet)", "Tiny ImageNet"),
        (2, "BD-Net-B (ReActNet)", "Flowers 102"),
        (2, "AdaBin", "Flowers 102"),
        (2, "BD-Net-A (AdaBin)", "Flowers 102"),
        (2, "BD-Net-B (AdaBin)", "Flowers 102"),
        (4, "Full-Precision", "STL-10"),
    ]


def test_rows(rows):
    keys = {"table", "row", "dataset", "published", "true", "convention", "match", "fitted",
            "assumption"}  # fmt: skip
    for row in rows:
        assert set(row) == keys
        assert row["true"] > 0 and row["convention"] > 0
        assert (row["match"] == "fitted") == (row["fitted"] is not None)
        assert (row["assumption"] in ops.ASSUMPTIONS.values()) == (row["match"] == "fitted")
        close = row["convention"] if row["match"] == "exact" else row["fitted"]
        assert row["match"] == "no" or abs(close / row["published"] - 1) < 0.05
    assert {row["assumption"] for row in rows} - {None} == set(ops.ASSUMPTIONS.values())


def test_true_counts(rows):
    """In millions, with the dense layer of 10 classes, at 32×32."""
    true = {
        (row["table"], row["row"]): row["true"] / 1e6
        for row in rows
        if row["dataset"] == "CIFAR-10"
    }
    dense = 1024 * 10 / 1e6
    for name, expected in (
        ("Full-Precision", 46.344), ("ReActNet", 7.029), ("BD-Net-A (ReActNet)", 1.617),
        ("BD-Net-B (ReActNet)", 1.885),
    ):  # fmt: skip
        assert true[2, name] - dense == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("count", "published", "expected"),
    [
        (42_559_488, "42.6M", True), (42_649_999, "42.6M", True), (42_651_000, "42.6M", False),
        (14_022_740, "14.0M", True), (14_100_000, "14.0M", False), (56_448, "56K", True),
        (56_500.5, "56K", False), (32_500_000, "33M", False), (0.119e8, "0.12e8", True),
        (4.816e9, "4.82e9", True), (0.114e8, "0.12e8", False),
    ],
)  # fmt: skip
def test_a_count_prints_as_published(count, published, expected):
    assert ops.prints_as(count, published) is expected


def test_the_command(rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ops, "compare", lambda: rows)
    assert cli.main(["reproduce", "ops", "--json", str(tmp_path / "ops.json")]) == 0
    assert json.loads((tmp_path / "ops.json").read_text()) == json.loads(json.dumps(rows))
    text = capsys.readouterr().out
    assert "15 figures: 10 match exactly, 4 by a fitted assumption" in text
    lines = [line.split() for line in text.splitlines()]
    assert [
        "BD-Net-A", "(ReActNet)", "CIFAR-10", "1.56M", "1.627M", "1.617M", "1.558M", "fitted"
    ] in lines  # fmt: skip
    assert np.sum(["fitted:" in line for line in text.splitlines()]) == len(ops.ASSUMPTIONS)
