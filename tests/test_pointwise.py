"""Programs of elementwise operations equal the operations one by one, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn.kernels.floats import pointwise

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, 3e38], np.float32)
ARITIES = {"add": 2, "sub": 2, "mul": 2, "div": 2, "max": 2, "min": 2, "prelu": 2, "abs": 1}


@st.composite
def programs(draw):
    """(arguments of prepare, inputs): any operations on any values, shapes of all kinds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.sampled_from((1, 3, 10, 63, 64, 65, 128, 130, 192)))
    shape = draw(st.sampled_from(((channels,), (2, 3, channels), (5, 1, channels))))
    samples = draw(st.integers(1, 3))

    def floats(*size):
        numbers = rng.integers(-9, 10, size).astype(np.float32) / 4 + rng.normal() * rng.integers(2)
        special = rng.random(size) < draw(st.sampled_from((0, 0, 0.1)))
        return np.where(special, rng.choice(SPECIAL, size), numbers).astype(np.float32)

    kinds = draw(st.lists(st.sampled_from(("floats", "sums", "pixels")), min_size=1, max_size=4))
    inputs = []
    for kind in kinds:
        size = (samples, *(shape[:-1] if kind == "pixels" else shape))
        inputs.append(
            floats(*size) if kind == "floats" else rng.integers(-20, 21, size, dtype=np.int32)
        )
    operations = []
    for i in range(draw(st.integers(0, 8))):
        value = st.integers(0, len(kinds) + i - 1)
        constants = (floats(channels), floats(1), floats(*shape))
        name = draw(st.sampled_from(sorted(ARITIES)))
        operands = [draw(value)]
        if ARITIES[name] == 2:
            pick = draw(st.integers(0, 5))
            operands.append(constants[pick] if pick < 3 else draw(value))
            if name != "div" and pick < 3 and draw(st.booleans()):
                operands.reverse()
        operations.append((name, *operands))
    value = st.integers(0, len(kinds) + len(operations) - 1)
    floats_out = draw(st.lists(st.tuples(st.just("floats"), value), max_size=2))
    bits_out = draw(
        st.lists(st.tuples(st.just("bits"), value), min_size=not floats_out, max_size=2)
    )
    outputs = draw(st.permutations(floats_out + bits_out))
    return (shape, kinds, operations, outputs), inputs


@st.composite
def layers(draw):
    """(arguments of prepare, inputs): the stages of a binary layer, each there or not, and others.

    A stage that comes twice or in another place is left to the interpreter.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.sampled_from((1, 10, 32, 63, 64, 65, 96, 128, 192)))
    shape = draw(
        st.sampled_from(((channels,), (2, 3, channels), (5, 1, channels), (7, 9, channels)))
    )
    samples = draw(st.integers(1, 3))

    def constant():
        numbers = rng.integers(-9, 10, channels).astype(np.float32) / 4
        special = rng.random(channels) < draw(st.sampled_from((0, 0, 0.1)))
        return np.where(special, rng.choice(SPECIAL, channels), numbers).astype(np.float32)

    kinds = ["sums" if draw(st.booleans()) else "floats", "sums", "floats", "floats"]
    inputs = [
        rng.integers(-20, 21, (samples, *shape), dtype=np.int32)
        if kind == "sums"
        else rng.choice(np.append(SPECIAL, np.arange(-3, 3)), (samples, *shape)).astype(np.float32)
        for kind in kinds
    ]
    operations = []

    def append(name, *operands):
        operations.append((name, *operands))
        return len(kinds) + len(operations) - 1

    def with_constant(name, v):
        return append(name, *((v, constant()) if draw(st.booleans()) else (constant(), v)))

    def second(v):
        return append("add", append("mul", v, constant()), append("mul", 1, constant()))

    stages = {
        "scale": lambda v: append("mul", v, constant()),
        "second": second,
        "before": lambda v: append("add", v, 2),
        "affine": lambda v: with_constant("add", with_constant("mul", v)),
        "after": lambda v: append("add", v, draw(st.sampled_from((2, 3)))),
        "lines": lambda v: append(
            "add", append("prelu", append("sub", v, constant()), constant()), constant()
        ),
    }  # fmt: skip
    names = [name for name in stages if draw(st.booleans())]
    if draw(st.integers(0, 3)) == 0:
        names.insert(draw(st.integers(0, len(names))), draw(st.sampled_from(sorted(stages))))
    values = [0]
    for name in names:
        values.append(stages[name](values[-1]))
    last = values[-1] if draw(st.integers(0, 3)) else draw(st.sampled_from(values))
    outputs = [("floats", values[-1])] * draw(st.booleans())
    for _ in range(draw(st.integers(not outputs, 2))):
        outputs.append(("bits", append("sub", last, constant()) if draw(st.booleans()) else last))
    return (shape, kinds, operations, draw(st.permutations(outputs))), inputs


def same(a, b):
    """Equal bits, NaN equal to NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(
        np.signbit(a) & ~np.isnan(a), np.signbit(b) & ~np.isnan(b)
    )


