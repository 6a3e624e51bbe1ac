"""The loss landscapes of BD-Net's networks: the binary loss and its surrogate's (Fig. 2 and 6).

The paper draws the loss over two random, filter-normalized directions (Li et al. 2018) and calls
that of the naive network rough, those of the others smoother. A binary network has two losses: its
own, a staircase, and that of its surrogates, whose slope training follows. Both are drawn here, for
the trained networks in eval mode, on training images.

Two numbers replace the look at a picture (`measures`). Networks are trained as those of `hessian`;
a folder of that experiment with the same settings can be continued. Files of each network: line.npz
and, for seed 0, plane.npz (`analysis.load_landscape` reads them); in RUN: landscape.json,
landscape.md, the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tinybnn.experiments.bdnet.training as bdnet
from tinybnn import analysis, nn, plots
from tinybnn.analysis.landscape import SURFACES, Landscape
from tinybnn.datasets import Dataset
from tinybnn.experiments.bdnet.arms import over_seeds
from tinybnn.experiments.bdnet.curvature import ARMS
from tinybnn.experiments.bdnet.experiment import QUICK
from tinybnn.experiments.bdnet.report import pairs, setup
from tinybnn.experiments.report import page, save_picture, spread, table
from tinybnn.experiments.runner import Experiment, Run
from tinybnn.experiments.settings import setting
from tinybnn.typing import Array

REACH = 1.0  # of both directions, in lengths of the filters


@dataclass(frozen=True)
class Config(bdnet.Config):
    """How the networks are trained, as in the other experiments of BD-Net, and measured.

    The numbers of points are odd, so that the network itself is one of them.
    """

    epochs: int = setting(5, "epochs, of all steps", least=1)
    images: int = setting(512, "images on which the loss is computed", least=1)
    points: int = setting(41, "points along the line, an odd number", least=3)
    grid: int = setting(15, "points of the plane in each direction, an odd number", least=3)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("points", "grid"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"Config: {name} must be odd, got {getattr(self, name)}")


def _phases(run: Run, result: dict[str, Any]) -> Iterator[str]:
    data, config = run.options["data"], run.config
    result |= {
        "arms": {name: arm.title for name, arm in run.arms.items()},
        "alphas": np.linspace(-REACH, REACH, config.points).tolist(),
        "rows": [],
    }
    planes = {}
    for folder, row, arm in bdnet.trained_arms(run):
        name, seed = row["name"], row["seed"]
        model = bdnet.trained(folder, arm, config, seed, data[0])
        line, plane = surfaces_of(
            model, data[0], config, folder, seed, run.progress, arm.method == "float"
        )
        if plane is not None:
            planes[arm.title] = plane
            if run.options["html"]:
                path = run.out / f"landscape-{name}.html"
                plots.landscape_html(path, *plane.coordinates, plane.losses)
        about = {key: row[key] for key in ("name", "seed", "command")}
        about["accuracy"] = row["test_accuracy"]
        result["rows"] += [
            about | {"surface": surface, "losses": losses.tolist(), **measures(losses)}
            for surface, losses in line.losses.items()
        ]
        rugged = ", ".join(f"{r['surface']} {r['ruggedness']:.2f}" for r in result["rows"][-2:])
        yield f"{arm.title}, seed {seed}: ruggedness {rugged}"
    result["summary"] = summary(result)
    save_picture(run.out / "planes.png", (3.2 * len(planes), 6.8), _planes, planes)


def surfaces_of(
    model: nn.Module,
    images: Dataset,
    config: Config,
    folder: Path,
    seed: int,
    progress: bool = True,
    is_float: bool = False,
) -> tuple[Landscape, Landscape | None]:
    """Compute the losses of a network along a line and, for seed 0, over a plane.

    Parameters
    ----------
    model : Module
        Not changed.
    images : Dataset
        Images (N, C, H, W).
    config : Config
    folder : path
        For line.npz and plane.npz, which also hold what is not complete yet.
    seed : int
        Decides the directions, too: all networks of a seed have the same random numbers.
    progress : bool
    is_float : bool
        The network has no signs, and one surface.

    Returns
    -------
    line : Landscape
    plane : Landscape or None
    """
    directions = [analysis.random_direction(model, seed=[seed, i]) for i in range(2)]
    batches = bdnet.first_images(images, config)

    def surface(name, dimensions, points):
        return analysis.loss_landscape(
            model, batches, directions[:dimensions],
            [np.linspace(-REACH, REACH, points)] * dimensions, checkpoint=folder / f"{name}.npz",
            surfaces=("binary",) if is_float else SURFACES, progress=progress,
        )  # fmt: skip

    line = surface("line", 1, config.points)
    return line, None if seed else surface("plane", 2, config.grid)


# -------------------------------------------------------------------------------------- the report


def measures(losses: Array) -> dict[str, float]:
    """Measure how rough and how steep a loss is along a line; smaller is better for both.

    Parameters
    ----------
    losses : (P,) array
        P is odd; the network itself is in the middle.

    Returns
    -------
    dict
        ``loss`` of the network itself. ``ruggedness``: total variation along the line, over the
        least for a curve with its ends and its lowest point: 1 for a single valley, however narrow.
        ``rise``: the mean along the line less the loss in the middle.
    """
    losses = np.asarray(losses)
    variation = np.abs(np.diff(losses)).sum()
    least = losses[0] + losses[-1] - 2 * losses.min()
    middle = losses[len(losses) // 2]
    return {
        "loss": float(middle),
        "ruggedness": float(variation / least) if least else 1.0,
        "rise": float(losses.mean() - middle),
    }


_MEASURES = "loss", "ruggedness", "rise"


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Summarize the measures by surface, as `over_seeds` does; pairs are subtracted."""
    measured: dict[tuple[str, str, str], list[float]] = {}
    for row in result["rows"]:
        for measure in _MEASURES:
            measured.setdefault((row["name"], row["surface"], measure), []).append(row[measure])
    return over_seeds(measured, np.subtract)


