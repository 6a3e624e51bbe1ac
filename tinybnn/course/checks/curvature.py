"""Chapter 11: directions in a loss landscape, products with its Hessian, and their eigenvalues."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np

from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all, provided

_TOLERANCE = 1e-8
_CONVERGED = 1e-6


class _Matrix:
    """A symmetric matrix as the callable that multiplies with it; messages show the matrix."""

    def __init__(self, entries: Any) -> None:
        self.entries = np.array(entries, float)

    def __call__(self, v: Any) -> Any:
        return self.entries @ v

    def __repr__(self) -> str:
        if len(self.entries) > 4:
            return f"v -> A @ v with a symmetric A of shape {self.entries.shape}"
        return f"v -> A @ v with A = {self.entries.tolist()}"


def _symmetric(eigenvalues, seed=0):
    """Make a matrix with these eigenvalues, in random directions."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    matrix = q * np.array(eigenvalues, float) @ q.T
    return _Matrix((matrix + matrix.T) / 2)


# -------------------------------------------------------------------------------------- direction


def _length(a, axes):
    return np.sqrt((a**2).sum(axis=axes, keepdims=True))


def _scaled(function):
    """Make a filter-normalised direction with another rule for arrays with several axes."""
    return lambda direction, weight: (
        np.zeros_like(weight) if weight.ndim == 1 else function(direction, weight)
    )


def _filters(direction, weight, length=_length):
    axes = tuple(range(1, weight.ndim))
    own, wanted = length(direction, axes), length(weight, axes)
    return direction * wanted / np.where(own == 0, 1, own)


_normalized = _scaled(_filters)
_DIRECTION_MISTAKES = {
    "the whole array is scaled to the length of the whole weight; each filter has its own length":
        _scaled(lambda d, w: d * np.linalg.norm(w) / np.linalg.norm(d)),
    "columns are scaled, not filters; the first axis counts filters, so sum over all others":
        _scaled(lambda d, w: d * _length(w, 0) / np.where(_length(d, 0) == 0, 1, _length(d, 0))),
    "only the last axis is summed over; a filter is everything below one index of the first axis":
        _scaled(lambda d, w: d * _length(w, -1) / np.where(_length(d, -1) == 0, 1, _length(d, -1))),
    "the direction is multiplied by the filter's length, but its own length is not divided out":
        _scaled(lambda d, w: d * _length(w, tuple(range(1, w.ndim)))),
    "the direction's filters have length 1; they must have the length of the weight's filters":
        _scaled(lambda d, w: _filters(d, w) / _length(w, tuple(range(1, w.ndim)))),
    "the lengths are squared: the root of the sum of squares is missing":
        _scaled(lambda d, w: _filters(d, w, lambda a, axes: (a**2).sum(axis=axes, keepdims=True))),
    "the ratio of the lengths is upside down": _scaled(lambda d, w: d * _length(
        d, tuple(range(1, w.ndim))) / _length(w, tuple(range(1, w.ndim)))),
    "the largest numbers are made equal; a filter's length is the root of the sum of squares":
        _scaled(lambda d, w: _filters(
            d, w, lambda a, axes: np.abs(a).max(axis=axes, keepdims=True))),
    "an array with one axis keeps its direction; biases and batch norms must not move: zeros":
        (lambda d, w: _filters(d, w) if w.ndim > 1 else d,
         lambda d, w: _filters(d, w) if w.ndim > 1 else d * np.linalg.norm(w) / np.linalg.norm(d)),
    "with one axis each number is taken for a filter; biases and batch norms must not move: zeros":
        _filters,
}  # fmt: skip
_DIRECTIONS = [
    {"direction": np.array([[3.0, 4.0], [0.0, 2.0]]), "weight": np.array([[1.0, 0.0], [4.0, 3.0]])},
    {"direction": np.array([[[1.0, 2.0], [2.0, 4.0]]]), "weight": np.full((1, 2, 2), 0.5)},
    {"direction": np.array([3.0, 4.0]), "weight": np.array([1.0, 2.0])},
]


