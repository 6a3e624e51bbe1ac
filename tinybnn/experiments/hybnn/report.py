"""Tables and pictures of HyBNN's experiments, with the paper's figures beside ours."""

from __future__ import annotations

import numpy as np

import tinybnn.experiments.hybnn.codes as of_codes
from tinybnn import datasets, plots, tables
from tinybnn.experiments.hybnn.networks import ARMS, FLIPS, titles_of
from tinybnn.experiments.report_text import (
    PAIRED,
    mean_and_std,
    paired,
    percent,
    top,
    versus,
    when_and_where,
    wrapped,
)
from tinybnn.storage import write_atomic

# What the paper prints for the five tasks on MNIST (its figures 4 to 6 give no numbers).
PAPER = {"hybnn": "over 95%", "cnn-paper": "a little about 50%"}


def headline(result):
    """One line: what HyBNN reached in the mean of the tasks."""
    found = percent(**result["summary"]["hybnn"]["mean"])
    return f"HyBNN {found} in the mean of {len(result['tasks'])} tasks"


def write(out, result):
    """Write ``report.md`` into the folder of a run, and the picture that compares the arms."""
    write_atomic(out / "report.md", text(result).encode())
    _draw_comparison(out / "tasks.png", result)


def text(result):
    """``report.md`` as text."""
    sections = (
        _top, _recipe, _tasks, _baselines, _all_classes, _in_sequence, _codes, _compiled, _times,
    )  # fmt: skip
    return "\n".join(section(result) for section in sections)


# ------------------------------------------------------------------------------------------- text


def _top(result):
    config, images = result["config"], result["images"]
    vae = result["seeds"][0]["vae"]
    shape = "×".join(map(str, images["shape"]))
    about = wrapped(
        f"""{when_and_where(result)}. Seeds: {len(result["seeds"])}, each with an autoencoder of
        its own. {images["train"]:,} images of {shape} for training, {images["test"]:,} for testing.
        Accuracies are those of the last epoch on test images in percent, mean and standard
        deviation over the seeds; no epoch was chosen by them. Settings were compared on held-out
        training images, after a first recipe's test accuracy on MNIST (one seed) had been seen and
        was the reason to look for another."""
    )
    phases = wrapped(
        f"""- Phase 1: autoencoder of {config["bits"]} bits ({config["estimator"]}, weight of the
        rate {config["rate_weight"]:g}) on {images["vae"]}, {config["epochs_vae"]} epochs without
        labels, {vae["seconds"]:.0f} s for seed 0.""",
        f"- Phase 2: codes of {-(-config['bits'] // 8)} bytes, extracted once.",
        f"""- Phase 3: {config["epochs"]} epochs on codes, {config["epochs_cnn"]} for the CNNs,
        {config["epochs_all"]} for all classes at once.""",
    )
    start = top(f"HyBNN on {config['dataset']}", result)
    return f"{start}\n{about}\n\n{phases}\n"


def _recipe(result):
    """What the networks learned with, and what of it is not the paper's."""
    learning = wrapped(
        f"""Adam, its rate by a cosine to 0 over all batches, cross entropy; binary heads
        {ARMS["hybnn"].lr:g}, binary CNNs {ARMS["cnn"].lr:g}, float networks
        {ARMS["float-cnn"].lr:g}. In the training of heads {FLIPS:.0%} of the input bits are flipped
        at random, against overfitting. What differs from the paper:"""
    )
    items = wrapped(
        "- bits are flipped in training, of which the paper says nothing;",
        """- the encoder's outputs pass a batch norm before the sign, and codes are drawn from
        Bernoulli distributions in training, where the paper has the plain sign with a
        straight-through estimator;""",
        f"""- the autoencoder is variational, with {result["config"]["rate_weight"]:g} of its rate
        in the loss; the one that the paper refers to has no rate and draws no samples;""",
        "- a batch norm follows the scores of the binary networks;",
        """- in the binary CNN the dense layer of 200 units, which the paper calls regular, is
        binary; all layers but the last end in a batch norm and a sign.""",
    )
    return f"### Recipe, and what differs from the paper\n\n{learning}\n\n{items}\n"


def _tasks(result):
    rows = []
    for arm, title in result["arms"].items():
        found = result["summary"][arm]
        cells = [percent(**task) for task in found["tasks"]]
        rows.append([title, *cells, percent(**found["mean"]), PAPER.get(arm, "")])
    table = tables.markdown(["", *result["tasks"], "mean", "paper, on MNIST"], rows)
    return f"""## Tasks of two classes (Figures 4, 5 and 6)

{table}
![Accuracies](tasks.png)
![HyBNN](curves-hybnn.png)
![Binary CNN](curves-cnn.png)
"""


