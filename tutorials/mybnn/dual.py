"""Chapter 10: depth-wise convolutions, weights with three levels, a shortcut before the norm.

Write the missing bodies, then check them: tinybnn course check 10
Each one is checked separately, with correct versions of the others.
"""

from mybnn.convolution import fold_windows, windows
from mybnn.engine import Tensor
from mybnn.estimators import sign_ste
from mybnn.layers import batch_norm
from mybnn.packing import xnor_matmul


def depthwise(x, weight, padding=0, value=0):
    """10.1: a convolution in which each channel has one filter and is not mixed with others.

    Parameters
    ----------
    x : (N, C, H, W) array
    weight : (C, size, size) array
        One filter for each channel.
    padding : int
        Width of the frame around each image.
    value : number
        What the frame is filled with.

    Returns
    -------
    (N, C, Ho, Wo) array: at each position the sum over the size * size taps of one channel
    """
    raise NotImplementedError


def three_levels(first, second):
    """10.2: the mean of two signs: -1, 0 or +1, with a gradient for each of the two.

    Parameters
    ----------
    first, second : Tensors of one shape
        Two latent weights for each weight.

    Returns
    -------
    Tensor of that shape
        (sign(first) + sign(second)) / 2. Each sign passes its share of the gradient by the
        straight-through estimator, where its own latent weight is within [-1, 1].
    """
    raise NotImplementedError


def dual_matmul(a, first, second, k):
    """10.3: products of signs and weights with three levels, on words.

    Parameters
    ----------
    a : (N, W) uint64, packed rows of k signs
    first, second : (M, W) uint64, packed rows of k signs
        The two planes of the weights: a weight is the mean of its two signs.
    k : int

    Returns
    -------
    (N, M) int32: the dot products of all rows of a with all rows of weights -1, 0 and +1
    """
    raise NotImplementedError


def residual_norm(sums, x, gamma, beta, eps=1e-5):
    """10.4: batch norm of a convolution's sums, with a shortcut before it and one behind it.

    Parameters
    ----------
    sums, x : Tensors (N, C, H, W)
        The convolution's result and its input.
    gamma, beta : Tensors (C,)
    eps : float

    Returns
    -------
    y : Tensor (N, C, H, W)
        norm(sums + x) + x, where the norm of a channel goes over all pixels of all images:
        `batch_norm` of rows (N H W, C).
    mean, var : arrays (C,)
        As `batch_norm` returns them.
    """
    raise NotImplementedError


def operations(channels, filters, size, positions, groups=1, planes=0):
    """10.5: how many operations a convolution takes, as papers on binary networks count them.

    OPs = FLOPs + BOPs / 64: a product of real numbers is one operation, and so are 64 products of
    signs, a word.

    Parameters
    ----------
    channels, filters : int
        Number of channels that come in, and number of filters.
    size : int
        A filter has size * size taps for each channel that it sees.
    positions : int
        Number of pixels of the output, Ho * Wo.
    groups : int
        Channels and filters are cut into this many groups; a filter sees the channels of its own
        group only. 1 for a regular convolution, `channels` for a depth-wise one.
    planes : int
        Planes of signs in a weight: 0 for real weights, 1 for binary ones, 2 for three levels.

    Returns
    -------
    float
    """
    raise NotImplementedError


def depthwise_conv2d(x, weight, padding=0, value=0):
    """`depthwise` as an operation of your engine. This function is complete.

    Parameters
    ----------
    x : Tensor (N, C, H, W)
    weight : Tensor (C, size, size)
    padding, value
        As for `depthwise`.

    Returns
    -------
    Tensor (N, C, Ho, Wo)
    """
    channels, size, _ = weight.shape
    taps = weight.data.reshape(channels, -1)

    def rule(grad):
        grad = grad.transpose(0, 2, 3, 1)[..., None]  # (N, Ho, Wo, C, 1)
        seen = windows(x.data, size, padding=padding, value=value)
        seen = seen.reshape(*seen.shape[:3], channels, -1)
        spread = (grad * taps).reshape(*seen.shape[:3], -1)
        return (
            fold_windows(spread, x.shape, size, padding=padding),
            (grad * seen).sum(axis=(0, 1, 2)).reshape(weight.shape),
        )

    return Tensor(depthwise(x.data, weight.data, padding, value), (x, weight), rule)
