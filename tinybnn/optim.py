"""Optimizers and learning-rate schedules, with PyTorch's names and formulas.

What is special here are latent weights (`nn.LatentParameter`): after each step they are clipped to
their `clip_value`, and weight decay leaves them alone unless asked. Pulling a latent weight towards
zero does not make a sign smaller; it only makes it flip more easily.
"""

from __future__ import annotations

import math

import numpy as np

from tinybnn.nn import LatentParameter
from tinybnn.tensor import Tensor


class Optimizer:
    """Base class: parameter groups, state for each parameter, clipping of latent weights.

    A subclass gives `update`. Settings of a group override the constructor's; ``lr`` may be
    changed between steps, as schedules do.

    Parameters
    ----------
    params : iterable of Tensors, or of dicts {"params": ..., "lr": ..., ...}
    defaults : dict
        Settings of groups that do not set their own.

    Attributes
    ----------
    param_groups : list of dict
    state : list of dict
        For each parameter, in order of the groups, the arrays that `update` keeps.
    """

    def __init__(self, params, defaults):
        params = list(params)
        groups = params if params and isinstance(params[0], dict) else [{"params": params}]
        self.param_groups = []
        for group in groups:
            group = {**defaults, **group, "params": list(group["params"])}
            unknown = set(group) - set(defaults) - {"params"}
            if unknown:
                raise ValueError(f"{type(self).__name__}: unknown settings {sorted(unknown)}")
            self._check(group)
            self.param_groups.append(group)
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        if not self.parameters:
            raise ValueError(f"{type(self).__name__}: got no parameters")
        for p in self.parameters:
            if not isinstance(p, Tensor):
                raise TypeError(f"{type(self).__name__}: expects Tensors, got {type(p).__name__}")
        if len({id(p) for p in self.parameters}) != len(self.parameters):
            raise ValueError(f"{type(self).__name__}: a parameter appears twice")
        self.state = [{} for _ in self.parameters]

    def _check(self, group):
        for name, low in (("lr", 0), ("weight_decay", 0), ("eps", 0), ("momentum", 0)):
            if name in group and not group[name] >= low:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be >= {low}, got {group[name]!r}"
                )
        for beta in group.get("betas", ()):
            if not 0 <= beta < 1:
                raise ValueError(
                    f"{type(self).__name__}: betas must lie in [0, 1), got {group['betas']!r}"
                )

    def zero_grad(self):
        """Forget the gradients of all parameters."""
        for p in self.parameters:
            p.grad = None

    def step(self):
        """Update every parameter that has a gradient, then clip the latent ones."""
        states = iter(self.state)
        for group in self.param_groups:
            for p in group["params"]:
                state = next(states)
                if p.grad is None:
                    continue
                is_latent = isinstance(p, LatentParameter)
                decay = group["weight_decay"]
                if is_latent and not group["decay_latents"]:
                    decay = 0.0
                self.update(p.data, p.grad.data, state, group, decay)
                if is_latent and p.clip_value is not None:
                    np.clip(p.data, -p.clip_value, p.clip_value, out=p.data)

    def update(self, weight, grad, state, group, decay):
        """Change the array `weight` in place.

        Parameters
        ----------
        weight, grad : arrays of equal shape
        state : dict
            Empty at the parameter's first step; kept between steps.
        group : dict
            The settings.
        decay : float
            Weight decay of this parameter.
        """
        raise NotImplementedError


class SGD(Optimizer):
    """v = momentum v + grad; weight -= lr v.

    Parameters
    ----------
    params : iterable of Tensors or groups
    lr : float
    momentum : float
    weight_decay : float
        L2 penalty: decay * weight is added to the gradient.
    decay_latents : bool
        Apply the decay to latent weights too.
    """

    def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0, decay_latents=False):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "decay_latents": decay_latents,
            },
        )

    def update(self, weight, grad, state, group, decay):
        if decay:
            grad = grad + decay * weight
        if group["momentum"]:
            if "velocity" in state:
                state["velocity"] *= group["momentum"]
                state["velocity"] += grad
            else:
                state["velocity"] = grad.copy(order="K")
            grad = state["velocity"]
        weight -= group["lr"] * grad


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1).

    Parameters
    ----------
    params : iterable of Tensors or groups
    lr : float
    betas : pair of float
        Decay of the running means of the gradient and of its square.
    eps : float
    weight_decay : float
        L2 penalty: decay * weight is added to the gradient.
    decay_latents : bool
        Apply the decay to latent weights too.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        decay_latents=False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "decay_latents": decay_latents,
            },
        )

    def update(self, weight, grad, state, group, decay):
        if decay:
            grad = grad + decay * weight
        if not state:
            state["step"] = np.zeros((), np.int64)
            state["mean"] = np.zeros_like(weight)
            state["square"] = np.zeros_like(weight)
        state["step"] += 1
        step = int(state["step"])
        beta1, beta2 = group["betas"]
        state["mean"] += (1 - beta1) * (grad - state["mean"])
        state["square"] *= beta2
        state["square"] += (1 - beta2) * (grad * grad)
        size = group["lr"] / (1 - beta1**step)
        root = np.sqrt(state["square"]) / math.sqrt(1 - beta2**step) + group["eps"]
        weight -= size * (state["mean"] / root)


class Schedule:
    """Base class: the learning rate of each group as a function of the step count.

    Call `step` once after each epoch (or each batch: the unit is yours). A subclass gives
    `factor`.

    Attributes
    ----------
    last_epoch : int
        Number of steps so far.
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.last_epoch = 0
        self._set()

    def lr(self, base, epoch):
        """The learning rate at `epoch` of a group that started with `base`."""
        raise NotImplementedError

    def step(self):
        """Go on by one epoch."""
        self.last_epoch += 1
        self._set()

    def _set(self):
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.lr(base, self.last_epoch)


class StepLR(Schedule):
    """Multiply by `gamma` every `step_size` epochs."""

    def __init__(self, optimizer, step_size, gamma=0.1):
        if not isinstance(step_size, int) or step_size < 1:
            raise ValueError(f"StepLR: step_size must be an int >= 1, got {step_size!r}")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def lr(self, base, epoch):
        return base * self.gamma ** (epoch // self.step_size)


class CosineAnnealingLR(Schedule):
    """Half a cosine from the start value to `eta_min` in `T_max` epochs; constant afterwards."""

    def __init__(self, optimizer, T_max, eta_min=0.0):
        if T_max < 1:
            raise ValueError(f"CosineAnnealingLR: T_max must be >= 1, got {T_max!r}")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def lr(self, base, epoch):
        progress = min(epoch / self.T_max, 1.0)
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * progress)) / 2
