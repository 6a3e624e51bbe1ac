"""Files of arrays: round trips are exact; damaged, foreign or hostile files are refused."""

import errno
import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinybnn import storage
from tinybnn.storage import StorageError

KIND = {"kind": "test", "version": 3}
needs_locks = pytest.mark.skipif(storage.fcntl is None, reason="no locks on this system")

DTYPES = [
    np.dtype(letter + size)
    for letter, sizes in {"b": "1", "i": "1248", "u": "1248", "f": "248"}.items()
    for size in sizes
]
dtypes = st.sampled_from(DTYPES + [d.newbyteorder(">") for d in DTYPES])
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
names = st.text(min_size=1, max_size=40).filter(
    lambda n: (
        n.isprintable() and not set(n) & set("/\\") and n != "__header__" and not n.endswith(".npy")
    )
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False).filter(
        lambda x: abs(x) < 1e308
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@st.composite
def arrays(draw):
    array = draw(hnp.arrays(draw(dtypes), draw(shapes)))
    layout = draw(st.sampled_from(["C", "F", "reversed", "every second"]))
    if layout == "F":
        return np.asfortranarray(array)
    if array.ndim and layout == "reversed":
        return array[::-1]
    if array.ndim and layout == "every second":
        return array[..., ::2]
    return array


def small_file():
    content = {"a": np.arange(3, dtype=np.uint8), "b": np.float32(1.5).reshape(())}
    return storage.dumps(content, metadata={"note": "x"}, **KIND), content


def same(actual, expected):
    return actual.keys() == expected.keys() and all(
        actual[k].shape == expected[k].shape
        and actual[k].dtype == expected[k].dtype.newbyteorder("=")
        and actual[k].tobytes() == expected[k].astype(actual[k].dtype).tobytes()
        for k in expected
    )


# ------------------------------------------------------------------------------------- round trips


@given(st.dictionaries(names, arrays(), max_size=4), st.dictionaries(st.text(), json_values))
def test_round_trip(content, metadata):
    data = storage.dumps(content, metadata=metadata, **KIND)
    loaded, loaded_metadata = storage.loads(data, **KIND)
    assert same(loaded, content)
    assert loaded_metadata == metadata
    assert list(loaded) == sorted(content)
    for array in loaded.values():
        assert array.dtype.isnative and array.flags.c_contiguous and array.flags.writeable
    backwards = dict(reversed(content.items()))
    assert storage.dumps(backwards, metadata=metadata, **KIND) == data
    with np.load(io.BytesIO(data), allow_pickle=False) as opened:
        assert same({k: opened[k] for k in opened if k != "__header__"}, content)


def test_a_file_is_its_bytes_under_exactly_the_given_path(tmp_path):
    data, content = small_file()
    path = tmp_path / "model.tbnn"
    assert storage.save(path, content, metadata={"note": "x"}, **KIND) == len(data)
    assert os.listdir(tmp_path) == ["model.tbnn"]
    assert path.read_bytes() == data
    loaded, metadata = storage.load(str(path), **KIND)
    assert same(loaded, content) and metadata == {"note": "x"}
    assert storage.read_header(path) == {**KIND, "metadata": {"note": "x"}}


def test_the_bytes_of_version_1_stay_readable_and_the_same():
    data, _ = small_file()
    assert (len(data), zlib.crc32(data)) == (854, 475202945)


def test_a_zip_reader_finds_uncompressed_arrays_and_sound_checksums():
    with zipfile.ZipFile(io.BytesIO(small_file()[0])) as opened:
        assert opened.namelist() == ["__header__.npy", "a.npy", "b.npy"]
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}
        assert opened.testzip() is None


def test_numpy_scalars_are_arrays_and_tuples_become_lists():
    data = storage.dumps({"x": np.float64(2)}, metadata={"shape": (1, (2,))}, **KIND)
    loaded, metadata = storage.loads(data, **KIND)
    assert loaded["x"].shape == () and loaded["x"] == 2
    assert metadata == {"shape": [1, [2]]}


def test_an_empty_file_of_arrays():
    assert storage.loads(storage.dumps({}, **KIND), **KIND) == ({}, {})


