"""From a trained model to packed bits: compile, verify, save, load, predict."""

from tinybnn.deploy.compiler import CompileError, compile, verify
from tinybnn.deploy.packed import PackedModel

__all__ = ["CompileError", "PackedModel", "compile", "verify"]
