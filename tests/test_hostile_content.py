"""Well-formed files and messages with right checksums and malicious content.

Checkpoints, folders of runs, files and replies of federated rounds, and what the steps of a packed
model declare about its arrays: the reader gives a clear error that names the file, or a result.
"""

import copy
import json
import logging
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_federated_rounds import federation, rounds

from tinybnn import datasets, deploy, models, nn, runs, storage, training
from tinybnn.cli import main
from tinybnn.deploy import PackedModel
from tinybnn.federated import FedAvg, flower, launch
from tinybnn.storage import StorageError
from tinybnn.testing import assert_identical

DATA = Path(__file__).parent / "data"
TOP = Path(__file__).parents[1]


def changed(value, keys, new):
    """A copy of nested JSON with one value replaced."""
    result = copy.deepcopy(value)
    place = result
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = new
    return result


# ----------------------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A complete run of a small network."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = runs.Config("mlp", epochs=1, options={"hidden": [8], "dropout": 0.0})
    runs.train(folder, config, progress=False, say=lambda text: None)
    return folder


def refused(capsys, *words):
    """Assert that a command fails with one line; return the line."""
    assert main([str(word) for word in words]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("tinybnn: "), (out, err)
    return err


CONFIGS = {
    "nested without end": None,
    "an endless input": (["data", "input_shape"], [float("inf"), 8, 8]),
    "an input of negative size": (["data", "input_shape"], [-1, 8, 8]),
    "an input of huge size": (["data", "input_shape"], [10**9, 10**9, 10**9]),
    "no classes": (["data", "classes"], []),
    "a class that clears the screen": (["data", "classes"], ["\x1b[2J"] * 10),
    "a maximum of 0": (["data", "maximum"], 0),
    "an endless maximum": (["data", "maximum"], float("inf")),
    "options that are a list": (["options"], [1]),
    "an unknown option": (["options"], {"x": 1}),
    "an option that is the seed": (["options"], {"rng": 3}),
    "a width of petabytes": (["options"], {"hidden": [10**13]}),
    "a width in words": (["options"], {"hidden": "ab"}),
    "a dropout in words": (["options"], {"dropout": "x"}),
    "a seed in words": (["seed"], "a"),
    "a seed below 0": (["seed"], -1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_configuration_is_refused(name, run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    text = "[" * 100_000
    if CONFIGS[name]:
        text = json.dumps(changed(json.loads((run / "config.json").read_text()), *CONFIGS[name]))
    (folder / "config.json").write_text(text)
    assert f"{folder / 'config.json'}" in refused(capsys, "summary", folder)


CHECKPOINTS = {
    "a history that is a number": (["history"], 3),
    "rows in words": (["history"], ["a"]),
    "numbers in words": (["history"], [{"loss": "x"}]),
}
RESUMED = {
    **CHECKPOINTS,
    "rows without their columns": (["history"], [{"loss": 1.0}]),
    "a loss that is a list": (["history", 0, "loss"], [1.0]),
    "a run that is a number": (["run"], 3),
    "a run without generators": (["run"], {}),
    "generators without a default one": (["run", "random generators"], {}),
    "generators that are a number": (["random"], 3),
    "no generators": (["random"], {}),
    "a generator's state below 0": (["random", "default", "state", "state"], -1),
    "another kind of generator": (["random", "default", "bit_generator"], "MT19937"),
    "a schedule that is a number": (["schedule"], 3),
    "groups that are a number": (["param_groups"], 3),
    "no groups": (["param_groups"], []),
}


def hostile_checkpoint(run, folder, keys, value, **more):
    shutil.copytree(run, folder)
    kind = {"kind": "checkpoint", "version": training.Checkpoint.VERSION}
    arrays, metadata = storage.load(run / "checkpoint.npz", **kind)
    storage.save(
        folder / "checkpoint.npz", {**arrays, **more}, metadata=changed(metadata, keys, value),
        **kind,
    )  # fmt: skip
    return folder / "checkpoint.npz"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_of_a_hostile_checkpoint_are_refused(name, run, tmp_path, capsys):
    path = hostile_checkpoint(run, tmp_path / "run", *CHECKPOINTS[name])
    assert f"{path}: not a valid checkpoint" in refused(capsys, "summary", path.parent)


@pytest.mark.parametrize("name", RESUMED)
def test_training_does_not_go_on_from_a_hostile_checkpoint(name, run, tmp_path, capsys):
    path = hostile_checkpoint(run, tmp_path / "run", *RESUMED[name])
    os.unlink(path.parent / "result.json")
    before = path.read_bytes()
    words = ["train", "mlp", "--hidden", "8", "--epochs", "1", "--quiet", "--out", path.parent]
    main([str(word) for word in words])
    err = capsys.readouterr().err
    assert f"tinybnn: {path}: not a valid checkpoint" in err and err.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["optimizer.x", "optimizer.99.mean", "optimizer.0.mean"])
def test_a_checkpoint_with_a_wrong_state_of_the_optimizer(name, run, tmp_path, capsys):
    path = hostile_checkpoint(run, tmp_path / "run", ["history"], [], **{name: np.zeros(3)})
    os.unlink(path.parent / "result.json")
    words = ["--hidden", "8", "--epochs", "1", "--quiet", "--out", path.parent]
    assert main(["train", "mlp", *map(str, words)]) == 1
    assert f"{path}: not a valid checkpoint" in capsys.readouterr().err


def test_a_result_of_something_else(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for text in ("[]", "{}", '{"test_accuracy": "a", "test_images": 1}'):
        (folder / "result.json").write_text(text)
        words = ["train", "mlp", "--hidden", "8", "--epochs", "1", "--out", folder]
        assert f"{folder / 'result.json'}: not a valid result" in refused(capsys, *words)


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_pipe_in_the_place_of_a_lock(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    os.unlink(folder / "result.json")
    if (folder / ".lock").exists():
        os.unlink(folder / ".lock")
    os.mkfifo(folder / ".lock")
    words = ["train", "mlp", "--hidden", "8", "--epochs", "1", "--quiet", "--out", folder]
    assert f"{folder / '.lock'}: not a regular file" in refused(capsys, *words)


def test_settings_of_an_experiment_that_are_no_mapping(tmp_path, capsys):
    (tmp_path / "config.json").write_text("[1]")
    line = refused(capsys, "reproduce", "fedavg", "--quick", "--quiet", "--out", tmp_path)
    assert f"{tmp_path / 'config.json'} is damaged" in line


# -------------------------------------------------------------------------------- federated rounds


ROUNDS = {
    "no run": (["run"], 3),
    "no server": (["server"], {}),
    "a version in words": (["server", "version"], "x"),
    "no versions": (["versions"], {}),
    "a history that is a number": (["history"], 3),
    "rows in words": (["history"], ["a"]),
    "rows without their columns": (["history"], [{}]),
}


def rewrite(path, kind, keys, value, **more):
    version = storage.read_header(path)["version"]
    arrays, metadata = storage.load(path, kind=kind, version=version)
    arrays = {**arrays, **more}
    metadata = changed(metadata, keys, value)
    storage.save(path, arrays, kind=kind, version=version, metadata=metadata)


@pytest.mark.parametrize("name", [*ROUNDS, "a ledger of floats", "a ledger in a row"])
def test_rounds_do_not_go_on_from_a_hostile_checkpoint(name, tmp_path):
    path = tmp_path / "rounds"
    rounds(*federation(FedAvg()), 1, checkpoint=path)
    ledger = {"a ledger of floats": np.zeros((1, 5)), "a ledger in a row": np.zeros(5, np.int64)}
    more = {"ledger": ledger[name]} if name in ledger else {}
    rewrite(path, "federated", *ROUNDS.get(name, (["more"], 1)), **more)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="rounds: not a valid checkpoint of rounds"):
        rounds(*federation(FedAvg()), 2, checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("keys", "value"), [(["version"], "x"), (["history"], 3), (["history"], [3])]
)
def test_a_hostile_result_of_flower(keys, value, tmp_path):
    path, (server, clients) = tmp_path / "result", federation(FedAvg())
    history = rounds(server, clients, 1)
    flower.save_result(path, server, history, {})
    assert flower.load_result(path)[2]["version"] == 1
    rewrite(path, flower.KIND, keys, value)
    with pytest.raises(StorageError, match="result: not a valid result of rounds"):
        flower.load_result(path)


def test_what_a_node_says_is_logged_short_and_without_control_characters(caplog):
    server, clients = federation(FedAvg())
    exchange = flower.Exchange(server)
    for number in (-1, 2**32, 2**80, True, "1", "\x1b[2J", 1.0, None):
        exchange.introduce("x", number, {"x"})
    assert exchange.numbers == {}
    for node, client in zip("ab", clients, strict=False):
        exchange.introduce(node, client.number, {"a", "b"})
    exchange.begin({"a", "b"})
    with caplog.at_level(logging.WARNING):
        exchange.finish({"a": {"error": "\x1b[2J" + "x" * 10**6}, "b": "failed: \u202e"})
    assert len(caplog.records) >= 10
    for record in caplog.records:
        text = record.getMessage()
        assert storage.printable(text) == text and len(text) < 1000
    assert all(len(reason) < 1000 for _, reason in exchange.history.rows[-1]["rejected"])


def test_colours_of_a_log_are_left_out():
    lines = [b"\x1b[92mINFO \x1b[0m: started\n", b"plain\n", b"\xff"]
    assert list(launch._plain(lines)) == ["INFO : started", "plain", "\ufffd"]


# --------------------------------------------------------------------------------- packed models


def save(path, arrays, metadata):
    kind = {"kind": PackedModel.KIND, "version": PackedModel.VERSION}
    return storage.save(path, arrays, metadata=metadata, **kind)


@pytest.fixture(scope="module")
def packed():
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.BinaryConv2d(1, 5, 3, padding=1, rng=rng), nn.BatchNorm2d(5),
        nn.BinaryConv2d(5, 70, 2, rng=rng), nn.BatchNorm2d(70), nn.MaxPool2d(7), nn.Flatten(),
        nn.BinaryLinear(70, 3, rng=rng), nn.BatchNorm1d(3),
    )  # fmt: skip
    return deploy.compile(model, (1, 8, 8))


def test_signs_of_another_type_or_with_bits_behind_their_rows_are_refused(packed, tmp_path):
    """They are stored as words, without the number of bits."""
    arrays, metadata = packed._stored()
    for i, step in enumerate(packed.steps):
        for name in step.bits:
            words, key = step.arrays[name], metadata["steps"][i]["arrays"][name]
            entry = {**metadata["steps"][i], "bits": {}, "signs": {}, "joined": {}}
            steps = [*metadata["steps"][:i], entry, *metadata["steps"][i + 1 :]]
            for other, message in (
                (words | np.uint64(1 << 63), "bits set after the"),
                (words.astype(np.uint32), "must be uint64"),
                (words.astype(np.uint8), "must be uint64"),
            ):
                save(tmp_path / "a", {**arrays, key: other}, {**metadata, "steps": steps})
                with pytest.raises(StorageError, match=message):
                    PackedModel.load(tmp_path / "a")


def test_numbers_of_another_type_are_refused(packed, tmp_path):
    """Otherwise a loaded model would be saved differently."""
    arrays, metadata = packed._stored()
    metadata = json.loads(json.dumps(metadata))
    places = [(["input_shape"], 0)]
    for i, entry in enumerate(metadata["steps"]):
        places += [(["steps", i, key], 0) for key in ("inputs", "shape") if entry[key]]
        places += [(["steps", i, "bits"], name) for name in entry["bits"]]
        places += [
            (["steps", i, "settings"], name)
            for name, value in entry["settings"].items() if type(value) is int
        ]  # fmt: skip
    for keys, last in places:
        old = metadata
        for key in (*keys, last):
            old = old[key]
        save(tmp_path / "a", arrays, changed(metadata, [*keys, last], float(old)))
        with pytest.raises(StorageError, match="not a valid packed model"):
            PackedModel.load(tmp_path / "a")


def linear(i, key, count, **more):
    return {
        "name": "a", "operation": "xnor_linear", "inputs": [0], "arrays": {"weight": key},
        "settings": {"count": count}, "bits": {"weight": count}, "call": -1, "layout": "internal",
        "shape": [], "signs": {}, "joined": {}, **more,
    }  # fmt: skip


def test_signs_that_steps_share_are_in_memory_once(tmp_path):
    signs = np.zeros((128, 128), np.uint8)
    first = linear(0, "", 1024, operation="pack", inputs=[-1], arrays={}, settings={}, bits={})
    last = linear(0, "", 1024, operation="to_float", inputs=[1], arrays={}, settings={}, bits={},
                  call=0, layout="float", shape=[128])  # fmt: skip
    steps = [first, *(linear(i, "w", 1024) for i in range(2000)), last]
    metadata = {"input_shape": [1024], "calls": 1, "steps": steps, "info": {}}
    save(tmp_path / "a", {"w": signs}, metadata)
    tracemalloc.start()
    try:
        model = PackedModel.load(tmp_path / "a")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 400 * signs.nbytes  # mostly the steps themselves; 2,000 copies would be more
    assert model.steps[1].arrays["weight"] is model.steps[2000].arrays["weight"]


def test_signs_cannot_be_read_in_any_number_of_ways(tmp_path):
    """One bit per row takes 64 times the memory, in many shapes."""
    signs = np.zeros(1 << 14, np.uint8)
    shapes = [[2**i, 2**j, 2 ** (17 - i - j)] for i in range(18) for j in range(18 - i)]
    steps = [
        linear(i, "w", 1, inputs=[-1], bits={"weight": 1}, joined={"weight": shape})
        for i, shape in enumerate(shapes)
    ]
    metadata = {"input_shape": [1], "calls": 1, "steps": steps, "info": {}}
    save(tmp_path / "a", {"w": signs}, metadata)
    tracemalloc.start()
    try:
        with pytest.raises(StorageError, match="the same signs in too many ways"):
            PackedModel.load(tmp_path / "a")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 600 * signs.nbytes


def test_what_load_refuses_is_not_saved(packed, tmp_path):
    path = tmp_path / "a"
    for info in ({"classes": ["a"]}, {"classes": ["\x07", "b", "c"]}, {"maximum": 0},
                 {"brightness": {"mean": 2, "border": 0}}):  # fmt: skip
        model = copy.copy(packed)
        model.info = info
        with pytest.raises(ValueError, match="info"):
            model.save(path)
    model = copy.deepcopy(packed)
    model.steps[0].name = "\x1b[2J"
    with pytest.raises(ValueError, match="the name of step 0"):
        model.save(path)
    assert not path.exists()
    model = copy.copy(packed)
    model.info = {"classes": ("a", "b", "c"), "maximum": 16.0, "more": [1, {"a": None}]}
    model.save(path)
    assert PackedModel.load(path).info["more"] == [1, {"a": None}]


def test_an_error_does_not_repeat_all_of_a_file(packed, tmp_path, capsys):
    arrays, metadata = packed._stored()
    long = changed(metadata, ["steps", 1, "settings", "padding_mode"], "x" * 10**6)
    save(tmp_path / "a", arrays, long)
    storage.save(tmp_path / "b", {}, kind="x" * 10**6, version=1)
    for name in "ab":
        assert len(refused(capsys, "predict", tmp_path / name, tmp_path / name)) < 1000
    with pytest.raises(StorageError) as error:
        PackedModel.load(tmp_path / "a")
    assert len(str(error.value)) < 1000


def test_a_file_of_version_0_1_is_read_and_predicts_the_same(tmp_path):
    model = PackedModel.load(DATA / "packed_0_1.npz")
    expected, _ = storage.load(DATA / "predictions_0_1.npz", kind="predictions", version=1)
    assert_identical(model.predict(expected["x"]), expected["logits"])
    assert model.info == {"classes": list("abcde"), "maximum": 16.0, "dataset": "digits"}
    model.save(tmp_path / "a")
    PackedModel.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ---------------------------------------------------------------------------------- other readers


def test_codes_in_the_right_form(tmp_path):
    path = tmp_path / "codes"
    models.save_codes(path, np.zeros((2, 1), np.uint64), 7)
    for keys, value in (
        (["bits"], 2**70), (["bits"], 0), (["bits"], 7.0), (["bits"], 9), (["info"], 3),
    ):  # fmt: skip
        models.save_codes(path, np.zeros((2, 1), np.uint64), 7)
        rewrite(path, "codes", keys, value)
        with pytest.raises(StorageError, match="codes: not a valid file of codes"):
            models.load_codes(path)


@pytest.mark.parametrize(
    "header",
    [
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': (0, {2**62}, {2**62})}}",
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({'1, ' * 70})}}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1,), '\\%': 1}",
    ],
    ids=["an impossible shape", "70 axes", "a strange key"],
)
def test_npy_headers_name_their_file_in_errors(header, tmp_path):
    header = header.encode() + b"\n"
    body = b"" if b"(0" in header else b"1"
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + body)
    with pytest.raises(datasets.DatasetError, match=r"a\.npy: "):
        datasets.read_npy(path)


def test_npy_files_of_python_2_are_read_without_a_warning(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1L,)}\n"
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + b"\7")
    assert datasets.read_npy(path).tolist() == [7]


def test_the_tests_that_security_md_names_exist():
    names = [w for w in (TOP / "SECURITY.md").read_text().split("`") if w.startswith("test_")]
    assert "test_hostile_content.py" in names
    assert all((TOP / "tests" / name).is_file() for name in names)
