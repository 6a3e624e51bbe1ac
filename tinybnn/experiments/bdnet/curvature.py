"""The Hessian of BD-Net's networks, at the start and at the end of training (Fig. 5).

The paper draws the ten largest eigenvalues of MobileNet V1: float, naively binarized, as ReActNet
and as BD-Net, and takes a lower first one and a flatter curve as the reason for the accuracy. What
it computed stands nowhere; ours is `analysis.HessianOperator` of the training loss, by the
estimators' derivatives, each batch normalised by its own statistics as in training.

Networks are trained as those of `bdnet-ablation`; a folder of that experiment with the same options
serves as well.
Beside their files, for each network: hessian-start.json and hessian-end.json; in RUN: hessian.json,
hessian.md, hessian.png.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinybnn import analysis, plots, tables
from tinybnn.experiments.bdnet import experiment
from tinybnn.experiments.bdnet.arms import PAIRS, chosen_arms, over_seeds
from tinybnn.experiments.bdnet.training import first_images, trained, trained_arms, untrained
from tinybnn.experiments.report_text import spread, top, when_and_where, wrapped
from tinybnn.experiments.run_folder import check_least, kept, open_folder, provenance
from tinybnn.storage import write_atomic, write_json

STAGES = ("start", "end")
COUNT = 10  # eigenvalues that the paper draws


@dataclass(frozen=True)
class Config(experiment.Config):
    """How the networks are trained, as in the other experiments of BD-Net, and looked at.

    Attributes
    ----------
    images : int
        The first training images, as they are, in batches of at most `batch_size`.
    steps : int
        Of Lanczos: products with the Hessian.
    """

    epochs: int = 5
    images: int = 512
    steps: int = 40

    def __post_init__(self):
        super().__post_init__()
        check_least(self, images=2, steps=COUNT)


QUICK = experiment.QUICK | {"epochs": 1, "images": 32, "steps": COUNT}


def run(out, config, seeds=3, arms=None, note="", graphs=1, threads=None, progress=True, say=print):
    """Train the networks and compute their spectra, or go on where an earlier call was stopped.

    Parameters and errors are those of `bdnet.run`, and:

    graphs : int
        Batches whose gradients stay in memory (`analysis.HessianOperator`).

    Returns
    -------
    dict
        The figures, as in ``hessian.json``: ``rows``, for each network, seed and stage the
        figures of `spectrum_of`, and ``summary`` (see `summary`).
    """
    chosen = chosen_arms("hessian", arms)
    data = experiment.load_for(config)
    out = Path(out)
    open_folder(out, config, say)
    result = {
        **provenance("hessian", config, config.command("hessian", seeds, arms), note=note),
        "arms": {name: arm.title for name, arm in chosen.items()},
        "rows": [],
    }
    for folder, about, arm in trained_arms(
        out, chosen, config, seeds, data, result["command"], threads, progress
    ):
        seed = about["seed"]
        models = (
            untrained(arm, config, seed, data[0]), trained(folder, arm, config, seed, data[0])
        )  # fmt: skip
        for stage, model in zip(STAGES, models, strict=True):
            found = kept(
                folder / f"hessian-{stage}.json",
                functools.partial(
                    spectrum_of, model, data[0], config, folder, stage, graphs, threads, progress
                ),
            )
            result["rows"].append({**about, "stage": stage, **found})
        found = ", ".join(f"{row['stage']} {row['top'][0]:.3g}" for row in result["rows"][-2:])
        say(f"{arm.title}, seed {seed}: largest eigenvalue at the {found}")
        write_json(out / "hessian.json", result)
    result["summary"] = summary(result)
    write_json(out / "hessian.json", result)
    write_atomic(out / "hessian.md", report(result).encode())
    draw(out / "hessian.png", result)
    say(f"{out / 'hessian.md'}: {len(result['rows'])} spectra")
    return result


def operator_of(model, images, config, graphs=1):
    """The Hessian of a network's loss on the first images of a Dataset, each batch normalised."""
    batches = first_images(images, config)
    return analysis.HessianOperator(model, batches, training=True, graphs=graphs)


def spectrum_of(model, images, config, folder, stage, graphs=1, threads=None, progress=True):
    """Eigenvalues of a network's Hessian on the first images of a Dataset.

    One iteration of Lanczos from a random vector tells both the largest eigenvalues and, as one
    sample of stochastic Lanczos quadrature, how all of them are distributed.

    Parameters
    ----------
    model : Module
        Left as it was.
    images : Dataset
    config : Config
    folder : path
        Of a checkpoint, which is removed when all is done.
    stage : str
        Stands in its name.
    graphs, threads, progress
        As in `run`.

    Returns
    -------
    dict
        ``top``, the largest eigenvalues, with ``residuals``; ``lowest``, the smallest one;
        ``mean_size``, the mean |λ| over all, and ``trace``, both estimated; ``nodes`` and
        ``weights`` of the density; ``parameters``, ``seconds``, ``machine``.
    """
    from tinybnn.kernels.machine.threads import num_threads

    checkpoint, start = folder / f"lanczos-{stage}.npz", time.perf_counter()
    with num_threads(threads):
        operator = operator_of(model, images, config, graphs)
        first = analysis.top_eigenvalues(
            operator, COUNT, tol=0, max_steps=config.steps, checkpoint=checkpoint, progress=progress
        )
    checkpoint.unlink(missing_ok=True)
    nodes, weights = first.nodes, first.weights
    return {
        "top": first.values.tolist(),
        "residuals": first.residuals.tolist(),
        "lowest": float(nodes.min()),
        "mean_size": float(weights @ np.abs(nodes)),
        "trace": float(weights @ nodes) * operator.size,
        "nodes": nodes.tolist(),
        "weights": weights.tolist(),
        "parameters": operator.size,
        "seconds": time.perf_counter() - start,
        "machine": analysis.machine(),
    }


