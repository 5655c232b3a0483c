"""Puts another file in the place of its socket."""
import os


def f(x):
    os.dup2(0, 3)
    return 0
