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
    frame = (padding, padding)
    padded = np.pad(x, ((0, 0), (0, 0), frame, frame), constant_values=value)
    images, channels, height, width = padded.shape
    rows = (height - size) // stride + 1
    columns = (width - size) // stride + 1
    seen = np.empty((images, rows, columns, channels, size, size), x.dtype)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            seen[:, i, j] = padded[:, :, top : top + size, left : left + size]
    return seen.reshape(images, rows, columns, -1)


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
    images, channels, height, width = shape
    _, rows, columns, _ = grad.shape
    grad = grad.reshape(images, rows, columns, channels, size, size)
    padded = np.zeros((images, channels, height + 2 * padding, width + 2 * padding), grad.dtype)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            padded[:, :, top : top + size, left : left + size] += grad[:, i, j]
    return padded[:, :, padding : padding + height, padding : padding + width]


def weight_scale(latent):
    """05.3: the number by which XNOR-Net multiplies the sums of each filter.

    Parameters
    ----------
    latent : (O, C, size, size) array of floats

    Returns
    -------
    (O,) array of the same dtype: the mean of |latent| over each filter
    """
    return np.abs(latent).mean(axis=(1, 2, 3))


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
    filters, _, size, _ = weight.shape
    flat = weight.reshape(filters, -1)
    seen = windows(x, size, padding=padding, value=-1)  # a bit can't be 0, so the frame is -1
    images, rows, columns, k = seen.shape
    sums = xnor_matmul(pack(seen.reshape(-1, k)), pack(flat), k).reshape(images, rows, columns, -1)
    image = np.ones((1, *x.shape[1:]), np.int32)
    outside = 1 - windows(image, size, padding=padding)  # (1, Ho, Wo, k): 1 on the frame
    sums += outside @ flat.astype(np.int32).T  # each tap on the frame has added -weight
    return sums.transpose(0, 3, 1, 2)


def max_pool_bits(bits):
    """05.5: max-pool of signs, 2 x 2 pixels, where True stands for +1 and False for -1.

    Parameters
    ----------
    bits : (N, C, H, W) bool

    Returns
    -------
    (N, C, H // 2, W // 2) bool; with an odd number of rows or columns, the last one is dropped
    """
    height, width = bits.shape[2] // 2 * 2, bits.shape[3] // 2 * 2
    bits = bits[:, :, :height, :width]
    rows = bits[:, :, 0::2] | bits[:, :, 1::2]
    return rows[..., 0::2] | rows[..., 1::2]


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
