"""Measurements: how fast the kernels and packed models are, against NumPy and PyTorch.

Each row compares two ways to compute the same, in one process, run by run in turn, so that a busy
machine slows both. A row gives the medians, their ratio and the spread (the fastest and the slowest
run of ours). Absolute times mean little on a shared machine; ratios within a row do.

Peers are NumPy always, and PyTorch where it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import time

import numpy as np

from tinybnn import datasets, deploy, models
from tinybnn.kernels import bits, threads, xnor

GROUPS = ("kernels", "models", "startup")


def run(group="all", num_threads=2, say=print):
    """Measure a group of rows.

    Parameters
    ----------
    group : str
        One of `GROUPS`, or 'all'.
    num_threads : int
        For the kernels and for PyTorch. NumPy's BLAS takes what its environment says.
    say : callable
        Gets a line of text at a time.

    Returns
    -------
    list of dict
        Keys: name, shape, threads, ours_s, ours_min_s, ours_max_s, peer, peer_s, ratio (peer_s /
        ours_s), rate and unit, peak_share (of the register-only peak, for the fastest run).
    """
    if group not in (*GROUPS, "all"):
        raise ValueError(f"bench: group must be one of {(*GROUPS, 'all')}, got {group!r}")
    rows = []
    wanted = GROUPS if group == "all" else (group,)
    with threads.num_threads(num_threads):
        for name in wanted:
            for row in _GROUPS[name](num_threads):
                say(_line(row))
                rows.append(row)
    return rows


def compare(name, shape, num_threads, ours, peer_name, peer, work=None, unit="", seconds=1.5):
    """Time `ours` and `peer` in turn; one row.

    Parameters
    ----------
    work : float, optional
        Units of work in a run, for the rate.
    seconds : float
        Roughly how long to measure; at least 5 runs of each.
    """
    ours()
    peer()
    times = ([], [])
    start = time.perf_counter()
    while len(times[0]) < 5 or (time.perf_counter() - start < seconds and len(times[0]) < 200):
        for function, found in zip((ours, peer), times, strict=True):
            begin = time.perf_counter()
            function()
            found.append(time.perf_counter() - begin)
    mine, other = statistics.median(times[0]), statistics.median(times[1])
    row = {
        "name": name, "shape": shape, "threads": num_threads, "ours_s": mine,
        "ours_min_s": min(times[0]), "ours_max_s": max(times[0]),
        "peer": peer_name, "peer_s": other, "ratio": other / mine,
    }  # fmt: skip
    if work:
        row |= {"rate": work / mine, "unit": unit}
    return row


def _line(row):
    rate = f"{row['rate']:12,.1f} {row['unit']}" if "rate" in row else ""
    peer = f"{row['peer']:<22} {row['peer_s'] * 1e3:10.3f} ms  ×{row['ratio']:<7.1f}"
    if "peak_share" in row:
        rate += f"  {row['peak_share']:.0%} of the peak"
    text = f"{row['name']:<24}{row['shape']:<22}{row['ours_s'] * 1e3:10.3f} ms  {peer}{rate}"
    return text.rstrip()


def _words(rng, rows, count):
    return bits.pack(rng.standard_normal((rows, count), np.float32))


def _kernels(num_threads):
    rng = np.random.default_rng(0)
    peak = xnor.register_peak()  # sign products a second on one core, nothing but registers
    for m, n, k in ((1024, 1024, 4096), (3136, 128, 1152), (3136, 256, 256), (1, 1024, 1024)):
        x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
        a, prepared = bits.pack(x), xnor.prepare_matmul(bits.pack(w), k)
        row = compare(
            "xnor product", f"{m}×{n}×{k}", num_threads, lambda a=a, p=prepared: xnor.run(p, a),
            "NumPy sgemm", lambda x=x, w=w: x @ w.T, m * n * k / 1e9, "Gbit-MAC/s",
        )  # fmt: skip
        # Of the fastest run: the peak, too, is that of an undisturbed core.
        row["peak_share"] = m * n * k / row["ours_min_s"] / (peak * num_threads)
        yield row
    x = rng.standard_normal((4096, 1024), np.float32)
    yield compare(
        "pack", "4096×1024", num_threads, lambda: bits.pack(x),
        "np.packbits(x >= 0)", lambda: np.packbits(x >= 0, axis=1), x.nbytes / 1e9, "GB/s read",
    )  # fmt: skip
    words = bits.pack(x)
    yield compare(
        "unpack", "4096×1024", num_threads, lambda: bits.unpack(words, 1024),
        "np.unpackbits", lambda: 2.0 * np.unpackbits(words.view(np.uint8), axis=1) - 1.0,
        x.nbytes / 1e9, "GB/s written",
    )  # fmt: skip


def _models(num_threads):
    rng = np.random.default_rng(0)
    model = models.vgg_small(rng=rng).eval()
    packed = deploy.compile(model, (3, 32, 32))
    for batch in (64, 1):
        x = rng.standard_normal((batch, 32, 32, 3), np.float32).transpose(0, 3, 1, 2)
        shape = f"{batch}×3×32×32"
        ours = lambda x=x: packed.predict(x)  # noqa: E731
        for name, peer in _torch_vgg(model, x, num_threads):
            yield compare("VGG-small, packed", shape, num_threads, ours, name, peer)


def _torch_vgg(model, x, num_threads):
    """PyTorch's float network of the same shape in both memory layouts; none without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    torch.set_num_threads(num_threads)
    layers = []
    for layer in model:
        kind, settings = type(layer).__name__.removeprefix("Binary"), vars(layer)
        if kind == "Conv2d":
            layers.append(
                torch.nn.Conv2d(
                    settings["in_channels"], settings["out_channels"], 3, padding=1, bias=False
                )
            )
        elif kind == "BatchNorm2d":
            layers += [torch.nn.BatchNorm2d(layer.num_features), torch.nn.Hardtanh()]
        elif kind == "MaxPool2d":
            layers.append(torch.nn.MaxPool2d(2))
        elif kind in ("Flatten", "Linear"):
            make = getattr(torch.nn, kind)
            layers.append(make() if kind == "Flatten" else make(layer.in_features, 10))
    network = torch.nn.Sequential(*layers).eval()
    for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        laid_out = network.to(memory_format=layout)
        images = torch.from_numpy(np.ascontiguousarray(x)).to(memory_format=layout)

        def peer(laid_out=laid_out, images=images):
            with torch.no_grad():
                laid_out(images)

        yield f"PyTorch float {name}", peer


