"""Returns a list of ten million empty lists."""
def f(x):
    return [[]] * 10_000_000
