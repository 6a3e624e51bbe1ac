"""Pickles of arrays, read without executing them.

A pickle is a program for a small stack machine, and two of its instructions name and call anything
that Python can import. The machine here knows the few instructions that occur in a pickled dict of
lists and NumPy arrays, and calls nothing: it keeps the names of NumPy's constructors as text and
makes their results itself from the bytes in the file. Every other instruction or name is an error.
(Meaning of the instructions: the comments in the standard library's ``pickletools.py``.)

Long strings stay views of the file's bytes. The number of instructions is limited by the size of
the file, since images are nearly all of it; so memory and time are, too.
"""

from __future__ import annotations

import math

import numpy as np

from tinybnn.datasets.files import DatasetError

_BYTES_PER_INSTRUCTION = 64
_FREE_INSTRUCTIONS = 1024
_LONG = 64  # bytes; strings up to here are copied

# The names that pickled arrays use, under the module paths of NumPy 1 and 2, and of Python 2 and 3.
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): "new array",
    ("numpy._core.multiarray", "_reconstruct"): "new array",
    ("numpy", "ndarray"): "array type",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}


class _Name(str):
    """What a name in the file stands for."""


class _Array:
    """An array of uint8 to come, or (`data` is None) one whose state has not come yet."""

    data = None


_MARK = object()
_BYTE = object()  # the dtype uint8


def read_pickle(data):
    """What a pickle holds.

    Parameters
    ----------
    data : bytes, or another buffer of single bytes

    Returns
    -------
    None, bool, int, list, dict, tuple, bytes, memoryview or numpy.ndarray
        Text comes as bytes, in UTF-8; a long string as a view of `data`. Arrays are uint8,
        read-only, and share the memory of `data`. Lists may contain themselves.

    Raises
    ------
    DatasetError
        If it holds anything else, is damaged, or has more instructions than images need.
    """
    machine = _Machine(memoryview(data).toreadonly())
    try:
        return machine.run()
    except (IndexError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"a damaged pickle ({error})") from None


