"""The command line, as processes: what it writes, what it prints, what it refuses, how it ends."""

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tinybnn import cli, datasets, deploy, runs, storage, training
from tinybnn.cli.arguments import given

COMMANDS = [
    "demo", "course", "data", "train", "compile", "verify", "predict", "summary", "bench",
    "warm-up", "reproduce", "federated",
]  # fmt: skip
SMALL = ["--hidden", "24,16", "--epochs", "2", "--batch-size", "128", "--quiet"]
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
posix = pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")


# What a command says while it works, if the machine is slow or has to compile kernels first.
_SLOW = re.compile(r"^(.* \.\.\.|.*image/s\] *| *)\n", re.MULTILINE)


def tinybnn(*arguments, code=0, **kw):
    """Run a command to its end: standard output, standard error."""
    command = [sys.executable, "-m", "tinybnn", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False, **kw
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout, _SLOW.sub("", done.stderr)


def refused(*arguments, code=1, **kw):
    """The one line of a command that fails."""
    out, err = tinybnn(*arguments, code=code, **kw)
    assert out == "" and err.count("\n") == 1 and err.startswith("tinybnn"), (out, err)
    return err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two small runs and their packed models."""
    folder = tmp_path_factory.mktemp("cli")
    for name, model, seed, options in (
        ("mlp", "mlp", 0, SMALL),
        ("other", "mlp", 1, SMALL),
        ("cnn", "cnn", 0, ["--epochs", "1", "--quiet"]),
    ):
        tinybnn("train", model, "--out", folder / name, "--seed", seed, *options)
        tinybnn("compile", folder / name, "-o", folder / f"{name}.npz")
    return folder


def weights(run):
    arrays, _ = storage.load(run / "checkpoint.npz", kind="checkpoint", version=2)
    return {name: array.tobytes() for name, array in arrays.items()}


# ---------------------------------------------------------------------------------------- help, use


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS)], ids=lambda c: " ".join(c))
def test_help_has_an_example(command):
    out, err = tinybnn(*command, "--help")
    assert err == ""
    assert out.startswith("usage: tinybnn")
    assert re.search(r"\bexamples?: *\n? *.*tinybnn ", out)
    assert all(len(line) <= 100 for line in out.splitlines())
    if not command:
        assert re.findall(r"^    (\S+)", out, re.MULTILINE) == COMMANDS


def leaves(parser, words=()):
    """The words of each command that runs something."""
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in actions:
        for name, command in action.choices.items():
            yield from leaves(command, (*words, name))
    if not actions:
        yield words


@pytest.mark.parametrize("words", list(leaves(cli._parser())), ids=" ".join)
def test_help_of_a_single_command(words, capsys, monkeypatch):
    """Its examples are of this command, and can be parsed."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and err == ""
    assert out.startswith(f"usage: tinybnn {' '.join(words)} ")
    assert all(len(line) <= 100 for line in out.splitlines())
    _, examples = re.split(r"^examples?:\n", out, flags=re.MULTILINE)
    for line in examples.splitlines():
        _, example = line.split("tinybnn ")
        assert tuple(example.split()[: len(words)]) == words
        cli._parser().parse_args(example.split())


def test_the_help_of_train_names_the_defaults_of_a_run():
    """They stand in `runs.Config` alone: an option that is not given is None."""
    (commands,) = (a for a in cli._parser()._actions if a.dest == "==SUPPRESS==" and a.choices)
    options = {action.dest: action for action in commands.choices["train"]._actions}
    named = []
    for field in dataclasses.fields(runs.Config):
        if field.name in options and isinstance(field.default, str | int | float):
            action = options[field.name]
            if field.default is not False:  # a flag
                shown = field.default if isinstance(field.default, str) else f"{field.default:g}"
                assert action.help.endswith(f"({shown})"), field.name
                named.append(field.name)
    assert named == ["dataset", "epochs", "batch_size", "lr", "seed", "validation", "shift"]
    assert all(options[name].default is None for name in named)


def test_the_command_line_waits_for_nothing():
    """What a command needs of the library is imported when it runs."""
    code = "import sys; from tinybnn import cli; cli._parser(); print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    late = {f"tinybnn.{room}" for room in ("bench", "deploy", "federated", "runs")}
    late.add("tinybnn.experiments.runner")
    assert late.isdisjoint(done.stdout.split()) and "numba" not in done.stdout.split()


def test_version():
    import tinybnn as package

    assert tinybnn("--version")[0] == f"tinybnn {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([], "COMMAND"),
        (["trian"], "choose from"),
        (["train"], "required: model, --out"),
        (["train", "rnn", "--out", "r"], "choose from mlp, cnn, vgg-small"),
        (["train", "mlp"], "--out"),
        (
            ["train", "mlp", "--out", "r", "--dataset", "letters"],
            "unknown data set 'letters' (did you mean 'emnist-letters'?), choose from digits",
        ),
        (["train", "mlp", "--out", "r", "--epochs", "0"], "whole number >= 1, got '0'"),
        (["train", "mlp", "--out", "r", "--epochs", "two"], "whole number >= 1, got 'two'"),
        (["train", "mlp", "--out", "r", "--batch-size", "1"], "whole number >= 2"),
        (["train", "mlp", "--out", "r", "--seed", "-1"], "whole number >= 0"),
        (["train", "mlp", "--out", "r", "--lr", "fast"], "number above 0"),
        (["train", "mlp", "--out", "r", "--lr", "nan"], "number above 0"),
        (["train", "mlp", "--out", "r", "--validation", "1"], "from 0 to below 1"),
        (["train", "mlp", "--out", "r", "--hidden", "20;30"], "256,256"),
        (["train", "cnn", "--out", "r", "--hidden", "20"], "--hidden is an option of mlp"),
        (["train", "mlp", "--out", "r", "--epoch", "2"], "--epoch"),
        (["compile"], "RUN"),
        (["verify", "r"], "MODEL"),
        (["predict", "m.npz"], "IMAGES"),
        (["demo", "--epochs", "-3"], "whole number >= 1"),
        (["reproduce", "imagenet"], "mnist-cnn"),
        (["bench"], "group"),
        (["bench", "gpus"], "unknown 'gpus', choose from kernels, depthwise"),
        (["bench", "kernels", "--threads", "0"], "whole number >= 1, got '0'"),
        (["federated"], "ACTION"),
        (["federated", "train"], "choose from"),
        (["federated", "simulate", "--clients", "0"], "whole number >= 1, got '0'"),
        (["federated", "simulate", "--config", "=3"], "expects KEY=VALUE, got '=3'"),
        (["federated", "new"], "DIR"),
    ],
)
def test_wrong_arguments(arguments, advice, capsys):
    """In this process, since there are many: exit code 2, one line, nothing on standard output."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == "" and err.count("\n") == 1
    assert err.startswith("tinybnn") and advice in err
    assert re.search(r"see `tinybnn.* --help`", err)


def test_a_wrong_argument_as_a_process(tmp_path):
    err = refused("train", "mlp", "--out", tmp_path / "r", "--epochs", "none", code=2)
    assert "argument --epochs: expects a whole number >= 1, got 'none'" in err
    assert not (tmp_path / "r").exists()


def test_the_estimators_are_the_librarys():
    from tinybnn.experiments.hybnn import bounds, features
    from tinybnn.models import latents

    assert {*features.ESTIMATORS} == {*bounds.ESTIMATORS} <= {*latents._BY_NAME}


def test_the_defaults_are_the_librarys():
    options = cli._parser().parse_args(["train", "cnn", "--out", "r"])
    assert runs.Config(**given(options, runs.Config)) == runs.Config("cnn")
    assert set(runs.MODELS) == {"mlp", "cnn", "vgg-small"}


# -------------------------------------------------------------------------------------------- train


def test_what_train_writes(made, tmp_path):
    config = json.loads((made / "mlp" / "config.json").read_text())
    assert config["model"] == "mlp" and config["options"] == {"hidden": [24, 16], "dropout": 0.0}
    assert config["epochs"] == 2 and config["seed"] == 0 and config["dataset"] == "digits"
    result = json.loads((made / "mlp" / "result.json").read_text())
    assert len(result["history"]) == 2 and result["test_images"] == 360
    assert 0.2 < result["test_accuracy"] <= 1
    model, _, _ = runs.load(made / "mlp")
    _, test = datasets.load("digits")
    found = training.evaluate(model, datasets.DataLoader(test, batch_size=256))
    assert found == {"loss": result["test_loss"], "accuracy": result["test_accuracy"]}
    visible = {name for name in os.listdir(made / "mlp") if not name.startswith(".")}
    assert visible == {"config.json", "checkpoint.npz", "result.json"}


def test_train_json_and_a_validation_part(tmp_path):
    """JSON alone on standard output; the words for people go to standard error."""
    run = tmp_path / "deep" / "run"
    out, err = tinybnn(
        "train", "mlp", "--out", run, *SMALL, "--dropout", "0.1", "--validation", "0.2",
        "--json", "-",
    )  # fmt: skip
    result = json.loads(out)
    assert result == json.loads((run / "result.json").read_text())
    assert result["options"]["dropout"] == 0.1 and result["train_images"] == 1150
    assert result["validation_accuracy"] == result["history"][-1]["val_accuracy"]
    assert f"{run}: 2 epochs done, test accuracy" in err
    assert f"Next: tinybnn compile {run}" in err


def test_the_progress_bar_goes_to_standard_error(tmp_path):
    out, err = tinybnn("train", "mlp", "--out", tmp_path / "r", *SMALL[:-1])
    assert "22/22" in err and "22/22" not in out
    assert out.startswith(f"{tmp_path / 'r'}: 2 epochs done")


def test_repeating_a_complete_run_says_so(made):
    before = (made / "mlp" / "checkpoint.npz").stat()
    out, err = tinybnn("train", "mlp", "--out", made / "mlp", *SMALL, "--seed", "0")
    assert f"{made / 'mlp'} is complete: 2 epochs, test accuracy" in out and err == ""
    assert (made / "mlp" / "checkpoint.npz").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (["--seed", "3"], "seed=0, not seed=3"),
        (["--epochs", "3"], "epochs=2, not epochs=3"),
        (["--hidden", "24,17", "--lr", "0.1"], 'lr=0.01, options={"hidden": [24, 16]'),
        (["--dataset", "mnist"], 'dataset="digits", not dataset="mnist"'),
    ],
)
def test_another_configuration_is_refused(made, change, what):
    err = refused("train", "mlp", "--out", made / "mlp", *SMALL, *change)
    assert what in err and "choose another folder" in err


def test_another_model_is_refused(made):
    assert 'model="mlp"' in refused("train", "cnn", "--out", made / "mlp", "--epochs", "2")


@posix
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    options = ["--hidden", "24", "--epochs", "150", "--batch-size", "64", "--dropout", "0.1"]
    tinybnn("train", "mlp", "--out", tmp_path / "whole", *options, "--quiet")
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "tinybnn", "train", "mlp", "--out", str(run), *options]
    for end, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
            # A shell's background jobs ignore SIGINT, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        before = _stamp(run)
        while _stamp(run) in (None, before):
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(0.02)
        process.send_signal(end)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert "Traceback" not in err
    assert "tinybnn: interrupted" in err
    assert 0 < len(storage.read_header(run / "checkpoint.npz")["metadata"]["history"]) < 150
    left = run / ".tinybnn-0123456789abcdef.tmp"  # as a kill in the middle of a write leaves one
    left.write_bytes(b"half")

    err = refused("compile", run)
    assert re.search(r"has \d+ of 150 epochs; repeat its `tinybnn train` command to finish it", err)
    assert not (run / "model.npz").exists()
    out, _ = tinybnn("train", "mlp", "--out", run, *options, "--quiet")
    assert "from its last complete epoch" in out
    assert weights(run) == weights(tmp_path / "whole")
    assert not left.exists()


@posix
def test_a_disk_that_is_full(made, tmp_path):
    """A limit of the process stands for it, which the state exceeds after the first epoch."""
    import resource

    options = ["--hidden", "1024", "--epochs", "2", "--batch-size", "512", "--quiet"]
    run, limit = tmp_path / "run", 600_000
    err = refused(
        "train", "mlp", "--out", run, *options,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert "cannot write the file (File too large)" in err and "checkpoint.npz" in err
    assert {path.name for path in run.iterdir()} == {".lock", "config.json", "checkpoint.npz"}
    assert storage.read_header(run / "checkpoint.npz")["metadata"]["history"] == []
    tinybnn("train", "mlp", "--out", run, *options)
    tinybnn("train", "mlp", "--out", tmp_path / "whole", *options)
    assert (run / "checkpoint.npz").stat().st_size > limit
    assert weights(run) == weights(tmp_path / "whole")


def _stamp(run):
    """When the last checkpoint was written; None if there is none."""
    try:
        return (run / "checkpoint.npz").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def test_a_damaged_checkpoint(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made / "mlp", run)
    (run / "result.json").unlink()
    data = (run / "checkpoint.npz").read_bytes()
    (run / "checkpoint.npz").write_bytes(data[:-1])
    for command in (["train", "mlp", "--out", run, *SMALL], ["compile", run]):
        err = refused(*command) if command[0] == "compile" else tinybnn(*command, code=1)[1]
        assert f"{run / 'checkpoint.npz'}: " in err and "delete the file to start anew" in err
    (run / "checkpoint.npz").unlink()
    assert "repeat its `tinybnn train` command" in refused("compile", run)
    tinybnn("train", "mlp", "--out", run, *SMALL)  # starts anew
    assert weights(run) == weights(made / "mlp")
    (run / "config.json").write_text("{")
    assert f"{run / 'config.json'} is damaged" in refused("compile", run)
    (run / "config.json").write_text('{"model": "mlp"}')
    assert f"{run / 'config.json'} is damaged" in refused("train", "mlp", "--out", run, *SMALL)


def test_folders_that_are_no_place_for_a_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    assert "holds files, but no run" in refused("train", "mlp", "--out", tmp_path, *SMALL)
    assert "thesis.txt" in refused("train", "mlp", "--out", tmp_path / "thesis.txt" / "r", *SMALL)
    err = refused("train", "mlp", "--out", tmp_path / "r", "--batch-size", "1500", "--quiet")
    assert "1437 training images" in err
    assert not (tmp_path / "r").exists()
    err = refused("train", "mlp", "--out", tmp_path / "r", *SMALL, "--json", tmp_path / "no" / "f")
    assert f"there is no folder {tmp_path / 'no'}" in err
    assert not (tmp_path / "r").exists()


def test_a_missing_dataset(tmp_path):
    """Found nowhere: neither where the user says nor in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TINYBNN_DATA", "XDG_CACHE_HOME"):
            patch.setenv(name, str(tmp_path))
            patch.setitem(ENVIRONMENT, name, str(tmp_path))
        if any((folder / "mnist").exists() for folder in datasets.search_folders("mnist")[2:]):
            pytest.skip("MNIST is installed")
        err = refused("train", "mlp", "--out", tmp_path / "r", "--dataset", "mnist")
    assert "'mnist'" in err and "not found" in err and str(tmp_path) in err
    assert not (tmp_path / "r").exists()


