"""Optimizers and learning-rate schedules, with PyTorch's names and formulas.

What is special here are latent weights (`nn.LatentParameter`): after each step they are clipped to
their `clip_value`, and weight decay leaves them alone unless asked. Pulling a latent weight towards
zero does not make a sign smaller; it only makes it flip more easily. `Bop` goes further and does
without latent weights: it flips signs.
"""

from __future__ import annotations

import bisect
import functools
import math

import numpy as np

from tinybnn.autograd import Tensor, plain
from tinybnn.kernels.machine import layout
from tinybnn.nn import LatentParameter
from tinybnn.nn.layers import check_sizes
from tinybnn.quantizers import EdeSign

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Bop",
    "ChainedScheduler",
    "CosineAnnealingLR",
    "EdeSchedule",
    "LambdaLR",
    "LinearLR",
    "MultiOptimizer",
    "Optimizer",
    "Schedule",
    "SequentialLR",
    "StepLR",
]  # fmt: skip
__dir__ = __all__.copy  # dir() shows what is public, and nothing else


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
    rate : str
        The setting that schedules change.
    state_names : tuple of str or None
        The arrays that `update` keeps from the first step on; None if they vary.
    """

    rate = "lr"
    state_names = None

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        # A rule of its own is not what an inherited kernel computes.
        if "update" in vars(cls) and "fused_update" not in vars(cls):
            cls.fused_update = Optimizer.fused_update

    def __init__(self, params, defaults):
        if isinstance(params, Tensor):
            raise TypeError(f"{type(self).__name__}: params must be a list of Tensors, not one")
        params = list(params)
        groups = params if params and isinstance(params[0], dict) else [{"params": params}]
        self.param_groups = []
        for group in groups:
            if not isinstance(group, dict) or "params" not in group:
                raise ValueError(f"{type(self).__name__}: each group must be a dict with 'params'")
            group = {**defaults, **group}
            own = group["params"]
            group["params"] = [own] if isinstance(own, Tensor) else list(own)
            unknown = set(group) - set(defaults) - {"params"}
            if unknown:
                raise ValueError(f"{type(self).__name__}: unknown settings {sorted(unknown)}")
            group.update((name, plain(group[name])) for name in defaults)
            self._check(group)
            self.param_groups.append(group)
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        self.state = [{} for _ in self.parameters]
        self._check_parameters()

    def _check_parameters(self):
        if not self.parameters:
            raise ValueError(f"{type(self).__name__}: got no parameters")
        for p in self.parameters:
            if not isinstance(p, Tensor):
                raise TypeError(f"{type(self).__name__}: expects Tensors, got {type(p).__name__}")
        if len({id(p) for p in self.parameters}) != len(self.parameters):
            raise ValueError(f"{type(self).__name__}: a parameter appears twice")

    def _check(self, group):
        for name in ("lr", "weight_decay", "eps", "momentum"):
            if name in group and not group[name] >= 0:
                raise ValueError(f"{type(self).__name__}: {name} must be >= 0, got {group[name]!r}")
        betas = group.get("betas", (0, 0))
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"{type(self).__name__}: betas must be two numbers in [0, 1), got {betas!r}"
            )

    @property
    def rates(self):
        """(group, name of the setting that schedules change) for each group."""
        return [(group, self.rate) for group in self.param_groups]

    def __repr__(self):
        groups = [
            _settings({**group, "params": len(group["params"])}) for group in self.param_groups
        ]
        return f"{type(self).__name__}({'; '.join(groups)})"

    def zero_grad(self):
        """Forget the gradients of all parameters."""
        for p in self.parameters:
            p.grad = None

    def step(self):
        """Update every parameter that has a gradient, then clip the latent ones.

        Raises
        ------
        ValueError
            If such a parameter is read-only, as a memory map can be. Nothing has been changed then.
        """
        for i, p in enumerate(self.parameters):
            if p.grad is not None and not p.data.flags.writeable:
                raise ValueError(
                    f"{type(self).__name__}: parameter {i} (shape {p.shape}) is read-only; give "
                    "it memory of its own: p.data = p.data.copy()"
                )
        states = iter(self.state)
        for group in self.param_groups:
            for p in group["params"]:
                state = next(states)
                if p.grad is None:
                    continue
                is_latent = isinstance(p, LatentParameter)
                decay = group.get("weight_decay", 0.0)
                if is_latent and not group.get("decay_latents"):
                    decay = 0.0
                clip = p.clip_value if is_latent else None
                if self.fused_update(p.data, p.grad.data, state, group, decay, clip):
                    continue
                self.update(p.data, p.grad.data, state, group, decay)
                if clip is not None:
                    np.clip(p.data, -clip, clip, out=p.data)

    def update(self, weight, grad, state, group, decay):
        """Change the array `weight` in place.

        Parameters
        ----------
        weight, grad : arrays of equal shape
        state : dict
            Empty at the parameter's first step; the arrays in it are kept between steps.
        group : dict
            The settings.
        decay : float
            Weight decay of this parameter.
        """
        raise NotImplementedError

    def fused_update(self, weight, grad, state, group, decay, clip):
        """Do `update` and the clipping in one pass over memory, by a kernel.

        Parameters
        ----------
        weight, grad, state, group, decay
            As in `update`.
        clip : float or None
            The weight is limited to ± this number.

        Returns
        -------
        bool
            False if there is no kernel for this, and nothing was done.
        """
        return False

    # ------------------------------------------------------------------------------------ state

    def __setstate__(self, state):
        vars(self).update(state)
        for p, arrays in zip(self.parameters, self.state, strict=True):
            for name, array in arrays.items():  # a pickle forgets their order in memory
                arrays[name] = _laid_out_like(p.data, array)

    def state_dict(self):
        """Settings and state, in PyTorch's form.

        Returns
        -------
        dict
            ``state``: position of a parameter -> its arrays (shared memory, no copies), where it
            has some; ``param_groups``: the settings of each group, with the positions of its
            parameters as ``params``.
        """
        positions = iter(range(len(self.parameters)))
        groups = [
            {**group, "params": [next(positions) for _ in group["params"]]}
            for group in self.param_groups
        ]
        return {
            "state": {i: dict(state) for i, state in enumerate(self.state) if state},
            "param_groups": groups,
        }

    def load_state_dict(self, state_dict):
        """Take over settings and state; the arrays are copied.

        Raises
        ------
        ValueError
            If the groups have other sizes or settings, or an array does not fit its parameter or
            is missing. Nothing has been changed when an error is raised.
        """
        own, groups = self.state_dict()["param_groups"], state_dict["param_groups"]
        state = {int(i): arrays for i, arrays in state_dict["state"].items()}

        def forms(groups):  # initial rates come with a schedule
            return [
                (g["params"], sorted(n for n in g if not n.startswith("initial_"))) for g in groups
            ]

        if forms(own) != forms(groups) or not state.keys() <= set(range(len(self.parameters))):
            raise ValueError(
                f"load_state_dict: {type(self).__name__} has the groups (parameters, settings) "
                f"{forms(own)}, the state is of {forms(groups)}"
            )
        copies = []
        for i, p in enumerate(self.parameters):
            copies.append({})
            self._check_names(i, state.get(i, {}))
            for name, array in state.get(i, {}).items():
                if np.shape(array) not in ((), p.shape):
                    raise ValueError(
                        f"load_state_dict: {name} of parameter {i} has shape {np.shape(array)}, "
                        f"expected {p.shape}"
                    )
                copies[i][name] = _laid_out_like(p.data, np.array(array))
        for group, new in zip(self.param_groups, groups, strict=True):
            group.update((n, plain(value)) for n, value in new.items() if n != "params")
        for arrays, new in zip(self.state, copies, strict=True):
            arrays.clear()
            arrays.update(new)

    def _check_names(self, i, arrays):
        """The state of one parameter is that of one that has had a step, or of one that has not."""
        if self.state_names is not None and arrays and set(arrays) != set(self.state_names):
            raise ValueError(
                f"load_state_dict: {type(self).__name__} keeps {', '.join(self.state_names)} of "
                f"each parameter, the state of parameter {i} has {', '.join(sorted(arrays))}"
            )


def _settings(values):
    """Settings as they are written in a call; one that is not a plain value by its name."""
    return ", ".join(
        f"{name}={getattr(value, '__qualname__', None) or repr(value)}"
        for name, value in values.items()
    )


def _laid_out_like(weight, array):
    """An array of a parameter's state, writable and in the weight's order in memory."""
    if not isinstance(array, np.ndarray) or array.shape != weight.shape:
        return array
    if array.flags.writeable and array.strides == weight.strides:
        return array
    result = np.empty_like(weight, array.dtype)
    result[...] = array
    return result


@functools.cache
def _kernels():
    from tinybnn.kernels.training import optimizers  # compiled at the first use

    return optimizers


def _flat(weight, grad, *state):
    """The arrays as rows of float32 numbers in the same order, for a kernel; None if they are not.

    A gradient that lies in memory in another order than its weight is copied into that order.
    """
    if grad.strides != weight.strides:
        given, grad = grad, np.empty_like(weight)
        grad[...] = given
    return layout.flat(weight, grad, *state)


class SGD(Optimizer):
    """v = momentum v + (1 - dampening) grad; weight -= lr v.

    The first v is the gradient itself. With `nesterov` the step is lr (grad + momentum v).

    Parameters
    ----------
    params : iterable of Tensors or groups
    lr : float
    momentum, dampening : float
    weight_decay : float
        L2 penalty: decay * weight is added to the gradient.
    nesterov : bool
        Needs momentum > 0 and no dampening (Sutskever et al. 2013, in PyTorch's form).
    decay_latents : bool
        Apply the decay to latent weights too.
    """

    state_names = ("velocity",)  # with momentum only

    def __init__(
        self,
        params,
        lr=1e-3,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        *,
        decay_latents=False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "decay_latents": decay_latents,
            },
        )

    def _check(self, group):
        super()._check(group)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "SGD: nesterov needs momentum > 0 and dampening = 0, got "
                f"momentum={group['momentum']!r}, dampening={group['dampening']!r}"
            )

    def update(self, weight, grad, state, group, decay):
        momentum = group["momentum"]
        if decay:
            grad = grad + decay * weight
        if momentum:
            if "velocity" in state:
                state["velocity"] *= momentum
                state["velocity"] += (1 - group["dampening"]) * grad
            else:
                state["velocity"] = np.empty_like(weight)
                state["velocity"][...] = grad
            velocity = state["velocity"]
            grad = grad + momentum * velocity if group["nesterov"] else velocity
        weight -= group["lr"] * grad

    def fused_update(self, weight, grad, state, group, decay, clip):
        if group["momentum"] and "velocity" not in state:
            return False  # the first step
        velocity = (state["velocity"],) if group["momentum"] else ()
        arrays = _flat(weight, grad, *velocity)
        if arrays is None:
            return False
        step = _kernels().SgdStep(
            group["lr"], group["momentum"], group["dampening"], group["nesterov"], decay,
            math.inf if clip is None else clip,
        )  # fmt: skip
        _kernels().sgd(*(arrays if velocity else (*arrays, None)), step)
        return True


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

    state_names = ("step", "mean", "square")

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        *,
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
        self._start(weight, state)
        state["step"] += 1
        step = int(state["step"])
        beta1, beta2 = group["betas"]
        state["mean"] += (1 - beta1) * (grad - state["mean"])
        state["square"] *= beta2
        state["square"] += (1 - beta2) * (grad * grad)
        size = group["lr"] / (1 - beta1**step)
        root = np.sqrt(state["square"]) / math.sqrt(1 - beta2**step) + group["eps"]
        weight -= size * (state["mean"] / root)

    def _start(self, weight, state):
        """The state of a parameter's first step."""
        if not state:
            state["step"] = np.zeros((), np.int64)
            state["mean"] = np.zeros_like(weight)
            state["square"] = np.zeros_like(weight)

    def fused_update(self, weight, grad, state, group, decay, clip, shrink=1.0):
        self._start(weight, state)
        arrays = _flat(weight, grad, state["mean"], state["square"])
        if arrays is None:
            return False
        state["step"] += 1
        step = int(state["step"])
        beta1, beta2 = group["betas"]
        size, root = group["lr"] / (1 - beta1**step), math.sqrt(1 - beta2**step)
        clip = math.inf if clip is None else clip
        constants = size, beta1, beta2, root, group["eps"], shrink, decay, clip
        _kernels().adam(*arrays, _kernels().AdamStep(*constants))
        return True


class AdamW(Adam):
    """Adam with decoupled decay (Loshchilov and Hutter 2019): weight *= 1 - lr decay, then Adam.

    Parameters
    ----------
    params, lr, betas, eps
        As in Adam.
    weight_decay : float
    decay_latents : bool
        Apply the decay to latent weights too.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        *,
        decay_latents=False,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, decay_latents=decay_latents)

    def update(self, weight, grad, state, group, decay):
        if decay:
            weight *= 1 - group["lr"] * decay
        super().update(weight, grad, state, group, 0.0)

    def fused_update(self, weight, grad, state, group, decay, clip):
        shrink = 1 - group["lr"] * decay
        return super().fused_update(weight, grad, state, group, 0.0, clip, shrink)


class Bop(Optimizer):
    """Binary optimizer: flips signs, and has no latent weights (Helwegen et al. 2019, alg. 1).

    m += gamma (grad - m); a weight w = ±1 flips where w m > threshold: its gradient has pushed in
    the other direction for long enough. Equality does not flip.

    It takes the weights of binary layers only; their first update sets them to their signs, which
    changes no output of a layer with scale None. Give the other parameters to a second optimizer
    and join both for `training.fit`:

    >>> from tinybnn import nn, optim
    >>> model = nn.Sequential(nn.BinaryLinear(64, 10), nn.BatchNorm1d(10))
    >>> binary = [p for p in model.parameters() if isinstance(p, nn.LatentParameter)]
    >>> others = [p for p in model.parameters() if not isinstance(p, nn.LatentParameter)]
    >>> optimizer = optim.MultiOptimizer(optim.Bop(binary), optim.Adam(others, lr=1e-2))

    Parameters
    ----------
    params : iterable of LatentParameters or groups
    threshold : float
        At least 0. The larger, the fewer flips.
    gamma : float
        In (0, 1]: how fast old gradients are forgotten. Schedules change it, as they change the
        learning rate of other optimizers.
    """

    rate = "gamma"
    state_names = ("mean",)

    def __init__(self, params, threshold=1e-8, gamma=1e-4):
        super().__init__(params, {"threshold": threshold, "gamma": gamma})
        if not all(isinstance(p, LatentParameter) for p in self.parameters):
            raise TypeError(
                "Bop: takes the weights of binary layers (LatentParameters) only; give the others "
                "to a second optimizer and join both with MultiOptimizer"
            )

    def _check(self, group):
        if not group["threshold"] >= 0:
            raise ValueError(f"Bop: threshold must be >= 0, got {group['threshold']!r}")
        if not 0 < group["gamma"] <= 1:
            raise ValueError(f"Bop: gamma must lie in (0, 1], got {group['gamma']!r}")

    def update(self, weight, grad, state, group, decay):
        if not state:
            state["mean"] = np.zeros_like(weight)
        state["mean"] += group["gamma"] * (grad - state["mean"])
        sign = np.where(weight >= 0, 1, -1).astype(weight.dtype)
        weight[...] = np.where(sign * state["mean"] > group["threshold"], -sign, sign)


class MultiOptimizer(Optimizer):
    """Several optimizers as one, each with parameters of its own.

    Parameters
    ----------
    *optimizers : Optimizer

    Attributes
    ----------
    optimizers : tuple of Optimizer
    param_groups, parameters, state : list
        Those of the optimizers, one after the other.
    """

    def __init__(self, *optimizers):
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer):
                raise TypeError(
                    f"MultiOptimizer: expects Optimizers, got {type(optimizer).__name__}"
                )
        self.optimizers = optimizers
        self.param_groups = [group for o in optimizers for group in o.param_groups]
        self.parameters = [p for o in optimizers for p in o.parameters]
        self.state = [state for o in optimizers for state in o.state]
        self._check_parameters()

    @property
    def rates(self):
        return [pair for optimizer in self.optimizers for pair in optimizer.rates]

    def __repr__(self):
        return f"MultiOptimizer({', '.join(map(repr, self.optimizers))})"

    def _check_names(self, i, arrays):
        for optimizer in self.optimizers:
            if i < len(optimizer.parameters):
                return optimizer._check_names(i, arrays)
            i -= len(optimizer.parameters)

    def step(self):
        """Let each optimizer do its step."""
        for optimizer in self.optimizers:
            optimizer.step()


class Schedule:
    """Base class: the learning rate of each group as a function of the step count.

    Call `step` once after each epoch (or each batch: the unit is yours). A subclass gives `lr`.
    As in PyTorch, the first schedule of an optimizer notes each group's start value in the group
    as ``initial_lr``, and all schedules count from there.

    Attributes
    ----------
    last_epoch : int
        Number of steps so far.
    base_lrs : list of float
        The start value of each group.
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.base_lrs = [g.setdefault(f"initial_{rate}", g[rate]) for g, rate in optimizer.rates]
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
        for (group, rate), base in zip(self.optimizer.rates, self.base_lrs, strict=True):
            group[rate] = float(self.lr(base, self.last_epoch))

    def __repr__(self):
        hidden = ("optimizer", "base_lrs", "last_epoch")
        settings = {name: value for name, value in vars(self).items() if name not in hidden}
        return f"{type(self).__name__}({_settings(settings)})"

    def state_dict(self):
        """All settings and the step count, without the optimizer and without functions."""
        return {
            name: value
            for name, value in vars(self).items()
            if name != "optimizer" and not callable(value)
        }

    def load_state_dict(self, state_dict):
        """Continue where `state_dict` was taken: the optimizer gets the rates of that epoch.

        The order of loading the optimizer's state and the schedule's does not matter.

        Raises
        ------
        ValueError
            If it is the state of another kind of schedule, or of other parameter groups.
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


def _check_state(schedule, state_dict):
    own = schedule.state_dict().keys()
    if own != state_dict.keys():
        raise ValueError(
            f"load_state_dict: {type(schedule).__name__} has the settings {', '.join(own)}, the "
            f"state {', '.join(state_dict)}"
        )


class EdeSchedule:
    """Sharpen the slope of every `quantizers.EdeSign` in a model: t grows evenly in log t.

    IR-Net (Qin et al. 2020, eq. 10). Give it to `training.fit` beside a learning-rate schedule by
    ``schedule=ChainedScheduler([cosine, ede])``.

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

    def __init__(self, model, T_max, t_min=1e-3, t_max=1e1):
        if not T_max >= 1:
            raise ValueError(f"EdeSchedule: T_max must be >= 1, got {T_max!r}")
        if not 0 < t_min <= t_max:
            raise ValueError(f"EdeSchedule: expects 0 < t_min <= t_max, got {t_min!r}, {t_max!r}")
        found = {
            id(value): value
            for module in model.modules()
            for value in vars(module).values()
            if isinstance(value, EdeSign)
        }
        self.quantizers = list(found.values())
        if not self.quantizers:
            raise ValueError("EdeSchedule: the model has no EdeSign quantizer")
        self.T_max, self.t_min, self.t_max = plain(T_max), plain(t_min), plain(t_max)
        self.last_epoch = 0
        self._set()

    def t(self, epoch):
        """The steepness at `epoch`."""
        return self.t_min * (self.t_max / self.t_min) ** min(epoch / self.T_max, 1.0)

    def step(self):
        """Go on by one epoch."""
        self.last_epoch += 1
        self._set()

    def _set(self):
        for quantizer in self.quantizers:
            quantizer.t = self.t(self.last_epoch)

    def state_dict(self):
        """The settings and the step count, without the quantizers."""
        return {name: value for name, value in vars(self).items() if name != "quantizers"}

    def load_state_dict(self, state_dict):
        """Continue where `state_dict` was taken; the quantizers get the t of that epoch."""
        _check_state(self, state_dict)
        vars(self).update(state_dict)
        self._set()

    def __repr__(self):
        return f"EdeSchedule(T_max={self.T_max!r}, t_min={self.t_min!r}, t_max={self.t_max!r})"


class ChainedScheduler:
    """Several schedules that are stepped together, say of the learning rate and of EDE's t.

    Parameters
    ----------
    schedules : sequence of schedules

    Attributes
    ----------
    last_epoch : int
        Number of steps so far.
    """

    def __init__(self, schedules):
        self.schedules = list(schedules)
        if not self.schedules:
            raise ValueError("ChainedScheduler: expects at least one schedule, got none")
        self.last_epoch = 0

    def step(self):
        """Step each schedule."""
        self.last_epoch += 1
        for schedule in self.schedules:
            schedule.step()

    def state_dict(self):
        """The step count, and the settings of each schedule."""
        states = [dict(schedule.state_dict()) for schedule in self.schedules]
        for state in states:
            del state["last_epoch"]
        return {"last_epoch": self.last_epoch, "schedules": states}

    def __repr__(self):
        return f"ChainedScheduler({self.schedules!r})"

    def load_state_dict(self, state_dict):
        """Continue where `state_dict` was taken."""
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

    def __init__(self, optimizer, step_size, gamma=0.1):
        check_sizes("StepLR", step_size=step_size)
        self.step_size, self.gamma = int(step_size), plain(gamma)
        super().__init__(optimizer)

    def lr(self, base, epoch):
        return base * self.gamma ** (epoch // self.step_size)


class CosineAnnealingLR(Schedule):
    """Half a cosine from the start value to `eta_min` in `T_max` epochs; constant afterwards."""

    def __init__(self, optimizer, T_max, eta_min=0.0):
        if not T_max >= 1:
            raise ValueError(f"CosineAnnealingLR: T_max must be >= 1, got {T_max!r}")
        self.T_max, self.eta_min = plain(T_max), plain(eta_min)
        super().__init__(optimizer)

    def lr(self, base, epoch):
        progress = min(epoch / self.T_max, 1.0)
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * progress)) / 2


