"""Chapter 04: signs in words, and the product of words by XOR and popcount."""

from __future__ import annotations

import os
import time
import tracemalloc
from types import ModuleType
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np

from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all, provided

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tinybnn.typing import Array, Words

_ones_in = np.bitwise_count  # NumPy's own, even while a check replaces it


def place(signs: Array, words: int | None = None, tail: int = 0, order: int = 1) -> Words:
    """Pack signs (..., K) into words (..., ceil(K / 64)), a bit each.

    Parameters
    ----------
    signs : (..., K) of ±1
    words : int, optional
        Number of words per row; default: as many as needed.
    tail : 0 or 1
        The unused bits.
    order : 1 or -1
        -1 for the highest bit first.
    """
    count = signs.shape[-1]
    words = -(-count // 64) if words is None else words
    bits = np.full((*signs.shape[:-1], 64 * words), tail, np.uint64)
    bits[..., :count] = (signs > 0)[..., : 64 * words]
    bits = bits.reshape(*bits.shape[:-1], words, 64)[..., ::order]
    return (bits << np.arange(64, dtype=np.uint64)).sum(axis=-1, dtype=np.uint64)


def _differences(a, b):
    return _ones_in(a[:, None] ^ b[None]).sum(axis=-1, dtype=np.int64)


def product(a: Words, b: Words, k: int) -> NDArray[np.int64]:
    """Compute the products (M, N) int64 of rows of K signs, words (M, W) and (N, W)."""
    return k - 2 * _differences(a, b)


def _unshifted(words):
    """Multiply the counts of the bytes by 0x0101...01: their sum is in the highest byte."""
    counts = _ones_in(np.ascontiguousarray(words)[..., None].view(np.uint8)).view(np.uint64)[..., 0]
    return counts * np.uint64(0x0101010101010101)


def _signs(shape):
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    return arrays(np.float32, shape, elements=st.sampled_from(np.float32([-1, 1])))


def _words(shape):
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    return arrays(np.uint64, shape, elements=st.integers(0, 2**64 - 1))


class _Bits:
    """Words that messages show as bits, the lowest one last."""

    def __init__(self, words):
        self.words = words

    def __repr__(self) -> str:
        return ", ".join(f"{int(word):#b}" for word in np.ravel(self.words))


_PACK_MISTAKES = {
    "bit 1 stands for -1 here; it must stand for +1":
        lambda signs: place(-signs),
    "the tail, the bits behind the last sign, is 1 here; it must be 0, so that two tails never "
    "differ":
        lambda signs: place(signs, tail=1),
    "the order of bits is reversed: the first sign is in the highest bit of its word here; it "
    "belongs into bit 0, whose value is 1 (sign i: 1 << i)":
        lambda signs: place(signs, order=-1),
    "the first sign is in the highest of the K bits that are used; it belongs into bit 0, whose "
    "value is 1 (sign i: 1 << i)":
        lambda signs: place(signs[..., ::-1]),
    "the order of bytes is reversed: these are big-endian words, in which the first byte is the "
    "highest; view the bytes as '<u8', the lowest first":
        lambda signs: place(signs).byteswap(),
    "the order of bits in each byte is reversed: np.packbits begins with the highest bit unless "
    "it is told bitorder='little'":
        lambda signs: np.packbits(
            np.unpackbits(place(signs).view(np.uint8), bitorder="little")).view(np.uint64)
            .reshape(*signs.shape[:-1], -1),
    "the bits behind the last whole word are missing: K signs need ceil(K / 64) words":
        lambda signs: place(signs, words=signs.shape[-1] // 64),
    "there is a word too many where K is a multiple of 64: K signs need ceil(K / 64) words":
        lambda signs: place(signs, words=signs.shape[-1] // 64 + 1),
}  # fmt: skip


def pack_values(packing: ModuleType) -> None:
    """sign 64 j + i is bit i of word j, for rows of any length and axes in front of them."""
    from hypothesis import strategies as st

    def check(signs):
        try:
            compare(packing.pack, place, {"signs": signs}, _PACK_MISTAKES)
        except Wrong as wrong:
            if np.shape(wrong.got) == np.shape(wrong.expected) and np.size(wrong.got) < 5:
                wrong.got, wrong.expected = _Bits(wrong.got), _Bits(wrong.expected)
            raise

    lengths = st.one_of(st.integers(1, 6), st.integers(62, 67), st.sampled_from([100, 128, 200]))
    shapes = st.tuples(st.lists(st.integers(1, 3), max_size=2), lengths)
    for_all(check, signs=shapes.map(lambda s: (*s[0], s[1])).flatmap(_signs))


def pack_dtype(packing: ModuleType) -> None:
    """pack takes signs of any dtype and returns uint64."""
    for dtype in (np.float32, np.float64, np.int8):
        signs = np.array([[1, -1, 1]], dtype)
        answer = np.asarray(call(packing.pack, {"signs": signs}))
        if answer.dtype != np.uint64:
            why = "the answer is not uint64: a word has 64 bits and no sign"
            raise Wrong(why, {"signs": signs}, answer.dtype, "uint64")
        compare(packing.pack, place, {"signs": signs}, _PACK_MISTAKES)


_POPCOUNT_MISTAKES = {
    "only the low 32 bits of each word are counted; a word has 64":
        lambda words: _ones_in(words & np.uint64(2**32 - 1)),
    "these are the numbers of zeros; count the ones":
        lambda words: 64 - _ones_in(words),
    "the counts of all words are added up; each word has a count of its own":
        lambda words: _ones_in(words).sum(dtype=np.int64),
    "the counts of each row are added up; each word has a count of its own":
        lambda words: _ones_in(words).sum(axis=-1, dtype=np.int64),
    "this is whether the number of ones is odd; count them":
        lambda words: _ones_in(words) & 1,
    "the sum of the bytes is in the highest byte, and the lower ones hold parts of it: shift it "
    "down by 56 bits":
        _unshifted,
}  # fmt: skip


def popcount_values(packing: ModuleType) -> None:
    """each word has its own number of ones, for all 64 bits and any shape."""
    from hypothesis import strategies as st

    shapes = st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)
    for_all(
        lambda words: compare(
            packing.popcount_words, _ones_in, {"words": words}, _POPCOUNT_MISTAKES
        ),
        words=shapes.flatmap(_words),
    )


def popcount_dtype(packing: ModuleType) -> None:
    """counts are signed integers, so that k - 2 * count may be negative."""
    words = np.uint64([[0, 1, 2**64 - 1]])
    answer = np.asarray(call(packing.popcount_words, {"words": words}))
    if answer.dtype.kind != "i":
        why = (
            f"the counts are {answer.dtype}, so that 1 - 2 * count is no negative number; "
            "convert them with .astype(np.int64)"
        )
        raise Wrong(why, {"words": words}, answer.dtype, "int64")


def popcount_by_arithmetic(packing: ModuleType) -> None:
    """popcount_words does without np.bitwise_count."""
    why = "popcount_words calls np.bitwise_count; the exercise is to count by shifts, & and +"
    with mock.patch.object(np, "bitwise_count", side_effect=Wrong(why)) as there:
        try:
            packing.popcount_words(np.uint64([[5]]))
        except Wrong as wrong:
            raise wrong from None
        if there.called:
            raise Wrong(why)


_MATMUL_MISTAKES = {
    "bits that agree in the tail are counted: ~ inverts the tail too, where both are 0; count the "
    "differences, and only k products are there":
        lambda a, b, k: 2 * _ones_in(~(a[:, None] ^ b[None])).sum(axis=-1, dtype=np.int64) - k,
    "k is rounded up to whole words here, so the tail counts as products of +1; take the true k":
        lambda a, b, k: 64 * a.shape[1] - 2 * _differences(a, b),
    "a & b counts the places where both are +1; products are +1 also where both are -1, so count "
    "the differences, a ^ b":
        lambda a, b, k: k - 2 * _ones_in(a[:, None] & b[None]).sum(axis=-1, dtype=np.int64),
    "these are the differences d; k - d products are +1 and d are -1, so the sum is k - 2 d":
        lambda a, b, k: _differences(a, b),
    "this is the number of agreements, k - d; d products are -1, so the sum is k - 2 d":
        lambda a, b, k: k - _differences(a, b),
    "the sum has the opposite sign: agreements are products of +1, differences of -1":
        lambda a, b, k: 2 * _differences(a, b) - k,
    "negative sums wrap around: unsigned minus larger unsigned is near 2**64; make the counts "
    "int64 before you subtract":
        lambda a, b, k: np.uint64(k) - np.uint64(2) * _differences(a, b).astype(np.uint64),
    "rows and columns are exchanged: entry [i, j] is row i of a times row j of b":
        lambda a, b, k: product(a, b, k).T,
    "each row of a meets only the row of b with the same number; all pairs are wanted":
        lambda a, b, k: np.diagonal(product(a, b, k)),
    "counts that are bytes (uint8) end at 255: add them up as int64":
        lambda a, b, k: k - 2 * (_differences(a, b) & 255),
}  # fmt: skip


def _matmul_values(function):
    """Compare with floats, for k around one and two words and few rows."""
    from hypothesis import strategies as st

    def check(signs):
        a, b = signs
        inputs = {"a": place(a), "b": place(b), "k": a.shape[-1]}
        exact = (a @ b.T).astype(np.int64)
        compare(function, lambda a, b, k: exact, inputs, _MATMUL_MISTAKES)

    rows = np.float32([[1, -1, 1, 1, -1], [-1, -1, 1, -1, -1], [1, 1, 1, -1, 1]])
    check((rows[:2], rows))  # known mistakes differ here
    sizes = st.tuples(
        st.integers(1, 3), st.integers(1, 3),
        st.one_of(st.integers(1, 6), st.integers(63, 66), st.sampled_from([128, 300])),
    )  # fmt: skip
    for_all(
        check,
        signs=sizes.flatmap(lambda s: st.tuples(_signs((s[0], s[2])), _signs((s[1], s[2])))),
    )
    one = np.ones((1, 2000), np.float32)
    check((np.concatenate([one, -one]), one))
    answer = np.asarray(call(function, {"a": place(one), "b": place(one), "k": 2000}))
    if answer.dtype != np.int32:
        raise Wrong("the answer is not int32", got=answer.dtype, expected="int32")


def matmul_values(packing: ModuleType) -> None:
    """xnor_matmul equals the product of the signs as floats, tails included."""
    with provided(packing, popcount_words=lambda words: _ones_in(words).astype(np.int64)):
        _matmul_values(packing.xnor_matmul)


def fast_values(packing: ModuleType) -> None:
    """xnor_matmul_fast equals the product of the signs as floats, tails included."""
    _matmul_values(packing.xnor_matmul_fast)


def _random(rows, columns, words):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**64, (n, words), np.uint64) for n in (rows, columns))
    return a, b, 64 * words


