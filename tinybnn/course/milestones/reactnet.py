"""Milestone 5, ReActNet (2020): learned thresholds of signs, and a learned curve behind each block.

Z. Liu, Z. Shen, M. Savvides, K.-T. Cheng: *ReActNet: Towards Precise Binary Neural Network with
Generalized Activation Functions*, ECCV 2020, arXiv:2003.03488.

A sign tells only on which side of 0 a number is, so it matters much where the numbers lie. The
authors saw that small shifts of activations change the accuracy of binary networks, and let the
network learn such shifts, one for each channel:

- RSign is sign(x - alpha), with a learned threshold alpha;
- RPReLU is a curve of two lines that meet at (gamma, zeta), both learned; its slope is 1 on the
  right and a learned number on the left. So it moves and bends the distribution that the next
  block sees.

Both cost a few numbers for each channel, and the convolution stays the same. As a parameter that
stands only within a sign, alpha gets no gradient but the estimator's.

Three networks of the same seed tell the two apart: Bi-Real Net (milestone 4), with RPReLU, and with
RSign as well. Other than in the paper, the network is not MobileNet, its 1 x 1 convolutions are
missing, and it learns from labels, not from the outputs of a real-valued network.

At this size neither gives anything that the recorded seeds could tell from 0; the paper's gain is
on ImageNet, in a larger network. (Which shifts can the beta of a batch norm learn as well?)

With good answers it takes about 35 seconds on one core.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from tinybnn.course.milestones.birealnet import BiRealNet
from tinybnn.course.milestones.milestone import Milestone, Outcome
from tinybnn.course.milestones.residual import BLOCKS, channels, compare

LEAST = 0.87
CLAIMS = {
    "Bi-Real Net": "56.4%, 18 layers (arXiv:1808.00278)",
    "ReActNet": "69.4%, a MobileNet (arXiv:2003.03488)",
}


class Curved(BiRealNet):
    """Bi-Real Net with an RPReLU behind each shortcut.

    Attributes
    ----------
    curve : dict of str to float
        The learned numbers of each channel of a block, and their initial values.
    curves : dict of str to dict of str to Tensor (1, C, 1, 1)
        These numbers, by block.
    """

    seeds = (0.9167, 0.8917, 0.9056, 0.8917, 0.9139, 0.9056, 0.9139, 0.8944, 0.9, 0.8944)
    curve: ClassVar[dict[str, float]] = {"shift in": 0, "slope below": 0.25, "shift out": 0}
    curves: dict[str, dict[str, Any]]

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.curves = {
            name: {part: channels(value) for part, value in self.curve.items()} for name in BLOCKS
        }
        for name, parts in self.curves.items():
            self.others |= {f"{part} of {name}": value for part, value in parts.items()}

    def output(self, y: Any, x: Any, name: str) -> Any:
        """Add the shortcut and apply RPReLU."""
        gamma, slope, zeta = self.curves[name].values()
        z = y + x - gamma
        return z.relu() - (-z).relu() * slope + zeta


class ReActNet(Curved):
    """RPReLU, and RSign in place of the sign."""

    seeds = (0.9083, 0.9167, 0.8889, 0.8944, 0.8944, 0.9056, 0.9056, 0.9083, 0.9278, 0.9056)
    thresholds: dict[str, Any]

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.thresholds = {name: channels(0) for name in BLOCKS}
        self.others |= {f"thresholds of {name}": t for name, t in self.thresholds.items()}

    def argument(self, x: Any, name: str) -> Any:
        """Subtract the channels' thresholds."""
        return x - self.thresholds[name]


def run(progress: bool = False, seed: int = 0) -> Outcome:
    """Train the three networks, run them on words, and judge."""
    steps = {"Bi-Real Net": BiRealNet, "RPReLU alone": Curved, "ReActNet": ReActNet}
    return compare(steps, LEAST, CLAIMS, progress, seed)


MILESTONE = Milestone(
    5, "ReActNet", 2020, "Towards Precise Binary Neural Network",
    ("00.1", "01.1", "01.2", "01.3", "01.4", "02.1", "02.2", "02.4", "03.2", "03.3", "03.4",
     "03.5", "04.1", "04.2", "04.3", "05.1", "05.2", "05.3", "05.4"), run, 110.0,
)  # fmt: skip
