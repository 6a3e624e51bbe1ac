"""Architectures as pictures: boxes, shapes and paths are those of a forward pass."""

import numpy as np
import pytest
from test_plots import nearest_two, render

from tinybnn import functional as F
from tinybnn import models, nn, plots
from tinybnn.models.blocks import make_method
from tinybnn.tensor import Tensor


def texts(ax):
    return [text.get_text() for text in ax.texts]


def boxes(ax):
    from matplotlib.patches import FancyBboxPatch

    return [p for p in ax.patches if isinstance(p, FancyBboxPatch) and p.get_zorder() >= 1]


def arrows(ax):
    from matplotlib.patches import FancyArrowPatch

    return [p for p in ax.patches if isinstance(p, FancyArrowPatch)]


def thick(ax):
    """Arrows that carry signs."""
    return [arrow for arrow in arrows(ax) if arrow.get_linewidth() > 2]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def block(channels=8, **options):
    how = make_method("network", "bdnet-a", **options)
    return how.spatial(channels, 3, 1, nn.RPReLU(channels), np.random.default_rng(0))


def height_of(ax, name):
    return sorted(text.get_position()[1] for text in ax.texts if text.get_text() == name)


def test_the_block_of_bdnet():
    """Two signs and convolutions, added; the residual before the batch norm and behind it."""
    ax = plots.architecture(block(), (8, 6, 6))
    render(ax.figure)
    found = texts(ax)
    expected = {
        "input": 1, "RSign": 2, "BinaryConv2d": 2, "+": 3, "BatchNorm2d": 1, "RPReLU": 1,
        "output": 1,
    }  # fmt: skip
    assert {name: found.count(name) for name in expected} == expected
    assert found.count("3×3, depth-wise") == 2 and found.count("8×6×6") == 10
    last, before, branches = height_of(ax, "+")
    [norm] = height_of(ax, "BatchNorm2d")
    assert branches > before > norm > last
    assert len(boxes(ax)) == 11 and len(arrows(ax)) == 13 and len(thick(ax)) == 2
    assert legend(ax) == [
        "ternary or 1.58-bit products", "sign", "no products", "signs", "real values",
    ]  # fmt: skip


@pytest.mark.parametrize(("options", "additions", "kind"), [
    ({"pre_bn": False}, 2, "ternary or 1.58-bit products"),
    ({"dual": False}, 2, "sign products"),
    ({"dual": False, "pre_bn": False}, 1, "sign products"),
])  # fmt: skip
def test_blocks_that_lack_a_part_of_it(options, additions, kind):
    ax = plots.architecture(block(**options), (8, 6, 6))
    assert texts(ax).count("+") == additions and legend(ax)[0] == kind
    assert texts(ax).count("RSign") == 1 + options.get("dual", True)


def test_blocks_side_by_side():
    blocks = {"naive": block(dual=False, pre_bn=False), "BD-Net": block()}
    figure = plots.architectures(blocks, (8, 6, 6))
    render(figure)
    left, right = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["naive", "BD-Net"]
    assert (texts(left).count("+"), texts(right).count("+")) == (1, 3)
    for ax in figure.axes:
        box = ax.title.get_window_extent()
        assert box.y1 <= figure.bbox.y1 and not box.overlaps(ax.get_legend().get_window_extent())
    with pytest.raises(ValueError, match="architectures: expects a title and a Module"):
        plots.architectures({}, (8, 6, 6))


