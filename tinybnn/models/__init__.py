"""Architectures, one a file."""

from tinybnn.models.cnn import cnn
from tinybnn.models.mlp import mlp
from tinybnn.models.vgg_small import vgg_small

__all__ = ["cnn", "mlp", "vgg_small"]