# -------------------------------------------------------------------------------- what is concluded


def measures(row):
    """What a spectrum is held to; of both, smaller is better.

    Returns
    -------
    dict
        ``first``, the largest eigenvalue λ1; ``condition``, λ1 over the mean |λ| of all
        eigenvalues. (The paper's Eq. 2 divides by the smallest one, which says nothing where it is
        negative; ``lowest`` shows that it is.)
    """
    return {"first": row["top"][0], "condition": row["top"][0] / row["mean_size"]}


def summary(result):
    """The measures by stage, as `over_seeds` gives them; pairs are compared by ratios."""
    found = {}
    for row in result["rows"]:
        for measure, value in measures(row).items():
            found.setdefault((row["name"], row["stage"], measure), []).append(value)
    return over_seeds(found, np.divide)


_TITLES = {"first": "λ1", "condition": "λ1 / mean abs λ"}


def report(result):
    """``hessian.md`` as text."""
    config, rows = result["config"], result["rows"]
    note = f" ({result['note']})" if result["note"] else ""
    about = wrapped(
        f"""{when_and_where(result)}. {config["dataset"]}{note}, width {config["width"]:g}, BD-Net
        on {config["base"]}, {config["epochs"]} epochs. Hessian of the mean cross entropy on the
        first {config["images"]} training images, batches of {config["batch_size"]} with their own
        statistics, by the derivatives of the estimators (`analysis.HessianOperator`):
        {rows[0]["parameters"]:,} parameters in *{result["arms"][rows[0]["name"]]}*. Largest
        eigenvalues by at most {config["steps"]} steps of Lanczos, largest residual
        {_residual(rows):.1e} of the largest |λ|; the mean |λ| is estimated by the same iteration.
        Mean and standard deviation over the seeds."""
    )
    header = ["", "accuracy"]
    header += [f"{title}, {stage}" for title in _TITLES.values() for stage in STAGES]
    header += [f"lowest, {stage}" for stage in STAGES]
    table = tables.markdown(header, [_cells(result, name) for name in result["arms"]])
    parts = [top("The Hessian of BD-Net's networks (Fig. 5)", result), f"{about}\n", table]
    parts += ["![Eigenvalues](hessian.png)\n", "## What the paper claims\n", _claims(result)]
    return "\n".join(parts)


def _residual(rows):
    return max(max(row["residuals"]) / np.abs(row["nodes"]).max() for row in rows)


def _cells(result, name):
    own = [row for row in result["rows"] if row["name"] == name]
    ends = [row for row in own if row["stage"] == "end"]
    cells = [result["arms"][name], f"{100 * np.mean([row['accuracy'] for row in ends]):.1f}"]
    for measure in _TITLES:
        for stage in STAGES:
            cells.append(spread(result["summary"]["networks"][name][stage][measure]))
    for stage in STAGES:
        cells.append(f"{np.mean([row['lowest'] for row in own if row['stage'] == stage]):.3g}")
    return cells


def _claims(result):
    """Whether the first eigenvalue is lower and the condition better, pair by pair, in words."""
    items = []
    for low, high in PAIRS:
        pairs = [p for p in result["summary"]["pairs"] if (p["low"], p["high"]) == (low, high)]
        if not pairs:
            continue
        said = []
        for pair in pairs:
            ratios = np.array(pair["by_seed"])
            said.append(
                f"{_TITLES[pair['measure']]} at the {pair['where']} "
                f"×{np.exp(np.log(ratios).mean()):.2f} (smaller in {int((ratios < 1).sum())} of "
                f"{len(ratios)})"
            )
        titles = result["arms"]
        items.append(f"- *{titles[high]}* against *{titles[low]}*: {'; '.join(said)}.")
    return wrapped("Geometric means of the ratios, seed by seed.", "", *items) + "\n"


def draw(path, result):
    """The largest eigenvalues of all networks at the start and at the end, as a PNG file."""
    figure = plots.figure(figsize=(11, 4.5))
    for axes, stage in zip(figure.subplots(1, 2, sharey=True), STAGES, strict=True):
        rows = [row for row in result["rows"] if row["stage"] == stage]
        groups = {
            title: [row["top"] for row in rows if row["name"] == name]
            for name, title in result["arms"].items()
        }
        plots.eigenvalues(groups, ax=axes)
        axes.set(title=f"at the {stage} of training")
    plots.save(figure, path, "png")
