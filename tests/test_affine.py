"""Batch norm in evaluation is alpha x + beta: float model, packed model and thresholds alike."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import deploy, nn, storage
from tinybnn import functional as F
from tinybnn.deploy.operations import OPERATIONS
from tinybnn.functional.normalization import affine_constants
from tinybnn.kernels.training import normalization
from tinybnn.tensor import Tensor, no_grad
from tinybnn.testing import assert_identical

DATA = Path(__file__).parent / "data"
TINY = np.float32(1e-45)  # the smallest float32, a denormal
SPECIAL = [0.0, -0.0, 1.0, -1.0, TINY, -TINY, 1e-20, -1e-20, 1e30, -1e30, 3e38, np.inf, -np.inf]


@st.composite
def norms(draw, channels=24):
    """Weight, bias, mean, var and eps of a batch norm: usual values, some of them special ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight, bias, mean = rng.normal(size=(3, channels)).astype(np.float32)
    mean = np.round(2 * mean) / np.float32(2)  # of integer sums: then some results are 0
    var = rng.choice(np.float32([0.25, 1, 7.3, 40]), channels)
    for array in (weight, bias, mean):
        at = rng.integers(0, channels, draw(st.integers(0, 8)))
        array[at] = rng.choice(np.float32(SPECIAL), len(at))
    at = rng.integers(0, channels, draw(st.integers(0, 8)))
    var[at] = rng.choice(np.float32([0, TINY, 1e-30, 3e38]), len(at))
    return weight, bias, mean, var, draw(st.sampled_from([1e-5, 1e-3, 1.0]))


def with_norm(module, norm):
    weight, bias, mean, var, eps = norm
    module.eps = eps
    module.weight.data[:], module.bias.data[:] = weight, bias
    module.running_mean[:], module.running_var[:] = mean, var
    return module


def planned_again(packed):
    """A packed model of the same steps, whose plan reads their arrays again."""
    return deploy.PackedModel(packed.input_shape, packed.steps, packed.calls)


def rounded(values):
    with np.errstate(all="ignore"):
        return values.astype(np.float32)


def by_hand(x, norm):
    """The definition, in plain NumPy: constants by float64, each rounded once, two operations."""
    weight, bias, mean, var, eps = norm
    with np.errstate(all="ignore"):
        alpha = rounded(weight / np.sqrt(var.astype(np.float64) + eps))
        beta = rounded(bias - mean.astype(np.float64) * alpha)
        return rounded(x * alpha) + beta


@given(norms(), st.sampled_from([1, 5, 400]))
def test_a_float_model_that_rounds_otherwise(norm, rows):
    x = np.random.default_rng(rows).normal(size=(rows, 24)).astype(np.float32)
    x.reshape(-1)[: len(SPECIAL)] = SPECIAL
    weight, bias, mean, var, eps = norm
    with np.errstate(all="ignore"):
        assert_identical(F.batch_norm(x, mean, var, weight, bias, eps=eps), by_hand(x, norm))


def test_a_product_and_a_sum_in_one_rounding():
    """alpha x = 1 + 2**-11 + 2**-24 is rounded before 1 is subtracted; an FMA keeps 2**-24."""
    x = np.full((40, 4), 1 + 2**-12, np.float32)
    alpha, beta = x[0].copy(), np.full(4, -1, np.float32)
    expected = np.full_like(x, 2**-11)
    assert np.float64(x[0, 0]) * x[0, 0] - 1 != 2**-11
    assert_identical(normalization.affine(x, alpha, beta), expected)
    assert_identical(OPERATIONS["affine"].run(x, alpha=alpha, beta=beta), expected)
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()
    packed = deploy.compile(model, (4,))
    (step,) = packed.steps
    step.arrays |= {"alpha": alpha, "beta": beta}
    assert_identical(planned_again(packed).predict(x), expected)


@given(norms())
def test_a_packed_model_that_rounds_otherwise(norm):
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.BinaryLinear(40, 24, rng=rng), with_norm(nn.BatchNorm1d(24), norm), nn.RPReLU(24),
    ).eval()  # fmt: skip
    x = rng.normal(size=(30, 40)).astype(np.float32)
    with np.errstate(all="ignore"):
        packed = deploy.compile(model, (40,))
        assert "affine" in [step.operation for step in packed.steps]
        assert deploy.verify(model, packed, x) > 0
        with no_grad():
            assert_identical(packed.predict(x), model(Tensor(x)).data)