@posix
def test_a_disk_that_takes_no_more(tmp_path):
    """The system's limit on the size of a file stands in for a full disk."""
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    run = tmp_path / "r"
    _, err = tinybnn("train", "mlp", "--out", run, "--quiet", code=1, preexec_fn=limit)
    assert err.startswith(f"tinybnn: {run / 'checkpoint.npz'}: cannot write the file (File too")
    assert sorted(os.listdir(run)) == [".lock", "config.json"]


@posix
def test_two_processes_cannot_train_one_run(tmp_path):
    import fcntl

    (tmp_path / "r").mkdir()
    with open(tmp_path / "r" / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process" in refused("train", "mlp", "--out", tmp_path / "r", *SMALL)


# ---------------------------------------------------------------------------------- compile, verify


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_compile_and_verify(made, tmp_path, name):
    out, err = tinybnn("compile", made / name, "-o", tmp_path / "m.npz", "--json", tmp_path / "c")
    figures, packed = json.loads((tmp_path / "c").read_text()), deploy.PackedModel.load(
        tmp_path / "m.npz"
    )  # fmt: skip
    assert err == ""
    assert figures["packed_bytes"] == packed.nbytes < figures["float_bytes"] / 8
    assert figures["file_bytes"] == (tmp_path / "m.npz").stat().st_size
    assert f"{packed.nbytes:,} bytes packed, {figures['float_bytes']:,} as floats" in out
    assert packed.info["classes"] == list("0123456789") and packed.info["maximum"] == 16

    out, err = tinybnn("verify", made / name, tmp_path / "m.npz", "--json", tmp_path / "v")
    figures = json.loads((tmp_path / "v").read_text())
    assert err == "" and "360 of 360 test images of digits have identical logits" in out
    assert figures["identical_logits"] == figures["images"] == 360
    assert figures["values_compared"] > 360 * 10 and figures["difference"] is None
    result = json.loads((made / name / "result.json").read_text())
    assert figures["accuracy"] == result["test_accuracy"]


def test_compile_into_the_run(made, tmp_path):
    shutil.copytree(made / "mlp", tmp_path / "run")
    out, _ = tinybnn("compile", tmp_path / "run")
    assert out.startswith(f"{tmp_path / 'run' / 'model.npz'}: ")
    assert (tmp_path / "run" / "model.npz").read_bytes() == (made / "mlp.npz").read_bytes()


def test_verify_tells_another_model(made, tmp_path):
    out, err = tinybnn("verify", made / "mlp", made / "other.npz", "--json", tmp_path / "v", code=1)
    figures = json.loads((tmp_path / "v").read_text())
    assert figures["identical_logits"] < 360 and figures["values_compared"] is None
    assert err == f"tinybnn: {figures['difference']}\n" and "differs in" in err
    assert f"{figures['identical_logits']} of 360" in out


def test_verify_and_compile_refuse(made, tmp_path):
    assert "holds no run; `tinybnn train` makes one" in refused("compile", tmp_path)
    assert "is no folder of a run" in refused("verify", tmp_path / "r", made / "mlp.npz")
    assert f"{tmp_path / 'm.npz'}: No such file" in refused(
        "verify", made / "mlp", tmp_path / "m.npz"
    )
    err = refused("verify", made / "mlp", made / "mlp" / "checkpoint.npz")
    assert "of kind 'checkpoint', expected 'packed-model'" in err
    data = bytearray((made / "mlp.npz").read_bytes())
    data[-200] ^= 4
    (tmp_path / "m.npz").write_bytes(data)
    assert f"{tmp_path / 'm.npz'}: " in refused("verify", made / "mlp", tmp_path / "m.npz")
    err = refused("compile", made / "mlp", "-o", tmp_path / "no" / "m.npz")
    assert f"there is no folder {tmp_path / 'no'}" in err


# ------------------------------------------------------------------------------------------ predict


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same black and white images in each form that predict reads."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    _, test = datasets.load("digits")
    bits = (test.images[:3, 0] > 7).astype(np.uint8)  # (3, 8, 8)
    np.save(folder / "units.npy", bits * np.uint8(16))
    np.save(folder / "floats.npy", bits[:, None].astype(np.float64))
    np.save(folder / "one.npy", bits[0] * np.uint8(16))
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in bits.shape)
    (folder / "images-idx3-ubyte").write_bytes(header + (bits * np.uint8(16)).tobytes())
    grey = [Image.fromarray(image * np.uint8(255)) for image in bits]
    for i, picture in enumerate(grey):
        picture.save(folder / f"{i}.png")
    grey[0].convert("RGB").save(folder / "rgb.png")
    grey[0].convert("1").save(folder / "bits.png")
    grey[0].convert("RGBA").save(folder / "opaque.png")
    grey[0].resize((32, 32), Image.Resampling.NEAREST).save(folder / "large.png")
    clear = grey[0].convert("RGBA")
    clear.putalpha(100)
    clear.save(folder / "clear.png")
    Image.fromarray(bits[0].astype(np.uint16) * 65535).save(folder / "deep.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    np.save(folder / "bright.npy", bits * np.uint8(255))
    np.save(folder / "wide.npy", np.zeros((2, 8, 9), np.uint8))
    np.save(folder / "counts.npy", np.zeros((2, 8, 8), np.int64))
    np.save(folder / "holes.npy", np.full((2, 8, 8), np.nan))
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    return folder


def test_predict_reads_all_forms_alike(made, pictures):
    names = ["units.npy", "floats.npy", "images-idx3-ubyte", "0.png", "1.png", "2.png"]
    names += ["one.npy", "rgb.png", "bits.png", "opaque.png"]
    out, err = tinybnn("predict", made / "cnn.npz", *(pictures / name for name in names))
    assert err == ""
    lines = out.splitlines()
    assert len(lines) == 3 * 3 + 3 + 4
    said = [line.split(": ")[1] for line in lines]
    assert said[:3] == said[3:6] == said[6:9] == said[9:12]
    assert set(said[12:]) == {said[0]}
    assert lines[1].startswith(f"{pictures / 'units.npy'}[1]: ")
    assert lines[9].startswith(f"{pictures / '0.png'}: ")
    assert re.fullmatch(r"\d \(logit -?\d+\.\d{4}\), \d \(logit -?\d+\.\d{4}\)", said[0])


def test_predict_gives_the_packed_models_logits(made, pictures, tmp_path):
    file = datasets.path("digits") / "t10k-images-idx3-ubyte.gz"
    tinybnn("predict", made / "mlp.npz", file, "--json", tmp_path / "p.json")
    found = json.loads((tmp_path / "p.json").read_text())
    _, test = datasets.load("digits")
    x, labels = next(iter(datasets.DataLoader(test, batch_size=360)))
    expected = deploy.PackedModel.load(made / "mlp.npz").predict(x)
    assert np.array_equal(np.array([row["logits"] for row in found], np.float32), expected)
    assert [row["label"] for row in found] == expected.argmax(1).tolist()
    assert [row["index"] for row in found] == list(range(360))
    for row, logits in zip(found, expected, strict=True):
        assert [one["logit"] for one in row["best"]] == sorted(logits.tolist(), reverse=True)[:2]
        assert row["best"][0]["class"] == row["class"] != row["best"][1]["class"]
    assert not any(row["looks_inverted"] for row in found)
    result = json.loads((made / "mlp" / "result.json").read_text())
    right = np.mean([row["label"] for row in found] == labels)
    assert right == result["test_accuracy"]


def test_predict_tells_ink_on_paper(made, pictures, tmp_path):
    """A drawing of one's own is dark on light, the digits are light on dark."""
    from PIL import Image

    with Image.open(pictures / "0.png") as picture:
        ink = Image.fromarray(255 - np.asarray(picture))
    ink.save(tmp_path / "ink.png")
    right, _ = tinybnn("predict", made / "cnn.npz", pictures / "0.png")
    out, err = tinybnn("predict", made / "cnn.npz", tmp_path / "ink.png")
    assert err == (
        f"tinybnn: warning: {tmp_path / 'ink.png'}: black and white look exchanged, compared with "
        "the training images; --invert exchanges them\n"
    )
    assert out.split(": ")[1] != right.split(": ")[1]
    out, err = tinybnn("predict", made / "cnn.npz", tmp_path / "ink.png", "--invert")
    assert err == "" and out.split(": ")[1] == right.split(": ")[1]
    _, err = tinybnn("predict", made / "cnn.npz", pictures / "units.npy", "--invert")
    assert "3 of 3 images in" in err and "leave --invert out" in err and err.count("\n") == 1


def test_a_model_that_knows_nothing_of_its_training_images(made, pictures, tmp_path):
    """Of version 0.1, say: it runs, and warns of nothing."""
    shutil.copytree(made / "mlp", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"].pop("brightness") == {"mean": 0.305386, "border": 0.171642}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    runs.compile(tmp_path / "run", say=print)
    model = deploy.PackedModel.load(tmp_path / "run" / "model.npz")
    del model.info["brightness"]
    model.save(tmp_path / "old.npz")
    for path in (tmp_path / "run" / "model.npz", tmp_path / "old.npz"):
        [row] = runs.predict(path, [pictures / "0.png"], invert=True)
        assert row["looks_inverted"] is None


def test_predict_resizes_when_asked(made, pictures):
    err = refused("predict", made / "cnn.npz", pictures / "large.png")
    assert "32×32 pixels, the model takes 8×8; --resize scales pictures" in err
    out, _ = tinybnn("predict", made / "cnn.npz", pictures / "large.png", "--resize", "--json", "-")
    [row] = json.loads(out)
    assert row["file"].endswith("large.png") and row["index"] is None
    assert row["class"] == str(row["label"]) and len(row["logits"]) == 10


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nothing.png", "nothing.png: No such file or directory"),
        ("notes.txt", "notes.txt: not a readable picture"),
        ("cut.png", "cut.png: not a readable picture"),
        ("clear.png", "clear.png: has transparent pixels"),
        ("deep.png", "deep.png: has I;16 pixels; convert it to 8 bits"),
        ("bright.npy", "bright.npy: pixels from 0 to 255, expected 0 to 16"),
        ("wide.npy", "wide.npy: an array of shape (2, 8, 9), expected (N, 1, 8, 8)"),
        ("counts.npy", "counts.npy: pixels must be uint8 or floats, got int64"),
        ("holes.npy", "holes.npy: pixels from nan to nan, expected 0 to 1"),
        ("objects.npy", "objects.npy: not a readable .npy file"),
    ],
)
def test_predict_refuses(made, pictures, name, what):
    with pytest.raises((OSError, ValueError)) as caught:
        list(runs.predict(made / "mlp.npz", [pictures / name]))
    assert what in cli._one_line(caught.value)


