"""Hostile files: for any bytes, a reader gives a result or a ValueError.

Never a crash, a hang, memory beyond ten times the file (and a constant that stands beside each
test), or anything executed. Valid files are changed at random; where a checksum would refuse every
change, it is made right again behind the change. `HYPOTHESIS_PROFILE=thorough` tries 10,000
examples a test. How many were tried is printed at the end.
"""

import collections
import contextlib
import copy
import gzip
import io
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinybnn import deploy, nn, storage
from tinybnn.datasets import from_folder, load, read_idx
from tinybnn.datasets.cifar import parse_python
from tinybnn.datasets.pickled import read_pickle
from tinybnn.deploy import PackedModel

fuzz = settings(max_examples=max(150, settings.default.max_examples))
COUNTS = collections.Counter()  # (test, outcome) -> examples


class Report:
    """Prints at the end how many examples each reader got, and the outcomes."""

    def pytest_terminal_summary(self, terminalreporter):
        rows = collections.defaultdict(list)
        for (name, outcome), count in sorted(COUNTS.items()):
            rows[name].append(f"{count:,} {outcome}")
        terminalreporter.section("hostile files")
        for name, parts in rows.items():
            terminalreporter.write_line(f"{name}: {', '.join(parts)}")


@pytest.fixture(scope="module", autouse=True)
def report(request):
    if not request.config.pluginmanager.has_plugin("hostile files"):
        request.config.pluginmanager.register(Report(), "hostile files")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# ------------------------------------------------------------------------------------- the watchman

_FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
    "subprocess.Popen", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "socket.connect",
    "os.remove", "os.rename", "os.mkdir", "os.chmod", "shutil.rmtree", "webbrowser.open",
)  # fmt: skip
_events = None  # a list during the watch


