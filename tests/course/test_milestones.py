"""Milestones are reached with the solutions; with a wrong part, a message says what is wrong."""

import numpy as np
import pytest

from tinybnn.course.milestones import (
    MILESTONES,
    adabin,
    bdnet,
    binaryconnect,
    binarynet,
    birealnet,
    hybnn,
    reactnet,
    residual,
    xnornet,
)
from tinybnn.kernels.machine import threads

from students import student


@pytest.fixture(autouse=True)
def one_blas_thread():
    """Limit BLAS to one thread, as in the process of a student's milestone."""
    with threads.one_blas_thread():
        yield


@pytest.fixture
def short(monkeypatch):
    """Shorten training, which these tests do not check."""
    for page in (binaryconnect, binarynet, xnornet, residual, hybnn, bdnet):
        monkeypatch.setattr(page, "EPOCHS", 1)
    for page in (binaryconnect, binarynet, xnornet, birealnet, reactnet, adabin, hybnn, bdnet):
        monkeypatch.setattr(page, "LEAST", 0.0)


def failures(folder, number, **more):
    with student(folder, **more):
        return MILESTONES[number].run(False).failed


@pytest.mark.parametrize("number", MILESTONES)
def test_the_solutions_reach_it(number, tmp_path):
    with student(tmp_path):
        outcome = MILESTONES[number].run(False)
    assert outcome.failed == []
    flips = [v for name, v in outcome.figures.items() if name.startswith("flipped")]
    assert len(flips) >= 3 and min(flips) > 0.01
    assert not any(v for name, v in outcome.figures.items() if name.endswith("that differ"))


def test_progress_is_printed_only_if_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(binaryconnect, "EPOCHS", 5)
    with student(tmp_path):
        MILESTONES[1].run(False)
        assert capsys.readouterr().out == ""
        MILESTONES[1].run(True)
        assert "epoch   5: loss" in capsys.readouterr().out


@pytest.mark.parametrize("number", MILESTONES)
def test_a_sign_that_passes_no_gradient(number, tmp_path, short):
    more = """
def sign_ste(x, gradient=ste_gradient):
    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), lambda grad: (0 * grad,))
"""
    failed = failures(tmp_path, number, estimators=more)
    assert any("is 0 everywhere" in text and "sign_ste" in text for text in failed)


def test_a_sign_without_parents(tmp_path, short):
    more = """
def sign_ste(x, gradient=ste_gradient):
    return Tensor(np.where(x.data >= 0, 1, -1).astype(x.dtype))
"""
    failed = failures(tmp_path, 1, estimators=more)
    names = [f"no gradient arrives at layer {i}" for i in (1, 2, 3)]
    assert all(any(name in text for text in failed) for name in names)


def test_a_gradient_of_another_shape(tmp_path, short):
    more = """
def multiply(a, b):
    return Tensor(a.data * b.data, (a, b), lambda grad: (grad * b.data, grad * a.data))
"""
    failed = failures(tmp_path, 1, engine=more)
    assert any("gamma of layer 1" in text and "unbroadcast" in text for text in failed)


def test_a_loss_that_is_not_a_number(tmp_path, short):
    more = """
_right = cross_entropy


def cross_entropy(scores, labels):
    return _right(scores, labels) * np.nan
"""
    (text,) = failures(tmp_path, 1, layers=more)
    assert "the loss is nan" in text and "cross_entropy" in text


def test_signs_that_never_flip(tmp_path, short):
    failed = failures(tmp_path, 1, layers="Adam.step = lambda self: None\n")
    assert [text.split(" has")[0] for text in failed] == [
        f"no sign of layer {i}" for i in (1, 2, 3)
    ]


def test_training_that_climbs(tmp_path):
    more = """
_right = cross_entropy


def cross_entropy(scores, labels):
    return -_right(scores, labels)
"""
    (text,) = failures(tmp_path, 1, layers=more)
    assert "of the test images are right" in text and "ten seeds" in text


def test_thresholds_off_by_one(tmp_path, short):
    more = """
_right = fold


def fold(limit, mean, var, gamma, beta, eps=1e-5):
    thresholds, flipped = _right(limit, mean, var, gamma, beta, eps)
    return thresholds + 1, flipped
"""
    failed = failures(tmp_path, 2, folding=more)
    assert any("signs behind layer 1 differ" in text and "threshold" in text for text in failed)


