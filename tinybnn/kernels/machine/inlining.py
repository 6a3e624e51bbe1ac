"""Decorators for functions that only kernels call.

Their code is inserted into the kernels. Such a part is neither optimised nor compiled to machine
code separately (see `pipeline`), as Numba would do for each function, and again for each kernel
that contains it.

For compile time alone: `tinybnn bench startup` shows it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numba
from numba.core.extending import overload
from numba.core.registry import CPUDispatcher

from tinybnn.kernels.machine.cache import kernel
from tinybnn.kernels.machine.pipeline import PartCompiler

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinybnn.kernels.machine.cache import Function

_OPTIONS = {
    "nopython": True, "nogil": True, "error_model": "numpy", "_nrt": False,
    "no_cfunc_wrapper": True, "no_cpython_wrapper": True, "boundscheck": None,
}  # fmt: skip


def inlined(function: Function) -> Function:
    """Mark a part of a kernel whose code is inserted at each call.

    Vectors passed to and from such a function stay in registers. It has no cache of its own: it is
    part of the cached kernel, and is in the kernel's file or in a file of this folder that the
    kernel's file imports, whose changes `cache.kernel` notices. It creates no arrays. Called from
    Python it runs as plain Python.
    """
    return _part(function, forceinline=True, dispatcher=_Inlined)


def subkernel(function: Function) -> Function:
    """Mark a long part of a kernel: the compiler decides whether to insert it at each call.

    Called from Python it is a kernel. Otherwise as `inlined`.
    """
    return _part(function, forceinline=False, dispatcher=_Subkernel)


def chosen(function: Callable[..., Any], **options: Any) -> Callable[[Function], Function]:
    """Decorate a function that chooses, by argument types, the part that compiled code calls.

    ``definition(*types)`` returns a function with the same parameters, which is inlined. It
    replaces ``function`` in compiled code.
    """
    jit = {**_OPTIONS, "forceinline": True, "pipeline_class": PartCompiler}
    return overload(function, jit_options=jit, **options)


def _part(function, forceinline, dispatcher):
    if numba.config.DISABLE_JIT:
        return function
    options = {**_OPTIONS, "forceinline": forceinline}
    return dispatcher(function, targetoptions=options, pipeline_class=PartCompiler)


class _Inlined(CPUDispatcher):
    def __call__(self, *arguments):
        return self.py_func(*arguments)


class _Subkernel(CPUDispatcher):
    @functools.cached_property
    def kernel(self):
        return kernel(self.py_func, allocates=False)

    def __call__(self, *arguments):
        return self.kernel(*arguments)