def direction_values(curvature: ModuleType) -> None:
    """each filter of the direction is as long as the weight's filter; one axis gives zeros."""
    from hypothesis import strategies as st

    function = curvature.filter_normalized

    def check(shape, seed):
        direction, weight = np.random.default_rng(seed).normal(size=(2, *shape))
        inputs = {"direction": direction, "weight": weight}
        compare(function, _normalized, inputs, _DIRECTION_MISTAKES, _TOLERANCE, _DIRECTIONS)

    for inputs in _DIRECTIONS:
        compare(function, _normalized, inputs, _DIRECTION_MISTAKES, _TOLERANCE, _DIRECTIONS)
    shapes = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)
    for_all(check, examples=50, shape=shapes, seed=st.integers(0, 99))


def direction_of_zeros(curvature: ModuleType) -> None:
    """a filter of zeros stays a filter of zeros, without a division by 0."""
    inputs = {"direction": np.array([[0.0, 0.0], [3.0, 4.0]]), "weight": np.ones((2, 2))}
    with np.errstate(all="ignore"):
        got = call(curvature.filter_normalized, inputs)
    expected = _normalized(**inputs)
    if not np.allclose(got, expected):
        why = "a filter of length 0 is divided by 0; it has no direction, and stays 0"
        raise Wrong(why, inputs, got, expected)


# ------------------------------------------------------------------------------------ differences


class _Gradient:
    """The gradient of the sum of powers of all weights."""

    def __init__(self, power: int) -> None:
        self.power = power

    def __call__(self, w: Any) -> Any:
        return self.power * w ** (self.power - 1)

    def __repr__(self) -> str:
        return f"w -> {self.power} * w**{self.power - 1}, which is that of sum(w**{self.power})"


def _difference(gradient, w, v, h):
    return (gradient(w + h * v) - gradient(w - h * v)) / (2 * h)


_DIFFERENCE_MISTAKES = {
    "the difference is divided by h; the two places are 2 h apart":
        lambda g, w, v, h: 2 * _difference(g, w, v, h),
    "the difference is one-sided; take the gradient at w + h v and at w - h v":
        (lambda g, w, v, h: (g(w + h * v) - g(w)) / h, lambda g, w, v, h: (g(w) - g(w - h * v)) / h,
         lambda g, w, v, h: (g(w + h * v) - g(w)) / (2 * h)),
    "the difference is not divided": lambda g, w, v, h: g(w + h * v) - g(w - h * v),
    "(...) / 2 * h multiplies by h; write / (2 * h)":
        lambda g, w, v, h: (g(w + h * v) - g(w - h * v)) / 2 * h,
    "the sign is wrong: ahead minus behind": lambda g, w, v, h: -_difference(g, w, v, h),
    "v is brought to length 1 first; then the product belongs to another vector":
        (lambda g, w, v, h: _difference(g, w, v / np.linalg.norm(v), h),
         lambda g, w, v, h: _difference(g, w, v, h / np.linalg.norm(v))),
    "the argument h is not used": lambda g, w, v, h: _difference(g, w, v, 1e-4),
    "h alone is added to all weights; the step goes along v":
        (lambda g, w, v, h: (g(w + h) - g(w - h)) / (2 * h),
         lambda g, w, v, h: (g(w + h) - g(w - h)) / (2 * h) * v),
    "this is the gradient along v, the slope; the Hessian tells how the gradient changes":
        (lambda g, w, v, h: g(w) * v, lambda g, w, v, h: g(w) @ v),
}  # fmt: skip
_W, _V = np.array([0.5, -1.0, 2.0]), np.array([2.0, 1.0, -1.0])


