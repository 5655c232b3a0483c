"""Waits for input."""
def f(x):
    return input() or 0
