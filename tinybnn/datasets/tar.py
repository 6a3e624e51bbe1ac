"""Members of a tar archive, one after the other, without unpacking it to the disk.

The archives that datasets come in are simple: regular files under short names in the "ustar" layout
(POSIX.1-1988): for each file a header of 512 bytes, then its bytes, padded to whole blocks of 512.
Only that is read here. Everything else (links, devices, extended headers) is passed over.
"""

from __future__ import annotations

import gzip
import re

from tinybnn.datasets.files import GZIP_MAGIC, DatasetError, open_data

_BLOCK = 512
_CHUNK = 1 << 20
_NUMBER = re.compile(rb" *([0-7]+)[ \0]*")
# Photographs hardly shrink. What unpacks to much more is made to fill the memory.
_MAX_RATIO, _FREE = 4, 1 << 20


def read_members(path, wanted):
    """Yield (name, bytes) of some members, in the order of the archive.

    Parameters
    ----------
    path : str or PathLike
        A tar archive, gzipped or not (the first bytes tell which).
    wanted : collection of str
        Names of members, without their folders.

    Raises
    ------
    DatasetError
        If the file is no such archive, is damaged or incomplete, has a wanted member twice or not
        at all, or would unpack to more than four times its size and 1 MiB. Members come before the
        whole file has been checked: use them when the last one has come.
    OSError
        If the file cannot be read.
    """
    with open_data(path) as (raw, size):
        zipped = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        if not zipped:
            yield from _read(raw, size, "cut off within a member", set(wanted))
            return
        bomb = "unpacks to more than four times its size, which photographs never do"
        with gzip.GzipFile(fileobj=raw) as file:
            yield from _read(file, _MAX_RATIO * size + _FREE, bomb, set(wanted))


def _read(file, most, too_long, wanted):
    """The wanted members of an open archive, which has at most `most` bytes."""
    found, done = set(), 0
    while header := file.read(_BLOCK):
        done += _BLOCK
        if len(header) < _BLOCK:
            raise DatasetError("cut off within a tar header")
        if not header.strip(b"\0"):
            break  # blocks of zeros end the archive
        size = _size(header)
        padded = -(-size // _BLOCK) * _BLOCK
        done += padded
        if done > most:
            raise DatasetError(too_long)
        member = header[:100].rstrip(b"\0").decode("latin-1").rpartition("/")[2]
        regular = header[156:157] in (b"0", b"\0")
        if not (regular and member in wanted):
            _skip(file, padded)
            continue
        if member in found:
            raise DatasetError(f"the archive has a second {member}")
        found.add(member)
        body = file.read(padded)
        if len(body) < padded:
            raise DatasetError(f"cut off within {member}")
        yield member, memoryview(body)[:size]
    # To the end: there stands the checksum that gzip verifies.
    while chunk := file.read(_CHUNK):
        done += len(chunk)
        if done > most:
            raise DatasetError(too_long)
        if chunk.strip(b"\0"):
            raise DatasetError("data after the end of the tar archive")
    if found != wanted:
        raise DatasetError(f"the archive has no {', '.join(sorted(wanted - found))}")


def _size(header):
    """The size of a member, if the header's checksum is right."""
    size, checksum = _NUMBER.fullmatch(header[124:136]), _NUMBER.fullmatch(header[148:156])
    if not size or not checksum:
        raise DatasetError("not a tar archive, or one with members of over 8 GiB")
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != int(checksum[1], 8):
        raise DatasetError("not a tar archive: a header's checksum is wrong")
    return int(size[1], 8)


def _skip(file, count):
    while count:
        chunk = file.read(min(count, _CHUNK))
        if not chunk:
            raise DatasetError("cut off within a member")
        count -= len(chunk)
