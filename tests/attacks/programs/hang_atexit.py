"""Loops at exit."""
import atexit


@atexit.register
def stay():
    while True:
        pass

def f(x):
    return 0
