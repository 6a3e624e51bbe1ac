"""Pictures of curvature, landscapes and flips: what is drawn are the numbers that were given."""

import builtins
import re
import subprocess
import sys

import numpy as np
import pytest
from test_plots import lies_beside, looks_of, normal, render

from tinybnn import plots


def line(ax, label):
    """x and y of a curve."""
    [found] = [entry for entry in ax.get_lines() if entry.get_label() == label]
    return found.get_data()


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bands(ax):
    from matplotlib.collections import PolyCollection

    return [c for c in ax.collections if isinstance(c, PolyCollection)]


# ------------------------------------------------------------------------------------- curvature


def test_a_spectrum_is_logarithmic_and_has_a_tick_for_each_eigenvalue():
    grid, density = np.linspace(-1, 9, 50), np.exp(-np.linspace(-1, 9, 50))
    ax = plots.spectrum(grid, density, [8.5, 7.0])
    render(ax.figure)
    assert ax.get_yscale() == "log" and lies_beside(ax)
    x, y = line(ax, "spectral density")
    np.testing.assert_array_equal(x, grid)
    np.testing.assert_allclose(y, density)
    x, _ = line(ax, "eigenvalues; the largest: 8.5")
    assert [*x] == [8.5, 7.0]
    assert labels(plots.spectrum(grid, density)) == ["spectral density"]


def test_a_density_of_zero_on_a_logarithmic_axis():
    ax = plots.spectrum([0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 1e-30, 0.5])
    render(ax.figure)
    _, y = line(ax, "spectral density")
    assert (y > 0).all() and ax.get_ylim()[0] >= 1e-8


@pytest.mark.parametrize(("grid", "density", "message"), [
    ([0, 1], [1.0], "one length, got 2 and 1"),
    ([0, 1], [1.0, -1.0], "not its logarithm"),
    ([0, 1], [0.0, 0.0], "at least 0, one of them positive"),
    ([], [], "at least 0, one of them positive"),
    ([[0, 1]], [1.0, 2.0], r"grid must have one dimension, got shape \(1, 2\)"),
])  # fmt: skip
def test_a_density_that_is_none(grid, density, message):
    with pytest.raises(ValueError, match=f"spectrum: .*{message}"):
        plots.spectrum(grid, density)


def test_eigenvalues_of_several_networks():
    values = np.array([[90.0, 20.0, 6.0], [110.0, 30.0, 4.0]])
    ax = plots.eigenvalues({"float": values, "binary": 100 * values[0]})
    render(ax.figure)
    x, y = line(ax, "float")
    assert [*x] == [1, 2, 3] and [*y] == [100, 25, 5]
    assert [*line(ax, "binary")[1]] == [9000, 2000, 600]
    assert ax.get_yscale() == "log" and len({*looks_of(ax)}) == 2 and lies_beside(ax)
    [band] = bands(ax)  # of the one with two seeds
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (4, 110)


def test_eigenvalues_that_no_logarithmic_axis_shows():
    assert plots.eigenvalues({"a": [3.0, 1.0, -0.5]}).get_yscale() == "linear"
    assert plots.eigenvalues({"a": [3.0, 2.0]}).get_yscale() == "linear"
    for groups, message in (
        ({}, "got none"),
        ({"a": []}, "'a'"),
        ({"a": np.ones((2, 2, 2))}, "'a'"),
    ):
        with pytest.raises(ValueError, match=f"eigenvalues: .*{message}"):
            plots.eigenvalues(groups)


# ------------------------------------------------------------------------------------- landscapes


def test_a_landscape_of_a_surrogate_and_of_its_binary_network():
    alphas = np.linspace(-1, 1, 21)
    seeds = np.stack([alphas**2, alphas**2 + 1])
    ax = plots.landscape(alphas, {"surrogate": seeds, "binary": np.abs(alphas)})
    render(ax.figure)
    np.testing.assert_allclose(line(ax, "surrogate")[1], alphas**2 + 0.5)
    np.testing.assert_array_equal(line(ax, "binary")[1], np.abs(alphas))
    assert labels(ax) == ["surrogate", "binary"] and ax.get_xlim() == (-1, 1)
    assert len(bands(ax)) == 1 and len({*looks_of(ax)}) == 2