def difference_values(curvature: ModuleType) -> None:
    """the product is the central difference of the gradients along v."""
    from hypothesis import strategies as st

    function = curvature.difference_product
    probes = [{"gradient": _Gradient(p), "w": _W, "v": _V, "h": 0.25} for p in (2, 3, 4)]

    def check(power, h, seed):
        w, v = np.random.default_rng(seed).integers(-4, 5, (2, 3)) / 2
        inputs = {"gradient": _Gradient(power), "w": w, "v": v, "h": h}
        compare(function, _difference, inputs, _DIFFERENCE_MISTAKES, _TOLERANCE, probes)

    for inputs in probes:
        compare(function, _difference, inputs, _DIFFERENCE_MISTAKES, _TOLERANCE, probes)
    for_all(check, examples=50, power=st.integers(2, 4), h=st.sampled_from([0.5, 0.125]),
            seed=st.integers(0, 99))  # fmt: skip


def difference_default(curvature: ModuleType) -> None:
    """without h the steps are short enough for six digits, and long enough for rounding."""
    inputs = {"gradient": _Gradient(4), "w": _W, "v": _V}
    compare(curvature.difference_product, lambda g, w, v: 12 * w**2 * v, inputs, tolerance=1e-6)


# --------------------------------------------------------------------------------- exact products


def _product(tanh=1.0, of_v2=1.0, change_of_e=1.0, first=1.0, mean=True):
    """Make the exact product, with parts of it left out."""

    def hessian_vector(x, target, w1, w2, v1, v2):
        n = len(x) if mean else 1
        h = np.tanh(x @ w1.T)
        e, slope = (h @ w2 - target) / n, 1 - h**2
        dh = slope * (x @ v1.T)
        de = change_of_e * (dh @ w2 + h @ v2) / n
        dg2 = first * (dh.T @ e) + h.T @ de
        dback = (de[:, None] * w2 + of_v2 * e[:, None] * v2) * slope
        dback = dback - 2 * tanh * e[:, None] * w2 * h * dh
        return dback.T @ x, dg2

    return hessian_vector


def _without_slope(x, target, w1, w2, v1, v2):
    h = np.tanh(x @ w1.T)
    e, slope, dh = (h @ w2 - target) / len(x), 1 - h**2, x @ v1.T
    de = (dh @ w2 + h @ v2) / len(x)
    dback = (de[:, None] * w2 + e[:, None] * v2) * slope - 2 * e[:, None] * w2 * h * dh
    return dback.T @ x, dh.T @ e + h.T @ de


def _factor_two(x, target, w1, w2, v1, v2):
    whole, without = (_product(tanh)(x, target, w1, w2, v1, v2) for tanh in (1.0, 0.0))
    return (whole[0] + without[0]) / 2, whole[1]


def _gradient(x, target, w1, w2):
    h = np.tanh(x @ w1.T)
    e = (h @ w2 - target) / len(x)
    return (e[:, None] * w2 * (1 - h**2)).T @ x, h.T @ e


_exact = _product()
_PRODUCT_MISTAKES = {
    "this is the gradient; asked for is its derivative along v":
        lambda x, target, w1, w2, v1, v2: _gradient(x, target, w1, w2),
    "the factor 1 - h**2 in `back` changes too: its derivative, -2 * h * dh, is missing":
        _product(tanh=0.0),
    "the derivative of 1 - h**2 is -2 * h * dh; the 2 is missing": _factor_two,
    "the derivative of 1 - h**2 has the wrong sign: it is -2 * h * dh": _product(tanh=-1.0),
    "w2 in `back` changes as well: the term with e and v2 is missing": _product(of_v2=0.0),
    "e changes too, by (dh @ w2 + h @ v2) / N; here it is a constant": _product(change_of_e=0.0),
    "h.T @ e is a product: its derivative has two terms, and dh.T @ e is missing":
        _product(first=0.0),
    "this is the Gauss-Newton matrix: only e changes. All terms with e itself are missing":
        _product(tanh=0.0, of_v2=0.0, first=0.0),
    "the mean over the N inputs is missing: e is divided by N, and so is its change":
        _product(mean=False),
    "the change of h is slope * (x @ v1.T), by the chain rule; the slope 1 - h**2 is missing":
        _without_slope,
    "the two parts are exchanged: first that of w1, then that of w2":
        lambda *arguments: _exact(*arguments)[::-1],
    "the product has the opposite sign":
        lambda *arguments: tuple(-part for part in _exact(*arguments)),
}  # fmt: skip


