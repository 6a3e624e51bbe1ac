"""Partitions: which client holds which samples.

A partition is a list with one array for each client: the positions of its samples, in ascending
order. Each sample is in exactly one array, and no array is empty. The same generator or seed gives
the same partition on every run.

Federated learning is hard mostly because of the partition. With `iid`, the data of each client have
the distribution of the whole. With the others they do not: `shards`, `dirichlet` and `by_label`
skew the labels, `by_size` skews the number of samples.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinybnn.datasets import as_generator

Parts: TypeAlias = list[NDArray[np.int64]]
Seed: TypeAlias = np.random.Generator | int | None
_MOST_DRAWS = 1000


def iid(count: int, clients: int, rng: Seed = 0) -> Parts:
    """Shuffle the samples and split them into equal parts, which differ by one sample at most.

    Parameters
    ----------
    count : int
        Number of samples.
    clients : int
    rng : numpy.random.Generator or int or None
        As in `datasets.DataLoader`; seed 0 by default.

    Returns
    -------
    list of (n,) int64 arrays
    """
    _check_clients("iid", clients, count)
    order = as_generator(rng, "iid").permutation(count)
    return _sorted(np.array_split(order, clients))


def shards(labels: ArrayLike, clients: int, shards_per_client: int = 2, rng: Seed = 0) -> Parts:
    """Sort the samples by label, cut them into equal shards, and assign some to each client.

    The partition of McMahan et al. 2017, section 3: 60,000 images in 200 shards of 300, two for
    each of 100 clients, so most clients have only two digits.

    Parameters
    ----------
    labels : (N,) integers
    clients, shards_per_client : int
    rng : numpy.random.Generator or int or None

    Returns
    -------
    list of (n,) int64 arrays
    """
    labels = _check_labels("shards", labels)
    _check_positive("shards", shards_per_client=shards_per_client)
    _check_clients("shards", clients, len(labels))
    count = clients * shards_per_client
    if count > len(labels):
        raise ValueError(
            f"shards: {clients} clients with {shards_per_client} shards each need as many samples, "
            f"got {len(labels)}"
        )
    by_label = np.array_split(np.argsort(labels, kind="stable"), count)
    order = as_generator(rng, "shards").permutation(count).reshape(clients, shards_per_client)
    return _sorted([np.concatenate([by_label[i] for i in own]) for own in order])


def dirichlet(
    labels: ArrayLike, clients: int, alpha: float, rng: Seed = 0, least: int = 1
) -> Parts:
    """Divide each class by shares drawn from a symmetric Dirichlet distribution.

    A large `alpha` gives nearly equal shares; with 0.1 one or two clients have nearly all of a
    class (Yurochkin et al. 2019, section 4; the usual measure of label skew).

    Parameters
    ----------
    labels : (N,) integers
    clients : int
    alpha : float
        Concentration, above 0.
    rng : numpy.random.Generator or int or None
    least : int
        Minimum number of samples of a client: shares are drawn anew until all clients have it.

    Returns
    -------
    list of (n,) int64 arrays

    Raises
    ------
    ValueError
        For bad arguments, and if after 1000 draws some client still has fewer samples than `least`.
    """
    labels = _check_labels("dirichlet", labels)
    _check_positive("dirichlet", least=least)
    _check_clients("dirichlet", clients, len(labels) // least)
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < np.inf:
        raise ValueError(f"dirichlet: alpha must be a number above 0, got {alpha!r}")
    rng = as_generator(rng, "dirichlet")
    members = _by_class(labels, rng)
    for _ in range(_MOST_DRAWS):
        shares = rng.dirichlet(np.full(clients, float(alpha)), len(members))  # (classes, clients)
        counts = np.stack(
            [_apportion(len(own), share) for own, share in zip(members, shares, strict=True)]
        )
        if counts.sum(0).min() >= least:
            return _sorted(_dealt(members, counts))
    raise ValueError(
        f"dirichlet: in {_MOST_DRAWS} draws with alpha={alpha}, some of the {clients} clients "
        f"always had fewer than {least} of {len(labels)} samples; raise alpha or lower `least`"
    )


def by_label(labels: ArrayLike, clients: int, labels_per_client: int = 1, rng: Seed = 0) -> Parts:
    """Assign samples of a fixed number of classes to each client.

    The classes are assigned to the clients in turn, in a random order; clients that share a class
    divide its samples equally.

    Parameters
    ----------
    labels : (N,) integers
    clients, labels_per_client : int
        Their product must reach the number of classes, so that each class has a client.
    rng : numpy.random.Generator or int or None

    Returns
    -------
    list of (n,) int64 arrays
    """
    labels = _check_labels("by_label", labels)
    _check_positive("by_label", labels_per_client=labels_per_client)
    _check_clients("by_label", clients, len(labels))
    classes = np.unique(labels)
    slots = clients * labels_per_client
    if not labels_per_client <= len(classes) <= slots:
        raise ValueError(
            f"by_label: {clients} clients with {labels_per_client} of {len(classes)} classes each "
            "either miss a class or ask for more than there are"
        )
    rng = as_generator(rng, "by_label")
    # Client k takes slots k L to k L + L - 1; neighbours hold different classes, as L <= classes.
    owners = np.arange(slots) // labels_per_client
    order = rng.permutation(len(classes))[np.arange(slots) % len(classes)]
    members = _by_class(labels, rng)
    counts = np.zeros((len(classes), clients), np.int64)
    for c, own in enumerate(members):
        sharing = owners[order == c]
        if len(sharing) > len(own):
            raise ValueError(
                f"by_label: class {classes[c]} has {len(own)} samples for {len(sharing)} clients"
            )
        counts[c, sharing] = [len(part) for part in np.array_split(own, len(sharing))]
    return _sorted(_dealt(members, counts))


def by_size(count: int, shares: ArrayLike, rng: Seed = 0) -> Parts:
    """Shuffle the samples and split them into parts of given relative sizes.

    Parameters
    ----------
    count : int
        Number of samples.
    shares : sequence of positive numbers
        One for each client; only their ratios matter. Each client gets one sample at least.
    rng : numpy.random.Generator or int or None

    Returns
    -------
    list of (n,) int64 arrays
    """
    shares = np.asarray(shares, np.float64)
    if shares.ndim != 1 or not shares.size or not np.all((shares > 0) & (shares < np.inf)):
        raise ValueError(f"by_size: shares must be a list of positive numbers, got {shares!r}")
    _check_clients("by_size", len(shares), count)
    sizes = 1 + _apportion(count - len(shares), shares / shares.sum())
    order = as_generator(rng, "by_size").permutation(count)
    return _sorted(np.split(order, np.cumsum(sizes)[:-1]))


def _by_class(labels, rng):
    """Return the positions of each class in random order."""
    return [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]


def _apportion(count, shares):
    """Round count * shares to integers that sum to `count`, each within 1 (shares sum to 1)."""
    cuts = np.rint(count * np.cumsum(shares)).astype(np.int64)
    cuts[-1] = count  # the last sum may be rounded to another number
    return np.diff(np.minimum(cuts, count), prepend=0)


def _dealt(members, counts):
    """Concatenate each client's part of each class; counts : (classes, clients)."""
    cuts = np.cumsum(counts, axis=1)[:, :-1]
    parts = [np.split(own, cut) for own, cut in zip(members, cuts, strict=True)]
    return [np.concatenate(own) for own in zip(*parts, strict=True)]


def _sorted(parts):
    return [np.sort(part).astype(np.int64) for part in parts]


def _check_labels(function, labels):
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{function}: labels must be (N,) integers, got {labels.dtype} of shape {labels.shape}"
        )
    return labels


def _check_positive(function, **numbers):
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{function}: {name} must be an integer >= 1, got {value!r}")


def _check_clients(function, clients, most):
    _check_positive(function, clients=clients)
    if clients > most:
        raise ValueError(f"{function}: got {clients} clients, the samples suffice for {most}")
