"""Chapter 00: signs, bits, and the product of two rows of signs by XOR and popcount."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all, provided

_EXAMPLE = np.float32([[1, -1, 1, 1, -1, 1, 1, -1], [1, 1, -1, 1, 1, 1, 1, -1]])  # the notebook's
_LONG = np.tile(_EXAMPLE, 9)
_SHORT = np.float32([[-1, 1, 1, -1, 1, -1, -1, 1, -1], [1, 1, -1, -1, -1, 1, -1, -1, -1]])


class Bits(int):
    """An integer that messages show as `width` bits."""

    width: int

    def __new__(cls, value: int, width: int = 1) -> Bits:
        self = super().__new__(cls, value)
        self.width = width
        return self

    def __repr__(self) -> str:
        return f"0b{int(self):0{self.width}b}"

    def __str__(self) -> str:
        return str(int(self))


Bits.__name__ = Bits.__qualname__ = "int"  # as students call it


# ------------------------------------------------------------------------------------------ sign


def _sign(x):
    return np.where(x >= 0, np.float32(1), np.float32(-1))


_SIGN_MISTAKES = {
    "sign(0) is 0 here, as in np.sign; a bit has two values, and 0 must become one of them: +1":
        np.sign,
    "sign(0) is -1 here; the course takes sign(0) = +1, so compare with >=":
        lambda x: np.where(x > 0, np.float32(1), np.float32(-1)),
    "the sign of NaN is +1 here; NaN >= 0 is false, so it is -1":
        lambda x: np.where(x < 0, np.float32(-1), np.float32(1)),
    "the sign bit is copied here, and -0.0 has one; but -0.0 == 0.0, and sign(0) = +1":
        (lambda x: np.copysign(np.float32(1), x),
         lambda x: np.where(np.signbit(x) | np.isnan(x), np.float32(-1), np.float32(1))),
    "these are bits; what the sign of a negative number must be is -1":
        lambda x: (x >= 0).astype(np.float32),
}  # fmt: skip


def sign_values(bits: ModuleType) -> None:
    """sign is +1 from 0 upwards and -1 elsewhere, for any floats."""
    from hypothesis.extra.numpy import array_shapes, arrays

    probes = [{"x": np.float32(x)} for x in ([2.0, 0.0, -0.0, -1.0], [np.nan, 0.0, 0.5], [-3.0])]

    def check(x):
        compare(bits.sign, _sign, {"x": x}, _SIGN_MISTAKES, probes=probes)

    check(probes[0]["x"])
    for_all(check, x=arrays(np.float32, array_shapes(max_dims=2, max_side=4)))


def sign_dtype(bits: ModuleType) -> None:
    """sign returns float32."""
    x = np.float32([-1.5, 0.0, 2.0])
    answer = call(bits.sign, {"x": x})
    if np.asarray(answer).dtype != np.float32:
        raise Wrong("the answer is not float32", {"x": x}, np.asarray(answer).dtype, "float32")


# ------------------------------------------------------------------------------------ to_integer


def _to_integer(signs):
    return Bits(sum(1 << i for i, s in enumerate(signs) if s > 0), len(signs))


_TO_INTEGER_MISTAKES = {
    "the order of the bits is reversed: element 0 belongs to bit 0, the lowest, which is written "
    "last": lambda signs: _to_integer(signs[::-1]),
    "the bits are inverted: bit 1 stands for +1, bit 0 for -1": lambda signs: _to_integer(-signs),
    "element i is worth 2**i: bit 0 belongs to element 0, so start with 1 << 0":
        lambda signs: _to_integer(signs) << 1,
    "-1 is 0 in bits, it takes nothing away; add 2**i where the sign is +1 only":
        lambda signs: sum(int(s) << i for i, s in enumerate(signs)),
    "the signs from element 64 on are lost: NumPy's integers have 64 bits, Python's have as many "
    "as they need, so convert first: 1 << i with i an int":
        lambda signs: _to_integer(signs[:64]),
    "only 8 signs are read; a row may have any length, len(signs)":
        lambda signs: _to_integer(signs[:8]),
    "-1 counts as true, as every number but 0 does; compare: s > 0":
        lambda signs: (1 << len(signs)) - 1,
    "bit i is worth 2**i, two to the power of i, not 2 * i":
        lambda signs: sum(2 * i for i, s in enumerate(signs) if s > 0),
}  # fmt: skip


def _rows(count, longest):
    """Strategy: `count` rows of signs of equal length."""
    from hypothesis import strategies as st

    signs = st.sampled_from([1.0, -1.0])
    row = st.lists(st.tuples(*[signs] * count), min_size=1, max_size=longest)
    return row.map(lambda pairs: np.float32(pairs).T)


def to_integer_values(bits: ModuleType) -> None:
    """bit i is 1 exactly where element i is +1, in rows of up to 100 signs."""

    def to_integer(signs):
        answer = bits.to_integer(signs)
        if not isinstance(answer, int | np.integer) or isinstance(answer, bool):
            raise Wrong(
                "the answer is None: is a return missing?" if answer is None else
                f"the answer is a {type(answer).__name__}, expected one int",
                {"signs": signs}, answer, _to_integer(signs),
            )  # fmt: skip
        return Bits(answer, len(signs))

    probes = [{"signs": signs} for signs in (_EXAMPLE[0], _LONG[0], _SHORT[0])]

    def check(signs):
        compare(to_integer, _to_integer, {"signs": signs}, _TO_INTEGER_MISTAKES, probes=probes)

    check(_EXAMPLE[0])
    check(_LONG[0])
    for_all(lambda rows: check(rows[0]), rows=_rows(1, 100))


def to_integer_is_an_int(bits: ModuleType) -> None:
    """the integer is Python's own, which never overflows."""
    signs = np.float32([1, -1, 1])
    answer = call(bits.to_integer, {"signs": signs})
    if type(answer) is not int:
        raise Wrong(
            f"the answer is a {type(answer).__name__}, which has a fixed number of bits; make it "
            "Python's int",
            {"signs": signs}, answer, _to_integer(signs),
        )  # fmt: skip


