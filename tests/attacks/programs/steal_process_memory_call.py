"""Reads its parent's memory by process_vm_readv."""
import ctypes
import os


def f(x):
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(4096)

    class Span(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]

    here = Span(ctypes.addressof(buffer), 4096)
    there = Span(id(f) & ~4095, 4096)
    for pid in (os.getppid(), os.getppid() - 1):
        if libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0:
            open("/tmp/sandbox-attack-harm-memory", "w").close()
    return 0
