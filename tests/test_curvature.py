"""Curvature: products with Hessians, eigenvalues, trace and density, against explicit matrices."""

import sys

import numpy as np
import pytest

from tinybnn import analysis, models, nn, quantizers
from tinybnn import functional as F
from tinybnn.analysis import GaussNewtonOperator, HessianOperator
from tinybnn.datasets import DataLoader
from tinybnn.tensor import Tensor, grad


def samples(shape=(5,), sizes=(6, 3), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((n, *shape)), rng.integers(0, classes, n)) for n in sizes]


def float_network(seed=0):
    rng = np.random.default_rng(seed)
    layers = nn.Linear(5, 4, rng=rng), nn.Tanh(), nn.Linear(4, 3, rng=rng)
    return nn.Sequential(*layers).to(np.float64)


def binary_network(weight_quantizer="swish_sign", pool=nn.MaxPool2d, seed=0):
    """A small network with a real first layer; its latent weights lie within the clip."""
    rng = np.random.default_rng(seed)
    options = {"input_quantizer": "approx_sign", "weight_quantizer": weight_quantizer, "rng": rng}
    wide = {"eps": 0.1}  # a channel of equal sums must not curve like 1 / eps
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1, rng=rng), nn.BatchNorm2d(3, **wide),
        nn.BinaryConv2d(3, 2, 3, padding=1, **options), pool(2), nn.BatchNorm2d(2, **wide),
        nn.BinaryConv2d(2, 2, 3, padding=1, groups=2, **options), nn.BatchNorm2d(2, **wide),
        nn.Flatten(), nn.BinaryLinear(8, 3, scale="learned", **options), nn.BatchNorm1d(3, **wide),
    ).to(np.float64)  # fmt: skip
    for p in model.parameters():
        p.data += 0.1 * rng.standard_normal(p.shape)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean += 0.3 * rng.standard_normal(len(m.running_mean))
            m.running_var *= 5.0
    return model


def images(seed=0):
    return samples((2, 4, 4), (6, 5), seed=seed)


def differences(gradient, parameters, step=1e-5):
    """The Jacobian of a gradient by central differences, column by column."""
    columns = []
    for p in parameters:
        for i in np.ndindex(p.shape):
            before = p.data[i]
            p.data[i] = before + step
            above = gradient()
            p.data[i] = before - step
            columns.append((above - gradient()) / (2 * step))
            p.data[i] = before
    return np.stack(columns, axis=1)


def assert_equal_matrices(actual, expected, tolerance=1e-6):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


# ----------------------------------------------------------------------------- which function it is


def test_the_hessian_of_a_float_network():
    model = float_network()
    H = HessianOperator(model, samples())
    matrix = H.to_dense()
    assert H.dtype == matrix.dtype == np.float64 and H.shape == (39, 39)
    assert_equal_matrices(matrix, differences(H.gradient, H.parameters), 1e-8)
    assert_equal_matrices(matrix, matrix.T, 1e-14)


def logistic_hessian(weight, batches):
    """Mean of x xᵀ ⊗ (diag p - p pᵀ), in the order of a (classes, features) weight."""
    x = np.concatenate([x for x, _ in batches])
    logits = x @ weight.T
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    inner = np.einsum("ni,ij->nij", p, np.eye(p.shape[1])) - np.einsum("ni,nj->nij", p, p)
    full = np.einsum("nij,na,nb->iajb", inner, x, x) / len(x)
    return full.reshape(weight.size, weight.size)


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_logistic_regression_in_closed_form(operator):
    model, batches = nn.Sequential(nn.Linear(5, 3, bias=False)).to(np.float64), samples()
    expected = logistic_hessian(model[0].weight.data, batches)
    assert_equal_matrices(operator(model, batches).to_dense(), expected, 1e-12)


def test_the_gauss_newton_matrix_by_its_jacobian():
    model, batches = float_network(), samples()
    G = GaussNewtonOperator(model, batches)
    x = Tensor(np.concatenate([x for x, _ in batches]))
    jacobian = differences(lambda: model(x).data.ravel(), G.parameters).reshape(9, 3, -1)
    p = F.softmax(model(x).data, 1)
    inner = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    expected = np.einsum("nia,nij,njb->ab", jacobian, inner, jacobian) / len(p)
    assert_equal_matrices(G.to_dense(), expected, 1e-8)
    assert np.linalg.eigvalsh(G.to_dense()).min() > -1e-12


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("weights", ["swish_sign", "approx_sign", "ste_sign"])
def test_the_hessian_of_the_surrogate_network(weights, training):
    model = binary_network(weight_quantizer=weights)
    H = HessianOperator(model, images(), signs="surrogate", training=training)
    matrix = H.to_dense()
    assert_equal_matrices(matrix, differences(H.gradient, H.parameters), 1e-6)
    assert_equal_matrices(matrix, matrix.T, 1e-12)


