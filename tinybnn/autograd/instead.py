"""Attributes that only PyTorch's Tensor has, and what to use here instead."""

from __future__ import annotations

INSTEAD: dict[str, str] = {
    **{
        name: f"functional.{name}(x)"
        for name in ("log_softmax", "relu", "sigmoid", "softmax", "softplus", "tanh")
    },
    **dict.fromkeys(("round", "floor", "ceil"), "a Quantizer, or numpy.round(x.data)"),
    **dict.fromkeys(("any", "all"), "(x != 0).any(): comparisons give arrays"),
    **dict.fromkeys(("prod", "cumsum"), "the NumPy function on x.data: it has no gradient here"),
    **dict.fromkeys(("half", "bfloat16"), "x.float() or x.double(), the two dtypes"),
    **dict.fromkeys(("bmm", "dot"), "x @ y"),
    **dict.fromkeys(("normal_", "uniform_"), "functions of nn.init"),
    **dict.fromkeys(("register_hook", "retain_grad"), "grad(loss, x), or a Module's hook"),
    **dict.fromkeys(("scatter", "scatter_", "index_fill_"), "where, cat or pad"),
    "bool": "x != 0: bools are NumPy arrays",
    "cuda": "x itself: tinybnn runs on the CPU",
    "detach_": "x = x.detach()",
    "index_select": "x[index], or x[:, index]",
    "int": "x.data.astype(numpy.int32): integers are NumPy arrays",
    "long": "x.data.astype(numpy.int64): integers are NumPy arrays",
    "masked_select": "x[mask]",
    "new_zeros": "zeros(...)",
    "nonzero": "numpy.nonzero(x.data)",
    "reciprocal": "1 / x",
    "rsqrt": "1 / x.sqrt()",
    "square": "x * x",
    "tile": "x.repeat(...)",
    "type": "x.dtype, or x.to(dtype)",
    "unbind": "tuple(x)",
}
