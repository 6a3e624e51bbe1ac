"""The packed path as plain Python for a debugger: NUMBA_DISABLE_JIT=1 gives the same bits.

The kernels' own tests run this way too, each file in its own process.
"""

import hashlib
import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from tinybnn import deploy, models, nn


def small_networks():
    """Name, model and shape: together they use every kind of packed layer."""
    rng = np.random.default_rng(0)
    binary = {"input_quantizer": "ste_sign", "rng": rng}
    yield "dense", models.mlp(20, (70,), 3, rng=rng), (20,)
    yield "cnn", models.cnn((1, 6, 6), 3, (4, 66, 5), 7, padding=1, rng=rng), (1, 6, 6)
    separable = nn.Sequential(
        nn.BinaryConv2d(2, 66, 3, padding=1, **binary),
        nn.BatchNorm2d(66),
        nn.BinaryConv2d(66, 66, 3, stride=2, padding=1, groups=66, **binary),
        nn.BatchNorm2d(66),
        nn.BinaryConv2d(66, 6, 1, groups=2, **binary),
        nn.BatchNorm2d(6),
        nn.Quantize("ste_sign"),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, 3, rng=rng),
    )
    yield "depth-wise, grouped and real layers", separable, (2, 5, 5)


def digests():
    """For each network, a line with a digest of all bits of its predictions."""
    for name, model, shape in small_networks():
        x = np.random.default_rng(1).standard_normal((3, *shape), np.float32)
        packed = deploy.compile(model.eval(), shape)
        assert deploy.verify(model, packed, x) > 0
        logits = np.ascontiguousarray(packed.predict(x))
        assert np.isfinite(logits).all() and np.ptp(logits) > 0
        yield f"{name}: {logits.shape} {hashlib.sha256(logits.tobytes()).hexdigest()}"


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the run without compilation")
def test_an_uncompiled_model_predicts_the_same_bits():
    run = subprocess.run(
        [sys.executable, __file__],
        env={
            **os.environ,
            "NUMBA_DISABLE_JIT": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == list(digests())


if __name__ == "__main__":
    assert numba.config.DISABLE_JIT
    print(*digests(), sep="\n")
