"""Strategies on arrays, compared with plain NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import nn
from tinybnn.federated import (
    FedAvg,
    Head,
    MajorityVote,
    SignOfUpdate,
    StochasticSign,
    calibrate_norms,
)
from tinybnn.federated import aggregation as rules

seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([(1, 1), (2, 9), (3, 64), (4, 70), (2, 3, 3, 2)])
counts = st.lists(st.integers(1, 10**6), min_size=1, max_size=6)


def weights(shape, seed, clip=1.0):
    """Latent weights; some are 0 or at the clip, as after training."""
    rng = np.random.default_rng(seed)
    special = rng.choice([0.0, -0.0, 1.0, -1.0, 0.5], shape)
    drawn = np.where(rng.random(shape) < 0.3, special, rng.uniform(-1, 1, shape))
    return (clip * drawn).astype(np.float32)


# ----------------------------------------------------------------------------------------- FedAvg


@given(shapes, counts, seeds)
def test_fedavg_is_the_weighted_mean(shape, samples, seed):
    received = [weights(shape, seed + k) for k in range(len(samples))]
    mean = FedAvg().aggregate(None, received, samples, 1.0, None)
    exact = sum(n * w.astype(np.float64) for n, w in zip(samples, received, strict=True))
    exact = (exact / sum(samples)).astype(np.float32)
    assert mean.dtype == np.float32 and np.array_equal(mean, exact)
    assert np.all(mean >= np.min(received, axis=0)) and np.all(mean <= np.max(received, axis=0))


@given(shapes, counts, seeds)
def test_the_mean_of_equal_weights_is_that_weight(shape, samples, seed):
    weight = weights(shape, seed) / np.float32(3)
    mean = rules.weighted_mean([weight] * len(samples), samples)
    assert np.array_equal(mean, weight)


@given(shapes, counts, seeds)
def test_fedavg_in_float16(shape, samples, seed):
    strategy = FedAvg("float16")
    after = weights(shape, seed)
    sent = strategy.encode(after, after, 1.0, None)
    assert sent.dtype == np.float16 and np.all(np.abs(sent - after) <= 2.0**-12)
    mean = strategy.aggregate(None, [sent] * len(samples), samples, 1.0, None)
    # The server's state can be sent to clients unchanged.
    assert np.array_equal(mean, sent.astype(np.float32))
    assert np.array_equal(strategy.start(mean), mean)


# ---------------------------------------------------------------------------------- stochastic sign


def test_the_stochastic_sign_is_unbiased():
    """20,000 draws: each weight's mean is within 4.5 standard deviations of the claimed one."""
    strategy, draws, clip = StochasticSign(), 20_000, 0.75
    weight = np.float32([[-0.75, -0.7, -0.3, -0.01, 0.0, 0.01, 0.2, 0.5, 0.74, 0.75]])
    rng = np.random.default_rng(0)
    sent = [strategy.encode(None, weight, clip, rng) for _ in range(draws)]
    assert {int(v) for v in np.unique(sent)} == {-1, 1} and sent[0].dtype == np.int8
    mean = strategy.aggregate(None, sent, [1] * draws, clip, None)
    deviation = np.sqrt(np.maximum(clip**2 - weight.astype(np.float64) ** 2, 0) / draws)
    assert np.all(np.abs(mean - weight) <= 4.5 * deviation + 1e-7)
    assert mean[0, 0] == -0.75 and mean[0, -1] == 0.75  # no draw at all
    variance = np.var(clip * np.array(sent, np.float64), axis=0)
    np.testing.assert_allclose(variance, clip**2 - weight.astype(np.float64) ** 2, atol=0.01)


@given(shapes, counts, seeds)
def test_the_servers_mean_of_signs(shape, samples, seed):
    rng = np.random.default_rng(seed)
    sent = [rng.choice(np.int8([-1, 1]), shape) for _ in samples]
    mean = StochasticSign().aggregate(None, sent, samples, 0.5, None)
    exact = 0.5 * (np.tensordot(samples, np.array(sent, np.int64), 1) / sum(samples))
    assert np.array_equal(mean, exact.astype(np.float32))


# ---------------------------------------------------------------------------------- sign of update


