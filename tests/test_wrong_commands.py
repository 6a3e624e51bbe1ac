"""Mistyped commands: one line says what was wrong, what was expected, and what to do."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinybnn import cli, runs, storage
from tinybnn.cli import federated, reproduce
from tinybnn.federated import launch

posix = pytest.mark.skipif(os.name != "posix", reason="needs a shell of POSIX")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with runs, whole and broken, packed models, pictures, and files of other kinds."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("wrong")
    for name, options in (("m", {"hidden": [16]}), ("n", {"hidden": [8, 8]})):
        config = runs.Config("mlp", epochs=1, batch_size=512, options=options)
        runs.train(folder / "runs" / name, config, progress=False, say=lambda text: None)
        runs.compile(folder / "runs" / name, folder / f"{name}.npz", say=lambda text: None)
    for name in ("nokey", "unknown", "broken", "unfinished"):
        shutil.copytree(folder / "runs" / "m", folder / "bad" / name)
    checkpoint = folder / "runs" / "m" / "checkpoint.npz"
    arrays, metadata = storage.load(checkpoint, kind="checkpoint", version=2)
    for name, others in (
        ("nokey", {k: v for k, v in arrays.items() if k != "model.1.weight"}),
        ("unknown", {**arrays, "model.9.weight": np.zeros(3)}),
    ):
        path = folder / "bad" / name / "checkpoint.npz"
        storage.save(path, others, kind="checkpoint", version=2, metadata=metadata)
    (folder / "bad" / "broken" / "config.json").write_text("{")
    config = folder / "bad" / "unfinished" / "config.json"
    config.write_text(config.read_text().replace('"epochs": 1', '"epochs": 9'))

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "ok.png")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / "big.png")
    for name in ("empty.npz", "empty.png"):
        (folder / name).write_bytes(b"")
    (folder / "notes.txt").write_text("text\n" * 100)
    np.savez(folder / "plain.npz", a=np.zeros(3))
    (folder / "empty").mkdir()
    (folder / "files").mkdir()
    (folder / "files" / "x").write_text("x")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """Run in that folder, where there are no other datasets."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("TINYBNN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    return made


def run(command):
    """Run a command in this process; return its exit code."""
    try:
        return cli.main(command.split(" "))
    except SystemExit as ended:
        return ended.code


def listed(folder):
    """All files and folders, and when the files were written."""
    return {
        os.path.join(where, name): os.stat(os.path.join(where, name)).st_mtime_ns
        for where, folders, files in os.walk(folder)
        for name in files + folders
    }


def refused(command, code, said, here, capsys):
    before = listed(here)
    assert run(command) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("tinybnn"), (out, err)
    for text in (said,) if isinstance(said, str) else said:
        assert text in err
    assert (code == 2) == bool(re.search(r"; see `tinybnn.* --help`$", err.strip()))
    assert listed(here) == before


