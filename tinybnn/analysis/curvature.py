"""Curvature of the loss: products with its Hessian and Gauss-Newton matrix.

`spectra` computes eigenvalues, trace and spectral density from such products.

A network with ``sign`` in it has no useful Hessian: its loss is piecewise constant in the latent
weights. Neither do straight-through gradients define one: in general they are not the gradient of
any function, and their Jacobian is not symmetric. `signs` selects one of two functions that have a
Hessian:

``"straight-through"``
    At the parameters θ₀, each quantizer q with surrogate s is replaced by
    ``s(x) + [q(x₀) - s(x₀)]``, where x₀ is its input at θ₀ and the bracket is a constant. At θ₀
    this function has the value of the binary network, and its gradient is the straight-through
    gradient. Differentiating the backward pass, here as in any framework, gives its Hessian at θ₀,
    which published spectra of binary networks show. Another θ₀ gives another function: the Hessian
    is not the Jacobian of the estimator's gradient.
``"surrogate"``
    Each quantizer is replaced by its surrogate (`quantizers.surrogates`): one smooth network for
    all parameters, which computes other values than the binary one.

Both Hessians are symmetric, and without quantizers both are the Hessian of the network itself.
Slopes at kinks (a ReLU at 0, an estimator at its clip, a maximum of equal values, common among sums
of signs) count as constant, as do scales that an estimator treats as constant in its gradient (the
mean |w| of a filter).

Batch norm: by default the model is in eval mode, running statistics are constants, and the loss is
a mean over samples. With ``training=True`` each batch is normalised by its own statistics, which
are differentiated too; the function then depends on how samples are split into batches. Running
statistics are restored.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tinybnn import functional as F
from tinybnn import nn, quantizers
from tinybnn.autograd import Tensor, grad
from tinybnn.typing import Array, FloatArray

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Loss: TypeAlias = Callable[[Tensor, Any], Tensor]  # (output, target) -> a mean over the batch
Batches: TypeAlias = Iterable[tuple[Array, Array]]  # (x, target), more than once
Parameters: TypeAlias = nn.Module | Iterable[Tensor] | None

SIGNS = ("straight-through", "surrogate")


# --------------------------------------------------------------------------------------- operators


class CurvatureOperator:
    """A symmetric matrix, given by its products with vectors.

    Base class of `HessianOperator` and `GaussNewtonOperator`, which define the product. SciPy
    accepts an instance in place of a matrix: ``scipy.sparse.linalg.eigsh(operator, k=10)``;
    `linear_operator` converts to its own type, which has sums and products of operators.

    Parameters
    ----------
    model : Module
        Unchanged afterwards, including its mode, gradients and running statistics.
    batches : sequence of (x, target)
        Arrays; a list, or a `DataLoader` that neither shuffles nor augments. The operator is the
        mean over all samples. Memory is that of one batch and of the `graphs` held.
    loss : callable
        ``loss(output, target)``, the mean over the samples of a batch.
    parameters : Module or sequence of Tensors, optional
        The variables, such as those of one layer, ``model[3]``; the others are constants. Default:
        all parameters that require gradients.
    signs : 'straight-through' or 'surrogate'
        The function to differentiate; see the module's docstring.
    training : bool
        Normalise by the statistics of the batch.
    graphs : int
        Number of batches whose gradient graphs stay in memory inside `held`.

    Attributes
    ----------
    shape : (n, n)
    dtype : float32 or float64, as the parameters
    parameters : list of Tensors
        Vectors hold their elements in this order, each in C order.

    Raises
    ------
    ValueError
        If there is no batch or no parameter, a Tensor is not a parameter of the model, `batches`
        can be read only once, or dropout would change the function with each product.
    """

    model: nn.Module
    batches: Batches
    loss: Loss
    signs: str
    training: bool
    parameters: list[Tensor]
    size: int
    shape: tuple[int, int]
    graphs: int

    def __init__(
        self, model: nn.Module, batches: Batches, loss: Loss = F.cross_entropy,
        parameters: Parameters = None, *, signs: str = "straight-through", training: bool = False,
        graphs: int = 1,
    ) -> None:  # fmt: skip
        name = type(self).__name__
        if graphs < 0:
            raise ValueError(f"{name}: graphs must not be negative, got {graphs}")
        if signs not in SIGNS:
            raise ValueError(f"{name}: signs must be one of {SIGNS}, got {signs!r}")
        if iter(batches) is batches:
            raise ValueError(
                f"{name}: batches can be read only once, and each product reads all of them; pass "
                "a list, list(batches)"
            )
        if training:
            for path, module in model.named_modules():
                if isinstance(module, nn.Dropout) and module.p and not module.frozen:
                    raise ValueError(
                        f"{name}: {path or 'model'} is a dropout with p={module.p}, which changes "
                        "the function with each product; use training=False, or set its p to 0"
                    )
        self.model, self.batches, self.loss = model, batches, loss
        self.signs, self.training = signs, bool(training)
        self.parameters = parameters_of(name, model, parameters)
        self.size = sum(p.numel() for p in self.parameters)
        self.shape = self.size, self.size
        self.graphs, self._is_held, self._kept = graphs, False, {}

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64, the common dtype of the parameters."""
        return np.result_type(*[p.dtype for p in self.parameters])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size}×{self.size}, signs={self.signs!r})"

    def matvec(self, vector: FloatArray) -> FloatArray:
        """Multiply by a vector, (n,) or (n, 1); the product has its shape and `dtype`."""
        vector = np.asarray(vector)
        if vector.shape not in ((self.size,), (self.size, 1)):
            raise ValueError(
                f"{type(self).__name__}.matvec: expects a vector of {self.size} numbers, got the "
                f"shape {vector.shape}"
            )
        parts = self.split(vector.reshape(-1))
        product = self._mean(functools.partial(self._product, parts))
        return product.reshape(vector.shape)

    rmatvec = matvec  # it is symmetric

    def matmat(self, matrix: FloatArray) -> FloatArray:
        """Multiply by the columns of a matrix, (n, k) -> (n, k)."""
        return np.stack([self.matvec(column) for column in np.asarray(matrix).T], axis=1)

    rmatmat = matmat

    def __matmul__(self, other: FloatArray) -> FloatArray:
        return self.matvec(other) if np.ndim(other) == 1 else self.matmat(other)

    def to_dense(self) -> FloatArray:
        """Compute the matrix, (n, n), by n products; for small networks."""
        return self.matmat(np.eye(self.size, dtype=self.dtype))

    def linear_operator(self) -> LinearOperator:
        """Convert to a `scipy.sparse.linalg.LinearOperator`.

        Raises
        ------
        ImportError
            Without SciPy, which ``pip install 'tinybnn[analysis]'`` installs.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise ImportError(
                f"{type(self).__name__}.linear_operator needs SciPy: pip install "
                "'tinybnn[analysis]'; eigenvalues, trace and density of this module do without"
            ) from error
        return LinearOperator(
            self.shape, self.matvec, rmatvec=self.matvec, matmat=self.matmat, dtype=self.dtype
        )

    @contextlib.contextmanager
    def held(self) -> Iterator[CurvatureOperator]:
        """Context manager that caches graphs; model and batches must not change inside.

        The gradient of the first `graphs` batches is computed once, and each product differentiates
        the same graph, which takes half to two thirds of the time. The functions of `spectra` use
        it automatically.
        """
        before, self._is_held = self._is_held, True
        try:
            yield self
        finally:
            self._is_held = before
            if not before:
                self._kept = {}

    def _recorded(self, i, x, target):
        """Return the graph that products with the matrix of batch i use, and whether it is kept."""
        keep = self._is_held and i < self.graphs
        if not keep:
            return self._record(x, target), False
        if i not in self._kept:
            self._kept[i] = self._record(x, target)
        return self._kept[i], True

    def gradient(self) -> FloatArray:
        """Compute the mean gradient of the loss, (n,); with ``"straight-through"`` training's."""

        def gradients(i, x, target):
            value = self.loss(self.model(Tensor(x)), target)
            return grad(value, self.parameters, allow_unused=True)

        return self._mean(gradients)

    def split(self, vector: FloatArray) -> list[FloatArray]:
        """Split a vector (n,) into one array per parameter, of its shape and dtype."""
        ends = np.cumsum([p.numel() for p in self.parameters])[:-1]
        pieces = zip(np.split(vector, ends), self.parameters, strict=True)
        return [piece.reshape(p.shape).astype(p.dtype, copy=False) for piece, p in pieces]

    def _record(self, x, target):
        """Compute the part for one batch that does not depend on the vector."""
        raise NotImplementedError

    def _product(self, parts, i, x, target):
        """Multiply with the matrix of batch i: one product per parameter, None for 0."""
        raise NotImplementedError

    def _mean(self, compute):
        """Average ``compute(i, x, target)`` of each batch i over all samples, as a vector."""
        mean, count = None, 0
        with self._configured():
            for i, (x, target) in enumerate(self.batches):
                vector, count = self._joined(compute(i, x, target)), count + len(x)
                if mean is None:
                    mean = vector
                else:
                    mean = mean + (vector - mean.astype(np.float64)) * (len(x) / count)
        if not count:
            raise ValueError(f"{type(self).__name__}: batches has no sample")
        return mean.astype(self.dtype, copy=False)

    def _joined(self, pieces):
        """Join one Tensor per parameter, None for 0, to a vector."""
        pairs = zip(pieces, self.parameters, strict=True)
        arrays = [np.zeros(p.shape, p.dtype) if piece is None else piece.data for piece, p in pairs]
        return np.concatenate([array.reshape(-1) for array in arrays])

    @contextlib.contextmanager
    def _configured(self):
        """Context manager: the operator's mode and signs, its parameters the only variables."""
        everything = self.model.parameters()
        needed = [p.requires_grad for p in everything]
        buffers = [(array, array.copy()) for _, array in self.model.named_buffers()]
        surrogates = self.signs == "surrogate"
        with self.model.in_mode(training=self.training):
            try:
                for p in everything:
                    p.requires_grad = False
                for p in self.parameters:
                    p.requires_grad = True
                with quantizers.surrogates() if surrogates else contextlib.nullcontext():
                    yield
            finally:
                for p, before in zip(everything, needed, strict=True):
                    p.requires_grad = before
                for array, before in buffers:
                    array[...] = before