def test_predict_fails_as_a_process(made, pictures, tmp_path):
    assert "notes.txt: not a readable" in refused(
        "predict", made / "mlp.npz", pictures / "notes.txt"
    )
    assert "No such file" in refused("predict", tmp_path / "m.npz", pictures / "0.png")
    err = refused("predict", pictures / "0.png", pictures / "0.png")
    assert "0.png: not a tinybnn file" in err


@posix
def test_a_reader_that_goes_away(made):
    """As `head` does; enough lines to fill the pipe."""
    file = str(datasets.path("digits") / "train-images-idx3-ubyte.gz")
    command = [sys.executable, "-m", "tinybnn", "predict", str(made / "mlp.npz"), file]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=ENVIRONMENT, **pipes) as process:
        assert process.stdout.readline().startswith(file.encode())
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# --------------------------------------------------------------------------------------------- demo


def test_demo(tmp_path):
    out, _ = tinybnn(
        "demo", "--epochs", "1", "--out", tmp_path / "d.png", "--json", tmp_path / "d.json"
    )
    assert "360 of 360 test images with identical logits" in out
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "d.json").read_text())["identical_logits"] == 360


# -------------------------------------------------------------------------------------------- bench


def test_bench(tmp_path):
    out, err = tinybnn(
        "bench", "depthwise", "--quick", "--threads", "1", "--json", "-",
        "--plot", tmp_path / "roof.png",
    )  # fmt: skip
    report = json.loads(out)
    assert report["command"] == "tinybnn bench depthwise --threads 1 --quick"
    assert {row["name"] for row in report["rows"]} == {"depth-wise, bits", "depth-wise, sums"}
    assert "64×128×16×16, 3×3" in err and f"Picture: {tmp_path / 'roof.png'}" in err
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")


