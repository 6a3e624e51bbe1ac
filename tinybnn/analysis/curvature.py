"""Curvature of the loss: products with its Hessian, eigenvalues, trace and spectral density.

A network with ``sign`` in it has no Hessian: its loss is piecewise constant in the latent weights.
Nor has its training one: the gradients of straight-through estimators are in general the gradient
of no function, and their Jacobian is not symmetric. Two functions have a Hessian, and `signs` says
whose is meant:

``"straight-through"``
    At the parameters θ₀, each quantizer q with surrogate s is replaced by
    ``s(x) + [q(x₀) - s(x₀)]``, where x₀ is its input at θ₀ and the bracket is a constant. At θ₀
    this function has the value of the binary network and the straight-through gradient as its
    true gradient. Differentiating the backward pass gives its Hessian at θ₀, here as in any
    framework: this is what published spectra of binary networks show. Another θ₀ means another
    function: the Hessian is not the Jacobian of the estimator's gradient.
``"surrogate"``
    Each quantizer is replaced by its surrogate (`quantizers.surrogates`): one smooth network for
    all parameters, which computes other values than the binary one.

Both Hessians are symmetric, and both agree with those of the network itself where it has no
quantizer. Slopes at kinks (a ReLU at 0, an estimator at its clip, a maximum of equal values, which
sums of signs often are) count as constant, and scales which an estimator takes as constant in its
gradient (the mean |w| of a filter) are constants here.

Batch norm: by default the model is in eval mode, running statistics are constants, and the loss is
a mean over samples. With ``training=True`` each batch is normalised by its own statistics, which
are differentiated too; the function then depends on how samples are cut into batches. Running
statistics are left as they were.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from typing import NamedTuple

import numpy as np

from tinybnn import functional as F
from tinybnn import nn, quantizers, storage
from tinybnn.autograd import Tensor, grad

SIGNS = ("straight-through", "surrogate")


# --------------------------------------------------------------------------------------- operators


class CurvatureOperator:
    """A symmetric matrix of which only products with vectors are computed.

    Base class of `HessianOperator` and `GaussNewtonOperator`, which say what a product is. SciPy
    takes an instance where it takes a matrix: ``scipy.sparse.linalg.eigsh(operator, k=10)``;
    `linear_operator` gives its own type, with sums and products of operators.

    Parameters
    ----------
    model : Module
        Left as it was, its mode, gradients and running statistics included.
    batches : sequence of (x, target)
        Arrays; a list, or a `DataLoader` that neither shuffles nor augments. The operator is the
        mean over all samples. Memory is that of one batch, whatever their number, and of `graphs`
        more.
    loss : callable
        ``loss(output, target)``, the mean over the samples of a batch.
    parameters : Module or sequence of Tensors, optional
        The variables: of one layer, say ``model[3]``. Default: all parameters that take gradients.
        The others are constants.
    signs : 'straight-through' or 'surrogate'
        Which function is differentiated; see the text of this module.
    training : bool
        Normalise by the statistics of the batch.
    graphs : int
        How many batches' gradients stay in memory while the operator is held (`held`).

    Attributes
    ----------
    shape : (n, n)
    dtype : float32 or float64, as the parameters
    parameters : list of Tensors
        Vectors hold their elements in this order, each in C order.

    Raises
    ------
    ValueError
        If there is no batch or no parameter, a Tensor is not the model's, `batches` can be read
        only once, or dropout would make each product another function.
    """

    def __init__(
        self, model, batches, loss=F.cross_entropy, parameters=None, *,
        signs="straight-through", training=False, graphs=1,
    ):  # fmt: skip
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
                        f"{name}: {path or 'model'} is a dropout with p={module.p}, which makes "
                        "each product another function; use training=False, or set its p to 0"
                    )
        self.model, self.batches, self.loss = model, batches, loss
        self.signs, self.training = signs, bool(training)
        self.parameters = parameters_of(name, model, parameters)
        self.size = sum(p.numel() for p in self.parameters)
        self.shape = self.size, self.size
        self.graphs, self._is_held, self._kept = graphs, False, {}

    @property
    def dtype(self):
        return np.result_type(*[p.dtype for p in self.parameters])

    def __repr__(self):
        return f"{type(self).__name__}({self.size}×{self.size}, signs={self.signs!r})"

    def matvec(self, vector):
        """The product with a vector, (n,) or (n, 1), of the same shape and of `dtype`."""
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

    def matmat(self, matrix):
        """The products with the columns of a matrix, (n, k) -> (n, k)."""
        return np.stack([self.matvec(column) for column in np.asarray(matrix).T], axis=1)

    rmatmat = matmat

    def __matmul__(self, other):
        return self.matvec(other) if np.ndim(other) == 1 else self.matmat(other)

    def to_dense(self):
        """The matrix, (n, n): n products. For small networks."""
        return self.matmat(np.eye(self.size, dtype=self.dtype))

    def linear_operator(self):
        """The same as a `scipy.sparse.linalg.LinearOperator`.

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
    def held(self):
        """Context manager: the model and the batches stay as they are inside.

        The gradient of the first `graphs` batches is then computed once, and each product
        differentiates the same graph: half to two thirds of the time. The functions of this module
        do so by themselves.
        """
        before, self._is_held = self._is_held, True
        try:
            yield self
        finally:
            self._is_held = before
            if not before:
                self._kept = {}

    def _recorded(self, i, x, target):
        """What products with the matrix of batch i differentiate, and whether it is kept."""
        keep = self._is_held and i < self.graphs
        if not keep:
            return self._record(x, target), False
        if i not in self._kept:
            self._kept[i] = self._record(x, target)
        return self._kept[i], True

    def gradient(self):
        """The mean gradient of the loss, (n,): for ``"straight-through"`` that of training."""

        def gradients(i, x, target):
            value = self.loss(self.model(Tensor(x)), target)
            return grad(value, self.parameters, allow_unused=True)

        return self._mean(gradients)

    def split(self, vector):
        """Cut a vector (n,) into one array for each parameter, of its shape and dtype."""
        ends = np.cumsum([p.numel() for p in self.parameters])[:-1]
        pieces = zip(np.split(vector, ends), self.parameters, strict=True)
        return [piece.reshape(p.shape).astype(p.dtype, copy=False) for piece, p in pieces]

    def _record(self, x, target):
        """Compute what does not depend on the vector, for one batch."""
        raise NotImplementedError

    def _product(self, parts, i, x, target):
        """Products with the matrix of batch i, one (or None, for 0) for each parameter."""
        raise NotImplementedError

    def _mean(self, compute):
        """The mean of ``compute(i, x, target)`` over all samples, as a vector; i is the batch."""
        mean, count = None, 0
        with self._as_asked():
            for i, (x, target) in enumerate(self.batches):
                found, count = self._joined(compute(i, x, target)), count + len(x)
                if mean is None:
                    mean = found
                else:
                    mean = mean + (found - mean.astype(np.float64)) * (len(x) / count)
        if not count:
            raise ValueError(f"{type(self).__name__}: batches has no sample")
        return mean.astype(self.dtype, copy=False)

    def _joined(self, pieces):
        """The vector of one Tensor (or None, for 0) for each parameter."""
        pairs = zip(pieces, self.parameters, strict=True)
        arrays = [np.zeros(p.shape, p.dtype) if piece is None else piece.data for piece, p in pairs]
        return np.concatenate([array.reshape(-1) for array in arrays])

    @contextlib.contextmanager
    def _as_asked(self):
        """The model in its mode, with its signs, and the parameters as the only variables."""
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

    J is the Jacobian of the outputs in the parameters, M the Hessian of the loss in the outputs:
    what is left of the Hessian when the outputs are taken as linear (Schraudolph 2002). It has no
    negative eigenvalue where the loss is convex in the outputs. With cross entropy it is the Fisher
    information matrix.
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
    """vectorᵀ ∂output/∂input, added up over the outputs; None where nothing depends on an input."""
    pairs = zip(outputs, vectors, strict=True)
    pairs = [(y, v) for y, v in pairs if y is not None and y.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    outputs, vectors = zip(*pairs, strict=True)
    return grad(outputs, inputs, vectors, retain_graph=retain_graph, allow_unused=True)


def parameters_of(name, model, parameters):
    """The variables as a list of the model's Tensors."""
    own = model.parameters()
    if parameters is None:
        parameters = [p for p in own if p.requires_grad]
    elif isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    found = list(parameters)
    if not found:
        raise ValueError(f"{name}: parameters is empty; the model has {len(own)}")
    ids = {id(p) for p in own}
    for i, p in enumerate(found):
        if id(p) not in ids:
            raise ValueError(
                f"{name}: parameters[{i}] is not a parameter of the model; pass some of "
                "model.parameters(), or one of its modules"
            )
    if len({id(p) for p in found}) != len(found):
        raise ValueError(f"{name}: parameters holds a parameter twice")
    return found


# ----------------------------------------------------------------------------------------- Lanczos


class Lanczos:
    """Lanczos iteration with full reorthogonalisation: A Q = Q T + β q eᵀ, T tridiagonal.

    Each new vector is made orthogonal to all before it, twice (Parlett 1998, section 6.9), so no
    eigenvalue shows up more than it should. Where the Krylov space ends, a new random vector
    begins the next one.

    Parameters
    ----------
    operator : with ``shape``, ``dtype`` and ``@``
        Symmetric: a `CurvatureOperator`, an array, or what SciPy calls a LinearOperator.
    start : (n,) array
        The first vector, of any length but 0.
    rng : numpy.random.Generator
        Of the vectors that begin anew.

    Attributes
    ----------
    alphas, betas : list of float
        The diagonal of T, and β behind each of its rows; the last one is that of the residual.
    """

    def __init__(self, operator, start, rng):
        self.operator, self.rng = operator, rng
        self.alphas, self.betas = [], []
        self._basis = np.empty((0, len(start)), operator.dtype)  # a row a vector
        self._next = start / np.linalg.norm(start)

    def __len__(self):
        return len(self.alphas)

    @property
    def basis(self):
        """Q, one vector a row: (steps, n), of the operator's dtype."""
        return self._basis[: len(self)]

    def step(self):
        """One product with the operator, one row more of T."""
        m = len(self)
        if m == self._next.size:
            raise ValueError(f"Lanczos: {m} steps span the whole space; there is none left")
        if m == len(self._basis):
            more = np.empty((max(8, m // 2), self._next.size), self._basis.dtype)
            self._basis = np.concatenate([self._basis, more])
        self._basis[m] = self._next
        product = np.asarray(self.operator @ self._basis[m], np.float64)
        self.alphas = [*self.alphas, float(product @ self._basis[m])]  # a copy keeps its own list
        rest, length = self._orthogonal(product)
        scale = max(np.linalg.norm(product), *map(abs, self.alphas), *self.betas, 0.0)
        if length <= 100 * np.finfo(self._basis.dtype).eps * scale or m + 1 == rest.size:
            self.betas = [*self.betas, 0.0]
            if m + 1 < rest.size:
                rest, length = self._orthogonal(self.rng.standard_normal(rest.size))
        else:
            self.betas = [*self.betas, float(length)]
        self._next = rest / (length or 1.0)

    def _orthogonal(self, vector):
        for _ in range(2):
            vector = vector - (self.basis @ vector.astype(self._basis.dtype)) @ self.basis
        return vector, np.linalg.norm(vector)

    def eigen(self):
        """Eigenvalues (m,) of T, ascending, and its eigenvectors as columns (m, m)."""
        matrix = np.diag(self.alphas)
        above = np.arange(len(self) - 1)
        matrix[above, above + 1] = matrix[above + 1, above] = self.betas[:-1]
        return np.linalg.eigh(matrix)

    # A file of the iteration: what it needs to go on with the same bits.

    def save(self, path, metadata):
        """Write the iteration to a file."""
        storage.save(
            path,
            {
                "basis": self.basis, "next": self._next,
                "alphas": np.array(self.alphas), "betas": np.array(self.betas),
            },
            kind="lanczos", version=1,
            metadata={**metadata, "generator": self.rng.bit_generator.state},
        )  # fmt: skip

    def restore(self, path, metadata):
        """Go on where the file ends; its last product is repeated, to see that it fits.

        Raises
        ------
        ValueError
            If the file is of another operator or start.
        """
        arrays, found = storage.load(path, kind="lanczos", version=1)
        generator = found.pop("generator")
        _expect_computation(path, found, metadata)
        basis = arrays["basis"].astype(self.operator.dtype)
        if not len(basis):
            return
        alpha = float(np.asarray(self.operator @ basis[-1], np.float64) @ basis[-1])
        _expect_same(path, float(arrays["alphas"][-1]), alpha)
        self._basis, self._next = basis, arrays["next"]
        self.alphas, self.betas = arrays["alphas"].tolist(), arrays["betas"].tolist()
        self.rng.bit_generator.state = generator


def _held(operator):
    """The operator's `held`, if it has one."""
    return getattr(operator, "held", contextlib.nullcontext)()


def _expect_computation(path, found, expected):
    """The settings in a checkpoint must be those of the call."""
    if found != expected:
        raise ValueError(
            f"{os.fspath(path)}: is of another computation ({found}, here {expected}); choose "
            "another checkpoint, or delete it"
        )


def _expect_same(path, stored, computed):
    """A product in a checkpoint, vᵀAv, must be that of the operator."""
    if not math.isclose(stored, computed, rel_tol=1e-4, abs_tol=1e-12):
        raise ValueError(
            f"{os.fspath(path)}: is of another operator (a product gives {stored:.6g} there, "
            f"{computed:.6g} here): other parameters, batches or settings; choose another "
            "checkpoint, or delete it"
        )


class Eigenpairs(NamedTuple):
    """Eigenvalues with their vectors; see `top_eigenvalues`.

    Attributes
    ----------
    values : (k,) float64
    vectors : (n, k) of the operator's dtype
        Columns of length 1.
    residuals : (k,) float64
        Lengths of A v - λ v: an eigenvalue of A lies within this distance of each value.
    nodes, weights : (steps,) float64
        All eigenvalues of the iteration's T, ascending, and the squares of the first components of
        its eigenvectors. Since the first vector is random, they are also one row of a
        `SpectralDensity`: `nodes` has both ends of the spectrum.
    """

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray

    @property
    def steps(self):
        """Products with the operator."""
        return len(self.nodes)


_ORDERS = {"LA": lambda values: -values, "SA": lambda values: values, "LM": lambda v: -np.abs(v)}


def top_eigenvalues(
    operator, k=10, *, which="LA", tol=1e-3, max_steps=100, seed=0, checkpoint=None, progress=False
):
    """The first eigenvalues of a symmetric operator, by Lanczos with full reorthogonalisation.

    Of an eigenvalue that occurs several times, one copy is found, as a rule.

    Parameters
    ----------
    operator : with ``shape``, ``dtype`` and ``@``
    k : int
    which : 'LA', 'SA' or 'LM'
        The largest, the smallest, or those of largest magnitude, as SciPy's eigsh names them.
    tol : float
        Stop when all k residuals are at most tol times the largest |value| that was found.
    max_steps : int
        Stop in any case; the residuals say how far it came. Memory is that of as many vectors.
    seed : int
        Of the first vector.
    checkpoint : str or PathLike, optional
        A file that holds the iteration after each step; a second call with the same arguments goes
        on from it, and gives the same bits as one that was never interrupted.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    Eigenpairs
        In the order of `which`.

    Raises
    ------
    ValueError
        If k or `max_steps` do not fit the operator, or the checkpoint is of another one.
    """
    from tqdm import tqdm

    n = operator.shape[0]
    if not 1 <= k <= n:
        raise ValueError(f"top_eigenvalues: k must be in 1..{n}, the operator's size; got {k!r}")
    if which not in _ORDERS:
        raise ValueError(f"top_eigenvalues: which must be one of {[*_ORDERS]}, got {which!r}")
    if max_steps < k:
        raise ValueError(f"top_eigenvalues: max_steps must be at least k={k}, got {max_steps}")
    rng = np.random.default_rng(seed)
    found = Lanczos(operator, rng.standard_normal(n), rng)
    metadata = {"size": n, "seed": seed, "dtype": np.dtype(operator.dtype).str}
    if checkpoint is not None and os.path.exists(checkpoint):
        found.restore(checkpoint, metadata)
    limit = min(max_steps, n)
    bar = tqdm(total=limit, initial=len(found), unit="product", disable=not progress, leave=False)
    with bar, _held(operator):
        while True:
            if len(found) >= k:
                values, coefficients = found.eigen()
                order = np.argsort(_ORDERS[which](values), kind="stable")[:k]
                residuals = found.betas[-1] * np.abs(coefficients[-1, order])
                largest = np.abs(values).max()
                bar.set_postfix_str(f"λ1 {values[order[0]]:.4g}, residual {residuals.max():.1e}")
                if len(found) >= limit or (residuals <= tol * largest).all():
                    break
            found.step()
            bar.update()
            if checkpoint is not None:
                found.save(checkpoint, metadata)
    vectors = found.basis.T @ coefficients[:, order].astype(operator.dtype)
    return Eigenpairs(values[order], vectors, residuals, values, coefficients[0] ** 2)


# ------------------------------------------------------------------------------- trace and density


class TraceEstimate(NamedTuple):
    """An estimated trace; see `estimate_trace`.

    Attributes
    ----------
    value : float
    error : float
        Standard error of its random part; 0 where the trace is exact, NaN for one sample.
    """

    value: float
    error: float


def estimate_trace(operator, products=60, *, seed=0, progress=False):
    """The trace of a symmetric operator by Hutch++ (Meyer et al. 2021, algorithm 1).

    A third of the products finds a subspace Q of large eigenvalues, in which the trace is computed;
    what is left of it, outside of Q, is estimated with random signs (Hutchinson 1990).

    Parameters
    ----------
    operator : with ``shape``, ``dtype`` and ``@``
    products : int
        At least 3. With three times the operator's size, or more, the trace is exact.
    seed : int
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    TraceEstimate
    """
    if products < 3:
        raise ValueError(f"estimate_trace: products must be at least 3, got {products}")
    from tqdm import tqdm

    n, rng = operator.shape[0], np.random.default_rng(seed)
    rank = min(products // 3, n)
    samples = products - 2 * rank if rank < n else 0
    bar = tqdm(total=2 * rank + samples, unit="product", disable=not progress, leave=False)
    with bar, _held(operator):

        def apply(vector):
            product = operator @ vector.astype(operator.dtype)
            bar.update()
            return np.asarray(product, np.float64)

        signs = rng.integers(0, 2, (n, rank)) * 2.0 - 1.0
        images = [apply(column) for column in signs.T] if rank < n else np.eye(n)
        q, _ = np.linalg.qr(np.stack(images, axis=1))  # (n, rank)
        exact = sum(float(column @ apply(column)) for column in q.T)
        found = []
        for _ in range(samples):
            g = rng.integers(0, 2, n) * 2.0 - 1.0
            g -= q @ (q.T @ g)
            found.append(float(g @ apply(g)))
    if not samples:
        return TraceEstimate(exact, 0.0)
    error = np.std(found, ddof=1) / math.sqrt(samples) if samples > 1 else math.nan
    return TraceEstimate(exact + float(np.mean(found)), float(error))


class SpectralDensity(NamedTuple):
    """The distribution of eigenvalues; see `spectral_density`.

    Attributes
    ----------
    nodes, weights : (vectors, steps) float64
        For each random vector a quadrature: the share ``weights`` of eigenvalues at ``nodes``;
        the weights of a vector sum to 1.
    """

    nodes: np.ndarray
    weights: np.ndarray

    def __call__(self, at, sigma):
        """The density at points (any shape), each node widened to a normal distribution.

        Parameters
        ----------
        at : array of float
        sigma : float
            Its standard deviation.
        """
        if not sigma > 0:
            raise ValueError(f"SpectralDensity: sigma must be positive, got {sigma!r}")
        distance = (np.asarray(at, np.float64)[..., None, None] - self.nodes) / sigma
        bells = np.exp(-0.5 * distance**2) / (sigma * math.sqrt(2 * math.pi))
        return (bells * self.weights).sum((-2, -1)) / len(self.nodes)

    def moment(self, power):
        """Mean of λ ** power over all eigenvalues; times n, the first is the trace."""
        return float((self.weights * self.nodes**power).sum(1).mean())


def spectral_density(operator, *, vectors=10, steps=30, seed=0, checkpoint=None, progress=False):
    """The density of all eigenvalues by stochastic Lanczos quadrature.

    (Golub and Welsch 1969; of networks: Ghorbani et al. 2019, section 2.) Each random vector takes
    `steps` products.

    Parameters
    ----------
    operator : with ``shape``, ``dtype`` and ``@``
    vectors, steps : int
    seed : int
    checkpoint : str or PathLike, optional
        A file that holds what is found after each vector; a second call with the same arguments
        goes on from it.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    SpectralDensity

    Raises
    ------
    ValueError
        If a number is below 1, or the checkpoint is of another computation.
    """
    from tqdm import tqdm

    n = operator.shape[0]
    for name, value in (("vectors", vectors), ("steps", steps)):
        if value < 1:
            raise ValueError(f"spectral_density: {name} must be at least 1, got {value!r}")
    steps = min(steps, n)
    metadata = {"size": n, "steps": steps, "seed": seed}
    nodes, weights = np.empty((0, steps)), np.empty((0, steps))
    if checkpoint is not None and os.path.exists(checkpoint):
        arrays, found = storage.load(checkpoint, kind="spectral-density", version=1)
        _expect_computation(checkpoint, found, metadata)
        nodes, weights = arrays["nodes"][:vectors], arrays["weights"][:vectors]
        first = Lanczos(operator, np.random.default_rng([seed, 0]).standard_normal(n), None)
        first.step()
        _expect_same(checkpoint, float(weights[0] @ nodes[0]), first.alphas[0])
    total = vectors * steps
    bar = tqdm(
        total=total, initial=nodes.size, unit="product", disable=not progress, leave=False
    )  # fmt: skip
    with bar, _held(operator):
        for i in range(len(nodes), vectors):
            rng = np.random.default_rng([seed, i])
            lanczos = Lanczos(operator, rng.standard_normal(n), rng)
            for _ in range(steps):
                lanczos.step()
                bar.update()
            values, coefficients = lanczos.eigen()
            nodes = np.concatenate([nodes, values[None]])
            weights = np.concatenate([weights, coefficients[:1] ** 2])
            if checkpoint is not None:
                storage.save(
                    checkpoint, {"nodes": nodes, "weights": weights},
                    kind="spectral-density", version=1, metadata=metadata,
                )  # fmt: skip
    return SpectralDensity(nodes, weights)