def test_a_loss_that_overflows_is_a_gap():
    ax = plots.landscape([-1, 0, 1], {"a": [np.inf, 1.0, np.nan]})
    render(ax.figure)
    np.testing.assert_array_equal(line(ax, "a")[1], [np.nan, 1.0, np.nan])
    with pytest.raises(ValueError, match="the losses of 'a' must be one for each of 3 alphas"):
        plots.landscape([-1, 0, 1], {"a": [1.0, 2.0]})


def test_contours_that_exchange_the_two_directions():
    """The loss rises along the first direction: its contours are upright."""
    alphas, betas = np.linspace(0, 1, 5), np.linspace(-1, 1, 4)
    losses = np.repeat(alphas[:, None], 4, 1)
    ax = plots.contours(alphas, betas, losses, [[1.0, 0.5], [0.5, 0.2], [0.0, 0.0]])
    render(ax.figure)
    assert ax.get_xlim() == (0, 1) and ax.get_ylim() == (-1, 1)
    assert "first" in ax.get_xlabel() and "second" in ax.get_ylabel()
    lines = ax.collections[1]  # behind the filled ones
    segments = [s for path in lines.get_paths() for s in path.to_polygons(closed_only=False)]
    upright = [np.ptp(s[:, 0]) < 1e-9 for s in segments if np.ptp(s[:, 1]) > 0.1]
    assert len(upright) >= 3 and all(upright)
    x, y = line(ax, "training")
    assert [*x] == [1, 0.5, 0] and [*y] == [0.5, 0.2, 0]
    assert [*line(ax, "its start")[0]] == [1] and [*line(ax, "the network")[0]] == [0]
    assert labels(ax) == ["training", "its start", "the network"]


@pytest.mark.parametrize("losses", [
    np.full((3, 3), 2.0), np.geomspace(1, 1e6, 9).reshape(3, 3), -np.arange(9.0).reshape(3, 3),
    np.where(np.eye(3) > 0, np.inf, 1.0 + np.arange(9).reshape(3, 3)),
])  # fmt: skip
def test_contours_of_losses_that_are_flat_huge_negative_or_infinite(losses):
    ax = plots.contours([-1, 0, 1], [-1, 0, 1], losses)
    render(ax.figure)
    assert labels(ax) == ["the network"]


@pytest.mark.parametrize(("arguments", "message"), [
    (([0, 1], [0, 1, 2], np.zeros((3, 2))), r"shape \(alphas, betas\), \(2, 3\)"),
    (([0], [0, 1], np.zeros((1, 2))), "at least 2 of each"),
    (([0, 1], [0, 1], np.full((2, 2), np.nan)), "no loss is finite"),
    (([0, 1], [0, 1], np.eye(2), [0, 1]), r"trajectory must be \(points, 2\)"),
])  # fmt: skip
def test_contours_of_shapes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=f"contours: .*{message}"):
        plots.contours(*arguments)


# ------------------------------------------------------------------------- surfaces in a browser


