"""Schedules of the learning rate, with PyTorch's names and formulas."""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import as_array, plain
from tinybnn.nn.layers import check_sizes
from tinybnn.optim.optimizers import settings_text
from tinybnn.quantizers import EdeSign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tinybnn.nn import Module
    from tinybnn.optim.optimizers import Optimizer
    from tinybnn.typing import TensorLike


class Schedule:
    """Base class: the learning rate of each group as a function of the step count.

    Call `step` once after each epoch (or after each batch, to count in batches). A subclass
    implements `lr`. As in PyTorch, the first schedule of an optimizer stores each group's start
    value in the group as ``initial_lr``, and all schedules start from there.

    Parameters
    ----------
    optimizer : Optimizer

    Attributes
    ----------
    last_epoch : int
        Number of steps so far.
    base_lrs : list of float
        The start value of each group.
    moves : tuple of str
        Settings other than the rate that the schedule changes.
    """

    moves: tuple[str, ...] = ()
    optimizer: Optimizer
    base_lrs: list[float]
    last_epoch: int

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base_lrs = [g.setdefault(f"initial_{rate}", g[rate]) for g, rate in optimizer.rates]
        self.last_epoch = 0
        self._set()

    def lr(self, base: float, epoch: int) -> float:
        """Compute the learning rate at `epoch` of a group that started with `base`."""
        raise NotImplementedError

    def step(self) -> None:
        """Advance by one epoch."""
        self.last_epoch += 1
        self._set()

    def _set(self):
        self.base_lrs += [  # of groups added since the last step
            group.setdefault(f"initial_{rate}", group[rate])
            for group, rate in self.optimizer.rates[len(self.base_lrs) :]
        ]
        for (group, rate), base in zip(self.optimizer.rates, self.base_lrs, strict=True):
            group[rate] = float(self.lr(base, self.last_epoch))

    def get_last_lr(self) -> list[float]:
        """Return the current learning rate of each group."""
        return rates_of(self.optimizer)

    def __repr__(self) -> str:
        hidden = ("optimizer", "base_lrs", "last_epoch")
        settings = {name: value for name, value in vars(self).items() if name not in hidden}
        return f"{type(self).__name__}({settings_text(settings)})"

    def state_dict(self) -> dict[str, Any]:
        """Return all settings and the step count, except the optimizer and functions."""
        return {
            name: value
            for name, value in vars(self).items()
            if name != "optimizer" and not callable(value)
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a `state_dict`, and set the optimizer's rates to those of that epoch.

        The states of optimizer and schedule can be loaded in any order.

        Raises
        ------
        ValueError
            If it is the state of another class of schedule, or of other parameter groups.
        """
        _check_state(self, state_dict)
        if len(state_dict["base_lrs"]) != len(self.optimizer.rates):
            raise ValueError(
                f"load_state_dict: {type(self).__name__} has {len(self.optimizer.rates)} parameter "
                f"groups, the state {len(state_dict['base_lrs'])}"
            )
        vars(self).update(state_dict)
        for (group, rate), base in zip(self.optimizer.rates, self.base_lrs, strict=True):
            group[f"initial_{rate}"] = base
        self._set()


def rates_of(optimizer: Optimizer) -> list[float]:
    """Return the learning rate (or the setting that schedules change) of each group."""
    return [group[rate] for group, rate in optimizer.rates]


def _check_state(schedule, state_dict):
    own = schedule.state_dict().keys()
    if own != state_dict.keys():
        raise ValueError(
            f"load_state_dict: {type(schedule).__name__} has the settings {', '.join(own)}, the "
            f"state {', '.join(state_dict)}"
        )


class EdeSchedule:
    """Sharpen the slope of every `quantizers.EdeSign` in a model: log t grows linearly.

    IR-Net (Qin et al. 2020, eq. 10). To combine it with a learning-rate schedule in `training.fit`,
    pass ``schedule=ChainedScheduler([cosine, ede])``.

    Parameters
    ----------
    model : Module
    T_max : int
        Number of steps from `t_min` to `t_max`; constant afterwards.
    t_min, t_max : float

    Attributes
    ----------
    last_epoch : int
        Number of steps so far.
    """

    quantizers: list[EdeSign]
    T_max: int
    t_min: float
    t_max: float
    last_epoch: int

    def __init__(self, model: Module, T_max: int, t_min: float = 1e-3, t_max: float = 1e1) -> None:
        if not T_max >= 1:
            raise ValueError(f"EdeSchedule: T_max must be >= 1, got {T_max!r}")
        if not 0 < t_min <= t_max:
            raise ValueError(f"EdeSchedule: expects 0 < t_min <= t_max, got {t_min!r}, {t_max!r}")
        by_id = {
            id(value): value
            for module in model.modules()
            for value in vars(module).values()
            if isinstance(value, EdeSign)
        }
        self.quantizers = list(by_id.values())
        if not self.quantizers:
            raise ValueError("EdeSchedule: the model has no EdeSign quantizer")
        self.T_max, self.t_min, self.t_max = plain(T_max), plain(t_min), plain(t_max)
        self.last_epoch = 0
        self._set()

    def t(self, epoch: int) -> float:
        """Compute the steepness at `epoch`."""
        return self.t_min * (self.t_max / self.t_min) ** min(epoch / self.T_max, 1.0)

    def step(self) -> None:
        """Advance by one epoch."""
        self.last_epoch += 1
        self._set()

    def _set(self):
        for quantizer in self.quantizers:
            quantizer.t = self.t(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and the step count, without the quantizers."""
        return {name: value for name, value in vars(self).items() if name != "quantizers"}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a `state_dict`, and set the quantizers' t to that of its epoch."""
        _check_state(self, state_dict)
        vars(self).update(state_dict)
        self._set()

    def __repr__(self) -> str:
        return f"EdeSchedule(T_max={self.T_max!r}, t_min={self.t_min!r}, t_max={self.t_max!r})"


class ChainedScheduler:
    """Step several schedules together, for example of the learning rate and of EDE's t.

    Parameters
    ----------
    schedules : sequence of schedules

    Attributes
    ----------
    schedules : list of schedules
    last_epoch : int
        Number of steps so far.
    """

    schedules: list[Any]
    last_epoch: int

    def __init__(self, schedules: Iterable[Any]) -> None:
        self.schedules = list(schedules)
        if not self.schedules:
            raise ValueError("ChainedScheduler: expects at least one schedule, got none")
        self.last_epoch = 0

    def step(self) -> None:
        """Step each schedule."""
        self.last_epoch += 1
        for schedule in self.schedules:
            schedule.step()

    def get_last_lr(self) -> list[float]:
        """Return the learning rates that the last schedule of an optimizer has set."""
        for schedule in reversed(self.schedules):
            if hasattr(schedule, "get_last_lr"):
                return schedule.get_last_lr()
        raise ValueError("get_last_lr: none of the schedules sets a learning rate")

    def state_dict(self) -> dict[str, Any]:
        """Return the step count and the settings of each schedule."""
        states = [dict(schedule.state_dict()) for schedule in self.schedules]
        for state in states:
            del state["last_epoch"]
        return {"last_epoch": self.last_epoch, "schedules": states}

    def __repr__(self) -> str:
        return f"ChainedScheduler({self.schedules!r})"

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        _check_state(self, state_dict)
        if len(state_dict["schedules"]) != len(self.schedules):
            raise ValueError(
                f"load_state_dict: ChainedScheduler has {len(self.schedules)} schedules, the state "
                f"{len(state_dict['schedules'])}"
            )
        self.last_epoch = state_dict["last_epoch"]
        for schedule, state in zip(self.schedules, state_dict["schedules"], strict=True):
            schedule.load_state_dict({**state, "last_epoch": self.last_epoch})


class StepLR(Schedule):
    """Multiply by `gamma` every `step_size` epochs."""

    step_size: int
    gamma: float

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        check_sizes("StepLR", step_size=step_size)
        self.step_size, self.gamma = int(step_size), plain(gamma)
        super().__init__(optimizer)

    def lr(self, base: float, epoch: int) -> float:
        return base * self.gamma ** (epoch // self.step_size)


class MultiStepLR(Schedule):
    """Multiply by `gamma` at each of the `milestones` (epochs); one named twice counts twice."""

    milestones: list[int]
    gamma: float

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(plain(m) for m in milestones), plain(gamma)
        super().__init__(optimizer)

    def lr(self, base: float, epoch: int) -> float:
        return base * self.gamma ** bisect.bisect_right(self.milestones, epoch)


class ExponentialLR(Schedule):
    """Multiply by `gamma` in each epoch."""

    gamma: float

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = plain(gamma)
        super().__init__(optimizer)

    def lr(self, base: float, epoch: int) -> float:
        return base * self.gamma**epoch


class CosineAnnealingLR(Schedule):
    """Follow half a cosine from the start value to `eta_min` in `T_max` epochs, then stay."""

    T_max: int
    eta_min: float

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        if not T_max >= 1:
            raise ValueError(f"CosineAnnealingLR: T_max must be >= 1, got {T_max!r}")
        self.T_max, self.eta_min = plain(T_max), plain(eta_min)
        super().__init__(optimizer)

    def lr(self, base: float, epoch: int) -> float:
        progress = min(epoch / self.T_max, 1.0)
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * progress)) / 2


