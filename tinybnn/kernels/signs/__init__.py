"""Packed signs: bits, XNOR products and convolutions with thresholds, depth-wise, pooling."""
