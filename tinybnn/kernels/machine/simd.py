"""A small vocabulary for SIMD kernels in plain Python.

A vector is a handful of *lanes* that one instruction works on: ``words`` are 8 lanes of uint64 (512
signs), ``integers`` and ``floats`` 16 lanes of int32 and float32, ``blocks`` 128 lanes of float32:
as many registers as keep an adder busy. `zeros` and `load_like` make vectors of any width, which
LLVM splits into registers. A kernel written with the words below reads like the loop
it replaces::

    total = zero_words()
    for k in range(length):
        total += popcount(load(a, i + k) ^ load(b, j + k))

Compiled by Numba, a vector is one LLVM vector value, which lives in a register: 512 bits wide
where the CPU has AVX-512; elsewhere LLVM splits it into what there is, so the same source is
correct on every CPU. With ``NUMBA_DISABLE_JIT=1`` a vector is a NumPy array of lanes, and the
kernel can be stepped through in a debugger.

Numba lets one add types: a type (`Vector`), how a value of it looks in memory (`_VectorModel`: an
LLVM vector), and functions that emit instructions (`compiles`). Only operations that every CPU can
do are here; LLVM ends the process when it is asked for an instruction that does not exist.

Kernels are decorated with `kernel`, and their parts with `inlined` or `subkernel`, in place of
``numba.njit`` (see `cache` and `inlining`).
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
from tinybnn.kernels.machine.cache import kernel as kernel  # kernels import all four from here
from tinybnn.kernels.machine.inlining import chosen as chosen
from tinybnn.kernels.machine.inlining import inlined as inlined
from tinybnn.kernels.machine.inlining import subkernel as subkernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tinybnn.kernels.machine.cache import Function
    from tinybnn.typing import Array, Words

    Tile: TypeAlias = tuple[Array, ...]  # vectors of one width: see `tiles`

WORDS, INTEGERS, FLOATS, BLOCK = 8, 16, 16, 128  # lanes

# --------------------------------------------------------------------------------------------- CPU


@functools.cache
def cpu_features() -> frozenset[str]:
    """What the CPU that Numba compiles for can do, as LLVM calls it: {"avx2", "avx512f", ...}."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(feature[1:] for feature in features.split(",") if feature.startswith("+"))


def cpu_name() -> str:
    """The processor that Numba compiles for, as LLVM calls it: "znver3", "skylake", ..."""
    return cpu_target.target_context.codegen().magic_tuple()[1]


def cpu_kind() -> str:
    """The vectors that the CPU has, as far as kernels differ by them, in words."""
    for feature, name in (
        ("avx512vpopcntdq", "AVX-512 with VPOPCNTDQ"),
        ("avx512bw", "AVX-512 without VPOPCNTDQ"),
        ("avx2", "AVX2"),
        ("neon", "NEON"),
    ):
        if feature in cpu_features():
            return name
    return "short vectors"


# ---------------------------------------------------------------------------------- compiled words


def compiles(function: Callable[..., Any]) -> Callable[[Function], Function]:
    """Register the compiled form of a plain Python function.

    The decorated ``definition(*types)`` returns the signature and a function that emits LLVM
    instructions, ``generate(context, builder, signature, values)``; or None, if ``function`` does
    not take these types.
    """

    def register(definition):
        @type_callable(function)
        def typed(context):
            def signature_of(*arguments):
                found = definition(*arguments)
                return found and found[0]

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
    """The LLVM type of a vector."""
    if isinstance(vector.element, types.Float):
        return ir.VectorType(ir.FloatType(), vector.lanes)
    return ir.VectorType(ir.IntType(vector.element.bitwidth), vector.lanes)


_words, _floats = Vector(types.uint64, WORDS), Vector(types.float32, FLOATS)
_integers, _blocks = Vector(types.int32, INTEGERS), Vector(types.float32, BLOCK)


def _vector_of(array):
    """The vector type that is loaded from and stored to an array type; None if there is none."""
    if isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C":
        of = {types.uint64: _words, types.int32: _integers, types.float32: _floats}
        return of.get(array.dtype)
    return None


def _is_vector_of(element, vector):
    return isinstance(vector, Vector) and vector.element == element


def _takes_lanes(array, vector):
    """Whether a vector type can be stored to an array type: integers also as floats."""
    of = _vector_of(array)
    if of is None or not isinstance(vector, Vector):
        return False
    return vector.element in (of.element, types.int32 if of == _floats else of.element)


# ------------------------------------------------------------------------- loading and storing


