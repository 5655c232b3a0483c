"""What several data sets have in common: tests as texts in JSON, statements of competitions, starter code."""

import ast
import json
import re
from typing import Any

PROGRAM = "Write a program that reads its input from standard input and writes its answer to standard output."
STARTER = "Begin with this code:"
# A statement that leaves the choice among right answers to the program: only a checker of its own can tell.
ANY = re.compile(
    r"\bin any order\b|\bany (?:one )?of (?:them|these|those)\b|\b(?:print|output|return|find|choose) any\b|"
    r"\bany (?:valid|correct|possible|suitable|such) (?:answer|solution|output|one|sequence|order|permutation|array|"
    r"string)\b|\bif there (?:are|is) (?:several|multiple|many|more than one)\b|"
    r"\bmultiple (?:correct |valid |possible )?(?:answers|solutions)\b",
    re.IGNORECASE,
)
ERROR = re.compile(
    r"\b(?:absolute|relative)\b[^.\n]{0,40}\berror\b|\berror\b[^.\n]{0,80}\b(?:absolute|relative)\b", re.IGNORECASE
)
POWER = re.compile(r"10\s*\^?\s*\{?\s*[-\u2212\u2013]\s*(\d{1,2})\s*\}?|\b1e-(\d{1,2})\b")


def parsed(value: Any, name: str) -> Any:
    """The value of a field that is JSON text, or was before it was stored. Errors: ValueError naming the field."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(f"its {name} is no JSON") from None


def texts(value: Any, name: str) -> list[str]:
    found = parsed(value, name) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"its {name} are not a list of texts")
    return found


def text(row: dict, *names: str) -> str:
    """The first of the fields that holds a text. Errors: ValueError naming them."""
    for name in names:
        if isinstance(row.get(name), str) and row[name].strip():
            return row[name].replace("\r\n", "\n")
    raise ValueError(f"has no {' or '.join(names)}")


def as_text(value: Any) -> str:
    """An input or output of a program: a text, or the list of its lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ValueError("has an input or output that is neither a text nor a list of lines")
    return value


def program(statement: str, tests: list[tuple[Any, Any]]) -> dict:
    """The fields of a task for a whole program. Errors: ValueError where its outputs need a checker."""
    choice = ANY.search(statement)
    if choice:
        raise ValueError(f"needs a checker: {' '.join(choice[0].split())!r}")
    rows = [{"input": as_text(given), "output": as_text(expected)} for given, expected in tests]
    if not any(row["output"].strip() for row in rows):
        raise ValueError("has no test that expects an output")
    return {"prompt": f"{statement.strip()}\n\n{PROGRAM}", "entry_point": "", "stdin_tests": rows} | tolerance(
        statement
    )


def tolerance(statement: str) -> dict:
    """atol and rtol, where the statement names an absolute or relative error that is allowed."""
    found = ERROR.search(statement)
    if not found:
        return {}
    near = POWER.search(statement, max(0, found.start() - 200), found.end() + 200)
    if not near:
        raise ValueError("allows an error without saying how large")
    allowed = float(f"1e-{near[1] or near[2]}")
    return {"atol": allowed, "rtol": allowed}


def method(statement: str, name: str, starter: str, tests: list[tuple[list, Any]]) -> dict:
    """The fields of a task for a function, or for a method of the class Solution where the starter code has it."""
    if not name.isidentifier():
        raise ValueError(f"its function {name!r} is no name")
    choice = ANY.search(statement)
    if choice:
        raise ValueError(f"needs a checker: {' '.join(choice[0].split())!r}")
    if not all(isinstance(arguments, list) for arguments, _ in tests):
        raise ValueError("has arguments that are not a list")
    begin = f"\n\n{STARTER}\n\n{starter.rstrip()}\n" if starter.strip() else f"\n\nWrite the function `{name}`."
    of_class = re.search(r"^class Solution\b", starter, re.MULTILINE)
    where = {"entry_point": "Solution", "method": name} if of_class else {"entry_point": name}
    calls = [{"arguments": arguments, "expected": expected} for arguments, expected in tests]
    return {"prompt": statement.strip() + begin, **where, "calls": calls}


def solves(solution: str, name: str) -> bool:
    """Whether a program defines the function or class `name` at its outermost level."""
    try:
        tree = ast.parse(solution)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name for node in tree.body)
