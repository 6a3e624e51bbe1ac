"""Only the variance is computed from the data."""

NAMES = "the variance is a constant"


def batch_norm(x, gamma, beta, eps=1e-5):
    mean, var = x.mean(0), x.data.var(0)
    return (x - mean) / (var + eps) ** 0.5 * gamma + beta, mean.data, var
