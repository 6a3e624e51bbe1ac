"""Parts of kernels: functions that only kernels call.

Their code is put into that of the kernels. A part is neither optimised by itself nor made machine
code: Numba would do both for each function, and then again for each kernel that it becomes part of.
This saves compile time and changes nothing else: without it, the kernels of a first training step
took a third longer to compile.
"""

from __future__ import annotations

import functools

import numba
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import AnalysisPass, register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import AnnotateTypes

from tinybnn.kernels.machine.cache import kernel


def inlined(function):
    """Mark a part of a kernel, whose code is put where it is called.

    Vectors that go in and out of such a function stay in registers. It has no cache of its own: it
    is part of the cached kernel, and stands in the kernel's file or in one of this folder that this
    file imports from, whose change `cache.kernel` notices. It makes no arrays. Called from Python
    it is what its Python says.
    """
    return _part(function, forceinline=True, of=_Inlined)


def subkernel(function):
    """The same for a part that is long: whether its code is put where it is called, or stands once
    in the kernel, is the compiler's choice. Called from Python it is a kernel of its own.
    """
    return _part(function, forceinline=False, of=_Subkernel)


def _part(function, forceinline, of):
    if numba.config.DISABLE_JIT:
        return function
    options = {
        "nopython": True, "nogil": True, "forceinline": forceinline, "error_model": "numpy",
        "_nrt": False, "no_cfunc_wrapper": True, "no_cpython_wrapper": True, "boundscheck": None,
    }  # fmt: skip
    return of(function, targetoptions=options, pipeline_class=_PartCompiler)


class _Inlined(CPUDispatcher):
    def __call__(self, *arguments):
        return self.py_func(*arguments)


class _Subkernel(CPUDispatcher):
    @functools.cached_property
    def kernel(self):
        return kernel(self.py_func, allocates=False)

    def __call__(self, *arguments):
        return self.kernel(*arguments)


class _Part(JITCodeLibrary):
    """The code of a function that is put into its callers': neither optimised nor compiled."""

    @property
    def codegen(self):
        return _NoEnvironment

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 0


class _NoEnvironment:
    """What Numba asks to keep a function's Python objects: a part has none."""

    @staticmethod
    def set_env(name, env):
        pass


@register_pass(mutates_CFG=False, analysis_only=True)
class _AsPart(AnalysisPass):
    _name = "code_for_callers_only"

    def __init__(self):
        AnalysisPass.__init__(self)

    def run_pass(self, state):
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        return False


class _PartCompiler(Compiler):
    def define_pipelines(self):
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            pipeline.add_pass_after(_AsPart, AnnotateTypes)
            pipeline.finalize()
        return pipelines
