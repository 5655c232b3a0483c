"""Catches whatever is thrown at it and goes on."""
def f(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
