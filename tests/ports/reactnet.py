"""A ReActNet block with hooks, schedule, clipping and a checkpoint, written for PyTorch.

Liu et al. 2020: signs with learned thresholds, PReLU with learned shifts, a shortcut around each
binary convolution.
"""

import numpy as np
import torch
from torch import nn, optim
from torch.nn import functional as F


class ApproxSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.clamp(2.0 - 2.0 * torch.abs(x), min=0.0)


class LearnableBias(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1), requires_grad=True)

    def forward(self, x):
        return x + self.bias.expand_as(x)


class HardBinaryConv(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1):
        super().__init__()
        self.stride, self.padding = stride, kernel_size // 2
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, kernel_size, kernel_size))

    def forward(self, x):
        scale = self.weight.abs().mean(dim=(1, 2, 3)).detach()
        y = F.conv2d(x, ApproxSign.apply(self.weight), stride=self.stride, padding=self.padding)
        return y * scale.view(1, -1, 1, 1)


class Block(nn.Module):
    def __init__(self, channels, stride=1):
        super().__init__()
        self.move1, self.move2, self.move3 = [LearnableBias(channels) for _ in range(3)]
        self.conv = HardBinaryConv(channels, channels, 3, stride)
        self.bn, self.prelu = nn.BatchNorm2d(channels), nn.PReLU(channels)
        self.pool = nn.AvgPool2d(2, 2) if stride == 2 else nn.Identity()

    def forward(self, x):
        out = self.bn(self.conv(ApproxSign.apply(self.move1(x)))) + self.pool(x)
        return self.move3(self.prelu(self.move2(out)))


class Net(nn.Module):
    def __init__(self, channels=16, classes=10):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.blocks = nn.ModuleList([Block(channels), Block(channels, stride=2)])
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def make(steps, seed=2):
    """Create the model, its optimizer and its schedule."""
    model, rng = Net().double(), np.random.RandomState(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1 and p.size(0) > 1:
                p.copy_(torch.from_numpy(0.3 * rng.standard_normal(tuple(p.shape))))
        nn.init.zeros_(model.fc.bias)
    latents = [p for n, p in model.named_parameters() if "conv.weight" in n]
    rest = [p for n, p in model.named_parameters() if "conv.weight" not in n]
    groups = [{"params": latents, "weight_decay": 1e-5}, {"params": rest}]
    optimizer = optim.Adam(groups, lr=0.01)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    return {"model": model, "optimizer": optimizer, "schedule": schedule}


def train(images, labels, folder, steps=20, batch_size=16):
    """Train, resuming halfway from a checkpoint; return losses, arguments seen by hooks, model."""
    x, y = torch.from_numpy(images).double(), torch.from_numpy(labels)
    losses, positive, slopes, parts = [], [], [], make(steps)

    def count(module, inputs, output):
        positive.append((output >= 0).sum().item())

    def measure(module, grad_input, grad_output):
        slopes.append(grad_output[0].abs().sum().item())

    for step in range(steps):
        if step == steps // 2:
            torch.save({n: part.state_dict() for n, part in parts.items()}, f"{folder}/state")
            parts, state = make(steps, seed=3), torch.load(f"{folder}/state")
            for name, part in parts.items():
                part.load_state_dict(state[name])
        (model, optimizer, schedule), block = parts.values(), parts["model"].blocks[1]
        hooks = block.move1.register_forward_hook(count), block.register_full_backward_hook(measure)
        rows = np.arange(step * batch_size, (step + 1) * batch_size) % len(x)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        for handle in hooks:
            handle.remove()
    return losses, (positive, slopes), model
