"""Messages as bytes: sizes known in advance, and readers that check everything."""

import hashlib
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_readers_fuzz import changed, changes, fuzz, report, watched  # noqa: F401

from tinybnn import models
from tinybnn.federated import (
    FedAvg,
    Head,
    MajorityVote,
    SignOfUpdate,
    StochasticSign,
    WireError,
    wire,
)
from tinybnn.federated import aggregation as rules
from tinybnn.storage import StorageError

HEADER = wire.Header("update", 3, 2, b"headhead", b"tokentok", since=1, client=5, samples=600)
fields_ = st.one_of(
    st.builds(
        wire.Field,
        st.sampled_from(["float32", "float16", "int64"]),
        st.lists(st.integers(0, 4), max_size=4).map(tuple),
    ),
    st.builds(wire.Field, st.just("bits"), st.tuples(st.integers(0, 4), st.integers(1, 140))),
)
forms = st.lists(fields_, max_size=6).map(lambda f: {f"array {i}": one for i, one in enumerate(f)})


def arrays_of(fields, seed=0):
    rng = np.random.default_rng(seed)
    result = []
    for field in fields.values():
        if field.encoding == "bits":
            result.append(rng.choice(np.int8([-1, 1]), field.shape))
        elif field.encoding == "int64":
            result.append(rng.integers(-(2**63), 2**63, field.shape))
        else:
            drawn = rng.standard_normal(field.shape) * rng.choice([1e-7, 1, np.nan, np.inf])
            result.append(np.asarray(drawn).astype(field.encoding))
    return result


def message_of(fields, header=HEADER, seed=0):
    return wire.encode(header, arrays_of(fields, seed), list(fields.values()))


@given(forms, st.integers(0, 2**32 - 1))
def test_what_is_sent_is_what_arrives(fields, seed):
    sent = arrays_of(fields, seed)
    data = wire.encode(HEADER, sent, list(fields.values()))
    assert len(data) == wire.size(fields.values())
    header, arrays = wire.decode(data, fields)
    assert header == HEADER == wire.read_header(data)
    assert list(arrays) == list(fields)
    for array, given_, field in zip(arrays.values(), sent, fields.values(), strict=True):
        assert array.shape == field.shape and array.dtype == given_.dtype
        assert array.tobytes() == given_.tobytes() and array.flags.writeable


def test_the_bytes_are_those_of_the_description():
    """The documented format, decoded by hand, as a reader in another language would."""
    signs = np.array([[1, -1, -1, -1, -1, -1, -1, -1, 1, 1], [-1] * 9 + [1]])
    fields = {"a": wire.Field("bits", (2, 10)), "b": wire.Field("float16", (1,)),
              "c": wire.Field("int64", ())}  # fmt: skip
    data = wire.encode(HEADER, [signs, np.float16([1.0]), np.int64(-2)], list(fields.values()))
    body = (
        b"tbnw\x01\x03\x03\x00"
        b"\x03\0\0\0\x02\0\0\0\x01\0\0\0\x05\0\0\0\x58\x02\0\0"
        b"headheadtokentok"
        b"\x04\x02\x02\0\0\0\x0a\0\0\0" b"\x02\x01\x01\0\0\0" b"\x03\0"
        b"\x01\x03\x00\x02" b"\x00\x3c" b"\xfe\xff\xff\xff\xff\xff\xff\xff"
    )  # fmt: skip
    assert data == body + hashlib.sha256(body).digest()[:16]


# ------------------------------------------------------------------------------ sizes of HyBNN's


@pytest.mark.parametrize(
    "strategy, norm, up, down",
    [
        # 25,856 weights; 520 floats and two counters of batch norms; frames of 44 + 16 bytes, and
        # 10 for a matrix, 6 for a vector, 2 for a counter
        (FedAvg(), "average", 103_424 + 2080 + 16 + 132, None),
        (FedAvg("float16"), "average", 51_712 + 2080 + 16 + 132, None),
        (StochasticSign(), "average", 3232 + 2080 + 16 + 132, 105_652),
        (SignOfUpdate(), "average", 3232 + 2080 + 16 + 132, 105_652),
        (SignOfUpdate(both=True), "average", 3232 + 2080 + 16 + 132, 5460),
        (MajorityVote(), "average", 3232 + 2080 + 16 + 132, None),
        (SignOfUpdate(both=True), "local", 3232 + 80, None),
        (SignOfUpdate(both=True), "frozen", 3232 + 80, None),
    ],
    ids=repr,
)
def test_the_sizes_of_the_paper_s_head(strategy, norm, up, down):
    entries = Head(models.BinaryMLP(200, 128, 2), norm).entries
    fields = rules.fields(strategy, entries, "up")
    assert sum(f.nbytes for f in fields.values() if f.encoding == "bits") in (0, 3232)
    assert wire.size(fields.values()) == len(message_of(fields)) == up
    fields = rules.fields(strategy, entries, "down", steps=1)
    assert wire.size(fields.values()) == len(message_of(fields)) == (down or up)


def test_savings_against_float32():
    """A factor of 31 for weights, 19 for all with float32 batch norms, 28 without them."""
    plain = Head(models.BinaryMLP(200, 128, 2)).entries
    float32 = wire.size(rules.fields(FedAvg(), plain, "up").values())
    for norm, least in (("average", 19), ("local", 28), ("frozen", 28)):
        entries = Head(models.BinaryMLP(200, 128, 2), norm).entries
        for strategy in (StochasticSign(), SignOfUpdate(), SignOfUpdate(both=True), MajorityVote()):
            fields = rules.fields(strategy, entries, "up")
            assert float32 / wire.size(fields.values()) >= least
            if norm != "average":  # also against float32 weights alone
                without = wire.size(rules.fields(FedAvg(), entries, "up").values())
                assert without / wire.size(fields.values()) >= 31