# ------------------------------------------------------------------------- content that is refused


def structured():
    return np.zeros(2, [("a", "f4")])


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]), np.array(["a"]), np.array([b"a"]), np.zeros(2, complex),
        np.zeros(2, "M8[s]"), structured(), np.ma.masked_array([1.0], [True]), [1.0], 1.0, None,
    ],
    ids=lambda a: str(getattr(a, "dtype", type(a).__name__)),
)  # fmt: skip
def test_arrays_that_are_refused(array):
    with pytest.raises(StorageError, match="array 'x': "):
        storage.dumps({"x": array}, **KIND)


@pytest.mark.skipif(np.longdouble is np.float64, reason="long double is float64 here")
def test_long_double_is_refused():
    with pytest.raises(StorageError, match="cannot be stored"):
        storage.dumps({"x": np.zeros(2, np.longdouble)}, **KIND)


@pytest.mark.parametrize(
    "name", ["", "__header__", "a.npy", "../a", "a\\b", "a\0", "a\nb", "x" * 251, "\ud800", 3, None]
)
def test_names_that_are_refused(name):
    with pytest.raises(StorageError, match="cannot be used"):
        storage.dumps({name: np.zeros(1)}, **KIND)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": {"b": float("nan")}}, r"metadata\['a'\]\['b'\] is nan"),
        ({"a": [0, float("-inf")]}, r"metadata\['a'\]\[1\] is -inf"),
        ({"a": {1}}, "of type set"),
        ({"a": np.zeros(2)}, "of type ndarray"),
        ({"a": np.int64(1)}, "of type int64"),
        ({"a": b"x"}, "of type bytes"),
        ({1: "a"}, "string keys only"),
        ({"a": nested(100)}, "nested deeper"),
        ({"a": nested(100_000)}, "nested deeper"),
        ({"a": 10**5000}, "cannot be written as JSON"),
        ({"a": "x" * (1 << 24)}, "store large data as arrays"),
        ([1], "must be a mapping"),
    ],
    ids=range(12),
)
def test_metadata_that_is_refused(metadata, message):
    with pytest.raises(StorageError, match=message):
        storage.dumps({}, metadata=metadata, **KIND)


def test_circular_metadata_is_refused():
    circle = {}
    circle["a"] = circle
    with pytest.raises(StorageError, match="nested deeper"):
        storage.dumps({}, metadata=circle, **KIND)


@pytest.mark.parametrize("kind", ["", None, 3])
def test_kinds_that_are_refused(kind):
    with pytest.raises(StorageError, match="kind must be"):
        storage.dumps({}, kind=kind, version=1)


@pytest.mark.parametrize("version", [0, -1, 1.0, True, "1", None])
def test_versions_that_are_refused(version):
    with pytest.raises(StorageError, match="version must be"):
        storage.dumps({}, kind="test", version=version)


def test_arrays_must_be_a_mapping():
    with pytest.raises(StorageError, match="must map names"):
        storage.dumps([np.zeros(2)], **KIND)


def test_more_than_4_gib_is_refused(monkeypatch):
    monkeypatch.setattr(storage, "_MAX_SIZE", 1 << 20)  # in the test: 1 MiB
    storage.dumps({"x": np.zeros(1_000_000, np.uint8)}, **KIND)
    with pytest.raises(StorageError, match="at most 65,534 arrays and 4 GiB"):
        storage.dumps({"x": np.zeros(1 << 20, np.uint8)}, **KIND)


def test_too_many_arrays_are_refused():
    one = np.zeros(0, np.uint8)
    with pytest.raises(StorageError, match="at most 65,534 arrays and 4 GiB"):
        storage.dumps(dict.fromkeys(map(str, range(65_535)), one), **KIND)


# ------------------------------------------------------------------------------- damage is noticed


