"""Vector operations for SIMD kernels in plain Python.

A vector is a group of *lanes* that one instruction works on: ``words`` are 8 lanes of uint64 (512
signs), ``integers`` and ``floats`` 16 lanes of int32 and float32, and ``blocks`` 64 or, with
AVX-512, 128 lanes of float32: half of the CPU's registers, which keeps its adders busy. `zeros` and
`load_like` create vectors of any width, which LLVM splits into registers. A kernel written with the
operations below reads like the loop it replaces::

    total = zero_words()
    for k in range(length):
        total += popcount(load(a, i + k) ^ load(b, j + k))

Compiled by Numba, a vector is one LLVM vector value in a register, 512 bits wide on CPUs with
AVX-512; elsewhere LLVM splits it into smaller registers, so the same source is correct on every
CPU. With ``NUMBA_DISABLE_JIT=1`` a vector is a NumPy array of lanes, and a debugger can step
through the kernel.

To add vectors, this module extends Numba by a type (`Vector`), the representation of its values
(`_VectorModel`: an LLVM vector), and functions that emit instructions (`compiles`). It contains
only operations that every CPU supports: LLVM ends the process if the CPU lacks an instruction.

Kernels are decorated with `kernel`, and their parts with `inlined` or `subkernel`, instead of
``numba.njit`` (see `cache` and `inlining`).

In the functions below, ``array`` is 1-D, contiguous, and of the vector's dtype; ``index`` is that
of the first lane.
"""

from __future__ import annotations

import functools
import inspect
import operator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import (
    intrinsic,
    lower_builtin,
    register_model,
    type_callable,
)
from numba.core.registry import cpu_target

from tinybnn.kernels.machine import exact
from tinybnn.kernels.machine.cache import (
    kernel as kernel,
)  # kernels import it, and the next three, from here
from tinybnn.kernels.machine.inlining import chosen as chosen
from tinybnn.kernels.machine.inlining import inlined as inlined
from tinybnn.kernels.machine.inlining import subkernel as subkernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tinybnn.kernels.machine.cache import Function
    from tinybnn.typing import Array, Words

    Tile: TypeAlias = tuple[Array, ...]  # vectors of one width: see `tiles`

WORDS, INTEGERS, FLOATS = 8, 16, 16  # lanes

# --------------------------------------------------------------------------------------------- CPU


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return the features of the CPU that Numba compiles for, in LLVM's names: {"avx2", ...}."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(feature[1:] for feature in features.split(",") if feature.startswith("+"))


def cpu_name() -> str:
    """Return the processor that Numba compiles for, in LLVM's names: "znver3", "skylake", ..."""
    return cpu_target.target_context.codegen().magic_tuple()[1]


def is_arm64() -> bool:
    """Tell whether Numba compiles for ARM64, all of whose CPUs have NEON."""
    triple, *_ = cpu_target.target_context.codegen().magic_tuple()
    return triple.startswith(("aarch64", "arm64"))


def cpu_kind() -> str:
    """Describe the CPU's vector instructions, as far as kernels depend on them."""
    if is_arm64():
        return "NEON"
    for feature, name in (
        ("avx512vpopcntdq", "AVX-512 with VPOPCNTDQ"),
        ("avx512bw", "AVX-512 without VPOPCNTDQ"),
        ("avx2", "AVX2"),
    ):
        if feature in cpu_features():
            return name
    return "short vectors"


# Lanes of a block. Two blocks, an accumulator and its operand, fit the vector registers.
BLOCK = 128 if "avx512f" in cpu_features() else 64

# ------------------------------------------------------------------------------ compiled functions


