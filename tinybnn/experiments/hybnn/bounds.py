"""Estimators of gradients through binary latents, compared by the bound that training reaches.

Everything but the estimator is the same: statically binarized images, 200 Bernoulli latents, dense
layers 784 - 512 - 256 - 200 and back with ReLU and no batch norm (the shapes of the code of Jang et
al. 2017), Adam, and the number of codes that the decoder sees in training: an estimator that tries
two codes for each image gets half the epochs.

The published figures are those of Table 1 of Jang et al. (arXiv:1611.01144), for the same number of
latents: bounds from 1,000 codes weighted together, comparable to our multi-sample bound but not to
the bound from one code. Binarized images, number of steps and optimizer differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinybnn import datasets, plots
from tinybnn.datasets import Dataset
from tinybnn.experiments.hybnn.features import IMAGES, load_for, train_vae
from tinybnn.experiments.report import fixed, page, table
from tinybnn.experiments.runner import Experiment, Run, kept, seeded
from tinybnn.experiments.settings import ImageConfig, setting
from tinybnn.models import BinaryVAE, latents
from tinybnn.models.binary_vae import HIDDEN

PUBLISHED = 1000  # codes of a published bound

# Name -> (codes that it tries for an image, published bound in nats).
ESTIMATORS: dict[str, tuple[int, float | None]] = {
    "sign": (1, None),
    "straight_through": (1, 116.0),
    "straight_through_gumbel": (1, 111.5),
    "gumbel_softmax": (1, 105.0),
    "score_function": (2, 112.2),
    "disarm": (2, None),
}


@dataclass(frozen=True)
class Config(ImageConfig):
    """What decides the bounds."""

    dataset: str = setting("digits", IMAGES, images=True)
    bits: int = setting(200, "latent variables", least=1)
    epochs: int = setting(100, "epochs of an estimator that tries one code for each image", least=1)
    samples: int = setting(50, "codes of the multi-sample bound", least=1)
    lr: float = setting(1e-3, "learning rate of Adam at the start, by a cosine to 0", above=0)


def binarized(images: Dataset, rng: np.random.Generator) -> Dataset:
    """Draw each pixel once as 0 or 1, with its brightness as the probability of 1.

    Parameters
    ----------
    images : Dataset
    rng : numpy.random.Generator

    Returns
    -------
    Dataset
        Images (N, C, H, W) uint8, maximum 1.
    """
    drawn = rng.random(images.images.shape, np.float32) * images.maximum < images.images
    return dataclasses.replace(images, images=drawn.astype(np.uint8), maximum=1)


def _phases(run: Run, result: dict[str, Any]) -> Iterator[str]:
    """Train a model with each estimator and measure its bounds on test images."""
    data = run.options["data"]
    shape = data[0].images.shape[1:]
    result |= {
        "images": {"train": len(data[0]), "test": len(data[1]), "shape": shape},
        "layers": list(HIDDEN),
        "rows": [],
    }
    for seed in range(run.seeds):
        rng = np.random.default_rng(seed)
        train, test = (binarized(part, rng) for part in data)
        for name in run.arms:
            path = run.out / seeded(name, seed)
            measure = partial(_measure, path, name, run, seed, train, test)
            row = kept(path.with_suffix(".json"), measure)
            result["rows"].append({"seed": seed} | row)
            several = f"with {run.config.samples} codes {row['best']:.2f}"
            yield f"{name}, seed {seed}: bound {row['bound']:.2f} nats, {several}"


def _measure(path, name, run, seed, train, test):
    """Train with one estimator; its bounds on test images, as positive nats."""
    codes, published = ESTIMATORS[name]
    rng, config = np.random.default_rng(seed), run.config
    vae = BinaryVAE(
        train.images.shape[1:], config.bits, name, encoder="dense", latent_norm=False, rng=rng
    )
    epochs = max(1, config.epochs // codes)
    history = train_vae(
        path.with_suffix(".npz"), vae, train, epochs=epochs, lr=config.lr, rng=rng,
        progress=run.progress,
    )  # fmt: skip
    to_unit = datasets.to_unit(1)
    x, seen = to_unit(test.images, rng), to_unit(train.images[: len(test)], rng)
    rng = np.random.default_rng(seed)
    bounds = [
        -float(vae.bound(images, count, rng).mean())
        for images, count in ((x, 1), (x, config.samples), (seen, 1))
    ]
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
        "bound_train": bounds[2],
        "published": published,
    }


# -------------------------------------------------------------------------------------- the report


def text(result: dict[str, Any]) -> str:
    """Return ``report.md`` as text."""
    config, images, samples = result["config"], result["images"], result["config"]["samples"]
    layers = [int(np.prod(images["shape"])), *result["layers"], config["bits"]]
    setup = f"""{images["train"]:,} images for training, {images["test"]:,} for testing, each pixel
        drawn once with its brightness as the probability. Encoder {" - ".join(map(str, layers))},
        decoder the same backwards, ReLU; Adam {config["lr"]:g}, cosine to 0. Nats, lower is better:
        minus the bound on log p(x), averaged over the test images, with codes of ±1, from one code
        for each image and from {samples} weighted together (Burda et al. 2016). Equal work: the
        decoder sees the same number of codes in training."""
    columns = f"""*sign* has no distribution: its rate is {config["bits"]} ln 2 =
        {config["bits"] * latents.LN2:.1f} nats whatever the image. *training* is the loss of the
        last epoch; for gumbel_softmax it is computed with relaxed codes and bounds nothing.
        *training images* is the bound from one code, as for test images, on as many images of the
        training set: the difference shows what was learned by heart. Published: Jang et al. 2017
        (arXiv:1611.01144), Table 1, from {PUBLISHED:,} codes weighted together, comparable to our
        bound from {samples} codes, which is a little higher than one from {PUBLISHED:,}; binarized
        images, steps and optimizer differ."""
    estimators = table(
        _by_estimator(result).values(),
        {
            "estimator": lambda rows: rows[0]["estimator"],
            "codes an image": lambda rows: rows[0]["codes"],
            "epochs": lambda rows: rows[0]["epochs"],
            **{
                title: lambda rows, key=key, digits=digits: fixed([r[key] for r in rows], digits)
                for title, key, digits in (
                    ("seconds", "seconds", 0), ("training", "training", 2),
                    ("training images", "bound_train", 2), ("bound, one code", "bound", 2),
                    (f"{samples} codes", "best", 2),
                )
            },
            f"published, {PUBLISHED:,} codes, MNIST": lambda rows: rows[0]["published"] or "",
        },
    )  # fmt: skip
    title = f"Bounds for {config['bits']} binary latents on binarized {config['dataset']}"
    return page(title, result, setup, columns, estimators, "![Bounds](bounds.png)")


def _by_estimator(result):
    """Estimator -> its rows, one for each seed."""
    rows = {}
    for row in result["rows"]:
        rows.setdefault(row["estimator"], []).append(row)
    return rows


def _draw(figure, result):
    """Draw the bounds of all estimators, and the published ones."""
    rows, samples = _by_estimator(result), result["config"]["samples"]
    groups = {
        label: [
            (np.mean([row[key] or np.nan for row in own]), np.std([row[key] or 0 for row in own]))
            for own in rows.values()
        ]
        for label, key in (
            ("one code", "bound"), (f"{samples} codes", "best"),
            (f"published, {PUBLISHED:,} codes", "published"),
        )
    }  # fmt: skip
    names = [name.replace("_", "\n") for name in rows]
    plots.dots(groups, names, "minus the bound, nats", ax=figure)


EXPERIMENT = Experiment(
    "hybnn-bounds", Config, _phases, text, {"bounds.png": ((9, 3.6), _draw)}, load_for,
    quick={"quick": True, "epochs": 2, "samples": 2, "limit": 300},
    arms=ESTIMATORS, arms_option="estimators",
    takes="10 to 20 minutes an estimator on MNIST",
    description="Train an autoencoder on binarized images with each estimator, for the same number "
    "of\ncodes that the decoder sees, and measure its bounds on test images, in nats. The tables\n"
    "go to RUN. Repeat the command after an interruption.",
    examples=(
        "tinybnn reproduce hybnn-bounds",
        "TINYBNN_DATA=DIR tinybnn reproduce hybnn-bounds --dataset mnist",
    ),
)  # fmt: skip
run: Callable[..., dict[str, Any]] = EXPERIMENT.run
