"""Chapter 02: gradients for the sign, whose derivative is zero.

Write the missing bodies, then check them: tinybnn course check 02
Each one is checked separately, with correct versions of the others.
"""

import numpy as np

from mybnn.engine import Tensor


def ste_gradient(x):
    """02.1: the straight-through estimator: what replaces the slope of sign(x).

    Parameters
    ----------
    x : array of floats

    Returns
    -------
    array of the same shape and dtype: 1 where |x| <= 1, else 0
    """
    return (np.abs(x) <= 1).astype(x.dtype)


def approx_gradient(x):
    """02.2: the pseudo-gradient of Bi-Real Net.

    Parameters
    ----------
    x : array of floats

    Returns
    -------
    array of the same shape and dtype: 2 - 2 |x| where |x| <= 1, else 0
    """
    return np.where(np.abs(x) <= 1, 2 - 2 * np.abs(x), 0).astype(x.dtype)


def approx_surrogate(x):
    """02.3: the function whose slope is `approx_gradient`, and which is -1 and +1 at the ends.

    Parameters
    ----------
    x : array of floats

    Returns
    -------
    array of the same shape and dtype
    """
    x = np.clip(x, -1, 1)
    return 2 * x - x * np.abs(x)


def sign_ste(x, gradient=ste_gradient):
    """02.4: sign(x) as an operation of your engine, with a pseudo-gradient.

    Parameters
    ----------
    x : Tensor
    gradient : callable
        Takes the array ``x.data`` and returns the factor, of its shape, by which the incoming
        gradient is multiplied.

    Returns
    -------
    Tensor of the same shape and dtype
        Its data are +1 where x >= 0, else -1; its only parent is x; its rule returns a tuple of one
        array.
    """
    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), lambda grad: (grad * gradient(x.data),))


def ede_gradient(x, t=1.0):
    """02.5: the pseudo-gradient of IR-Net, which sharpens as t grows.

    Parameters
    ----------
    x : array of floats
    t : float
        Steepness, above 0.

    Returns
    -------
    array of the same shape and dtype: k t (1 - tanh(t x)**2) with k = max(1 / t, 1), the slope of
    k tanh(t x)
    """
    k = max(1 / t, 1)
    return k * t * (1 - np.tanh(t * x) ** 2)
