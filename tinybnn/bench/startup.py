"""Rows of startup: import, first prediction, and loading or compiling the training kernels."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

from tinybnn import datasets, deploy, models
from tinybnn.bench.rounds import Row, Settings, Target, make_row, output_of, set_target

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

# How much longer the first step takes than the fastest of the later ones, over all networks.
_FIRST_STEPS = """
import time
from tinybnn.bench.training import NETWORKS, Training
steps = [Training(network, 8) for network in NETWORKS if {which} in network.name]
times = []
for _ in range(4):
    start = time.perf_counter()
    for step in steps:
        step()
    times.append(time.perf_counter() - start)
print(max(times[0] - min(times[1:]), 1e-6))  # noise may be more than the difference
"""


def startup(settings: Settings) -> Iterator[Row]:
    """Yield the rows: first prediction of each model, warm and cold; import; training kernels.

    Cold means an empty cache of compiled kernels, warm one that an earlier process has filled. Time
    starts when Python has started, before NumPy is imported; for training it is the time to compile
    or load the kernels.
    """
    digits = datasets.load("digits")[0].images.shape[1:]
    networks = [("CNN for digits", models.cnn(digits, padding=1), digits)]
    if not settings.quick:
        networks.append(("VGG-small", models.vgg_small(), (3, 32, 32)))
    bare = [_seconds_of("import numpy") for _ in range(1 if settings.quick else 5)]
    imports = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model, shape in networks:
            path = os.path.join(folder, "model.npz")
            deploy.compile(model.eval(), shape).save(path)
            cold, warm = [], []
            for _ in range(1 if settings.quick else 2):
                cache = tempfile.mkdtemp(dir=folder)
                program = _FIRST_PREDICTION.format(path=path)
                cold.append(_printed(program, cache)[1])
                for _ in range(1 if settings.quick else 4):
                    imported, first = _printed(program, cache)
                    imports.append(imported)
                    warm.append(first)
            text = f"{name} " + "×".join(map(str, (1, *shape)))
            yield _row("first prediction, warm", text, warm, bare, 0.35, settings)
            yield _row("first prediction, cold", text, cold, bare, 7.0, settings)
        yield _row("import tinybnn", "", imports, bare, 0.3, settings)
        which = "MLP 200-128-2" if settings.quick else ""
        program = _FIRST_STEPS.format(which=repr(which))
        cache = tempfile.mkdtemp(dir=folder)
        runs = [_printed(program, cache)[0] for _ in range(2 if settings.quick else 4)]
        text = which or "six networks"
        yield _row("kernels of training, warm", text, runs[1:], bare, 1.0, settings)
        yield _row("kernels of training, cold", text, runs[:1], bare, 15.0, settings)


def _printed(program, cache):
    """Run a program in a new process and return the numbers that it prints."""
    return tuple(map(float, output_of(program, NUMBA_CACHE_DIR=cache).split()))


def _seconds_of(code):
    start = time.perf_counter()
    output_of(code)
    return time.perf_counter() - start


def _row(name, shape, seconds, bare, target, settings):
    row = make_row(name, shape, seconds, "python -c 'import numpy'", bare, settings)
    set_target(row, Target("ours_s", target))
    return row
