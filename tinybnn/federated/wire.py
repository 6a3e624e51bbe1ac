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
    16     the first half of the SHA-256 of all before

float32, float16 and int64 arrays are stored as they are. Bits are rows of signs, ceil(K / 8) bytes
for a row of K, as `kernels.bits.to_bytes` gives them: 200 signs are 25 bytes.

The form is that of `storage`: one right form for each content, nothing unpickled or evaluated,
every array declared. Only the frames around the arrays are leaner: for the network 200-128-2 they
take 132 bytes here, and 3,400 there, more than its binary weights with 3,232. The receiver knows
the head and the strategy, and with them the one size and the one table that a message can have, so
all else is refused before an array is made. The checksum finds damage, not forgery: who may write
to the server is the matter of the transport (TLS).
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

VERSION = 1
KINDS = ("state", "steps", "update")  # 1, 2, 3 on the wire
ENCODINGS = ("float32", "float16", "int64", "bits")  # 1, 2, 3, 4
_MAGIC = b"tbnw"
_HEADER = struct.Struct("<4sBBH5I8s8s")
_CHECKSUM = 16


class WireError(ValueError):
    """A message that cannot be trusted, or that was not meant for the receiver."""


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
    shape: tuple

    @property
    def nbytes(self):
        """Bytes of the array in the message."""
        if self.encoding == "bits":
            rows, count = self.shape
            return rows * ((count + 7) // 8)
        return math.prod(self.shape) * np.dtype(self.encoding).itemsize


@dataclass(frozen=True)
class Header:
    """All of a message but its arrays; see the top of this file.

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


def size(fields):
    """Bytes of a message with these fields, without making it.

    Parameters
    ----------
    fields : iterable of Field
    """
    return sum(2 + 4 * len(f.shape) + f.nbytes for f in fields) + _HEADER.size + _CHECKSUM


def token(head_digest, round_number, version, arrays):
    """8 bytes that tell a round of one state from all other rounds.

    Parameters
    ----------
    head_digest : bytes
    round_number, version : int
    arrays : iterable of arrays
        The shared state, in the head's order.
    """
    sha = hashlib.sha256(head_digest + struct.pack("<2I", round_number, version))
    for array in arrays:
        sha.update(_little_endian(array))
    return sha.digest()[:8]


def encode(header, arrays, fields):
    """A message as bytes.

    Parameters
    ----------
    header : Header
    arrays : sequence of arrays
        Of ±1 for bits.
    fields : sequence of Field
        One for each array. Arrays are reshaped to the field's shape.

    Returns
    -------
    bytes
        ``size(fields)`` of them.

    Raises
    ------
    ValueError
        If an array does not fit its field, or a number its place.
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


def read_header(data):
    """The Header of a message whose checksum is right; the arrays are not looked at.

    Raises
    ------
    WireError
    """
    _check_start(data)
    if _checksum(data[:-_CHECKSUM]) != data[-_CHECKSUM:]:
        raise WireError(f"damaged or cut off: the checksum of {len(data):,} bytes is wrong")
    _, _, kind, _, round_number, version, since, client, samples, digest, token_ = _unpack(data)
    if not 1 <= kind <= len(KINDS):
        raise WireError(f"a message of unknown kind {kind}")
    return Header(KINDS[kind - 1], round_number, version, digest, token_, since, client, samples)


def decode(data, fields):
    """Header and arrays of a message.

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
    _check_start(data)
    expected = size(fields.values())
    if len(data) > expected:  # not worth a look at all of it
        raise WireError(f"oversized: {len(data):,} bytes, expected {expected:,}")
    header = read_header(data)
    place = _HEADER.size
    for name, field in fields.items():
        declaration = _declaration(field)
        if data[place : place + len(declaration)] != declaration:
            found = _described(data[place:])
            raise WireError(f"{name}: expected {_described(declaration)}, the message has {found}")
        place += len(declaration)
    count = _unpack(data)[3]
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


def _check_start(data):
    """What can be told from a few bytes, before any work is done with the rest."""
    if not isinstance(data, bytes):
        raise WireError(f"a message must be bytes, got {type(data).__name__}")
    if len(data) < _HEADER.size + _CHECKSUM:
        raise WireError(f"cut off: {len(data)} bytes are shorter than any message")
    magic, version, *_ = _unpack(data)
    if magic != _MAGIC:
        raise WireError("not a message of tinybnn")
    if version != VERSION:
        raise WireError(f"wire version {version}, this side speaks {VERSION}")


def _unpack(data):
    return _HEADER.unpack_from(data)


def _checksum(body):
    return hashlib.sha256(body).digest()[:_CHECKSUM]


def _declaration(field):
    axes = len(field.shape)
    return struct.pack(f"<2B{axes}I", 1 + ENCODINGS.index(field.encoding), axes, *field.shape)


def _described(data):
    """What a declaration says, for an error; it may be any bytes."""
    axes = data[1] if len(data) > 1 else 0
    if len(data) < 2 + 4 * axes or not 1 <= data[0] <= len(ENCODINGS):
        return "no array"
    return f"{ENCODINGS[data[0] - 1]} {struct.unpack_from(f'<{axes}I', data, 2)}"


def _write(array, field):
    """An array as the bytes of its field."""
    if np.size(array) != math.prod(field.shape):
        raise ValueError(f"encode: an array of shape {np.shape(array)} does not fit {field}")
    array = np.reshape(array, field.shape)
    if field.encoding != "bits":
        return _little_endian(array.astype(field.encoding, copy=False))
    if not array.size:
        return b""
    from tinybnn.kernels.signs import bits  # compiled at the first use

    return bits.to_bytes(bits.pack(array), array.shape[1]).tobytes()


def _read(name, field, data):
    """The array of a field, from its bytes."""
    if field.encoding != "bits":
        dtype = np.dtype(field.encoding)
        stored = np.frombuffer(data, dtype.newbyteorder("<")).reshape(field.shape)
        return stored.astype(dtype)  # a copy that can be written to
    rows, count = field.shape
    if not field.nbytes:
        return np.empty(field.shape, np.int8)
    from tinybnn.kernels.signs import bits

    try:
        words = bits.from_bytes(np.frombuffer(data, np.uint8).reshape(rows, -1), count)
    except ValueError as error:  # a bit set behind the end of a row
        raise WireError(f"{name}: {error}") from None
    return bits.unpack(words, count, np.int8)


def _little_endian(array):
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
