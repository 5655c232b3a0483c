"""Returns two hundred million characters."""
def f(x):
    return 'x' * 200_000_000
