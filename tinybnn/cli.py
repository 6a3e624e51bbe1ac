"""The command line: arguments in, printing out; the work is done by the library."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys

import tinybnn


def main(arguments=None):
    """Run a command; returns the exit code (0 done, 1 failed, 2 wrong arguments)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        code = options.command(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of a pipe, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"tinybnn: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tinybnn: interrupted", file=sys.stderr)
        return 130


def _one_line(error):
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(lines).replace(":; ", ": ")


# --------------------------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """An error is one line that says what to do."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _parser():
    parser = _Parser(
        prog="tinybnn",
        description="Binary neural networks from scratch, run on packed bits.",
        epilog="example: tinybnn demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tinybnn {tinybnn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_demo, _add_data, _add_train, _add_compile, _add_verify, _add_predict, _add_summary,
        _add_bench, _add_reproduce, _add_federated,
    ):  # fmt: skip
        add(commands)
    return parser


def _add(commands, name, run, summary, description, *examples):
    """A subcommand with a help text."""
    command = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n".join(["examples:" if len(examples) > 1 else "example:", *examples]).replace(
            "\n", "\n  "
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(command=run, parser=command)
    return command


def _add_demo(commands):
    demo = _add(
        commands,
        "demo",
        _demo,
        "train a binary CNN on the bundled digits, pack it and prove both equal",
        "Train a binary CNN on the bundled digits, compile it to packed bits, prove\n"
        "that both give identical outputs, and draw one picture.",
        "tinybnn demo --out demo.png --json demo.json",
    )
    demo.add_argument("--epochs", type=_whole(1), default=20, metavar="N", help="(20)")
    demo.add_argument("--seed", type=_whole(0), default=0, metavar="S", help="(0)")
    demo.add_argument("--out", default="demo.png", metavar="FILE", help="the picture (demo.png)")
    _add_json(demo)


def _add_data(commands):
    data = commands.add_parser(
        "data",
        help="list, download or find data sets",
        description="List, download or find data sets. They lie in $TINYBNN_DATA/NAME or in the "
        "user's cache.",
        epilog="example: tinybnn data list",
        allow_abbrev=False,
    )
    actions = data.add_subparsers(required=True, metavar="ACTION")
    show = _add(
        actions,
        "list",
        _data_list,
        "list the data sets that are known, and where they are",
        "List the data sets that are known: images, where they were found, origin, licence.",
        "tinybnn data list",
    )
    _add_json(show)
    fetch = _add(
        actions,
        "fetch",
        _data_fetch,
        "download data sets from their official addresses",
        "Download data sets, unless they are there. An interrupted download goes on where it\n"
        "stopped; a file gets its name only when its checksum is right.",
        "tinybnn data fetch mnist fashion-mnist",
    )
    fetch.add_argument("names", nargs="+", type=_dataset, metavar="NAME")
    fetch.add_argument("--to", metavar="DIR", help="put them into DIR/NAME")
    fetch.add_argument("--from", dest="mirror", metavar="URL", help="a mirror of the files")
    fetch.add_argument(
        "--force", action="store_true", help="check every file, download it again if it is wrong"
    )
    find = _add(
        actions,
        "path",
        _data_path,
        "print the folder of a data set",
        "Print the folder in which a data set is found.",
        "tinybnn data path mnist",
    )
    find.add_argument("name", type=_dataset, metavar="NAME")


