"""Arrays in, arrays out. Import the files of this room where they are used: Numba loads late."""
