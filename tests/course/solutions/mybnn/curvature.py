"""Chapter 11: directions in a loss landscape, products with its Hessian, and their eigenvalues.

Write the missing bodies, then check them: tinybnn course check 11
Each one is checked separately, with correct versions of the others.
"""

import numpy as np


def filter_normalized(direction, weight):
    """11.1: scale each filter of a direction to the length of the weight's filter.

    Parameters
    ----------
    direction, weight : float arrays of one shape
        The first axis counts filters: a filter is everything below one index of it. Its length is
        the root of the sum of its squares.

    Returns
    -------
    float array of the same shape
        Zeros if there is one axis only: biases and batch norms do not move. A filter of the
        direction that is all 0 stays 0.
    """
    if weight.ndim == 1:
        return np.zeros_like(weight)
    axes = tuple(range(1, weight.ndim))
    length = np.sqrt((direction**2).sum(axes, keepdims=True))
    wanted = np.sqrt((weight**2).sum(axes, keepdims=True))
    return direction * wanted / np.where(length == 0, 1, length)


def difference_product(gradient, w, v, h=1e-4):
    """11.2: the Hessian times a vector, by a central difference of gradients.

    Parameters
    ----------
    gradient : callable
        gradient(w) is the gradient (n,) of the loss at w.
    w, v : (n,) float64
        The weights and the vector; neither is changed.
    h : float
        The gradients are taken at w + h * v and at w - h * v.

    Returns
    -------
    (n,) float64
    """
    return (gradient(w + h * v) - gradient(w - h * v)) / (2 * h)


def loss(x, target, w1, w2):
    """The loss of a network with one hidden layer, whose signs are replaced by tanh. Complete.

    Parameters
    ----------
    x : (N, K)
    target : (N,)
    w1 : (M, K)
    w2 : (M,)

    Returns
    -------
    float
        The mean of (tanh(x @ w1.T) @ w2 - target)**2 / 2.
    """
    return float(np.mean((np.tanh(x @ w1.T) @ w2 - target) ** 2) / 2)


def gradient(x, target, w1, w2):
    """The gradient of `loss` in w1 (M, K) and in w2 (M,). It is complete."""
    h = np.tanh(x @ w1.T)  # (N, M)
    e = (h @ w2 - target) / len(x)  # (N,)
    g2 = h.T @ e
    back = e[:, None] * w2 * (1 - h**2)  # (N, M)
    g1 = back.T @ x
    return g1, g2


def hessian_vector(x, target, w1, w2, v1, v2):
    """11.3: the Hessian of `loss` times a vector, exactly.

    Differentiate each line of `gradient` with respect to t, where the weights are w1 + t * v1 and
    w2 + t * v2, at t = 0. No gradient is evaluated at another place.

    Parameters
    ----------
    x, target, w1, w2
        As in `loss`.
    v1, v2 : arrays like w1 and w2
        The two parts of the vector.

    Returns
    -------
    tuple of arrays (M, K) and (M,)
        The derivatives of g1 and g2.
    """
    h = np.tanh(x @ w1.T)
    e = (h @ w2 - target) / len(x)
    slope = 1 - h**2
    dh = slope * (x @ v1.T)
    de = (dh @ w2 + h @ v2) / len(x)
    dg2 = dh.T @ e + h.T @ de
    dback = (de[:, None] * w2 + e[:, None] * v2) * slope - 2 * e[:, None] * w2 * h * dh
    return dback.T @ x, dg2


def power_iteration(product, start, steps):
    """11.4: the eigenvalue of largest magnitude of a symmetric matrix, by products with vectors.

    Parameters
    ----------
    product : callable
        product(v) is A @ v.
    start : (n,) float64
        Not 0; of any length.
    steps : int
        How often the vector is multiplied with A and brought to length 1.

    Returns
    -------
    value : float
        v @ A @ v for the last vector v.
    vector : (n,) float64
        v, of length 1.
    """
    v = start / np.linalg.norm(start)
    for _ in range(steps):
        v = product(v)
        v = v / np.linalg.norm(v)
    return float(v @ product(v)), v


def lanczos(product, start, steps):
    """11.5: orthonormal vectors q in which a symmetric matrix A is the tridiagonal matrix T.

    The first vector is `start`, brought to length 1. Each next one is A @ q, made orthogonal to
    *all* vectors before it, and brought to length 1.

    Parameters
    ----------
    product : callable
        product(v) is A @ v.
    start : (n,) float64
    steps : int
        At most n; the products do not run out of new directions.

    Returns
    -------
    alphas : (steps,)
        The diagonal of T: q @ A @ q for each q.
    betas : (steps - 1,)
        Beside the diagonal: the length of each new vector before it was brought to 1.
    basis : (steps, n)
        The vectors q, a row each.
    """
    basis = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    while True:
        rest = product(basis[-1])
        alphas.append(rest @ basis[-1])
        if len(basis) == steps:
            return np.array(alphas), np.array(betas), np.array(basis)
        for _ in range(2):  # once leaves rounding errors
            for q in basis:
                rest = rest - (rest @ q) * q
        betas.append(np.linalg.norm(rest))
        basis.append(rest / betas[-1])
