"""The binary autoencoder, its codes, and the networks of HyBNN."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import datasets, deploy, nn, optim, storage
from tinybnn import functional as F
from tinybnn.kernels.signs import bits
from tinybnn.models import BinaryCNN, BinaryMLP, BinaryVAE, HyBNN, latents, load_codes, save_codes
from tinybnn.models.binary_vae import binplay_decoder, mirrored_decoder
from tinybnn.tensor import Tensor, no_grad
from tinybnn.testing import assert_identical


def images(n, shape=(1, 8, 8), seed=0):
    return np.random.default_rng(seed).random((n, *shape), np.float32)


def codes_of(n, count, seed=0):
    return np.random.default_rng(seed).choice(np.float32([-1, 1]), (n, count))


def trained(model, shape, steps=3, seed=0):
    """Set statistics and weights as after some training."""
    rng = np.random.default_rng(seed)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        output = model(Tensor(images(16, shape, seed + step) if len(shape) == 3 else
                              codes_of(16, *shape, seed + step)))  # fmt: skip
        (output * rng.standard_normal(output.shape).astype(np.float32)).sum().backward()
        optimizer.step()
    return model


def dense_vae(count=4, estimator="disarm", seed=0):
    """A small float64 model without batch norm, so that images' gradients are independent."""
    vae = BinaryVAE(
        (1, 8, 8), count, estimator, encoder="dense", latent_norm=False, hidden=(6, 5),
        rng=np.random.default_rng(seed),
    ).to(np.float64)  # fmt: skip
    vae.encoder.network[-1].weight.data *= 10  # probabilities away from 1/2
    return vae


# ------------------------------------------------------------------------------------ architecture


@given(
    st.tuples(st.sampled_from([1, 3]), st.integers(8, 35), st.integers(8, 35)),
    st.sampled_from(["convolutional", "dense"]),
    st.sampled_from(["mirrored", "binplay"]),
    st.booleans(),
)
def test_any_image_comes_back_in_its_own_size(shape, encoder, decoder, latent_norm):
    vae = BinaryVAE(
        shape, 5, encoder=encoder, decoder=decoder, latent_norm=latent_norm, hidden=(7, 6)
    ).eval()
    x = Tensor(images(2, shape))
    with no_grad():
        assert vae.encoder.logits(x).shape == (2, 5)
        assert vae(x).shape == (2, *shape)


def weights(module):
    return [p.numel() for name, p in module.named_parameters() if p.ndim > 1]


def test_the_layers_have_the_published_sizes():
    vae = BinaryVAE((1, 28, 28))
    assert weights(vae.encoder) == [288, 18_432, 73_728, 409_600]
    assert weights(vae.decoder) == [409_600, 73_728, 18_432, 288]
    rng = np.random.default_rng(0)
    assert _products(binplay_decoder((1, 28, 28), 200, rng)) == pytest.approx(240e6, rel=0.02)
    assert _products(mirrored_decoder((1, 28, 28), 200, rng)) == 2_548_864
    jang = BinaryVAE((1, 28, 28), encoder="dense", latent_norm=False)
    assert weights(jang.encoder) == [784 * 512, 512 * 256, 256 * 200]
    assert weights(jang.decoder) == [200 * 256, 256 * 512, 512 * 784]


def _products(decoder):
    """Multiply-accumulates of a decoder for one code."""
    shape, total = (200,), 0
    for layer in decoder:
        cost = layer.cost(shape)
        shape, total = cost.output_shape, total + cost.flops
    return total


def test_binary_mlp_has_the_weights_of_the_paper():
    model = BinaryMLP(200, 128, 2)
    latent = [p for p in model.parameters() if isinstance(p, nn.LatentParameter)]
    assert [p.numel() for p in latent] == [25_600, 256] and sum(map(Tensor.numel, latent)) == 25_856
    packed = deploy.compile(model.eval(), (200,))
    stored = {step.operation: step.arrays["weight"].shape for step in packed.steps if step.bits}
    assert stored == {"xnor_linear": (2, 2)}  # the last of both: 128 bits in 2 words
    assert BinaryMLP(20, (16, 12), 10)(Tensor(codes_of(3, 20))).shape == (3, 10)