# -------------------------------------------------------------------- wrong arguments: exit code 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("demo --epoch 3", "tinybnn demo: unknown option --epoch (did you mean '--epochs'?)"),
        ("data list --jsn x", "tinybnn data list: unknown option --jsn (did you mean '--json'?)"),
        ("train mlp --otu r", "tinybnn train: unknown option --otu (did you mean '--out'?)"),
        ("train mlp --out r --batch_size=3", "--batch_size (did you mean '--batch-size'?)"),
        ("compile runs/m --output x", "tinybnn compile: unknown option --output"),
        ("predict m.npz ok.png --rezise", "(did you mean '--resize'?)"),
        ("reproduce ops --quick", "tinybnn reproduce ops: unknown option --quick"),
        ("reproduce mnist-cnn --quik", "tinybnn reproduce mnist-cnn: unknown option --quik"),
        ("federated new --dir x", "tinybnn federated new: unknown option --dir"),
        ("--threads 2 train", "tinybnn: unknown option --threads"),
        ("data --json x list", "tinybnn data: unknown option --json"),
    ],
)
def test_an_unknown_option(command, said, here, capsys):
    refused(command, 2, said, here, capsys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("demo extra", "tinybnn demo: unexpected 'extra'"),
        ("data list mnist", "tinybnn data list: unexpected 'mnist'"),
        ("train mlp runs/m --out r", "tinybnn train: unexpected 'runs/m'"),
        ("compile runs/m x.npz", "tinybnn compile: unexpected 'x.npz'"),
        ("verify runs/m m.npz n.npz", "tinybnn verify: unexpected 'n.npz'"),
    ],
)
def test_a_word_too_many(command, said, here, capsys):
    refused(command, 2, said, here, capsys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("trian", ("(did you mean 'train'?)", "choose from demo, course, data, train")),
        ("data lst", ("tinybnn data: ", "(did you mean 'list'?)")),
        ("data fetch MNIST", "unknown data set 'MNIST' (did you mean 'mnist'?), choose from"),
        ("data path cifar-10", "(did you mean 'cifar10'?)"),
        ("train CNN --out r", "unknown 'CNN' (did you mean 'cnn'?), choose from mlp, cnn"),
        ("train mlp --out r --dataset minst", "(did you mean 'mnist'?)"),
        ("verify runs/m m.npz --dataset fashion", "(did you mean 'fashion-mnist'?)"),
        ("summary mpl --input 1,8,8", ("mpl: no such folder", "(did you mean 'mlp'?)")),
        ("summary runs/none", "expected the folder of a run, or one of mlp, cnn, vgg-small"),
        ("bench kernals", "(did you mean 'kernels'?), choose from kernels, depthwise"),
        ("reproduce mnist_cnn", "(did you mean 'mnist-cnn'?)"),
        ("reproduce mnist-cnn --dataset minst", "tinybnn reproduce mnist-cnn: argument --dataset"),
        ("reproduce hybnn --estimator sgn", "(did you mean 'sign'?)"),
        ("reproduce hybnn-bounds --estimators sign,disram", "(did you mean 'disarm'?)"),
        ("reproduce fedavg --arms binry --quick", "(did you mean 'binary'?), choose from 2nn"),
        ("reproduce bdnet-table2 --arms none --quick", "unknown 'none', choose from float"),
        ("reproduce bdnet-ablation --base resnet", "choose from reactnet, adabin"),
        ("federated simulat", "(did you mean 'simulate'?)"),
        ("federated simulate --config stratgy=sign", "(did you mean 'strategy'?)"),
    ],
)
def test_a_name_that_does_not_exist(command, said, here, capsys):
    refused(command, 2, said, here, capsys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("demo --epochs 0", "argument --epochs: expects a whole number >= 1, got '0'"),
        ("train mlp --out r --epochs many", "got 'many'"),
        ("train mlp --out r --epochs 1.5", "got '1.5'"),
        ("train mlp --out r --batch-size -1", "expects a whole number >= 2, got '-1'"),
        ("train mlp --out r --lr nan", "argument --lr: expects a number above 0, got 'nan'"),
        ("train mlp --out r --lr 0", "expects a number above 0, got '0'"),
        ("train mlp --out r --lr inf", "expects a number above 0, got 'inf'"),
        ("train mlp --out r --dropout 1", "expects a number from 0 to below 1, got '1'"),
        ("train mlp --out r --hidden 8,0", "such as 256,256, got '8,0'"),
        ("train mlp --out r --threads 9999", "expects a whole number from 1 to "),
        ("bench kernels --threads 9999", "expects a whole number from 1 to "),
        ("train mlp --out ", "argument --out: expects the name of a folder, got ''"),
        ("compile runs/m -o ", "argument --out: expects the name of a file, got ''"),
        ("compile runs/m -o -", "argument --out: expects the name of a file, got '-'"),
        ("demo --out demo.xyz", "demo.xyz ends in .xyz, expected .png, .svg or .pdf"),
        ("summary cnn", "cnn needs --input C,H,W, such as --input 1,28,28"),
        ("summary cnn --input 1x28x28", "such as 1,28,28, got '1x28x28'"),
        ("summary cnn --input 8", "input_shape must be (C, H, W), got (8,)"),
        ("summary runs/m --input 1,8,8", "a run has its own"),
        ("data fetch mnist --from ftp://a/b --to d", "begins with http:// or https://"),
        ("reproduce mnist-cnn --seeds 0", "argument --seeds: expects a whole number >= 1"),
        ("reproduce hybnn --limit 10", "argument --limit: expects a whole number >= 100"),
        ("reproduce fedavg --fraction 2", "expects a number from 0 to 1, got '2'"),
        ("reproduce fedhybnn --alpha 0", "argument --alpha: expects a number above 0"),
        ("reproduce bdnet-table2 --width 0", "argument --width: expects a number above 0"),
        ("reproduce bdnet-table2 --two-step --epochs 1 --quick", "epochs must be >= 2, got 1"),
        ("verify --random 0", "argument --random: expects a whole number >= 1"),
        ("verify --random 2 runs/m m.npz", "--random takes no RUN, no MODEL"),
        ("verify runs/m", "give RUN and MODEL"),
        ("bench kernels --profile", "--profile is an option of train, not of kernels"),
        ("federated simulate --clients 5000", "more than the 1,437 training images"),
        ("federated simulate --config strategy=singn", "unknown strategy 'singn' (did you mean"),
        ("federated simulate --config norm=batch", "choose from average, local, frozen, none"),
        ("federated simulate --config rounds=many", "rounds expects a number, got 'many'"),
        ("federated simulate --config strategy=3", "strategy expects a text, got 3"),
        ("federated simulate --config foo", "expects KEY=VALUE, got 'foo'"),
    ],
)
def test_a_value_that_cannot_be(command, said, here, capsys):
    refused(command, 2, said, here, capsys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("verify m.npz runs/m", "m.npz is a file and runs/m a folder: RUN comes first"),
        ("compile runs/m -o runs/m/checkpoint.npz", "belongs to what this command reads"),
        ("compile runs/m -o runs/../runs/m/config.json", "choose another file"),
        ("compile runs/m -o x.npz --json ./x.npz", "--json: ./x.npz is the file of --out"),
        ("demo --out d.png --json d.png", "argument --json: d.png is the file of --out"),
        ("verify runs/m m.npz --json m.npz", "belongs to what this command reads"),
        ("verify runs/m m.npz --json runs/m/config.json", "belongs to what this command reads"),
        ("summary runs/m --json runs/m/checkpoint.npz", "belongs to what this command reads"),
        ("predict m.npz ok.png --json ok.png", "belongs to what this command reads"),
        ("predict m.npz ok.png --json m.npz", "belongs to what this command reads"),
        ("bench kernels --json b --plot b", "argument --plot: b is the file of --json"),
        ("train mlp --out r --json r", "--json: r belongs to what this command reads"),
        ("federated simulate --out f.npz --json f.npz", "--json: f.npz is the file of --out"),
    ],
)
def test_arguments_that_exclude_each_other(command, said, here, capsys):
    refused(command, 2, said, here, capsys)