def test_scores_that_differ_though_thresholds_are_right(tmp_path, short):
    more = """
_right = packed_predict


def packed_predict(layers, x):
    return _right(layers, x) + 1
"""
    (text,) = failures(tmp_path, 2, folding=more)
    assert "3,600 of 3,600 scores differ" in text and "packed_predict" in text


def test_a_frame_of_minus_one(tmp_path, short):
    more = """
def xnor_conv2d(x, weight, padding=0):
    filters, _, size, _ = weight.shape
    seen = windows(x, size, padding=padding, value=-1)
    k = seen.shape[-1]
    sums = xnor_matmul(pack(seen.reshape(-1, k)), pack(weight.reshape(filters, -1)), k)
    return sums.reshape(*seen.shape[:3], filters).transpose(0, 3, 1, 2)
"""
    failed = failures(tmp_path, 3, convolution=more)
    assert any("block 2 differ" in text and "all at the border" in text for text in failed)


def test_a_convolution_without_its_scale(tmp_path, short):
    more = """
_right = binary_conv2d


def binary_conv2d(x, latent, padding=0):
    return _right(x, latent, padding) * 2.0
"""
    failed = failures(tmp_path, 3, convolution=more)
    assert any("differ between words and floats" in text for text in failed)
    assert not any("border" in text for text in failed)


@pytest.fixture
def short_codes(short, monkeypatch):
    """Nor is the training of codes."""
    monkeypatch.setattr(hybnn, "ENCODER_EPOCHS", 1)
    monkeypatch.setattr(hybnn, "MOST_NATS", 1e9)
    monkeypatch.setattr(hybnn, "LEAST_NEAREST", 0.0)


def test_drawn_bits_that_pass_no_gradient(tmp_path, short_codes):
    more = """
def straight_through(logits, uniform):
    bits = sample_bits(sigmoid(logits.data), uniform).astype(logits.dtype)
    return Tensor(bits, (logits,), lambda grad: (0 * grad,))
"""
    failed = failures(tmp_path, 7, latents=more)
    assert any(
        "encoder 1 is 0 everywhere" in text and "straight_through" in text for text in failed
    )


def test_drawn_bits_that_lead_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(hybnn, "EPOCHS", 1)
    more = """
_right = straight_through


def straight_through(logits, uniform):
    bits = _right(logits, uniform)
    return Tensor(bits.data, (logits,), lambda grad: (-bits.rule(grad)[0],))
"""
    failed = failures(tmp_path, 7, latents=more)
    assert any("nats for a test image" in text and "straight_through" in text for text in failed)


def test_codes_packed_the_other_way(tmp_path, short_codes):
    more = """
_right = pack_codes


def pack_codes(logits):
    return _right(-logits)
"""
    failed = failures(tmp_path, 7, codes=more)
    assert any("stored codes" in text and "pack_codes" in text for text in failed)


def test_nearest_codes_that_are_the_farthest(tmp_path, short_codes, monkeypatch):
    monkeypatch.setattr(hybnn, "LEAST_NEAREST", 0.2)
    more = """
def nearest(queries, words):
    distances = popcount_words(queries[:, None, :] ^ words[None, :, :]).sum(axis=-1)
    return distances.argmax(axis=1), distances.max(axis=1)
"""
    (text,) = failures(tmp_path, 7, codes=more)
    assert "nearest code has the right label" in text and "ten seeds" in text


def test_a_head_that_forgets_flips(tmp_path, short_codes):
    more = """
_right = predict_words


def predict_words(layers, words):
    return _right([layer | {"flipped": False} for layer in layers], words) + 2
"""
    (text,) = failures(tmp_path, 7, codes=more)
    assert "scores differ" in text and "predict_words" in text


def test_a_dual_product_with_halves_rounded_each(tmp_path, short):
    more = """
def dual_matmul(a, first, second, k):
    return xnor_matmul(a, first, k) // 2 + xnor_matmul(a, second, k) // 2
"""
    failed = failures(tmp_path, 8, dual=more)
    assert any("depth-wise layer of unit 1 differ" in text for text in failed)
    assert all("dual_matmul" in text for text in failed)


RESIDUAL = (4, 5, 6)
NETWORKS = dict.fromkeys(
    step
    for page in (birealnet, reactnet, adabin)
    for step in vars(page).values()
    if isinstance(step, type) and issubclass(step, residual.Network)
)


@pytest.mark.parametrize("number", RESIDUAL)
def test_a_slope_that_is_0_although_shortcuts_pass_gradients(number, tmp_path, short):
    failed = failures(tmp_path, number, estimators="def approx_gradient(x):\n    return 0 * x\n")
    assert any("is 0 everywhere" in text and "approx_gradient" in text for text in failed)