def test_binary_cnn_is_as_large_as_encoder_and_head_together():
    cnn = BinaryCNN((1, 28, 28))
    parts = BinaryVAE((1, 28, 28)).encoder, BinaryMLP()
    assert weights(cnn) == [size for part in parts for size in weights(part)]
    count = [sum(p.numel() for p in m.parameters()) for m in (cnn, *parts)]
    assert count[0] == count[1] + count[2]
    assert all(isinstance(p, nn.LatentParameter) for p in cnn.parameters() if p.ndim > 1)


# ------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_reconstruction_plus_rate(training):
    vae, x = BinaryVAE((1, 8, 8), 6, rng=np.random.default_rng(0)), images(5)
    vae.train(training)
    loss = vae.loss(x)
    assert [part.shape for part in loss] == [(5,)] * 3
    assert_identical(loss.total.data, loss.reconstruction.data + loss.rate.data)
    np.testing.assert_allclose(loss.rate.data, 6 * np.log(2), rtol=1e-6)
    if not training:
        p = vae.decode(vae.encode(x)).astype(np.float64)
        cross_entropy = -np.sum(x * np.log(p) + (1 - x) * np.log(1 - p), axis=(1, 2, 3))
        np.testing.assert_allclose(loss.reconstruction.data, cross_entropy, rtol=1e-4)


def test_evaluation_mode_has_codes_of_signs():
    """The relaxed estimator's training mode does not, so this test can fail."""
    vae, seen = BinaryVAE((1, 8, 8), 6, "gumbel_softmax", rng=np.random.default_rng(0)), []
    decode = vae.decoder.forward
    vae.decoder.forward = lambda codes: seen.append(np.abs(codes.data)) or decode(codes)
    for training in (True, False):
        vae.train(training).loss(images(5))
    assert (seen[0] != 1).any() and (seen[1] == 1).all()


def brute_force(vae, x):
    """ELBO and log p(x) of each image by a plain loop over all codes, float64."""
    logits = vae.encoder.logits(Tensor(x)).data
    p = 1 / (1 + np.exp(-logits))
    elbo, joint = np.zeros(len(x)), []
    for code in latents.Enumeration.codes(vae.latent_bits, np.float64):
        q = np.prod(np.where(code > 0, p, 1 - p), axis=1)
        y = 1 / (1 + np.exp(-vae.decoder(Tensor(code[None])).data))
        likelihood = np.sum(x * np.log(y) + (1 - x) * np.log(1 - y), axis=(1, 2, 3))
        joint.append(likelihood - vae.latent_bits * np.log(2))
        elbo += q * (joint[-1] - np.log(q))
    return elbo, np.logaddexp.reduce(joint)


def test_the_exact_elbo_is_the_sum_over_all_codes():
    vae, x = dense_vae(), images(3).astype(np.float64)
    elbo, log_p = brute_force(vae, x)
    np.testing.assert_allclose(vae.exact_elbo(x).data, elbo, rtol=1e-12)
    assert np.all(elbo < log_p)


def test_the_exact_elbo_has_the_gradient_of_finite_differences():
    vae, x = dense_vae(), images(2).astype(np.float64)
    vae.exact_elbo(x).sum().backward()
    rng = np.random.default_rng(0)
    for parameter in vae.parameters():
        direction = rng.standard_normal(parameter.shape)
        values = []
        for step in (1e-6, -1e-6):
            parameter.data += step * direction
            values.append(vae.exact_elbo(x).data.sum())
            parameter.data -= step * direction
        slope = (values[0] - values[1]) / 2e-6
        assert slope == pytest.approx((parameter.grad.data * direction).sum(), rel=1e-5, abs=1e-6)


def test_the_exact_elbo_of_a_sign_is_its_own():
    vae, x = dense_vae(estimator="sign"), images(3).astype(np.float64)
    assert_identical(vae.exact_elbo(x).data, -vae.loss(x).total.data)


