"""Downloads: the official files of the datasets, complete and checked, or not at all.

A file grows as ``<file>.part`` beside its final name. An interrupted download goes on where it
stopped, in the same call or a later one. When all bytes have come, their checksum is compared with
the published one, and only then is the file renamed: what stands under the final name is whole and
right. A lock keeps a second process from writing to the same file; it waits for the first.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tinybnn.datasets.sources import EMNIST_PARTS, SOURCES, known_source, path, search_folders
from tinybnn.storage import try_lock, write_atomic

_WINDOWS = os.name == "nt"  # it has no locks: one download at a time is up to the user
_CHUNK = 1 << 18  # bytes


class DownloadError(OSError):
    """A download that failed; what had come stays in a ``.part`` file unless it is wrong."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as its publisher describes it.

    Attributes
    ----------
    name : str
    size : int
        In bytes.
    md5 : str
    """

    name: str
    size: int
    md5: str


@dataclass(frozen=True)
class Download:
    """The files of a dataset and the address that they lie under."""

    url: str
    files: tuple[RemoteFile, ...]


def _mnist(url, *sizes_and_checksums):
    names = (
        "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
    )  # fmt: skip
    known = zip(names, sizes_and_checksums, strict=True)
    return Download(url, tuple(RemoteFile(name, *rest) for name, rest in known))


_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_EMNIST = Download(
    "https://biometrics.nist.gov/cs_links/EMNIST/",
    (RemoteFile("gzip.zip", 561_753_746, "58c8d27c78d21e728a6bc7b3cc06412e"),),
)

DOWNLOADS = {
    "mnist": _mnist(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        (28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
        (1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
        (4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "fashion-mnist": _mnist(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        (29_515, "25c81989df183df01b3e8a0aad5dffbe"),
        (4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
        (5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "kmnist": _mnist(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        (18_165_135, "bdb82020997e1d708af4cf47b453dcf7"),
        (29_497, "e144d726b3acfaa3e44228e80efcd344"),
        (3_041_136, "5c965bf0a639b31b8f53240b1b52f4d7"),
        (5_120, "7320c461ea6c1c855c0b718fb2a4b134"),
    ),
    **{name: _EMNIST for name in SOURCES if name.startswith("emnist-")},
    "cifar10": Download(
        _CIFAR,
        (RemoteFile("cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"),),
    ),
    "cifar100": Download(
        _CIFAR,
        (RemoteFile("cifar-100-binary.tar.gz", 168_513_733, "03b5dce01913d631647c71ecec9e9cb8"),),
    ),
}  # fmt: skip


# ---------------------------------------------------------------------------------------- datasets


@dataclass(frozen=True)
class Available:
    """One line of ``tinybnn data list``.

    Attributes
    ----------
    name : str
    folder : pathlib.Path or None
        Where it was found; None if it is missing.
    size : int or None
        Bytes to download; None for what comes with the package. All parts of EMNIST come in one.
    images : (int, int)
        Number of training and test images.
    image_shape : (C, H, W)
    classes : int
    origin : str
        Where it comes from.
    licence : str
    """

    name: str
    folder: Path | None
    size: int | None
    images: tuple[int, int]
    image_shape: tuple[int, int, int]
    classes: int
    origin: str
    licence: str


def available(root=None):
    """What `load` and `fetch` know, and what is there.

    Parameters
    ----------
    root : str or PathLike, optional
        As for `load`.

    Returns
    -------
    list of Available
    """
    rows = []
    for name, source in SOURCES.items():
        try:
            folder = path(name, root)
        except FileNotFoundError:
            folder = None
        size = sum(file.size for file in DOWNLOADS[name].files) if name in DOWNLOADS else None
        rows.append(
            Available(
                name, folder, size, source.size, source.image_shape, len(source.classes),
                source.origin, source.licence,
            )
        )  # fmt: skip
    return rows


def fetch(name, root=None, progress=True, base_url=None, force=False, timeout=30.0, retries=5):
    """Download a dataset, unless it is there.

    Parameters
    ----------
    name : str
        A key of `SOURCES`.
    root : str or PathLike, optional
        The files go to ``root/name`` (EMNIST: ``root/emnist``). Default: ``$TINYBNN_DATA`` if it is
        set, else the user's cache, both of which `load` searches.
    progress : bool
        Show a bar for each file.
    base_url : str, optional
        A mirror: the address under which the files lie by their official names.
    force : bool
        Even if `load` finds the dataset: download the official files that are missing in the folder
        above, or whose checksums are wrong.
    timeout : float
        Seconds without (or nearly without) a byte after which a connection counts as broken.
    retries : int
        How often a file may break off in succession without having come forward by a hundredth of
        its size. The pause before a new try doubles, from half a second to 8.

    Returns
    -------
    pathlib.Path
        The folder in which `load` finds the dataset.

    Raises
    ------
    ValueError
        For an unknown name or an address that is not http or https.
    DownloadError
        If the server does not give the file, or not the right one.
    OSError
        If the folder or a file cannot be written, or the disk is full.
    """
    known_source(name, "fetch")
    folder = search_folders(name, root)[-1 if root is not None else 0]
    if SOURCES[name].folder:
        folder = folder.with_name(SOURCES[name].folder)
    if not force or name not in DOWNLOADS:
        with contextlib.suppress(FileNotFoundError):
            found = path(name, root)
            if found == folder and name in DOWNLOADS:
                _finish_unpacking(folder, DOWNLOADS[name], progress)
            return found
    if name not in DOWNLOADS:
        raise FileNotFoundError(f"{name} comes with tinybnn, but is not where it was installed")
    folder.mkdir(parents=True, exist_ok=True)
    download = DOWNLOADS[name]
    base = (base_url or download.url).rstrip("/")
    for file in download.files:
        fetch_file(f"{base}/{file.name}", folder / file.name, file, progress, timeout, retries)
        if file.name.endswith(".zip"):
            try:
                _unpack(folder / file.name, progress)
            except FileNotFoundError:  # another process was faster, or path says what is missing
                path(name, root)
    return folder


def _finish_unpacking(folder, download, progress):
    """Unpack archives that a killed process left beside some of their files."""
    for file in download.files:
        archive = folder / file.name
        if file.name.endswith(".zip") and archive.is_file() and archive.stat().st_size == file.size:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                _unpack(archive, progress)


def _unpack(archive, progress):
    """Put the files of all EMNIST parts out of the archive beside it, then remove it."""
    from tqdm import tqdm

    wanted = {
        f"emnist-{other.removeprefix('emnist-')}-{part}.gz"
        for other in SOURCES
        if other.startswith("emnist-")
        for part in EMNIST_PARTS
    }
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {info.filename.rpartition("/")[2]: info for info in opened.infolist()}
            if missing := sorted(wanted - members.keys()):
                raise DownloadError(f"{archive}: has no {', '.join(missing)}")
            for file in tqdm(sorted(wanted), "unpacking", disable=not progress, unit="file"):
                with opened.open(members[file]) as source:
                    write_atomic(
                        archive.with_name(file), functools.partial(shutil.copyfileobj, source)
                    )
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DownloadError(f"{archive}: the zip archive is damaged ({error})") from None
    archive.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------- files


def fetch_file(url, target, expected, progress=True, timeout=30.0, retries=5):
    """Download one file to `target`, unless it is there with the right checksum.

    Parameters
    ----------
    url : str
        http or https; redirections to either are followed.
    target : pathlib.Path
    expected : RemoteFile
    progress, timeout, retries
        As for `fetch`.

    Raises
    ------
    ValueError, DownloadError, OSError
        As `fetch` does.
    """
    from tqdm import tqdm

    if not re.match(r"https?://", url, re.IGNORECASE):
        raise ValueError(f"fetch: an address must begin with http:// or https://, got {url!r}")
    part = target.with_name(f"{target.name}.part")
    if _is_right(target, expected) and not part.exists():
        return
    with _locked(part, timeout) as file:
        if _is_right(target, expected):  # another process was faster
            file.truncate(0)
            return
        with tqdm(
            total=expected.size, desc=expected.name, disable=not progress, unit="B",
            unit_scale=True, unit_divisor=1000, miniters=1,
        ) as bar:  # fmt: skip
            _Transfer(url, file, part, expected, bar, timeout, retries).run()
        if _WINDOWS:
            file.close()  # Windows renames closed files only
        os.replace(part, target)


def _is_right(target, expected):
    return (
        target.is_file() and target.stat().st_size == expected.size and _md5(target) == expected.md5
    )


def _md5(target):
    digest = hashlib.md5(usedforsecurity=False)  # it is what the publishers give
    with open(target, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(part, timeout):
    """The part file, opened to write, as long as no other process writes to it."""
    size, changed = -1, time.monotonic()
    while True:
        file = open(part, "ab")  # noqa: SIM115 (it is closed below, unless it is given out)
        try:
            if try_lock(file) is not False:  # its last owner may have renamed it
                break
            file.close()
            try:
                now = part.stat().st_size
            except FileNotFoundError:
                now = -1
            if now != size:  # the other process goes on, or is done
                size, changed = now, time.monotonic()
            elif time.monotonic() - changed > 2 * timeout + 20:
                raise DownloadError(
                    f"{part}: another process holds this download, but makes no progress"
                )
            time.sleep(0.1)
        except BaseException:
            file.close()
            raise
    try:
        yield file
    finally:
        empty = not file.closed and os.fstat(file.fileno()).st_size == 0
        if _WINDOWS:
            file.close()
        if empty:  # the lock still holds, so nobody else has begun to write
            with contextlib.suppress(OSError):
                part.unlink()
        file.close()


class _Broken(Exception):  # noqa: N818 (it never leaves this file)
    """A connection that ended early; another one may go on."""


class _Transfer:
    """All connections that it takes to bring one file."""

    def __init__(self, url, file, part, expected, bar, timeout, retries):
        self.url, self.file, self.part, self.expected = url, file, part, expected
        self.bar, self.timeout, self.retries = bar, timeout, retries
        self.size = os.fstat(file.fileno()).st_size  # bytes on the disk

    def run(self):
        resumed = self.size > 0  # bytes from an earlier call: they may be of another version
        if self.size > self.expected.size:
            self._start_over()
        self.bar.initial = self.bar.n = self.size  # so that the speed shown is this call's
        failures, pause = 0, 0.5
        while True:
            while self.size < self.expected.size:
                before = self.size
                try:
                    self._connect()
                except _Broken as broken:
                    if self.size - before >= max(1, self.expected.size // 100):
                        failures, pause = 0, 0.5
                    failures += 1
                    if failures > self.retries:
                        raise DownloadError(
                            f"{self.url}: {broken} ({self.size:,} of {self.expected.size:,} bytes "
                            f"are there; the same command goes on from them)"
                        ) from None
                    time.sleep(pause)
                    pause = min(2 * pause, 8.0)
            self.file.flush()
            found = _md5(self.part)
            if found == self.expected.md5:
                os.fsync(self.file.fileno())
                return
            self._start_over()
            if not resumed:
                raise DownloadError(
                    f"{self.url}: wrong content: expected MD5 {self.expected.md5}, found {found}; "
                    "the file was removed"
                )
            resumed = False

    def _connect(self):
        """One request; what it brings is appended to the file."""
        import http.client
        import urllib.error
        import urllib.request

        headers = {"User-Agent": "tinybnn", "Accept-Encoding": "identity"}
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
        request = urllib.request.Request(self.url, headers=headers)
        try:
            with _opener().open(request, timeout=self.timeout) as response:
                self._begin(response)
                self._receive(response)
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                if error.code == 416 and self.size:  # no such range: not the file we began
                    self._start_over()
                    raise _Broken("the server has fewer bytes than expected") from None
                answer = f"the server answers {error.code} {' '.join(str(error.reason).split())}"
                if error.code >= 500 or error.code in (408, 429):  # it may pass
                    raise _Broken(answer) from None
                raise DownloadError(f"{self.url}: {answer}") from None
        except (DownloadError, _DiskError):
            raise
        except http.client.InvalidURL as error:
            raise ValueError(f"{self.url}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            # URLError is an OSError; the reason of a refused connection is inside it.
            reason = getattr(error, "reason", None) or error
            raise _Broken(f"no connection, or a broken one: {reason}") from None

    def _begin(self, response):
        """Set the file to where the server's answer begins, and see whether it can be right."""
        start = 0
        length = response.headers.get("Content-Length", "")
        if response.status == 206:
            found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            start = int(found[1]) if found else -1
            if start != self.size:
                self._start_over()
                raise _Broken("the server answers with another range than asked for")
        if length.isdecimal() and start + int(length) != self.expected.size:
            raise DownloadError(
                f"{self.url}: the server has {start + int(length):,} bytes, expected "
                f"{self.expected.size:,} (MD5 {self.expected.md5})"
            )
        if start < self.size:  # a server that cannot resume
            self._start_over()
        free = shutil.disk_usage(self.part.parent).free
        if free < self.expected.size - self.size:
            raise _DiskError(
                errno.ENOSPC,
                f"the download needs {self.expected.size - self.size:,} bytes, "
                f"the disk has {free:,}",
                str(self.part),
            )

    def _receive(self, response):
        window, window_start = 0, time.monotonic()
        while chunk := response.read1(_CHUNK):  # as much as is there: bytes count as they come
            if self.size + len(chunk) > self.expected.size:
                self._start_over()
                raise DownloadError(
                    f"{self.url}: the server sends more than the expected "
                    f"{self.expected.size:,} bytes (MD5 {self.expected.md5})"
                )
            self._write(chunk)
            window += len(chunk)
            if time.monotonic() - window_start > self.timeout:
                if window < 1024 and self.size < self.expected.size:
                    raise _Broken(f"only {window} bytes in {self.timeout:g} s")
                window, window_start = 0, time.monotonic()
        if self.size < self.expected.size:
            raise _Broken("the connection was closed early")

    def _write(self, chunk):
        try:
            self.file.write(chunk)
            self.file.flush()
        except OSError as error:
            raise _DiskError(error.errno, error.strerror, str(self.part)) from error
        self.size += len(chunk)
        self._show()

    def _start_over(self):
        self.file.truncate(0)
        self.size = 0
        self._show()

    def _show(self):
        self.bar.update(self.size - self.bar.n)  # backwards, too


class _DiskError(OSError):
    """Trouble with the disk, which no other connection would cure."""


def _opener():
    """What opens http and https, and nothing else: no files, no ftp, also not by redirection."""
    import urllib.error
    import urllib.request

    class Redirections(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request, file, code, message, headers, url):
            if not re.match(r"https?://", url, re.IGNORECASE):
                raise urllib.error.HTTPError(
                    request.full_url, code, f"redirection to {url}, refused", headers, file
                )
            file.close()  # or all of the answer would be read, however long it is
            return super().redirect_request(request, file, code, message, headers, url)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.UnknownHandler, urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler, urllib.request.HTTPDefaultErrorHandler, Redirections,
        urllib.request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener
