"""Architectures, one a file."""

from tinybnn.models.cnn import cnn
from tinybnn.models.mlp import mlp

__all__ = ["cnn", "mlp"]
