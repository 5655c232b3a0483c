"""Has itself traced, so that its death is reported elsewhere."""
import ctypes


def f(x):
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    return 0