def test_the_choices_of_settings_are_those_of_the_app():
    """Also the choices in the comments beside them and in the app's code."""
    task = launch.APP / "digits" / "task.py"
    text = (launch.APP / "pyproject.toml").read_text(encoding="utf-8")
    defaults = federated._settings_of(launch.APP)
    assert defaults["rounds"] == 3 and defaults["out"] == "" and len(defaults) == 13
    for name, known in federated._CHOICES.items():
        assert defaults[name] in known
        assert ", ".join(known) in text
    strategies = re.search(
        r"STRATEGIES: .*? = \{(.*?)\}", task.read_text(encoding="utf-8"), re.DOTALL
    )
    choices = re.findall(r'^ +"([^"]+)":', strategies[1], re.MULTILINE)
    assert tuple(choices) == federated._CHOICES["strategy"]


# ------------------------------------------------------- what is there is not it: exit code 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("predict runs/m ok.png", ("runs/m is a folder", "`tinybnn compile runs/m -o FILE`")),
        ("verify runs/m runs/n", ("runs/n is a folder", "expected the file of a packed model")),
        ("predict m.npz files", "files is a folder, expected pictures, .npy or IDX files"),
        ("demo --out files", "files is a folder, expected the name of a file to write"),
        ("compile runs/m -o files", "files is a folder, expected the name of a file"),
        ("bench kernels --plot files", "files is a folder, expected the name of a file"),
        *(
            (f"{command} --json files", "files is a folder, expected the name of a file to write")
            for command in (
                "demo", "data list", "train mlp --out r", "compile runs/m -o x.npz",
                "verify runs/m m.npz", "verify --random 5", "predict m.npz ok.png",
                "summary runs/m", "bench kernels", "reproduce ops", "reproduce claims",
                "federated simulate",
            )
        ),
    ],
)  # fmt: skip
def test_a_folder_where_a_file_is_wanted(command, said, here, capsys):
    refused(command, 1, said, here, capsys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("compile m.npz", "m.npz is no folder of a run, but a file"),
        ("summary m.npz", "m.npz is no folder of a run, but a file"),
        ("verify notes.txt m.npz", "notes.txt is no folder of a run, but a file"),
        ("train mlp --out notes.txt", "notes.txt is a file, expected a folder"),
        ("train mlp --out notes.txt/deep/r", "notes.txt is a file, expected a folder"),
        ("data fetch mnist --to notes.txt", "notes.txt is a file, expected a folder"),
        ("reproduce hybnn --quick --out notes.txt", "notes.txt is a file, expected a folder"),
        ("reproduce mnist-cnn --out notes.txt", "notes.txt is a file, expected a folder"),
        ("federated new notes.txt", "notes.txt is a file, expected a folder"),
        ("federated simulate --app notes.txt", "expected a folder with a pyproject.toml"),
    ],
)
def test_a_file_where_a_folder_is_wanted(command, said, here, capsys):
    refused(command, 1, said, here, capsys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("compile runs/x", ("runs/x is no folder of a run", "but there is runs/m, runs/n")),
        ("compile runs", "runs holds no run itself, but there is runs/m, runs/n"),
        ("compile empty", "empty holds no run; `tinybnn train` makes one"),
        ("verify runs/x m.npz", "runs/x is no folder of a run"),
        ("verify runs/m x.npz", "`tinybnn compile RUN -o x.npz` makes one"),
        ("predict x.npz ok.png", ("x.npz: No such file", "`tinybnn compile RUN -o x.npz`")),
        ("predict m.npz ok.png x.png", "x.png: No such file"),
        ("train mlp --out r --dataset kmnist", "`tinybnn data fetch kmnist` downloads it"),
        ("verify runs/m m.npz --dataset mnist", "Expected train-images-idx3-ubyte[.gz]"),
        ("reproduce mnist-cnn --out r", "the dataset 'mnist' was not found"),
        ("compile runs/m -o no/x.npz", "there is no folder"),
        ("demo --out no/d.png", "make it first"),
        ("reproduce hybnn --dataset empty --out r", "empty: expected train-images-idx3"),
        ("federated simulate --app none", "`tinybnn federated new DIR` makes one"),
    ],
)
def test_what_is_not_there(command, said, here, capsys):
    refused(command, 1, said, here, capsys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        *(
            (f"{command}", ("not a tinybnn file", "`tinybnn compile RUN -o FILE` makes"))
            for name in ("empty.npz", "notes.txt", "plain.npz", "ok.png")
            for command in (f"predict {name} ok.png", f"verify runs/m {name}")
        ),
        ("predict runs/m/checkpoint.npz ok.png", "of kind 'checkpoint', expected 'packed-model'"),
        *(
            (f"predict m.npz {name}", "not a readable picture: expected BMP, GIF, JPEG, PNG")
            for name in ("empty.png", "notes.txt", "n.npz")
        ),
        ("predict m.npz big.png", "30×20 pixels, the model takes 8×8; --resize scales pictures"),
        ("compile bad/nokey -o x.npz", ("misses 1.weight", "repeat the `tinybnn train`")),
        ("compile bad/unknown -o x.npz", "has no place for 9.weight"),
        ("summary bad/nokey", "misses 1.weight"),
        ("compile bad/broken", ("config.json is damaged", "train into another folder")),
        ("compile bad/unfinished", "has 1 of 9 epochs; repeat its `tinybnn train` command"),
        ("train mlp --out files", "files holds files, but no run; choose a new or empty"),
        ("train mlp --out runs/m", "repeat its own settings, or choose another folder"),
        ("reproduce hybnn --quick --out files", "files holds files, but no run"),
        ("federated new files", "files exists and is not an empty folder"),
    ],
)
def test_content_of_another_kind(command, said, here, capsys):
    refused(command, 1, said, here, capsys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train mlp --out r --batch-size 99999", "more than the 1437 training images; choose a"),
        ("train mlp --out r --validation 0.00001", "validation: split: 1e-05 of 1437 images"),
        ("train mlp --out r --shift 8", "moves images of 8×8 out of sight; choose at most 7"),
        ("train mlp --out r --hidden 99999999999", "not enough memory"),
        ("summary mlp --input 1,99999,99999", "not enough memory"),
        ("reproduce fedhybnn --clients 1000 --quick --out r", "1,000 clients are too many"),
        ("reproduce fedavg --clients 1000 --quick --out r", "1,000 clients are too many"),
    ],
)
def test_more_than_there_is(command, said, here, capsys):
    refused(command, 1, said, here, capsys)


