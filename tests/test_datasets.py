"""Datasets: IDX files, finding them, labelled images, and batches."""

import ast
import gzip
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinybnn
from tinybnn.datasets import (
    SOURCES,
    Compose,
    DataLoader,
    Dataset,
    DatasetError,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomShift,
    TensorDataset,
    available,
    from_arrays,
    from_folder,
    load,
    mnist_files,
    path,
    read_idx,
    search_folders,
    to_signed,
    to_unit,
)
from tinybnn.datasets.pickled import read_pickle

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array, shape=None):
    """The bytes of an IDX file; `shape` is what its header claims."""
    shape = array.shape if shape is None else shape
    code = CODES[array.dtype.str[1:]]
    header = struct.pack(f">4B{len(shape)}I", 0, 0, code, len(shape), *shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def write(tmp_path):
    def write(data, name="file"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    """No dataset in the environment's folders."""
    monkeypatch.delenv("TINYBNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --------------------------------------------------------------------------------------------- IDX


@given(
    st.sampled_from(sorted(CODES)).flatmap(
        lambda code: hnp.arrays(code, hnp.array_shapes(min_side=0, max_side=5))
    )
)
def test_idx_round_trip_raw_and_gzipped(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("idx") / "file"
    for data in (idx(array), gzip.compress(idx(array))):
        path.write_bytes(data)
        found = read_idx(path)
        assert found.shape == array.shape and found.dtype == array.dtype
        assert found.dtype.isnative and found.flags.writeable
        assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzipped"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0", "not an IDX file"),
        (b"hello world", "not an IDX file: it begins with 68 65 6c 6c"),
        (b"\0\0\x0a\x01" + bytes(8), "unknown dtype code 0x0a"),
        (b"\0\0\x08\x00" + bytes(8), "0 dimensions"),
        (b"\0\0\x08\x41" + bytes(4 * 65), "65 dimensions"),
        (b"\0\0\x08\x02" + bytes(7), "cut off within the header"),
        (idx(np.arange(10, dtype="u1"), (11,)), r"needs 11 bytes, (more than the|the file has 10)"),
        (idx(np.arange(10, dtype="u1"), (9,)), "needs 9 bytes, the file has more"),
        (idx(np.zeros(3, "f4"), (2,)), "needs 8 bytes, the file has more"),
        (idx(np.zeros(0, "u1"), (0, 2**32 - 1, 2**32 - 1)), "impossible"),
    ],
    ids=range(11),
)
def test_idx_files_that_are_refused(write, pack, data, message):
    path = write(pack(data))
    with pytest.raises(DatasetError, match=message) as caught:
        read_idx(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzipped"])
def test_a_lying_header_takes_no_memory(write, pack):
    for shape in [(2**32 - 1,), (2**31, 4, 2**31), (60_000, 28, 28)]:
        path = write(pack(idx(np.zeros(100, "u1"), shape)))
        tracemalloc.start()
        try:
            with pytest.raises(DatasetError, match="more than the file can hold"):
                read_idx(path)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


def test_a_gzip_bomb_is_not_unpacked(write):
    for shape, message in (((100,), "the file has more"), ((1 << 25,), "more than the file can")):
        path = write(gzip.compress(idx(np.zeros(1 << 25, "u1"), shape)))
        tracemalloc.start()
        try:
            with pytest.raises(DatasetError, match=message):
                read_idx(path)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


def test_damaged_gzip_is_refused(write):
    data = gzip.compress(idx(np.arange(200, dtype="u1")))
    for length in range(2, len(data)):
        with pytest.raises(DatasetError):
            read_idx(write(data[:length]))
    checksum = data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]
    with pytest.raises(DatasetError, match="gzip data is damaged"):
        read_idx(write(checksum))
    with pytest.raises(DatasetError, match="gzip data is damaged"):
        read_idx(write(data + b"tail"))


def test_a_missing_idx_file_and_a_pipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_idx(tmp_path / "nothing")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DatasetError, match="pipe: not a regular file"):
            read_idx(tmp_path / "pipe")


# ------------------------------------------------------------------------------- datasets by name


def test_the_bundled_digits(nothing_installed):
    train, test = load("digits")
    assert train.images.shape == (1437, 1, 8, 8) and test.images.shape == (360, 1, 8, 8)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int64
    assert train.maximum == 16 and train.images.max() == 16 and test.images.min() == 0
    assert train.classes == tuple("0123456789") and train.name == "digits"
    per_class = [143, 146, 142, 146, 144, 145, 144, 143, 141, 143]
    assert np.bincount(train.labels).tolist() == per_class
    assert np.bincount(test.labels).tolist() == [35, 36, 35, 37, 37, 37, 37, 36, 33, 37]
    assert train.labels[:10].tolist() == list(range(10))
    assert train.images[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "pixel_sum"), [("mnist", 1_567_298_545), ("fashion-mnist", 3_431_114_169)]
)
def test_the_real_files(name, pixel_sum):
    try:
        train, test = load(name)
    except FileNotFoundError:
        pytest.skip(f"{name} is not on this machine")
    assert train.images.shape == (60_000, 1, 28, 28) and test.images.shape == (10_000, 1, 28, 28)
    assert train.maximum == 255 and len(train.classes) == 10
    assert train.images.sum(dtype=np.int64) == pixel_sum
    train_counts, test_counts = np.bincount(train.labels), np.bincount(test.labels)
    if name == "mnist":
        per_class = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert train_counts.tolist() == per_class
        assert test_counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    else:
        assert train_counts.tolist() == [6000] * 10 and test_counts.tolist() == [1000] * 10


def test_the_real_cifar10():
    try:
        train, test = load("cifar10")
    except FileNotFoundError:
        pytest.skip("cifar10 is not on this machine")
    assert train.images.shape == (50_000, 3, 32, 32) and test.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile


def tiny_mnist(folder, gzipped=True, train=4, test=2, size=28, label=9):
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.full((count, size, size), count, np.uint8)
        labels = np.full(count, label, np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array)
            if gzipped:
                data = gzip.compress(data)
            (folder / f"{prefix}-{name}-ubyte{'.gz' * gzipped}").write_bytes(data)


@pytest.mark.parametrize("gzipped", [True, False])
def test_where_files_are_found(tmp_path, monkeypatch, nothing_installed, gzipped):
    def count(**where):
        return len(load("mnist", **where)[0])

    tiny_mnist(tmp_path / "cache" / "tinybnn" / "mnist", gzipped, train=1)
    assert count() == 1
    tiny_mnist(tmp_path / "env" / "mnist", gzipped, train=2)
    monkeypatch.setenv("TINYBNN_DATA", str(tmp_path / "env"))
    assert count() == 2
    tiny_mnist(tmp_path / "files", gzipped, train=3)
    assert count(root=tmp_path / "files") == 3
    assert count(root=str(tmp_path / "env")) == 2
    with pytest.raises(FileNotFoundError):  # a given root is not silently passed over
        load("mnist", root=tmp_path)


def test_missing_files_are_explained(tmp_path, monkeypatch, nothing_installed):
    monkeypatch.setenv("TINYBNN_DATA", str(tmp_path / "env"))
    tiny_mnist(tmp_path / "env" / "fashion-mnist")
    (tmp_path / "env" / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "cache" / "tinybnn" / "fashion-mnist").mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as caught:
        load("fashion-mnist")
    text = str(caught.value)
    for folder in search_folders("fashion-mnist"):
        assert str(folder) in text
    assert "fashion-mnist (missing t10k-labels-idx1-ubyte[.gz]; it holds t10k-images-idx3" in text
    assert "(none of its files; it holds nothing)" in text and "(no such folder" in text
    assert "`tinybnn data fetch fashion-mnist`" in text and "TINYBNN_DATA" in text


