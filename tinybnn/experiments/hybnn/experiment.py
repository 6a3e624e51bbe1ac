"""HyBNN's experiments: what decides them, and the three phases, seed by seed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import tinybnn.experiments.hybnn.codes as of_codes
import tinybnn.experiments.hybnn.features as features
import tinybnn.experiments.hybnn.networks as networks
import tinybnn.experiments.hybnn.report as report
from tinybnn.experiments.report import mean_and_std, percent
from tinybnn.experiments.runner import Experiment, Run, bar, kept
from tinybnn.experiments.settings import ImageConfig, setting


@dataclass(frozen=True)
class Config(ImageConfig):
    """What decides the networks of a seed.

    With the estimator 'straight_through' codes are noisy in training. 'sign' makes the model an
    autoencoder without noise: on MNIST its codes reconstruct images better, but tell classes apart
    worse the longer it is trained. With a ``rate_weight`` of 1, few bits are used where images are
    small.
    """

    dataset: str = setting("digits", features.IMAGES, images=True)
    vae_dataset: str | None = setting(
        None, "whose images train the autoencoder (those of --dataset)", images=True
    )
    estimator: str = setting("straight_through", features.ESTIMATOR, choices=features.ESTIMATORS)
    rate_weight: float = setting(0.1, features.RATE_WEIGHT, least=0)
    bits: int = setting(200, "bits of a code", least=1)
    epochs_vae: int = setting(20, "epochs of the autoencoder", least=1)
    epochs: int = setting(100, "epochs of networks on codes, for each task", least=1)
    epochs_cnn: int = setting(15, "epochs of the CNNs, for each task", least=1)
    epochs_all: int = setting(30, "epochs of networks on codes, for all classes at once", least=1)


def _load(config):
    """Training and test images of the tasks, and the images that train the autoencoder."""
    data = features.load_for(config)
    source = data[0]
    if config.vae_dataset not in (None, config.dataset):
        source = features.load(config.vae_dataset, config.limit)[0]
    if source.images.shape[1:] != data[0].images.shape[1:]:
        raise ValueError(
            f"hybnn: the autoencoder's images {source.images.shape[1:]} of {source.name} must have "
            f"the shape {data[0].images.shape[1:]} of the tasks' images"
        )
    return source, data


def _phases(run: Run, result: dict[str, Any]) -> Iterator[str]:
    source, data = run.options["data"]
    result |= {
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
    for seed in range(run.seeds):
        result["seeds"].append(_seed(run, seed, source, data))
        result["summary"] = _summary(result)
        means = (f"{arm} {percent(**result['summary'][arm]['mean'])}%" for arm in networks.ARMS)
        yield f"{seed + 1} of {run.seeds} seeds: {', '.join(means)}"
    result["times"] = kept(run.out / "times.json", partial(_times, run.config, data[0]))


def _seed(run, seed, source, data):
    """Run the three phases for one seed; returns its figures."""
    folder, config = run.out / f"seed-{seed}", run.config
    folder.mkdir(exist_ok=True)
    vae, history = features.autoencoder(folder, source, config, seed, run.progress)
    inputs = _features(folder, seed, config, vae, data)
    models, figures, histories = _networks(folder, seed, config, data, inputs, run.progress)
    sequences = {
        name: networks.in_sequence(
            folder / "networks" / file, data, inputs, networks.tasks_of(data[0]), seed, epochs, arm
        )
        for name, file, epochs, arm in (
            ("in_sequence", "in-sequence.npz", config.epochs, "hybnn"),
            ("in_sequence_cnn", "in-sequence-cnn.npz", config.epochs_cnn, "cnn"),
        )
    }
    if seed == 0:
        report.draw_seed(run.out, vae, data, inputs["codes"], histories, sequences["in_sequence"])
    compiled = partial(_compiled, folder, vae.encoder, models, inputs["codes"], data[1])
    last = history.rows[-1]
    return {
        "seed": seed,
        "vae": {
            "reconstruction": last["reconstruction"],
            "rate": last["rate"],
            "seconds": sum(history["seconds"]),
        },
        "codes": kept(folder / "codes.json", partial(_code_figures, vae, data, inputs)),
        "tasks": {arm: figures[arm] for arm in networks.ARMS},
        "all_classes": {arm: figures[arm] for arm in networks.ALL_CLASSES},
        **sequences,
        "compiled": kept(folder / "compiled.json", compiled),
    }


def _features(folder, seed, config, vae, data):
    """What networks see instead of images: name -> `networks.Features`."""
    pixels = int(np.prod(data[0].images.shape[1:]))
    project = features.random_projection(data[0], config.bits, np.random.default_rng(seed))
    inputs = {"codes": networks.Features(*features.codes(folder, vae, data), config.bits)}
    for name, function, width in (
        ("pixels", features.thresholded_pixels, pixels),
        ("projection", project, config.bits),
    ):
        words = [features.extract(images, function) for images in data]
        inputs[name] = networks.Features(*words, width)
    return inputs


def _networks(folder, seed, config, data, inputs, progress):
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
    for file, name, arm, classes, epochs in bar(jobs, "network", progress):
        model, row = networks.network(
            folder / "networks" / f"{file}.npz", arm, data, inputs, classes, seed, epochs
        )
        history = row.pop("history")
        if name in networks.ALL_CLASSES:
            models[name], figures[name] = model, row
        else:
            models.setdefault(name, []).append(model)
            figures.setdefault(name, []).append(row)
            histories.setdefault(name, []).append(history)
    return models, figures, histories


def _code_figures(vae, data, inputs):
    """Compute numbers about the codes of a seed, and about the features they are compared with."""
    statistics = of_codes.statistics(inputs["codes"].train, inputs["codes"].bits)
    figures = {name: value for name, value in statistics.items() if np.ndim(value) == 0}
    nats, wrong = of_codes.reconstruction(vae, data[1])
    figures |= {"test_reconstruction": nats, "wrong_pixels": wrong, "neighbours": {}}
    for name, feature in inputs.items():
        rows, _ = of_codes.nearest(feature.test, feature.train, feature.bits)
        right = data[0].labels[rows[:, 0]] == data[1].labels
        figures["neighbours"][name] = float(right.mean())
    return figures


def _compiled(folder, encoder, models, codes, test):
    """Compile the heads, and encoder and head together: from the image to scores."""
    import tinybnn.experiments.hybnn.speed as speed  # compiled at the first use

    heads = {f"task-{i}": model for i, model in enumerate(models["hybnn"])}
    heads |= {name: models[name] for name in networks.ALL_CLASSES if "codes" in name}
    figures = speed.compile_heads(folder, heads, codes.test, codes.bits)
    whole = f"all-codes-{networks.HIDDEN}"
    path = folder / f"hybnn-{whole}.npz"
    return figures | {"whole": speed.compile_whole(path, encoder, heads[whole], test)}


def _times(config, images):
    import tinybnn.experiments.hybnn.speed as speed

    return {**speed.measure(config, images), "date": time.strftime("%Y-%m-%d")}


def _summary(result):
    """Accuracy on the test images over the seeds: of each arm for each task, and the mean."""
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
        accuracies = [seed["all_classes"][arm]["accuracy"] for seed in result["seeds"]]
        summary[arm] = {"mean": mean_and_std(accuracies)}
    return summary


EXPERIMENT = Experiment(
    "hybnn", Config, _phases, report.text, report.PICTURES, _load,
    quick={"quick": True, "epochs_vae": 2, "epochs": 4, "epochs_cnn": 2, "epochs_all": 2,
           "limit": 600},
    seeds=3,
    takes="a quarter of an hour a seed on MNIST",
    description="Train a binary autoencoder without labels, extract each image's code once, and "
    "train\nbinary networks on the codes; the same for the baselines. Tables (report.md), figures\n"
    "(result.json) and pictures go to RUN. Repeat the command after an interruption.",
    examples=(
        "tinybnn reproduce hybnn",
        "TINYBNN_DATA=DIR tinybnn reproduce hybnn --dataset mnist --seeds 5",
        "TINYBNN_DATA=DIR tinybnn reproduce hybnn --dataset mnist --vae-dataset fashion-mnist",
    ),
)  # fmt: skip
