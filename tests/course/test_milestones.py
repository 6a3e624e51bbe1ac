"""Milestones are reached with the solutions; with a wrong part, a message says what is wrong."""

import pytest

from tinybnn.course.milestones import MILESTONES, bdnet, binaryconnect, binarynet, hybnn, xnornet
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
    for page in (binaryconnect, binarynet, xnornet, hybnn, bdnet):
        monkeypatch.setattr(page, "EPOCHS", 1)
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
