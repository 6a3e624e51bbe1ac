"""The loss landscapes of BD-Net's networks: binary loss beside its surrogate's (Fig. 2 and 6).

The paper draws the loss over two random, filter-normalised directions (Li et al. 2018) and finds
the naive network's rough, the others' smoother. A binary network has two losses to draw: its own,
a staircase, and that of its surrogates, whose slope training follows. Here are both, of the trained
networks in eval mode, on training images.

Two numbers replace the look at a picture (`measures`). Networks are trained as those of `hessian`;
a folder of that experiment with the same options serves as well. Beside their files, for each
network: line.npz and, of seed 0, plane.npz (`analysis.load_landscape` reads them); in RUN:
landscape.json, landscape.md, the pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinybnn import analysis, plots, tables
from tinybnn.experiments.bdnet import experiment
from tinybnn.experiments.bdnet.arms import PAIRS, chosen_arms, over_seeds
from tinybnn.experiments.bdnet.training import first_images, trained, trained_arms
from tinybnn.experiments.report_text import spread, top, when_and_where, wrapped
from tinybnn.experiments.run_folder import check_least, open_folder, provenance
from tinybnn.storage import write_atomic, write_json

REACH = 1.0  # of both directions, in lengths of the filters


@dataclass(frozen=True)
class Config(experiment.Config):
    """How the networks are trained, as in the other experiments of BD-Net, and looked at.

    Attributes
    ----------
    images : int
        The first training images, as they are.
    points : int
        Of the line, between -1 and 1; odd, so that the network itself is one.
    grid : int
        Of the plane, along each direction; odd.
    """

    epochs: int = 5
    images: int = 512
    points: int = 41
    grid: int = 15

    def __post_init__(self):
        super().__post_init__()
        check_least(self, images=1, points=3, grid=3)
        for name in ("points", "grid"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"Config: {name} must be odd, got {getattr(self, name)}")


QUICK = experiment.QUICK | {"epochs": 1, "images": 32, "points": 5, "grid": 3}


def run(
    out, config, seeds=3, arms=None, note="", html=False, threads=None, progress=True, say=print
):
    """Train the networks and evaluate their losses, or go on where an earlier call was stopped.

    Parameters and errors are those of `bdnet.run`, and:

    html : bool
        Write the planes as landscape-NAME.html, to be turned in a browser; needs plotly.

    Returns
    -------
    dict
        The figures, as in ``landscape.json``: ``rows``, for each network, seed and surface
        ``losses`` along the line and the `measures`, and ``summary``.
    """
    chosen = chosen_arms("landscape", arms)
    data = experiment.load_for(config)
    out = Path(out)
    open_folder(out, config, say)
    result = {
        **provenance("landscape", config, config.command("landscape", seeds, arms), note=note),
        "arms": {name: arm.title for name, arm in chosen.items()},
        "alphas": np.linspace(-REACH, REACH, config.points).tolist(),
        "rows": [],
    }
    planes = {}
    for folder, about, arm in trained_arms(
        out, chosen, config, seeds, data, result["command"], threads, progress
    ):
        model = trained(folder, arm, config, about["seed"], data[0])
        line, plane = surfaces_of(
            model, data[0], config, folder, about["seed"], threads, progress, arm.method == "float"
        )
        if plane is not None:
            planes[about["name"]] = plane
            if html:
                axes = plane.coordinates
                path = out / f"landscape-{about['name']}.html"
                plots.landscape_html(path, *axes, plane.losses)
        for surface, losses in line.losses.items():
            row = {"surface": surface, "losses": losses.tolist(), **measures(losses)}
            result["rows"].append(about | row)
        found = ", ".join(f"{r['surface']} {r['ruggedness']:.2f}" for r in result["rows"][-2:])
        say(f"{arm.title}, seed {about['seed']}: ruggedness {found}")
        write_json(out / "landscape.json", result)
    result["summary"] = summary(result)
    write_json(out / "landscape.json", result)
    write_atomic(out / "landscape.md", report(result).encode())
    draw_lines(out / "lines.png", result)
    draw_planes(out / "planes.png", result, planes)
    say(f"{out / 'landscape.md'}: {len(planes)} planes, {len(result['rows'])} lines")
    return result


def surfaces_of(model, images, config, folder, seed, threads=None, progress=True, is_float=False):
    """The losses of a network along a line, and of seed 0 over a plane.

    Parameters
    ----------
    model : Module
        Left as it was.
    images : Dataset
    config : Config
    folder : path
        Of line.npz and plane.npz, which also hold what is not complete yet.
    seed : int
        Of the directions, too: all networks of a seed have the same random numbers.
    threads, progress
        As in `hybnn.run`.
    is_float : bool
        The network has no signs, and one surface.

    Returns
    -------
    (Landscape, Landscape or None)
    """
    from tinybnn.kernels.machine.threads import num_threads

    first, second = (analysis.random_direction(model, seed=[seed, i]) for i in range(2))
    batches = first_images(images, config)
    options = {
        "surfaces": ("binary",) if is_float else analysis.landscape.SURFACES, "progress": progress,
    }  # fmt: skip
    with num_threads(threads):
        line = analysis.loss_landscape(
            model, batches, [first], [np.linspace(-REACH, REACH, config.points)],
            checkpoint=folder / "line.npz", **options,
        )  # fmt: skip
        if seed:
            return line, None
        plane = analysis.loss_landscape(
            model, batches, [first, second], [np.linspace(-REACH, REACH, config.grid)] * 2,
            checkpoint=folder / "plane.npz", **options,
        )  # fmt: skip
    return line, plane


# -------------------------------------------------------------------------------- what is concluded


def measures(losses):
    """How rough and how steep a loss is along a line; of both, smaller is better.

    Parameters
    ----------
    losses : (P,) array
        P is odd; the network itself is in the middle.

    Returns
    -------
    dict
        ``loss``, of the network itself. ``ruggedness``: all the way up and down along the line,
        over the least for a curve with its ends and its lowest point: 1 for a single valley,
        however narrow. ``rise``: the mean along the line less the loss in the middle.
    """
    losses = np.asarray(losses)
    way = np.abs(np.diff(losses)).sum()
    least = losses[0] + losses[-1] - 2 * losses.min()
    middle = losses[len(losses) // 2]
    return {
        "loss": float(middle),
        "ruggedness": float(way / least) if least else 1.0,
        "rise": float(losses.mean() - middle),
    }


def summary(result):
    """The measures by surface, as `over_seeds` gives them; pairs are compared by differences."""
    found = {}
    for row in result["rows"]:
        for measure in _MEASURES:
            found.setdefault((row["name"], row["surface"], measure), []).append(row[measure])
    return over_seeds(found, np.subtract)


_MEASURES = "loss", "ruggedness", "rise"


def report(result):
    """``landscape.md`` as text."""
    config = result["config"]
    note = f" ({result['note']})" if result["note"] else ""
    about = wrapped(
        f"""{when_and_where(result)}. {config["dataset"]}{note}, width {config["width"]:g}, BD-Net
        on {config["base"]}, {config["epochs"]} epochs. Cross entropy on the first
        {config["images"]} training images, in eval mode, at {config["points"]} points along one
        random direction and {config["grid"]}² over two, each filter as long as the network's.
        *binary*: the network itself; *surrogate*: with each sign replaced by the function whose
        derivative its estimator takes. *ruggedness*: all the way up and down along the line over
        that of a single valley between the same ends, 1 at best; *rise*: mean along the line less
        the loss of the network. Mean and standard deviation over the seeds."""
    )
    surfaces = analysis.landscape.SURFACES
    header = ["", *(f"{surface}, {name}" for surface in surfaces for name in _MEASURES)]
    table = tables.markdown(header, [_cells(result, name, surfaces) for name in result["arms"]])
    parts = [top("The loss landscapes of BD-Net's networks (Fig. 2 and 6)", result)]
    parts += [f"{about}\n", table, "![Along a line](lines.png)\n", "![Over a plane](planes.png)\n"]
    return "\n".join([*parts, "## What the paper claims\n", _claims(result)])


def _cells(result, name, surfaces):
    found = result["summary"]["networks"][name]
    cells = [result["arms"][name]]
    for surface in surfaces:
        for measure in _MEASURES:
            cells.append(spread(found[surface][measure]) if surface in found else "")
    return cells


def _claims(result):
    """Whether a landscape is smoother than another, for both surfaces, in words."""
    items, titles = [], result["arms"]
    for low, high in PAIRS:
        said = []
        for pair in result["summary"]["pairs"]:
            if (pair["low"], pair["high"]) != (low, high) or pair["measure"] == "loss":
                continue
            gain = np.array(pair["by_seed"])
            said.append(
                f"{pair['measure']} of the {pair['where']} loss {gain.mean():+.2f} (smaller in "
                f"{int((gain < 0).sum())} of {len(gain)})"
            )
        if said:
            items.append(f"- *{titles[high]}* against *{titles[low]}*: {'; '.join(said)}.")
    return wrapped("Mean differences, seed by seed.", "", *items) + "\n"


def draw_lines(path, result):
    """Both losses along the line, a panel for each network, as a PNG file."""
    figure = plots.figure(figsize=(11, 6.5))
    panels = figure.subplots(2, -(-len(result["arms"]) // 2), squeeze=False).flat
    for (name, title), ax in zip(result["arms"].items(), panels, strict=False):
        rows = [row for row in result["rows"] if row["name"] == name]
        losses = {}
        for row in rows:
            losses.setdefault(row["surface"], []).append(row["losses"])
        if "surrogate" not in losses:  # a float network has one loss
            losses = {"float": losses["binary"]}
        plots.landscape(result["alphas"], losses, ax=ax)
        ax.set(title=title)
    plots.save(figure, path, "png")


def draw_planes(path, result, planes):
    """The losses over the plane, a column for each network, a row for each surface, as PNG."""
    figure = plots.figure(figsize=(3.2 * len(planes), 6.8))
    panels = figure.subplots(2, len(planes), squeeze=False)
    for column, (name, plane) in zip(panels.T, planes.items(), strict=True):
        for surface, ax in zip(analysis.landscape.SURFACES, column, strict=True):
            if surface not in plane.losses:
                ax.set_axis_off()
                continue
            plots.contours(*plane.coordinates, plane.losses[surface], ax=ax)
            which = surface if "surrogate" in plane.losses else "float"
            ax.set(title=f"{result['arms'][name]}\n{which}")
    plots.save(figure, path, "png")
