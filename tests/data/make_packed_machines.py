"""Write packed_MACHINE.npz: run once, on ARM64. On x86-64 it wrote the same bytes.

The file has version 2, with batch norms of four operations.

Packed models, inputs and logits. The models use what is computed exactly, or in a fixed order; exp,
tanh and the sigmoid, which NumPy computes with other instructions on each machine, are left out.
"""

import platform
import tempfile
import zlib
from pathlib import Path

import numpy as np

from tinybnn import deploy, models, nn, storage

rng = np.random.default_rng(0)
layers = nn.Sequential(
    nn.Conv2d(3, 6, 3, padding=1, rng=rng), nn.BatchNorm2d(6),
    nn.AdaBinConv2d(6, 6, 3, padding=1, groups=6, rng=rng), nn.BatchNorm2d(6), nn.PReLU(),
    nn.BinaryConv2d(6, 20, 3, padding=1, padding_mode="ones", rng=rng), nn.MaxPool2d(2),
    nn.BatchNorm2d(20), nn.Hardtanh(),
    nn.BinaryConv2d(20, 8, 3, padding=1, weight_quantizer="ste_tern", scale="mean", rng=rng),
    nn.BatchNorm2d(8), nn.Flatten(),
    nn.BinaryLinear(128, 37, bias=True, rng=rng), nn.BatchNorm1d(37),
    nn.BinaryLinear(37, 12, input_quantizer=None, rng=rng), nn.LeakyReLU(0.1),
    nn.Linear(12, 5, rng=rng),
)  # fmt: skip
long_rows = nn.Sequential(  # a filter of 36 words: its counts do not fit a byte
    nn.Conv2d(3, 64, 1, rng=rng), nn.BatchNorm2d(64),
    nn.BinaryConv2d(64, 18, 6, padding=2, rng=rng), nn.BatchNorm2d(18),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BinaryLinear(18, 5, rng=rng),
)  # fmt: skip
networks = {
    "layers": layers,
    "long rows": long_rows,
    "cnn": models.cnn((3, 8, 8), channels=(16, 24, 24), padding=1, rng=rng),
    "reactnet": models.mobilenet_v1(1 / 32, 32, 5, "reactnet", rng=rng),
}
arrays = {}
for name, model in networks.items():
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n = module.num_features
            module.weight.data[:] = rng.normal(size=n)
            module.bias.data[:] = rng.normal(size=n)
            module.running_mean[:] = rng.integers(-4, 5, n) / 2
            module.running_var[:] = rng.choice([0.25, 1.0, 7.3, 40.0], n)
    shape = (3, 32, 32) if name == "reactnet" else (3, 8, 8)
    packed = deploy.compile(model.eval(), shape)
    quarters = rng.integers(-8, 9, (3, *shape), np.int8)
    with tempfile.TemporaryDirectory() as folder:
        packed.save(Path(folder) / "model.npz")
        file = (Path(folder) / "model.npz").read_bytes()
    arrays |= {
        f"{name}.file": np.frombuffer(zlib.compress(file, 9), np.uint8),
        f"{name}.quarters": quarters,
        f"{name}.logits": packed.predict(quarters.astype(np.float32) / 4),
    }
machine = {"aarch64": "arm64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
path = Path(__file__).parent / f"packed_{machine}.npz"
print(path, storage.save(path, arrays, kind="packed models of a machine", version=1))
