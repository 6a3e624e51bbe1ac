"""The norm of values out of the graph."""

NAMES = "from the norm to sums and x"


def residual_norm(sums, x, gamma, beta, eps=1e-5):
    images, channels, height, width = x.shape
    rows = (sums + x).data.transpose(0, 2, 3, 1).reshape(images * height * width, channels)
    y, mean, var = batch_norm(Tensor(rows), gamma, beta, eps)
    return y.reshape(images, height, width, channels).transpose(0, 3, 1, 2) + x, mean, var