def _network(n, k, m, seed):
    rng = np.random.default_rng(seed)
    shapes = {"x": (n, k), "target": (n,), "w1": (m, k), "w2": (m,), "v1": (m, k), "v2": (m,)}
    return {name: rng.normal(size=shape).round(1) for name, shape in shapes.items()}


def _no_gradient(*_):
    raise Wrong(
        "hessian_vector calls `gradient`, as for a difference; differentiate its lines instead"
    )


def product_values(curvature: ModuleType) -> None:
    """hessian_vector is exact, without differences, for networks of all small sizes."""
    from hypothesis import strategies as st

    function, probes = curvature.hessian_vector, [_network(3, 2, 2, 0), _network(2, 3, 1, 1)]

    def check(n, k, m, seed):
        compare(
            function, _exact, _network(n, k, m, seed), _PRODUCT_MISTAKES, _TOLERANCE, probes,
            ("the part of w1", "the part of w2"),
        )  # fmt: skip

    with provided(curvature, gradient=_no_gradient, loss=_no_gradient):
        check(1, 1, 1, 2)
        sizes = st.integers(1, 4)
        for_all(check, examples=100, n=sizes, k=sizes, m=sizes, seed=st.integers(0, 99))


def product_is_symmetric(curvature: ModuleType) -> None:
    """u @ H @ v equals v @ H @ u, since second derivatives may be taken in either order."""
    inputs = _network(20, 5, 4, 3)
    u1, u2 = np.random.default_rng(4).normal(size=(4, 5)), np.ones(4)
    with provided(curvature, gradient=_no_gradient, loss=_no_gradient):
        a1, a2 = call(curvature.hessian_vector, inputs)
        b1, b2 = call(curvature.hessian_vector, inputs | {"v1": u1, "v2": u2})
    one, other = np.sum(u1 * a1) + u2 @ a2, np.sum(inputs["v1"] * b1) + inputs["v2"] @ b2
    if not np.isclose(one, other):
        why = "u @ H @ v is not v @ H @ u, so the product is not one with a Hessian"
        raise Wrong(why, got=one, expected=other, labels=("u H v", "v H u"))


# -------------------------------------------------------------------------------- power iteration


def _power(value=None, normalize=True, ignore_steps=False):
    def power_iteration(product, start, steps):
        v = start / np.linalg.norm(start)
        for _ in range(1000 if ignore_steps else steps):
            v = product(v)
            v = v / np.linalg.norm(v)
        value_of = value or (lambda product, v: v @ product(v))
        return value_of(product, v), v if normalize else product(v)

    return power_iteration


def _faces(vector, start):
    """Choose between v and -v, which are the same direction."""
    return -vector if vector @ start < 0 else vector


def _steps_less(by):
    return lambda product, start, steps: _power()(product, start, steps + by)


_POWER_MISTAKES = {
    "the value is the length of A v, which is never negative; v @ A v knows the sign":
        _power(lambda product, v: np.linalg.norm(product(v))),
    "the value is |v @ A v|; its sign matters": _power(lambda product, v: abs(v @ product(v))),
    "the value is the first component of A v; it is v @ A v": _power(lambda p, v: p(v)[0]),
    "the vector is not brought to length 1 at the end": _power(normalize=False),
    "there is one product too few: `steps` counts products, each followed by a normalization":
        _steps_less(-1),
    "there is one product too many: the one for v @ A v must not change the vector":
        _steps_less(1),
    "the argument `steps` is not used": _power(ignore_steps=True),
    "the value is the square of an eigenvalue: v @ A v has one product with A":
        _power(lambda product, v: product(v) @ product(v)),
    "the vector is the start, brought to length 1; each step goes on from the last product":
        _steps_less(-(10**6)),
}  # fmt: skip


