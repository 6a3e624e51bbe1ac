"""``tinybnn reproduce``: the experiments of `tinybnn.experiments`, each with its options.

The options of most experiments have the names of the fields of its ``Config``, and None where
nothing was chosen: then ``--quick`` or the field's default decides (`_experiment_config`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os

from tinybnn.cli.arguments import (
    above_zero,
    add_command,
    add_dataset,
    add_group,
    add_threads,
    dataset,
    number,
    share,
    whole,
)
from tinybnn.cli.output import add_json, check_folder, check_outputs, say_for, tell, write_json
from tinybnn.cli.parser import nearest


def add_reproduce(commands):
    experiments = add_group(
        commands,
        "reproduce",
        "EXPERIMENT",
        "run an experiment and write its figures",
        "Run an experiment and write its figures. Each has options of its own: see "
        "`tinybnn reproduce EXPERIMENT --help`.",
        "tinybnn reproduce ops",
    )
    for add in (
        _add_classifiers, _add_hybnn, _add_bounds, _add_fedhybnn, _add_fedavg, _add_bdnet,
        _add_hessian, _add_landscape, _add_condition, _add_ops, _add_claims, _add_report,
    ):  # fmt: skip
        add(experiments)


# -------------------------------------------------------------------------------------- experiments


def _add_classifiers(experiments):
    for name, summary, takes in (
        ("mnist-cnn", "a small binary CNN on MNIST", "4 minutes a seed"),
        ("mnist-mlp", "dense layers of 256 on MNIST, all of 1 bit", "6 minutes a seed"),
        ("mnist-mlp-1024", "dense layers of 1024 on MNIST, all of 1 bit", "half an hour a seed"),
        ("cifar10-vgg-small", "VGG-small on CIFAR-10", "2 hours a seed"),
    ):
        experiment = add_command(
            experiments,
            name,
            _classifiers,
            f"{summary}: accuracy over seeds",
            f"Train {summary} with several seeds and compare each\n"
            "network with its packed form on all test images. The figures go to RUN/<name>.json,\n"
            "the curves of the trainings to RUN/<name>.png.",
            f"TINYBNN_DATA=DIR tinybnn reproduce {name} --seeds 3",
        )
        experiment.set_defaults(name=name, takes=takes)
        add_dataset(experiment, "not the recipe's")
        experiment.add_argument(
            "--seeds", type=whole(1), default=3, metavar="N", help="how many (3)"
        )
        experiment.add_argument("--epochs", type=whole(1), metavar="N", help="not the recipe's")
        _add_validate(experiment)
        _add_note(experiment)
        add_threads(experiment, "(one a core)")
        experiment.add_argument("--out", default="runs", metavar="RUN", help="folder (runs)")


def _classifiers(options):
    from tinybnn.experiments import classifiers

    check_folder(options, "out")
    with _announced(options.name, options.out, options.takes):
        classifiers.run(
            options.name, options.out, options.dataset, options.seeds, options.epochs,
            options.validate, options.threads, note=options.note,
        )  # fmt: skip


def _add_validate(experiment):
    experiment.add_argument(
        "--validate", action="store_true", help="test on held-out training images instead"
    )


def _add_note(experiment):
    experiment.add_argument(
        "--note", default="", metavar="TEXT", help="for the report: where the images come from"
    )


def _add_hybnn(experiments):
    hybnn = add_command(
        experiments,
        "hybnn",
        _hybnn,
        "HyBNN's tasks, with its baselines: accuracy, codes, times",
        "Train a binary autoencoder without labels, extract each image's code once, and train\n"
        "binary networks on the codes; the same for the baselines. Tables (report.md), figures\n"
        "(result.json) and pictures go to RUN. Repeat the command after an interruption.",
        "tinybnn reproduce hybnn",
        "TINYBNN_DATA=DIR tinybnn reproduce hybnn --dataset mnist --seeds 5",
        "TINYBNN_DATA=DIR tinybnn reproduce hybnn --dataset mnist --vae-dataset fashion-mnist",
    )
    _add_images(hybnn)
    hybnn.add_argument(
        "--vae-dataset", type=_dataset_or_folder, metavar="D",
        help="whose images the autoencoder learns from (those of --dataset)",
    )  # fmt: skip
    _add_autoencoder(
        hybnn, f": {', '.join(_ESTIMATORS)} (straight_through)", "; 1 is the ELBO (0.1)"
    )
    _add_seeds(hybnn, 3)
    for name, default, what in (
        ("vae", 20, "of the autoencoder"),
        ("", 100, "of networks on codes, for each task"),
        ("cnn", 15, "of the CNNs, for each task"),
        ("all", 30, "of networks on codes, for all classes at once"),
    ):
        option = f"--epochs-{name}".rstrip("-")
        hybnn.add_argument(option, type=whole(1), metavar="N", help=f"{what} ({default})")
    _add_run(hybnn, "hybnn")


def _hybnn(options):
    from tinybnn.experiments import hybnn

    _carry_out(options, hybnn, _seeds(options))


def _add_bounds(experiments):
    bounds = add_command(
        experiments,
        "hybnn-bounds",
        _bounds,
        "estimators of gradients through binary latents, by the bound they reach",
        "Train an autoencoder on binarized images with each estimator, for the same number of\n"
        "codes that the decoder sees, and measure its bounds on test images, in nats. The tables\n"
        "go to RUN. Repeat the command after an interruption.",
        "tinybnn reproduce hybnn-bounds",
        "TINYBNN_DATA=DIR tinybnn reproduce hybnn-bounds --dataset mnist",
    )
    _add_images(bounds)
    bounds.add_argument(
        "--estimators", type=_estimators, default=_ESTIMATORS, metavar="E,E,...",
        help=f"(all: {','.join(_ESTIMATORS)})",
    )  # fmt: skip
    bounds.add_argument("--bits", type=whole(1), metavar="N", help="latent variables (200)")
    bounds.add_argument("--epochs", type=whole(1), metavar="N", help="(100)")
    bounds.add_argument(
        "--samples", type=whole(1), metavar="N", help="codes of the multi-sample bound (50)"
    )
    bounds.add_argument(
        "--lr", type=above_zero, metavar="X", help="learning rate at the start (0.001)"
    )
    bounds.add_argument("--seed", type=whole(0), metavar="S", help="(0)")
    _add_run(bounds, "hybnn-bounds")


def _bounds(options):
    from tinybnn.experiments.hybnn import bounds

    _carry_out(options, bounds, options.estimators)


def _add_fedhybnn(experiments):
    fedhybnn = add_command(
        experiments,
        "fedhybnn",
        _fedhybnn,
        "HyBNN's heads trained by clients: accuracy against bytes on the wire",
        "Train the heads of HyBNN's tasks with three clients, which send floats or one bit for a\n"
        "weight, with IID and with skewed labels, and on one machine. Tables (report.md), figures\n"
        "(result.json) and pictures go to RUN. Repeat the command after an interruption.",
        "tinybnn reproduce fedhybnn",
        "TINYBNN_DATA=DIR tinybnn reproduce fedhybnn --dataset mnist --rounds 50 --batch-size 64",
    )
    _add_images(fedhybnn)
    _add_autoencoder(fedhybnn, " (as `reproduce hybnn`)", " (as `reproduce hybnn`)")
    fedhybnn.add_argument(
        "--epochs-vae", type=whole(1), metavar="N", help="of the autoencoder (20)"
    )
    _add_seeds(fedhybnn, 1)
    _add_rounds(fedhybnn, rounds=20, clients=3, batch_size=16)
    fedhybnn.add_argument(
        "--lr", type=above_zero, metavar="X", help="of Adam, anew in each round (0.01)"
    )
    fedhybnn.add_argument(
        "--step", type=above_zero, metavar="X",
        help="of the server, where signs of updates are sent (0.02)",
    )  # fmt: skip
    fedhybnn.add_argument(
        "--alpha", type=above_zero, metavar="X",
        help="of the Dirichlet distribution that skews labels (0.3)",
    )  # fmt: skip
    _add_run(fedhybnn, "fedhybnn")


def _fedhybnn(options):
    from tinybnn.experiments import fedhybnn

    _carry_out(options, fedhybnn, _seeds(options))


def _add_fedavg(experiments):
    fedavg = add_command(
        experiments,
        "fedavg",
        _fedavg,
        "McMahan's 2NN on MNIST: rounds of federated averaging to 97%%",
        "Train McMahan's 2NN with 100 clients, IID and with two shards of one label each, and a\n"
        "binary network of the same widths, with floats and with one bit up, its batch norms\n"
        "averaged or frozen. The table (report.md), figures (result.json) and a picture go to\n"
        "RUN. Repeat the command after an interruption.",
        "TINYBNN_DATA=DIR tinybnn reproduce fedavg",
        "tinybnn reproduce fedavg --quick",
    )
    _add_images(fedavg, None, "mnist; with --quick digits")
    _add_arms(fedavg, "2nn, binary, binary-sign, binary-sign-frozen (all)")
    _add_rounds(fedavg, rounds=1000, clients=100, batch_size=10)
    fedavg.add_argument("--fraction", type=share, metavar="C", help="of clients in a round (0.1)")
    fedavg.add_argument(
        "--target", type=share, metavar="X", help="accuracy at which a training ends (0.97)"
    )
    for name, what, default in (
        ("lr", "of SGD, for the 2NN", 0.1),
        ("lr-binary", "of Adam, for the binary networks", 0.001),
        ("step", "of the server, where signs of updates are sent", 0.01),
    ):
        fedavg.add_argument(f"--{name}", type=above_zero, metavar="X", help=f"{what} ({default:g})")
    _add_validate(fedavg)
    _add_run(fedavg, "fedavg")


def _fedavg(options):
    from tinybnn.experiments import fedavg

    _check_arms(options, fedavg.ARMS)
    _carry_out(options, fedavg, options.arms)


def _add_bdnet(experiments):
    for name, seeds, summary, what in (
        (
            "bdnet-ablation", 3, "BD-Net's Table 6: binary depth-wise convolutions, part by part",
            "MobileNet V1 with binary depth-wise convolutions: naive, with the shortcut before\n"
            "the batch norm, with the 1.58-bit convolution, with both.",
        ),
        (
            "bdnet-table2", 1, "mobile networks: accuracy against operations and measured time",
            "MobileNet V1 as float network, ReActNet, AdaBin and BD-Net, ShuffleNet V1 and\n"
            "MobileNet V3 with and without broadcast residual.",
        ),
    ):  # fmt: skip
        experiment = add_command(
            experiments,
            name,
            _bdnet,
            summary,
            f"Train {what}\nTables (report.md), figures (result.json) and pictures go to RUN. "
            "Repeat the command\nafter an interruption.",
            f"tinybnn reproduce {name} --quick",
            f"TINYBNN_DATA=DIR tinybnn reproduce {name} --seeds {seeds} --epochs 25",
        )
        _add_mobile_training(experiment, seeds, epochs=25)
        _add_run(experiment, name)


def _add_mobile_training(experiment, seeds, epochs):
    """What decides how BD-Net's networks are trained."""
    add_dataset(experiment, "data set (cifar10; with --quick digits)")
    experiment.add_argument(
        "--width", type=above_zero, metavar="X", help="factor of all channels (0.25)"
    )
    experiment.add_argument(
        "--base", choices=["reactnet", "adabin"], metavar="B",
        help="what BD-Net is built on: reactnet or adabin (reactnet)",
    )  # fmt: skip
    _add_seeds(experiment, seeds, "; with --quick 1")
    _add_arms(experiment, "some of the networks only (all)")
    experiment.add_argument("--epochs", type=whole(1), metavar="N", help=f"({epochs})")
    experiment.add_argument("--batch-size", type=whole(2), metavar="N", help="(128)")
    experiment.add_argument(
        "--lr", type=above_zero, metavar="X", help="of Adam at the start (0.003)"
    )
    experiment.add_argument(
        "--schedule", choices=["cosine", "linear"], metavar="S",
        help="how it goes to 0: cosine or linear (cosine)",
    )  # fmt: skip
    experiment.add_argument(
        "--two-step", action="store_true", default=None,
        help="first binary activations with real weights, then both binary",
    )  # fmt: skip
    experiment.add_argument(
        "--distill", type=share, metavar="X",
        help="part of the target that is what a float network says, 0 to 1 (0)",
    )  # fmt: skip
    _add_limit(experiment)
    _add_note(experiment)


