"""Loss landscapes and flip spectra, against evaluations one by one."""

import contextlib

import numpy as np
import pytest

from tinybnn import analysis, deploy, nn, quantizers
from tinybnn import functional as F
from tinybnn.tensor import Tensor, no_grad


def network(seed=0):
    rng = np.random.default_rng(seed)
    model = nn.Sequential(
        nn.BinaryConv2d(2, 4, 3, padding=1, input_quantizer=None, rng=rng), nn.BatchNorm2d(4),
        nn.BinaryConv2d(4, 6, 3, padding=1, groups=2, scale="mean", rng=rng), nn.MaxPool2d(2),
        nn.BatchNorm2d(6), nn.Flatten(), nn.BinaryLinear(24, 3, bias=True, rng=rng),
    )  # fmt: skip
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            n = len(module.weight)
            module.running_mean += rng.standard_normal(n).astype(np.float32)
            module.running_var *= 3.0
            module.bias.data += 0.3 * rng.standard_normal(n).astype(np.float32)
    return model


def batches(sizes=(6, 5), seed=0):
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((n, 2, 4, 4), np.float32), rng.integers(0, 3, n)) for n in sizes
    ]  # fmt: skip


def loss_by_hand(model, data, surface="binary"):
    signs = quantizers.surrogates() if surface == "surrogate" else contextlib.nullcontext()
    with model.in_mode(training=False), no_grad(), signs:
        losses = [F.cross_entropy(model(Tensor(x)), y, reduction="none").data for x, y in data]
    return np.concatenate(losses).astype(np.float64).mean()


def set_vector(model, vector):
    place = 0
    for p in model.parameters():
        p.data[...] = vector[place : place + p.numel()].reshape(p.shape)
        place += p.numel()


# -------------------------------------------------------------------------------------- directions


def test_filters_of_a_direction_are_as_long_as_those_of_the_model():
    model = network()
    model[2].weight.data[3] = 0.0
    direction, place = analysis.random_direction(model, seed=1), 0
    for p in model.parameters():
        part = direction[place : place + p.numel()].reshape(p.shape)
        place += p.numel()
        if p.ndim == 1:
            assert not part.any()
            continue
        lengths = [
            np.linalg.norm(filters.reshape(len(p), -1), axis=1) for filters in (part, p.data)
        ]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert place == len(direction) and direction.dtype == np.float32
    assert np.array_equal(direction, analysis.random_direction(model, seed=1))
    assert not np.array_equal(direction, analysis.random_direction(model, seed=2))


def test_a_direction_of_one_layer():
    model = network()
    assert len(analysis.random_direction(model, model[2])) == model[2].weight.numel()
    np.testing.assert_array_equal(
        analysis.parameter_vector(model, [model[2].weight]), model[2].weight.data.ravel()
    )


def test_a_trajectory_in_a_plane_is_found_again():
    rng = np.random.default_rng(0)
    plane, _ = np.linalg.qr(rng.standard_normal((50, 2)))
    steps = rng.standard_normal((6, 2)) * [3.0, 1.0]
    snapshots = rng.standard_normal(50) + steps @ plane.T
    trajectory = analysis.trajectory(snapshots)
    assert (
        trajectory.explained.sum() == pytest.approx(1.0)
        and trajectory.explained[0] > trajectory.explained[1]
    )
    np.testing.assert_allclose(
        trajectory.directions @ trajectory.directions.T, np.eye(2), atol=1e-12
    )
    again = snapshots[-1] + trajectory.coordinates @ trajectory.directions
    np.testing.assert_allclose(again, snapshots, atol=1e-12)
    assert not trajectory.coordinates[-1].any()
    one = analysis.trajectory(snapshots, 1)
    away = snapshots - snapshots[-1]
    _, singular, _ = np.linalg.svd(away)
    assert one.explained[0] == pytest.approx(singular[0] ** 2 / (singular**2).sum())