@given(st.one_of(programs(), layers()))
def test_a_program_equals_its_operations_one_by_one(drawn):
    arguments, inputs = drawn
    result = pointwise.run(pointwise.prepare(*arguments), inputs)
    expected = pointwise.run_reference(arguments, inputs)
    assert all(same(a, b) for a, b in zip(result, expected, strict=True))


def layer(channels, names):
    """(arguments of prepare, inputs): the named stages of a binary layer, one after the other."""
    rng = np.random.default_rng(channels)

    def constant():
        return rng.integers(-9, 10, channels).astype(np.float32) / 4

    operations, value = [], 0

    def append(name, *operands):
        operations.append((name, *operands))
        return 3 + len(operations)  # after four inputs

    outputs = []
    for name in names:
        if name == "scale":
            value = append("mul", value, constant())
        elif name == "second":
            value = append("add", value, append("mul", 1, constant()))
        elif name == "affine":
            value = append("add", append("mul", value, constant()), constant())
        elif name in ("before", "after"):
            value = append("add", value, 2 if name == "before" else 3)
        elif name == "lines":
            value = append("prelu", append("sub", value, constant()), constant())
            value = append("add", value, constant())
        elif name == "floats":
            outputs.append(("floats", value))
        else:
            outputs.append(("bits", append("sub", value, constant())))
    inputs = [rng.integers(-9, 10, (2, 7, 9, channels), dtype=np.int32) for _ in range(2)]
    inputs += [rng.normal(size=(2, 7, 9, channels)).astype(np.float32) for _ in range(2)]
    return ((7, 9, channels), ("sums", "sums", "floats", "floats"), operations, outputs), inputs


USUAL = ["scale", "second", "before", "affine", "after", "lines", "floats", "bits", "bits"]


def run_both_ways(arguments, inputs):
    program = pointwise.prepare(*arguments)
    result, expected = pointwise.run(program, inputs), pointwise.run_reference(arguments, inputs)
    assert all(same(a, b) for a, b in zip(result, expected, strict=True))
    return program


@pytest.mark.parametrize("channels", [1, 32, 40, 64, 96, 128, 130])
def test_the_usual_layer_that_is_interpreted(channels):
    """Its program consists of stages; they give the same floats and bits."""
    program = run_both_ways(*layer(channels, USUAL))
    assert min(program.stages._replace(floats=0)) >= 0
    assert len(program.code) == 13
    assert max(pointwise.prepare((9,), ["sums"], [("abs", 0)], [("floats", 1)]).stages) == -1


@pytest.mark.parametrize("i", range(len(USUAL) - 1))
def test_stages_in_another_order(i):
    names = [*USUAL]
    names[i], names[i + 1] = names[i + 1], names[i]
    run_both_ways(*layer(64, names))
    run_both_ways(*layer(64, [*USUAL[:6], USUAL[min(i, 6)], *USUAL[6:]]))  # one stage twice


