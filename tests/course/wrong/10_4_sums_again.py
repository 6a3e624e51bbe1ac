"""What went into the norm is added behind it."""

NAMES = "the second shortcut is x alone"


def residual_norm(sums, x, gamma, beta, eps=1e-5):
    images, channels, height, width = x.shape
    rows = (sums + x).transpose(0, 2, 3, 1).reshape(images * height * width, channels)
    y, mean, var = batch_norm(rows, gamma, beta, eps)
    return y.reshape(images, height, width, channels).transpose(0, 3, 1, 2) + sums + x, mean, var