def compiles(function: Callable[..., Any]) -> Callable[[Function], Function]:
    """Register the compiled form of a plain Python function.

    The decorated ``definition(*types)`` returns the signature and a function that emits LLVM
    instructions, ``generate(context, builder, signature, values)``; or None, if ``function`` does
    not support these types.
    """

    def register(definition):
        @type_callable(function)
        def typed(context):
            def signature_of(*arguments):
                compiled = definition(*arguments)
                return compiled and compiled[0]

            signature_of.pysig = inspect.signature(function)
            return signature_of

        @lower_builtin(function, types.VarArg(types.Any))
        def lowered(context, builder, signature, values):
            _, generate = definition(*signature.args)
            return generate(context, builder, signature, values)

        return definition

    return register


# ------------------------------------------------------------------------------------------- types


class Vector(types.Type):
    """The Numba type of a vector.

    Attributes
    ----------
    element : Numba scalar type
    lanes : int
    """

    def __init__(self, element: Any, lanes: int) -> None:
        self.element: Any = element
        self.lanes: int = lanes
        super().__init__(name=f"Vector({element} x {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, llvm_type(vector))


def llvm_type(vector: Vector) -> Any:
    """Return the LLVM type of a vector."""
    if isinstance(vector.element, types.Float):
        return ir.VectorType(ir.FloatType(), vector.lanes)
    return ir.VectorType(ir.IntType(vector.element.bitwidth), vector.lanes)


_words, _floats = Vector(types.uint64, WORDS), Vector(types.float32, FLOATS)
_integers, _blocks = Vector(types.int32, INTEGERS), Vector(types.float32, BLOCK)


def _vector_of(array):
    """Return the vector type that is loaded from and stored to an array type, or None."""
    if isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C":
        vectors = {types.uint64: _words, types.int32: _integers, types.float32: _floats}
        return vectors.get(array.dtype)
    return None


def _is_vector_of(element, vector):
    return isinstance(vector, Vector) and vector.element == element


def _takes_lanes(array, vector):
    """Tell whether a vector type can be stored to an array type; int32 also to float32."""
    own = _vector_of(array)
    if own is None or not isinstance(vector, Vector):
        return False
    return vector.element in (own.element, types.int32 if own == _floats else own.element)


# ------------------------------------------------------------------------- loading and storing


def load(array: Array, index: int) -> Array:
    """Load the lanes array[index], array[index + 1], ... of uint64, int32 or float32."""
    lanes = {np.uint64: WORDS, np.int32: INTEGERS, np.float32: FLOATS}[array.dtype.type]
    return array[index : index + lanes].copy()


def load_like(array: Array, index: int, vector: Array) -> Array:
    """Load as many lanes as ``vector`` (of any dtype) has: array[index], array[index + 1], ..."""
    return array[index : index + len(vector)].copy()


def entry(array: Array, index: int) -> Any:
    """Return array[index] for an index >= 0, without the test for negative ones that Numba adds."""
    return array[index]


def load_splat(array: Array, index: int) -> Array:
    """Load array[index] into every lane; ``index`` is not negative."""
    return splat(array[index])


def load_strided(array: Array, index: int, step: int) -> Array:
    """Load the lanes array[index], array[index + step], array[index + 2 * step], ..."""
    lanes = {np.uint64: WORDS, np.int32: INTEGERS, np.float32: FLOATS}[array.dtype.type]
    return array[index : index + (lanes - 1) * step + 1 : step].copy()


def load_bytes(array: NDArray[np.int8], index: int) -> NDArray[np.int32]:
    """Load 16 lanes array[index], array[index + 1], ... of an int8 array as int32."""
    return array[index : index + INTEGERS].astype(np.int32)


def store(array: Array, index: int, vector: Array) -> None:
    """Store lanes to array[index], ...; int32 is converted for a float32 array."""
    array[index : index + len(vector)] = vector


def store_first(array: Array, index: int, vector: Array, count: int) -> None:
    """Store the first ``count`` lanes only, as `store`; the memory after them is not touched."""
    count = min(max(count, 0), len(vector))
    array[index : index + count] = vector[:count]


def copy(source: Array, start: int, target: Array, to: int, length: int) -> None:
    """Set target[to : to + length] = source[start : start + length], which must not overlap."""
    target[to : to + length] = source[start : start + length]


def clear(target: Array, to: int, length: int) -> None:
    """Set target[to : to + length] = 0."""
    target[to : to + length] = 0


@chosen(len)
def _compiled_len(vector):
    if isinstance(vector, Vector):
        lanes = vector.lanes
        return lambda vector: lanes


def add_first(array: Array, index: int, vector: Array, count: int) -> None:
    """Add the first ``count`` lanes to array[index], ...; the memory after them is not touched."""
    count = min(max(count, 0), len(vector))
    array[index : index + count] += vector[:count]


def splat(value: Any) -> Array:
    """Return a vector with the same uint64 or float32 in every lane."""
    lanes = WORDS if isinstance(value, np.uint64) else FLOATS
    return np.full(lanes, value)


def splat_like(value: Any, vector: Array) -> Array:
    """Return a vector with the same number in every lane, as wide as ``vector``."""
    return np.full(len(vector), value)


def zeros(lanes: int) -> NDArray[np.float32]:
    """Return a vector of float32 zeros; ``lanes`` must be a constant."""
    return np.zeros(lanes, np.float32)


def zero_counts(lanes: int) -> Words:
    """Return a vector of uint64 zeros; ``lanes`` must be a constant."""
    return np.zeros(lanes, np.uint64)


def zero_integers(lanes: int) -> NDArray[np.int32]:
    """Return a vector of int32 zeros; ``lanes`` must be a constant."""
    return np.zeros(lanes, np.int32)


def zero_bytes(lanes: int) -> NDArray[np.uint8]:
    """Return a vector of uint8 zeros; ``lanes`` must be a constant."""
    return np.zeros(lanes, np.uint8)


def element_address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Emit a pointer to an element of an array."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def address(
    context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: Vector
) -> Any:
    """Emit a pointer to the elements of a vector type from ``index`` on."""
    pointer = element_address(context, builder, array_type, array, index)
    return builder.bitcast(pointer, llvm_type(vector).as_pointer())