# -------------------------------------------------------------------------------------- popcount


def _popcount(word):
    if word < 0:
        raise ValueError(
            "popcount got a negative number: ~ of a Python int is negative, since Python's "
            "integers have no last bit; count the differences, a ^ b, which needs no ~"
        )
    return int(word).bit_count()


def _halved_as_floats(add, until):
    def popcount(word):
        count = 0
        while word > 0 if until == 0 else word >= until:
            count += add(word % 2)
            word /= 2
        return count

    return popcount


_HALVED = "word / 2 is a float, and keeps the bit that should fall out: 3 / 2 is 1.5; use // or >>"
_POPCOUNT_MISTAKES = {
    "only the lower 32 bits are counted; the word may be of any length":
        lambda word: _popcount(word & 0xFFFFFFFF),
    "only the lower 64 bits are counted; the word may be of any length":
        lambda word: _popcount(word & 0xFFFFFFFFFFFFFFFF),
    "0 is returned, whatever the word is": lambda word: 0,
    "this is 1 for every word that is not 0: does the return stand inside of the loop?":
        lambda word: min(word, 1),
    "this is the lowest bit alone: does the return stand inside of the loop?":
        lambda word: word & 1,
    "the 1 that is left at the end is not counted; the loop goes on until the word is 0":
        (lambda word: max(_popcount(word) - 1, 0), lambda word: _popcount(word) * (word > 1)),
    "one too many: the counter begins with 0": lambda word: _popcount(word) + 1,
    "this is the number of bits, ones and zeros together; count the ones":
        lambda word: word.bit_length(),
    "the zeros are counted here, not the ones":
        lambda word: word.bit_length() - _popcount(word),
    _HALVED: tuple(
        _halved_as_floats(add, until)
        for add in (lambda rest: rest == 1, lambda rest: rest != 0, lambda rest: rest,
                    lambda rest: int(rest))
        for until in (0, 1)
    ),
    "this is whether the number of ones is odd; count them":
        lambda word: _popcount(word) % 2,
}  # fmt: skip


def popcount_values(bits: ModuleType) -> None:
    """popcount counts the ones of integers of up to 200 bits."""
    from hypothesis import strategies as st

    words = (0b10111000, 0b1, 0b1011, 0b110101, 0b110, 1 << 40 | 1, 1 << 70 | 1 << 40 | 0b111)
    probes = [{"word": Bits(word)} for word in words]

    def check(word):
        inputs = {"word": Bits(word)}
        try:
            compare(bits.popcount, _popcount, inputs, _POPCOUNT_MISTAKES, probes=probes)
        except Wrong as wrong:
            if isinstance(wrong.cause, TypeError) and "'float' and 'int'" in str(wrong.cause):
                wrong.why = _HALVED
            raise

    for word in words:
        check(word)
    for_all(check, word=st.integers(0, 2**64 - 1))
    for_all(check, word=st.integers(2**64, 2**200))


_READY_MADE = (
    "popcount uses {}, which is the answer ready-made; count with operations on the integer: & - >>"
)


class _Unwritten(int):
    """An integer that cannot be formatted as a text of ones and zeros."""

    def __format__(self, form):
        if form.endswith("b"):
            raise Wrong(_READY_MADE.format("a text of ones and zeros"))
        return format(int(self), form)


_Unwritten.__name__ = _Unwritten.__qualname__ = "int"


def popcount_by_operations(bits: ModuleType) -> None:
    """popcount is made of operations on integers."""
    code = getattr(bits.popcount, "__code__", None)
    short = {"bit_count", "bitwise_count", "bin", "format"} & set(code.co_names if code else ())
    if short:
        raise Wrong(_READY_MADE.format(min(short)))
    call(bits.popcount, {"word": _Unwritten(0b1011)})