@pytest.mark.parametrize("name", ["disarm", "score_function"])
def test_the_loss_has_the_gradient_of_the_exact_elbo_in_the_mean(name):
    """In every weight of the model: rate, reconstruction, encoder and decoder together."""
    vae, x, n = dense_vae(estimator=name), images(2).astype(np.float64), 400
    parameters = vae.parameters()
    vae.exact_elbo(x).sum().backward()
    exact = np.concatenate([-p.grad.data.ravel() for p in parameters])
    rng, draws = np.random.default_rng(0), []
    for _ in range(n):
        vae.zero_grad()
        vae.loss(x, rng).total.sum().backward()
        draws.append(np.concatenate([p.grad.data.ravel() for p in parameters]))
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(n)
    z = (np.mean(draws, axis=0) - exact) / np.maximum(error, 1e-9)
    assert np.abs(z).max() < 4.5 and np.abs(exact).max() > 0.1


@pytest.mark.parametrize("estimator", ["disarm", latents.ScoreFunction(3)], ids=str)
def test_gradients_through_the_decoder_can_be_compared(estimator):
    vae, x = dense_vae(3), images(2).astype(np.float64)
    comparison = latents.compare_gradients(
        estimator, vae.encoder.logits(Tensor(x)).data, lambda codes: vae.reconstruction(codes, x),
        vae.decoder.parameters(), samples=600, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert len(comparison.z) == 1 + len(vae.decoder.parameters())
    assert max(np.abs(z).max() for z in comparison.z) < 4.5


def test_the_bound_rises_from_the_elbo_to_the_likelihood():
    vae, x = dense_vae(3), images(2).astype(np.float64)
    elbo, log_p = brute_force(vae, x)
    rng = np.random.default_rng(0)
    single = np.array([vae.bound(x, 1, rng) for _ in range(2000)])
    error = single.std(0, ddof=1) / np.sqrt(len(single))
    assert np.all(np.abs(single.mean(0) - elbo) < 4.5 * error)
    several = np.mean([vae.bound(x, 10, rng) for _ in range(200)], axis=0)
    assert np.all(elbo < several) and np.all(several < log_p)
    np.testing.assert_allclose(vae.bound(x, 20_000, rng), log_p, rtol=2e-3)


def test_the_bound_of_a_sign_needs_one_sample():
    vae, x = dense_vae(estimator="sign"), images(3).astype(np.float64)
    expected = -vae.loss(x).total.data
    for samples in (1, 4):
        np.testing.assert_allclose(vae.bound(x, samples), expected, rtol=1e-12)


def test_the_same_seed_gives_the_same_bound_and_images():
    vae, x = BinaryVAE((1, 8, 8), 12, "straight_through").eval(), images(4)
    for draw in (lambda rng: vae.bound(x, 2, rng), lambda rng: vae.sample(3, rng),
                 lambda rng: vae.loss(x, rng).total.data):  # fmt: skip
        first, again, other = (draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert_identical(first, again)
        assert (first != other).any()


# ------------------------------------------------------------------------------------------- codes


def test_codes_are_the_signs_of_the_logits_whatever_the_batch():
    vae, x = trained(BinaryVAE((1, 8, 8), 70), (1, 8, 8)).train(), images(9)
    codes = vae.encode(x)
    assert vae.training and vae.decoder[0].training  # its mode is restored
    assert_identical(vae.encode(x, batch_size=2), codes)
    with no_grad():
        logits = vae.eval().encoder.logits(Tensor(x)).data
    assert_identical(codes, np.where(logits >= 0, 1, -1).astype(np.float32))
    words = vae.encode_packed(x, batch_size=4)
    assert words.dtype == np.uint64 and words.shape == (9, 2)
    assert_identical(bits.unpack(words, 70), codes)
    assert len(np.unique(codes)) == 2


def test_decoding_gives_probabilities():
    vae, codes = BinaryVAE((3, 9, 8), 10), codes_of(5, 10)
    decoded = vae.decode(codes)
    assert decoded.shape == (5, 3, 9, 8) and 0 < decoded.min() < decoded.max() < 1
    assert_identical(vae.decode(codes.astype(np.int64), batch_size=2), decoded)
    assert vae.sample(4, np.random.default_rng(0)).shape == (4, 3, 9, 8)


def test_no_images_are_no_codes():
    vae = BinaryVAE((1, 8, 8), 10)
    assert vae.encode(images(0)).shape == (0, 10)
    assert vae.encode_packed(images(0)).shape == (0, 1)


def test_codes_take_25_bytes_each_in_a_file(tmp_path):
    vae, n = BinaryVAE((1, 8, 8), 200), 40
    words, labels = vae.encode_packed(images(n)), np.arange(n) % 10
    info = {"dataset": "digits", "seed": 3}
    sizes = [save_codes(tmp_path / "codes", words[:k], 200) for k in (n, 1)]
    assert sizes[0] - sizes[1] == 25 * (n - 1)
    stored = load_codes(tmp_path / "codes")
    assert stored.labels is None and stored.info == {} and len(stored.words) == 1
    save_codes(tmp_path / "codes", words, 200, labels, info)
    stored = load_codes(tmp_path / "codes")
    assert_identical(stored.words, words)
    assert_identical(stored.labels, labels)
    assert stored.bits == 200 and stored.info == info


def test_other_files_are_no_codes(tmp_path):
    path = tmp_path / "file"
    good = {"codes": np.zeros((3, 2), np.uint8)}
    cases = [
        (good, {"bits": 9}),  # no info
        (good, {"bits": 200, "info": {}}),  # other row size
        (good, {"bits": "9", "info": {}}),
        (good, {"bits": 9, "info": []}),
        ({"codes": np.full((3, 2), 255, np.uint8)}, {"bits": 9, "info": {}}),  # bits after the 9th
        ({"codes": np.zeros(2, np.uint8)}, {"bits": 9, "info": {}}),
        ({"labels": np.zeros(3, int)}, {"bits": 9, "info": {}}),
        ({**good, "labels": np.zeros(2, int)}, {"bits": 9, "info": {}}),
        ({**good, "labels": np.zeros(3)}, {"bits": 9, "info": {}}),
        ({**good, "more": np.zeros(3)}, {"bits": 9, "info": {}}),
    ]
    for arrays, metadata in cases:
        storage.save(path, arrays, kind="codes", version=1, metadata=metadata)
        with pytest.raises(storage.StorageError, match="file: not a valid file of codes"):
            load_codes(path)
    storage.save(path, good, kind="packed-model", version=1)
    with pytest.raises(storage.StorageError, match="expected 'codes'"):
        load_codes(path)


# ----------------------------------------------------------------------------------- frozen, packed


def test_a_frozen_encoder_does_not_move_while_the_head_learns():
    vae = trained(BinaryVAE((1, 8, 8), 20), (1, 8, 8))
    model = HyBNN(vae.encoder, BinaryMLP(20, 16, 2))
    before = {name: a.copy() for name, a in model.state_dict().items()}
    x, codes = images(12), vae.encode(images(12))
    model.train().requires_grad_()
    optimizer = optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(Tensor(x)), np.arange(12) % 2).backward()
        optimizer.step()
    for name, array in model.state_dict().items():
        moved = not np.array_equal(array, before[name])
        assert moved == name.startswith("head"), name
    assert_identical(vae.encode(x), codes)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["convolutional", "dense"]), st.booleans())
