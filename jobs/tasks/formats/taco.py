"""TACO (BAAI/TACO) and APPS (codeparrot/apps), whose rows have the same fields.

question, solutions (JSON: a list of programs), starter_code, input_output (JSON: inputs, outputs and, for functions,
fn_name), difficulty, url; APPS also problem_id, TACO date, time_limit and what is not used here. APPS is MIT, TACO
Apache-2.0; the statements are the sites' own.
"""

from typing import Any

from jobs.tasks.formats import Converted
from jobs.tasks.formats.common import method, parsed, program, solves, text, texts

LICENSE = "Apache-2.0"
IMPORTS = "from typing import *\nfrom collections import *\nimport collections, functools, heapq, itertools, math\n"


def convert(row: dict) -> Converted:
    statement = text(row, "question")
    solutions = texts(row.get("solutions"), "solutions")
    fields = of_columns(statement, parsed(row.get("input_output"), "input_output"), row.get("starter_code") or "")
    if fields["entry_point"]:
        solutions = [code for code in solutions if solves(code, fields["entry_point"])]
    for name, value in (("difficulty", row.get("difficulty")), ("date", str(row.get("date") or "")[:10])):
        if value and value != "UNKNOWN_DIFFICULTY":
            fields[name] = str(value).lower()
    return fields, solutions


def of_columns(statement: str, tests: Any, starter: str) -> dict:
    """The fields of tests that are columns: {"inputs": [...], "outputs": [...], "fn_name": of a function}."""
    if not isinstance(tests, dict) or not isinstance(tests.get("inputs"), list) or not tests["inputs"]:
        raise ValueError("has no tests")
    inputs, outputs = tests["inputs"], tests.get("outputs")
    if not isinstance(outputs, list) or len(outputs) != len(inputs):
        raise ValueError("has not as many outputs as inputs")
    if not tests.get("fn_name"):
        return program(statement, list(zip(inputs, outputs, strict=True)))
    if all(isinstance(output, list) and len(output) == 1 for output in outputs):
        outputs = [output[0] for output in outputs]  # a function's result comes in a list of its own
    fields = method(statement, tests["fn_name"], starter, list(zip(inputs, outputs, strict=True)))
    return fields | {"prelude": IMPORTS}