@compiles(load)
def _load(array, index):
    vector = _vector_of(array)
    if vector is None:
        return None

    def generate(context, builder, signature, arguments):
        pointer = address(context, builder, array, *arguments, vector)
        return builder.load(pointer, align=vector.element.bitwidth // 8)

    return vector(array, types.intp), generate


@compiles(load_like)
def _load_like(array, index, vector):
    if not (_vector_of(array) and isinstance(vector, Vector)):
        return None
    loaded = Vector(array.dtype, vector.lanes)

    def generate(context, builder, signature, arguments):
        pointer = address(context, builder, array, *arguments[:2], loaded)
        return builder.load(pointer, align=loaded.element.bitwidth // 8)

    return loaded(array, types.intp, vector), generate


@compiles(entry)
def _entry(array, index):
    def generate(context, builder, signature, arguments):
        return builder.load(element_address(context, builder, array, *arguments))

    return array.dtype(array, types.intp), generate


def _compile_zeros(function, element):
    """Compile ``function(lanes)`` of a constant to a vector of zeros."""

    @intrinsic(prefer_literal=True)
    def zeros_of(typing, lanes):
        vector = Vector(element, lanes.literal_value)

        def generate(context, builder, signature, arguments):
            return ir.Constant(llvm_type(vector), [0] * vector.lanes)

        return vector(lanes), generate

    @chosen(function, prefer_literal=True)
    def compiled(lanes):
        if isinstance(lanes, types.IntegerLiteral):
            return lambda lanes: zeros_of(lanes)


_compile_zeros(zeros, types.float32)
_compile_zeros(zero_counts, types.uint64)
_compile_zeros(zero_integers, types.int32)
_compile_zeros(zero_bytes, types.uint8)


def zero_words() -> Words:
    """Return 8 uint64 zeros."""
    return np.zeros(WORDS, np.uint64)


def zero_floats() -> NDArray[np.float32]:
    """Return 16 float32 zeros."""
    return np.zeros(FLOATS, np.float32)


def _compile_zero(function, vector):
    """Compile ``function()`` to a vector of zeros."""
    zero = ir.Constant(llvm_type(vector), None)
    compiles(function)(lambda: (vector(), lambda context, builder, signature, values: zero))


_compile_zero(zero_words, _words)
_compile_zero(zero_floats, _floats)


@compiles(load_splat)
def _load_splat(array, index):
    vector = _vector_of(array)
    if vector is None:
        return None

    def generate(context, builder, signature, arguments):
        element = builder.load(element_address(context, builder, array, *arguments))
        return everywhere(builder, element, vector.lanes)

    return vector(array, types.intp), generate


@compiles(load_strided)
def _load_strided(array, index, step):
    vector = _vector_of(array)
    if vector is None:
        return None

    def generate(context, builder, signature, arguments):
        array_value, at, step_value = arguments
        data = cgutils.create_struct_proxy(array)(context, builder, array_value).data
        value = ir.Constant(llvm_type(vector), ir.Undefined)
        for lane in range(vector.lanes):
            element = builder.load(builder.gep(data, [at]))
            value = builder.insert_element(value, element, ir.Constant(ir.IntType(32), lane))
            at = builder.add(at, step_value)
        return value

    return vector(array, types.intp, types.intp), generate


@compiles(load_bytes)
def _load_bytes(array, index):
    if not _holds(array, types.int8):
        return None

    def generate(context, builder, signature, arguments):
        array_value, index_value = arguments
        data = cgutils.create_struct_proxy(array)(context, builder, array_value).data
        vector = ir.VectorType(ir.IntType(8), INTEGERS)
        pointer = builder.bitcast(builder.gep(data, [index_value]), vector.as_pointer())
        return builder.sext(builder.load(pointer, align=1), llvm_type(_integers))

    return _integers(array, types.intp), generate


@compiles(store)
def _store(array, index, vector):
    if not _takes_lanes(array, vector):
        return None

    def generate(context, builder, signature, arguments):
        pointer = address(context, builder, array, *arguments[:2], _stored(array, vector))
        value = _as_stored(builder, arguments[2], array)
        builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


def _stored(array, vector):
    """Return the type of a vector when it is stored to an array type."""
    return Vector(array.dtype, vector.lanes)


def _as_stored(builder, value, array):
    """Emit the conversion of lanes to an array's dtype."""
    return _as_floats(builder, value) if array.dtype == types.float32 else value


def _as_floats(builder, value):
    """Emit the conversion of integer lanes to floats; floats are unchanged."""
    if isinstance(value.type.element, ir.FloatType):
        return value
    return builder.sitofp(value, ir.VectorType(ir.FloatType(), value.type.count))


@compiles(store_first)
def _store_first(array, index, vector, count):
    if not _takes_lanes(array, vector):
        return None

    def generate(context, builder, signature, arguments):
        pointer = address(context, builder, array, *arguments[:2], _stored(array, vector))
        emit_store_first(builder, _as_stored(builder, arguments[2], array), pointer, arguments[3])
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), generate


def emit_store_first(builder: Any, value: Any, pointer: Any, count: Any) -> None:
    """Emit a store of the first ``count`` lanes; the memory after them is not touched."""
    name, align, mask = _masked(builder, value.type, count)
    call_llvm(builder, f"llvm.masked.store.{name}", ir.VoidType(), value, pointer, align, mask)


def _masked(builder, kind, count):
    """Return LLVM's name of a type and its pointers, its alignment, and the mask of first lanes."""
    lanes, element = kind.count, kind.element
    numbers = ir.Constant(ir.VectorType(ir.IntType(64), lanes), list(range(lanes)))
    mask = builder.icmp_signed("<", numbers, everywhere(builder, count, lanes))
    is_float = isinstance(element, ir.FloatType)
    name = f"v{lanes}{'f32' if is_float else f'i{element.width}'}.p0"
    return name, ir.IntType(32)(4 if is_float else element.width // 8), mask


@compiles(add_first)
def _add_first(array, index, vector, count):
    if not (_is_vector_of(array.dtype, vector) and _takes_lanes(array, vector)):
        return None

    def generate(context, builder, signature, arguments):
        value, pointer = arguments[2], address(context, builder, array, *arguments[:2], vector)
        name, align, mask = _masked(builder, value.type, arguments[3])
        operands = pointer, align, mask, ir.Constant(value.type, None)
        old = call_llvm(builder, f"llvm.masked.load.{name}", value.type, *operands)
        sums = builder.fadd(old, value)
        call_llvm(builder, f"llvm.masked.store.{name}", ir.VoidType(), sums, pointer, align, mask)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), generate


# These call memcpy and memset. Loops that LLVM unrolls would take longer to compile.


@compiles(copy)
def _copy(source, start, target, to, length):
    if not _holds(target, source.dtype):
        return None
    size = source.dtype.bitwidth // 8

    def generate(context, builder, signature, arguments):
        source_value, start_value, target_value, to_value, count = arguments
        read = element_address(context, builder, source, source_value, start_value)
        write = element_address(context, builder, target, target_value, to_value)
        cgutils.raw_memcpy(builder, write, read, count, size, align=size)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), generate