def _baselines(result):
    """What each baseline is, and what the comparison says."""
    degenerate = [
        (task["accuracy"] in task["shares"] and task["constant"])
        for seed in result["seeds"]
        for task in seed["tasks"]["cnn-paper"]
    ]
    shares = [task["shares"] for task in result["seeds"][0]["tasks"]["cnn-paper"]]
    frequencies = ", ".join(" / ".join(f"{s * 100:.2f}" for s in pair) for pair in shares)
    pixels = int(np.prod(result["images"]["shape"]))
    bits, seeds = result["config"]["bits"], len(result["seeds"])
    against = {
        arm: paired(_by_seed(result, "hybnn"), _by_seed(result, arm))
        for arm in ("pixels", "projection", "cnn")
    }
    items = wrapped(
        f"""- *binary CNN, sign(x): the paper's.* Pixels from 0 to 1 go through sign(x), and
        sign(0) = +1: every image becomes the same image, all +1, and the network a constant.
        {sum(degenerate)} of {len(degenerate)} such networks gave identical scores for all test
        images, and had exactly the frequency of one class as their accuracy (shares of the classes
        among the test images: {frequencies}). The "about 50%" of the paper's Figure 4 is an
        artefact of this threshold; it says nothing about binary inputs.""",
        f"""- *binary CNN, sign(x - 0.5).* The same network on pixels compared with 0.5 instead of
        0. Codes against it: {versus(against["cnn"])}.""",
        f"""- *binary head on pixels >= 0.5.* HyBNN's head on {pixels} thresholded pixels instead of
        a code. Codes against pixels: {versus(against["pixels"])}.
        {_bought(against["pixels"], pixels, bits)}""",
        f"""- *binary head on a random projection.* sign(R (x - mean)) with R of random ±1, {bits}
        bits: an encoder that was not trained. Codes against it:
        {versus(against["projection"])}.""",
        """- *float head on codes, float CNN of the same shape.* The same shapes with real weights
        and ReLU: the head alone; encoder and head together, trained with labels.""",
    )
    text = f"### What the rows are\n\n{items}\n"
    return text + (f"\n{wrapped(PAIRED)}\n" if seeds > 1 else "")


def _by_seed(result, arm):
    """Accuracy in the mean of the tasks, one for each seed."""
    return [np.mean([task["accuracy"] for task in seed["tasks"][arm]]) for seed in result["seeds"]]


def _bought(found, width, bits):
    """What a code of some bits is good for beside an image of `width` pixels, in a sentence."""
    if bits >= width:
        return "The code has more bits than the image has pixels."
    accuracy = "; that it buys accuracy is not shown"
    if found["apart"]:
        accuracy = " and accuracy" if found["mean"] > 0 else " and costs accuracy"
    return f"The code buys {width} -> {bits} bits{accuracy}."


def _all_classes(result):
    rows = [
        [title, percent(**result["summary"][arm]["mean"])]
        for arm, title in result["all_classes"].items()
    ]
    count = len(result["seeds"][0]["all_classes"]["all-codes-128"]["shares"])
    table = tables.markdown([f"{count} classes", "accuracy"], rows)
    return f"## All classes at once\n\nThe paper gives no figure.\n\n{table}"


def _in_sequence(result):
    found = np.mean([seed["in_sequence"] for seed in result["seeds"]], axis=0) * 100
    rows = [
        [f"after {task}", *(f"{value:.2f}" for value in row), f"{row.mean():.2f}"]
        for task, row in zip(result["tasks"], found, strict=True)
    ]
    text = wrapped(
        """One head of two units learns one task after the other; accuracy on all tasks after each,
        in percent. The paper: performance decreases. A head of its own for each task, as above,
        forgets nothing."""
    )
    table = tables.markdown(["", *result["tasks"], "mean"], rows)
    title = f"## {len(result['tasks'])} tasks in sequence (section 6)"
    parts = [title, text, f"{table}{_sequence_of_cnn(result)}\n![In sequence](in-sequence.png)\n"]
    return "\n\n".join(parts)


def _sequence_of_cnn(result):
    """HyBNN against the repaired CNN, both after the last task, where both were trained so."""
    if not all("in_sequence_cnn" in seed for seed in result["seeds"]):
        return ""
    hybnn, cnn = (
        [np.mean(seed[key][-1]) for seed in result["seeds"]]
        for key in ("in_sequence", "in_sequence_cnn")
    )
    text = wrapped(
        f"""The paper: still better than the plain binary CNN. That one is a constant; *binary CNN,
        sign(x - 0.5)*, which learns the tasks in the same sequence, ends with
        {percent(**mean_and_std(cnn))} in the mean of all tasks, HyBNN with
        {percent(**mean_and_std(hybnn))}: {versus(paired(hybnn, cnn))}."""
    )
    return f"\n{text}\n"