def _add_train(commands):
    train = _add(
        commands,
        "train",
        _train,
        "train a binary network into a folder, or go on where training was stopped",
        "Train a binary network into the folder RUN. The state is saved after each epoch:\n"
        "repeat the command after an interruption, and it goes on from there to the same\n"
        "weights, bit for bit. The test set is evaluated once, after the last epoch.",
        "tinybnn train cnn --dataset digits --out runs/digits",
        "tinybnn train mlp --dataset mnist --epochs 10 --hidden 512,512 --out runs/mlp",
    )
    train.add_argument(
        "model", choices=["mlp", "cnn", "vgg-small"],
        help="mlp: dense layers; cnn: three convolutions; vgg-small: six, for 32×32 pixels",
    )  # fmt: skip
    train.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    _add_dataset(train, "data set (digits)", default="digits")
    train.add_argument("--epochs", type=_whole(1), default=20, metavar="N", help="(20)")
    train.add_argument("--batch-size", type=_whole(2), default=64, metavar="N", help="(64)")
    train.add_argument(
        "--lr", type=_number(0, None), default=0.01, metavar="X",
        help="learning rate of Adam at the start; a cosine takes it to 0 (0.01)",
    )  # fmt: skip
    train.add_argument(
        "--seed", type=_whole(0), default=0, metavar="S",
        help="of weights, order of images, dropout and the part held out (0)",
    )  # fmt: skip
    train.add_argument(
        "--validation", type=_number(0, 1), default=0.0, metavar="SHARE",
        help="hold out this share of the training images and test on it after each epoch (0)",
    )  # fmt: skip
    train.add_argument(
        "--shift", type=_whole(0), default=0, metavar="PIXELS",
        help="move training images at random by up to so many pixels (0)",
    )  # fmt: skip
    train.add_argument(
        "--flip", action="store_true", help="show training images in a mirror, half of them"
    )
    train.add_argument(
        "--threads", type=_whole(1), metavar="N", help="(one a core); the result is the same"
    )
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_json(train)
    mlp = train.add_argument_group("options of mlp")
    mlp.add_argument(
        "--hidden", type=_widths, metavar="N,N,...", help="widths of hidden layers (256,256,256)"
    )
    mlp.add_argument("--dropout", type=_number(0, 1), metavar="P", help="probability (0)")


def _add_compile(commands):
    compile = _add(
        commands,
        "compile",
        _compile,
        "pack the model of a run into a file of bits",
        "Compile the trained model of the folder RUN to packed bits: weights of one bit,\n"
        "integer thresholds instead of batch norms.",
        "tinybnn compile runs/digits -o digits.npz",
    )
    compile.add_argument("run", metavar="RUN", help="folder of a complete run")
    compile.add_argument("-o", "--out", metavar="FILE", help="the packed model (RUN/model.npz)")
    _add_json(compile)


def _add_verify(commands):
    verify = _add(
        commands,
        "verify",
        _verify,
        "prove that a packed model equals the model it was compiled from",
        "Run the float model of RUN and the packed MODEL over all test images and compare\n"
        "logits and every value inside bit for bit. The exit code is 1 if any differs.",
        "tinybnn verify runs/digits digits.npz",
        "tinybnn verify runs/mnist mnist.npz --dataset fashion-mnist",
    )
    verify.add_argument("run", metavar="RUN", help="folder of a complete run")
    verify.add_argument("model", metavar="MODEL", help="packed model (of `tinybnn compile`)")
    _add_dataset(verify, "whose test images (the run's)")
    _add_json(verify)


def _add_predict(commands):
    predict = _add(
        commands,
        "predict",
        _predict,
        "classify images with a packed model",
        "Classify images with a packed model. IMAGES are pictures (PNG, JPEG, ...) or files of\n"
        "many images: .npy with uint8 pixels as in the training set or floats from 0 to 1,\n"
        "or IDX, gzipped or not. One line for each image: file, class, largest logit.",
        "tinybnn predict digits.npz seven.png --resize",
        "tinybnn predict mnist.npz t10k-images-idx3-ubyte.gz --json predictions.json",
    )
    predict.add_argument("model", metavar="MODEL", help="packed model (of `tinybnn compile`)")
    predict.add_argument("images", nargs="+", metavar="IMAGES", help="files")
    predict.add_argument(
        "--resize", action="store_true", help="scale pictures of another size than the model's"
    )
    _add_json(predict)


def _add_reproduce(commands):
    reproduce = commands.add_parser(
        "reproduce",
        help="run an experiment and write its figures",
        description="Run an experiment and write its figures. Each has options of its own: see "
        "`tinybnn reproduce EXPERIMENT --help`.",
        epilog="example: tinybnn reproduce ops",
        allow_abbrev=False,
    )
    experiments = reproduce.add_subparsers(required=True, metavar="EXPERIMENT")
    for add in (
        _add_classifiers, _add_hybnn, _add_bounds, _add_fedhybnn, _add_fedavg, _add_bdnet, _add_ops,
    ):  # fmt: skip
        add(experiments)


