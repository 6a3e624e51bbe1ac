"""Pictures: they are drawn without a warning, and say what they show."""

import errno
import io
import itertools
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tinybnn import deploy, models, nn, plots, quantizers, training
from tinybnn import functional as F
from tinybnn.experiments import catalogue, classifiers, report
from tinybnn.experiments.hybnn import report as hybnn_report
from tinybnn.tensor import Tensor


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def render(figure):
    """Draw in full; pytest turns matplotlib's warnings into errors."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    assert file.getvalue()[:4] == b"\x89PNG"


def axes_of_figure(**options):
    figure = plots.figure(**options)
    return figure, figure.subplots()


def test_a_figure_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    figure, _ = axes_of_figure(figsize=(3, 2))
    for name, start in (("a.png", b"\x89PNG"), ("b.svg", b"<?xml"), ("c", b"\x89PNG")):
        plots.save(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    plots.save(figure, tmp_path / "d.txt", "png")
    assert (tmp_path / "d.txt").read_bytes() == (tmp_path / "c").read_bytes()
    with pytest.raises(ValueError, match="is not supported"):
        plots.save(figure, tmp_path / "a.txt")

    def half(file, **options):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(OSError, match=r"cannot write the file \(No space left on device\)"):
        plots.save(figure, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d.txt").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.svg", "c", "d.txt"]


def test_figures_need_no_display():
    import matplotlib.pyplot as plt

    figure, _ = axes_of_figure(figsize=(3, 2))
    render(figure)
    assert plt.get_fignums() == []  # nothing for a notebook to show twice, nothing to close


# -------------------------------------------------------------------------- what all pictures keep


def signs_of(*shape, seed=0):
    return np.where(normal(*shape, seed=seed) < 0, -1, 1)


def trained_cnn():
    """A small network whose thresholds differ from channel to channel."""
    model = models.cnn((1, 8, 8), 3, (4, 8, 8), 10, padding=1, rng=np.random.default_rng(0))
    x = normal(32, 1, 8, 8)
    model.train()
    model(Tensor(x))  # statistics of the batch norms
    return model.eval(), x


def sums_of_a_layer(**options):
    model, x = trained_cnn()
    return plots.layer_accumulators(model, x, "3", **options)


def file_of_a_cnn(**options):
    model, _ = trained_cnn()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.npz"
        deploy.compile(model, (1, 8, 8)).save(path)
        return plots.packed_file(path, **options)


# Every picture with arguments that it draws.
PICTURES = {
    "architecture": lambda **ax: plots.architecture(Residual(), (4, 8, 8), **ax),
    "accumulators": lambda **ax: plots.accumulators([[3, -1], [1, 1]], [0, 2], **ax),
    "contours": lambda **ax: plots.contours([-1, 0, 1], [-1, 1], np.arange(6).reshape(3, 2), **ax),
    "convolution": lambda **ax: plots.convolution(signs_of(1, 4, 4), signs_of(1, 3, 3), **ax),
    "curves": lambda **ax: plots.curves({"a": [1, 2]}, "loss", **ax),
    "curves_through": lambda **ax: plots.curves_through({"a": ([1, 2], [3, 4])}, **ax),
    "dots": lambda **ax: plots.dots({"a": [(1, 0)]}, ["x"], "accuracy", **ax),
    "eigenvalues": lambda **ax: plots.eigenvalues({"a": [3.0, 1.0]}, **ax),
    "flip_spectrum": lambda **ax: plots.flip_spectrum({"a": [-1.0, 2.0]}, **ax),
    "filters": lambda **ax: plots.filters(signs_of(4, 1, 3, 3), **ax),
    "graph": lambda **ax: plots.graph(Tensor(normal(3), requires_grad=True) * 2.0, **ax),
    "hybnn": lambda **ax: plots.hybnn(
        models.BinaryVAE((1, 8, 8), 16), models.BinaryMLP(16, 8), **ax
    ),
    "heat_map": lambda **ax: plots.heat_map(np.eye(3), **ax),
    "history": lambda **ax: plots.history(history_of(3), **ax),
    "images": lambda **ax: plots.images(np.ones((2, 1, 4, 4)), **ax),
    "landscape": lambda **ax: plots.landscape([-1, 0, 1], {"a": [2.0, 1.0, 2.0]}, **ax),
    "latents": lambda **ax: plots.latents(normal(100), **ax),
    "layer_accumulators": sums_of_a_layer,
    "packed_file": file_of_a_cnn,
    "partition": lambda **ax: plots.partition([0, 1, 1], [[0], [1, 2]], **ax),
    "quantizer": lambda **ax: plots.quantizer("ste_sign", **ax),
    "roofline": lambda **ax: plots.roofline([], 2e12, 20e9, **ax),
    "sign_flips": lambda **ax: plots.sign_flips(np.full((9, 2), 0.1), **ax),
    "spectrum": lambda **ax: plots.spectrum([0, 1, 2], [1.0, 0.0, 0.1], [2.0], **ax),
    "signs": lambda **ax: plots.signs(signs_of(3, 4), **ax),
    "table": lambda **ax: plots.table([("a", "b")], ("x", "y"), **ax),
    "trade_off": lambda **ax: plots.trade_off({"a": (1, 2, 0)}, "cost", "gain", **ax),
}  # fmt: skip

# These make a whole figure, change one or store it.
OTHERS = {
    "architectures",
    "figure",
    "landscape_html",
    "legend_beside",
    "logarithmic",
    "marks",
    "save",
    "whole_numbers",
    "zoom",
}


def test_a_picture_that_no_test_draws():
    functions = {name for name in plots.__all__ if callable(getattr(plots, name))}
    assert functions == {*PICTURES, *OTHERS}


@pytest.fixture
def unchanged():
    """Fails if a picture changes matplotlib's settings or leaves a figure to pyplot."""
    import matplotlib
    import matplotlib.pyplot as plt

    before, numbers = dict(matplotlib.rcParams), plt.get_fignums()
    backend = matplotlib.get_backend()
    yield
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == numbers
    assert matplotlib.get_backend() == backend


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_opens_a_window_or_changes_settings(name, unchanged):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    drawn = PICTURES[name]()
    assert isinstance(drawn, Axes | Figure)
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    render(figure)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_leaves_the_axes_it_was_given(name, unchanged):
    figure = plots.figure(figsize=(12, 5))
    left, right = figure.subplots(1, 2)
    drawn = PICTURES[name](ax=right)
    assert drawn is right or drawn is figure
    render(figure)
    assert not left.has_data() and not left.texts
    assert right.has_data() or right.texts or right.tables


