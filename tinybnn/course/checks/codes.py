"""Chapter 08: codes as words, the most similar of them, and a binary head that runs on words."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import ModuleType

import numpy as np

from tinybnn.course.checks.folding import network, predict_mistakes, reading
from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all, provided


def _packed(signs):
    """Pack rows of signs as 04.1 asks."""
    bits = np.zeros((*signs.shape[:-1], -(-signs.shape[-1] // 64) * 64), np.uint64)
    bits[..., : signs.shape[-1]] = np.asarray(signs) > 0
    bits = bits.reshape(*bits.shape[:-1], -1, 64)
    return (bits << np.arange(64, dtype=np.uint64)).sum(axis=-1, dtype=np.uint64)


def _pack(signs):
    """The packing that a student's answer is judged with."""
    if not np.isin(signs, (-1, 1)).all():
        kind = np.asarray(signs).dtype
        text = "words, which are packed already" if kind == np.uint64 else f"other values ({kind})"
        raise Wrong(f"pack takes signs, +1 and -1, and gets {text}")
    return _packed(signs)


def _signs_of(words):
    """Each word as 64 signs: (..., W) -> (..., 64 W)."""
    ones = (words[..., None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return np.where(ones, 1, -1).reshape(*words.shape[:-1], -1)


def _popcount_words(words):
    return (_signs_of(np.asarray(words, np.uint64)[..., None]) > 0).sum(axis=-1)


def _xnor_matmul(a, b, k):
    tail = 64 * a.shape[1] - k  # unused bits are equal in both
    return (_signs_of(a) @ _signs_of(b).T - tail).astype(np.int32)


def _right_packing(codes: ModuleType) -> AbstractContextManager[None]:
    return provided(codes, pack=_pack, popcount_words=_popcount_words, xnor_matmul=_xnor_matmul)


# ------------------------------------------------------------------------------------------ packing


def _signs(bools):
    return np.where(bools, 1, -1)


_PACK_MISTAKES = {
    "the logit 0 becomes -1; the sign of 0 is +1, so compare with >= before you pack":
        lambda logits: _packed(_signs(logits > 0)),
    "+1 and -1 are exchanged: a logit of at least 0 is a bit of 1":
        (lambda logits: _packed(_signs(logits < 0)), lambda logits: _packed(_signs(logits <= 0))),
    "the logits are compared with 1/2; that is the border of the probability, and sigmoid(l) >= "
    "1/2 where l >= 0": (lambda logits: _packed(_signs(logits >= 0.5)),
                         lambda logits: _packed(_signs(logits > 0.5))),
    "the signs are not packed: the answer is words": lambda logits: _signs(logits >= 0),
    "all rows are packed as one; each code has words of its own":
        lambda logits: _packed(_signs(logits.reshape(-1) >= 0)),
}  # fmt: skip
_ROWS = [
    {"logits": np.float64([[0, -1, 0.25, 2.5], [-0.25, 0, 1, -3]])},
    {"logits": np.random.default_rng(0).integers(-4, 5, (3, 70)) / 4},
]


def packed_values(codes: ModuleType) -> None:
    """pack_codes packs +1 where the logit is >= 0, for codes of one word and of two."""
    from hypothesis import strategies as st

    def check(seed, bits):
        logits = np.random.default_rng(seed).integers(-4, 5, (2, bits)) / 4
        with _right_packing(codes):
            compare(codes.pack_codes, lambda logits: _packed(_signs(logits >= 0)),
                    {"logits": logits}, _PACK_MISTAKES, probes=_ROWS)  # fmt: skip

    with _right_packing(codes):
        for inputs in _ROWS:
            compare(codes.pack_codes, lambda logits: _packed(_signs(logits >= 0)), inputs,
                    _PACK_MISTAKES, probes=_ROWS)  # fmt: skip
    for_all(check, 30, seed=st.integers(0, 99), bits=st.sampled_from([1, 63, 64, 65, 200]))


_UNPACK_MISTAKES = {
    "the signs of a word come in the wrong order: sign 0 is its lowest bit":
        lambda words, bits: _signs_of(words).reshape(*words.shape, 64)[..., ::-1]
        .reshape(len(words), -1)[:, :bits],
    "the bits are 1 and 0 here; signs are +1 and -1":
        lambda words, bits: _signs_of(words)[:, :bits] > 0,
    "the unused bits of the last word are returned too; a row has `bits` signs":
        lambda words, bits: _signs_of(words),
    "the last `bits` signs are returned; the unused bits are behind the first `bits` ones":
        lambda words, bits: _signs_of(words)[:, -bits:],
    "+1 and -1 are exchanged: a bit of 1 is +1": lambda words, bits: -_signs_of(words)[:, :bits],
    "only the first word is unpacked": lambda words, bits: _signs_of(words[:, :1])[:, :bits],
    "the words of a row come in the wrong order: word 0 holds the first 64 signs":
        lambda words, bits: _signs_of(words[:, ::-1])[:, :bits],
}  # fmt: skip


def _words(seed, rows, bits):
    return _packed(np.random.default_rng(seed).choice([-1, 1], (rows, bits)))


_PACKED = [{"words": _words(s, 2, bits), "bits": bits} for s, bits in enumerate((100, 5, 130))]


def unpacked_values(codes: ModuleType) -> None:
    """unpack_codes undoes pack, for rows of one word and of several."""
    from hypothesis import strategies as st

    def check(seed, bits):
        inputs = {"words": _words(seed, 2, bits), "bits": bits}
        compare(codes.unpack_codes, lambda words, bits: _signs_of(words)[:, :bits], inputs,
                _UNPACK_MISTAKES, probes=_PACKED)  # fmt: skip

    for seed, one in enumerate(_PACKED):
        check(seed, one["bits"])
    for_all(check, 30, seed=st.integers(0, 99), bits=st.sampled_from([1, 63, 64, 65, 200]))


def unpacked_dtype(codes: ModuleType) -> None:
    """unpack_codes returns float32, what the layers compute with."""
    got = np.asarray(call(codes.unpack_codes, _PACKED[0])).dtype
    if got != np.float32:
        text = f"the signs are {got}; layers compute with float32"
        raise Wrong(text, {"bits": _PACKED[0]["bits"]}, got, np.dtype(np.float32))


# ------------------------------------------------------------------------------------------ nearest


def _distances(queries, words):
    return _popcount_words(queries[:, None] ^ words[None]).sum(axis=-1)


def _nearest(queries, words):
    distances = _distances(queries, words)
    return distances.argmin(axis=1), distances.min(axis=1)


def _last_nearest(queries, words):
    rows, distances = _nearest(queries, words[::-1])
    return len(words) - 1 - rows, distances


def _farthest(queries, words):
    distances = _distances(queries, words)
    return distances.argmax(axis=1), distances.max(axis=1)


def _first_words(queries, words):
    return _nearest(queries[:, :1], words[:, :1])


def _by_number(queries, words):
    xor = (queries[:, None] ^ words[None]).sum(axis=-1)
    return xor.argmin(axis=1), xor.min(axis=1)


def _number_then_bits(queries, words):
    rows = _by_number(queries, words)[0]
    return rows, _distances(queries, words)[np.arange(len(rows)), rows]


_NEAREST_MISTAKES = {
    "this is the code in which the most bits differ; the nearest has the smallest distance":
        _farthest,
    "of several nearest codes the last one is returned; asked for is the first": _last_nearest,
    "the XOR is compared as a number, where the highest bit counts most; count its ones with "
    "popcount_words": (_by_number, _number_then_bits),
    "only the first word of each code is compared; add up the differences of all words":
        _first_words,
    "rows and distances are exchanged: rows come first":
        lambda queries, words: _nearest(queries, words)[::-1],
    "for each stored code the nearest query is found; it is the other way round":
        lambda queries, words: _nearest(words, queries),
    "the equal bits are counted, not those that differ": lambda queries, words:
        (_nearest(queries, words)[0], 64 * words.shape[1] - _nearest(queries, words)[1]),
}  # fmt: skip


def _stored(seed, bits, rows=6):
    words = _words(seed, rows, bits)
    return {"queries": _words(seed + 1000, 4, bits), "words": np.concatenate([words, words[:2]])}


def nearest_values(codes: ModuleType) -> None:
    """nearest finds the first of the stored codes with the fewest bits that differ."""
    from hypothesis import strategies as st

    probes = [_stored(5, 100), _stored(6, 3), _stored(7, 130)]

    def check(seed, bits, rows):
        with _right_packing(codes):
            compare(codes.nearest, _nearest, _stored(seed, bits, rows), _NEAREST_MISTAKES,
                    probes=probes, results=("rows", "distances"))  # fmt: skip

    for seed, bits in ((5, 100), (6, 3), (7, 130)):
        check(seed, bits, 6)
    for_all(
        check, 30, seed=st.integers(0, 99), bits=st.sampled_from([2, 64, 65]),
        rows=st.integers(2, 6),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------- head


def head_exactly(codes: ModuleType) -> None:
    """predict_words gives the integer sums of the float head, one layer to three, from words."""
    from hypothesis import strategies as st

    def check(seed, widths):
        weights, layers, x = network(seed, widths)
        for layer, w in zip(layers, weights, strict=True):
            layer["words"] = _packed(w)

        def predict_words(layers, x):
            before = _packed(x)
            words = before.copy()
            with _right_packing(codes):
                answer = codes.predict_words(layers, words)
            if not np.array_equal(words, before):
                raise Wrong("predict_words writes into its argument words; work on a copy")
            return answer

        try:
            compare(predict_words, reading(weights), {"layers": layers, "x": x},
                    predict_mistakes(weights))  # fmt: skip
        except Wrong as wrong:  # the words of the layers say little
            wrong.inputs = {"widths": list(widths), "codes": len(x)}
            raise

    check(0, (70, 65, 3))
    check(1, (200, 128, 10))
    widths = st.lists(st.sampled_from([3, 70, 64, 1]), min_size=2, max_size=4)
    for_all(check, 40, seed=st.integers(0, 999), widths=widths)


def head_integers(codes: ModuleType) -> None:
    """predict_words returns integers."""
    weights, layers, x = network(1, (8, 4))
    layers[0]["words"] = _packed(weights[0])
    with _right_packing(codes):
        answer = np.asarray(call(codes.predict_words, {"layers": layers, "words": _packed(x)}))
    if answer.dtype.kind != "i":
        raise Wrong("the scores are not integers", {"widths": [8, 4]}, answer.dtype, "int32")


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "08.1",
        "pack_codes",
        "The code of each row of logits, its likelier bits, as words.",
        "Phase 2: codes as words",
        (packed_values,),
        (
            "Which value of a bit is likelier where its logit is positive? Where it is 0?",
            "np.where makes +1 and -1 of a comparison of the logits with 0.",
            "Give these signs to pack of chapter 04: it keeps the rows apart and fills the tail.",
        ),
    ),
    Exercise(
        "08.2",
        "unpack_codes",
        "Signs of packed codes, on which a head is trained.",
        "Phase 2: codes as words",
        (unpacked_values, unpacked_dtype),
        (
            "How do you get bit i of one word? Shift it down to place 0, and mask.",
            "words[:, :, None] >> np.arange(64, dtype=np.uint64) has all bits of all words: "
            "(N, W, 64).",
            "Mask with np.uint64(1), reshape to (N, 64 W), cut to `bits` columns, and let np.where "
            "make float32 signs of them.",
        ),
    ),
    Exercise(
        "08.3",
        "nearest",
        "For each query the stored code in which the fewest bits differ.",
        "A check: do similar images have similar codes?",
        (nearest_values,),
        (
            "A bit of a ^ b is 1 where a and b differ.",
            "queries[:, None, :] ^ words[None, :, :] has every pair; popcount_words counts the "
            "ones of each word, and a pair has several words.",
            "Sum the counts over the last axis: (N, M) distances. argmin over axis 1 returns the "
            "first of equal ones, min the distance itself.",
        ),
    ),
    Exercise(
        "08.4",
        "predict_words",
        "Integer scores of a binary head, from stored words.",
        "The better version: the head on words",
        (head_exactly, head_integers),
        (
            "What is the first thing that packed_predict of 06.4 does, and who has done it here?",
            "Every layer makes sums by xnor_matmul; all but the last make signs of them, packed "
            "for the next layer.",
            "(sums >= thresholds) != flipped are bools, and pack wants signs: np.where in between. "
            "The last layer returns its sums.",
        ),
    ),
)