def _bdnet(options):
    from tinybnn.experiments import bdnet

    _check_arms(options, bdnet.EXPERIMENTS[options.experiment])
    run = functools.partial(bdnet.run, options.experiment)
    _carry_out(options, bdnet, _seeds(options), options.arms, options.note, run=run)


def _add_hessian(experiments):
    hessian = add_command(
        experiments,
        "hessian",
        _hessian,
        "BD-Net's Figure 5: the largest eigenvalues of the Hessian",
        "Train MobileNet V1 as float network, as ReActNet and with binary depth-wise\n"
        "convolutions: naive, with the shortcut before the batch norm, with the 1.58-bit\n"
        "convolution, with both. Before and after the training: the largest eigenvalues of the\n"
        "Hessian and how all are distributed. The table (hessian.md), figures (hessian.json)\n"
        "and a picture go to RUN. Repeat the command after an interruption.",
        "tinybnn reproduce hessian --quick",
        "TINYBNN_DATA=DIR tinybnn reproduce hessian --seeds 3",
    )
    _add_mobile_training(hessian, 3, epochs=5)
    for name, low, what in (
        ("images", 2, "on which the Hessian is computed (512)"),
        ("steps", 10, "of Lanczos (40)"),
    ):
        hessian.add_argument(f"--{name}", type=whole(low), metavar="N", help=what)
    hessian.add_argument(
        "--graphs", type=whole(0), default=1, metavar="N",
        help="batches whose gradients stay in memory; all of them halve the time (1)",
    )  # fmt: skip
    add_json(hessian)
    _add_run(hessian, "hessian")