@pytest.mark.parametrize("i", range(len(USUAL) - 3))
def test_stages_that_are_left_out(i):
    program = run_both_ways(*layer(64, USUAL[:i] + USUAL[i + 1 :]))
    # A second product follows a scale, and floats are added before an affine or after one.
    is_usual = USUAL[i] not in ("scale", "affine")
    assert (program.stages.sums == 0) == is_usual
    run_both_ways(*layer(64, [*USUAL[:i], *USUAL[6:]]))


@pytest.mark.parametrize("at", range(4, 10))
def test_a_value_inside_of_a_joined_chain(at):
    """mul, add, sub, prelu, add and sub, of which each result is an output as well."""
    (shape, kinds, operations, outputs), inputs = layer(64, ["affine", "lines", "bits"])
    assert len(operations) == 6
    for kind in ("floats", "bits"):
        run_both_ways((shape, kinds, operations, [*outputs, (kind, at)]), inputs)


@pytest.mark.parametrize("limit", [np.inf, -np.inf, np.nan])
def test_a_comparison_with_a_shift_that_is_not_finite(limit):
    """inf - inf is NaN, whose bit is 0, but inf >= inf."""
    x = np.float32([[np.inf, -np.inf, np.nan, 0, 1]])
    arguments = (5,), ("floats",), [("sub", 0, np.full(5, limit, np.float32))], (("bits", 1),)
    (bits,) = pointwise.run(pointwise.prepare(*arguments), [x])
    assert bits == (8 + 16 + 1 if limit == -np.inf else 0)


def test_division_and_square_root_round_as_numpy():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(5, 200)).astype(np.float32) for _ in range(2))
    arguments = ((200,), ("floats", "floats"), [("div", 0, 1), ("abs", 2), ("sqrt", 3)])
    arguments = (*arguments, (("floats", 2), ("floats", 4)))
    quotient, root = pointwise.run(pointwise.prepare(*arguments), [x, y])
    assert np.array_equal(quotient, x / y)
    assert np.array_equal(root, np.sqrt(np.abs(x / y)))


def test_a_value_is_kept_as_long_as_it_is_read():
    x = np.arange(-70, 70, dtype=np.float32).reshape(2, 70)
    two = np.full(1, 2, np.float32)
    operations = [("mul", 0, two), ("sub", 1, 0), ("sub", 2, 1), ("add", 1, 3), ("add", 4, 2)]
    program = pointwise.prepare((70,), ("floats",), operations, (("floats", 5), ("bits", 2)))
    result, bits = pointwise.run(program, [x])
    assert np.array_equal(result, 2 * x + (x - 2 * x) + x)
    assert bits.shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 3), ("floats",), [], (("bits", 0),)), "shape must be"),
        (((3,), ("doubles",), [], (("bits", 0),)), "inputs must be of the kinds"),
        (((3,), ("floats",) * 5, [], (("bits", 0),)), "at most 4 inputs"),
        (((3,), ("floats",), [], ()), "needs an output"),
        (((3,), ("floats",), [("pow", 0, 0)], (("bits", 0),)), "unknown operation 'pow'"),
        (((3,), ("floats",), [("add", 0, 1)], (("bits", 0),)), "before it is computed"),
        (((3,), ("floats",), [], (("bits", 1),)), "value 1, which does not exist"),
        (((3,), ("floats",), [("add", 0, np.ones(3))], (("bits", 0),)), "must be float32"),
        (((3,), ("floats",), [("add", 0, np.ones(2, "f4"))], (("bits", 1),)), "does not broadcast"),
        (((3,), ("floats",), [("div", np.ones(1, "f4"), 0)], (("bits", 1),)), "cannot be divided"),
    ],
)
def test_prepare_names_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        pointwise.prepare(*arguments)


def test_run_names_what_does_not_fit():
    program = pointwise.prepare((3,), ("floats", "sums"), [("add", 0, 1)], (("floats", 2),))
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="takes 2 inputs, got 1"):
        pointwise.run(program, [x])
    with pytest.raises(ValueError, match="input 1 must be int32 with 3 numbers a sample"):
        pointwise.run(program, [x, x])
    with pytest.raises(ValueError, match="the same number of samples"):
        pointwise.run(program, [x, np.zeros((3, 3), np.int32)])
