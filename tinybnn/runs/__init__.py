"""Runs: a model trained into a folder, compiled, verified and used from there.

`folder` holds the configuration and the training, `packed` the use of the packed model.
"""

from tinybnn.runs.folder import (
    MODELS,
    Config,
    files,
    float_bytes,
    load,
    read_config,
    told,
    train,
)
from tinybnn.runs.packed import compile, predict, verify

__all__ = [
    "MODELS", "Config", "compile", "files", "float_bytes", "load", "predict", "read_config", "told",
    "train", "verify",
]  # fmt: skip