def _add_classifiers(experiments):
    for name, summary in (
        ("mnist-cnn", "a small binary CNN on MNIST"),
        ("mnist-mlp", "dense layers of 256 on MNIST, all of 1 bit"),
        ("mnist-mlp-1024", "dense layers of 1024 on MNIST, all of 1 bit"),
        ("cifar10-vgg-small", "VGG-small on CIFAR-10"),
    ):
        experiment = _add(
            experiments,
            name,
            _classifiers,
            f"{summary}: accuracy over seeds",
            f"Train {summary} with several seeds and compare each\n"
            "network with its packed form on all test images. The figures go to RUN/<name>.json.",
            f"TINYBNN_DATA=DIR tinybnn reproduce {name} --seeds 3",
        )
        experiment.set_defaults(name=name)
        experiment.add_argument("--dataset", metavar="D", help="not the recipe's")
        experiment.add_argument(
            "--seeds", type=_whole(1), default=3, metavar="N", help="how many (3)"
        )
        experiment.add_argument("--epochs", type=_whole(1), metavar="N", help="not the recipe's")
        experiment.add_argument(
            "--validate", action="store_true", help="test on held-out training images instead"
        )
        experiment.add_argument("--threads", type=_whole(1), metavar="N", help="(one a core)")
        experiment.add_argument("--out", default="runs", metavar="RUN", help="folder (runs)")


