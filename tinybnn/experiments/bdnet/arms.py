"""The networks that BD-Net's experiments compare, and what the paper prints for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tinybnn import models
from tinybnn.experiments.report_text import mean_and_std


@dataclass(frozen=True)
class Arm:
    """A network that takes part.

    Attributes
    ----------
    title : str
    build : callable
        `models.mobilenet_v1` or one of its kind.
    method : str
    options : dict
        Further keyword arguments.
    paper : dict
        Published accuracy in percent, by base, or under ``""`` for any.
    base : str, optional
        What it is built on, where the paper has one base only; otherwise the configuration says.
    """

    title: str
    build: Callable
    method: str
    options: dict = field(default_factory=dict)
    paper: dict = field(default_factory=dict)
    base: str | None = None

    def published(self, config):
        """Accuracy in the paper, in percent, or None."""
        return self.paper.get(config.base, self.paper.get(""))

    def network(self, config, shape, classes, rng):
        """The untrained network for images of a shape (C, H, W)."""
        return self.build(
            config.width, shape[1], classes, self.method, base=self.base or config.base,
            in_channels=shape[0], rng=rng, **self.options,
        )  # fmt: skip


_V1, _SHUFFLE, _V3 = models.mobilenet_v1, models.shufflenet_v1, models.mobilenet_v3_small
_ALONE = {"broadcast_residual": False}

# Table 6 gives CIFAR-100 at full width. Its last row is Table 2's BD-Net-A (AdaBin), so that is the
# base; its third row is the first with the 1.58-bit convolution, not the second.
ABLATION = {
    "naive": Arm(
        "naive", _V1, "bdnet-a", {"dual": False, "pre_bn": False}, {"": 54.94}
    ),
    "dual": Arm("+ 1.58-bit", _V1, "bdnet-a", {"pre_bn": False}, {"": 56.18}),
    "pre-bn": Arm("+ pre-BN", _V1, "bdnet-a", {"dual": False}, {"": 56.93}),
    "both": Arm("both: BD-Net-A", _V1, "bdnet-a", {}, {"": 58.28}),
}  # fmt: skip

# CIFAR-10 at full width. Tables 4 and 5 have BD-Net on ReActNet only.
TABLE_2 = {
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

# Figures 2, 5 and 6 are about MobileNet V1.
CURVATURE = {name: TABLE_2[name] for name in ("float", "reactnet")} | ABLATION

EXPERIMENTS = {
    "bdnet-ablation": ABLATION, "bdnet-table2": TABLE_2, "hessian": CURVATURE,
    "landscape": CURVATURE,
}  # fmt: skip

# Which network the paper holds against which; the second is its own proposal.
COMPARISONS = {
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


# What the curvature of one network is held against: that of another.
PAIRS = (
    ("naive", "dual"), ("naive", "pre-bn"), ("naive", "both"), ("reactnet", "both"),
    ("naive", "float"),
)  # fmt: skip


def over_seeds(found, compare):
    """What was measured with several seeds: mean and deviation, and networks pair by pair.

    Parameters
    ----------
    found : dict
        (name, where, measure) -> values, one for each seed.
    compare : callable
        Of the values of the second network of a pair and of the first, such as `numpy.subtract`.

    Returns
    -------
    dict
        ``networks``: name -> where -> measure -> mean and standard deviation. ``pairs``: a list of
        ``low``, ``high`` (names), ``where``, ``measure``, ``by_seed``.
    """
    networks = {}
    for (name, where, measure), values in found.items():
        of_network = networks.setdefault(name, {}).setdefault(where, {})
        of_network[measure] = mean_and_std(values)
    pairs = [
        {
            "low": low, "high": high, "where": where, "measure": measure,
            "by_seed": compare(values, found[low, where, measure]).tolist(),
        }
        for low, high in PAIRS
        for (name, where, measure), values in found.items()
        if name == high and (low, where, measure) in found
    ]  # fmt: skip
    return {"networks": networks, "pairs": pairs}


def chosen_arms(experiment, names=None):
    """The networks of an experiment, or those of them that are named: name -> Arm.

    Raises
    ------
    ValueError
        If there is no such experiment or network.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"bdnet: experiment must be one of {[*EXPERIMENTS]}, got {experiment!r}")
    known = EXPERIMENTS[experiment]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"bdnet: unknown network {unknown[0]!r}, choose from {', '.join(known)}")
    return {name: arm for name, arm in known.items() if names is None or name in names}