def test_every_flipped_bit_is_refused():
    data, _ = small_file()
    damaged = bytearray(data)
    for i in range(len(data)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged[i] ^= mask
            with pytest.raises(StorageError):
                storage.loads(damaged, **KIND)
            damaged[i] = data[i]


def test_every_truncation_and_extension_is_refused():
    data, _ = small_file()
    for length in range(len(data)):
        with pytest.raises(StorageError):
            storage.loads(data[:length], **KIND)
    for tail in (b"\0", b"PK\x03\x04", data):
        with pytest.raises(StorageError):
            storage.loads(data + tail, **KIND)


@given(st.binary(max_size=300), st.integers(0, 700), st.booleans())
def test_random_bytes_are_refused(noise, cut, before):
    data, _ = small_file()
    for junk in (noise, b"PK\x03\x04" + noise, data[:cut] + noise if before else noise + data):
        if junk != data:
            with pytest.raises(StorageError):
                storage.loads(junk, **KIND)


@given(st.data())
def test_deleted_swapped_and_repeated_parts_are_refused(draw):
    data, _ = small_file()
    i, j, k = sorted(draw.draw(st.tuples(*[st.integers(0, len(data))] * 3)))
    for junk in (data[:i] + data[j:], data[:i] + data[j:k] + data[i:j] + data[k:], data[:j] * 2):
        if junk != data:
            with pytest.raises(StorageError):
                storage.loads(junk, **KIND)


def test_errors_name_the_file_and_what_is_wrong(tmp_path):
    data, content = small_file()
    path = tmp_path / "x.tbnn"

    def message(junk, kind="test", version=3):
        path.write_bytes(junk)
        with pytest.raises(StorageError) as caught:
            storage.load(path, kind=kind, version=version)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        return text.removeprefix(f"{path}: ")

    assert message(data, kind="other") == "a file of kind 'test', expected 'other'"
    assert message(data, version=2).startswith("written by a newer tinybnn: version 3 of 'test'")
    assert message(b"") == "not a tinybnn file: it is empty"
    assert message(b"hello") == "not a tinybnn file"
    assert "cut off" in message(data[: len(data) // 2])
    at = data.index(bytes([0, 1, 2]), 400)
    assert "CRC-32" in message(data[:at] + b"\1" + data[at + 1 :])

    foreign = io.BytesIO()
    np.savez(foreign, **content)
    assert message(foreign.getvalue()) == "not a tinybnn file: a zip without tinybnn's header"
    with pytest.raises(StorageError, match=r"x\.tbnn: not a tinybnn file"):
        storage.read_header(path)


def test_older_versions_are_read():
    data = storage.dumps({}, kind="test", version=1)
    assert storage.loads(data, kind="test", version=5) == ({}, {})


def test_missing_files_folders_and_pipes(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        storage.load(tmp_path / "nothing", **KIND)
    with pytest.raises(StorageError, match="not a regular file"):
        storage.load(tmp_path, **KIND)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(StorageError, match="not a regular file"):
            storage.load(tmp_path / "pipe", **KIND)


# ------------------------------------------------------- files that somebody made to do harm: every
# checksum in them is right, so only the check at hand can refuse them.


def frame(name, npy, size=None, method=0):
    """A member as (entry, bytes), with a right CRC; `size` is what it claims."""
    size = len(npy) if size is None else size
    entry = storage._Entry(f"{name}.npy".encode(), zlib.crc32(npy), size, 0)
    header = bytearray(storage._local_header(entry))
    header[8:10] = struct.pack("<H", method)
    return entry, bytes(header) + npy


def npy(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def described(text, body=b""):
    """A .npy file with any header description."""
    text += " " * (-(11 + len(text)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1") + body


def forge(*members, header=None, digest_of=None):
    """A whole file of (entry, bytes) members after a right (or the given) header."""
    if header is None:
        fields = {
            "format": "tinybnn", "format_version": 1, "kind": "test", "version": 3, "metadata": {},
        }  # fmt: skip
        digest = storage._digest(fields, digest_of or {})
        header = storage._json({**fields, "sha256": digest})
    framed = [frame("__header__", npy(np.frombuffer(header, np.uint8))), *members]
    entries, data = [], b""
    for entry, chunk in framed:
        entries.append(entry._replace(offset=len(data)))
        data += chunk
    return data + storage._directory(entries)


def refused(data, message):
    tracemalloc.start()
    try:
        with pytest.raises(StorageError, match=message):
            storage.loads(data, **KIND)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_the_forger_can_make_a_good_file():
    x = np.arange(4, dtype="<f4")
    loaded, _ = storage.loads(forge(frame("x", npy(x)), digest_of={"x": x}), **KIND)
    assert same(loaded, {"x": x})
    refused(forge(frame("x", npy(x)), digest_of={"x": x + 1}), "SHA-256")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(1000000000000,)", "does not fill"),
        ("(4294967296, 4294967296)", "does not fill"),  # 2**64 wraps around to 0
        ("(0, 4294967296, 4294967296)", "impossible"),
        ("(9999999999999999999, 0)", "impossible"),
        ("(" + "1, " * 64 + "1)", "impossible"),
        ("(-1,)", "description"),
        ("(1)", "description"),
        ("(01,)", "description"),
        ("(1, )", "description"),
        ("(" + "9" * 6000 + ",)", "description"),
        ("(__import__('os').getcwd(),)", "description"),
        ("()", "does not fill"),
    ],
    ids=range(12),
)
def test_shapes_that_lie(shape, message):
    body = b"\0" * 4 if "1, " * 64 in shape else b""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    refused(forge(frame("x", described(text, body))), message)


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '|O8', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '\xff\xff1', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }",
        "{'shape': (1,), 'fortran_order': False, 'descr': '<f4'}",
        "[" * 5000,
        "",
    ],
    ids=range(10),
)
def test_descriptions_that_are_refused(text):
    refused(forge(frame("x", described(text, b"\0" * 4))), "description")


def test_a_pickle_is_not_executed(tmp_path):
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    hostile = npy(np.array([Payload()], dtype=object))
    assert b"executed" in hostile
    refused(forge(frame("x", hostile)), "description")
    pickled = pickle.dumps(Payload())
    refused(pickled, "not a tinybnn file")
    refused(forge(header=pickled), "header")
    refused(forge(frame("x", pickled)), "description")
    assert not marker.exists()


def test_members_that_claim_too_much_overlap_or_come_twice():
    good = npy(np.arange(4, dtype="<f4"))
    refused(forge(frame("x", good, size=1 << 31)), "cut off")
    entry, chunk = frame("x", good)
    refused(forge((entry, chunk), (entry, chunk)), "unexpected member 'x'")
    refused(forge((entry, chunk), (entry, b"")), "directory")  # two entries for one place
    for name in ("__header__", "../x", "x.npy", "", "\x07"):
        refused(forge(frame(name, good)), "cannot be used|unexpected member")
    nameless = storage._Entry(b"x.txt", zlib.crc32(good), len(good), 0)
    refused(forge((nameless, storage._local_header(nameless) + good)), "unexpected member")
    nameless = storage._Entry(b"\xff.npy", zlib.crc32(good), len(good), 0)
    refused(forge((nameless, storage._local_header(nameless) + good)), "UTF-8")


def test_compressed_members_are_refused(tmp_path):
    refused(forge(frame("x", zlib.compress(bytes(1 << 20)), method=8)), "compressed")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("__header__.npy", bytes(1 << 24))
    refused(bomb.getvalue(), "compressed")


def header_with(**changes):
    fields = {
        "format": "tinybnn", "format_version": 1, "kind": "test", "version": 3, "metadata": {},
        "sha256": "0",
    }  # fmt: skip
    return storage._json({**fields, **changes})


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (header_with(), "SHA-256"),
        (header_with(format_version=2, new=1), "written by a newer tinybnn: format version 2"),
        (header_with(format_version=0), "header"),
        (header_with(format_version=1.0), "header"),
        (header_with(format="other"), "header"),
        (header_with(new=1), "header"),
        (header_with(version="3"), "header"),
        (header_with(version=True), "header"),
        (header_with(metadata=[]), "header"),
        (header_with(kind=None), "of kind None"),
        (header_with(sha256=None), "SHA-256"),
        (header_with().replace(b"{}", b'{"a":NaN}'), "header"),
        (header_with().replace(b"{}", b'{"a":1e999}'), "header"),
        (header_with().replace(b"{}", b'{"a":1,"a":2}'), "header"),
        (header_with().replace(b"{}", b"{ }"), "header"),
        (header_with().replace(b"{}", b"[" * 200_000), "header"),
        (header_with().replace(b"{}", b"[" * 50_000 + b"]" * 50_000), "header"),
        (header_with().replace(b"{}", b'{"a":' + b"9" * 5000 + b"}"), "header"),
        (b"[]", "header"),
        (b"", "header"),
        (b"\xff\xfe", "header"),
    ],
    ids=range(21),
)
def test_headers_that_are_refused(header, message):
    refused(forge(header=header), message)