def test_a_surface_without_its_library(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("plotly"):
            raise ModuleNotFoundError("No module named 'plotly'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs plotly; .*pip install 'tinybnn\[interactive\]'"):
        plots.landscape_html(tmp_path / "a.html", [0, 1], [0, 1], np.eye(2))
    assert not any(tmp_path.iterdir())


def test_the_library_is_not_imported_before_it_is_needed():
    code = "import sys, tinybnn.plots as p; p.landscape([0, 1], {'a': [1, 2]}); "
    code += "sys.exit('plotly' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_surface_needs_nothing_but_its_file(tmp_path):
    pytest.importorskip("plotly")
    alphas, betas = np.linspace(-1, 1, 5), np.linspace(-1, 1, 4)
    losses = alphas[:, None] ** 2 + betas
    way = [[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]]
    path = tmp_path / "surface.html"
    figure = plots.landscape_html(path, alphas, betas, {"a": losses, "b": losses + 1}, way)
    assert [trace.name for trace in figure.data] == ["a", "b", "training"]
    np.testing.assert_array_equal(figure.data[0].z, losses.T)
    text = path.read_text(encoding="utf-8")
    assert len(text) > 1e6 and not re.search(r"<script[^>]*\ssrc=|<link[^>]*\shref=", text)
    first = path.read_bytes()
    plots.landscape_html(path, alphas, betas, {"a": losses, "b": losses + 1}, way)
    assert path.read_bytes() == first
    with pytest.raises(ValueError, match=r"trajectory must be \(points, 3\)"):
        plots.landscape_html(path, alphas, betas, losses, [[0, 0]])
    assert path.read_bytes() == first


# ------------------------------------------------------------------------------ signs in training


def test_flips_from_the_best_to_the_worst():
    ax = plots.flip_spectrum({"a": np.array([[3.0, -1.0], [1.0, 0.0]]), "b": [0.5]})
    render(ax.figure)
    x, y = line(ax, "a: 25% lower the loss")
    assert [*x] == [12.5, 37.5, 62.5, 87.5] and [*y] == [-1, 0, 1, 3]
    assert labels(ax) == ["a: 25% lower the loss", "b: 0% lower the loss"]
    render(plots.flip_spectrum({"a": np.zeros(5)}).figure)
    for changes in ({}, {"a": []}):
        with pytest.raises(ValueError, match="flip_spectrum: expects changes"):
            plots.flip_spectrum(changes)


@pytest.mark.parametrize(("steps", "columns"), [(1, 1), (9, 9), (401, 201), (3000, 375)])
def test_flips_of_layers_and_steps(steps, columns):
    flips = np.linspace(0, 1, steps)[:, None] * [0.1, 0.4]
    ax = plots.sign_flips(flips, ["first", "second"])
    render(ax.figure)
    shown = ax.get_images()[0].get_array()
    assert shown.shape == (2, columns)
    width = -(-steps // columns)
    expected = [100 * flips[i : i + width].mean(0) for i in range(0, steps, width)]
    np.testing.assert_allclose(shown.T, expected)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["first", "second"]
    assert ax.get_xlim() == (0.5, steps + 0.5)


@pytest.mark.parametrize(("arguments", "message"), [
    ((np.full((3, 2), 7),), "shares from 0 to 1 .* divide counts by the number of weights"),
    ((np.zeros(3),), r"\(steps, layers\), got shape \(3,\)"),
    ((np.zeros((3, 2)), ["a"]), "expects 2 names, got 1"),
])  # fmt: skip
def test_flips_that_are_no_shares(arguments, message):
    with pytest.raises(ValueError, match=f"sign_flips: .*{message}"):
        plots.sign_flips(*arguments)


def test_latent_weights_on_the_wrong_side_of_the_clip():
    weights = np.array([-2.0, -1.0, -0.99, 0.0, 0.5, 1.0, 1.0, 1.01])
    ax = plots.latents(weights)
    render(ax.figure)
    assert labels(ax) == [
        "inside: 37.5%", "at the clip: 37.5%", "beyond, without gradient: 25.0%",
    ]  # fmt: skip
    inside, at, beyond = (
        {(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars if bar.get_height()}
        for bars in ax.containers
    )
    assert all(a >= -1 and b <= 1 + 1e-9 for a, b in inside | at)
    assert all(b <= -1 + 1e-9 or a >= 1 - 1e-9 for a, b in beyond)
    assert sum(bar.get_height() for bars in ax.containers for bar in bars) == len(weights)


def test_latent_weights_without_a_clip():
    ax = plots.latents(normal(1000), clip=None)
    render(ax.figure)
    assert labels(ax) == ["latent weights"]
    assert sum(bar.get_height() for bar in ax.containers[0]) == 1000
    render(plots.latents(np.zeros(3)).figure)
    for arguments, message in (
        (([],), "finite"),
        (([np.nan],), "finite"),
        (([1.0], 0), "positive"),
    ):
        with pytest.raises(ValueError, match=f"latents: .*{message}"):
            plots.latents(*arguments)
