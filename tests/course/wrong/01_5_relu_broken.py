"""Relu broken."""

import numpy as np

NAMES = "relu, which the file brings complete"


def relu(self):
    return Tensor(np.maximum(self.data, 0), (self,), lambda grad: (grad,))


Tensor.relu = relu