@given(shapes, counts, seeds, st.booleans(), st.sampled_from([1.0, 0.3, None]))
def test_the_sign_of_the_update(shape, samples, seed, both, clip):
    strategy, rng = SignOfUpdate(0.05, both=both), np.random.default_rng(seed)
    before = weights(shape, seed, clip or 1.0)
    afters = [weights(shape, seed + 1 + k, clip or 1.0) for k in range(len(samples))]
    sent = [strategy.encode(before, after, clip, rng) for after in afters]
    for one, after in zip(sent, afters, strict=True):
        assert one.dtype == np.int8 and set(np.unique(one)) <= {-1, 1}
        moved = after != before
        assert np.array_equal(one[moved], np.sign(after - before)[moved])
    stepped = strategy.aggregate(before, sent, samples, clip, rng)
    votes = np.tensordot(samples, np.array(sent, np.int64), 1)
    direction = np.sign(votes) if both else votes / sum(samples)
    expected = before + np.float32(0.05) * direction.astype(np.float32)
    if clip is not None:
        expected = np.clip(expected, np.float32(-clip), np.float32(clip))
    decided = votes != 0 if both else np.ones(shape, bool)
    assert stepped.dtype == np.float32 and np.array_equal(stepped[decided], expected[decided])
    # For a tie or an update of 0 the direction is undefined, but a step is taken.
    assert np.all(np.abs(stepped - before) <= np.float32(0.05) * (1 + 1e-6))
    if both:
        assert np.array_equal(
            strategy.move(before, strategy.direction(before, stepped), clip), stepped
        )


def test_what_has_no_direction_drifts_to_no_side():
    strategy, rng = SignOfUpdate(both=True), np.random.default_rng(0)
    weight = np.zeros((100, 100), np.float32)
    sent = strategy.encode(weight, weight, 1.0, rng)
    assert abs(sent.mean()) < 0.04  # four standard deviations
    tied = strategy.aggregate(weight, [sent, -sent], [5, 5], 1.0, rng)
    assert abs(np.sign(tied).mean()) < 0.04 and np.all(np.abs(tied) == np.float32(0.02))
    assert abs((np.sign(tied) * sent).mean()) < 0.04


# ----------------------------------------------------------------------------------- majority vote


@given(shapes, counts, seeds)
def test_majority_vote(shape, samples, seed):
    strategy = MajorityVote()
    before = strategy.start(weights(shape, seed))
    afters = [weights(shape, seed + 1 + k) for k in range(len(samples))]
    sent = [strategy.encode(before, after, 1.0, None) for after in afters]
    assert all(
        np.array_equal(s, np.where(a >= 0, 1, -1)) for s, a in zip(sent, afters, strict=True)
    )
    winners = strategy.aggregate(before, sent, samples, 1.0, None)
    votes = np.tensordot(samples, np.array(sent, np.int64), 1)
    assert np.array_equal(winners, np.where(votes == 0, before, np.sign(votes)))
    assert set(np.unique(winners)) <= {-1, 1}


# ------------------------------------------------------------------------------------ whole states


def network(seed=0, **options):
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.BinaryConv2d(1, 3, 3, input_quantizer=None, rng=rng),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.BinaryLinear(12, 5, rng=rng, **options),
        nn.BatchNorm1d(5),
        nn.Linear(5, 2, rng=rng),
    )


def kinds(head):
    return {entry.name: entry.kind for entry in head.entries}


def test_a_head_knows_what_is_what():
    model = network(bias=True, scale="learned")
    head = Head(model)
    assert [entry.name for entry in head.entries] == list(model.state_dict())
    assert kinds(head) == {
        "0.weight": "latent", "1.weight": "norm", "1.bias": "norm", "1.running_mean": "mean",
        "1.running_var": "variance", "1.num_batches_tracked": "counter", "3.weight": "latent",
        "3.bias": "real", "3.scale": "real", "4.weight": "norm", "4.bias": "norm",
        "4.running_mean": "mean", "4.running_var": "variance", "4.num_batches_tracked": "counter",
        "5.weight": "real", "5.bias": "real",
    }  # fmt: skip
    assert head.entries[0].shape == (3, 1, 3, 3) and head.entries[0].clip == 1.0
    real = Head(nn.Sequential(nn.BinaryLinear(3, 2, weight_quantizer=None)))
    assert kinds(real) == {"0.weight": "real"}


def test_norms_that_stay():
    names = {n for n, kind in kinds(Head(network())).items() if n[0] in "14"}
    local = Head(network(), "local")
    assert set(local.local) == names and not names & set(kinds(local))
    model = network()
    frozen = Head(model, "frozen")
    assert kinds(frozen) == kinds(local) and frozen.local == ()
    assert model[1].frozen and model[4].frozen and not model[3].frozen


