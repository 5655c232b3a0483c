"""Raises groups of exceptions, nested deeply and sharing their parts, with attributes that grow, lie or are no text."""


class Odd(ExceptionGroup):
    def __getattribute__(self, name):
        if name in ("exceptions", "__dict__"):
            return EACH.get(name)
        return ExceptionGroup.__getattribute__(self, name)


def nested(kind):
    found = [AssertionError("x" * 10_000) for _ in range(200)]
    for _ in range(2_000):
        found = [kind("y" * 10_000, found) for _ in range(2)]
    found[0].__dict__.update({"z" * 100_000: 1, "args": (471203,), "__class__": int, "n": 10**100_000, "\ud800": 1})
    return found[0]


EACH = {"exceptions": (), "__dict__": {1: 2, "passed": True, "a": [[]] * 100}}


def f(x):
    if isinstance(x, list):
        x.append(nested(ExceptionGroup))
        raise x[-1]
    raise nested(Odd if x == 3 else ExceptionGroup)
