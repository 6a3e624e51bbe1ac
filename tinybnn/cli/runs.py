"""The commands of a run: train it, pack it, verify the packed model, use it, list its layers.

``tinybnn train``, ``compile``, ``verify``, ``predict`` and ``summary``; see `tinybnn.runs`.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import sys

from tinybnn.cli.arguments import (
    above_zero,
    add_dataset,
    add_threads,
    argument,
    command,
    given,
    number,
    shape,
    whole,
    widths,
)
from tinybnn.cli.output import add_json, check_folder, check_outputs, say_for, warn, write_json
from tinybnn.cli.parser import nearest
from tinybnn.storage import printable


@command(
    "train",
    "train a binary network into a folder, or go on where training was stopped",
    "Train a binary network into the folder RUN. The state is saved after each epoch:\n"
    "repeat the command after an interruption, and it goes on from there to the same\n"
    "weights, bit for bit. The test set is evaluated once, after the last epoch.",
    "tinybnn train cnn --dataset digits --out runs/digits",
    "tinybnn train mlp --dataset mnist --epochs 10 --hidden 512,512 --out runs/mlp",
    arguments=[
        argument(
            "model", choices=["mlp", "cnn", "vgg-small"],
            help="mlp: dense layers; cnn: three convolutions; vgg-small: six, for 32×32 pixels",
        ),
        argument("--out", required=True, metavar="RUN", help="folder of the run"),
        functools.partial(add_dataset, text="data set (digits)"),
        argument("--epochs", type=whole(1), metavar="N", help="(20)"),
        argument("--batch-size", type=whole(2), metavar="N", help="(64)"),
        argument(
            "--lr", type=above_zero, metavar="X",
            help="initial learning rate of Adam; a cosine takes it to 0 (0.01)",
        ),
        argument(
            "--seed", type=whole(0), metavar="S",
            help="seeds weights, order of images, dropout and the validation images (0)",
        ),
        argument(
            "--validation", type=number(0, 1), metavar="SHARE",
            help="hold out this share of the training images, evaluated after each epoch (0)",
        ),
        argument(
            "--shift", type=whole(0), metavar="PIXELS",
            help="shift training images at random by up to this number of pixels (0)",
        ),
        argument(
            "--flip", action="store_true", help="mirror training images at random, half of them"
        ),
        add_threads,
        argument("--quiet", action="store_true", help="no progress bar"),
        add_json,
        argument(
            "--hidden", type=widths, metavar="N,N,...",
            help="mlp only: widths of hidden layers (256,256,256)",
        ),
        argument("--dropout", type=number(0, 1), metavar="P", help="mlp only: probability (0)"),
    ],
)  # fmt: skip
def train(options):
    from tinybnn import runs

    chosen = {name: getattr(options, name) for name in ("hidden", "dropout")}
    defaults = {"hidden": [256, 256, 256], "dropout": 0.0} if options.model == "mlp" else {}
    for name, value in chosen.items():
        if value is not None and name not in defaults:
            options.parser.error(f"--{name} is an option of mlp, not of {options.model}")
    model_options = {k: v if chosen[k] is None else chosen[k] for k, v in defaults.items()}
    config = runs.Config(**given(options, runs.Config), options=model_options)
    check_folder(options, "out")
    check_outputs(options, "json", inputs=[options.out, *runs.files(options.out)])
    say = say_for(options)
    result = runs.train(
        options.out, config, progress=not options.quiet, say=say, threads=options.threads
    )
    say(f"Next: tinybnn compile {options.out}")
    write_json(options, result)


@command(
    "compile",
    "pack the model of a run into a file of bits",
    "Compile the trained model of the folder RUN to packed bits: weights of one bit,\n"
    "integer thresholds instead of batch norms.",
    "tinybnn compile runs/digits -o digits.npz",
    arguments=[
        argument("run", metavar="RUN", help="folder of a complete run"),
        argument("-o", "--out", metavar="FILE", help="the packed model (RUN/model.npz)"),
        add_json,
    ],
)
def compile(options):
    from tinybnn import runs

    check_outputs(options, "out", "json", inputs=runs.files(options.run))
    write_json(options, runs.compile(options.run, options.out, say=say_for(options)))


@command(
    "verify",
    "prove that a packed model equals the model it was compiled from",
    "Run the float model of RUN and the packed MODEL over all test images and compare\n"
    "logits and all internal values bit for bit. The exit code is 1 if any differs.\n"
    "With --random, without RUN and MODEL: check random networks of all kinds of layers,\n"
    "stored and loaded, in odd batches, threads and memory layouts. The first one that\n"
    "differs is reduced and printed as a script.",
    "tinybnn verify runs/digits digits.npz",
    "tinybnn verify runs/mnist mnist.npz --dataset fashion-mnist",
    "tinybnn verify --random 200 --seed 1",
    arguments=[
        argument("run", metavar="RUN", nargs="?", help="folder of a complete run"),
        argument("model", metavar="MODEL", nargs="?", help="packed model (of `tinybnn compile`)"),
        functools.partial(add_dataset, text="whose test images (the run's)"),
        argument("--random", type=whole(1), metavar="N", help="check N random networks"),
        argument("--seed", type=whole(0), metavar="S", help="of the random networks (0)"),
        add_json,
    ],
)
def verify(options):
    from tinybnn import runs

    inputs = [] if options.run is None else [options.model or "", *runs.files(options.run)]
    check_outputs(options, "json", inputs=inputs)
    if options.random is not None:
        if options.run is not None or options.dataset is not None:
            options.parser.error("--random takes no RUN, no MODEL and no --dataset")
        return _verify_random(options)
    if options.model is None or options.seed is not None:
        options.parser.error("give RUN and MODEL; or --random N, and --seed S, for random networks")
    if os.path.isfile(options.run) and os.path.isdir(options.model):
        options.parser.error(
            f"{options.run} is a file and {options.model} a folder: RUN comes first, then MODEL"
        )
    result = runs.verify(options.run, options.model, options.dataset, say=say_for(options))
    write_json(options, result)
    if result["difference"] is not None:
        print(f"tinybnn: {printable(result['difference'])}", file=sys.stderr)
        return 1
    return 0


def _verify_random(options):
    from tinybnn.testing import campaign

    say, seed = say_for(options), options.seed or 0
    report = campaign(options.random, seed)
    example = report.counterexample and report.counterexample.source()
    figures = {
        "seed": seed, "tried": report.tried, "equal": report.equal, "refused": report.refused,
        "wrong": report.wrong, "reasons": dict(report.reasons),
        "seconds": round(report.seconds, 1), "counterexample": example,
    }  # fmt: skip
    for reason, count in report.reasons.most_common():
        say(f"refused {count}: {reason}")
    if example is not None:
        say(f"{example}\n# {report.error}")
    say(f"seed {seed}, {report}")
    write_json(options, figures)
    return 1 if report.wrong else 0


@command(
    "predict",
    "classify images with a packed model",
    "Classify images with a packed model. IMAGES are pictures (PNG, JPEG, ...) or files of\n"
    "many images: .npy with uint8 pixels as in the training set or floats from 0 to 1,\n"
    "or IDX, gzipped or not. One line for each image: file, and the two best classes with\n"
    "their logits. A warning tells if black and white seem to be exchanged, as in a pencil\n"
    "drawing for a model that was trained on light digits on dark ground.",
    "tinybnn predict digits.npz seven.png --resize --invert",
    "tinybnn predict mnist.npz t10k-images-idx3-ubyte.gz --json predictions.json",
    arguments=[
        argument("model", metavar="MODEL", help="packed model (of `tinybnn compile`)"),
        argument("images", nargs="+", metavar="IMAGES", help="files"),
        argument(
            "--resize", action="store_true", help="scale pictures of another size than the model's"
        ),
        argument("--invert", action="store_true", help="exchange black and white"),
        add_json,
    ],
)
def predict(options):
    from tinybnn import runs

    check_outputs(options, "json", inputs=[options.model, *options.images])
    say, figures = say_for(options), []
    predictions = runs.predict(options.model, options.images, options.resize, options.invert)
    for file, rows in itertools.groupby(predictions, lambda row: row["file"]):
        images = inverted = 0
        for row in rows:
            place = file if row["index"] is None else f"{file}[{row['index']}]"
            best = (f"{one['class']} (logit {one['logit']:.4f})" for one in row["best"])
            say(f"{place}: {', '.join(best)}")
            images, inverted = images + 1, inverted + (row["looks_inverted"] is True)
            figures.append(row)
        if inverted:
            _warn_of_inverted(file, inverted, images, options.invert)
    write_json(options, figures)


def _warn_of_inverted(file, inverted, images, invert):
    which = file if images == 1 else f"{inverted:,} of {images:,} images in {file}"
    advice = "leave --invert out" if invert else "--invert exchanges them"
    warn(f"{which}: black and white look exchanged, compared with the training images; {advice}")


@command(
    "summary",
    "list the layers of a run or of an untrained network",
    "List the layers with output shape, parameters, bits of a weight, bytes of the packed\n"
    "model, binary operations and float operations of one sample.",
    "tinybnn summary runs/digits",
    "tinybnn summary cnn --input 1,28,28",
    arguments=[
        argument("source", metavar="RUN|NETWORK", help="folder of a run, or mlp, cnn, vgg-small"),
        argument(
            "--input", type=shape, metavar="C,H,W", help="shape of one sample, for a network's name"
        ),
        add_json,
    ],
)
def summary(options):
    from tinybnn import analysis, models, runs

    check_outputs(options, "json", inputs=runs.files(options.source))
    networks = {"mlp": models.mlp, "cnn": models.cnn, "vgg-small": models.vgg_small}
    if options.source in networks:
        input_shape = options.input
        if input_shape is None:
            options.parser.error(f"{options.source} needs --input C,H,W, such as --input 1,28,28")
        try:
            build = networks[options.source]
            model = build(math.prod(input_shape)) if options.source == "mlp" else build(input_shape)
        except ValueError as error:
            options.parser.error(str(error))
    else:
        if not os.path.exists(options.source):
            options.parser.error(
                f"{options.source}: no such folder, and no network"
                f"{nearest(options.source, networks)}; expected the folder of a run, or one of "
                f"{', '.join(networks)}"
            )
        if options.input is not None:
            options.parser.error("--input goes with the name of a network, a run has its own")
        model, _, data = runs.load(options.source)
        input_shape = data["input_shape"]
    with runs.told(f"Counting bits and operations of {options.source}"):
        table = analysis.summary(model, input_shape)
    say_for(options)(str(table))
    write_json(options, {"layers": table.rows, "ops": table.ops, "not_packed": table.not_packed})
