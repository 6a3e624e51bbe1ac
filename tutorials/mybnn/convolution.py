"""Chapter 05: convolutions as products of windows, in floats and in words.

Write the missing bodies, then check them: tinybnn course check 05
Each one is checked separately, with correct versions of the others.
"""

import numpy as np

from mybnn.engine import Tensor
from mybnn.estimators import sign_ste
from mybnn.packing import pack, xnor_matmul


def windows(x, size, stride=1, padding=0, value=0):
    """05.1: what a filter of size x size sees at each of its positions (im2col).

    Parameters
    ----------
    x : (N, C, H, W) array
    size : int
    stride : int
        Step from one position to the next, in rows and in columns.
    padding : int
        Width of the frame around each image.
    value : number
        What the frame is filled with.

    Returns
    -------
    (N, Ho, Wo, C * size * size) array of the dtype of x, with
    Ho = (H + 2 * padding - size) // stride + 1 and Wo likewise. The last axis is in the order
    channel, row, column, as in weight.reshape(O, -1) of a weight (O, C, size, size).
    """
    raise NotImplementedError


def fold_windows(grad, shape, size, stride=1, padding=0):
    """05.2: add the values of windows back to the pixels they came from.

    This is the gradient rule of `windows`: a pixel that several windows see gets the sum of their
    gradients.

    Parameters
    ----------
    grad : (N, Ho, Wo, C * size * size) array, as `windows` returns it
    shape : (N, C, H, W)
        Shape of the images.
    size, stride, padding : int
        As for `windows`.

    Returns
    -------
    (N, C, H, W) array of the dtype of grad; what falls on the frame is dropped
    """
    raise NotImplementedError


def weight_scale(latent):
    """05.3: the number by which XNOR-Net multiplies the sums of each filter.

    Parameters
    ----------
    latent : (O, C, size, size) array of floats

    Returns
    -------
    (O,) array of the same dtype: the mean of |latent| over each filter
    """
    raise NotImplementedError


def xnor_conv2d(x, weight, padding=0):
    """05.4: a convolution of signs, counted on words; the frame is zeros, as in float networks.

    Parameters
    ----------
    x : (N, C, H, W) array of +1 and -1
    weight : (O, C, size, size) array of +1 and -1
    padding : int

    Returns
    -------
    (N, O, Ho, Wo) int32
    """
    raise NotImplementedError


def max_pool_bits(bits):
    """05.5: max-pool of signs, 2 x 2 pixels, where True stands for +1 and False for -1.

    Parameters
    ----------
    bits : (N, C, H, W) bool

    Returns
    -------
    (N, C, H // 2, W // 2) bool; with an odd number of rows or columns, the last one is dropped
    """
    raise NotImplementedError


def binary_conv2d(x, latent, padding=0):
    """The convolution of a binary layer, in your engine. This function is complete.

    Parameters
    ----------
    x : Tensor (N, C, H, W)
        Real numbers, or signs.
    latent : Tensor (O, C, size, size)
        Their signs are the weights; `weight_scale` of them multiplies the sums.
    padding : int

    Returns
    -------
    Tensor (N, O, Ho, Wo)
    """
    filters, _, size, _ = latent.shape
    signs = sign_ste(latent)
    seen = Tensor(
        windows(x.data, size, padding=padding),
        (x,),
        lambda grad: (fold_windows(grad, x.shape, size, padding=padding),),
    )
    images, rows, columns, k = seen.shape
    scale = Tensor(
        weight_scale(latent.data),
        (latent,),
        lambda grad: (grad[:, None, None, None] * signs.data / k,),
    )
    sums = seen.reshape(images * rows * columns, k) @ signs.reshape(filters, k).T
    return (sums * scale).reshape(images, rows, columns, filters).transpose(0, 3, 1, 2)
