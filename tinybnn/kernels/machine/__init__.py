"""Foundations of all kernels: vectors, threads, memory, compiled code on disk."""
