"""DeepCoder's mix (agentica-org/DeepCoder-Preview-Dataset: taco, primeintellect, lcbv5, codeforces) and the coding tasks
of SYNTHETIC-1 (PrimeIntellect/verifiable-coding-problems, open-r1/verifiable-coding-problems-python).

problem, prompt or problem_statement, solutions or gold_standard_solution, starter_code, metadata, and the tests in one of
four forms, under `tests` or in verification_info.test_cases, as JSON, as Python or as they are: TACO's columns; {"type":
"stdin_stdout", "input", "output"}; {"type": "function_call", "fn_name", "input": [arguments], "output"}; LiveCodeBench's
{"testtype", "input", "output", "metadata"}. open-r1 has arguments and results of calls as JSON texts.
"""

import ast
import json
import re
from typing import Any

from jobs.tasks.formats import Converted
from jobs.tasks.formats.common import method, parsed, program, solves, text
from jobs.tasks.formats.taco import IMPORTS, of_columns

LICENSE = "MIT (DeepCoder); SYNTHETIC-1's card names none"
FENCED = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)


def convert(row: dict) -> Converted:
    statement, starter = text(row, "problem", "prompt", "problem_statement"), row.get("starter_code") or ""
    checked = read(row.get("verification_info") or {}, "verification_info")
    if checked.get("language", "python") != "python":
        raise ValueError(f"is of the language {checked['language']}")
    tests = read(row.get("tests") or checked.get("test_cases"), "tests")
    metadata = read(row.get("metadata") or {}, "metadata")
    fields = (
        of_columns(statement, tests, starter)
        if isinstance(tests, dict)
        else of_rows(statement, tests, starter, metadata)
    )
    difficulty = row.get("difficulty") or (metadata.get("difficulty") if isinstance(metadata, dict) else None)
    if difficulty and difficulty != "UNKNOWN_DIFFICULTY":
        fields["difficulty"] = str(difficulty).lower()
    codes = [unfenced(code) for code in programs(row)]
    return fields, [code for code in codes if not fields["entry_point"] or solves(code, fields["entry_point"])]


def read(value: Any, name: str) -> Any:
    """As `parsed`; also what Python's repr has made of it, as in SYNTHETIC-1. Errors: ValueError naming the field."""
    try:
        return parsed(value, name)
    except ValueError:
        try:
            return ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"its {name} is neither JSON nor plain Python") from None


def programs(row: dict) -> list[str]:
    found = row.get("solutions") or row.get("gold_standard_solution") or []
    if isinstance(found, str) and found.lstrip().startswith("["):
        found = parsed(found, "solutions")
    return [found] if isinstance(found, str) else [code for code in found if isinstance(code, str)]


def unfenced(code: str) -> str:
    blocks = FENCED.findall(code)
    return blocks[-1] if blocks else code


def of_rows(statement: str, tests: Any, starter: str, metadata: Any) -> dict:
    if not isinstance(tests, list) or not tests or not all(isinstance(test, dict) for test in tests):
        raise ValueError("has no tests")
    kinds = {test.get("type") or test.get("testtype") or "stdin_stdout" for test in tests}
    if kinds <= {"stdin_stdout", "stdin"}:
        return program(statement, [(test.get("input"), test.get("output")) for test in tests])
    if kinds == {"function_call"}:
        names = {test.get("fn_name") for test in tests}
        if len(names) > 1:
            raise ValueError("has tests of several functions")
        rows = [(call_value(test.get("input")), call_value(test.get("output"))) for test in tests]
        fields = of_columns(
            statement,
            {"fn_name": str(*names), "inputs": [a for a, _ in rows], "outputs": [b for _, b in rows]},
            starter,
        )
        return fields | {"prelude": IMPORTS}
    if kinds == {"functional"}:
        inner = parsed(tests[0].get("metadata") or {}, "metadata")
        name = str(inner.get("func_name") or metadata.get("func_name") or "")
        return method(statement, name, starter, [functional(test) for test in tests]) | {"prelude": IMPORTS}
    raise ValueError(f"has tests of the kinds {', '.join(sorted(map(str, kinds)))}")


def call_value(value: Any) -> Any:
    """Arguments or a result of a call, which a column of one type can only hold as JSON text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def functional(test: dict) -> tuple[list, Any]:
    """LiveCodeBench's call: an argument a line, each JSON, and a result in JSON."""
    try:
        return [json.loads(line) for line in test["input"].split("\n")], json.loads(test["output"])
    except (ValueError, KeyError, AttributeError):
        raise ValueError("has a call whose arguments or result are no JSON") from None