def test_a_header_member_that_is_no_bytes():
    for array in (np.zeros(3, "<f4"), np.zeros((2, 2), "u1"), np.zeros((), "u1")):
        refused(frame("__header__", npy(array))[1], "header is not an array of bytes")
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({(1 << 24) + 1},), }}"
    refused(frame("__header__", described(text, bytes((1 << 24) + 1)))[1], "header is not an array")


# ------------------------------------------------------------------------------------ atomic writes


def files(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


def break_fsync(monkeypatch):
    def fail(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


def break_replace(monkeypatch):
    def fail(source, target):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), source, None, target)

    monkeypatch.setattr(os, "replace", fail)


@pytest.mark.parametrize(
    ("breakage", "error"), [(break_fsync, OSError), (break_replace, PermissionError)]
)
@pytest.mark.parametrize("old", [None, b"old content"])
def test_a_failing_write_keeps_the_old_file(tmp_path, monkeypatch, breakage, error, old):
    path = tmp_path / "x.tbnn"
    if old is not None:
        path.write_bytes(old)
    before = files(tmp_path)
    breakage(monkeypatch)
    with pytest.raises(error, match=r"cannot write the file .*x\.tbnn"):
        storage.save(path, {"x": np.zeros(1000)}, **KIND)
    assert files(tmp_path) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_stops_in_the_middle_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "x"
    path.write_bytes(b"old content")

    def writer(file):
        file.write(b"half")
        file.flush()
        raise error

    with pytest.raises(error):
        storage.write_atomic(path, writer)
    assert files(tmp_path) == {"x": b"old content"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old content")

    def writer(file):
        with open("/dev/full", "wb") as full:
            full.write(bytes(100_000))

    with pytest.raises(OSError, match="No space left") as caught:
        storage.write_atomic(path, writer)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert files(tmp_path) == {"x": b"old content"}


def test_paths_that_cannot_be_written(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="file/x"):
        storage.save(blocker / "x", {}, **KIND)
    with pytest.raises(FileNotFoundError, match="missing/x"):
        storage.save(tmp_path / "missing" / "x", {}, **KIND)
    with pytest.raises(IsADirectoryError, match="cannot write"):
        storage.save(tmp_path, {}, **KIND)
    if os.name == "posix":
        with pytest.raises(OSError, match=r"not a regular file.*/dev/null"):
            storage.write_atomic("/dev/null", b"")
    assert files(tmp_path) == {"file": b""}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everything")
def test_read_only_files_stay(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="cannot write"):
        storage.write_atomic(path, b"new")
    assert files(tmp_path) == {"x": b"old"}


def test_write_atomic_takes_bytes_and_writers_and_keeps_links_and_modes(tmp_path):
    path, link = tmp_path / "x", tmp_path / "link"
    assert storage.write_atomic(path, b"one") == 3
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode
    if os.name == "posix":
        path.chmod(0o600)
    link.symlink_to(path)
    assert storage.write_atomic(link, lambda file: file.write(b"two!")) == 4
    assert link.is_symlink() and path.read_bytes() == b"two!"
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(TypeError):
        storage.write_atomic(path, "text")
    assert path.read_bytes() == b"two!" and len(files(tmp_path)) == 3


# ------------------------------------------------------------------------- writers that were killed

LEFTOVER = ".tinybnn-0123456789abcdef.tmp"

# Writes a file and stops after the first half of the write: killed there, or until told.
HALF = """
import os, signal, sys
from tinybnn import storage

def content(file):
    file.write(b"first half, ")
    file.flush()
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("half", flush=True)
    sys.stdin.readline()
    file.write(b"second half")

storage.write_atomic(sys.argv[1], content)
"""


def half_written(path, how):
    """Start a process that writes `path`; return when half is written."""
    process = subprocess.Popen(
        [sys.executable, "-c", HALF, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


@needs_locks
@pytest.mark.parametrize("next_file", ["x", "another"])
def test_the_next_write_removes_what_a_killed_writer_left(tmp_path, next_file):
    process = half_written(tmp_path / "x", "killed")
    process.communicate(timeout=60)
    (left,) = files(tmp_path).values()
    assert process.returncode == -signal.SIGKILL and left == b"first half, "
    storage.write_atomic(tmp_path / next_file, b"new")
    assert files(tmp_path) == {next_file: b"new"}


@needs_locks
def test_a_living_writer_keeps_its_file(tmp_path):
    path, process = tmp_path / "x", half_written(tmp_path / "x", "waits")
    try:
        storage.write_atomic(path, b"meanwhile")
        assert path.read_bytes() == b"meanwhile" and len(files(tmp_path)) == 2

        def content(file):  # the same within a process: locks belong to open files
            storage.write_atomic(path, b"inner")
            file.write(b"outer")

        storage.write_atomic(path, content)
        assert path.read_bytes() == b"outer" and len(files(tmp_path)) == 2
    finally:
        process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    assert files(tmp_path) == {"x": b"first half, second half"}


@needs_locks
def test_only_abandoned_temporary_files_are_removed(tmp_path, monkeypatch):
    others = {"." + LEFTOVER, ".tinybnn-x.tmp", LEFTOVER + "x", "tinybnn-0123456789abcdef.tmp"}
    for name in others:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "aim").write_bytes(b"")
    (tmp_path / ".tinybnn-1111111111111111.tmp").symlink_to(tmp_path / "aim")
    (tmp_path / ".tinybnn-2222222222222222.tmp").mkdir()
    kept = {*others, "aim", ".tinybnn-1111111111111111.tmp", ".tinybnn-2222222222222222.tmp"}
    (tmp_path / LEFTOVER).write_bytes(b"half")
    with monkeypatch.context() as patch:  # without locks this is unknown: it stays
        patch.setattr(storage.fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "no locks")))
        storage.write_atomic(tmp_path / "x", b"1")
        assert set(os.listdir(tmp_path)) == {*kept, LEFTOVER, "x"}
    storage.write_atomic(tmp_path / "x", b"2")
    assert set(os.listdir(tmp_path)) == {*kept, "x"} and (tmp_path / "x").read_bytes() == b"2"


