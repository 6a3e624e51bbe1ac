"""Federated training of a binary network on handwritten digits."""