def test_what_is_not_found_says_what_is_there(tmp_path, monkeypatch, nothing_installed):
    monkeypatch.setenv("TINYBNN_DATA", str(tmp_path / "env"))
    tiny_mnist(tmp_path / "env")  # in the folder for all datasets: whose files are they?
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist")
    there = ", ".join(sorted(os.listdir(tmp_path / "env")))
    assert f"env/mnist (no such folder; {tmp_path / 'env'} holds {there})" in str(caught.value)
    folder = tmp_path / "env" / "mnist"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist")
    text = str(caught.value)
    assert "(none of its files; it holds 00.png, 01.png, 02.png, 03.png and 8 more)" in text
    assert "Expected train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz], t10k-" in text
    with pytest.raises(FileNotFoundError, match=r"data_batch_1.bin, ..., test_batch.bin or cifar-"):
        load("cifar10")
    (tmp_path / "env" / "kmnist").write_text("")
    with pytest.raises(FileNotFoundError, match=r"kmnist \(a file instead of a folder\)"):
        load("kmnist")


def renamed(folder, *rules):
    for file in sorted(folder.iterdir()):
        name = file.name
        for old, new in rules:
            name = name.replace(old, new)
        file.rename(file.with_name(name))


@pytest.mark.parametrize(
    "rules",
    [
        [("-idx", ".idx")],
        [("-", "_")],
        [("-idx", ".idx"), (".gz", ".GZ"), ("train", "Train")],
        [("-idx3-ubyte", "-IDX3-UBYTE")],
        [(".gz", "")],
    ],
    ids=lambda rules: ",".join(f"{a}>{b}" for a, b in rules),
)
@pytest.mark.parametrize(
    "folder", ["mnist", "MNIST/raw", "mnist/raw", "mnist/MNIST/raw", "Mnist", "mnist/MNIST"]
)
def test_files_and_folders_named_as_other_loaders_do(
    tmp_path, monkeypatch, nothing_installed, folder, rules
):
    tiny_mnist(tmp_path / folder, gzipped=(".gz", "") not in rules)
    renamed(tmp_path / folder, *rules)
    monkeypatch.setenv("TINYBNN_DATA", str(tmp_path))
    train, _ = load("mnist")
    assert len(train) == 4 and len(load("mnist", root=tmp_path)[0]) == 4
    assert path("mnist") in ((tmp_path / folder), *(tmp_path / folder).parents)
    assert len(load("mnist", root=tmp_path / folder)[0]) == 4
    with pytest.raises(FileNotFoundError):
        load("fashion-mnist")


def test_folders_of_several_datasets_are_not_confused(tmp_path, monkeypatch, nothing_installed):
    monkeypatch.setenv("TINYBNN_DATA", str(tmp_path))
    names = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist", "KMNIST": "kmnist"}
    for label, folder in enumerate(names):
        tiny_mnist(tmp_path / folder / "raw", label=label)
    for label, name in enumerate(names.values()):
        assert load(name)[0].labels.tolist() == [label] * 4
        assert path(name) == tmp_path / list(names)[label] / "raw"
    tiny_mnist(tmp_path / "mnist", label=7)  # our own names come first
    assert load("mnist")[0].labels.tolist() == [7] * 4


def test_hidden_and_unfinished_files_are_no_dataset(tmp_path):
    tiny_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").rename(tmp_path / "._train-images-idx3-ubyte.gz")
    (tmp_path / "train-images-idx3-ubyte.gz.part").write_bytes(b"")
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(FileNotFoundError, match=r"missing train-images-idx3-ubyte\[.gz\];"):
        load("mnist", root=tmp_path)


def test_the_files_of_a_folder_named_as_mnists(tmp_path):
    tiny_mnist(tmp_path / "raw")
    renamed(tmp_path / "raw", ("-idx", ".idx"))
    found = mnist_files(tmp_path)
    assert [file.name for file in found] == [
        f"{part}.{kind}-ubyte.gz"
        for part, kind in (
            ("train-images", "idx3"), ("train-labels", "idx1"),
            ("t10k-images", "idx3"), ("t10k-labels", "idx1"),
        )
    ]  # fmt: skip
    found[2].unlink()
    with pytest.raises(FileNotFoundError, match=r"expected train-images.*it holds raw"):
        mnist_files(tmp_path)


def test_the_default_cache_and_an_empty_variable(monkeypatch):
    monkeypatch.setenv("TINYBNN_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/student")
    assert search_folders("mnist")[0] == Path("/home/student/.cache/tinybnn/mnist")
    assert search_folders("mnist", root="~/data")[1] == Path("/home/student/data/mnist")


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown dataset 'MNIST'; known are digits, mnist, fash"):
        load("MNIST")
    with pytest.raises(ValueError, match="path: unknown dataset None"):
        path(None)
    assert set(SOURCES) >= {"digits", "mnist", "fashion-mnist"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 8}, r"train-images.* expected images \(1, 28, 28\), got \(1, 8, 8\)"),
        ({"label": 10}, "labels must be 0 to 9 for 10 classes, got 10 to 10"),
    ],
)
def test_files_with_something_else(tmp_path, wrong, message):
    tiny_mnist(tmp_path, **wrong)
    with pytest.raises(DatasetError, match=message):
        load("mnist", root=tmp_path)


def test_files_that_do_not_belong_together(tmp_path, write):
    tiny_mnist(tmp_path)
    write(idx(np.zeros(3, "u1")), "train-labels-idx1-ubyte.gz")
    with pytest.raises(DatasetError, match=r"4 images need labels of shape \(4,\), got \(3,\)"):
        load("mnist", root=tmp_path)
    write(idx(np.zeros((4, 28, 28), "u1")), "train-labels-idx1-ubyte.gz")
    with pytest.raises(DatasetError, match="expected 1-d uint8, got 3-d uint8"):
        load("mnist", root=tmp_path)


def test_digits_brighter_than_their_maximum(tmp_path):
    tiny_mnist(tmp_path, size=8, train=17)
    with pytest.raises(DatasetError, match="from 0 to maximum=16, got 17 to 17"):
        load("digits", root=tmp_path)


def test_importing_datasets_is_light():
    """No compiler and no plots: only NumPy and the standard library come with the package."""
    code = (
        "import sys, types; "
        "package = types.ModuleType('tinybnn'); "
        "package.__path__ = [sys.argv[1]]; sys.modules['tinybnn'] = package; "
        "import tinybnn.datasets, tinybnn.storage; "
        "late = {'numba', 'matplotlib', 'PIL', 'tqdm', 'urllib.request'}; "
        "print(sorted(late & set(sys.modules)), "
        "sorted(m for m in sys.modules if m.startswith('tinybnn.')))"
    )
    package = Path(sys.modules["tinybnn"].__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", code, str(package)], capture_output=True, text=True, check=True
    )
    unwanted, modules = run.stdout.strip().split("] ", 1)
    assert unwanted == "["
    rooms = {name.split(".")[1] for name in ast.literal_eval(modules)}
    assert rooms == {"autograd", "datasets", "storage", "tables", "typing"}


# ------------------------------------------------------------------------------- images and labels


def numbered(count, channels=1, height=2, width=3):
    """A dataset whose image i is filled with i, and whose label is i % 3."""
    images = np.empty((count, channels, height, width), np.uint8)
    images[:] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return from_arrays(images, np.arange(count) % 3, classes=["a", "b", "c"])


