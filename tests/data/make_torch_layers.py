"""Record layers, losses, schedules and optimizers of PyTorch: values, gradients and second ones.

    python tests/data/make_torch_layers.py          (PyTorch 2.13, CPU)

writes torch_layers.npz beside this file: plain arrays, no pickle. The recorded cases are in the
tables below; tests/test_torch_layers.py runs the same tables with tinybnn.
"""

import inspect
from operator import attrgetter
from pathlib import Path

import numpy as np

LABELS = np.array([0, 3, 2, 2, 1])
IGNORED = np.array([0, 3, -100, 2, 1])
CLASSES = np.array([1.0, 0.5, 2.0, 0.25])
SCALE, SHIFT = np.linspace(0.5, 1.5, 6), np.linspace(-1.0, 1.0, 6)
DISTRIBUTION = np.array([[0.1, 0.2, 0.7, 0.0]] * 5)
REAL = np.linspace(-2.0, 2.0, 20).reshape(5, 4)
UNIT = np.linspace(0.0, 1.0, 20).reshape(5, 4)
IMAGE, ROWS = (2, 6, 3, 4), (5, 4)


def wave(shape, seed):
    """Fixed numbers from -1 to 1."""
    return np.sin(1.0 + seed + (2.3 + 0.1 * seed) * np.arange(np.prod(shape))).reshape(shape)


