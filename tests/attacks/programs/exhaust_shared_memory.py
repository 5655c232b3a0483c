"""Leaves shared memory behind."""
import ctypes


def f(x):
    libc = ctypes.CDLL(None)
    libc.shmget(0x5EED, 1 << 20, 0o1666)
    descriptor = libc.memfd_create(b"sandbox-attack", 0)
    if descriptor >= 0:
        libc.ftruncate(descriptor, 1 << 30)
    try:
        from multiprocessing import shared_memory

        shared_memory.SharedMemory("sandbox-attack-harm", create=True, size=1 << 20)
    except Exception:
        pass
    return 0
