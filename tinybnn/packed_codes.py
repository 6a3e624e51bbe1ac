"""Files of packed codes: ceil(bits / 8) bytes a sample, with labels and notes.

The binary codes of an encoder are stored once and read by every later task; see `models.BinaryVAE`.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinybnn import storage

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import Words


class PackedCodes(NamedTuple):
    """The content of a file of packed codes.

    Attributes
    ----------
    words : (N, words) uint64
        A code a row, padded with zero bits to whole words.
    bits : int
        Number of bits of a code.
    labels : (N,) integers or None
    info : dict
        Notes.
    """

    words: Words
    bits: int
    labels: NDArray[np.integer[Any]] | None
    info: dict[str, Any]


_KIND, _VERSION = "codes", 1


def save_codes(
    path: str | PathLike[str],
    words: Words,
    bits: int,
    labels: ArrayLike | None = None,
    info: dict[str, Any] | None = None,
) -> int:
    """Write packed codes to a file, ceil(bits / 8) bytes each: 25 bytes for 200 bits.

    Parameters
    ----------
    path : str or PathLike
    words : (N, words) uint64
        Codes as `BinaryVAE.encode_packed` returns them.
    bits : int
        Number of bits of a code.
    labels : (N,) integers, optional
    info : dict, optional
        Notes as JSON values, such as the data set and the encoder.

    Returns
    -------
    int
        Number of bytes written.
    """
    from tinybnn.kernels.signs.bits import to_bytes  # compiled at the first use

    if np.ndim(words) != 2:
        raise ValueError(f"save_codes: words must be (N, words), got shape {np.shape(words)}")
    arrays = {"codes": to_bytes(words, bits)}
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (len(words),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"save_codes: labels must be ({len(words)},) integers, "
                f"got {labels.dtype} of shape {labels.shape}"
            )
        arrays["labels"] = labels
    metadata = {"bits": int(bits), "info": info or {}}
    return storage.save(path, arrays, kind=_KIND, version=_VERSION, metadata=metadata)


def load_codes(path: str | PathLike[str]) -> PackedCodes:
    """Read a file that `save_codes` wrote.

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    PackedCodes
        A tuple (words, bits, labels, info).

    Raises
    ------
    StorageError
        If the file is damaged or holds something else.
    """
    from tinybnn.kernels.signs.bits import from_bytes

    arrays, metadata = storage.load(path, kind=_KIND, version=_VERSION)
    with storage.expecting(path, "file of codes"):
        bits, info, labels = metadata["bits"], metadata["info"], arrays.get("labels")
        if type(bits) is not int or not isinstance(info, dict) or arrays["codes"].ndim != 2:
            raise ValueError("bits must be an int, info a dict and codes an array of rows")
        if not set(arrays) <= {"codes", "labels"}:
            raise ValueError("it holds other arrays")
        if labels is not None and (
            labels.dtype.kind not in "iu" or labels.shape != arrays["codes"].shape[:1]
        ):
            raise ValueError(f"labels {labels.dtype} {labels.shape} do not fit the codes")
        return PackedCodes(from_bytes(arrays["codes"], bits), bits, labels, info)