class HessianOperator(CurvatureOperator):
    """The Hessian of the mean loss in the parameters; see `CurvatureOperator` for its arguments.

    A product differentiates the gradient once more (Pearlmutter 1994): ∇(∇L · v).

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 2, bias=False))
    >>> x, y = np.eye(3, dtype=np.float32), np.zeros((3, 2), np.float32)
    >>> H = HessianOperator(model, [(x, y)], F.mse_loss)  # x is the identity: 1/3 on the diagonal
    >>> H.to_dense().diagonal().round(3)
    array([0.333, 0.333, 0.333, 0.333, 0.333, 0.333], dtype=float32)
    """

    def _record(self, x, target):
        value = self.loss(self.model(Tensor(x)), target)
        return grad(value, self.parameters, create_graph=True, allow_unused=True)

    def _product(self, parts, i, x, target):
        slopes, kept = self._recorded(i, x, target)
        return _derivatives(slopes, self.parameters, parts, kept)


class GaussNewtonOperator(CurvatureOperator):
    """The generalised Gauss-Newton matrix JᵀMJ; see `CurvatureOperator` for its arguments.

    J is the Jacobian of the outputs in the parameters, M the Hessian of the loss in the outputs: it
    is the Hessian for outputs linear in the parameters (Schraudolph 2002). It has no negative
    eigenvalue if the loss is convex in the outputs. With cross entropy it is the Fisher information
    matrix.
    """

    def _record(self, x, target):
        output = self.model(Tensor(x))
        # Jᵀu is linear in u, so its derivative along the parameters' directions is J v.
        u = Tensor(np.zeros_like(output.data), requires_grad=True)
        back = grad(output, self.parameters, u, create_graph=True, allow_unused=True)
        z = Tensor(output.data, requires_grad=True)
        slope = grad(self.loss(z, target), z, create_graph=True)
        return output, u, back, z, slope

    def _product(self, parts, i, x, target):
        (output, u, back, z, slope), kept = self._recorded(i, x, target)
        [along] = _derivatives(back, [u], parts, retain_graph=True)
        [push] = _derivatives([slope], [z], [along], kept)
        if push is None:
            return [None] * len(parts)
        return grad(output, self.parameters, push, retain_graph=kept, allow_unused=True)


def _derivatives(outputs, inputs, vectors, retain_graph=False):
    """Sum vectorᵀ ∂output/∂input over the outputs; None where no output depends on an input."""
    pairs = zip(outputs, vectors, strict=True)
    pairs = [(y, v) for y, v in pairs if y is not None and y.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    outputs, vectors = zip(*pairs, strict=True)
    return grad(outputs, inputs, vectors, retain_graph=retain_graph, allow_unused=True)


def parameters_of(name: str, model: nn.Module, parameters: Parameters) -> list[Tensor]:
    """List the variables, Tensors of the model; error messages begin with `name`."""
    own = model.parameters()
    if parameters is None:
        parameters = [p for p in own if p.requires_grad]
    elif isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    variables = list(parameters)
    if not variables:
        raise ValueError(f"{name}: parameters is empty; the model has {len(own)}")
    ids = {id(p) for p in own}
    for i, p in enumerate(variables):
        if id(p) not in ids:
            raise ValueError(
                f"{name}: parameters[{i}] is not a parameter of the model; pass some of "
                "model.parameters(), or one of its modules"
            )
    if len({id(p) for p in variables}) != len(variables):
        raise ValueError(f"{name}: parameters contains a parameter twice")
    return variables
