"""Optimizers, with PyTorch's names and formulas."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import Tensor, plain
from tinybnn.kernels.machine import layout
from tinybnn.nn import LatentParameter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tinybnn.typing import Array, FloatArray


class Optimizer:
    """Base class: parameter groups, state for each parameter, clipping of latent weights.

    A subclass implements `update`. Settings of a group override the constructor's; ``lr`` may be
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
    parameters : list of Tensor
        All parameters, in order of the groups.
    state : list of dict
        For each parameter the arrays that `update` keeps.
    rate : str
        The setting that schedules change.
    state_names : tuple of str or None
        The arrays that `update` keeps from the first step on; None if they vary.
    """

    rate: str = "lr"
    state_names: tuple[str, ...] | None = None
    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    parameters: list[Tensor]
    state: list[dict[str, Array]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A subclass that overrides the rule must not inherit the parent's fused kernel.
        if "update" in vars(cls) and "fused_update" not in vars(cls):
            cls.fused_update = Optimizer.fused_update

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], defaults: dict[str, Any]
    ) -> None:
        if isinstance(params, Tensor):
            raise TypeError(f"{type(self).__name__}: params must be a list of Tensors, not one")
        params = list(params)
        groups = params if params and isinstance(params[0], dict) else [{"params": params}]
        self.defaults = defaults
        self.param_groups = [self._checked_group(group) for group in groups]
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        self.state = [{} for _ in self.parameters]
        self._check_parameters(self.parameters)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to train, with their own settings.

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
        """Return the group with all settings and its parameters as a list."""
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
    def rates(self) -> list[tuple[dict[str, Any], str]]:
        """List (group, name of the setting that schedules change) for each group."""
        return [(group, self.rate) for group in self.param_groups]

    def __repr__(self) -> str:
        groups = [
            settings_text({**group, "params": len(group["params"])}) for group in self.param_groups
        ]
        return f"{type(self).__name__}({'; '.join(groups)})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of all parameters to None; with `set_to_none` False to 0."""
        for p in self.parameters:
            if set_to_none or p.grad is None:
                p.grad = None
            else:
                p.grad = Tensor(np.zeros_like(p.data))

    def step(self) -> None:
        """Update every parameter that has a gradient, then clip the latent ones.

        Raises
        ------
        ValueError
            If such a parameter is read-only, as a memory map can be. Nothing is changed then.
        """
        for i, p in enumerate(self.parameters):
            if p.grad is not None and not p.data.flags.writeable:
                raise ValueError(
                    f"{type(self).__name__}: parameter {i} (shape {p.shape}) is read-only; copy "
                    "it first: p.data = p.data.copy()"
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

    def update(
        self,
        weight: FloatArray,
        grad: FloatArray,
        state: dict[str, Array],
        group: dict[str, Any],
        decay: float,
    ) -> None:
        """Update the array `weight` in place.

        Parameters
        ----------
        weight, grad : arrays of equal shape, float32 or float64
        state : dict
            Empty at the parameter's first step; its arrays are kept between steps.
        group : dict
            The settings.
        decay : float
            Weight decay of this parameter.
        """
        raise NotImplementedError

    def fused_update(
        self,
        weight: FloatArray,
        grad: FloatArray,
        state: dict[str, Array],
        group: dict[str, Any],
        decay: float,
        clip: float | None,
    ) -> bool:
        """Do `update` and the clipping with a kernel, in one pass over memory.

        Parameters
        ----------
        weight, grad, state, group, decay
            As in `update`.
        clip : float or None
            The weight is limited to ± this number.

        Returns
        -------
        bool
            False if no kernel supports the arguments; then nothing is changed.
        """
        return False

    # ------------------------------------------------------------------------------------ state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for p, arrays in zip(self.parameters, self.state, strict=True):
            for name, array in arrays.items():  # a pickle does not keep the memory layout
                arrays[name] = _laid_out_like(p.data, array)

    def state_dict(self) -> dict[str, Any]:
        """Return settings and state in PyTorch's form.

        Returns
        -------
        dict
            ``state``: from the position of each parameter that has some to its arrays (shared
            memory, no copies); ``param_groups``: the settings of each group, with the positions of
            its parameters as ``params``.
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

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load settings and state as returned by `state_dict`; the arrays are copied.

        Raises
        ------
        ValueError
            If the groups differ in sizes or settings, or an array has a wrong shape or is missing.
            Nothing is changed when an error is raised.
        """
        own, groups = self.state_dict()["param_groups"], state_dict["param_groups"]
        state = {int(i): arrays for i, arrays in state_dict["state"].items()}

        def layout_of(groups):  # without initial rates, which schedules add
            return [
                (g["params"], sorted(n for n in g if not n.startswith("initial_"))) for g in groups
            ]

        if layout_of(own) != layout_of(groups) or not state.keys() <= set(
            range(len(self.parameters))
        ):
            raise ValueError(
                f"load_state_dict: {type(self).__name__} has the groups (parameters, settings) "
                f"{layout_of(own)}, the state is of {layout_of(groups)}"
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
        """Check that one parameter's state is empty or has all the arrays of this optimizer."""
        if self.state_names is not None and arrays and set(arrays) != set(self.state_names):
            raise ValueError(
                f"load_state_dict: {type(self).__name__} keeps {', '.join(self.state_names)} of "
                f"each parameter, the state of parameter {i} has {', '.join(sorted(arrays))}"
            )


def settings_text(values: Mapping[str, Any]) -> str:
    """Format settings as in a call; functions and classes by name."""
    return ", ".join(
        f"{name}={getattr(value, '__qualname__', None) or repr(value)}"
        for name, value in values.items()
    )


def _laid_out_like(weight, array):
    """Return an array of a parameter's state, writable and with the weight's memory layout."""
    if not isinstance(array, np.ndarray) or array.shape != weight.shape:
        return array
    if array.flags.writeable and array.strides == weight.strides:
        return array
    result = np.empty_like(weight, array.dtype)
    result[...] = array
    return result


@functools.cache
def _kernels():
    from tinybnn.kernels.training import optimizers  # compiled on first use

    return optimizers


def _flat(weight, grad, *state):
    """View the arrays as 1-D float32 arrays in the same order, for a kernel; None if impossible.

    A gradient with another memory layout than its weight is copied.
    """
    if grad.strides != weight.strides:
        source, grad = grad, np.empty_like(weight)
        grad[...] = source
    return layout.flat(weight, grad, *state)


class SGD(Optimizer):
    """Gradient descent: v = momentum v + (1 - dampening) grad; weight -= lr v.

    The first v is the gradient itself. With `nesterov` the step is lr (grad + momentum v).

    Parameters
    ----------
    params : iterable of Tensors or groups
    lr : float
    momentum, dampening : float
    weight_decay : float
        L2 penalty: decay * weight is added to the gradient.
    nesterov : bool
        Requires momentum > 0 and no dampening (Sutskever et al. 2013, in PyTorch's form).
    decay_latents : bool
        Apply the decay to latent weights too.
    """

    state_names: tuple[str, ...] | None = ("velocity",)  # with momentum only

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        decay_latents: bool = False,
    ) -> None:
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

    def update(
        self,
        weight: FloatArray,
        grad: FloatArray,
        state: dict[str, Array],
        group: dict[str, Any],
        decay: float,
    ) -> None:
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

    def fused_update(
        self,
        weight: FloatArray,
        grad: FloatArray,
        state: dict[str, Array],
        group: dict[str, Any],
        decay: float,
        clip: float | None,
    ) -> bool:
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

    state_names: tuple[str, ...] | None = ("step", "mean", "square")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decay_latents: bool = False,
    ) -> None:
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

    def update(
        self,
        weight: FloatArray,
        grad: FloatArray,
        state: dict[str, Array],
        group: dict[str, Any],
        decay: float,
    ) -> None:
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
        """Initialise the state at a parameter's first step."""
        if not state:
            state["step"] = np.zeros((), np.int64)
            state["mean"] = np.zeros_like(weight)
            state["square"] = np.zeros_like(weight)

    def fused_update(
        self,
        weight: FloatArray,
        grad: FloatArray,
        state: dict[str, Array],
        group: dict[str, Any],
        decay: float,
        clip: float | None,
        shrink: float = 1.0,
    ) -> bool:
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
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        decay_latents: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, decay_latents=decay_latents)

    def update(
        self,
        weight: FloatArray,
        grad: FloatArray,
        state: dict[str, Array],
        group: dict[str, Any],
        decay: float,
    ) -> None:
        if decay:
            weight *= 1 - group["lr"] * decay
        super().update(weight, grad, state, group, 0.0)

    def fused_update(
        self,
        weight: FloatArray,
        grad: FloatArray,
        state: dict[str, Array],
        group: dict[str, Any],
        decay: float,
        clip: float | None,
    ) -> bool:
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
        Divide by an estimate of the standard deviation: subtract the squared mean gradient.
    decay_latents : bool
        Apply the decay to latent weights too.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        decay_latents: bool = False,
    ) -> None:
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

    def update(
        self,
        weight: FloatArray,
        grad: FloatArray,
        state: dict[str, Array],
        group: dict[str, Any],
        decay: float,
    ) -> None:
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
    """Binary optimizer: flips signs instead of latent weights (Helwegen et al. 2019, alg. 1).

    m += gamma (grad - m); a weight w = ±1 flips where w m > threshold, that is, after its gradient
    has pushed in the other direction for long enough.

    It takes the weights of binary layers only. The first update sets them to their signs, which
    does not change the outputs of layers with scale None. Give the other parameters to a second
    optimizer and join both for `training.fit`:

    >>> from tinybnn import nn, optim
    >>> model = nn.Sequential(nn.BinaryLinear(64, 10), nn.BatchNorm1d(10))
    >>> binary = [p for p in model.parameters() if isinstance(p, nn.LatentParameter)]
    >>> others = [p for p in model.parameters() if not isinstance(p, nn.LatentParameter)]
    >>> optimizer = optim.MultiOptimizer(optim.Bop(binary), optim.Adam(others, lr=1e-2))

    Parameters
    ----------
    params : iterable of LatentParameters or groups
    threshold : float
        At least 0; a larger threshold means fewer flips.
    gamma : float
        Rate in (0, 1] at which old gradients are forgotten. Schedules change it like the learning
        rate of other optimizers.
    """

    rate = "gamma"
    state_names: tuple[str, ...] | None = ("mean",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        threshold: float = 1e-8,
        gamma: float = 1e-4,
    ) -> None:
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

    def update(
        self,
        weight: FloatArray,
        grad: FloatArray,
        state: dict[str, Array],
        group: dict[str, Any],
        decay: float,
    ) -> None:
        if not state:
            state["mean"] = np.zeros_like(weight)
        state["mean"] += group["gamma"] * (grad - state["mean"])
        sign = np.where(weight >= 0, 1, -1).astype(weight.dtype)
        weight[...] = np.where(sign * state["mean"] > group["threshold"], -sign, sign)


