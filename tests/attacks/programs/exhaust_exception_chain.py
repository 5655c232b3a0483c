"""Raises an exception with an endless chain of causes."""
def f(x):
    error = ValueError("0")
    for i in range(100_000):
        error, error.__cause__ = ValueError(str(i)), error
    error.__context__ = error.__cause__
    raise error
