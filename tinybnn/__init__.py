"""tinybnn: binary neural networks from scratch, trained on floats and run on bits.

>>> import tinybnn as tb
>>> x = tb.Tensor([-0.5, 0.3, 2.0], requires_grad=True)
>>> y = tb.quantizers.ste_sign(x)
>>> y.sum().backward()
>>> y.data, x.grad.data
(array([-1.,  1.,  1.], dtype=float32), array([1., 1., 0.], dtype=float32))
"""

from tinybnn import datasets, functional, nn, optim, quantizers, training
from tinybnn.tensor import Function, Tensor, grad, manual_seed, no_grad

__version__ = "0.1.0"

__all__ = [
    "Function", "Tensor", "__version__", "datasets", "functional", "grad", "manual_seed", "nn",
    "no_grad", "optim", "quantizers", "training",
]  # fmt: skip