class LinearLR(Schedule):
    """Warm up linearly from `start_factor` to `end_factor` times the start value, then stay.

    The warm-up takes `total_iters` epochs.
    """

    start_factor: float
    end_factor: float
    total_iters: int

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:
        if not 0 < start_factor <= 1 or not 0 <= end_factor <= 1:
            raise ValueError(
                "LinearLR: start_factor must lie in (0, 1] and end_factor in [0, 1], got "
                f"{start_factor!r} and {end_factor!r}"
            )
        check_sizes("LinearLR", total_iters=total_iters)
        self.start_factor, self.end_factor = plain(start_factor), plain(end_factor)
        self.total_iters = int(total_iters)
        super().__init__(optimizer)

    def lr(self, base: float, epoch: int) -> float:
        progress = min(epoch / self.total_iters, 1.0)
        return base * (self.start_factor + (self.end_factor - self.start_factor) * progress)


class LambdaLR(Schedule):
    """Multiply the start value by ``lr_lambda(epoch)``."""

    lr_lambda: Callable[[int], float]

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        if not callable(lr_lambda):
            raise TypeError(f"LambdaLR: lr_lambda must be a function, got {lr_lambda!r}")
        self.lr_lambda = lr_lambda
        super().__init__(optimizer)

    def lr(self, base: float, epoch: int) -> float:
        return base * self.lr_lambda(epoch)


