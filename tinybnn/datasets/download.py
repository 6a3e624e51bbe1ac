"""Downloads: the official files of the datasets, complete and checked, or not at all.

A file grows as ``<file>.part`` beside its final name. An interrupted download continues where it
stopped, in the same call or a later one. Once all bytes have come, their checksum is compared with
the published one, and only then is the file renamed: a file under its final name is whole and
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tinybnn.datasets.sources import SOURCES, known_source, path, search_folders
from tinybnn.storage import try_lock, write_atomic

_WINDOWS = os.name == "nt"  # without locks: users must not start a download twice at once
_CHUNK = 1 << 18  # bytes


class DownloadError(OSError):
    """A download that failed; bytes that may be right stay in a ``.part`` file."""


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
    """The files of a dataset and the address of their folder."""

    url: str
    files: tuple[RemoteFile, ...]


def _mnist(url: str, *sizes_and_checksums: tuple[int, str]) -> Download:
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

DOWNLOADS: dict[str, Download] = {
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
        Bytes to download; None for bundled data. All parts of EMNIST come in one archive.
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


def available(root: str | os.PathLike[str] | None = None) -> list[Available]:
    """List the datasets that `load` and `fetch` know, and where they are.

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


def fetch(
    name: str,
    root: str | os.PathLike[str] | None = None,
    progress: bool = True,
    base_url: str | None = None,
    force: bool = False,
    timeout: float = 30.0,
    retries: int = 5,
) -> Path:
    """Download a dataset, unless it is there.

    Parameters
    ----------
    name : str
        A key of `SOURCES`.
    root : str or PathLike, optional
        The files go to ``root/name`` (EMNIST: ``root/emnist``). Default: ``$TINYBNN_DATA`` if it is
        set, else the user's cache; `load` searches both.
    progress : bool
        Show a bar for each file.
    base_url : str, optional
        A mirror: the address of a folder that has the files under their official names.
    force : bool
        Even if `load` finds the dataset: download the official files that are missing in the folder
        above, or whose checksums are wrong.
    timeout : float
        Seconds without (or nearly without) a byte after which a connection counts as broken.
    retries : int
        How often in a row a file may break off before a hundredth of its size has come. The pause
        before each new attempt doubles, from half a second to 8.

    Returns
    -------
    pathlib.Path
        The folder in which `load` finds the dataset.

    Raises
    ------
    ValueError
        For an unknown name or an address that is not http or https.
    DownloadError
        If the server does not serve the file, or serves another.
    OSError
        If the folder or a file cannot be written, or the disk is full.
    """
    source, download = known_source(name, "fetch"), DOWNLOADS.get(name)
    base = search_folders(name, root)[0]
    folder = (base if root is not None else base.parent) / (source.folder or name)
    if not force or download is None:
        with contextlib.suppress(FileNotFoundError):
            place = path(name, root)
            if place == folder and download is not None:
                _unpack(folder, download, progress)  # left by a killed process
            return place
    if download is None:
        raise FileNotFoundError(f"{name} comes with tinybnn, but is not where it was installed")
    folder.mkdir(parents=True, exist_ok=True)
    url = (base_url or download.url).rstrip("/")
    for file in download.files:
        fetch_file(f"{url}/{file.name}", folder / file.name, file, progress, timeout, retries)
    _unpack(folder, download, progress)
    return folder