def _power_of(curvature):
    def power_iteration(product, start, steps):
        answer = curvature.power_iteration(product, start, steps)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Wrong("power_iteration must return two things: value, vector")
        return answer[0], _faces(np.asarray(answer[1]), start)

    return power_iteration


def _towards_start(function):
    def turned(product, start, steps):
        value, vector = function(product, start, steps)
        return value, _faces(vector, start)

    return turned


def power_values(curvature: ModuleType) -> None:
    """each step is one product and one normalization, and the value is v @ A v."""
    reference = _towards_start(_power())
    mistakes = {text: _towards_start(one) for text, one in _POWER_MISTAKES.items()}
    probes = [
        {"product": _Matrix([[2, 0], [0, 1]]), "start": np.array([3.0, 4.0]), "steps": 1},
        {"product": _Matrix([[-3, 1], [1, 2]]), "start": np.array([1.0, 0.5]), "steps": 3},
        {"product": _symmetric([-4, 3, 1, 0.5]), "start": np.ones(4), "steps": 6},
    ]
    for inputs in probes:
        compare(_power_of(curvature), reference, inputs, mistakes, _TOLERANCE, probes,
                ("the value", "the vector"))  # fmt: skip


def power_converges(curvature: ModuleType) -> None:
    """after many steps the value is the eigenvalue of largest magnitude, negative ones included."""
    from hypothesis import strategies as st

    def check(eigenvalues, negative, seed):
        values = np.array([*eigenvalues, 1.5 * max(eigenvalues)]) * (-1 if negative else 1)
        inputs = {"product": _symmetric(values, seed), "start": np.ones(len(values)), "steps": 200}
        with np.errstate(all="ignore"):
            value, _ = call(_power_of(curvature), inputs)
        if not np.isclose(value, values[-1], rtol=_CONVERGED):
            raise Wrong("after 200 steps the value is not the eigenvalue of largest magnitude",
                        inputs, value, values[-1])  # fmt: skip

    eigenvalues = st.lists(st.integers(1, 9), min_size=1, max_size=5)
    for_all(check, examples=50, eigenvalues=eigenvalues, negative=st.booleans(),
            seed=st.integers(0, 9))  # fmt: skip


def power_does_not_overflow(curvature: ModuleType) -> None:
    """a thousand steps neither overflow nor vanish."""
    for scale in (100.0, 0.01):
        inputs = {
            "product": _Matrix([[2 * scale, 0], [0, scale]]),
            "start": np.array([1e-3, 1e-3]),
            "steps": 1000,
        }
        with np.errstate(all="ignore"):
            value, vector = call(_power_of(curvature), inputs)
        if not np.isclose(value, 2 * scale) or not np.isclose(np.linalg.norm(vector), 1):
            raise Wrong("the vector grows or shrinks with each product until no float holds it; "
                        "bring it to length 1 in every step", inputs, value, 2 * scale)  # fmt: skip


# ---------------------------------------------------------------------------------------- Lanczos


def _lanczos(product, start, steps, passes=2, against=None, unit=True):
    """Make each vector orthogonal to the last `against` vectors, or to all."""
    basis = [start / np.linalg.norm(start) if unit else start]
    alphas, betas = [], []
    while True:
        rest = product(basis[-1])
        alphas.append(rest @ basis[-1])
        if len(basis) == steps:
            return np.array(alphas), np.array(betas), np.array(basis)
        first = 0 if against is None else max(len(basis) - against, 0)
        for _ in range(passes):
            for q in basis[first:]:
                rest = rest - (rest @ q) * q
        betas.append(np.linalg.norm(rest))
        basis.append(rest / betas[-1])


