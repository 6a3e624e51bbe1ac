"""The networks that BD-Net's experiments compare, and what the paper prints for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinybnn import models, nn
from tinybnn.experiments.report import mean_and_std
from tinybnn.typing import Shape


@dataclass(frozen=True)
class Arm:
    """A network that takes part.

    Attributes
    ----------
    title : str
    build : callable
        `models.mobilenet_v1` or a builder like it.
    method : str
    options : dict
        Further keyword arguments.
    paper : dict
        Published accuracy in percent, by base, or under ``""`` for any base.
    base : str, optional
        The base it is built on, if the paper has only one; by default that of the configuration.
    settings : dict
        Fields of the configuration that differ for this network.
    """

    title: str
    build: Callable[..., nn.Module]
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    base: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def adapted(self, config: Any) -> Any:
        """Return a configuration with the settings of this network."""
        return dataclasses.replace(config, **self.settings)

    def published(self, config: Any) -> float | None:
        """Return the accuracy in the paper, in percent, or None."""
        return self.paper.get(config.base, self.paper.get(""))

    def network(
        self, config: Any, shape: Shape, classes: int, rng: np.random.Generator
    ) -> nn.Module:
        """Build the untrained network, (N, C, H, W) -> (N, classes), for a shape (C, H, W)."""
        return self.build(
            config.width, shape[1], classes, self.method, base=self.base or config.base,
            in_channels=shape[0], rng=rng, **self.options,
        )  # fmt: skip


_V1, _SHUFFLE, _V3 = models.mobilenet_v1, models.shufflenet_v1, models.mobilenet_v3_small
_ALONE = {"broadcast_residual": False}

# Table 6 gives CIFAR-100 at full width. Its last row is Table 2's BD-Net-A (AdaBin), so that is the
# base; its third row is the first with the 1.58-bit convolution, not the second.
ABLATION: dict[str, Arm] = {
    "naive": Arm(
        "naive", _V1, "bdnet-a", {"dual": False, "pre_bn": False}, {"": 54.94}
    ),
    "dual": Arm("+ 1.58-bit", _V1, "bdnet-a", {"pre_bn": False}, {"": 56.18}),
    "pre-bn": Arm("+ pre-BN", _V1, "bdnet-a", {"dual": False}, {"": 56.93}),
    "both": Arm("both: BD-Net-A", _V1, "bdnet-a", {}, {"": 58.28}),
}  # fmt: skip

# BD-Net-A, binarized at once or in two steps, with a teacher or without.
TRAINING: dict[str, Arm] = {
    "one-step": Arm("BD-Net-A, one step", _V1, "bdnet-a"),
    "two-step": Arm("two steps", _V1, "bdnet-a", settings={"two_step": True}),
    "distilled": Arm("one step, teacher", _V1, "bdnet-a", settings={"distill": 1.0}),
    "two-step-distilled": Arm(
        "two steps, teacher", _V1, "bdnet-a", settings={"two_step": True, "distill": 1.0}
    ),
}  # fmt: skip

# CIFAR-10 at full width. Tables 4 and 5 have BD-Net on ReActNet only.
TABLE_2: dict[str, Arm] = {
    "float": Arm("MobileNet V1, float", _V1, "float", {}, {"": 92.26}),
    "reactnet": Arm("MobileNet V1, ReActNet", _V1, "reactnet", {}, {"": 71.04}),
    "adabin": Arm("MobileNet V1, AdaBin", _V1, "adabin", {}, {"": 81.60}),
    "bdnet-a": Arm(
        "MobileNet V1, BD-Net-A", _V1, "bdnet-a", {}, {"reactnet": 78.37, "adabin": 84.87}
    ),
    "bdnet-b": Arm(
        "MobileNet V1, BD-Net-B", _V1, "bdnet-b", {}, {"reactnet": 89.93, "adabin": 90.48}
    ),
    "shufflenet-reactnet": Arm(
        "ShuffleNet V1, ReActNet", _SHUFFLE, "reactnet", _ALONE, {"": 17.33}
    ),
    "shufflenet-reactnet-br": Arm(
        "ShuffleNet V1, ReActNet, broadcast", _SHUFFLE, "reactnet", {}, {"": 79.80}
    ),
    "shufflenet-bdnet-b-br": Arm(
        "ShuffleNet V1, BD-Net-B, broadcast", _SHUFFLE, "bdnet-b", {}, {"": 81.57}, "reactnet"
    ),
    "mobilenet-v3-reactnet": Arm("MobileNet V3, ReActNet", _V3, "reactnet", _ALONE, {"": 19.08}),
    "mobilenet-v3-reactnet-br": Arm(
        "MobileNet V3, ReActNet, broadcast", _V3, "reactnet", {}, {"": 86.21}
    ),
    "mobilenet-v3-bdnet-b-br": Arm(
        "MobileNet V3, BD-Net-B, broadcast", _V3, "bdnet-b", {}, {"": 85.92}, "reactnet"
    ),
}  # fmt: skip

# The pairs of networks that the paper compares; the second one is its own proposal.
COMPARISONS: dict[str, tuple[tuple[str, str], ...]] = {
    "bdnet-training": (
        ("one-step", "two-step"), ("one-step", "distilled"), ("one-step", "two-step-distilled"),
        ("two-step", "two-step-distilled"), ("distilled", "two-step-distilled"),
    ),
    "bdnet-ablation": (
        ("naive", "dual"), ("naive", "pre-bn"), ("naive", "both"), ("dual", "both"),
        ("pre-bn", "both"),
    ),
    "bdnet-table2": (
        ("reactnet", "bdnet-a"), ("adabin", "bdnet-a"), ("bdnet-a", "bdnet-b"),
        ("shufflenet-reactnet", "shufflenet-reactnet-br"),
        ("shufflenet-reactnet-br", "shufflenet-bdnet-b-br"),
        ("mobilenet-v3-reactnet", "mobilenet-v3-reactnet-br"),
        ("mobilenet-v3-reactnet-br", "mobilenet-v3-bdnet-b-br"),
    ),
}  # fmt: skip

# The pairs whose curvature is compared.
PAIRS: tuple[tuple[str, str], ...] = (
    ("naive", "dual"), ("naive", "pre-bn"), ("naive", "both"), ("reactnet", "both"),
    ("naive", "float"),
)  # fmt: skip


def over_seeds(
    measured: Mapping[tuple[str, str, str], Sequence[float]],
    compare: Callable[[Any, Any], Any],
) -> dict[str, Any]:
    """Summarize what was measured with several seeds, for each network and for each of `PAIRS`.

    Parameters
    ----------
    measured : dict
        (name, where, measure) -> (seeds,) values.
    compare : callable
        Takes the values of the second network of a pair and those of the first, such as
        `numpy.subtract`.

    Returns
    -------
    dict
        ``networks``: name -> where -> measure -> mean and standard deviation. ``pairs``: a list of
        ``low``, ``high`` (names), ``where``, ``measure``, ``by_seed``.
    """
    networks: dict[str, Any] = {}
    for (name, where, measure), values in measured.items():
        of_network = networks.setdefault(name, {}).setdefault(where, {})
        of_network[measure] = mean_and_std(values)
    pairs = [
        {
            "low": low, "high": high, "where": where, "measure": measure,
            "by_seed": compare(values, measured[low, where, measure]).tolist(),
        }
        for low, high in PAIRS
        for (name, where, measure), values in measured.items()
        if name == high and (low, where, measure) in measured
    ]  # fmt: skip
    return {"networks": networks, "pairs": pairs}
