"""Datasets: IDX files, finding them, labelled images, and batches."""

import gzip
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinybnn.datasets import (
    SOURCES,
    DataLoader,
    Dataset,
    DatasetError,
    from_arrays,
    load,
    read_idx,
    search_folders,
    to_signed,
    to_unit,
)

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
    path = write(gzip.compress(idx(np.zeros(1 << 25, "u1"), (100,))))
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match="the file has more"):
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


def test_a_missing_idx_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_idx(tmp_path / "nothing")


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
    assert "fashion-mnist (missing t10k-labels-idx1-ubyte[.gz])" in text
    assert "(none of its files)" in text and "(no such folder)" in text
    assert "`tinybnn data fetch fashion-mnist`" in text and "TINYBNN_DATA" in text


def test_the_default_cache_and_an_empty_variable(monkeypatch):
    monkeypatch.setenv("TINYBNN_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/student")
    assert search_folders("mnist")[0] == Path("/home/student/.cache/tinybnn/mnist")
    assert search_folders("mnist", root="~/data")[1] == Path("/home/student/data/mnist")


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown dataset 'MNIST'; known are digits, mnist, fash"):
        load("MNIST")
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
        "print([m for m in sys.modules if m.split('.')[0] in ('numba', 'matplotlib')], "
        "sorted(m for m in sys.modules if m.startswith('tinybnn.')))"
    )
    package = Path(sys.modules["tinybnn"].__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", code, str(package)], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("[] ")
    modules = ["datasets", "datasets.idx", "datasets.loader", "storage"]
    assert run.stdout.strip() == f"[] {[f'tinybnn.{m}' for m in modules]}"


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
        (np.zeros((2, 4, 4), "u1"), [0.0, 0.0], {}, TypeError, "integers, got float64"),
        (np.zeros((2, 4, 4), "u1"), [[0], [0]], {}, ValueError, r"labels must be \(N,\)"),
        (np.zeros((2, 4, 4), "u1"), [0, 0, 0], {}, ValueError, "2 images need labels"),
        (np.zeros((2, 4, 4), "u1"), [0, -1], {}, ValueError, "got -1 to 0"),
        (np.zeros((2, 4, 4), "u1"), [0, 2], {"classes": "ab"}, ValueError, "0 to 1 for 2 classes"),
        (np.zeros((2, 4, 4), "u1"), [0, 0], {"classes": [1]}, TypeError, "tuple of names"),
        (np.zeros((2, 4, 4), "u1"), [0, 10**9], {}, ValueError, "is no label"),
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
    assert held_out(None) != held_out(None)


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
        ({"dataset": np.zeros((2, 1, 4, 4))}, TypeError, "expected a Dataset, got ndarray"),
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
