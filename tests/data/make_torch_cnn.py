"""Record a small PyTorch network: its state_dict, an input and the output in eval mode.

    python tests/data/make_torch_cnn.py          (PyTorch 2.13, CPU)

writes torch_cnn.npz beside this file: plain arrays, no pickle. The training steps are there to
move the weights and the running statistics of the batch norm away from their initial values.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(2, 6, 3, padding=1),
    nn.BatchNorm2d(6),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(6, 12, (3, 2), stride=2, padding=(1, 0), groups=3, bias=False),
    nn.AvgPool2d(2),
    nn.Flatten(),
    nn.Linear(12 * 3 * 2, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(20):
    x, target = 2 * torch.randn(16, 2, 24, 20) + 0.5, torch.randint(10, (16,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), target).backward()
    optimizer.step()
model.eval()
x = 2 * torch.randn(3, 2, 24, 20) + 0.5
with torch.no_grad():
    arrays = {"input": x, "output": model(x)}
arrays |= {f"state.{name}": value for name, value in model.state_dict().items()}
np.savez_compressed(
    Path(__file__).with_name("torch_cnn.npz"), **{name: v.numpy() for name, v in arrays.items()}
)