@pytest.mark.parametrize(
    "command",
    [
        "demo --out files/d.png", "compile runs/m -o files/x.npz", "train mlp --out files/r",
        "summary runs/m --json files/x", "reproduce hybnn --quick --out files/r",
        "reproduce mnist-cnn --out files/r", "federated new files/r",
        "data fetch mnist --to files/r",
    ],
)  # fmt: skip
def test_a_place_that_may_not_be_written(command, here, capsys, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: "files" not in str(path) and allowed(path, mode)
    )
    refused(command, 1, "no permission to write", here, capsys)


def test_a_model_of_another_run(here, capsys):
    assert run("verify runs/m n.npz") == 1
    out, err = capsys.readouterr()
    assert "of 360 test images of digits have identical logits" in out
    assert err.splitlines()[-1].startswith("tinybnn: verify: ")


@posix
def test_a_device_where_a_file_is_wanted(here, capsys):
    refused("summary runs/m --json /dev/null", 1, "/dev/null is a device or a pipe", here, capsys)


def test_words_that_a_terminal_would_obey(here, capsys):
    refused("tr\x1b[2Jain", 2, "unknown 'tr\\x1b[2Jain'", here, capsys)
    refused("demo \x1b[2J", 2, "unexpected '\\x1b[2J'", here, capsys)
    refused("train mlp --out r --\x1b[2J", 2, "unknown option --\\x1b[2J", here, capsys)


