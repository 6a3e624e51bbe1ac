"""Packed codes as files: ceil(bits / 8) bytes an image, with labels and a note of where from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tinybnn import storage


class Codes(NamedTuple):
    """What `load_codes` reads.

    Attributes
    ----------
    words : (N, words) uint64
    bits : int
        Of a code.
    labels : (N,) integers or None
    info : dict
        Notes.
    """

    words: np.ndarray
    bits: int
    labels: np.ndarray | None
    info: dict


_KIND, _VERSION = "codes", 1


def save_codes(path, words, bits, labels=None, info=None):
    """Write packed codes to a file, ceil(bits / 8) bytes each: 25 bytes for 200 bits.

    Parameters
    ----------
    path : str or PathLike
    words : (N, words) uint64
        As `BinaryVAE.encode_packed` gives them.
    bits : int
    labels : (N,) integers, optional
    info : dict, optional
        Notes as JSON values: of what, by which encoder.

    Returns
    -------
    int
        Bytes written.
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


def load_codes(path):
    """Read what `save_codes` wrote.

    Returns
    -------
    Codes

    Raises
    ------
    StorageError
        If the file is damaged or holds something else.
    """
    from tinybnn.kernels.signs.bits import from_bytes

    arrays, metadata = storage.load(path, kind=_KIND, version=_VERSION)
    with storage.expecting(path, "file of codes"):
        count, info, labels = metadata["bits"], metadata["info"], arrays.get("labels")
        if type(count) is not int or not isinstance(info, dict) or arrays["codes"].ndim != 2:
            raise ValueError("its codes are not described")
        if not set(arrays) <= {"codes", "labels"}:
            raise ValueError("it holds other arrays")
        if labels is not None and (
            labels.dtype.kind not in "iu" or labels.shape != arrays["codes"].shape[:1]
        ):
            raise ValueError(f"labels {labels.dtype} {labels.shape} do not fit the codes")
        return Codes(from_bytes(arrays["codes"], count), count, labels, info)
