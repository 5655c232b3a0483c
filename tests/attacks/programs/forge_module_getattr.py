"""Gives the module a __getattr__ that answers every name."""
def __getattr__(name):
    return lambda *a, **k: True

def f(x):
    return 0
