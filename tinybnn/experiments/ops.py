"""The operation counts of BD-Net's Tables 1 to 5, recomputed from our networks.

Each printed figure is compared with up to three counts of OPs = BOPs / 64 + FLOPs:

*true*
    every convolution and dense layer of the network, each once, with as many classes as the data
    set has.
*convention*
    the paper's evident rule, which holds for all figures of a table, or for all of its
    full-precision or all of its binary rows. It was found by trial.

    - Tables 2, 4, 5: no dense layer, no squeeze-and-excite; of AdaBin the products, not the further
      sums; a 1.58-bit convolution twice.
    - Table 4, binary rows: all layers of a unit at the resolution of its output, also the first
      1×1, which runs before the stride.
    - Table 5: the 1×1 layers behind the blocks in the full-precision rows only, and there both
      before the mean over the image.
    - Table 3: the dense layer counts, AdaBin's further sums do not.
*fitted*
    the convention with an assumption that we cannot read from any network, listed in `ASSUMPTIONS`.

A figure matches if rounding to the printed digits gives it. It matches exactly by the convention,
"fitted" only by an assumption, else "no".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tinybnn import models, nn, tables
from tinybnn.analysis.opcount import LayerCount, OperationCount, count_operations
from tinybnn.models.shufflenet_v1 import ShuffleUnit

# Height of the images, classes.
DATASETS: dict[str, tuple[int, int]] = {
    "CIFAR-10": (32, 10), "CIFAR-100": (32, 100), "STL-10": (96, 10), "Tiny ImageNet": (64, 200),
    "Flowers 102": (224, 102),
}  # fmt: skip

ASSUMPTIONS: dict[str, str] = {
    "last": "the last 1×1 convolution has 100 output channels, not 1024",
    "last, adabin": "the last 1×1 convolution has 100 output channels, not 1024, and AdaBin's BOPs "
                    "count 1.0517 times",
    "dense": "a dense layer for 1,000 classes counts",
    "branch": "the first 1×1 layer of a unit with stride 2 has a quarter of the branch's channels, "
              "not of the unit's",
    "branch, stem": "the first 1×1 layer of a unit with stride 2 has a quarter of the branch's "
                    "channels, not of the unit's, and the first convolution is 1×1",
    "first stride": "the first block has stride 1",
    "two FLOPs": "two FLOPs for each output of AdaBin's convolutions",
}  # fmt: skip

_ADABIN = 1.0517  # from the four columns of Table 2 that match; no operation explains it
_LAST = 100 / 1024

# Rows: name, method and base of the network, figures as printed.
TABLE_1: tuple[tuple[Any, ...], ...] = (
    ("Full-precision, 3×3 regular", nn.Conv2d, 1, "462M"),
    ("Full-precision, 3×3 depth-wise", nn.Conv2d, 128, "3.61M"),
    ("Binary, 3×3 regular", nn.BinaryConv2d, 1, "7.23M"),
    ("Binary, 3×3 depth-wise", nn.BinaryConv2d, 128, "56K"),
)
TABLE_2: tuple[tuple[Any, ...], ...] = (
    ("Full-Precision", "float", "reactnet", "42.6M 42.6M 383M 170M 569M"),
    ("ReActNet", "reactnet", "reactnet", "6.97M 6.97M 62.7M 27.9M 97M"),
    ("BD-Net-A (ReActNet)", "bdnet-a", "reactnet", "1.56M 1.56M 14.0M 6.23M 32.5M"),
    ("BD-Net-B (ReActNet)", "bdnet-b", "reactnet", "1.83M 1.83M 16.4M 7.31M 34.6M"),
    ("AdaBin", "adabin", "adabin", "7.28M 7.28M 65.6M 29.1M 102M"),
    ("BD-Net-A (AdaBin)", "bdnet-a", "adabin", "1.59M 1.59M 14.3M 6.37M 33M"),
    ("BD-Net-B (AdaBin)", "bdnet-b", "adabin", "1.86M 1.86M 16.7M 7.44M 35.5M"),
)
# The two ReActNet rows of Tables 4 and 5, without and with broadcast residual, print the same.
TABLE_4: tuple[tuple[Any, ...], ...] = (
    ("Full-Precision", "float", "reactnet", "9.70M 9.70M 23.3M 10.3M 126M"),
    ("ReActNet", "reactnet", "reactnet", "1.32M 1.32M 2.97M 1.32M 16.2M"),
    ("BD-Net-B (ReActNet)", "bdnet-b", "reactnet", "0.87M 0.87M 1.96M 0.87M 10.7M"),
)
TABLE_5: tuple[tuple[Any, ...], ...] = (
    ("Full-Precision", "float", "reactnet", "25.9M 25.9M 58.2M 25.9M 83.3M"),
    ("ReActNet", "reactnet", "reactnet", "9.80M 9.80M 6.26M 9.80M 34.1M"),
    ("BD-Net-B (ReActNet)", "bdnet-b", "reactnet", "1.14M 1.14M 1.47M 1.14M 7.99M"),
)
# The rows whose network is public or described; BOPs in 10^9, FLOPs and OPs in 10^8.
TABLE_3: tuple[tuple[Any, ...], ...] = (
    ("Bi-Real Net 18", models.resnet18, "birealnet", 1.0, "1.68 1.41 1.67"),
    ("ReActNet", models.mobilenet_v1, "reactnet", 1.0, "4.82 0.12 0.87"),
    ("AdaBin", models.mobilenet_v1, "adabin", 1.0, "4.82 0.21 0.96"),
    ("ReActNet 0.5×", models.mobilenet_v1, "reactnet", 0.5, "1.22 0.12 0.31"),
    ("BD-Net-A (ReActNet)", models.mobilenet_v1, "bdnet-a", 1.0, "1.09 0.13 0.30"),
    ("BD-Net-B (ReActNet)", models.mobilenet_v1, "bdnet-b", 1.0, "1.08 0.16 0.33"),
    ("BD-Net-B (×1.5) (ReActNet)", models.mobilenet_v1, "bdnet-b", 1.5, "2.50 0.26 0.65"),
)

_UNITS = {"": 1, "K": 1e3, "M": 1e6}


def run(say: Callable[[str], Any] = print) -> list[dict[str, Any]]:
    """Compare all figures and print them.

    Parameters
    ----------
    say : callable
        Takes a line of text at a time.

    Returns
    -------
    list of dict
        As `compare` returns them.
    """
    rows = compare()
    for number in range(1, 6):
        figures = [row for row in rows if row["table"] == number]
        cells = [
            [row["row"], row["dataset"], *(_short(row[key]) for key in _COUNTS), row["match"]]
            for row in figures
        ]
        say(f"Table {number}\n{tables.text(['', '', *_COUNTS, 'match'], cells, '<<>>>><')}")
        for assumption in dict.fromkeys(r["assumption"] for r in figures if r["assumption"]):
            say(f"  fitted: {assumption}")
        matches = [row["match"] for row in figures]
        exact, fitted = matches.count("exact"), matches.count("fitted")
        say(f"  {len(matches)} figures: {exact} match exactly, {fitted} by a fitted assumption\n")
    return rows


_COUNTS = "published", "true", "convention", "fitted"


def _short(count):
    if count is None:
        return ""
    unit, name = (1e3, "K") if count < 1e5 else (1e6, "M") if count < 1e9 else (1e9, "G")
    return f"{count / unit:.4g}{name}"


def compare() -> list[dict[str, Any]]:
    """Compare every figure of the five tables, published and counted.

    Returns
    -------
    list of dict
        ``table`` (1 to 5), ``row``, ``dataset`` (in Table 3 the quantity), ``published``, ``true``,
        ``convention`` in operations, ``match`` ("exact", "fitted" or "no"), and where it is
        "fitted" the count ``fitted`` and the ``assumption``, else None.
    """
    rows = [*_table_1()]
    for number, build, networks, counts in (
        (2, models.mobilenet_v1, TABLE_2, _mobilenet_v1),
        (4, models.shufflenet_v1, TABLE_4, _shufflenet_v1),
        (5, models.mobilenet_v3_small, TABLE_5, _mobilenet_v3),
    ):  # fmt: skip
        for name, method, base, published in networks:
            made = zip(_networks(build, method, base), published.split(), strict=True)
            for (dataset, network, count), figure in made:
                convention, *fits = counts(network, count, method, base)
                rows.append(_row(number, name, dataset, figure, count.ops, convention, fits))
    rows += _table_3()
    return sorted(rows, key=lambda row: row["table"])


def _row(table, row, dataset, published, true, convention, fits=()):
    """A row; ``fits`` are pairs of an assumption's name and a count."""
    number, unit = _parts(published)
    result = {
        "table": table, "row": row, "dataset": dataset, "published": float(number) * unit,
        "true": true, "convention": convention, "match": "no", "fitted": None, "assumption": None,
    }  # fmt: skip
    if prints_as(convention, published):
        return result | {"match": "exact"}
    for name, count in fits:
        if prints_as(count, published):
            return result | {"match": "fitted", "fitted": count, "assumption": ASSUMPTIONS[name]}
    return result


