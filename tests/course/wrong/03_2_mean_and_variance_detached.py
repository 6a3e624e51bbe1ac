"""Mean and variance computed from the data."""

NAMES = "constants to the gradient"


def batch_norm(x, gamma, beta, eps=1e-5):
    mean, var = x.data.mean(0), x.data.var(0)
    return (x - mean) / (var + eps) ** 0.5 * gamma + beta, mean, var