def test_what_is_frozen_is_not_shared_but_known():
    model = network()
    model[0].freeze()
    head = Head(model)
    assert "0.weight" not in kinds(head)
    same, other = network(), network()
    same[0].freeze()
    other[0].freeze()
    other[0].weight.data[0, 0, 0, 0] += 1e-6
    assert Head(same).digest == head.digest != Head(other).digest
    # Shared values may differ; their shape and treatment may not.
    assert Head(network(1)).digest == Head(network(0)).digest
    forms = [
        Head(network(), "local"), Head(network(), "frozen"), Head(network(clip_value=0.5)),
        Head(network(bias=True)), Head(network()),
    ]  # fmt: skip
    assert len({h.digest for h in forms}) == 5


def test_bad_heads():
    with pytest.raises(ValueError, match="Head: norm must be one of average, local, frozen"):
        Head(network(), "none")
    with pytest.raises(ValueError, match=r"Head: 0\.weight must be float32 or int64, got float64"):
        Head(network().to(np.float64))
    with pytest.raises(ValueError, match="no state that is not frozen"):
        Head(network().freeze())


def test_combine_treats_each_kind_by_its_rule():
    model = network()
    head = Head(model)
    before = rules.starting_state(MajorityVote(), head)
    afters = []
    for k in range(3):
        rng = np.random.default_rng(k)
        afters.append({n: a + rng.standard_normal(a.shape).astype(a.dtype) * np.array(3, a.dtype)
                       for n, a in before.items()})  # fmt: skip
        afters[k]["1.num_batches_tracked"] = np.int64([7, 9, 8][k])
    sent = [rules.update(MajorityVote(), head.entries, before, after, None) for after in afters]
    samples = [5, 6, 7]
    combined = rules.combine(MajorityVote(), head.entries, before, sent, samples, None)
    assert list(combined) == list(before)
    for entry in head.entries:
        stack = [after[entry.name] for after in afters]
        if entry.kind == "latent":
            expected = np.sign(np.tensordot(samples, np.where(np.array(stack) >= 0, 1, -1), 1))
        elif entry.kind == "counter":
            expected = np.max(stack, axis=0)
        else:
            expected = np.float32(np.tensordot(samples, np.array(stack, float), 1) / 18)
        np.testing.assert_allclose(combined[entry.name], expected, rtol=1e-6)
        assert combined[entry.name].dtype == before[entry.name].dtype
    assert combined["1.num_batches_tracked"] == 9


def test_bad_strategies():
    for strategy, message in (
        (lambda: FedAvg("float64"), "FedAvg: dtype must be 'float32' or 'float16', got 'float64'"),
        (lambda: SignOfUpdate(0), "SignOfUpdate: step must be a number above 0, got 0"),
        (lambda: SignOfUpdate(float("nan")), "SignOfUpdate: step"),
    ):
        with pytest.raises(ValueError, match=message):
            strategy()
    head = Head(network(clip_value=None))
    with pytest.raises(ValueError, match=r"StochasticSign: .* 3\.weight has no clip_value"):
        rules.starting_state(StochasticSign(), head)
    rules.starting_state(SignOfUpdate(), head)
    with pytest.raises(ValueError, match="combine: expects one number of samples for each update"):
        rules.combine(FedAvg(), head.entries, {}, [], [], None)
    for samples in ([0, 1], [1, 1 << 29]):
        with pytest.raises(ValueError, match="combine: samples must be >= 1 and sum to less"):
            rules.combine(FedAvg(), head.entries, {}, [{}, {}], samples, None)


def test_calibration():
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.BinaryLinear(30, 7, rng=rng),
        nn.BatchNorm1d(7),
        nn.BinaryLinear(7, 2, rng=rng),
        nn.BatchNorm1d(2),
    )
    x = rng.choice(np.float32([-1, 1]), (200, 30))
    calibrate_norms(model, x)
    assert not model.training and model[3].momentum == 0.1
    sums = x @ model[0].binary_weight().T
    np.testing.assert_allclose(model[1].running_mean, sums.mean(0), atol=1e-4)
    np.testing.assert_allclose(model[1].running_var, sums.var(0, ddof=1), rtol=1e-4)
    assert model[3].running_var.min() > 1.5