class MultiOptimizer(Optimizer):
    """Several optimizers as one, each for its own parameters.

    Parameters
    ----------
    *optimizers : Optimizer

    Attributes
    ----------
    optimizers : tuple of Optimizer
    param_groups, parameters, state : list
        Those of the optimizers, concatenated.
    """

    optimizers: tuple[Optimizer, ...]

    def __init__(self, *optimizers: Optimizer) -> None:
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer):
                raise TypeError(
                    f"MultiOptimizer: expects Optimizers, got {type(optimizer).__name__}"
                )
        self.optimizers = optimizers
        self._check_parameters(self.parameters)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all optimizers."""
        return [p for optimizer in self.optimizers for p in optimizer.parameters]

    @property
    def state(self) -> list[dict[str, Array]]:
        """The state of all optimizers."""
        return [arrays for optimizer in self.optimizers for arrays in optimizer.state]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise a TypeError: add the group to one of the `optimizers` instead."""
        raise TypeError(
            "MultiOptimizer: add the group to one of its optimizers: "
            "multi.optimizers[0].add_param_group(group)"
        )

    @property
    def rates(self) -> list[tuple[dict[str, Any], str]]:
        return [pair for optimizer in self.optimizers for pair in optimizer.rates]

    def __repr__(self) -> str:
        return f"MultiOptimizer({', '.join(map(repr, self.optimizers))})"

    def _check_names(self, i, arrays):
        for optimizer in self.optimizers:
            if i < len(optimizer.parameters):
                return optimizer._check_names(i, arrays)
            i -= len(optimizer.parameters)

    def step(self) -> None:
        """Call `step` of each optimizer."""
        for optimizer in self.optimizers:
            optimizer.step()
