"""Rounding by exact arithmetic, for tests: slow, and obviously right."""

from fractions import Fraction

import numpy as np

from jobs.weights import floats


def nearest(x: Fraction, dtype: str) -> float:
    """The number of format `dtype` (F16, BF16 or F32) next to `x`; of two that are, the one whose last bit is zero."""
    width = np.uint32 if dtype == "F32" else np.uint16
    guess = int(floats.encoded(np.array([abs(float(x))]), dtype)[1].view(width)[0])
    beside = np.array([max(guess - 1, 0), guess, guess + 1], width)
    values = [float(v) for v in floats.decoded(beside.tobytes(), dtype, "x")]
    best = min(range(3), key=lambda i: (abs(Fraction(values[i]) - abs(x)), int(beside[i]) & 1))
    return -values[best] if x < 0 else values[best]