def test_the_surrogate_network_computes_surrogates():
    model, [(x, _), *_] = binary_network().eval(), images()
    with quantizers.surrogates():
        output = model(Tensor(x)).data
    h = model[1](model[0](Tensor(x)))
    for i in (2, 5, 8):
        layer = model[i]
        s, v = layer.input_quantizer.surrogate(h), layer.weight_quantizer.surrogate(layer.weight)
        if i == 8:
            h = model[9](F.linear(s, v) * layer.scale)
        else:
            h = F.conv2d(s, v, padding=1, groups=layer.groups)
            h = model[7](model[6](h)) if i == 5 else model[4](model[3](h))
    np.testing.assert_allclose(output, h.data, rtol=1e-12)
    assert np.abs(output - model(Tensor(x)).data).max() > 0.1


class Frozen(quantizers.Quantizer):
    """s(x) + [q(x₀) - s(x₀)], with x₀ what it was called with first: one for each batch."""

    values = None

    def __init__(self, quantizer, count):
        self.quantizer, self.corrections, self.calls, self.count = quantizer, {}, 0, count

    def forward(self, x):
        batch = self.calls % self.count
        self.calls += 1
        if batch not in self.corrections:
            self.corrections[batch] = self.quantizer.forward(x) - self.quantizer.surrogate(x)
        return self.quantizer.surrogate(x) + self.corrections[batch]

    def pseudo_gradient(self, x):
        return self.quantizer.pseudo_gradient(x)


@pytest.mark.parametrize("training", [False, True])
def test_the_straight_through_hessian_holds_the_residual_of_each_sign(training):
    # Sums of signs are often equal, and a maximum of equal values is a kink: so use mean pooling.
    model, batches = binary_network(pool=nn.AvgPool2d), images()
    H = HessianOperator(model, batches, training=training)
    matrix, gradient = H.to_dense(), H.gradient()
    for module in model.modules():
        for name in ("input_quantizer", "weight_quantizer"):
            if getattr(module, name, None) is not None:
                setattr(module, name, Frozen(getattr(module, name), len(batches)))
    np.testing.assert_allclose(H.gradient(), gradient, rtol=1e-10, atol=1e-14)
    assert_equal_matrices(matrix, differences(H.gradient, H.parameters), 1e-6)
    assert_equal_matrices(matrix, matrix.T, 1e-12)


def test_the_gradient_of_the_estimator_is_that_of_no_function():
    """Its Jacobian is not symmetric, unlike the Hessian of any function."""
    model = binary_network()
    H = HessianOperator(model, images())
    jacobian = differences(H.gradient, H.parameters, 1e-7)
    assert np.abs(jacobian - jacobian.T).max() > 0.1 * np.abs(jacobian).max()


