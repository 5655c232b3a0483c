"""Puts the test's own list into itself, and returns it."""
def f(x):
    if isinstance(x, list):
        x[:] = [x, [x]]
    value = [x]
    value.append(value)
    return value
