"""DeepCoder's mix (agentica-org/DeepCoder-Preview-Dataset: taco, primeintellect, lcbv5) and PrimeIntellect's SYNTHETIC-1.

problem or prompt, solutions or gold_standard_solution, starter_code, and the tests in one of four forms, under `tests` or
in verification_info.test_cases, as JSON or not: TACO's columns; {"type": "stdin_stdout", "input", "output"}; {"type":
"function_call", "fn_name", "input": [arguments], "output"}; LiveCodeBench's {"testtype", "input", "output"}.
"""

import json
import re
from typing import Any

from jobs.tasks.formats import Converted
from jobs.tasks.formats.common import method, parsed, program, solves, text
from jobs.tasks.formats.taco import IMPORTS, of_columns

LICENSE = "MIT (DeepCoder), Apache-2.0 (SYNTHETIC-1)"
FENCED = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)


def convert(row: dict) -> Converted:
    statement, starter = text(row, "problem", "prompt", "question"), row.get("starter_code") or ""
    checked = parsed(row.get("verification_info") or {}, "verification_info")
    if checked.get("language", "python") != "python":
        raise ValueError(f"is of the language {checked['language']}")
    tests = parsed(row.get("tests") or checked.get("test_cases"), "tests")
    metadata = parsed(row.get("metadata") or {}, "metadata")
    fields = (
        of_columns(statement, tests, starter)
        if isinstance(tests, dict)
        else of_rows(statement, tests, starter, metadata)
    )
    if row.get("difficulty"):
        fields["difficulty"] = str(row["difficulty"]).lower()
    codes = [unfenced(code) for code in programs(row)]
    return fields, [code for code in codes if not fields["entry_point"] or solves(code, fields["entry_point"])]


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
        rows = [(test.get("input"), test.get("output")) for test in tests]
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


def functional(test: dict) -> tuple[list, Any]:
    """LiveCodeBench's call: an argument a line, each JSON, and a result in JSON."""
    try:
        return [json.loads(line) for line in test["input"].split("\n")], json.loads(test["output"])
    except (ValueError, KeyError, AttributeError):
        raise ValueError("has a call whose arguments or result are no JSON") from None