def _hessian(options):
    from tinybnn.experiments.bdnet import EXPERIMENTS, curvature

    check_outputs(options, "json")
    _check_arms(options, EXPERIMENTS["hessian"])
    chosen = _seeds(options), options.arms, options.note, options.graphs
    write_json(options, _carry_out(options, curvature, *chosen))


def _add_landscape(experiments):
    landscape = add_command(
        experiments,
        "landscape",
        _landscape,
        "BD-Net's Figures 2 and 6: loss landscapes",
        "Train the networks of `tinybnn reproduce hessian` (a RUN of that experiment serves as\n"
        "well) and evaluate the loss around them along random directions: that of the binary\n"
        "network and that of its surrogates. The table (landscape.md), figures\n"
        "(landscape.json) and pictures go to RUN. Repeat the command after an interruption.",
        "tinybnn reproduce landscape --quick",
        "TINYBNN_DATA=DIR tinybnn reproduce landscape --seeds 3",
    )
    _add_mobile_training(landscape, 3, epochs=5)
    for name, low, what in (
        ("images", 1, "on which the loss is computed (512)"),
        ("points", 3, "along the line, an odd number (41)"),
        ("grid", 3, "points of the plane along each direction, an odd number (15)"),
    ):
        landscape.add_argument(f"--{name}", type=whole(low), metavar="N", help=what)
    landscape.add_argument(
        "--html", action="store_true", help="surfaces for a browser, too; needs plotly"
    )
    add_json(landscape)
    _add_run(landscape, "landscape")


