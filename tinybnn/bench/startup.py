"""Rows of the first moments of a process: import, and the first prediction."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from tinybnn import datasets, deploy, models
from tinybnn.bench.rounds import Target, make_row, set_target

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

# How much longer a first step takes than the fastest after it, of all networks of `bench train`.
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


def startup(settings):
    """Yield the rows: for each model the first prediction, warm and cold; the import; training.

    Cold is a folder for compiled kernels that is empty, warm one that an earlier process has
    filled. The time begins when Python has started, and with the import of NumPy; for training it
    is what kernels take to be compiled or loaded.
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
            text = "×".join(map(str, (1, *shape)))
            for kind, seconds, target in (("warm", warm, 0.35), ("cold", cold, 7.0)):
                row_name = f"first prediction, {kind}"
                yield _row(row_name, f"{name} {text}", seconds, bare, target, settings)
        yield _row("import tinybnn", "", imports, bare, 0.3, settings)
        which = "MLP 200-128-2" if settings.quick else ""
        program = _FIRST_STEPS.format(which=repr(which))
        cache = tempfile.mkdtemp(dir=folder)
        runs = [_printed(program, cache)[0] for _ in range(2 if settings.quick else 4)]
        for kind, seconds, target in (("warm", runs[1:], 1.0), ("cold", runs[:1], 15.0)):
            row_name = f"kernels of training, {kind}"
            yield _row(row_name, which or "six networks", seconds, bare, target, settings)


def _printed(program, cache):
    """The seconds that a program prints, run by a new process."""
    output = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"NUMBA_CACHE_DIR": cache}, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    return tuple(map(float, output.split()))


def _seconds_of(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def _row(name, shape, seconds, bare, target, settings):
    row = make_row(name, shape, seconds, "python -c 'import numpy'", bare, settings)
    set_target(row, Target("ours_s", target))
    return row
