"""The wire: messages between server and clients as bytes.

A message is a frame around the arrays of the head, in the head's order. All numbers are
little-endian::

    bytes  what
    4      "tbnw"
    1      version of the format: 1
    1      kind: 1 state (down), 2 steps (down), 3 update (up)
    2      number of arrays
    4      round
    4      version of the model: the one sent, or the one that an update starts from
    4      version that steps start from; 0 in other kinds
    4      number of the client; 0 from the server
    4      samples that the client trained on; 0 from the server
    8      digest of the head
    8      token of the round: a digest of the state that the round began with
    ...    for each array: 1 encoding, 1 number of axes, 4 for each axis
    ...    the arrays one after the other
    16     the first half of the SHA-256 of everything before it

float32, float16 and int64 arrays are stored unchanged. Bits are rows of signs, ceil(K / 8) bytes
for a row of K, lowest bit first, as in the files of `storage`: 200 signs are 25 bytes.

As in `storage`, each content has a single valid encoding, nothing is unpickled or evaluated, and
every array is declared. Only the frames around the arrays are smaller: for the network 200-128-2
they take 132 bytes here, and 3,400 there, more than its binary weights with 3,232. Head and
strategy determine the only size and table that a message can have, so the receiver refuses any
other before it allocates an array. The checksum detects damage, not forgery: the transport decides
who may write to the server (TLS).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinybnn.typing import Array, Shape

VERSION: int = 1
KINDS: tuple[str, ...] = ("state", "steps", "update")  # 1, 2, 3 on the wire
ENCODINGS: tuple[str, ...] = ("float32", "float16", "int64", "bits")  # 1, 2, 3, 4
_MAGIC = b"tbnw"
_HEADER = struct.Struct("<4sBBH5I8s8s")
_CHECKSUM = 16


class WireError(ValueError):
    """A message that is damaged, or not meant for the receiver."""


class Field(NamedTuple):
    """An array as a message declares it.

    Attributes
    ----------
    encoding : str
        One of `ENCODINGS`.
    shape : tuple of int
        (rows, K) for bits.
    """

    encoding: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Number of bytes of the array in the message."""
        if self.encoding == "bits":
            rows, count = self.shape
            return rows * ((count + 7) // 8)
        return math.prod(self.shape) * np.dtype(self.encoding).itemsize


@dataclass(frozen=True)
class Header:
    """A message without its arrays; see the top of this file.

    Attributes
    ----------
    kind : 'state', 'steps' or 'update'
    round, version : int
    digest, token : bytes
        8 bytes each.
    since, client, samples : int
    """

    kind: str
    round: int
    version: int
    digest: bytes
    token: bytes
    since: int = 0
    client: int = 0
    samples: int = 0


def size(fields: Iterable[Field]) -> int:
    """Compute the number of bytes of a message with these fields.

    Parameters
    ----------
    fields : iterable of Field
    """
    return sum(2 + 4 * len(f.shape) + f.nbytes for f in fields) + _HEADER.size + _CHECKSUM


def token(head_digest: bytes, round_number: int, version: int, arrays: Iterable[Array]) -> bytes:
    """Compute 8 bytes that identify a round which starts from a state.

    Parameters
    ----------
    head_digest : bytes
    round_number, version : int
    arrays : iterable of arrays
        The shared state, in the head's order.

    Returns
    -------
    bytes
    """
    sha = hashlib.sha256(head_digest + struct.pack("<2I", round_number, version))
    for array in arrays:
        sha.update(_little_endian(array))
    return sha.digest()[:8]


def encode(header: Header, arrays: Sequence[Array], fields: Sequence[Field]) -> bytes:
    """Encode a message.

    Parameters
    ----------
    header : Header
    arrays : sequence of arrays
        With values ±1 for bits.
    fields : sequence of Field
        One for each array. Arrays are reshaped to the field's shape.

    Returns
    -------
    bytes
        Their number is ``size(fields)``.

    Raises
    ------
    ValueError
        If an array does not fit its field, or a number of the header is out of range.
    """
    try:
        start = _HEADER.pack(
            _MAGIC, VERSION, 1 + KINDS.index(header.kind), len(fields), header.round,
            header.version, header.since, header.client, header.samples, header.digest,
            header.token,
        )  # fmt: skip
    except struct.error as error:
        raise ValueError(f"encode: {header} does not fit a message: {error}") from None
    parts = [_write(array, field) for array, field in zip(arrays, fields, strict=True)]
    body = b"".join([start, *map(_declaration, fields), *parts])
    return body + _checksum(body)


def read_header(data: bytes) -> Header:
    """Read the Header of a message and verify its checksum, but not its arrays.

    Raises
    ------
    WireError
    """
    _, _, kind, _, round_number, version, since, client, samples, digest, token_ = _start(data)
    if _checksum(data[:-_CHECKSUM]) != data[-_CHECKSUM:]:
        raise WireError(f"damaged or cut off: the checksum of {len(data):,} bytes is wrong")
    if not 1 <= kind <= len(KINDS):
        raise WireError(f"a message of unknown kind {kind}")
    return Header(KINDS[kind - 1], round_number, version, digest, token_, since, client, samples)


def decode(data: bytes, fields: dict[str, Field]) -> tuple[Header, dict[str, Array]]:
    """Decode a message.

    Parameters
    ----------
    data : bytes
    fields : dict of str to Field
        The arrays that the message must hold, in order.

    Returns
    -------
    header : Header
    arrays : dict of str to array
        In native byte order, with the shapes of `fields`; bits as int8 of ±1.

    Raises
    ------
    WireError
        If the message is cut off, too long, damaged, of another version, or holds other arrays.
    """
    count, expected = _start(data)[3], size(fields.values())
    if len(data) > expected:  # before its checksum is computed
        raise WireError(f"oversized: {len(data):,} bytes, expected {expected:,}")
    header = read_header(data)
    place = _HEADER.size
    for name, field in fields.items():
        declaration = _declaration(field)
        if data[place : place + len(declaration)] != declaration:
            got = _described(data[place:])
            raise WireError(f"{name}: expected {_described(declaration)}, the message has {got}")
        place += len(declaration)
    if count != len(fields) or len(data) != expected:
        raise WireError(
            f"{count} arrays in {len(data):,} bytes, expected {len(fields)} in {expected:,}"
        )
    arrays = {}
    for name, field in fields.items():
        arrays[name] = _read(name, field, data[place : place + field.nbytes])
        place += field.nbytes
    return header, arrays


# ------------------------------------------------------------------------------------ the pieces


def _start(data):
    """Unpack the first bytes, and check what they tell before any other work is done."""
    if not isinstance(data, bytes):
        raise WireError(f"a message must be bytes, got {type(data).__name__}")
    if len(data) < _HEADER.size + _CHECKSUM:
        raise WireError(f"cut off: {len(data)} bytes are shorter than any message")
    magic, version, *_ = values = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise WireError("not a message of tinybnn")
    if version != VERSION:
        raise WireError(f"wire version {version}, this side speaks {VERSION}")
    return values


def _checksum(body):
    return hashlib.sha256(body).digest()[:_CHECKSUM]


def _declaration(field):
    axes = len(field.shape)
    return struct.pack(f"<2B{axes}I", 1 + ENCODINGS.index(field.encoding), axes, *field.shape)


def _described(data):
    """Describe a declaration, which may be any bytes, for an error."""
    axes = data[1] if len(data) > 1 else 0
    if len(data) < 2 + 4 * axes or not 1 <= data[0] <= len(ENCODINGS):
        return "no array"
    return f"{ENCODINGS[data[0] - 1]} {struct.unpack_from(f'<{axes}I', data, 2)}"


def _write(array, field):
    """Convert an array to the bytes of its field."""
    if np.size(array) != math.prod(field.shape):
        raise ValueError(f"encode: an array of shape {np.shape(array)} does not fit {field}")
    array = np.reshape(array, field.shape)
    if field.encoding == "bits":
        return np.packbits(array > 0, axis=1, bitorder="little").tobytes()
    return _little_endian(array.astype(field.encoding, copy=False))


def _read(name, field, data):
    """Convert the bytes of a field to its array."""
    if field.encoding != "bits":
        dtype = np.dtype(field.encoding)
        stored = np.frombuffer(data, dtype.newbyteorder("<")).reshape(field.shape)
        return stored.astype(dtype)  # a writeable copy
    rows, count = field.shape
    packed = np.frombuffer(data, np.uint8).reshape(rows, (count + 7) // 8)
    bits = np.unpackbits(packed, axis=1, bitorder="little").view(np.int8)
    if bits[:, count:].any():
        raise WireError(f"{name}: bits set behind the {count} bits of a row")
    return 2 * bits[:, :count] - 1


def _little_endian(array):
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