def _landscape(options):
    from tinybnn.experiments.bdnet import EXPERIMENTS, landscape

    check_outputs(options, "json")
    _check_arms(options, EXPERIMENTS["landscape"])
    chosen = _seeds(options), options.arms, options.note, options.html
    write_json(options, _carry_out(options, landscape, *chosen))


def _add_condition(experiments):
    condition = add_command(
        experiments,
        "condition",
        _condition,
        "BD-Net's Eq. 3 to 10: condition numbers with and without its residual",
        "Compute the condition number of a binary depth-wise layer, with and without the\n"
        "residual before its batch norm, for all filters of 3x3 signs while the factor of the\n"
        "batch norm grows, beside what the paper's formulas say. Takes some seconds.",
        "tinybnn reproduce condition --plot condition.png",
    )
    condition.add_argument("--plot", metavar="FILE", help="draw the numbers to FILE (PNG)")
    add_json(condition)


def _condition(options):
    from tinybnn.experiments.bdnet import conditioning

    check_outputs(options, "json", "plot")
    say = say_for(options)
    result = conditioning.run(say=say)
    if options.plot is not None:
        conditioning.save_picture(options.plot, result)
        say(f"Picture: {options.plot}")
    write_json(options, result)


def _add_ops(experiments):
    ops = add_command(
        experiments,
        "ops",
        _ops,
        "the operation counts of BD-Net's Tables 1 to 5",
        "Count the operations of our networks and print each figure of BD-Net's Tables 1 to 5\n"
        "beside the published one: the true count, the count by the paper's convention, and\n"
        "whether that matches exactly, by a fitted assumption, or not.",
        "tinybnn reproduce ops --json ops.json",
    )
    add_json(ops)


