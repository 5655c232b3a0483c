"""Returns lists of one list twice, forty deep: small to send, and endless to look through."""
def f(x):
    value = [0]
    for _ in range(40):
        value = [value, value]
    return value
