"""Tables and pictures of HyBNN's experiments, with the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tinybnn.experiments.hybnn.codes as of_codes
from tinybnn import datasets, plots, tables
from tinybnn.datasets import Dataset
from tinybnn.experiments.hybnn.networks import ARMS, FLIPS, Features, titles_of
from tinybnn.experiments.report import (
    PAIR,
    PAIRED,
    against,
    fixed,
    page,
    percent,
    save_picture,
    table,
)
from tinybnn.models import BinaryVAE

# What the paper prints for the five tasks on MNIST (its figures 4 to 6 give no numbers).
PAPER: dict[str, str] = {"hybnn": "over 95%", "cnn-paper": "a little about 50%"}

# -------------------------------------------------------------------------------------------- text


def text(result: dict[str, Any]) -> str:
    """Return ``report.md`` as text."""
    config, images = result["config"], result["images"]
    vae = result["seeds"][0]["vae"]
    about = f"""Seeds: {len(result["seeds"])}, each with an autoencoder of its own.
        {images["train"]:,} images of {"×".join(map(str, images["shape"]))} for training,
        {images["test"]:,} for testing. Accuracies are those of the last epoch on test images in
        percent, mean and standard deviation over the seeds; no epoch was selected by them. Settings
        were compared on held-out training images, after a first recipe had been abandoned because
        of its test accuracy on MNIST (one seed)."""
    phases = [
        f"""- Phase 1: autoencoder of {config["bits"]} bits ({config["estimator"]}, weight of the
        rate {config["rate_weight"]:g}) on {images["vae"]}, {config["epochs_vae"]} epochs without
        labels, {vae["seconds"]:.0f} s for seed 0.""",
        f"- Phase 2: codes of {-(-config['bits'] // 8)} bytes, extracted once.",
        f"""- Phase 3: {config["epochs"]} epochs on codes, {config["epochs_cnn"]} for the CNNs,
        {config["epochs_all"]} for all classes at once.""",
    ]
    sections = (_recipe, _tasks, _all_classes, _in_sequence, _codes, _compiled, _times)
    parts = [part for section in sections for part in section(result)]
    return page(f"HyBNN on {config['dataset']}", result, about, phases, *parts)


def _recipe(result):
    """How the networks are trained, and what of it differs from the paper."""
    learning = f"""Adam, its rate by a cosine to 0 over all batches, cross entropy; binary heads
        {ARMS["hybnn"].lr:g}, binary CNNs {ARMS["cnn"].lr:g}, float networks
        {ARMS["float-cnn"].lr:g}. In the training of heads {FLIPS:.0%} of the input bits are flipped
        at random, against overfitting. Differences from the paper:"""
    items = [
        "- bits are flipped in training, which the paper does not mention;",
        """- the encoder's outputs pass a batch norm before the sign, and codes are drawn from
        Bernoulli distributions in training, where the paper has the plain sign with a
        straight-through estimator;""",
        f"""- the autoencoder is variational, with {result["config"]["rate_weight"]:g} of its rate
        in the loss; the one that the paper refers to has no rate and draws no samples;""",
        "- a batch norm follows the scores of the binary networks;",
        """- in the binary CNN the dense layer of 200 units, which the paper calls regular, is
        binary; all layers but the last end in a batch norm and a sign.""",
    ]
    return ["## Recipe, and what differs from the paper", learning, items]


def _tasks(result):
    rows, hybnn = [], _by_seed(result, "hybnn")
    for arm, title in result["arms"].items():
        means = result["summary"][arm]
        pair = [""] * len(PAIR) if arm == "hybnn" else against(hybnn, _by_seed(result, arm))
        tasks = (percent(**task) for task in means["tasks"])
        rows.append([title, *tasks, percent(**means["mean"]), *pair, PAPER.get(arm, "")])
    header = ["", *result["tasks"], "mean", f"HyBNN against it: {PAIR[0]}", *PAIR[1:]]
    paper_cnn = [task for seed in result["seeds"] for task in seed["tasks"]["cnn-paper"]]
    constant = sum(task["constant"] and task["accuracy"] in task["shares"] for task in paper_cnn)
    shares = ", ".join(
        " / ".join(f"{share * 100:.2f}" for share in task["shares"])
        for task in result["seeds"][0]["tasks"]["cnn-paper"]
    )
    pixels, bits = int(np.prod(result["images"]["shape"])), result["config"]["bits"]
    items = [
        f"""- *binary CNN, sign(x): the paper's.* Pixels from 0 to 1 go through sign(x), and
        sign(0) = +1, so that every image becomes the same. {constant} of {len(paper_cnn)} such
        networks gave identical scores for all test images, with the frequency of one class as their
        accuracy (shares of the classes among the test images: {shares}).""",
        """- *binary CNN, sign(x - 0.5).* The same network on pixels compared with 0.5 instead of
        0.""",
        f"""- *binary head on pixels >= 0.5.* HyBNN's head on {pixels} thresholded pixels instead of
        a code of {bits} bits.""",
        f"""- *binary head on a random projection.* sign(R (x - mean)) with R of random ±1, {bits}
        bits: an encoder that was not trained.""",
        """- *float head on codes, float CNN of the same shape.* The same shapes with real weights
        and ReLU: the head alone; encoder and head together, trained with labels.""",
    ]
    return [
        "## Tasks of two classes (Figures 4, 5 and 6)",
        tables.markdown([*header, "paper, on MNIST"], rows), PAIRED, items,
        "![Accuracies](tasks.png)\n![HyBNN](curves-hybnn.png)\n![Binary CNN](curves-cnn.png)",
    ]  # fmt: skip


def _by_seed(result, arm):
    """Accuracy in the mean of the tasks, one for each seed."""
    return [np.mean([task["accuracy"] for task in seed["tasks"][arm]]) for seed in result["seeds"]]


def _all_classes(result):
    count = len(result["seeds"][0]["all_classes"]["all-codes-128"]["shares"])
    columns = {
        f"{count} classes": result["all_classes"].get,
        "accuracy": lambda arm: percent(**result["summary"][arm]["mean"]),
    }
    title, note = "## All classes at once", "The paper gives no figure."
    return [title, note, table(result["all_classes"], columns)]


def _in_sequence(result):
    arms = {"in_sequence": "HyBNN", "in_sequence_cnn": "binary CNN, sign(x - 0.5)"}
    arms = {key: title for key, title in arms.items() if key in result["seeds"][-1]}
    rows, ends = [], {}
    for key, title in arms.items():
        of_seeds = np.array([seed[key] for seed in result["seeds"]])  # (seeds, after, task)
        ends[key] = of_seeds[:, -1].mean(1)
        for i, task in enumerate(result["tasks"]):
            of_task = 100 * of_seeds[:, i]  # (seeds, task)
            rows.append([title, f"after {task}", *map(fixed, of_task.T), fixed(of_task.mean(1))])
    accuracies = tables.markdown(["", "", *result["tasks"], "mean"], rows)
    parts = [
        f"## {len(result['tasks'])} tasks in sequence (section 6)",
        """One head of two units learns one task after the other; accuracy on all tasks after each,
        in percent. With a head of its own for each task, as above, nothing is forgotten. The paper:
        performance decreases, but stays above that of the plain binary CNN; the CNN here is the one
        with a threshold of 0.5.""",
        accuracies, "![In sequence](in-sequence.png)",
    ]  # fmt: skip
    if len(ends) == 2:
        cells = against(*ends.values())
        parts.insert(3, tables.markdown(["after the last task, HyBNN against the CNN", *PAIR],
                                        [["mean of all tasks", *cells]]))  # fmt: skip
    return parts


def _codes(result):
    bits, codes = result["config"]["bits"], [seed["codes"] for seed in result["seeds"]]
    rows = [
        [label, form.format(np.mean([of_seed[name] for of_seed in codes]))]
        for name, label, form in (
            ("used", f"bits that are not constant, of {bits}", "{:.0f}"),
            ("distinct", f"distinct codes of {result['images']['train']:,} images", "{:,.0f}"),
            ("entropy", "mean entropy of a bit, bits", "{:.3f}"),
            ("mean_correlation", "mean absolute correlation of two bits", "{:.3f}"),
            ("test_reconstruction", "cross entropy of a test image given its code, nats", "{:.2f}"),
            ("wrong_pixels", "its pixels on the wrong side of 0.5", "{:.2%}"),
        )
    ]
    rows += [
        [f"label of the nearest training image is right, by {title}",
         f"{np.mean([of_seed['neighbours'][name] for of_seed in codes]):.2%}"]
        for name, title in (
            ("codes", "codes"), ("pixels", "pixels >= 0.5"), ("projection", "a random projection"),
        )
    ]  # fmt: skip
    pictures = """![Balance and correlation of the bits](codes.png)