_FIRST_PREDICTION = """
import time
start = time.perf_counter()
import numpy as np
import tinybnn
imported = time.perf_counter() - start
from tinybnn import deploy
packed = deploy.PackedModel.load({path!r})
packed.predict(np.zeros((1, *packed.input_shape), np.float32))
print(imported, time.perf_counter() - start)
"""


def _startup(num_threads):
    """Import, and the first prediction of a process, with cold and with warm caches."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.npz")
        shape = datasets.load("digits")[0].images.shape[1:]
        deploy.compile(models.cnn(shape, padding=1), shape).save(path)
        environment = os.environ | {"NUMBA_CACHE_DIR": os.path.join(folder, "cache")}
        found = []
        for _ in range(4):  # the first with an empty cache
            output = subprocess.run(
                [sys.executable, "-c", _FIRST_PREDICTION.format(path=path)],
                env=environment, check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            found.append([float(x) for x in output.split()])
        bare = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", "import numpy"], check=True)
            bare.append(time.perf_counter() - start)
    peer = statistics.median(bare)
    for name, seconds in (
        ("import tinybnn", statistics.median(x for x, _ in found[1:])),
        ("first prediction, warm", statistics.median(x for _, x in found[1:])),
        ("first prediction, cold", found[0][1]),
    ):
        yield {
            "name": name, "shape": "", "threads": num_threads, "ours_s": seconds,
            "ours_min_s": seconds, "ours_max_s": seconds, "peer": "python -c 'import numpy'",
            "peer_s": peer, "ratio": peer / seconds,
        }  # fmt: skip


_GROUPS = {"kernels": _kernels, "models": _models, "startup": _startup}