def test_the_compiled_encoder_gives_the_same_bits(seed, encoder, latent_norm):
    rng = np.random.default_rng(seed)
    shape, count = (int(rng.choice([1, 3])), *rng.integers(8, 14, 2)), int(rng.integers(1, 130))
    vae = BinaryVAE(shape, count, encoder=encoder, latent_norm=latent_norm, hidden=(9, 8), rng=rng)
    shape = vae.image_shape
    trained(vae, shape, seed=seed)
    packed = deploy.compile(vae.encoder.freeze(), shape)
    x = images(5, shape, seed)
    assert deploy.verify(vae.encoder, packed, x) > 0
    assert_identical(packed.predict(x), vae.encode(x))
    assert_identical(bits.pack(packed.predict(x)), vae.encode_packed(x))


def test_the_frozen_encoder_is_saved_and_loaded(tmp_path):
    vae, x = trained(BinaryVAE((1, 8, 8), 200), (1, 8, 8)), images(6)
    deploy.compile(vae.encoder.freeze(), (1, 8, 8)).save(tmp_path / "encoder")
    loaded = deploy.PackedModel.load(tmp_path / "encoder")
    assert_identical(loaded.predict(x), vae.encode(x))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.lists(st.integers(1, 140), min_size=1, max_size=2),
    st.integers(2, 10),
)
def test_the_compiled_head_starts_from_packed_codes(seed, in_features, hidden, classes):
    rng = np.random.default_rng(seed)
    head = trained(BinaryMLP(in_features, hidden, classes, rng=rng), (in_features,)).eval()
    codes = codes_of(7, in_features, seed)
    packed = deploy.compile(head, (in_features,))
    with no_grad():
        expected = head(Tensor(codes)).data
    assert_identical(packed.predict_packed(bits.pack(codes)), expected)
    assert_identical(packed.predict(codes), expected)


