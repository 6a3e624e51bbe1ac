"""Arrays in, arrays out: all Numba code, in four folders; each imports only earlier ones.

`machine` (vectors, threads, memory), `signs` (bits and their products), `floats` (ordered sums,
elementwise programs, convolutions), `training` (gradients, normalisation, optimizers). Above them
`dispatch` says which kernel computes which formula. Import the files where they are used: Numba
loads late.
"""
