"""Malicious files are refused with a clear error, quickly and in little memory.

Model files have a right checksum here; the fuzz tests of readers and storage break everything else.
"""

import gzip
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest

from tinybnn import datasets, deploy, nn, runs, storage
from tinybnn.cli import main
from tinybnn.deploy import PackedModel
from tinybnn.storage import StorageError

posix = pytest.mark.skipif(os.name != "posix", reason="named pipes")


@pytest.fixture(scope="module")
def parts():
    """Arrays and metadata of a good file of a small convolutional network."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.BinaryConv2d(1, 5, 3, padding=1, rng=rng), nn.BatchNorm2d(5), nn.MaxPool2d(2),
        nn.BinaryConv2d(5, 5, 2, rng=rng), nn.Flatten(), nn.BinaryLinear(45, 3, rng=rng),
        nn.BatchNorm1d(3),
    )  # fmt: skip
    packed = deploy.compile(model, (1, 8, 8))
    packed.info = {"classes": ["a", "b", "c"], "maximum": 16.0, "dataset": "digits"}
    return packed._stored()


def stored(path, arrays, metadata):
    storage.save(
        path, arrays, kind=PackedModel.KIND, version=PackedModel.VERSION, metadata=metadata
    )
    return path


def changed(metadata, keys, value):
    """A copy of nested metadata with one value replaced; a callable gets the old one."""
    key, *rest = keys
    result = dict(metadata) if isinstance(metadata, dict) else list(metadata)
    if rest:
        result[key] = changed(metadata[key], rest, value)
    else:
        result[key] = value(metadata[key]) if callable(value) else value
    return result


def steps_of(metadata, operation):
    return next(i for i, s in enumerate(metadata["steps"]) if s["operation"] == operation)


HOSTILE = {
    "classes of another number": (["info", "classes"], ["a"]),
    "classes that are a number": (["info", "classes"], 3),
    "a class that is a number": (["info", "classes"], ["a", 1, "c"]),
    "a class that clears the screen": (["info", "classes"], ["a", "\x1b[2J", "c"]),
    "a class with a line break": (["info", "classes"], ["a", "b\nb", "c"]),
    "a class that turns the text around": (["info", "classes"], ["a", "\u202eb", "c"]),
    "a class without end": (["info", "classes"], ["a", "b" * 1001, "c"]),
    "a maximum of 0": (["info", "maximum"], 0),
    "a negative maximum": (["info", "maximum"], -1.0),
    "a maximum in words": (["info", "maximum"], "16"),
    "a maximum of truth": (["info", "maximum"], True),
    "a data set that rings": (["info", "dataset"], "digits\x07"),
    "a data set of numbers": (["info", "dataset"], [1]),
    "info that is a list": (["info"], []),
    "an input of no size": (["input_shape"], [1, 0, 8]),
    "an input of negative size": (["input_shape"], [1, -8, 8]),
    "an input of huge size": (["input_shape"], [1, 2**20, 2**20]),
    "an input without sizes": (["input_shape"], []),
    "no steps": (["steps"], []),
    "the last step lost: an end in sums": (["steps"], lambda steps: steps[:-2]),
    "an end in bits": (["steps"], lambda steps: steps[:1]),
    "calls in words": (["calls"], "7"),
    "too few calls": (["calls"], 1),
    "no calls": (["calls"], -1),
    "a layer that clears the screen": (["steps", 0, "name"], "\x1b[2J"),
    "a layer of a number": (["steps", 0, "name"], 7),
    "an operation that rings": (["steps", 0, "operation"], "\x07"),
    "an unknown layout": (["steps", 0, "layout"], "gzip"),
    "a wrong layout": (["steps", 0, "layout"], "float"),
    "a negative call": (["steps", 0, "call"], -1),
    "a call in words": (["steps", 0, "call"], "0"),
    "a shape that is another": (["steps", 0, "shape"], [3, 8, 8]),
    "a shape in words": (["steps", 0, "shape"], ["a"]),
    "a later step as input": (["steps", 0, "inputs"], [3]),
    "a long padding": (["steps", 1, "settings", "padding"], [2**30, 2**30]),
    "a negative padding": (["steps", 1, "settings", "padding"], [-1, 0]),
    "a stride of 0": (["steps", 1, "settings", "stride"], [0, 1]),
    "a huge count of bits": (["steps", 1, "bits", "weight"], 2**40),
    "a count of bits in words": (["steps", 1, "bits", "weight"], "x"),
    "arrays that are not there": (["steps", 1, "arrays", "weight"], "99.weight"),
    "an array too many": (["steps", 1, "arrays"], lambda a: {**a, "more": a["weight"]}),
    "a joined array of huge shape": (["steps", 1, "joined"], {"weight": [2**31, 2**31]}),
    "signs of huge shape": (["steps", 1, "signs"], {"weight": [2**31, 2**31]}),
    "calls of half an operation": (["calls"], 7.5),
    "a count of bits in digits": (["steps", 1, "bits", "weight"], str),
    "a count of bits with a fraction": (["steps", 1, "bits", "weight"], float),
    "a message without end": (["steps", 1, "settings", "padding_mode"], "x" * 10**6),
    "an unknown field": (["steps", 0, "run"], "os.system"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_refused_in_little_memory(name, parts, tmp_path):
    arrays, metadata = parts
    path = stored(tmp_path / "model.npz", arrays, changed(metadata, *HOSTILE[name]))
    tracemalloc.start()
    try:
        with pytest.raises(StorageError, match="not a valid packed model") as error:
            PackedModel.load(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1 << 22
    assert storage.printable(str(error.value)) == str(error.value)
    assert len(str(error.value)) < 1000


def test_the_good_file_is_read(parts, tmp_path):
    path = stored(tmp_path / "model.npz", *parts)
    assert PackedModel.load(path).info["classes"] == ["a", "b", "c"]


def test_empty_arrays_are_refused(parts, tmp_path):
    arrays, metadata = parts
    for name in arrays:
        emptied = {**arrays, name: arrays[name][:0]}
        with pytest.raises(StorageError):
            PackedModel.load(stored(tmp_path / "model.npz", emptied, metadata))


def retyped(value):
    """Values of other types that equal or resemble a number."""
    if isinstance(value, list):
        return [[n, *value[1:]] for n in retyped(value[0])]
    number = [] if type(value) is str else [float(value), str(value), 10**400]
    return [None, [value], {}, *number, *([True] if value == 1 else [])]


def test_settings_have_the_types_that_kernels_take(tmp_path):
    """A setting of another type is refused on loading; with the right type the model runs."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, rng=rng), nn.BatchNorm2d(4), nn.Hardtanh(),
        nn.BinaryConv2d(4, 1, 3, padding=1, rng=rng), nn.MaxPool2d(2), nn.BatchNorm2d(1),
        nn.BinaryConv2d(1, 3, 2, rng=rng), nn.LeakyReLU(0.1), nn.Softplus(), nn.Flatten(),
        nn.BinaryLinear(27, 3, rng=rng),
    )  # fmt: skip
    arrays, metadata = deploy.compile(model, (1, 8, 8))._stored()
    x = rng.standard_normal((2, 1, 8, 8)).astype(np.float32)
    path, outcomes = tmp_path / "model.npz", []
    for i, step in enumerate(metadata["steps"]):
        for name, old in step["settings"].items():
            for value in retyped(list(old) if isinstance(old, tuple) else old):
                stored(path, arrays, changed(metadata, ["steps", i, "settings", name], value))
                try:
                    loaded = PackedModel.load(path)
                except StorageError:
                    outcomes.append("refused")
                else:
                    assert np.isfinite(loaded.predict(x)).all(), (step["operation"], name, value)
                    outcomes.append("run")
    assert outcomes.count("refused") > 50


