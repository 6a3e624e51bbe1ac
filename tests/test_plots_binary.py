"""Pictures of binary layers: the numbers they show are the numbers of the layer."""

import re

import numpy as np
import pytest
from test_plots import drawn_ink, normal, render, signs_of, trained_cnn

from tinybnn import deploy, nn, plots
from tinybnn import functional as F


def texts(ax):
    return [text.get_text() for text in ax.texts]


def number(text):
    return int(text.replace("\N{MINUS SIGN}", "-"))


# ------------------------------------------------------------------------- a convolution on bits


@pytest.mark.parametrize(("channels", "stride", "threshold"), [(1, 1, 1), (2, 1, -2), (3, 2, 3)])
def test_a_convolution_that_shows_other_sums_than_the_layer_has(channels, stride, threshold):
    x, weight = signs_of(channels, 6, 7), signs_of(1, channels, 3, 3, seed=1)
    expected = F.conv2d(x[None].astype("f4"), weight.astype("f4"), stride=stride)[0, 0].astype(int)
    assert threshold in expected  # which is +1
    positions = [(0, 0), (1, 1), tuple(np.argwhere(expected == threshold)[0])]
    ax = plots.convolution(x, weight, positions, stride, threshold)
    render(ax.figure)
    found = texts(ax)
    start = found.index("sums")
    shown = found[start - expected.size : start]
    assert [number(text) for text in shown] == [*expected.ravel()]
    start = next(i for i, text in enumerate(found) if text.startswith("sum ≥"))
    assert number(found[start].split()[-1]) == threshold
    shown = [number(text + "1") for text in found[start - expected.size : start]]
    assert shown == [*np.where(expected >= threshold, 1, -1).ravel()]
    lines = [text for text in found if text.startswith("popcount")]
    assert len(lines) == len(positions)
    for (row, column), text in zip(positions, lines, strict=True):
        ones, count = map(int, re.search(r"(\d+) of (\d+) agree", text).groups())
        total = number(re.search(r"= (\S+)\n", text)[1])
        assert f"sum = 2·{ones} \N{MINUS SIGN} {count} = " in text
        assert count == 9 * channels and total == 2 * ones - count == expected[row, column]
        assert number(re.search(r"output (\S+)", text)[1]) == (1 if total >= threshold else -1)


def test_a_convolution_has_a_cell_for_each_bit():
    ax = plots.convolution(signs_of(1, 5, 4), signs_of(1, 3, 3), [(0, 0), (2, 1)])
    bits = [text for text in texts(ax) if text in ("0", "1")]
    assert len([t for t in texts(ax) if t in ("+", "\N{MINUS SIGN}")]) == 20 + 9 + 6
    assert len(bits) == 2 * 3 * 9  # window, filter and XNOR of two positions
    assert {"image", "filter", "sums", "window", "XNOR", "sum ≥ 0"} < {*texts(ax)}


def test_texts_of_a_convolution_that_are_cut_off_or_overlap():
    ax = plots.convolution(signs_of(2, 5, 7), signs_of(2, 3, 3), [(0, 0), (1, 2), (2, 4)])
    ax.figure.draw_without_rendering()
    inside = ax.figure.bbox
    boxes = [text.get_window_extent() for text in ax.texts]
    for i, box in enumerate(boxes):
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1
        assert inside.y0 <= box.y0 and box.y1 <= inside.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize(("arguments", "message"), [
    ((normal(1, 4, 4), signs_of(1, 3, 3)), "x must be .* of ±1, got shape .1, 4, 4."),
    ((signs_of(4, 4), signs_of(1, 3, 3)), r"x must be .channels, height, width. of ±1, got shape"),
    ((signs_of(1, 4, 4), signs_of(2, 1, 3, 3)), "weight must be"),
    ((signs_of(1, 4, 4), signs_of(2, 3, 3)), "weight of shape .2, 3, 3. does not fit x"),
    ((signs_of(1, 2, 2), signs_of(1, 3, 3)), "weight of shape .1, 3, 3. does not fit x"),
    ((signs_of(1, 28, 28), signs_of(1, 3, 3)), "too large for a picture; show at most 12"),
    ((signs_of(1, 4, 4), signs_of(1, 3, 3), (2, 0)), "position .2, 0. is outside of the output"),
    ((signs_of(1, 4, 4), signs_of(1, 3, 3), []), "positions must be 1 to 6 pairs, got 0"),
    ((signs_of(1, 4, 4), signs_of(1, 3, 3), (0, 0), 0), "stride must be an int >= 1, got 0"),
])  # fmt: skip
def test_a_convolution_that_cannot_be_drawn(arguments, message):
    with pytest.raises(ValueError, match=f"convolution: .*{message}"):
        plots.convolution(*arguments)


# ------------------------------------------------------------------------------ sums and thresholds


