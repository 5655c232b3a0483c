"""Computes for ever inside one C call, where no Python signal handler runs."""
def f(x):
    return sum(range(10**15))
