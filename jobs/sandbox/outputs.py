"""Whether what a program wrote is what its test expects, by the rules of programming competitions.

lines           the same lines, but for blanks at the end of a line and empty lines at the end
tokens          the same words, however blanks and line breaks stand between them
livecodebench   LiveCodeBench's: lines without blanks around them; where two differ, as lists of decimal numbers

With a tolerance, words that are numbers on both sides, and finite, need only be as near as max(atol, rtol x expected).
"""

import math
from decimal import Decimal, DecimalException

from jobs.common.programs import OUTPUT_RULES

LONGEST_NUMBER = 4096  # characters of a word that is still read as a number


def agrees(written: str, expected: str, rule: str, atol: float = 0.0, rtol: float = 0.0) -> bool:
    """Whether a test passes. Errors: KeyError for a rule that is none of OUTPUT_RULES."""
    if rule == "livecodebench":
        return decimals_agree(written, expected)
    if rule not in OUTPUT_RULES:
        raise KeyError(f"no rule {rule} for comparing outputs")
    ours, theirs = parts(written, rule), parts(expected, rule)
    if ours == theirs or not (atol or rtol):
        return ours == theirs
    return len(ours) == len(theirs) and all(
        near_lines(a, b, atol, rtol) for a, b in zip(ours, theirs, strict=True) if a != b
    )


def parts(text: str, rule: str) -> list[str]:
    if rule == "tokens":
        return text.split()
    return [line.rstrip() for line in text.rstrip().split("\n")]


def near_lines(written: str, expected: str, atol: float, rtol: float) -> bool:
    ours, theirs = written.split(), expected.split()
    return len(ours) == len(theirs) and all(a == b or near(a, b, atol, rtol) for a, b in zip(ours, theirs, strict=True))


def near(written: str, expected: str, atol: float, rtol: float) -> bool:
    if len(written) > LONGEST_NUMBER or len(expected) > LONGEST_NUMBER or "_" in written + expected:
        return False
    try:
        one, other = float(written), float(expected)
    except ValueError:
        return False
    if not (math.isfinite(one) and math.isfinite(other)):
        return False
    return abs(one - other) <= max(atol, rtol * abs(other))


def decimals_agree(written: str, expected: str) -> bool:
    """As `grade_stdio` of LiveCodeBench's lcb_runner/evaluation/testing_util.py compares."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (written, expected))
    if len(ours) != len(theirs):
        return False
    for one, other in zip(ours, theirs, strict=True):
        if one != other:
            try:
                if [Decimal(word) for word in one.split()] != [Decimal(word) for word in other.split()]:
                    return False
            except (DecimalException, ValueError):
                return False
    return True