def _parts(published):
    """The number of a printed figure as text, and its unit."""
    number, unit = re.fullmatch(r"([\d.]+)(K|M|e\d+|)", published).groups()
    return number, float(f"1{unit}") if unit.startswith("e") else _UNITS[unit]


def prints_as(count: float, published: str) -> bool:
    """Check that a count, rounded to the digits of a printed figure such as "42.6M", equals it."""
    number, unit = _parts(published)
    return f"{count / unit:.{len(number.partition('.')[2])}f}" == number


# ------------------------------------------------------------------------------------- the counting


def products(layer: LayerCount) -> int:
    """Return the multiply-accumulates of a layer, without AdaBin's further sums."""
    if isinstance(layer.layer, nn.AdaBinConv2d):
        return int(np.prod(layer.output_shape) * np.prod(layer.layer.weight_shape[1:]))
    return layer.bops + layer.flops


def total(count: OperationCount, weigh: Callable[[LayerCount], float]) -> tuple[float, float]:
    """Return the BOPs and FLOPs of a network, each layer's products times ``weigh(layer)``."""
    weighed = {True: 0.0, False: 0.0}  # whether a layer has BOPs -> products
    for layer in count.layers:
        weighed[layer.bops > 0] += products(layer) * weigh(layer)
    return weighed[True], weighed[False]