def test_snapshots_that_span_no_plane():
    with pytest.raises(ValueError, match="more than 2 snapshots"):
        analysis.trajectory(np.eye(2))
    line = np.outer(np.arange(4.0), np.ones(5))
    with pytest.raises(ValueError, match="do not span 2 directions"):
        analysis.trajectory(line)


# ------------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("surfaces", [("binary", "surrogate"), ("surrogate",)])
def test_each_point_is_a_loss_of_the_moved_network(surfaces):
    model, data = network(), batches()
    origin = analysis.parameter_vector(model)
    directions = [analysis.random_direction(model, seed=s) for s in (1, 2)]
    axes = [-0.5, 0.0, 1.0], [0.0, 0.25]
    landscape = analysis.loss_landscape(model, data, directions, axes, surfaces=surfaces)
    np.testing.assert_array_equal(analysis.parameter_vector(model), origin)
    assert landscape.losses.keys() == set(surfaces)
    other = network()
    for i, a in enumerate(axes[0]):
        for j, b in enumerate(axes[1]):
            set_vector(other, origin + (a * directions[0] + b * directions[1]))
            for name in surfaces:
                expected = loss_by_hand(other, data, name)
                assert landscape.losses[name][i, j] == pytest.approx(expected, rel=1e-5)


def test_the_true_loss_is_that_of_the_packed_model():
    model, data = network(), batches()
    direction = analysis.random_direction(model)
    landscape = analysis.loss_landscape(model, data, direction, [0.0, 0.7], surfaces=["binary"])
    origin = analysis.parameter_vector(model)
    for i, a in enumerate([0.0, 0.7]):
        set_vector(model, origin + np.float32(a) * direction)
        packed = deploy.compile(model.eval(), (2, 4, 4))
        losses = [float(F.cross_entropy(packed.predict(x), y)) * len(x) for x, y in data]
        assert landscape.losses["binary"][i] == sum(losses) / 11


def test_the_surrogate_is_smooth_and_the_true_loss_a_staircase():
    model, data = network(), batches()
    direction = analysis.random_direction(model, model[6], seed=3)
    few, many = (
        analysis.loss_landscape(
            model, data, direction, np.linspace(0, end, 9), parameters=model[6]
        ).losses
        for end in (1e-3, 1.0)
    )  # fmt: skip
    assert len(set(few["surrogate"])) == len(set(many["surrogate"])) == 9
    # The bias is no filter: only signs move.
    assert len(set(few["binary"])) < 3 < len(set(many["binary"]))


def test_statistics_of_the_batch_on_request():
    model, data = network(), batches()
    before = {k: v.copy() for k, v in model.state_dict().items()}
    landscape = analysis.loss_landscape(
        model, data, analysis.random_direction(model), [0.0], surfaces=["binary"], training=True
    )
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    model.train()
    losses = [float(F.cross_entropy(model(Tensor(x)), y).data) * len(x) for x, y in data]
    assert landscape.losses["binary"][0] == pytest.approx(sum(losses) / 11)
    assert landscape.losses["binary"][0] != analysis.mean_loss(model, data)


def test_along_an_eigenvector_the_loss_curves_by_its_eigenvalue():
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(5, 3, rng=rng)).to(np.float64)
    data = [(rng.standard_normal((20, 5)), rng.integers(0, 3, 20))]
    pairs = analysis.top_eigenvalues(analysis.HessianOperator(model, data), 1, tol=1e-10)
    h = 1e-3
    landscape = analysis.loss_landscape(
        model, data, pairs.vectors.T, [-h, 0.0, h], surfaces=["surrogate"]
    )
    below, here, above = landscape.losses["surrogate"]
    assert (below - 2 * here + above) / h**2 == pytest.approx(pairs.values[0], rel=1e-4)