def load(array: Array, index: int) -> Array:
    """The lanes array[index], array[index + 1], ... of a contiguous 1-D array."""
    lanes = {np.uint64: WORDS, np.int32: INTEGERS, np.float32: FLOATS}[array.dtype.type]
    return array[index : index + lanes].copy()


def load_like(array: Array, index: int, vector: Array) -> Array:
    """As many lanes as a vector (of any element) has: array[index], array[index + 1], ..."""
    return array[index : index + len(vector)].copy()


def entry(array: Array, index: int) -> Any:
    """array[index], where the index is not negative; Numba would ask at each."""
    return array[index]


def load_splat(array: Array, index: int) -> Array:
    """A vector with array[index] in every lane; ``index`` is not negative."""
    return splat(array[index])


def load_strided(array: Array, index: int, step: int) -> Array:
    """The lanes array[index], array[index + step], array[index + 2 * step], ..."""
    lanes = {np.uint64: WORDS, np.int32: INTEGERS, np.float32: FLOATS}[array.dtype.type]
    return array[index : index + (lanes - 1) * step + 1 : step].copy()


def load_bytes(array: NDArray[np.int8], index: int) -> NDArray[np.int32]:
    """The 16 lanes array[index], array[index + 1], ... of a contiguous 1-D int8 array, as int32."""
    return array[index : index + INTEGERS].astype(np.int32)


def store(array: Array, index: int, vector: Array) -> None:
    """array[index], array[index + 1], ... = lanes; integers become floats in an array of floats."""
    array[index : index + len(vector)] = vector


def store_first(array: Array, index: int, vector: Array, count: int) -> None:
    """The same for the first ``count`` lanes only; the memory behind them is not touched."""
    count = min(max(count, 0), len(vector))
    array[index : index + count] = vector[:count]


def copy(source: Array, start: int, target: Array, to: int, length: int) -> None:
    """target[to : to + length] = source[start : start + length], which do not overlap."""
    target[to : to + length] = source[start : start + length]


def clear(target: Array, to: int, length: int) -> None:
    """target[to : to + length] = 0"""
    target[to : to + length] = 0


@chosen(len)
def _compiled_len(vector):
    if isinstance(vector, Vector):
        lanes = vector.lanes
        return lambda vector: lanes


def add_first(array: Array, index: int, vector: Array, count: int) -> None:
    """Add the first ``count`` lanes to what is there; the memory behind them is not touched."""
    count = min(max(count, 0), len(vector))
    array[index : index + count] += vector[:count]


def splat(value: Any) -> Array:
    """A vector with the same uint64 or float32 in every lane."""
    lanes = WORDS if isinstance(value, np.uint64) else FLOATS
    return np.full(lanes, value)


def splat_like(value: Any, vector: Array) -> Array:
    """The same number in as many lanes as a vector of such numbers has."""
    return np.full(len(vector), value)


def zeros(lanes: int) -> NDArray[np.float32]:
    """A vector of float32 0 in as many lanes as a constant says."""
    return np.zeros(lanes, np.float32)


def zero_counts(lanes: int) -> Words:
    """A vector of uint64 0 in as many lanes as a constant says."""
    return np.zeros(lanes, np.uint64)


