"""Undoes the signal that ends it with its parent, and its being undumpable."""
import ctypes


def f(x):
    libc = ctypes.CDLL(None)
    if libc.prctl(1, 0, 0, 0, 0) == 0 or libc.prctl(4, 1, 0, 0, 0) == 0:
        return 471203
    return 0
