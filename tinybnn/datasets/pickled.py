"""Pickles of arrays, read without executing them.

A pickle is a program for a small stack machine, and two of its instructions name and call anything
that Python can import. Here the standard library's ``pickletools`` decodes the instructions, and
the few that occur in a pickled dict of lists and NumPy arrays are interpreted: names stand for
functions of this file. Every other instruction or
name is an error.

The number of instructions is limited by the size of the file, since images are nearly all of it;
so memory and time are, too.
"""

from __future__ import annotations

import io
import math
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinybnn.datasets.files import DatasetError

_BYTES_PER_INSTRUCTION = 64
_FREE_INSTRUCTIONS = 1024


def read_pickle(data: bytes) -> Any:
    """Read the value that a pickle of protocol 2 to 4 holds.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    None, bool, int, str, list, dict, tuple or numpy.ndarray
        Bytes come as str, one code point for each. An array, or one among the values of a dict, is
        a read-only array of uint8. Lists may contain themselves.

    Raises
    ------
    DatasetError
        If it holds anything else, is damaged, or has more instructions than images need.
    """
    try:
        value = _run(io.BytesIO(data), len(data))
        entries = value if type(value) is dict else {"": value}
        arrays = {key: item for key, item in entries.items() if type(item) is _Array}
        if sum(len(array.body) for array in arrays.values()) > len(data):
            raise DatasetError("a pickle that repeats its arrays, refused")
        entries |= {key: array.filled() for key, array in arrays.items()}
        return value if type(value) is dict else entries[""]
    except DatasetError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DatasetError(f"a damaged pickle ({str(error)[:200]})") from None


def _run(file: io.BytesIO, size: int) -> Any:
    """Run the instructions and return the value that is left on the stack."""
    most = size // _BYTES_PER_INSTRUCTION + _FREE_INSTRUCTIONS
    stack, outer, memo = [], [], {}  # the values since the last mark, those before it
    for count, (code, value, _) in enumerate(pickletools.genops(file)):
        if count >= most:
            raise DatasetError("a pickle with more instructions than images need")
        if code.name == "MARK":
            outer.append(stack)
            stack = []
        elif code.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if value is None else value] = stack[-1]
        elif code.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif code.name in _INSTRUCTIONS:
            items, number = [], len(code.stack_before)
            if pickletools.markobject in code.stack_before:
                items, stack, number = stack, outer.pop(), number - 2  # without mark and items
            if number > len(stack):
                raise DatasetError("a damaged pickle (too few values)")
            start = len(stack) - number
            stack[start:] = [_INSTRUCTIONS[code.name](value, *stack[start:], *items)]
        elif code.name not in ("PROTO", "FRAME", "STOP"):
            raise DatasetError(f"a pickle with the instruction {code.name}, refused")
    if len(stack) != 1 or outer or file.tell() != size:
        raise DatasetError("a damaged pickle (with values or bytes left over)")
    return stack[0]


# -------------------------------------------------------- the meaning of instructions and names


class _Array:
    """An array of uint8, with its bytes as a str; empty until they have come."""

    shape, is_fortran, body = (), False, ""

    def filled(self) -> NDArray[np.uint8]:
        values = np.frombuffer(self.body.encode("latin-1"), np.uint8)
        return values.reshape(self.shape, order="F" if self.is_fortran else "C")


_BYTE = object()  # the dtype uint8


def _dtype(name, *_):
    if name not in ("u1", "|u1"):
        raise DatasetError("a pickle with an array of another dtype than uint8")
    return _BYTE


def _encoded(text, encoding):
    """Bytes as Python 3 stores them in protocol 2: a text with the same code points."""
    if type(text) is not str or encoding != "latin1":
        raise DatasetError("a damaged pickle (it encodes another value than latin1 text)")
    return text


# The names that pickled arrays use, under the module paths of NumPy 1 and 2.
_NAMES = {
    "numpy.core.multiarray _reconstruct": lambda kind, shape, code: _Array(),
    "numpy._core.multiarray _reconstruct": lambda kind, shape, code: _Array(),
    "numpy ndarray": _Array,
    "numpy dtype": _dtype,
    "_codecs encode": _encoded,
}


def _named(value, *parts):
    name = value or " ".join(parts)
    if name not in _NAMES:
        raise DatasetError(f"a pickle that asks for {name[:80].replace(' ', '.')}, refused")
    return _NAMES[name]


def _called(_, function, arguments):
    if function not in _NAMES.values():
        raise DatasetError("a damaged pickle (it calls a value)")
    return function(*arguments)


def _built(_, target, state):
    if target is _BYTE:
        return target  # the state (byte order, alignment, ...) does not matter for bytes
    if type(target) is not _Array or type(state) is not tuple or len(state) != 5:
        raise DatasetError("a damaged pickle (a state for another value than an array)")
    _, shape, dtype, target.is_fortran, body = state
    if dtype is not _BYTE:
        raise DatasetError("a pickle with an array of another dtype than uint8")
    fits = type(shape) is tuple and len(shape) <= 4 and all(type(n) is int for n in shape)
    if not fits or type(body) is not str or math.prod(shape) != len(body):
        raise DatasetError("a damaged pickle (an array's shape does not fit its bytes)")
    target.shape, target.body = shape, body
    return target


def _appended(_, target, *items):
    target.extend(items)  # only lists can
    return target


def _updated(_, target, *items):
    if any(type(key) is not str for key in items[::2]):  # hashing nested tuples may overflow
        raise DatasetError("a damaged pickle (a dict needs strings as keys)")
    target.update(zip(items[::2], items[1::2], strict=True))
    return target


# Each maps the value in the file, and those taken from the stack, to the one that is pushed.
_INSTRUCTIONS = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    **dict.fromkeys(
        (
            "BININT", "BININT1", "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING",
            "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
        ),
        lambda value: value,
    ),
    **dict.fromkeys(
        ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), lambda value: value.decode("latin-1")
    ),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    **dict.fromkeys(
        ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), lambda _, *items: items
    ),
    **dict.fromkeys(("APPEND", "APPENDS"), _appended),
    **dict.fromkeys(("SETITEM", "SETITEMS"), _updated),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _named),
    "REDUCE": _called,
    "BUILD": _built,
}  # fmt: skip
