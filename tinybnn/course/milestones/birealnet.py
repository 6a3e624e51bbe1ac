"""Milestone 4, Bi-Real Net (2018): a real-valued shortcut around every binary convolution.

Z. Liu, B. Wu, W. Luo, X. Yang, W. Liu, K.-T. Cheng: *Bi-Real Net: Enhancing the Performance of
1-bit CNNs With Improved Representational Capability and Advanced Training Algorithm*, ECCV 2018,
arXiv:1808.00278.

In XNOR-Net all that a block hands on passes a sign. The sums in front of it have many values, and
the sign leaves two. Bi-Real Net adds a block's input to its output, behind the batch norm, so that
real numbers pass from block to block, and the signs are needed for the convolution only. The
addition needs no weights, and costs nothing next to the convolution. In training the gradient
takes the same way back, past all signs.

The paper's second idea is a pseudo-gradient for activations that is closer to the sign: the slope
of two parabolas, 2 - 2 |x|, in place of that of a clipped line (`approx_gradient`).

Three networks of the same seed tell the two apart: XNOR-Net, with shortcuts, and with the new
slope as well. The paper's third and fourth idea are missing: a gradient of weights that depends on
their magnitude, and a first training with real numbers.

At this size the shortcuts give about four points, in each of the recorded seeds. What the slope
gives is less than the spread between seeds.

With good answers it takes about 30 seconds on one core.
"""

from __future__ import annotations

from typing import Any

from tinybnn.course.milestones.milestone import Milestone, Outcome
from tinybnn.course.milestones.residual import Network, compare

LEAST = 0.87
CLAIMS = {
    "XNOR-Net": "51.2%, ResNet-18 (arXiv:1603.05279)",
    "Bi-Real Net": "56.4%, 18 layers (arXiv:1808.00278)",
}


class Shortcuts(Network):
    """XNOR-Net with the input of each block added to its output."""

    seeds = (0.8944, 0.925, 0.8972, 0.9083, 0.9083, 0.9167, 0.9028, 0.9, 0.9167, 0.9111)

    def output(self, y: Any, x: Any, name: str) -> Any:
        """Add the shortcut."""
        return y + x


class BiRealNet(Shortcuts):
    """Shortcuts, and the slope of parabolas for the signs of activations."""

    estimator = "approx_gradient"
    seeds = (0.8917, 0.9083, 0.9139, 0.8972, 0.9083, 0.9083, 0.9139, 0.9111, 0.9194, 0.8972)


def run(progress: bool = False, seed: int = 0) -> Outcome:
    """Train the three networks, run them on words, and judge."""
    steps = {"XNOR-Net": Network, "shortcuts alone": Shortcuts, "Bi-Real Net": BiRealNet}
    return compare(steps, LEAST, CLAIMS, progress, seed)


MILESTONE = Milestone(
    4, "Bi-Real Net", 2018, "Enhancing the Performance of 1-bit CNNs",
    ("00.1", "01.1", "01.2", "01.3", "01.4", "02.1", "02.2", "02.4", "03.2", "03.3", "03.4",
     "03.5", "04.1", "04.2", "04.3", "05.1", "05.2", "05.3", "05.4"), run, 90.0,
)  # fmt: skip
