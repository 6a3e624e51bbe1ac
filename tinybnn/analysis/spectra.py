"""Eigenvalues, trace and spectral density of a symmetric operator, from products with vectors.

The operator has ``shape``, ``dtype`` and ``@``: a `CurvatureOperator`, an array, or what SciPy
calls a LinearOperator.
"""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from tinybnn import storage
from tinybnn.typing import FloatArray, Shape

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class Operator(Protocol):
    """A symmetric matrix (n, n), given by its products with vectors (n,)."""

    @property
    def shape(self) -> Shape:
        """(n, n)."""
        ...

    @property
    def dtype(self) -> Any:
        """Dtype of the products."""
        ...

    def __matmul__(self, vector: Any) -> Any: ...


# ---------------------------------------------------------------------------------- eigenvalues


class Lanczos:
    """Lanczos iteration with full reorthogonalisation: A Q = Q T + β q eᵀ, T tridiagonal.

    Each new vector is orthogonalised twice against all before it (Parlett 1998, section 6.9), so
    that no eigenvalue appears too often. Where the Krylov space is exhausted, a new random vector
    starts the next one.

    Parameters
    ----------
    operator : with ``shape``, ``dtype`` and ``@``
        Symmetric.
    start : (n,) array
        The first vector, of any length but 0.
    rng : numpy.random.Generator or None
        Source of restart vectors.

    Attributes
    ----------
    alphas, betas : list of float
        The diagonal of T, and the off-diagonal β after each of its rows; the last β belongs to the
        residual.
    """

    alphas: list[float]
    betas: list[float]

    def __init__(
        self, operator: Operator, start: FloatArray, rng: np.random.Generator | None
    ) -> None:
        self.operator: Operator = operator
        self.rng: np.random.Generator | None = rng
        self.alphas, self.betas = [], []
        self._basis = np.empty((0, len(start)), operator.dtype)  # one vector per row
        self._next = start / np.linalg.norm(start)

    def __len__(self) -> int:
        return len(self.alphas)

    @property
    def basis(self) -> FloatArray:
        """Q, one vector per row: (steps, n), of the operator's dtype."""
        return self._basis[: len(self)]

    def step(self) -> None:
        """Compute one product with the operator and one more row of T."""
        m = len(self)
        if m == self._next.size:
            raise ValueError(f"Lanczos: {m} steps already span the whole space")
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

    def eigen(self) -> tuple[FloatArray, FloatArray]:
        """Compute the eigenvalues (m,) of T, ascending, and its eigenvectors, columns (m, m)."""
        matrix = np.diag(self.alphas)
        above = np.arange(len(self) - 1)
        matrix[above, above + 1] = matrix[above + 1, above] = self.betas[:-1]
        return np.linalg.eigh(matrix)

    # The file of an iteration has all that it needs to continue with the same bits.

    def save(self, path: str | os.PathLike[str], metadata: dict[str, Any]) -> None:
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

    def restore(self, path: str | os.PathLike[str], metadata: dict[str, Any]) -> None:
        """Continue from a file; its last product is repeated to check that the operator fits.

        Raises
        ------
        ValueError
            If the file belongs to another operator or start.
        """
        arrays, stored = storage.load(path, kind="lanczos", version=1)
        generator = stored.pop("generator")
        _expect_computation(path, stored, metadata)
        basis = arrays["basis"].astype(self.operator.dtype)
        if not len(basis):
            return
        alpha = float(np.asarray(self.operator @ basis[-1], np.float64) @ basis[-1])
        _expect_same(path, float(arrays["alphas"][-1]), alpha)
        self._basis, self._next = basis, arrays["next"]
        self.alphas, self.betas = arrays["alphas"].tolist(), arrays["betas"].tolist()
        self.rng.bit_generator.state = generator


def _held(operator):
    """Enter the operator's `held`, if it has one."""
    return getattr(operator, "held", contextlib.nullcontext)()


def _expect_computation(path, stored, expected):
    """Check that the settings in a checkpoint are those of the call."""
    if stored != expected:
        raise ValueError(
            f"{os.fspath(path)}: is of another computation ({stored}, here {expected}); choose "
            "another checkpoint, or delete it"
        )


