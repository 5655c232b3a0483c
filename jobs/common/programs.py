"""The other kinds of tests: programs with standard input and output, calls with plain data, test classes (jobs/sandbox)."""

import ast
from collections.abc import Mapping
from typing import Any

KINDS = {"stdin_tests": ("input", "output"), "calls": ("arguments", "expected")}
OUTPUT_RULES = "lines", "tokens", "livecodebench"
RESULT_RULES = "equal", "livecodebench"
SHAPES = None, "ListNode", "TreeNode", "list of ListNode"


def is_program(task: Mapping[str, Any]) -> bool:
    """Whether the answer is a whole program that reads and writes, without an entry point."""
    return bool(task.get("stdin_tests"))


def fault_of_programs(task: Mapping[str, Any]) -> str:
    """What is wrong with the fields of these kinds of tests, in a few words, or ""."""
    found = [name for name in KINDS if task.get(name)]
    if not found:
        return ""
    if len(found) > 1 or any(task.get(name) for name in ("tests", "check", "base_input", "plus_input")):
        return f"has {found[0]} and other tests beside them"
    name = found[0]
    tests = task[name]
    if not isinstance(tests, list) or not all(
        isinstance(test, dict) and all(part in test for part in KINDS[name]) for test in tests
    ):
        return f"its {name} are not a list of objects with {' and '.join(KINDS[name])}"
    if name == "stdin_tests" and not all(isinstance(test[part], str) for test in tests for part in KINDS[name]):
        return "its stdin_tests have an input or output that is not a text"
    if name == "calls" and not all(isinstance(test["arguments"], list) for test in tests):
        return "its calls have arguments that are not a list"
    rules = OUTPUT_RULES if name == "stdin_tests" else RESULT_RULES
    if task.get("comparison") not in (None, *rules):
        return f"its comparison is none of {', '.join(rules)}"
    return fault_of_limits(task) or fault_of_shapes(task)


def fault_of_unittests(task: Mapping[str, Any]) -> str:
    """The same for tests in a class TestCases of unittest."""
    if any(task.get(name) for name in ("tests", "check", "base_input", "plus_input", *KINDS)):
        return "has unittests and other tests beside them"
    try:
        tree = ast.parse(task["unittests"])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "its unittests are no Python"
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TestCases"]
    if not any(
        isinstance(item, ast.FunctionDef) and item.name.startswith("test") for node in found for item in node.body
    ):
        return "its unittests have no class TestCases with tests"
    return fault_of_limits(task)


def fault_of_limits(task: Mapping[str, Any]) -> str:
    for name in ("atol", "rtol", "time_limit"):
        value = task.get(name)
        if value is not None and (not isinstance(value, (int, float)) or not value >= 0):
            return f"its {name} is not a number from 0 on"
    return ""


def fault_of_shapes(task: Mapping[str, Any]) -> str:
    shapes = task.get("shapes") or {}
    if not isinstance(shapes, dict) or not shapes.keys() <= {"arguments", "result"}:
        return "its shapes have keys other than arguments and result"
    named = [*(shapes.get("arguments") or []), shapes.get("result")]
    if any(shape not in SHAPES for shape in named):
        return f"its shapes are none of {', '.join(str(shape) for shape in SHAPES[1:])}"
    return ""