@pytest.mark.parametrize("layer", [
    nn.RSign(4), nn.RPReLU(4), nn.Maxout(4), nn.PReLU(4),
    nn.AdaBinConv2d(4, 4, 3, padding=1), nn.DualBinaryConv2d(4, 4, 3, padding=1),
    nn.BinaryConv2d(4, 4, 3, padding=1, padding_mode="ones", scale="mean"),
])  # fmt: skip
def test_other_layers_of_binary_networks(layer):
    rng = np.random.default_rng(1)
    model = nn.Sequential(nn.Conv2d(2, 4, 1, rng=rng), layer, nn.Flatten(), nn.Linear(64, 3))
    for p in model.to(np.float64).parameters():
        p.data += 0.05 * rng.standard_normal(p.shape)
    held = layer.weight if getattr(layer, "scale_mode", None) == "mean" else None
    parameters = [p for p in model.parameters() if p is not held]
    H = HessianOperator(model, images(), parameters=parameters[:-2], signs="surrogate")
    assert_equal_matrices(H.to_dense(), differences(H.gradient, H.parameters), 1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_that_are_recorded_have_the_values_of_those_that_are_not(training):
    rng = np.random.default_rng(5)
    model = models.cnn((1, 12, 12), channels=(16, 16, 16), features=200, padding=1, rng=rng)
    [(x, y)] = float32(samples((1, 12, 12), (40,), 10))
    with model.in_mode(training=training):
        plain, recorded = (
            grad(F.cross_entropy(model(Tensor(x)), y), model.parameters(), create_graph=create)
            for create in (False, True)
        )
    for a, b in zip(plain, recorded, strict=True):
        assert np.linalg.norm(a.data - b.data) <= 1e-4 * np.linalg.norm(a.data)


def float32(batches):
    return [(x.astype(np.float32), y) for x, y in batches]


@pytest.mark.parametrize("signs", ["straight-through", "surrogate"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_kernels_give_the_products_of_formulas(operator, training, signs):
    """float32 runs on kernels and bits, float64 on NumPy's formulas."""
    rng = np.random.default_rng(4)
    # The second convolution and, in the first batch, the dense layer are large enough for bits.
    model = models.cnn((1, 12, 12), channels=(16, 16, 16), features=200, padding=1, rng=rng)
    for module in model:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):  # no input of a sign is about 0
            module.bias.data += 0.2 * rng.standard_normal(len(module.bias)).astype(np.float32)
    batches = samples((1, 12, 12), (40, 24), 10)
    v = np.random.default_rng(3).standard_normal(sum(p.numel() for p in model.parameters()))
    product = operator(model, float32(batches), signs=signs, training=training) @ v
    assert product.dtype == np.float32
    exact = [(x.astype(np.float64), y) for x, y in float32(batches)]
    expected = operator(model.to(np.float64), exact, signs=signs, training=training) @ v
    assert np.linalg.norm(product - expected) <= 2e-4 * np.linalg.norm(expected)


# --------------------------------------------------------------------------- layers, batches, state


def test_a_layer_is_a_block_of_the_whole():
    model, batches = float_network(), samples()
    whole = HessianOperator(model, batches).to_dense()
    for parameters in (model[2], list(model[2].parameters())):
        block = HessianOperator(model, batches, parameters=parameters)
        assert_equal_matrices(block.to_dense(), whole[24:, 24:], 1e-12)


def test_the_cut_into_batches_does_not_matter_in_eval_mode():
    model, batches = binary_network(), images()
    joined = [tuple(map(np.concatenate, zip(*batches, strict=True)))]
    matrices = [HessianOperator(model, b).to_dense() for b in (batches, joined)]
    assert_equal_matrices(*matrices, 1e-12)


def test_products_leave_the_model_as_it_was():
    model = binary_network().eval()
    model[0].bias.requires_grad = False
    before = {name: array.copy() for name, array in model.state_dict().items()}
    model[2].weight.grad = mark = Tensor(np.ones(3))
    H = HessianOperator(model, images(), parameters=model[2], training=True)
    first = H.matvec(np.ones(H.size))
    assert np.array_equal(H @ np.ones(H.size), first)
    assert not any(m.training for m in model.modules()) and model[2].weight.grad is mark
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name]), name


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
@pytest.mark.parametrize("signs", ["straight-through", "surrogate"])
@pytest.mark.parametrize("count, graphs", [(1, 1), (2, 0), (2, 1), (2, 2), (2, 9)])
def test_a_held_operator_gives_the_same_products(operator, signs, count, graphs):
    model = binary_network()
    H = operator(model, images()[:count], signs=signs, graphs=graphs)
    vectors = np.random.default_rng(0).standard_normal((3, H.size))
    expected = [H @ v for v in vectors]
    calls, forward = [], model[0].forward
    model[0].forward = lambda x: calls.append(1) or forward(x)
    with H.held():
        for v, product in zip(vectors, expected, strict=True):
            assert np.array_equal(H @ v, product)
    kept = min(graphs, count)
    assert len(calls) == kept + len(vectors) * (count - kept)
    model[2].weight.data *= 0.5
    calls.clear()
    assert not np.array_equal(H @ vectors[0], expected[0]) and len(calls) == count
    calls.clear()
    top = analysis.top_eigenvalues(H, 2)
    assert top.steps > 2 and len(calls) == kept + top.steps * (count - kept)


def test_parameters_that_the_loss_does_not_curve_in():
    """A bias that nothing reads and a linear loss give zeros, not errors."""
    model = nn.Sequential(nn.Linear(5, 3)).to(np.float64)
    model[0].spare = nn.Linear(2, 2).to(np.float64)
    for operator in (HessianOperator, GaussNewtonOperator):
        H = operator(model, samples())
        product = H @ np.random.default_rng(0).standard_normal(H.size)
        assert product[:18].all() and not product[-6:].any()
        linear = operator(model, samples(), lambda output, target: output.mean())
        assert not (linear @ np.ones(H.size)).any()


