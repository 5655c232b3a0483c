"""Returns an iterator that never ends, of items of a megabyte each."""
def f(x):
    while True:
        yield "x" * 2**20