def _unpack(folder: Path, download: Download, progress: bool) -> None:
    """Unpack the files of all EMNIST parts from a complete archive, if there is one; remove it."""
    from tqdm import tqdm

    wanted = {
        f"{file}.gz"
        for name, source in SOURCES.items()
        if name.startswith("emnist-")
        for file in source.layouts[0].files
    }
    for expected in download.files:
        archive = folder / expected.name
        if archive.suffix != ".zip" or not _has_size(archive, expected):
            continue
        try:
            with contextlib.suppress(FileNotFoundError), zipfile.ZipFile(archive) as opened:
                members = {info.filename.rpartition("/")[2]: info for info in opened.infolist()}
                if missing := sorted(wanted - members.keys()):
                    raise DownloadError(f"{archive}: has no {', '.join(missing)}")
                for file in tqdm(sorted(wanted), "unpacking", disable=not progress, unit="file"):
                    with opened.open(members[file]) as member:
                        copy = functools.partial(shutil.copyfileobj, member)
                        write_atomic(folder / file, copy)
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise DownloadError(f"{archive}: the zip archive is damaged ({error})") from None
        archive.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------- files


def fetch_file(
    url: str,
    target: Path,
    expected: RemoteFile,
    progress: bool = True,
    timeout: float = 30.0,
    retries: int = 5,
) -> None:
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

    if not _is_http(url):
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
            _Transfer(url, file, expected, bar, timeout).run(retries)
        if _WINDOWS:
            file.close()  # Windows renames closed files only
        os.replace(part, target)


def _is_http(url: str) -> bool:
    return re.match(r"https?://", url, re.IGNORECASE) is not None


def _has_size(target: Path, expected: RemoteFile) -> bool:
    return target.is_file() and target.stat().st_size == expected.size


def _is_right(target: Path, expected: RemoteFile) -> bool:
    return _has_size(target, expected) and _md5(target) == expected.md5