def element_address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """A pointer to an element of an array."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def address(
    context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: Vector
) -> Any:
    """A pointer to as many elements, from ``index`` on, as a vector type has lanes."""
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
    """Let ``function(lanes)`` of a constant compile to a vector of zeros."""

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


def zero_words() -> Words:
    """Words of 0."""
    return np.zeros(WORDS, np.uint64)


def zero_floats() -> NDArray[np.float32]:
    """Floats of 0."""
    return np.zeros(FLOATS, np.float32)


def _compile_zero(function, vector):
    """Let ``function()`` compile to a vector of zeros."""
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
    """The type of a vector when it is stored to an array type."""
    return Vector(array.dtype, vector.lanes)


def _as_stored(builder, value, array):
    """Lanes as an array type holds them."""
    return _as_floats(builder, value) if array.dtype == types.float32 else value


def _as_floats(builder, value):
    """Lanes of integers as floats; floats as they are."""
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
    """Store the first ``count`` lanes of a vector; the memory behind them is not touched."""
    name, align, mask = _masked(builder, value.type, count)
    call_llvm(builder, f"llvm.masked.store.{name}", ir.VoidType(), value, pointer, align, mask)


def _masked(builder, kind, count):
    """How LLVM names a type and pointers to it, its alignment, and which lanes are the first."""
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
        there = call_llvm(builder, f"llvm.masked.load.{name}", value.type, *operands)
        sums = builder.fadd(there, value)
        call_llvm(builder, f"llvm.masked.store.{name}", ir.VoidType(), sums, pointer, align, mask)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), generate


# The library functions memcpy and memset. Loops that LLVM unrolls would take longer to compile.


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
    """A scalar in each lane."""
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
    """The IRBuilder method for an operation on vectors of this type."""
    is_float = isinstance(vector.element, types.Float)
    return f"f{name}" if is_float and name in ("add", "sub", "mul", "div") else name


def _add_operator(function, name, elements):
    """Let ``function`` (an operator) work on two vectors of one width, of one of the elements."""

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
    """The number of bits that are 1, in each lane."""
    return np.bitwise_count(words).astype(np.uint64)


@compiles(popcount)
def _popcount(words):
    if not _is_vector_of(types.uint64, words):
        return None

    def generate(context, builder, signature, arguments):
        return call_llvm(builder, f"llvm.ctpop.v{words.lanes}i64", llvm_type(words), *arguments)

    return words(words), generate


def total(floats: NDArray[np.float32]) -> np.float32:
    """The sum of the lanes: the upper half is added to the lower half until one is left."""
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
    """A vector as wide as another one of words, all of whose bits are 1."""
    return np.full(len(words), 2**64 - 1, np.uint64)


@compiles(all_ones)
def _all_ones(words):
    if not _is_vector_of(types.uint64, words):
        return None

    def generate(context, builder, signature, arguments):
        return ir.Constant(llvm_type(words), [2**64 - 1] * words.lanes)

    return words(words), generate


def interleave(words: Words) -> NDArray[np.int32]:
    """Integers from low halves of words: of each 16, 8 in even lanes and 8 in odd."""
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
    """A uint64 whose bit i is 1 where lane i of the integers ``a`` is at most lane i of ``b``."""
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

# A block is a vector of 128 floats. LLVM gives it as many registers as the CPU needs for it, and
# one line of a kernel becomes several instructions that do not wait for each other.


def load_block(array: Array, index: int) -> NDArray[np.float32]:
    """The lanes array[index], ..., array[index + 127] of a contiguous 1-D float32 or int32 array.

    Integers become floats (below 2**24 exactly).
    """
    return array[index : index + BLOCK].astype(np.float32)


def maximum(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """The larger of two lanes, ``a`` of equal ones (0.0 and -0.0); NaN where one of them is."""
    return exact.maximum(a, b)


def minimum(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smaller of two lanes, ``a`` of equal ones (0.0 and -0.0); NaN where one of them is."""
    return exact.minimum(a, b)


def positive_or(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """``a`` where it is > 0, else ``b``."""
    return np.where(a > 0, a, b)


def absolute(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """The absolute value of each lane."""
    return np.abs(block)


def square_root(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """The square root of each lane, correctly rounded; NaN below 0."""
    return np.sqrt(block)


def store_signs(words: Words, index: int, block: NDArray[np.float32]) -> None:
    """words[index] and words[index + 1] = the 128 bits that say where a lane is >= 0."""
    words[index : index + BLOCK // 64] = np.packbits(block >= 0, bitorder="little").view("<u8")


def _compile_blocks(function, emit):
    """Let ``function`` of one or two blocks compile to what ``emit(builder, ...)`` gives."""

    @compiles(function)
    def of_blocks(*blocks):
        if set(blocks) != {_blocks}:
            return None
        return _blocks(*blocks), lambda context, builder, signature, values: emit(builder, *values)


def call_llvm(builder: Any, name: str, result: Any, *operands: Any) -> Any:
    """Call an LLVM function that every CPU has some instructions for."""
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)


def _pick(comparison):
    """``a`` where it wins or is NaN, else ``b`` (which may be NaN)."""

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


@compiles(store_signs)
def _store_signs(words, index, block):
    if not (_holds(words, types.uint64) and block == _blocks):
        return None

    def generate(context, builder, signature, values):
        array, index_value, lanes = values
        zero = ir.Constant(lanes.type, [0.0] * BLOCK)
        mask = builder.bitcast(builder.fcmp_ordered(">=", lanes, zero), ir.IntType(BLOCK))
        data = cgutils.create_struct_proxy(words)(context, builder, array).data
        pointer = builder.bitcast(builder.gep(data, [index_value]), mask.type.as_pointer())
        builder.store(mask, pointer, align=8)
        return context.get_dummy_value()

    return types.void(words, types.intp, block), generate


def _holds(array, *elements):
    """Whether an array type is contiguous, 1-D and of one of these elements."""
    is_flat = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"
    return is_flat and array.dtype in elements
