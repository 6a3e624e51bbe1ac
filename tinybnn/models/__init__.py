"""Architectures, one a file."""

from tinybnn.models.binary_vae import BinaryVAE, load_codes, save_codes
from tinybnn.models.cnn import cnn
from tinybnn.models.hybnn import BinaryCNN, BinaryMLP, HyBNN
from tinybnn.models.mlp import mlp
from tinybnn.models.vgg_small import vgg_small

__all__ = [
    "BinaryCNN", "BinaryMLP", "BinaryVAE", "HyBNN", "cnn", "load_codes", "mlp", "save_codes",
    "vgg_small",
]  # fmt: skip
