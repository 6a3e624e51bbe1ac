"""Training: gradients of products of signs, normalisation, activations, optimizers."""