def text(result: dict[str, Any]) -> str:
    """Return ``landscape.md`` as text."""
    config, means, titles = result["config"], result["summary"]["networks"], result["arms"]
    about = f"""{setup(result)}, {config["epochs"]} epochs. Cross entropy on the first
        {config["images"]} training images, in eval mode, at {config["points"]} points along one
        random direction and {config["grid"]}² over two, each filter as long as the network's.
        *binary*: the network itself; *surrogate*: with each sign replaced by the function whose
        derivative its estimator takes. *ruggedness*: total variation along the line over that of a
        single valley between the same ends, 1 at best; *rise*: mean along the line less the loss of
        the network. Mean and standard deviation over the seeds."""

    def cell(name, surface, measure):
        return spread(means[name][surface][measure]) if surface in means[name] else ""

    networks = table(
        titles,
        {"": titles.get}
        | {
            f"{surface}, {measure}": lambda name, where=(surface, measure): cell(name, *where)
            for surface in SURFACES
            for measure in _MEASURES
        },
    )
    return page(
        "The loss landscapes of BD-Net's networks (Fig. 2 and 6)", result, about, networks,
        "![Along a line](lines.png)", "![Over a plane](planes.png)", "## What the paper compares",
        pairs(result, "difference, mean", lambda x: f"{x.mean():+.2f}", 0),
    )  # fmt: skip


def _lines(figure, result):
    """Draw both losses along the line, a panel for each network."""
    panels = figure.subplots(2, -(-len(result["arms"]) // 2), squeeze=False).flat
    for (name, title), ax in zip(result["arms"].items(), panels, strict=False):
        losses = {}
        for row in result["rows"]:
            if row["name"] == name:
                losses.setdefault(row["surface"], []).append(row["losses"])
        if "surrogate" not in losses:  # a float network has one loss
            losses = {"float": losses["binary"]}
        plots.landscape(result["alphas"], losses, ax=ax)
        ax.set(title=title)


def _planes(figure, planes):
    """Draw the losses over the plane, a column for each network, a row for each surface."""
    panels = figure.subplots(2, len(planes), squeeze=False)
    for column, (title, plane) in zip(panels.T, planes.items(), strict=True):
        for surface, ax in zip(SURFACES, column, strict=True):
            if surface not in plane.losses:
                ax.set_axis_off()
                continue
            plots.contours(*plane.coordinates, plane.losses[surface], ax=ax)
            ax.set(title=f"{title}\n{surface if 'surrogate' in plane.losses else 'float'}")


EXPERIMENT = Experiment(
    "landscape", Config, _phases, text, {"lines.png": ((11, 6.5), _lines)}, bdnet.load_for,
    quick=QUICK | {"epochs": 1, "images": 32, "points": 5, "grid": 3},
    seeds=3, arms=ARMS, figures="landscape", report="landscape",
    options={"html": setting(False, "surfaces for a browser, too; needs plotly")},
    takes="a quarter of an hour a network on CIFAR-10",
    description="Train the networks of `tinybnn reproduce hessian` (a RUN of that experiment can "
    "be\ncontinued) and evaluate the loss around them along random directions: that of the binary\n"
    "network and that of its surrogates. The table (landscape.md), figures\n(landscape.json) and "
    "pictures go to RUN. Repeat the command after an interruption.",
    examples=(
        "tinybnn reproduce landscape --quick",
        "TINYBNN_DATA=DIR tinybnn reproduce landscape --seeds 3",
    ),
)  # fmt: skip
run: Callable[..., dict[str, Any]] = EXPERIMENT.run