@given(norms())
def test_thresholds_that_differ_at_a_sum(norm):
    """The signs at all reachable sums, with the sums as the first layer's results."""
    layer = nn.BinaryLinear(40, 24, rng=np.random.default_rng(0))
    model = nn.Sequential(layer, with_norm(nn.BatchNorm1d(24), norm), nn.Quantize()).eval()
    with np.errstate(all="ignore"):
        packed = deploy.compile(model, (40,))
    operations = [step.operation for step in packed.steps]
    sums = np.repeat(np.arange(-40, 41, dtype=np.int32)[:, None], 24, axis=1)
    floats = by_hand(sums.astype(np.float32), norm)
    signs = np.where(floats >= 0, 1, -1)
    if "threshold" in operations:
        step = packed.steps[operations.index("threshold")]
        bits = step.run(sums)
        assert_identical(OPERATIONS["unpack"].run(bits, count=24), signs.astype(np.float32))
    else:  # NaN at some sums: alpha * 0 + beta of an infinite alpha
        assert np.isnan(floats).any() or (np.diff(signs, axis=0) != 0).sum(0).max() > 1


# ---------------------------------------------------------------------------------------- old files


def old_model():
    """The model of tests/data/make_packed_0_1.py, from the float model's side."""
    namespace = {}
    source = (DATA / "make_packed_0_1.py").read_text().split("packed = ")[0]
    exec(compile(source, "make_packed_0_1.py", "exec"), namespace)
    return namespace["model"]


def test_an_old_file_with_other_results():
    packed = deploy.PackedModel.load(DATA / "packed_0_1.npz")
    expected, _ = storage.load(DATA / "predictions_0_1.npz", kind="predictions", version=1)
    assert "batch_norm" in [step.operation for step in packed.steps]
    assert_identical(packed.predict(expected["x"]), expected["logits"])
    *_, (_, last) = packed.run(expected["x"])  # step by step
    assert_identical(last, expected["logits"])


def test_an_old_file_beside_a_new_float_model():
    model, packed = old_model(), deploy.PackedModel.load(DATA / "packed_0_1.npz")
    x = np.random.default_rng(1).normal(size=(50, 1, 8, 8)).astype(np.float32)
    with pytest.raises(AssertionError, match=r"file of version 2.*compile the model again"):
        deploy.verify(model, packed, x)
    again = deploy.compile(model, (1, 8, 8))
    assert "batch_norm" not in [step.operation for step in again.steps]
    assert deploy.verify(model, again, x) > 0
    again = planned_again(again)
    again.steps[2].arrays["beta"] += 1
    with pytest.raises(AssertionError) as error:
        deploy.verify(model, again, x)
    assert "again" not in str(error.value)


def test_an_old_model_that_is_saved_as_a_new_one(tmp_path):
    packed = deploy.PackedModel.load(DATA / "packed_0_1.npz")
    assert packed.version == 2
    packed.save(tmp_path / "old")
    assert deploy.PackedModel.load(tmp_path / "old").version == 2
    deploy.compile(old_model(), (1, 8, 8)).save(tmp_path / "new")
    assert deploy.PackedModel.load(tmp_path / "new").version == deploy.PackedModel.VERSION


def test_an_old_batch_norm_with_a_wrong_eps():
    packed = deploy.PackedModel.load(DATA / "packed_0_1.npz")
    step = next(step for step in packed.steps if step.operation == "batch_norm")
    step.settings["eps"] = "x"
    with pytest.raises(ValueError, match="eps"):
        planned_again(packed).predict(np.zeros((1, 1, 8, 8), np.float32))


def test_constants_outside_of_the_range_of_float32():
    one = np.ones(1, np.float32)
    alpha, beta = affine_constants(3e38 * one, one, -3e38 * one, 0 * one, 1e-12)
    assert (alpha.dtype, alpha[0], beta[0]) == (np.float32, np.inf, np.inf)
    alpha, beta = affine_constants(one, one, one, one, 1e-5, np.float64)
    assert alpha.dtype == beta.dtype == np.float64
