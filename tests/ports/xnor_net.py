"""A small XNOR-Net for CIFAR, written for PyTorch.

Rastegari et al. 2016: batch norm and sign before each binary convolution, whose sums are scaled by
the mean of its |weights|; weights are centered and clipped after each step.
"""

from collections import OrderedDict

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class BinActive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        return torch.where(input >= 0, torch.ones_like(input), -torch.ones_like(input))

    @staticmethod
    def backward(ctx, grad_output):
        (input,) = ctx.saved_tensors
        grad_input = grad_output.clone()
        grad_input[input.ge(1)] = 0
        grad_input[input.le(-1)] = 0
        return grad_input


class BinConv2d(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dropout=0.0):
        super().__init__()
        self.stride, self.padding, self.dropout_ratio = stride, padding, dropout
        self.bn = nn.BatchNorm2d(in_channels, eps=1e-4, momentum=0.1)
        if dropout:
            self.dropout = nn.Dropout(dropout)
        size = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.zeros(*size))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = BinActive.apply(self.bn(x))
        if self.dropout_ratio:
            x = self.dropout(x)
        alpha = self.weight.abs().mean(dim=(1, 2, 3)).detach()
        x = F.conv2d(x, BinActive.apply(self.weight), stride=self.stride, padding=self.padding)
        return self.relu(x * alpha.view(1, -1, 1, 1))


def net(classes=10):
    return nn.Sequential(
        OrderedDict(
            [
                ("stem", nn.Conv2d(3, 16, kernel_size=5, stride=2, padding=2)),
                ("bn", nn.BatchNorm2d(16, eps=1e-4, momentum=0.1)),
                ("relu", nn.ReLU(inplace=True)),
                ("conv1", BinConv2d(16, 24, kernel_size=1)),
                ("pool1", nn.MaxPool2d(kernel_size=2, stride=2)),
                ("conv2", BinConv2d(24, 32, kernel_size=3, padding=1)),
                ("conv3", BinConv2d(32, 32, kernel_size=3, stride=2, padding=1)),
                ("bn4", nn.BatchNorm2d(32)),
                ("pool2", nn.AdaptiveAvgPool2d(1)),
                ("flatten", nn.Flatten()),
                ("classifier", nn.Linear(32, classes)),
            ]
        )
    )


def initialise(model, seed=1):
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                fan_in = p.numel() // p.size(0)
                values = rng.standard_normal(tuple(p.shape)) * (2.0 / fan_in) ** 0.5
                p.copy_(torch.from_numpy(values))
        nn.init.zeros_(model.stem.bias)
        nn.init.zeros_(model.classifier.bias)


def center_and_clip(model):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BinConv2d):
                weight = module.weight
                weight.sub_(weight.mean(dim=1, keepdim=True)).clamp_(-1.0, 1.0)


def train(images, labels, steps=20, batch_size=16):
    """Train; return the losses of the steps and the model. Images (N, 3, 32, 32) from -1 to 1."""
    x, y = torch.from_numpy(images).double(), torch.from_numpy(labels)
    model = net().double()
    initialise(model)
    binary = [p for n, p in model.named_parameters() if n.endswith("weight") and p.dim() == 4]
    others = [p for p in model.parameters() if not any(p is q for q in binary)]
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(others, lr=0.05, momentum=0.9, weight_decay=1e-4)
    optimizer.add_param_group({"params": binary, "weight_decay": 0.0, "nesterov": True})
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps + 1)
    losses = []
    for step in range(steps):
        rows = np.arange(step * batch_size, (step + 1) * batch_size) % len(x)
        loss = criterion(model(x[rows]), y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        center_and_clip(model)
        losses.append(loss.item())
    return losses, model