def test_several_steps_in_one_message():
    entries = Head(models.BinaryMLP(70, 9, 2), "local").entries
    sizes = [
        wire.size(rules.fields(SignOfUpdate(both=True), entries, "down", n).values())
        for n in (0, 1, 5)
    ]
    assert np.diff(sizes).tolist() == [9 * 9 + 2 * 2, 4 * (9 * 9 + 2 * 2)]
    # The longest message of steps is still shorter than the weights.
    steps = rules.fields(SignOfUpdate(both=True), entries, "down", rules.MOST_STEPS)
    assert sum(f.nbytes for f in steps.values()) < 4 * (70 * 9 + 9 * 2) * 1.2


# ----------------------------------------------------------------------------------- bad messages

FORM = {"w": wire.Field("bits", (3, 70)), "b": wire.Field("float32", (3,)),
        "n": wire.Field("int64", ())}  # fmt: skip


def signed(body):
    """A message with the right checksum."""
    return body + hashlib.sha256(body).digest()[:16]


def refused(data, fields=FORM):
    with pytest.raises(WireError) as caught:
        wire.decode(data, fields)
    return str(caught.value)


def test_reasons():
    data = message_of(FORM)
    body = data[:-16]
    assert "cut off: 10 bytes are shorter than any message" in refused(data[:10])
    assert "cut off" in refused(b"")
    assert "damaged or cut off: the checksum of 117 bytes is wrong" in refused(data[:-8])
    assert "damaged" in refused(data[:70] + bytes([data[70] ^ 1]) + data[71:])
    assert "not a message of tinybnn" in refused(signed(b"PK\x03\x04" + body[4:]))
    assert "wire version 2, this side speaks 1" in refused(signed(body[:4] + b"\2" + body[5:]))
    assert "unknown kind 9" in refused(signed(body[:5] + b"\x09" + body[6:]))
    assert "unknown kind 0" in refused(signed(body[:5] + b"\0" + body[6:]))
    assert "oversized: 1,000,125 bytes, expected 125" in refused(data + bytes(1_000_000))
    other = {**FORM, "w": wire.Field("bits", (3, 66))}  # of the same size
    assert "w: expected bits (3, 70), the message has bits (3, 66)" in refused(message_of(other))
    other = {**FORM, "b": wire.Field("float16", (3,))}
    assert "b: expected float32 (3,), the message has float16 (3,)" in refused(message_of(other))
    fewer = {"w": FORM["w"], "b": FORM["b"]}
    assert "n: expected int64 (), the message has " in refused(message_of(fewer))
    assert "3 arrays in 124 bytes, expected 3 in 125" in refused(signed(body[:-1]))
    assert "2 arrays in 125 bytes, expected 3" in refused(signed(body[:6] + b"\2" + body[7:]))
    tail = bytearray(body)
    start = 44 + 10 + 6 + 2
    tail[start + 8] |= 0x80  # bit 71 of a row of 70
    assert "w: bits set behind the 70 bits of a row" in refused(signed(bytes(tail)))
    assert "must be bytes, got str" in refused("text")
    assert "must be bytes, got NoneType" in refused(None)


def decoded(data, fields):
    """Read a message; errors other than storage's are failures."""
    try:
        wire.decode(data, fields)
    except WireError as error:
        raise StorageError(str(error)) from None


def test_an_oversized_message_costs_nothing():
    data = message_of(FORM) + bytes(50_000_000)
    with watched("oversized message", 100, 1 << 17, seconds=2):
        decoded(data, FORM)


def test_bad_content_is_not_sent():
    with pytest.raises(ValueError, match=r"encode: an array of shape \(2,\) does not fit Field"):
        wire.encode(HEADER, [np.zeros(2, np.float32)], [wire.Field("float32", (3,))])
    with pytest.raises(ValueError, match=r"encode: Header.* does not fit a message"):
        wire.encode(wire.Header("update", 2**32, 0, b"", b""), [], [])
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is longer"):
        wire.encode(HEADER, [], [wire.Field("float32", (3,))])


@fuzz
@given(forms, changes, st.booleans())
def test_hostile_messages(fields, steps, repaired):
    """64 KiB more for arrays: a sign takes a byte in memory and a bit in the message."""
    data = changed(message_of(fields), steps)
    if repaired:
        data = signed(data[:-16])
    with watched("messages", len(data), 1 << 16):
        decoded(data, fields)


@fuzz
@given(forms, st.binary(max_size=300), st.integers(0, 65535))
def test_hostile_tables(fields, table, count):
    """Any declarations and bytes after a valid header."""
    header = message_of({})[:44]
    data = signed(header[:6] + count.to_bytes(2, "little") + header[8:] + table)
    with watched("tables of messages", len(data), 1 << 16):
        decoded(data, fields)


@fuzz
@given(forms, forms)
def test_other_forms(sent, expected):
    data = message_of(sent)
    if list(sent.values()) == list(expected.values()):
        wire.decode(data, expected)
    else:
        refused(data, expected)


# ---------------------------------------------------------------------------- without compilation


def digests():
    fields = {"a": wire.Field("bits", (2, 70)), "b": wire.Field("bits", (3, 200))}
    data = message_of(fields)
    _, arrays = wire.decode(data, fields)
    yield hashlib.sha256(data + b"".join(a.tobytes() for a in arrays.values())).hexdigest()


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the run without compilation")
def test_the_same_bytes_without_compilation():
    path = os.pathsep.join(p for p in sys.path if p)
    run = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": path},
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert run.stdout.split() == list(digests())


if __name__ == "__main__":
    print(*digests())