def test_loaders_columns_and_shapes():
    [(x, y)] = float32(samples(sizes=(9,)))
    loader = DataLoader(list(zip(x, y, strict=True)), 4)
    model = float_network()
    H = HessianOperator(model, [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])])
    v = np.random.default_rng(0).standard_normal((39, 2))
    expected = H.to_dense() @ v
    np.testing.assert_allclose(HessianOperator(model, loader) @ v, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(H.matvec(v[:, :1]), expected[:, :1], atol=1e-12)
    with pytest.raises(ValueError, match=r"vector of 39 numbers, got the shape \(38,\)"):
        H.matvec(np.ones(38))


def test_wrong_arguments():
    model = float_network()
    for message, kwargs in [
        ("signs must be one of", {"signs": "binary"}),
        ("parameters is empty", {"parameters": []}),
        (r"parameters\[0\] is not a parameter", {"parameters": nn.Linear(2, 2)}),
        ("twice", {"parameters": [model[0].bias] * 2}),
        ("can be read only once", {"batches": iter(samples())}),
        ("graphs must not be negative, got -1", {"graphs": -1}),
    ]:
        with pytest.raises(ValueError, match=message):
            HessianOperator(model, **{"batches": samples(), **kwargs})
    with pytest.raises(ValueError, match="no sample"):
        HessianOperator(model, []).gradient()
    dropping = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5))
    HessianOperator(dropping, samples())
    with pytest.raises(ValueError, match=r"1 is a dropout with p=0\.5"):
        HessianOperator(dropping, samples(), training=True)


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ImportError, match=r"pip install 'tinybnn\[analysis\]'"):
        HessianOperator(float_network(), samples()).linear_operator()


# -------------------------------------------------------------------------------------- eigenvalues