def ops(count: OperationCount, weigh: Callable[[LayerCount], float], factor: float = 1.0) -> float:
    """Return the OPs of such a total; BOPs count ``factor`` times."""
    bops, flops = total(count, weigh)
    return factor * bops / 64 + flops


def _is_pointwise(layer):
    return getattr(layer.layer, "kernel_size", None) == (1, 1)


def _without_dense(layer):
    return not isinstance(layer.layer, nn.Linear)


def _networks(build, method, base):
    """For each data set: its name, the network and its count.

    Networks for images of one size differ in the last layer only: one of them is counted.
    """
    made = {}
    for dataset, (size, classes) in DATASETS.items():
        if size not in made:
            network = build(1.0, size, classes, method, base=base)
            made = {size: (network, count_operations(network, (3, size, size)).layers)}
        network, (*others, last) = made[size]
        flops = network[-1].in_features * classes
        yield dataset, network, OperationCount((*others, replace(last, flops=flops)))


def _table_1():
    """One layer, 128 -> 128 channels of 56×56."""
    for name, layer, groups, published in TABLE_1:
        conv = layer(128, 128, 3, padding=1, groups=groups, bias=False)
        count = count_operations(conv, (128, 56, 56)).ops
        yield _row(1, name, "", published, count, count)


def _table_3():
    """ImageNet: BOPs, FLOPs and OPs one by one."""
    for name, build, method, width, published in TABLE_3:
        count = count_operations(build(width, 224, 1000, method), (3, 224, 224))
        (bops, flops), fits = total(count, lambda layer: 1), {}
        if method == "adabin":
            outputs = sum(int(np.prod(x.output_shape)) for x in count.layers if x.bops)
            fits["two FLOPs"] = bops, flops + 2 * outputs
        columns = zip(
            ("BOPs", "FLOPs", "OPs"), published.split(), ("e9", "e8", "e8"),
            _columns(count.bops, count.flops), _columns(bops, flops), strict=True,
        )  # fmt: skip
        for i, (column, figure, unit, true, convention) in enumerate(columns):
            fitted = [(key, _columns(*pair)[i]) for key, pair in fits.items()]
            yield _row(3, name, column, figure + unit, true, convention, fitted)


def _columns(bops, flops):
    return bops, flops, bops / 64 + flops


# OPs of a network by the convention of its table, then pairs of an assumption and its OPs.


def _mobilenet_v1(network, count, method, base):
    last = [layer.name for layer in count.layers if _is_pointwise(layer)][-1]

    def narrow(layer):
        return _without_dense(layer) * (_LAST if layer.name == last else 1)

    convention = ops(count, _without_dense)
    adabin = [("last, adabin", ops(count, narrow, _ADABIN))] if base == "adabin" else []
    dense = convention + 1000 * network[-1].in_features
    return convention, ("last", ops(count, narrow)), *adabin, ("dense", dense)


def _shufflenet_v1(network, count, method, base):
    # Units with stride 2: the share of the unit's channels that the branch makes.
    share = {
        path: 1 - module.in_channels / module.out_channels
        for path, module in network.named_modules()
        if isinstance(module, ShuffleUnit) and module.pool is not None
    }

    def at_output(layer):
        unit, _, part = layer.name.partition(".")
        is_early = unit in share and part.startswith("reduce")
        return _without_dense(layer) * (0.25 if is_early else 1)

    def of_branch(layer, stem=1.0):
        factor = stem if layer.name == "0.conv" else share.get(layer.name.split(".")[0], 1)
        return _without_dense(layer) * factor

    if method != "float":
        return (ops(count, at_output),)
    narrow_stem = ops(count, lambda layer: of_branch(layer, stem=1 / 9))
    branch = ("branch", ops(count, of_branch)), ("branch, stem", narrow_stem)
    return ops(count, _without_dense), *branch


def _mobilenet_v3(network, count, method, base):
    if method != "float":
        return (_of_blocks(count, method),)
    shape = count.layers[0].input_shape
    other = models.mobilenet_v3_small(1.0, shape[1], method=method, first_stride=1)
    fit = _of_blocks(count_operations(other, shape), method)
    return _of_blocks(count, method), ("first stride", fit)


def _of_blocks(count, method):
    """Stem and blocks, and in the float network what follows them except the classifier."""
    head = [layer for layer in count.layers if _is_pointwise(layer)][-1]
    features, last = (layer for layer in count.layers if not _without_dense(layer))

    def weigh(layer):
        if ".excite." in layer.name or layer is last:
            return 0
        if layer in (head, features) and method != "float":
            return 0
        return int(np.prod(head.output_shape[1:])) if layer is features else 1

    return ops(count, weigh)