![Reconstructions](reconstructions.png)
![Samples from the prior](samples.png)
![Interpolation by flipping bits](interpolation.png)
![Nearest neighbours in Hamming distance](neighbours.png)"""
    return ["## Codes", tables.markdown(["mean over the seeds", ""], rows), pictures]


def _compiled(result):
    heads = {
        name: [seed["compiled"][name] for seed in result["seeds"]]
        for name in result["seeds"][0]["compiled"]
    }

    def counted(name, key):
        images = sum(head["images"] for head in heads[name])
        return f"{sum(head[key] for head in heads[name]):,} of {images:,}"

    def bits_only(name):
        shown = [head["bits_only"] for head in heads[name] if "bits_only" in head]
        return f"{sum(shown)} of {len(shown)}" if shown else ""

    names = {name: f"head of {name}" for name in heads} | {"whole": "encoder and head, from images"}
    columns = {
        "compiled": names.get,
        "identical predictions": lambda name: counted(name, "identical_predictions"),
        "identical scores": lambda name: counted(name, "identical_logits"),
        "bits only": bits_only,
        "bytes as floats": lambda name: f"{heads[name][0]['float_bytes']:,}",
        "bytes packed": lambda name: f"{heads[name][0]['packed_bytes']:,}",
        "bytes of the file": lambda name: f"{heads[name][0]['file_bytes']:,}",
    }
    steps = next(iter(heads.values()))[0]["steps"]
    about = f"""Every test image, from its stored code to the label, against the float model on the
        same codes. *bits only*: networks in which there are only words of bits and integers between
        the packed code and the sums of the last layer. Steps of a head: {" -> ".join(steps)}
        (`pack` falls away, as the code is packed already). Packed are weights of one bit, integer
        thresholds, and the last batch norm's floats."""
    return ["## The compiled head", about, table(heads, columns)]