# name: (function of nn, F, x and a function that turns an array into a tensor; shape of x)
CASES = {
    "gelu": (lambda nn, F, x, a: F.gelu(x), ROWS),
    "gelu tanh": (lambda nn, F, x, a: nn.GELU(approximate="tanh")(x), ROWS),
    "silu": (lambda nn, F, x, a: nn.SiLU(inplace=False)(x), ROWS),
    "relu6": (lambda nn, F, x, a: nn.ReLU6()(4 * x), ROWS),
    "softmax": (lambda nn, F, x, a: nn.Softmax(dim=1)(x), IMAGE),
    "log softmax": (lambda nn, F, x, a: nn.LogSoftmax(dim=-1)(x), IMAGE),
    "group norm": (lambda nn, F, x, a: nn.GroupNorm(3, 6)(x), IMAGE),
    "group norm of rows": (lambda nn, F, x, a: F.group_norm(x, 2, a(SCALE), a(SHIFT)), (4, 6)),
    "group norm affine": (lambda nn, F, x, a: F.group_norm(x, 2, a(SCALE), a(SHIFT), 0.1), IMAGE),
    "layer norm": (lambda nn, F, x, a: nn.LayerNorm(4)(x), IMAGE),
    "layer norm of rows": (lambda nn, F, x, a: F.layer_norm(x, [6], a(SCALE), a(SHIFT)), (5, 6)),
    "layer norm of images": (lambda nn, F, x, a: F.layer_norm(x, (6, 3, 4)), IMAGE),
    "layer norm of a vector": (lambda nn, F, x, a: F.layer_norm(x, (6,), a(SCALE)), (6,)),
    "normalize": (lambda nn, F, x, a: F.normalize(x), IMAGE),
    "normalize 1": (lambda nn, F, x, a: F.normalize(x, p=1.0, dim=-1), IMAGE),
    "normalize 3": (lambda nn, F, x, a: F.normalize(x, 3.0, dim=0), IMAGE),
    "normalize max": (lambda nn, F, x, a: F.normalize(x, float("inf")), ROWS),
    "nearest": (lambda nn, F, x, a: F.interpolate(x, scale_factor=2), IMAGE),
    "nearest to a size": (lambda nn, F, x, a: nn.Upsample(size=(7, 3))(x), IMAGE),
    "nearest by 1.7": (lambda nn, F, x, a: F.interpolate(x, scale_factor=(1.7, 0.6)), IMAGE),
    "nearest rounded": (lambda nn, F, x, a: F.interpolate(x, (1, 22)), (1, 1, 1, 26)),
    "nearest doubled": (lambda nn, F, x, a: F.interpolate(x, scale_factor=(1, 2.2)), (1, 1, 1, 4)),
    "bilinear": (lambda nn, F, x, a: nn.Upsample(scale_factor=2, mode="bilinear")(x), IMAGE),
    "bilinear to a size": (lambda nn, F, x, a: F.interpolate(x, (3, 9), mode="bilinear"), IMAGE),
    "bilinear by 1.7": (
        lambda nn, F, x, a: F.interpolate(x, scale_factor=1.7, mode="bilinear"), IMAGE,
    ),
    "bilinear corners": (
        lambda nn, F, x, a: F.interpolate(x, (9, 1), mode="bilinear", align_corners=True), IMAGE,
    ),
    "same": (
        lambda nn, F, x, a: F.conv2d(x, a(np.ones((2, 6, 3, 5))), padding="same", dilation=(3, 1)),
        IMAGE,
    ),
    "cross entropy": (lambda nn, F, x, a: nn.CrossEntropyLoss()(x, a(LABELS)), ROWS),
    "cross entropy weight": (
        lambda nn, F, x, a: F.cross_entropy(x, a(IGNORED), weight=a(CLASSES)), ROWS,
    ),
    "cross entropy all": (
        lambda nn, F, x, a: nn.CrossEntropyLoss(a(CLASSES), label_smoothing=0.1)(x, a(IGNORED)),
        ROWS,
    ),
    "cross entropy none": (
        lambda nn, F, x, a: nn.CrossEntropyLoss(
            ignore_index=2, reduction="none", label_smoothing=0.3
        )(x, a(LABELS)), ROWS,
    ),
    "cross entropy soft": (
        lambda nn, F, x, a: F.cross_entropy(
            x, a(DISTRIBUTION), weight=a(CLASSES), label_smoothing=0.2
        ), ROWS,
    ),
    "nll": (lambda nn, F, x, a: F.nll_loss(x, a(LABELS)), ROWS),
    "nll weight": (lambda nn, F, x, a: nn.NLLLoss(a(CLASSES))(x, a(IGNORED)), ROWS),
    "nll sum": (
        lambda nn, F, x, a: nn.NLLLoss(ignore_index=3, reduction="sum")(x, a(LABELS)), ROWS,
    ),
    "mse": (lambda nn, F, x, a: nn.MSELoss(reduction="sum")(x, a(REAL)), ROWS),
    "l1": (lambda nn, F, x, a: nn.L1Loss()(x, a(REAL)), ROWS),
    "l1 none": (lambda nn, F, x, a: F.l1_loss(x, a(REAL), reduction="none"), ROWS),
    "smooth l1": (lambda nn, F, x, a: nn.SmoothL1Loss(beta=0.7)(x, a(REAL)), ROWS),
    "smooth l1 of beta 0": (
        lambda nn, F, x, a: F.smooth_l1_loss(x, a(REAL), reduction="sum", beta=0.0), ROWS,
    ),
    "kl": (
        lambda nn, F, x, a: nn.KLDivLoss(reduction="batchmean")(
            F.log_softmax(x, 1), a(DISTRIBUTION)
        ), ROWS,
    ),
    "kl log target": (
        lambda nn, F, x, a: F.kl_div(
            a(REAL), F.log_softmax(x, 1), reduction="sum", log_target=True
        ), ROWS,
    ),
    "bce": (lambda nn, F, x, a: nn.BCELoss()(F.sigmoid(x), a(UNIT)), ROWS),
    "bce weight": (
        lambda nn, F, x, a: F.binary_cross_entropy(F.sigmoid(x), a(UNIT), weight=a(CLASSES)), ROWS,
    ),
    "bce logits": (lambda nn, F, x, a: nn.BCEWithLogitsLoss(a(CLASSES))(x, a(UNIT)), ROWS),
    "bce pos weight": (
        lambda nn, F, x, a: nn.BCEWithLogitsLoss(pos_weight=a(CLASSES))(x, a(UNIT)), ROWS,
    ),
}  # fmt: skip