def heights(ax):
    """(label, {sum: how often}) of both sides."""
    return [
        (bars.get_label(), {round(b.get_x() + b.get_width() / 2): b.get_height() for b in bars})
        for bars in ax.containers
    ]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_sums_on_the_wrong_side_of_a_threshold():
    sums = np.repeat([-3, -1, 1, 3], [1, 2, 3, 4])
    for threshold, flip, plus in ((1, False, (1, 3)), (0, False, (1, 3)), (1, True, (-3, -1))):
        ax = plots.accumulators(sums, threshold, flip)
        render(ax.figure)
        counts = {-3: 1, -1: 2, 1: 3, 3: 4}
        (_, minus_side), (_, plus_side) = heights(ax)
        assert plus_side == {s: n * (s in plus) for s, n in counts.items()}
        assert minus_side == {s: n * (s not in plus) for s, n in counts.items()}
        [line] = ax.get_lines()
        assert line.get_xdata()[0] == 0  # between the bars of -1 and 1
        assert labels(ax)[0].endswith(f"sum {'<' if flip else '≥'} {threshold}")


def test_thresholds_of_channels():
    rng = np.random.default_rng(0)
    sums = 2 * rng.binomial(9, 0.5, (100, 4)) - 9
    thresholds, flip = np.array([-3, 1, 1, 99]), np.array([False, False, True, False])
    ax = plots.accumulators(sums, thresholds, flip)
    render(ax.figure)
    assert labels(ax) == [
        "thresholds: +1 from here on (2)", "thresholds: +1 below (1)",
        "thresholds outside of these sums (1)", "becomes \N{MINUS SIGN}1", "becomes +1",
    ]  # fmt: skip
    plus = dict(heights(ax))["becomes +1"]
    assert sum(plus.values()) == np.count_nonzero((sums >= thresholds) != flip)
    marks = [(line.get_marker(), [*line.get_xdata()]) for line in ax.get_lines()[:2]]
    assert marks == [(">", [-4, 0]), ("<", [0])]
    assert max(ax.get_yticks()) <= 1.01 * ax.get_ylim()[1] / 1.33


def test_sums_of_odd_and_even_numbers_of_signs():
    """At the border of a padded image windows have fewer signs: bars stand at all integers."""
    bars = dict(heights(plots.accumulators([-2, -1, 0, 3], 0)))["becomes +1"]
    assert [*bars] == [-2, -1, 0, 1, 2, 3] and sum(bars.values()) == 2


@pytest.mark.parametrize(("arguments", "message"), [
    (([0.5, 1.0], 0), "sums must be integers, got float64"),
    (([], 0), "sums must be integers"),
    ((np.zeros((3, 2), int), [1, 2, 3]), "one threshold, or one for each of the last axis"),
    ((np.zeros((3, 2), int), [[1, 2]]), "one threshold, or one for each of the last axis"),
])  # fmt: skip
def test_sums_that_no_threshold_fits(arguments, message):
    with pytest.raises(ValueError, match=f"accumulators: .*{message}"):
        plots.accumulators(*arguments)


@pytest.mark.parametrize("channel", [None, 5])
def test_the_sums_of_a_layer_are_those_of_the_model(channel):
    model, x = trained_cnn()
    ax = plots.layer_accumulators(model, x, "6", channel)
    render(ax.figure)
    bits = np.where(_input_of(model, x, 6) >= 0, 1.0, -1.0)
    sums = F.conv2d(bits.astype("f4"), model[6].binary_weight(), padding=1)
    outputs = _input_of(model, x, 9)  # flattened: behind the batch norm
    if channel is not None:
        sums = sums[:, channel]
        outputs = outputs.reshape(len(x), 8, -1)[:, channel]
    shown = dict(heights(ax))
    both = {s: n + shown["becomes +1"][s] for s, n in shown["becomes \N{MINUS SIGN}1"].items()}
    values, counts = np.unique(sums, return_counts=True)
    assert {s: n for s, n in both.items() if n} == dict(zip(values, counts, strict=True))
    assert sum(shown["becomes +1"].values()) == np.count_nonzero(outputs >= 0)
    assert ax.get_title().startswith("6 (BinaryConv2d)")


def _input_of(model, x, layer):
    from tinybnn import Tensor, no_grad

    with no_grad():
        x = Tensor(x)
        for i in range(layer):
            x = model[i](x)
    return x.data


def test_a_packed_model_shows_the_same_sums():
    model, x = trained_cnn()
    packed = deploy.compile(model, (1, 8, 8))
    drawn = [heights(plots.layer_accumulators(m, x, "6")) for m in (model, packed)]
    assert drawn[0] == drawn[1] and drawn_ink(plots.layer_accumulators(packed, x, "6").figure)


def test_a_layer_without_thresholds():
    model, x = trained_cnn()
    for layer in ("0", "11", "absent"):  # real input; last layer; no layer
        message = f"layer {layer!r} has no sums with thresholds after them; these have: 3, 6, 9"
        with pytest.raises(ValueError, match=message):
            plots.layer_accumulators(model, x, layer)
    with pytest.raises(ValueError, match="channel must be one of 8, got 8"):
        plots.layer_accumulators(model, x, "3", 8)
    with pytest.raises(ValueError, match="these have: none"):
        plots.layer_accumulators(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), x, "1")