def _add_hybnn(experiments):
    hybnn = _add(
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
    hybnn.add_argument(
        "--estimator", choices=_ESTIMATORS, metavar="E",
        help=f"of gradients through the code: {', '.join(_ESTIMATORS)} (straight_through)",
    )  # fmt: skip
    hybnn.add_argument(
        "--rate-weight", type=_number(0, None), metavar="X",
        help="of KL(code || prior) beside the reconstruction; 1 is the ELBO (0.1)",
    )  # fmt: skip
    hybnn.add_argument("--bits", type=_whole(1), default=200, metavar="N", help="of a code (200)")
    hybnn.add_argument("--seeds", type=_whole(1), metavar="N", help="how many (3)")
    for name, default, what in (
        ("vae", 20, "of the autoencoder"),
        ("", 100, "of networks on codes, for each task"),
        ("cnn", 15, "of the CNNs, for each task"),
        ("all", 30, "of networks on codes, for all classes at once"),
    ):
        option = f"--epochs-{name}".rstrip("-")
        hybnn.add_argument(option, type=_whole(1), metavar="N", help=f"{what} ({default})")
    _add_run(hybnn)


def _add_bounds(experiments):
    bounds = _add(
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
    bounds.add_argument(
        "--bits", type=_whole(1), default=200, metavar="N", help="latent variables (200)"
    )
    bounds.add_argument("--epochs", type=_whole(1), metavar="N", help="(100)")
    bounds.add_argument(
        "--samples", type=_whole(1), metavar="N", help="codes of the multi-sample bound (50)"
    )
    bounds.add_argument(
        "--lr", type=_number(0, None), metavar="X", help="learning rate at the start (0.001)"
    )
    bounds.add_argument("--seed", type=_whole(0), default=0, metavar="S", help="(0)")
    _add_run(bounds)


def _add_fedhybnn(experiments):
    fedhybnn = _add(
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
    fedhybnn.add_argument(
        "--estimator", choices=_ESTIMATORS, metavar="E",
        help="of gradients through the code (as `reproduce hybnn`)",
    )  # fmt: skip
    fedhybnn.add_argument(
        "--rate-weight",
        type=_number(0, None),
        metavar="X",
        help="of KL(code || prior) beside the reconstruction (as `reproduce hybnn`)",
    )
    fedhybnn.add_argument("--bits", type=_whole(1), metavar="N", help="of a code (200)")
    fedhybnn.add_argument(
        "--epochs-vae", type=_whole(1), metavar="N", help="of the autoencoder (20)"
    )
    fedhybnn.add_argument("--seeds", type=_whole(1), default=1, metavar="N", help="how many (1)")
    _add_rounds(fedhybnn, rounds=20, clients=3, batch_size=16)
    fedhybnn.add_argument(
        "--lr", type=_number(0, None), metavar="X", help="of Adam, anew in each round (0.01)"
    )
    fedhybnn.add_argument(
        "--step", type=_number(0, None), metavar="X",
        help="of the server, where signs of updates are sent (0.02)",
    )  # fmt: skip
    fedhybnn.add_argument(
        "--alpha", type=_number(0, None), metavar="X",
        help="of the Dirichlet distribution that skews labels (0.3)",
    )  # fmt: skip
    _add_run(fedhybnn)


def _add_fedavg(experiments):
    fedavg = _add(
        experiments,
        "fedavg",
        _fedavg,
        "McMahan's 2NN on MNIST: rounds of federated averaging to 97%%",
        "Train McMahan's 2NN with 100 clients, IID and with two shards of one label each, and a\n"
        "binary network of the same widths, with floats and with one bit up. The table\n"
        "(report.md), figures (result.json) and a picture go to RUN. Repeat the command after an\n"
        "interruption.",
        "TINYBNN_DATA=DIR tinybnn reproduce fedavg",
        "tinybnn reproduce fedavg --quick",
    )
    fedavg.add_argument(
        "--dataset", type=_dataset_or_folder, metavar="D",
        help="a data set, or a folder with four IDX files named as MNIST's (mnist; with --quick "
        "digits)",
    )  # fmt: skip
    fedavg.add_argument(
        "--limit", type=_whole(100), metavar="N", help="use the first N images only"
    )
    fedavg.add_argument(
        "--arms", metavar="A,A,...", help="2nn, binary, binary-sign (all); add others later"
    )
    _add_rounds(fedavg, rounds=1000, clients=100, batch_size=10)
    fedavg.add_argument("--fraction", type=_share, metavar="C", help="of clients in a round (0.1)")
    fedavg.add_argument(
        "--target", type=_share, metavar="X", help="accuracy at which a training ends (0.97)"
    )
    for name, what, default in (
        ("lr", "of SGD, for the 2NN", 0.1),
        ("lr-binary", "of Adam, for the binary networks", 0.001),
        ("step", "of the server, where signs of updates are sent", 0.01),
    ):
        fedavg.add_argument(
            f"--{name}", type=_number(0, None), metavar="X", help=f"{what} ({default:g})"
        )
    _add_run(fedavg)


def _add_rounds(experiment, **defaults):
    for name, low, what in (
        ("rounds", 1, ""), ("clients", 1, ""), ("epochs", 1, "E, of a client in a round"),
        ("batch_size", 2, "B"),
    ):  # fmt: skip
        experiment.add_argument(
            f"--{name.replace('_', '-')}", type=_whole(low), metavar="N",
            help=f"{what} ({defaults.get(name, 1)})".strip(),
        )  # fmt: skip


_ESTIMATORS = (
    "sign", "straight_through", "straight_through_gumbel", "gumbel_softmax", "score_function",
    "disarm",
)  # fmt: skip


def _estimators(text):
    names = text.split(",")
    for name in names:
        if name not in _ESTIMATORS:
            raise argparse.ArgumentTypeError(
                f"unknown estimator {name!r}, choose from {', '.join(_ESTIMATORS)}"
            )
    return names


def _add_images(experiment):
    experiment.add_argument(
        "--dataset", type=_dataset_or_folder, default="digits", metavar="D",
        help="a data set, or a folder with four IDX files named as MNIST's (digits)",
    )  # fmt: skip
    experiment.add_argument(
        "--limit", type=_whole(100), metavar="N", help="use the first N images only"
    )


def _add_run(experiment):
    experiment.add_argument(
        "--quick", action="store_true", help="run everything, too briefly for good figures"
    )
    experiment.add_argument(
        "--threads", type=_whole(1), metavar="N", help="(one a core); the result is the same"
    )
    experiment.add_argument("--quiet", action="store_true", help="no progress bars")
    experiment.add_argument(
        "--out", metavar="RUN", help="folder (runs/ and the names of experiment and data set)"
    )


def _dataset_or_folder(text):
    return text if os.path.isdir(text) else _dataset(text)


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
        experiment = _add(
            experiments,
            name,
            _bdnet,
            summary,
            f"Train {what}\nTables (report.md), figures (result.json) and pictures go to RUN. "
            "Repeat the command\nafter an interruption.",
            f"tinybnn reproduce {name} --quick",
            f"TINYBNN_DATA=DIR tinybnn reproduce {name} --seeds {seeds} --epochs 25",
        )
        experiment.set_defaults(experiment=name, default_seeds=seeds)
        _add_dataset(experiment, "data set (cifar10; with --quick digits)")
        experiment.add_argument(
            "--width", type=_number(0, None), metavar="X", help="factor of all channels (0.25)"
        )
        experiment.add_argument(
            "--base", choices=["reactnet", "adabin"], metavar="B",
            help="what BD-Net is built on: reactnet or adabin (reactnet)",
        )  # fmt: skip
        experiment.add_argument(
            "--seeds", type=_whole(1), metavar="N", help=f"how many ({seeds}; with --quick 1)"
        )
        experiment.add_argument(
            "--arms", metavar="A,A,...", help="some of the networks only (all); add others later"
        )
        experiment.add_argument("--epochs", type=_whole(1), metavar="N", help="(25)")
        experiment.add_argument("--batch-size", type=_whole(2), metavar="N", help="(128)")
        experiment.add_argument(
            "--lr", type=_number(0, None), metavar="X", help="of Adam at the start (0.003)"
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
            "--distill", type=_share, metavar="X",
            help="part of the target that is what a float network says, 0 to 1 (0)",
        )  # fmt: skip
        experiment.add_argument(
            "--limit", type=_whole(100), metavar="N", help="use the first N images only"
        )
        experiment.add_argument(
            "--note", default="", metavar="TEXT", help="for the report: where the images come from"
        )
        _add_run(experiment)


def _add_ops(experiments):
    ops = _add(
        experiments,
        "ops",
        _ops,
        "the operation counts of BD-Net's Tables 1 to 5",
        "Count the operations of our networks and print each figure of BD-Net's Tables 1 to 5\n"
        "beside the published one: the true count, the count by the paper's convention, and\n"
        "whether that matches exactly, by a fitted assumption, or not.",
        "tinybnn reproduce ops --json ops.json",
    )
    _add_json(ops)


def _add_federated(commands):
    federated = commands.add_parser(
        "federated",
        help="federated learning through Flower",
        description="Federated learning through Flower, for one machine or for many "
        "(needs the extra flower).",
        epilog="example: tinybnn federated simulate",
        allow_abbrev=False,
    )
    actions = federated.add_subparsers(required=True, metavar="ACTION")
    simulate = _add(
        actions,
        "simulate",
        _federated_simulate,
        "run a Flower app with simulated nodes",
        "Run a Flower app with simulated nodes (Flower's simulation engine, on Ray), by default\n"
        "one that trains a binary network on the bundled digits. Whatever is started listens on\n"
        "127.0.0.1 only, reports nothing to anyone, and ends with the run. The model and the\n"
        "history go to FILE.",
        "tinybnn federated simulate --clients 3 --rounds 5",
        "tinybnn federated simulate --config strategy=sign-both --config norm=local",
    )
    simulate.add_argument("--app", metavar="DIR", help="of `tinybnn federated new` (the digits)")
    simulate.add_argument("--clients", type=_whole(1), default=3, metavar="N", help="(3)")
    simulate.add_argument("--rounds", type=_whole(1), default=3, metavar="N", help="(3)")
    simulate.add_argument(
        "--workers", type=_whole(1), default=1, metavar="N", help="that train at a time (1)"
    )
    simulate.add_argument(
        "--config", type=_setting, action="append", default=[], metavar="KEY=VALUE",
        help="change what the app's pyproject.toml says; may be repeated",
    )  # fmt: skip
    simulate.add_argument(
        "--out", default="federated.npz", metavar="FILE", help="the result (federated.npz)"
    )
    simulate.add_argument("--quiet", action="store_true", help="without the log of the run")
    _add_json(simulate)
    new = _add(
        actions,
        "new",
        _federated_new,
        "copy the Flower app, to be changed",
        "Copy the Flower app that trains on digits into the folder DIR, with a page that says\n"
        "how to run it on several machines.",
        "tinybnn federated new my-federation",
    )
    new.add_argument("folder", metavar="DIR")


def _setting(text):
    """KEY=VALUE; the value is a number, true or false, or else a text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expects KEY=VALUE, got {text!r}")
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    return name, parsed if isinstance(parsed, bool | int | float) else value


def _add_summary(commands):
    summary = _add(
        commands,
        "summary",
        _summary,
        "list the layers of a run or of an untrained network",
        "List the layers with output shape, parameters, bits of a weight, bytes of the packed\n"
        "model, binary operations and float operations of one sample.",
        "tinybnn summary runs/digits",
        "tinybnn summary cnn --input 1,28,28",
    )
    summary.add_argument(
        "what", metavar="RUN|MODEL", help="folder of a run, or mlp, cnn, vgg-small"
    )
    summary.add_argument(
        "--input", type=_widths, metavar="C,H,W", help="shape of one sample, for a network's name"
    )
    _add_json(summary)


def _add_bench(commands):
    bench = _add(
        commands,
        "bench",
        _bench,
        "measure kernels, packed models and training against NumPy, PyTorch and others",
        "Measure in turn, in one run: medians, their ratio, and whether it is what the project\n"
        "asks of itself. PyTorch, ONNX Runtime (with onnx) and Larq Compute Engine (with larq\n"
        "and tensorflow; TINYBNN_LARQ_PYTHON names the Python that has them) take part where\n"
        "they are installed. Without PyTorch, training is compared with our own way by floats.",
        "tinybnn bench kernels --threads 1",
        "tinybnn bench train --profile",
        "tinybnn bench all --json bench.json --plot roofline.png",
    )
    bench.add_argument(
        "group", choices=["kernels", "depthwise", "models", "startup", "train", "all"]
    )
    bench.add_argument("--threads", type=_whole(1), metavar="N", help="(2, or one a core)")
    bench.add_argument("--plot", metavar="FILE", help="draw the roofline to FILE (PNG)")
    bench.add_argument(
        "--profile", action="store_true", help="of train: where the time of a step goes"
    )
    bench.add_argument(
        "--check", action="store_true",
        help="of train: compare gradients and updates with PyTorch's instead of times",
    )  # fmt: skip
    bench.add_argument(
        "--quick", action="store_true", help="run everything, too briefly for good figures"
    )
    _add_json(bench)


def _add_json(command):
    command.add_argument(
        "--json", metavar="FILE", help="write the figures to FILE (- for standard output)"
    )


def _add_dataset(command, text, default=None):
    command.add_argument("--dataset", type=_dataset, default=default, metavar="D", help=text)


def _dataset(text):
    known = tinybnn.datasets.SOURCES
    if text not in known:
        raise argparse.ArgumentTypeError(
            f"unknown data set {text!r}, choose from {', '.join(known)}"
        )
    return text


def _whole(low):
    def parse(text):
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise argparse.ArgumentTypeError(f"expects a whole number >= {low}, got {text!r}")
        return number

    return parse


def _number(low, high):
    def parse(text):
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not (low <= number < (float("inf") if high is None else high)):
            span = f">= {low}" if high is None else f"from {low} to below {high}"
            raise argparse.ArgumentTypeError(f"expects a number {span}, got {text!r}")
        return number

    return parse


def _share(text):
    return 1.0 if text in ("1", "1.0") else _number(0, 1)(text)


def _widths(text):
    try:
        return [_whole(1)(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expects whole numbers with commas between, such as 256,256, got {text!r}"
        ) from None


# ---------------------------------------------------------------------------------------- commands


def _say(options):
    """Where lines for people go: not between the JSON on standard output."""
    stream = sys.stderr if options.json == "-" else sys.stdout
    return lambda text: print(text, file=stream, flush=True)


def _check_outputs(*paths):
    """Refuse to begin what could not be written down."""
    for path in paths:
        folder = os.path.dirname(os.path.abspath(path)) if path else "."
        if path != "-" and not os.path.isdir(folder):
            raise ValueError(f"{path}: there is no folder {folder}")


def _write_json(options, figures):
    if options.json is None:
        return
    text = json.dumps(figures, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        from tinybnn.storage import write_atomic

        write_atomic(options.json, text.encode())


def _demo(options):
    from tinybnn.experiments import demo

    _check_outputs(options.out, options.json)
    say = _say(options)
    result, model, history = demo.run(epochs=options.epochs, seed=options.seed, say=say)
    demo.draw(options.out, result, model, history)
    say(f"Picture: {options.out}")
    _write_json(options, result)


def _data_list(options):
    from tinybnn import datasets

    rows = datasets.available()
    say = _say(options)
    for row in rows:
        shape = "×".join(map(str, row.image_shape))
        images = f"{row.images[0]:,} + {row.images[1]:,}"
        where = str(row.folder) if row.folder else f"missing ({row.size / 1e6:,.0f} MB to fetch)"
        say(f"{row.name:<16}{images:<20}{shape:<10}{row.classes:>4} classes  {where}")
        say(f"{'':<16}{row.origin}; {row.licence}")
    listed = [
        {**dataclasses.asdict(row), "folder": str(row.folder) if row.folder else None}
        for row in rows
    ]
    _write_json(options, listed)


def _data_fetch(options):
    from tinybnn import datasets

    for name in options.names:
        folder = datasets.fetch(name, options.to, base_url=options.mirror, force=options.force)
        print(f"{name}: {folder}")


def _data_path(options):
    from tinybnn import datasets

    print(datasets.path(options.name))


def _train(options):
    from tinybnn import runs

    chosen = {"hidden": options.hidden, "dropout": options.dropout}
    if options.model == "mlp":
        defaults = {"hidden": [256, 256, 256], "dropout": 0.0}
        model_options = {k: defaults[k] if v is None else v for k, v in chosen.items()}
    else:
        for name, value in chosen.items():
            if value is not None:
                options.parser.error(f"--{name} is an option of mlp, not of {options.model}")
        model_options = {}
    config = runs.Config(
        model=options.model,
        dataset=options.dataset,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
        validation=options.validation,
        shift=options.shift,
        flip=options.flip,
        options=model_options,
    )
    _check_outputs(options.json)
    say = _say(options)
    result = runs.train(
        options.out, config, progress=not options.quiet, say=say, threads=options.threads
    )
    say(f"Next: tinybnn compile {options.out}")
    _write_json(options, result)


def _compile(options):
    from tinybnn import runs

    _check_outputs(options.out, options.json)
    _write_json(options, runs.compile(options.run, options.out, say=_say(options)))


def _verify(options):
    from tinybnn import runs

    _check_outputs(options.json)
    result = runs.verify(options.run, options.model, options.dataset, say=_say(options))
    _write_json(options, result)
    if result["difference"] is not None:
        print(f"tinybnn: {result['difference']}", file=sys.stderr)
        return 1
    return 0


def _predict(options):
    from tinybnn import runs

    _check_outputs(options.json)
    say, figures = _say(options), []
    for found in runs.predict(options.model, options.images, options.resize):
        place = found["file"] if found["index"] is None else f"{found['file']}[{found['index']}]"
        say(f"{place}: {found['class']} (logit {found['logits'][found['label']]:.4f})")
        figures.append(found)
    _write_json(options, figures)


def _classifiers(options):
    from tinybnn.experiments import classifiers

    classifiers.run(
        options.name, options.out, options.dataset, options.seeds, options.epochs,
        options.validate, options.threads,
    )  # fmt: skip


def _hybnn(options):
    from tinybnn.experiments import hybnn

    seeds = (1 if options.quick else 3) if options.seeds is None else options.seeds
    config = _experiment_config(options, hybnn)
    hybnn.run(
        _experiment_folder(options, "hybnn"), config, seeds, options.threads, not options.quiet
    )


def _bounds(options):
    from tinybnn.experiments import hybnn_bounds

    config = _experiment_config(options, hybnn_bounds)
    hybnn_bounds.run(
        _experiment_folder(options, "hybnn-bounds"), config, options.estimators, options.threads,
        not options.quiet,
    )  # fmt: skip


def _fedhybnn(options):
    from tinybnn.experiments import fedhybnn

    config = _experiment_config(options, fedhybnn)
    fedhybnn.run(
        _experiment_folder(options, "fedhybnn"), config, options.seeds, options.threads,
        not options.quiet,
    )  # fmt: skip


def _fedavg(options):
    from tinybnn.experiments import fedavg

    config = _experiment_config(options, fedavg)
    options.dataset = config.dataset
    fedavg.run(
        _experiment_folder(options, "fedavg"), config,
        options.arms.split(",") if options.arms else None, options.threads, not options.quiet,
    )  # fmt: skip


def _bdnet(options):
    from tinybnn.experiments import bdnet

    config = _experiment_config(options, bdnet)
    options.dataset = config.dataset
    seeds = options.seeds or (1 if options.quick else options.default_seeds)
    bdnet.run(
        options.experiment, _experiment_folder(options, options.experiment), config, seeds,
        options.arms.split(",") if options.arms else None, options.note, options.threads,
        not options.quiet,
    )  # fmt: skip


def _experiment_config(options, experiment):
    """An experiment's configuration: what was chosen, else what --quick or the defaults say."""
    values = dict(experiment.QUICK) if options.quick else {}
    for field in dataclasses.fields(experiment.Config):
        chosen = getattr(options, field.name)
        if chosen is not None:
            values[field.name] = chosen
    return experiment.Config(**values)


def _experiment_folder(options, name):
    if options.out is not None:
        return options.out
    dataset = os.path.basename(os.path.normpath(options.dataset))
    return os.path.join("runs", f"{name}-{dataset}{'-quick' if options.quick else ''}")


def _ops(options):
    from tinybnn.experiments import ops

    _check_outputs(options.json)
    _write_json(options, ops.run(say=_say(options)))


def _federated_simulate(options):
    from tinybnn.federated import flower, launch

    _check_outputs(options.out, options.json)
    say = _say(options)
    config = {"rounds": options.rounds, **dict(options.config)}
    launch.simulate(
        options.app or launch.APP, clients=options.clients, workers=options.workers,
        config={**config, "out": os.path.abspath(options.out)},
        say=None if options.quiet else say,
    )  # fmt: skip
    _, history, found = flower.load_result(options.out)
    ledger = history.ledger
    figures = {
        "rounds": found["version"], "bytes_up": ledger.total("up"),
        "bytes_down": ledger.total("down"), "saving_up": ledger.saving("up"),
        "saving_down": ledger.saving("down"), "history": history.rows,
    }  # fmt: skip
    last = history.rows[-1] if len(history) else {}
    accuracy = f", accuracy {last['val_accuracy']:.2%}" if "val_accuracy" in last else ""
    say(
        f"{options.out}: {found['version']} rounds{accuracy}, {figures['bytes_up']:,} bytes up "
        f"(float32: {figures['saving_up']:.1f} times as many), {figures['bytes_down']:,} down "
        f"({figures['saving_down']:.1f})"
    )
    _write_json(options, figures)


def _federated_new(options):
    from tinybnn.federated import launch

    launch.new_app(options.folder)
    print(f"{options.folder}: a Flower app; see {os.path.join(options.folder, 'README.md')}")


def _summary(options):
    from tinybnn import analysis, models, runs

    networks = {"mlp": models.mlp, "cnn": models.cnn, "vgg-small": models.vgg_small}
    if options.what in networks:
        shape = options.input
        if shape is None:
            options.parser.error(f"{options.what} needs --input, the shape of one sample")
        try:
            build = networks[options.what]
            model = build(math.prod(shape)) if options.what == "mlp" else build(shape)
        except ValueError as error:
            options.parser.error(str(error))
    else:
        if options.input is not None:
            options.parser.error("--input goes with the name of a network, a run has its own")
        model, _, data = runs.load(options.what)
        shape = data["input_shape"]
    table = analysis.summary(model, shape)
    _say(options)(str(table))
    _write_json(options, {"layers": table.rows, "ops": table.ops, "not_packed": table.not_packed})


def _bench(options):
    from tinybnn import bench

    for name, groups in (("check", ("train",)), ("profile", ("train", "all"))):
        if getattr(options, name) and options.group not in groups:
            options.parser.error(f"--{name} is an option of train, not of {options.group}")
    if options.check and (options.plot is not None or options.profile):
        options.parser.error("--check measures no times: leave --plot and --profile out")
    _check_outputs(options.json, options.plot)
    say = _say(options)
    if options.check:
        report = bench.check(options.threads, options.quick, say=say)
        _write_json(options, report)
        return 0 if all(row["agrees"] for row in report["rows"]) else 1
    report = bench.run(
        options.group, options.threads, options.quick, say=say, profile=options.profile
    )
    if options.plot is not None:
        bench.draw(options.plot, report)
        say(f"Picture: {options.plot}")
    _write_json(options, report)