def test_from_arrays():
    grey = from_arrays(np.zeros((5, 8, 9), np.uint8), [0, 1, 2, 0, 1])
    assert grey.images.shape == (5, 1, 8, 9) and grey.maximum == 255
    assert grey.classes == ("0", "1", "2") and grey.labels.dtype == np.int64
    assert repr(grey) == "Dataset(arrays: 5 images 1×8×9 uint8 up to 255, 3 classes)"
    colour = from_arrays(np.ones((5, 3, 8, 9)), np.zeros(5, np.uint8), name="mine")
    assert colour.images.dtype == np.float32 and colour.maximum == 1
    assert repr(colour) == "Dataset(mine: 5 images 3×8×9 float32 up to 1, 1 classes)"
    wide = from_arrays(np.full((2, 4, 4), 4095.0), [0, 0], maximum=4095)
    assert wide.maximum == 4095
    empty = from_arrays(np.zeros((0, 8, 9), np.uint8), np.zeros(0, int))
    assert len(empty) == 0 and empty.classes == ()
    big_endian = from_arrays(np.ones((2, 4, 4), ">f4"), np.zeros(2, ">i4"))
    assert big_endian.images.dtype.isnative and big_endian.labels.dtype.isnative


@pytest.mark.parametrize("channels", [1, 3])
def test_images_lie_channels_last(channels):
    data = numbered(6, channels)
    assert data.images.transpose(0, 2, 3, 1).flags.c_contiguous
    assert (data.images[4] == 4).all()
    assert data[::2].images.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize(
    ("images", "labels", "more", "error", "message"),
    [
        (np.zeros((2, 4), "u1"), [0, 0], {}, ValueError, r"must be \(N, H, W\) or"),
        (np.zeros((2, 4, 4), "i8"), [0, 0], {}, TypeError, "uint8 or floats, got int64"),
        (np.zeros((2, 4, 4), "?"), [0, 0], {}, TypeError, "uint8 or floats, got bool"),
        (np.zeros((2, 4, 0), "u1"), [0, 0], {}, ValueError, r"images must be \(N, C, H, W\)"),
        (
            np.zeros((2, 4, 4), "u1"),
            [0.0, 0.0],
            {},
            TypeError,
            "int64, uint8 to uint64.*got float64",
        ),
        (np.zeros((2, 4, 4), "u1"), [[0, 1], [1, 0]], {}, ValueError, "one-hot"),
        (np.zeros((2, 4, 4), "u1"), [0, 0, 0], {}, ValueError, "2 images need labels"),
        (np.zeros((2, 4, 4), "u1"), [0, -1], {}, ValueError, "got -1 to 0"),
        (np.zeros((2, 4, 4), "u1"), [0, 2], {"classes": "ab"}, ValueError, "0 to 1 for 2 classes"),
        (np.zeros((2, 4, 4), "u1"), [0, 0], {"classes": [1]}, TypeError, "tuple of names"),
        (np.zeros((2, 4, 4), "u1"), [0, 10**9], {}, ValueError, "too large for a label"),
        (np.full((2, 4, 4), 255.0), [0, 0], {}, ValueError, "maximum=1, got 255"),
        (np.full((2, 4, 4), -0.5), [0, 0], {}, ValueError, "maximum=1, got -0.5"),
        (np.full((2, 4, 4), np.nan), [0, 0], {}, ValueError, "got nan"),
        (np.zeros((2, 4, 4)), [0, 0], {"maximum": 0}, ValueError, "must be a positive number"),
        (np.zeros((2, 4, 4)), [0, 0], {"maximum": "1"}, ValueError, "must be a positive number"),
        (np.zeros((2, 4, 4)), [0, 0], {"maximum": np.inf}, ValueError, "must be a positive number"),
    ],
    ids=range(17),
)
def test_arrays_that_are_refused(images, labels, more, error, message):
    with pytest.raises(error, match=message):
        from_arrays(images, labels, **more)


def test_a_dataset_is_strict_about_dtypes():
    images, labels = np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int64)
    Dataset(images, labels, ("a",))
    with pytest.raises(TypeError, match="labels must be int64, got int32"):
        Dataset(images, labels.astype(np.int32), ("a",))
    with pytest.raises(TypeError, match="uint8 or float32, got float64"):
        Dataset(images.astype(float), labels, ("a",))
    with pytest.raises(TypeError, match="labels must be an array, got list"):
        Dataset(images, [0, 0], ("a",))
    with pytest.raises(TypeError, match="classes must be a tuple of names"):
        Dataset(images, labels, "ab")


def test_indexing():
    data = numbered(10)
    image, label = data[4]
    assert image.shape == (1, 2, 3) and (image == 4).all() and label == 1 and type(label) is int
    assert (data[np.int64(-1)][0] == 9).all()
    assert len(list(data)) == 10

    def which(part):
        assert isinstance(part, Dataset) and part.classes == data.classes
        assert (part.labels == part.images[:, 0, 0, 0] % 3).all()
        return part.images[:, 0, 0, 0].tolist()

    assert which(data[2:5]) == [2, 3, 4]
    assert which(data[::-3]) == [9, 6, 3, 0]
    assert which(data[[3, 3, -1]]) == [3, 3, 9]
    assert which(data[np.array([5, 0], np.uint8)]) == [5, 0]
    assert which(data[data.labels == 2]) == [2, 5, 8]
    assert which(data[[]]) == [] and which(data[20:]) == []
    assert np.shares_memory(data[2:5].images, data.images)
    for wrong in (True, 1.0, None, "a", (1, 2), [0.5], [[1]], np.zeros((2, 2), bool)):
        with pytest.raises(TypeError, match="Dataset: an index"):
            data[wrong]
    for wrong in (10, [10], np.zeros(9, bool)):
        with pytest.raises(IndexError):
            data[wrong]


@given(st.integers(2, 50), st.data(), st.integers(0, 2**32))
def test_a_split_parts_the_images(count, draw, seed):
    size = draw.draw(st.integers(1, count - 1) | st.floats(0.5 / count + 1e-9, 1 - 0.51 / count))
    rest, held_out = numbered(count).split(size, rng=seed)
    expected = size if isinstance(size, int) else round(size * count)
    assert len(held_out) == expected
    values = [part.images[:, 0, 0, 0].tolist() for part in (rest, held_out)]
    assert sorted(values[0] + values[1]) == list(range(count))
    assert all(part == sorted(part) for part in values)
    assert (rest.labels == rest.images[:, 0, 0, 0] % 3).all()


def test_splits_follow_their_seed():
    data = numbered(100)

    def held_out(*rng):
        return data.split(0.3, *rng)[1].images[:, 0, 0, 0].tolist()

    assert held_out() == held_out() == held_out(0) == held_out(np.random.default_rng(0))
    assert held_out(1) != held_out(0)
    tinybnn.manual_seed(3)
    first = held_out(None)
    assert held_out(None) != first
    tinybnn.manual_seed(3)
    assert held_out(None) == first


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "leaves one part empty"), (10, ValueError, "leaves one part empty"),
        (-1, ValueError, "leaves one part empty"), (0.01, ValueError, "leaves one part empty"),
        (1.0, ValueError, "between 0 and 1"), (1.5, ValueError, "between 0 and 1"),
        (float("nan"), ValueError, "between 0 and 1"), (True, TypeError, "fraction or a number"),
        ("0.1", TypeError, "fraction or a number"),
    ],
)  # fmt: skip
def test_splits_that_are_refused(size, error, message):
    with pytest.raises(error, match=message):
        numbered(10).split(size)


# ----------------------------------------------------------------------------------------- batches


