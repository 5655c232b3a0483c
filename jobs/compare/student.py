"""Student's t distribution, of any positive number of degrees of freedom."""

import math
from functools import lru_cache

TINY = 1e-300


def two_sided(t: float, freedom: float) -> float:
    """The chance of a value at least as far from 0 as `t`: the regularized incomplete beta I_x(freedom / 2, 1 / 2) at
    x = freedom / (freedom + t^2) (Abramowitz and Stegun 26.7.1)."""
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), by its continued fraction on the side where that converges fast (Abramowitz and Stegun 26.5.8)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log) / a * fraction(x, a, b)


def fraction(x: float, a: float, b: float) -> float:
    """Lentz's way through the continued fraction."""

    def kept(value: float) -> float:
        return value if abs(value) > TINY else TINY

    c, d = 1.0, 1 / kept(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / kept(1 + term * d)
            c = kept(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


@lru_cache(maxsize=10_000)
def quantile(confidence: float, freedom: float) -> float:
    """The t that a share `confidence` of all values is nearer to 0 than. By bisection, to 1e-12 of its size."""
    low, high = 0.0, 1.0
    while two_sided(high, freedom) > 1 - confidence:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) > 1 - confidence else (low, middle)
    return high