# name: function of optim and an optimizer (SGD with lr 0.1 and momentum 0.9) -> schedule
SCHEDULES = {
    "step": lambda optim, sgd: optim.lr_scheduler.StepLR(sgd, 4, gamma=0.5),
    "multi step": lambda optim, sgd: optim.lr_scheduler.MultiStepLR(sgd, [3, 7, 7], gamma=0.5),
    "exponential": lambda optim, sgd: optim.lr_scheduler.ExponentialLR(sgd, 0.9),
    "cosine": lambda optim, sgd: optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=20),
    "one cycle": lambda optim, sgd: optim.lr_scheduler.OneCycleLR(sgd, 0.4, total_steps=20),
    "one cycle linear": lambda optim, sgd: optim.lr_scheduler.OneCycleLR(
        sgd, [0.4], epochs=4, steps_per_epoch=5, pct_start=0.4, anneal_strategy="linear",
        base_momentum=0.8, div_factor=10, final_div_factor=100,
    ),
    "one cycle in three": lambda optim, sgd: optim.lr_scheduler.OneCycleLR(
        sgd, 0.4, total_steps=20, three_phase=True
    ),
}  # fmt: skip
METRICS = [3.0, 2.0, 2.0, 2.1, 2.0, 1.9999, 1.5, 1.6, 1.6, 1.6, 1.6, 1.6, 1.7, 1.0, 1.0, 1.0, 1.0]
PLATEAUS = {
    "default": {"patience": 1},
    "max": {"mode": "max", "factor": 0.5, "patience": 2, "cooldown": 2},
    "absolute": {"threshold_mode": "abs", "threshold": 0.2, "patience": 0, "min_lr": 1e-3},
}
OPTIMIZERS = {
    "rmsprop": lambda optim, p: optim.RMSprop(p),
    "rmsprop centered": lambda optim, p: optim.RMSprop(p, 0.05, 0.9, centered=True, momentum=0.8),
    "rmsprop decay": lambda optim, p: optim.RMSprop(p, weight_decay=0.1, momentum=0.5, eps=1e-3),
}
AVERAGES = {"swa": None, "ema": 0.7}
PIXELS = (37 * np.arange(2 * 3 * 9 * 12) % 251).astype(np.uint8).reshape(2, 3, 9, 12)
SIZES = (4, 5), (13, 20), (9, 6)
SIGNATURES = """
    nn.BCELoss nn.BCEWithLogitsLoss nn.CrossEntropyLoss nn.Dropout nn.Dropout2d nn.GELU nn.GroupNorm
    nn.KLDivLoss nn.L1Loss nn.LayerNorm nn.LogSoftmax nn.MSELoss nn.ModuleDict nn.NLLLoss
    nn.ParameterList nn.ReLU nn.ReLU6 nn.SiLU nn.SmoothL1Loss nn.Softmax nn.Upsample
    nn.functional.group_norm nn.functional.interpolate nn.functional.kl_div nn.functional.l1_loss
    nn.functional.layer_norm nn.functional.nll_loss nn.functional.normalize nn.functional.relu6
    nn.functional.silu nn.functional.smooth_l1_loss
    nn.init.calculate_gain nn.init.constant_ nn.init.kaiming_normal_ nn.init.kaiming_uniform_
    nn.init.normal_ nn.init.ones_ nn.init.orthogonal_ nn.init.uniform_ nn.init.xavier_normal_
    nn.init.xavier_uniform_ nn.init.zeros_
    nn.utils.clip_grad_norm_ nn.utils.clip_grad_value_ nn.utils.parameters_to_vector
    nn.utils.vector_to_parameters
    optim.RMSprop optim.SGD optim.Adam optim.AdamW optim.lr_scheduler.CosineAnnealingLR
    optim.lr_scheduler.ExponentialLR optim.lr_scheduler.LambdaLR optim.lr_scheduler.LinearLR
    optim.lr_scheduler.MultiStepLR optim.lr_scheduler.OneCycleLR
    optim.lr_scheduler.ReduceLROnPlateau optim.lr_scheduler.SequentialLR optim.lr_scheduler.StepLR
    optim.swa_utils.AveragedModel optim.swa_utils.get_ema_avg_fn optim.swa_utils.update_bn
""".split()  # noqa: SIM905