def _ops(options):
    from tinybnn.experiments import ops

    check_outputs(options, "json")
    tell("Counting operations, some seconds ...")
    write_json(options, ops.run(say=say_for(options)))


def _add_claims(experiments):
    claims = add_command(
        experiments,
        "claims",
        _claims,
        "the two papers, claim by claim: what holds, what does not, what is open",
        "List every claim, equation, table and figure of the papers on BD-Net and HyBNN: whether\n"
        "it was reproduced, in part, refuted, is open or cannot be tested here, with our figures,\n"
        "the command that makes them and the reason. Nothing is computed.",
        "tinybnn reproduce claims --json claims.json",
    )
    add_json(claims)


def _claims(options):
    from tinybnn.experiments import claims

    check_outputs(options, "json")
    write_json(options, claims.run(say=say_for(options)))


def _add_report(experiments):
    report = add_command(
        experiments,
        "report",
        _report,
        "the report of a run, written anew from its figures",
        "Write report.md in the folder of a run anew, and the pictures that need no more than\n"
        "the figures in its result.json: nothing is trained.",
        "tinybnn reproduce report runs/hybnn-digits",
    )
    report.add_argument("run", metavar="RUN", help="folder of `tinybnn reproduce`")


def _report(options):
    from tinybnn.experiments import reports

    reports.write_again(options.run)


# ----------------------------------------------------------------------- what several of them share


def _add_images(experiment, default="digits", told="digits"):
    experiment.add_argument(
        "--dataset", type=_dataset_or_folder, default=default, metavar="D",
        help=f"a data set, or a folder with four IDX files named as MNIST's ({told})",
    )  # fmt: skip
    _add_limit(experiment)


def _dataset_or_folder(text):
    if os.path.isfile(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a file, expected a data set's name or a folder with four IDX files"
        )
    return text if os.path.isdir(text) else dataset(text)


def _add_limit(experiment):
    experiment.add_argument(
        "--limit", type=whole(100), metavar="N", help="use the first N images only"
    )


# The keys of `hybnn.bounds.ESTIMATORS`, whose import `tinybnn --help` should not wait for.
_ESTIMATORS = (
    "sign", "straight_through", "straight_through_gumbel", "gumbel_softmax", "score_function",
    "disarm",
)  # fmt: skip


def _estimators(text):
    names = text.split(",")
    for name in names:
        if name not in _ESTIMATORS:
            raise argparse.ArgumentTypeError(
                f"unknown estimator {name!r}{nearest(name, _ESTIMATORS)}, choose from "
                + ", ".join(_ESTIMATORS)
            )
    return names


def _add_autoencoder(experiment, about_estimator, about_weight):
    experiment.add_argument(
        "--estimator", choices=_ESTIMATORS, metavar="E",
        help=f"of gradients through the code{about_estimator}",
    )  # fmt: skip
    experiment.add_argument(
        "--rate-weight", type=number(0), metavar="X",
        help=f"of KL(code || prior) beside the reconstruction{about_weight}",
    )  # fmt: skip
    experiment.add_argument("--bits", type=whole(1), metavar="N", help="of a code (200)")


