"""The commands of a run: train it, pack it, prove the packed model right, use it, list its layers.

``tinybnn train``, ``compile``, ``verify``, ``predict`` and ``summary``; see `tinybnn.runs`.
"""

from __future__ import annotations

import itertools
import math
import os
import sys

from tinybnn.cli.arguments import (
    above_zero,
    add_command,
    add_dataset,
    add_threads,
    number,
    shape,
    whole,
    widths,
)
from tinybnn.cli.output import add_json, check_folder, check_outputs, say_for, warn, write_json
from tinybnn.cli.parser import nearest
from tinybnn.storage import printable


def add_train(commands):
    train = add_command(
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
    add_dataset(train, "data set (digits)", default="digits")
    train.add_argument("--epochs", type=whole(1), default=20, metavar="N", help="(20)")
    train.add_argument("--batch-size", type=whole(2), default=64, metavar="N", help="(64)")
    train.add_argument(
        "--lr", type=above_zero, default=0.01, metavar="X",
        help="learning rate of Adam at the start; a cosine takes it to 0 (0.01)",
    )  # fmt: skip
    train.add_argument(
        "--seed", type=whole(0), default=0, metavar="S",
        help="of weights, order of images, dropout and the part held out (0)",
    )  # fmt: skip
    train.add_argument(
        "--validation", type=number(0, 1), default=0.0, metavar="SHARE",
        help="hold out this share of the training images and test on it after each epoch (0)",
    )  # fmt: skip
    train.add_argument(
        "--shift", type=whole(0), default=0, metavar="PIXELS",
        help="move training images at random by up to so many pixels (0)",
    )  # fmt: skip
    train.add_argument(
        "--flip", action="store_true", help="show training images in a mirror, half of them"
    )
    add_threads(train)
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    add_json(train)
    mlp = train.add_argument_group("options of mlp")
    mlp.add_argument(
        "--hidden", type=widths, metavar="N,N,...", help="widths of hidden layers (256,256,256)"
    )
    mlp.add_argument("--dropout", type=number(0, 1), metavar="P", help="probability (0)")


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
    check_folder(options, "out")
    check_outputs(options, "json", inputs=[options.out, *runs.files(options.out)])
    say = say_for(options)
    result = runs.train(
        options.out, config, progress=not options.quiet, say=say, threads=options.threads
    )
    say(f"Next: tinybnn compile {options.out}")
    write_json(options, result)


def add_compile(commands):
    compile = add_command(
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
    add_json(compile)


def _compile(options):
    from tinybnn import runs

    check_outputs(options, "out", "json", inputs=runs.files(options.run))
    write_json(options, runs.compile(options.run, options.out, say=say_for(options)))


def add_verify(commands):
    verify = add_command(
        commands,
        "verify",
        _verify,
        "prove that a packed model equals the model it was compiled from",
        "Run the float model of RUN and the packed MODEL over all test images and compare\n"
        "logits and every value inside bit for bit. The exit code is 1 if any differs.\n"
        "With --random, no RUN and MODEL: check random networks of all kinds of layers,\n"
        "stored and loaded, in odd batches, threads and memory layouts. The first that is\n"
        "wrong is made small and printed as a script.",
        "tinybnn verify runs/digits digits.npz",
        "tinybnn verify runs/mnist mnist.npz --dataset fashion-mnist",
        "tinybnn verify --random 200 --seed 1",
    )
    verify.add_argument("run", metavar="RUN", nargs="?", help="folder of a complete run")
    verify.add_argument(
        "model", metavar="MODEL", nargs="?", help="packed model (of `tinybnn compile`)"
    )
    add_dataset(verify, "whose test images (the run's)")
    verify.add_argument("--random", type=whole(1), metavar="N", help="check N random networks")
    verify.add_argument("--seed", type=whole(0), metavar="S", help="of the random networks (0)")
    verify.set_defaults(wrong=verify.error)
    add_json(verify)


def _verify(options):
    from tinybnn import runs

    read = [] if options.run is None else [options.model or "", *runs.files(options.run)]
    check_outputs(options, "json", inputs=read)
    if options.random is not None:
        if options.run is not None or options.dataset is not None:
            options.wrong("--random takes no RUN, no MODEL and no --dataset")
        return _verify_random(options)
    if options.model is None or options.seed is not None:
        options.wrong("give RUN and MODEL; or --random N, and --seed S, for random networks")
    if os.path.isfile(options.run) and os.path.isdir(options.model):
        options.wrong(
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
    found = campaign(options.random, seed)
    figures = {
        "seed": seed, "tried": found.tried, "equal": found.equal, "refused": found.refused,
        "wrong": found.wrong, "reasons": dict(found.reasons), "seconds": round(found.seconds, 1),
        "counterexample": None,
    }  # fmt: skip
    for reason, count in found.reasons.most_common():
        say(f"refused {count}: {reason}")
    if found.counterexample is not None:
        figures["counterexample"] = found.counterexample.source()
        say(f"{figures['counterexample']}\n# {found.error}")
    say(f"seed {seed}, {found}")
    write_json(options, figures)
    return 1 if found.wrong else 0


def add_predict(commands):
    predict = add_command(
        commands,
        "predict",
        _predict,
        "classify images with a packed model",
        "Classify images with a packed model. IMAGES are pictures (PNG, JPEG, ...) or files of\n"
        "many images: .npy with uint8 pixels as in the training set or floats from 0 to 1,\n"
        "or IDX, gzipped or not. One line for each image: file, and the two best classes with\n"
        "their logits. A warning says where black and white seem to be exchanged, as in a\n"
        "photograph of a pencil's drawing for a model that knows light on dark.",
        "tinybnn predict digits.npz seven.png --resize --invert",
        "tinybnn predict mnist.npz t10k-images-idx3-ubyte.gz --json predictions.json",
    )
    predict.add_argument("model", metavar="MODEL", help="packed model (of `tinybnn compile`)")
    predict.add_argument("images", nargs="+", metavar="IMAGES", help="files")
    predict.add_argument(
        "--resize", action="store_true", help="scale pictures of another size than the model's"
    )
    predict.add_argument("--invert", action="store_true", help="exchange black and white")
    add_json(predict)


def _predict(options):
    from tinybnn import runs

    check_outputs(options, "json", inputs=[options.model, *options.images])
    say, figures = say_for(options), []
    found = runs.predict(options.model, options.images, options.resize, options.invert)
    for file, rows in itertools.groupby(found, lambda row: row["file"]):
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


def add_summary(commands):
    summary = add_command(
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
        "what", metavar="RUN|NETWORK", help="folder of a run, or mlp, cnn, vgg-small"
    )
    summary.add_argument(
        "--input", type=shape, metavar="C,H,W", help="shape of one sample, for a network's name"
    )
    add_json(summary)


def _summary(options):
    from tinybnn import analysis, models, runs

    check_outputs(options, "json", inputs=runs.files(options.what))
    networks = {"mlp": models.mlp, "cnn": models.cnn, "vgg-small": models.vgg_small}
    if options.what in networks:
        input_shape = options.input
        if input_shape is None:
            options.parser.error(f"{options.what} needs --input C,H,W, such as --input 1,28,28")
        try:
            build = networks[options.what]
            model = build(math.prod(input_shape)) if options.what == "mlp" else build(input_shape)
        except ValueError as error:
            options.parser.error(str(error))
    else:
        if not os.path.exists(options.what):
            options.parser.error(
                f"{options.what}: no such folder, and no network{nearest(options.what, networks)}; "
                f"expected the folder of a run, or one of {', '.join(networks)}"
            )
        if options.input is not None:
            options.parser.error("--input goes with the name of a network, a run has its own")
        model, _, data = runs.load(options.what)
        input_shape = data["input_shape"]
    with runs.told(f"Counting bits and operations of {options.what}"):
        table = analysis.summary(model, input_shape)
    say_for(options)(str(table))
    write_json(options, {"layers": table.rows, "ops": table.ops, "not_packed": table.not_packed})
