"""PyTorch's twin of a training step: the same layers, weights, batch, loss and optimizer.

Latent weights are clipped after the optimizer's step, as PyTorch's users do it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinybnn import nn
from tinybnn.bench.peers import is_installed
from tinybnn.bench.twin import twin

if TYPE_CHECKING:
    import torch

    from tinybnn.typing import Array


class Variant(NamedTuple):
    """A configuration of PyTorch.

    Attributes
    ----------
    name : str
    layout : str
        'contiguous_format' (NCHW) or 'channels_last' (NHWC), for images and weights.
    fused : bool
        Whether to use the fused kernel of Adam, which is not the default.
    dtype : str
        Dtype of weights and images.
    """

    name: str
    layout: str = "contiguous_format"
    fused: bool = False
    dtype: str = "float32"


def variants(has_images: bool) -> list[Variant]:
    """List the variants: each memory layout with both kernels of Adam.

    Parameters
    ----------
    has_images : bool
        If False, there is a single layout.

    Returns
    -------
    list of Variant
        Empty without PyTorch.
    """
    if not is_installed("torch"):
        return []
    layouts = {"": "contiguous_format"}
    if has_images:
        layouts = {" NCHW": "contiguous_format", " NHWC": "channels_last"}
    return [
        Variant(f"PyTorch{name}{', fused Adam' * fused}", layout, fused)
        for fused in (False, True)
        for name, layout in layouts.items()
    ]


class TorchTraining:
    """PyTorch's twin of a `training.Training`; a call is a step of training.

    Parameters
    ----------
    ours : Training
    variant : Variant
    num_threads : int or None
        None leaves PyTorch's setting as it is.

    Attributes
    ----------
    network : torch.nn.Sequential
    optimizer : torch.optim.Adam
    """

    def __init__(self, ours: Any, variant: Variant, num_threads: int | None):
        import torch

        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._torch = torch
        self._layout, self._dtype = (getattr(torch, v) for v in (variant.layout, variant.dtype))
        self.network: torch.nn.Module = twin(ours.model).to(
            dtype=self._dtype, memory_format=self._layout
        )
        self.copy_weights(ours.model)
        parameters = dict(self.network.named_parameters())
        self.latents: list[tuple[torch.Tensor, float]] = [
            (parameters[name], p.clip_value)
            for name, p in ours.model.named_parameters()
            if isinstance(p, nn.LatentParameter) and p.clip_value is not None
        ]
        (group,) = ours.optimizer.param_groups
        settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        fused = {"fused": True} if variant.fused else {}
        self.optimizer: torch.optim.Adam = torch.optim.Adam(
            self.network.parameters(), **settings, **fused
        )
        self.loss: Any = getattr(torch.nn.functional, ours.loss.__name__)
        self.copy_batch(ours)

    def copy_batch(self, ours: Any) -> None:
        """Copy our images and labels."""
        self.x: torch.Tensor = self._tensor(ours.x)
        self.target: torch.Tensor = self.x if ours.target is ours.x else self._tensor(ours.target)

    def copy_weights(self, model: nn.Module) -> None:
        """Copy the parameters and running statistics of our model."""
        state = {name: self._tensor(array) for name, array in model.state_dict().items()}
        self.network.load_state_dict(state)

    def copy_gradients(self, model: nn.Module) -> None:
        """Copy the gradients of our model's parameters."""
        for p, theirs in zip(model.parameters(), self.network.parameters(), strict=True):
            theirs.grad = self._tensor(p.grad.data)

    def _tensor(self, array):
        """Copy an array; images and weights of convolutions get the variant's layout."""
        tensor = self._torch.tensor(np.ascontiguousarray(array))
        if array.dtype.kind != "f":
            return tensor
        layout = {"memory_format": self._layout} if tensor.ndim == 4 else {}
        return tensor.to(dtype=self._dtype, **layout)

    def gradients(self) -> dict[str, Array]:
        """Return the gradient of each parameter, by name."""
        return {name: p.grad.numpy() for name, p in self.network.named_parameters()}

    def weights(self) -> dict[str, Array]:
        """Return the values of each parameter, by name."""
        return {name: p.detach().numpy() for name, p in self.network.named_parameters()}

    def watch_inputs(self) -> list[Array]:
        """Return a list that holds, after each forward pass, the input of each layer."""
        watched: list[Any] = [None] * len(self.network)
        for i, layer in enumerate(self.network):

            def keep(layer, inputs, i=i):
                watched[i] = inputs[0].detach().numpy()

            layer.register_forward_pre_hook(keep)
        return watched

    def compute_gradients(self) -> None:
        """Run the part of a step before the optimizer."""
        self.optimizer.zero_grad()
        self.loss(self.network(self.x), self.target).backward()

    def update(self) -> None:
        """Run the optimizer's step and clip the latent weights."""
        self.optimizer.step()
        with self._torch.no_grad():
            for p, clip in self.latents:
                p.clamp_(-clip, clip)

    def __call__(self) -> Any:
        self.compute_gradients()
        self.update()
