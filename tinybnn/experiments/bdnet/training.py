"""One network of BD-Net's experiments: trained in one step or two, with a teacher or without.

A network is binarized at once; or in two steps, first its activations and then its weights
(`release_weights`, `hand_over`). With a teacher it learns from what a float network says about the
same images (`Distilled`). When it is trained, it is compiled, compared with its packed form, and
measured.
"""

from __future__ import annotations

import time

import numpy as np

from tinybnn import analysis, datasets, deploy, nn, optim, training
from tinybnn import functional as F
from tinybnn.autograd import no_grad
from tinybnn.experiments.bdnet.arms import TABLE_2
from tinybnn.experiments.bdnet.instability import first_batches, layer_statistics
from tinybnn.experiments.run_folder import kept
from tinybnn.kernels.machine.exact import identical
from tinybnn.quantizers import EdeSign


def train_arm(folder, arm, config, seed, data, threads=None, progress=True, about=None):
    """Train one network, compile it and measure it; or read its figures.

    Parameters
    ----------
    folder : path
        Of this network.
    arm : Arm
    config : Config
    seed : int
    data : (Dataset, Dataset)
        For training and for testing.
    threads, progress
        As in `hybnn.run`.
    about : dict, optional
        Stands in the figures, too.

    Returns
    -------
    dict
        ``test_accuracy`` and ``test_loss`` after the last epoch; ``seconds`` of all epochs;
        ``history``, the rows of all steps; ``ops``, ``bops``, ``flops``, ``weight_bits`` of a
        network for one image; ``packed_bytes``; ``identical_logits`` on test images; ``layers``,
        what `layer_statistics` says at the ``start`` and at the ``end``; ``machine``, ``date``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return kept(
        folder / "result.json",
        lambda: _train_arm(folder, arm, config, seed, data, threads, progress) | (about or {}),
    )


def _train_arm(folder, arm, config, seed, data, threads, progress):
    from tinybnn.kernels.machine.threads import num_threads

    train, test = data
    batches, shape = first_batches(train), train.images.shape[1:]
    with num_threads(threads):
        start = layer_statistics(untrained(arm, config, seed, train), batches)
    model, rows = _trained(folder, arm, config, seed, data, threads, progress)
    loader = datasets.DataLoader(test, batch_size=256)
    with num_threads(threads):
        logits, labels = training.predict(model, loader)
        packed = deploy.compile(model, shape)
        found = np.concatenate([packed.predict(x) for x, _ in loader])
        end = layer_statistics(model, batches)
    packed.save(folder / "packed.npz")
    count = analysis.count_operations(model, shape)
    return {
        "epochs": config.epochs,
        "seconds": sum(row["seconds"] for row in rows),
        "test_accuracy": training.accuracy(logits, labels),
        "test_loss": float(F.cross_entropy(logits, labels)),
        "test_images": len(labels),
        "identical_logits": int(identical(found, logits).all(1).sum()),
        "ops": count.ops,
        "bops": count.bops,
        "flops": count.flops,
        "weight_bits": count.weight_bits,
        "packed_bytes": packed.nbytes,
        "machine": analysis.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "history": rows,
        "layers": {"start": start, "end": end},
    }


def trained_arms(out, arms, config, seeds, data, command, threads=None, progress=True):
    """Train the networks of an experiment, one after the other, as `train_arm` does.

    Yields
    ------
    folder : path
    about : dict
        ``name``, ``seed``, ``command``, and ``accuracy`` on test images.
    arm : Arm
    """
    for seed in range(seeds):  # a seed that is done is a whole comparison
        for name, arm in arms.items():
            folder, about = out / f"{name}-{seed}", {"name": name, "seed": seed, "command": command}
            row = train_arm(folder, arm, config, seed, data, threads, progress, about)
            yield folder, {**about, "accuracy": row["test_accuracy"]}, arm


def first_images(images, config):
    """The first ``config.images`` of a Dataset in batches, as the networks take them."""
    count = min(config.images, len(images))
    return [
        *datasets.DataLoader(
            images[:count], min(config.batch_size, count),
            transform=datasets.to_signed(images.maximum),
        )
    ]  # fmt: skip


def untrained(arm, config, seed, train):
    """The network of an arm for some images; the same seed gives the same weights."""
    shape, classes = train.images.shape[1:], len(train.classes)
    return arm.network(config, shape, classes, np.random.default_rng(seed))


def trained(folder, arm, config, seed, train):
    """The network of an arm as `train_arm` left it in its folder."""
    model = untrained(arm, config, seed, train)
    last = 1 + (config.two_step and arm.method != "float")
    training.load_weights(folder / f"step-{last}.npz", model)
    return model


def _trained(folder, arm, config, seed, data, threads, progress):
    """The network behind its one or two steps of training, and the rows of their histories."""
    is_float = arm.method == "float"
    teacher = None
    if config.distill and not is_float:
        teacher = _teacher(folder.parent, config, seed, data, threads, progress)
    steps = [config.epochs // 2, config.epochs - config.epochs // 2]
    if is_float or not config.two_step:
        steps = [config.epochs]
    model, rows = None, []
    for number, epochs in enumerate(steps, 1):
        before, model = model, untrained(arm, config, seed, data[0])
        if before is not None:
            hand_over(before, model)
        if number < len(steps):
            release_weights(model)
        history = fit(
            folder / f"step-{number}.npz", model, teacher, data[0], config, epochs, [seed, number],
            threads, progress,
        )  # fmt: skip
        rows += [{"step": number, **row} for row in history.rows]
    return model, rows


def fit(path, model, teacher, train, config, epochs, seed, threads=None, progress=True):
    """One step of training, with a checkpoint.

    Parameters
    ----------
    path : path
        Of the checkpoint.
    model : Module
    teacher : Module or None
        A float network, or None to learn from labels alone.
    train : Dataset
    config : Config
    epochs : int
    seed : int or list of int
        Of the order of the images and of their augmentation: moved by up to an eighth of their
        size, which is a random crop with a border of 4 around 32 pixels; colour images mirrored,
        half of them.
    threads, progress
        As in `hybnn.run`.

    Returns
    -------
    History
    """
    moves = [datasets.RandomShift(train.images.shape[2] // 8)]
    if train.images.shape[1] == 3:
        moves.append(datasets.RandomHorizontalFlip())
    loader = datasets.DataLoader(
        train, config.batch_size, shuffle=True, drop_last=True, rng=np.random.default_rng(seed),
        transform=datasets.Compose([*moves, datasets.to_signed(train.maximum)]),
    )  # fmt: skip
    optimizer = optim.Adam(model.parameters(), lr=config.lr)
    batches = epochs * len(loader)
    if config.schedule == "cosine":
        schedule = optim.CosineAnnealingLR(optimizer, batches)
    else:
        schedule = optim.LinearLR(optimizer, 1.0, 0.0, batches)
    # A step with real weights has left the quantizers of the weights out.
    if any(isinstance(v, EdeSign) for m in model.modules() for v in vars(m).values()):
        schedule = optim.ChainedScheduler([schedule, optim.EdeSchedule(model, batches)])
    trained, loss = model, F.cross_entropy
    if teacher is not None:
        trained = Distilled(model, teacher, config.distill)
        loss = trained.loss
    return training.fit(
        trained, loader, epochs=epochs, optimizer=optimizer, schedule=schedule,
        schedule_unit="batch", loss=loss, checkpoint=path, progress=progress, threads=threads,
    )  # fmt: skip


def release_weights(model):
    """Let the binary layers of a model compute with their latent weights: the first of two steps.

    The signs of the activations stay.
    """
    for module in model.modules():
        if isinstance(module, nn.AdaBinConv2d):
            module.weight_quantizer = _as_it_is  # α_w v + β_w is then the weight itself
        elif isinstance(module, nn.BinaryConv2d):
            module.weight_quantizer = None


def _as_it_is(x):
    return x


def hand_over(first, second):
    """Give the network of the second step all weights and statistics of the first.

    Raises
    ------
    KeyError, ValueError
        If either has an array that the other has not, or of another shape; nothing is changed then.
        (ReActNet's public code drops such arrays silently.)
    """
    second.load_state_dict(first.state_dict())


class Distilled(nn.Module):
    """A network beside its teacher, which sees the same batch, augmentation included.

    The loss is the cross entropy with a mixture of two targets: the teacher's distribution and the
    label. Up to a constant its first part is the Kullback-Leibler divergence from the teacher to
    the network (ReActNet's distributional loss, Liu et al. 2020, eq. 7).

    Parameters
    ----------
    model, teacher : Module
        Logits for the same classes. The teacher is frozen.
    share : float
        Of the teacher in the target.
    """

    def __init__(self, model, teacher, share):
        self.model, self.teacher, self.share = model, teacher.freeze(), share
        self.said = None  # the teacher's distribution for the last batch, (N, classes)

    def forward(self, x):
        if self.training:
            with no_grad():
                self.said = F.softmax(self.teacher(x), 1).data
        return self.model(x)

    def loss(self, logits, labels):
        """Cross entropy of the logits of the last training batch."""
        one_hot = np.eye(logits.shape[1], dtype=np.float32)[labels]
        return F.cross_entropy(logits, self.share * self.said + (1 - self.share) * one_hot)


def _teacher(out, config, seed, data, threads, progress):
    """The trained float MobileNet V1 of a seed; `bdnet-table2` has it as a network of its own."""
    arm, folder = TABLE_2["float"], out / f"float-{seed}"
    about = {"name": "float", "seed": seed, "command": "the teacher of the other networks"}
    train_arm(folder, arm, config, seed, data, threads, progress, about)
    return trained(folder, arm, config, seed, data[0])
