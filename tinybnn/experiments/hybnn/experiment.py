"""HyBNN's experiments: what decides them, and the way through the three phases, seed by seed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tinybnn.experiments.hybnn.codes as of_codes
import tinybnn.experiments.hybnn.features as features
import tinybnn.experiments.hybnn.networks as networks
import tinybnn.experiments.hybnn.report as report
from tinybnn.experiments.report_text import mean_and_std
from tinybnn.experiments.run_folder import (
    as_options,
    check_least,
    kept,
    open_folder,
    provenance,
)
from tinybnn.models import latents
from tinybnn.storage import write_json


@dataclass(frozen=True)
class Config:
    """What decides the networks of a seed.

    Attributes
    ----------
    dataset : str
        Of the tasks; see `features.load`.
    vae_dataset : str, optional
        Whose training images the autoencoder sees; by default those of `dataset`.
    estimator : str
        A name for `latents.get`. With 'straight_through' codes are noisy in training. 'sign' makes
        the model an autoencoder without noise: on MNIST its codes reconstruct images better, but
        tell classes apart worse the longer it is trained.
    rate_weight : float
        As for `features.train_vae`. With 1, few bits are used where images are small.
    bits : int
        Of a code.
    epochs_vae, epochs, epochs_cnn, epochs_all : int
        Of the autoencoder, of the networks on codes, of the CNNs, and of the networks that tell all
        classes apart.
    limit : int, optional
        Only the first so many images, for training and for testing each.
    quick : bool
        Whether it is a run that only shows that the code runs.
    """

    dataset: str = "digits"
    vae_dataset: str | None = None
    estimator: str = "straight_through"
    rate_weight: float = 0.1
    bits: int = 200
    epochs_vae: int = 20
    epochs: int = 100
    epochs_cnn: int = 15
    epochs_all: int = 30
    limit: int | None = None
    quick: bool = False

    def __post_init__(self):
        latents.get(self.estimator)
        check_least(self, bits=1, epochs_vae=1, epochs=1, epochs_cnn=1, epochs_all=1)
        if not self.rate_weight >= 0:
            raise ValueError(f"Config: rate_weight must be >= 0, got {self.rate_weight!r}")

    def command(self, seeds):
        """The command that gives the figures of this configuration."""
        return " ".join(["tinybnn reproduce hybnn", *as_options(self), f"--seeds {seeds}"])


# Runs everything, too briefly for good figures.
QUICK = {
    "quick": True,
    "epochs_vae": 2,
    "epochs": 4,
    "epochs_cnn": 2,
    "epochs_all": 2,
    "limit": 600,
}


def run(out, config, seeds=3, threads=None, progress=True, say=print):
    """Carry out the experiments, or go on where an earlier call was stopped.

    Parameters
    ----------
    out : path
        Folder of the run, made if it does not exist.
    config : Config
    seeds : int
        Seeds 0, 1, ...; each has an autoencoder of its own. More may be added later.
    threads : int, optional
        As for `training.fit`.
    progress : bool
        Show progress bars on stderr.
    say : callable
        Gets a line of text at a time.

    Returns
    -------
    dict
        The figures, as in ``result.json``.

    Raises
    ------
    ValueError
        If the folder holds a run with another configuration, or something else; if the sets of
        images do not fit each other.
    """
    out = Path(out)
    data = features.load(config.dataset, config.limit)
    source = data[0]
    if config.vae_dataset not in (None, config.dataset):
        source = features.load(config.vae_dataset, config.limit)[0]
    if source.images.shape[1:] != data[0].images.shape[1:]:
        raise ValueError(
            f"hybnn: the autoencoder's images {source.images.shape[1:]} of {source.name} must have "
            f"the shape {data[0].images.shape[1:]} of the tasks' images"
        )
    open_folder(out, config, say)
    result = {
        **provenance("hybnn", config, config.command(seeds)),
        "images": {
            "shape": data[0].images.shape[1:],
            "train": len(data[0]),
            "test": len(data[1]),
            "vae": f"{len(source):,} training images of {source.name}",
        },
        "tasks": networks.titles_of(data[0]),
        "arms": {name: arm.title for name, arm in networks.ARMS.items()},
        "all_classes": {name: arm.title for name, arm in networks.ALL_CLASSES.items()},
        "seeds": [],
    }
    for seed in range(seeds):
        result["seeds"].append(_seed(out, seed, config, source, data, threads, progress, say))
        result["summary"] = _summary(result)
        write_json(out / "result.json", result)
    result["times"] = kept(out / "times.json", partial(_times, config, data[0], threads))
    write_json(out / "result.json", result)
    report.write(out, result)
    say(f"{out / 'report.md'}: {report.headline(result)}")
    return result


def _seed(out, seed, config, source, data, threads, progress, say):
    """The three phases for one seed; its figures."""
    folder = out / f"seed-{seed}"
    folder.mkdir(exist_ok=True)

    vae, history = features.autoencoder(folder, source, config, seed, threads, progress)
    last = history.rows[-1]
    say(f"seed {seed}: autoencoder, {last['reconstruction']:.1f} nats an image to reconstruct")

    seen = _features(folder, seed, config, vae, data)

    models, found, histories = _networks(folder, seed, config, data, seen, threads, progress)
    in_sequence, of_cnn = (
        networks.in_sequence(
            folder / "networks" / file, data, seen, networks.tasks_of(data[0]), seed, epochs,
            threads, arm,
        )
        for file, epochs, arm in (
            ("in-sequence.npz", config.epochs, "hybnn"),
            ("in-sequence-cnn.npz", config.epochs_cnn, "cnn"),
        )
    )  # fmt: skip
    means = {arm: np.mean([row["accuracy"] for row in found[arm]]) for arm in networks.ARMS}
    say(f"seed {seed}: " + ", ".join(f"{arm} {mean:.2%}" for arm, mean in means.items()))
    figures = {
        "seed": seed,
        "vae": {
            "reconstruction": last["reconstruction"],
            "rate": last["rate"],
            "seconds": sum(history["seconds"]),
        },
        "codes": kept(folder / "codes.json", partial(_code_figures, vae, data, seen)),
        "tasks": {arm: found[arm] for arm in networks.ARMS},
        "all_classes": {arm: found[arm] for arm in networks.ALL_CLASSES},
        "in_sequence": in_sequence,
        "in_sequence_cnn": of_cnn,
        "compiled": kept(
            folder / "compiled.json",
            partial(_compiled, folder, vae.encoder, models, seen["codes"], data[1]),
        ),
    }
    if seed == 0:
        report.draw(out, vae, data, seen["codes"], histories, in_sequence)
    return figures


def _features(folder, seed, config, vae, data):
    """What networks see instead of images: name -> `networks.Features`."""
    pixels = int(np.prod(data[0].images.shape[1:]))
    project = features.random_projection(data[0], config.bits, np.random.default_rng(seed))
    seen = {"codes": networks.Features(*features.codes(folder, vae, data), config.bits)}
    for name, function, width in (
        ("pixels", features.thresholded_pixels, pixels),
        ("projection", project, config.bits),
    ):
        words = [features.extract(images, function) for images in data]
        seen[name] = networks.Features(*words, width)
    return seen


def _networks(folder, seed, config, data, seen, threads, progress):
    """Train all networks of a seed.

    Returns
    -------
    models, figures, histories : dict
        By arm: one entry for each task, or a single one for an arm that tells all classes apart.
    """
    jobs = [
        (f"{name}-{i}", name, arm, task,
         config.epochs_cnn if arm.features == "images" else config.epochs)
        for name, arm in networks.ARMS.items()
        for i, task in enumerate(networks.tasks_of(data[0]))
    ]  # fmt: skip
    everything = list(range(len(data[0].classes)))
    jobs += [
        (name, name, arm, everything, config.epochs_all)
        for name, arm in networks.ALL_CLASSES.items()
    ]
    models, figures, histories = {}, {}, {}
    bar = tqdm(jobs, unit="network", disable=not progress)
    for file, name, arm, classes, epochs in bar:
        bar.set_description(file)
        model, found = networks.network(
            folder / "networks" / f"{file}.npz", arm, data, seen, classes, seed, epochs, threads
        )
        history = found.pop("history")
        if name in networks.ALL_CLASSES:
            models[name], figures[name] = model, found
        else:
            models.setdefault(name, []).append(model)
            figures.setdefault(name, []).append(found)
            histories.setdefault(name, []).append(history)
    return models, figures, histories


def _code_figures(vae, data, seen):
    """Numbers about the codes of a seed, and about the features beside them."""
    found = of_codes.statistics(seen["codes"].train, seen["codes"].bits)
    figures = {name: value for name, value in found.items() if np.ndim(value) == 0}
    nats, wrong = of_codes.reconstruction(vae, data[1])
    figures |= {"test_reconstruction": nats, "wrong_pixels": wrong, "neighbours": {}}
    for name, feature in seen.items():
        rows, _ = of_codes.nearest(feature.test, feature.train, feature.bits)
        right = data[0].labels[rows[:, 0]] == data[1].labels
        figures["neighbours"][name] = float(right.mean())
    return figures


def _compiled(folder, encoder, models, codes, test):
    """Figures of the compiled heads, and of one behind the encoder: from the image to scores."""
    import tinybnn.experiments.hybnn.speed as speed  # compiled at the first use

    heads = {f"task-{i}": model for i, model in enumerate(models["hybnn"])}
    heads |= {name: models[name] for name in networks.ALL_CLASSES if "codes" in name}
    found = speed.compile_heads(folder, heads, codes.test, codes.bits)
    whole = f"all-codes-{networks.HIDDEN}"
    path = folder / f"hybnn-{whole}.npz"
    found["whole"] = speed.compile_whole(path, encoder, heads[whole], test)
    return found


def _times(config, images, threads):
    import tinybnn.experiments.hybnn.speed as speed

    return {**speed.measure(config, images, threads), "date": time.strftime("%Y-%m-%d")}


def _summary(result):
    """Accuracy on the test images over the seeds: of each arm for each task, and of its mean."""
    summary = {}
    for arm in result["arms"]:
        accuracies = np.array(
            [[task["accuracy"] for task in seed["tasks"][arm]] for seed in result["seeds"]]
        )  # (seeds, tasks)
        summary[arm] = {
            "tasks": [mean_and_std(column) for column in accuracies.T],
            "mean": mean_and_std(accuracies.mean(1)),
        }
    for arm in result["all_classes"]:
        found = [seed["all_classes"][arm]["accuracy"] for seed in result["seeds"]]
        summary[arm] = {"mean": mean_and_std(found)}
    return summary
