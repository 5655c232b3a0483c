"""Loops for ever in the call."""
def f(x):
    while True:
        pass
