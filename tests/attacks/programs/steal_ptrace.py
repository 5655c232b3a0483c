"""Attaches to its parent."""
import ctypes
import os


def f(x):
    libc = ctypes.CDLL(None)
    for pid in (os.getppid(), os.getppid() - 1):
        if libc.ptrace(16, pid, 0, 0) == 0:
            open("/tmp/sandbox-attack-harm-ptrace", "w").close()
    return 0