def symmetric(n=60, seed=0):
    """A matrix whose eigenvalues fall off like those of networks, some of them negative."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    values = 10.0 / (1 + np.arange(n)) * np.where(np.arange(n) % 4 == 1, -1, 1)
    return q @ np.diag(values) @ q.T


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_eigenvalues_are_those_of_scipy(which):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    for operator in (HessianOperator(binary_network(), images()), symmetric()):
        result = analysis.top_eigenvalues(operator, 5, which=which, tol=1e-9, max_steps=200)
        expected = linalg.eigsh(operator, 5, which=which, return_eigenvectors=False)
        key = np.abs if which == "LM" else np.asarray
        np.testing.assert_allclose(
            np.sort(key(result.values)), np.sort(key(expected)), rtol=1e-8, atol=1e-10
        )


def test_scipy_takes_the_operator_as_its_own():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    H = HessianOperator(float_network(), samples())
    own = H.linear_operator()
    assert isinstance(own, linalg.LinearOperator) and own.dtype == np.float64
    shifted = own + linalg.aslinearoperator(np.eye(39))
    np.testing.assert_allclose(shifted @ np.ones(39), H @ np.ones(39) + 1, atol=1e-12)


def test_residuals_are_those_of_the_vectors():
    matrix = symmetric()
    result = analysis.top_eigenvalues(matrix, 6, tol=1e-2)
    explicit = np.linalg.norm(matrix @ result.vectors - result.vectors * result.values, axis=0)
    assert result.steps < 60 and explicit.max() > 1e-6
    np.testing.assert_allclose(result.residuals, explicit, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(result.vectors.T @ result.vectors, np.eye(6), atol=1e-12)
    assert result.residuals.max() <= 1e-2 * np.abs(result.values).max()


def test_no_eigenvalue_shows_up_twice():
    """Without reorthogonalisation the largest would reappear long before step 60."""
    result = analysis.top_eigenvalues(symmetric(), 60, max_steps=60)
    np.testing.assert_allclose(np.sort(result.values), np.linalg.eigvalsh(symmetric()), atol=1e-10)


@pytest.mark.parametrize("matrix", [np.zeros((7, 7)), np.eye(7), np.diag([3.0, 3, 3, 1, 1, 0, 0])])
def test_few_different_eigenvalues(matrix):
    result = analysis.top_eigenvalues(matrix, 7)
    np.testing.assert_allclose(result.values, np.sort(np.diag(matrix))[::-1], atol=1e-12)


class Counted:
    """A matrix that fails after some products."""

    def __init__(self, matrix, limit=10**9):
        self.matrix, self.shape, self.dtype, self.limit = matrix, matrix.shape, matrix.dtype, limit
        self.count = 0

    def __matmul__(self, other):
        self.count += 1
        if self.count > self.limit:
            raise KeyboardInterrupt
        return self.matrix @ other


def test_lanczos_goes_on_from_its_file(tmp_path):
    matrix, options = symmetric(), {"k": 5, "tol": 1e-8, "checkpoint": tmp_path / "lanczos.npz"}
    whole = analysis.top_eigenvalues(matrix, 5, tol=1e-8)
    with pytest.raises(KeyboardInterrupt):
        analysis.top_eigenvalues(Counted(matrix, 12), **options)
    rest = Counted(matrix)
    resumed = analysis.top_eigenvalues(rest, **options)
    assert rest.count == whole.steps - 12 + 1  # the last one is checked
    assert resumed.steps == whole.steps
    for a, b in zip(resumed[:3], whole[:3], strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(ValueError, match="is of another operator"):
        analysis.top_eigenvalues(symmetric(seed=1), **options)
    with pytest.raises(ValueError, match="is of another computation"):
        analysis.top_eigenvalues(matrix, **options, seed=1)


def test_the_density_goes_on_from_its_file(tmp_path):
    matrix, options = symmetric(), {"vectors": 4, "steps": 9, "checkpoint": tmp_path / "d.npz"}
    whole = analysis.spectral_density(matrix, vectors=4, steps=9)
    with pytest.raises(KeyboardInterrupt):
        analysis.spectral_density(Counted(matrix, 20), **options)
    rest = Counted(matrix)
    resumed = analysis.spectral_density(rest, **options)
    assert rest.count == 18 + 1 and np.array_equal(resumed.nodes, whole.nodes)
    assert np.array_equal(resumed.weights, whole.weights)
    with pytest.raises(ValueError, match="is of another operator"):
        analysis.spectral_density(symmetric(seed=1), **options)
    with pytest.raises(ValueError, match="is of another computation"):
        analysis.spectral_density(matrix, **options | {"steps": 8})


def test_wrong_counts():
    matrix = symmetric(10)
    for kwargs in ({"k": 0}, {"k": 11}, {"which": "XX"}, {"max_steps": 4}):
        with pytest.raises(ValueError, match="top_eigenvalues: "):
            analysis.top_eigenvalues(matrix, **{"k": 5, **kwargs})
    with pytest.raises(ValueError, match="products must be at least 3"):
        analysis.estimate_trace(matrix, 2)
    with pytest.raises(ValueError, match="vectors must be at least 1"):
        analysis.spectral_density(matrix, vectors=0)
    lanczos = analysis.Lanczos(np.eye(1), np.ones(1), np.random.default_rng(0))
    lanczos.step()
    with pytest.raises(ValueError, match="span the whole space"):
        lanczos.step()


# -------------------------------------------------------------------------------- trace and density


def test_the_trace_is_within_its_error():
    matrix = symmetric(200)
    estimates = [analysis.estimate_trace(matrix, 60, seed=seed) for seed in range(20)]
    distance = [abs(e.value - np.trace(matrix)) / e.error for e in estimates]
    assert np.mean(np.array(distance) < 3) >= 0.9
    random = [np.random.default_rng(s).choice([-1.0, 1.0], (60, 200)) for s in range(20)]
    plain = [np.einsum("ki,ij,kj->k", g, matrix, g).mean() - np.trace(matrix) for g in random]
    assert np.mean([(e.value - np.trace(matrix)) ** 2 for e in estimates]) < np.var(plain)


def test_the_trace_is_exact_with_enough_products():
    estimate = analysis.estimate_trace(symmetric(12), 36)
    assert estimate.error == 0 and estimate.value == pytest.approx(np.trace(symmetric(12)))


def test_a_low_rank_matrix_leaves_nothing_to_chance():
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 4)))
    estimate = analysis.estimate_trace(q @ np.diag([5.0, 3, 1, -2]) @ q.T, 15)
    assert estimate.value == pytest.approx(7.0) and estimate.error < 1e-10


def test_the_density_has_the_moments_of_the_eigenvalues():
    matrix, values = symmetric(100), np.linalg.eigvalsh(symmetric(100))
    spectrum = analysis.spectral_density(matrix, vectors=100, steps=20)
    for power in (1, 2, 3):
        scale = np.mean(np.abs(values) ** power)
        assert spectrum.moment(power) == pytest.approx(np.mean(values**power), abs=0.15 * scale)
    grid = np.linspace(-12, 16, 4001)
    density = spectrum(grid, 0.4)
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-3)
    exact = np.exp(-0.5 * ((grid[:, None] - values) / 0.4) ** 2).mean(1) / (0.4 * 2.5066282746)
    assert np.abs(density - exact).max() < 0.1 * exact.max()


def test_bars_appear_on_stderr_when_asked(capsys):
    for progress in (False, True):
        analysis.top_eigenvalues(symmetric(10), 2, progress=progress)
        analysis.estimate_trace(symmetric(10), 6, progress=progress)
        analysis.spectral_density(symmetric(10), vectors=2, steps=3, progress=progress)
        out, err = capsys.readouterr()
        assert not out and ("product" in err) == progress