def test_no_float_is_touched_between_the_packed_code_and_the_last_layer():
    head = trained(BinaryMLP(200, (128, 70), 2), (200,)).eval()
    packed = deploy.compile(head, (200,))
    words = bits.pack(codes_of(5, 200))
    packs = [i for i, step in enumerate(packed.steps) if step.operation == "pack"]
    assert packs == [0]
    ran = [(step, result.dtype) for step, result in packed.run_plan(words, packs=packs)]
    *before, (last, dtype) = ran
    assert last is packed.steps[-1] and dtype == np.float32
    assert before and all(dtype.kind in "iu" for _, dtype in before)
    covered = sorted(i for task in packed.tasks for i in task.covers)
    assert covered == list(range(len(packed.steps)))
    # Nor is a float among the constants of earlier steps: weights are words, thresholds integers.
    first_float = [step.operation for step in packed.steps].index("to_float")
    assert first_float == len(packed.steps) - 2  # the last layer's sums, then its batch norm
    for step in packed.steps[:first_float]:
        assert all(array.dtype.kind in "iub" for array in step.arrays.values())


def test_a_compiled_hybnn_holds_the_code_as_bits_only(tmp_path):
    shape = (1, 9, 8)
    vae = trained(BinaryVAE(shape, 70), shape)
    model = HyBNN(vae.encoder, trained(BinaryMLP(70, 20, 3), (70,))).eval()
    packed, x = deploy.compile(model, shape), images(11, shape)
    with no_grad():
        expected = model(Tensor(x)).data
    assert_identical(packed.predict(x), expected)
    assert deploy.verify(model, packed, x) > 0
    assert [s.operation for s in packed.steps].count("pack") == 1
    assert not [s for s in packed.steps if s.operation == "unpack"]
    head = deploy.compile(model.head, (70,))
    assert_identical(head.predict_packed(vae.encode_packed(x)), expected)
    packed.save(tmp_path / "hybnn")
    assert_identical(deploy.PackedModel.load(tmp_path / "hybnn").predict(x), expected)


# ---------------------------------------------------------------------------------- the binary CNN


def test_the_sign_of_pixels_in_0_to_1_makes_the_network_a_constant():
    x = images(20, (1, 28, 28))
    for threshold, is_constant in ((0.0, True), (0.5, False)):
        model = trained(BinaryCNN((1, 28, 28), threshold=threshold), (1, 28, 28)).eval()
        with no_grad():
            logits = model(Tensor(x)).data
        assert (np.ptp(logits, axis=0) == 0).all() == is_constant


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_binary_cnn_compiles(seed, has_threshold_per_pixel):
    rng = np.random.default_rng(seed)
    shape = (int(rng.choice([1, 3])), *map(int, rng.integers(8, 13, 2)))
    threshold = rng.random(shape if has_threshold_per_pixel else ()).astype(np.float32)
    model = BinaryCNN(shape, 3, threshold, features=20, hidden=9, rng=rng)
    trained(model, shape, seed=seed)
    packed, x = deploy.compile(model, shape), images(4, shape, seed)
    assert deploy.verify(model, packed, x) > 0
    assert all(s.operation not in ("conv2d", "linear") for s in packed.steps)
    with pytest.raises(ValueError, match=r"predict_packed: .*\(sub\) reads the input as floats"):
        packed.predict_packed(np.zeros((1, *shape[1:], 1), np.uint64))


def test_the_threshold_is_part_of_the_state():
    first, second = BinaryCNN((1, 8, 8), threshold=0.25), BinaryCNN((1, 8, 8))
    second.load_state_dict(first.state_dict())
    assert second.threshold == np.float32(0.25)