def _shortest(function, *arguments, runs=7):
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - begin)
    return min(times)


def _peak(function, *arguments):
    """Measure the peak memory of NumPy and Python during a call, bytes."""
    function(*arguments)
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def fast_is_compiled_once(packing: ModuleType) -> None:
    """xnor_matmul_fast is compiled at the first call and not again."""
    tiny = _random(1, 1, 1)
    packing.xnor_matmul_fast(*tiny)
    seconds = _shortest(packing.xnor_matmul_fast, *tiny, runs=3)
    if seconds > 0.02:
        raise Wrong(
            f"xnor_matmul_fast takes {seconds * 1e3:,.0f} ms for a single word, each time: it is "
            "compiled anew at each call. Put @numba.njit above a function at the top level of the "
            "file, not inside xnor_matmul_fast"
        )


def fast_needs_no_arrays(packing: ModuleType) -> None:
    """xnor_matmul_fast makes no array of unpacked signs nor of all differences."""
    few = _random(4, 4, 2048)
    if _peak(packing.xnor_matmul_fast, *few) > 700_000:
        raise Wrong(
            "xnor_matmul_fast unpacks the words: for 4 x 4 rows of 131,072 signs it makes arrays "
            "of more than half a megabyte, where the words are 128 KB. Work on the words: one XOR "
            "and one popcount are 64 products"
        )
    many = _random(128, 128, 8)
    if _peak(packing.xnor_matmul_fast, *many) > 700_000:
        raise Wrong(
            "xnor_matmul_fast makes an array of all differences, as xnor_matmul does: N M W words "
            "are written to memory and read again. In a compiled loop a word is used while it is "
            "in a register"
        )


