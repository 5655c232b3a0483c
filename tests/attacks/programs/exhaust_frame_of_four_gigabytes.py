"""Announces a message of four gigabytes."""
import os


def f(x):
    os.write(3, b'\xff\xff\xff\xff' + bytes(1 << 16))
    return 0