def _md5(target: str | os.PathLike[str]) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # the publishers' checksum
    with open(target, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(part: Path, timeout: float) -> Iterator[IO[bytes]]:
    """Open the part file for appending, once no other process writes to it."""
    size, changed = -1, time.monotonic()
    while True:
        with open(part, "ab") as file:
            if try_lock(file) is not False:  # its last owner may have renamed it
                try:
                    yield file
                finally:
                    _remove_if_empty(part, file)
                return
            now = os.fstat(file.fileno()).st_size
        if now != size:  # the other process continues, or is done
            size, changed = now, time.monotonic()
        elif time.monotonic() - changed > 2 * timeout + 20:
            raise DownloadError(
                f"{part}: another process holds this download, but makes no progress"
            )
        time.sleep(0.1)


def _remove_if_empty(part: Path, file: IO[bytes]) -> None:
    """Remove the part file while its lock still holds, so that nobody else has begun to write."""
    if not file.closed and os.fstat(file.fileno()).st_size == 0:
        if _WINDOWS:
            file.close()
        with contextlib.suppress(OSError):
            part.unlink()


class _Broken(Exception):  # noqa: N818 (it never leaves this file)
    """A connection that ended early; another one may continue."""


class _Transfer:
    """All connections that it takes to download one file."""

    def __init__(
        self, url: str, file: IO[bytes], expected: RemoteFile, bar: Any, timeout: float
    ) -> None:
        self.url, self.file, self.expected, self.bar = url, file, expected, bar
        self.timeout, self.size = timeout, file.tell()  # it was opened for appending

    def run(self, retries: int) -> None:
        if self.size > self.expected.size:
            self._start_over()
        self.bar.initial = self.bar.n = self.size  # so that the speed shown is this call's
        # Bytes from an earlier call may be of another version: then a second time, from the start.
        for _ in range(2 if self.size else 1):
            self._complete(retries)
            md5 = _md5(self.file.name)
            if md5 == self.expected.md5:
                os.fsync(self.file.fileno())
                return
            self._start_over()
        raise DownloadError(
            f"{self.url}: wrong content: expected MD5 {self.expected.md5}, found {md5}; "
            "the file was removed"
        )

    def _complete(self, retries: int) -> None:
        failures = 0
        while self.size < self.expected.size:
            before = self.size
            try:
                self._connect()
            except _Broken as broken:
                if self.size - before >= max(1, self.expected.size // 100):
                    failures = 0
                failures += 1
                if failures > retries:
                    raise DownloadError(
                        f"{self.url}: {broken} ({self.size:,} of {self.expected.size:,} bytes "
                        "are there; the same command goes on from them)"
                    ) from None
                time.sleep(min(2.0 ** (failures - 2), 8.0))

    def _connect(self) -> None:
        """Send one request, and append its answer to the file."""
        import urllib.request

        headers = {"User-Agent": "tinybnn", "Accept-Encoding": "identity"}
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
        request = urllib.request.Request(self.url, headers=headers)
        with self._network():
            response = _opener().open(request, timeout=self.timeout)
        with response:
            self._begin(response)
            self._receive(response)

    @contextlib.contextmanager
    def _network(self) -> Iterator[None]:
        """Turn errors of the network into `_Broken` if they may pass, else into other errors."""
        import http.client
        import urllib.error

        try:
            yield
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                answer = f"the server answers {error.code} {' '.join(str(error.reason).split())}"
                if error.code >= 500 or error.code in (408, 429):
                    raise _Broken(answer) from None
                raise DownloadError(f"{self.url}: {answer}") from None
        except http.client.InvalidURL as error:
            raise ValueError(f"{self.url}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            # URLError is an OSError; the reason of a refused connection is inside it.
            reason = getattr(error, "reason", None) or error
            raise _Broken(f"no connection, or a broken one: {reason}") from None

    def _begin(self, response: Any) -> None:
        """Check the answer's range and length, and the free space, before a byte is written."""
        answered = response.headers.get("Content-Range", "")
        if response.status == 206 and not answered.startswith(f"bytes {self.size}-"):
            raise _Broken("the server answers with another range than asked for")
        start = self.size if response.status == 206 else 0
        if response.length not in (None, self.expected.size - start):
            raise DownloadError(
                f"{self.url}: the server has {start + response.length:,} bytes, expected "
                f"{self.expected.size:,} (MD5 {self.expected.md5})"
            )
        if start < self.size:  # a server that cannot resume
            self._start_over()
        free, needed = shutil.disk_usage(Path(self.file.name).parent).free, self.expected.size
        if free < needed - self.size:
            raise OSError(
                errno.ENOSPC,
                f"the download needs {needed - self.size:,} bytes, the disk has {free:,}",
                str(self.file.name),
            )

    def _receive(self, response: Any) -> None:
        begin, since = self.size, time.monotonic()
        while chunk := self._next(response):
            if self.size + len(chunk) > self.expected.size:
                self._start_over()
                raise DownloadError(
                    f"{self.url}: the server sends more than the expected "
                    f"{self.expected.size:,} bytes (MD5 {self.expected.md5})"
                )
            self._write(chunk)
            if time.monotonic() - since > self.timeout:
                if self.size - begin < 1024 and self.size < self.expected.size:
                    raise _Broken(f"only {self.size - begin} bytes in {self.timeout:g} s")
                begin, since = self.size, time.monotonic()
        if self.size < self.expected.size:
            raise _Broken("the connection was closed early")

    def _next(self, response: Any) -> bytes:
        with self._network():
            return response.read1(_CHUNK)  # bytes count as they come

    def _write(self, chunk: bytes) -> None:
        try:
            self.file.write(chunk)
            self.file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.file.name)) from error
        self.size += len(chunk)
        self.bar.update(len(chunk))

    def _start_over(self) -> None:
        self.file.truncate(0)
        self.bar.update(-self.size)
        self.size = 0


def _opener() -> Any:
    """An opener for http and https that redirections cannot lead to files or ftp."""
    import urllib.error
    import urllib.request

    class Redirections(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request, file, code, message, headers, url):
            if not _is_http(url):
                raise urllib.error.HTTPError(
                    request.full_url, code, f"redirection to {url}, refused", headers, file
                )
            file.close()  # or all of the answer would be read, however long it is
            return super().redirect_request(request, file, code, message, headers, url)

    return urllib.request.build_opener(Redirections)