# ---------------------------------------------------------------- terminals, pipes, closed streams


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("data list", "1x8x8"),
        ("train --help", "32x32"),
        ("summary runs/m", "OPs = BOPs / 64 + FLOPs"),
        ("predict m.npz big.png", "30x20 pixels, the model takes 8x8"),
    ],
)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_terminal_that_cannot_print_every_sign(command, said, encoding, here, monkeypatch):
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, name, streams[name])
    run(command)
    printed = ""
    for stream in streams.values():
        stream.flush()
        printed += stream.buffer.getvalue().decode(encoding)
    assert said in printed.replace("×", "x")
    if encoding == "ascii":
        assert said in printed


def test_names_that_no_encoding_has(here, capsys):
    assert run("compile \udcff\u2603") == 1
    assert "\\udcff" in capsys.readouterr().err


def process(command, **more):
    command = f'"{sys.executable}" -m tinybnn {command}'
    package = Path(cli.__file__).parents[2]
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **more}
    return subprocess.run(
        command, shell=True, env=environment, capture_output=True, text=True, check=False
    )


@posix
@pytest.mark.parametrize(
    "more", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"}]
)
def test_a_process_in_an_ascii_locale(more):
    done = process("data list", **more)
    assert done.returncode == 0 and done.stderr == "" and "8x8" in done.stdout.replace("×", "x")


@posix
@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("| head -1", 0, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        pytest.param(
            "> /dev/full", 1, "tinybnn: standard output: No space left on device",
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full"),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["data list", "--help", "data list --json -"])
def test_an_output_that_is_closed_or_full(command, end, code, said):
    done = process(f"{command} {end}")
    assert done.returncode == code
    lines = [] if "--json" in command else done.stderr.splitlines()  # else the words go there
    assert said in done.stderr and len(lines) <= bool(said)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


# --------------------------------------------------------------------------------- what takes long


def test_before_a_long_run_is_said_what_it_writes(here, capsys, monkeypatch):
    from tinybnn.experiments import runner

    monkeypatch.setattr(reproduce, "_SECONDS", 0.01)
    monkeypatch.setattr(runner.Experiment, "run", lambda *arguments: time.sleep(0.3))
    for command, said in (
        ("reproduce hybnn", "hybnn: writes into runs/hybnn-digits; takes a quarter of an hour"),
        ("reproduce hybnn --quick", "hybnn: writes into runs/hybnn-digits-quick; repeat"),
        (
            "reproduce mnist-cnn --dataset digits",
            "runs/mnist-cnn-digits; takes 4 minutes",
        ),
    ):
        assert run(command) == 0
        assert said in capsys.readouterr().err


def test_what_is_slow_is_told(capsys):
    with runs.told("Reading stars", seconds=0.01):
        time.sleep(0.3)
    assert capsys.readouterr().err == "Reading stars ...\n"
    with runs.told("Reading stars", seconds=30):
        pass
    with runs.told("Reading stars", progress=False, seconds=0):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_verify_counts_its_images(made, monkeypatch):
    counted = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        update = counted.append

    def bar(total, unit, progress):
        assert (total, unit, progress) == (3 * 360, "image", True)
        return Bar()

    monkeypatch.setattr(runs.packed, "_bar", bar)
    result = runs.verify(made / "runs" / "m", made / "m.npz", say=lambda text: None)
    assert sum(counted) == 3 * result["images"]


@pytest.mark.parametrize("columns", [80, 200])
def test_bars_fit_a_line(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with runs.packed._bar(3_000_000, "image", True) as bar:
        bar.delay = 0
        bar.start_t -= 100
        bar.n = 1_234_567
        bar.refresh()
    lines = capsys.readouterr().err.split("\r")
    assert any("1234567/3000000" in line for line in lines)
    assert max(map(len, lines)) <= 80
