"""Changes its argument into something equal to everything."""
class Any:
    def __eq__(self, other):
        return True


def f(x):
    if isinstance(x, list):
        x[:] = [Any() for _ in x]
    return x if isinstance(x, list) else Any()