def test_bench_refuses_before_it_measures(tmp_path):
    assert "number from 1 to" in refused("bench", "all", "--threads", "4096", code=2)
    assert "there is no folder" in refused("bench", "all", "--plot", tmp_path / "no" / "roof.png")
    assert "there is no folder" in refused("bench", "all", "--page", tmp_path / "no" / "bench.md")


# -------------------------------------------------------------- data, summary, reproduce, federated


def test_data_list_and_path(tmp_path):
    listed = json.loads(tinybnn("data", "list", "--json", "-", cwd=tmp_path)[0])
    digits = next(row for row in listed if row["name"] == "digits")
    assert digits["images"] == [1437, 360]
    assert tinybnn("data", "path", "digits", cwd=tmp_path)[0].strip() == digits["folder"]
    text, _ = tinybnn("data", "list", cwd=tmp_path)
    assert "cifar10" in text and "CC BY 4.0" in text


def test_data_that_is_missing_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "TINYBNN_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "tinybnn data fetch kmnist" in refused("data", "path", "kmnist", cwd=tmp_path)
    assert "choose from" in refused("data", "fetch", "nothing", cwd=tmp_path, code=2)


def test_summary_of_a_network_by_name(tmp_path):
    text, _ = tinybnn("summary", "mlp", "--input", "1,8,8", "--json", "-", cwd=tmp_path)
    assert [row["bops"] for row in json.loads(text)["layers"] if row["bops"]] == [
        64 * 256, 256 * 256, 256 * 256, 2560,
    ]  # fmt: skip
    assert "--input" in refused("summary", "cnn", cwd=tmp_path, code=2)