def _times(result):
    times = result["times"]
    inference = table(
        times["inference"],
        {
            "prediction, µs an image": lambda row: row["name"],
            "batch": lambda row: row["batch"],
            "float": lambda row: f"{row['float_us']:.2f}",
            "compiled": lambda row: f"{row['packed_us']:.2f}",
            "ratio": lambda row: f"{row['float_us'] / row['packed_us']:.1f}",
        },
    )
    spent = {
        title: np.mean([task["seconds"]["all"] for task in result["seeds"][0]["tasks"][arm]])
        for arm, title in result["arms"].items()
    }
    trained = table(
        times["training"],
        {
            "training step, µs an image": lambda row: row["name"],
            "batch": lambda row: times["training_batch"],
            "products on floats": lambda row: f"{row['float_us']:.2f}",
            "products on bits": lambda row: f"{row['bits_us']:.2f}",
            "seconds of a task, all epochs": lambda row: f"{spent[row['name']]:.1f}",
        },
    )
    how = f"{times.get('date', result['date'])} {times.get('how', 'with this run')}"
    about = f"""The shortest of several runs, measured {how}. Rows from codes do not contain the
        encoder, which a new image needs as well: *encoder and binary head* starts from the image,
        as the CNNs do. The paper claims faster training and inference, without figures."""
    return ["## Times", about, inference, trained]


# --------------------------------------------------------------------------------------- pictures


