"""Packages of this room are imported where they are used, so that Numba loads late."""