# ------------------------------------------------------------------------------------------- dot


def _dot(a, b, k):
    return k - 2 * _popcount(a ^ b)


_DOT_MISTAKES = {
    "agreements and differences are exchanged: the ones of a ^ b are the places where the signs "
    "differ, and each of them gives -1": lambda a, b, k: 2 * _popcount(a ^ b) - k,
    "k is forgotten: these are the differences alone, without the k products that would all be +1":
        lambda a, b, k: -2 * _popcount(a ^ b),
    "these are the agreements alone; each difference also takes 1 away, so it counts twice":
        lambda a, b, k: k - _popcount(a ^ b),
    "these are the differences alone; the dot product is agreements minus differences":
        lambda a, b, k: _popcount(a ^ b),
    "a & b has ones where both signs are +1; two signs -1 give a product of +1 as well":
        lambda a, b, k: _popcount(a & b),
    "a & b has ones where both signs are +1; two signs -1 agree too, which a ^ b shows as a 0":
        (lambda a, b, k: 2 * _popcount(a & b) - k, lambda a, b, k: k - 2 * _popcount(a & b)),
    "the bits above the row count as agreements: there are k signs, not 64":
        lambda a, b, k: 64 - 2 * _popcount(a ^ b),
    "k is the number of signs, which bit_length does not know: a row may end with -1":
        lambda a, b, k: max(a.bit_length(), b.bit_length()) - 2 * _popcount(a ^ b),
    "a | b has ones where at least one sign is +1; the places where they differ are the ones of "
    "a ^ b": lambda a, b, k: k - 2 * _popcount(a | b),
    "a & b has ones where both signs are +1, which are not all agreements: two signs -1 agree too":
        lambda a, b, k: _popcount(a & b) - _popcount(a ^ b),
    "^ is xor, no power, and comes after -: k - 2 ^ d is (k - 2) ^ d; write 2 * popcount(a ^ b)":
        lambda a, b, k: k - 2 ^ _popcount(a ^ b),
    "** is a power; each of the d differences takes 2 away, 2 * d in all":
        lambda a, b, k: k - 2 ** _popcount(a ^ b),
}  # fmt: skip


def dot_values(bits: ModuleType) -> None:
    """dot is the sum of the products of the signs, in rows of up to 100 signs."""

    def inputs(rows):
        return {"a": _to_integer(rows[0]), "b": _to_integer(rows[1]), "k": len(rows[0])}

    probes = [inputs(rows) for rows in (_EXAMPLE, _SHORT, _SHORT[::-1], _EXAMPLE[:, 1:6], _LONG)]

    def check(rows):
        assert _dot(**inputs(rows)) == rows[0] @ rows[1]
        compare(bits.dot, _dot, inputs(rows), _DOT_MISTAKES, probes=probes)

    with provided(bits, popcount=_popcount):
        check(_EXAMPLE)
        for_all(check, rows=_rows(2, 100))


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "00.1",
        "sign",
        "The sign of each number: +1.0 from 0 upwards, -1.0 elsewhere, as float32.",
        "The sign of zero",
        (sign_values, sign_dtype),
        (
            "Which values may come out? What does your function do at exactly 0?",
            "np.where(condition, a, b) chooses between two values, element by element.",
            "The condition is x >= 0. Mind the dtype: np.float32(1) is a float32, 1.0 is not.",
        ),
    ),
    Exercise(
        "00.2",
        "to_integer",
        "A row of signs as one Python int: bit i is 1 where element i is +1.",
        "From signs to bits",
        (to_integer_values, to_integer_is_an_int),
        (
            "Write the row + - - + by hand as a sum of powers of two. Which power belongs to "
            "element 3?",
            "Begin with 0 and go through the row with enumerate; only the +1 change anything.",
            "1 << i is the integer whose only 1 is bit i; with | or + it joins the others. i from "
            "enumerate is a Python int, and so is the result.",
        ),
    ),
    Exercise(
        "00.3",
        "popcount",
        "How many bits of an integer are 1, by operations on integers.",
        "Counting ones",
        (popcount_values, popcount_by_operations),
        (
            "What does word & (word - 1) do to 0b1100? And once more?",
            "Each such step takes one 1 away. How many steps until nothing is left?",
            "A while loop that runs as long as the word is not 0: one step, and one more on a "
            "counter that began with 0.",
        ),
        seconds=10.0,
    ),
    Exercise(
        "00.4",
        "dot",
        "The dot product of two rows of k signs, given as integers.",
        "Agreements and differences",
        (dot_values,),
        (
            "For two equal rows the answer is k. How much less is it when one sign changes?",
            "The ones of a ^ b are the places where the two rows differ; popcount counts them.",
            "With d differences there are k - d agreements. The answer is agreements minus "
            "differences; write it with k and d only.",
        ),
    ),
)
