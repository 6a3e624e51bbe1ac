"""Numba compiler pipelines for kernels and their parts, without passes that kernels do not need.

For compile time alone (`tinybnn bench startup` times a first prediction with an empty cache): with
Numba's own pipelines a first training step takes half as long again. The code of a kernel's parts
is inserted into it once, and optimised and compiled to machine code there.
"""

from __future__ import annotations

import gc
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, Flags
from numba.core.compiler_machinery import AnalysisPass, register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import AnnotateTypes, NativeLowering

# Kernels contain nothing that these passes handle: contexts, nested functions, exceptions with a
# computed message, calls to be inlined before their types are known, and loops over tuples of
# several types.
_UNUSED = {
    "with_lifting",
    "inline_closure_likes",
    "rewrite_dynamic_raises",
    "make_function_op_code_to_jit_function",
    "inline_inlinables",
    "literal_unroll",
    "literal_propagation",
    "inline_overloads",
    "nopython_rewrites",
    "dump_parfor_diagnostics",
}


class _Flags(Flags):
    """Compiler options with a fast comparison: Numba compares them for each function it types."""

    __slots__ = ()

    def __hash__(self):
        return len(self._values)

    def __eq__(self, other):
        if isinstance(other, _Flags):
            return self._values == other._values
        return super().__eq__(other)


class KernelCompiler(Compiler):
    """The compiler of kernels."""

    def __init__(
        self,
        typing: Any,
        target: Any,
        library: Any,
        arguments: Any,
        result: Any,
        flags: Any,
        variables: Any,
    ) -> None:
        super().__init__(typing, target, library, arguments, result, _Flags(flags), variables)

    def compile_extra(self, function: Any) -> Any:
        """Compile with the cyclic garbage collector disabled, which takes a tenth of the time."""
        if not gc.isenabled():
            return super().compile_extra(function)
        gc.disable()
        try:
            return super().compile_extra(function)
        finally:
            gc.enable()

    def define_pipelines(self) -> list[Any]:
        """Return Numba's pipelines without the unused passes."""
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            if not self.state.flags.nrt:  # the kernel creates no arrays
                _shorten(pipeline, _IntoKernel)
            pipeline.passes = [
                (_KernelLowering if step is NativeLowering else step, text)
                for step, text in pipeline.passes
            ]
            pipeline.finalize()
        return pipelines


class PartCompiler(Compiler):
    """The compiler of functions whose code is inserted into the kernels that call them."""

    def __init__(
        self,
        typing: Any,
        target: Any,
        library: Any,
        arguments: Any,
        result: Any,
        flags: Any,
        variables: Any,
    ) -> None:
        super().__init__(typing, target, library, arguments, result, _Flags(flags), variables)

    def define_pipelines(self) -> list[Any]:
        """Return Numba's pipelines without the unused passes."""
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            _shorten(pipeline, _IntoPart)
            pipeline.finalize()
        return pipelines


def _shorten(pipeline, into):
    """Remove unused passes; the pass ``into`` chooses the library of the code."""
    pipeline.passes = [step for step in pipeline.passes if step[0].name() not in _UNUSED]
    pipeline.add_pass_after(into, AnnotateTypes)


class _Kernel(JITCodeLibrary):
    """The code of a kernel, optimised once, after all its parts are inserted.

    Numba also optimises before, which lets it remove reference counting of arrays.
    """

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        passes = self._codegen._module_pass_manager()
        if isinstance(passes, tuple):
            passes[0].run(self._final_module, passes[1])
        else:  # Numba 0.61
            passes.run(self._final_module)


class _Part(JITCodeLibrary):
    """The code of a function that is inserted into its callers: neither optimised nor compiled."""

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
    """Stands in for Numba's environment of a function's Python objects: a part has none."""

    @staticmethod
    def set_env(name, env):
        pass


class _Into(AnalysisPass):
    def __init__(self):
        AnalysisPass.__init__(self)

    def run_pass(self, state):
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return False


@register_pass(mutates_CFG=False, analysis_only=True)
class _IntoKernel(_Into):
    _name, library = "code_of_a_kernel", _Kernel


@register_pass(mutates_CFG=False, analysis_only=True)
class _IntoPart(_Into):
    _name, library = "code_for_callers_only", _Part


# ------------------------------------------------------------------------------ kernels of shares

_OF_SHARES = (types.int64,) * 3  # first parameters of kernels that `parallel` calls


def start_of(kernel: Any) -> int:
    """Return the address of a kernel's start function (see `_emit_start`); 0 if it has none."""
    return kernel.library.get_pointer_to_function(_name_of_start(kernel.fndesc))


def _name_of_start(description):
    return f"{description.llvm_func_name}.start"


@register_pass(mutates_CFG=True, analysis_only=False)
class _KernelLowering(NativeLowering):
    _name = "native_lowering_of_kernels"

    @property
    def lowering_class(self):
        return _KernelLower


class _KernelLower(Lower):
    def lower_normal_function(self, fndesc):
        super().lower_normal_function(fndesc)
        if tuple(fndesc.argtypes[: len(_OF_SHARES)]) == _OF_SHARES:
            _emit_start(self.function, _name_of_start(fndesc))


def _emit_start(function, name):
    """Emit a function that calls the kernel for rows of a table: first, end and task.

    It has the parameters that Numba's threading layers pass, four pointers: to the address of the
    first row, to the number of rows, to the bytes of a row, and to the kernel's other arguments, 8
    bytes for each number, including those of an array's descriptor.
    """
    number, octet = ir.IntType(64), ir.IntType(8)
    parameters = [octet.as_pointer().as_pointer(), number.as_pointer(), number.as_pointer()]
    kind = ir.FunctionType(ir.VoidType(), [*parameters, number.as_pointer()])
    start = ir.Function(function.module, kind, name=name)
    builder = ir.IRBuilder(start.append_basic_block())
    rows, count, step, place = start.args
    result, error, *parameters = (parameter.type for parameter in function.args)
    returned = builder.alloca(result.pointee), builder.alloca(error.pointee)
    table, step = builder.load(rows), builder.load(step)
    with cgutils.for_range(builder, builder.load(count)) as loop:
        row = builder.bitcast(builder.gep(table, [builder.mul(loop.index, step)]), place.type)
        values = [builder.load(builder.gep(row, [number(i)])) for i in range(len(_OF_SHARES))]
        for i, parameter in enumerate(parameters[len(_OF_SHARES) :]):
            slot = builder.gep(place, [number(i)])
            values.append(builder.load(builder.bitcast(slot, parameter.as_pointer())))
        builder.call(function, (*returned, *values), attrs=("noinline",))
    builder.ret_void()