def _audit(event, arguments):
    if _events is None:
        return
    if event in _FORBIDDEN:
        _events.append(event)
    elif event == "open":
        _, mode, flags = arguments
        if (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            _events.append(f"open {arguments}")


sys.addaudithook(_audit)


class Hang(BaseException):
    """Raised if a reader takes too long; no `except Exception` catches it."""


def _too_long(number, frame):
    raise Hang


@contextlib.contextmanager
def watched(name, size, constant, seconds=10):
    """Fail if a reader of `size` bytes misbehaves; count the outcomes."""
    global _events
    alarm = hasattr(signal, "setitimer")
    if alarm:
        old = signal.signal(signal.SIGALRM, _too_long)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    _events = []
    tracemalloc.start()
    try:
        yield
        outcome = "read"
    except ValueError as error:  # DatasetError and StorageError are kinds of it
        if type(error).__name__ not in ("DatasetError", "StorageError"):
            raise
        outcome = "refused"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        events, _events = _events, None
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
    assert not events
    assert peak <= 10 * size + constant, f"{peak:,} bytes of memory for a file of {size:,}"
    COUNTS[name, outcome] += 1


# -------------------------------------------------------------------------------------- mutations

_NUMBERS = [0, 1, 2, 7, 8, 9, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
changes = st.lists(
    st.tuples(
        st.sampled_from(
            ["bit", "byte", "number", "delete", "repeat", "insert", "cut", "zero", "swap"]
        ),
        st.integers(0, 2**20),
        st.integers(0, 2**16),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def changed(data, steps):
    """The bytes with some damage."""
    data = bytearray(data)
    for kind, place, amount, raw in steps:
        at = place % (len(data) + 1)
        length = 1 + amount % 40
        if kind == "bit" and at < len(data):
            data[at] ^= 1 << amount % 8
        elif kind == "byte" and at < len(data):
            data[at] = raw[0]
        elif kind == "number":
            number = _NUMBERS[amount % len(_NUMBERS)]
            data[at : at + 4] = number.to_bytes(4, "big" if amount % 2 else "little")
        elif kind == "delete":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * (1 + amount % 7)
        elif kind == "insert":
            data[at:at] = raw
        elif kind == "cut":
            del data[at:]
        elif kind == "zero":
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == "swap":
            data[at : at + 2 * length] = (
                data[at + length : at + 2 * length] + data[at : at + length]
            )
    return bytes(data)


# -------------------------------------------------------------------------------------------- IDX


def idx(shape, code=8, body=None):
    size = {8: 1, 9: 1, 11: 2, 12: 4, 13: 4, 14: 8}.get(code, 1)
    if body is None:
        body = np.random.default_rng(0).bytes(int(np.prod(shape)) * size)
    return struct.pack(f">4B{len(shape)}I", 0, 0, code, len(shape), *shape) + body


@fuzz
@given(st.sampled_from([8, 9, 11, 12, 13, 14]), changes, st.sampled_from(["", "behind", "before"]))
def test_idx(folder, code, steps, zipped):
    """A gzipped file may take 16 MiB more, so that plain drawings can be stored; and a buffer."""
    data = idx((7, 5, 3), code)
    if zipped == "before":
        data = gzip.compress(data, mtime=0)
    data = changed(data, steps)
    if zipped == "behind":
        data = gzip.compress(data, mtime=0)
    path = folder / "idx"
    path.write_bytes(data)
    name = f"IDX, gzipped {zipped}" if zipped else "IDX"
    with watched(name, len(data), 18 << 20 if zipped else 1 << 18):
        read_idx(path)


@fuzz
@given(
    st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 20), min_size=0, max_size=70),
    st.integers(0, 255) | st.sampled_from([8, 14]),
    st.binary(max_size=300),
    st.booleans(),
)
def test_idx_headers(folder, shape, code, body, zipped):
    data = struct.pack(f">4B{len(shape)}I", 0, 0, code, len(shape), *shape) + body
    if zipped:
        data = gzip.compress(data, mtime=0)
    path = folder / "idx"
    path.write_bytes(data)
    name = "IDX headers, gzipped" if zipped else "IDX headers"
    with watched(name, len(data), 18 << 20 if zipped else 1 << 18):
        read_idx(path)


# ------------------------------------------------------------------------------------------ CIFAR


def cifar_batch(count, kind, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    coarse, fine = rng.integers(0, 20, count, np.uint8), rng.integers(0, 100, count, np.uint8)
    if kind == "binary":
        return np.hstack([coarse[:, None], fine[:, None], pixels]).tobytes()
    batch = {"data": pixels, "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
    return pickle.dumps(batch, kind)


BATCHES = {kind: [cifar_batch(2 + i, kind, i) for i in range(2)] for kind in ("binary", 2, 3, 4)}


@fuzz
@given(changes, st.sampled_from(["train.bin", "test.bin"]), st.integers(0, 70))
def test_cifar_binary(folder, steps, name, cut):
    root = folder / "binary"
    root.mkdir(exist_ok=True)
    files = dict(zip(("train.bin", "test.bin"), BATCHES["binary"], strict=True))
    files[name] = changed(files[name], steps)
    if cut > 20:  # otherwise nearly all are refused for their length
        whole = len(files[name]) // 3074
        files[name] = files[name][: 3074 * whole]
    for file, data in files.items():
        (root / file).write_bytes(data)
    with watched("CIFAR binary", sum(map(len, files.values())), 1 << 18):
        load("cifar100", root=root)


@fuzz
@given(changes, st.sampled_from([2, 3, 4]), st.booleans())
def test_cifar_pickles(folder, steps, protocol, near_the_start):
    root = folder / "python"
    root.mkdir(exist_ok=True)
    train, test = BATCHES[protocol]
    if near_the_start:  # where the instructions are; most of a file is pixels
        steps = [(kind, place % 400, amount, raw) for kind, place, amount, raw in steps]
    train = changed(train, steps)
    (root / "train").write_bytes(train)
    (root / "test").write_bytes(test)
    with watched("CIFAR python", len(train) + len(test), 1 << 18):
        load("cifar100", root=root)


_text = st.sampled_from([b"latin1", b"data", b"labels", b"u1", b"b", b"|", b"", b"\xff", b"x" * 99])
_names = st.sampled_from(
    [
        b"numpy.core.multiarray\n_reconstruct\n", b"numpy._core.multiarray\n_reconstruct\n",
        b"numpy\nndarray\n", b"numpy\ndtype\n", b"_codecs\nencode\n", b"os\nsystem\n",
        b"builtins\neval\n", b"numpy\nload\n",
    ]
)  # fmt: skip
_tokens = st.one_of(
    st.sampled_from(
        [bytes([c]) for c in b"(NK\x88\x89]})te0123.ausRb\x85\x86\x87\x93\x94\x81\x92"]
    ),
    st.integers(0, 255).map(lambda n: b"K" + bytes([n])),
    st.integers(0, 2**16 - 1).map(lambda n: b"M" + struct.pack("<H", n)),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: b"J" + struct.pack("<i", n)),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: b"\x8a\x08" + struct.pack("<q", n)),
    _text.map(lambda t: b"U" + bytes([len(t)]) + t),
    _text.map(lambda t: b"X" + struct.pack("<I", len(t)) + t),
    _text.map(lambda t: b"\x8e" + struct.pack("<Q", len(t)) + t),
    st.integers(0, 2**64 - 1).map(lambda n: b"\x8e" + struct.pack("<Q", n)),
    _names.map(lambda n: b"c" + n),
    st.integers(0, 5).map(lambda n: b"q" + bytes([n])),
    st.integers(0, 5).map(lambda n: b"h" + bytes([n])),
    st.integers(0, 2**32 - 1).map(lambda n: b"r" + struct.pack("<I", n)),
    st.just(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"),
    st.just(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"),
    st.just(b"(K\x01K\x01K\x03\x86cnumpy\ndtype\nU\x02u1\x85R\x89U\x03abctb"),
    st.just(b"c_codecs\nencode\nX\x02\x00\x00\x00\xc3\xa9U\x06latin1\x86R"),
)


@fuzz
@given(st.lists(_tokens, max_size=60), st.sampled_from([b".", b"", b"}U\x04data"]))
def test_pickle_programs(tokens, end):
    data = b"\x80\x02" + b"".join(tokens) + end
    with watched("pickle programs", len(data), 1 << 18):
        read_pickle(data)


def test_the_watchman_sees_a_pickle_that_is_executed(folder):
    with (
        pytest.raises(AssertionError, match=r"pickle\.find_class.*os\.system"),
        watched("itself", 100, 1 << 20),
    ):
        pickle.loads(b"cos\nsystem\n(S'true'\ntR.")
    with (
        pytest.raises(AssertionError, match="bytes of memory for a file of 100"),
        watched("itself", 100, 1 << 20),
    ):
        bytes(1 << 21)
    if hasattr(signal, "setitimer"):
        with pytest.raises(Hang), watched("itself", 100, 0, seconds=0.05):
            time.sleep(2)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w')",)


def _attacks(marker):
    code = f"open({str(marker)!r}, 'w')".encode()
    shell = f"touch {marker}".encode()
    short = lambda text: b"\x8c" + bytes([len(text)]) + text  # noqa: E731
    long = lambda text: b"X" + struct.pack("<I", len(text)) + text  # noqa: E731
    for protocol in range(6):
        yield f"reduce, protocol {protocol}", pickle.dumps(Payload(marker), protocol)
        array = np.array([Payload(marker)], dtype=object)
        yield f"object array, protocol {protocol}", pickle.dumps(array, protocol)
        yield f"in a dict, protocol {protocol}", pickle.dumps({"data": Payload(marker)}, protocol)
    for module in (b"os", b"posix", b"nt", b"subprocess"):
        name = b"call" if module == b"subprocess" else b"system"
        yield (
            f"global {module}",
            b"\x80\x02c" + module + b"\n" + name + b"\n(" + long(shell) + b"tR.",
        )
        yield (
            f"stack global {module}",
            b"\x80\x04" + short(module) + short(name) + b"\x93(" + long(shell) + b"tR.",
        )
        yield f"inst {module}", b"(" + long(shell) + b"i" + module + b"\n" + name + b"\n."
        yield f"obj {module}", b"(c" + module + b"\n" + name + b"\n" + long(shell) + b"o."
    for name in (
        b"eval",
        b"exec",
        b"getattr",
        b"__import__",
        b"open",
        b"compile",
        b"map",
        b"apply",
    ):
        for module in (b"builtins", b"__builtin__"):
            yield (
                f"{module}.{name}",
                b"\x80\x02c" + module + b"\n" + name + b"\n" + long(code) + b"\x85R.",
            )
    yield (
        "nested name",
        b"\x80\x04" + short(b"numpy") + short(b"os.system") + b"\x93" + long(shell) + b"\x85R.",
    )
    yield "name with a path", b"\x80\x04" + short(b"numpy") + short(b"dtype.__class__") + b"\x93."
    yield "newobj", b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85\x81."
    yield "newobj ex", b"\x80\x04cbuiltins\nbytearray\n)}\x92."
    yield "extension", b"\x80\x02\x82\x01."
    yield "persistent", b"Pmarker\n."
    yield "persistent on the stack", long(code) + b"Q."
    yield "numpy.load", b"\x80\x02cnumpy\nload\n" + long(b"/etc/passwd") + b"\x85R."
    yield (
        "numpy exec",
        b"\x80\x02cnumpy.testing._private.utils\nrunstring\n" + long(code) + b"}\x86R.",
    )
    rebuild = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
    array = rebuild + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    yield "reconstruct another type", rebuild + b"cbuiltins\nbytearray\nK\x00\x85U\x01b\x87R."
    yield (
        "reconstruct a huge array",
        rebuild + b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01b\x87R.",
    )
    yield "array without a state", array + b"."
    byte = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    objects = b"cnumpy\ndtype\nU\x01OK\x00K\x01\x87R"
    yield "objects", array + b"(K\x01K\x01\x85" + objects + b"\x89]K\x01atb."
    yield "objects in bytes", array + b"(K\x01K\x01\x85" + objects + b"\x89U\x08AAAAAAAAtb."
    yield (
        "a huge shape",
        array + b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86" + byte + b"\x89U\x01Atb.",
    )
    yield (
        "a negative shape",
        array + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86" + byte + b"\x89U\x01Atb.",
    )
    yield "a state for a name", b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb."
    yield (
        "bytes of a huge length",
        b"\x80\x02c_codecs\nencode\n\x8a\x06\0\0\0\0\0\x01U\x06latin1\x86R.",
    )
    yield "another encoding", b"\x80\x02c_codecs\nencode\nU\x01aU\x03hex\x86R."


def test_pickles_that_want_to_be_executed(tmp_path):
    marker = tmp_path / "executed"
    attacks = dict(_attacks(marker))
    assert len(attacks) > 60
    (tmp_path / "test").write_bytes(BATCHES[2][1])
    for name, data in attacks.items():
        (tmp_path / "train").write_bytes(data)
        refused = COUNTS["malicious pickles", "refused"]
        with watched("malicious pickles", len(data), 1 << 17):
            load("cifar100", root=tmp_path)
        assert COUNTS["malicious pickles", "refused"] == refused + 1, name
        for read in (read_pickle, parse_python):
            with watched("malicious pickles (bytes)", len(data), 1 << 17):
                read(data)
        assert not marker.exists(), name


@pytest.mark.parametrize(
    "data",
    [
        b"]" * 200_000,
        b"]" * 200_000 + b".",
        b"}" * 200_000 + b".",
        b"K\x01\x85" + b"\x85" * 3000 + b".",
        b"(" * 200_000 + b"t" * 200_000,
        b"]q\x00" + b"h\x00" * 100_000 + b".",
        b"]q\x00(" + b"h\x00" * 3000 + b"e" + bytes(400_000),
        b"]" + b"N" * 1000 + b"a" * 200_000,
        b"N" + b"".join(b"r" + struct.pack("<I", n) for n in range(0, 2**32, 2**15)),
        b"T" + struct.pack("<I", 100_000) + bytes(100_000) + b"q\x00"
        + b"c_codecs\nencode\nh\x00U\x06latin1\x86R" * 5000 + b".",
        b"T" + struct.pack("<I", 100_000) + bytes(100_000) + b"q\x00" + b"h\x00" * 50_000 + b".",
        b"X" + struct.pack("<I", 2**32 - 1) + b"abc.",
        b"\x8e" + struct.pack("<Q", 2**63) + b"abc.",
        b"\x8a\xff" + bytes(255) + b".",
        b"\x95" + struct.pack("<Q", 2**63) + b"N.",
        b"c" + b"x" * 500_000,
    ],
    ids=range(16),
)  # fmt: skip
def test_pickles_that_want_memory_or_time(data):
    with watched("pickle bombs", len(data), 1 << 18, seconds=2):
        read_pickle(data)


# ---------------------------------------------------------------------------------------- archives


def archive(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


TAR = archive(
    {
        "fine_label_names.txt": b"apple\n",
        "train.bin": BATCHES["binary"][0],
        "test.bin": BATCHES["binary"][1],
    }
)


def checksummed(plain):
    """Correct the checksums of all headers at the positions of the original ones."""
    plain = bytearray(plain)
    for at in range(0, len(plain) - 511, 512):
        if plain[at + 257 : at + 262] == b"ustar":
            plain[at + 148 : at + 156] = b" " * 8
            plain[at + 148 : at + 156] = b"%06o\0 " % (sum(plain[at : at + 512]) % 8**6)
    return bytes(plain)


@fuzz
@given(changes, st.sampled_from(["outside", "inside", "headers"]))
def test_archives(folder, steps, where):
    root = folder / "tar"
    root.mkdir(exist_ok=True)
    if where == "outside":
        data = changed(gzip.compress(TAR, mtime=0), steps)
    elif where == "inside":
        data = gzip.compress(changed(TAR, steps), mtime=0)
    else:  # fields of the first header, of three that follow each other
        steps = [(kind, place % 512, amount, raw) for kind, place, amount, raw in steps]
        data = gzip.compress(checksummed(changed(TAR, steps)), mtime=0)
    (root / "cifar-100-binary.tar.gz").write_bytes(data)
    with watched("tar.gz", len(data), 1 << 21):
        load("cifar100", root=root)


# ---------------------------------------------------------------------------------------- pictures


def picture(format):
    from PIL import Image

    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    pixels = rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


PICTURES = {f: picture(f) for f in ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF")}


def with_right_sums(png):
    """A PNG with right lengths and checksums in all its chunks."""
    result, at = png[:8], 8
    while at + 12 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        length = min(length, len(png) - at - 12)
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        result += struct.pack(">I", length) + kind + body
        result += struct.pack(">I", zlib.crc32(kind + body))
        at += 12 + length
    return result


def resident():
    """The peak memory of the process in bytes; 0 where unknown."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(scope="module")
def class_folder(folder):
    """A folder of one class; every decoder has been loaded."""
    place = folder / "pictures" / "class"
    place.mkdir(parents=True)
    for data in PICTURES.values():
        (place / "1.png").write_bytes(data)
        assert len(from_folder(place.parent)) == 1
    return place


@fuzz
@given(
    st.sampled_from(["PNG sums", *PICTURES]), changes, st.sampled_from([None, (8, 8)]),
    st.sampled_from(["RGB", "L"]), st.booleans(),
)  # fmt: skip
def test_pictures(class_folder, kind, steps, size, mode, near_the_start):
    """A picture may take 32 times its file and 32 MiB, a few times over during conversion."""
    data = PICTURES[kind.split()[0]]
    if near_the_start:
        steps = [(kind, place % 60, amount, raw) for kind, place, amount, raw in steps]
    data = changed(data, steps)
    if kind == "PNG sums":
        data = with_right_sums(data)
    (class_folder / "1.png").write_bytes(data)
    before = resident()
    with watched(f"picture {kind}", len(data), 1 << 26):
        from_folder(class_folder.parent, size=size, mode=mode)
    assert resident() - before < 160 << 20


# ----------------------------------------------------------------------------------------- storage


def checkpoint():
    rng = np.random.default_rng(0)
    arrays = {"weight": rng.normal(size=(5, 7)).astype("f4"), "step": np.int64(3), "m": np.ones(4)}
    return storage.dumps(arrays, kind="checkpoint", version=1, metadata={"epoch": 3, "a": [1, {}]})


CHECKPOINT = checkpoint()


@fuzz
@given(changes)
def test_checkpoint_files(folder, steps):
    data = changed(CHECKPOINT, steps)
    assume(data != CHECKPOINT)
    path = folder / "checkpoint"
    path.write_bytes(data)
    with watched("checkpoint", len(data), 1 << 20):
        storage.load(path, kind="checkpoint", version=1)
    assert COUNTS["checkpoint", "read"] == 0


def signed(data):
    """The file with right CRCs in its frames and a right SHA-256, as far as it can be parsed."""
    entries, at = [], 0
    members = []
    while data[at : at + 4] == b"PK\x03\x04" and at + 30 <= len(data):
        fields = storage._LOCAL.unpack(data[at : at + 30])
        size, length = min(fields[8], len(data)), fields[9]
        name = data[at + 30 : at + 30 + length]
        body = data[at + 30 + length : at + 30 + length + size]
        members.append((name, body))
        at += 30 + length + size
    try:
        header = json.loads(members[0][1][128:].decode())
        assert isinstance(header, dict)
        arrays = {}
        for name, body in members[1:]:
            array = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
            arrays[name.decode().removesuffix(".npy")] = array
        header.pop("sha256", None)
        header["sha256"] = storage._digest(header, arrays)
        text = np.frombuffer(storage._json(header), np.uint8)
        members[0] = members[0][0], storage._npy_header(text.dtype, text.shape) + text.tobytes()
    except Exception:
        pass  # then with right frames only
    result = b""
    for name, body in members:
        entry = storage._Entry(name, zlib.crc32(body), len(body), len(result))
        entries.append(entry)
        result += storage._local_header(entry) + body
    return result + (storage._directory(entries) if entries else data)


@fuzz
@given(changes)
def test_checkpoint_files_with_right_checksums(folder, steps):
    assert storage.loads(signed(CHECKPOINT), kind="checkpoint", version=1)
    try:
        data = signed(changed(CHECKPOINT, steps))
    except Exception:  # not even the frames can be corrected
        assume(False)
    path = folder / "checkpoint"
    path.write_bytes(data)
    with watched("checkpoint with right checksums", len(data), 1 << 20):
        storage.load(path, kind="checkpoint", version=1)


# ----------------------------------------------------------------------------------- packed models
#
# They run in a process of their own: a kernel that wrote where it must not would take the tests
# with it. A program of steps is data, so it is changed as data, and saved with right checksums.

WORKER = """
import json, sys, time, tracemalloc, warnings
import numpy as np
from tinybnn.deploy import PackedModel

try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
except (ImportError, ValueError, OSError):
    pass
np.seterr(all="ignore")
warnings.simplefilter("ignore")
for line in sys.stdin:
    path, shape = json.loads(line)
    x = np.linspace(-1, 1, 2 * int(np.prod(shape)), dtype=np.float32).reshape(2, *shape)
    tracemalloc.start()
    where, error = "load", None
    try:
        model = PackedModel.load(path)
        where = "predict"
        model.predict(x)
    except Exception as caught:
        error = caught
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(json.dumps({
        "outcome": f"refused by {where}" if error else "run",
        "error": f"{type(error).__name__}: {error}"[:300] if error else "",
        "is_value_error": error is None or isinstance(error, ValueError),
        "peak": peak,
    }), flush=True)
"""


class Worker:
    """A process that loads packed models and runs them; a new one where the last one died."""

    def __init__(self):
        self.process = None

    def ask(self, path, shape, seconds=60):
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        question = json.dumps([str(path), shape]) + "\n"
        self.process.stdin.write(question.encode())
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            code = self.process.poll()
            self.close()
            pytest.fail(f"it hangs for {seconds} s" if code is None else f"it died with {code}")
        return json.loads(line)

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


class Programs(list):
    """Named briefly where hypothesis reports an example."""

    def __repr__(self):
        return "programs"


@pytest.fixture(scope="module")
def programs():
    """Packed models as (arrays, metadata), which together use most operations."""
    rng = np.random.default_rng(0)
    networks = [
        nn.Sequential(
            nn.Flatten(), nn.BinaryLinear(64, 33, rng=rng), nn.BatchNorm1d(33),
            nn.BinaryLinear(33, 5, rng=rng), nn.BatchNorm1d(5),
        ),
        nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, rng=rng), nn.BatchNorm2d(6),
            nn.BinaryConv2d(6, 8, 3, padding=1, groups=2, rng=rng), nn.MaxPool2d(2),
            nn.BatchNorm2d(8),
            nn.BinaryConv2d(
                8, 10, 3, padding=1, weight_quantizer="ste_tern", padding_mode="ones", rng=rng
            ),
            nn.AvgPool2d(2), nn.BatchNorm2d(10), nn.RPReLU(10), nn.Flatten(),
            nn.BinaryLinear(40, 12, scale="mean", rng=rng), nn.BatchNorm1d(12), nn.LeakyReLU(0.1),
            nn.Linear(12, 5, rng=rng),
        ),
        nn.Sequential(
            nn.AdaBinConv2d(1, 4, 3, padding=1, rng=rng), nn.BatchNorm2d(4), nn.Hardtanh(),
            nn.MaxPool2d(2), nn.ConvTranspose2d(4, 3, 2, stride=2, rng=rng), nn.Softplus(),
            nn.Flatten(), nn.BinaryLinear(192, 5, scale="learned", rng=rng),
        ),
    ]  # fmt: skip
    collection = Programs()
    for network in networks:
        arrays, metadata = deploy.compile(network.eval(), (1, 8, 8))._stored()
        kind = {"kind": PackedModel.KIND, "version": PackedModel.VERSION}
        collection.append(storage.loads(storage.dumps(arrays, metadata=metadata, **kind), **kind))
    return collection


@pytest.fixture(scope="module")
def worker(programs, folder):
    if sys.platform == "win32":
        pytest.skip("needs select on pipes")
    worker = Worker()
    for program in programs:  # compiles the kernels
        assert run_program(worker, folder, *program, seconds=300)["outcome"] == "run"
    yield worker
    worker.close()


def run_program(worker, folder, arrays, metadata, seconds=60):
    """Load and run a program; return the outcome with the file's size."""
    path = folder / "model"
    size = storage.save(
        path, arrays, kind=PackedModel.KIND, version=PackedModel.VERSION, metadata=metadata
    )
    return {**worker.ask(path, (1, 8, 8), seconds), "size": size}


@fuzz
@given(st.integers(0, 2), changes)
def test_packed_model_files(folder, programs, which, steps):
    arrays, metadata = programs[which]
    kind = {"kind": PackedModel.KIND, "version": PackedModel.VERSION}
    whole = storage.dumps(arrays, metadata=metadata, **kind)
    data = changed(whole, steps)
    assume(data != whole)
    path = folder / "damaged"
    path.write_bytes(data)
    with watched("packed model", len(data), 1 << 20):
        PackedModel.load(path)
    assert COUNTS["packed model", "read"] == 0


def places(value, place=()):
    """The paths of all entries in nested dicts and lists."""
    if place:
        yield place
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*place, key))


_SMALL = [-5, -1, 0, 1, 2, 3, 5, 7, 8, 20, 63, 64, 65, 100]
_LARGE = [
    1000, 10**5, 10**6, 10**8, 10**9, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30,
    -(2**31), -(2**63),
]  # fmt: skip
_OTHER = [
    None, True, False, 0.5, -0.5, 1e308, 1e-308, "", "x", "zeros", "float", "bits", [], {}, [1],
    [[1]], {"a": 1}, {"weight": 1}, [1, 2], [3, 3], [0, 0], [-1, -1], [1, 1, 1],
]  # fmt: skip
_OPERATIONS = sorted(deploy.operations.OPERATIONS)


def other_metadata(numbers):
    return st.lists(
        st.tuples(
            st.integers(0, 10**6),
            st.sampled_from(
                ["number", "number", "number", "other", "operation", "delete", "repeat"]
            ),
            st.sampled_from(numbers),
            st.sampled_from(_OTHER),
            st.sampled_from(_OPERATIONS),
        ),
        max_size=3,
    )


other_arrays = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from(["dtype", "value", "shorten", "flatten", "axis", "empty", "widen", "drop"]),
        st.sampled_from("? u1 i1 i2 i4 i8 u2 u4 u8 f2 f4 f8".split()),  # noqa: SIM905
        st.integers(0, 10**6),
    ),
    max_size=2,
)


def changed_metadata(metadata, steps):
    metadata = copy.deepcopy(metadata)
    for place, kind, number, other, operation in steps:
        trails = list(places(metadata))
        *trail, key = trails[place % len(trails)]
        parent = metadata
        for part in trail:
            parent = parent[part]
        if kind == "delete":
            del parent[key]
        elif kind == "repeat" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[key] = {"number": number, "operation": operation}.get(kind, copy.deepcopy(other))
        if not metadata:
            break
    return metadata


def changed_arrays(arrays, steps):
    arrays = dict(arrays)
    for place, kind, dtype, number in steps:
        name = sorted(arrays)[place % len(arrays)]
        array = arrays[name]
        if kind == "dtype":
            with np.errstate(all="ignore"):
                array = array.astype(dtype)
        elif kind == "value" and array.size:
            array = array.copy()
            values = {"f": [np.nan, np.inf, -np.inf, 1e30], "b": [True]}.get(array.dtype.kind)
            if values is None:
                values = [np.iinfo(array.dtype).min, np.iinfo(array.dtype).max, 0, 1]
            array.reshape(-1)[number % array.size] = values[number % len(values)]
        elif kind == "shorten" and array.ndim:
            array = array[: number % (len(array) + 1)]
        elif kind == "flatten":
            array = array.reshape(-1)
        elif kind == "axis":
            array = array[None]
        elif kind == "empty":
            array = array.reshape(-1)[:0]
        elif kind == "widen" and array.ndim:
            array = np.repeat(array, 2, axis=number % array.ndim)
        elif kind == "drop" and len(arrays) > 1:
            del arrays[name]
            continue
        arrays[name] = array
    return arrays


def hostile(programs, which, metadata_steps, array_steps):
    arrays, metadata = programs[which]
    assume(metadata_steps or array_steps)
    return changed_arrays(arrays, array_steps), changed_metadata(metadata, metadata_steps)


@fuzz
@given(st.integers(0, 2), other_metadata(_SMALL), other_arrays)
def test_hostile_programs_do_not_crash(folder, programs, worker, which, metadata, arrays):
    """The process survives and answers in time, whatever a layer's numbers are."""
    outcome = run_program(worker, folder, *hostile(programs, which, metadata, arrays))
    COUNTS["packed model with right checksums", outcome["outcome"]] += 1


def check_manners(outcome):
    assert outcome["is_value_error"], outcome["error"]
    limit = 10 * outcome["size"] + (1 << 20)
    assert outcome["peak"] <= limit, (
        f"{outcome['peak']:,} bytes for {outcome['size']:,}: {outcome['error']}"
    )


@fuzz
@given(st.integers(0, 2), other_metadata(_SMALL + _LARGE), other_arrays)
def test_hostile_programs_are_refused_or_run(folder, programs, worker, which, metadata, arrays):
    """A ValueError or a result, within the memory that the file's size allows."""
    outcome = run_program(worker, folder, *hostile(programs, which, metadata, arrays))
    COUNTS["packed model with any numbers", outcome["outcome"]] += 1
    check_manners(outcome)


def setting(operation, name, value):
    """Change a setting of the first step with this operation."""

    def change(metadata):
        for step in metadata["steps"]:
            if step["operation"] == operation:
                step["settings"][name] = value
                return
        raise AssertionError(f"no step {operation}")

    return change


def field(name, value):
    def change(metadata):
        metadata["steps"][1][name] = value

    return change


@pytest.mark.parametrize(
    ("which", "change"),
    [
        (0, field("bits", 3)),
        (0, field("bits", [])),
        (0, setting("reshape", "shape", 64)),
        (0, setting("reshape", "shape", ["x"])),
        (0, setting("xnor_linear", "count", [])),
        (1, setting("conv2d", "padding", [10**7, 0])),
        (1, setting("xnor_conv2d", "padding", [0, 10**8])),
        (1, setting("xnor_conv2d", "padding", 3)),
        (1, setting("xnor_conv2d", "stride", ["x", "y"])),
        (1, setting("ternary_conv2d", "channels", 2**32)),
        (1, setting("ternary_conv2d", "groups", "x")),
        (1, setting("max_pool_bits", "kernel_size", 1)),
        (1, setting("leaky_relu", "slope", [])),
        (2, setting("ones", "shape", [1, 10**5, 10**5])),
        (2, setting("ones", "shape", 3)),
        (2, setting("conv_transpose2d", "image", [3, 10**6, 10**6])),
    ],
    ids=range(16),
)  # fmt: skip
def test_settings_that_no_layer_has(folder, programs, worker, which, change):
    arrays, metadata = copy.deepcopy(programs[which])
    change(metadata)
    check_manners(run_program(worker, folder, arrays, metadata))
