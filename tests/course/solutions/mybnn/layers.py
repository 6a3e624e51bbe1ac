"""Chapter 03: a binary layer, batch norm, cross entropy, and what keeps latent weights in order.

Write the missing bodies, then check them: tinybnn course check 03
Each one is checked separately, with correct versions of the others.
"""

import numpy as np

from mybnn.engine import Tensor
from mybnn.estimators import sign_ste


def binary_linear(x, latent):
    """03.1: products with the signs of the latent weights.

    Parameters
    ----------
    x : Tensor (N, K)
        Anything: real numbers in the first layer, signs in the others.
    latent : Tensor (M, K)
        A row for each output.

    Returns
    -------
    Tensor (N, M)
        x @ sign(latent).T. The gradient reaches `latent` through `sign_ste`.
    """
    return x @ sign_ste(latent).T


def batch_norm(x, gamma, beta, eps=1e-5):
    """03.2: each column with mean 0 and variance 1 over the batch, then scaled and shifted.

    Parameters
    ----------
    x : Tensor (N, M)
    gamma, beta : Tensor (M,)
    eps : float
        Added to the variance, so that no column is divided by 0.

    Returns
    -------
    normalized : Tensor (N, M)
        (x - mean) / sqrt(var + eps) * gamma + beta. The gradient goes through mean and variance
        too, since both depend on x.
    mean, var : arrays (M,)
        Over axis 0; the variance is the mean square of x - mean, divided by N and not by N - 1.
    """
    mean = x.mean(0)
    centred = x - mean
    var = (centred * centred).mean(0)
    normalized = centred / (var + eps).sqrt() * gamma + beta
    return normalized, mean.data, var.data


def cross_entropy(scores, labels):
    """03.3: the mean of -log p(right class), where p is the softmax of the scores.

    Parameters
    ----------
    scores : Tensor (N, C)
        Any magnitude is allowed: scores of 1000 must not overflow.
    labels : int array (N,)
        0 to C - 1.

    Returns
    -------
    Tensor ()
    """
    right = Tensor(np.eye(scores.shape[1], dtype=scores.dtype)[labels])
    scores = scores - scores.data.max(1, keepdims=True)
    return (scores.exp().sum(1).log() - (scores * right).sum(1)).mean()


def clip_latents(latent, limit=1.0):
    """03.4: bring latent weights back to [-limit, limit], in place.

    Parameters
    ----------
    latent : float array of any shape
        Changed in place; nothing is returned.
    limit : float
    """
    np.clip(latent, -limit, limit, out=latent)


def flip_ratio(before, after):
    """03.5: the share of weights whose sign changed, where sign(0) is +1.

    Parameters
    ----------
    before, after : float arrays of one shape
        Latent weights.

    Returns
    -------
    float
        Between 0 and 1.
    """
    return float(np.mean((before >= 0) != (after >= 0)))


class Adam:
    """Steps of about `lr` for each weight, whatever the size of its gradient. It is complete.

    Parameters
    ----------
    parameters : sequence of Tensor
        After `backward` each holds its gradient in ``.grad``; `step` changes its ``.data``.
    lr : float
    betas : two floats
        How much of the running means of the gradient and of its square is kept at each step.
    eps : float
    """

    def __init__(self, parameters, lr=0.01, betas=(0.9, 0.999), eps=1e-8):
        self.parameters, self.lr, self.betas, self.eps = list(parameters), lr, betas, eps
        self.steps = 0
        self.means = [np.zeros_like(p.data) for p in self.parameters]
        self.squares = [np.zeros_like(p.data) for p in self.parameters]

    def step(self):
        self.steps += 1
        keep, keep_square = self.betas
        for p, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            mean += (1 - keep) * (p.grad - mean)
            square += (1 - keep_square) * (p.grad**2 - square)
            unbiased = mean / (1 - keep**self.steps)
            size = np.sqrt(square / (1 - keep_square**self.steps))
            p.data -= self.lr * unbiased / (size + self.eps)