def test_rows_that_many_steps_use_are_unpacked_once(tmp_path):
    """A small file with one array and many steps must not fill the memory."""
    rng = np.random.default_rng(0)
    layers = nn.Sequential(nn.BinaryLinear(1024, 1024, rng=rng), nn.BatchNorm1d(1024))
    model = nn.Sequential(*[layers] * 40)
    path = tmp_path / "model.npz"
    packed = deploy.compile(model.eval(), (1024,))
    size = packed.save(path)
    used = sum(a.nbytes for step in packed.steps for a in step.arrays.values())
    assert size < used / 10  # equal weights are stored once
    del packed
    tracemalloc.start()
    try:
        loaded = PackedModel.load(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5 * size < used / 2
    weights = {id(s.arrays["weight"]) for s in loaded.steps if s.operation == "xnor_linear"}
    assert len(weights) == 1


# ----------------------------------------------------------------------------- what predict reads


@pytest.fixture(scope="module")
def model(parts, tmp_path_factory):
    return str(stored(tmp_path_factory.mktemp("model") / "model.npz", *parts))


def npy(shape, descr="|u1", body=b"", version=(1, 0)):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + body


def png(width, height):
    """A valid picture of zero pixels, compressed by a factor of a thousand."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer, rows = zlib.compressobj(9), bytes(width + 1)
    data = b"".join(packer.compress(rows) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


FILES = {
    "a terabyte of pixels": (npy((10**6, 1000, 1000)), "the file has 0"),
    "more pixels than there are": (npy((2, 8, 8), body=bytes(64)), "needs 128 bytes"),
    "fewer pixels than there are": (npy((1, 8, 8), body=bytes(65)), "the file has 65"),
    "a negative shape": (npy((-1, 8, 8), body=bytes(64)), "impossible"),
    "a shape that overflows": (npy((2**62, 2**62)), "needs"),
    "objects": (npy((1,), "|O", b"cos\nsystem\n(S'echo'\ntR."), "of numbers"),
    "a header that is code": (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "not a readable .npy"),
    "a header without end": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "not a readable .npy"),
    "a header of a new version": (npy((1,), version=(9, 0)), "not a readable .npy"),
    "a picture of a gigapixel": (png(30_000, 30_000), "far more than photographs|too large"),
    "half a picture": (png(100, 100)[:60], "not a readable picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a readable"),
    "no picture": (b"hello", "not a readable picture"),
    "IDX of a terabyte": (b"\0\0\x08\x03" + struct.pack(">III", 2**20, 2**10, 2**10), "more than"),
    "gzipped zeros": (gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 2**20, 2**6, 2**6)
                                    + bytes(1 << 20)), "more than"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_predict_refuses_in_little_memory(name, model, tmp_path, capsys):
    data, message = FILES[name]
    path = tmp_path / "file"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            list(runs.predict(model, [path], resize=True))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16 << 20
    assert main(["predict", model, str(path), "--resize"]) == 1
    assert capsys.readouterr().err.startswith(f"tinybnn: {path}: ")


def test_npy_files_are_read_as_numpy_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    for array in (
        rng.integers(0, 256, (3, 8, 8), dtype=np.uint8), rng.random((2, 5)), np.float32(3.0),
        np.asfortranarray(rng.random((3, 4)).astype(">f4")), np.zeros((0, 3), np.int64),
    ):  # fmt: skip
        for version in ((1, 0), (2, 0)):
            file = io.BytesIO()
            np.lib.format.write_array(file, np.asarray(array), version)
            (tmp_path / "a.npy").write_bytes(file.getvalue())
            loaded = datasets.read_npy(tmp_path / "a.npy")
            assert loaded.dtype == np.asarray(array).dtype
            np.testing.assert_array_equal(loaded, array)


# -------------------------------------------------------------------------- pipes and terminals


@posix
def test_no_reader_waits_for_a_pipe(model, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "config.json")
    run = str(tmp_path / "run")
    for words in (
        ["predict", model, str(pipe)], ["predict", str(pipe), model], ["summary", run],
        ["verify", run, model], ["verify", str(pipe), model], ["compile", run],
    ):  # fmt: skip
        assert main(words) == 1, words
        assert "pipe" in capsys.readouterr().err or words[0] in ("summary", "compile", "verify")
    for read in (storage.open_regular, datasets.read_idx, datasets.read_npy, PackedModel.load):
        for path in (pipe, "/dev/zero", "/dev/null"):
            with pytest.raises(ValueError, match="not a regular file"):
                read(path)


def test_control_characters_never_reach_the_terminal(model, tmp_path, capsys):
    name = tmp_path / "a\x1b[2J\u202eb.png"
    try:
        name.write_bytes(b"no picture")
    except OSError:
        pytest.skip("no such names here")
    assert main(["predict", model, str(name)]) == 1
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\u202e" not in err
    assert "a\\x1b[2J\\u202eb.png" in err


def test_names_with_control_characters_are_refused_where_they_come_in():
    images, labels = np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, int)
    with pytest.raises(ValueError, match="none of them a control character"):
        datasets.from_arrays(images, labels, classes=("a\x1b[2J", "b"))


def test_pictures_start_no_other_program(model, tmp_path):
    """By default Pillow passes EPS to Ghostscript."""
    path = tmp_path / "a.eps"
    path.write_bytes(FILES["PostScript"][0])
    code = (
        "import sys\n"
        "sys.addaudithook(lambda event, _: sys.exit(7) if event == 'subprocess.Popen' else None)\n"
        "from tinybnn.cli import main\n"
        "sys.exit(main(['predict', *sys.argv[1:], '--resize']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, model, str(path)], capture_output=True)
    assert done.returncode == 1, done.stderr


@posix
def test_folders_of_experiments_are_read_without_waiting(tmp_path, capsys):
    for damaged in (False, True):
        folder = tmp_path / str(damaged)
        folder.mkdir()
        if damaged:
            (folder / "config.json").write_text("{")
        else:
            os.mkfifo(folder / "config.json")
        assert main(["reproduce", "fedavg", "--quick", "--quiet", "--out", str(folder)]) == 1
        err = capsys.readouterr().err
        assert f"{folder / 'config.json'}" in err
        assert ("is damaged" if damaged else "not a regular file") in err
