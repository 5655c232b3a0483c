"""Kills its parent by system calls that are not kill: tgkill, pidfd, sigqueue."""
import ctypes
import os


def f(x):
    libc = ctypes.CDLL(None)
    parent = os.getppid()
    libc.syscall(234, parent, parent, 9)
    libc.syscall(129, parent, 9, ctypes.create_string_buffer(128))
    libc.syscall(424, libc.syscall(434, parent, 0), 9, 0, 0)
    return 0
