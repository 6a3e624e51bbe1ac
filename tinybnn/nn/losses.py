"""Losses as modules, for scripts that keep ``criterion = nn.CrossEntropyLoss()``.

Each calls the function of `tinybnn.functional` that it names, whose docstring gives the shapes. The
loss is a Tensor of shape (); with ``reduction='none'`` one number for each sample or element.
Arguments after the first are keyword-only, since PyTorch has two deprecated ones among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn import functional as F
from tinybnn.autograd import as_array
from tinybnn.nn.module import Module

if TYPE_CHECKING:
    from tinybnn.autograd import Tensor
    from tinybnn.typing import TensorLike


class _Loss(Module):
    """A loss with a `reduction` and other settings, in the order of the signature."""

    reduction: str
    _function: Any = None

    def __init__(self, *, reduction: str = "mean", **settings: Any) -> None:
        allowed = ("mean", "sum", "none") + (("batchmean",) if type(self) is KLDivLoss else ())
        if reduction not in allowed:
            raise ValueError(
                f"{type(self).__name__}: reduction must be one of {', '.join(allowed)}, got "
                f"{reduction!r}"
            )
        self.reduction = reduction
        self._settings = tuple(settings)
        for name, value in settings.items():
            if name in ("weight", "pos_weight"):
                self._set_weight(name, value)
            else:
                setattr(self, name, value)

    def _set_weight(self, name, value):
        """Register an array as a buffer, as in PyTorch; None stays None."""
        if value is None:
            setattr(self, name, None)
        else:
            self.register_buffer(name, np.array(as_array(value), np.float32))

    def forward(self, input: TensorLike, target: TensorLike) -> Tensor:
        settings = {name: getattr(self, name) for name in self._settings}
        return self._function(input, target, reduction=self.reduction, **settings)

    def extra_repr(self) -> str:
        names = [n for n in self._settings if "weight" not in n]
        shown = [f"{name}={getattr(self, name)!r}" for name in ("reduction", *names)]
        return ", ".join(shown)


class CrossEntropyLoss(_Loss):
    """`functional.cross_entropy` of logits (N, classes) and labels or distributions.

    Parameters
    ----------
    weight : (classes,) array, optional
    ignore_index : int
    reduction : 'mean', 'sum' or 'none'
    label_smoothing : float
    """

    _function = staticmethod(F.cross_entropy)

    def __init__(
        self,
        weight: TensorLike | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            reduction=reduction, weight=weight, ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )  # fmt: skip


class NLLLoss(_Loss):
    """`functional.nll_loss` of log probabilities (N, classes) and labels.

    Parameters
    ----------
    weight : (classes,) array, optional
    ignore_index : int
    reduction : 'mean', 'sum' or 'none'
    """

    _function = staticmethod(F.nll_loss)

    def __init__(
        self, weight: TensorLike | None = None, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction=reduction, weight=weight, ignore_index=ignore_index)


class MSELoss(_Loss):
    """`functional.mse_loss`: (input - target)²."""

    _function = staticmethod(F.mse_loss)

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class L1Loss(_Loss):
    """`functional.l1_loss`: |input - target|."""

    _function = staticmethod(F.l1_loss)

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class SmoothL1Loss(_Loss):
    """`functional.smooth_l1_loss`: squared below `beta`, linear above."""

    _function = staticmethod(F.smooth_l1_loss)

    def __init__(self, *, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction=reduction, beta=beta)


class KLDivLoss(_Loss):
    """`functional.kl_div` of log probabilities and a target distribution."""

    _function = staticmethod(F.kl_div)

    def __init__(self, *, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__(reduction=reduction, log_target=log_target)


class BCELoss(_Loss):
    """`functional.binary_cross_entropy` of probabilities."""

    _function = staticmethod(F.binary_cross_entropy)

    def __init__(self, weight: TensorLike | None = None, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction, weight=weight)


class BCEWithLogitsLoss(_Loss):
    """`functional.binary_cross_entropy_with_logits`.

    Parameters
    ----------
    weight : array, optional
    reduction : 'mean', 'sum' or 'none'
    pos_weight : array, optional
    """

    _function = staticmethod(F.binary_cross_entropy_with_logits)

    def __init__(
        self,
        weight: TensorLike | None = None,
        *,
        reduction: str = "mean",
        pos_weight: TensorLike | None = None,
    ) -> None:
        super().__init__(reduction=reduction, weight=weight, pos_weight=pos_weight)
