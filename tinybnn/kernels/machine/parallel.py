"""One parallel loop for all kernels.

Numba compiles a parallel loop together with the kernel that it calls, twice: a kernel that takes a
second to compile takes three more in a parallel version of itself. Here is a single loop that calls
kernels by their address. It is compiled once, and a kernel needs nothing more than it has:

    share_out(worker, shares, *arguments)

calls ``worker(first, end, task, *arguments)`` for each share of the work, and `bind` makes a
callable of it, for the same arrays again and again. What goes from Python to the loop is three
numbers: the address of the kernel's machine code, that of its arguments, which lie in a buffer, and
that of a small function, compiled for the types of these arguments, that loads them and calls. To
take two dozen arrays apart, as a call from Python does, costs as much as a small layer's work, so
what is called again and again goes this way also when there is nothing to share out.
"""

from __future__ import annotations

import functools
import itertools

import numba
import numpy as np
from numba import _dispatcher, prange, types
from numba.core import cgutils
from numba.core.extending import intrinsic

from tinybnn.kernels.machine import threads
from tinybnn.kernels.machine.simd import kernel

_MOST_BYTES = 1 << 14  # of all arguments of a kernel; an array takes 56
_CALLS_FROM_PYTHON = 3
_addresses = {}  # worker, fingerprints of its arguments -> what `_addresses_of` looks up


