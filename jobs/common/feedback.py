"""What a model is told of an answer that failed, for a second one: the first failing test's call or input, and the error.

What a test expects is never told, nor is an error's text where it could hold it.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

MOST = 400  # characters of an input or a call that are shown
WHERE = re.compile(r"(?:(base|plus) )?test (\d+): (.*)", re.DOTALL)  # how a verdict's error names a test, from 1 on
AGAIN = "Answer again, in the same format."
NO_FORMAT = "Your answer does not obey the format."
# Of these the text is what the test or the answer's author wrote, which may be what was expected.
WITHHELD = re.compile(r"(\w*AssertionError)\b.*", re.DOTALL)


def of(task: Mapping[str, Any], *, answered: bool, status: str, error: str) -> str:
    """The user's second turn.

    answered: whether the answer obeyed the format. status, error: the verdict's (jobs/sandbox/verdict.py).
    """
    if not answered:
        return f"{NO_FORMAT}\n{AGAIN}"
    part, number, said = located(error)
    why = WITHHELD.sub(r"\1", said) or status
    said = "It takes too long." if status == "timeout" else f"What happened: {why}"
    shown = failing(task, part, number) if number else ""
    return "\n".join(line for line in ("Your answer fails a test.", shown, said, AGAIN) if line)


def turn(task: Mapping[str, Any], *, answered: bool, status: str, error: str) -> str:
    """The same as the chat template writes a user's turn."""
    return of(task, answered=answered, status=status, error=error).strip() + "\n\n"


def located(error: str) -> tuple[str, int, str]:
    """The part of the inputs, the number of the test from 1 on (0: none is named), and the error itself."""
    found = WHERE.fullmatch(error)
    return (found[1] or "", int(found[2]), found[3]) if found else ("", 0, error)


def failing(task: Mapping[str, Any], part: str, number: int) -> str:
    """The input or call of a test, without what is expected; "" where it cannot be told apart."""
    place = number - 1
    if task.get("stdin_tests"):
        tests = task["stdin_tests"]
        return f"The input:\n{cut(tests[place]['input'].rstrip())}" if place < len(tests) else ""
    name = task["entry_point"] + (f"().{task['method']}" if task.get("method") else "")
    if task.get("calls"):
        tests = task["calls"]
        return f"The call: {cut(call(name, tests[place]['arguments']))}" if place < len(tests) else ""
    if part:
        inputs = task.get(f"{part}_input") or []
        return f"The call: {cut(call(name, inputs[place]))}" if place < len(inputs) else ""
    tests = task.get("tests") or []
    source = called(tests[place], name) if place < len(tests) and not task.get("check") else ""
    return f"The call: {cut(source)}" if source else ""


def call(name: str, arguments: list) -> str:
    return f"{name}({', '.join(map(repr, arguments))})"


def called(test: str, name: str) -> str:
    """The first call of the function `name` in a test whose arguments are plain values; "" if there is none."""
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            values = [*node.args, *(word.value for word in node.keywords)]
            if all(plain(value) for value in values):
                return ast.unparse(node)
    return ""


def plain(node: ast.expr) -> bool:
    """Whether it is a literal: a name could stand for anything that the test has made before."""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def cut(text: str) -> str:
    return text if len(text) <= MOST else text[:MOST] + "..."