@pytest.mark.parametrize("name", PICTURES)
def test_axes_that_are_none(name):
    with pytest.raises(TypeError, match=rf"{name}: ax must be matplotlib axes, got ndarray"):
        PICTURES[name](ax=plots.figure().subplots(1, 2))


def test_axes_that_come_first():
    """As an argument without a name, before all others."""
    axes = plots.figure().subplots()
    assert plots.curves(axes, {"a": [1, 2]}, "loss") is axes
    assert plots.curves({"a": [1, 2]}, "loss", ax=axes) is axes and len(axes.get_lines()) == 2


def test_axes_that_are_changed_are_returned():
    axes = plots.curves({"a": [1, 2]}, "loss")
    assert all(f(axes) is axes for f in (plots.zoom, plots.legend_beside))
    assert all(f(axes, "x") is axes for f in (plots.whole_numbers, plots.logarithmic))


# ------------------------------------------------------------------------- colours and marks

# Machado, Oliveira, Fernandes 2009: linear RGB as it is seen without one of the three cones.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lab(color, deficiency):
    """CIELAB of a colour as somebody sees it."""
    from matplotlib.colors import to_rgb

    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(deficiency) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ seen / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest_two(colors):
    """The smallest distance of two colours (ΔE of 1976), whoever looks."""
    return min(
        np.linalg.norm(lab(a, d) - lab(b, d))
        for d in DEFICIENCIES.values()
        for a, b in itertools.combinations(colors, 2)
    )


def test_colours_that_some_people_do_not_tell_apart():
    import matplotlib

    assert nearest_two(plots.PALETTE) > 10
    assert nearest_two(matplotlib.color_sequences["tab10"][:7]) < 10  # the test sees a bad palette
    assert nearest_two([*plots.PALETTE, "white"]) > 10
    assert {plots.MINUS, plots.PLUS} < {*plots.PALETTE}