@functools.lru_cache(maxsize=1024)
def shares(items, tasks, unit=1):
    """Cut so many items into shares of whole units.

    Returns
    -------
    (tasks, 2) int64
        First item and the one behind the last; not to be written to.
    """
    bounds = [task * (items // unit) // tasks * unit for task in range(tasks)]
    return np.array(list(zip(bounds, [*bounds[1:], items], strict=True)), np.int64)


def share_out(worker, shares, *arguments):
    """Call ``worker(first, end, task, *arguments)`` for each share, on as many threads.

    Parameters
    ----------
    worker : function compiled by `simd.kernel`
        Returns nothing. Tasks must not write to the same places.
    shares : (tasks, 2) int64
    arguments
        Arrays, numbers, and tuples of them.
    """
    if len(shares) == 1 or numba.config.DISABLE_JIT:
        for task, (first, end) in enumerate(shares.tolist()):
            worker(first, end, task, *arguments)
    else:
        threads.run(_loop, *_addresses_of(worker, arguments), shares)


def bind(worker, shares, *arguments):
    """What `share_out` does, as a callable without arguments: only the work itself is left.

    On one thread, the first calls use Numba's dispatcher: resolving the addresses costs more than a
    few calls and would delay the first prediction.
    """

    def in_python():
        for task, (first, end) in enumerate(shares.tolist()):
            worker(first, end, task, *arguments)

    if numba.config.DISABLE_JIT:
        return in_python
    calls, found = itertools.count(), []

    def call():
        # There may be fewer threads than when it was bound, as in a forked process.
        is_alone = len(shares) == 1 or threads.count() == 1
        if is_alone and next(calls) < _CALLS_FROM_PYTHON:
            in_python()
            return
        if not found:
            found.append(_addresses_of(worker, arguments))
        if is_alone:
            _one_after_the_other(*found[0], shares)
        else:
            threads.run(_loop, *found[0], shares)

    return call


def _addresses_of(worker, arguments):
    """What a loop takes: the addresses of `_start` and of the kernel, and a buffer of arguments.

    It holds the addresses of arrays, which the caller keeps alive.
    """
    # One by one: Numba 0.60 has the same fingerprint for long tuples that differ at the beginning.
    key = worker, *map(_dispatcher.compute_fingerprint, arguments)
    if key not in _addresses:
        kind = numba.typeof(arguments)
        unnamed, numbers = _unnamed_type(kind), (types.int64,) * 3
        function = _machine_code(worker, (*numbers, *kind.types))
        start = _machine_code(_start, (*numbers, *numbers[:2], types.TypeRef(unnamed)))
        # The version for these types, which a call of `_store` would have to find.
        store = _compiled(_store, (unnamed, numba.typeof(np.empty(0, np.uint8)))).entry_point
        _addresses[key] = start, function, store
    start, function, store = _addresses[key]
    buffer = np.empty(_MOST_BYTES, np.uint8)
    size = store(arguments, buffer)  # a named tuple is read like a plain one
    if size > _MOST_BYTES:
        raise AssertionError(f"share_out: the arguments of {worker.__name__} are too many")
    return start, function, buffer[:size].copy()


# Numba's cache on disk keeps the types that a kernel was compiled for. Those of `_start` and
# `_store` are of all kernels together, so no class of a single one shall be among them. A named
# tuple lies in memory as a tuple does.


def _unnamed_type(kind):
    """A tuple type whose named tuples, however deep, are plain ones."""
    if isinstance(kind, types.BaseTuple):
        return types.Tuple([_unnamed_type(element) for element in kind.types])
    return kind


def _compiled(function, signature):
    """A kernel, compiled for these types."""
    if signature not in function.overloads:
        function.compile(signature)
    return function.overloads[signature]


def _machine_code(function, signature):
    """The address of a kernel that is compiled for these types."""
    compiled = _compiled(function, signature)
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


@kernel(parallel=True)
def _loop(start, function, buffer, shares):
    for task in prange(len(shares)):
        _call_start(start, shares[task, 0], shares[task, 1], task, function, buffer.ctypes.data)


@kernel(allocates=False)
def _one_after_the_other(start, function, buffer, shares):
    for task in range(len(shares)):
        _call_start(start, shares[task, 0], shares[task, 1], task, function, buffer.ctypes.data)


@kernel(allocates=False)
def _start(first, end, task, function, place, kind):
    """Load arguments of this kind from their place and call the function."""
    _call(first, end, task, function, place, kind)


@kernel(allocates=False)
def _store(arguments, buffer):
    """Put arguments into a buffer; how many bytes they take."""
    return _store_tuple(arguments, buffer)


@intrinsic
def _store_tuple(typing, arguments, buffer):
    def generate(context, builder, signature, values):
        value, array = values
        size = context.get_abi_sizeof(value.type)
        if size <= _MOST_BYTES:
            data = cgutils.create_struct_proxy(buffer)(context, builder, array).data
            builder.store(value, builder.bitcast(data, value.type.as_pointer()), align=1)
        return context.get_constant(types.int64, size)

    return types.int64(arguments, buffer), generate


@intrinsic
def _call(typing, first, end, task, function, place, kind):
    """The call itself, of a function that takes three numbers and the elements of a tuple."""
    arguments = kind.instance_type
    parameters = (first, end, task, *arguments.types)

    def generate(context, builder, signature, values):
        *numbers, function_value, place_value, _ = values
        struct = context.get_value_type(arguments)
        pointer = builder.inttoptr(place_value, struct.as_pointer())
        loaded = builder.load(pointer, align=1)
        elements = cgutils.unpack_tuple(builder, loaded, len(arguments.types))
        _call_address(context, builder, function_value, parameters, [*numbers, *elements])
        return context.get_dummy_value()

    return types.none(first, end, task, function, place, kind), generate


@intrinsic
def _call_start(typing, start, first, end, task, function, place):
    """A call of `_start`; all its versions are called alike, since its last parameter is a type."""
    parameters = (types.int64,) * 5 + (types.TypeRef(types.int64),)

    def generate(context, builder, signature, values):
        start_value, *operands = values
        operands.append(context.get_dummy_value())
        _call_address(context, builder, start_value, parameters, operands)
        return context.get_dummy_value()

    return types.none(types.int64, *parameters[:5]), generate


def _call_address(context, builder, address, parameters, operands):
    convention = context.call_conv
    kind = convention.get_function_type(types.none, parameters)
    pointer = builder.inttoptr(address, kind.as_pointer())
    convention.call_function(builder, pointer, types.none, parameters, operands)
