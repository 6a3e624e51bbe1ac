"""Chapter 01: arrays that remember how they were computed, and their gradients.

Write the missing bodies, then check them: tinybnn course check 01
Each one is checked separately, with correct versions of the others.
"""

import numpy as np


class Tensor:
    """An array, and how it was computed. This class is complete.

    Parameters
    ----------
    data : array of floats, or number
        float32 and float64 stay as they are, integers become float32.
    parents : tuple of Tensor
        What it was computed from; empty for an input or a weight.
    rule : callable
        ``rule(grad)`` takes the gradient with respect to this tensor, an array of its shape, and
        returns a tuple of arrays: the gradients with respect to the parents, each with the
        shape of its parent. A rule never writes into `grad`.

    Attributes
    ----------
    grad : array or None
        The gradient that `backward` computed, with the shape of `data`.
    """

    __array_ufunc__ = None  # so that array * tensor asks the Tensor, not NumPy

    def __init__(self, data, parents=(), rule=None):
        data = np.asarray(data)
        self.data = data if data.dtype.kind == "f" else data.astype(np.float32)
        self.parents, self.rule, self.grad = tuple(parents), rule, None

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    T = property(lambda self: self.transpose())

    def __repr__(self):
        return f"Tensor({self.data})"

    def backward(self):
        backward(self)

    def __add__(self, other):
        return add(self, tensor(other, self))

    def __radd__(self, other):
        return add(tensor(other, self), self)

    def __sub__(self, other):
        return subtract(self, tensor(other, self))

    def __rsub__(self, other):
        return subtract(tensor(other, self), self)

    def __mul__(self, other):
        return multiply(self, tensor(other, self))

    def __rmul__(self, other):
        return multiply(tensor(other, self), self)

    def __truediv__(self, other):
        return divide(self, tensor(other, self))

    def __rtruediv__(self, other):
        return divide(tensor(other, self), self)

    def __matmul__(self, other):
        return matmul(self, tensor(other, self))

    def __rmatmul__(self, other):
        return matmul(tensor(other, self), self)

    def __neg__(self):
        return Tensor(-self.data, (self,), lambda grad: (-grad,))

    def __pow__(self, exponent):
        """The exponent is a number."""
        x = self.data
        return Tensor(x**exponent, (self,), lambda grad: (grad * (exponent * x ** (exponent - 1)),))

    def sum(self, axis=None, keepdims=False):
        def rule(grad):
            if axis is not None and not keepdims:
                grad = np.expand_dims(grad, axis)
            return (np.broadcast_to(grad, self.shape),)

        return Tensor(self.data.sum(axis, keepdims=keepdims), (self,), rule)

    def mean(self, axis=None, keepdims=False):
        total = self.sum(axis, keepdims)
        return total / (self.data.size / max(total.data.size, 1))

    def reshape(self, *shape):
        return Tensor(self.data.reshape(*shape), (self,), lambda grad: (grad.reshape(self.shape),))

    def transpose(self, *axes):
        """Axes in a new order, or reversed if none are named."""
        axes = axes or tuple(reversed(range(self.data.ndim)))
        back = tuple(np.argsort(axes))
        return Tensor(self.data.transpose(axes), (self,), lambda grad: (grad.transpose(back),))

    def relu(self):
        return Tensor(np.maximum(self.data, 0), (self,), lambda grad: (grad * (self.data > 0),))

    def exp(self):
        y = np.exp(self.data)
        return Tensor(y, (self,), lambda grad: (grad * y,))

    def log(self):
        return Tensor(np.log(self.data), (self,), lambda grad: (grad / self.data,))

    def sqrt(self):
        y = np.sqrt(self.data)
        return Tensor(y, (self,), lambda grad: (grad / (2 * y),))

    def tanh(self):
        y = np.tanh(self.data)
        return Tensor(y, (self,), lambda grad: (grad * (1 - y * y),))


def tensor(value, like):
    """`value` as a Tensor; a number or an array takes the dtype of the Tensor `like`."""
    return value if isinstance(value, Tensor) else Tensor(np.asarray(value, like.dtype))


def topological_order(result):
    """01.1: all tensors that `result` was computed from, and `result` itself.

    Parameters
    ----------
    result : Tensor

    Returns
    -------
    list of Tensor
        Each one once, after all of its parents; so `result` is the last. A chain of 10,000
        operations must work: Python stops a function that calls itself 1,000 times deep, so use a
        list as a stack instead.
    """
    raise NotImplementedError


def backward(result):
    """01.2: the gradient of `result` with respect to everything it was computed from.

    Sets ``.grad`` of every tensor in ``topological_order(result)``, replacing the result of any
    earlier call. The gradient of `result` itself is 1 (an array of ones, if it holds several
    numbers). Where several paths lead to a tensor, their gradients add up.

    Parameters
    ----------
    result : Tensor
    """
    raise NotImplementedError


def unbroadcast(grad, shape):
    """01.3: the gradient of an operand that was broadcast, in the operand's own shape.

    NumPy repeats an operand of shape (4,), (1, 4) or (3, 1) to fit (3, 4). Each element is then
    used several times, and its gradient is the sum over all its uses.

    Parameters
    ----------
    grad : array
        Gradient with respect to the repeated operand.
    shape : tuple of int
        Shape of the operand before it was repeated.

    Returns
    -------
    array of that shape, with the dtype of `grad`
    """
    raise NotImplementedError


def add(a, b):
    """a + b, Tensors of shapes that broadcast. This function is complete."""

    def rule(grad):
        return unbroadcast(grad, a.shape), unbroadcast(grad, b.shape)

    return Tensor(a.data + b.data, (a, b), rule)


def subtract(a, b):
    """a - b. This function is complete."""

    def rule(grad):
        return unbroadcast(grad, a.shape), unbroadcast(-grad, b.shape)

    return Tensor(a.data - b.data, (a, b), rule)


def multiply(a, b):
    """a * b, element by element. This function is complete: a model for `matmul`."""

    def rule(grad):
        return unbroadcast(grad * b.data, a.shape), unbroadcast(grad * a.data, b.shape)

    return Tensor(a.data * b.data, (a, b), rule)


def divide(a, b):
    """a / b. This function is complete."""
    quotient = a.data / b.data

    def rule(grad):
        share = grad / b.data
        return unbroadcast(share, a.shape), unbroadcast(-share * quotient, b.shape)

    return Tensor(quotient, (a, b), rule)


def matmul(a, b):
    """01.4: the matrix product a @ b, with its rule.

    Parameters
    ----------
    a : Tensor (N, K)
    b : Tensor (K, M)

    Returns
    -------
    Tensor (N, M)
        Its parents are a and b; its rule returns arrays of shapes (N, K) and (K, M).
    """
    raise NotImplementedError


def gradcheck(function, *arrays):
    """01.5: compare the gradients of ``function(...).sum()`` with central differences.

    Parameters
    ----------
    function : callable
        Takes a Tensor for each array and returns a Tensor of any shape.
    *arrays : float64 arrays
        Where the gradients are compared. They are not changed.

    Returns
    -------
    float
        The largest |gradient - (f(x + h) - f(x - h)) / 2h| over all elements x of all arrays, with
        h = 1e-5, where f is the sum of the elements of the result of `function`.
    """
    raise NotImplementedError
