"""Downloads from a server on this machine that is good, slow, broken or lying."""

import errno
import hashlib
import http.server
import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from tinybnn import storage
from tinybnn.datasets import SOURCES, DownloadError, download, fetch, load, path
from tinybnn.datasets.download import Download, RemoteFile, fetch_file

CONTENT = np.random.default_rng(0).bytes(50_000)
FILE = RemoteFile("data.bin", len(CONTENT), hashlib.md5(CONTENT).hexdigest())


class Server(http.server.ThreadingHTTPServer):
    """Answers with the output of `behave(handler, request number)`; records the requests."""

    daemon_threads = True

    def __init__(self, behave):
        self.behave, self.requests, self.lock = behave, [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/data.bin"

    def handle_error(self, request, client_address):
        """Print nothing: clients that hang up are part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with self.server.lock:
            self.server.requests.append((self.path, self.headers.get("Range")))
            number = len(self.server.requests)
        self.close_connection = True
        self.server.behave(self, number)

    def log_message(self, *arguments):
        """Print nothing."""

    def answer(self, status=200, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def give(self, content=CONTENT, ranges=True, most=None):
        """Send the content, or the requested rest of it, at most `most` bytes."""
        start = 0
        if ranges and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.answer(416, 0, Content_Range=f"bytes */{len(content)}")
            end = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, len(content) - start, Content_Range=end)
        else:
            self.answer(200, len(content))
        self.wfile.write(content[start:][:most])

    def hang_up(self):
        """Close the connection so that the client sees a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@pytest.fixture
def serve(monkeypatch):
    """serve(behave) -> a running Server."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(behave):
        server = Server(behave)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def pauses(monkeypatch):
    """Replace waiting between tries; return the requested pauses."""
    asked = []
    monkeypatch.setattr(
        download, "time", SimpleNamespace(sleep=asked.append, monotonic=time.monotonic)
    )
    return asked


def get(server, target, expected=FILE, **options):
    options = {"progress": False, "timeout": 2.0, "retries": 3, **options}
    fetch_file(server.url, target, expected, **options)


def left(folder):
    return sorted(os.listdir(folder))


# --------------------------------------------------------------------------------- what goes right


def test_a_good_server(serve, tmp_path, capfd):
    server = serve(lambda handler, number: handler.give())
    get(server, tmp_path / "data.bin", progress=True)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and left(tmp_path) == ["data.bin"]
    shown = capfd.readouterr()
    assert shown.out == "" and "data.bin" in shown.err and "50.0k/50.0k" in shown.err
    get(server, tmp_path / "data.bin")  # it exists and is right
    assert server.requests == [("/data.bin", None)]
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_under_the_final_name_is_replaced(serve, tmp_path):
    server = serve(lambda handler, number: handler.give())
    (tmp_path / "data.bin").write_bytes(CONTENT[:-1] + b"?")
    get(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_slow_server_is_waited_for(serve, tmp_path):
    def drip(handler, number):
        handler.answer(200, len(CONTENT))
        for start in range(0, len(CONTENT), 5000):
            handler.wfile.write(CONTENT[start : start + 5000])
            time.sleep(0.2)

    server = serve(drip)
    get(server, tmp_path / "data.bin", timeout=1.5, retries=0)  # all of it takes longer
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and len(server.requests) == 1


def test_a_truncated_download_is_resumed(serve, tmp_path, pauses):
    server = serve(lambda handler, number: handler.give(most=20_000))
    get(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=20000-", "bytes=40000-"]
    assert pauses == [0.5, 0.5]


def test_a_later_call_resumes(serve, tmp_path, pauses):
    server = serve(lambda handler, number: handler.give(most=30_000 if number == 1 else None))
    with pytest.raises(DownloadError, match=r"closed early \(30,000 of 50,000 bytes have arrived"):
        get(server, tmp_path / "data.bin", retries=0)
    assert left(tmp_path) == ["data.bin.part"]
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:30_000]
    get(server, tmp_path / "data.bin")
    assert left(tmp_path) == ["data.bin"] and server.requests[1][1] == "bytes=30000-"
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_complete_part_needs_no_server(serve, tmp_path):
    server = serve(lambda handler, number: handler.give())
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    get(server, tmp_path / "data.bin")
    assert left(tmp_path) == ["data.bin"] and server.requests == []


def test_a_server_that_cannot_resume_starts_over(serve, tmp_path, pauses):
    server = serve(
        lambda handler, number: handler.give(ranges=False, most=30_000 if number == 1 else None)
    )
    get(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and len(server.requests) == 2


@pytest.mark.parametrize("size", [10_000, 50_000, 60_000])
def test_a_part_of_another_file_is_given_up(serve, tmp_path, size):
    server = serve(lambda handler, number: handler.give())
    (tmp_path / "data.bin.part").write_bytes(b"x" * size)
    get(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and left(tmp_path) == ["data.bin"]


def test_a_server_with_another_range_than_asked_for(serve, tmp_path, pauses):
    def confused(handler, number):
        if number != 2:
            return handler.give(most=1000 if number == 1 else None)
        rest = CONTENT[100:]
        handler.answer(206, len(rest), Content_Range="bytes 100-49999/50000")
        handler.wfile.write(rest)

    get(serve(confused), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_redirections_are_followed(serve, tmp_path, pauses):
    other = serve(lambda handler, number: handler.give(most=30_000 if number == 1 else None))
    server = serve(lambda handler, number: handler.answer(302, 0, Location=other.url))
    get(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [asked for _, asked in other.requests] == [None, "bytes=30000-"]


def test_a_reset_and_a_busy_server_are_tried_again(serve, tmp_path, pauses):
    def flaky(handler, number):
        if number == 1:
            return handler.hang_up()
        if number == 2:
            return handler.answer(503, 0)
        if number == 3:
            handler.answer(200, len(CONTENT))
            handler.wfile.write(CONTENT[:1000])
            handler.wfile.flush()
            return handler.hang_up()
        handler.give()

    server = serve(flaky)
    get(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert len(server.requests) == 4 and pauses == [0.5, 1.0, 0.5]


def test_a_body_in_chunks_without_a_length(serve, tmp_path):
    def chunked(handler, number):
        handler.protocol_version = "HTTP/1.1"
        handler.answer(Transfer_Encoding="chunked")
        for start in range(0, len(CONTENT), 9000):
            part = CONTENT[start : start + 9000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    get(serve(chunked), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


# --------------------------------------------------------------------------------- what goes wrong


def refused(server, folder, message, error=DownloadError, kept=(), **options):
    """Assert that the download fails with this message and leaves no file with the final name."""
    with pytest.raises(error, match=message) as caught:
        get(server, folder / "data.bin", **options)
    assert left(folder) == list(kept)
    return caught.value


def test_wrong_bytes_are_removed(serve, tmp_path):
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    server = serve(lambda handler, number: handler.give(wrong))
    digest = hashlib.md5(wrong).hexdigest()
    message = f"{server.url}: wrong content: expected MD5 {FILE.md5}, found {digest}; the file was"
    refused(server, tmp_path, message)
    assert len(server.requests) == 1
    (tmp_path / "data.bin.part").write_bytes(wrong[:10])
    refused(server, tmp_path, message)  # also after one more try from the start
    assert len(server.requests) == 3


@pytest.mark.parametrize("change", [-1, 1, 10_000_000])
def test_another_length_is_noticed_at_once(serve, tmp_path, change):
    server = serve(lambda handler, number: handler.answer(200, len(CONTENT) + change))
    refused(server, tmp_path, rf"the server has {50_000 + change:,} bytes, expected 50,000 \(MD5")
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:99])  # which may be right: it stays
    refused(server, tmp_path, "the server has", kept=["data.bin.part"])
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:99]


def test_a_body_without_end_is_cut_off(serve, tmp_path):
    def endless(handler, number):
        handler.answer()
        while True:
            handler.wfile.write(bytes(10_000))

    refused(serve(endless), tmp_path, "sends more than the expected 50,000 bytes")


def test_a_short_body_without_a_length(serve, tmp_path, pauses):
    def short(handler, number):
        handler.answer()
        handler.wfile.write(CONTENT[:100])

    server = serve(short)
    refused(server, tmp_path, "closed early", kept=["data.bin.part"])
    assert len(server.requests) == 4 and pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_a_missing_file_is_not_asked_for_again(serve, tmp_path, status):
    server = serve(lambda handler, number: handler.answer(status, 0))
    refused(server, tmp_path, rf"{server.url}: the server answers {status} \w+")
    assert len(server.requests) == 1


def test_a_server_that_stays_busy(serve, tmp_path, pauses):
    server = serve(lambda handler, number: handler.answer(503, 0))
    refused(server, tmp_path, "the server answers 503 .* repeat the command to continue", retries=5)
    assert len(server.requests) == 6 and pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_a_loop_of_redirections(serve, tmp_path):
    server = serve(lambda handler, number: handler.answer(302, 0, Location="/data.bin"))
    refused(server, tmp_path, "302 .*infinite loop")
    ever = serve(lambda handler, number: handler.answer(302, 0, Location=f"/{number}"))
    refused(ever, tmp_path, "302 .*infinite loop")
    assert len(server.requests) < 15 and len(ever.requests) < 15


def test_the_text_of_a_redirection_is_not_read(serve, tmp_path):
    def endless(handler, number):
        if number > 1:
            return handler.give()
        handler.answer(302, Location="/data.bin")
        while True:
            handler.wfile.write(bytes(10_000))

    get(serve(endless), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "x:y"])
def test_redirections_to_anything_but_http_are_refused(serve, tmp_path, location):
    server = serve(lambda handler, number: handler.answer(302, 0, Location=location))
    refused(server, tmp_path, "redirection to|302")


def test_addresses_that_are_refused(tmp_path):
    for url in ("file:///etc/passwd", "ftp://x/y", "/etc/passwd", "data:,x"):
        with pytest.raises(ValueError, match="must begin with http"):
            fetch_file(url, tmp_path / "x", FILE)
    with pytest.raises(ValueError, match="control characters"):
        fetch_file("http://127.0.0.1:9/a b", tmp_path / "x", FILE)
    assert left(tmp_path) == []


def test_a_server_that_says_nothing(serve, tmp_path, pauses):
    done = threading.Event()
    server = serve(lambda handler, number: done.wait(5))
    start = time.monotonic()
    refused(server, tmp_path, "or the connection broke: timed out", timeout=0.2, retries=1)
    done.set()
    assert time.monotonic() - start < 3 and len(server.requests) == 2


def test_a_server_that_drips_byte_by_byte(serve, tmp_path, pauses):
    done = threading.Event()

    def drip(handler, number):
        handler.give(most=0)
        while not done.wait(0.05):
            handler.wfile.write(b"x")

    refused(
        serve(drip), tmp_path, r"only \d+ bytes in 0\.2 s", kept=["data.bin.part"], timeout=0.2,
        retries=1,
    )  # fmt: skip
    done.set()


def test_no_server_at_all(serve, tmp_path, pauses):
    server = serve(None)
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"cannot connect.*refused"):
        fetch_file(url, tmp_path / "data.bin", FILE, progress=False, timeout=1, retries=2)
    assert left(tmp_path) == [] and pauses == [0.5, 1.0]


def test_a_full_disk(serve, tmp_path, monkeypatch):
    server = serve(lambda handler, number: handler.give())
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=49_999))
        error = refused(server, tmp_path, "needs 50,000 bytes, the disk has 49,999", error=OSError)
        assert error.errno == errno.ENOSPC and error.filename.endswith("data.bin.part")
    if os.path.exists("/dev/full"):  # full only once it is written to
        (tmp_path / "data.bin.part").symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left on device") as caught:
            get(server, tmp_path / "data.bin")
        assert caught.value.errno == errno.ENOSPC
        assert len(server.requests) == 2  # trying again would not help
        assert not (tmp_path / "data.bin").exists()


def test_a_folder_that_cannot_be_written(serve, tmp_path):
    server = serve(lambda handler, number: handler.give())
    with pytest.raises(OSError, match="no-such-folder"):
        get(server, tmp_path / "no-such-folder" / "data.bin")
    assert server.requests == []


# ------------------------------------------------------------------------------------ two at once

CHILD = """
import sys
from pathlib import Path
from tinybnn.datasets.download import RemoteFile, fetch_file
url, target, size, md5 = sys.argv[1:]
fetch_file(url, Path(target), RemoteFile("data.bin", int(size), md5), progress=False, timeout=2)
"""


def test_two_processes_do_not_write_into_each_other(serve, tmp_path):
    def slow(handler, number):
        handler.answer(200, len(CONTENT))
        for start in range(0, len(CONTENT), 10_000):
            handler.wfile.write(CONTENT[start : start + 10_000])
            time.sleep(0.1)

    server = serve(slow)
    arguments = [server.url, str(tmp_path / "data.bin"), str(FILE.size), FILE.md5]
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [child.communicate(timeout=15)[1] for child in children]
    assert outputs == [b""] * 3
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and left(tmp_path) == ["data.bin"]
    assert len(server.requests) == 1


def test_the_empty_part_of_a_killed_process_is_removed(tmp_path):
    """It was killed while checking whether the process it waited for had finished."""
    (tmp_path / "data.bin").write_bytes(CONTENT)
    (tmp_path / "data.bin.part").write_bytes(b"")
    fetch_file("http://127.0.0.1:9/", tmp_path / "data.bin", FILE, progress=False)
    assert left(tmp_path) == ["data.bin"] and (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_process_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    if storage.fcntl is None:
        pytest.skip("no locks on this system")
    clock = iter(range(0, 1000, 5))
    fake = SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None)
    monkeypatch.setattr(download, "time", fake)
    with open(tmp_path / "data.bin.part", "wb") as file:
        storage.fcntl.flock(file, storage.fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process holds this download"):
            fetch_file("http://127.0.0.1:9/", tmp_path / "data.bin", FILE, timeout=1)


# -------------------------------------------------------------------------------- whole data sets


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def published(monkeypatch, name, files):
    """Make these the files that a dataset's publisher describes."""
    described = tuple(
        RemoteFile(file, len(data), hashlib.md5(data).hexdigest()) for file, data in files.items()
    )
    monkeypatch.setitem(download.DOWNLOADS, name, Download("http://127.0.0.1:9/x", described))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYBNN_DATA", raising=False)
    return tmp_path


def mnist_files():
    files = {}
    for part, count in (("train", 5), ("t10k", 2)):
        files[f"{part}-images-idx3-ubyte.gz"] = idx(np.full((count, 28, 28), count))
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(np.arange(count))
    return files


def test_fetch_and_load(serve, home, monkeypatch):
    files = mnist_files()
    published(monkeypatch, "mnist", files)
    server = serve(lambda handler, number: handler.give(files[handler.path.rpartition("/")[2]]))
    base = server.url.replace("data.bin", "mirror/")

    with pytest.raises(FileNotFoundError, match="tinybnn data fetch mnist"):
        load("mnist")
    folder = fetch("mnist", progress=False, base_url=base)
    assert folder == path("mnist") == home / "cache" / "tinybnn" / "mnist"
    assert [asked for asked, _ in server.requests] == [f"/mirror/{name}" for name in files]
    train, test = load("mnist")
    assert train.labels.tolist() == [0, 1, 2, 3, 4] and (test.images == 2).all()

    assert fetch("mnist", base_url="http://127.0.0.1:9/") == folder  # it exists
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    fetch("mnist", progress=False, base_url=base, force=True)
    assert len(server.requests) == 5 and len(load("mnist")[1]) == 2

    monkeypatch.setenv("TINYBNN_DATA", str(home / "data"))
    assert fetch("mnist", progress=False, base_url=base, force=True) == home / "data" / "mnist"
    assert path("mnist") == home / "data" / "mnist"
    assert fetch("mnist", home / "mine", False, base) == home / "mine" / "mnist"
    assert path("mnist", home / "mine") == home / "mine" / "mnist"


def test_fetch_cifar_as_an_archive(serve, home, monkeypatch):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = 3073 * 2
            archive.addfile(info, io.BytesIO(bytes(6146)))
    data = buffer.getvalue()
    published(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": data})
    server = serve(lambda handler, number: handler.give(data))
    folder = fetch("cifar10", progress=False, base_url=server.url.rpartition("/")[0])
    assert left(folder) == ["cifar-10-binary.tar.gz"]
    assert len(load("cifar10")[0]) == 10


def emnist_zip(folder, missing=None):
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for name in SOURCES:
            for file in SOURCES[name].layouts[0].files if name.startswith("emnist-") else ():
                array = np.zeros((2, 28, 28)) if "images" in file else np.ones(2)
                if file != missing:
                    archive.writestr(f"gzip/{file}.gz", idx(array))
        archive.writestr("gzip/../../evil", b"x")
    return (folder / "gzip.zip").read_bytes()


def test_fetch_unpacks_all_of_emnist(serve, home, monkeypatch):
    data = emnist_zip(home)
    for name in ("emnist-letters", "emnist-digits"):
        published(monkeypatch, name, {"gzip.zip": data})
    server = serve(lambda handler, number: handler.give(data))
    base = server.url.rpartition("/")[0]
    folder = fetch("emnist-letters", progress=False, base_url=base)
    assert folder == home / "cache" / "tinybnn" / "emnist" == path("emnist-letters")
    assert len(left(folder)) == 24 and all(name.endswith(".gz") for name in left(folder))
    assert fetch("emnist-digits", base_url="http://127.0.0.1:9/") == folder
    assert load("emnist-digits")[0].labels.tolist() == [1, 1] and len(server.requests) == 1
    assert load("emnist-letters")[0].labels.tolist() == [0, 0]
    assert fetch("emnist-letters", home / "mine", False, base) == home / "mine" / "emnist"


def test_an_unpacking_that_was_killed_is_finished(serve, home, monkeypatch):
    data = emnist_zip(home)
    for name in ("emnist-letters", "emnist-balanced"):
        published(monkeypatch, name, {"gzip.zip": data})
    server = serve(lambda handler, number: handler.give(data))
    base = server.url.rpartition("/")[0]
    folder = fetch("emnist-letters", progress=False, base_url=base)
    whole = {file: (folder / file).read_bytes() for file in left(folder)}
    (folder / "gzip.zip").write_bytes(data)  # as if killed after the files of the first part,
    for file in folder.glob("emnist-letters-*"):
        file.unlink()
    (folder / ".tinybnn-0123456789abcdef.tmp").write_bytes(b"half")  # in the middle of another
    assert fetch("emnist-balanced", base_url="http://127.0.0.1:9/") == folder
    assert {file: (folder / file).read_bytes() for file in left(folder)} == whole
    (folder / "gzip.zip").write_bytes(b"a user's own archive")  # of another size: not ours
    assert fetch("emnist-balanced", base_url="http://127.0.0.1:9/") == folder
    assert (folder / "gzip.zip").read_bytes() == b"a user's own archive"


def test_an_archive_without_what_is_expected(serve, home, monkeypatch):
    data = emnist_zip(home, missing="emnist-mnist-test-labels-idx1-ubyte")
    published(monkeypatch, "emnist-mnist", {"gzip.zip": data})
    server = serve(lambda handler, number: handler.give(data))
    with pytest.raises(DownloadError, match=r"has no emnist-mnist-test-labels-idx1-ubyte\.gz"):
        fetch("emnist-mnist", progress=False, base_url=server.url.rpartition("/")[0])


def test_names_that_cannot_be_fetched(home, monkeypatch):
    with pytest.raises(ValueError, match="fetch: unknown dataset 'imagenet'; known are digits"):
        fetch("imagenet")
    assert fetch("digits") == path("digits") == fetch("digits", force=True)
    with pytest.raises(FileNotFoundError, match="digits is bundled with tinybnn, but"):
        fetch("digits", root=home)


def test_every_download_is_described():
    assert set(download.DOWNLOADS) == set(SOURCES) - {"digits"}
    for known in download.DOWNLOADS.values():
        assert known.url.startswith("http") and known.url.endswith("/")
        for file in known.files:
            assert file.size > 4000 and len(file.md5) == 32 and int(file.md5, 16)


def test_the_official_files_on_this_machine_have_the_published_sums():
    tried = 0
    for name in ("mnist", "fashion-mnist"):
        for file in download.DOWNLOADS[name].files:
            try:
                target = path(name) / file.name
            except FileNotFoundError:
                continue
            if target.is_file():
                assert target.stat().st_size == file.size and download._md5(target) == file.md5
                tried += 1
    if not tried:
        pytest.skip("they are not on this machine")