class LinearLR(Schedule):
    """From `start_factor` to `end_factor` times the start value in `total_iters` epochs: warm-up.

    Constant afterwards.
    """

    def __init__(self, optimizer, start_factor=1 / 3, end_factor=1.0, total_iters=5):
        if not 0 < start_factor <= 1 or not 0 <= end_factor <= 1:
            raise ValueError(
                "LinearLR: start_factor must lie in (0, 1] and end_factor in [0, 1], got "
                f"{start_factor!r} and {end_factor!r}"
            )
        check_sizes("LinearLR", total_iters=total_iters)
        self.start_factor, self.end_factor = plain(start_factor), plain(end_factor)
        self.total_iters = int(total_iters)
        super().__init__(optimizer)

    def lr(self, base, epoch):
        progress = min(epoch / self.total_iters, 1.0)
        return base * (self.start_factor + (self.end_factor - self.start_factor) * progress)


class LambdaLR(Schedule):
    """The start value times ``lr_lambda(epoch)``."""

    def __init__(self, optimizer, lr_lambda):
        if not callable(lr_lambda):
            raise TypeError(f"LambdaLR: lr_lambda must be a function, got {lr_lambda!r}")
        self.lr_lambda = lr_lambda
        super().__init__(optimizer)

    def lr(self, base, epoch):
        return base * self.lr_lambda(epoch)


