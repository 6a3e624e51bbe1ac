"""Partitions: every sample has exactly one client, and the skew is as requested."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import plots
from tinybnn.datasets import from_arrays
from tinybnn.federated import by_label, by_size, dirichlet, iid, shards

seeds = st.integers(0, 2**32 - 1)


def labels_of(count, classes, seed):
    """Labels with each class at least once."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.r_[np.arange(classes), rng.integers(0, classes, count - classes)])


def check_cover(parts, clients, count):
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and part.ndim == 1 and len(part) for part in parts)
    assert all(np.all(np.diff(part) > 0) for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))


def check_seeded(function):
    """The same seed gives the same partition; a generator's state advances."""
    first, again = function(7), function(7)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    rng = np.random.default_rng(7)
    assert all(np.array_equal(a, b) for a, b in zip(first, function(rng), strict=True))
    return first, [function(rng) for _ in range(5)]


@given(st.integers(1, 300), st.integers(1, 40), seeds)
def test_iid(count, clients, seed):
    if clients > count:
        with pytest.raises(ValueError, match=f"iid: got {clients} clients"):
            iid(count, clients, seed)
        return
    parts = iid(count, clients, seed)
    check_cover(parts, clients, count)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 4), st.integers(0, 200), seeds)
def test_shards(classes, clients, each, more, seed):
    count = max(classes, clients * each) + more
    labels = labels_of(count, classes, seed)
    parts = shards(labels, clients, each, seed)
    check_cover(parts, clients, count)
    # A client's samples are at most `each` runs of the sorted labels, one for each shard.
    rank = np.empty(count, int)
    rank[np.argsort(labels, kind="stable")] = np.arange(count)
    for part in parts:
        own = np.sort(rank[part])
        assert np.count_nonzero(np.diff(own) > 1) < each


def test_shards_of_mcmahan():
    labels = np.repeat(np.arange(10), 6000)
    parts = shards(labels, 100, 2)
    check_cover(parts, 100, 60_000)
    assert {len(part) for part in parts} == {600}
    assert {len(np.unique(labels[part])) for part in parts} == {1, 2}


@given(
    st.integers(1, 12), st.integers(1, 8), st.sampled_from([0.05, 0.3, 1.0, 100.0]),
    st.integers(0, 200), seeds,
)  # fmt: skip
def test_dirichlet(classes, clients, alpha, more, seed):
    count = max(classes, clients) + more
    labels = labels_of(count, classes, seed)
    try:
        parts = dirichlet(labels, clients, alpha, seed)
    except ValueError as error:  # few samples in very unequal shares
        assert "in 1000 draws" in str(error) and count < 100 * clients
        return
    check_cover(parts, clients, count)


def test_dirichlet_skews_by_alpha():
    labels = np.repeat(np.arange(10), 200)
    shares = {}
    for alpha in (0.1, 1.0, 1000.0):
        parts = dirichlet(labels, 5, alpha, 0, least=20)
        counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
        assert counts.sum(1).min() >= 20
        shares[alpha] = (counts.max(0) / 200).mean()  # of a class, with the client that has most
    assert shares[0.1] > 0.7 > shares[1.0] > 0.35 > 0.25 > shares[1000.0] >= 0.2


@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 10), st.integers(0, 200), seeds)
def test_by_label(classes, clients, each, more, seed):
    labels = np.r_[np.repeat(np.arange(classes), clients * each), labels_of(classes, classes, 0)]
    labels = np.r_[labels, np.random.default_rng(seed).integers(0, classes, more)]
    if not each <= classes <= clients * each:
        with pytest.raises(ValueError, match="miss a class or ask for more"):
            by_label(labels, clients, each, seed)
        return
    parts = by_label(labels, clients, each, seed)
    check_cover(parts, clients, len(labels))
    assert all(len(np.unique(labels[part])) == each for part in parts)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.integers(0, 300), seeds)
def test_by_size(shares, more, seed):
    count = len(shares) + more
    parts = by_size(count, shares, seed)
    check_cover(parts, len(shares), count)
    exact = 1 + more * np.array(shares) / np.sum(shares)
    assert np.all(np.abs([len(part) for part in parts] - exact) < 1 + 1e-6)


def test_the_seed_decides():
    labels = labels_of(400, 10, 0)
    for function in (
        lambda rng: iid(400, 5, rng),
        lambda rng: shards(labels, 5, 2, rng),
        lambda rng: dirichlet(labels, 5, 0.5, rng),
        lambda rng: by_label(labels, 10, 2, rng),
        lambda rng: by_size(400, [1, 2, 3], rng),
    ):
        first, others = check_seeded(function)
        same = [all(np.array_equal(a, b) for a, b in zip(first, o, strict=True)) for o in others]
        assert not any(same)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda y: iid(10, 0), "iid: clients must be an integer >= 1, got 0"),
        (lambda y: iid(10, 2.5), "iid: clients must be an integer >= 1, got 2.5"),
        (lambda y: iid(10, 2, rng="0"), "iid: rng must be"),
        (lambda y: shards(y, 6, 2), "shards: 6 clients with 2 shards each need as many samples"),
        (lambda y: shards(y * 0.5, 2), r"shards: labels must be \(N,\) integers, got float64"),
        (lambda y: dirichlet(y, 2, 0.0), "dirichlet: alpha must be a number above 0, got 0.0"),
        (lambda y: dirichlet(y, 2, np.nan), "dirichlet: alpha must be"),
        (lambda y: dirichlet(y, 3, 1.0, least=4), "dirichlet: got 3 clients, .* suffice for 2"),
        (lambda y: dirichlet(y, 5, 1e-3, least=2), "dirichlet: in 1000 draws with alpha=0.001"),
        (lambda y: by_label(y, 10, 1), "by_label: class 0 has 3 samples for 5 clients"),
        (lambda y: by_size(10, [1, -1]), "by_size: shares must be a list of positive numbers"),
        (lambda y: by_size(10, []), "by_size: shares must be"),
        (lambda y: by_size(1, [1, 1]), "by_size: got 2 clients"),
    ],
)
def test_bad_arguments(call, message):
    labels = np.array([0, 1, 1, 1, 0, 1, 1, 0, 1, 1])
    with pytest.raises(ValueError if "rng" not in message else TypeError, match=message):
        call(labels)


def test_a_dataset_is_cut_by_positions():
    labels = labels_of(30, 3, 0)
    data = from_arrays(np.arange(30, dtype=np.uint8).reshape(30, 1, 1), labels)
    parts = shards(data.labels, 3, 2)
    assert sum(int(data[part].images.sum()) for part in parts) == 30 * 29 // 2


@pytest.mark.parametrize("classes", [3, 10, 25])
def test_plot(classes):
    labels = labels_of(300, classes, 0)
    parts = dirichlet(labels, 6, 0.5)
    figure = plots.figure()
    axes = figure.subplots()
    plots.partition(labels, parts, [f"c{i}" for i in range(classes)], ax=axes)
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    bars = axes.patches
    assert len(bars) == 6 * classes
    ends = {}
    for bar in bars:  # each client's bars are adjacent and end at its size
        client = round(bar.get_y() + bar.get_height() / 2)
        assert bar.get_x() == ends.get(client, 0)
        ends[client] = bar.get_x() + bar.get_width()
    assert [ends[k] for k in range(6)] == [len(part) for part in parts]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == [f"c{i}" for i in range(classes)]
    widths = np.array([bar.get_width() for bar in bars]).reshape(classes, 6)
    assert widths[1, 2] == np.count_nonzero(labels[parts[2]] == 1)