class _Machine:
    def __init__(self, data):
        self.data, self.at = data, 0
        self.stack, self.memo = [], {}
        self.encoded = 0  # bytes that calls of `encode` made

    def run(self):
        budget = len(self.data) // _BYTES_PER_INSTRUCTION + _FREE_INSTRUCTIONS
        for _ in range(budget):
            code = self._number(1)
            if code == ord("."):
                value = self.stack.pop()
                if self.stack or self.at != len(self.data):
                    raise DatasetError("a damaged pickle (it goes on behind its end)")
                return _finished(value)
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise DatasetError(f"a pickle with the instruction {bytes([code])!r}, refused")
            instruction(self)
        raise DatasetError("a pickle with more instructions than images need")

    # ------------------------------------------------------------------------------- the file

    def _take(self, count):
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise DatasetError("cut off within a pickle")
        return self.data[start : self.at]

    def _number(self, size, signed=False):
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _long_number(self):
        size = self._number(1)
        if size > 8:
            raise DatasetError("a pickle with a number of more than 64 bits, refused")
        return self._number(size, signed=True)

    def _string(self, length_size):
        view = self._take(self._number(length_size))
        return bytes(view) if len(view) <= _LONG else view

    def _line(self):
        end = bytes(self.data[self.at : self.at + 100]).find(b"\n")
        if end < 0:
            raise DatasetError("a damaged pickle (a name without end)")
        return bytes(self._take(end + 1)[:-1])

    # ------------------------------------------------------------------------------ the stack

    def _pop_mark(self):
        """What was pushed since the last mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise DatasetError("a damaged pickle (no mark)")

    def _pop(self, count):
        """The last values, in the order in which they were pushed."""
        if len(self.stack) < count or any(v is _MARK for v in self.stack[-count:]):
            raise DatasetError("a damaged pickle (too few values)")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _push_name(self, module, name):
        meaning = _NAMES.get((module, name))
        if meaning is None:
            raise DatasetError(f"a pickle that asks for {module[:40]}.{name[:40]}, refused")
        self.stack.append(_Name(meaning))

    def _append(self, items):
        target = self.stack[-1]
        if type(target) is not list:
            raise DatasetError("a damaged pickle (appends to what is no list)")
        target.extend(items)

    def _set(self, items):
        target = self.stack[-1]
        keys, values = items[::2], items[1::2]
        if type(target) is not dict or len(items) % 2 or any(type(k) is not bytes for k in keys):
            raise DatasetError("a damaged pickle (a dict needs short strings as keys)")
        target.update(zip(keys, values, strict=True))

    def _call(self):
        function, arguments = self._pop(2)
        if type(function) is not _Name or type(arguments) is not tuple:
            raise DatasetError("a damaged pickle (calls what is no constructor)")
        if function == "new array" and len(arguments) == 3 and arguments[0] == _Name("array type"):
            self.stack.append(_Array())
        elif function == "dtype" and arguments and arguments[0] in (b"u1", b"|u1"):
            self.stack.append(_BYTE)
        elif function == "encode" and len(arguments) == 2 and arguments[1] == b"latin1":
            # So protocol 2 stores bytes in Python 3: as text of the same code points.
            text = arguments[0]
            self.encoded += len(text)
            if self.encoded > len(self.data):
                raise DatasetError("a pickle that repeats its strings, refused")
            self.stack.append(str(text, "utf-8").encode("latin-1"))
        else:
            raise DatasetError(f"a pickle with an unexpected {function}")

    def _build(self):
        target, state = self._pop(2)
        if type(state) is not tuple:
            raise DatasetError("a damaged pickle (no state)")
        self.stack.append(target)
        if target is _BYTE:
            return  # its state (byte order, alignment, ...) says nothing that a byte could have
        if type(target) is not _Array or target.data is not None or len(state) != 5:
            raise DatasetError("a damaged pickle (a state for what is no array)")
        _, shape, dtype, fortran, body = state
        if dtype is not _BYTE:
            raise DatasetError("a pickle with an array of another dtype than uint8")
        fits = type(shape) is tuple and 0 < len(shape) <= 4 and all(type(n) is int for n in shape)
        fits = fits and min(shape) >= 0 and type(body) in (bytes, memoryview)
        if not fits or math.prod(shape) != len(body):
            raise DatasetError("a damaged pickle (an array's shape does not fit its bytes)")
        order = "F" if fortran is True else "C"
        target.data = np.frombuffer(body, np.uint8).reshape(shape, order=order)

    # ------------------------------------------------------------------------ instructions

    def _store(self, key):
        self.memo[key] = self.stack[-1]

    def _fetch(self, key):
        if key not in self.memo:
            raise DatasetError("a damaged pickle (an unknown reference)")
        self.stack.append(self.memo[key])

    def _text_name(self):
        module, name = self._line(), self._line()
        self._push_name(module.decode("latin-1"), name.decode("latin-1"))

    def _stack_name(self):
        module, name = self._pop(2)
        if type(module) is not bytes or type(name) is not bytes:
            raise DatasetError("a damaged pickle (a name that is no string)")
        self._push_name(module.decode("latin-1"), name.decode("latin-1"))


def _finished(value):
    """The arrays in place of what stood for them, in a value and the values of a dict."""
    if type(value) is _Array:
        if value.data is None:
            raise DatasetError("a damaged pickle (an array without data)")
        return value.data
    if type(value) is dict:
        return {k: _finished(v) if type(v) is _Array else v for k, v in value.items()}
    return value


def _push(make):
    return lambda m: m.stack.append(make(m))


_INSTRUCTIONS = {
    0x80: lambda m: m._take(1),  # protocol
    0x95: lambda m: m._take(8),  # frame
    ord("("): _push(lambda m: _MARK),
    ord("N"): _push(lambda m: None),
    0x88: _push(lambda m: True),
    0x89: _push(lambda m: False),
    ord("K"): _push(lambda m: m._number(1)),
    ord("M"): _push(lambda m: m._number(2)),
    ord("J"): _push(lambda m: m._number(4, signed=True)),
    0x8A: _push(lambda m: m._long_number()),
    ord("U"): _push(lambda m: m._string(1)),  # strings of Python 2
    ord("T"): _push(lambda m: m._string(4)),
    ord("C"): _push(lambda m: m._string(1)),  # bytes
    ord("B"): _push(lambda m: m._string(4)),
    0x8E: _push(lambda m: m._string(8)),
    0x8C: _push(lambda m: m._string(1)),  # text
    ord("X"): _push(lambda m: m._string(4)),
    0x8D: _push(lambda m: m._string(8)),
    ord("]"): _push(lambda m: []),
    ord("}"): _push(lambda m: {}),
    ord(")"): _push(lambda m: ()),
    ord("t"): _push(lambda m: tuple(m._pop_mark())),
    0x85: _push(lambda m: tuple(m._pop(1))),
    0x86: _push(lambda m: tuple(m._pop(2))),
    0x87: _push(lambda m: tuple(m._pop(3))),
    ord("a"): lambda m: m._append(m._pop(1)),
    ord("e"): lambda m: m._append(m._pop_mark()),
    ord("s"): lambda m: m._set(m._pop(2)),
    ord("u"): lambda m: m._set(m._pop_mark()),
    ord("q"): lambda m: m._store(m._number(1)),
    ord("r"): lambda m: m._store(m._number(4)),
    0x94: lambda m: m._store(len(m.memo)),
    ord("h"): lambda m: m._fetch(m._number(1)),
    ord("j"): lambda m: m._fetch(m._number(4)),
    ord("c"): _Machine._text_name,
    0x93: _Machine._stack_name,
    ord("R"): _Machine._call,
    ord("b"): _Machine._build,
}