# --------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BinaryVAE((28, 28)), r"image_shape must be \(C, H, W\)"),
        (lambda: BinaryVAE((2, 28, 28)), "with 1 or 3 channels"),
        (lambda: BinaryVAE((1, 7, 28)), "at least 8×8 pixels"),
        (lambda: BinaryVAE((1, 8, 8), 0), "latent_bits must be an int >= 1, got 0"),
        (lambda: BinaryVAE((1, 8, 8), 4, "none"), "estimator: expects one of"),
        (lambda: BinaryVAE((1, 8, 8), encoder="conv"), "encoder must be 'convolutional' or"),
        (lambda: BinaryVAE((1, 8, 8), decoder="dense"), "decoder must be 'mirrored' or"),
        (lambda: BinaryVAE((1, 8, 8)).loss(images(2, (1, 8, 9))), r"loss: x must be \(N, 1, 8, 8"),
        (lambda: BinaryVAE((1, 8, 8)).loss(2 * images(2)), r"loss: pixels must lie in \[0, 1\]"),
        (lambda: BinaryVAE((1, 8, 8)).encode(images(2) - 1), "encode: pixels must lie in"),
        (lambda: BinaryVAE((1, 8, 8)).encode(images(2) * np.nan), "encode: pixels must lie in"),
        (lambda: BinaryVAE((1, 8, 8)).exact_elbo(images(1)[0]), "exact_elbo: x must be"),
        (
            lambda: BinaryVAE((1, 8, 8), 11, "disarm").exact_elbo(images(2)),
            r"bits must be from 1 to 10 .*, got 11",
        ),
        (lambda: BinaryVAE((1, 8, 8)).bound(images(1), 0), "bound: samples must be an int >= 1"),
        (lambda: BinaryVAE((1, 8, 8)).encode(images(1), 0), "batch_size must be >= 1, got 0"),
        (lambda: BinaryVAE((1, 8, 8), 9).decode(codes_of(2, 8)), r"codes must be \(N, 9\) of ±1"),
        (lambda: BinaryVAE((1, 8, 8), 9).decode(np.zeros((2, 9))), r"codes must be \(N, 9\) of ±1"),
        (
            lambda: save_codes("x", np.zeros((3, 4), np.uint64), 200, np.zeros(2, int)),
            r"labels must be \(3,\) integers, got int64 of shape \(2,\)",
        ),
        (lambda: save_codes("x", np.zeros(4, np.uint64), 200), r"words must be \(N, words\)"),
        (lambda: HyBNN(BinaryVAE((1, 8, 8)), BinaryMLP()), "pass vae.encoder"),
        (lambda: BinaryCNN((1, 8)), "BinaryCNN: expects image_shape"),
        (lambda: BinaryCNN((1, 8, 8), threshold=np.zeros((2, 8, 8))), "threshold that broadcasts"),
        (lambda: BinaryCNN((1, 8, 8), threshold=np.zeros((5, 1, 8, 8))), "that broadcasts"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ----------------------------------------------------------------------------------------- training


def pairs(dataset, a=0, b=1):
    """Images in [0, 1] of two classes, and their labels."""
    chosen = np.isin(dataset.labels, (a, b))
    x = (dataset.images[chosen] / np.float32(dataset.maximum)).astype(np.float32)
    return x, (dataset.labels[chosen] == b).astype(np.int64)


def test_codes_of_digits_are_learned_and_told_apart():
    train, test = datasets.load("digits")
    rng = np.random.default_rng(0)
    vae = BinaryVAE((1, 8, 8), 64, rng=rng)
    x = (train.images / np.float32(train.maximum)).astype(np.float32)
    optimizer, losses = optim.Adam(vae.parameters(), lr=2e-3), []
    for _ in range(4):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - 63, 64):
            optimizer.zero_grad()
            loss = vae.loss(x[order[start : start + 64]], rng).total.mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] - 20  # nats

    (x, y), (x_test, y_test) = pairs(train, 2, 3), pairs(test, 2, 3)
    model = HyBNN(vae.encoder, BinaryMLP(64, 64, 2, rng=rng))
    codes = vae.encode(x)
    optimizer = optim.Adam(model.head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model.head(Tensor(codes)), y).backward()
        optimizer.step()
    with no_grad():
        predicted = model.eval()(Tensor(x_test)).data.argmax(1)
    assert np.mean(predicted == y_test) > 0.95
