"""Architectures, one a file."""

from tinybnn.models.binary_vae import BinaryVAE
from tinybnn.models.cnn import cnn
from tinybnn.models.hybnn import BinaryCNN, BinaryMLP, HyBNN
from tinybnn.models.mlp import mlp
from tinybnn.models.mobilenet_v1 import mobilenet_v1
from tinybnn.models.mobilenet_v3 import mobilenet_v3_small
from tinybnn.models.resnet import resnet18, resnet20
from tinybnn.models.shufflenet_v1 import shufflenet_v1
from tinybnn.models.vgg_small import vgg_small
from tinybnn.packed_codes import load_codes, save_codes

__all__ = [
    "BinaryCNN", "BinaryMLP", "BinaryVAE", "HyBNN", "cnn", "load_codes", "mlp", "mobilenet_v1",
    "mobilenet_v3_small", "resnet18", "resnet20", "save_codes", "shufflenet_v1", "vgg_small",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else
