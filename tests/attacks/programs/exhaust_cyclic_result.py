"""Returns a list that contains itself."""
def f(x):
    value = []
    value.append(value)
    return value