def ids(x):
    """Which images of `numbered` are in a batch."""
    return np.rint((x[:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


@given(
    st.integers(0, 30), st.integers(1, 12), st.booleans(), st.booleans(), st.sampled_from([1, 3])
)
def test_an_epoch(count, batch_size, shuffle, drop_last, channels):
    data = numbered(count, channels)
    loader = DataLoader(data, batch_size, shuffle, drop_last, rng=0)
    batches = list(loader)
    assert len(batches) == len(loader)
    sizes = [len(y) for _, y in batches]
    whole, rest = divmod(count, batch_size)
    assert sizes == [batch_size] * whole + [rest] * (rest > 0 and not drop_last)
    seen = []
    for x, y in batches:
        assert x.shape == (len(y), channels, 2, 3) and x.dtype == np.float32
        assert x.transpose(0, 2, 3, 1).flags.c_contiguous
        assert y.dtype == np.int64 and y.tolist() == [i % 3 for i in ids(x)]
        assert (x == x[:, :1, :1, :1]).all()
        seen += ids(x)
    if not shuffle:
        assert seen == list(range(count))[: len(seen)]
    assert len(set(seen)) == len(seen) == sum(sizes)


def epochs(loader, count=3):
    return [[i for x, _ in loader for i in ids(x)] for _ in range(count)]


def test_seeds():
    data = numbered(50)

    def shuffled(rng):
        return epochs(DataLoader(data, 8, shuffle=True, rng=rng))

    first = shuffled(5)
    assert first == shuffled(5) == shuffled(np.int32(5)) == shuffled(np.random.default_rng(5))
    assert first[0] != first[1] != first[2]
    assert all(sorted(epoch) == list(range(50)) for epoch in first)
    assert shuffled(6) != first
    assert shuffled(None) != shuffled(None)
    assert epochs(DataLoader(data, 8)) == [list(range(50))] * 3


def test_manual_seed_governs_loaders_without_a_generator():
    loader = DataLoader(numbered(50), 8, shuffle=True)

    def shuffled(seed):
        tinybnn.manual_seed(seed)  # after the loader was made
        return epochs(loader)

    first = shuffled(7)
    assert first == shuffled(7) != shuffled(8)
    assert epochs(loader) != first


def test_an_epoch_is_one_permutation_of_the_generator():
    rng = np.random.default_rng(0)
    expected = [rng.permutation(10).tolist() for _ in range(2)]
    assert epochs(DataLoader(numbered(10), 4, shuffle=True, rng=0), count=2) == expected


def test_the_default_transform_fills_minus_one_to_one():
    for maximum in (16, 255):
        values = np.arange(maximum + 1, dtype=np.uint8).reshape(-1, 1, 1, 1)
        data = from_arrays(values, np.zeros(len(values), int), maximum=maximum)
        ((x, _),) = DataLoader(data, len(data))
        x = x.ravel()
        assert x[0] == -1 and x[-1] == 1
        assert (np.diff(x) > 0).all() and (x == -x[::-1]).all()
        np.testing.assert_allclose(x, np.linspace(-1, 1, maximum + 1), atol=1e-7)
    assert x.size == 256 and x[127] < 0 < x[128]


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_transforms_are_exact_at_both_ends(maximum):
    images = np.array([0, maximum], np.float32).reshape(2, 1, 1, 1)
    assert to_signed(maximum)(images, None).ravel().tolist() == [-1, 1]
    assert to_unit(maximum)(images, None).ravel().tolist() == [0, 1]
    data = from_arrays(images, [0, 0], maximum=maximum)
    ((x, _),) = DataLoader(data, 2, transform=to_unit(maximum))
    assert x.ravel().tolist() == [0, 1]
    assert images.ravel().tolist() == [0, np.float32(maximum)]


@pytest.mark.parametrize("make", [to_signed, to_unit])
@pytest.mark.parametrize("maximum", [0, -1, np.inf, np.nan])
def test_maxima_that_are_refused(make, maximum):
    with pytest.raises(ValueError, match="must be positive and finite"):
        make(maximum)


def test_batches_do_not_alias_the_dataset():
    data = from_arrays(np.full((4, 2, 2), 0.5, np.float32), [0, 1, 0, 1])
    for x, y in DataLoader(data, 2):
        x[:] = 9
        y[:] = 9
    assert (data.images == 0.5).all() and data.labels.tolist() == [0, 1, 0, 1]


def test_a_transform_gets_the_raw_images_and_the_generator():
    data = numbered(20, channels=3)

    def noisy(images, rng):
        assert images.dtype == np.uint8 and images.shape[1:] == (3, 2, 3)
        return rng.random((len(images), 5, 4, 4), dtype=np.float32)  # other sizes, NCHW in memory

    def batches():
        return [x for x, _ in DataLoader(data, 6, shuffle=True, transform=noisy, rng=3)]

    first = batches()
    assert [x.shape for x in first] == [(6, 5, 4, 4)] * 3 + [(2, 5, 4, 4)]
    assert all(x.transpose(0, 2, 3, 1).flags.c_contiguous for x in first)
    assert all((a == b).all() for a, b in zip(first, batches(), strict=True))


@pytest.mark.parametrize(
    "transform",
    [
        lambda x, rng: x / 255, lambda x, rng: x, lambda x, rng: x[:1].astype(np.float32),
        lambda x, rng: x.reshape(len(x), -1).astype(np.float32), lambda x, rng: None,
    ],
    ids=["float64", "uint8", "too few", "flat", "nothing"],
)  # fmt: skip
def test_transforms_that_are_refused(transform):
    with pytest.raises(ValueError, match=r"must return a float32 array \(2, C, H, W\), got"):
        next(iter(DataLoader(numbered(4), 2, transform=transform)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"dataset": np.zeros((2, 1, 4, 4))},
            TypeError,
            "expected a Dataset.*got ndarray",
        ),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer"),
        ({"shuffle": 1}, TypeError, "shuffle must be True or False"),
        ({"drop_last": None}, TypeError, "drop_last must be True or False"),
        ({"transform": 3}, TypeError, "transform must be callable"),
        ({"rng": -1}, TypeError, "rng must be"),
        ({"rng": 1.5}, TypeError, "rng must be"),
        ({"rng": True}, TypeError, "rng must be"),
        ({"rng": np.random.RandomState(0)}, TypeError, "rng must be"),
    ],
    ids=range(11),
)
def test_loaders_that_are_refused(arguments, error, message):
    arguments = {"dataset": numbered(4), **arguments}
    with pytest.raises(error, match=f"DataLoader: .*{message}|DataLoader: {message}"):
        DataLoader(**arguments)


def test_a_loader_shows_what_it_is():
    assert repr(DataLoader(numbered(4), 2)) == (
        "DataLoader(Dataset(arrays: 4 images 1×2×3 uint8 up to 255, 3 classes), batch_size=2, "
        "shuffle=False, drop_last=False)"
    )


def test_the_files_can_be_read_from_any_folder(tmp_path, monkeypatch, nothing_installed):
    monkeypatch.chdir(tmp_path)
    assert len(load("digits")[0]) == 1437
    assert os.listdir(tmp_path) == []


# -------------------------------------------------------------------------------------- transforms


def marked(count, channels=1, height=5, width=6, dtype=np.uint8):
    """Images (N, C, H, W) in which every pixel differs from its neighbours, and none is 0."""
    values = np.arange(count * channels * height * width) % 251 + 1
    pixels = values.reshape(count, height, width, channels).astype(dtype)
    return pixels.transpose(0, 3, 1, 2)


def moved(image, down, right, fill=0):
    """One image (C, H, W) shifted, pixel by pixel."""
    result = np.full_like(image, fill)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[:, y, x] = image[:, y - down, x - right]
    return result


@given(st.integers(0, 3), st.sampled_from([1, 3]), st.sampled_from(["u1", "f4"]), st.integers(0))
def test_random_shift_moves_each_image_by_whole_pixels(pixels, channels, dtype, seed):
    images = marked(6, channels, dtype=dtype)
    before = images.copy()
    found = RandomShift(pixels)(images, np.random.default_rng(seed))
    assert found.shape == images.shape and found.dtype == images.dtype
    assert found.transpose(0, 2, 3, 1).flags.c_contiguous
    assert (images == before).all() and not np.shares_memory(found, images)
    steps = range(-pixels, pixels + 1)
    for image, result in zip(images, found, strict=True):
        assert any((moved(image, y, x) == result).all() for y in steps for x in steps)


def test_random_shifts_are_all_equally_likely():
    images = np.zeros((9000, 1, 5, 5), np.uint8)
    images[:, :, 2, 2] = 1
    found = RandomShift(1)(images, np.random.default_rng(0))
    counts = found.sum(axis=(0, 1))
    assert counts.sum() == 9000 and counts[1:4, 1:4].min() > 900 and counts[1:4, 1:4].max() < 1100
    filled = RandomShift(2, fill=9)(images, np.random.default_rng(0))
    assert set(np.unique(filled)) == {0, 1, 9}


@given(st.integers(1, 9), st.integers(1, 10), st.integers(0, 2), st.integers(0))
def test_random_crop_cuts_windows(height, width, padding, seed):
    images = marked(4, 3)
    crop = RandomCrop((height, width), padding)
    if height > 5 + 2 * padding or width > 6 + 2 * padding:
        with pytest.raises(ValueError, match="does not fit into images of shape"):
            crop(images, np.random.default_rng(seed))
        return
    found = crop(images, np.random.default_rng(seed))
    assert found.shape == (4, 3, height, width)
    assert found.transpose(0, 2, 3, 1).flags.c_contiguous and not np.shares_memory(found, images)
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    for image, result in zip(padded, found, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, (height, width), (1, 2))
        assert (windows == result[:, None, None]).all(axis=(0, 3, 4)).any()


def test_random_horizontal_flip():
    images = marked(1000, 3)
    before = images.copy()
    for p, low, high in ((0, 0, 0), (1, 1000, 1000), (0.3, 250, 350)):
        found = RandomHorizontalFlip(p)(images, np.random.default_rng(1))
        flipped = (found == images[..., ::-1]).all(axis=(1, 2, 3))
        same = (found == images).all(axis=(1, 2, 3))
        assert (flipped ^ same).all() and low <= flipped.sum() <= high
        assert found.transpose(0, 2, 3, 1).flags.c_contiguous and (images == before).all()


def test_normalize():
    images = marked(2, 3)
    mean, std = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
    found = Compose([to_unit(255), Normalize(mean, std)])(images, None)
    expected = (images / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert found.dtype == np.float32 and found.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (Normalize(1, 2)(images, None) == (images.astype("f4") - 1) / 2).all()
    with pytest.raises(ValueError, match="mean has 3 values, the images have 1 channels"):
        Normalize(mean, 1)(marked(2), None)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RandomShift(-1), ValueError, "RandomShift: pixels must be >= 0"),
        (lambda: RandomShift(1.5), TypeError, "RandomShift: pixels must be an integer"),
        (lambda: RandomCrop(0), ValueError, "RandomCrop: size must be >= 1"),
        (lambda: RandomCrop((1, 2, 3)), ValueError, r"int or \(height, width\)"),
        (lambda: RandomCrop(4, True), TypeError, "RandomCrop: padding must be an integer"),
        (lambda: RandomHorizontalFlip(1.1), ValueError, "must be a probability"),
        (lambda: RandomHorizontalFlip("0"), ValueError, "must be a probability"),
        (lambda: Normalize(0, 0), ValueError, "std must be positive"),
        (lambda: Normalize(np.nan, 1), ValueError, "mean must be a finite number"),
        (lambda: Compose([to_unit(1), 3]), TypeError, "expected callables"),
        (lambda: RandomShift(1)(np.zeros((3, 3)), None), ValueError, r"\(B, C, H, W\), got shape"),
    ],
    ids=range(11),
)
def test_transforms_with_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_loader_augments_and_repeats_itself():
    data = numbered(40, channels=3)
    transform = Compose([RandomCrop(2, padding=1), RandomHorizontalFlip(), to_signed(255)])

    def batches(seed):
        return [x for x, _ in DataLoader(data, 16, shuffle=True, transform=transform, rng=seed)]

    first = batches(0)
    assert [x.shape for x in first] == [(16, 3, 2, 2), (16, 3, 2, 2), (8, 3, 2, 2)]
    assert all((a == b).all() for a, b in zip(first, batches(0), strict=True))
    assert not all((a == b).all() for a, b in zip(first, batches(1), strict=True))
    assert repr(transform) == (
        "Compose([RandomCrop(size=(2, 2), padding=1, fill=0), RandomHorizontalFlip(p=0.5), "
        "to_signed(255)])"
    )


