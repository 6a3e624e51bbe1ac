"""Tensors for arrays."""

NAMES = "must be an array"


def batch_norm(x, gamma, beta, eps=1e-5):
    mean = x.mean(0)
    centred = x - mean
    var = (centred * centred).mean(0)
    return centred / (var + eps).sqrt() * gamma + beta, mean, var
