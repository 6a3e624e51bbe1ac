"""BinaryNet's multi-layer perceptron on MNIST, written for PyTorch.

Courbariaux et al. 2016: signs of weights and activations by a straight-through estimator, squared
hinge loss, Adam, latent weights that are clipped to [-1, 1] after each step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, optim


class Sign(torch.autograd.Function):
    """+1 where the input is >= 0, else -1; the gradient passes where |input| <= 1."""

    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        ones = torch.ones_like(input)
        return torch.where(input >= 0, ones, -ones)

    @staticmethod
    def backward(ctx, grad_output):
        (input,) = ctx.saved_tensors
        return grad_output.masked_fill(input.abs() > 1, 0.0)


class BinaryLinear(nn.Linear):
    def forward(self, x):
        return F.linear(Sign.apply(x), Sign.apply(self.weight), self.bias)


class Net(nn.Module):
    def __init__(self, features=784, hidden=128, classes=10):
        super().__init__()
        self.fc1 = BinaryLinear(features, hidden)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.fc2 = BinaryLinear(hidden, hidden, bias=False)
        self.bn2 = nn.BatchNorm1d(hidden)
        self.fc3 = BinaryLinear(hidden, classes, bias=False)
        self.bn3 = nn.BatchNorm1d(classes)

    def forward(self, x):
        x = x.view(x.size(0), -1)
        x = F.hardtanh(self.bn1(self.fc1(x)))
        x = F.hardtanh(self.bn2(self.fc2(x)))
        return self.bn3(self.fc3(x))


def initialise(model, seed=0):
    """Set initial values that do not depend on the library."""
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "fc" in name:
                p.copy_(torch.from_numpy(rng.uniform(-0.5, 0.5, tuple(p.shape))))


def squared_hinge(output, target):
    signs = 2.0 * F.one_hot(target, num_classes=10) - 1.0
    return F.relu(1.0 - output * signs).pow(2).mean()


def train(images, labels, steps=20, batch_size=32):
    """Train; return the losses of the steps and the model. Images (N, 1, 28, 28) from -1 to 1."""
    x, y = torch.from_numpy(images).double(), torch.from_numpy(labels)
    model = Net(images[0].size).double()
    initialise(model)
    optimizer = optim.Adam(model.parameters(), lr=0.005)
    schedule = optim.lr_scheduler.MultiStepLR(optimizer, milestones=[8, 14], gamma=0.5)
    losses = []
    model.train()
    for step in range(steps):
        rows = np.arange(step * batch_size, (step + 1) * batch_size) % len(x)
        optimizer.zero_grad()
        loss = squared_hinge(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, BinaryLinear):
                    module.weight.clamp_(-1, 1)
        losses.append(loss.item())
    return losses, model


def accuracy(model, images, labels):
    model.eval()
    with torch.no_grad():
        output = model(torch.from_numpy(images).double())
    predicted = output.argmax(dim=1)
    return (predicted == torch.from_numpy(labels)).sum().item() / len(labels)