def test_an_empty_batch_can_be_transformed():
    for transform in (RandomShift(2), RandomCrop(3, 1), RandomHorizontalFlip(), Normalize(0, 1)):
        assert transform(marked(0), np.random.default_rng(0)).shape[0] == 0


# ------------------------------------------------------------------------------------------- CIFAR


def cifar_arrays(count, classes, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, rng.integers(0, classes, count).astype(np.uint8)


def cifar_files(number, kind, protocol=2):
    """Small official files by name, and what they hold: {name: (bytes, pixels, labels)}."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    if number == 100:
        names = ["train", "test"]
    files = {}
    for seed, name in enumerate(names):
        pixels, labels = cifar_arrays(4 + seed, number, seed)
        columns = [labels[:, None], pixels]
        if number == 100:
            columns.insert(0, (labels // 5)[:, None])
        if kind == "binary":
            files[f"{name}.bin"] = np.hstack(columns).tobytes(), pixels, labels
        else:
            key = b"labels" if number == 10 else b"fine_labels"
            batch = {
                b"batch_label": b"a batch", key: labels.tolist(), b"data": pixels,
                b"coarse_labels": (labels // 5).tolist(), b"filenames": [b"x.png"] * len(labels),
            }  # fmt: skip
            files[name] = pickle.dumps(batch, protocol), pixels, labels
    return files


CIFAR_FOLDERS = {
    (10, "binary"): "cifar-10-batches-bin", (10, "python"): "cifar-10-batches-py",
    (100, "binary"): "cifar-100-binary", (100, "python"): "cifar-100-python",
}  # fmt: skip


def write_archive(path, files, folder):
    mode = "w" if path.suffix == ".tar" else "w:gz"
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as archive:
        for name, data in {"readme.html": b"hello", **files}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("place", ["folder", "bare", ".tar.gz", ".tar", ".tgz"])
@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("number", [10, 100])
def test_cifar_in_every_official_layout(tmp_path, number, kind, place):
    files = cifar_files(number, kind)
    folder = CIFAR_FOLDERS[number, kind]
    if place.startswith("."):
        contents = {name: data for name, (data, _, _) in reversed(files.items())}
        write_archive(tmp_path / f"cifar-{number}-{kind}{place}", contents, folder)
    else:
        where = tmp_path / folder if place == "folder" else tmp_path
        where.mkdir(exist_ok=True)
        for name, (data, _, _) in files.items():
            (where / name).write_bytes(data)
    train, test = load(f"cifar{number}", root=tmp_path)
    assert path(f"cifar{number}", root=tmp_path) == tmp_path
    *parts, last = files.values()
    for found, expected in ((train, parts), (test, [last])):
        pixels = np.concatenate([p for _, p, _ in expected]).reshape(-1, 3, 32, 32)
        assert (found.images == pixels).all() and found.images.dtype == np.uint8
        assert found.images.transpose(0, 2, 3, 1).flags.c_contiguous
        assert found.labels.tolist() == np.concatenate([x for _, _, x in expected]).tolist()
    assert len(set(train.classes)) == number and list(SOURCES["cifar100"].classes) == sorted(
        SOURCES["cifar100"].classes
    )
    if number == 10:
        assert (train.classes[0], train.classes[9]) == ("airplane", "truck")


@pytest.mark.parametrize(
    "place", ["cifar-10-batches-py", "CIFAR10/cifar-10-batches-py", "CIFAR-10"]
)
def test_cifar_where_other_loaders_put_it(tmp_path, monkeypatch, nothing_installed, place):
    monkeypatch.setenv("TINYBNN_DATA", str(tmp_path))
    (tmp_path / place).mkdir(parents=True)
    files = {name: data for name, (data, _, _) in cifar_files(10, "python").items()}
    for name, data in files.items():
        (tmp_path / place / name).write_bytes(data)
    assert len(load("cifar10")[0]) == 30
    with pytest.raises(FileNotFoundError):
        load("cifar100")
    shutil.rmtree(tmp_path / place)
    write_archive(tmp_path / "cifar-10-python.tar.gz", files, "cifar-10-batches-py")
    assert len(load("cifar10")[0]) == 30 and path("cifar10") == tmp_path


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_every_binary_protocol_are_read_without_pickle(tmp_path, protocol, order):
    for number in (10, 100):
        files = cifar_files(number, "python")
        for name, (data, _, _) in files.items():
            batch = pickle.loads(data)
            batch[b"data"] = np.asarray(batch[b"data"], order=order)
            keys = batch if order == "C" else {key.decode(): batch[key] for key in batch}
            (tmp_path / name).write_bytes(pickle.dumps(keys, protocol))
        train, test = load(f"cifar{number}", root=tmp_path)
        _, pixels, labels = list(files.values())[-1]
        assert (test.images.reshape(-1, 3072) == pixels).all()
        assert test.labels.tolist() == labels.tolist() and len(train) > 0


def python_2_pickle(pixels, labels):
    """The bytes that Python 2 and NumPy 1 wrote the official files with (cPickle, protocol 2)."""

    def short(text, memo):
        return b"U" + bytes([len(text)]) + text + b"q" + bytes([memo])

    raw = pixels.tobytes()
    return b"".join(
        [
            b"\x80\x02}q\x01(", short(b"batch_label", 2), short(b"training batch 1 of 5", 3),
            short(b"labels", 4), b"]q\x05(", *(b"K" + bytes([n]) for n in labels), b"e",
            short(b"data", 6), b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08",
            b"K\x00\x85", short(b"b", 9), b"\x87Rq\x0a(K\x01",
            b"M" + struct.pack("<H", len(pixels)),
            b"M\x00\x0c\x86cnumpy\ndtype\nq\x0b", short(b"u1", 12), b"K\x00K\x01\x87Rq\x0d(K\x03",
            short(b"|", 14), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<I", len(raw)) + raw, b"tb", short(b"filenames", 15),
            b"]q\x10(", *(short(b"leptodactylus_s_000004.png", 17) for _ in labels), b"eu.",
        ]
    )  # fmt: skip


def test_a_pickle_of_python_2_is_read(tmp_path):
    for name, (_, pixels, labels) in cifar_files(10, "python").items():
        data = python_2_pickle(pixels, labels)
        assert pickle.loads(data, encoding="bytes")[b"labels"] == labels.tolist()
        (tmp_path / name).write_bytes(data)
    train, test = load("cifar10", root=tmp_path)
    assert (test.images.reshape(-1, 3072) == pixels).all() and len(train) == 4 + 5 + 6 + 7 + 8


_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
_BYTE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cos\nsystem\nU\x04true\x85R.", r"asks for os\.system, refused"),
        (b"\x8c\x02os\x8c\x06system\x93.", r"asks for os\.system, refused"),
        (b"(dp0\n.", "the instruction DICT, refused"),
        (_ARRAY + b"(K\x01K\x03\x85N\x89U\x03abctb.", "another dtype than uint8"),
        (_ARRAY + b"(K\x01K\x04\x85" + _BYTE + b"\x89U\x03abctb.", "does not fit its bytes"),
        (_ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + _BYTE + b"\x89U\x03abctb.", "does not fit"),
        (_ARRAY + b".", "a damaged pickle"),
        (
            _ARRAY + b"(K\x01K\x00\x8a\x0a" + bytes(8) + b"\1\0\x86" + _BYTE + b"\x89U\0tb.",
            "a damaged pickle",
        ),
        (b"cnumpy\ndtype\nU\x02f4\x85R.", "another dtype than uint8"),
        (b"U\x03ab.", "exhausted before seeing STOP"),
        (b"NN.", "left over"),
        (b"N.N", "left over"),
        (b".", "a damaged pickle"),
    ],
    ids=range(13),
)
def test_what_is_wrong_with_a_pickle(data, message):
    for start in (b"", b"\x80\x02"):
        with pytest.raises(DatasetError, match=message):
            read_pickle(start + data)
    good = _ARRAY + b"(K\x01K\x03\x85" + _BYTE + b"\x89U\x03abctb."
    assert read_pickle(good).tolist() == list(b"abc")


def test_cifar_files_that_are_refused(tmp_path):
    files = cifar_files(10, "binary")
    for name, (data, _, _) in files.items():
        (tmp_path / name).write_bytes(data)
    for data, message in (
        (b"", "0 bytes are not a whole number of 3,073-byte records"),
        (bytes(3074), "3,074 bytes are not a whole"),
        (bytes([10]) + bytes(3072), r"labels must be 0 to 9 for 10 classes, got 10 to 10"),
    ):
        (tmp_path / "test_batch.bin").write_bytes(data)
        with pytest.raises(DatasetError, match=rf"test_batch\.bin.*{message}"):
            load("cifar10", root=tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"\(missing data_batch_3\.bin; it holds"):
        load("cifar10", root=tmp_path)


def test_archives_that_are_refused(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    files = {name: data for name, (data, _, _) in cifar_files(10, "binary").items()}

    def refused(data, message):
        path.write_bytes(data)
        with pytest.raises(DatasetError, match=message) as caught:
            load("cifar10", root=tmp_path)
        assert str(caught.value).startswith(f"{path}: ")

    write_archive(path, files, "x")
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    load("cifar10", root=tmp_path)
    refused(b"hello", "cut off")
    refused(bytes(range(256)) * 50, "not a tar archive")
    refused(plain[:700], "cut off")
    refused(whole[:-9], "gzip data is damaged")
    refused(whole[:-8] + bytes(8), "gzip data is damaged")
    refused(gzip.compress(plain[:700]), "cut off")
    refused(gzip.compress(plain[:300]), "cut off")
    refused(
        gzip.compress(plain[:1024] + bytes(1024)), r"has no data_batch_1\.bin, .*test_batch\.bin"
    )
    refused(gzip.compress(b"y" + plain[1:]), r"not a tar archive, .*\(bad checksum\)")
    refused(gzip.compress(plain + b"x"), "data after the end")
    refused(gzip.compress(bytes(512) + bytes(50_000_000)), "more than four times its size")
    lines = plain.index(b"data_batch_1") - 2
    member = plain[lines : lines + 512]
    size = int(member[124:135], 8)
    refused(
        gzip.compress(plain[: lines + 512 + -(-size // 512) * 512] + plain[lines:]),
        r"has a second data_batch_1\.bin",
    )

    def with_size(text):
        header = bytearray(member)
        header[124:136] = text
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return gzip.compress(plain[:lines] + bytes(header) + plain[lines + 512 :])

    refused(with_size(b"77777777777\0"), "cut off within the tar archive")
    refused(with_size(b"-0000000001\0"), "0 bytes are not a whole number")
    refused(with_size(b"\x80" + b"\xff" * 11), "cut off")
    write_archive(path, {**files, "data_batch_2.bin": bytes(100)}, "x")
    refused(path.read_bytes(), r"data_batch_2\.bin: 100 bytes are not a whole number")


def tar_header(name=b"train.bin", size=b"%011o\0" % 0, kind=b"0", end=b""):
    """A header with a right checksum; `end` replaces its last bytes."""
    header = bytearray(512 - len(end)) + end
    header[: len(name)], header[124:136], header[156:157] = name, size, kind
    header[257:265] = b"ustar  \0" if kind == b"S" else b"ustar\00000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def number(value):
    """A field of 12 bytes in GNU's binary form."""
    return (value % (1 << 96) | 1 << 95).to_bytes(12, "big")


TARS = {
    "a member of 2**87 bytes": tar_header(b"x", size=number(1 << 87)),
    "a member of negative size": tar_header(size=number(-1024)) + bytes(1024),
    "a member that ends where it begins": tar_header(b"x")
    + tar_header(b"y", size=number(-512))
    + bytes(1024),
    "a long name without end": tar_header(size=number(1 << 60), kind=b"L"),
    "a long name of negative size": tar_header(size=number(-1024), kind=b"L") + bytes(1024),
    "extended headers for ever": 3000
    * (tar_header(size=b"%011o\0" % 6, kind=b"x") + b"6 a=b\n".ljust(512, b"\0")),
    "a name in an extended header that has no end": tar_header(size=number(1 << 60), kind=b"x"),
    "a hole of 2**60 bytes": tar_header(
        kind=b"S", end=number(1 << 60) + bytes(17)
    ) + bytes(1024),
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzipped"])
def test_archives_that_want_memory_or_time(tmp_path, name, pack):
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(pack(TARS[name]))
    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises(DatasetError, match=r"cifar-100-binary\.tar\.gz: "):
            load("cifar100", root=tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_every_tar_format_are_read(tmp_path, format):
    """With a path that needs GNU's or POSIX's extended headers where the format has them."""
    folder = "a/" * 30 if format == tarfile.USTAR_FORMAT else "a" * 150 + "/ü/"
    with tarfile.open(tmp_path / "cifar-100-binary.tar", "w", format=format) as archive:
        for name, (data, _, _) in cifar_files(100, "binary").items():
            info = tarfile.TarInfo(f"{folder}{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    train, test = load("cifar100", root=tmp_path)
    assert len(train) == 4 and len(test) == 5


# ----------------------------------------------------------------------------- EMNIST and the list


def tiny_emnist(folder, split, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    upright = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for prefix in ("train", "test"):
        for name, array in (
            ("images-idx3", upright.transpose(0, 2, 1)), ("labels-idx1", np.arange(3) + first),
        ):  # fmt: skip
            data = gzip.compress(idx(np.ascontiguousarray(array, np.uint8)))
            (folder / f"emnist-{split}-{prefix}-{name}-ubyte.gz").write_bytes(data)
    return upright


@pytest.mark.parametrize(
    ("split", "first", "classes"),
    [
        ("balanced", 0, 47), ("byclass", 0, 62), ("bymerge", 0, 47), ("digits", 0, 10),
        ("letters", 1, 26), ("mnist", 0, 10),
    ],
)  # fmt: skip
def test_emnist_is_upright_and_counts_from_0(
    tmp_path, monkeypatch, nothing_installed, split, first, classes
):
    monkeypatch.setenv("TINYBNN_DATA", str(tmp_path))
    name = f"emnist-{split}"
    for folder in (tmp_path / "emnist" / "gzip", tmp_path / "emnist", tmp_path / name):
        upright = tiny_emnist(folder, split, first)
        train, test = load(name)
        assert (train.images[:, 0] == upright).all() and (test.images[:, 0] == upright).all()
        assert train.labels.tolist() == [0, 1, 2]
        assert len(train.classes) == len(set(train.classes)) == classes
        assert path(name) == (tmp_path / name if folder.name == name else tmp_path / "emnist")
    assert load(name, root=tmp_path / "emnist")[0].labels.tolist() == [0, 1, 2]
    if split == "letters":
        assert train.classes[0] == "A"
        tiny_emnist(tmp_path / name, split, first=0)
        with pytest.raises(DatasetError, match=r"labels must be 0 to 25 .* got -1 to 1"):
            load(name)


def test_kmnist_has_the_names_of_mnist(tmp_path):
    tiny_mnist(tmp_path)
    train, _ = load("kmnist", root=tmp_path)
    assert (
        train.name == "kmnist" and train.classes[0] == "o" and train.images.shape[1:] == (1, 28, 28)
    )


def test_the_list_of_datasets(tmp_path, monkeypatch, nothing_installed):
    tiny_mnist(tmp_path / "cache" / "tinybnn" / "mnist")
    rows = {row.name: row for row in available()}
    assert rows.keys() == SOURCES.keys()
    assert rows["digits"].folder is not None and rows["digits"].size is None
    assert rows["mnist"].folder == tmp_path / "cache" / "tinybnn" / "mnist"
    assert rows["mnist"].size == 11_594_722 and rows["mnist"].images == (60_000, 10_000)
    assert rows["cifar10"].folder is None and rows["cifar10"].classes == 10
    assert all(row.licence and row.origin.startswith("http") for row in rows.values())
    assert all(row.folder is None for row in available(root=tmp_path))


# ----------------------------------------------------------------------------- folders of pictures


def save_picture(path, pixels, **options):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def pictures(height=6, width=5, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_from_folder(tmp_path):
    for i, name in enumerate(["b/2.png", "b/10.png", "a/x.BMP", "c/y.ppm", "c/z.gif"]):
        save_picture(tmp_path / name, pictures(seed=i))
    (tmp_path / "b" / "notes.txt").write_text("not a picture")
    (tmp_path / "b" / ".hidden.png").write_text("not a picture")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.png").write_text("not in a folder of a class")
    data = from_folder(tmp_path)
    assert data.classes == ("a", "b", "c") and data.labels.tolist() == [0, 1, 1, 2, 2]
    assert data.images.shape == (5, 3, 6, 5) and data.images.dtype == np.uint8
    assert data.maximum == 255 and data.name == tmp_path.name
    for row, seed in enumerate([2, 1, 0, 3]):  # by class, then by name: "10.png" < "2.png"
        assert (data.images[row].transpose(1, 2, 0) == pictures(seed=seed)).all()
    some = from_folder(str(tmp_path), classes=["c", "a"])
    assert some.classes == ("c", "a") and some.labels.tolist() == [0, 0, 1]
    grey = from_folder(tmp_path, mode="L")
    assert grey.images.shape == (5, 1, 6, 5)
    for x, _ in DataLoader(data, 2):
        assert x.dtype == np.float32


def test_from_folder_scales(tmp_path):
    from PIL import Image

    save_picture(tmp_path / "a" / "1.png", np.full((40, 30, 3), 200, np.uint8))
    save_picture(tmp_path / "a" / "2.jpg", np.full((7, 9), 100, np.uint8))
    save_picture(tmp_path / "a" / "3.png", pictures(8, 12))
    data = from_folder(tmp_path, size=(8, 12))
    assert data.images.shape == (3, 3, 8, 12)
    assert (data.images[0] == 200).all() and (data.images[1] == 100).all()
    assert (data.images[2].transpose(1, 2, 0) == pictures(8, 12)).all()
    smaller = from_folder(tmp_path, size=4)
    expected = Image.fromarray(pictures(8, 12)).resize((4, 4), Image.Resampling.BILINEAR)
    assert (smaller.images[2].transpose(1, 2, 0) == np.asarray(expected)).all()


def test_from_folder_turns_photographs_upright(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    save_picture(tmp_path / "a" / "1.png", pictures(6, 4), exif=exif)
    data = from_folder(tmp_path)
    assert data.images.shape == (1, 3, 4, 6)
    assert (data.images[0].transpose(1, 2, 0) == np.rot90(pictures(6, 4), -1)).all()


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        from_folder(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="no folders of classes"):
        from_folder(tmp_path)
    save_picture(tmp_path / "a" / "1.png", pictures(6, 5))
    save_picture(tmp_path / "b" / "1.png", pictures(6, 5))
    with pytest.raises(DatasetError, match="no folder for the class 'c', 'd'"):
        from_folder(tmp_path, classes=["a", "c", "d"])
    (tmp_path / "c").mkdir()
    with pytest.raises(DatasetError, match=r"c: no pictures \(\.bmp"):
        from_folder(tmp_path)
    for wrong in ("ab", [1], [b"a"]):
        with pytest.raises(TypeError, match="classes must be a sequence of names"):
            from_folder(tmp_path, classes=wrong)
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="must be different names"):
            from_folder(tmp_path, classes=wrong)
    with pytest.raises(ValueError, match="mode must be 'RGB' or 'L', got 'RGBA'"):
        from_folder(tmp_path, mode="RGBA")
    with pytest.raises(ValueError, match="from_folder: size must be >= 1"):
        from_folder(tmp_path, size=0)


def test_pictures_that_are_refused(tmp_path):
    save_picture(tmp_path / "a" / "1.png", pictures(6, 5))
    bad = tmp_path / "a" / "2.png"

    def refused(message, **options):
        with pytest.raises(DatasetError, match=message) as caught:
            from_folder(tmp_path, **options)
        assert str(caught.value).startswith(f"{bad}: ")

    save_picture(bad, pictures(6, 4))
    refused(r"4×6 pixels, but .*1\.png has 5×6; pass size to scale them")
    bad.write_bytes(b"")
    refused("not a readable picture")
    bad.write_bytes((tmp_path / "a" / "1.png").read_bytes()[:-30])
    refused("not a readable picture")
    bad.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\nshowpage\n")
    refused("not a readable picture")  # other tools start a program to draw it
    save_picture(bad, pictures(6, 5), format="PCX")
    refused("not a readable picture")  # nor by any decoder but the usual ones
    save_picture(bad, pictures(6, 5).astype(np.uint16)[:, :, 0] * 257)
    refused("has I;16 pixels; convert it to 8 bits a channel")
    save_picture(bad, np.dstack([pictures(6, 5), np.full((6, 5), 254, np.uint8)]))
    refused("has transparent pixels")
    save_picture(bad, np.dstack([pictures(6, 5), np.full((6, 5), 255, np.uint8)]))
    assert len(from_folder(tmp_path)) == 2


def png(width, height, data=b""):
    """A grey PNG file whose header may lie."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [None, (8, 8)])
@pytest.mark.parametrize("side", [5_000, 9_000, 12_000, 2**31 - 1])
def test_pictures_that_would_fill_the_memory(tmp_path, side, size):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png(side, side))
    tracemalloc.start()
    try:
        with pytest.raises(
            DatasetError, match=r"1\.png: (the picture unpacks to|too large a pict|not)"
        ):
            from_folder(tmp_path, size=size)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_a_made_up_length_takes_no_memory(tmp_path):
    (tmp_path / "a").mkdir()
    data = png(6, 5, bytes(35))
    at = data.index(b"IDAT") - 4
    (tmp_path / "a" / "1.png").write_bytes(data[:at] + struct.pack(">I", 10**9) + data[at + 4 :])
    tracemalloc.start()
    try:
        assert len(from_folder(tmp_path)) == 1  # the decoder finds all pixels
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_a_folder_that_would_fill_the_memory(tmp_path):
    (tmp_path / "a").mkdir()
    one = png(2000, 2000, bytes(2001 * 2000))
    for i in range(50):
        (tmp_path / "a" / f"{i}.png").write_bytes(one)
    with pytest.raises(ValueError, match="unpacks to 600,000,000 bytes from"):
        from_folder(tmp_path)


# ---------------------------------------------------------------------- other data than pictures


class Squares:
    """A data set of a user's own: __len__ and __getitem__, nothing more."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        assert type(i) is int
        return self.x[i], self.y[i]


@pytest.mark.parametrize("kind", ["TensorDataset", "own class", "list of pairs"])
@pytest.mark.parametrize(
    "shape", [(10, 3), (10,), (10, 2, 5, 4), (10, 7, 2)], ids=["table", "numbers", "images", "3-d"]
)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "?"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_loaders_of_any_values(kind, shape, dtype, shuffle):
    rng = np.random.default_rng(0)
    x = (10 * rng.normal(size=shape)).astype(dtype)  # standardised, negative, whatever
    y = np.arange(10) % 4
    data = {
        "TensorDataset": TensorDataset(x, y),
        "own class": Squares(x, y),
        "list of pairs": list(zip(x, y, strict=True)),
    }[kind]
    loader = DataLoader(data, 4, shuffle, rng=3)
    assert len(loader) == 3
    order = np.random.default_rng(3).permutation(10) if shuffle else np.arange(10)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    for batch, labels in batches:
        assert batch.dtype == np.float32 and labels.dtype == np.int64
        if batch.ndim == 4:
            assert batch.transpose(0, 2, 3, 1).flags.c_contiguous
        batch[...] = 0  # the data set keeps its own
    found = np.concatenate([batch for batch, _ in loader]) if not shuffle else None
    if not shuffle:
        np.testing.assert_array_equal(found, x.astype(np.float32))
    np.testing.assert_array_equal(np.concatenate([b for _, b in batches]), y[order])


def test_targets_that_are_no_classes():
    x, y = np.zeros((4, 2)), np.array([[0.5, 1.0]] * 4)
    for data in (TensorDataset(x, y), Squares(x, y), Squares(x, [0.5] * 4)):
        _, targets = next(iter(DataLoader(data, 2)))
        assert targets.dtype == np.float32 and len(targets) == 2


def test_a_transform_of_other_data():
    data = TensorDataset(np.arange(6, dtype="u1").reshape(3, 2), np.arange(3))
    loader = DataLoader(data, 3, transform=lambda x, rng: x.astype(np.float32) / 2)
    np.testing.assert_array_equal(next(iter(loader))[0], [[0, 0.5], [1, 1.5], [2, 2.5]])
    with pytest.raises(ValueError, match=r"must return a float32 array \(3, ...\), got float64"):
        next(iter(DataLoader(data, 3, transform=lambda x, rng: x / 2)))


def test_pixels_are_not_scaled_unasked():
    data = TensorDataset(np.zeros((3, 1, 2, 2), "u1"), np.arange(3))
    with pytest.raises(ValueError, match=r"images \(3, 1, 2, 2\) of uint8 need a scale.*to_signed"):
        next(iter(DataLoader(data, 3)))
    x, _ = next(iter(DataLoader(data, 3, transform=to_signed(255))))
    assert np.all(x == -1)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda: np.zeros((2, 3)), TypeError, "expected a Dataset, .*got ndarray"),
        (lambda: {"x": 1}, TypeError, "got dict"), (lambda: "digits", TypeError, "got str"),
        (lambda: 3, TypeError, "got int"), (lambda: iter([]), TypeError, "got list_iterator"),
        (lambda: [np.zeros(3)], TypeError, r"list\[i\] must be a pair \(x, y\)"),
        (lambda: [(1, 2, 3)], TypeError, "must be a pair"),
        (lambda: [(np.zeros(2), 0), (np.zeros(3), 0)], ValueError, r"got \(2,\), \(3,\)"),
        (lambda: [("a", 0)], TypeError, "x must hold numbers, got <U1"),
        (lambda: TensorDataset(np.zeros(3), np.zeros(2)), ValueError, "one length, got"),
        (lambda: TensorDataset(1.0, 2.0), ValueError, "one length"),
        (lambda: TensorDataset([1j], [0]), TypeError, "x must hold numbers, got complex"),
    ],
    ids=range(12),
)  # fmt: skip
def test_data_that_no_loader_takes(data, error, message):
    with pytest.raises(error, match=message):
        next(iter(DataLoader(data(), 4)))


def test_values_that_are_no_pictures_are_sent_to_tensor_datasets():
    for images in (np.full((2, 4, 4), -0.5), np.zeros((2, 4))):
        with pytest.raises(ValueError, match=r"use TensorDataset\(x, y\)"):
            from_arrays(images, [0, 1])
    with pytest.raises(TypeError, match=r"int8 to int64.*astype.*TensorDataset\(x, y\)"):
        from_arrays(np.zeros((2, 4, 4)), [0.0, 1.0])
    column = from_arrays(np.zeros((2, 4, 4)), np.array([[0], [1]]))
    assert column.labels.tolist() == [0, 1]
