"""Calls with plain arguments and results: LeetCode's kind of tests, of a class's method or of a function.

All calls are made in one child, as evalplus's inputs are; what is expected stays in the judge.
"""

import math
import time
from typing import TYPE_CHECKING, Any

from jobs.common.programs import RESULT_RULES
from jobs.sandbox import leetcode
from jobs.sandbox.codec import digest, is_huge, pack
from jobs.sandbox.inputs import outcome, replies
from jobs.sandbox.protocol import dumps
from jobs.sandbox.remote import loaded
from jobs.sandbox.verdict import Counts, Invalid, faults, line

if TYPE_CHECKING:
    from jobs.sandbox.judge import Judge


class Calls:
    """The tests of a task whose answer is called with plain data: `calls`, each with `arguments` and `expected`."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.entry_point: str = record["entry_point"]
        self.rule = record.get("comparison") or "equal"
        if self.rule not in RESULT_RULES:
            raise KeyError(f"no rule {self.rule} for comparing results")
        self.atol, self.rtol = float(record.get("atol") or 0), float(record.get("rtol") or 0)
        self.limit = record.get("time_limit")
        self.prelude = record.get("prelude") or ""
        self.shared = self.rule == "livecodebench"
        self.adapter = leetcode.adapter(self.entry_point, record.get("method"), record.get("shapes") or {}, self.shared)
        calls = record["calls"]
        self.question = {"op": "batch", "name": leetcode.ANSWER, "inputs": [pack(call["arguments"]) for call in calls],
                         "each": False}  # fmt: skip
        dumps(self.question)  # that it can be asked
        self.expected = [call["expected"] for call in calls]
        self.total = len(calls)
        self.unsupported = ""
        if record.get("checker"):
            self.unsupported = f"its answers need a checker of their own: {record['checker']}"

    def judge(self, judge: "Judge", code: str) -> Counts:
        counts = Counts(self.total)
        benchmark = judge.config["benchmark"]
        limit = float(self.limit) if self.limit and benchmark else None
        with judge.source(code, self.prelude).child() as child, faults(counts):
            child.deadline = time.monotonic() + (judge.timeout if limit is None else limit * (self.total + 1))
            child.limit_judging(1.0)
            loaded(child, f"{leetcode.NODES}\n{self.prelude}", [])
            loaded(child, code, [])
            try:
                loaded(child, self.adapter, [])
            except Exception as error:
                raise Invalid(f"{self.entry_point} is not defined as it should be: {line(error)}"[:200]) from None
            limits = None if limit is None else [limit] * self.total
            for i, (kind, reply) in enumerate(replies(child, self.question, limits, "")):
                try:
                    counts.passed[i] = self.agrees(outcome(kind, reply), reply, self.expected[i])
                    wrong = "" if counts.passed[i] else "a wrong answer"
                except Exception as error:
                    wrong = line(error)
                counts.error = counts.error or (wrong and f"test {i + 1}: {wrong}")
                if wrong and benchmark:
                    break
        judge.name_what_is_missing(counts, child.source)
        return counts

    def agrees(self, value: Any, packed: Any, expected: Any) -> bool:
        if type(packed) is dict and "h" in packed:
            return is_huge(expected) and packed == digest(expected)
        if self.atol or self.rtol:
            return near(value, expected, self.atol, self.rtol)
        return type(value == expected) is bool and value == expected


def near(value: Any, expected: Any, atol: float, rtol: float) -> bool:
    """Equal, but for floats as near as max(atol, rtol x expected), at any depth of lists and dicts."""
    if isinstance(expected, list):
        return (isinstance(value, list) and len(value) == len(expected)
                and all(near(a, b, atol, rtol) for a, b in zip(value, expected, strict=True)))  # fmt: skip
    if isinstance(expected, dict):
        return (isinstance(value, dict) and value.keys() == expected.keys()
                and all(near(value[key], item, atol, rtol) for key, item in expected.items()))  # fmt: skip
    numbers = (int, float)
    if type(value) in numbers and type(expected) in numbers and float in (type(value), type(expected)):
        return (
            math.isfinite(value)
            and math.isfinite(expected)
            and abs(value - expected) <= max(atol, rtol * abs(expected))
        )
    return type(value == expected) is bool and value == expected
