"""Optimizers and learning-rate schedules, with PyTorch's names and formulas.

Latent weights (`nn.LatentParameter`) are treated differently: after each step they are clipped to
their `clip_value`, and by default they have no weight decay, since a latent weight closer to zero
does not make its sign smaller; the sign only flips more easily. `Bop` needs no latent weights: it
flips signs.

Schedules are here and, as in PyTorch, in `lr_scheduler`; averages of weights are in `swa_utils`.
"""

from tinybnn.optim import lr_scheduler, swa_utils
from tinybnn.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    EdeSchedule,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    Schedule,
    SequentialLR,
    StepLR,
)
from tinybnn.optim.optimizers import SGD, Adam, AdamW, Bop, MultiOptimizer, Optimizer, RMSprop

__all__ = [
    "SGD", "Adam", "AdamW", "Bop", "ChainedScheduler", "CosineAnnealingLR", "EdeSchedule",
    "ExponentialLR", "LambdaLR", "LinearLR", "MultiOptimizer", "MultiStepLR", "OneCycleLR",
    "Optimizer", "RMSprop", "ReduceLROnPlateau", "Schedule", "SequentialLR", "StepLR",
    "lr_scheduler", "swa_utils",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else