class SequentialLR(Schedule):
    """Run schedules one after the other, each counting from 0 at its milestone.

    >>> from tinybnn import nn, optim
    >>> adam = optim.Adam(nn.Linear(2, 1).parameters(), lr=0.1)
    >>> warm_up = optim.LinearLR(adam, start_factor=0.1, total_iters=5)
    >>> cosine = optim.CosineAnnealingLR(adam, T_max=95)
    >>> schedule = optim.SequentialLR(adam, [warm_up, cosine], milestones=[5])

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : list of Schedule
        Do not call their `step`, only SequentialLR's.
    milestones : list of int
        The epochs at which the second, third, ... schedule begins.
    """

    schedulers: list[Schedule]
    milestones: list[int]

    def __init__(
        self, optimizer: Optimizer, schedulers: Iterable[Schedule], milestones: Iterable[int]
    ) -> None:
        schedulers, milestones = list(schedulers), [plain(m) for m in milestones]
        if len(milestones) != len(schedulers) - 1 or any(
            low >= high for low, high in zip([0, *milestones], milestones, strict=False)
        ):
            raise ValueError(
                f"SequentialLR: {len(schedulers)} schedules need {len(schedulers) - 1} rising "
                f"milestones > 0, got {milestones}"
            )
        if any(s.optimizer is not optimizer for s in schedulers):
            raise ValueError("SequentialLR: a schedule belongs to another optimizer")
        self.schedulers, self.milestones = schedulers, milestones
        super().__init__(optimizer)

    def lr(self, base: float, epoch: int) -> float:
        i = bisect.bisect_right(self.milestones, epoch)
        return self.schedulers[i].lr(base, epoch - [0, *self.milestones][i])

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "schedulers": [s.state_dict() for s in self.schedulers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        _check_state(self, state_dict)
        if len(state_dict["schedulers"]) != len(self.schedulers):
            raise ValueError(
                f"load_state_dict: SequentialLR has {len(self.schedulers)} schedules, the state "
                f"{len(state_dict['schedulers'])}"
            )
        for own, state in zip(self.schedulers, state_dict["schedulers"], strict=True):
            own.load_state_dict(state)
        super().load_state_dict({**state_dict, "schedulers": self.schedulers})


class OneCycleLR(Schedule):
    """Warm up to `max_lr`, then anneal far below the start (Smith and Topin 2018).

    Step it after each batch: ``fit(..., schedule_unit="batch")``.

    Parameters
    ----------
    optimizer : Optimizer
    max_lr : float, or list of float for the groups
    total_steps : int, optional
        Default: `epochs` times `steps_per_epoch`.
    epochs, steps_per_epoch : int, optional
    pct_start : float
        Fraction of the steps that warm up.
    anneal_strategy : 'cos' or 'linear'
    cycle_momentum : bool
        Move the momentum, or the first of the betas, in the opposite direction.
    base_momentum, max_momentum : float
    div_factor, final_div_factor : float
        The start value is max_lr / div_factor, the end value start / final_div_factor.
    three_phase : bool
        Return to the start value as fast as it warmed up, then anneal.
    """

    moves: tuple[str, ...] = ("momentum", "betas")
    total_steps: int
    anneal_strategy: str
    cycle_momentum: bool
    base_momentum: float
    max_momentum: float
    div_factor: float
    final_div_factor: float
    ends: list[float]

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("OneCycleLR: give total_steps, or epochs and steps_per_epoch")
            check_sizes("OneCycleLR", epochs=epochs, steps_per_epoch=steps_per_epoch)
            total_steps = epochs * steps_per_epoch
        check_sizes("OneCycleLR", total_steps=total_steps)
        if not 0 <= pct_start <= 1:
            raise ValueError(f"OneCycleLR: pct_start must lie in [0, 1], got {pct_start!r}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"OneCycleLR: anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}"
            )
        rates = optimizer.rates
        largest = [max_lr] * len(rates) if np.ndim(max_lr) == 0 else list(max_lr)
        if len(largest) != len(rates):
            raise ValueError(f"OneCycleLR: {len(rates)} groups need {len(rates)} max_lr")
        if cycle_momentum and not all("momentum" in g or "betas" in g for g, _ in rates):
            raise ValueError(
                "OneCycleLR: the optimizer has no momentum and no betas; pass cycle_momentum=False"
            )
        self.total_steps, self.anneal_strategy = int(total_steps), anneal_strategy
        self.cycle_momentum = bool(cycle_momentum)
        self.base_momentum, self.max_momentum = plain(base_momentum), plain(max_momentum)
        self.div_factor, self.final_div_factor = plain(div_factor), plain(final_div_factor)
        warm = float(pct_start * self.total_steps) - 1
        last = self.total_steps - 1
        self.ends = [warm, 2 * warm, last] if three_phase else [warm, last]
        for (group, rate), value in zip(rates, largest, strict=True):
            group[f"initial_{rate}"] = plain(value) / self.div_factor
        super().__init__(optimizer)

    def _between(self, values, epoch):
        """Interpolate from each value to the next, in the phases that end at `ends`."""
        phase = min(bisect.bisect_left(self.ends, epoch), len(self.ends) - 1)
        begin, end = [0, *self.ends][phase : phase + 2]
        progress = (epoch - begin) / (end - begin) if end > begin else 1.0
        first, last = values[phase : phase + 2]
        if self.anneal_strategy == "cos":
            return last + (first - last) / 2 * (math.cos(math.pi * progress) + 1)
        return first + (last - first) * progress

    def lr(self, base: float, epoch: int) -> float:
        if epoch >= self.total_steps:
            raise ValueError(f"OneCycleLR: step {epoch + 1} of {self.total_steps} steps")
        values = [base, base * self.div_factor, base, base / self.final_div_factor]
        return self._between(values if len(self.ends) == 3 else values[:2] + values[3:], epoch)

    def _set(self):
        super()._set()
        if not self.cycle_momentum:
            return
        low, high = self.base_momentum, self.max_momentum
        values = [high, low, high, high][: len(self.ends) + 1]
        momentum = self._between(values, self.last_epoch)
        for group, _ in self.optimizer.rates:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