class SequentialLR(Schedule):
    """One schedule after the other, each counting from 0 at its milestone.

    >>> from tinybnn import nn, optim
    >>> adam = optim.Adam(nn.Linear(2, 1).parameters(), lr=0.1)
    >>> warm_up = optim.LinearLR(adam, start_factor=0.1, total_iters=5)
    >>> cosine = optim.CosineAnnealingLR(adam, T_max=95)
    >>> schedule = optim.SequentialLR(adam, [warm_up, cosine], milestones=[5])

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : list of Schedule
        Only SequentialLR's `step` is called, not theirs.
    milestones : list of int
        The epochs at which the second, third, ... schedule begins.
    """

    def __init__(self, optimizer, schedulers, milestones):
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

    def lr(self, base, epoch):
        i = bisect.bisect_right(self.milestones, epoch)
        return self.schedulers[i].lr(base, epoch - [0, *self.milestones][i])

    def state_dict(self):
        return {**super().state_dict(), "schedulers": [s.state_dict() for s in self.schedulers]}

    def load_state_dict(self, state_dict):
        _check_state(self, state_dict)
        if len(state_dict["schedulers"]) != len(self.schedulers):
            raise ValueError(
                f"load_state_dict: SequentialLR has {len(self.schedulers)} schedules, the state "
                f"{len(state_dict['schedulers'])}"
            )
        for own, state in zip(self.schedulers, state_dict["schedulers"], strict=True):
            own.load_state_dict(state)
        super().load_state_dict({**state_dict, "schedulers": self.schedulers})
