"""Write checkpoint_0_1.npz: run once, with tinybnn 0.1. Two epochs of a run of four."""

from pathlib import Path

import numpy as np

from tinybnn import datasets, nn, optim, training


def make_run():
    """Model, loader, optimizer and schedule; their settings are those of the file."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 1, 4, 4), dtype=np.uint8)
    model = nn.Sequential(
        nn.BinaryConv2d(1, 4, 3, input_quantizer=None, rng=rng), nn.BatchNorm2d(4), nn.RSign(4),
        nn.Flatten(), nn.BinaryLinear(16, 3, rng=rng), nn.BatchNorm1d(3),
    )  # fmt: skip
    loader = datasets.DataLoader(
        datasets.from_arrays(images, np.arange(24) % 3), 8, shuffle=True, rng=1
    )
    optimizer = optim.Adam(model.parameters(), lr=0.02)
    return model, loader, optimizer, optim.StepLR(optimizer, 2, 0.5)


if __name__ == "__main__":
    model, loader, optimizer, schedule = make_run()
    training.fit(
        model, loader, epochs=2, optimizer=optimizer, schedule=schedule, progress=False,
        checkpoint=Path(__file__).with_name("checkpoint_0_1.npz"),
    )  # fmt: skip
