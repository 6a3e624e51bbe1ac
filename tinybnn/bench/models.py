"""Rows of whole networks: VGG-small on bits, beside floats."""

from __future__ import annotations

from functools import partial

import numpy as np

from tinybnn import deploy, models
from tinybnn.bench.peers import other_networks
from tinybnn.bench.rounds import Target, compare, contender
from tinybnn.tensor import Tensor, no_grad

# Batch size, and the ratio to PyTorch that it should reach.
BATCHES = ((64, 15.0), (1, 18.0))


def networks(settings, say):
    """Yield the rows; the last of each batch size carries the profile of the layers."""
    rng = np.random.default_rng(0)
    model = models.vgg_small(rng=rng).eval()
    packed = deploy.compile(model, (3, 32, 32))
    for batch, ratio in BATCHES:
        x = rng.standard_normal((batch, 32, 32, 3), np.float32).transpose(0, 3, 1, 2)
        profile = packed.profile(
            x, repetitions=2 if settings.quick else 10, threads=settings.num_threads
        )
        out = packed.predict(x)
        with other_networks(model, x, settings.num_threads, say) as others:
            rows = compare(
                "VGG-small, packed", "×".join(map(str, x.shape)),
                partial(packed.predict, x),
                [contender("our float path", partial(_by_floats, model, x)), *others], settings,
                products=sum(row["products"] for row in profile),
                nbytes=x.nbytes + packed.nbytes + out.nbytes, of_peak=True,
                target=Target("ratio", ratio),
            )  # fmt: skip
        rows[-1]["profile"] = profile
        yield from rows


def _by_floats(model, x):
    with no_grad():
        return model(Tensor(x))
