"""How evalplus compares: its rules, tolerances and special oracles, so that verdicts agree with it sample by sample.

After evalplus 0.3.1 (Apache-2.0), evalplus/eval/__init__.py, eval/_special_oracle.py and data/mbpp.py, with main's
fix of HumanEval/32 (0.3.1 never marks it passed) and one deviation: an oracle that looks at the inputs gets the
original ones, not what the submission has made of them."""

import math
from collections.abc import Callable
from typing import Any

MOST_ITEMS = 1 << 20
NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")
SET_EQUAL = ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
             "intersection_array", "find_dissimilar", "Diff")  # fmt: skip


def surface_area(base_edge: float, height: float) -> int:
    """Mbpp/581, reading the height as the distance from the base to the apex."""
    slant_height = math.sqrt((base_edge / 2) ** 2 + height**2)
    return round(base_edge**2 + 4 * (base_edge * slant_height) / 2)


def digit_distance(a: int, b: int) -> int:
    """Mbpp/558, the shorter number padded with zeros."""
    width = max(len(str(a)), len(str(b)))
    return sum(abs(int(x) - int(y)) for x, y in zip(str(a).zfill(width), str(b).zfill(width), strict=True))


def poly(coefficients: list, x: float) -> float:
    return sum(c * math.pow(x, i) for i, c in enumerate(coefficients))


def is_floats(value: Any) -> bool:
    if isinstance(value, float):
        return True
    if isinstance(value, (list, tuple)) and value:
        return all(isinstance(item, float) for item in value)
    return type(value).__name__ == "ndarray" and value.dtype in ("float64", "float32")


def as_set(value: Any) -> set:
    """set(value), not made of a lazy value of more items than any right answer has. Errors: ValueError for such a one."""
    if len(value) > MOST_ITEMS:
        raise ValueError(f"{len(value)} items")
    return set(value)


class Comparison:
    """evalplus's verdict on one result after another; its tolerance, once set, sticks for the tests that follow."""

    def __init__(self, mbpp: bool, entry_point: str, atol: float) -> None:
        self.mbpp, self.entry_point, self.atol = mbpp, entry_point, atol

    def agrees(self, arguments: list, value: Any, expected: Any) -> bool:
        """Whether `value` is right. Any exception that comparing raises means it is not, as in evalplus."""
        name = self.entry_point
        exact = value == expected
        if self.mbpp:
            if name == "are_equivalent":
                exact = exact or True
            elif name == "sum_div":
                exact = exact or value == 0
            elif name == "surface_Area":
                exact = exact or abs(value - surface_area(*arguments)) <= self.atol
            elif name == "digit_distance_nums":
                exact = exact or value == digit_distance(*arguments)
            elif name in SET_EQUAL:
                exact = as_set(value) == set(expected)
            elif name in NOT_NONE:
                exact = value == expected if isinstance(value, bool) else expected == (value is not None)
        elif name == "find_zero":
            return abs(poly(arguments[0], value)) <= self.atol
        if self.atol == 0 and is_floats(expected):
            self.atol = 1e-6
        if not exact and self.atol != 0:
            if type(value) is not type(expected):
                return False
            if isinstance(expected, (list, tuple)) and len(value) != len(expected):
                return False
            import numpy

            return bool(numpy.allclose(value, expected, rtol=1e-07, atol=self.atol))
        return bool(exact)


# ---- MBPP+ keeps its inputs as JSON; these make tuples, sets and complex numbers of them again, task by task.

Convert = Callable[[list], Any]


def tuples(inputs: list) -> list:
    return [tuple(item) for item in inputs]


def nested(value: Any) -> Any:
    return tuple(nested(item) for item in value) if isinstance(value, list) else value


CONVERSIONS: list[tuple[str, Convert]] = [
    ("2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809", tuples),
    ("63 64 70 94 120 237 272 299 400 409 417 438 473 614 780", lambda a: [tuples(item) for item in a]),
    ("75 413 444 753", lambda a: [tuples(a[0]), a[1]]),
    ("106 750", lambda a: [a[0], tuple(a[1])]),
    ("115", lambda a: [[set(item) if isinstance(item, list) and len(item) else {} for item in a[0]]]),
    ("124", lambda a: [float(a[0]), complex(a[1])]),
    ("250 405 446 617 720 763 808", lambda a: [tuple(a[0]), a[1]]),
    ("259 401 445", lambda a: [tuple(tuples(item)) for item in a]),
    ("278", lambda a: [tuple(tuple(item) if isinstance(item, list) else item for item in a[0])]),
    ("307", lambda a: [tuple(a[0]), a[1], a[2]]),
    ("722", lambda a: [{key: tuple(item) for key, item in a[0].items()}, *a[1:]]),
    ("252", lambda a: [complex(a[0])]),
    ("580 615 791", lambda a: list(nested(a))),
]
MBPP = {f"Mbpp/{number}": convert for numbers, convert in CONVERSIONS for number in numbers.split()}


def arguments_of(task_id: str, inputs: list) -> list[list]:
    """The argument lists that evalplus would call with, of the raw JSON ones in its jsonl."""
    convert = MBPP.get(task_id)
    return [list(convert(item)) for item in inputs] if convert else inputs
