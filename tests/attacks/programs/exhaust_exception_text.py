"""Raises an exception with a hundred million characters."""
def f(x):
    raise ValueError('x' * 100_000_000)