class Interrupted:
    """A list of batches that fails after being read a given number of times."""

    def __init__(self, data, limit):
        self.data, self.left = data, limit

    def __iter__(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return iter(self.data)


def test_a_grid_goes_on_from_its_file(tmp_path):
    model, data, path = network(), batches(), tmp_path / "grid.npz"
    directions = [analysis.random_direction(model, seed=s) for s in (1, 2)]
    axes = [[0.0, 0.5, 1.0], [0.0, 1.0]]
    whole = analysis.loss_landscape(model, data, directions, axes)
    before = analysis.parameter_vector(model)
    stopped = Interrupted(data, 1 + 6)  # once for the file's hash, once for each of 1.5 rows
    with pytest.raises(KeyboardInterrupt):
        analysis.loss_landscape(model, stopped, directions, axes, checkpoint=path)
    np.testing.assert_array_equal(analysis.parameter_vector(model), before)
    half = analysis.load_landscape(path)
    assert np.isnan(half.losses["binary"]).tolist() == [[False] * 2, [True] * 2, [True] * 2]
    rest = Interrupted(data, 1 + 8)
    resumed = analysis.loss_landscape(model, rest, directions, axes, checkpoint=path)
    for name in ("binary", "surrogate"):
        np.testing.assert_array_equal(resumed.losses[name], whole.losses[name])
    again = Interrupted(data, 1)  # nothing is left to do
    analysis.loss_landscape(model, again, directions, axes, checkpoint=path)
    with pytest.raises(ValueError, match="is of another landscape"):
        analysis.loss_landscape(model, batches(seed=1), directions, axes, checkpoint=path)


def test_a_landscape_is_saved_and_read(tmp_path):
    model = network()
    landscape = analysis.loss_landscape(
        model, batches(), analysis.random_direction(model), [0.0, 0.1]
    )
    landscape.save(tmp_path / "a.npz")
    again = analysis.load_landscape(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.coordinates[0], landscape.coordinates[0])
    for name in landscape.losses:
        np.testing.assert_array_equal(again.losses[name], landscape.losses[name])


def test_wrong_grids():
    model, data = network(), batches()
    direction = analysis.random_direction(model)
    for message, kwargs in [
        ("directions must be one or two vectors", {"directions": direction[:-1]}),
        ("directions must be one or two vectors", {"directions": [direction] * 3}),
        ("coordinates must be an array for each of the 1", {"coordinates": [[0.0], [1.0]]}),
        ("surfaces must be some of", {"surfaces": ["packed"]}),
        ("surfaces must be some of", {"surfaces": []}),
    ]:
        with pytest.raises(ValueError, match=message):
            analysis.loss_landscape(model, data, **{"directions": direction, **kwargs})
    with pytest.raises(ValueError, match="no sample"):
        analysis.mean_loss(model, [])
    with pytest.raises(ValueError, match="surface must be one of"):
        analysis.mean_loss(model, data, surface="float")


# ----------------------------------------------------------------------------------- flip spectrum


def flips_by_hand(model, layer, data):
    """The loss of the model with each single weight flipped, one at a time."""
    changes = np.empty(layer.weight.shape)
    base = analysis.mean_loss(model, data)
    for i in np.ndindex(layer.weight.shape):
        before = layer.weight.data[i].copy()
        layer.weight.data[i] = -before
        changes[i] = analysis.mean_loss(model, data) - base
        layer.weight.data[i] = before
    return base, changes


@pytest.mark.parametrize("layer", ["0", "2", "6"])
def test_the_spectrum_is_that_of_flips_one_by_one(layer):
    """The first layer has real inputs, the second has groups and a scale, the third a bias."""
    model, data = network(), batches()
    before = analysis.parameter_vector(model)
    spectrum = analysis.flip_spectrum(model, layer, data)
    base, changes = flips_by_hand(model, model[int(layer)], data)
    assert spectrum.loss == base and spectrum.changes.any()
    np.testing.assert_allclose(spectrum.changes, changes, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(analysis.parameter_vector(model), before)
    assert model.training


class Residual(nn.Module):
    """A module that is no Sequential, with a shortcut around its layer."""

    def __init__(self, rng):
        self.conv = nn.BinaryConv2d(2, 2, 3, padding=1, padding_mode="ones", rng=rng)
        self.head = nn.BinaryLinear(32, 3, weight_quantizer="magnitude_aware_sign", rng=rng)

    def forward(self, x):
        return self.head(F.flatten(self.conv(x) + 3.0 * x, 1))


@pytest.mark.parametrize("path", ["conv", "head"])
def test_a_layer_inside_of_a_module(path):
    model, data = Residual(np.random.default_rng(0)), batches()
    for whole, name in ((model, path), (nn.Sequential(nn.LeakyReLU(), model), f"1.{path}")):
        spectrum = analysis.flip_spectrum(whole, name, data)
        base, changes = flips_by_hand(whole, getattr(model, path), data)
        assert spectrum.loss == base
        np.testing.assert_allclose(spectrum.changes, changes, rtol=0, atol=1e-15)


def test_a_weight_of_zero_flips_as_well():
    model, data = network(), batches()
    weight = model[6].weight.data
    weight[0, 0] = 0.0  # which counts as +1
    change = analysis.flip_spectrum(model, "6", data).changes[0, 0]
    base = analysis.mean_loss(model, data)
    weight[0, 0] = -1e-30
    assert change == analysis.mean_loss(model, data) - base != 0


def test_a_spectrum_in_several_chunks(monkeypatch):
    model, data = network(), batches()
    whole = analysis.flip_spectrum(model, "2", data)
    monkeypatch.setattr("tinybnn.analysis.landscape._AT_ONCE", 6 * 16 * 6 * 5)
    np.testing.assert_array_equal(analysis.flip_spectrum(model, "2", data).changes, whole.changes)


def test_a_spectrum_goes_on_from_its_file(tmp_path):
    model, data, path = network(), batches(), tmp_path / "flips.npz"
    whole, calls = analysis.flip_spectrum(model, "2", data), []

    def loss(output, target):
        calls.append(1)
        if len(calls) == 100:
            raise KeyboardInterrupt
        return F.cross_entropy(output, target)

    with pytest.raises(KeyboardInterrupt):
        analysis.flip_spectrum(model, "2", data, loss, checkpoint=path)
    first = len(calls)
    resumed = analysis.flip_spectrum(model, "2", data, loss, checkpoint=path)
    np.testing.assert_array_equal(resumed.changes, whole.changes)
    assert resumed.loss == whole.loss
    assert len(calls) - first < 2 * (6 * 18 + 1)  # not all over again
    with pytest.raises(ValueError, match="is of another spectrum"):
        analysis.flip_spectrum(model, "6", data, loss, checkpoint=path)


def test_layers_without_flips():
    rng = np.random.default_rng(0)
    shared = nn.BinaryLinear(6, 6, rng=rng)
    model = nn.Sequential(
        shared, nn.Linear(6, 6), shared, nn.BinaryLinear(6, 3, weight_quantizer="ste_tern")
    )
    data = [(np.ones((2, 6), np.float32), np.zeros(2, int))]
    for path in ("1", "3", "9", ""):
        with pytest.raises(ValueError, match="layer must be the path of"):
            analysis.flip_spectrum(model, path, data)
    with pytest.raises(ValueError, match="runs 2 times"):
        analysis.flip_spectrum(model, "0", data)
    assert "forward" not in vars(shared)


def test_bars_appear_on_stderr_when_asked(capsys):
    model, data = network(), batches()
    for progress in (False, True):
        analysis.flip_spectrum(model, "6", data, progress=progress)
        out, err = capsys.readouterr()
        assert not out and ("filter" in err) == progress
        analysis.loss_landscape(model, data, analysis.random_direction(model), progress=progress)
        out, err = capsys.readouterr()
        assert not out and ("point" in err) == progress