def _add_rounds(experiment, **defaults):
    for name, low, what in (
        ("rounds", 1, ""), ("clients", 1, ""), ("epochs", 1, "E, of a client in a round"),
        ("batch_size", 2, "B"),
    ):  # fmt: skip
        experiment.add_argument(
            f"--{name.replace('_', '-')}", type=whole(low), metavar="N",
            help=f"{what} ({defaults.get(name, 1)})".strip(),
        )  # fmt: skip


def _add_seeds(experiment, default, remark=""):
    experiment.set_defaults(default_seeds=default)
    experiment.add_argument(
        "--seeds", type=whole(1), metavar="N", help=f"how many ({default}{remark})"
    )


def _seeds(options):
    return options.seeds or (1 if options.quick else options.default_seeds)


def _add_arms(experiment, text):
    experiment.add_argument(
        "--arms", type=_arms, metavar="A,A,...", help=f"{text}; add others later"
    )


def _arms(text):
    return text.split(",") if text else None  # the experiment knows the names


def _check_arms(options, known):
    for name in options.arms or ():
        if name not in known:
            options.parser.error(
                f"argument --arms: unknown {name!r}{nearest(name, known)}, "
                f"choose from {', '.join(known)}"
            )


# How long they take as they are by default, where it was measured: on two cores.
_TAKES = {
    "hybnn": "a quarter of an hour a seed on MNIST",
    "hybnn-bounds": "10 to 20 minutes an estimator on MNIST",
    "fedhybnn": "an autoencoder and 85 short trainings a seed",
    "fedavg": "a quarter of an hour a training, two for each of --arms",
    "bdnet-ablation": "10 to 45 minutes a network on CIFAR-10",
    "bdnet-table2": "10 to 45 minutes a network on CIFAR-10",
    "hessian": "a quarter of an hour a network on CIFAR-10",
    "landscape": "a quarter of an hour a network on CIFAR-10",
}


_SECONDS = 1.0  # what is refused is so earlier, and needs no announcement


def _announced(experiment, folder, takes):
    """A block in which an experiment runs: say what it writes and how long it takes."""
    from tinybnn import runs

    time = f"; takes {takes}" if takes else ""
    text = f"{experiment}: writes into {folder}{time}; repeat the command if it is stopped"
    return runs.told(text, seconds=_SECONDS)


def _add_run(experiment, name):
    experiment.set_defaults(experiment=name)
    experiment.add_argument(
        "--quick", action="store_true", help="run everything, too briefly for good figures"
    )
    add_threads(experiment)
    experiment.add_argument("--quiet", action="store_true", help="no progress bars")
    experiment.add_argument(
        "--out", metavar="RUN", help="folder (runs/ and the names of experiment and data set)"
    )


def _carry_out(options, experiment, *chosen, run=None):
    """Call ``run(folder, config, *chosen, threads, progress)``, the experiment's own by default."""
    config = _experiment_config(options, experiment)
    options.dataset = config.dataset  # gives the folder its name, whoever chose it
    options.out = _experiment_folder(options, options.experiment)
    check_folder(options, "out")
    takes = "" if options.quick else _TAKES[options.experiment]
    with _announced(options.experiment, options.out, takes):
        return (run or experiment.run)(
            options.out, config, *chosen, options.threads, not options.quiet
        )


def _experiment_config(options, experiment):
    """An experiment's configuration: what was chosen, else what --quick or the defaults say."""
    values = dict(experiment.QUICK) if options.quick else {}
    for field in dataclasses.fields(experiment.Config):
        chosen = getattr(options, field.name)
        if chosen is not None:
            values[field.name] = chosen
    try:
        return experiment.Config(**values)
    except ValueError as error:
        options.parser.error(str(error))


def _experiment_folder(options, name):
    if options.out is not None:
        return options.out
    images = os.path.basename(os.path.normpath(options.dataset))
    return os.path.join("runs", f"{name}-{images}{'-quick' if options.quick else ''}")
