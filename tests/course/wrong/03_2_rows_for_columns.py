"""Over the features instead of the batch."""

NAMES = "those of the rows"


def batch_norm(x, gamma, beta, eps=1e-5):
    mean = x.mean(1, keepdims=True)
    centred = x - mean
    var = (centred * centred).mean(1, keepdims=True)
    y = centred / (var + eps).sqrt() * gamma + beta
    return y, mean.data[:, 0], var.data[:, 0]
