"""Floats: sums in a fixed order, elementwise programs, fused epilogues, convolutions."""