def _changed(alphas=lambda a: a, betas=lambda b: b, basis=lambda q: q):
    """Make Lanczos with other parts of its result."""

    def lanczos(product, start, steps):
        a, b, q = _lanczos(product, start, steps)
        return alphas(a), betas(b), basis(q)

    return lanczos


def _all_betas(product, start, steps):
    alphas, betas, basis = _lanczos(product, start, steps)
    rest = product(basis[-1])
    rest = rest - basis.T @ (basis @ rest)
    return alphas, np.append(betas, np.linalg.norm(rest)), basis


_LANCZOS_MISTAKES = {
    "there is a beta too many: `steps` vectors have steps - 1 gaps; the last one belongs to a "
    "vector that is not made": _all_betas,
    "the first vector is not brought to length 1":
        tuple(functools.partial(_lanczos, unit=False, passes=n) for n in (1, 2)),
    "the products are normalized, but not made orthogonal to the vectors before: this is power "
    "iteration": functools.partial(_lanczos, against=0),
    "only the part along the last vector is taken away; the new vector must be orthogonal to all":
        functools.partial(_lanczos, against=1),
    "the vectors are columns here; they must be rows of the basis":
        _changed(basis=lambda q: q.T),
    "the betas are squared: a length is the root of the sum of squares":
        _changed(betas=lambda b: b**2),
    "alphas and betas are exchanged": lambda *arguments: (
        *_lanczos(*arguments)[1::-1], _lanczos(*arguments)[2]),
    "the alphas have the opposite sign": _changed(alphas=lambda a: -a),
}  # fmt: skip
_LANCZOS_PROBES = [
    {"product": _Matrix(np.diag([1.0, 2.0, 4.0])), "start": np.array([2.0, 2.0, 2.0]), "steps": 3},
    {"product": _symmetric([5, 2, 1, -1, -3]), "start": np.arange(1.0, 6.0), "steps": 4},
]


def lanczos_values(curvature: ModuleType) -> None:
    """alphas, betas and basis are those of the iteration."""
    for inputs in _LANCZOS_PROBES:
        compare(curvature.lanczos, _lanczos, inputs, _LANCZOS_MISTAKES, _TOLERANCE,
                _LANCZOS_PROBES, ("alphas", "betas", "basis"))  # fmt: skip


def lanczos_one_step(curvature: ModuleType) -> None:
    """one step gives one alpha, no beta, and one row."""
    inputs = {"product": _Matrix([[2, 1], [1, 3]]), "start": np.array([0.0, 2.0]), "steps": 1}
    compare(curvature.lanczos, _lanczos, inputs, _LANCZOS_MISTAKES, _TOLERANCE,
            _LANCZOS_PROBES, ("alphas", "betas", "basis"))  # fmt: skip


def _outliers(heap=0.1):
    """Make a spectrum like a network's: a heap around 0 and a few large eigenvalues."""
    return np.concatenate([[100.0, 90.0, 50.0, -20.0], np.linspace(-heap, heap, 96)])


def _is_orthogonal(curvature, heap, why):
    inputs = {"product": _symmetric(_outliers(heap)), "start": np.ones(100), "steps": 40}
    basis = np.asarray(call(curvature.lanczos, inputs)[2])
    products = np.abs(basis @ basis.T - np.eye(len(basis)))
    if not products.max() < 1e-10:
        i, j = sorted(int(k) for k in np.unravel_index(products.argmax(), products.shape))
        raise Wrong(why, {**inputs, "rows": (i, j)}, basis[i] @ basis[j],
                    wanted="0, up to rounding")  # fmt: skip


def lanczos_stays_orthogonal(curvature: ModuleType) -> None:
    """the rows stay orthogonal to all others, long after the first eigenvalues are found."""
    _is_orthogonal(
        curvature, 0.1,
        "the new vector is made orthogonal to the last two only: enough in exact arithmetic, but "
        "rounding brings the old directions back; make it orthogonal to all before it",
    )  # fmt: skip


