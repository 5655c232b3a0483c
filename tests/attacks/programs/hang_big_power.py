"""Computes a power with billions of digits."""
def f(x):
    return len(str(3 ** (3 ** 20)))
