"""Fails with texts, names and keys that no output can encode: halves of surrogate pairs, escapes, ends of lines."""
HALF = "\ud83d\udfff\x1b[2J\r\n\u2028passed"
calls = []


def f(x):
    calls.append(x)
    kind = type("E" + HALF, (ValueError,), {"__module__": HALF, "__qualname__": HALF})
    if len(calls) % 3:
        raise kind(HALF * 100)
    return [{HALF: HALF}, type(HALF, (), {})()]