def arguments(function):
    """Its arguments as text: ``name`` or ``name=default``."""
    return [
        name if p.default is p.empty else f"{name}={p.default!r}"
        for name, p in inspect.signature(function).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def main():
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_default_dtype(torch.float64)
    recorded = {}
    for name, (function, shape) in CASES.items():
        x = torch.tensor(wave(shape, 0), requires_grad=True)
        y = function(nn, F, x, torch.from_numpy)
        loss = (y * torch.from_numpy(wave(tuple(y.shape), 1))).sum()
        (g,) = torch.autograd.grad(loss, x, create_graph=True)
        slope = (g * torch.from_numpy(wave(shape, 2))).sum()
        (h,) = torch.autograd.grad(slope + (x * x).sum(), x)
        rows = torch.cat([v.detach().flatten() for v in (y, g, h)])
        recorded[f"{name}/values"] = rows.numpy().astype(np.float32)

    def sgd():
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)

    for name, make in SCHEDULES.items():
        optimizer = sgd()
        schedule, rows = make(torch.optim, optimizer), []
        for _ in range(20):
            rows.append([schedule.get_last_lr()[0], optimizer.param_groups[0]["momentum"]])
            optimizer.step()
            if len(rows) < 20:
                schedule.step()
        recorded[f"{name}/rates"] = np.array(rows)
    for name, settings in PLATEAUS.items():
        optimizer = sgd()
        schedule, rates = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **settings), []
        for metric in METRICS:
            schedule.step(metric)
            rates.append(optimizer.param_groups[0]["lr"])
        recorded[f"{name}/plateau"] = np.array(rates)
    for name, make in OPTIMIZERS.items():
        p = nn.Parameter(torch.linspace(-1.0, 1.3, 7))
        optimizer, rows = make(torch.optim, [p]), []
        for _ in range(6):
            p.grad = torch.sin(5 * p.detach())
            optimizer.step()
            rows.append(p.detach().numpy().copy())
        recorded[f"{name}/steps"] = np.array(rows)
    for kind in (1.0, 2.0, float("inf")):
        parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
        parameters[0].grad = torch.tensor([3.0, -4.0, 1.0])
        parameters[1].grad = torch.tensor([0.5, 12.0])
        norm = nn.utils.clip_grad_norm_(parameters, 2.0, norm_type=kind)
        clipped = torch.cat([p.grad for p in parameters]).numpy()
        recorded[f"clip {kind}"] = np.array([norm.item(), *clipped])
    for name, decay in AVERAGES.items():
        swa = torch.optim.swa_utils
        model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        average = swa.AveragedModel(model, avg_fn=decay and swa.get_ema_avg_fn(decay))
        for step in range(5):
            with torch.no_grad():
                model[0].weight.fill_(np.sin(step + 1.0))
                model[0].bias.fill_(step)
            average.update_parameters(model)
        loader = [(torch.arange(4.0)[:, None] ** k, 0) for k in (1, 2, 3)]
        swa.update_bn(loader, average)
        recorded[f"{name}/average"] = np.array(
            [float(v.flatten()[0]) for v in average.state_dict().values()]
        )
    for size in SIZES:
        pixels = torch.from_numpy(PIXELS).double()
        smaller = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        recorded[f"resize/{size}"] = smaller.numpy().astype(np.float32)
    for name in SIGNATURES:
        recorded[f"{name}()"] = np.array(arguments(attrgetter(name)(torch)), str)
    np.savez_compressed(Path(__file__).with_name("torch_layers.npz"), **recorded)


if __name__ == "__main__":
    main()
