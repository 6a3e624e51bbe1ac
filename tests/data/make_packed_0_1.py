"""Write packed_0_1.npz and predictions_0_1.npz: run once, with tinybnn 0.1.

A packed model with most of the forms of an array in a file, and its predictions.
"""

from pathlib import Path

import numpy as np

from tinybnn import deploy, nn, storage

rng = np.random.default_rng(0)
model = nn.Sequential(
    nn.Conv2d(1, 6, 3, padding=1, rng=rng), nn.BatchNorm2d(6),
    nn.AdaBinConv2d(6, 6, 3, padding=1, groups=6, rng=rng), nn.BatchNorm2d(6), nn.PReLU(),
    nn.BinaryConv2d(6, 9, 3, padding=1, padding_mode="ones", rng=rng), nn.MaxPool2d(2),
    nn.BatchNorm2d(9), nn.Hardtanh(),
    nn.BinaryConv2d(9, 8, 3, padding=1, weight_quantizer="ste_tern", scale="mean", rng=rng),
    nn.BatchNorm2d(8), nn.Flatten(),
    nn.BinaryLinear(128, 20, bias=True, rng=rng), nn.BatchNorm1d(20),
    nn.BinaryLinear(20, 12, input_quantizer=None, rng=rng), nn.LeakyReLU(0.1),
    nn.Linear(12, 5, rng=rng),
).eval()  # fmt: skip
for module in model.modules():
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        n = module.num_features
        module.weight.data[:] = rng.normal(size=n)
        module.bias.data[:] = rng.normal(size=n)
        module.running_mean[:] = rng.integers(-4, 5, n) / 2
        module.running_var[:] = rng.choice([0.25, 1.0, 7.3, 40.0], n)
packed = deploy.compile(model, (1, 8, 8))
packed.info = {"classes": list("abcde"), "maximum": 16.0, "dataset": "digits"}
folder = Path(__file__).parent
packed.save(folder / "packed_0_1.npz")
x = rng.normal(size=(7, 1, 8, 8)).astype(np.float32)
predictions = {"x": x, "logits": packed.predict(x)}
storage.save(folder / "predictions_0_1.npz", predictions, kind="predictions", version=1)