def test_summary_of_a_run(made):
    text, _ = tinybnn("summary", made / "cnn", "--json", "-")
    packed = deploy.PackedModel.load(made / "cnn.npz")
    assert sum(row["packed_bytes"] for row in json.loads(text)["layers"]) == packed.nbytes


def test_federated_refuses(tmp_path):
    """Before anything of Flower is needed."""
    (tmp_path / "thesis.txt").write_text("")
    assert "is not an empty folder" in refused("federated", "new", tmp_path)
    err = refused("federated", "simulate", "--out", tmp_path / "no" / "f.npz")
    assert f"there is no folder {tmp_path / 'no'}" in err
    assert sorted(os.listdir(tmp_path)) == ["thesis.txt"]


def test_reproduce_trains_packs_and_verifies(tmp_path):
    tinybnn(
        "reproduce", "mnist-cnn", "--dataset", "digits", "--seeds", "2", "--epochs", "1",
        "--out", "runs", "--note", "scanned", cwd=tmp_path,
    )  # fmt: skip
    found = json.loads((tmp_path / "runs" / "mnist-cnn.json").read_text())
    assert found["note"] == "scanned"
    assert [row["identical_logits"] for row in found["runs"]] == [360, 360]
    assert [len(row["history"]) for row in found["runs"]] == [1, 1]
    assert (tmp_path / "runs" / "mnist-cnn.png").stat().st_size > 1000
