"""Milestone 6, AdaBin (2022): two values that fit, in place of -1 and +1.

Z. Tu, X. Chen, P. Ren, Y. Wang: *AdaBin: Improving Binary Neural Networks with Adaptive Binary
Sets*, ECCV 2022, arXiv:2208.08084.

One bit chooses between two values, but nothing says that these are -1 and +1. AdaBin takes any two,
c - d and c + d, with a centre c and a distance d:

- a filter has the mean and the standard deviation of its latent weights as centre and distance;
- the activations of a block have learned ones.

A convolution of such values is still one of signs. With s for signs of activations and v for those
of weights, a window's sum of (d s + c) (e v + b) is

    d (e sum(s v) + b sum(s)) + c (e sum(v) + b count)

where sum(s v) is XNOR and popcount, sum(s) one more popcount for all filters together, and the rest
is known before any image comes. Each of these four is a convolution of signs, with ones in place of
s, of v, or of both; near the border only the taps inside the image count (`xnor_conv2d`).

Behind the shortcut stands a Maxout, a slope on each side of 0, both learned for each channel. The
signs of weights have the slope of a tanh (`ede_gradient`), as in the paper, but its steepness does
not grow here.

Three networks of the same seed tell the two ideas apart: ReActNet (milestone 5), with binary sets
in place of thresholds and scales, and with Maxout in place of RPReLU as well.

At this size neither gives anything that the recorded seeds could tell from 0; the paper's gain is
on ImageNet, in a larger network.

With good answers it takes about 40 seconds on one core.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from tinybnn.course.milestones.milestone import Milestone, Outcome
from tinybnn.course.milestones.reactnet import Curved, ReActNet
from tinybnn.course.milestones.residual import BLOCKS, compare, sums_on_words
from tinybnn.typing import Array

LEAST = 0.86
CLAIMS = {
    "ReActNet": "69.4%, a MobileNet (arXiv:2003.03488)",
    "AdaBin": "66.4%, ResNet-18 (arXiv:2208.08084)",
}


class BinarySets(Curved):
    """Centres and distances for weights and activations; RPReLU as before."""

    seeds = (0.9111, 0.9083, 0.8889, 0.9028, 0.9194, 0.8889, 0.9139, 0.9139, 0.9139, 0.9083)
    sets: dict[str, list[Any]]

    def __init__(self, rng: np.random.Generator) -> None:
        from mybnn.engine import Tensor

        super().__init__(rng)
        self.sets = {
            name: [Tensor(np.full((1, 1, 1, 1), value, np.float32)) for value in (1, 0)]
            for name in BLOCKS
        }
        for name, (distance, centre) in self.sets.items():
            self.others |= {f"distance of {name}": distance, f"centre of {name}": centre}

    def argument(self, x: Any, name: str) -> Any:
        """Subtract the centre of the activations, and divide by their distance."""
        distance, centre = self.sets[name]
        return (x - centre) / distance

    def filters(self, name: str) -> tuple[Any, Any, Any]:
        """Compute signs (O, K), distances (1, O) and centres (1, O) of filters, Tensors."""
        from mybnn.estimators import ede_gradient, sign_ste

        latent = self.weights[name]
        rows = latent.reshape(len(latent.data), -1)
        centre = rows.mean(1, keepdims=True)
        centred = rows - centre
        distance = (centred * centred).mean(1, keepdims=True).sqrt()
        return sign_ste(centred / distance, ede_gradient), distance.T, centre.T

    def convolution(self, x: Any, name: str) -> Any:
        """Convolve a block's input, a Tensor (N, C, H, W), in floats."""
        from mybnn.convolution import fold_windows, windows
        from mybnn.engine import Tensor

        signs, (filters, *fits) = self.signs(x, name), self.filters(name)
        seen = Tensor(
            windows(signs.data, 3, padding=1),
            (signs,),
            lambda grad: (fold_windows(grad, signs.shape, 3, padding=1),),
        )
        inside = Tensor(windows(np.ones((1, *x.shape[1:]), np.float32), 3, padding=1))

        def products(seen):
            *places, k = seen.shape
            return (seen.reshape(-1, k) @ filters.T).reshape(*places, filters.shape[0])

        return self._joined(
            name, *fits, products(seen), seen.sum(3, keepdims=True),
            products(inside), inside.sum(3, keepdims=True),
        )  # fmt: skip

    def convolution_on_words(self, x: Any, name: str) -> Array:
        """Compute the values of `convolution` from four convolutions on words, an array."""
        from mybnn.bits import sign
        from mybnn.engine import Tensor

        signs, (filters, *fits) = sign(self.argument(x, name).data), self.filters(name)
        filters = filters.data.reshape(self.weights[name].shape)
        sums = [
            Tensor(sums_on_words(a, b).transpose(0, 2, 3, 1))
            for a in (signs, np.ones_like(signs[:1]))
            for b in (filters, np.ones_like(filters[:1]))
        ]
        return self._joined(name, *fits, *sums).data

    def _joined(self, name, fit, middle, products, signs, filters, count):
        """Join the sums over each window, Tensors (N or 1, H, W, O or 1): -> (N, O, H, W).

        `fit` and `middle` are distances and centres of the filters.
        """
        distance, centre = self.sets[name]
        y = distance * (products * fit + signs * middle)
        y = y + centre * (filters * fit + count * middle)
        return y.transpose(0, 3, 1, 2)


class AdaBin(BinarySets):
    """Binary sets, and Maxout in place of RPReLU."""

    seeds = (0.9056, 0.9028, 0.9139, 0.9139, 0.8806, 0.9056, 0.9, 0.9139, 0.9222, 0.9083)
    curve: ClassVar[dict[str, float]] = {"slope above": 1, "slope below": 0.25}

    def output(self, y: Any, x: Any, name: str) -> Any:
        """Add the shortcut and apply Maxout."""
        above, below = self.curves[name].values()
        z = y + x
        return z.relu() * above - (-z).relu() * below


def run(progress: bool = False, seed: int = 0) -> Outcome:
    """Train the three networks, run them on words, and judge."""
    steps = {"ReActNet": ReActNet, "binary sets alone": BinarySets, "AdaBin": AdaBin}
    return compare(steps, LEAST, CLAIMS, progress, seed)


MILESTONE = Milestone(
    6, "AdaBin", 2022, "Improving Binary Neural Networks with Adaptive Binary Sets",
    ("00.1", "01.1", "01.2", "01.3", "01.4", "02.1", "02.2", "02.4", "02.5", "03.2", "03.3",
     "03.4", "03.5", "04.1", "04.2", "04.3", "05.1", "05.2", "05.3", "05.4"), run, 120.0,
)  # fmt: skip
