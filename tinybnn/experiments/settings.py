"""Configurations of experiments: frozen dataclasses whose fields know their limits and help texts.

The command line makes an option of each field, with the field's default, limits and help text; an
experiment checks the same limits when its configuration is made.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


def setting(default: Any, help: str = "", **limits: Any) -> Any:
    """Declare a field of a `Config`.

    Parameters
    ----------
    default : bool, int, float, str or None
    help : str
        The help text of the option. The default is appended to it.
    **limits
        ``least`` and ``most``, both included; ``above``, excluded; ``choices``, a sequence of str;
        ``option_least``, a higher ``least`` of the option; ``type``, the type of a value whose
        default is None; ``images``, True for a data set or a folder of IDX files, ``dataset``, True
        for a data set.
    """
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Config:
    """What decides every figure of an experiment but the times."""

    quick: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, limits = getattr(self, field.name), field.metadata
            if value is not None and (wanted := _violated(value, limits)):
                raise ValueError(f"Config: {field.name} must {wanted}, got {value!r}")


@dataclass(frozen=True)
class ImageConfig(Config):
    """The configuration of an experiment on a data set."""

    dataset: str = setting("digits", "a data set", dataset=True)
    limit: int | None = dataclasses.field(
        default=None, kw_only=True,
        metadata={"help": "use the first N images only", "least": 1, "option_least": 100,
                  "type": int},
    )  # fmt: skip


def _violated(value, limits):
    """The limit that a value violates, in words, or None."""
    least, most = limits.get("least"), limits.get("most")
    if "choices" in limits and value not in limits["choices"]:
        return f"be {' or '.join(map(repr, limits['choices']))}"
    if "above" in limits and not value > limits["above"]:
        return "be positive"
    if most is not None and not least <= value <= most:
        return f"lie in [{least}, {most}]"
    if least is not None and not value >= least:
        return f"be >= {least}"
    return None


def as_options(config: Config) -> list[str]:
    """Return a configuration as options of the command line.

    Returns
    -------
    list of str
        ``--name value`` for each field that differs from its default; a field that is True is an
        option without a value.
    """
    words = []
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if value != field.default:
            words.append(option if value is True else f"{option} {value}")
    return words