def _seconds_of_numpy(operands):
    """Measure NumPy's product with an array of all differences, seconds per word."""
    a, b, _ = operands
    return _shortest(product, *operands) / (len(a) * b.size)


def fast_is_compiled(packing: ModuleType) -> None:
    """xnor_matmul_fast has no loop that the Python interpreter runs."""
    small = _random(16, 16, 63)
    packing.xnor_matmul_fast(*small)
    seconds = _shortest(packing.xnor_matmul_fast, *small) / (16 * 16 * 63)
    ratio = seconds / _seconds_of_numpy(_random(160, 160, 63))
    if ratio > 10:
        raise Wrong(
            f"xnor_matmul_fast takes {ratio:,.0f} times as long as arrays in NumPy: a loop that "
            "the Python interpreter runs, or one over each of the 64 bits. Compile it with "
            "@numba.njit, and count the ones of a whole word by a few shifts, & and +"
        )


def fast_is_fast(packing: ModuleType) -> None:
    """xnor_matmul_fast is at least 1.5 times as fast as the same in NumPy with all pairs."""
    large = _random(160, 160, 63)
    seconds = min(_shortest(packing.xnor_matmul_fast, *large, runs=15) for _ in range(3))
    ratio = _seconds_of_numpy(large) * (160 * 160 * 63) / seconds
    if ratio < 1.5:
        raise Wrong(
            f"xnor_matmul_fast is only {ratio:.1f} times as fast as arrays in NumPy, where a "
            "compiled loop is 3 to 12 times as fast. Is there an array made in the inner loop, or "
            "a popcount that loops over bits?"
        )
    floats = np.ones((160, 63 * 64), np.float32)
    cores = os.cpu_count() or 1  # the library behind @ may use them all
    ratio = cores * _shortest(np.matmul, floats, floats.T) / seconds
    if ratio < 0.1:
        raise Wrong(
            f"the product of the same signs as floats is {1 / ratio:.0f} times as fast, on as many "
            "cores. A popcount must be a few instructions for a word, not a loop over its bits"
        )


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "04.1",
        "pack",
        "Rows of K signs as rows of ceil(K / 64) words of 64 bits.",
        "Packing: 64 signs in a word",
        (pack_values, pack_dtype),
        (
            "How many words does a row of 65 signs need, and what is in the second one?",
            "Fill an array of zeros of shape (..., 64 * words) with the bits first; what is never "
            "written is the tail. Then reshape its last axis to (words, 64).",
            "bits << np.arange(64, dtype=np.uint64) puts each bit in its place (bits must be "
            "uint64 as well); the sum over the last axis, with dtype=np.uint64, is the word.",
        ),
    ),
    Exercise(
        "04.2",
        "popcount_words",
        "The number of ones in each word, by shifts, & and +.",
        "Counting ones",
        (popcount_values, popcount_dtype, popcount_by_arithmetic),
        (
            "Do it by hand for a word of 8 bits first: four sums of two bits, then two sums of "
            "four. The same steps work on a whole array.",
            "The masks are given. After PAIRS each two bits hold the number of ones that were in "
            "them, after FOURS each four bits, after BYTES each byte.",
            "Multiplied by EACH, all eight bytes are added up in the highest one; shift it down "
            "by LAST, and turn the result into int64.",
        ),
    ),
    Exercise(
        "04.3",
        "xnor_matmul",
        "The dot products of all pairs of packed rows, in NumPy.",
        "The product of words in NumPy",
        (matmul_values,),
        (
            "For one row of a and one of b: which operation marks the differences, and what is "
            "the sum if d of k products are -1?",
            "a[:, None, :] has shape (N, 1, W) and b[None, :, :] shape (1, M, W); an operation of "
            "both has shape (N, M, W): all pairs of rows.",
            "Count the ones of the differences with popcount_words, sum over the last axis, then "
            "k - 2 * d. The true k, not 64 * W; the result as int32.",
        ),
    ),
    Exercise(
        "04.4",
        "xnor_matmul_fast",
        "The same in a loop that Numba compiles.",
        "The better version: a compiled loop",
        (
            fast_is_compiled_once,
            fast_values,
            fast_is_compiled,
            fast_needs_no_arrays,
            fast_is_fast,
        ),
        (
            "Three loops: rows of a, rows of b, words. What is inside needs no array.",
            "Write the loops in a function of their own with @numba.njit above it, at the top "
            "level of the file. It makes the result with np.empty((N, M), np.int32) and fills it.",
            "Put the shifts and masks of popcount_words into a function of one word, with "
            "@numba.njit and without .astype, which numbers do not have there. Add its results up "
            "in a np.uint64, and convert the sum to np.int64 before k - 2 * d.",
        ),
        seconds=60.0,
    ),
)