def _codes(result):
    bits = result["config"]["bits"]
    rows = []
    for name, label, form in (
        ("used", f"bits that are not constant, of {bits}", "{:.0f}"),
        ("distinct", f"distinct codes of {result['images']['train']:,} images", "{:,.0f}"),
        ("entropy", "entropy of a bit in the mean, bits", "{:.3f}"),
        ("mean_correlation", "correlation of two bits, mean of absolute values", "{:.3f}"),
        ("test_reconstruction", "cross entropy of a test image given its code, nats", "{:.2f}"),
        ("wrong_pixels", "its pixels on the wrong side of 0.5", "{:.2%}"),
    ):
        values = [seed["codes"][name] for seed in result["seeds"]]
        rows.append([label, form.format(np.mean(values))])
    for name, title in (
        ("codes", "codes"), ("pixels", "pixels >= 0.5"), ("projection", "the random projection"),
    ):  # fmt: skip
        values = [seed["codes"]["neighbours"][name] for seed in result["seeds"]]
        label = f"label of the nearest training image is right, by {title}"
        rows.append([label, f"{np.mean(values):.2%}"])
    return f"""## Codes

{tables.markdown(["mean over the seeds", ""], rows)}
![Balance and correlation of the bits](codes.png)
![Reconstructions](reconstructions.png)
![Samples from the prior](samples.png)
![Interpolation by flipping bits](interpolation.png)
![Nearest neighbours in Hamming distance](neighbours.png)
"""


def _compiled(result):
    names = list(result["seeds"][0]["compiled"])
    rows = []
    for name in names:
        found = [seed["compiled"][name] for seed in result["seeds"]]
        images = sum(f["images"] for f in found)
        rows.append(
            [
                "encoder and head, from the image" if name == "whole" else f"head of {name}",
                f"{sum(f['identical_predictions'] for f in found):,} of {images:,}",
                f"{sum(f['identical_logits'] for f in found):,}",
                f"{found[0]['float_bytes']:,}",
                f"{found[0]['packed_bytes']:,}",
                f"{found[0]['file_bytes']:,}",
            ]
        )
    steps = result["seeds"][0]["compiled"][names[0]]["steps"]
    exact = all(
        found["bits_only"]
        for seed in result["seeds"]
        for name, found in seed["compiled"].items()
        if name != "whole"
    )
    claim = (
        "From the packed code to the sums of the last layer there are only words of bits and "
        f"integers: {' -> '.join(steps)} (`pack` falls away, as the code is packed already)."
    )
    text = wrapped(
        f"""Every test image, from its stored code to the label, against the float model on the same
        codes. {claim if exact else "It was NOT shown that no float comes before the last layer."}
        Packed are weights of one bit, integer thresholds, and the last batch norm's floats."""
    )
    table = tables.markdown(
        ["compiled", "identical predictions", "identical scores", "bytes as floats",
         "bytes packed", "bytes of the file"],
        rows,
    )  # fmt: skip
    return f"## The compiled head\n\n{text}\n\n{table}"


def _times(result):
    times = result["times"]
    rows = [
        [row["name"], row["batch"], f"{row['float_us']:.2f}", f"{row['packed_us']:.2f}",
         f"{row['float_us'] / row['packed_us']:.1f}"]
        for row in times["inference"]
    ]  # fmt: skip
    inference = tables.markdown(
        ["prediction, µs an image", "batch", "float", "compiled", "ratio"], rows
    )
    spent = {
        arm: np.mean([task["seconds"]["all"] for task in result["seeds"][0]["tasks"][arm]])
        for arm in result["arms"]
    }
    arms = {title: arm for arm, title in result["arms"].items()}
    rows = [
        [row["name"], f"{row['float_us']:.2f}", f"{row['bits_us']:.2f}",
         f"{spent[arms[row['name']]]:.1f}"]
        for row in times["training"]
    ]  # fmt: skip
    batch = times["training_batch"]
    training = tables.markdown(
        [f"training step, µs an image (batch {batch})", "products on floats", "products on bits",
         "seconds of a task, all epochs"],
        rows,
    )  # fmt: skip
    how = times.get("how", "with this run")
    before = wrapped(
        f"""The shortest of several runs, measured {times.get("date", result["date"])} {how}.
        Rows from codes do not contain the encoder, which a new image needs as well: compare
        *encoder and binary head* with the CNNs."""
    )
    single = {row["name"]: row["packed_us"] for row in times["inference"] if row["batch"] == 1}
    whole, cnn = single["encoder and binary head"], single[ARMS["cnn"].title]
    after = wrapped(
        f"""The paper claims faster training and inference, without figures. From the image on, one
        prediction takes {whole / cnn:.1f} times as long as with the binary CNN, since the encoder
        is real. A head trains faster than a CNN because it is small and its features are computed
        once, not because it is binary: see the float head."""
    )
    return f"## Times\n\n{before}\n\n{inference}\n{training}\n{after}\n"