def draw_seed(
    out: Path,
    vae: BinaryVAE,
    data: tuple[Dataset, Dataset],
    codes: Features,
    histories: Mapping[str, Any],
    in_sequence: Sequence[Sequence[float]],
) -> None:
    """Draw the pictures of one seed.

    Parameters
    ----------
    out : path
        Folder.
    vae : BinaryVAE
    data : (Dataset, Dataset)
        Images (N, C, H, W) for training and for testing.
    codes : Features
    histories : dict
        Arm -> for each task lists with a number an epoch.
    in_sequence : list of lists
        See `networks.in_sequence`.
    """
    tasks, rng, test = titles_of(data[0]), np.random.default_rng(0), data[1][:10]
    x = datasets.to_unit(test.maximum)(test.images, rng)
    samples = vae.sample(40, rng)
    pairs = [(vae.encode(x[i : i + 1])[0], vae.encode(x[i + 1 : i + 2])[0]) for i in (0, 2, 4)]
    paths = np.concatenate([of_codes.flip_path(a, b, 10, rng) for a, b in pairs])
    cnns = {"binary CNN, sign(x)": "cnn-paper", "binary CNN, sign(x - 0.5)": "cnn"}
    for name, size, draw, *arguments in (
        ("curves-hybnn", (10, 3.1), _curves, tasks, {"HyBNN": histories["hybnn"]}),
        ("curves-cnn", (10, 6.2), _curves, tasks, {t: histories[arm] for t, arm in cnns.items()}),
        ("in-sequence", (4.8, 4.2), _sequence, tasks, in_sequence),
        ("codes", (9, 3.6), _statistics, codes),
        ("reconstructions", (0.75 * len(x), 1.9), _images, [*x, *vae.decode(vae.encode(x))],
         len(x), "test images, and their reconstructions"),
        ("samples", (7.5, 3.4), _images, samples, 10, "codes drawn from the prior"),
        ("interpolation", (7.5, 2.65), _images, vae.decode(paths), 10,
         "from one code to another, bit by bit"),
        ("neighbours", (7.5, 6.1), _neighbours, data, codes),
    ):  # fmt: skip
        save_picture(out / f"{name}.png", size, draw, *arguments)


def _curves(figure, tasks, groups):
    for row, (title, histories) in zip(
        figure.subplots(len(groups), 2, squeeze=False), groups.items(), strict=True
    ):
        for axes, key, label, factor in (
            (row[0], "test_accuracy", "test accuracy, %", 100),
            (row[1], "test_loss", "test loss, nats", 1),
        ):
            lines = {
                task: np.multiply(history[key], factor)
                for task, history in zip(tasks, histories, strict=True)
            }
            plots.curves(lines, label, legend=axes is row[1], ax=axes)
            axes.set_title(title)


def _sequence(figure, tasks, accuracies):
    axes = figure.subplots()
    plots.heat_map(accuracies, tasks, tasks, "tested on", "after learning", ax=axes)
    axes.set_title("share of right answers")


def _comparison(figure, result):
    groups = {
        title: [
            (100 * task["mean"], 100 * (task["std"] or 0))
            for task in result["summary"][arm]["tasks"]
        ]
        for arm, title in result["arms"].items()
    }
    plots.dots(groups, result["tasks"], "test accuracy, %", ax=figure)
    figure.axes[0].set_title(f"mean and standard deviation, seeds: {len(result['seeds'])}")


def _statistics(figure, codes):
    statistics = of_codes.statistics(codes.train, codes.bits)
    left, right = figure.subplots(1, 2)
    left.hist(statistics["balance"], bins=np.linspace(0, 1, 41), color=plots.MINUS)
    left.set(xlabel="share of +1 among the training images", ylabel="bits", xlim=(0, 1))
    plots.heat_map(statistics["correlation"], limits=(-1, 1), ax=right)
    right.set_title("correlation of bits")


def _images(figure, images, columns, title):
    plots.images(images, columns, title, ax=figure.subplots())


def _neighbours(figure, data, codes, queries=6, count=9):
    rows, distances = of_codes.nearest(codes.test[:queries], codes.train, codes.bits, count)
    train, test = data
    images, labels = [], []
    for query, (nearest, far) in enumerate(zip(rows, distances, strict=True)):
        images += [test.images[query], *train.images[nearest]]
        labels += [test.classes[test.labels[query]], *map(str, far)]
    plots.images(
        np.array(images) / train.maximum, count + 1,
        "test image (its class), and the nearest training images (bits that differ)", labels,
        ax=figure.subplots(),
    )  # fmt: skip


PICTURES: dict[str, Any] = {"tasks.png": ((11, 4.6), _comparison)}