def lanczos_repeats(curvature: ModuleType) -> None:
    """the rows stay orthogonal even where almost nothing of a product is new."""
    _is_orthogonal(
        curvature, 1e-7,
        "taking away the parts along the other vectors once leaves rounding errors, which are "
        "large beside a short rest; do it twice",
    )  # fmt: skip


def lanczos_finds_eigenvalues(curvature: ModuleType) -> None:
    """the outer eigenvalues of T are those of A, each of them once."""
    inputs = {"product": _symmetric(_outliers()), "start": np.ones(100), "steps": 40}
    alphas, betas, _ = call(curvature.lanczos, inputs)
    found = np.linalg.eigvalsh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
    got, expected = np.r_[found[-3:], found[0]], np.array([50.0, 90.0, 100.0, -20.0])
    if not np.allclose(got, expected, rtol=_CONVERGED):
        why = "the three largest eigenvalues of T and the smallest one are not those of A"
        raise Wrong(why, inputs, got, expected)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "11.1",
        "filter_normalized",
        "A direction whose filters are as long as the weight's.",
        "The better version: filters of their own length",
        (direction_values, direction_of_zeros),
        (
            "The notebook's second filter is longer than its first. Which numbers does its part of "
            "the direction get multiplied by?",
            "Two lengths for each filter: that of the direction is divided out, that of the weight "
            "multiplied in. keepdims=True keeps them ready to broadcast.",
            "The axes to sum over are tuple(range(1, weight.ndim)). Where a length is 0, divide by "
            "1 instead (np.where). One axis: return zeros before all that.",
        ),
    ),
    Exercise(
        "11.2",
        "difference_product",
        "The Hessian times a vector, by a difference of gradients.",
        "The better version: a product by two gradients",
        (difference_values, difference_default),
        (
            "The Hessian tells how the gradient changes. By how much does it change from w - h v "
            "to w + h v?",
            "The two places are 2 h v apart; divide by 2 h, and v stays as the direction.",
            "Two calls of `gradient`, one difference, one division with parentheses around 2 * h. "
            "w + h * v is a new array, w += ... is not.",
        ),
    ),
    Exercise(
        "11.3",
        "hessian_vector",
        "The same, exactly, for a network with one hidden layer.",
        "Exactly: differentiate the gradient's lines",
        (product_values, product_is_symmetric),
        (
            "Go through `gradient` line by line. Which of its letters depend on t?",
            "Write dh, de, dg2, dback and dg1 below their lines, with the product rule; x and "
            "target do not change. Begin with dh = (1 - h**2) * (x @ v1.T).",
            "de has two terms (dh @ w2 and h @ v2) over N. dback has three, one for each factor "
            "of e * w2 * (1 - h**2), the last with -2 * h * dh.",
        ),
    ),
    Exercise(
        "11.4",
        "power_iteration",
        "The eigenvalue of largest magnitude, by repeated products.",
        "The steepest direction: power iteration",
        (power_values, power_does_not_overflow, power_converges),
        (
            "What does A do to the part of v along an eigenvector? And A a hundred times?",
            "A loop of `steps` rounds: a product, then a division by np.linalg.norm.",
            "After the loop one more product gives the value, v @ product(v); v itself is returned "
            "unchanged.",
        ),
    ),
    Exercise(
        "11.5",
        "lanczos",
        "Orthonormal vectors in which a matrix is tridiagonal.",
        "All outer eigenvalues: Lanczos",
        (
            lanczos_values,
            lanczos_one_step,
            lanczos_stays_orthogonal,
            lanczos_repeats,
            lanczos_finds_eigenvalues,
        ),
        (
            "Power iteration forgets all vectors but the last. What could the others tell?",
            "Keep a list of vectors. In each step: a product with the last, its alpha, then take "
            "away the part along every vector of the list; what is left has the length beta.",
            "rest = rest - (rest @ q) * q for each q of the list, the whole loop twice. After the "
            "last alpha there is no new vector, so return before.",
        ),
    ),
)
