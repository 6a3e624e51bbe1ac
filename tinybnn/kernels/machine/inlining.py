"""Parts of kernels: functions that only kernels call.

Their code is put into that of the kernels. A part is neither optimised by itself nor made machine
code (see `pipeline`): Numba would do both for each function, and then again for each kernel that it
becomes part of. This saves compile time, as `tinybnn bench startup` shows, and nothing else.
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
    """Mark a part of a kernel, whose code is put where it is called.

    Vectors that go in and out of such a function stay in registers. It has no cache of its own: it
    is part of the cached kernel, and stands in the kernel's file or in one of this folder that this
    file imports from, whose change `cache.kernel` notices. It makes no arrays. Called from Python
    it is what its Python says.
    """
    return _part(function, forceinline=True, of=_Inlined)


def subkernel(function: Function) -> Function:
    """The same for a part that is long: whether its code is put where it is called, or stands once
    in the kernel, is the compiler's choice. Called from Python it is a kernel of its own.
    """
    return _part(function, forceinline=False, of=_Subkernel)


def chosen(function: Callable[..., Any], **options: Any) -> Callable[[Function], Function]:
    """Decorate what chooses by their types the part that compiled code calls for these arguments.

    ``definition(*types)`` gives a function with the same parameters, which is inlined.
    """
    jit = {**_OPTIONS, "forceinline": True, "pipeline_class": PartCompiler}
    return overload(function, jit_options=jit, **options)


def _part(function, forceinline, of):
    if numba.config.DISABLE_JIT:
        return function
    options = {**_OPTIONS, "forceinline": forceinline}
    return of(function, targetoptions=options, pipeline_class=PartCompiler)


class _Inlined(CPUDispatcher):
    def __call__(self, *arguments):
        return self.py_func(*arguments)


class _Subkernel(CPUDispatcher):
    @functools.cached_property
    def kernel(self):
        return kernel(self.py_func, allocates=False)

    def __call__(self, *arguments):
        return self.kernel(*arguments)