class ReduceLROnPlateau:
    """Multiply by `factor` when a metric has not improved for more than `patience` epochs.

    Call ``step(metric)`` after each epoch, for example with a validation loss. `training.fit` does
    not pass a metric: call `fit` for one epoch at a time, or write the loop.

    Parameters
    ----------
    optimizer : Optimizer
    mode : 'min' or 'max'
        Whether a smaller or a larger metric is better.
    factor : float
        Below 1.
    patience : int
    threshold : float
        Smallest change that counts as an improvement.
    threshold_mode : 'rel' or 'abs'
        Whether the threshold is relative to the best metric.
    cooldown : int
        Number of epochs after a change that do not count as bad.
    min_lr : float, or list of float for the groups
    eps : float
        Smaller changes of the rate are not made.

    Attributes
    ----------
    best : float
        The best metric so far.
    num_bad_epochs, last_epoch : int
    """

    optimizer: Optimizer
    mode: str
    factor: float
    patience: int
    threshold: float
    threshold_mode: str
    cooldown: int
    min_lrs: list[float]
    eps: float
    best: float
    num_bad_epochs: int
    cooldown_counter: int
    last_epoch: int

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if not factor < 1:
            raise ValueError(f"ReduceLROnPlateau: factor must be below 1, got {factor!r}")
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise ValueError(
                "ReduceLROnPlateau: mode must be 'min' or 'max' and threshold_mode 'rel' or 'abs', "
                f"got {mode!r} and {threshold_mode!r}"
            )
        count = len(optimizer.rates)
        self.min_lrs = [plain(min_lr)] * count if np.ndim(min_lr) == 0 else list(min_lr)
        if len(self.min_lrs) != count:
            raise ValueError(f"ReduceLROnPlateau: {count} groups need {count} min_lr")
        self.optimizer, self.mode, self.factor = optimizer, mode, plain(factor)
        self.patience, self.threshold, self.threshold_mode = patience, threshold, threshold_mode
        self.cooldown, self.eps = cooldown, eps
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0

    def _is_better(self, value):
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "rel":
            return sign * value > sign * self.best * (1 + sign * self.threshold)
        return sign * value > sign * self.best + self.threshold

    def step(self, metrics: TensorLike) -> None:
        """Register the metric of an epoch: a number, or a Tensor or array of one element."""
        value = float(as_array(metrics))
        self.last_epoch += 1
        if self._is_better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for (group, rate), least in zip(self.optimizer.rates, self.min_lrs, strict=True):
                new = max(group[rate] * self.factor, least)
                if group[rate] - new > self.eps:
                    group[rate] = new
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def get_last_lr(self) -> list[float]:
        """Return the current learning rate of each group."""
        return rates_of(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return all settings and counts, without the optimizer, whose state holds the rates."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        _check_state(self, state_dict)
        vars(self).update(state_dict)

    def __repr__(self) -> str:
        return (
            f"ReduceLROnPlateau(mode={self.mode!r}, factor={self.factor!r}, "
            f"patience={self.patience!r}, threshold={self.threshold!r}, "
            f"threshold_mode={self.threshold_mode!r}, cooldown={self.cooldown!r})"
        )
