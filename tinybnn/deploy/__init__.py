"""From a trained model to packed bits: compile, verify, save, load, predict."""

from tinybnn.deploy.compiler import compile
from tinybnn.deploy.packed import PackedModel
from tinybnn.deploy.trace import CompileError
from tinybnn.deploy.verify import verify

__all__ = ["CompileError", "PackedModel", "compile", "verify"]
