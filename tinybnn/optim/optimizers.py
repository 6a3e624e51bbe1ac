"""Optimizers, with PyTorch's names and formulas."""

from __future__ import annotations

import functools
import math

import numpy as np

from tinybnn.autograd import Tensor, plain
from tinybnn.kernels.machine import layout
from tinybnn.nn import LatentParameter


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
    defaults : dict
        Settings of groups that do not set their own.
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
        self.defaults = defaults
        self.param_groups = [self._checked_group(group) for group in groups]
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        self.state = [{} for _ in self.parameters]
        self._check_parameters(self.parameters)

    def add_param_group(self, param_group):
        """Let it train more parameters, with settings of their own.

        Parameters
        ----------
        param_group : dict
            ``params``, and the settings that differ from the constructor's.
        """
        group = self._checked_group(param_group)
        self._check_parameters(self.parameters + group["params"])
        self.param_groups.append(group)
        self.parameters += group["params"]
        self.state += [{} for _ in group["params"]]

    def _checked_group(self, group):
        """A group with all settings, and its parameters as a list."""
        if not isinstance(group, dict) or "params" not in group:
            raise ValueError(f"{type(self).__name__}: each group must be a dict with 'params'")
        group = {**self.defaults, **group}
        own = group["params"]
        group["params"] = [own] if isinstance(own, Tensor) else list(own)
        unknown = set(group) - set(self.defaults) - {"params"}
        if unknown:
            raise ValueError(f"{type(self).__name__}: unknown settings {sorted(unknown)}")
        group.update((name, plain(group[name])) for name in self.defaults)
        self._check(group)
        return group

    def _check_parameters(self, parameters):
        if not parameters:
            raise ValueError(f"{type(self).__name__}: got no parameters")
        for p in parameters:
            if not isinstance(p, Tensor):
                raise TypeError(f"{type(self).__name__}: expects Tensors, got {type(p).__name__}")
        if len({id(p) for p in parameters}) != len(parameters):
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
            settings_text({**group, "params": len(group["params"])}) for group in self.param_groups
        ]
        return f"{type(self).__name__}({'; '.join(groups)})"

    def zero_grad(self, set_to_none=True):
        """Forget the gradients of all parameters; with `set_to_none` False make them 0."""
        for p in self.parameters:
            if set_to_none or p.grad is None:
                p.grad = None
            else:
                p.grad = Tensor(np.zeros_like(p.data))

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


def settings_text(values):
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


class RMSprop(Optimizer):
    """Divide the gradient by the root of a running mean of its square (Hinton 2012, lecture 6e).

    Parameters
    ----------
    params : iterable of Tensors or groups
    lr : float
    alpha : float
        Decay of the running mean.
    eps : float
    weight_decay : float
        L2 penalty: decay * weight is added to the gradient.
    momentum : float
    centered : bool
        Divide by an estimate of the deviation: subtract the square of the mean gradient.
    decay_latents : bool
        Apply the decay to latent weights too.
    """

    def __init__(
        self,
        params,
        lr=1e-2,
        alpha=0.99,
        eps=1e-8,
        weight_decay=0.0,
        momentum=0.0,
        centered=False,
        *,
        decay_latents=False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "decay_latents": decay_latents,
            },
        )

    def _check(self, group):
        super()._check(group)
        if not group["alpha"] >= 0:
            raise ValueError(f"RMSprop: alpha must be >= 0, got {group['alpha']!r}")

    def update(self, weight, grad, state, group, decay):
        if decay:
            grad = grad + decay * weight
        if not state:
            names = ["square"]
            names += ["velocity"] if group["momentum"] else []
            names += ["mean"] if group["centered"] else []
            state.update((name, np.zeros_like(weight)) for name in names)
        state["square"] *= group["alpha"]
        state["square"] += (1 - group["alpha"]) * (grad * grad)
        square = state["square"]
        if group["centered"]:
            state["mean"] += (1 - group["alpha"]) * (grad - state["mean"])
            square = square - state["mean"] * state["mean"]
        step = grad / (np.sqrt(square) + group["eps"])
        if group["momentum"]:
            state["velocity"] *= group["momentum"]
            state["velocity"] += step
            step = state["velocity"]
        weight -= group["lr"] * step


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
        self._check_parameters(self.parameters)

    param_groups = property(lambda self: [g for o in self.optimizers for g in o.param_groups])
    parameters = property(lambda self: [p for o in self.optimizers for p in o.parameters])
    state = property(lambda self: [state for o in self.optimizers for state in o.state])

    def add_param_group(self, param_group):
        """Not here: add the group to one of the `optimizers`."""
        raise TypeError(
            "MultiOptimizer: add the group to one of its optimizers: "
            "multi.optimizers[0].add_param_group(group)"
        )

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