# --------------------------------------------------------------------------------------- pictures


def draw(out, vae, data, codes, histories, in_sequence):
    """The pictures of one seed.

    Parameters
    ----------
    out : path
    vae : BinaryVAE
    data : (Dataset, Dataset)
    codes : Features
    histories : dict
        Arm -> for each task lists with a number an epoch.
    in_sequence : list of lists
    """
    tasks = titles_of(data[0])
    _draw_curves(out / "curves-hybnn.png", tasks, [("HyBNN", histories["hybnn"])])
    _draw_curves(
        out / "curves-cnn.png", tasks,
        [("binary CNN, sign(x)", histories["cnn-paper"]),
         ("binary CNN, sign(x - 0.5)", histories["cnn"])],
    )  # fmt: skip
    _draw_in_sequence(out / "in-sequence.png", tasks, in_sequence)
    _draw_statistics(out / "codes.png", codes)
    rng = np.random.default_rng(0)
    test = data[1][:10]
    x = datasets.to_unit(test.maximum)(test.images, rng)
    _draw_images(
        out / "reconstructions.png", [*x, *vae.decode(vae.encode(x))], len(x),
        "test images, and what their codes keep",
    )  # fmt: skip
    _draw_images(out / "samples.png", vae.sample(40, rng), 10, "codes drawn from the prior")
    pairs = [(vae.encode(x[i : i + 1])[0], vae.encode(x[i + 1 : i + 2])[0]) for i in (0, 2, 4)]
    paths = np.concatenate([of_codes.flip_path(a, b, 10, rng) for a, b in pairs])
    _draw_images(
        out / "interpolation.png", vae.decode(paths), 10, "from one code to another, bit by bit"
    )
    _draw_neighbours(out / "neighbours.png", data, codes)


def _draw_curves(path, tasks, groups):
    figure = plots.figure(figsize=(10, 3.1 * len(groups)))
    for row, (title, histories) in zip(
        figure.subplots(len(groups), 2, squeeze=False), groups, strict=True
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
    plots.save(figure, path)


def _draw_in_sequence(path, tasks, accuracies):
    figure = plots.figure(figsize=(4.8, 4.2))
    axes = figure.subplots()
    plots.heat_map(accuracies, tasks, tasks, "tested on", "after learning", ax=axes)
    axes.set_title("share of right answers")
    plots.save(figure, path)


def _draw_comparison(path, result):
    figure = plots.figure(figsize=(11, 4.6))
    groups = {
        title: [
            (100 * task["mean"], 100 * (task["std"] or 0))
            for task in result["summary"][arm]["tasks"]
        ]
        for arm, title in result["arms"].items()
    }
    plots.dots(groups, result["tasks"], "test accuracy, %", ax=figure)
    seeds = len(result["seeds"])
    over = f"mean and standard deviation over {seeds} seeds"
    figure.axes[0].set_title(over if seeds > 1 else "one seed")
    plots.save(figure, path)


def _draw_statistics(path, codes):
    found = of_codes.statistics(codes.train, codes.bits)
    figure = plots.figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2)
    left.hist(found["balance"], bins=np.linspace(0, 1, 41), color=plots.MINUS)
    left.set(xlabel="share of +1 among the training images", ylabel="bits", xlim=(0, 1))
    plots.heat_map(found["correlation"], limits=(-1, 1), ax=right)
    right.set_title("correlation of bits")
    plots.save(figure, path)


def _draw_images(path, images, columns, title):
    rows = -(-len(images) // columns)
    figure = plots.figure(figsize=(0.75 * columns, 0.75 * rows + 0.4))
    plots.images(images, columns, title, ax=figure.subplots())
    plots.save(figure, path)


def _draw_neighbours(path, data, codes, queries=6, count=9):
    rows, distances = of_codes.nearest(codes.test[:queries], codes.train, codes.bits, count)
    train, test = data
    pictures, labels = [], []
    for query, (found, far) in enumerate(zip(rows, distances, strict=True)):
        pictures += [test.images[query], *train.images[found]]
        labels += [test.classes[test.labels[query]], *map(str, far)]
    figure = plots.figure(figsize=(0.75 * (count + 1), 0.95 * queries + 0.4))
    plots.images(
        np.array(pictures) / train.maximum, count + 1,
        "test image (its class), and the nearest training images (bits that differ)", labels,
        ax=figure.subplots(),
    )  # fmt: skip
    plots.save(figure, path)