def test_colours_are_written_down_once():
    """No picture of the package has colours of its own, but greys."""
    package = Path(plots.__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name != "canvas.py":
            assert not re.search(r"[\"']#[0-9a-fA-F]{6}[\"']|\btab10\b|\bcolormaps\b", text), path


def test_marks_do_not_repeat():
    first = list(itertools.islice(plots.marks(), 84))
    shapes, colors, styles = zip(*first, strict=True)
    assert len({*shapes[:12]}) == 12
    assert len({*zip(shapes, colors, strict=True)}) == 84
    assert len({*zip(colors[:28], styles[:28], strict=True)}) == 28


def looks_of(axes):
    """Marker, colour and line style of each entry of a legend."""
    entries = axes.get_legend_handles_labels()[0]
    lines = [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
    return [(line.get_marker(), line.get_color(), line.get_linestyle()) for line in lines]


def lies_beside(axes):
    """Whether the legend hides nothing of the axes, and nothing of it is cut off."""
    figure = axes.figure
    figure.draw_without_rendering()
    box = axes.get_legend().get_window_extent()
    is_whole = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    return is_whole and not axes.get_window_extent().overlaps(box)


@pytest.mark.parametrize("count", [2, 7, 11])
def test_entries_that_look_alike(count):
    """Of curves and of a trade-off; the legend is beside them."""
    _, axes = axes_of_figure(figsize=(8, 4))
    plots.curves({f"arm {i}": [i, i + 1.0] for i in range(count)}, "loss", ax=axes)
    assert len({*looks_of(axes)}) == count and lies_beside(axes)
    _, axes = axes_of_figure(figsize=(8, 4))
    points = {f"arm {i}": (1.0 + i, 50.0 + i, 0.5) for i in range(count)}
    plots.trade_off(points, "million OPs", "test accuracy, %", ax=axes)
    assert lies_beside(axes)
    shapes = [c[0].get_marker() for c in axes.containers]
    assert len({*shapes}) == count


# -------------------------------------------------------------------------------------- curves


def history_of(epochs, validation=True):
    history = training.History()
    for epoch in range(1, epochs + 1):
        history.rows.append({"epoch": epoch, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch})
        if validation:
            history.rows[-1]["val_accuracy"] = 0.5
    return history


@pytest.mark.parametrize("validation", [True, False])
def test_history(validation):
    figure, axes = axes_of_figure(figsize=(6, 4))
    plots.history(history_of(3, validation), ax=axes)
    render(figure)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["training loss", "training accuracy"] + ["validation accuracy"] * validation
    looks = [look for part in figure.axes for look in looks_of(part)]
    assert len({look[:2] for look in looks}) == len(labels) and lies_beside(axes)
    right = figure.axes[1]
    assert right.get_ylabel() == "accuracy, %" and right.get_lines()[0].get_ydata()[0] == 50


def drawn_ink(figure):
    """How many pixels of the picture have another colour than grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    return int(np.count_nonzero(np.ptp(pixels, axis=-1) > 40))


def test_curves_of_one_epoch_are_seen():
    """A line through one point is nothing: its marker is what is drawn."""
    for draw in (
        lambda axes: plots.history(history_of(1), ax=axes),
        lambda axes: plots.curves({"a": [0.5], "b": [0.7]}, "loss", ax=axes),
    ):
        figure, axes = axes_of_figure(figsize=(6, 4))
        draw(axes)
        axes.get_legend().remove()
        assert drawn_ink(figure) > 20


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 20, 1000])
def test_epochs_are_whole_numbers(epochs):
    for draw in (
        lambda axes: plots.history(history_of(epochs), ax=axes),
        lambda axes: plots.curves({"a": [0.5] * epochs}, "loss", ax=axes),
    ):
        figure, axes = axes_of_figure(figsize=(6, 4))
        draw(axes)
        figure.draw_without_rendering()
        low, high = axes.get_xlim()
        ticks = [t for t in axes.get_xticks() if low <= t <= high]
        assert ticks and all(t == round(t) for t in ticks)
        texts = [t.get_text() for t in axes.get_xticklabels()]
        assert all(text.lstrip("\N{MINUS SIGN}").isdigit() for text in texts)


@pytest.mark.parametrize(("points", "most"), [(2, 2), (25, 25), (26, 13), (1000, 25)])
def test_many_points_have_few_markers(points, most):
    _, axes = axes_of_figure()
    plots.curves({"a": np.arange(points), "b": np.arange(points)}, "loss", ax=axes)
    first, second = (line.get_markevery() for line in axes.get_lines())
    assert len(range(first[0], points, first[1])) == most
    assert points <= 25 or first[0] != second[0]  # not on top of one another


def test_a_zoom_leaves_out_the_first_rounds_only():
    def limits(*lines):
        _, axes = axes_of_figure()
        plots.curves({str(i): y for i, y in enumerate(lines)}, "accuracy", ax=axes)
        plots.zoom(axes)
        return axes.get_ylim()

    rising = [50, 97, *np.linspace(98, 99, 38)]
    low, high = limits(rising)
    assert 97.9 < low < 98.1 and 99 < high < 99.1
    low, _ = limits(rising, [99.0] * 39 + [60.0])
    assert low < 60  # what falls at the end is shown
    low, _ = limits(np.linspace(90, 99, 40))
    assert low < 90  # nothing is pressed together
    assert limits([50.0]) and limits([50.0] * 3)


# ---------------------------------------------------------------------------------------- dots


def test_values_near_one_another_are_shown_on_a_zoomed_axis():
    groups = {"a": [(99.1, 0.1), (99.5, 0.0)], "b": [(99.3, 0.2), (99.8, 0.1)]}
    figure = plots.figure(figsize=(8, 4))
    assert plots.dots(groups, ["x", "y"], "test accuracy, %", ax=figure) is figure
    [axes] = figure.axes
    render(figure)
    low, high = axes.get_ylim()
    assert 98.5 < low < 99.05 and 99.8 < high < 100.5
    assert axes.get_ylabel() == "test accuracy, %" and lies_beside(axes)
    places = [c[0].get_xdata() for c in axes.containers]
    assert all(round(x) == i for line in places for i, x in enumerate(line))
    assert (places[0] < places[1]).all()  # side by side


def test_values_far_from_the_others_break_the_axis():
    groups = {
        "a": [(99.1, 0.1), (99.5, 0.1)], "b": [(99.3, 0.2), (99.8, 0.1)],
        "chance": [(50.0, 1.0), (49.0, 1.0)], "missing": [(np.nan, 0), (99.7, 0)],
    }  # fmt: skip
    figure = plots.figure(figsize=(8, 4))
    upper, lower = plots.dots(groups, ["x", "y"], "test accuracy, %", ax=figure).axes
    render(figure)
    assert upper.get_ylim()[0] > 98 and lower.get_ylim()[1] < 60
    labels = [text.get_text() for text in upper.get_legend().get_texts()]
    assert labels == list(groups) and lies_beside(upper)
    drawn = [[len(c[0].get_ydata()) for c in axes.containers] for axes in (upper, lower)]
    assert drawn == [[2, 2, 0, 1], [0, 0, 2, 0]]
    heights = [axes.get_window_extent().height for axes in (upper, lower)]
    assert heights[0] > 2 * heights[1]  # where most of the values are


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_broken_axis_takes_the_place_of_the_axes_it_was_given(by_hand):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    if by_hand:  # a place of its own, none of a grid
        right.remove()
        right = figure.add_axes((0.6, 0.2, 0.2, 0.6))
    place = right.get_position()
    plots.dots({"a": [(99.0, 1), (98.9, 1), (50.0, 1)]}, "xyz", "accuracy", ax=right)
    render(figure)
    first, upper, lower = figure.axes
    assert first is left and right not in figure.axes and not left.has_data()
    above, below = upper.get_position(), lower.get_position()
    assert [above.x0, above.x1, above.y1] == pytest.approx([place.x0, place.x1, place.y1])
    assert [below.x0, below.x1, below.y0] == pytest.approx([place.x0, place.x1, place.y0])
    assert above.y0 > below.y1 and upper.get_ylabel() == "accuracy"


@pytest.mark.parametrize("values", [[0.97, 0.99], [0.5], [0.5, 0.5, 0.5], [0.1, 0.2, 0.35, 0.5]])
def test_values_without_a_gap_keep_one_axis(values):
    figure = plots.figure()
    groups = {str(i): [(value, 0.0)] for i, value in enumerate(values)}
    assert len(plots.dots(groups, ["x"], "accuracy", ax=figure).axes) == 1
    render(figure)


def test_long_names_below_a_heat_map():
    figure, axes = axes_of_figure(figsize=(5, 4))
    names = ["T-shirt/top / Trouser", "Bag / Ankle boot", "Shirt / Sneaker"]
    plots.heat_map(np.eye(3), names, names, ax=axes)
    figure.draw_without_rendering()
    assert {t.get_rotation() for t in axes.get_xticklabels()} == {30.0}
    ends = [t.get_window_extent() for t in axes.get_xticklabels()]
    assert all(e.x0 >= 0 and e.y0 >= 0 for e in ends)
    _, axes = axes_of_figure()
    plots.heat_map(np.eye(3), ["0 / 1", "2 / 3", "4 / 5"], names, ax=axes)
    assert {t.get_rotation() for t in axes.get_xticklabels()} == {0.0}


# ------------------------------------------------------- the pictures of the stored experiments

RESULTS = Path(__file__).parents[1] / "tinybnn" / "experiments" / "results"


def pictures_of_results(monkeypatch):
    """(name, figure) of each picture that is drawn from the stored figures of an experiment."""
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append((path, figure)))
    for file in sorted(RESULTS.glob("*/result.json")):
        result, out = json.loads(file.read_text(encoding="utf-8")), Path(file.parent.name)
        for name, (size, draw) in catalogue.experiment_of(result, file).pictures.items():
            report.save_picture(str(out / name), size, draw, result)
        if result["name"] == "hybnn":
            matrix = result["seeds"][0]["in_sequence"]
            arguments = hybnn_report._sequence, result["tasks"], matrix
            report.save_picture(f"{out}/in-sequence", (4.8, 4.2), *arguments)
    vgg = json.loads((RESULTS / "cifar10-vgg-small.json").read_text("utf-8"))
    report.save_picture("vgg", (9, 3), classifiers._draw, vgg)
    return drawn


def texts_of(figure):
    """(text, its box) of all that is written beside axes: numbers, labels, titles."""
    found = [figure._supylabel] if getattr(figure, "_supylabel", None) else []
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for i, (labels, (low, high)) in enumerate(
            ((axes.get_xticklabels(), axes.get_xlim()), (axes.get_yticklabels(), axes.get_ylim()))
        ):
            low, high = sorted((low, high))
            found += [label for label in labels if low <= label.get_position()[i] <= high]
    return [(t.get_text(), t.get_window_extent()) for t in found if t.get_text()]


def test_texts_and_legends_on_top_of_one_another(monkeypatch):
    """In none of the stored pictures; nothing is cut off, and no two entries look alike."""
    pictures = pictures_of_results(monkeypatch)
    assert len(pictures) >= 15
    for name, figure in pictures:
        render(figure)
        figure.draw_without_rendering()
        slanted = "in-sequence" in name  # boxes of slanted texts overlap where texts do not
        texts = texts_of(figure)
        legends = [(axes, axes.get_legend()) for axes in figure.axes if axes.get_legend()]
        boxes = [] if slanted else [*texts]
        boxes += [("legend", legend.get_window_extent()) for _, legend in legends]
        for (a, box), (b, other) in itertools.combinations(boxes, 2):
            assert not box.overlaps(other), (name, a, b)
        for text, box in [*texts, *boxes]:
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, (name, text)
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 + 1, (name, text)
        for axes, legend in legends:
            for other in figure.axes:
                box = other.get_window_extent()
                assert not box.overlaps(legend.get_window_extent()), name
            looks = looks_of(axes)
            assert 2 <= len({*looks}) == len(looks), (name, looks)


# ------------------------------------------------------------------------------------- weights


def test_signs_and_filters():
    figure = plots.figure()
    left, right = figure.subplots(1, 2)
    plots.signs(quantizers.sign(normal(4, 5)), title="weights", ax=left)
    plots.filters(nn.BinaryConv2d(2, 10, 3).binary_weight(), columns=4, ax=right)
    render(figure)
    assert left.get_title() == "weights"
    sheet = right.get_images()[0].get_array()
    assert sheet.shape == (3 * 4 - 1, 4 * 4 - 1)


def test_table():
    figure, axes = axes_of_figure()
    plots.table([("float32", "12 kB"), ("packed", "0.4 kB")], ("weights", "size"), ax=axes)
    render(figure)


# --------------------------------------------------------------------------------- quantizers


@pytest.mark.parametrize("name", sorted(quantizers._BY_NAME))
def test_quantizer(name):
    figure, axes = axes_of_figure()
    plots.quantizer(name, ax=axes)
    render(figure)
    q = quantizers.get(name)
    assert axes.get_title() == type(q).__name__
    assert axes.get_xlim() == (-2, 2)
    labels = ["forward", "pseudo-gradient", "surrogate"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == labels
    lines = {line.get_label(): line.get_data() for line in axes.get_lines()}
    for label, function in zip(labels, (q, q.pseudo_gradient, q.surrogate), strict=True):
        x, y = lines[label]
        assert (x[0], x[-1]) == (-2, 2)
        np.testing.assert_array_equal(y, function(x[None])[0])  # the points are one filter


def test_quantizer_that_is_given():
    figure, axes = axes_of_figure()
    plots.quantizer(quantizers.EdeSign(4.0), title="late", ax=axes)
    render(figure)
    assert axes.get_title() == "late"
    assert max(axes.get_lines()[3].get_ydata()) == 4
    with pytest.raises(ValueError, match="quantizer: expects a quantizer, got None"):
        plots.quantizer(None, ax=axes)
    with pytest.raises(ValueError, match="expects one of"):
        plots.quantizer("sgn", ax=axes)


# ------------------------------------------------------------------------------- the roofline


def measured(name, products, seconds, nbytes, peer="NumPy sgemm", **more):
    row = {
        "name": name, "shape": f"{products}", "products": products, "bytes": nbytes,
        "ours_s": seconds, "peer": peer, "peer_s": 10 * seconds,
        "peer_bytes": nbytes and 32 * nbytes,
    }  # fmt: skip
    return row | more


def test_roofline():
    rows = [
        measured("product", 10**9, 1e-3, 10**6),
        measured("product", 10**9, 1e-3, 10**6, peer="PyTorch"),  # the same point
        measured("product", 2 * 10**9, 1e-3, 10**6),
        measured("pack", None, 1e-3, 10**6),  # no product: no point
        measured("depth-wise", 10**8, 1e-3, 10**6, peer="PyTorch"),
    ]
    figure, axes = axes_of_figure()
    plots.roofline(rows, 2e12, 20e9, ax=axes)
    render(figure)
    roof, *points = axes.get_lines()
    x, y = roof.get_data()
    assert x[1] == 100 and list(y[1:]) == [2000, 2000]  # 2e12 / 20e9 products a byte: the ridge
    assert y[0] == pytest.approx(20 * x[0])
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in points]
    assert drawn == [
        ([1000, 2000], [1000, 2000]),
        ([100], [100]),
        ([1000 / 32, 2000 / 32], [100, 200]),  # sgemm
    ]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == [
        "product", " 1  1000000000", " 2  2000000000", "depth-wise", " 3  100000000",
        "NumPy sgemm, on floats",
    ]  # fmt: skip
    notes = [text.get_text() for text in axes.texts]
    assert notes == ["registers: 2,000 Gbit-MAC/s", "memory: 20 GB/s", "1", "2", "3"]


def test_the_numbers_of_a_roofline_are_legible():
    """Points as close together as kernels are: no number lies on another one."""
    rng = np.random.default_rng(0)
    rows = [
        measured("product", int(10**9 * factor), 1e-3 * factor / speed, 10**6)
        for factor, speed in rng.uniform(0.8, 1.25, (12, 2))
    ]
    figure, axes = axes_of_figure(figsize=(9, 6))
    plots.roofline(rows, 2e12, 20e9, ax=axes)
    figure.draw_without_rendering()
    boxes_of_texts = [text.get_window_extent() for text in axes.texts[2:]]
    assert len(boxes_of_texts) == 12
    for i, a in enumerate(boxes_of_texts):
        assert not any(a.overlaps(b) for b in boxes_of_texts[:i])


@pytest.mark.parametrize(("costs", "numbers"), [
    ([0.035, 0.09, 0.6], ["0.05", "0.1", "0.2", "0.5"]),
    ([7.0, 120.0, 3000.0], ["10", "100", "1000"]),
    ([1.0, 2.5], None),
])  # fmt: skip
def test_the_costs_of_a_trade_off_are_legible(costs, numbers):
    """Numbers as they are said, none on another one."""
    figure, axes = axes_of_figure(figsize=(4, 3))
    points = {f"{cost}": (cost, 50.0, 0.5) for cost in costs}
    plots.trade_off(points, "million OPs", "accuracy", legend=False, ax=axes)
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    labels = [t for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]
    if numbers:
        assert [t.get_text() for t in labels] == numbers
    boxes = [t.get_window_extent() for t in labels]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    assert axes.get_xscale() == ("log" if numbers else "linear")


def test_roofline_of_nothing():
    figure, axes = axes_of_figure()
    plots.roofline([measured("pack", None, 1e-3, None)], 2e12, 20e9, ax=axes)
    render(figure)
    assert len(axes.get_lines()) == 1


# ---------------------------------------------------------------------------------- the graph


def boxes(figure):
    """(name, shapes) -> number of boxes."""
    found = {}
    texts = [t.get_text() for t in figure.axes[0].texts]
    for pair in zip(texts[::2], texts[1::2], strict=True):
        found[pair] = found.get(pair, 0) + 1
    return found


def arrows(figure):
    from matplotlib.patches import FancyArrowPatch

    return [p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)]


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_graph_of_a_dense_layer():
    x, w, b = (
        Tensor(normal(4, 3)),
        Tensor(normal(3, 2), requires_grad=True),
        Tensor(normal(2), requires_grad=True),
    )
    figure = plots.graph(F.tanh(x @ w + b).mean(), names={"w": w, "b": b})
    render(figure)
    assert boxes(figure) == {
        ("constant", "(4, 3)"): 1,
        ("w", "(3, 2)"): 1,
        ("b", "(2,)"): 1,
        ("MatMul", "(4, 3), (3, 2) → (4, 2)"): 1,
        ("Add", "(4, 2), (2,) → (4, 2)"): 1,
        ("Tanh", "(4, 2)"): 1,
        ("Sum", "(4, 2) → ()"): 1,
        ("Mul", "()"): 1,
    }
    assert len(arrows(figure)) == 7
    assert legend(figure) == ["operation", "leaf that requires grad", "constant"]


def test_arrows_run_from_the_top_to_the_bottom():
    x = Tensor(normal(3), requires_grad=True)
    y = F.exp(x)
    figure = plots.graph((y * y * x).sum())  # x and y are used twice: one box each
    assert boxes(figure) == {
        ("leaf", "(3,)"): 1, ("Exp", "(3,)"): 1, ("Mul", "(3,)"): 2, ("Sum", "(3,) → ()"): 1,
    }  # fmt: skip
    paths = [arrow.get_path().vertices for arrow in arrows(figure)]
    assert len(paths) == 6
    assert all(path[0][1] > path[-3][1] for path in paths)  # the last three are the head, its tip
    place = {t.get_text(): t.get_position()[1] for t in figure.axes[0].texts}
    assert place["leaf"] > place["Exp"] > place["Mul"] > place["Sum"]
    assert legend(figure) == ["operation", "leaf that requires grad"]


def test_a_constant_that_is_used_twice_is_one_box():
    x, w = Tensor(normal(3)), Tensor(normal(3), requires_grad=True)
    figure = plots.graph((x * w * x).sum(), names={"x": x})
    assert boxes(figure)["x", "(3,)"] == 1
    # What no rule saves cannot be recognised.
    assert boxes(plots.graph((x + w + x).sum()))["constant", "(3,)"] == 2


class Residual(nn.Module):
    def __init__(self):
        self.sign = nn.RSign(4)
        self.first = nn.BinaryConv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.RPReLU(4)

    def forward(self, x):
        return self.act(self.norm(self.first(self.sign(x))) + x)


def drawn_boxes(figure):
    from matplotlib.patches import FancyBboxPatch

    patches = [p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]
    return [p.get_window_extent(figure.canvas.get_renderer()) for p in patches]


def test_graph_of_a_network_is_legible():
    """No two boxes touch, and every text lies in the picture and inside of its box."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Residual(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Quantize(), nn.BinaryLinear(16, 3, bias=True),
    )  # fmt: skip
    loss = F.cross_entropy(model(Tensor(normal(2, 1, 8, 8))), np.array([0, 2]))
    figure = plots.graph(loss, names=model.named_parameters())
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    found = boxes(figure)
    for name, parameter in model.named_parameters():
        assert found[name, str(parameter.shape)] == 1
    assert found["SignConv2d", "(2, 4, 8, 8), (4, 4, 3, 3) → (2, 4, 8, 8)"] == 1
    assert found["RSign", "(2, 4, 8, 8), (4,) → (2, 4, 8, 8)"] == 1
    assert found["SteSign", "(2, 16)"] == 1  # a quantizer under its own name
    extents = drawn_boxes(figure)
    assert sum(found.values()) == len(extents) >= 25
    for i, a in enumerate(extents):
        for b in extents[:i]:
            assert not a.overlaps(b)
    renderer, inside = figure.canvas.get_renderer(), figure.bbox
    for text in figure.axes[0].texts:
        box = text.get_window_extent(renderer)
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1
        assert inside.y0 <= box.y0 <= box.y1 <= inside.y1
        assert any(e.x0 <= box.x0 and box.x1 <= e.x1 and e.y0 <= box.y0 <= box.y1 <= e.y1
                   for e in extents), text.get_text()  # fmt: skip


def test_graph_on_given_axes():
    figure = plots.figure(figsize=(8, 4))
    left, right = figure.subplots(1, 2)
    x = Tensor(normal(3, 2), requires_grad=True)
    assert plots.graph(F.softmax(x * 2.0), ax=left) is figure
    plots.quantizer("ste_sign", ax=right)
    render(figure)
    assert [t.get_text() for t in left.texts][::2] == ["Exp", "LogSoftmax", "Mul", "leaf"]


def test_graph_of_a_leaf():
    figure = plots.graph(Tensor(normal(2, 3), requires_grad=True))
    render(figure)
    assert boxes(figure) == {("leaf", "(2, 3)"): 1}
    assert boxes(plots.graph(Tensor(1.0))) == {("constant", "()"): 1}


def test_graph_of_a_gradient():
    """With create_graph the backward pass is a graph too."""
    x = Tensor(normal(3), requires_grad=True)
    (x * x * x).sum().backward(create_graph=True)
    figure = plots.graph(x.grad)
    render(figure)
    assert len(arrows(figure)) > 4


def test_graph_that_was_freed():
    x = Tensor(normal(3), requires_grad=True)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"graph: the graph behind Sum was freed by backward"):
        plots.graph(y)


def test_graph_that_is_too_large():
    y = Tensor(1.0, requires_grad=True)
    for _ in range(10_000):
        y = y + 1.0
    with pytest.raises(ValueError, match="graph: more than 500 nodes"):
        plots.graph(y)


def test_the_picture_does_not_depend_on_chance():
    model = nn.Sequential(Residual(), Residual())
    x = Tensor(normal(1, 4, 4, 4))
    places = [[t.get_position() for t in plots.graph(model(x)).axes[0].texts] for _ in range(2)]
    assert places[0] == places[1]


@pytest.mark.parametrize("has_validation", [True, False])
def test_history_of_a_regression(has_validation):
    rows = [{"epoch": i, "loss": 1.0 / i} for i in (1, 2, 3)]
    if has_validation:
        rows = [{**row, "val_loss": 2 * row["loss"]} for row in rows]
    figure = plots.figure()
    axes = figure.add_subplot()
    plots.history(training.History(rows), ax=axes)
    render(figure)
    assert len(figure.axes) == 1 and len(axes.get_lines()) == 1 + has_validation
