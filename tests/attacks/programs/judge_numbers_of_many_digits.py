"""Returns numbers whose arithmetic takes the judge long: millions of digits, exponents, denominators."""
from decimal import Decimal
from fractions import Fraction


def f(x):
    large = 1 << 40_000_000
    return [large, Fraction(large + 1, large - 1), Decimal("1E+999999999"), Fraction(1, large)]