def test_a_box_is_as_colourful_as_its_products():
    """Real, of signs, ternary; signs inside of a layer are named there."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BinaryConv2d(4, 4, 3, groups=2),
        nn.BinaryConv2d(4, 4, 3, weight_quantizer="ste_tern"), nn.Flatten(),
        nn.Quantize("ste_tern"), nn.BinaryLinear(4, 2, input_quantizer=None),
    )  # fmt: skip
    ax = plots.architecture(model, (1, 7, 7))
    render(ax.figure)
    found = texts(ax)
    assert {"3×3", "3×3, 2 groups, sign(x)", "3×3, sign(x)", "SteTern", "4 → 2"} <= {*found}
    assert legend(ax)[:5] == [
        "sign products", "ternary or 1.58-bit products", "real products", "sign",
        "no products",
    ]  # fmt: skip
    assert found.count("1×7×7") == 1 and found.count("4×5×5") == 1


def test_boxes_that_some_people_do_not_tell_apart():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.BinaryConv2d(4, 4, 1),
        nn.BinaryConv2d(4, 4, 1, weight_quantizer="ste_tern"),
    )  # fmt: skip
    fills = {box.get_facecolor() for box in boxes(plots.architecture(model, (1, 2, 2)))}
    assert len(fills) == 5  # real, no products, signs, ternary, and white for input and output
    assert nearest_two(fills - {(1.0, 1.0, 1.0, 1.0)}) > 10


def test_binary_weights_on_real_pixels_are_real_products():
    ax = plots.architecture(
        nn.Sequential(nn.BinaryConv2d(1, 2, 3, input_quantizer=None)), (1, 5, 5)
    )
    assert legend(ax) == ["real products", "real values"]


def test_a_network_that_is_too_large_is_drawn_less_deep():
    network = models.mobilenet_v1(0.1, 32, 4, "bdnet-a", rng=np.random.default_rng(0))
    ax = plots.architecture(network, (3, 32, 32))
    render(ax.figure)
    assert 28 < len(boxes(ax)) <= 40
    deeper = plots.architecture(network, (3, 32, 32), depth=4)
    assert len(boxes(deeper)) > 150
    assert len(boxes(plots.architecture(network, (3, 32, 32), depth=1))) == len(boxes(ax))
    with pytest.raises(ValueError, match="architecture: depth must be at least 1, got 0"):
        plots.architecture(network, (3, 32, 32), depth=0)


def test_layers_without_products_in_the_box_in_front():
    model = models.cnn((1, 28, 28), rng=np.random.default_rng(0))
    ax = plots.architecture(model, (1, 28, 28), fold=True)
    render(ax.figure)
    assert len(boxes(ax)) == 7 and len(arrows(ax)) == 6
    assert texts(ax).count("MaxPool2d") == 2 and "64×5×5" in texts(ax)
    assert len(boxes(plots.architecture(model, (1, 28, 28)))) == 15


class Twice(nn.Module):
    """A layer that runs twice, and one that is skipped."""

    def __init__(self):
        self.layer, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return F.relu(self.layer(self.layer(x))) * x


def test_a_layer_that_runs_twice_or_never():
    ax = plots.architecture(Twice(), (4,))
    render(ax.figure)
    assert texts(ax).count("Linear") == 2 and texts(ax).count("×") == 1
    assert len(arrows(ax)) == 6


def test_the_model_keeps_its_mode_and_its_statistics():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    before = {key: np.array(value) for key, value in model.state_dict().items()}
    plots.architecture(model, (4,))
    assert model.training and model[1].training
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


def test_hybnn_has_its_parts():
    vae = models.BinaryVAE((1, 16, 16), 24, rng=np.random.default_rng(0))
    ax = plots.hybnn(vae, models.BinaryMLP(24, 8, 3, rng=np.random.default_rng(0)))
    render(ax.figure)
    found = texts(ax)
    assert {"input", "binary latent space", "24 signs", "reconstruction", "class scores"} <= {
        *found
    }
    assert found.count("ConvTranspose2d") == 3 and found.count("BinaryLinear") == 2
    assert found.count("Conv2d") == 3 and found.count("Linear") == 2
    assert len(thick(ax)) == 2  # the code goes to the decoder and to the binary network
    assert sum(text.get_rotation() == 90 for text in ax.texts) == 3  # titles of the three frames
    places = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert places["input"] > places["binary latent space"] > places["class scores"]


@pytest.mark.parametrize("draw", [
    lambda: plots.architecture(block(), (8, 6, 6)),
    lambda: plots.architecture(models.cnn((1, 8, 8), padding=1), (1, 8, 8), fold=True),
    lambda: plots.architecture(models.resnet20(0.25, 16, 4, "reactnet"), (3, 16, 16), 2),
    lambda: plots.hybnn(models.BinaryVAE((1, 8, 8), 16), models.BinaryMLP(16)),
])  # fmt: skip
def test_boxes_and_texts_that_overlap_or_are_cut_off(draw):
    ax = draw()
    ax.figure.draw_without_rendering()
    inside = ax.figure.bbox
    extents = [box.get_window_extent() for box in boxes(ax)]
    written = [text.get_window_extent() for text in ax.texts]
    for i, a in enumerate(extents):
        assert not any(a.overlaps(b) for b in extents[:i])
    for i, a in enumerate(written):
        assert not any(a.overlaps(b) for b in written[:i])
        assert inside.x0 <= a.x0 and a.x1 <= inside.x1 and inside.y0 <= a.y0 and a.y1 <= inside.y1
    assert not any(ax.get_legend().get_window_extent().overlaps(box) for box in extents)


def test_a_shape_that_the_model_does_not_take():
    with pytest.raises(ValueError, match="4"):
        plots.architecture(nn.Linear(4, 2), (3,))


class Outputs(nn.Module):
    """Gives what a function makes of its input."""

    def __init__(self, function):
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("function", [lambda x: (x, x * 2.0), lambda x: Tensor(x.data), len])
def test_an_output_that_does_not_come_from_the_input(function):
    with pytest.raises(ValueError, match="output must be one Tensor, computed from its input"):
        plots.architecture(Outputs(function), (4,))


def test_an_output_that_is_the_input():
    ax = plots.architecture(nn.Identity(), (4,))
    assert len(boxes(ax)) == 2 and len(arrows(ax)) == 1


def test_an_autoencoder_that_is_none():
    with pytest.raises(ValueError, match=r"hybnn: vae must be a models\.BinaryVAE, got Linear"):
        plots.hybnn(nn.Linear(4, 2), nn.Linear(2, 2))


def test_blocks_on_given_axes():
    figure = plots.figure(figsize=(9, 7))
    sides = figure.subplots(1, 2)
    blocks = {"a": block(), "b": block(dual=False)}
    assert plots.architectures(blocks, (8, 6, 6), ax=sides) is figure
    render(figure)
    assert [ax.get_title() for ax in sides] == ["a", "b"] and all(boxes(ax) for ax in sides)
    with pytest.raises(ValueError, match="ax must be 2 axes, one for each model, got 1"):
        plots.architectures(blocks, (8, 6, 6), ax=sides[0])