@needs_locks
def test_a_file_that_vanishes_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    """Another writer's clean-up takes a file without a lock for a leftover."""
    flock, seen = storage.fcntl.flock, []

    def late(file, operation):
        seen.append(file.name)
        if len(seen) == 1:
            storage._remove_leftovers(tmp_path)  # which locks the file, too
        return flock(file, operation)

    monkeypatch.setattr(storage.fcntl, "flock", late)
    storage.write_atomic(tmp_path / "x", b"new")
    assert len(set(seen)) == 2 and files(tmp_path) == {"x": b"new"}


def test_locks(tmp_path):
    path = tmp_path / "x"
    with open(path, "ab") as one, open(path, "ab") as two:
        assert storage.try_lock(one) in (True, None)
        if storage.fcntl is not None:
            assert storage.try_lock(two) is False
        one.close()
        assert storage.try_lock(two) in (True, None)
        if os.name == "posix":
            path.unlink()
            assert storage.try_lock(two) is False
            path.write_bytes(b"")  # another file under the same path
            assert storage.try_lock(two) is False


# File sizes are limited; the signal for exceeding the limit is ignored, as Python does.
LIMITED = """
import resource, sys
from tinybnn import storage

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    storage.write_atomic(sys.argv[1], bytes(200_000))
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_a_write_that_ends_at_a_limit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old content")
    (tmp_path / LEFTOVER).write_bytes(b"half")  # removed first: on a full disk its space is needed
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "" and "cannot write the file (File too large)" in done.stdout
    assert str(path) in done.stdout and files(tmp_path) == {"x": b"old content"}
