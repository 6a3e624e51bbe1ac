"""Both shortcuts are behind the norm."""

NAMES = "twice behind the norm"


def residual_norm(sums, x, gamma, beta, eps=1e-5):
    images, channels, height, width = x.shape
    rows = sums.transpose(0, 2, 3, 1).reshape(images * height * width, channels)
    y, mean, var = batch_norm(rows, gamma, beta, eps)
    return y.reshape(images, height, width, channels).transpose(0, 3, 1, 2) + x + x, mean, var
