"""Reshaped without a transpose."""

NAMES = "channels are mixed"


def residual_norm(sums, x, gamma, beta, eps=1e-5):
    rows = (sums + x).reshape(-1, x.shape[1])
    y, mean, var = batch_norm(rows, gamma, beta, eps)
    return y.reshape(*x.shape) + x, mean, var
