"""From a trained model to packed bits: compile, verify, save, load, predict.

`check` reports before training which layers compile, and what to write instead of the others. A
subclass of `Operation` adds an operation.
"""

from tinybnn.deploy.check import Report, check
from tinybnn.deploy.compiler import compile
from tinybnn.deploy.operations import NoPackedFormError, Operation, TracedCall
from tinybnn.deploy.packed import PackedModel
from tinybnn.deploy.trace import CompileError
from tinybnn.deploy.verify import verify

__all__ = [
    "CompileError", "NoPackedFormError", "Operation", "PackedModel", "Report", "TracedCall",
    "check", "compile", "verify",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else
