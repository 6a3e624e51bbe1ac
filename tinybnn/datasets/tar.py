"""Members of a tar archive, one after the other, without unpacking it to the disk."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Collection, Iterator
from typing import BinaryIO

from tinybnn.datasets.files import DatasetError, open_unzipped

_CHUNK = 1 << 20  # bytes
_MAX_RATIO, _FREE = 4, 1 << 20  # photographs barely compress


def read_members(
    path: str | os.PathLike[str], wanted: Collection[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) for some members, in the order of the archive.

    Parameters
    ----------
    path : str or PathLike
        A tar archive, gzipped or not (detected by the first bytes).
    wanted : collection of str
        Names of members, without their folders. Only regular files count.

    Raises
    ------
    DatasetError
        If the file is not such an archive, is damaged or incomplete, has a wanted member twice or
        lacks one, or would unpack to more than four times its size and 1 MiB. The checksum is
        at the end of the archive: use the members only after the last one has come.
    OSError
        If the file cannot be read.
    """
    with open_unzipped(path, _MAX_RATIO, _FREE) as (file, most):
        stream, missing = _Stream(file, most), set(wanted)
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                yield from _members(archive, missing)
        except (DatasetError, OSError, EOFError, zlib.error):
            raise
        except Exception as error:  # damaged headers make tarfile raise errors of many types
            text = " ".join(str(error).split())[:200]
            raise DatasetError(f"not a tar archive, or a damaged one ({text})") from None
        while chunk := stream.take(_CHUNK):  # to the end, where gzip verifies its checksum
            if chunk.strip(b"\0"):
                raise DatasetError("data after the end of the tar archive")
        if missing:
            raise DatasetError(f"the archive has no {', '.join(sorted(missing))}")


def _members(archive: tarfile.TarFile, missing: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the missing members, and remove their names from the set."""
    seen = set()
    while member := archive.next():
        archive.members.clear()  # tarfile would keep them all in memory
        name = member.name.rpartition("/")[2]
        if name in seen:
            raise DatasetError(f"the archive has a second {name}")
        if name in missing and member.isreg() and not member.issparse():
            missing.remove(name)
            seen.add(name)
            yield name, archive.extractfile(member).read()


class _Stream:
    """The content that tarfile may read: at most `most` bytes."""

    def __init__(self, file: BinaryIO, most: int):
        self.file, self.left = file, most

    def take(self, count: int) -> bytes:
        chunk = self.file.read(count)
        self.left -= len(chunk)
        if self.left < 0:
            raise DatasetError("unpacks to more than four times its size, a decompression bomb")
        return chunk

    def read(self, count: int) -> bytes:
        """Like `take`, but an error at the end, where tarfile would try again and again."""
        if not (chunk := self.take(count)):
            raise DatasetError("cut off within the tar archive")
        return chunk