@compiles(clear)
def _clear(target, to, length):
    def generate(context, builder, signature, arguments):
        *place, count = arguments
        size = builder.mul(count, ir.Constant(count.type, target.dtype.bitwidth // 8))
        cgutils.memset(builder, element_address(context, builder, target, *place), size, 0)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp), generate


def everywhere(builder: Any, value: Any, lanes: int) -> Any:
    """Emit a vector with a scalar in each lane."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    )


@compiles(splat)
def _splat(value):
    if value not in (types.uint64, types.float32):
        return None
    vector = _words if value == types.uint64 else _floats

    def generate(context, builder, signature, arguments):
        return everywhere(builder, arguments[0], vector.lanes)

    return vector(value), generate


@compiles(splat_like)
def _splat_like(value, vector):
    if not _is_vector_of(value, vector):
        return None

    def generate(context, builder, signature, arguments):
        return everywhere(builder, arguments[0], vector.lanes)

    return vector(value, vector), generate


# -------------------------------------------------------------------------------------- arithmetic


def _instruction(name, vector):
    """Return the name of the IRBuilder method for an operation on vectors of this type."""
    is_float = isinstance(vector.element, types.Float)
    return f"f{name}" if is_float and name in ("add", "sub", "mul", "div") else name


def _add_operator(function, name, elements):
    """Compile ``function`` (an operator) for two vectors of one width and one of the elements."""

    @type_callable(function)
    def typed(context):
        def signature_of(a, b):
            if isinstance(a, Vector) and a == b and a.element in elements:
                return a(a, b)

        return signature_of

    @lower_builtin(function, Vector, Vector)
    def lowered(context, builder, signature, values):
        return getattr(builder, _instruction(name, signature.return_type))(*values)


_NUMBERS, _BITS, _REALS = (
    (types.uint64, types.int32, types.float32),
    (types.uint64,),
    (types.float32,),
)
for _symbol, _name, _elements in (
    ("add", "add", _NUMBERS),
    ("sub", "sub", _NUMBERS),
    ("mul", "mul", _REALS),
    ("truediv", "div", _REALS),
    ("xor", "xor", _BITS),
    ("and_", "and_", _BITS),
    ("or_", "or_", _BITS),
):
    _add_operator(getattr(operator, _symbol), _name, _elements)
    _add_operator(getattr(operator, f"i{_symbol}".rstrip("_")), _name, _elements)


def popcount(words: Words) -> Words:
    """Count the 1 bits of each uint64 lane."""
    return np.bitwise_count(words).astype(np.uint64)


@compiles(popcount)
def _popcount(words):
    if not _is_vector_of(types.uint64, words):
        return None

    def generate(context, builder, signature, arguments):
        return call_llvm(builder, f"llvm.ctpop.v{words.lanes}i64", llvm_type(words), *arguments)

    return words(words), generate


def total(floats: NDArray[np.float32]) -> np.float32:
    """Sum the lanes of 16 float32: the upper half is added to the lower half until one is left."""
    while len(floats) > 1:
        floats = floats[: len(floats) // 2] + floats[len(floats) // 2 :]
    return floats[0]


@compiles(total)
def _total(floats):
    if floats != _floats:
        return None

    def generate(context, builder, signature, arguments):
        (value,), lanes = arguments, floats.lanes
        while lanes > 1:
            lanes //= 2
            kind = ir.VectorType(ir.IntType(32), lanes)
            lower = ir.Constant(kind, list(range(lanes)))
            upper = ir.Constant(kind, list(range(lanes, 2 * lanes)))
            value = builder.fadd(
                builder.shuffle_vector(value, value, lower),
                builder.shuffle_vector(value, value, upper),
            )
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return floats.element(floats), generate


def all_ones(words: Words) -> Words:
    """Return a uint64 vector with all bits 1, as wide as ``words``."""
    return np.full(len(words), 2**64 - 1, np.uint64)


@compiles(all_ones)
def _all_ones(words):
    if not _is_vector_of(types.uint64, words):
        return None

    def generate(context, builder, signature, arguments):
        return ir.Constant(llvm_type(words), [2**64 - 1] * words.lanes)

    return words(words), generate


def interleave(words: Words) -> NDArray[np.int32]:
    """Combine the low halves of uint64 lanes to int32: of 16, 8 go to even and 8 to odd lanes."""
    halves = words.reshape(-1, 2, WORDS)
    return halves.transpose(0, 2, 1).astype(np.int32).reshape(-1)


@compiles(interleave)
def _interleave(words):
    if not _is_vector_of(types.uint64, words):
        return None

    def generate(context, builder, signature, arguments):
        (value,), lanes = arguments, np.arange(words.lanes).reshape(-1, 2, WORDS)
        even, odd = (
            ir.Constant(ir.VectorType(ir.IntType(32), words.lanes // 2), half.ravel().tolist())
            for half in (lanes[:, 0], lanes[:, 1])
        )
        low = builder.shuffle_vector(value, value, even)
        high = builder.shuffle_vector(value, value, odd)
        ones = ir.Constant(low.type, [2**32 - 1] * low.type.count)
        half = ir.Constant(low.type, [32] * low.type.count)
        both = builder.or_(builder.and_(low, ones), builder.shl(high, half))
        return builder.bitcast(both, llvm_type(Vector(types.int32, words.lanes)))

    return Vector(types.int32, words.lanes)(words), generate


def at_most(a: NDArray[np.int32], b: NDArray[np.int32]) -> np.uint64:
    """Return a uint64 whose bit i is 1 where lane i of int32 ``a`` is at most lane i of ``b``."""
    return np.uint64(int.from_bytes(np.packbits(a <= b, bitorder="little").tobytes(), "little"))


@compiles(at_most)
def _at_most(a, b):
    if not (a == b and _is_vector_of(types.int32, a)):
        return None

    def generate(context, builder, signature, arguments):
        lanes = builder.icmp_signed("<=", *arguments)  # <16 x i1>
        return builder.zext(builder.bitcast(lanes, ir.IntType(a.lanes)), ir.IntType(64))

    return types.uint64(a, b), generate


# ------------------------------------------------------------------------------------------- blocks

# A block is a vector of `BLOCK` float32. LLVM splits it into as many registers as the CPU needs,
# and one line of a kernel becomes several independent instructions.


def load_block(array: Array, index: int) -> NDArray[np.float32]:
    """Load a block from a float32 or int32 array, array[index] and following, as float32.

    Integers are converted exactly below 2**24.
    """
    return array[index : index + BLOCK].astype(np.float32)


def maximum(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the maximum of each lane; of equal ones (0.0 and -0.0), ``a``'s; NaN if either is."""
    return exact.maximum(a, b)


def minimum(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the minimum of each lane; of equal ones (0.0 and -0.0), ``a``'s; NaN if either is."""
    return exact.minimum(a, b)


def positive_or(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``a`` where it is > 0, else ``b``."""
    return np.where(a > 0, a, b)


def absolute(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the absolute value of each lane."""
    return np.abs(block)


def square_root(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the square root of each lane, correctly rounded; NaN below 0."""
    return np.sqrt(block)


def store_at_least(
    words: Words, index: int, a: NDArray[np.float32], b: NDArray[np.float32]
) -> None:
    """Store a bit for each lane, 1 where ``a`` is >= ``b``, to words[index] and following."""
    words[index : index + BLOCK // 64] = np.packbits(a >= b, bitorder="little").view("<u8")


def _compile_blocks(function, emit):
    """Compile ``function`` of one or two blocks to the result of ``emit(builder, ...)``."""

    @compiles(function)
    def of_blocks(*blocks):
        if set(blocks) != {_blocks}:
            return None
        return _blocks(*blocks), lambda context, builder, signature, values: emit(builder, *values)


def call_llvm(builder: Any, name: str, result: Any, *operands: Any) -> Any:
    """Emit a call of an LLVM function that is available on every CPU."""
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)


def _pick(comparison):
    """Choose ``a`` where it wins or is NaN, else ``b`` (which may be NaN)."""

    def emit(builder, a, b):
        wins = builder.fcmp_ordered(comparison, a, b)
        is_nan = builder.fcmp_unordered("uno", a, a)
        return builder.select(builder.or_(wins, is_nan), a, b)

    return emit


def _emit_positive_or(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, ir.Constant(a.type, [0.0] * BLOCK)), a, b)


_compile_blocks(maximum, _pick(">="))
_compile_blocks(minimum, _pick("<="))
_compile_blocks(positive_or, _emit_positive_or)
_compile_blocks(
    absolute, lambda builder, a: call_llvm(builder, f"llvm.fabs.v{BLOCK}f32", a.type, a)
)
_compile_blocks(
    square_root, lambda builder, a: call_llvm(builder, f"llvm.sqrt.v{BLOCK}f32", a.type, a)
)


@compiles(load_block)
def _load_block(array, index):
    if not _holds(array, types.float32, types.int32):
        return None

    def generate(context, builder, signature, values):
        pointer = address(context, builder, array, *values, Vector(array.dtype, BLOCK))
        return _as_floats(builder, builder.load(pointer, align=4))

    return _blocks(array, types.intp), generate


@compiles(store_at_least)
def _store_at_least(words, index, a, b):
    if not (_holds(words, types.uint64) and a == b == _blocks):
        return None

    def generate(context, builder, signature, values):
        array, index_value, *lanes = values
        mask = builder.bitcast(builder.fcmp_ordered(">=", *lanes), ir.IntType(BLOCK))
        data = cgutils.create_struct_proxy(words)(context, builder, array).data
        pointer = builder.bitcast(builder.gep(data, [index_value]), mask.type.as_pointer())
        builder.store(mask, pointer, align=8)
        return context.get_dummy_value()

    return types.void(words, types.intp, a, b), generate


def _holds(array, *elements):
    """Tell whether an array type is contiguous, 1-D and of one of these elements."""
    is_flat = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"
    return is_flat and array.dtype in elements