@pytest.mark.parametrize("number", RESIDUAL)
def test_a_slope_of_another_shape(number, tmp_path, short):
    more = "def approx_gradient(x):\n    return np.ones((2, 1), x.dtype)\n"
    (text,) = failures(tmp_path, number, estimators=more)
    assert "sign with approx_gradient has shape (2, 7)" in text


@pytest.mark.parametrize("number", (4, 6))
def test_a_residual_network_with_a_frame_of_minus_one(number, tmp_path, short):
    more = """
def xnor_conv2d(x, weight, padding=0):
    filters, _, size, _ = weight.shape
    seen = windows(x, size, padding=padding, value=-1)
    k = seen.shape[-1]
    sums = xnor_matmul(pack(seen.reshape(-1, k)), pack(weight.reshape(filters, -1)), k)
    return sums.reshape(*seen.shape[:3], filters).transpose(0, 3, 1, 2)
"""
    failed = failures(tmp_path, number, convolution=more)
    steps = {text.split(":")[0] for text in failed}
    assert len(steps) == 3 and MILESTONES[number].name in steps
    assert all("differ between words and floats" in text for text in failed)


@pytest.mark.parametrize("number", (4, 6))
def test_sums_on_words_of_another_shape(number, tmp_path, short):
    more = """
_right = xnor_conv2d


def xnor_conv2d(x, weight, padding=0):
    return _right(x, weight, padding).transpose(0, 2, 3, 1)
"""
    (text,) = failures(tmp_path, number, convolution=more)
    assert "xnor_conv2d: expected shape (360, 32, 4, 4)" in text and "(360, 4, 4, 32)" in text


def test_a_residual_network_that_learns_too_little(tmp_path, short, monkeypatch):
    monkeypatch.setattr(birealnet, "LEAST", 1.0)
    (text,) = failures(tmp_path, 4)
    assert "of the test images are right" in text and "ten seeds" in text


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_networks_of_one_seed_begin_with_the_same_weights_and_batches(network, tmp_path):
    with student(tmp_path):
        one, other = np.random.default_rng(3), np.random.default_rng(3)
        a, b = residual.Network(one), network(other)
        assert all(np.array_equal(a.weights[k].data, b.weights[k].data) for k in a.weights)
        assert np.array_equal(a.last.data, b.last.data)
        assert np.array_equal(one.permutation(99), other.permutation(99))
        assert len(network.seeds) == 10


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_what_a_network_adds_reaches_the_loss(network, tmp_path):
    """Each parameter beyond those of XNOR-Net changes the scores, and gets a gradient."""
    with student(tmp_path):
        rng = np.random.default_rng(0)
        one, x = network(rng), rng.uniform(-1, 1, (8, 1, 8, 8)).astype(np.float32)
        added = one.others.keys() - residual.Network(rng).others.keys()
        one(x).sum().backward()
        assert all(np.any(one.others[name].grad) for name in added)


def test_the_convolution_of_binary_sets_is_that_of_their_values(tmp_path):
    with student(tmp_path):
        from mybnn.convolution import windows
        from mybnn.engine import Tensor

        rng = np.random.default_rng(1)
        network = adabin.BinarySets(rng)
        name = residual.BLOCKS[0]
        for value, to in zip(network.sets[name], (0.7, -0.2), strict=True):
            value.data[...] = to
        x = rng.normal(size=(2, residual.CHANNELS, 4, 4)).astype(np.float32)
        latent = network.weights[name].data.reshape(residual.CHANNELS, -1).astype(np.float64)
        middle, spread = latent.mean(1, keepdims=True), latent.std(1, keepdims=True)
        filters = np.where(latent >= middle, middle + spread, middle - spread)
        values = np.where(x >= -0.2, -0.2 + 0.7, -0.2 - 0.7)
        expected = (windows(values, 3, padding=1) @ filters.T).transpose(0, 3, 1, 2)
        in_floats = network.convolution(Tensor(x), name).data
        np.testing.assert_allclose(in_floats, expected, rtol=1e-4, atol=1e-4)
        on_words = network.convolution_on_words(Tensor(x), name)
        assert np.array_equal(on_words, in_floats)


def test_gains_are_paired_by_seed():
    assert residual.gains((0.9, 0.8, 0.8), (0.8, 0.8, 0.7)) == "+6.7 ± 3.3, better in 2 of 3"