def _expect_same(path, stored, computed):
    """Check that a product in a checkpoint, vᵀAv, is that of the operator."""
    if not math.isclose(stored, computed, rel_tol=1e-4, abs_tol=1e-12):
        raise ValueError(
            f"{os.fspath(path)}: is of another operator (a product is {stored:.6g} there, "
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
        Lengths of A v - λ v: A has an eigenvalue within this distance of each value.
    nodes, weights : (steps,) float64
        All eigenvalues of the iteration's T, ascending, and the squares of the first components of
        its eigenvectors. Since the first vector is random, they are also one row of a
        `SpectralDensity`: `nodes` has both ends of the spectrum.
    """

    values: FloatArray
    vectors: FloatArray
    residuals: FloatArray
    nodes: FloatArray
    weights: FloatArray

    @property
    def steps(self) -> int:
        """Number of products with the operator."""
        return len(self.nodes)


_ORDERS = {"LA": lambda values: -values, "SA": lambda values: values, "LM": lambda v: -np.abs(v)}


def top_eigenvalues(
    operator: Operator,
    k: int = 10,
    *,
    which: str = "LA",
    tol: float = 1e-3,
    max_steps: int = 100,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Eigenpairs:
    """Compute the first eigenvalues of a symmetric operator by Lanczos.

    The iteration reorthogonalises fully. It usually finds a multiple eigenvalue only once.

    Parameters
    ----------
    operator : with ``shape``, ``dtype`` and ``@``
    k : int
    which : 'LA', 'SA' or 'LM'
        The largest, the smallest, or those of largest magnitude, as SciPy's eigsh names them.
    tol : float
        Stop when all k residuals are at most tol times the largest |value|.
    max_steps : int
        Upper limit of the products; the residuals tell the accuracy. Memory grows by one vector per
        step.
    seed : int
        Seed of the first vector.
    checkpoint : str or PathLike, optional
        File with the iteration after each step; a second call with the same arguments continues
        from it, and returns the same bits as an uninterrupted one.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    Eigenpairs
        In the order of `which`.

    Raises
    ------
    ValueError
        If k or `max_steps` do not fit the operator, or the checkpoint belongs to another one.
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
    lanczos = Lanczos(operator, rng.standard_normal(n), rng)
    metadata = {"size": n, "seed": seed, "dtype": np.dtype(operator.dtype).str}
    if checkpoint is not None and os.path.exists(checkpoint):
        lanczos.restore(checkpoint, metadata)
    limit = min(max_steps, n)
    bar = tqdm(total=limit, initial=len(lanczos), unit="product", disable=not progress, leave=False)
    with bar, _held(operator):
        while True:
            if len(lanczos) >= k:
                values, coefficients = lanczos.eigen()
                order = np.argsort(_ORDERS[which](values), kind="stable")[:k]
                residuals = lanczos.betas[-1] * np.abs(coefficients[-1, order])
                largest = np.abs(values).max()
                bar.set_postfix_str(f"λ1 {values[order[0]]:.4g}, residual {residuals.max():.1e}")
                if len(lanczos) >= limit or (residuals <= tol * largest).all():
                    break
            lanczos.step()
            bar.update()
            if checkpoint is not None:
                lanczos.save(checkpoint, metadata)
    vectors = lanczos.basis.T @ coefficients[:, order].astype(operator.dtype)
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


def estimate_trace(
    operator: Operator, products: int = 60, *, seed: int = 0, progress: bool = False
) -> TraceEstimate:
    """Estimate the trace of a symmetric operator by Hutch++ (Meyer et al. 2021, algorithm 1).

    A third of the products finds a subspace Q of large eigenvalues, in which the trace is computed;
    the trace outside of Q is estimated with random signs (Hutchinson 1990).

    Parameters
    ----------
    operator : with ``shape``, ``dtype`` and ``@``
    products : int
        At least 3. With at least three times the operator's size, the trace is exact.
    seed : int
    progress : bool
        Show a progress bar on stderr.

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
        estimates = []
        for _ in range(samples):
            g = rng.integers(0, 2, n) * 2.0 - 1.0
            g -= q @ (q.T @ g)
            estimates.append(float(g @ apply(g)))
    if not samples:
        return TraceEstimate(exact, 0.0)
    error = np.std(estimates, ddof=1) / math.sqrt(samples) if samples > 1 else math.nan
    return TraceEstimate(exact + float(np.mean(estimates)), float(error))


class SpectralDensity(NamedTuple):
    """The distribution of eigenvalues; see `spectral_density`.

    Attributes
    ----------
    nodes, weights : (vectors, steps) float64
        A quadrature per random vector: the share ``weights`` of eigenvalues at ``nodes``; the
        weights of a vector sum to 1.
    """

    nodes: FloatArray
    weights: FloatArray

    def __call__(self, at: ArrayLike, sigma: float) -> FloatArray:
        """Evaluate the density, with each node widened to a normal distribution.

        Parameters
        ----------
        at : array of float, any shape
        sigma : float
            Standard deviation of the normal distribution.

        Returns
        -------
        float64 array of the shape of `at`
        """
        if not sigma > 0:
            raise ValueError(f"SpectralDensity: sigma must be positive, got {sigma!r}")
        distance = (np.asarray(at, np.float64)[..., None, None] - self.nodes) / sigma
        bells = np.exp(-0.5 * distance**2) / (sigma * math.sqrt(2 * math.pi))
        return (bells * self.weights).sum((-2, -1)) / len(self.nodes)

    def moment(self, power: float) -> float:
        """Compute the mean of λ ** power over all eigenvalues; n times the first is the trace."""
        return float((self.weights * self.nodes**power).sum(1).mean())


def spectral_density(
    operator: Operator,
    *,
    vectors: int = 10,
    steps: int = 30,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> SpectralDensity:
    """Estimate the density of all eigenvalues by stochastic Lanczos quadrature.

    (Golub and Welsch 1969; for networks, Ghorbani et al. 2019, section 2.) Each random vector takes
    `steps` products.

    Parameters
    ----------
    operator : with ``shape``, ``dtype`` and ``@``
    vectors, steps : int
    seed : int
    checkpoint : str or PathLike, optional
        File with the result after each vector; a second call with the same arguments continues from
        it.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    SpectralDensity

    Raises
    ------
    ValueError
        If a number is below 1, or the checkpoint belongs to another computation.
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
        arrays, stored = storage.load(checkpoint, kind="spectral-density", version=1)
        _expect_computation(checkpoint, stored, metadata)
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
