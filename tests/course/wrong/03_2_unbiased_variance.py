"""The unbiased variance."""

NAMES = "N - 1"


def batch_norm(x, gamma, beta, eps=1e-5):
    mean = x.mean(0)
    centred = x - mean
    var = (centred * centred).sum(0) / (x.shape[0] - 1)
    return centred / (var + eps).sqrt() * gamma + beta, mean.data, var.data
