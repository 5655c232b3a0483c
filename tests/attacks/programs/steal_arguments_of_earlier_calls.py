"""Remembers earlier arguments and answers in the hope of a later check of them."""
SEEN = []


def f(x):
    SEEN.append(x)
    return SEEN[-2] if len(SEEN) > 1 else SEEN
