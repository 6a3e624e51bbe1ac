"""The latent weights are multiplied."""

NAMES = "with the latent weights themselves"


def binary_linear(x, latent):
    return x @ latent.T
