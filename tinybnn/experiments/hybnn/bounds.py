"""Estimators of gradients through binary latents, compared by the bound that training reaches.

Everything but the estimator is the same: statically binarized images, 200 Bernoulli latents, dense
layers 784 - 512 - 256 - 200 and back with ReLU and no batch norm (the shapes of the code of Jang et
al. 2017), Adam, and the number of codes that the decoder sees in training: an estimator that tries
two codes for each image gets half the epochs.

The published figures are those of Table 1 of Jang et al. (arXiv:1611.01144), on the same number of
latents: bounds from 1,000 codes weighted together, to be held against our multi-sample bound, not
against that from one code. Their binarized images, number of steps and optimizer are others.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import tinybnn.experiments.hybnn.features as features
from tinybnn import datasets, plots, tables
from tinybnn.experiments.report_text import top, wrapped
from tinybnn.experiments.run_folder import (
    as_options,
    check_least,
    kept,
    open_folder,
    provenance,
)
from tinybnn.models import BinaryVAE, latents
from tinybnn.models.binary_vae import HIDDEN
from tinybnn.storage import write_atomic, write_json

# Name -> (codes that it tries for an image, published bound in nats, from `PUBLISHED` codes).
PUBLISHED = 1000
ESTIMATORS = {
    "sign": (1, None),
    "straight_through": (1, 116.0),
    "straight_through_gumbel": (1, 111.5),
    "gumbel_softmax": (1, 105.0),
    "score_function": (2, 112.2),
    "disarm": (2, None),
}


@dataclass(frozen=True)
class Config:
    """What decides the bounds.

    Attributes
    ----------
    dataset : str
        See `features.load`.
    bits : int
        Latent variables.
    epochs : int
        Of an estimator that tries one code for each image; the others get fewer.
    samples : int
        Codes for each image in the multi-sample bound.
    lr : float
        Of Adam at the start; a cosine takes it to 0.
    seed : int
    limit : int, optional
        Only the first so many images, for training and for testing each.
    quick : bool
        Whether it is a run that only shows that the code runs.
    """

    dataset: str = "digits"
    bits: int = 200
    epochs: int = 100
    samples: int = 50
    lr: float = 1e-3
    seed: int = 0
    limit: int | None = None
    quick: bool = False

    def __post_init__(self):
        check_least(self, bits=1, epochs=1, samples=1)
        if not self.lr > 0:
            raise ValueError(f"Config: lr must be positive, got {self.lr!r}")

    def command(self):
        """The command that gives the figures of this configuration."""
        return " ".join(["tinybnn reproduce hybnn-bounds", *as_options(self)])


# Runs everything, too briefly for good figures.
QUICK = {"quick": True, "epochs": 2, "samples": 2, "limit": 300}


def binarized(images, rng):
    """Each pixel once and for all 0 or 1, with its brightness as the probability of 1.

    Parameters
    ----------
    images : Dataset
    rng : numpy.random.Generator

    Returns
    -------
    Dataset
        uint8, maximum 1.
    """
    drawn = rng.random(images.images.shape, np.float32) * images.maximum < images.images
    return dataclasses.replace(images, images=drawn.astype(np.uint8), maximum=1)


def run(out, config, estimators=tuple(ESTIMATORS), threads=None, progress=True, say=print):
    """Train a model with each estimator and measure its bounds, or go on where this was stopped.

    Parameters
    ----------
    out, threads, progress, say
        As in `hybnn.run`.
    config : Config
    estimators : sequence of str
        Keys of `ESTIMATORS`. More may be added later.

    Returns
    -------
    dict
        The figures, as in ``result.json``.

    Raises
    ------
    ValueError
        If the folder holds a run with another configuration, or something else.
    """
    out = Path(out)
    rng = np.random.default_rng(config.seed)
    train, test = (binarized(part, rng) for part in features.load(config.dataset, config.limit))
    open_folder(out, config, say)
    result = {
        **provenance("hybnn-bounds", config, config.command()),
        "images": {"train": len(train), "test": len(test), "shape": train.images.shape[1:]},
        "layers": list(HIDDEN),
        "rows": [],
    }
    for name in estimators:
        measure = partial(_measure, out, name, config, train, test, threads, progress)
        row = kept(out / f"{name}.json", measure)
        result["rows"].append(row)
        write_json(out / "result.json", result)
        say(f"{name}: bound {row['bound']:.2f} nats, with {config.samples} codes {row['best']:.2f}")
    write(out, result)
    say(f"{out / 'report.md'}: {len(result['rows'])} estimators")
    return result


def _measure(out, name, config, train, test, threads, progress):
    """Train with one estimator; its bounds on test images, as positive nats."""
    from tinybnn.kernels.machine.threads import num_threads

    codes, published = ESTIMATORS[name]
    rng = np.random.default_rng(config.seed)
    vae = BinaryVAE(
        train.images.shape[1:], config.bits, name, encoder="dense", latent_norm=False, rng=rng
    )
    epochs = max(1, config.epochs // codes)
    history = features.train_vae(
        out / f"{name}.npz", vae, train, epochs=epochs, lr=config.lr, rng=rng, threads=threads,
        progress=progress,
    )  # fmt: skip
    to_unit = datasets.to_unit(1)
    x, seen = to_unit(test.images, rng), to_unit(train.images[: len(test)], rng)
    rng = np.random.default_rng(config.seed)
    with num_threads(threads):
        bounds = [-float(vae.bound(x, m, rng).mean()) for m in (1, config.samples)]
        of_training = -float(vae.bound(seen, 1, rng).mean())
    last = history.rows[-1]
    return {
        "estimator": name,
        "repr": repr(vae.estimator),
        "codes": codes,
        "epochs": epochs,
        "seconds": sum(history["seconds"]),
        "training": last["reconstruction"] + last["rate"],
        "rate": last["rate"],
        "bound": bounds[0],
        "best": bounds[1],
        "bound_train": of_training,
        "published": published,
    }


def write(out, result):
    """Write ``report.md`` into the folder of a run, and its picture."""
    write_atomic(out / "report.md", text(result).encode())
    _draw(out / "bounds.png", result)


def text(result):
    """``report.md`` as text."""
    config, images, samples = result["config"], result["images"], result["config"]["samples"]
    layers = [int(np.prod(images["shape"])), *result["layers"], config["bits"]]
    about = wrapped(
        f"""{result["date"]}, {result["machine"]["processor"]}. {images["train"]:,} images for
        training, {images["test"]:,} for testing, each pixel drawn once with its brightness as the
        probability (seed {config["seed"]}). Encoder {" - ".join(map(str, layers))}, decoder the
        same backwards, ReLU; Adam {config["lr"]:g}, cosine to 0. Nats, lower is better: minus the
        bound on log p(x) in the mean of the test images, with codes of ±1, from one code for each
        image and from {samples} weighted together (Burda et al. 2016). Equal work: the decoder sees
        the same number of codes in training.""",
        "",
        f"""*sign* has no distribution: its rate is {config["bits"]} ln 2 =
        {config["bits"] * latents.LN2:.1f} nats whatever the image. *training* is the loss of the
        last epoch; for gumbel_softmax it is that of relaxed codes and bounds nothing. *training
        images* is the bound from one code, as for test images, on as many images of the training
        set: how far it lies below is what the network learned by heart. Published:
        Jang et al. 2017 (arXiv:1611.01144), Table 1, from {PUBLISHED:,} codes weighted together, to
        be held against our bound from {samples}, which is a little higher than that from
        {PUBLISHED:,} would be; with other binarized images, steps and optimizer than here.""",
    )
    rows = [
        [
            row["estimator"], row["codes"], row["epochs"], f"{row['seconds']:.0f}",
            f"{row['training']:.2f}", f"{row['bound_train']:.2f}", f"{row['bound']:.2f}",
            f"{row['best']:.2f}",
            "" if row["published"] is None else f"{row['published']:.1f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = [
        "estimator", "codes an image", "epochs", "seconds", "training", "training images",
        "bound, one code", f"{samples} codes", f"published, {PUBLISHED:,} codes, MNIST",
    ]  # fmt: skip
    title = f"Bounds for {config['bits']} binary latents on binarized {config['dataset']}"
    parts = [top(title, result), f"{about}\n", tables.markdown(header, rows)]
    return "\n".join([*parts, "![Bounds](bounds.png)\n"])


def _draw(path, result):
    """The bounds of all estimators, and the published ones."""
    figure, samples = plots.figure(figsize=(9, 3.6)), result["config"]["samples"]
    groups = {
        "one code": [(row["bound"], 0) for row in result["rows"]],
        f"{samples} codes": [(row["best"], 0) for row in result["rows"]],
        f"published, {PUBLISHED:,} codes": [
            (row["published"] or np.nan, 0) for row in result["rows"]
        ],
    }
    names = [row["estimator"].replace("_", "\n") for row in result["rows"]]
    plots.dots(groups, names, "minus the bound, nats", ax=figure)
    plots.save(figure, path)
